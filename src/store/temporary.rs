//! Files and directories that are not visible yet, and those that are so no longer.
//!
//! ```text
//! made in ingest/, locked ──── filled, synced ──── renamed to its place
//!        │                                              │
//!        └─ writer gives up: removed            replaced, removed: back to ingest/
//!        └─ writer is killed: the lock is freed, and the next sweep removes it
//! ```
//!
//! Rule: whoever uses something that may lie in `ingest/` holds a *shared* lock on it; whoever removes it takes the *exclusive*
//! lock without waiting, and leaves what is in use to a later sweep.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::durable::{
    DIRECTORY_MODE, FILE_MODE, crash_point, ensure_directory, open_directory, rename, still_names,
    sync_directory,
};
use super::error::{Context, StoreError};
use super::lock::{flock, try_flock};

/// A directory of temporaries.
#[derive(Clone, Debug)]
pub(super) struct Temporaries {
    directory: PathBuf,
}

impl Temporaries {
    pub(super) fn new(directory: PathBuf) -> Temporaries {
        Temporaries { directory }
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// Makes the directory, and the one that it is in, if they are not there: stores of earlier versions have not all of them. Their names
    /// are on disk when this returns.
    pub(super) fn ensure(&self) -> Result<(), StoreError> {
        if self.directory.is_dir() {
            return Ok(());
        }
        let above = self.directory.parent();
        above.map_or(Ok(()), ensure_directory)?;
        ensure_directory(&self.directory)?;
        above.map_or(Ok(()), sync_directory)?;
        above.and_then(Path::parent).map_or(Ok(()), sync_directory)
    }

    /// An empty file, open for reading and writing.
    pub(super) fn file(&self) -> Result<Temporary, StoreError> {
        self.make(|path| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::open(path, flags, FILE_MODE).map(File::from)
        })
    }

    /// An empty directory.
    pub(super) fn directory(&self) -> Result<Temporary, StoreError> {
        self.make(|path| {
            rustix::fs::mkdir(path, DIRECTORY_MODE)?;
            crash_point();
            open_directory(path)
        })
    }

    fn make(&self, create: impl Fn(&Path) -> rustix::io::Result<File>) -> Result<Temporary, StoreError> {
        loop {
            let path = self.unused_name();
            crash_point();
            let guard = match create(&path) {
                Ok(guard) => guard,
                // A leftover of an earlier process of this id, or, if it is not there, a sweep was quicker than our lock.
                Err(Errno::EXIST | Errno::NOENT) if self.directory.is_dir() => continue,
                Err(error) => return Err(StoreError::from_io("make", &path, error)),
            };
            crash_point();
            flock(&guard, FlockOperation::LockShared).context("lock", &path)?;
            if still_names(&path, &guard).context("look at", &path)? {
                return Ok(Temporary { guard, path, published: AtomicBool::new(false) });
            }
        }
    }

    /// A name that this process has not used before.
    pub(super) fn unused_name(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.directory.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Removes what nobody uses, and says how many.
    pub(super) fn sweep(&self) -> Result<u64, StoreError> {
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.directory).context("list", &self.directory)? {
            let path = entry.context("list", &self.directory)?.path();
            removed += u64::from(remove_unused(&path).context("remove", &path)?);
        }
        Ok(removed)
    }
}

/// Takes the lock of a file or directory that has its place, unless somebody holds it: who made it does so until the database
/// knows it. Nothing, too, if it is gone.
pub(super) fn lock_unused(path: &Path) -> io::Result<Option<File>> {
    let guard =
        match rustix::fs::open(path, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(guard) => File::from(guard),
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
    Ok(try_flock(&guard, FlockOperation::NonBlockingLockExclusive)?.then_some(guard))
}

/// Removes a file or directory unless somebody holds its lock. What is gone already is no error.
pub(super) fn remove_unused(path: &Path) -> io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let guard = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(guard) => guard,
        Err(Errno::NOENT) => return Ok(false),
        // A symbolic link: nothing of ours.
        Err(Errno::LOOP) => return std::fs::remove_file(path).map(|()| true),
        Err(error) => return Err(error.into()),
    };
    if !try_flock(&guard, FlockOperation::NonBlockingLockExclusive)? || !still_names(path, &guard)? {
        return Ok(false);
    }
    let is_directory = File::from(guard.try_clone()?).metadata()?.is_dir();
    let result = if is_directory { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(true),
    }
}

/// A temporary file or directory; removed on drop unless it was published.
#[derive(Debug)]
pub(super) struct Temporary {
    guard: File,
    path: PathBuf,
    published: AtomicBool,
}

impl Temporary {
    /// The file or directory itself.
    pub(super) fn file(&self) -> &File {
        &self.guard
    }

    /// Where it was made.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Renames it to its place, replacing a file (never a directory that holds anything) there. The caller has synced its
    /// contents, and syncs the directory afterwards.
    pub(super) fn publish(&self, to: &Path) -> rustix::io::Result<()> {
        rename(&self.path, to)?;
        self.set_published();
        Ok(())
    }

    /// It was given another place, so it is no longer removed on drop.
    pub(super) fn set_published(&self) {
        self.published.store(true, Ordering::Release);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if self.published.load(Ordering::Acquire) {
            return;
        }
        let is_directory = self.guard.metadata().is_ok_and(|metadata| metadata.is_dir());
        let result =
            if is_directory { std::fs::remove_dir_all(&self.path) } else { std::fs::remove_file(&self.path) };
        if let Err(error) = result
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.path.display(), %error, "a temporary stays until the next sweep");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_in_use_outlives_a_sweep_and_a_dropped_one_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let temporaries = Temporaries::new(directory.path().to_owned());
        let file = temporaries.file().unwrap();
        let folder = temporaries.directory().unwrap();
        std::fs::write(folder.path().join("inside"), b"x").unwrap();
        assert_eq!(temporaries.sweep().unwrap(), 0);
        assert!(file.path().exists() && folder.path().join("inside").exists());
        drop((file, folder));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_nobody_holds_is_swept_whatever_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let temporaries = Temporaries::new(directory.path().to_owned());
        std::fs::write(directory.path().join("1-0"), b"x").unwrap();
        std::fs::create_dir_all(directory.path().join("1-1/deep/er")).unwrap();
        std::os::unix::fs::symlink("/nowhere", directory.path().join("1-2")).unwrap();
        assert_eq!(temporaries.sweep().unwrap(), 3);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_published_temporary_stays() {
        let directory = tempfile::tempdir().unwrap();
        let temporaries = Temporaries::new(directory.path().join("ingest"));
        std::fs::create_dir(temporaries.path()).unwrap();
        let file = temporaries.file().unwrap();
        file.publish(&directory.path().join("place")).unwrap();
        drop(file);
        assert!(directory.path().join("place").exists());
        assert_eq!(temporaries.sweep().unwrap(), 0);
    }
}
