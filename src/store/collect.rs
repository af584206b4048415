//! What the collector of garbage asks of the store: what is there and how large it is, and to take it away.
//!
//! ```text
//! layer in its place ──set aside: a rename──▶ ingest/ ──sweep, by whomever──▶ gone
//! ```
//!
//! - Those who bring images hold the collector's lock together, from before they look until what they brought is recorded; the collector
//!   holds it alone while it decides and sets aside. So it never takes what is about to be named.
//! - What somebody has open stays. A tree or a document that is open when it is removed is usable until it is closed.

use std::fs::File;
use std::path::Path;

use rustix::fs::FlockOperation;
use rustix::io::Errno;

use super::content::Content;
use super::database::Database;
use super::digest::DigestName;
use super::durable::{names_in, open_directory, still_names};
use super::error::{Context, StoreError};
use super::layers::{LayerDirectory, LayerStore, WithdrawnLayer};
use super::lock::{FileLock, try_flock};
use super::origins::Origins;
use super::space::{DiskUsage, allocated_bytes, disk_usage};
use super::trees::Trees;
use super::{INGEST, Store};

/// The right to bring images, which others have too, or to collect garbage, alone. Ends when it is dropped.
pub type CollectionLock = FileLock;

impl Store {
    /// To be held by whoever brings an image, until it is recorded. Waits while garbage is collected.
    pub fn lock_for_bringing(&self) -> Result<CollectionLock, StoreError> {
        FileLock::acquire_shared(&self.collection_lock())
    }

    /// To be held by the collector. Waits for those who bring images.
    pub fn lock_for_collecting(&self) -> Result<CollectionLock, StoreError> {
        FileLock::acquire(&self.collection_lock())
    }

    fn collection_lock(&self) -> std::path::PathBuf {
        self.locks.join("collection")
    }

    /// What all of the store takes on the disk, in bytes.
    pub fn allocated(&self) -> Result<u64, StoreError> {
        allocated_bytes(self.path())
    }
}

impl LayerStore {
    /// The names of all layers that are there: digests.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        list_digests(self.directory())
    }
}

impl LayerDirectory {
    /// What it takes on the disk, in bytes.
    pub fn allocated(&self) -> Result<u64, StoreError> {
        allocated_bytes(self.path())
    }

    /// The same, with the number of inodes.
    pub fn usage(&self) -> Result<DiskUsage, StoreError> {
        disk_usage(self.path())
    }

    /// What of it could be discarded and fetched again: the bytes of its files' content on the disk.
    pub fn allocated_content(&self) -> Result<u64, StoreError> {
        let packed = allocated_bytes(&self.path().join(super::data_files::PACKED))?;
        Ok(packed.saturating_add(allocated_bytes(&self.path().join(super::data_files::LARGE))?))
    }

    /// Whether any process has it open.
    pub fn is_in_use(&self) -> Result<bool, StoreError> {
        Ok(matches!(self.open_alone()?, Alone::InUse))
    }

    /// Takes the layer from its place unless somebody has it open; the next sweep removes it. Says whether it did.
    pub fn set_aside(&self) -> Result<bool, StoreError> {
        Ok(self.withdraw_unused()?.is_some())
    }

    /// As [`withdraw`](Self::withdraw), unless somebody has it open.
    pub fn withdraw_unused(&self) -> Result<Option<WithdrawnLayer>, StoreError> {
        let Alone::Held(_directory) = self.open_alone()? else { return Ok(None) };
        self.withdraw()
    }

    fn open_alone(&self) -> Result<Alone, StoreError> {
        let directory = match open_directory(self.path()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(Alone::Absent),
            Err(error) => return Err(StoreError::from_io("open", self.path(), error)),
        };
        let is_free = try_flock(&directory, FlockOperation::NonBlockingLockExclusive)
            .context("lock", self.path())?
            && still_names(self.path(), &directory).context("look at", self.path())?;
        Ok(if is_free { Alone::Held(directory) } else { Alone::InUse })
    }
}

enum Alone {
    Absent,
    InUse,
    /// Locked until it is closed.
    Held(#[allow(dead_code, reason = "it is the lock")] File),
}

impl Content {
    /// The digests of all blobs that are there.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        list_digests(&self.blobs())
    }

    /// What a blob takes on the disk, in bytes.
    pub fn allocated(&self, digest: &str) -> Result<u64, StoreError> {
        allocated_bytes(&self.blob_path(&DigestName::parse(digest)?))
    }

    /// Removes a blob; false if it was not there.
    pub fn remove(&self, digest: &str) -> Result<bool, StoreError> {
        let path = self.blob_path(&DigestName::parse(digest)?);
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(StoreError::from_io("remove", path, error)),
        }
    }
}

impl Origins {
    /// Forgets where the layers of all images come from but those with these manifests, and gives their number.
    pub fn keep_only(&self, manifests: &[String]) -> Result<u64, StoreError> {
        let mut removed = 0;
        for digest in list_digests(self.directory())? {
            if manifests.contains(&digest) {
                continue;
            }
            let path = DigestName::parse(&digest)?.path_in(self.directory());
            match std::fs::remove_file(&path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(StoreError::from_io("remove", path, error)),
            }
        }
        Ok(removed)
    }
}

impl Trees {
    /// The keys of all trees that are there, and what each takes on the disk, in bytes.
    pub fn list(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let mut trees = Vec::new();
        for name in names_in(self.directory())?.into_iter().filter(|name| name != INGEST) {
            let bytes = allocated_bytes(&self.directory().join(&name))?;
            trees.push((name, bytes));
        }
        Ok(trees)
    }
}

impl Database {
    /// Forgets the layers that no image has, and gives their number.
    pub fn forget_unused_layers(&self) -> Result<u64, StoreError> {
        self.write("forget layers", |transaction| {
            let forgotten = transaction
                .prepare_cached(
                    "DELETE FROM layers WHERE digest NOT IN (SELECT layer_digest FROM image_layers)",
                )?
                .execute([])?;
            Ok(forgotten as u64)
        })
    }
}

/// The digests that the entries of `directory/<algorithm>/` are named by.
fn list_digests(directory: &Path) -> Result<Vec<String>, StoreError> {
    let mut digests = Vec::new();
    for algorithm in DigestName::algorithm_directories() {
        for name in names_in(&directory.join(algorithm))? {
            // What is none of ours is not listed.
            digests
                .extend(DigestName::parse(&format!("{algorithm}:{name}")).ok().map(|name| name.to_string()));
        }
    }
    Ok(digests)
}
