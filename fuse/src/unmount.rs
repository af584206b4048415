//! Taking one of our mounts away, whether its server is this process, another, or gone.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::fusermount;
use crate::mountinfo::{FILESYSTEM_TYPE, MountEntry, mount_at};
use crate::users::{User, describe, users_of};

/// Why a mount could not be taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnmountError {
    /// Nothing is mounted there.
    #[error("{} is not a mount", mountpoint.display())]
    NotMounted {
        /// The path that was given.
        mountpoint: PathBuf,
    },
    /// The mount there is not one of ours.
    #[error(
        "{} is a mount of type {filesystem_type}, not {FILESYSTEM_TYPE}; use umount for it",
        mountpoint.display()
    )]
    NotOurs {
        /// The path that was given.
        mountpoint: PathBuf,
        /// The type of the mount that is there.
        filesystem_type: String,
    },
    /// Somebody uses it.
    #[error(
        "{} is in use{}; end what uses it, or unmount lazily: it disappears now, and ends with its last user",
        mountpoint.display(),
        describe(users)
    )]
    Busy {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// Who might be using it, as far as this process may see; at most a few.
        users: Vec<User>,
    },
    /// This process may not unmount it.
    #[error(
        "unmounting {} is not permitted ({message}); run as the user who mounted it, or as root",
        mountpoint.display()
    )]
    NotPermitted {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// What was said.
        message: String,
    },
    /// Something else went wrong.
    #[error("cannot unmount {}: {error}", mountpoint.display())]
    Failed {
        /// Where it is mounted.
        mountpoint: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}

/// How often to try again, and how long to wait between, while a mount is busy and nobody is found who uses it.
const ATTEMPTS: u32 = 20;
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(10);

/// Unmounts the mount of ours at `path`. With `lazily` it disappears even while it is in use; a dead one
/// always does.
///
/// A user who was gone before it could be named is no reason to fail: a child between its fork and its exec holds its
/// parent's files for an instant, an indexer looks in and leaves. So that is tried again, for 0.2 seconds at most.
pub fn unmount(path: &Path, lazily: bool) -> Result<(), UnmountError> {
    for attempt in 1..=ATTEMPTS {
        match unmount_once(path, lazily) {
            Err(UnmountError::Busy { users, .. }) if users.is_empty() && attempt < ATTEMPTS => {
                std::thread::sleep(BETWEEN_ATTEMPTS);
            }
            // It was there before: whoever took it away did what is wanted.
            Err(UnmountError::NotMounted { .. }) if attempt > 1 => return Ok(()),
            outcome => return outcome,
        }
    }
    Ok(())
}

fn unmount_once(path: &Path, lazily: bool) -> Result<(), UnmountError> {
    let mountpoint = || path.to_owned();
    match mount_at(path) {
        Err(error) => Err(UnmountError::Failed { mountpoint: mountpoint(), error }),
        Ok(None) => Err(UnmountError::NotMounted { mountpoint: mountpoint() }),
        Ok(Some(entry)) if !entry.is_ours() => {
            Err(UnmountError::NotOurs { mountpoint: mountpoint(), filesystem_type: entry.filesystem_type })
        }
        Ok(Some(entry)) => detach(&entry, lazily || entry.is_dead()),
    }
}

/// Takes the topmost mount at `entry.mountpoint` away, which the caller has seen to be `entry`.
pub(crate) fn detach(entry: &MountEntry, lazily: bool) -> Result<(), UnmountError> {
    let mountpoint = || entry.mountpoint.clone();
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazily);
    match rustix::mount::unmount(&entry.mountpoint, flags) {
        Ok(()) => Ok(()),
        // Somebody else was quicker.
        Err(Errno::INVAL | Errno::NOENT) => Err(UnmountError::NotMounted { mountpoint: mountpoint() }),
        Err(Errno::BUSY) => Err(UnmountError::Busy { mountpoint: mountpoint(), users: users_of(entry) }),
        Err(Errno::PERM) => match fusermount::unmount(&entry.mountpoint, lazily) {
            Ok(()) => Ok(()),
            Err(fusermount::Failure::Refused(message)) if message.contains("busy") => {
                Err(UnmountError::Busy { mountpoint: mountpoint(), users: users_of(entry) })
            }
            Err(fusermount::Failure::Refused(message)) => {
                Err(UnmountError::NotPermitted { mountpoint: mountpoint(), message })
            }
            Err(fusermount::Failure::Absent) => {
                Err(UnmountError::NotPermitted { mountpoint: mountpoint(), message: Errno::PERM.to_string() })
            }
        },
        Err(errno) => Err(UnmountError::Failed { mountpoint: mountpoint(), error: errno.into() }),
    }
}
