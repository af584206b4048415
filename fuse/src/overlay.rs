//! The kernel's overlay, by which a tree that never changes can be written to: what is changed goes to a directory.
//!
//! ```text
//!   DIR ── overlay ──┬── upper: changes/  what was written, removed (whiteouts) and replaced (opaque directories)
//!          source    └── lower: the tree, a FUSE mount that nobody can see: it ends with the overlay
//!          peel:NAME
//! ```
//!
//! Rules
//! - The upper directory is a plain difference, each file in it whole: no metadata-only copies, no redirected directories (renaming a
//!   directory of the tree is `EXDEV`, to which programs know an answer), no index. So it can be read without the overlay.
//! - Inode numbers stay when a file is copied up, and all of the mount has one device number (`xino`): the tree's inode numbers are
//!   small, and it can be asked for a file by its handle.
//! - The overlay holds the tree below by itself (a private copy of its mount), so there is one mount to take away.
//!
//! Linux 6.15 lays an overlay over a mount without a place. For an older one the tree is attached at a directory for the moment.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, UnmountFlags, fsconfig_create, fsconfig_set_fd, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, unmount,
};

use crate::kernel_mount::{attach, attributes, explain, set_label};
use crate::mount::MountOptions;
use crate::mount_error::MountError;

/// The type of overlays.
pub(crate) const OVERLAY: &str = "overlay";
/// What the source of our overlays begins with.
pub(crate) const OVERLAY_SOURCE: &str = "peel:";

/// Where the changes of a writable mount go. All directories are on one file system.
#[derive(Clone, Debug)]
pub struct Upper {
    /// What the source of the mount is, behind `peel:`.
    pub name: String,
    /// The changes. Its own mode, owners and times are those of the mount's root.
    pub changes: PathBuf,
    /// An empty directory for the kernel alone, or the one that it had with these changes before.
    pub work: PathBuf,
    /// An empty directory, to which an older kernel needs the tree to be attached for a moment.
    pub lower: PathBuf,
    /// How the kernel marks what it keeps there.
    pub attributes: OverlayAttributes,
}

/// The extended attributes in which an overlay says what a file system cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OverlayAttributes {
    /// `trusted.overlay.*`: root's alone.
    Trusted,
    /// `user.overlay.*`: where nobody is root, as in a user namespace.
    User,
}

/// Why there is no overlay.
#[derive(Debug)]
pub(crate) enum Failure {
    NotPermitted(Errno),
    Step { step: &'static str, error: io::Error, errno: Errno },
}

impl Failure {
    pub(crate) fn at(self, mountpoint: &Path, upper: &Upper) -> MountError {
        let mountpoint = mountpoint.to_owned();
        match self {
            Failure::NotPermitted(errno) => {
                MountError::OverlayNotPermitted { mountpoint, error: errno.into() }
            }
            Failure::Step { step, error, .. } => {
                MountError::Overlay { mountpoint, changes: upper.changes.clone(), step, error }
            }
        }
    }
}

/// Whether this process may mount an overlay at all: to be asked before anything is made for one.
///
/// # Errors
/// [`MountError::OverlayNotPermitted`]. What else would go wrong is told by [`mount_writable`](crate::mount_writable).
pub fn may_mount_writable(options: &MountOptions) -> Result<(), MountError> {
    match fsopen(OVERLAY, FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(errno @ (Errno::PERM | Errno::ACCESS)) => Err(MountError::OverlayNotPermitted {
            mountpoint: options.mountpoint.clone(),
            error: errno.into(),
        }),
        _ => Ok(()),
    }
}

/// An overlay of the tree mounted as `lower`, without a place.
pub(crate) fn create(
    lower: BorrowedFd<'_>,
    options: &MountOptions,
    upper: &Upper,
) -> Result<OwnedFd, Failure> {
    match create_of(&Layers::Detached(lower), options, upper) {
        Err(Failure::Step { errno: Errno::INVAL, .. }) => create_attached(lower, options, upper),
        outcome => outcome,
    }
}

/// The way of older kernels.
fn create_attached(lower: BorrowedFd<'_>, options: &MountOptions, upper: &Upper) -> Result<OwnedFd, Failure> {
    let place = open_directory(&upper.lower)?;
    attach(lower, place.as_fd()).map_err(|error| Failure::Step {
        step: "move_mount",
        errno: Errno::from_io_error(&error).unwrap_or(Errno::IO),
        error,
    })?;
    let made = create_of(&Layers::Attached, options, upper);
    // The overlay has its own copy of the mount. If this fails, the tree stays visible in a directory of ours, and no more.
    if let Err(error) = unmount(&upper.lower, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        tracing::warn!(place = %upper.lower.display(), %error, "the tree below the overlay stays attached");
    }
    made
}

/// How the kernel is told of the directories.
enum Layers<'a> {
    /// By descriptors, the lower one of a mount without a place.
    Detached(BorrowedFd<'a>),
    /// By paths.
    Attached,
}

fn create_of(layers: &Layers<'_>, options: &MountOptions, upper: &Upper) -> Result<OwnedFd, Failure> {
    let context = fsopen(OVERLAY, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::PERM | Errno::ACCESS => Failure::NotPermitted(errno),
        errno => Failure::Step { step: "fsopen", error: errno.into(), errno },
    })?;
    let context = context.as_fd();
    let failed = |step| {
        move |errno| match errno {
            Errno::PERM => Failure::NotPermitted(errno),
            errno => Failure::Step { step, error: explain(context, errno), errno },
        }
    };
    let source = format!("{OVERLAY_SOURCE}{}", upper.name);
    fsconfig_set_string(context, "source", source).map_err(failed("fsconfig"))?;
    match layers {
        Layers::Detached(lower) => {
            fsconfig_set_fd(context, "lowerdir+", lower).map_err(failed("fsconfig lowerdir"))?;
            let (changes, work) = (open_directory(&upper.changes)?, open_directory(&upper.work)?);
            fsconfig_set_fd(context, "upperdir", changes.as_fd()).map_err(failed("fsconfig upperdir"))?;
            fsconfig_set_fd(context, "workdir", work.as_fd()).map_err(failed("fsconfig workdir"))?;
        }
        Layers::Attached => {
            let (lower, changes, work) = (&upper.lower, &upper.changes, &upper.work);
            for (key, path) in [("lowerdir", lower), ("upperdir", changes), ("workdir", work)] {
                fsconfig_set_string(context, key, escaped(path)).map_err(failed("fsconfig"))?;
            }
        }
    }
    let kept_off = [("metacopy", "off"), ("redirect_dir", "nofollow"), ("index", "off"), ("xino", "on")];
    for (key, value) in kept_off {
        fsconfig_set_string(context, key, value).map_err(failed("fsconfig"))?;
    }
    if upper.attributes == OverlayAttributes::User {
        fsconfig_set_flag(context, "userxattr").map_err(failed("fsconfig userxattr"))?;
    }
    set_label(context, options).map_err(failed("fsconfig context"))?;
    fsconfig_create(context).map_err(failed("fsconfig"))?;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(options)).map_err(failed("fsmount"))
}

fn open_directory(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    openat(CWD, path, flags, Mode::empty()).map_err(|errno| {
        let error = io::Error::new(io::Error::from(errno).kind(), format!("{}: {errno}", path.display()));
        Failure::Step { step: "open", error, errno }
    })
}

/// A path as the kernel reads it: in a list of lower directories a colon begins the next, and a backslash escapes.
fn escaped(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut text = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::mount::{MountAttrFlags, MountFlags, mount};

    use super::*;

    /// A file system in memory, which can hold the changes of an overlay wherever tests run.
    struct Memory(tempfile::TempDir);

    impl Memory {
        fn new() -> Memory {
            let directory = tempfile::tempdir().expect("a directory");
            mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), None).expect("a tmpfs");
            Memory(directory)
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            let _ = unmount(self.0.path(), UnmountFlags::DETACH);
        }
    }

    /// A mount without a place, with one file in it.
    fn lower() -> OwnedFd {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).expect("fsopen");
        fsconfig_create(context.as_fd()).expect("fsconfig");
        let lower = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        let lower = lower.expect("fsmount");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
        openat(&lower, "below", flags, Mode::from_raw_mode(0o644)).expect("a file");
        lower
    }

    #[test]
    fn an_overlay_is_made_in_the_way_of_older_kernels_too_and_leaves_nothing_attached() {
        if !rustix::process::geteuid().is_root() {
            return; // Nobody else may mount.
        }
        let memory = Memory::new();
        // What a list of directories must not be cut at.
        let base = memory.0.path().join("a:b\\c,d");
        let path = |name: &str| base.join(name);
        for name in ["changes", "work", "lower"] {
            fs::create_dir_all(path(name)).expect("a directory");
        }
        let upper = Upper {
            name: "test".to_owned(),
            changes: path("changes"),
            work: path("work"),
            lower: path("lower"),
            attributes: OverlayAttributes::Trusted,
        };
        let options = MountOptions::new("/unused", "unused");
        for make in [create, create_attached] {
            let overlay = make(lower().as_fd(), &options, &upper).expect("an overlay");
            assert!(openat(&overlay, "below", OFlags::RDONLY, Mode::empty()).is_ok());
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            openat(&overlay, "above", flags, Mode::from_raw_mode(0o644)).expect("a file");
            assert!(path("changes").join("above").exists() && !path("changes").join("below").exists());
            fs::remove_file(path("changes/above")).expect("removing a file");
            assert_eq!(fs::read_dir(path("lower")).expect("a directory").count(), 0);
        }
    }
}
