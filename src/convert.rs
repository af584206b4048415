//! Reads an image in one format and writes it in another.
//!
//! ```text
//! source ─▶ index ─▶ manifests ─▶ layers, each once ─▶ spool ─▶ writer ─▶ blob draft ─▶ destination
//!                        │                                        └ tables of contents ─▶ TOC image, if they are external
//!                        └──────── documents made anew, when all their layers are there ──▶ │
//! ```
//!
//! The result depends on the source and the options alone. What names the image comes last, so an interrupted conversion leaves
//! blobs that nothing points to, and no image that is not whole. Blobs that are there already are not sent again.

mod documents;
mod error;
mod format;
mod layers;
pub mod soci;
mod toc_image;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use oci_spec::image::Descriptor;
use peelfs_registry::resolve::MAXIMUM_INDEX_DEPTH;
use peelfs_registry::{
    Client, ClientConfiguration, Digest, Document, FetchedDocument, ImageReference, Platform, Repository,
    Target,
};

use self::documents::NewDocument;
pub use self::error::ConvertError;
pub use self::format::Format;
pub use self::layers::{ConvertedLayer, TocBlob};
use crate::fetch::profile::kept;
use crate::image::{Image, Layer};
use crate::store::Store;

/// Layers that are worked on at the same time: while one is decoded, which one thread does, the others are compressed.
const LAYERS: usize = 2;
/// Largest config that is read, in bytes.
const MAXIMUM_CONFIG: u64 = 8 << 20;

/// Which images of an index are converted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// The one for that platform; the result is no index.
    One(Platform),
    /// All of them.
    All,
}

/// What is to be done.
pub struct Request {
    /// The image that is read.
    pub source: ImageReference,
    /// Where the result goes, named by a tag.
    pub destination: ImageReference,
    /// Which of its images.
    pub platforms: Platforms,
    /// In which format the layers are written, and how.
    pub format: Format,
    /// Paths of the files that come first, in this order.
    pub wanted: Vec<Vec<u8>>,
    /// After those come the files that mounts of the source read, as their profiles in this store say.
    pub profiles: Option<Arc<Store>>,
    /// How registries are reached.
    pub client: ClientConfiguration,
    /// Directory for files that are needed meanwhile: as large as the uncompressed layers that are worked on.
    pub scratch: PathBuf,
    /// Who is told what happens.
    pub progress: Progress,
    /// What is known of layers before they are read.
    pub known: Known,
}

/// What a layer became once, or that it is what it should be: then it is not converted, if the destination has that blob or can be
/// given it.
pub type Known = Arc<dyn Fn(&Layer) -> Option<ConvertedLayer> + Send + Sync>;

/// What happens to the layers, for a progress bar.
#[derive(Clone, Debug)]
pub enum Event {
    /// A layer begins to be read; its blob has so many bytes.
    Reading(Digest, u64),
    /// So many bytes of the blob have come in all.
    Read(Digest, u64),
    /// It begins to be written; it has about so many bytes, uncompressed.
    Writing(Digest, u64),
    /// So many of them have been written.
    Written(Digest, u64),
    /// It is at its destination.
    Done(Digest, Box<ConvertedLayer>),
}

/// Who is told of [`Event`]s.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// What was made.
#[derive(Clone, Debug)]
pub struct Converted {
    /// Digest of what the destination names: an index or a manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Digest of the manifest of the TOC image, if there is one: it is named by the destination's tag and a suffix.
    pub toc_image: Option<Digest>,
    /// One for each image, in the order of the source.
    pub images: Vec<ConvertedImage>,
    /// Files that were to come first and are in no layer.
    pub missed: Vec<Vec<u8>>,
    /// Digests of entries of the index that are no images (attestations, indexes of files) and were left out: what they say was
    /// said of images that are others now.
    pub left_out: Vec<String>,
}

/// One image of the result.
#[derive(Clone, Debug)]
pub struct ConvertedImage {
    /// As its config says.
    pub platform: String,
    /// Digest of the source's manifest.
    pub source: Digest,
    /// Digest of the new manifest.
    pub digest: Digest,
    /// The layers, the lowest first: what they were, and what they became.
    pub layers: Vec<(Layer, ConvertedLayer)>,
}

/// Converts an image.
///
/// # Errors
/// [`ConvertError`]; the destination names what it named before then.
pub async fn convert(mut request: Request) -> Result<Converted, ConvertError> {
    if request.destination.digest().is_some() {
        return Err(ConvertError::Destination { destination: request.destination.to_string() });
    }
    let toc_target = toc_image::target(&request.destination, &request.format)?;
    let client = Client::new(request.client.clone())?;
    let source = client.repository(&request.source)?;
    let destination = client.repository(&request.destination)?;
    let plan = Plan::find(&source, &request.source.target(), &request.platforms).await?;
    if let Some(store) = request.profiles.take() {
        request.wanted.extend(plan.recorded(&store, &request.source)?);
    }
    let layers = convert_layers(&plan, &source, &destination, &request).await?;
    let missed = plan.missed(&layers, request.wanted.len());
    let toc_image = match toc_target {
        Some(target) => Some(toc_image::put(&destination, &target, layers.values(), &request.scratch).await?),
        None => None,
    };
    let writer =
        DocumentWriter { plan: &plan, layers: &layers, destination: &destination, scratch: &request.scratch };
    let (root, images) = writer.write(&plan.root, Some(&request.destination.target())).await?;
    Ok(Converted {
        digest: root.digest,
        media_type: root.media_type.to_owned(),
        toc_image,
        images,
        missed: missed.into_iter().map(|at| request.wanted[at].clone()).collect(),
        left_out: plan.left_out,
    })
}

/// All documents of the source that are converted.
struct Plan {
    root: FetchedDocument,
    /// The documents below indexes, by digest.
    documents: BTreeMap<String, FetchedDocument>,
    /// By the digest of their manifest: the image and the bytes of its config.
    images: BTreeMap<String, (Image, Vec<u8>)>,
    left_out: Vec<String>,
}

impl Plan {
    async fn find(source: &Repository, target: &Target, platforms: &Platforms) -> Result<Plan, ConvertError> {
        let root = match platforms {
            Platforms::All => source.manifest(target).await?,
            Platforms::One(platform) => {
                let resolved = peelfs_registry::resolve(source, target, platform).await?;
                resolved.manifest_document().clone()
            }
        };
        let mut plan = Plan {
            root: root.clone(),
            documents: BTreeMap::new(),
            images: BTreeMap::new(),
            left_out: Vec::new(),
        };
        let mut left = vec![(root, 0)];
        while let Some((document, depth)) = left.pop() {
            match &document.document {
                Document::Manifest(_) => plan.add_image(source, &document).await?,
                Document::Index(_) if depth > MAXIMUM_INDEX_DEPTH => {
                    return Err(ConvertError::NestedTooDeep { digest: document.digest.clone() });
                }
                Document::Index(index) => {
                    for entry in index.manifests() {
                        if !peelfs_registry::platform::is_image(entry) {
                            plan.left_out.push(entry.digest().to_string());
                            continue;
                        }
                        let below = fetch(source, entry).await?;
                        left.push((below.clone(), depth + 1));
                        plan.documents.insert(below.digest.to_string(), below);
                    }
                }
            }
        }
        Ok(plan)
    }

    async fn add_image(
        &mut self,
        source: &Repository,
        document: &FetchedDocument,
    ) -> Result<(), ConvertError> {
        let (_, config) = Image::manifest(&document.digest, &document.bytes)?;
        let config = source.small_blob(&config, MAXIMUM_CONFIG).await?;
        let image = Image::parse(&document.digest, &document.bytes, &config)?;
        self.images.insert(document.digest.to_string(), (image, config.to_vec()));
        Ok(())
    }

    /// The files that mounts of the images read, in the order of their profiles, one image after the other.
    fn recorded(&self, store: &Store, source: &ImageReference) -> Result<Vec<Vec<u8>>, ConvertError> {
        let mut files = Vec::new();
        for manifest in self.images.keys() {
            let profile = kept::load(store, manifest)
                .map_err(|cause| ConvertError::Store { cause: Box::new(cause) })?;
            files.extend(profile.unwrap_or_default().typical().into_iter().map(|typical| typical.file.path));
        }
        if files.is_empty() {
            return Err(ConvertError::NoProfile { image: source.to_string() });
        }
        Ok(files)
    }

    /// The positions of wanted files that every layer missed.
    fn missed(&self, layers: &BTreeMap<String, ConvertedLayer>, wanted: usize) -> BTreeSet<usize> {
        let mut missed: BTreeSet<usize> = (0..wanted).collect();
        for layer in layers.values() {
            missed.retain(|position| layer.written.missed.contains(position));
        }
        missed
    }
}

async fn fetch(source: &Repository, entry: &Descriptor) -> Result<FetchedDocument, ConvertError> {
    let digest = entry.digest().to_string();
    let digest = digest.parse().map_err(|_| ConvertError::Digest { digest })?;
    Ok(source.manifest(&Target::Digest(digest)).await?)
}

/// Each layer once, however many images share it; by the digest of its source.
async fn convert_layers(
    plan: &Plan,
    source: &Repository,
    destination: &Repository,
    request: &Request,
) -> Result<BTreeMap<String, ConvertedLayer>, ConvertError> {
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
        let converted = layers::convert_layer(layer, source, destination, request).await?;
        Ok::<_, ConvertError>((layer.descriptor.digest.to_string(), converted))
    });
    futures_util::stream::iter(work).buffer_unordered(LAYERS).try_collect().await
}

/// Writes the new documents, those below first.
struct DocumentWriter<'a> {
    plan: &'a Plan,
    layers: &'a BTreeMap<String, ConvertedLayer>,
    destination: &'a Repository,
    scratch: &'a Path,
}

impl DocumentWriter<'_> {
    /// Writes a document and all below it. Without a target it is named by its digest alone.
    async fn write(
        &self,
        document: &FetchedDocument,
        target: Option<&Target>,
    ) -> Result<(NewDocument, Vec<ConvertedImage>), ConvertError> {
        let mut images = Vec::new();
        let (bytes, media_type) = match &document.document {
            Document::Manifest(_) => (self.manifest(document, &mut images).await?, documents::MANIFEST),
            Document::Index(index) => {
                let mut written = BTreeMap::new();
                for digest in index.manifests().iter().map(|entry| entry.digest().to_string()) {
                    let Some(below) = self.plan.documents.get(&digest) else { continue };
                    let (below, more) = Box::pin(self.write(below, None)).await?;
                    written.insert(digest, below);
                    images.extend(more);
                }
                (documents::index(document, &written)?, documents::INDEX)
            }
        };
        let digest = Digest::sha256_of(&bytes);
        let size = bytes.len() as u64;
        let by_digest = Target::Digest(digest.clone());
        self.destination.put_document(target.unwrap_or(&by_digest), media_type, bytes.into()).await?;
        Ok((NewDocument { digest, size, media_type }, images))
    }

    /// Writes the config of an image, and gives its manifest.
    async fn manifest(
        &self,
        document: &FetchedDocument,
        images: &mut Vec<ConvertedImage>,
    ) -> Result<Vec<u8>, ConvertError> {
        // Both were put there when the plan was made, for each manifest and each layer of it.
        let Some((image, config)) = self.plan.images.get(document.digest.as_str()) else {
            return Err(ConvertError::Digest { digest: document.digest.to_string() });
        };
        let layers: Vec<(Layer, ConvertedLayer)> = image
            .layers
            .iter()
            .filter_map(|layer| {
                Some((layer.clone(), self.layers.get(layer.descriptor.digest.as_str())?.clone()))
            })
            .collect();
        let converted: Vec<&ConvertedLayer> = layers.iter().map(|(_, converted)| converted).collect();
        let config = documents::config(&image.config.digest, config, &converted)?;
        let config_size = config.len() as u64;
        let (config_digest, _) = layers::put_bytes(self.destination, self.scratch, config).await?;
        let bytes = documents::manifest(document, &config_digest, config_size, &converted)?;
        images.push(ConvertedImage {
            platform: platform_name(image),
            source: document.digest.clone(),
            digest: Digest::sha256_of(&bytes),
            layers,
        });
        Ok(bytes)
    }
}

fn platform_name(image: &Image) -> String {
    let configuration = &image.configuration;
    let variant = configuration.variant().as_ref().map(|variant| format!("/{variant}")).unwrap_or_default();
    format!("{}/{}{variant}", configuration.os(), configuration.architecture())
}
