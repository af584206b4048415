//! What can be wrong with a table of contents, said for the person who reads it.

/// Why the JSON of a TOC was refused.
#[derive(Debug, thiserror::Error)]
pub enum TocError {
    /// Not the JSON of a TOC.
    #[error("table of contents, after entry \"{after}\": {source}")]
    Json {
        /// The last entry that was read.
        after: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A version that nobody knows.
    #[error("table of contents of version {version}: only 1 is known")]
    Version {
        /// As it says.
        version: i64,
    },
    /// A digest that is none.
    #[error("table of contents: {field} is not a SHA-256 digest")]
    Digest {
        /// Name of the field.
        field: &'static str,
    },
    /// An entry that makes no sense.
    #[error("table of contents, entry \"{name}\": {fault}")]
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
    #[error("offset {offset} is not between the payload before it ({after}) and the end of the data ({end})")]
    Offset {
        /// offset.
        offset: u64,
        /// The offset before, or the end of the file before.
        after: u64,
        /// Where the data end: those of the file, if it says so, or of the layer.
        end: u64,
    },
    /// A file that ends before it begins, or after all data.
    #[error("endOffset {end_offset} is not between its offset ({offset}) and the end of the data ({end})")]
    EndOffset {
        /// endOffset.
        end_offset: u64,
        /// offset.
        offset: u64,
        /// Where the data end.
        end: u64,
    },
    /// A file that does not say where it ends, or that says so among others that do not.
    #[error("endOffset is in some files and missing in others")]
    MixedEnds,
    /// A type of chunk that nobody knows.
    #[error("unknown chunkType \"{0}\"")]
    ChunkType(String),
    /// PayloadRules of one member that overlap.
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
