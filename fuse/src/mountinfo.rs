//! What is mounted where (`/proc/self/mountinfo`, proc_pid_mountinfo(5)).
//!
//! A mount whose server was killed answers `ENOTCONN` to nearly everything, so nothing here asks the file
//! system itself, except [`MountEntry::is_dead`]: a path is opened with `O_PATH`, and the kernel tells on
//! which mount it lies. `statx(2)` is told to answer from what the kernel has.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Statx, StatxAttributes, StatxFlags, openat, statat, statfs, statx,
};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::in_use::lower_directories;
use crate::overlay::{OVERLAY, OVERLAY_SOURCE};

/// The type under which our mounts appear: `fuse`, and our subtype.
pub const FILESYSTEM_TYPE: &str = "fuse.peel";

/// One line of mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountEntry {
    /// The mount's id; the kernel uses the ids of mounts that are gone again.
    pub id: u64,
    /// The id of the mount on which it is mounted.
    pub parent: u64,
    /// The device number (major, minor) of the file system, as `stat` shows it.
    pub device: (u32, u32),
    /// Where it is mounted, as seen by this process.
    pub mountpoint: PathBuf,
    /// The file system's type, with its subtype: `ext4`, `fuse.peel`.
    pub filesystem_type: String,
    /// What is mounted: for our mounts, the name given in [`MountOptions`](crate::MountOptions); for writable ones, that of their
    /// [`Upper`](crate::Upper) behind `peel:`.
    pub source: String,
    /// Of an overlay: the directory that takes its changes, as whoever mounted it saw it.
    pub upper: Option<PathBuf>,
}

impl MountEntry {
    /// Whether this is one of our mounts.
    pub fn is_ours(&self) -> bool {
        self.filesystem_type == FILESYSTEM_TYPE || self.is_writable()
    }

    /// Whether this is a writable mount of ours: an overlay above a tree that has no other place.
    pub fn is_writable(&self) -> bool {
        self.filesystem_type == OVERLAY && self.source.starts_with(OVERLAY_SOURCE)
    }

    /// Whether the process that served it is gone. Asks the file system what is never answered from a cache, so call it for
    /// mounts of ours only.
    pub fn is_dead(&self) -> bool {
        let answer = match self.is_writable() {
            // An overlay answers for the file system of its changes.
            false => statfs(&self.mountpoint).map(drop),
            true => statat(CWD, self.mountpoint.join(unheard_of_name()), AtFlags::SYMLINK_NOFOLLOW).map(drop),
        };
        matches!(answer, Err(Errno::NOTCONN | Errno::CONNABORTED))
    }
}

/// A name that nobody has asked for, and that is not there: for each the tree below an overlay is asked.
fn unheard_of_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let now = clock_gettime(ClockId::Monotonic);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(".peel-{}-{}-{}-{next}", std::process::id(), now.tv_sec, now.tv_nsec)
}

/// Our mounts that this process can see, alive or dead, in the order in which they were made.
pub fn mounts() -> io::Result<Vec<MountEntry>> {
    Ok(all_mounts()?.into_iter().filter(MountEntry::is_ours).collect())
}

/// The topmost mount whose root is at `path`, of whatever type; `None` if `path` is not a mount point.
pub fn mount_at(path: &Path) -> io::Result<Option<MountEntry>> {
    let place = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount_with_root(&place)
}

/// Whether a file system is mounted at `path`.
pub fn is_mountpoint(path: &Path) -> io::Result<bool> {
    Ok(mount_at(path)?.is_some())
}

/// The mount whose root is the open file `place`.
pub(crate) fn mount_with_root(place: impl AsFd) -> io::Result<Option<MountEntry>> {
    if let Ok(found) = look(&place)
        && found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT)
        && !found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    {
        return Ok(None);
    }
    let id = mount_id(&place)?;
    let path = fs::read_link(format!("/proc/self/fd/{}", place.as_fd().as_raw_fd()))?;
    Ok(all_mounts()?.into_iter().find(|mount| mount.id == id && mount.mountpoint == path))
}

/// What the kernel knows of an open file without asking its file system.
fn look(place: impl AsFd) -> rustix::io::Result<Statx> {
    statx(place, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, StatxFlags::MNT_ID)
}

/// The device number (major, minor) of the file system that an open file lies on.
pub(crate) fn device_of(place: impl AsFd) -> io::Result<(u32, u32)> {
    let found = look(place)?;
    Ok((found.stx_dev_major, found.stx_dev_minor))
}

/// The id of the mount that an open file lies on.
pub(crate) fn mount_id(place: impl AsFd) -> io::Result<u64> {
    // Linux 5.8.
    if let Ok(found) = look(&place)
        && StatxFlags::from_bits_retain(found.stx_mask).contains(StatxFlags::MNT_ID)
    {
        return Ok(found.stx_mnt_id);
    }
    let information = fs::read_to_string(format!("/proc/self/fdinfo/{}", place.as_fd().as_raw_fd()))?;
    information
        .lines()
        .find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok())
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/fdinfo names no mount"))
}

/// All mounts of this process's mount namespace that it can reach from its root.
pub(crate) fn all_mounts() -> io::Result<Vec<MountEntry>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

pub(crate) fn parse(mountinfo: &[u8]) -> Vec<MountEntry> {
    mountinfo.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `36 35 98:0 /root /mountpoint options [optional fields…] - type source options`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let (major, minor) = std::str::from_utf8(fields.next()?).ok()?.split_once(':')?;
    let mountpoint = unescape(fields.nth(1)?);
    fields.find(|field| *field == b"-")?;
    let filesystem_type = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let is_overlay = filesystem_type == OVERLAY.as_bytes();
    let upper = fields.next().filter(|_| is_overlay).and_then(upper_directory);
    Some(MountEntry {
        id,
        parent,
        device: (major.parse().ok()?, minor.parse().ok()?),
        mountpoint: PathBuf::from(std::ffi::OsString::from_vec(mountpoint)),
        filesystem_type: OsStr::from_bytes(&filesystem_type).to_string_lossy().into_owned(),
        source: OsStr::from_bytes(&source).to_string_lossy().into_owned(),
        upper,
    })
}

/// The lower directories of all overlays.
pub(crate) fn parse_lower_directories(mountinfo: &[u8]) -> Vec<PathBuf> {
    let of_line = |line: &[u8]| -> Option<Vec<PathBuf>> {
        let mut fields = line.split(|byte| *byte == b' ').skip_while(|field| *field != b"-").skip(1);
        let is_overlay = fields.next()? == OVERLAY.as_bytes();
        let options = fields.nth(1).filter(|_| is_overlay)?;
        let named = options.split(|byte| *byte == b',').filter_map(|option| {
            option.strip_prefix(b"lowerdir=").or_else(|| option.strip_prefix(b"lowerdir+="))
        });
        Some(named.flat_map(|named| lower_directories(&unescape(named))).collect())
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(of_line).flatten().collect()
}

/// The directory of changes that the options of an overlay name. The kernel writes a comma in it as a number.
fn upper_directory(options: &[u8]) -> Option<PathBuf> {
    let directory =
        options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"upperdir="))?;
    Some(PathBuf::from(std::ffi::OsString::from_vec(unescape(directory))))
}

fn number(field: &[u8]) -> Option<u64> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// Undoes the kernel's `\ooo` for space, tab, newline, backslash and `#`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let octal = match rest {
            [b'\\', digits @ ..]
                if digits.len() >= 3 && digits[..3].iter().all(|digit| matches!(digit, b'0'..=b'7')) =>
            {
                digits[..3]
                    .iter()
                    .try_fold(0u8, |value, digit| value.checked_mul(8)?.checked_add(digit - b'0'))
            }
            _ => None,
        };
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &rest[4..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_any_number_of_optional_fields() {
        let lines = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 shared:7 - ext3 /dev/root rw\n\
            112 36 0:54 / /srv/a\\040b\\134c\\012d ro,nosuid - fuse.peel docker.io/library/python:3.12 ro,user_id=0\n\
            113 36 0:55 / /srv/\xff rw - tmpfs  rw\n";
        let mounts = parse(lines);
        assert_eq!(mounts.len(), 3);
        assert_eq!((mounts[0].id, mounts[0].parent, mounts[0].device), (36, 35, (98, 0)));
        assert_eq!(mounts[0].filesystem_type, "ext3");
        assert!(!mounts[0].is_ours());
        assert_eq!(mounts[1].mountpoint, Path::new("/srv/a b\\c\nd"));
        assert_eq!(mounts[1].source, "docker.io/library/python:3.12");
        assert!(mounts[1].is_ours());
        assert_eq!(mounts[2].mountpoint.as_os_str().as_bytes(), b"/srv/\xff");
        assert_eq!(mounts[2].source, "");
        assert!(mounts.iter().all(|mount| mount.upper.is_none()));
    }

    #[test]
    fn an_overlay_is_ours_by_its_source_and_tells_where_its_changes_go() {
        let lines = b"46 27 0:40 / /srv/one rw - overlay peel:abc rw,lowerdir+=/,upperdir=/s/a\\054b/fs,workdir=/s/w,xino=on\n\
            47 27 0:41 / /srv/two rw - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w\n\
            48 27 0:42 / /srv/three ro - overlay peel:x ro,lowerdir=/l:/m\n";
        let mounts = parse(lines);
        let told: Vec<_> = mounts.iter().map(|mount| (mount.is_ours(), mount.upper.as_deref())).collect();
        let path = |path: &'static str| Some(Path::new(path));
        assert_eq!(told, [(true, path("/s/a,b/fs")), (false, path("/u")), (true, None)]);
    }

    #[test]
    fn a_line_that_is_cut_is_left_out() {
        for line in [
            &b""[..],
            b"36",
            b"36 35 98 / /mnt rw - ext4 a rw",
            b"36 35 98:0 / /mnt rw ext4 a rw",
            b"36 35 8:0 / /m rw - t",
        ] {
            assert_eq!(parse(line), [], "{:?}", OsStr::from_bytes(line));
        }
    }

    #[test]
    fn a_backslash_that_begins_no_number_stands_for_itself() {
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\999\\777"), b"\\999\\777");
    }

    #[test]
    fn the_root_is_a_mount_point_and_a_new_directory_is_none() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        assert!(!is_mountpoint(directory.path()).expect("looked at"));
        assert!(is_mountpoint(Path::new("/proc")).expect("looked at"));
        assert_eq!(
            mount_at(Path::new("/proc")).expect("looked at").expect("a mount").filesystem_type,
            "proc"
        );
    }
}
