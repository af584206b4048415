//! The directory at which a tree is to appear: looked at, freed of what is dead, and locked.
//!
//! The lock (`flock(2)` on the directory below the mount) is held while mounting, so that of two processes which mount
//! at one directory at the same moment one is refused, instead of one hiding the other.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, flock, openat};
use rustix::io::Errno;

use crate::mount_error::MountError;
use crate::mountinfo::{MountEntry, mount_with_root};
use crate::unmount;

/// How many dead mounts, one upon the other, are cleaned from a directory before we give up.
const MOST_DEAD_MOUNTS: usize = 16;

/// The directory, checked to be free, and locked against others who would mount at it.
pub(crate) fn claim(mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let broken = |errno| cannot_open(mountpoint, errno);
    remove_dead_mounts(mountpoint)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(CWD, mountpoint, flags, Mode::empty()).map_err(broken)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => return Err(MountError::Contended { mountpoint: mountpoint.to_owned() }),
        Err(errno) => tracing::debug!(%errno, "the mount point's file system has no locks"),
        Ok(()) => {}
    }
    // Somebody may have mounted between the first look and the lock.
    if let Some(entry) = mount_here(mountpoint)? {
        return Err(already_mounted(mountpoint, entry));
    }
    for entry in Dir::read_from(&directory).map_err(broken)? {
        let entry = entry.map_err(broken)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let entry = String::from_utf8_lossy(name).into_owned();
            return Err(MountError::NotEmpty { mountpoint: mountpoint.to_owned(), entry });
        }
    }
    Ok(directory)
}

fn remove_dead_mounts(mountpoint: &Path) -> Result<(), MountError> {
    for _ in 0..MOST_DEAD_MOUNTS {
        let Some(entry) = mount_here(mountpoint)? else { return Ok(()) };
        if !entry.is_ours() || !entry.is_dead() {
            return Err(already_mounted(mountpoint, entry));
        }
        tracing::info!(mountpoint = %mountpoint.display(), "removing a mount whose server is gone");
        unmount::detach(&entry, true)
            .map_err(|error| MountError::DeadMount { mountpoint: mountpoint.to_owned(), error })?;
    }
    match mount_here(mountpoint)? {
        Some(entry) => Err(already_mounted(mountpoint, entry)),
        None => Ok(()),
    }
}

fn mount_here(mountpoint: &Path) -> Result<Option<MountEntry>, MountError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place =
        openat(CWD, mountpoint, flags, Mode::empty()).map_err(|errno| cannot_open(mountpoint, errno))?;
    mount_with_root(place).map_err(|error| MountError::Directory { mountpoint: mountpoint.to_owned(), error })
}

fn cannot_open(mountpoint: &Path, errno: Errno) -> MountError {
    let mountpoint = mountpoint.to_owned();
    match errno {
        Errno::NOENT => MountError::Missing { mountpoint },
        Errno::NOTDIR => MountError::NotADirectory { mountpoint },
        errno => MountError::Directory { mountpoint, error: errno.into() },
    }
}

fn already_mounted(mountpoint: &Path, entry: MountEntry) -> MountError {
    MountError::AlreadyMounted {
        mountpoint: mountpoint.to_owned(),
        filesystem_type: entry.filesystem_type,
        source_name: entry.source,
    }
}
