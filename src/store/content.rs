//! Whole blobs, as an OCI image layout that other tools can read (OCI image specification, image-layout.md).
//!
//! ```text
//! oci-layout            version of the layout
//! index.json            names, see `content_index`
//! blobs/<algorithm>/<hex>
//! ingest/               blobs on their way
//! ```
//!
//! A blob is verified before it gets its name, and again whenever it is read.

use std::io;
use std::path::{Path, PathBuf};

use super::digest::DigestName;
use super::durable::{ensure_directory, rename, sync_data, sync_directory, write_all};
use super::error::{Context, StoreError};
use super::temporary::{Temporaries, Temporary};

const LAYOUT: &str = "oci-layout";
const BLOBS: &str = "blobs";

/// The blobs of a store.
#[derive(Clone, Debug)]
pub struct Content {
    pub(super) directory: PathBuf,
    /// Lock of `index.json`.
    pub(super) index_lock: PathBuf,
    pub(super) temporaries: Temporaries,
}

impl Content {
    pub(super) fn new(directory: PathBuf, locks: &Path) -> Content {
        let temporaries = Temporaries::new(directory.join(super::INGEST));
        Content { index_lock: locks.join("content-index"), directory, temporaries }
    }

    /// The layout's directory.
    pub fn path(&self) -> &Path {
        &self.directory
    }

    /// Makes an empty layout where there is none; what is there stays.
    pub(super) fn initialise(&self) -> Result<(), StoreError> {
        ensure_directory(&self.directory)?;
        ensure_directory(self.temporaries.path())?;
        let blobs = self.directory.join(BLOBS);
        ensure_directory(&blobs)?;
        for algorithm in DigestName::algorithm_directories() {
            ensure_directory(&blobs.join(algorithm))?;
        }
        sync_directory(&blobs)?;
        if !self.directory.join(super::content_index::INDEX).exists() {
            self.write_file(&self.directory.join(super::content_index::INDEX), super::content_index::EMPTY)?;
        }
        if !self.directory.join(LAYOUT).exists() {
            self.write_file(&self.directory.join(LAYOUT), b"{\"imageLayoutVersion\":\"1.0.0\"}")?;
        }
        Ok(())
    }

    /// Stores a blob. It is on disk when this returns. A blob that is there and whole is left alone.
    ///
    /// # Errors
    /// [`StoreError::Mismatch`] if the bytes are not those that the digest names; [`StoreError::InvalidDigest`];
    /// [`StoreError::Full`].
    pub fn put(&self, digest: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.blob_path(&verified_name(digest, bytes)?);
        match std::fs::read(&path) {
            Ok(stored) if stored == bytes => Ok(()),
            _ => self.write_file(&path, bytes),
        }
    }

    /// Like [`put`](Self::put), but does not wait for the disk. That is safe, because a blob is verified whenever it is read: one that
    /// a crash of the machine cut counts as not there. [`sync`](Self::sync) makes it last.
    pub fn put_unsynced(&self, digest: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let name = verified_name(digest, bytes)?;
        let path = self.blob_path(&name);
        let temporary = self.temporaries.file()?;
        write_all(temporary.file(), bytes, temporary.path())?;
        temporary.publish(&path).context("rename to", path)
    }

    /// Brings a blob to disk; one that is not there is no error.
    pub fn sync(&self, digest: &str) -> Result<(), StoreError> {
        let path = self.blob_path(&DigestName::parse(digest)?);
        match std::fs::File::open(&path) {
            Ok(file) => sync_data(&file, &path)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(StoreError::from_io("open", path, error)),
        }
        path.parent().map_or(Ok(()), sync_directory)
    }

    /// A blob, verified against its digest; `None` if it is not there. One that is damaged is removed, with a warning, and
    /// counts as not there.
    ///
    /// Reads all of it into memory: meant for manifests, configs and tables of contents.
    pub fn get(&self, digest: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let name = DigestName::parse(digest)?;
        let path = self.blob_path(&name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(StoreError::from_io("read", path, error)),
        };
        let actual = name.of_same_algorithm(&bytes);
        if actual == name {
            return Ok(Some(bytes));
        }
        tracing::warn!(path = %path.display(), %actual, "a stored blob is damaged and is removed; it must be fetched again");
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::from_io("remove", path, error))
            }
            _ => Ok(None),
        }
    }

    /// Whether a blob of that digest is there. Its bytes are not looked at.
    pub fn has(&self, digest: &str) -> Result<bool, StoreError> {
        let path = self.blob_path(&DigestName::parse(digest)?);
        path.try_exists().context("look at", path)
    }

    /// Puts a file in its place as a whole, replacing one that is there.
    pub(super) fn write_file(&self, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
        write_file(&self.temporaries, path, bytes)
    }

    pub(super) fn move_aside(&self, path: &Path, to: &Path) -> Result<(), StoreError> {
        rename(path, to).context("set aside", path)
    }

    pub(super) fn blob_path(&self, name: &DigestName) -> PathBuf {
        name.path_in(&self.blobs())
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.directory.join(BLOBS)
    }

    pub(super) fn temporaries(&self) -> &Temporaries {
        &self.temporaries
    }
}

/// The digest, if it is that of the bytes.
fn verified_name(digest: &str, bytes: &[u8]) -> Result<DigestName, StoreError> {
    let name = DigestName::parse(digest)?;
    let actual = name.of_same_algorithm(bytes);
    if actual != name {
        return Err(StoreError::Mismatch { expected: name.to_string(), actual: actual.to_string() });
    }
    Ok(name)
}

/// Makes a file whose bytes and name are on disk when this returns, and which nobody sees in part.
pub(super) fn write_file(temporaries: &Temporaries, path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let temporary = temporaries.file()?;
    write_all(temporary.file(), bytes, temporary.path())?;
    publish_file(temporary, path)
}

/// Gives a file that was written its name; bytes and name are on disk when this returns.
pub(super) fn publish_file(temporary: Temporary, path: &Path) -> Result<(), StoreError> {
    sync_data(temporary.file(), temporary.path())?;
    temporary.publish(path).context("rename to", path)?;
    path.parent().map_or(Ok(()), sync_directory)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;
    use sha2::Digest;

    fn digest_of(bytes: &[u8]) -> String {
        let hex: String = sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    #[test]
    fn what_was_put_is_got_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = digest_of(b"bytes");
        assert_eq!(store.content().get(&digest).unwrap(), None);
        assert!(!store.content().has(&digest).unwrap());
        store.content().put(&digest, b"bytes").unwrap();
        store.content().put(&digest, b"bytes").unwrap();
        store.content().put_unsynced(&digest, b"bytes").unwrap();
        store.content().sync(&digest).unwrap();
        store.content().sync(&digest_of(b"others")).unwrap();
        assert!(store.content().put_unsynced(&digest, b"others").is_err());
        assert_eq!(store.content().get(&digest).unwrap().as_deref(), Some(&b"bytes"[..]));
        assert!(store.content().has(&digest).unwrap());

        let error = store.content().put(&digest_of(b"other"), b"bytes").unwrap_err();
        assert!(matches!(&error, StoreError::Mismatch { actual, .. } if *actual == digest), "{error}");
        assert!(!store.content().has(&digest_of(b"other")).unwrap());
        assert_eq!(std::fs::read_dir(directory.path().join("content/ingest")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_blob_is_absent_and_can_be_put_again() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = digest_of(b"bytes");
        let path = directory.path().join("content/blobs/sha256").join(&digest[7..]);
        for damage in [&b""[..], b"byteS", b"bytes and more"] {
            store.content().put(&digest, b"bytes").unwrap();
            std::fs::write(&path, damage).unwrap();
            assert_eq!(store.content().get(&digest).unwrap(), None);
            assert!(!path.exists());
            std::fs::write(&path, damage).unwrap();
            store.content().put(&digest, b"bytes").unwrap();
            assert!(store.content().get(&digest).unwrap().is_some());
        }
    }
}
