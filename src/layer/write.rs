//! Writes the entries of a layer anew, whatever format it had: what the writers of all formats share.
//!
//! ```text
//!            in order                        on all cores                   in order
//! spool ─▶ items ─▶ pieces, some to a job ─▶ read, hash, compress them ─▶ diff ID, places ─▶ blob
//!          entries   headers, data, padding                               table of contents ──┘
//! ```
//!
//! Rules that hold for all of them:
//! - headers of entries stay as they are, byte for byte, unless the format cannot say what they say;
//! - what is compressed together depends on the content alone, and is compressed as a whole: the same layer gives the same blob on any
//!   number of threads;
//! - a format says in [`WrittenLayer`] all that the layer's descriptor must have: nobody above asks which format it was.

pub(super) mod items;
pub(super) mod output;
pub(super) mod pieces;
pub mod plain;
pub mod time;

use std::collections::BTreeMap;
use std::io;

use peelfs_registry::Digest;

use super::arrange::ArrangeError;
use super::compression::Compression;
use super::tar::SinkError;

/// A layer that was written, and what its descriptor must say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenLayer {
    /// How the blob is compressed, which its media type tells.
    pub compression: Compression,
    /// Annotations that make it more than a compressed tar to those who know the format.
    pub annotations: BTreeMap<String, String>,
    /// Digest of the uncompressed blob.
    pub diff_id: Digest,
    /// Bytes of the uncompressed blob.
    pub uncompressed_size: u64,
    /// The digest of its table of contents that the annotations vouch for, if it has one.
    pub toc_digest: Option<Digest>,
    /// A blob with the table of contents, if that is not in the layer: it goes into the TOC image.
    pub external_toc: Option<Vec<u8>>,
    /// Positions, in the list of wanted files, of those that the layer does not have.
    pub missed: Vec<usize>,
    /// Why it can be unpacked, but will not be mounted lazily; `None` if it will.
    pub not_lazy: Option<NotLazy>,
}

/// Why no table of contents can be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLazy {
    /// JSON has no other names.
    #[error("a table of contents cannot say names that are not UTF-8")]
    Names,
    /// RFC 3339 has no other times.
    #[error("a table of contents cannot say times before the year 0 or after 9999")]
    Times,
    /// Too many entries.
    #[error("its table of contents would have {length} bytes or more, and readers take {limit}")]
    TooLong {
        /// Its length, as far as it is known.
        length: u64,
        /// The bound.
        limit: u64,
    },
}

/// Why no layer could be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The unpacked layer cannot be read.
    #[error("the unpacked layer cannot be read: {0}")]
    Spool(#[from] io::Error),
    /// The blob cannot be stored.
    #[error("the blob cannot be written: {0}")]
    Output(SinkError),
    /// The entries cannot be listed.
    #[error(transparent)]
    Arrange(#[from] ArrangeError),
    /// The compressor failed.
    #[error("the layer cannot be compressed: {0}")]
    Compress(String),
    /// Holes of sparse files, which these formats have as zeros, make it too large.
    #[error("the layer would have {length} bytes uncompressed, more than {limit}")]
    TooLarge {
        /// Bytes.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// Too many entries.
    #[error("the table of contents would have {length} bytes, more than the {limit} that are read")]
    TocTooLong {
        /// Its length.
        length: u64,
        /// The bound.
        limit: u64,
    },
}
