//! Why there is no plain directory, said for the person who wants it.

use peelfs_registry::Digest;
use rustix::io::Errno;

use crate::fetch::FetchError;
use crate::store::StoreError;

/// What stands in the way of a plain directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// A directory belongs to a record, and a record is of layers.
    #[error("{image} has no layers, so there is nothing to make a directory of")]
    WithoutLayers {
        /// The reference.
        image: String,
    },
    /// What nobody has compared with its archive would be believed for ever.
    #[error("layer {number} of {image} ({digest}) is not extracted; run `peel extract {image}`")]
    NotExtracted {
        /// The reference.
        image: String,
        /// Which layer, 1 is the lowest.
        number: usize,
        /// Its digest.
        digest: Digest,
    },
    /// Content that went again, and does not come.
    #[error("content of /{path} cannot be had")]
    Content {
        /// Where it is in the tree.
        path: String,
        /// Why not.
        #[source]
        cause: FetchError,
    },
    /// The budget leaves no time to read what was fetched.
    #[error(
        "content of /{path} was evicted again and again; give the store more room (`peel store --budget`)"
    )]
    Evicted {
        /// Where it is in the tree.
        path: String,
    },
    /// What is in a directory cannot be fetched again, so it is not evicted.
    #[error(
        "the store's budget has no room for the directory; give the store more (`peel store --budget`), or remove others (`peel directory rm`)"
    )]
    NoRoom,
    /// Owners, devices and some attributes are for root alone.
    #[error("not permitted to {operation} /{path} as the image has it; only root can make such a directory")]
    NotPermitted {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// Where it is in the tree.
        path: String,
    },
    /// Extended attributes that the store's file system does not have.
    #[error(
        "the store's file system cannot keep the extended attribute {name} of /{path}; keep the store on another (--store)"
    )]
    Attribute {
        /// The attribute, escaped.
        name: String,
        /// Where it is in the tree.
        path: String,
    },
    /// The merged table contradicts itself.
    #[error("the inode table of the tree is damaged at /{path}; run `peel check --repair`")]
    Table {
        /// Where.
        path: String,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A path for people.
pub(super) fn shown(path: &[u8]) -> String {
    path.escape_ascii().to_string()
}

/// Says of a failed system call what it was to do, and where in the tree.
pub(super) trait At<T> {
    /// `operation` is a verb, the path its object.
    fn at(self, operation: &'static str, path: &[u8]) -> Result<T, DirectoryError>;
}

impl<T, E: Into<std::io::Error>> At<T> for Result<T, E> {
    fn at(self, operation: &'static str, path: &[u8]) -> Result<T, DirectoryError> {
        self.map_err(|error| {
            let error = error.into();
            match error.raw_os_error().map(Errno::from_raw_os_error) {
                Some(Errno::PERM) => DirectoryError::NotPermitted { operation, path: shown(path) },
                _ => StoreError::from_io(operation, format!("/{}", shown(path)), error).into(),
            }
        })
    }
}
