//! Layers that come from images, known by their blobs.
//!
//! ```text
//! same blobs and diff IDs below and here (blob chain ID)   that record
//! same diff ID as data that were proved to have it         a new record, which shares those data
//! else                                                     a new record, lazy
//! ```
//!
//! The second needs the proof: a diff ID is what an image's configuration claims. Were it believed, an image that claims another's layer
//! would show its own content in that image too.

use peelfs_registry::Digest;

use super::compose::chain_ids;
use super::digests::blob_link;
use super::refs::{ImmutableRef, Purpose, present};
use super::truth::truth;
use super::{Attempt, Cache, CacheError, LayerSource, apply, chain_id, now, or_refuse, refuse};
use crate::fetch::twins::has_diff_id;
use crate::store::record_tables::{CacheRecord, LayerBlob, RecordId, RecordKey, RecordKind, RecordTables};
use crate::store::{LayerState, Store};

/// What a manifest and its configuration say of a layer.
#[derive(Clone, Debug)]
pub struct LayerDescription {
    /// Digest of the blob.
    pub blob: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
    /// Digest of the uncompressed layer.
    pub diff_id: Digest,
    /// Digest of the table of contents, if the descriptor names it.
    pub toc_digest: Option<Digest>,
    /// Name of the layer in the store, if it is not the blob's digest: of one that an index beside it made, for its image alone.
    pub layer: Option<String>,
    /// Canonical reference of the image, if there is one.
    pub image: Option<String>,
    /// What it is, for people.
    pub description: String,
}

impl LayerDescription {
    fn blob(&self) -> LayerBlob {
        LayerBlob { digest: self.blob.to_string(), media_type: self.media_type.clone(), size: self.size }
    }

    fn layer(&self) -> String {
        self.layer.clone().unwrap_or_else(|| self.blob.to_string())
    }
}

impl Cache {
    /// The record of a layer on that parent, or on nothing; made if there is none.
    ///
    /// # Errors
    /// [`CacheError::WithoutChainId`] if layers of the parent have no known diff IDs.
    pub fn get_by_blob(
        &self,
        description: &LayerDescription,
        parent: Option<&ImmutableRef>,
        purpose: Purpose,
    ) -> Result<ImmutableRef, CacheError> {
        if let Some(parent) = parent {
            parent.finalize()?;
        }
        let fresh = RecordId::random()?;
        let (number, id) = self.write("record a layer", |tables| {
            let parent = parent.map(|parent| present(tables, parent.id())).transpose()?;
            let id = ensure_layer(tables, description, parent.as_ref(), &fresh, self.store())?;
            if let Some(image) = &description.image {
                tables.add_image(&id, image)?;
            }
            Ok((self.take(tables, &id, purpose)?, id))
        })?;
        Ok(self.immutable_ref(number, id))
    }
}

/// The record of a layer on that parent; one of the id `fresh` is made if there is none.
pub(super) fn ensure_layer(
    tables: &RecordTables<'_>,
    description: &LayerDescription,
    parent: Option<&CacheRecord>,
    fresh: &RecordId,
    store: &Store,
) -> Attempt<RecordId> {
    let diff_id = description.diff_id.as_str();
    let (chain, blob_chain) = match parent {
        None => (None, None),
        Some(CacheRecord { chain_id: Some(chain), blob_chain_id, .. }) => {
            (Some(chain), blob_chain_id.as_ref())
        }
        Some(other) => return refuse(CacheError::WithoutChainId { record: other.id.clone() }),
    };
    let blob_link = blob_link(description.blob.as_str(), diff_id);
    let kind = parent.map_or(RecordKind::Base, |parent| RecordKind::Layer { parent: parent.id.clone() });
    let mut record = CacheRecord::new(fresh.clone(), kind, now());
    record.chain_id = Some(chain_id(chain.map(String::as_str), diff_id));
    record.blob_chain_id = match (parent, blob_chain) {
        (None, _) => Some(blob_link),
        (Some(_), Some(below)) => Some(chain_id(Some(below), &blob_link)),
        (Some(_), None) => None,
    };
    let layer = description.layer();
    if let Some(blob_chain) = &record.blob_chain_id {
        for id in tables.records_by(RecordKey::BlobChainId, blob_chain)? {
            // A merge that stands for the same is not it; nor is what an index beside a blob made, of this layer or of one below.
            let known = present(tables, &id)?;
            let has_own_layer = matches!(known.kind, RecordKind::Base | RecordKind::Layer { .. });
            if has_own_layer
                && (description.layer.is_none() || known.layer.as_ref() == Some(&layer))
                && is_on_the_same(tables, &known.kind, &record.kind)?
            {
                return learn(tables, known, description);
            }
        }
    }
    record.description.clone_from(&description.description);
    record.diff_id = Some(diff_id.to_owned());
    record.blob = Some(description.blob());
    record.toc_digest = description.toc_digest.as_ref().map(Digest::to_string);
    record.layer = Some(layer);
    if let Some(parent) = parent {
        record.is_volatile = parent.is_volatile;
        record.boot.clone_from(&parent.boot);
    }
    let is_of_other = description.layer.as_ref().is_some_and(|layer| *layer != description.blob.as_str());
    let twin = match description.layer {
        None => proved_twin(store, tables, diff_id)?,
        // It may have been read in the data of another blob, or it is what an index beside its own made.
        Some(_) if is_of_other => {
            proved_twin(store, tables, diff_id)?.filter(|twin| twin.layer == record.layer)
        }
        Some(_) => None,
    };
    if let Some(twin) = &twin {
        record.layer.clone_from(&twin.layer);
        record.is_proved = true;
    }
    tables.insert_record(&record)?;
    if let Some(twin) = twin
        && let (Some(own), Some(other)) = (&record.blob, &twin.blob)
        && own.digest != other.digest
    {
        // Each knows the other's blob: the data that they share come from one of the two.
        tables.add_variant(&record.id, other)?;
        tables.add_variant(&twin.id, own)?;
    }
    Ok(record.id)
}

/// Adds to a known record what was not known of it.
fn learn(
    tables: &RecordTables<'_>,
    mut known: CacheRecord,
    description: &LayerDescription,
) -> Attempt<RecordId> {
    if let (None, Some(toc)) = (&known.toc_digest, &description.toc_digest) {
        known.toc_digest = Some(toc.to_string());
        tables.update_record(&known)?;
    }
    Ok(known.id)
}

/// Whether two layers lie on the same data. Blob chain IDs do not say it: what an index beside a blob made has that blob's.
fn is_on_the_same(tables: &RecordTables<'_>, one: &RecordKind, other: &RecordKind) -> Attempt<bool> {
    if one == other {
        return Ok(true);
    }
    let sources = |kind: &RecordKind| -> Attempt<Vec<LayerSource>> {
        let below = apply::applications(tables, kind.parents().cloned().collect::<Vec<_>>().into_iter())?;
        Ok(apply::leaves(&below).into_iter().map(|layer| layer.source.clone()).collect())
    };
    Ok(sources(one)? == sources(other)?)
}

/// A record whose data were proved to have that diff ID.
fn proved_twin(store: &Store, tables: &RecordTables<'_>, diff_id: &str) -> Attempt<Option<CacheRecord>> {
    for id in tables.records_by(RecordKey::DiffId, diff_id)? {
        let record = present(tables, &id)?;
        let Some(layer) = record.layer.as_ref().filter(|_| !record.is_volatile) else { continue };
        let truth = or_refuse(truth(store, layer))?;
        let is_usable = !matches!(truth.state, LayerState::Incomplete | LayerState::Poisoned);
        // That it was proved by another's diff ID is no proof of this one.
        let has_it = || or_refuse(has_diff_id(store, layer, diff_id));
        if is_usable && (record.is_proved || (truth.is_proved && has_it()?)) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

impl ImmutableRef {
    /// Says what layer was made of this record's snapshot: its archive has that diff ID, and that blob. The record can be found by them from
    /// now on, and others can share `layer`, if it is given: the layer in the store that was made of the archive.
    ///
    /// # Errors
    /// [`CacheError::Immutable`] if another layer is known.
    pub fn set_layer(
        &self,
        blob: &LayerBlob,
        diff_id: &Digest,
        layer: Option<&str>,
    ) -> Result<(), CacheError> {
        self.finalize()?;
        self.cache().write_durably("record what a snapshot became", |tables| {
            let mut record = present(tables, self.id())?;
            if record.diff_id.as_deref().is_some_and(|known| known != diff_id.as_str()) {
                return refuse(CacheError::Immutable { record: record.id });
            }
            if record.blob.as_ref().is_some_and(|known| known.digest != blob.digest) {
                tables.add_variant(&record.id, blob)?;
                return Ok(());
            }
            record.diff_id = Some(diff_id.to_string());
            record.blob = Some(blob.clone());
            record.is_proved = true;
            record.layer = record.layer.or(layer.map(str::to_owned));
            record.size = None;
            tables.update_record(&record)?;
            let applications = apply::applications(tables, [record.id.clone()].into_iter())?;
            (record.chain_id, record.blob_chain_id) = chain_ids(&applications);
            Ok(tables.update_record(&record)?)
        })
    }

    /// Remembers another blob of the same layer.
    pub fn add_variant(&self, blob: &LayerBlob) -> Result<(), CacheError> {
        self.cache().write("record another blob of a layer", |tables| {
            let record = present(tables, self.id())?;
            if record.blob.is_none_or(|own| own.digest != blob.digest) {
                tables.add_variant(self.id(), blob)?;
            }
            Ok(())
        })
    }

    /// The other blobs of the same layer, by digest.
    pub fn variants(&self) -> Result<Vec<LayerBlob>, CacheError> {
        self.cache().read("list the blobs of a layer", |tables| Ok(tables.variants(self.id())?))
    }

    /// References of the images that it came from.
    pub fn images(&self) -> Result<Vec<String>, CacheError> {
        self.cache().read("list the images of a layer", |tables| Ok(tables.images_of(self.id())?))
    }
}
