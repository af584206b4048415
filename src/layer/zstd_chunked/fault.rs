//! Why a zstd:chunked table of contents is refused, said for the person who reads it.

use super::tar_split::TarSplitError;
use crate::layer::compression::DecodeError;
use crate::layer::toc::{TocError, hex};

/// Why a TOC was refused.
#[derive(Debug, thiserror::Error)]
pub enum ZstdChunkedError {
    /// What the annotations or the footer place outside the blob.
    #[error(
        "zstd:chunked {what} of {length} bytes at byte {offset} of the blob, which has {blob_size} bytes in all"
    )]
    Place {
        /// TOC or tar-split data.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// Bytes of the blob.
        blob_size: u64,
    },
    /// TOC or tar-split data are too long.
    #[error("zstd:chunked metadata have {length} bytes, more than {limit}")]
    TooLarge {
        /// Its length, compressed or not, whichever is more.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// TOC or tar-split data are not those that the manifest vouches for.
    #[error("zstd:chunked metadata do not match their digest in {annotation}: expected {}, is {}", hex(.expected), hex(.actual))]
    Digest {
        /// The last part of the annotation's name, or `tarSplitDigest` of the TOC.
        annotation: &'static str,
        /// SHA-256 there.
        expected: [u8; 32],
        /// SHA-256 of what came.
        actual: [u8; 32],
    },
    /// The bytes do not decode.
    #[error("zstd:chunked table of contents: {0}")]
    Decode(#[from] DecodeError),
    /// They decode to more or less than is said.
    #[error("zstd:chunked table of contents does not decode to the {stated} bytes that it should have")]
    Length {
        /// As annotation or footer say.
        stated: u64,
    },
    /// Its JSON makes no sense.
    #[error("zstd:chunked {0}")]
    Contents(#[from] TocError),
    /// The tar-split data make no sense.
    #[error("zstd:chunked {0}")]
    TarSplit(#[from] TarSplitError),
}
