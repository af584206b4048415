//! The directories of containerd's snapshots: `snapshots/<number>/{fs,work,lower}`, beside those of mutable records, which have other names.
//!
//! ```text
//! made at its place, locked ──▶ its row is written, unlocked ──▶ in use ──▶ its row goes ──▶ moved to ingest/ ──▶ removed
//!                                                                   Remove: at once     Cleanup: what has no row and no lock
//! ```
//!
//! A number is given once while a process serves them, and never to two of those that are there. Whoever is killed between any two steps
//! leaves a directory without a row, which the next clean-up removes.
//!
//! `lower/<n>` is there for a container in a user namespace: what lies below it, mounted with the owners that it sees.
//!
//! `snapshots/remote-<hex>` are the mount points of remote snapshots' trees.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use super::durable::{crash_point, ensure_directory, names_in, open_directory, rename, sync_directory};
use super::error::{Context, StoreError};
use super::lock::{FileLock, flock};
use super::snapshots::remove_tree;
use super::space::{DiskUsage, disk_usage};
use super::temporary::{Temporaries, lock_unused};

const FS: &str = "fs";
const WORK: &str = "work";
const LOWER: &str = "lower";
const MOUNT_POINT: &str = "remote-";

/// What an overlay shows as its root is the snapshot's own directory.
const FS_MODE: Mode = Mode::from_raw_mode(0o755);
const WORK_MODE: Mode = Mode::from_raw_mode(0o711);

/// The directories of containerd's snapshots in a store.
#[derive(Debug)]
pub struct ContainerSnapshots {
    directory: PathBuf,
    locks: PathBuf,
    temporaries: Temporaries,
    /// The last number that was given.
    last: AtomicI64,
}

/// A directory that has no row yet. While this lives, no clean-up takes it for one that was left behind.
#[derive(Debug)]
pub struct NewContainerSnapshot {
    id: i64,
    path: PathBuf,
    _lock: File,
}

impl NewContainerSnapshot {
    /// Its number.
    pub fn id(&self) -> i64 {
        self.id
    }

    /// Gives its root that owner.
    pub fn set_owner(&self, uid: u32, gid: u32) -> Result<(), StoreError> {
        let path = self.path.join(FS);
        std::os::unix::fs::chown(&path, Some(uid), Some(gid)).context("set the owner of", path)
    }
}

impl ContainerSnapshots {
    pub(super) fn new(directory: PathBuf, locks: PathBuf) -> ContainerSnapshots {
        let temporaries = Temporaries::new(directory.join(super::INGEST));
        ContainerSnapshots { directory, locks, temporaries, last: AtomicI64::new(0) }
    }

    /// The right to change them, which one process has at a time; nothing if another has it.
    pub fn lock(&self) -> Result<Option<FileLock>, StoreError> {
        FileLock::try_acquire(&self.locks.join("snapshotter"))
    }

    /// A number that no directory has, and that is beyond `used`. Does not come again while this lives.
    pub fn unused_id(&self, used: i64) -> i64 {
        self.last.fetch_max(used, Ordering::Relaxed);
        self.last.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Makes an empty snapshot, with a directory for the kernel's work if it is to be written to. Its name is on disk when this
    /// returns. `used`: as for [`unused_id`](Self::unused_id).
    pub fn create(&self, used: i64, is_writable: bool) -> Result<NewContainerSnapshot, StoreError> {
        self.temporaries.ensure()?;
        loop {
            let id = self.unused_id(used);
            let path = self.path(id);
            crash_point();
            match rustix::fs::mkdir(&path, Mode::RWXU) {
                // Left by a process that was killed.
                Err(Errno::EXIST) => continue,
                made => made.context("make directory", &path)?,
            }
            let directory = open_directory(&path).context("open", &path)?;
            flock(&directory, FlockOperation::LockShared).context("lock", &path)?;
            make(&path.join(FS), FS_MODE)?;
            if is_writable {
                make(&path.join(WORK), WORK_MODE)?;
            }
            sync_directory(&path)?;
            sync_directory(&self.directory)?;
            return Ok(NewContainerSnapshot { id, path, _lock: directory });
        }
    }

    /// The tree of a snapshot.
    pub fn fs(&self, id: i64) -> PathBuf {
        self.path(id).join(FS)
    }

    /// The work directory of an overlay, on the same file system.
    pub fn work(&self, id: i64) -> PathBuf {
        self.path(id).join(WORK)
    }

    /// A directory at which one of those below it is mounted for it alone.
    pub fn lower(&self, id: i64, number: usize) -> Result<PathBuf, StoreError> {
        let path = self.path(id).join(LOWER);
        for path in [path.clone(), path.join(number.to_string())] {
            ensure_directory(&path)?;
        }
        Ok(path.join(number.to_string()))
    }

    /// Those directories that are there.
    pub fn lowers(&self, id: i64) -> Result<Vec<PathBuf>, StoreError> {
        let path = self.path(id).join(LOWER);
        Ok(names_in(&path)?.into_iter().map(|name| path.join(name)).collect())
    }

    /// If that is where something is mounted for a snapshot alone: the end of the path that tells it from others, `ID/lower/N`.
    pub fn mapped_for<'a>(&self, place: &'a Path) -> Option<&'a Path> {
        let end = place.strip_prefix(&self.directory).ok()?;
        let mut names = end.iter();
        let is_number = |name: Option<&std::ffi::OsStr>| name?.to_str()?.parse::<i64>().ok();
        is_number(names.next())?;
        (names.next()? == LOWER).then_some(())?;
        is_number(names.next())?;
        names.next().is_none().then_some(end)
    }

    /// What its tree takes on disk.
    pub fn usage(&self, id: i64) -> Result<DiskUsage, StoreError> {
        disk_usage(&self.fs(id))
    }

    /// Who its root belongs to.
    pub fn owner(&self, fs: &Path) -> Result<(u32, u32), StoreError> {
        let found = std::fs::symlink_metadata(fs).context("look at", fs)?;
        Ok((found.uid(), found.gid()))
    }

    /// The numbers of all directories.
    pub fn list(&self) -> Result<Vec<i64>, StoreError> {
        Ok(names_in(&self.directory)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Removes a directory that seems to have no row. `is_recorded` looks again, once nobody can be about to write it. False if it stays.
    pub fn remove_leftover<E: From<StoreError>>(
        &self,
        id: i64,
        is_recorded: impl FnOnce() -> Result<bool, E>,
    ) -> Result<bool, E> {
        let path = self.path(id);
        let Some(lock) = lock_unused(&path).context("lock", &path)? else { return Ok(false) };
        if is_recorded()? {
            return Ok(false);
        }
        let aside = self.temporaries.unused_name();
        match rename(&path, &aside) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(StoreError::from_io("remove", path, error).into()),
        }
        drop(lock);
        sync_directory(&self.directory)?;
        Ok(remove_tree(&aside)?)
    }

    /// Where the tree of that key is mounted, or would be: an empty directory.
    pub fn mount_point(&self, tree: &str) -> Result<PathBuf, StoreError> {
        self.temporaries.ensure()?;
        let path = self.mount_point_path(tree);
        ensure_directory(&path)?;
        Ok(path)
    }

    /// The same, whether or not it is there.
    pub fn mount_point_path(&self, tree: &str) -> PathBuf {
        self.directory.join(format!("{MOUNT_POINT}{}", short(tree)))
    }

    /// All mount points but those of these trees.
    pub fn other_mount_points(&self, trees: &[String]) -> Result<Vec<PathBuf>, StoreError> {
        let kept: Vec<&str> = trees.iter().map(|tree| short(tree)).collect();
        let names = names_in(&self.directory)?.into_iter();
        let is_other =
            |name: &String| name.strip_prefix(MOUNT_POINT).is_some_and(|tree| !kept.contains(&tree));
        Ok(names.filter(is_other).map(|name| self.directory.join(name)).collect())
    }

    /// Removes a mount point at which nothing is mounted.
    pub fn remove_mount_point(&self, path: &Path) -> Result<(), StoreError> {
        match std::fs::remove_dir(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.context("remove", path),
        }
    }

    fn path(&self, id: i64) -> PathBuf {
        self.directory.join(id.to_string())
    }
}

/// Enough of a tree's key: the paths of two hundred lower directories must fit into one page of memory.
fn short(tree: &str) -> &str {
    tree.get(..16).unwrap_or(tree)
}

/// Makes a directory of that mode, whatever the process's mask.
fn make(path: &Path, mode: Mode) -> Result<(), StoreError> {
    crash_point();
    rustix::fs::mkdir(path, mode).context("make directory", path)?;
    rustix::fs::chmod(path, mode).context("set the mode of", path)
}

#[cfg(test)]
mod tests {
    use super::super::{Store, eventually};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_without_a_row_goes_unless_its_maker_is_about_to_write_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let snapshots = store.container_snapshots();
        assert_eq!(snapshots.list().unwrap(), Vec::<i64>::new());
        let made = snapshots.create(6, true).unwrap();
        assert_eq!(made.id(), 7);
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!((mode(&snapshots.fs(7)), mode(&snapshots.work(7))), (0o755, 0o711));
        let none = || Ok::<_, StoreError>(false);
        assert!(!snapshots.remove_leftover(7, none).unwrap(), "it is being made");
        drop(made);
        assert!(!snapshots.remove_leftover(7, || Ok::<_, StoreError>(true)).unwrap());
        std::fs::create_dir(snapshots.work(7).join("work")).unwrap();
        std::fs::write(snapshots.fs(7).join("file"), "x").unwrap();
        eventually("it is removed", || snapshots.remove_leftover(7, none).unwrap());
        assert!(!snapshots.remove_leftover(7, none).unwrap());
        assert!(std::fs::read_dir(directory.path().join("snapshots/ingest")).unwrap().next().is_none());
        let view = snapshots.create(0, false).unwrap();
        assert!(view.id() > 7 && !snapshots.work(view.id()).exists());
    }

    #[test]
    fn a_mount_point_is_known_by_its_tree() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let snapshots = store.container_snapshots();
        let (one, two) = ("1".repeat(64), "2".repeat(64));
        let paths = [&one, &two].map(|tree| snapshots.mount_point(tree).unwrap());
        assert_eq!(snapshots.mount_point_path(&one), paths[0]);
        assert_eq!(snapshots.other_mount_points(std::slice::from_ref(&one)).unwrap(), [paths[1].clone()]);
        snapshots.remove_mount_point(&paths[1]).unwrap();
        snapshots.remove_mount_point(&paths[1]).unwrap();
        assert!(snapshots.other_mount_points(&[one]).unwrap().is_empty());
        assert!(snapshots.list().unwrap().is_empty());
    }
}
