//! containerd's API as a client uses it: what `peel ctr-pull` asks for.
//!
//! ```text
//! pull ──▶ documents ──▶ content ──┐
//!   └────▶ layers ──▶ snapshots,   ├──▶ connection ── unix socket ── containerd ── proxy ── peel serve
//!                     content, diff┘
//! ```
//!
//! - [`pull`] is an image pulled into containerd, lazily as far as its snapshotter can; [`layers`] its layers; [`content`] its blobs.
//! - [`documents`] is what `peel serve` asks it for, instead of a registry.
//! - [`connection`] is how services are called, [`messages`] and [`pull_messages`] are what is said.

pub mod connection;
mod content;
pub mod documents;
mod layers;
pub(crate) mod messages;
pub mod pull;
mod pull_messages;

use std::path::PathBuf;

use peelfs_registry::Digest;
use tonic::Code;

use crate::image::ImageError;

/// Why an image is not pulled into containerd.
#[derive(Debug, thiserror::Error)]
pub enum ContainerdError {
    /// Nobody answers.
    #[error("cannot connect to containerd at {}; is it running? name its socket with --address", address.display())]
    Connect {
        /// Its socket.
        address: PathBuf,
        /// The system's answer.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is no name that containerd could have.
    #[error("{name:?} is no name of a namespace")]
    Namespace {
        /// What was given.
        name: String,
    },
    /// It refuses a call.
    #[error("containerd at {} refuses {method}: {} ({:?})", address.display(), status.message(), status.code())]
    Call {
        /// Its socket.
        address: PathBuf,
        /// Which call.
        method: &'static str,
        /// What it says.
        status: tonic::Status,
    },
    /// The registry or layout does not give the image.
    #[error(transparent)]
    Registry(#[from] peelfs_registry::Error),
    /// What it gives is no image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A snapshot that is said to be there is not.
    #[error(
        "the snapshotter {snapshotter} says that the snapshot of layer {layer} exists, and that there is none named {chain_id}"
    )]
    NoSnapshot {
        /// The snapshotter.
        snapshotter: String,
        /// The layer.
        layer: Digest,
        /// What its snapshot should be called.
        chain_id: String,
    },
    /// A layer that was unpacked is not what the image's config says.
    #[error("layer {layer} is {found} once it is unpacked, and not {diff_id} as the config says")]
    DiffId {
        /// The layer.
        layer: Digest,
        /// What the config says.
        diff_id: Digest,
        /// What containerd made of it.
        found: String,
    },
    /// What came is not what was asked for.
    #[error("what {host} sends as blob {blob} has another digest")]
    WrongBlob {
        /// The blob.
        blob: Digest,
        /// Where it came from.
        host: String,
    },
    /// The task that fetched a blob panicked, which was logged.
    #[error("fetching blob {blob} failed")]
    Task {
        /// Which blob.
        blob: Digest,
    },
    /// SIGINT.
    #[error("interrupted; the same command goes on from what containerd has")]
    Interrupted,
}

impl ContainerdError {
    /// What to do about it, if that is known.
    pub fn hint(&self) -> Option<String> {
        let ContainerdError::Call { status, method, .. } = self else { return None };
        let is_of_snapshots = method.contains(".snapshots.") || method.contains(".diff.");
        match status.code() {
            Code::InvalidArgument | Code::NotFound if status.message().contains("snapshotter not loaded") => {
                Some("add what `peel serve --print-containerd-config` prints to containerd's configuration and restart it, or choose another snapshotter with --snapshotter".to_owned())
            }
            Code::Unavailable if is_of_snapshots => Some("is `peel serve` running?".to_owned()),
            _ => None,
        }
    }

    /// Whether containerd, or its snapshotter, has no room.
    pub fn is_full(&self) -> bool {
        match self {
            ContainerdError::Call { status, .. } => {
                status.code() == Code::ResourceExhausted
                    || status.message().contains("no space left on device")
            }
            _ => false,
        }
    }
}
