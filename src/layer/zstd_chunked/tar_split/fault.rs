//! What can be wrong with tar-split data, said for the person who reads it.

use crate::layer::tar::{SinkError, TarError};

/// Why tar-split data were refused.
#[derive(Debug, thiserror::Error)]
pub enum TarSplitError {
    /// Not the JSON of tar-split.
    #[error("tar-split data, after {after} entries: {source}")]
    Json {
        /// Entries that were read before.
        after: usize,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// An entry that makes no sense.
    #[error("tar-split data, entry {number}: {reason}")]
    Entry {
        /// Counted from 0.
        number: usize,
        /// What is wrong.
        reason: &'static str,
    },
    /// Longer than any layer needs.
    #[error("tar-split data have {length} {unit}, more than {limit}")]
    TooMuch {
        /// How much there is, at least.
        length: u64,
        /// Of what.
        unit: &'static str,
        /// The bound.
        limit: u64,
    },
}

/// Why an archive was not rebuilt.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The content of a file cannot be had, or the archive not be taken.
    #[error("file \"{path}\" of the layer: {source}")]
    Content {
        /// Its name, escaped.
        path: String,
        /// Why not.
        source: SinkError,
    },
    /// The archive cannot be taken.
    #[error(transparent)]
    Output(SinkError),
    /// A file is longer or shorter than in the archive.
    #[error("file \"{path}\" of the layer has {actual} bytes, but {expected} in its archive")]
    Length {
        /// Its name, escaped.
        path: String,
        /// Bytes in the archive.
        expected: u64,
        /// Bytes that came, as far as they were taken.
        actual: u64,
    },
    /// A file is another than in the archive.
    #[error("file \"{path}\" of the layer is not what its archive has: checksums differ")]
    Checksum {
        /// Its name, escaped.
        path: String,
    },
}

/// Where tar-split data and a table of contents contradict each other.
#[derive(Debug, thiserror::Error)]
pub enum Contradiction {
    /// The segments are no archive.
    #[error("the archive that tar-split data rebuild: {0}")]
    Tar(#[from] TarError),
    /// An entry differs.
    #[error(
        "entry {number} is \"{listed}\" in the table of contents and \"{archived}\" in the archive; they differ in {field}"
    )]
    Entry {
        /// Counted from 0.
        number: usize,
        /// Name in the table of contents, escaped.
        listed: String,
        /// Name in the archive, escaped.
        archived: String,
        /// What differs.
        field: &'static str,
    },
    /// An entry that the table of contents lacks.
    #[error("\"{path}\" is in the archive, but not in the table of contents")]
    NotListed {
        /// Name, escaped.
        path: String,
    },
    /// An entry that the archive lacks.
    #[error("\"{path}\" is in the table of contents, but not in the archive")]
    NotArchived {
        /// Name, escaped.
        path: String,
    },
    /// The segments and the files do not fit together.
    #[error("tar-split data, at \"{path}\": {reason}")]
    Piece {
        /// The last entry of the archive, escaped.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
}
