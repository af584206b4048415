//! A tree's attributes in the kernel's terms (`struct fuse_attr`).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};

use crate::errno::Errno;
use crate::tree::{Attributes, Device, Timestamp};

/// What the kernel is told as the life of an answer: 100 years, since the tree never changes. Larger numbers
/// of seconds would be clamped by today's kernels, but nothing promises that they stay clear of overflow.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

const PREFERRED_READ_SIZE: u32 = 4096;

/// The kernel's form of `attributes`. `EIO` for a mode without a known type, `EOVERFLOW` for a device number
/// that would be cut and so name another device.
pub(crate) fn to_kernel(attributes: &Attributes) -> Result<FileAttr, Errno> {
    let modified = system_time(attributes.modified);
    Ok(FileAttr {
        ino: INodeNo(attributes.inode),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: modified,
        mtime: modified,
        ctime: modified,
        crtime: modified,
        kind: file_type(attributes.mode).ok_or(Errno::IO)?,
        perm: (attributes.mode & 0o7777) as u16,
        nlink: attributes.link_count,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: encode_device(attributes.device)?,
        blksize: PREFERRED_READ_SIZE,
        flags: 0,
    })
}

/// The entry that says "no such name" and may be cached: inode number 0 (`struct fuse_entry_out`).
pub(crate) fn absent() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The type in an `st_mode`.
pub(crate) fn file_type(mode: u32) -> Option<FileType> {
    match mode & libc::S_IFMT {
        libc::S_IFREG => Some(FileType::RegularFile),
        libc::S_IFDIR => Some(FileType::Directory),
        libc::S_IFLNK => Some(FileType::Symlink),
        libc::S_IFCHR => Some(FileType::CharDevice),
        libc::S_IFBLK => Some(FileType::BlockDevice),
        libc::S_IFIFO => Some(FileType::NamedPipe),
        libc::S_IFSOCK => Some(FileType::Socket),
        _ => None,
    }
}

/// Linux's 32-bit device number (`new_encode_dev`): 12 bits of major between 8 and 12 bits of minor.
fn encode_device(device: Device) -> Result<u32, Errno> {
    if device.major > 0xfff || device.minor > 0xf_ffff {
        return Err(Errno::OVERFLOW);
    }
    Ok((device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12))
}

fn system_time(timestamp: Timestamp) -> SystemTime {
    let whole_seconds = Duration::from_secs(timestamp.seconds.unsigned_abs());
    let fraction = Duration::from_nanos(u64::from(timestamp.nanoseconds.min(999_999_999)));
    let second = if timestamp.seconds < 0 {
        UNIX_EPOCH.checked_sub(whole_seconds)
    } else {
        UNIX_EPOCH.checked_add(whole_seconds)
    };
    second.and_then(|second| second.checked_add(fraction)).unwrap_or(UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_number_is_encoded_as_linux_does_or_refused() {
        for (major, minor) in [(0, 0), (1, 3), (8, 0), (259, 300), (4095, 1_048_575)] {
            let encoded = encode_device(Device { major, minor }).expect("fits");
            // makedev agrees with the kernel's 32-bit form as long as both numbers fit it.
            assert_eq!(u64::from(encoded), libc::makedev(major, minor), "{major}:{minor}");
        }
        for (major, minor) in [(4096, 0), (0, 1_048_576), (u32::MAX, u32::MAX)] {
            assert_eq!(encode_device(Device { major, minor }), Err(Errno::OVERFLOW));
        }
    }

    #[test]
    fn a_time_before_1970_counts_its_nanoseconds_forward() {
        let half_a_second_before = system_time(Timestamp { seconds: -1, nanoseconds: 500_000_000 });
        assert_eq!(UNIX_EPOCH.duration_since(half_a_second_before).ok(), Some(Duration::from_millis(500)));
        // The extremes have an answer too.
        for seconds in [i64::MIN, i64::MAX] {
            system_time(Timestamp { seconds, nanoseconds: u32::MAX });
        }
    }

    #[test]
    fn a_mode_without_a_type_is_refused() {
        assert_eq!(file_type(0o644), None);
        assert_eq!(file_type(libc::S_IFMT), None);
    }
}
