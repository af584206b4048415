//! How far the kernel reads ahead of a reader: a setting of the mount's backing device (`bdi`), found in sysfs only.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

/// The kernel starts every FUSE mount with 128 KiB, and INIT can only lower that. In a container `/sys` is read-only as a rule;
/// then the setting is reached through a sysfs of our own, which nobody else sees.
pub(crate) fn set((major, minor): (u32, u32), bytes: u32) {
    let setting = format!("class/bdi/{major}:{minor}/read_ahead_kb");
    let value = (bytes / 1024).to_string();
    let mut result = fs::write(Path::new("/sys").join(&setting), &value);
    if result.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EROFS)) {
        result = write_in_own_sysfs(&setting, value.as_bytes());
    }
    if let Err(error) = result {
        tracing::debug!(setting, %error, "the readahead stays as the kernel set it");
    }
}

fn write_in_own_sysfs(setting: &str, value: &[u8]) -> io::Result<()> {
    let context = fsopen("sysfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(context.as_fd())?;
    let sysfs = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    let file = openat(&sysfs, setting, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, value)?;
    Ok(())
}
