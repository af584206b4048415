//! What can be wrong with an archive, said for the person who reads it.

use super::SinkError;

/// Why an archive was refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The archive itself.
    #[error("tar archive, header at byte {offset}{}: {fault}", of_entry(.name))]
    Archive {
        /// Where the header in question begins in the uncompressed archive.
        offset: u64,
        /// Name of the entry, as far as it is known.
        name: String,
        /// What is wrong.
        fault: TarFault,
    },
    /// The sink took no more.
    #[error(transparent)]
    Sink(SinkError),
}

fn of_entry(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!(" (entry \"{name}\")") }
}

/// What can be wrong with an archive.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TarFault {
    /// No header where one should be.
    #[error("not a tar header: its checksum does not match")]
    Checksum,
    /// A header field that is no number.
    #[error("the field {field} holds no number: \"{value}\"")]
    Number {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: String,
    },
    /// A number that is out of range.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        value: i64,
    },
    /// Sizes that add up to more than any archive.
    #[error("its size is beyond any archive")]
    Size,
    /// A type that nobody knows.
    #[error("unknown entry type \"{}\"", .0.escape_ascii())]
    Type(u8),
    /// One zero block, then something else.
    #[error("a zero block that does not end the archive")]
    LoneZeroBlock,
    /// The bytes end in the middle.
    #[error("the archive is cut off")]
    Truncated,
    /// Headers that are too large.
    #[error("more than {limit} bytes of extended headers")]
    Metadata {
        /// The bound.
        limit: u64,
    },
    /// A name that is too long.
    #[error("a name of {length} bytes, more than {limit}")]
    PathTooLong {
        /// Its length.
        length: usize,
        /// The bound.
        limit: usize,
    },
    /// A PAX record that is none.
    #[error("malformed PAX record \"{0}\"")]
    PaxRecord(String),
    /// A PAX record of a known key whose value makes no sense.
    #[error("malformed PAX record {key}: \"{value}\"")]
    PaxValue {
        /// Its key.
        key: String,
        /// Its value.
        value: String,
    },
    /// An extended attribute that Linux could not hold.
    #[error("extended attribute name \"{0}\" is empty, longer than 255 bytes or holds a NUL")]
    XattrName(String),
    /// An extended attribute that is too long.
    #[error("extended attribute \"{name}\" has {length} bytes, more than {limit}")]
    XattrTooLong {
        /// Its name.
        name: String,
        /// Its length.
        length: usize,
        /// The bound.
        limit: usize,
    },
    /// A sparse encoding that nobody knows.
    #[error("unknown sparse encoding, version {major:?}.{minor:?}")]
    SparseVersion {
        /// `GNU.sparse.major`.
        major: Option<u64>,
        /// `GNU.sparse.minor`.
        minor: Option<u64>,
    },
    /// A sparse map that does not fit its file.
    #[error("sparse map: {0}")]
    Sparse(&'static str),
    /// A sparse map that is too long.
    #[error("a sparse file of more than {limit} pieces")]
    SparsePieces {
        /// The bound.
        limit: usize,
    },
}
