//! The root of a writable mount: it shows what the directory of its changes has, and this is made like the root of the image.

use std::path::Path;

use rustix::fs::{Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use super::durable::open_directory;
use super::error::{Context, StoreError};
use super::snapshot_note::{AttributeSpace, RootAttributes};

/// What this user may set on files of this file system.
pub(super) fn attribute_space(directory: &Path) -> Result<AttributeSpace, StoreError> {
    let probe = |name| {
        rustix::fs::setxattr(directory, name, b"y", XattrFlags::empty())?;
        rustix::fs::removexattr(directory, name)
    };
    match probe("trusted.peel") {
        Ok(()) => Ok(AttributeSpace::Trusted),
        Err(Errno::PERM) => {
            probe("user.peel").context("set extended attributes of", directory)?;
            Ok(AttributeSpace::User)
        }
        result => {
            result.context("set extended attributes of", directory)?;
            Ok(AttributeSpace::Trusted)
        }
    }
}

/// Gives a directory these attributes, as far as this user and this file system can.
pub(super) fn set_root_attributes(directory: &Path, root: &RootAttributes) -> Result<(), StoreError> {
    let handle = open_directory(directory).context("open", directory)?;
    for (name, value) in &root.xattrs {
        match rustix::fs::fsetxattr(&handle, name.as_slice(), value, XattrFlags::empty()) {
            // Not for this user, or not on this file system: the root lacks it then.
            Err(Errno::PERM | Errno::NOTSUP | Errno::INVAL) => {
                tracing::warn!(attribute = %name.escape_ascii(), "the root of the writable mount lacks an extended attribute");
            }
            result => result.context("set extended attributes of", directory)?,
        }
    }
    std::os::unix::fs::fchown(&handle, Some(root.uid), Some(root.gid))
        .context("set the owner of", directory)?;
    rustix::fs::fchmod(&handle, Mode::from_raw_mode(root.mode & 0o7777))
        .context("set the mode of", directory)?;
    let modified = Timespec { tv_sec: root.modified_seconds, tv_nsec: i64::from(root.modified_nanoseconds) };
    rustix::fs::futimens(&handle, &Timestamps { last_access: modified, last_modification: modified })
        .context("set the times of", directory)
}
