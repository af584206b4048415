//! The way to where an image came from. Nothing is opened, and no credential read, before the first byte is needed.

use std::sync::Arc;

use bytes::Bytes;
use peelfs_registry::{
    Client, ClientConfiguration, Error, ImageReference, Platform, Repository, Resolved, Statistics,
};
use tokio::sync::OnceCell;

use super::{Image, ImageError};

/// Largest config that is read, in bytes: that of an image with a thousand layers has less than 1 MiB.
const MAXIMUM_CONFIG: u64 = 8 << 20;

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

/// Where an image comes from.
pub struct Origin {
    reference: ImageReference,
    configuration: ClientConfiguration,
    opened: OnceCell<(Client, Repository)>,
}

impl Origin {
    /// The way to that image with that configuration.
    pub fn new(reference: ImageReference, configuration: ClientConfiguration) -> Arc<Origin> {
        Arc::new(Origin { reference, configuration, opened: OnceCell::new() })
    }

    /// The reference as it was given, with its defaults filled in.
    pub fn reference(&self) -> &ImageReference {
        &self.reference
    }

    /// The repository, opened if it was not yet.
    ///
    /// # Errors
    ///
    /// What keeps a client from being made: unreadable credentials or certificates, a layout that is not there.
    pub async fn repository(&self) -> Result<&Repository, Error> {
        let opened = self.opened.get_or_try_init(|| async {
            let client = Client::new(self.configuration.clone())?;
            let repository = client.repository(&self.reference)?;
            Ok::<_, Error>((client, repository))
        });
        Ok(&opened.await?.1)
    }

    /// What has crossed the network so far.
    pub fn statistics(&self) -> Statistics {
        self.opened.get().map(|(client, _)| client.statistics()).unwrap_or_default()
    }

    /// Asks for the image of that platform.
    pub async fn resolve(&self, platform: &Platform) -> Result<ResolvedImage, ResolveError> {
        let repository = self.repository().await?;
        let resolved = peelfs_registry::resolve(repository, &self.reference.target(), platform).await?;
        let config = repository.small_blob(&resolved.config, MAXIMUM_CONFIG).await?;
        let manifest = resolved.manifest_document();
        let image = Image::parse(&manifest.digest, &manifest.bytes, &config)?;
        Ok(ResolvedImage { image, resolved, config })
    }
}
