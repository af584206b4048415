//! Why an eStargz table of contents is refused, said for the person who reads it.

use crate::layer::compression::DecodeError;
use crate::layer::tar::TarError;
use crate::layer::toc::{TocError, hex};

/// Why a TOC was refused.
#[derive(Debug, thiserror::Error)]
pub enum EstargzError {
    /// The bytes do not decode.
    #[error("eStargz table of contents: {0}")]
    Decode(#[from] DecodeError),
    /// The TOC is not in the tar entry where it should be.
    #[error("eStargz table of contents: {0}")]
    Tar(#[from] TarError),
    /// No tar entry of that name comes first.
    #[error("eStargz table of contents: the entry stargz.index.json is missing or cut off")]
    Missing,
    /// The TOC is too long.
    #[error("eStargz table of contents has {length} bytes, more than {limit}")]
    TooLarge {
        /// Its length.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// The TOC is not the one that the manifest vouches for.
    #[error("eStargz table of contents does not match the digest in the layer's annotation: expected {}, is {}", hex(.expected), hex(.actual))]
    Digest {
        /// SHA-256 of the annotation.
        expected: [u8; 32],
        /// SHA-256 of the JSON.
        actual: [u8; 32],
    },
    /// Its place does not fit the blob.
    #[error("eStargz table of contents at byte {toc_offset} of a blob of {blob_size} bytes")]
    Place {
        /// Where it is said to begin.
        toc_offset: u64,
        /// Bytes of the blob.
        blob_size: u64,
    },
    /// Its JSON makes no sense.
    #[error("eStargz {0}")]
    Contents(#[from] TocError),
}
