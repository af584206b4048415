//! Trees and their comparison: a directory as the kernel shows it, or what the reference model says it must be.
//!
//! The walk opens each directory from its parent, so a path may be longer than `PATH_MAX`; names are bytes.

use super::content::Content;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, major, minor};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::rc::Rc;

/// Above this size content is compared in windows: at the ends, around each piece of a sparse file, and in between.
const COMPARED_WHOLE: u64 = 256 << 20;
const WINDOW: u64 = 1 << 20;

/// Paths from the root (which is `""`) and what is there.
pub struct Tree {
    pub nodes: BTreeMap<Vec<u8>, Node>,
    /// The directory that was walked, kept open to read content from.
    pub root: Option<OwnedFd>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub kind: NodeKind,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Bytes of a file or of a symlink's target; 0 for the rest.
    pub size: u64,
    pub modified: (i64, u32),
    pub links: u64,
    /// The same for all names of one inode.
    pub inode: u64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug)]
pub enum NodeKind {
    File(Source),
    Directory,
    Symlink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

/// Where a file's bytes come from when they are compared.
#[derive(Clone, Debug)]
pub enum Source {
    /// Opened by its path below the tree's root.
    OnDisk,
    Described(Rc<Content>),
}

/// Which property of a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Aspect {
    /// Only the left tree has it.
    OnlyLeft,
    /// Only the right tree has it.
    OnlyRight,
    Type,
    Mode,
    Owner,
    Size,
    Modified,
    LinkCount,
    /// The set of names that one inode has.
    LinkGroup,
    Device,
    Target,
    Xattrs,
    Content,
}

#[derive(Clone, Debug)]
pub struct Difference {
    pub path: Vec<u8>,
    pub aspect: Aspect,
    pub left: String,
    pub right: String,
}

/// A difference that was decided, by name: a comparison with another tool may show it.
pub struct Allowed {
    pub name: &'static str,
    pub covers: Box<dyn Fn(&Difference) -> bool>,
}

impl Allowed {
    pub fn new(name: &'static str, covers: impl Fn(&Difference) -> bool + 'static) -> Allowed {
        Allowed { name, covers: Box::new(covers) }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path.len() > 300 { &self.path[..300] } else { &self.path };
        write!(formatter, "/{}: {:?}: {} | {}", path.escape_ascii(), self.aspect, self.left, self.right)
    }
}

/// Fails with a list if the trees differ in anything that no allowance covers.
#[track_caller]
pub fn assert_same(left: &Tree, right: &Tree, allowed: &[Allowed]) {
    let differences = differences(left, right);
    let unexpected: Vec<&Difference> =
        differences.iter().filter(|difference| !allowed.iter().any(|one| (one.covers)(difference))).collect();
    if !unexpected.is_empty() {
        let mut list = String::new();
        for difference in unexpected.iter().take(60) {
            writeln!(list, "  {difference}").expect("writing to memory");
        }
        let names: Vec<&str> = allowed.iter().map(|one| one.name).collect();
        panic!("{} differences (left | right), not counting {names:?}:\n{list}", unexpected.len());
    }
}

/// Every difference between two trees, by path.
pub fn differences(left: &Tree, right: &Tree) -> Vec<Difference> {
    let mut found = Vec::new();
    let (left_groups, right_groups) = (left.link_groups(), right.link_groups());
    for (path, node) in &left.nodes {
        let mut report = |aspect, left: String, right: String| {
            found.push(Difference { path: path.clone(), aspect, left, right });
        };
        let Some(other) = right.nodes.get(path) else {
            report(Aspect::OnlyLeft, node.type_name().to_owned(), "missing".to_owned());
            continue;
        };
        node.compare_attributes(other, &mut report);
        let (group, other_group) = (left_groups.get(&node.inode), right_groups.get(&other.inode));
        if group != other_group && !node.is_directory() && !other.is_directory() {
            let names =
                |group: Option<&Vec<&[u8]>>| group.map_or("alone".to_owned(), |names| shown(names[0]));
            report(Aspect::LinkGroup, names(group), names(other_group));
        }
        if let (NodeKind::File(_), NodeKind::File(_)) = (&node.kind, &other.kind)
            && node.size == other.size
            && let Some(place) = first_differing_byte(path, left, right)
        {
            report(Aspect::Content, format!("differs in the MiB at {place}"), String::new());
        }
    }
    for (path, node) in &right.nodes {
        if !left.nodes.contains_key(path) {
            let (left, right) = ("missing".to_owned(), node.type_name().to_owned());
            found.push(Difference { path: path.clone(), aspect: Aspect::OnlyRight, left, right });
        }
    }
    found
}

impl Node {
    pub fn is_directory(&self) -> bool {
        matches!(self.kind, NodeKind::Directory)
    }

    fn type_name(&self) -> &'static str {
        match self.kind {
            NodeKind::File(_) => "file",
            NodeKind::Directory => "directory",
            NodeKind::Symlink(_) => "symlink",
            NodeKind::CharacterDevice(..) => "character device",
            NodeKind::BlockDevice(..) => "block device",
            NodeKind::Fifo => "fifo",
            NodeKind::Socket => "socket",
        }
    }

    fn compare_attributes(&self, other: &Node, report: &mut dyn FnMut(Aspect, String, String)) {
        let mut compare = |aspect, left: String, right: String| {
            if left != right {
                report(aspect, left, right);
            }
        };
        if self.type_name() != other.type_name() {
            compare(Aspect::Type, self.type_name().to_owned(), other.type_name().to_owned());
            return;
        }
        compare(Aspect::Mode, format!("{:04o}", self.mode), format!("{:04o}", other.mode));
        compare(Aspect::Owner, format!("{}:{}", self.uid, self.gid), format!("{}:{}", other.uid, other.gid));
        compare(Aspect::Size, self.size.to_string(), other.size.to_string());
        let time = |(seconds, nanoseconds): (i64, u32)| format!("{seconds}+{nanoseconds}ns");
        compare(Aspect::Modified, time(self.modified), time(other.modified));
        compare(Aspect::LinkCount, self.links.to_string(), other.links.to_string());
        compare(Aspect::Xattrs, shown_xattrs(&self.xattrs), shown_xattrs(&other.xattrs));
        match (&self.kind, &other.kind) {
            (NodeKind::Symlink(left), NodeKind::Symlink(right)) => {
                compare(Aspect::Target, shown(left), shown(right));
            }
            (NodeKind::CharacterDevice(a, b), NodeKind::CharacterDevice(c, d))
            | (NodeKind::BlockDevice(a, b), NodeKind::BlockDevice(c, d)) => {
                compare(Aspect::Device, format!("{a}:{b}"), format!("{c}:{d}"));
            }
            _ => {}
        }
    }
}

fn shown(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string()
}

fn shown_xattrs(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> String {
    let pairs =
        xattrs.iter().map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
    pairs.collect::<Vec<_>>().join(" ")
}

impl Tree {
    /// Walks a directory. Every `d_type` that `getdents` gives is checked against `lstat` on the way.
    pub fn walk(directory: &Path) -> Tree {
        allow_many_open_files();
        let root =
            rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .unwrap_or_else(|error| panic!("opening {}: {error}", directory.display()));
        let mut nodes = BTreeMap::new();
        let stat = rustix::fs::fstat(&root).expect("fstat of a root");
        nodes.insert(Vec::new(), node(&root, &stat, NodeKind::Directory));
        walk_below(root.as_fd(), &[], &mut nodes);
        Tree { nodes, root: Some(root) }
    }

    pub fn node(&self, path: &str) -> &Node {
        self.nodes.get(path.as_bytes()).unwrap_or_else(|| panic!("/{path} is not in the tree"))
    }

    /// Bytes of all files, each inode once.
    pub fn content_bytes(&self) -> u64 {
        let files = self.nodes.values().filter(|node| matches!(node.kind, NodeKind::File(_)));
        files.map(|node| (node.inode, node.size)).collect::<BTreeMap<_, _>>().values().sum()
    }

    /// All bytes of a file.
    pub fn read(&self, path: &str) -> Vec<u8> {
        let mut bytes = vec![0; self.node(path).size as usize];
        self.reader(path.as_bytes()).read_at(0, &mut bytes);
        bytes
    }

    /// Names of the inodes that have several, sorted.
    fn link_groups(&self) -> BTreeMap<u64, Vec<&[u8]>> {
        let mut groups: BTreeMap<u64, Vec<&[u8]>> = BTreeMap::new();
        for (path, node) in &self.nodes {
            if !node.is_directory() {
                groups.entry(node.inode).or_default().push(path);
            }
        }
        groups.retain(|_, names| names.len() > 1);
        groups
    }

    fn reader(&self, path: &[u8]) -> Reader<'_> {
        match &self.nodes[path].kind {
            NodeKind::File(Source::Described(content)) => Reader::Described(content),
            NodeKind::File(Source::OnDisk) => {
                Reader::OnDisk(open_below(self.root.as_ref().expect("walked").as_fd(), path))
            }
            _ => panic!("not a regular file"),
        }
    }
}

enum Reader<'a> {
    OnDisk(File),
    Described(&'a Content),
}

impl Reader<'_> {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) {
        match self {
            Reader::OnDisk(file) => file
                .read_exact_at(buffer, offset)
                .unwrap_or_else(|error| panic!("reading {} bytes at {offset}: {error}", buffer.len())),
            Reader::Described(content) => assert_eq!(content.read_at(offset, buffer), buffer.len()),
        }
    }

    /// Where a large file is looked at, beyond its ends.
    fn places(&self) -> Vec<u64> {
        match self {
            Reader::Described(Content::Sparse { pieces, .. }) => {
                pieces.iter().flat_map(|(place, piece)| [*place, place + piece.length()]).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn first_differing_byte(path: &[u8], left: &Tree, right: &Tree) -> Option<u64> {
    let size = left.nodes[path].size;
    let (left, right) = (left.reader(path), right.reader(path));
    let (mut left_bytes, mut right_bytes) = (vec![0; WINDOW as usize], vec![0; WINDOW as usize]);
    let starts: Vec<u64> = if size <= COMPARED_WHOLE {
        (0..size).step_by(WINDOW as usize).collect()
    } else {
        let mut starts: Vec<u64> = (0..size).step_by((size / 16) as usize).collect();
        let around = left.places().into_iter().chain(right.places()).chain([size]);
        starts.extend(around.map(|place| place.saturating_sub(WINDOW / 2).min(size - WINDOW)));
        starts
    };
    starts.into_iter().find(|start| {
        let length = WINDOW.min(size - start) as usize;
        left.read_at(*start, &mut left_bytes[..length]);
        right.read_at(*start, &mut right_bytes[..length]);
        left_bytes[..length] != right_bytes[..length]
    })
}

/// Opens a file component by component.
fn open_below(root: BorrowedFd<'_>, path: &[u8]) -> File {
    let mut directory: Option<OwnedFd> = None;
    let mut components = path.split(|byte| *byte == b'/').peekable();
    while let Some(name) = components.next() {
        let at = directory.as_ref().map_or(root, AsFd::as_fd);
        let last = components.peek().is_none();
        let flags = if last { OFlags::RDONLY } else { OFlags::PATH | OFlags::DIRECTORY };
        let opened = rustix::fs::openat(at, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .unwrap_or_else(|error| panic!("opening /{}: {error}", path.escape_ascii()));
        if last {
            return File::from(opened);
        }
        directory = Some(opened);
    }
    unreachable!("splitting gives at least one component")
}

fn walk_below(directory: BorrowedFd<'_>, path: &[u8], nodes: &mut BTreeMap<Vec<u8>, Node>) {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).expect("opening a directory to read") {
        let entry = entry.unwrap_or_else(|error| panic!("reading /{}: {error}", path.escape_ascii()));
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_bytes().to_vec(), entry.file_type()));
        }
    }
    for (name, entry_type) in names {
        let path = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
        let handle = rustix::fs::openat(
            directory,
            name.as_slice(),
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap_or_else(|error| panic!("opening /{}: {error}", path.escape_ascii()));
        let stat = rustix::fs::statat(&handle, c"", AtFlags::EMPTY_PATH)
            .unwrap_or_else(|error| panic!("stat of /{}: {error}", path.escape_ascii()));
        let file_type = FileType::from_raw_mode(stat.st_mode);
        assert_eq!(entry_type, file_type, "d_type of /{}", path.escape_ascii());
        let kind = match file_type {
            FileType::RegularFile => NodeKind::File(Source::OnDisk),
            FileType::Directory => NodeKind::Directory,
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&handle, c"", Vec::new()).expect("reading a symlink");
                NodeKind::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => NodeKind::CharacterDevice(major(stat.st_rdev), minor(stat.st_rdev)),
            FileType::BlockDevice => NodeKind::BlockDevice(major(stat.st_rdev), minor(stat.st_rdev)),
            FileType::Fifo => NodeKind::Fifo,
            _ => NodeKind::Socket,
        };
        let is_directory = matches!(kind, NodeKind::Directory);
        assert!(nodes.insert(path.clone(), node(&handle, &stat, kind)).is_none(), "two entries of one name");
        if is_directory {
            drop(handle);
            let below = rustix::fs::openat(
                directory,
                name.as_slice(),
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .unwrap_or_else(|error| panic!("opening /{}: {error}", path.escape_ascii()));
            walk_below(below.as_fd(), &path, nodes);
        }
    }
}

fn node(handle: &OwnedFd, stat: &rustix::fs::Stat, kind: NodeKind) -> Node {
    let has_size = matches!(kind, NodeKind::File(_) | NodeKind::Symlink(_));
    Node {
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if has_size { stat.st_size as u64 } else { 0 },
        modified: (stat.st_mtime, stat.st_mtime_nsec as u32),
        links: stat.st_nlink,
        inode: stat.st_ino,
        xattrs: xattrs(handle),
    }
}

/// All extended attributes; through `/proc`, because symlinks and devices cannot be opened otherwise.
fn xattrs(handle: &OwnedFd) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let path = format!("/proc/self/fd/{}", handle.as_raw_fd());
    let mut names = vec![0; 65_536];
    let length = rustix::fs::listxattr(&path, names.as_mut_slice())
        .unwrap_or_else(|error| panic!("listing extended attributes: {error}"));
    names.truncate(length);
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0; 65_536];
            let length = rustix::fs::getxattr(&path, name, value.as_mut_slice())
                .unwrap_or_else(|error| panic!("reading {}: {error}", name.escape_ascii()));
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// A deep walk holds a descriptor for each level, and tests run side by side.
fn allow_many_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current < limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
            .expect("raising the limit of open files to its own maximum");
    }
}
