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
//! - An entry below a name that is neither directory nor symlink replaces it by a directory.
//! - A hardlink is another name of an inode that is there at that moment, or else of one that the layers below had, though this
//!   layer's whiteouts hide it; its own attributes are ignored. A hardlink of a name to itself is nothing.
//! - The private xattrs of overlayfs are dropped. Symlinks have mode 0777, as on every Linux file system.

use super::archive::{Kind, TestEntry};
use super::content::Content;
use super::tree::{Node, NodeKind, Source, Tree};
use std::collections::{BTreeMap, BTreeSet};
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

impl Layer {
    /// Entries of different names that a symlink of a lower layer brings to one place: which is the later one, no rule says.
    fn refuse_two_ways_to_one_name(&self) -> Result<(), Refusal> {
        for moved in self.made.iter().filter(|made| made.name != made.place) {
            for other in self.made.iter().filter(|other| other.name != moved.name) {
                let covers =
                    |above: &Made, below: &Made| !above.is_directory && below.place.starts_with(&above.place);
                if moved.place == other.place || covers(moved, other) || covers(other, moved) {
                    return Err(Refusal(format!("{} is made by two names", shown(&moved.place))));
                }
                // Whether the other lies below the link's target, or below what replaced the link.
                if other.name.starts_with(&moved.place) && self.lower.is_symlink(&moved.place) {
                    return Err(Refusal(format!("{} is replaced by another name", shown(&moved.place))));
                }
            }
        }
        Ok(())
    }
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

/// What is remembered while one layer is applied.
struct Layer {
    /// The tree of the layers below.
    lower: Model,
    /// Symlinks of lower layers on the way to an entry.
    followed: BTreeSet<Path>,
    made: Vec<Made>,
}

/// An entry of the layer: how it was named, and where it came to lie.
struct Made {
    name: Path,
    place: Path,
    inode: usize,
    is_directory: bool,
    is_hardlink: bool,
}

/// Why a layer makes no tree: an image with it is refused, or no rule says what it means (a comment does).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(pub String);

impl InodeKind {
    fn of(kind: &Kind) -> InodeKind {
        match kind {
            Kind::File(content) | Kind::SparseFile(content, _) => InodeKind::File(Rc::new(content.clone())),
            Kind::Directory => InodeKind::Directory,
            Kind::Symlink(target) => InodeKind::Symlink(target.clone()),
            Kind::CharacterDevice(major, minor) => InodeKind::CharacterDevice(*major, *minor),
            Kind::BlockDevice(major, minor) => InodeKind::BlockDevice(*major, *minor),
            Kind::Fifo => InodeKind::Fifo,
            Kind::Hardlink(_) => unreachable!("a hardlink has no inode of its own"),
        }
    }
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
        let mut layer = Layer { lower: self.clone(), followed: BTreeSet::new(), made: Vec::new() };
        self.apply_whiteouts(entries, &layer.lower)?;
        for entry in entries {
            let path = clean(&entry.path);
            if !path.last().is_some_and(|name| name.starts_with(b".wh.")) {
                self.apply_entry(entry, &path, &mut layer)?;
            }
        }
        layer.refuse_two_ways_to_one_name()
    }

    fn is_symlink(&self, path: &[Vec<u8>]) -> bool {
        matches!(self.kind(path), Some(InodeKind::Symlink(_)))
    }

    /// Whether the directory of this marker is one in the layers below, by that very name, and not replaced by the marker's layer.
    fn is_plain_marker(&self, marker: &TestEntry, entries: &[TestEntry]) -> bool {
        let path = clean(&marker.path);
        let Some((name, parents)) = path.split_last() else { return true };
        if !name.starts_with(b".wh.") {
            return true;
        }
        let replaces = |entry: &TestEntry| {
            let mut replaced = clean(&entry.path);
            let Some(name) = replaced.pop() else { return false };
            match name.strip_prefix(b".wh.") {
                Some(b".wh..opq") => parents.len() > replaced.len() && parents.starts_with(&replaced),
                Some(hidden) => parents.starts_with(&joined(&replaced, hidden)),
                None => entry.kind != Kind::Directory && parents.starts_with(&joined(&replaced, &name)),
            }
        };
        let mut links = BTreeSet::new();
        let directory = self.resolve(parents, &mut links);
        directory.is_ok_and(|directory| self.kind(&directory) == Some(&InodeKind::Directory))
            && links.is_empty()
            && !entries.iter().any(replaces)
    }

    /// These layers without the markers whose directory is not plainly there: the layers that tools write.
    pub fn with_plain_markers(layers: Vec<Vec<TestEntry>>) -> Vec<Vec<TestEntry>> {
        let mut model = Model::new();
        let plain = |entries: Vec<TestEntry>| {
            let is_plain = |entry: &&TestEntry| model.is_plain_marker(entry, &entries);
            let entries: Vec<TestEntry> = entries.iter().filter(is_plain).cloned().collect();
            // A layer that is refused will be refused again.
            let _ = model.apply(&entries);
            entries
        };
        layers.into_iter().map(plain).collect()
    }

    fn apply_whiteouts(&mut self, entries: &[TestEntry], lower: &Model) -> Result<(), Refusal> {
        for entry in entries {
            let path = clean(&entry.path);
            let Some((name, parents)) = path.split_last() else { continue };
            let Some(hidden) = name.strip_prefix(b".wh.") else { continue };
            // Does it hide what is below the new link's target, or what was below its name? No rule says.
            let is_link_above = |other: &TestEntry| {
                matches!(other.kind, Kind::Symlink(_) | Kind::Hardlink(_))
                    && parents.starts_with(&clean(&other.path))
            };
            if entries.iter().any(is_link_above) {
                return Err(Refusal(format!("a whiteout below the new link {}", shown(parents))));
            }
            let directory = lower.resolve(parents, &mut BTreeSet::new())?;
            if name == b".wh..wh..opq" {
                self.remove_below(&directory);
            } else if hidden.is_empty() || hidden == b"." || hidden == b".." {
                return Err(Refusal("a whiteout that hides no name".to_owned()));
            } else if !hidden.starts_with(b".wh.") {
                let path = joined(&directory, hidden);
                self.remove_below(&path);
                self.names.remove(&path);
            }
        }
        Ok(())
    }

    fn apply_entry(&mut self, entry: &TestEntry, path: &[Vec<u8>], layer: &mut Layer) -> Result<(), Refusal> {
        let Some((name, parents)) = path.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(Refusal("a root that is no directory".to_owned()));
            }
            let root = self.new_inode(entry, InodeKind::Directory);
            self.names.insert(Vec::new(), root);
            return Ok(());
        };
        if layer.made.iter().any(|made| made.is_hardlink && parents.starts_with(&made.name)) {
            return Err(Refusal(format!("{} lies below a hardlink", shown(path))));
        }
        let parent = self.make_directories(parents, layer)?;
        let place = joined(&parent, name);
        // Whether what lay below the link is now below its target, or went with the link: no rule says.
        let holds =
            |link: &Path| *link == place || (entry.kind != Kind::Directory && link.starts_with(&place));
        if layer.followed.iter().any(holds) {
            return Err(Refusal(format!("{} is replaced after it was followed", shown(&place))));
        }
        let inode = match &entry.kind {
            Kind::Hardlink(target) => {
                let inode = self.hardlink_target(target, layer)?;
                self.remove_below(&place);
                inode
            }
            Kind::Directory => {
                if self.kind(&place).is_some_and(|kind| *kind != InodeKind::Directory) {
                    self.refuse_twofold_directory(&place, layer)?;
                }
                self.new_inode(entry, InodeKind::Directory)
            }
            kind => {
                self.remove_below(&place);
                self.new_inode(entry, InodeKind::of(kind))
            }
        };
        self.names.insert(place.clone(), inode);
        let is_directory = entry.kind == Kind::Directory;
        let is_hardlink = matches!(entry.kind, Kind::Hardlink(_));
        layer.made.push(Made { name: path.to_vec(), place, inode, is_directory, is_hardlink });
        Ok(())
    }

    /// The inode that a hardlink names.
    fn hardlink_target(&self, target: &[u8], layer: &Layer) -> Result<usize, Refusal> {
        let found = self.hardlink_target_here(target)?;
        let below = layer.lower.hardlink_target_here(target)?;
        let inode = found
            .or(below)
            .ok_or_else(|| Refusal(format!("a hardlink to the missing {}", target.escape_ascii())))?;
        // A name that only this layer's own entries and the links below it, taken together, lead to: tools disagree.
        let is_named_so = |made: &Made| made.inode == inode && made.name == clean(target);
        if Some(inode) == below || layer.made.iter().any(is_named_so) {
            Ok(inode)
        } else {
            Err(Refusal(format!("a hardlink to {} by another name", target.escape_ascii())))
        }
    }

    fn hardlink_target_here(&self, target: &[u8]) -> Result<Option<usize>, Refusal> {
        let path = clean(target);
        let (name, parents) =
            path.split_last().ok_or_else(|| Refusal("a hardlink to the root".to_owned()))?;
        let path = joined(&self.resolve(parents, &mut BTreeSet::new())?, name);
        match self.names.get(&path) {
            Some(inode) if self.inodes[*inode].kind == InodeKind::Directory => {
                Err(Refusal("a hardlink to a directory".to_owned()))
            }
            found => Ok(found.copied()),
        }
    }

    /// Where a path of directories leads, symlinks followed inside the image. What is missing keeps its name.
    fn resolve(&self, path: &[Vec<u8>], links: &mut BTreeSet<Path>) -> Result<Path, Refusal> {
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
                    links.insert(at.clone());
                    if followed > MAXIMUM_SYMLINKS {
                        return Err(Refusal(format!("a loop of symlinks at {}", shown(&at))));
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

    fn make_directories(&mut self, path: &[Vec<u8>], layer: &mut Layer) -> Result<Path, Refusal> {
        let path = self.resolve(path, &mut layer.followed)?;
        // A link that was itself moved by a link of the layers below: whence its `..` counts, no rule says.
        if layer.made.iter().any(|made| made.name != made.place && layer.followed.contains(&made.place)) {
            return Err(Refusal(format!("a link that was moved lies on the way to {}", shown(&path))));
        }
        for depth in 1..=path.len() {
            let place = &path[..depth];
            if self.kind(place) != Some(&InodeKind::Directory) {
                if self.kind(place).is_some() {
                    self.refuse_twofold_directory(place, layer)?;
                }
                self.inodes.push(implied_directory());
                self.names.insert(place.to_vec(), self.inodes.len() - 1);
            }
        }
        Ok(path)
    }

    /// A layer that makes one name a file first and a directory then, where the layers below have a directory, or a link
    /// to one: whether what they have in it is seen, no rule says, and no tool writes such a layer.
    fn refuse_twofold_directory(&self, path: &[Vec<u8>], layer: &Layer) -> Result<(), Refusal> {
        let is_own = self.names.get(path) != layer.lower.names.get(path);
        match layer.lower.kind(path) {
            Some(InodeKind::Directory | InodeKind::Symlink(_)) if is_own => {
                Err(Refusal(format!("{} is a file and then a directory", shown(path))))
            }
            _ => Ok(()),
        }
    }

    fn kind(&self, path: &[Vec<u8>]) -> Option<&InodeKind> {
        self.names.get(path).map(|inode| &self.inodes[*inode].kind)
    }

    fn remove_below(&mut self, path: &[Vec<u8>]) {
        self.names.retain(|name, _| !(name.len() > path.len() && name.starts_with(path)));
    }

    fn new_inode(&mut self, entry: &TestEntry, kind: InodeKind) -> usize {
        let private =
            |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
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
    Inode {
        kind: InodeKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        modified: (0, 0),
        xattrs: BTreeMap::new(),
    }
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
