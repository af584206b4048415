//! The documents of an image out of containerd's content store, for the snapshotter that containerd asks for the image's layers: whoever pulls
//! has put them there before, so the registry need not be asked for them once more.
//!
//! ```text
//! Prepare, in a namespace, of a manifest ──▶ its manifest there? ──▶ its config there? ──▶ both
//!                                                  │ no, or no answer      │
//!                                                  └───────────────────────┴──▶ nothing: the registry is asked
//! ```
//!
//! Nobody is trusted: each document is what its digest says, or counts as not there. containerd holds no lock while it waits for its
//! snapshotter that reading content would need; still it is given little time, as what it has can be had elsewhere.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use peelfs_registry::{Digest, MAXIMUM_DOCUMENT_SIZE};

use super::ContainerdError;
use super::connection::Connection;
use super::content::read;
use crate::error::chain;
use crate::fetch::ThreadStarter;
use crate::image::Image;
use crate::image::origin::MAXIMUM_CONFIG;

/// How long is waited for both documents.
const PATIENCE: Duration = Duration::from_secs(5);

/// What containerd at one socket has of images.
pub struct Documents {
    address: PathBuf,
    threads: ThreadStarter,
}

impl Documents {
    /// Those of containerd at that socket, whether anybody answers there or not.
    pub fn new(address: PathBuf, threads: ThreadStarter) -> Documents {
        Documents { address, threads }
    }

    /// The manifest of that digest and its config; nothing if one of them is not there. To be called on a thread that may wait.
    pub fn of_image(&self, namespace: &str, manifest: &Digest) -> Option<(Bytes, Bytes)> {
        let threads = self.threads.handle().ok()?;
        let found = threads.block_on(tokio::time::timeout(PATIENCE, self.ask(namespace, manifest)));
        match found {
            Ok(Ok(found)) => found,
            Ok(Err(error)) => {
                tracing::debug!(error = %chain(&error), "containerd does not tell what it has of the image");
                None
            }
            Err(_) => {
                tracing::warn!(address = %self.address.display(), "containerd does not answer what it has of the image");
                None
            }
        }
    }

    async fn ask(&self, namespace: &str, digest: &Digest) -> Result<Option<(Bytes, Bytes)>, ContainerdError> {
        let connection = Connection::open(&self.address, namespace).await?;
        let Some(manifest) = read(&connection, digest, MAXIMUM_DOCUMENT_SIZE).await? else {
            return Ok(None);
        };
        let (_, config) = Image::manifest(digest, &manifest)?;
        let config = read(&connection, &config.digest, config.size.min(MAXIMUM_CONFIG)).await?;
        Ok(config.map(|config| (manifest, config)))
    }
}
