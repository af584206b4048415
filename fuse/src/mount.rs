//! Making a tree appear at a directory, or saying clearly why it cannot.
//!
//! ```text
//!   claim the directory ──> make the mount, detached ──> serve it, try it ──> attach ──> Session
//!     exists, a directory,      │ not permitted?
//!     no live mount, empty,     └──> fusermount3 mounts, and hands over the device ──> serve it, try it ──> Session
//!     nobody else at it
//! ```
//!
//! A writable mount has an overlay between: the tree stays detached, and what is attached is the overlay.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{fstat, stat};
use rustix::io::Errno;

use crate::claim::claim;
use crate::errno;
use crate::fusermount;
use crate::kernel_mount::{self, Failure};
use crate::label::Label;
use crate::mount_error::MountError;
use crate::mountinfo::{MountEntry, device_of, mount_at, mount_id};
use crate::open_records::OpenRecords;
use crate::overlay::{self, Upper};
use crate::session::{self, Session};
use crate::tree::{ROOT_INODE, Tree};

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
    /// The SELinux label that all files show, instead of what the tree says of them.
    pub label: Option<Label>,
    /// How many threads take requests; at least 1.
    pub threads: usize,
    /// If the kernel is to read whole local files itself ([`Tree::whole_file`]): where it is written down for a successor which are open so.
    /// Needs root and Linux 6.9; where that is not given, reads go through us. It costs each open and close a round trip, which is
    /// spared otherwise; and one file system fewer can be stacked on the mount: an overlay, but none upon that.
    pub passthrough: Option<Arc<OpenRecords>>,
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
            label: None,
            threads: processors().clamp(2, 8),
            passthrough: None,
            readahead_bytes: 1 << 20,
        }
    }
}

/// How many processors this process may use. Quotas are left out: to look them up takes as long as starting two threads, and
/// a thread more than a quota pays for does no harm.
fn processors() -> usize {
    rustix::thread::sched_getaffinity(None).map_or(2, |processors| processors.count() as usize)
}

/// Makes `tree` appear at `options.mountpoint`. When this returns, the directory can be used. The mount lasts
/// until the [`Session`] is dropped, or somebody unmounts it.
///
/// A mount that a killed process of ours left there is removed first; any other mount there is an error, and
/// so is a directory that is not empty.
pub fn mount(tree: Arc<impl Tree>, options: &MountOptions) -> Result<Session, MountError> {
    mount_below(tree, options, None)
}

/// Makes `tree` appear at `options.mountpoint` below what was changed in it: as [`mount`], but whatever is written goes to `upper`,
/// which no other mount may have at the same time. It stays there when all is unmounted.
///
/// There is no helper who would do that for a user who may not mount.
pub fn mount_writable(
    tree: Arc<impl Tree>,
    options: &MountOptions,
    upper: &Upper,
) -> Result<Session, MountError> {
    mount_below(tree, options, Some(upper))
}

fn mount_below(
    tree: Arc<impl Tree>,
    options: &MountOptions,
    upper: Option<&Upper>,
) -> Result<Session, MountError> {
    let mountpoint = || options.mountpoint.clone();
    require_root(&*tree).map_err(|error| MountError::NoRoot { mountpoint: mountpoint(), error })?;
    // The claim ends, with its lock, when the mount is there.
    let directory = claim(&options.mountpoint)?;
    match kernel_mount::create(options) {
        Ok(detached) => {
            let made = |error| MountError::Kernel { mountpoint: mountpoint(), step: "fsmount", error };
            let device = device_of(&detached.mount).map_err(made)?;
            let service = session::serve(tree, detached.device, options)
                .map_err(|error| MountError::Serve { mountpoint: mountpoint(), error })?;
            // While the threads start.
            set_readahead(device, options.readahead_bytes);
            try_out(fstat(&detached.mount), options)?;
            let mount = match upper {
                None => detached.mount,
                // The tree has no place of its own: it lives as long as the overlay.
                Some(upper) => overlay::create(detached.mount.as_fd(), options, upper)
                    .map_err(|failure| failure.at(&options.mountpoint, upper))?,
            };
            let id = mount_id(&mount).map_err(made)?;
            let device = device_of(&mount).map_err(made)?;
            // The path without symlinks, as mountinfo shows it.
            let place = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
                .map_err(|error| MountError::Directory { mountpoint: mountpoint(), error })?;
            kernel_mount::attach(mount.as_fd(), directory.as_fd()).map_err(|error| MountError::Kernel {
                mountpoint: mountpoint(),
                step: "move_mount",
                error,
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
        Err(Failure::NotPermitted(errno)) if upper.is_some() => {
            Err(MountError::OverlayNotPermitted { mountpoint: mountpoint(), error: errno.into() })
        }
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
    if options.label.is_some() && Label::is_enforced_here() {
        return Err(MountError::LabelNotPermitted { mountpoint: mountpoint(), error: refusal.into() });
    }
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
            set_readahead(device, options.readahead_bytes);
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

/// Checks that the mount answers, by the attributes of its root. Gives its device number.
fn try_out(
    root: rustix::io::Result<rustix::fs::Stat>,
    options: &MountOptions,
) -> Result<(u32, u32), MountError> {
    let root = root
        .map_err(|errno| MountError::Serve { mountpoint: options.mountpoint.clone(), error: errno.into() })?;
    Ok((rustix::fs::major(root.st_dev), rustix::fs::minor(root.st_dev)))
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
