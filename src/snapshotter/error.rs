//! Why containerd does not get what it asks for. The kinds are containerd's own (package `errdefs`).

use super::filter::FilterError;
use crate::store::StoreError;

/// A request that is refused, or that failed.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotterError {
    /// There is no such snapshot.
    #[error("snapshot {name:?} does not exist")]
    NotFound {
        /// Its name.
        name: String,
    },
    /// There is one already.
    #[error("snapshot {name:?} already exists")]
    AlreadyExists {
        /// Its name.
        name: String,
    },
    /// Not while things are as they are.
    #[error("cannot {operation} snapshot {name:?}: {reason}")]
    FailedPrecondition {
        /// What was asked for, as a verb.
        operation: &'static str,
        /// The snapshot's name.
        name: String,
        /// What stands against it.
        reason: &'static str,
    },
    /// Never so.
    #[error("cannot {operation} snapshot {name:?}: {reason}")]
    InvalidArgument {
        /// What was asked for, as a verb.
        operation: &'static str,
        /// The snapshot's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A filter that is none.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The tree of an image cannot be shown at this moment.
    #[error("the image {reference} below snapshot {name:?} is not available: {reason}")]
    Unavailable {
        /// The snapshot's name.
        name: String,
        /// The image.
        reference: String,
        /// Why, causes included.
        reason: String,
    },
    /// What is below a snapshot cannot be shown with the owners of its container.
    #[error("cannot map the owners of snapshot {name:?}: {reason}")]
    Owners {
        /// The snapshot's name.
        name: String,
        /// Why, causes included.
        reason: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What goes wrong outside this room.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
