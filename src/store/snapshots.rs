//! Writable snapshots on disk: `snapshots/<id>/{fs,work}`, the upper and the work directory of an overlay. One that was made for a mount also
//! has `lower/`, empty, where an older kernel attaches the image for a moment, and `snapshot.json`, by which it is mounted again
//! ([`snapshot_note`](super::snapshot_note)).
//!
//! ```text
//! ingest/<n>/{fs,work} ──rename──▶ snapshots/<mutable>/ ──rename──▶ snapshots/<immutable>/ ──rename──▶ ingest/<n> ──▶ removed
//!   empty, locked                   its record is written             finalized                  its record is marked before,
//!                                   while the lock is held                                       and removed after
//! ```
//!
//! Rules
//! - Whoever reads one that its record's holder may discard holds a shared lock on its directory ([`Snapshots::open`]): it loses its name at
//!   once, and is removed when nobody holds that lock any more.
//! - A snapshot without a record is either empty, and was never told to anyone, or its record was lost with a damaged database:
//!   then it may hold what is nowhere else, and is not removed here.
//! - What is in a snapshot is its users' to sync, until it is finalized.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use super::durable::{
    crash_point, ensure_directory, names_in, open_directory, rename, still_names, sync_directory,
};
use super::error::{Context, StoreError};
use super::lock::flock;
use super::record_tables::RecordId;
use super::snapshot_note::{self, SnapshotNote, SnapshotOrigin};
use super::snapshot_root::{attribute_space, set_root_attributes};
use super::space::allocated_bytes;
use super::temporary::{Temporaries, Temporary, lock_unused, remove_unused};

const FS: &str = "fs";
const WORK: &str = "work";
const LOWER: &str = "lower";

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

/// A snapshot that was made for a mount, and that is not removed while this lives.
#[derive(Debug)]
pub struct OpenSnapshot {
    /// The record's name.
    pub id: RecordId,
    /// What is noted of it.
    pub note: SnapshotNote,
    path: PathBuf,
    /// Holds the shared lock.
    _directory: File,
}

impl OpenSnapshot {
    /// The directory that takes the changes.
    pub fn changes(&self) -> PathBuf {
        self.path.join(FS)
    }

    /// The kernel's own directory.
    pub fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// The directory at which a kernel may need the image to be attached for a moment.
    pub fn lower(&self) -> PathBuf {
        self.path.join(LOWER)
    }

    /// Bytes that the changes take on the disk; holes count nothing.
    pub fn changed_bytes(&self) -> Result<u64, StoreError> {
        allocated_bytes(&self.changes())
    }
}

impl Snapshots {
    pub(super) fn new(directory: PathBuf) -> Snapshots {
        Snapshots { temporaries: Temporaries::new(directory.join(super::INGEST)), directory }
    }

    /// Makes an empty snapshot. Its name is on disk when this returns.
    pub fn create(&self, id: &RecordId) -> Result<NewSnapshot, StoreError> {
        self.make(id, |_| Ok(()))
    }

    /// Makes one that is to be mounted above an image, and can be again.
    ///
    /// # Errors
    /// [`StoreError::Full`]; what a file system says that has no extended attributes.
    pub fn create_for_mount(&self, id: &RecordId, new: SnapshotOrigin) -> Result<NewSnapshot, StoreError> {
        self.make(id, |path| {
            ensure_directory(&path.join(LOWER))?;
            let attributes = attribute_space(&path.join(WORK))?;
            // Others are to look into the mount as into the image; the store keeps them out of the directory.
            set_root_attributes(&path.join(FS), &new.root)?;
            snapshot_note::write(path, &SnapshotNote::new(new, attributes))
        })
    }

    fn make(
        &self,
        id: &RecordId,
        fill: impl FnOnce(&Path) -> Result<(), StoreError>,
    ) -> Result<NewSnapshot, StoreError> {
        self.temporaries.ensure()?;
        let temporary = self.temporaries.directory()?;
        for part in [FS, WORK] {
            ensure_directory(&temporary.path().join(part))?;
        }
        fill(temporary.path())?;
        sync_directory(temporary.path())?;
        let path = self.path(id);
        temporary.publish(&path).context("rename to", &path)?;
        sync_directory(&self.directory)?;
        Ok(NewSnapshot { _temporary: temporary })
    }

    /// Opens a snapshot that was made for a mount; nothing if there is none.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if its note cannot be read, [`StoreError::Newer`] if a later version wrote it.
    pub fn open(&self, id: &RecordId) -> Result<Option<OpenSnapshot>, StoreError> {
        let path = self.path(id);
        let directory = match open_directory(&path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(StoreError::from_io("open", &path, error)),
        };
        flock(&directory, FlockOperation::LockShared).context("lock", &path)?;
        // It may have been discarded before the lock.
        if !still_names(&path, &directory).context("look at", &path)? {
            return Ok(None);
        }
        let note = snapshot_note::read(&path, None)?;
        Ok(note.map(|note| OpenSnapshot { id: id.clone(), note, path, _directory: directory }))
    }

    /// What is noted of a snapshot; nothing if it was not made for a mount, or is not there.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub fn note(&self, id: &RecordId) -> Result<Option<SnapshotNote>, StoreError> {
        snapshot_note::read(&self.path(id), None)
    }

    /// Notes something else of a snapshot, on disk when this returns.
    pub fn set_note(&self, id: &RecordId, note: &SnapshotNote) -> Result<(), StoreError> {
        snapshot_note::replace(&self.path(id), note)
    }

    /// Which snapshot's changes that directory holds, as the kernel names it; nothing if it is none of this store.
    pub fn of_changes(&self, changes: &Path) -> Option<RecordId> {
        let directory = changes.parent().filter(|_| changes.file_name().is_some_and(|name| name == FS))?;
        let id = RecordId::parse(directory.file_name()?.to_str()?)?;
        let identity = |path: &Path| std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
        // The store may be reached by another path than when it was mounted.
        let ours = identity(&self.path(&id)).ok()?;
        (identity(directory).ok()? == ours).then_some(id)
    }

    /// Takes over what was a snapshot of an earlier version, in that directory, with what is noted of it now. It has no record yet. False if
    /// it is not there. Its name is on disk when this returns.
    pub(super) fn take_over(
        &self,
        from: &Path,
        id: &RecordId,
        note: &SnapshotNote,
    ) -> Result<bool, StoreError> {
        self.temporaries.ensure()?;
        snapshot_note::replace(from, note)?;
        match rename(from, &self.path(id)) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(StoreError::from_io("rename", from, error)),
        }
        sync_directory(&self.directory)?;
        from.parent().map_or(Ok(()), sync_directory)?;
        Ok(true)
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
        remove_tree(&removed)?;
        Ok(true)
    }

    /// Bytes on disk; 0 if it is not there.
    pub fn disk_bytes(&self, id: &RecordId) -> Result<u64, StoreError> {
        allocated_bytes(&self.path(id))
    }

    /// All snapshots. Nothing else is in the directory, unless somebody put it there.
    pub fn list(&self) -> Result<Vec<RecordId>, StoreError> {
        Ok(names_in(&self.directory)?.iter().filter_map(|name| RecordId::parse(name)).collect())
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
        let mut removed = 0;
        for name in names_in(directory)? {
            removed += u64::from(remove_tree(&directory.join(name))?);
        }
        Ok(removed)
    }

    fn path(&self, id: &RecordId) -> PathBuf {
        self.directory.join(id.as_str())
    }
}

/// Removes a snapshot that is out of its place, unless somebody holds its lock.
pub(super) fn remove_tree(path: &Path) -> Result<bool, StoreError> {
    // An overlay makes a directory there that not even its owner may look into.
    match rustix::fs::chmod(path.join(WORK).join(WORK), Mode::RWXU) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
        Err(error) => return Err(StoreError::from_io("set the mode of", path.join(WORK), error)),
    }
    remove_unused(path).context("remove", path)
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
    snapshot_note::remove(path)?;
    for directory in [path.join(FS), path.join(WORK), path.join(LOWER), path.to_owned()] {
        crash_point();
        match std::fs::remove_dir(&directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            result => result.context("remove", directory)?,
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::{RootAttributes, Store, StoreError, eventually};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn new_note() -> SnapshotOrigin {
        SnapshotOrigin {
            name: "one".parse().unwrap(),
            generation: 3,
            reference: "docker.io/library/python:3.12".to_owned(),
            platform: "linux/amd64".to_owned(),
            manifest_digest: format!("sha256:{}", "1".repeat(64)),
            created_at: 7,
            root: RootAttributes {
                mode: 0o1751,
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                modified_seconds: -3,
                modified_nanoseconds: 250_000_000,
                xattrs: Vec::new(),
            },
        }
    }

    #[test]
    fn a_snapshot_is_there_with_the_roots_attributes_until_it_is_removed_and_for_whoever_reads_it_longer() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (snapshots, id) = (store.snapshots(), RecordId::random().unwrap());
        assert!(snapshots.open(&id).unwrap().is_none());
        drop(snapshots.create_for_mount(&id, new_note()).unwrap());
        let opened = snapshots.open(&id).unwrap().unwrap();
        let found = std::fs::metadata(opened.changes()).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o1751);
        assert_eq!((found.mtime(), found.mtime_nsec()), (-3, 250_000_000));
        assert!(opened.work().is_dir() && opened.lower().is_dir());
        assert_eq!(opened.note, SnapshotNote::new(new_note(), opened.note.attributes));
        assert_eq!(snapshots.of_changes(&opened.changes()), Some(id.clone()));
        assert_eq!(snapshots.of_changes(&opened.work()), None);
        assert_eq!(snapshots.of_changes(&Path::new("/").join(id.as_str()).join("fs")), None);
        let other = opened.note.clone().renamed("other".parse().unwrap());
        snapshots.set_note(&id, &other).unwrap();
        assert_eq!(snapshots.note(&id).unwrap(), Some(other));

        std::fs::write(opened.changes().join("file"), b"x").unwrap();
        assert!(snapshots.remove(&id).unwrap() && !snapshots.remove(&id).unwrap());
        let aside = directory.path().join("snapshots/ingest");
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 1);
        drop(opened);
        eventually("it is swept", || store.sweep().unwrap() == 1);
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 0);
    }

    #[test]
    fn one_that_nobody_recorded_goes_unless_something_is_in_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (snapshots, id) = (store.snapshots(), RecordId::random().unwrap());
        let made = snapshots.create_for_mount(&id, new_note()).unwrap();
        let look = || snapshots.remove_leftover(&id, || Ok::<_, StoreError>(false)).unwrap();
        assert_eq!(look(), Leftover::InUse);
        drop(made);
        let file = snapshots.fs(&id).join("file");
        std::fs::write(&file, b"x").unwrap();
        eventually("its lock is free", || look() == Leftover::Filled);
        std::fs::remove_file(&file).unwrap();
        assert_eq!((look(), snapshots.has(&id).unwrap()), (Leftover::Removed, false));
    }

    #[test]
    fn a_note_that_cannot_be_read_is_an_error_that_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (snapshots, id) = (store.snapshots(), RecordId::random().unwrap());
        drop(snapshots.create_for_mount(&id, new_note()).unwrap());
        let note = directory.path().join("snapshots").join(id.as_str()).join("snapshot.json");
        for (text, is_newer) in [("", false), ("{}", false), (r#"{"version":3}"#, true)] {
            std::fs::write(&note, text).unwrap();
            let error = snapshots.open(&id).unwrap_err();
            assert_eq!(matches!(error, StoreError::Newer { .. }), is_newer, "{error}");
        }
        std::fs::remove_file(&note).unwrap();
        assert!(snapshots.open(&id).unwrap().is_none(), "it was not made for a mount");
    }
}
