//! A merged tree put on the disk, file by file.
//!
//! ```text
//! root ─▶ directories, each when it is met; owner, mode and time when all is in it that belongs there
//!           ├─ regular file ─▶ a sibling's, by one more name │ its layer's content, in a file of its own
//!           ├─ file of several names ─▶ made once, beside the tree, under its number; each name is a link to that
//!           └─ symlink, device, fifo
//! ```
//!
//! Names come from a table that has only names of single components, and each is made in a directory that is open: nothing leads out, and
//! paths may have any length. The directories down to what is made are all open.

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags, mkdirat, mknodat, openat,
};
use rustix::io::Errno;

use super::content;
use super::error::{At, DirectoryError, shown};
use super::siblings::{Beside, Found, Siblings, Wanted};
use crate::fetch::Room;
use crate::store::StoreError;
use crate::table::format::{EntryRecord, InodeRecord};
use crate::tree::serve::MergedTree;

/// Where files of several names are until the tree is done, beside it.
const LINKS: &str = "links";

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Regular files, each once.
    pub files: u64,
    /// Of these: files that another directory has, too.
    pub shared_files: u64,
    /// Their sizes.
    pub shared_bytes: u64,
    /// Sizes of the files that were copied.
    pub copied_bytes: u64,
}

/// Puts a tree into an empty directory.
pub(super) struct Planter<'a> {
    tree: &'a MergedTree,
    layers: &'a [[u8; 32]],
    siblings: &'a Siblings,
    room: &'a Room,
    root: PathBuf,
    links: File,
    /// The files of several names that are there.
    linked: HashSet<u32>,
    counted: Counted,
}

/// A directory that is being filled.
struct Level<'a> {
    directory: File,
    inode: &'a InodeRecord,
    entries: std::slice::Iter<'a, EntryRecord>,
    beside: Beside,
    /// Bytes of its path.
    length: usize,
}

/// Where something is made.
#[derive(Clone, Copy)]
struct Place<'a> {
    directory: BorrowedFd<'a>,
    name: &'a [u8],
    /// In the tree, for people.
    path: &'a [u8],
}

impl<'a> Planter<'a> {
    /// For an empty directory at `root`, beside which nothing else is.
    pub fn new(
        tree: &'a MergedTree,
        layers: &'a [[u8; 32]],
        siblings: &'a Siblings,
        room: &'a Room,
        root: PathBuf,
    ) -> Result<Planter<'a>, DirectoryError> {
        let links = root.with_file_name(LINKS);
        rustix::fs::mkdir(&links, Mode::RWXU)
            .map_err(|error| StoreError::from_io("make directory", &links, error))?;
        let links = open_directory(rustix::fs::CWD, links.as_os_str().as_encoded_bytes()).at("open", b"")?;
        let (linked, counted) = (HashSet::new(), Counted::default());
        Ok(Planter { tree, layers, siblings, room, root, links, linked, counted })
    }

    /// Makes all of it, and says what that was.
    pub fn plant(mut self) -> Result<Counted, DirectoryError> {
        let table = self.tree.table();
        let Some(inode) = table.inode(0) else { return Err(DirectoryError::Table { path: String::new() }) };
        let directory =
            open_directory(rustix::fs::CWD, self.root.as_os_str().as_encoded_bytes()).at("open", b"")?;
        let (entries, beside) = (table.directory(inode).iter(), self.siblings.root());
        let mut levels = vec![Level { directory, inode, entries, beside, length: 0 }];
        let mut path = Vec::new();
        while let Some(level) = levels.last_mut() {
            path.truncate(level.length);
            let Some(entry) = level.entries.next() else {
                self.finish_directory(level, &path)?;
                levels.pop();
                continue;
            };
            let (name, number) = (table.name(entry), entry.inode.get());
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let damaged = || DirectoryError::Table { path: shown(&path) };
            let inode = table.inode(number).ok_or_else(damaged)?;
            let place = Place { directory: level.directory.as_fd(), name, path: &path };
            if kind(inode) == FileType::Directory {
                mkdirat(place.directory, name, Mode::RWXU).at("make directory", &path)?;
                let directory = open_directory(place.directory, name).at("open", &path)?;
                let (entries, beside) =
                    (table.directory(inode).iter(), self.siblings.below(&level.beside, name));
                levels.push(Level { directory, inode, entries, beside, length: path.len() });
            } else {
                let beside = level.beside.clone();
                self.put(number, inode, &beside, place)?;
            }
        }
        drop(self.links);
        let links = self.root.with_file_name(LINKS);
        std::fs::remove_dir_all(&links).map_err(|error| StoreError::from_io("remove", links, error))?;
        Ok(self.counted)
    }

    /// Gives something that is no directory one of its names.
    fn put(
        &mut self,
        number: u32,
        inode: &InodeRecord,
        beside: &Beside,
        place: Place<'_>,
    ) -> Result<(), DirectoryError> {
        if inode.link_count.get() < 2 {
            return self.make(inode, beside, place, place.name);
        }
        let own = number.to_string();
        let links = self.links.try_clone().at("open", place.path)?;
        if self.linked.insert(number) {
            let first = Place { directory: links.as_fd(), name: own.as_bytes(), path: place.path };
            self.make(inode, beside, first, place.name)?;
        }
        let linked =
            rustix::fs::linkat(&links, own.as_bytes(), place.directory, place.name, AtFlags::empty());
        match linked {
            // As many names as a file can have here; the image has more.
            Err(Errno::MLINK) => {
                rustix::fs::unlinkat(&links, own.as_bytes(), AtFlags::empty()).at("link", place.path)?;
                self.linked.remove(&number);
                self.put(number, inode, beside, place)
            }
            linked => linked.at("link", place.path),
        }
    }

    /// Makes something that is no directory; `name` is what it has in the tree.
    fn make(
        &mut self,
        inode: &InodeRecord,
        beside: &Beside,
        place: Place<'_>,
        name: &[u8],
    ) -> Result<(), DirectoryError> {
        let Place { directory, path, .. } = place;
        let type_ = kind(inode);
        match type_ {
            FileType::RegularFile => return self.make_file(inode, beside, place, name),
            FileType::Symlink => {
                let target = self.tree.table().target(inode);
                rustix::fs::symlinkat(target, directory, place.name).at("make the symlink", path)?;
            }
            FileType::CharacterDevice | FileType::BlockDevice | FileType::Fifo => {
                let device =
                    rustix::fs::makedev((inode.content.get() >> 32) as u32, inode.content.get() as u32);
                let device = if type_ == FileType::Fifo { 0 } else { device };
                mknodat(directory, place.name, type_, Mode::empty(), device).at("make", path)?;
            }
            _ => return Err(DirectoryError::Table { path: shown(path) }),
        }
        let (owner, group) = owner(inode);
        rustix::fs::chownat(directory, place.name, owner, group, AtFlags::SYMLINK_NOFOLLOW)
            .at("set the owner of", path)?;
        let by_descriptor =
            [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), place.name].concat();
        self.set_xattrs(inode, path, |name, value| {
            rustix::fs::lsetxattr(by_descriptor.as_slice(), name, value, XattrFlags::empty())
        })?;
        if type_ != FileType::Symlink {
            rustix::fs::chmodat(directory, place.name, mode(inode), AtFlags::empty())
                .at("set the mode of", path)?;
        }
        rustix::fs::utimensat(directory, place.name, &times(inode), AtFlags::SYMLINK_NOFOLLOW)
            .at("set the time of", path)
    }

    fn make_file(
        &mut self,
        inode: &InodeRecord,
        beside: &Beside,
        place: Place<'_>,
        name: &[u8],
    ) -> Result<(), DirectoryError> {
        let Place { directory, path, .. } = place;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || openat(directory, place.name, flags, Mode::RUSR | Mode::WUSR).map(File::from);
        let wanted = Wanted { table: self.tree.table(), inode, layers: self.layers, name, path };
        let found = self.siblings.link(beside, &wanted, directory, place.name, || create().ok());
        self.counted.files += 1;
        let size = inode.size.get();
        if let Found::Linked | Found::Cloned = found {
            self.counted.shared_files += 1;
            self.counted.shared_bytes = self.counted.shared_bytes.saturating_add(size);
        }
        let file = match found {
            Found::Linked => return Ok(()),
            Found::Cloned => openat(
                directory,
                place.name,
                OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .map(File::from)
            .at("open", path)?,
            Found::No => {
                let file = match create() {
                    // What could not be cloned into.
                    Err(Errno::EXIST) => {
                        rustix::fs::unlinkat(directory, place.name, AtFlags::empty()).at("make", path)?;
                        create()
                    }
                    file => file,
                };
                let file = file.at("make", path)?;
                let layer = self.tree.layer(inode);
                let layer = layer.ok_or_else(|| DirectoryError::Table { path: shown(path) })?;
                content::copy(layer, inode, self.room, &file, path)?;
                self.counted.copied_bytes = self.counted.copied_bytes.saturating_add(size);
                file
            }
        };
        self.set_attributes(&file, inode, path)
    }

    /// All that belongs in the directory is there.
    fn finish_directory(&self, level: &Level<'_>, path: &[u8]) -> Result<(), DirectoryError> {
        self.set_attributes(&level.directory, level.inode, path)
    }

    /// The owner first: changing him takes capabilities and set-user-ID away. The time last.
    fn set_attributes(&self, file: &File, inode: &InodeRecord, path: &[u8]) -> Result<(), DirectoryError> {
        let (owner, group) = owner(inode);
        rustix::fs::fchown(file, owner, group).at("set the owner of", path)?;
        self.set_xattrs(inode, path, |name, value| {
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
        })?;
        rustix::fs::fchmod(file, mode(inode)).at("set the mode of", path)?;
        rustix::fs::futimens(file, &times(inode)).at("set the time of", path)
    }

    fn set_xattrs(
        &self,
        inode: &InodeRecord,
        path: &[u8],
        set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
    ) -> Result<(), DirectoryError> {
        for (name, value) in self.tree.table().xattrs(inode) {
            match set(name, value) {
                Err(Errno::NOTSUP) => {
                    return Err(DirectoryError::Attribute { name: shown(name), path: shown(path) });
                }
                result => result.at("set an extended attribute of", path)?,
            }
        }
        Ok(())
    }
}

fn open_directory(from: impl AsFd, name: &[u8]) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(from, name, flags, Mode::empty()).map(File::from)
}

fn kind(inode: &InodeRecord) -> FileType {
    FileType::from_raw_mode(inode.mode.get())
}

fn mode(inode: &InodeRecord) -> Mode {
    Mode::from_raw_mode(inode.mode.get() & 0o7777)
}

fn owner(inode: &InodeRecord) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(inode.uid.get())), Some(Gid::from_raw(inode.gid.get())))
}

fn times(inode: &InodeRecord) -> Timestamps {
    let time =
        Timespec { tv_sec: inode.modified_seconds.get(), tv_nsec: inode.modified_nanoseconds.get().into() };
    Timestamps { last_access: time, last_modification: time }
}
