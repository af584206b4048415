//! The reference model: a plain map from path to inode, to which layers are applied entry by entry. Simple, slow and obviously
//! right; it shares no code with the project.
//!
//! The rules, from the OCI image specification ("Image Layer Filesystem Changeset") and, where implementations differ, from
//! what this project decided:
//!
//! - Whiteouts and opaque markers act on lower layers only, wherever they stand in the layer: so they are applied first. They
//!   create nothing; one that names nothing does nothing.
//! - Names are cleaned as if they stood in the root directory (`/../a` is `a`), as umoci and containerd do.
//! - Parents are resolved inside the image. One that is a symlink, of a lower layer or of an earlier entry, is followed; links
//!   that lead nowhere are created where they point, as umoci and containerd do. Missing parents are 0755 root:root, at the epoch.
//! - A directory over a directory changes its attributes and nothing else. Anything else over anything replaces it, with all
//!   that it held; a directory over a symlink is no exception.
//! - A hardlink is another name of an inode that is there at that moment, of whatever layer; its own attributes are ignored.
//! - The private xattrs of overlayfs are dropped. Symlinks have mode 0777, as on every Linux file system.

use super::archive::{Kind, TestEntry};
use super::content::Content;
use super::tree::{Node, NodeKind, Source, Tree};
use std::collections::BTreeMap;
use std::rc::Rc;

type Path = Vec<Vec<u8>>;

/// Most symlinks followed for one name.
const MAXIMUM_SYMLINKS: usize = 40;

#[derive(Clone, Debug)]
pub struct Model {
    /// The root has the empty path.
    names: BTreeMap<Path, usize>,
    inodes: Vec<Inode>,
}

#[derive(Clone, Debug)]
struct Inode {
    kind: InodeKind,
    mode: u32,
    uid: u32,
    gid: u32,
    modified: (i64, u32),
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

#[derive(Clone, Debug, PartialEq)]
enum InodeKind {
    File(Rc<Content>),
    Directory,
    Symlink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Why a layer makes no tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A layer that no implementation accepts.
    Malformed(String),
    /// A layer whose meaning neither the specification nor this project settles.
    Undecided(String),
}

impl Model {
    pub fn new() -> Model {
        Model { names: BTreeMap::from([(Vec::new(), 0)]), inodes: vec![implied_directory()] }
    }

    /// The tree of a whole image, lowest layer first.
    pub fn of(layers: &[Vec<TestEntry>]) -> Result<Model, Refusal> {
        let mut model = Model::new();
        for entries in layers {
            model.apply(entries)?;
        }
        Ok(model)
    }

    pub fn apply(&mut self, entries: &[TestEntry]) -> Result<(), Refusal> {
        self.apply_whiteouts(entries)?;
        for entry in entries {
            let path = clean(&entry.path);
            if !path.last().is_some_and(|name| name.starts_with(b".wh.")) {
                self.apply_entry(entry, &path)?;
            }
        }
        Ok(())
    }

    fn apply_whiteouts(&mut self, entries: &[TestEntry]) -> Result<(), Refusal> {
        let lower = self.clone();
        for entry in entries {
            let path = clean(&entry.path);
            let Some((name, parents)) = path.split_last() else { continue };
            let Some(hidden) = name.strip_prefix(b".wh.") else { continue };
            let directory = lower.resolve(parents)?;
            if name == b".wh..wh..opq" {
                self.remove_below(&directory);
            } else if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(Refusal::Undecided("a whiteout that hides no name".to_owned()));
            } else if !hidden.starts_with(b".wh.") {
                let path = joined(&directory, hidden);
                self.remove_below(&path);
                self.names.remove(&path);
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: &TestEntry, path: &[Vec<u8>]) -> Result<(), Refusal> {
        let Some((name, parents)) = path.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(Refusal::Undecided("a root that is no directory".to_owned()));
            }
            let root = self.new_inode(entry, InodeKind::Directory);
            self.names.insert(Vec::new(), root);
            return Ok(());
        };
        let parent = self.make_directories(parents)?;
        let path = joined(&parent, name);
        let kind = match &entry.kind {
            Kind::Hardlink(target) => {
                let inode = self.hardlink_target(target)?;
                if self.names.get(&path) == Some(&inode) {
                    return Err(Refusal::Undecided("a hardlink to itself".to_owned()));
                }
                self.remove_below(&path);
                self.names.insert(path, inode);
                return Ok(());
            }
            Kind::File(content) | Kind::SparseFile(content, _) => InodeKind::File(Rc::new(content.clone())),
            Kind::Directory => InodeKind::Directory,
            Kind::Symlink(target) => InodeKind::Symlink(target.clone()),
            Kind::CharacterDevice(major, minor) => InodeKind::CharacterDevice(*major, *minor),
            Kind::BlockDevice(major, minor) => InodeKind::BlockDevice(*major, *minor),
            Kind::Fifo => InodeKind::Fifo,
        };
        if kind != InodeKind::Directory {
            self.remove_below(&path);
        }
        let inode = self.new_inode(entry, kind);
        self.names.insert(path, inode);
        Ok(())
    }

    fn hardlink_target(&self, target: &[u8]) -> Result<usize, Refusal> {
        let path = clean(target);
        let (name, parents) =
            path.split_last().ok_or_else(|| Refusal::Malformed("a hardlink to the root".to_owned()))?;
        let path = joined(&self.resolve(parents)?, name);
        match self.names.get(&path) {
            Some(inode) if self.inodes[*inode].kind == InodeKind::Directory => {
                Err(Refusal::Malformed("a hardlink to a directory".to_owned()))
            }
            Some(inode) => Ok(*inode),
            None => Err(Refusal::Malformed(format!("a hardlink to the missing {}", shown(&path)))),
        }
    }

    /// Where a path of directories leads, symlinks followed inside the image. What is missing keeps its name.
    fn resolve(&self, path: &[Vec<u8>]) -> Result<Path, Refusal> {
        let mut left: Vec<Vec<u8>> = path.iter().rev().cloned().collect();
        let mut at = Path::new();
        let mut followed = 0;
        while let Some(name) = left.pop() {
            match name.as_slice() {
                b"" | b"." => {}
                b".." => {
                    at.pop();
                }
                _ => {
                    at.push(name);
                    let Some(InodeKind::Symlink(target)) = self.kind(&at) else { continue };
                    followed += 1;
                    if followed > MAXIMUM_SYMLINKS {
                        return Err(Refusal::Malformed(format!("a loop of symlinks at {}", shown(&at))));
                    }
                    at.pop();
                    if target.starts_with(b"/") {
                        at.clear();
                    }
                    left.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
            }
        }
        Ok(at)
    }

    fn make_directories(&mut self, path: &[Vec<u8>]) -> Result<Path, Refusal> {
        let path = self.resolve(path)?;
        for depth in 1..=path.len() {
            match self.kind(&path[..depth]) {
                Some(InodeKind::Directory) => {}
                None => {
                    self.inodes.push(implied_directory());
                    self.names.insert(path[..depth].to_vec(), self.inodes.len() - 1);
                }
                Some(_) => return Err(Refusal::Undecided(format!("an entry below the file {}", shown(&path[..depth])))),
            }
        }
        Ok(path)
    }

    fn kind(&self, path: &[Vec<u8>]) -> Option<&InodeKind> {
        self.names.get(path).map(|inode| &self.inodes[*inode].kind)
    }

    fn remove_below(&mut self, path: &[Vec<u8>]) {
        self.names.retain(|name, _| !(name.len() > path.len() && name.starts_with(path)));
    }

    fn new_inode(&mut self, entry: &TestEntry, kind: InodeKind) -> usize {
        let private = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        self.inodes.push(Inode {
            mode: if matches!(kind, InodeKind::Symlink(_)) { 0o777 } else { entry.mode },
            kind,
            uid: entry.uid,
            gid: entry.gid,
            modified: entry.modified,
            xattrs: entry.xattrs.iter().filter(|(name, _)| !private(name)).cloned().collect(),
        });
        self.inodes.len() - 1
    }

    /// The tree that a mount of the image must show.
    pub fn tree(&self) -> Tree {
        let mut links: BTreeMap<usize, u64> = BTreeMap::new();
        for (path, inode) in &self.names {
            *links.entry(*inode).or_default() += 1;
            if self.inodes[*inode].kind == InodeKind::Directory {
                *links.entry(*inode).or_default() += 1;
                if let Some((_, parent)) = path.split_last() {
                    *links.entry(self.names[parent]).or_default() += 1;
                }
            }
        }
        let nodes = self.names.iter().map(|(path, number)| {
            let inode = &self.inodes[*number];
            let (kind, size) = match &inode.kind {
                InodeKind::File(content) => {
                    (NodeKind::File(Source::Described(content.clone())), content.length())
                }
                InodeKind::Directory => (NodeKind::Directory, 0),
                InodeKind::Symlink(target) => (NodeKind::Symlink(target.clone()), target.len() as u64),
                InodeKind::CharacterDevice(major, minor) => (NodeKind::CharacterDevice(*major, *minor), 0),
                InodeKind::BlockDevice(major, minor) => (NodeKind::BlockDevice(*major, *minor), 0),
                InodeKind::Fifo => (NodeKind::Fifo, 0),
            };
            let node = Node {
                kind,
                mode: inode.mode,
                uid: inode.uid,
                gid: inode.gid,
                size,
                modified: inode.modified,
                links: links[number],
                inode: *number as u64,
                xattrs: inode.xattrs.clone(),
            };
            (path.join(&b'/'), node)
        });
        Tree { nodes: nodes.collect(), root: None }
    }
}

fn implied_directory() -> Inode {
    Inode { kind: InodeKind::Directory, mode: 0o755, uid: 0, gid: 0, modified: (0, 0), xattrs: BTreeMap::new() }
}

/// The components of a name once `.`, `..` and empty ones are resolved by letter; `..` does not leave the root.
fn clean(path: &[u8]) -> Path {
    let mut cleaned = Path::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                cleaned.pop();
            }
            name => cleaned.push(name.to_vec()),
        }
    }
    cleaned
}

fn joined(directory: &[Vec<u8>], name: &[u8]) -> Path {
    let mut path = directory.to_vec();
    path.push(name.to_vec());
    path
}

fn shown(path: &[Vec<u8>]) -> String {
    String::from_utf8_lossy(&path.join(&b'/')).into_owned()
}
