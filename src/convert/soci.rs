//! Publishes SOCI indexes of an image: what one pass over its ordinary layers tells, so that the next machine reads them lazily.
//!
//! ```text
//! v2   layers ─▶ zTOCs ─▶ SOCI index ◀── image manifest, with an annotation ◀── image index ◀── tag
//!                             ▲───────────────────────────────────────────────────┘
//! v1   layers ─▶ zTOCs ─▶ SOCI index ── subject ──▶ image manifest, as it is
//! ```
//!
//! Layer blobs stay as they are; where source and destination differ they are copied as they pass by. The result depends on the source
//! and the options alone. What names the image comes last, so whatever is cut off leaves the destination naming what it named before.
//!
//! In its own place an image is only replaced, and what else its index names stays there. Elsewhere only images come along. In both
//! cases what was said of an image that is another now (attestations, indexes of files) is left out.

mod documents;
mod layers;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use peelfs_registry::{
    BlobDescriptor, Client, ClientConfiguration, Digest, Document, FetchedDocument, ImageReference,
    NewReferrer, Repository, Target,
};
use serde_json::json;

use self::documents::{Entry, PutImage, PutIndex};
pub use self::layers::{LayerIndex, Unindexed};
use super::documents::{INDEX, MANIFEST, NewDocument};
use super::layers::blocking;
use super::{ConvertError, LAYERS, Plan, Platforms, platform_name};
use crate::image::{Image, Layer};
pub use crate::layer::soci::index::IndexVersion;
use crate::layer::soci::index::{CONFIG, SociIndex};
pub use crate::layer::soci::make::{
    DEFAULT_SPAN_SIZE, MAXIMUM_SPAN_SIZE, MINIMUM_SPAN_SIZE, NoZtoc, ZtocOptions,
};

/// Smallest layer that gets a zTOC, in bytes of the blob, unless somebody wants another; the reference's choice.
pub const DEFAULT_MINIMUM_LAYER: u64 = 10 << 20;

/// What is to be indexed, and where the result goes.
pub struct IndexRequest {
    /// The image.
    pub source: ImageReference,
    /// Where the indexes go, and the image with them. For [`IndexVersion::V1`], where the image is.
    pub destination: ImageReference,
    /// Which images of an index.
    pub platforms: Platforms,
    /// How the indexes are named.
    pub version: IndexVersion,
    /// How zTOCs are made.
    pub options: ZtocOptions,
    /// Layers whose blobs have fewer bytes get none.
    pub minimum_layer: u64,
    /// How registries are reached.
    pub client: ClientConfiguration,
    /// Directory for what waits to be sent: as large as the layers that are copied at one time.
    pub scratch: PathBuf,
    /// Who is told what happens.
    pub progress: Progress,
}

/// What happens to the layers, for a progress bar.
#[derive(Clone, Debug)]
pub enum Event {
    /// A layer begins to be read; its blob has so many bytes.
    Reading(Digest, u64),
    /// So many bytes of the blob have come in all.
    Read(Digest, u64),
    /// It is done, and has a zTOC of so many bytes.
    Done(Digest, Option<u64>),
}

/// Who is told of [`Event`]s.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// What was published.
#[derive(Clone, Debug)]
pub struct Published {
    /// Digest of the image index that the destination names now; none for [`IndexVersion::V1`], which names nothing.
    pub digest: Option<Digest>,
    /// One for each image, in the order of the source.
    pub images: Vec<PublishedImage>,
    /// Digests of entries that were left out, as they speak of images that are others now.
    pub left_out: Vec<String>,
}

/// One image.
#[derive(Clone, Debug)]
pub struct PublishedImage {
    /// As its config says.
    pub platform: String,
    /// Digest of the source's manifest.
    pub source: Digest,
    /// Digest of the manifest that leads to the index.
    pub digest: Digest,
    /// Digest of its SOCI index; none if no layer has a zTOC.
    pub index: Option<Digest>,
    /// The layers, the lowest first, and what they have.
    pub layers: Vec<(Layer, LayerIndex)>,
}

/// Makes SOCI indexes of an image and publishes them.
///
/// # Errors
/// [`ConvertError`]; the destination names what it named before then.
pub async fn index(request: IndexRequest) -> Result<Published, ConvertError> {
    let names = request.version == IndexVersion::V2;
    if names && request.destination.digest().is_some() {
        return Err(ConvertError::Destination { destination: request.destination.to_string() });
    }
    let client = Client::new(request.client.clone())?;
    let source = client.repository(&request.source)?;
    let destination = client.repository(&request.destination)?;
    let in_place = source.is_same_as(&destination);
    let target = request.source.target();
    // In its place, an image that is chosen is taken out of its index for a while only.
    let chosen = match &request.platforms {
        Platforms::One(platform) if in_place && names => {
            let resolved = peelfs_registry::resolve(&source, &target, platform).await?;
            Some(resolved.manifest_digest().clone())
        }
        _ => None,
    };
    let platforms = if chosen.is_some() { &Platforms::All } else { &request.platforms };
    let mut plan = Plan::find(&source, &target, platforms).await?;
    if let Some(chosen) = chosen {
        plan.images.retain(|digest, _| digest == chosen.as_str());
    }
    let layers = index_layers(&plan, &source, &destination, !in_place, &request).await?;
    if layers.values().all(Result::is_err) {
        let reasons: Vec<String> = layers
            .iter()
            .filter_map(|(digest, layer)| Some(format!("{digest}: {}", layer.as_ref().err()?)))
            .collect();
        let reasons = if reasons.is_empty() { "it has no layers".to_owned() } else { reasons.join("; ") };
        return Err(ConvertError::NothingToIndex { image: request.source.to_string(), reasons });
    }
    let publisher = Publisher {
        plan: &plan,
        layers: &layers,
        destination: &destination,
        in_place,
        scratch: &request.scratch,
        build_tool: &request.options.build_tool,
    };
    match request.version {
        IndexVersion::V1 => publisher.refer().await,
        IndexVersion::V2 => publisher.name(&request.destination.target()).await,
    }
}

/// Each layer once, however many images share it; by its digest.
async fn index_layers(
    plan: &Plan,
    source: &Repository,
    destination: &Repository,
    copied: bool,
    request: &IndexRequest,
) -> Result<BTreeMap<String, LayerIndex>, ConvertError> {
    let mut unique: Vec<&Layer> = Vec::new();
    let mut seen = BTreeSet::new();
    for layer in plan.images.values().flat_map(|(image, _)| &image.layers) {
        if seen.insert(&layer.descriptor.digest) {
            unique.push(layer);
        }
    }
    // The largest first, so that none is left over at the end.
    unique.sort_by_key(|layer| std::cmp::Reverse(layer.descriptor.size));
    let work = unique.into_iter().map(|layer| async move {
        let index = layers::index_layer(layer, source, destination, copied, request).await?;
        Ok::<_, ConvertError>((layer.descriptor.digest.to_string(), index))
    });
    futures_util::stream::iter(work).buffer_unordered(LAYERS).try_collect().await
}

/// Puts the documents, those first that others name.
struct Publisher<'a> {
    plan: &'a Plan,
    layers: &'a BTreeMap<String, LayerIndex>,
    destination: &'a Repository,
    in_place: bool,
    scratch: &'a Path,
    build_tool: &'a str,
}

impl Publisher<'_> {
    /// Version 1: the images stay as they are, and their indexes refer to them.
    async fn refer(&self) -> Result<Published, ConvertError> {
        let documents = self.plan.documents.values().chain([&self.plan.root]);
        let documents: BTreeMap<&str, _> =
            documents.map(|document| (document.digest.as_str(), document)).collect();
        let mut images = Vec::new();
        for (digest, (image, _)) in &self.plan.images {
            let Some(document) = documents.get(digest.as_str()) else { continue };
            let subject = BlobDescriptor {
                digest: document.digest.clone(),
                size: document.bytes.len() as u64,
                media_type: document.media_type.clone(),
                annotations: BTreeMap::new(),
                urls: Vec::new(),
            };
            let index = match self.soci_index(image, Some(subject)) {
                None => None,
                Some(index) => {
                    self.put_config().await?;
                    let referrer = NewReferrer {
                        media_type: MANIFEST,
                        bytes: index.write().into(),
                        subject: &document.digest,
                        artifact_type: index.version.artifact_type(),
                        annotations: BTreeMap::new(),
                    };
                    Some(self.destination.put_referrer(&referrer).await?)
                }
            };
            images.push(self.published(image, document.digest.clone(), index));
        }
        Ok(Published { digest: None, images, left_out: Vec::new() })
    }

    /// Version 2: new manifests name the indexes, and a new index both.
    async fn name(&self, target: &Target) -> Result<Published, ConvertError> {
        let mut done = Published { digest: None, images: Vec::new(), left_out: Vec::new() };
        let root = &self.plan.root;
        let bytes = match &root.document {
            Document::Manifest(_) => match self.put_image(root, &mut done).await? {
                Some(image) => documents::index_of_one(&image),
                // The plan has the image of every manifest in it.
                None => return Err(ConvertError::Digest { digest: root.digest.to_string() }),
            },
            Document::Index(_) => self.index_bytes(root, &mut done).await?,
        };
        done.digest = Some(self.destination.put_document(target, INDEX, bytes.into()).await?);
        Ok(done)
    }

    /// The new bytes of an index, after all that it names was put.
    async fn index_bytes(
        &self,
        document: &FetchedDocument,
        done: &mut Published,
    ) -> Result<Vec<u8>, ConvertError> {
        let Document::Index(index) = &document.document else { return Ok(document.bytes.to_vec()) };
        let mut entries = BTreeMap::new();
        for digest in index.manifests().iter().map(|entry| entry.digest().to_string()) {
            let Some(below) = self.plan.documents.get(&digest) else { continue };
            let entry = match &below.document {
                Document::Index(_) if self.is_unchanged(below) => Entry::Kept,
                Document::Index(_) => {
                    let bytes = Box::pin(self.index_bytes(below, done)).await?;
                    Entry::Became(self.put(bytes, INDEX).await?)
                }
                Document::Manifest(_) => self.put_image(below, done).await?.map_or(Entry::Kept, Entry::Image),
            };
            entries.insert(digest, entry);
        }
        for entry in index.manifests() {
            let digest = entry.digest().to_string();
            if entries.contains_key(&digest) {
                continue;
            }
            let changed = |value: &str| {
                let of_source = |image: &&PublishedImage| image.source.as_str() == value;
                done.images.iter().find(of_source).is_some_and(|image| image.digest != image.source)
            };
            let kept = self.in_place && !documents::speaks_of(entry, &changed);
            if !kept {
                done.left_out.push(digest.clone());
            }
            entries.insert(digest, if kept { Entry::Kept } else { Entry::LeftOut });
        }
        documents::index(document, &entries)
    }

    /// In its own place, an index without an image that was indexed is there as it is.
    fn is_unchanged(&self, document: &FetchedDocument) -> bool {
        let Document::Index(index) = &document.document else { return false };
        self.in_place
            && !index.manifests().iter().any(|entry| {
                let digest = entry.digest().to_string();
                let below = self.plan.documents.get(&digest);
                self.plan.images.contains_key(&digest)
                    || below.is_some_and(|below| {
                        matches!(below.document, Document::Index(_)) && !self.is_unchanged(below)
                    })
            })
    }

    /// Puts an image that was indexed; nothing if it was not to be.
    async fn put_image(
        &self,
        document: &FetchedDocument,
        done: &mut Published,
    ) -> Result<Option<PutImage>, ConvertError> {
        let Some((image, config)) = self.plan.images.get(document.digest.as_str()) else { return Ok(None) };
        if !self.in_place {
            self.put_copy(&image.config.digest, config).await?;
        }
        let index = match self.soci_index(image, None) {
            None => None,
            Some(index) => {
                self.put_config().await?;
                let put = self.put(index.write(), MANIFEST).await?;
                Some(PutIndex { digest: put.digest, size: put.size })
            }
        };
        let named = index.as_ref().map(|index| &index.digest);
        let manifest = self.put(documents::manifest(document, named)?, MANIFEST).await?;
        done.images.push(self.published(image, manifest.digest.clone(), named.cloned()));
        Ok(Some(PutImage { manifest, index, platform: platform(image) }))
    }

    /// The SOCI index of an image; nothing if no layer has a zTOC.
    fn soci_index(&self, image: &Image, subject: Option<BlobDescriptor>) -> Option<SociIndex> {
        let mut ztocs = Vec::new();
        let mut seen = BTreeSet::new();
        for layer in &image.layers {
            let digest = layer.descriptor.digest.as_str();
            if let Some(Ok(ztoc)) = self.layers.get(digest)
                && seen.insert(digest)
            {
                ztocs.push(ztoc.clone());
            }
        }
        let version = if subject.is_some() { IndexVersion::V1 } else { IndexVersion::V2 };
        let build_tool = self.build_tool.to_owned();
        (!ztocs.is_empty()).then_some(SociIndex { version, subject, ztocs, build_tool })
    }

    fn published(&self, image: &Image, digest: Digest, index: Option<Digest>) -> PublishedImage {
        let layers = image.layers.iter().filter_map(|layer| {
            Some((layer.clone(), self.layers.get(layer.descriptor.digest.as_str())?.clone()))
        });
        PublishedImage {
            platform: platform_name(image),
            source: image.manifest_digest.clone(),
            digest,
            index,
            layers: layers.collect(),
        }
    }

    async fn put(&self, bytes: Vec<u8>, media_type: &'static str) -> Result<NewDocument, ConvertError> {
        let digest = Digest::sha256_of(&bytes);
        let size = bytes.len() as u64;
        self.destination.put_document(&Target::Digest(digest.clone()), media_type, bytes.into()).await?;
        Ok(NewDocument { digest, size, media_type })
    }

    async fn put_config(&self) -> Result<(), ConvertError> {
        self.put_copy(&Digest::sha256_of(CONFIG), CONFIG).await
    }

    async fn put_copy(&self, digest: &Digest, bytes: &[u8]) -> Result<(), ConvertError> {
        if self.destination.has_blob(digest, bytes.len() as u64).await? {
            return Ok(());
        }
        let (destination, scratch) = (self.destination.clone(), self.scratch.to_owned());
        let (digest, bytes) = (digest.clone(), bytes.to_vec());
        let draft = blocking(move || {
            let mut draft = destination.new_copy(&digest, &scratch)?;
            draft.write_all(&bytes).map_err(|error| ConvertError::SmallBlob { reason: error.to_string() })?;
            Ok::<_, ConvertError>(draft)
        });
        draft.await?.keep().await?;
        Ok(())
    }
}

/// The platform of an image as its config has it.
fn platform(image: &Image) -> serde_json::Value {
    let configuration = &image.configuration;
    let mut platform = json!({
        "architecture": configuration.architecture().to_string(),
        "os": configuration.os().to_string(),
    });
    if let Some(variant) = configuration.variant() {
        platform["variant"] = variant.as_str().into();
    }
    if let Some(version) = configuration.os_version() {
        platform["os.version"] = version.as_str().into();
    }
    platform
}
