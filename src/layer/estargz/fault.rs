//! What can be wrong with a table of contents, said for the person who reads it.

use crate::layer::compression::DecodeError;
use crate::layer::tar::TarError;

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
    /// Not the JSON of a TOC.
    #[error("eStargz table of contents, after entry \"{after}\": {source}")]
    Json {
        /// The last entry that was read.
        after: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A version that nobody knows.
    #[error("eStargz table of contents of version {version}: only 1 is known")]
    Version {
        /// As it says.
        version: i64,
    },
    /// An entry that makes no sense.
    #[error("eStargz table of contents, entry \"{name}\": {fault}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong.
        fault: EntryFault,
    },
}

/// What can be wrong with an entry of a TOC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryFault {
    /// A type that nobody knows.
    #[error("unknown type \"{0}\"")]
    Type(String),
    /// A number that is negative or too large.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
    /// A name that is too long.
    #[error("a name or link target of {0} bytes is too long")]
    PathTooLong(usize),
    /// A time that is none.
    #[error("modtime \"{0}\" is not a time of RFC 3339")]
    Time(String),
    /// A digest that is missing or none.
    #[error("{field} is missing or not a SHA-256 digest")]
    Digest {
        /// Name of the field.
        field: &'static str,
    },
    /// A whole file in one chunk, with two digests.
    #[error("digest and chunkDigest of its only chunk contradict each other")]
    TwoDigests,
    /// An attribute that Linux could not hold, or that is not encoded as it should be.
    #[error("extended attribute \"{0}\" is malformed or too long")]
    Xattr(String),
    /// A chunk without a file.
    #[error("a chunk that does not follow its file")]
    StrayChunk,
    /// A chunk that is not where the last one ended.
    #[error("a chunk at {stated} of the file, though the last one ended at {expected}")]
    ChunkOffset {
        /// chunkOffset.
        stated: u64,
        /// Where it should be.
        expected: u64,
    },
    /// Chunks that are less than their file.
    #[error("its chunks hold {chunks} of its {size} bytes")]
    ChunkSizes {
        /// Sum of their sizes.
        chunks: u64,
        /// Size of the file.
        size: u64,
    },
    /// A chunk beyond its file or all bounds.
    #[error("a chunk of {length} bytes, more than {limit}")]
    ChunkTooLarge {
        /// Its length.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// Bytes that cannot be where it says.
    #[error(
        "offset {offset} is not between the payload before it ({after}) and the table of contents ({toc_offset})"
    )]
    Offset {
        /// offset.
        offset: u64,
        /// The offset before.
        after: u64,
        /// Where the TOC begins.
        toc_offset: u64,
    },
    /// Payloads of one member that overlap.
    #[error("innerOffset {inner_offset} is before the end of the payload before it ({after})")]
    InnerOffset {
        /// innerOffset.
        inner_offset: u64,
        /// Where the last payload of the member ended.
        after: u64,
    },
    /// A payload too far from the beginning of its member.
    #[error("innerOffset {inner_offset} is more than {limit}")]
    InnerOffsetTooLarge {
        /// innerOffset.
        inner_offset: u64,
        /// The bound.
        limit: u64,
    },
    /// More than fits into any decoded space.
    #[error("the sizes of all files add up to more than any layer")]
    TotalSize,
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
