//! Writable snapshots on disk: `snapshots/<id>/{fs,work}`, the upper and the work directory of an overlay.
//!
//! ```text
//! ingest/<n>/{fs,work} ──rename──▶ snapshots/<mutable>/ ──rename──▶ snapshots/<immutable>/ ──rename──▶ ingest/<n> ──▶ removed
//!   empty, locked                   its record is written             finalized                  its record is marked before,
//!                                   while the lock is held                                       and removed after
//! ```
//!
//! Rules
//! - A snapshot without a record is either empty, and was never told to anyone, or its record was lost with a damaged database:
//!   then it may hold what is nowhere else, and is not removed here.
//! - What is in a snapshot is its users' to sync, until it is finalized.

use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::durable::{crash_point, ensure_directory, open_directory, rename, sync_directory};
use super::error::{Context, StoreError};
use super::record_tables::RecordId;
use super::temporary::{Temporaries, Temporary, lock_unused, remove_unused};

const FS: &str = "fs";
const WORK: &str = "work";

/// The writable snapshots of a store.
#[derive(Clone, Debug)]
pub struct Snapshots {
    directory: PathBuf,
    temporaries: Temporaries,
}

/// A snapshot that has no record yet. While this lives, nobody takes it for one that was left behind.
#[derive(Debug)]
pub struct NewSnapshot {
    // Holds the directory's lock.
    _temporary: Temporary,
}

impl Snapshots {
    pub(super) fn new(directory: PathBuf) -> Snapshots {
        Snapshots { temporaries: Temporaries::new(directory.join(super::INGEST)), directory }
    }

    /// Makes an empty snapshot. Its name is on disk when this returns.
    pub fn create(&self, id: &RecordId) -> Result<NewSnapshot, StoreError> {
        self.ensure()?;
        let temporary = self.temporaries.directory()?;
        for part in [FS, WORK] {
            ensure_directory(&temporary.path().join(part))?;
        }
        sync_directory(temporary.path())?;
        let path = self.path(id);
        temporary.publish(&path).context("rename to", &path)?;
        sync_directory(&self.directory)?;
        Ok(NewSnapshot { _temporary: temporary })
    }

    /// What was written: the upper directory of an overlay.
    pub fn fs(&self, id: &RecordId) -> PathBuf {
        self.path(id).join(FS)
    }

    /// The work directory of an overlay, on the same file system.
    pub fn work(&self, id: &RecordId) -> PathBuf {
        self.path(id).join(WORK)
    }

    /// Whether there is such a snapshot.
    pub fn has(&self, id: &RecordId) -> Result<bool, StoreError> {
        let path = self.path(id);
        path.try_exists().context("look at", path)
    }

    /// Gives a snapshot another name; false if there is none of the old one. The name is on disk when this returns.
    pub fn rename(&self, from: &RecordId, to: &RecordId) -> Result<bool, StoreError> {
        match rename(&self.path(from), &self.path(to)) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(StoreError::from_io("rename", self.path(from), error)),
        }
        sync_directory(&self.directory)?;
        Ok(true)
    }

    /// Brings what was written into a snapshot to disk, with all else that is being written to its file system; false if the
    /// snapshot is not there.
    pub fn bring_to_disk(&self, id: &RecordId) -> Result<bool, StoreError> {
        let path = self.path(id);
        let directory = match open_directory(&path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(StoreError::from_io("open", path, error)),
        };
        crash_point();
        rustix::fs::syncfs(directory).context("sync", path).map(|()| true)
    }

    /// Removes a snapshot; false if it was not there. Its name is gone at once; what is in it, after a while.
    pub fn remove(&self, id: &RecordId) -> Result<bool, StoreError> {
        let (path, removed) = (self.path(id), self.temporaries.unused_name());
        match rename(&path, &removed) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(StoreError::from_io("remove", path, error)),
        }
        sync_directory(&self.directory)?;
        self.remove_tree(&removed)?;
        Ok(true)
    }

    /// Bytes on disk; 0 if it is not there.
    pub fn disk_bytes(&self, id: &RecordId) -> Result<u64, StoreError> {
        super::space::allocated_bytes(&self.path(id))
    }

    /// All snapshots. Nothing else is in the directory, unless somebody put it there.
    pub fn list(&self) -> Result<Vec<RecordId>, StoreError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(StoreError::from_io("list", &self.directory, error)),
        };
        let mut snapshots = Vec::new();
        for entry in entries {
            let name = entry.context("list", &self.directory)?.file_name();
            snapshots.extend(name.to_str().and_then(RecordId::parse));
        }
        Ok(snapshots)
    }

    /// Looks at a snapshot that seems to have no record: removes it if nothing is in it. `is_recorded` looks again, once nobody can be
    /// about to write the record.
    pub fn remove_leftover<E: From<StoreError>>(
        &self,
        id: &RecordId,
        is_recorded: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Leftover, E> {
        let path = self.path(id);
        let Some(_lock) = lock_unused(&path).context("lock", &path)? else { return Ok(Leftover::InUse) };
        if is_recorded()? {
            return Ok(Leftover::InUse);
        }
        Ok(if remove_empty(&path)? { Leftover::Removed } else { Leftover::Filled })
    }

    /// Whether nobody is about to record it.
    pub fn is_left_over(&self, id: &RecordId) -> Result<bool, StoreError> {
        let path = self.path(id);
        Ok(lock_unused(&path).context("lock", &path)?.is_some())
    }

    /// Removes what nobody uses of what is not visible, and gives the number.
    pub(super) fn sweep(&self) -> Result<u64, StoreError> {
        let directory = self.temporaries.path();
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(StoreError::from_io("list", directory, error)),
        };
        let mut removed = 0;
        for entry in entries {
            removed += u64::from(self.remove_tree(&entry.context("list", directory)?.path())?);
        }
        Ok(removed)
    }

    fn remove_tree(&self, path: &Path) -> Result<bool, StoreError> {
        // An overlay makes a directory there that not even its owner may look into.
        match rustix::fs::chmod(path.join(WORK).join(WORK), Mode::RWXU) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(error) => return Err(StoreError::from_io("set the mode of", path.join(WORK), error)),
        }
        remove_unused(path).context("remove", path)
    }

    fn ensure(&self) -> Result<(), StoreError> {
        if !self.temporaries.path().is_dir() {
            ensure_directory(&self.directory)?;
            ensure_directory(self.temporaries.path())?;
            self.directory.parent().map_or(Ok(()), sync_directory)?;
        }
        Ok(())
    }

    fn path(&self, id: &RecordId) -> PathBuf {
        self.directory.join(id.as_str())
    }
}

/// What became of a snapshot without a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// It was empty, or gone.
    Removed,
    /// It is being made, or has a record.
    InUse,
    /// Something is in it.
    Filled,
}

/// Removes a snapshot in which nothing is; false if something is.
fn remove_empty(path: &Path) -> Result<bool, StoreError> {
    for part in [path.join(FS), path.join(WORK)] {
        match std::fs::read_dir(&part) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Ok(false);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(StoreError::from_io("list", part, error)),
        }
    }
    for directory in [path.join(FS), path.join(WORK), path.to_owned()] {
        crash_point();
        match std::fs::remove_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => result.context("remove", directory)?,
        }
    }
    Ok(true)
}
