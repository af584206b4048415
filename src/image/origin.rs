//! The way to where an image came from. Nothing is opened, and no credential read, before the first byte is needed.
//!
//! An image that was made here has layers from several places: those of the image that it was made of, and its own, in the store.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use peelfs_registry::{
    BlobDescriptor, Client, ClientConfiguration, Digest, Error, ImageReference, Platform, Repository,
    Resolved, Statistics, Target,
};
use tokio::sync::OnceCell;

use super::{Image, ImageError};

/// Largest config that is read, in bytes: that of an image with a thousand layers has less than 1 MiB.
pub const MAXIMUM_CONFIG: u64 = 8 << 20;

/// Why an image cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The registry or layout.
    #[error(transparent)]
    Registry(#[from] Error),
    /// What it gave.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// An image and the documents that led to it.
#[derive(Debug)]
pub struct ResolvedImage {
    /// The image.
    pub image: Image,
    /// The chain from the reference to the manifest, and the manifest itself.
    pub resolved: Resolved,
    /// The bytes of the config.
    pub config: Bytes,
}

/// Where single layers come from, by the digests of their blobs.
pub type Elsewhere = BTreeMap<Digest, ImageReference>;

/// Where an image comes from.
pub struct Origin {
    reference: ImageReference,
    /// The layers that come from elsewhere.
    elsewhere: OnceLock<Elsewhere>,
    configuration: ClientConfiguration,
    opened: OnceCell<(Client, Repository)>,
}

impl Origin {
    /// The way to that image with that configuration.
    pub fn new(reference: ImageReference, configuration: ClientConfiguration) -> Arc<Origin> {
        Arc::new(Origin { reference, elsewhere: OnceLock::new(), configuration, opened: OnceCell::new() })
    }

    /// The reference as it was given, with its defaults filled in.
    pub fn reference(&self) -> &ImageReference {
        &self.reference
    }

    /// From now on, these layers are got from where they are said to be.
    pub fn layers_are_elsewhere(&self, elsewhere: Elsewhere) {
        // An image has one origin, so the first word counts.
        let _ = self.elsewhere.set(elsewhere);
    }

    /// The image by which that blob is got.
    pub fn reference_of(&self, blob: &Digest) -> &ImageReference {
        self.elsewhere.get().and_then(|elsewhere| elsewhere.get(blob)).unwrap_or(&self.reference)
    }

    /// The repository that holds that blob. Otherwise as [`repository`](Self::repository).
    pub async fn repository_of(&self, blob: &Digest) -> Result<Repository, Error> {
        let (client, repository) = self.open().await?;
        match self.elsewhere.get().and_then(|elsewhere| elsewhere.get(blob)) {
            Some(reference) => client.repository(reference),
            None => Ok(repository.clone()),
        }
    }

    /// The repository of another image. Otherwise as [`repository`](Self::repository).
    pub async fn repository_at(&self, image: &ImageReference) -> Result<Repository, Error> {
        self.open().await?.0.repository(image)
    }

    /// The repository, opened if it was not yet.
    ///
    /// # Errors
    ///
    /// What keeps a client from being made: unreadable credentials or certificates, a layout that is not there.
    pub async fn repository(&self) -> Result<&Repository, Error> {
        Ok(&self.open().await?.1)
    }

    async fn open(&self) -> Result<&(Client, Repository), Error> {
        let opened = self.opened.get_or_try_init(|| async {
            let client = Client::new(self.configuration.clone())?;
            let repository = client.repository(&self.reference)?;
            Ok::<_, Error>((client, repository))
        });
        opened.await
    }

    /// What has crossed the network so far.
    pub fn statistics(&self) -> Statistics {
        self.opened.get().map(|(client, _)| client.statistics()).unwrap_or_default()
    }

    /// Asks for the image of that platform.
    pub async fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, ResolveError> {
        self.resolve_target(&self.reference.target(), platform, |_| {}).await
    }

    /// The same for that manifest, whatever the reference means by now, if one is given. Who is told of the layers, is told before the config
    /// is here.
    pub async fn resolve_telling(
        &self,
        manifest: Option<&Digest>,
        platform: &Platform,
        tell: impl FnOnce(&[BlobDescriptor]),
    ) -> Result<ResolvedImage, ResolveError> {
        let pinned = manifest.map(|manifest| Target::Digest(manifest.clone()));
        let target = pinned.unwrap_or_else(|| self.reference.target());
        self.resolve_target(&target, platform, tell).await
    }

    /// Asks for the image of that manifest, whatever the reference means by now.
    pub async fn resolve_pinned(
        &self,
        manifest: &Digest,
        platform: &Platform,
    ) -> Result<ResolvedImage, ResolveError> {
        self.resolve_target(&Target::Digest(manifest.clone()), platform, |_| {}).await
    }

    async fn resolve_target(
        &self,
        target: &Target,
        platform: &Platform,
        tell: impl FnOnce(&[BlobDescriptor]),
    ) -> Result<ResolvedImage, ResolveError> {
        let repository = self.repository().await?;
        let resolved = peelfs_registry::resolve(repository, target, platform).await?;
        let manifest = resolved.manifest_document();
        tell(&Image::layers_of_manifest(&manifest.digest, &manifest.bytes));
        let config = repository.small_blob(&resolved.config, MAXIMUM_CONFIG).await?;
        let manifest = resolved.manifest_document();
        let image = Image::parse(&manifest.digest, &manifest.bytes, &config)?;
        Ok(ResolvedImage { image, resolved, config })
    }
}
