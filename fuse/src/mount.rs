//! Making a tree appear at a directory, or saying clearly why it cannot.
//!
//! ```text
//!   claim the directory ──> make the mount, detached ──> serve it, try it ──> attach ──> Session
//!     exists, a directory,      │ not permitted?
//!     no live mount, empty,     └──> fusermount3 mounts, and hands over the device ──> serve it, try it ──> Session
//!     nobody else at it
//! ```

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Dir, FlockOperation, Mode, OFlags, flock, fstat, openat, stat};
use rustix::io::Errno;

use crate::errno;
use crate::fusermount;
use crate::kernel_mount::{self, DEVICE, Failure};
use crate::mountinfo::{MountEntry, mount_at, mount_id, mount_with_root};
use crate::session::{self, Session};
use crate::tree::{ROOT_INODE, Tree};
use crate::unmount;

/// How many dead mounts, one upon the other, are cleaned from a directory before we give up.
const MOST_DEAD_MOUNTS: usize = 16;

/// How and where to mount. The mount is always read-only.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The directory at which the tree appears: must exist and be empty.
    pub mountpoint: PathBuf,
    /// What `/proc/mounts` shows as the mount's source.
    pub source_name: String,
    /// Whether other users than the one who mounts may look in.
    pub allow_other: bool,
    /// Whether the kernel checks modes and owners. Should be set whenever `allow_other` is.
    pub default_permissions: bool,
    /// Whether setuid, setgid and file capabilities have no effect.
    pub nosuid: bool,
    /// Whether device nodes cannot be opened.
    pub nodev: bool,
    /// How many threads take requests; at least 1.
    pub threads: usize,
    /// Whether the kernel reads whole local files itself ([`Tree::whole_file`]). Needs root and Linux 6.9;
    /// where that is not given, reads go through us. It costs each open and close a round trip, which is
    /// spared otherwise.
    pub passthrough: bool,
    /// How far the kernel reads ahead of a reader, in bytes; rounded down to KiB. Best effort: needs a
    /// writable `/sys`.
    pub readahead_bytes: u32,
}

impl MountOptions {
    /// The safe defaults: only the user who mounts may look in, nosuid, nodev, 1 MiB of readahead.
    pub fn new(mountpoint: impl Into<PathBuf>, source_name: impl Into<String>) -> MountOptions {
        MountOptions {
            mountpoint: mountpoint.into(),
            source_name: source_name.into(),
            allow_other: false,
            default_permissions: true,
            nosuid: true,
            nodev: true,
            threads: std::thread::available_parallelism().map_or(2, |count| count.get().clamp(2, 8)),
            passthrough: false,
            readahead_bytes: 1 << 20,
        }
    }
}

/// Why a tree could not be mounted. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The directory does not exist.
    #[error("cannot mount at {}: there is no such directory; create it first (mkdir)", mountpoint.display())]
    Missing {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
    },
    /// The path leads to something else than a directory.
    #[error("cannot mount at {}: it is not a directory", mountpoint.display())]
    NotADirectory {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
    },
    /// The directory holds files, which the mount would hide.
    #[error(
        "cannot mount at {}: it is not empty (it holds {entry:?}), and mounting would hide what is in it; \
         use an empty directory",
        mountpoint.display()
    )]
    NotEmpty {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// One of the names in it.
        entry: String,
    },
    /// Something is mounted there, and is in use.
    #[error(
        "cannot mount at {}: {source_name} ({filesystem_type}) is mounted there already; \
         unmount it first, or use another directory",
        mountpoint.display()
    )]
    AlreadyMounted {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// The type of the mount that is there.
        filesystem_type: String,
        /// The source of the mount that is there.
        source_name: String,
    },
    /// Another process holds a lock on the directory, as we do while mounting.
    #[error("cannot mount at {}: another process is mounting there at this moment", mountpoint.display())]
    Contended {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
    },
    /// A dead mount is in the way and could not be removed.
    #[error("cannot mount at {}: a mount whose server is gone is in the way", mountpoint.display())]
    DeadMount {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// Why it could not be removed.
        #[source]
        error: unmount::UnmountError,
    },
    /// The directory could not be looked at.
    #[error("cannot mount at {}: {error}", mountpoint.display())]
    Directory {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// There is no `/dev/fuse`.
    #[error(
        "cannot mount at {}: {DEVICE} is missing ({error}); load the kernel's module (modprobe fuse), \
         or give the container the device (--device {DEVICE})",
        mountpoint.display()
    )]
    DeviceMissing {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// This process may not use `/dev/fuse`.
    #[error(
        "cannot mount at {}: opening {DEVICE} is forbidden ({error}); run as root, \
         let everybody use the device (chmod 666 {DEVICE}), or give it to the container (--device {DEVICE})",
        mountpoint.display()
    )]
    DeviceForbidden {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// This process may not mount, and there is no `fusermount3` that could do it for us.
    #[error(
        "cannot mount at {}: this process may not mount ({error}); run as root, install fusermount3 \
         (Debian: fuse3), or give the container the right (--cap-add SYS_ADMIN --security-opt apparmor=unconfined)",
        mountpoint.display()
    )]
    NotPermitted {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// `fusermount3` refused.
    #[error("cannot mount at {}: fusermount3 refused: {message}", mountpoint.display())]
    Fusermount {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// What it said.
        message: String,
    },
    /// A system call that makes the mount failed.
    #[error("cannot mount at {}: {step}: {error}", mountpoint.display())]
    Kernel {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// The system call.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The mount could not be served.
    #[error("cannot serve the mount at {}: {error}", mountpoint.display())]
    Serve {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// The tree has no root directory.
    #[error("cannot mount at {}: the tree has no root directory ({error})", mountpoint.display())]
    NoRoot {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// The tree's answer.
        error: errno::Errno,
    },
}

/// Makes `tree` appear at `options.mountpoint`. When this returns, the directory can be used. The mount lasts
/// until the [`Session`] is dropped, or somebody unmounts it.
///
/// A mount that a killed process of ours left there is removed first; any other mount there is an error, and
/// so is a directory that is not empty.
pub fn mount(tree: Arc<impl Tree>, options: &MountOptions) -> Result<Session, MountError> {
    let mountpoint = || options.mountpoint.clone();
    require_root(&*tree).map_err(|error| MountError::NoRoot { mountpoint: mountpoint(), error })?;
    // The claim ends, with its lock, when the mount is there.
    let directory = claim(&options.mountpoint)?;
    match kernel_mount::create(options) {
        Ok(detached) => {
            let id = mount_id(&detached.mount).map_err(|error| MountError::Kernel {
                mountpoint: mountpoint(),
                step: "fsmount",
                error,
            })?;
            let service = session::serve(tree, detached.device, options)
                .map_err(|error| MountError::Serve { mountpoint: mountpoint(), error })?;
            let device = try_out(fstat(&detached.mount), options)?;
            // The path without symlinks, as mountinfo shows it.
            let place = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
                .map_err(|error| MountError::Directory { mountpoint: mountpoint(), error })?;
            kernel_mount::attach(detached.mount.as_fd(), directory.as_fd()).map_err(|error| {
                MountError::Kernel { mountpoint: mountpoint(), step: "move_mount", error }
            })?;
            Ok(Session::new(service, place, id, device))
        }
        Err(Failure::Device(errno @ (Errno::ACCESS | Errno::PERM))) => {
            Err(MountError::DeviceForbidden { mountpoint: mountpoint(), error: errno.into() })
        }
        Err(Failure::Device(errno @ (Errno::NOENT | Errno::NODEV | Errno::NXIO))) => {
            Err(MountError::DeviceMissing { mountpoint: mountpoint(), error: errno.into() })
        }
        Err(Failure::Device(errno)) => Err(MountError::Kernel {
            mountpoint: mountpoint(),
            step: "opening /dev/fuse",
            error: errno.into(),
        }),
        Err(Failure::NotPermitted(errno)) => mount_with_helper(tree, options, errno),
        Err(Failure::Step { step, error }) => {
            Err(MountError::Kernel { mountpoint: mountpoint(), step, error })
        }
    }
}

/// The way without the right to mount: `fusermount3` has it, and hands us the device.
fn mount_with_helper(
    tree: Arc<impl Tree>,
    options: &MountOptions,
    refusal: Errno,
) -> Result<Session, MountError> {
    let mountpoint = || options.mountpoint.clone();
    let device = match fusermount::mount(options) {
        Ok(device) => device,
        Err(fusermount::Failure::Absent) => {
            return Err(MountError::NotPermitted { mountpoint: mountpoint(), error: refusal.into() });
        }
        Err(fusermount::Failure::Refused(message)) => {
            return Err(MountError::Fusermount { mountpoint: mountpoint(), message });
        }
    };
    // The mount is visible already: from here on a failure must take it away again.
    let served = session::serve(tree, device, options)
        .map_err(|error| MountError::Serve { mountpoint: mountpoint(), error })
        .and_then(|service| {
            let device = try_out(stat(&options.mountpoint), options)?;
            let entry = mount_at(&options.mountpoint)
                .map_err(|error| MountError::Directory { mountpoint: mountpoint(), error })?
                .filter(MountEntry::is_ours)
                .ok_or_else(|| MountError::Fusermount {
                    mountpoint: mountpoint(),
                    message: "it reported success, but there is no mount".to_owned(),
                })?;
            Ok(Session::new(service, entry.mountpoint, entry.id, device))
        });
    if served.is_err() {
        // The first error is the one to tell; what remains of the mount is dead, and the next mount cleans
        // it.
        let _ = fusermount::unmount(&options.mountpoint, true);
    }
    served
}

/// Checks that the mount answers, by the attributes of its root, and sets its readahead. Gives its device
/// number.
fn try_out(
    root: rustix::io::Result<rustix::fs::Stat>,
    options: &MountOptions,
) -> Result<(u32, u32), MountError> {
    let root = root
        .map_err(|errno| MountError::Serve { mountpoint: options.mountpoint.clone(), error: errno.into() })?;
    let device = (rustix::fs::major(root.st_dev), rustix::fs::minor(root.st_dev));
    set_readahead(device, options.readahead_bytes);
    Ok(device)
}

/// The kernel starts every FUSE mount with 128 KiB, and INIT can only lower that.
fn set_readahead((major, minor): (u32, u32), bytes: u32) {
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&setting, (bytes / 1024).to_string()) {
        tracing::debug!(setting, %error, "the readahead stays as the kernel set it");
    }
}

fn require_root(tree: &impl Tree) -> Result<(), errno::Errno> {
    let root = tree.attributes(ROOT_INODE)?;
    if root.mode & libc::S_IFMT == libc::S_IFDIR { Ok(()) } else { Err(errno::Errno::NOT_A_DIRECTORY) }
}

/// The directory, checked to be free, and locked against others who would mount at it.
fn claim(mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let broken = |errno: Errno| match errno {
        Errno::NOENT => MountError::Missing { mountpoint: mountpoint.to_owned() },
        Errno::NOTDIR => MountError::NotADirectory { mountpoint: mountpoint.to_owned() },
        errno => MountError::Directory { mountpoint: mountpoint.to_owned(), error: errno.into() },
    };
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
    let place = openat(CWD, mountpoint, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => MountError::Missing { mountpoint: mountpoint.to_owned() },
        Errno::NOTDIR => MountError::NotADirectory { mountpoint: mountpoint.to_owned() },
        errno => MountError::Directory { mountpoint: mountpoint.to_owned(), error: errno.into() },
    })?;
    mount_with_root(place).map_err(|error| MountError::Directory { mountpoint: mountpoint.to_owned(), error })
}

fn already_mounted(mountpoint: &Path, entry: MountEntry) -> MountError {
    MountError::AlreadyMounted {
        mountpoint: mountpoint.to_owned(),
        filesystem_type: entry.filesystem_type,
        source_name: entry.source,
    }
}
