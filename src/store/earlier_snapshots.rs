//! What earlier versions kept of writable mounts, beside the cache records: brought over, and then no more.
//!
//! ```text
//! writable/NAME/{fs,work,lower,snapshot.json} ──note with the name──▶ the same ──rename──▶ snapshots/<id>/ ──▶ its record is written
//! ```
//!
//! Whoever is killed between any two steps leaves it in the one place or in the other, with its name noted. A snapshot without a record that
//! has a note gets one when the cache is opened. What is mounted stays where it is until it is not: its process is of an earlier version, and
//! holds `locks/snapshot-NAME`.

use std::path::{Path, PathBuf};

use super::durable::{crash_point, names_in};
use super::error::{Context, StoreError};
use super::lock::FileLock;
use super::record_tables::RecordId;
use super::snapshot_note::{self, SnapshotName};
use super::snapshots::{Snapshots, remove_tree};

/// The snapshots of writable mounts of earlier versions.
#[derive(Clone, Debug)]
pub struct EarlierSnapshots {
    directory: PathBuf,
    locks: PathBuf,
}

impl EarlierSnapshots {
    pub(super) fn new(directory: PathBuf, locks: PathBuf) -> EarlierSnapshots {
        EarlierSnapshots { directory, locks }
    }

    /// The names of those that are there, sorted: none, as a rule.
    pub fn names(&self) -> Result<Vec<SnapshotName>, StoreError> {
        Ok(names_in(&self.directory)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The directory that takes the changes of one, as the kernel would name it.
    pub fn changes(&self, name: &SnapshotName) -> PathBuf {
        self.path(name).join("fs")
    }

    /// Digest of the manifest of its image; nothing if that cannot be read.
    pub fn manifest_of(&self, name: &SnapshotName) -> Option<String> {
        Some(snapshot_note::read(&self.path(name), Some(name)).ok()??.origin.manifest_digest)
    }

    /// Brings one that is not mounted over, as a snapshot of that id, which has no record yet. False if a process holds it, or if it is
    /// gone.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if what is noted of it cannot be read: it stays as it is.
    pub fn bring_over(
        &self,
        name: &SnapshotName,
        snapshots: &Snapshots,
        id: &RecordId,
    ) -> Result<bool, StoreError> {
        let Some(_lock) = FileLock::try_acquire(&self.locks.join(format!("snapshot-{name}")))? else {
            return Ok(false);
        };
        let Some(note) = snapshot_note::read(&self.path(name), Some(name))? else { return Ok(false) };
        snapshots.take_over(&self.path(name), id, &note)
    }

    /// Removes the directory of all of them, if none is left.
    pub fn remove_if_empty(&self) -> Result<(), StoreError> {
        let ingest = self.directory.join(super::INGEST);
        for name in names_in(&ingest)? {
            remove_tree(&ingest.join(name))?;
        }
        for directory in [&ingest, &self.directory] {
            crash_point();
            match std::fs::remove_dir(directory) {
                Err(error)
                    if !matches!(
                        error.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::DirectoryNotEmpty
                    ) =>
                {
                    return Err(error).context("remove", directory);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether there is a directory of them at all.
    pub fn is_there(&self) -> bool {
        self.directory.is_dir()
    }

    fn path(&self, name: &SnapshotName) -> PathBuf {
        Path::join(&self.directory, name.as_str())
    }
}
