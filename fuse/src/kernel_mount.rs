//! The mount itself, made with the kernel's own calls (`fsopen(2)` and its family, Linux 5.2).
//!
//! ```text
//!   open /dev/fuse ── fsopen ── fsconfig … create ── fsmount ──> detached ── serve, try it ──> attach
//!                                     │ the kernel queues INIT            nobody can see it yet
//! ```
//!
//! The mount is attached only after it has answered, so that nobody ever meets one that does not work, and a
//! failure before leaves nothing behind: a detached mount goes away with its descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::label::Label;
use crate::mount::MountOptions;

pub(crate) const DEVICE: &str = "/dev/fuse";
/// What comes after `fuse.` in the type that `/proc/mounts` shows.
pub(crate) const SUBTYPE: &str = "peel";

/// A mount that is not in the tree yet, and the device by which it is served.
#[derive(Debug)]
pub(crate) struct Detached {
    pub(crate) device: OwnedFd,
    pub(crate) mount: OwnedFd,
}

/// Why the mount could not be made.
#[derive(Debug)]
pub(crate) enum Failure {
    /// `/dev/fuse` could not be opened.
    Device(Errno),
    /// This process may not mount, or the kernel lacks the calls; a helper with more rights may succeed.
    NotPermitted(Errno),
    /// A step went wrong for another reason.
    Step { step: &'static str, error: io::Error },
}

/// Makes a mount without a place. Its first request (INIT) already waits on the device.
pub(crate) fn create(options: &MountOptions) -> Result<Detached, Failure> {
    let device = open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(Failure::Device)?;
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(|errno| match errno {
        Errno::PERM | Errno::ACCESS | Errno::NOSYS => Failure::NotPermitted(errno),
        errno => Failure::Step { step: "fsopen", error: errno.into() },
    })?;
    configure(context.as_fd(), device.as_fd(), options)
        .and_then(|()| fsconfig_create(context.as_fd()))
        .map_err(|errno| Failure::Step { step: "fsconfig", error: explain(context.as_fd(), errno) })?;
    let flags = MountAttrFlags::MOUNT_ATTR_RDONLY | attributes(options);
    let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
        .map_err(|errno| Failure::Step { step: "fsmount", error: explain(context.as_fd(), errno) })?;
    Ok(Detached { device, mount })
}

/// Puts a mount into the tree of files, at the directory `mountpoint`.
pub(crate) fn attach(mount: BorrowedFd<'_>, mountpoint: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", mountpoint, "", flags)?)
}

fn configure(
    context: BorrowedFd<'_>,
    device: BorrowedFd<'_>,
    options: &MountOptions,
) -> rustix::io::Result<()> {
    fsconfig_set_string(context, "source", options.source_name.as_str())?;
    fsconfig_set_string(context, "subtype", SUBTYPE)?;
    fsconfig_set_string(context, "fd", device.as_raw_fd().to_string())?;
    fsconfig_set_string(context, "rootmode", format!("{:o}", libc::S_IFDIR))?;
    fsconfig_set_string(context, "user_id", rustix::process::geteuid().as_raw().to_string())?;
    fsconfig_set_string(context, "group_id", rustix::process::getegid().as_raw().to_string())?;
    fsconfig_set_flag(context, "ro")?;
    set_label(context, options)?;
    if options.default_permissions {
        fsconfig_set_flag(context, "default_permissions")?;
    }
    if options.allow_other {
        fsconfig_set_flag(context, "allow_other")?;
    }
    Ok(())
}

/// Says which label all files have.
pub(crate) fn set_label(context: BorrowedFd<'_>, options: &MountOptions) -> rustix::io::Result<()> {
    match Label::option(options.label.as_ref(), Label::is_enforced_here()) {
        Some((name, value)) => fsconfig_set_string(context, name, value),
        None => Ok(()),
    }
}

/// What a mount refuses beyond writing.
pub(crate) fn attributes(options: &MountOptions) -> MountAttrFlags {
    let mut flags = MountAttrFlags::empty();
    flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, options.nosuid);
    flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, options.nodev);
    flags
}

/// The error with what the kernel says of it: a context can be read for messages (`fsopen(2)`).
pub(crate) fn explain(context: BorrowedFd<'_>, errno: Errno) -> io::Error {
    let mut message = [0; 512];
    match rustix::io::read(context, &mut message) {
        Ok(length) if length > 0 => {
            let message = String::from_utf8_lossy(&message[..length]);
            io::Error::new(io::Error::from(errno).kind(), format!("{errno} ({})", message.trim()))
        }
        _ => errno.into(),
    }
}
