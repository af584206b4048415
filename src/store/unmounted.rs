//! Removal of a tree in which others may have mounted something: nothing of that is removed, wherever it was mounted since anybody looked.
//!
//! The kernel is asked of each directory not to lead into another mount, a bind mount of the same file system included (openat2(2),
//! `RESOLVE_NO_XDEV`).

use std::fs::File;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::durable::{crash_point, open_directory, still_names};
use super::error::{Context, StoreError};
use super::lock::try_flock;

/// Removes a directory that is out of its place, unless somebody holds its lock. What is mounted below stays, and so does what leads there.
pub(super) fn remove_unused_tree(path: &Path) -> Result<bool, StoreError> {
    let guard = match open_directory(path) {
        Ok(guard) => guard,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(StoreError::from_io("open", path, error)),
    };
    if !try_flock(&guard, FlockOperation::NonBlockingLockExclusive).context("lock", path)?
        || !still_names(path, &guard).context("look at", path)?
    {
        return Ok(false);
    }
    match empty(guard) {
        Ok(()) => {}
        Err(Errno::XDEV | Errno::BUSY) => {
            tracing::warn!(path = %path.display(), "something is mounted in a directory that was removed; it stays until that is unmounted");
            return Ok(false);
        }
        Err(error) => return Err(StoreError::from_io("remove", path, error)),
    }
    crash_point();
    match rustix::fs::rmdir(path) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(StoreError::from_io("remove", path, error)),
    }
}

/// Removes all that is in a directory, and nothing of what is mounted there.
fn empty(directory: File) -> rustix::io::Result<()> {
    let mut levels = vec![(Dir::new(directory)?, c"".to_owned())];
    while let Some((level, _)) = levels.last_mut() {
        let Some(entry) = level.read() else {
            let Some((_, name)) = levels.pop() else { return Ok(()) };
            if let Some((above, _)) = levels.last() {
                gone(rustix::fs::unlinkat(above.fd()?, &name, AtFlags::REMOVEDIR))?;
            }
            continue;
        };
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let here = level.fd()?;
        match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => {}
            result => {
                gone(result)?;
                continue;
            }
        }
        let open = || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat2(
                here,
                name,
                flags,
                Mode::empty(),
                ResolveFlags::NO_XDEV | ResolveFlags::BENEATH,
            )
        };
        let below = match open() {
            Err(Errno::NOENT) => continue,
            // The image does not let its owner look into it.
            Err(Errno::ACCESS) => {
                rustix::fs::chmodat(here, name, Mode::RWXU, AtFlags::empty())?;
                open()?
            }
            below => below?,
        };
        let name = name.to_owned();
        levels.push((Dir::new(below)?, name));
    }
    Ok(())
}

/// What another removed is gone, too.
fn gone(result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        result => result,
    }
}
