//! Merged trees: inode tables that can be made again from those of the layers, kept because making one takes longer than
//! mapping one. `trees/<hex>`, named by a hash that the caller takes of what went into it.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::content::{publish_file, write_file};
use super::digest::is_lower_hex;
use super::durable::write_all;
use super::error::{Context, StoreError};
use super::temporary::{Temporaries, Temporary};

/// The merged trees of a store.
#[derive(Clone, Debug)]
pub struct Trees {
    directory: PathBuf,
    temporaries: Temporaries,
}

impl Trees {
    pub(super) fn new(directory: PathBuf) -> Trees {
        Trees { temporaries: Temporaries::new(directory.join(super::INGEST)), directory }
    }

    /// The tree of that key (64 lower-case hexadecimal digits), open for reading; `None` if it is not there. Whether its bytes
    /// are whole is the table reader's to judge.
    pub fn open(&self, key: &str) -> Result<Option<File>, StoreError> {
        let path = self.path(key)?;
        match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) => Ok(Some(File::from(file))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(StoreError::from_io("open", path, error)),
        }
    }

    /// Stores a tree, replacing one of that key; it is on disk when this returns. Who has the old one open keeps it.
    pub fn put(&self, key: &str, table: &[u8]) -> Result<(), StoreError> {
        write_file(&self.temporaries, &self.path(key)?, table)
    }

    /// Like [`put`](Self::put), but does not wait for the disk: gives the tree, open for reading and usable at once, and what is left
    /// to do.
    pub fn put_unsynced(&self, key: &str, table: &[u8]) -> Result<(File, PendingTree), StoreError> {
        let path = self.path(key)?;
        let temporary = self.temporaries.file()?;
        write_all(temporary.file(), table, temporary.path())?;
        let file = temporary.file().try_clone().context("open", temporary.path())?;
        Ok((file, PendingTree { temporary, path }))
    }

    /// Removes a tree; false if it was not there.
    pub fn remove(&self, key: &str) -> Result<bool, StoreError> {
        let path = self.path(key)?;
        match rustix::fs::unlink(&path) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            result => result.map(|()| true).context("remove", path),
        }
    }

    fn path(&self, key: &str) -> Result<PathBuf, StoreError> {
        if key.len() == 64 && is_lower_hex(key) {
            return Ok(self.directory.join(key));
        }
        let digest = key.chars().take(200).collect();
        Err(StoreError::InvalidDigest { digest, reason: "a tree's key is 64 lower-case hexadecimal digits" })
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(super) fn temporaries(&self) -> &Temporaries {
        &self.temporaries
    }
}

/// A tree that has not got its name yet. Dropping it leaves the store without the tree.
#[derive(Debug)]
pub struct PendingTree {
    temporary: Temporary,
    path: PathBuf,
}

impl PendingTree {
    /// Brings the tree to disk and to its place.
    pub fn commit(self) -> Result<(), StoreError> {
        publish_file(self.temporary, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use std::io::Read;

    #[test]
    fn a_tree_is_read_as_it_was_put_until_it_is_replaced_or_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (trees, key) = (store.trees(), "0a".repeat(32));
        assert!(trees.open(&key).unwrap().is_none());
        let read = || {
            let mut bytes = Vec::new();
            trees.open(&key).unwrap().unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        };
        trees.put(&key, b"one").unwrap();
        assert_eq!(read(), b"one");
        trees.put(&key, b"two").unwrap();
        assert_eq!(read(), b"two");
        let (_, pending) = trees.put_unsynced(&key, b"three").unwrap();
        assert_eq!(read(), b"two");
        pending.commit().unwrap();
        assert_eq!(read(), b"three");
        assert!(trees.remove(&key).unwrap() && !trees.remove(&key).unwrap());
        for wrong in ["", "../../x", &"0A".repeat(32), &"0a".repeat(31)] {
            assert!(trees.put(wrong, b"x").is_err(), "{wrong:?}");
        }
    }
}
