//! From a tag or digest to the one manifest for a platform.
//!
//! ```text
//! target ──▶ manifest                                    taken, whatever the platform
//!        └─▶ index ──▶ manifest for the platform
//!                  └─▶ index ──▶ manifest for the platform      at most two indexes deep
//! ```
//!
//! Every document on the way is proved by the digest that the one before it names; only a tag's is taken on trust.

use crate::client::{FetchedDocument, Repository};
use crate::digest::Digest;
use crate::error::{Context, Error, ErrorKind};
use crate::manifest::{BlobDescriptor, Document, DocumentError};
use crate::platform::{Platform, candidates, offered_platforms};
use crate::reference::Target;
use oci_spec::image::{Descriptor, ImageManifest};

/// Most indexes between a target and its manifest.
pub const MAXIMUM_INDEX_DEPTH: usize = 2;
/// Most nested indexes looked into for one platform.
const MAXIMUM_DOCUMENTS: usize = 16;

/// An image: the manifest for a platform, and how it was found.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// All documents on the way, the manifest last; the first is what the target named.
    pub documents: Vec<FetchedDocument>,
    /// The manifest, read.
    pub manifest: Box<ImageManifest>,
    /// The image's config.
    pub config: BlobDescriptor,
    /// The layers, the lowest first.
    pub layers: Vec<BlobDescriptor>,
}

impl Resolved {
    /// Digest of what the target named: pinning a reference by it gives this image again, on every platform.
    pub fn target_digest(&self) -> &Digest {
        &self.documents[0].digest
    }

    /// The manifest's own document.
    pub fn manifest_document(&self) -> &FetchedDocument {
        // Made with at least one document, in `accepted`.
        &self.documents[self.documents.len() - 1]
    }

    /// Digest of the manifest.
    pub fn manifest_digest(&self) -> &Digest {
        &self.manifest_document().digest
    }

    /// The index that the target named, if it named one.
    pub fn index(&self) -> Option<&FetchedDocument> {
        self.documents.first().filter(|document| matches!(document.document, Document::Index(_)))
    }
}

/// Finds the manifest of `target` for `platform`.
///
/// Besides what [`Repository::manifest`] fails with: [`ErrorKind::NoMatchingPlatform`], which lists what there is, and
/// [`ErrorKind::BadDocument`] for indexes nested too deep or descriptors that contradict what they point to.
pub async fn resolve(
    repository: &Repository,
    target: &Target,
    platform: &Platform,
) -> Result<Resolved, Error> {
    let context = repository.context(target);
    let first = repository.manifest(target).await?;
    let mut offered = Vec::new();
    let mut fetched = 1;
    // Depth first: each entry is a chain of documents whose last has not been looked into, the best candidate on top.
    let mut chains = vec![Chain::Documents(vec![first])];
    while let Some(chain) = chains.pop() {
        let documents = match chain {
            Chain::Documents(documents) => documents,
            Chain::Candidate { mut documents, entry } => {
                if fetched == MAXIMUM_DOCUMENTS {
                    let message = "its indexes are nested too widely";
                    return Err(Error::new(ErrorKind::BadDocument, &context, message));
                }
                fetched += 1;
                documents.push(described(repository, &entry, &context).await?);
                documents
            }
        };
        // A chain is never empty: it begins with the first document.
        let Some(last) = documents.last() else { continue };
        match &last.document {
            Document::Manifest(manifest) => {
                let manifest = manifest.clone();
                return accepted(documents, manifest, &context);
            }
            Document::Index(_) if documents.len() > MAXIMUM_INDEX_DEPTH => {
                let message = format!("its indexes are nested more than {MAXIMUM_INDEX_DEPTH} deep");
                return Err(Error::new(ErrorKind::BadDocument, &context, message));
            }
            Document::Index(index) => {
                offered.extend(offered_platforms(index.manifests()));
                let chosen = candidates(index.manifests(), platform);
                chains.extend(chosen.into_iter().rev().map(|entry| Chain::Candidate {
                    documents: documents.clone(),
                    entry: Box::new(entry.clone()),
                }));
            }
        }
    }
    offered.sort();
    offered.dedup();
    let message = match offered.is_empty() {
        true => format!("it holds no image for {platform}, nor for any other platform"),
        false => format!("it holds no image for {platform}, only for {}", offered.join(", ")),
    };
    Err(Error::new(ErrorKind::NoMatchingPlatform, &context, message)
        .with_optional(None, Some("choose one with --platform".to_owned())))
}

enum Chain {
    Documents(Vec<FetchedDocument>),
    Candidate { documents: Vec<FetchedDocument>, entry: Box<Descriptor> },
}

async fn described(
    repository: &Repository,
    entry: &Descriptor,
    context: &Context,
) -> Result<FetchedDocument, Error> {
    let digest: Digest =
        entry.digest().try_into().map_err(|error| unusable(context, DocumentError::Digest(error)))?;
    let announced = entry.media_type().to_string();
    let document = repository.manifest_announced_as(&Target::Digest(digest), Some(&announced)).await?;
    if document.bytes.len() as u64 != entry.size() {
        let message = format!(
            "{} has {} bytes, but the index says {}",
            document.digest,
            document.bytes.len(),
            entry.size()
        );
        return Err(Error::new(ErrorKind::BadDocument, context, message));
    }
    Ok(document)
}

fn accepted(
    documents: Vec<FetchedDocument>,
    manifest: Box<ImageManifest>,
    context: &Context,
) -> Result<Resolved, Error> {
    let described =
        |descriptor| BlobDescriptor::try_from(descriptor).map_err(|error| unusable(context, error));
    let config = described(manifest.config())?;
    let layers = manifest.layers().iter().map(described).collect::<Result<_, _>>()?;
    Ok(Resolved { documents, manifest, config, layers })
}

fn unusable(context: &Context, error: DocumentError) -> Error {
    Error::new(ErrorKind::BadDocument, context, error.to_string()).with_cause(error)
}
