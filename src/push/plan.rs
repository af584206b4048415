//! What a push puts where: all documents of an image and the blobs that they name, found in the store.

use std::collections::BTreeSet;

use bytes::Bytes;
use oci_spec::image::{Descriptor, ImageManifest};
use peelfs_registry::resolve::MAXIMUM_INDEX_DEPTH;
use peelfs_registry::{BlobDescriptor, Digest, Document, Repository, Target};

use super::{Platforms, PushError, Request};
use crate::image::ImageError;
use crate::store::{ImageRecord, Store};

/// A manifest or index, and what it is put there as.
#[derive(Clone, Debug)]
pub(super) struct NamedDocument {
    pub digest: Digest,
    pub media_type: String,
    pub bytes: Bytes,
}

/// All that makes an image.
pub(super) struct Plan {
    /// What the destination will name.
    pub root: NamedDocument,
    /// What the root names, those below first.
    pub below: Vec<NamedDocument>,
    /// Configs and layers, each once.
    pub blobs: Vec<BlobDescriptor>,
    /// Layers alone, foreign ones among them; one that several images have comes several times.
    pub layers: Vec<BlobDescriptor>,
    /// Layers that are distributed by others.
    pub foreign: Vec<Digest>,
}

impl Plan {
    /// Finds them. What an index says beside its images (attestations, indexes of files) is asked for at `origin`.
    pub async fn make(store: &Store, origin: &Repository, request: &Request) -> Result<Plan, PushError> {
        let digest = root_digest(store, request)?;
        let (root, document) =
            stored(store, &digest)?.ok_or_else(|| absent(request, digest.clone(), "any platform"))?;
        // An index is never made here.
        if store.origins().of(digest.as_str())?.is_some_and(|origins| origins.composition.is_some()) {
            return Err(PushError::Difference { image: request.reference.to_string() });
        }
        let mut plan =
            Plan { root, below: Vec::new(), blobs: Vec::new(), layers: Vec::new(), foreign: Vec::new() };
        let mut found = Found::default();
        let mut left = vec![(document, 0)];
        while let Some((document, depth)) = left.pop() {
            match document {
                Document::Manifest(manifest) => plan.add_blobs(&manifest, &mut found)?,
                Document::Index(_) if depth > MAXIMUM_INDEX_DEPTH => {
                    return Err(unusable(&plan.root.digest, "its indexes are nested too deep"));
                }
                Document::Index(index) => {
                    for entry in index.manifests() {
                        let digest = digest_of(&plan.root.digest, entry)?;
                        if !found.documents.insert(digest.clone()) {
                            continue;
                        }
                        let (named, document) = match stored(store, &digest)? {
                            Some(stored) => stored,
                            None if peelfs_registry::platform::is_image(entry) => {
                                return Err(absent(request, digest, &platform_of(entry)));
                            }
                            None => fetched(origin, digest).await?,
                        };
                        if matches!(document, Document::Index(_)) {
                            found.indexes.insert(named.digest.clone());
                        }
                        plan.below.push(named);
                        left.push((document, depth + 1));
                    }
                }
            }
        }
        // An index was found after the one that names it.
        let (mut indexes, manifests): (Vec<_>, Vec<_>) =
            plan.below.into_iter().partition(|named| found.indexes.contains(&named.digest));
        indexes.reverse();
        plan.below = manifests;
        plan.below.append(&mut indexes);
        Ok(plan)
    }

    fn add_blobs(&mut self, manifest: &ImageManifest, found: &mut Found) -> Result<(), PushError> {
        for descriptor in std::iter::once(manifest.config()).chain(manifest.layers()) {
            let blob = BlobDescriptor::try_from(descriptor)
                .map_err(|error| unusable(&self.root.digest, &error.to_string()))?;
            if !std::ptr::eq(descriptor, manifest.config()) {
                self.layers.push(blob.clone());
            }
            if !found.blobs.insert(blob.digest.clone()) {
                continue;
            }
            if is_foreign(&blob) {
                self.foreign.push(blob.digest);
            } else {
                self.blobs.push(blob);
            }
        }
        Ok(())
    }
}

/// What a plan has already.
#[derive(Default)]
struct Found {
    documents: BTreeSet<Digest>,
    indexes: BTreeSet<Digest>,
    blobs: BTreeSet<Digest>,
}

pub(super) fn root_digest(store: &Store, request: &Request) -> Result<Digest, PushError> {
    let reference = request.reference.to_string();
    let unknown = |platform: String| PushError::Unknown { image: reference.clone(), platform };
    let text = match &request.platforms {
        Platforms::One(platform) => {
            let platform = platform.to_string();
            let record = store.database().find_image(&reference, &platform)?;
            record.ok_or_else(|| unknown(platform))?.manifest_digest
        }
        Platforms::All => {
            let all = store.database().images()?;
            let mut records: Vec<ImageRecord> =
                all.into_iter().filter(|record| record.reference == reference).collect();
            if records.is_empty() {
                return Err(unknown("any platform".to_owned()));
            }
            // Those of the platforms that were not pulled again may come of an older index.
            records.sort_by_key(|record| record.resolved_at);
            let newest = records.into_iter().rev().find_map(|record| record.index_digest);
            newest.ok_or_else(|| PushError::NoIndex { image: reference.clone() })?
        }
    };
    text.parse().map_err(|_| {
        PushError::Image(ImageError::Manifest {
            digest: Digest::sha256_of(b""),
            reason: format!("the store names it {text:?}"),
        })
    })
}

/// A document of the store.
fn stored(store: &Store, digest: &Digest) -> Result<Option<(NamedDocument, Document)>, PushError> {
    let Some(bytes) = store.content().get(digest.as_str())? else { return Ok(None) };
    let (document, media_type) =
        Document::parse(&bytes, None).map_err(|error| unusable(digest, &error.to_string()))?;
    Ok(Some((NamedDocument { digest: digest.clone(), media_type, bytes: bytes.into() }, document)))
}

async fn fetched(origin: &Repository, digest: Digest) -> Result<(NamedDocument, Document), PushError> {
    let fetched = origin.manifest(&Target::Digest(digest.clone())).await?;
    let named = NamedDocument { digest, media_type: fetched.media_type, bytes: fetched.bytes };
    Ok((named, fetched.document))
}

/// Whether a layer is said to be had elsewhere only (OCI image specification, "Non-distributable layers").
fn is_foreign(blob: &BlobDescriptor) -> bool {
    let kind = &blob.media_type;
    !blob.urls.is_empty() && (kind.contains(".nondistributable.") || kind.contains(".foreign."))
}

fn digest_of(document: &Digest, entry: &Descriptor) -> Result<Digest, PushError> {
    Digest::try_from(entry.digest()).map_err(|error| unusable(document, &error.to_string()))
}

fn platform_of(entry: &Descriptor) -> String {
    match entry.platform() {
        Some(platform) => {
            let variant =
                platform.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
            format!("{}/{}{variant}", platform.os(), platform.architecture())
        }
        None => "an unnamed platform".to_owned(),
    }
}

fn absent(request: &Request, digest: Digest, platform: &str) -> PushError {
    PushError::Absent { image: request.reference.to_string(), digest, platform: platform.to_owned() }
}

fn unusable(digest: &Digest, reason: &str) -> PushError {
    PushError::Image(ImageError::Manifest { digest: digest.clone(), reason: reason.to_owned() })
}
