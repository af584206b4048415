//! An image: what its manifest and config say, and where its blobs come from.
//!
//! [`Image::parse`] is pure; [`origin`] is the way to the registry or layout, opened when it is first needed, so that a known
//! image mounts without it.

mod configuration;
pub mod origin;

use oci_spec::image::{ImageConfiguration, ImageManifest, MediaType};
use peelfs_registry::{BlobDescriptor, Digest, Document};

/// A manifest or config that is not a container image's.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bytes are not a manifest.
    #[error("manifest {digest} cannot be used: {reason}")]
    Manifest {
        /// Its digest.
        digest: Digest,
        /// Why not.
        reason: String,
    },
    /// It is an artifact of another kind.
    #[error("manifest {digest} is not a container image but an artifact of type {config_type:?}")]
    NotAnImage {
        /// Its digest.
        digest: Digest,
        /// Media type of its config.
        config_type: String,
    },
    /// The bytes are not an image's config.
    #[error("config {digest} cannot be used: {reason}")]
    Config {
        /// Its digest.
        digest: Digest,
        /// Why not.
        reason: String,
    },
    /// Manifest and config do not belong together.
    #[error("the manifest lists {layers} layers but its config {diff_ids} diff IDs")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the config.
        diff_ids: usize,
    },
}

/// One layer of an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest, size, media type and annotations of the blob.
    pub descriptor: BlobDescriptor,
    /// Digest of the uncompressed tar, as the config states it.
    pub diff_id: Digest,
    /// What lies beside the layer and tells how to read it lazily, once it was found. [`Image::parse`] finds none.
    pub lazy_index: Option<LazyIndex>,
}

/// Something in the image's repository that tells how to read a layer lazily: its zTOC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LazyIndex {
    /// Digest and size of the zTOC.
    pub descriptor: BlobDescriptor,
    /// How it was found.
    pub source: IndexSource,
}

/// Who says that an index belongs to an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndexSource {
    /// The image's manifest: SOCI v2.
    Manifest,
    /// The index itself, which whoever may push to the repository may add: SOCI v1. Trusted only when the user says so.
    Referrer,
}

impl Layer {
    /// What the media type says the blob is.
    pub fn archive_format(&self) -> &'static str {
        match &self.descriptor.media_type {
            zstd if zstd.ends_with("zstd") => "tar+zstd",
            gzip if gzip.ends_with("gzip") => "tar+gzip",
            _ => "tar",
        }
    }
}

/// A container image.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// The config's blob.
    pub config: BlobDescriptor,
    /// What the config says: platform, command, environment.
    pub configuration: ImageConfiguration,
    /// The lowest first.
    pub layers: Vec<Layer>,
    /// Digest of the SOCI index that the manifest names.
    pub soci_index: Option<Digest>,
}

/// Annotation of a manifest that names its SOCI index (soci-snapshotter, `docs/index.md`).
const SOCI_INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

impl Image {
    /// The config descriptor of the manifest in these bytes, which have that digest.
    ///
    /// # Errors
    ///
    /// [`ImageError::Manifest`] and [`ImageError::NotAnImage`].
    pub fn manifest(digest: &Digest, bytes: &[u8]) -> Result<(ImageManifest, BlobDescriptor), ImageError> {
        let unusable = |reason: String| ImageError::Manifest { digest: digest.clone(), reason };
        let manifest = match Document::parse(bytes, None) {
            Ok((Document::Manifest(manifest), _)) => *manifest,
            Ok((Document::Index(_), _)) => return Err(unusable("it is an image index".into())),
            Err(error) => return Err(unusable(error.to_string())),
        };
        let config =
            BlobDescriptor::try_from(manifest.config()).map_err(|error| unusable(error.to_string()))?;
        match manifest.config().media_type() {
            MediaType::ImageConfig => {}
            MediaType::Other(other) if other == "application/vnd.docker.container.image.v1+json" => {}
            other => {
                return Err(ImageError::NotAnImage {
                    digest: digest.clone(),
                    config_type: other.to_string(),
                });
            }
        }
        Ok((manifest, config))
    }

    /// The blobs of the layers that the manifest in these bytes lists; none if it cannot be used, which [`Image::parse`] says.
    pub fn layers_of_manifest(digest: &Digest, bytes: &[u8]) -> Vec<BlobDescriptor> {
        let Ok((manifest, _)) = Image::manifest(digest, bytes) else { return Vec::new() };
        manifest.layers().iter().filter_map(|layer| BlobDescriptor::try_from(layer).ok()).collect()
    }

    /// The image of that manifest and the config that it names.
    pub fn parse(digest: &Digest, manifest: &[u8], config: &[u8]) -> Result<Image, ImageError> {
        let (manifest, descriptor) = Image::manifest(digest, manifest)?;
        let unusable = |reason: String| ImageError::Config { digest: descriptor.digest.clone(), reason };
        let configuration = configuration::parse(config).map_err(unusable)?;
        let diff_ids = configuration.rootfs().diff_ids();
        if diff_ids.len() != manifest.layers().len() {
            return Err(ImageError::LayerCount { layers: manifest.layers().len(), diff_ids: diff_ids.len() });
        }
        let layers = manifest.layers().iter().zip(diff_ids).map(|(descriptor, diff_id)| {
            let diff_id = diff_id.parse().map_err(|_| unusable(format!("{diff_id:?} is not a diff ID")))?;
            let descriptor = BlobDescriptor::try_from(descriptor).map_err(|error| ImageError::Manifest {
                digest: digest.clone(),
                reason: error.to_string(),
            })?;
            Ok(Layer { descriptor, diff_id, lazy_index: None })
        });
        let layers = layers.collect::<Result<_, _>>()?;
        let annotations = manifest.annotations().as_ref();
        let soci_index = annotations.and_then(|annotations| annotations.get(SOCI_INDEX_DIGEST));
        let soci_index = match soci_index.map(|digest| digest.parse()) {
            Some(Ok(digest)) => Some(digest),
            Some(Err(_)) => {
                tracing::warn!(manifest = %digest, "the manifest names a SOCI index by what is no digest; its layers are streamed");
                None
            }
            None => None,
        };
        Ok(Image { manifest_digest: digest.clone(), config: descriptor, configuration, layers, soci_index })
    }

    /// Bytes of all layer blobs.
    pub fn blob_bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.descriptor.size).fold(0, u64::saturating_add)
    }
}
