//! Why a tree could not be mounted, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::errno::Errno;
use crate::kernel_mount::DEVICE;
use crate::unmount::UnmountError;

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
        error: UnmountError,
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
    /// This process may not mount, and the helper does not know of labels.
    #[error(
        "cannot mount at {} with an SELinux label: this process may not mount ({error}), and fusermount3 passes no label on; run as root",
        mountpoint.display()
    )]
    LabelNotPermitted {
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
    /// This process may not mount what a writable mount needs; no helper does it.
    #[error(
        "cannot mount at {} writable: that is an overlay, which this process may not mount ({error}); run as root, \
         or in a user namespace of your own, which alone sees the mount then (unshare --user --map-root-user --mount)",
        mountpoint.display()
    )]
    OverlayNotPermitted {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// The kernel refuses to lay an overlay over the tree.
    #[error(
        "cannot mount at {} writable, with changes in {}: {step}: {error}; the kernel needs overlayfs (modprobe overlay), and \
         changes must lie on a local file system with extended attributes that is no overlay itself",
        mountpoint.display(), changes.display()
    )]
    Overlay {
        /// Where it was to be mounted.
        mountpoint: PathBuf,
        /// The directory that takes the changes.
        changes: PathBuf,
        /// The system call.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
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
        error: Errno,
    },
}
