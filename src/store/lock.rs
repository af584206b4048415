//! Locks between processes: `flock` on files and directories. The kernel frees them when their holder ends, however it ends.
//!
//! A lock belongs to an open file, not to a process: two threads that open it apart exclude each other, and a child made by
//! `fork` shares the lock of its parent. All files are opened close-on-exec, so a program that is started shares it for an instant
//! only; in that instant a lock that was just freed may look held to those who do not wait.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::durable::{FILE_MODE, still_names};
use super::error::{Context, StoreError};

/// A lock, held until it is dropped: exclusive, unless it was taken as shared.
#[derive(Debug)]
pub struct FileLock {
    // Closing the file frees the lock.
    _file: File,
}

impl FileLock {
    /// Takes the lock of that file, which is made if it is not there; waits while another holds it.
    pub(super) fn acquire(path: &Path) -> Result<FileLock, StoreError> {
        FileLock::acquire_as(path, FlockOperation::LockExclusive)
    }

    /// Takes the lock together with others who take it as shared; waits while somebody holds it alone.
    pub(super) fn acquire_shared(path: &Path) -> Result<FileLock, StoreError> {
        FileLock::acquire_as(path, FlockOperation::LockShared)
    }

    fn acquire_as(path: &Path, operation: FlockOperation) -> Result<FileLock, StoreError> {
        loop {
            let file = open_lock_file(path)?;
            flock(&file, operation).context("lock", path)?;
            // Whoever held it may have swept the file away meanwhile: then others would lock a new one.
            if still_names(path, &file).context("look at", path)? {
                return Ok(FileLock { _file: file });
            }
        }
    }

    /// Takes the lock unless another holds it.
    pub(super) fn try_acquire(path: &Path) -> Result<Option<FileLock>, StoreError> {
        loop {
            let file = open_lock_file(path)?;
            if !try_flock(&file, FlockOperation::NonBlockingLockExclusive).context("lock", path)? {
                return Ok(None);
            }
            if still_names(path, &file).context("look at", path)? {
                return Ok(Some(FileLock { _file: file }));
            }
        }
    }
}

fn open_lock_file(path: &Path) -> Result<File, StoreError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    rustix::fs::open(path, flags, FILE_MODE).map(File::from).context("open lock file", path)
}

/// `flock` that goes on after a signal.
pub(super) fn flock(file: impl AsFd, operation: FlockOperation) -> rustix::io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(file.as_fd(), operation))
}

/// `flock` with a non-blocking operation: false if another holds the lock.
pub(super) fn try_flock(file: impl AsFd, operation: FlockOperation) -> rustix::io::Result<bool> {
    match flock(file, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a lock file unless somebody holds it; false if somebody does.
pub(super) fn remove_if_free(path: &Path) -> Result<bool, StoreError> {
    // Only its holder may remove a lock file.
    let Some(_held) = FileLock::try_acquire(path)? else { return Ok(false) };
    rustix::fs::unlink(path).context("remove", path)?;
    Ok(true)
}

/// Removes the lock files that nobody holds, and says how many. One that is taken meanwhile is simply made again.
pub(super) fn sweep(directory: &Path) -> Result<u64, StoreError> {
    let mut removed = 0;
    for entry in std::fs::read_dir(directory).context("list", directory)? {
        let path: PathBuf = entry.context("list", directory)?.path();
        removed += u64::from(remove_if_free(&path)?);
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::super::crash_tests::eventually;
    use super::*;

    #[test]
    fn a_lock_excludes_until_it_is_dropped_and_survives_a_sweep() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = FileLock::acquire(&path).unwrap();
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        assert_eq!(sweep(directory.path()).unwrap(), 0);
        assert!(path.exists());
        drop(held);
        eventually("the lock is free", || FileLock::try_acquire(&path).unwrap().is_some());
        eventually("the lock file is swept", || {
            sweep(directory.path()).unwrap();
            !path.exists()
        });
    }

    #[test]
    fn whoever_waited_for_a_lock_that_was_swept_locks_the_new_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let counter = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _held = FileLock::acquire(&path).unwrap();
                        assert_eq!(
                            counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst),
                            0,
                            "two hold one lock"
                        );
                        counter.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    }
                });
            }
            scope.spawn(|| {
                for _ in 0..200 {
                    sweep(directory.path()).unwrap();
                }
            });
        });
    }
}
