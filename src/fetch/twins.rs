//! Layers whose archive is here already, from another blob: the same archive in another compression.
//!
//! ```text
//! archive streamed, or proved ─▶ noted: "this diff ID: that layer, from that blob"
//! another blob of that diff ID ─▶ noted layer: there? proved? all of it here? ──yes──▶ read from it, its own blob never asked for
//! ```
//!
//! Rules
//! - A diff ID is what an image claims. What is noted is what was found: a layer of that name was hashed, and has it. So nobody's claim puts
//!   anything into another's image; who claims an archive that is here is shown that archive, and nothing that his own blob has.
//! - What is kept by a name is made of one blob by rules that the name tells, so what was noted of a name holds for ever. Whether the
//!   layer is there, and is not merely what a table of contents says, is looked at each time.
//! - A layer that was read by a table of contents is shared once it is proved; a zTOC's never, as its checkpoints are trusted for its image.
//! - A layer that hides what an eStargz writer added shows another tree than one that does not: only alike ones share.

use peelfs_registry::{BlobDescriptor, Digest, ImageReference};
use serde::{Deserialize, Serialize};

use super::names;
use crate::error::chain;
use crate::image::Layer;
use crate::layer::compression::check_media_type;
use crate::layer::lookup::hides_bookkeeping;
use crate::store::{LayerFiles, NoteKind, Store, StoreError, TableSource, Verdict};

/// How many layers of one archive are noted, the newest ones.
const MOST: usize = 4;

/// A layer of which it was found that its archive has a diff ID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Twin {
    /// What it is kept by.
    layer: String,
    /// Digest, length and media type of the blob that it was made of.
    blob: String,
    size: u64,
    media_type: String,
    /// The image by which the blob can be had.
    image: String,
    /// Whether the files that an eStargz writer added are left out.
    hides_bookkeeping: bool,
}

impl Twin {
    /// What it is kept by.
    pub fn name(&self) -> Option<Digest> {
        self.layer.parse().ok()
    }

    /// The blob that it was made of, and the image by which that can be had.
    pub fn blob(&self) -> Option<(BlobDescriptor, ImageReference)> {
        let descriptor = BlobDescriptor {
            digest: self.blob.parse().ok()?,
            size: self.size,
            media_type: self.media_type.clone(),
            annotations: Default::default(),
            urls: Vec::new(),
        };
        match self.image.parse().ok()? {
            // Nobody knows any more from where.
            ImageReference::Layout(layout) if layout.path.is_relative() => None,
            image => Some((descriptor, image)),
        }
    }
}

/// Notes that the archive of a layer, kept by that name, was found to have its diff ID. `image` is where its blob comes from. What cannot be
/// noted is fetched once more, some day.
pub(super) fn note(store: &Store, layer: &Layer, name: &Digest, image: &ImageReference) {
    let descriptor = &layer.descriptor;
    let twin = Twin {
        layer: name.to_string(),
        blob: descriptor.digest.to_string(),
        size: descriptor.size,
        media_type: descriptor.media_type.clone(),
        image: image.to_string(),
        hides_bookkeeping: hides_bookkeeping(&descriptor.annotations),
    };
    let noted = || {
        let mut twins = noted(store, &layer.diff_id)?;
        if twins.last() == Some(&twin) {
            return Ok(());
        }
        twins.retain(|other| other.layer != twin.layer);
        twins.push(twin);
        let oldest = twins.len().saturating_sub(MOST);
        store.notes().put(NoteKind::Archive, layer.diff_id.as_str(), &twins.split_off(oldest))
    };
    let result: Result<(), StoreError> = noted();
    if let Err(error) = result {
        tracing::warn!(layer = %descriptor.digest, error = %chain(&error), "other blobs of this layer will not share its data");
    }
}

fn noted(store: &Store, diff_id: &Digest) -> Result<Vec<Twin>, StoreError> {
    Ok(store.notes().get(NoteKind::Archive, diff_id.as_str())?.unwrap_or_default())
}

/// The layers in whose data a layer may be read, the newest first; they need not be there.
pub(super) fn twins_of(store: &Store, layer: &Layer) -> Result<Vec<Twin>, StoreError> {
    // One that nobody could unpack is not to be had by what it claims either: it may be encrypted.
    if check_media_type(&layer.descriptor.media_type).is_err() {
        return Ok(Vec::new());
    }
    let hides = hides_bookkeeping(&layer.descriptor.annotations);
    let mut twins = noted(store, &layer.diff_id)?;
    twins.retain(|twin| twin.hides_bookkeeping == hides && twin.layer != names::streamed(layer).as_str());
    twins.reverse();
    Ok(twins)
}

/// Whether what an open layer shows was made of its archive, or compared with it.
pub(super) fn is_proved(files: &LayerFiles) -> Result<bool, StoreError> {
    let Some(provenance) = files.provenance()? else { return Ok(false) };
    Ok(match (provenance.index, files.verdict()?) {
        (_, Some(Verdict::Poisoned { .. })) => false,
        (TableSource::Stream { .. }, _) => true,
        (TableSource::Toc, verdict) => verdict.is_some(),
        (TableSource::SociNamed | TableSource::SociReferrer, _) => false,
    })
}

/// Whether the archive of the layer of that name was found to have that diff ID.
pub fn has_diff_id(store: &Store, name: &str, diff_id: &str) -> Result<bool, StoreError> {
    let Ok(diff_id) = diff_id.parse() else { return Ok(false) };
    Ok(noted(store, &diff_id)?.iter().any(|twin| twin.layer == name))
}

/// Forgets what was found of layers that are there no more.
///
/// # Errors
/// If the store cannot be read or changed.
pub fn forget_gone(store: &Store) -> Result<(), StoreError> {
    let mut kept = Vec::new();
    for (diff_id, twins) in store.notes().all::<Vec<Twin>>(NoteKind::Archive)? {
        for twin in twins {
            // Whatever is not a layer's name is not there.
            if store.layers().layer(&twin.layer).is_ok_and(|place| place.is_there().unwrap_or(true)) {
                kept.push(diff_id);
                break;
            }
        }
    }
    store.notes().keep_only(NoteKind::Archive, &kept).map(drop)
}
