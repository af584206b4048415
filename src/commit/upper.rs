//! The directory in which the kernel's overlay keeps what was changed, read as changes (kernel documentation, overlayfs.rst).
//!
//! ```text
//! character device 0:0                       the name is removed
//! empty file with overlay.whiteout,          likewise, if its directory has overlay.opaque=x; the kernel reads them so,
//!                                            but never makes them
//! directory with overlay.opaque=y            all that the image has in it is removed
//! anything else                              is there, whole
//! ```
//!
//! Names come sorted by their bytes, each directory before what is in it: so the same changes are always told alike. A directory is opened
//! from its parent, and nothing is followed: paths may have any length, and nothing leads out. The directories down to what is looked at are
//! all open. What disappears before it is looked at was not there.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, Stat, openat};
use rustix::io::Errno;

use super::error::{CommitError, shown};
use crate::layer::entry::Timestamp;
use crate::store::AttributeSpace;
use crate::table::format::MAXIMUM_DEPTH;

/// How often something is looked at that changes meanwhile.
pub(super) const ATTEMPTS: u32 = 10;
/// What the marks of the kernel begin with. They are no part of an image, in whichever space.
const PRIVATE: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// Labels and signatures of this machine.
const OF_THIS_MACHINE: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];
/// What marks a name that is removed, in a layer.
const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// Who is told of changes.
pub(super) trait Changes {
    /// That name of the image is removed.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), CommitError>;
    /// All that the image has in that directory is removed; of the directory itself, it was told before.
    fn opaque(&mut self, directory: &[u8]) -> Result<(), CommitError>;
    /// That is there now. The root's path is empty.
    fn node(&mut self, path: &[u8], node: Node) -> Result<(), CommitError>;
}

/// Something that is there.
pub(super) struct Node {
    handle: OwnedFd,
    space: AttributeSpace,
    pub attributes: Attributes,
}

/// What is known of it beside its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attributes {
    pub kind: FileType,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub modified: Timestamp,
    pub device: u64,
    pub links: u64,
    /// Device and inode number: the same for all its names.
    pub identity: (u64, u64),
    /// Those that belong to an image, sorted.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// When anything about it changed last.
    changed: (i64, i64),
    mark: Mark,
}

/// What the kernel says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mark {
    None,
    Opaque,
    HoldsWhiteouts,
    Whiteout,
}

impl Node {
    /// Opens a regular file for reading. Its time of access stays, where that is permitted.
    pub fn open(&self) -> rustix::io::Result<File> {
        let path = descriptor_path(self.handle.as_fd());
        let open = |more| openat(CWD, &path, OFlags::RDONLY | OFlags::CLOEXEC | more, Mode::empty());
        open(OFlags::NOATIME).or_else(|_| open(OFlags::empty())).map(File::from)
    }

    /// Where a symlink leads.
    pub fn target(&self) -> rustix::io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.handle, c"", Vec::new())?.into_bytes())
    }

    /// Looks at it again.
    pub fn look_again(&mut self, path: &[u8]) -> Result<(), CommitError> {
        self.attributes = attributes(self.handle.as_fd(), path, self.space)?;
        Ok(())
    }

    /// Whether nothing about it has changed since it was looked at.
    pub fn is_unchanged(&self) -> rustix::io::Result<bool> {
        let now = rustix::fs::fstat(&self.handle)?;
        let before = &self.attributes;
        Ok(changed(&now) == before.changed
            && now.st_size as u64 == before.size
            && modified(&now) == before.modified)
    }
}

/// Directories that are being read, from the root down.
struct Level {
    directory: OwnedFd,
    names: std::vec::IntoIter<Vec<u8>>,
    /// Bytes of its path.
    length: usize,
    holds_whiteouts: bool,
}

/// Tells what is in `directory`, itself first, and gives its own attributes.
pub(super) fn walk(
    directory: &Path,
    space: AttributeSpace,
    changes: &mut dyn Changes,
) -> Result<Attributes, CommitError> {
    let failed = |errno: Errno| cannot_read(&[], errno);
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, directory, flags, Mode::empty()).map_err(failed)?;
    let root = Node { attributes: attributes(root.as_fd(), &[], space)?, handle: root, space };
    let root_attributes = root.attributes.clone();
    let mut path = Vec::new();
    let mut levels = vec![enter(&root, 0).map_err(failed)?];
    changes.node(&path, root)?;
    while let Some(level) = levels.last_mut() {
        path.truncate(level.length);
        let Some(name) = level.names.next() else {
            levels.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match openat(&level.directory, name.as_slice(), flags, Mode::empty()) {
            Err(Errno::NOENT) => continue,
            handle => handle.map_err(|errno| cannot_read(&path, errno))?,
        };
        let node = Node { attributes: attributes(handle.as_fd(), &path, space)?, handle, space };
        if is_whiteout(&node.attributes, level.holds_whiteouts) {
            changes.whiteout(&path)?;
            continue;
        }
        if name.starts_with(WHITEOUT_PREFIX) {
            return Err(CommitError::WhiteoutName { path: shown(&path) });
        }
        if levels.len() > MAXIMUM_DEPTH {
            return Err(CommitError::TooDeep { path: shown(&path), limit: MAXIMUM_DEPTH });
        }
        let below = match node.attributes.kind {
            FileType::Directory => match enter(&node, path.len()) {
                Err(Errno::NOENT) => continue,
                level => Some(level.map_err(|errno| cannot_read(&path, errno))?),
            },
            _ => None,
        };
        let is_opaque = node.attributes.mark == Mark::Opaque;
        changes.node(&path, node)?;
        if is_opaque {
            changes.opaque(&path)?;
        }
        levels.extend(below);
    }
    Ok(root_attributes)
}

fn is_whiteout(attributes: &Attributes, may_be_a_file: bool) -> bool {
    match attributes.kind {
        FileType::CharacterDevice => attributes.device == 0,
        FileType::RegularFile => may_be_a_file && attributes.size == 0 && attributes.mark == Mark::Whiteout,
        _ => false,
    }
}

/// The names in a directory, sorted.
fn enter(node: &Node, length: usize) -> rustix::io::Result<Level> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat(&node.handle, c".", flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    let holds_whiteouts = node.attributes.mark == Mark::HoldsWhiteouts;
    Ok(Level { directory, names: names.into_iter(), length, holds_whiteouts })
}

/// The attributes of what is open, all of one moment.
fn attributes(handle: BorrowedFd<'_>, path: &[u8], space: AttributeSpace) -> Result<Attributes, CommitError> {
    let failed = |errno: Errno| cannot_read(path, errno);
    for _ in 0..ATTEMPTS {
        let stat = rustix::fs::fstat(handle).map_err(failed)?;
        let (xattrs, mark) = xattrs(handle, space).map_err(failed)?;
        if changed(&rustix::fs::fstat(handle).map_err(failed)?) != changed(&stat) {
            continue;
        }
        return Ok(Attributes {
            kind: FileType::from_raw_mode(stat.st_mode),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            // No file system has negative sizes.
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: modified(&stat),
            device: stat.st_rdev,
            links: stat.st_nlink as u64,
            identity: (stat.st_dev, stat.st_ino),
            xattrs,
            changed: changed(&stat),
            mark,
        });
    }
    Err(CommitError::Changing { path: shown(path), attempts: ATTEMPTS })
}

fn modified(stat: &Stat) -> Timestamp {
    Timestamp { seconds: stat.st_mtime, nanoseconds: stat.st_mtime_nsec as u32 }
}

fn changed(stat: &Stat) -> (i64, i64) {
    (stat.st_ctime, stat.st_ctime_nsec as i64)
}

/// A name and a value.
type Xattr = (Vec<u8>, Vec<u8>);

/// Extended attributes; by way of `/proc`, as what is not opened for reading has no other.
fn xattrs(handle: BorrowedFd<'_>, space: AttributeSpace) -> rustix::io::Result<(Vec<Xattr>, Mark)> {
    let path = descriptor_path(handle);
    let query = || rustix::fs::listxattr_query(&path);
    let names = match filled(query, |buffer| rustix::fs::listxattr(&path, buffer)) {
        // A file system without them, which has no marks either.
        Err(Errno::NOTSUP) => return Ok((Vec::new(), Mark::None)),
        names => names?,
    };
    let prefix = match space {
        AttributeSpace::Trusted => PRIVATE[0],
        AttributeSpace::User => PRIVATE[1],
    };
    let (mut xattrs, mut mark) = (Vec::new(), Mark::None);
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        if OF_THIS_MACHINE.contains(&name) {
            continue;
        }
        let query = || rustix::fs::getxattr_query(&path, name);
        let value = match filled(query, |buffer| rustix::fs::getxattr(&path, name, buffer)) {
            // Removed since it was listed.
            Err(Errno::NODATA) => continue,
            value => value?,
        };
        mark = match (name.strip_prefix(prefix), value.as_slice()) {
            (Some(b"opaque"), b"y") => Mark::Opaque,
            (Some(b"opaque"), b"x") => Mark::HoldsWhiteouts,
            (Some(b"whiteout"), _) => Mark::Whiteout,
            _ => mark,
        };
        if !PRIVATE.iter().any(|private| name.starts_with(private)) {
            xattrs.push((name.to_vec(), value));
        }
    }
    xattrs.sort_unstable();
    Ok((xattrs, mark))
}

/// What a call gives of which another tells the length.
fn filled(
    query: impl Fn() -> rustix::io::Result<usize>,
    call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<Vec<u8>> {
    loop {
        let mut buffer = vec![0; query()?];
        match call(&mut buffer) {
            // It has grown.
            Err(Errno::RANGE) => continue,
            length => buffer.truncate(length?),
        }
        return Ok(buffer);
    }
}

fn descriptor_path(handle: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

pub(super) fn cannot_read(path: &[u8], errno: impl Into<std::io::Error>) -> CommitError {
    CommitError::Read { path: shown(path), source: errno.into() }
}
