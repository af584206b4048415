//! What can go wrong in the store, said so that the person who reads it knows what to do.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// An operation of the store that failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk, or what the user may have of it, is full.
    #[error(
        "no space left to {operation} {path:?}: {source}; free some space, or keep the store on a larger file system (--store)"
    )]
    Full {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// This user may not.
    #[error(
        "not permitted to {operation} {path:?}: {reason}; run as the user who owns the store, or choose another with --store"
    )]
    Permission {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Written by a later version of this program, which may mean by it what this one does not know.
    #[error(
        "{path:?} has version {found}, but this program knows only versions up to {known}; use a newer one, or another store (--store)"
    )]
    Newer {
        /// The file that carries the version.
        path: PathBuf,
        /// The version found.
        found: u64,
        /// The newest version known here.
        known: u64,
    },
    /// A directory with other things in it, which the store must not mix with its own.
    #[error("{path:?} is not a store and not empty (it holds {found:?}); name a new or an empty directory")]
    NotAStore {
        /// The directory.
        path: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// Something on disk is not what was once written there. It can be made or fetched again.
    #[error("{path:?} is damaged: {reason}; it must be removed or made again")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// How it shows.
        reason: String,
    },
    /// A digest that is none, or of an algorithm that is not known.
    #[error("{digest:?} is not a digest: {reason}")]
    InvalidDigest {
        /// As given.
        digest: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Bytes that are not those that their digest names.
    #[error("the bytes given as {expected} have the digest {actual}; they were not stored")]
    Mismatch {
        /// The digest they were given under.
        expected: String,
        /// Their own.
        actual: String,
    },
    /// The records database refused.
    #[error("cannot {operation} in {path:?}: {source}")]
    Database {
        /// What was attempted, as a verb with its object.
        operation: &'static str,
        /// The database.
        path: PathBuf,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// Any other failure of the file system.
    #[error("cannot {operation} {path:?}: {source}")]
    Io {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

impl StoreError {
    /// Sorts a failure of the file system into the kinds above.
    pub fn from_io(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> StoreError {
        let source = source.into();
        let path = path.as_ref().to_owned();
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            // EFBIG is a limit of the process (RLIMIT_FSIZE) or the file system; the remedy is the same.
            Some(Errno::NOSPC | Errno::DQUOT | Errno::FBIG) => StoreError::Full { operation, path, source },
            Some(Errno::PERM | Errno::ACCESS | Errno::ROFS) => {
                StoreError::Permission { operation, path, reason: source.to_string() }
            }
            _ => StoreError::Io { operation, path, source },
        }
    }

    /// Whether it is for want of space.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Full { .. } => true,
            StoreError::Database { source, .. } => {
                source.sqlite_error_code() == Some(rusqlite::ErrorCode::DiskFull)
            }
            _ => false,
        }
    }
}

/// Says of a failed system call what it was to do and where.
pub(super) trait Context<T> {
    /// `operation` is a verb ("write"), `path` its object.
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, operation: &'static str, path: impl AsRef<Path>) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::from_io(operation, path, source))
    }
}
