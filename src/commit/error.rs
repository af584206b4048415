//! What can go wrong with a commit, said for the person who reads it.

use std::io;

use crate::cache::CacheError;
use crate::image::ImageError;
use crate::layer::write::WriteError;
use crate::store::StoreError;
use crate::store::record_tables::RecordId;

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// There is nothing to make a layer of.
    #[error("nothing was changed in snapshot {name}, so there is no layer to be made")]
    NothingChanged {
        /// The snapshot.
        name: String,
    },
    /// A record that holds no changes of a mount.
    #[error("record {record} holds no changes of a writable mount; `peel snapshot ls` lists those that do")]
    NotMounted {
        /// The record.
        record: RecordId,
    },
    /// The image that was changed.
    #[error(
        "manifest {digest} of {image}, which was changed, is no longer in the store; mount the snapshot again, which brings it"
    )]
    ParentGone {
        /// Its name.
        image: String,
        /// The manifest.
        digest: String,
    },
    /// The image that was changed, or the one that was made.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Something among the changes that cannot be read.
    #[error("/{path} cannot be read: {source}")]
    Read {
        /// Where it is in the mount.
        path: String,
        /// Why not.
        source: io::Error,
    },
    /// A file that does not come to rest.
    #[error(
        "/{path} changed while it was read, {attempts} times in a row; end what writes to it, and commit again"
    )]
    Changing {
        /// Where it is in the mount.
        path: String,
        /// How often it was read.
        attempts: u32,
    },
    /// A name that means something else in a layer.
    #[error(
        "/{path} cannot be in a layer: a name that begins with .wh. says there that another one is removed; rename it"
    )]
    WhiteoutName {
        /// Where it is in the mount.
        path: String,
    },
    /// A path that no image may have.
    #[error("/{path} is nested deeper than the {limit} directories that a layer may have")]
    TooDeep {
        /// The beginning of where it is in the mount.
        path: String,
        /// The bound.
        limit: usize,
    },
    /// A layer that nobody would read. Holes count, as they are zeros in an archive.
    #[error(
        "with /{path} the layer would have {length} bytes uncompressed, more than the {limit} that are read"
    )]
    TooLarge {
        /// Where it is in the mount.
        path: String,
        /// Bytes.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// A document of the image that was changed, of which none can be made.
    #[error("the {document} of the image cannot be extended: {reason}")]
    Document {
        /// Which.
        document: &'static str,
        /// Why not.
        reason: String,
    },
    /// The layer cannot be written.
    #[error("the layer cannot be written")]
    Write(#[from] Box<WriteError>),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The records of its layers.
    #[error(transparent)]
    Records(#[from] CacheError),
}

impl From<WriteError> for CommitError {
    fn from(error: WriteError) -> CommitError {
        CommitError::Write(Box::new(error))
    }
}

/// A path for people.
pub(super) fn shown(path: &[u8]) -> String {
    const LONGEST: usize = 300;
    let cut = path.len().min(LONGEST);
    let end = if cut < path.len() { "…" } else { "" };
    format!("{}{end}", path[..cut].escape_ascii())
}
