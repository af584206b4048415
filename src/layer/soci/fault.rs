//! Why a SOCI index or a zTOC is refused, said for the person who reads it.

use peelfs_registry::Digest;

use crate::layer::tar::TarFault;

/// Why it was refused.
#[derive(Debug, thiserror::Error)]
pub enum SociError {
    /// The index manifest is none.
    #[error("SOCI index {digest} cannot be used: {reason}")]
    Index {
        /// Its digest.
        digest: Digest,
        /// Why not.
        reason: String,
    },
    /// A zTOC that is too long.
    #[error("zTOC has {length} bytes, more than {limit}")]
    TooLarge {
        /// Its length.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// Not the flatbuffer of a zTOC.
    #[error("zTOC is no flatbuffer of its kind: {reason}")]
    Flatbuffer {
        /// What is wrong.
        reason: String,
    },
    /// A part that every zTOC has.
    #[error("zTOC has no {field}")]
    Missing {
        /// Its name.
        field: &'static str,
    },
    /// A number that is negative or too large.
    #[error("zTOC: {field} {value} is out of range")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
    /// A compression that nobody knows.
    #[error("zTOC: unknown compression algorithm {number}")]
    Algorithm {
        /// As it says.
        number: i8,
    },
    /// A span's digest that is none.
    #[error("zTOC: a span digest is not a SHA-256 digest")]
    SpanDigest,
    /// Checkpoints that make no sense.
    #[error("zTOC, checkpoints: {0}")]
    Checkpoints(CheckpointFault),
    /// Spans that make no sense.
    #[error("zTOC, spans: {0}")]
    Spans(#[from] SpanFault),
    /// Numbers of spans that differ.
    #[error(
        "zTOC has {spans} spans by its checkpoints, {digests} digests of spans, and says that it has {stated}"
    )]
    SpanCount {
        /// By the checkpoints.
        spans: usize,
        /// By the digests.
        digests: usize,
        /// By the greatest span number.
        stated: u64,
    },
    /// A zTOC of another blob.
    #[error("zTOC is one of a blob of {stated} bytes, the layer has {blob}")]
    BlobSize {
        /// As it says.
        stated: u64,
        /// By the layer's descriptor.
        blob: u64,
    },
    /// An archive that is too large.
    #[error("zTOC is one of an archive of {length} bytes, more than {limit}")]
    ArchiveTooLarge {
        /// Bytes of the archive.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// Nothing is wrong, but something cannot be known from it.
    #[error("zTOC does not tell all of its layer: {0}")]
    Insufficient(Shortfall),
    /// An entry that makes no sense.
    #[error("zTOC, entry \"{name}\": {fault}")]
    File {
        /// Its name.
        name: String,
        /// What is wrong.
        fault: FileFault,
    },
}

/// What can be wrong with checkpoints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointFault {
    /// Too few or too many bytes.
    #[error("{length} bytes are not what their number needs")]
    Length {
        /// How many.
        length: usize,
    },
    /// A number that is negative or too large.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
}

/// What can be wrong with spans.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpanFault {
    /// The archive's beginning is in none.
    #[error("the first one begins at byte {offset} of the archive")]
    First {
        /// Where it begins.
        offset: u64,
    },
    /// One that does not come after the one before.
    #[error("span {number} does not begin after the one before")]
    Order {
        /// Its number.
        number: usize,
    },
    /// One that leaves the blob, or is empty.
    #[error("span {number} ends at byte {end} of a blob of {blob} bytes, or has no byte of it")]
    Blob {
        /// Its number.
        number: usize,
        /// Where it ends.
        end: u64,
        /// Bytes of the blob.
        blob: u64,
    },
    /// More than there are digests.
    #[error("they are {count}, more than {maximum}")]
    Count {
        /// How many.
        count: u64,
        /// The bound.
        maximum: u64,
    },
    /// Of another layer.
    #[error("they are those of a layer of {stated} bytes, this one has {blob}")]
    Size {
        /// As they say.
        stated: u64,
        /// Bytes of the blob.
        blob: u64,
    },
}

/// What a zTOC that is as it should be does not tell, or tells in pieces that are too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Shortfall {
    /// Where the pieces of a sparse file lie.
    #[error("\"{name}\" is a sparse file")]
    Sparse {
        /// Its name.
        name: String,
    },
    /// A time that cannot be written as the format wants.
    #[error("\"{name}\" has no time")]
    Time {
        /// Its name.
        name: String,
    },
    /// A span that is more than may be fetched or decoded at once.
    #[error("span {number} has {length} bytes, more than {limit}")]
    Span {
        /// Its number.
        number: usize,
        /// Its length, in the blob or decoded.
        length: u64,
        /// The bound.
        limit: u64,
    },
}

/// What can be wrong with an entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileFault {
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
    #[error("a name or link target of {length} bytes, more than {limit}")]
    PathTooLong {
        /// Its length.
        length: usize,
        /// The bound.
        limit: usize,
    },
    /// A PAX record that no archive may hold.
    #[error(transparent)]
    Record(TarFault),
    /// No room for headers between two entries, or too much.
    #[error("its headers cannot lie at bytes {start}..{end} of the archive")]
    Headers {
        /// End of the entry before.
        start: u64,
        /// Beginning of the content.
        end: u64,
    },
    /// Content that leaves the archive.
    #[error("its {length} bytes do not lie within the {archive} bytes of the archive")]
    Content {
        /// Bytes of the content.
        length: u64,
        /// Bytes of the archive.
        archive: u64,
    },
}
