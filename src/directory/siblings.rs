//! Other plain directories with some of the same layers, whose files can be had by one more name.
//!
//! A file is the same if it has the same path in both trees, and both tables say that it is the same file of the same layer. Then what is on
//! the disk is looked at: who owns it, its mode, size and time, and its extended attributes. A file that somebody has written to has another
//! time, and is left alone.

use std::cell::RefCell;
use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::unhex;
use crate::store::record_tables::RecordId;
use crate::store::{KnownDirectory, Store, StoreError};
use crate::table::Table;
use crate::table::format::InodeRecord;

/// From how many directories files are taken.
const MOST: usize = 8;
/// Longest path that the kernel takes (`PATH_MAX`).
const LONGEST_PATH: usize = 4095;
/// Labels and signatures of this machine, which no image has.
const OF_THIS_MACHINE: [&[u8]; 3] = [b"security.selinux", b"security.ima", b"security.evm"];

/// The directories from which files are taken, the one with the longest base in common first.
pub(super) struct Siblings {
    all: Vec<Sibling>,
    /// Inodes that have got a name here: each is one file of the tree only.
    taken: RefCell<HashSet<(u64, u64)>>,
}

struct Sibling {
    root: File,
    table: Table,
    layers: Vec<[u8; 32]>,
    /// Layers of the base that both have.
    base: usize,
    directory: KnownDirectory,
}

/// A directory of the tree, and what has its path in each of the siblings' trees.
#[derive(Clone)]
pub(super) struct Beside(Vec<Option<u32>>);

/// What is looked for.
pub(super) struct Wanted<'a> {
    pub table: &'a Table,
    pub inode: &'a InodeRecord,
    /// What the tables of the tree's layers are known by.
    pub layers: &'a [[u8; 32]],
    pub name: &'a [u8],
    /// From the root; ends with the name.
    pub path: &'a [u8],
}

/// How a file of another directory can be had.
pub(super) enum Found {
    /// It has the new name.
    Linked,
    /// It has as many names as a file can have; its blocks are in the new file.
    Cloned,
    /// There is none.
    No,
}

impl Siblings {
    /// The directories of others than that record that have some of these layers.
    pub fn of(store: &Store, record: &RecordId, layers: &[[u8; 32]]) -> Result<Siblings, StoreError> {
        let mut all = Vec::new();
        for other in store.directories().list()?.into_iter().filter(|other| other != record) {
            if let Some(directory) = store.directories().open(&other)?
                && let Some(sibling) = Sibling::open(directory, layers)
            {
                all.push(sibling);
            }
        }
        let shared = |sibling: &Sibling| sibling.layers.iter().filter(|layer| layers.contains(layer)).count();
        all.retain(|sibling| shared(sibling) > 0);
        all.sort_by_key(|sibling| std::cmp::Reverse((sibling.base, shared(sibling))));
        all.truncate(MOST);
        Ok(Siblings { all, taken: RefCell::default() })
    }

    /// The record with the longest base in common, and how many layers that has.
    pub fn base(&self) -> (Option<RecordId>, usize) {
        let first = self.all.first().filter(|sibling| sibling.base > 0);
        (first.map(|sibling| sibling.directory.record.clone()), first.map_or(0, |sibling| sibling.base))
    }

    /// What is beside the root.
    pub fn root(&self) -> Beside {
        Beside(vec![Some(0); self.all.len()])
    }

    /// What is beside the directory of that name in another.
    pub fn below(&self, beside: &Beside, name: &[u8]) -> Beside {
        let each = self.all.iter().zip(&beside.0);
        Beside(each.map(|(sibling, directory)| sibling.find((*directory)?, name)).collect())
    }

    /// Gives a regular file the name `name` in `to`, if one of the siblings has it; `clone` makes the file if it has to be another inode.
    pub fn link(
        &self,
        beside: &Beside,
        wanted: &Wanted<'_>,
        to: BorrowedFd<'_>,
        name: &[u8],
        clone: impl Fn() -> Option<File>,
    ) -> Found {
        for (sibling, directory) in self.all.iter().zip(&beside.0) {
            let inode = directory.and_then(|directory| sibling.find(directory, wanted.name));
            let Some(file) = inode.and_then(|inode| sibling.same_file(inode, wanted)) else { continue };
            let Ok(stat) = rustix::fs::fstat(&file) else { continue };
            if !self.taken.borrow_mut().insert((stat.st_dev, stat.st_ino)) {
                continue;
            }
            let path = descriptor_path(file.as_fd());
            match rustix::fs::linkat(CWD, &path, to, name, AtFlags::SYMLINK_FOLLOW) {
                Ok(()) => return Found::Linked,
                Err(Errno::MLINK) => {
                    if let Some(copy) = clone()
                        && let Ok(source) = File::open(&path)
                        && rustix::fs::ioctl_ficlone(&copy, &source).is_ok()
                    {
                        return Found::Cloned;
                    }
                    return Found::No;
                }
                // It is gone, or the file system has its reasons: there is another way to get it.
                Err(_) => {}
            }
        }
        Found::No
    }
}

impl Sibling {
    /// One whose table cannot be used has nothing that could be found.
    fn open(directory: KnownDirectory, layers: &[[u8; 32]]) -> Option<Sibling> {
        let identity = unhex(&directory.made_of.tree)?;
        let table = Table::open(directory.table.as_ref()?, &identity).ok()?;
        let own: Vec<[u8; 32]> =
            directory.made_of.layers.iter().map(|layer| unhex(layer)).collect::<Option<_>>()?;
        let base = own.iter().zip(layers).take_while(|(own, other)| own == other).count();
        let root = File::open(directory.fs()).ok()?;
        Some(Sibling { root, table, layers: own, base, directory })
    }

    fn find(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let inode = self.table.inode(directory)?;
        Some(self.table.find(inode, name)?.inode.get())
    }

    /// The file, not opened for reading, if it is the one that is wanted, in both tables and on the disk.
    fn same_file(&self, inode: u32, wanted: &Wanted<'_>) -> Option<File> {
        let (inode, other) = (self.table.inode(inode)?, wanted.inode);
        let layer = self.layers.get(usize::from(inode.layer.get()))?;
        let is_same = wanted.layers.get(usize::from(other.layer.get())) == Some(layer)
            && inode.mode == other.mode
            && (inode.uid, inode.gid) == (other.uid, other.gid)
            && inode.size == other.size
            && inode.modified_seconds == other.modified_seconds
            && inode.modified_nanoseconds == other.modified_nanoseconds
            && inode.flags == other.flags
            && inode.content == other.content
            && (inode.count, inode.first_extent) == (other.count, other.first_extent)
            && self.table.xattr_set(inode) == wanted.table.xattr_set(other);
        if !is_same || wanted.path.len() > LONGEST_PATH {
            return None;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
        let file = rustix::fs::openat2(&self.root, wanted.path, flags, Mode::empty(), resolve).ok()?;
        let file = File::from(file);
        (is_on_disk(&file, other)? && has_xattrs(&file, wanted.table, other)?).then_some(file)
    }
}

/// Whether the file on the disk is what the table says of it, as far as that can be seen.
fn is_on_disk(file: &File, inode: &InodeRecord) -> Option<bool> {
    let stat = rustix::fs::fstat(file).ok()?;
    Some(
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
            && stat.st_mode & 0o7777 == inode.mode.get() & 0o7777
            && (stat.st_uid, stat.st_gid) == (inode.uid.get(), inode.gid.get())
            && u64::try_from(stat.st_size).ok()? == inode.size.get()
            && stat.st_mtime == inode.modified_seconds.get()
            && stat.st_mtime_nsec as u64 == u64::from(inode.modified_nanoseconds.get()),
    )
}

/// Whether it has these extended attributes and no others. By way of `/proc`, as what is not opened for reading has no other.
fn has_xattrs(file: &File, table: &Table, inode: &InodeRecord) -> Option<bool> {
    let path = descriptor_path(file.as_fd());
    let mut names = vec![0; rustix::fs::listxattr_query(&path).or_else(none_at_all).ok()?];
    if !names.is_empty() {
        let length = rustix::fs::listxattr(&path, &mut names[..]).ok()?;
        names.truncate(length);
    }
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let on_disk = names.filter(|name| !OF_THIS_MACHINE.contains(name)).count();
    let mut wanted = 0;
    for (name, value) in table.xattrs(inode) {
        // One byte more tells one that is longer.
        let mut found = vec![0; value.len() + 1];
        let length = rustix::fs::getxattr(&path, name, &mut found[..]).ok()?;
        if found.get(..length)? != value {
            return Some(false);
        }
        wanted += usize::from(!OF_THIS_MACHINE.contains(&name));
    }
    Some(on_disk == wanted)
}

/// A file system without extended attributes has none.
fn none_at_all(error: Errno) -> rustix::io::Result<usize> {
    if error == Errno::NOTSUP { Ok(0) } else { Err(error) }
}

fn descriptor_path(handle: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}
