//! Lays the tables of a stack of layers over each other and gives the table of the merged tree.
//!
//! Layers are applied from the lowest up, each as a whole: first the hardlinks that name files of lower layers are resolved,
//! against the tree as it is below this layer; then what markers hide is removed; then entries act directory by directory; last,
//! what lies below a name that the tree below made a symlink is put where the link points. The rules are those of the OCI
//! image specification (layer.md, "Applying Changesets"); where implementations differ, `docs/merge.md` says what holds here.

use crate::layer::path;
use crate::layer::walk::{Patience, Walk, WalkError};
use crate::table::format::*;
use crate::table::writer::{self, Child, Contents, Source, SourceInode};
use crate::table::{Table, TableError};

/// Most layers of one stack.
pub const MAXIMUM_LAYERS: usize = 1024;

/// A stack that cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    /// A hardlink's target is in no layer.
    #[error(
        "layer {layer} (counted from 1, the lowest): a hardlink names {target:?}, which no layer below has as a file"
    )]
    MissingTarget {
        /// Which layer, from 1.
        layer: usize,
        /// The target, escaped.
        target: String,
    },
    /// Something about a name.
    #[error("layer {layer} (counted from 1, the lowest): entry below {name:?}: {what}")]
    Entry {
        /// Which layer, from 1.
        layer: usize,
        /// A component of the name, escaped.
        name: String,
        /// What is wrong.
        what: WalkError,
    },
    /// Directories that hold each other, or have several names: no layer's writer makes such a table.
    #[error("layer {layer} (counted from 1, the lowest): its inode table is damaged: it is not a tree")]
    NotATree {
        /// Which layer, from 1.
        layer: usize,
    },
    /// More layers than [`MAXIMUM_LAYERS`].
    #[error("the image has {0} layers, more than {MAXIMUM_LAYERS}")]
    TooManyLayers(usize),
    /// What was noted of how the layers lie over each other fits no image.
    #[error("the image's composition is damaged: {what}")]
    Composition {
        /// What is wrong.
        what: &'static str,
    },
    /// A table that was just written.
    #[error(transparent)]
    Table(#[from] TableError),
    /// More than a table can number.
    #[error(transparent)]
    TooLarge(#[from] writer::TooLarge),
}

/// What is applied: a table, and whose files they are.
#[derive(Clone, Copy)]
pub struct Applied<'a> {
    /// The table.
    pub table: &'a Table,
    /// The layer that has the content of all its files, as the tree numbers them; nothing if each file names its own.
    pub layer: Option<u16>,
}

/// The table of the merged tree of these layers, the lowest first. `identity` is what it is known by.
pub fn merge(layers: &[&Table], identity: [u8; 32]) -> Result<Vec<u8>, MergeError> {
    if layers.len() > MAXIMUM_LAYERS {
        return Err(MergeError::TooManyLayers(layers.len()));
    }
    let numbered = layers.iter().enumerate();
    let applied: Vec<_> =
        numbered.map(|(number, table)| Applied { table, layer: Some(number as u16) }).collect();
    merge_applied(&applied, layers.len() as u32, identity)
}

/// The table of the tree that these make, applied one after another, over so many layers.
pub fn merge_applied(
    applied: &[Applied<'_>],
    layers: u32,
    identity: [u8; 32],
) -> Result<Vec<u8>, MergeError> {
    if applied.len() > MAXIMUM_LAYERS {
        return Err(MergeError::TooManyLayers(applied.len()));
    }
    let mut merged = Merged::new(applied);
    for number in 0..applied.len() {
        merged.apply(number)?;
    }
    let contents = Contents { identity, layers, extents: &[], chunks: &[], large: &[] };
    Ok(writer::write(&merged, contents)?)
}

/// Where an inode's record is.
#[derive(Clone, Copy)]
enum Origin {
    /// In a layer's table.
    Layer { layer: u16, inode: u32 },
    /// Nowhere: a directory that no layer describes.
    Implicit,
}

#[derive(Clone, Copy)]
struct Node {
    origin: Origin,
    /// For a directory its place in [`Merged::directories`], else [`NONE`].
    directory: u32,
}

struct Directory<'a> {
    /// Sorted by name.
    children: Vec<(&'a [u8], u32)>,
    parent: u32,
}

struct Merged<'a> {
    applied: &'a [Applied<'a>],
    nodes: Vec<Node>,
    directories: Vec<Directory<'a>>,
    patience: Patience,
}

/// What lies below a directory that the layer only implies, where the tree has a symlink.
struct Redirect<'a> {
    /// The directory (node) that holds the symlink.
    parent: u32,
    name: &'a [u8],
    /// The layer's directory.
    inode: &'a InodeRecord,
}

/// What is done about a directory that is missing behind a symlink.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

/// Says in which layer, and below which name, a path leads nowhere.
fn in_layer(number: usize, name: &[u8]) -> impl FnOnce(WalkError) -> MergeError {
    move |what| MergeError::Entry { layer: number + 1, name: name.escape_ascii().to_string(), what }
}

/// Whether a layer hides anything of lower ones.
fn has_markers(table: &Table) -> bool {
    let hides = |inode: &InodeRecord| inode.flags.get() & (inode_flags::OPAQUE | inode_flags::REMADE) != 0;
    table.has_whiteouts() || table.inodes().iter().any(hides)
}

/// What is needed while one layer is applied.
struct Application<'a> {
    walk: TableWalk<'a>,
    layer: u16,
    /// The node of each inode that has several names, or that is a hardlink to a lower layer.
    known: std::collections::HashMap<u32, u32>,
    /// Directories of the tree, and of the layer, that lie over each other.
    pairs: Vec<(u32, &'a InodeRecord)>,
    redirects: Vec<Redirect<'a>>,
}

/// A walk over all directories of a layer's table, each of which is entered once. In a table that is no tree it would go on for ever, or
/// nearly so; but it sees no more entries than the table has.
pub(super) struct TableWalk<'a> {
    table: &'a Table,
    layer: usize,
    entries_left: usize,
}

impl<'a> TableWalk<'a> {
    pub(super) fn new(table: &'a Table, layer: usize) -> Self {
        TableWalk { table, layer, entries_left: table.entry_count() }
    }

    pub(super) fn enter(&mut self, directory: &'a InodeRecord) -> Result<&'a [EntryRecord], MergeError> {
        let entries = self.table.directory(directory);
        let left = self.entries_left.checked_sub(entries.len());
        self.entries_left = left.ok_or(MergeError::NotATree { layer: self.layer + 1 })?;
        Ok(entries)
    }
}

impl<'a> Merged<'a> {
    fn new(applied: &'a [Applied<'a>]) -> Self {
        let inodes = applied.iter().map(|applied| applied.table.inodes().len());
        let capacity = inodes.sum::<usize>().min(MAXIMUM_INODES);
        let mut nodes = Vec::with_capacity(capacity + 1);
        nodes.push(Node { origin: Origin::Implicit, directory: 0 });
        let directories = vec![Directory { children: vec![], parent: 0 }];
        Merged { applied, nodes, directories, patience: Patience::default() }
    }

    fn apply(&mut self, number: usize) -> Result<(), MergeError> {
        let table = self.applied[number].table;
        let mut application = Application {
            walk: TableWalk::new(table, number),
            layer: number as u16,
            known: Default::default(),
            pairs: vec![],
            redirects: vec![],
        };
        self.resolve_hardlinks(&mut application)?;
        let root = &table.inodes()[0];
        if has_markers(table) {
            self.apply_markers(TableWalk::new(table, number), root)?;
        }
        if root.flags.get() & inode_flags::IMPLICIT == 0 {
            self.nodes[0].origin = Origin::Layer { layer: application.layer, inode: 0 };
        }
        application.pairs.push((0, root));
        loop {
            while let Some((node, inode)) = application.pairs.pop() {
                self.apply_directory(node, inode, &mut application)?;
            }
            let Some(redirect) = application.redirects.pop() else { return Ok(()) };
            let place = self.follow_symlink(redirect.parent, redirect.name, Missing::Make);
            if let Some(place) = place.map_err(in_layer(number, redirect.name))? {
                application.pairs.push((place, redirect.inode));
            }
        }
    }

    /// Removes what the layer's whiteouts, opaque markers and remade directories hide. They act on lower layers only, so they go
    /// before the entries; and they make no directory.
    fn apply_markers(&mut self, mut walk: TableWalk<'a>, root: &'a InodeRecord) -> Result<(), MergeError> {
        let (table, number) = (walk.table, walk.layer);
        let mut pairs = vec![(0, root)];
        while let Some((node, inode)) = pairs.pop() {
            let place = self.nodes[node as usize].directory as usize;
            if inode.flags.get() & inode_flags::OPAQUE != 0 {
                self.directories[place].children.clear();
                continue;
            }
            let mut hidden = Vec::new();
            for entry in walk.enter(inode)? {
                let name = table.name(entry);
                let below = table.inode(entry.inode.get());
                let directory = below.filter(|below| below.mode.get() & libc::S_IFMT == libc::S_IFDIR);
                if entry.kind.get() == 0
                    || directory.is_some_and(|directory| directory.flags.get() & inode_flags::REMADE != 0)
                {
                    hidden.push(name);
                } else if let (Some(directory), Some(child)) = (directory, self.child(node, name)) {
                    if self.nodes[child as usize].directory != NONE {
                        pairs.push((child, directory));
                    } else if directory.flags.get() & inode_flags::IMPLICIT != 0
                        && self.symlink_target(child).is_some()
                    {
                        match self.follow_symlink(node, name, Missing::Leave) {
                            Ok(Some(place)) => pairs.push((place, directory)),
                            // A circle of links leads to nothing that could be hidden; this layer may remove it.
                            Ok(None) | Err(WalkError::Symlinks) => {}
                            Err(what) => return Err(in_layer(number, name)(what)),
                        }
                    }
                }
            }
            // Both are sorted by name.
            let mut hidden = hidden.into_iter().peekable();
            self.directories[place].children.retain(|(name, _)| {
                while hidden.next_if(|other| other < name).is_some() {}
                hidden.peek() != Some(name)
            });
        }
        Ok(())
    }

    fn resolve_hardlinks(&mut self, application: &mut Application<'a>) -> Result<(), MergeError> {
        for (number, inode) in application.walk.table.inodes().iter().enumerate() {
            if inode.flags.get() & inode_flags::LINK_TO_LOWER == 0 {
                continue;
            }
            let target = application.walk.table.target(inode);
            let node = self.find(target).filter(|node| self.nodes[*node as usize].directory == NONE);
            let node = node.ok_or_else(|| MergeError::MissingTarget {
                layer: usize::from(application.layer) + 1,
                target: target.escape_ascii().to_string(),
            })?;
            application.known.insert(number as u32, node);
        }
        Ok(())
    }

    fn apply_directory(
        &mut self,
        node: u32,
        inode: &'a InodeRecord,
        application: &mut Application<'a>,
    ) -> Result<(), MergeError> {
        let place = self.nodes[node as usize].directory as usize;
        let table = application.walk.table;
        let entries = application.walk.enter(inode)?;
        let old = std::mem::take(&mut self.directories[place].children);
        let mut children = Vec::with_capacity(old.len() + entries.len());
        let mut old = old.into_iter().peekable();
        for entry in entries {
            let name = table.name(entry);
            while let Some(before) = old.next_if(|(other, _)| *other < name) {
                children.push(before);
            }
            let existing = old.next_if(|(other, _)| *other == name).map(|(_, node)| node);
            if let Some(child) = self.apply_entry(node, name, entry, existing, application) {
                children.push((name, child));
            }
        }
        children.extend(old);
        self.directories[place].children = children;
        Ok(())
    }

    /// What has that name once the entry is applied. What markers hide is gone already.
    fn apply_entry(
        &mut self,
        parent: u32,
        name: &'a [u8],
        entry: &EntryRecord,
        existing: Option<u32>,
        application: &mut Application<'a>,
    ) -> Option<u32> {
        let number = entry.inode.get();
        let Some(inode) = application.walk.table.inode(number) else { return existing };
        let origin = Origin::Layer { layer: application.layer, inode: number };
        if inode.mode.get() & libc::S_IFMT != libc::S_IFDIR {
            if let Some(node) = application.known.get(&number) {
                return Some(*node);
            }
            let node = self.insert(Node { origin, directory: NONE });
            if inode.link_count.get() > 1 {
                application.known.insert(number, node);
            }
            return Some(node);
        }
        let flags = inode.flags.get();
        let implicit = flags & inode_flags::IMPLICIT != 0;
        if flags & inode_flags::MARKERS_ONLY != 0 {
            return existing;
        }
        if let Some(node) = existing {
            if self.nodes[node as usize].directory != NONE {
                if !implicit {
                    self.nodes[node as usize].origin = origin;
                }
                application.pairs.push((node, inode));
                return Some(node);
            }
            if implicit && self.symlink_target(node).is_some() {
                application.redirects.push(Redirect { parent, name, inode });
                return Some(node);
            }
        }
        let node = self.insert_directory(if implicit { Origin::Implicit } else { origin }, parent);
        application.pairs.push((node, inode));
        Some(node)
    }

    fn insert(&mut self, node: Node) -> u32 {
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    fn insert_directory(&mut self, origin: Origin, parent: u32) -> u32 {
        self.directories.push(Directory { children: vec![], parent });
        self.insert(Node { origin, directory: (self.directories.len() - 1) as u32 })
    }

    fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let children = &self.directories[self.nodes[directory as usize].directory as usize].children;
        let place = children.binary_search_by(|(other, _)| (*other).cmp(name)).ok()?;
        Some(children[place].1)
    }

    fn record(&self, node: u32) -> Option<(&'a Table, &'a InodeRecord)> {
        let Origin::Layer { layer, inode } = self.nodes[node as usize].origin else { return None };
        let table = self.applied[usize::from(layer)].table;
        Some((table, table.inode(inode)?))
    }

    fn symlink_target(&self, node: u32) -> Option<&'a [u8]> {
        let (table, inode) = self.record(node)?;
        (inode.mode.get() & libc::S_IFMT == libc::S_IFLNK).then(|| table.target(inode))
    }

    /// The directories from the root to that directory.
    fn place_of(&self, directory: u32) -> Vec<u32> {
        let mut place = vec![directory];
        let mut here = directory;
        while here != 0 {
            here = self.directories[self.nodes[here as usize].directory as usize].parent;
            place.push(here);
        }
        place.reverse();
        place
    }

    /// The directory that the symlink of that name leads to, inside the image. What is missing on the way, or is neither directory nor
    /// symlink, is made a directory, as below any other missing parent, or ends the search.
    fn follow_symlink(
        &mut self,
        parent: u32,
        name: &'a [u8],
        missing: Missing,
    ) -> Result<Option<u32>, WalkError> {
        let mut walk = Walk::new(self.place_of(parent), std::iter::once(name));
        while let Some(name) = walk.next_name() {
            let found = self.child(walk.here(), name);
            if let Some(node) = found.filter(|node| self.nodes[*node as usize].directory != NONE) {
                walk.enter(node)?;
            } else if let Some(target) = found.and_then(|node| self.symlink_target(node)) {
                walk.follow(target, &mut self.patience)?;
            } else if missing == Missing::Leave {
                return Ok(None);
            } else {
                let made = self.make_directory(walk.here(), name);
                walk.enter(made)?;
            }
        }
        Ok(Some(walk.here()))
    }

    /// An implicit directory of that name, in the place of what had it.
    fn make_directory(&mut self, parent: u32, name: &'a [u8]) -> u32 {
        let node = self.insert_directory(Origin::Implicit, parent);
        let directory = self.nodes[parent as usize].directory as usize;
        let children = &mut self.directories[directory].children;
        match children.binary_search_by(|(other, _)| (*other).cmp(name)) {
            Ok(taken) => children[taken].1 = node,
            Err(free) => children.insert(free, (name, node)),
        }
        node
    }

    /// What has that path; symlinks are followed in all but the last component.
    fn find(&mut self, target: &'a [u8]) -> Option<u32> {
        let mut walk = Walk::new(vec![], path::components(target).ok()?.into_iter());
        while let Some(name) = walk.next_name() {
            if self.nodes[walk.here() as usize].directory == NONE {
                return None;
            }
            let node = self.child(walk.here(), name)?;
            if walk.is_at_end() {
                return Some(node);
            }
            match self.symlink_target(node) {
                Some(target) => walk.follow(target, &mut self.patience).ok()?,
                None => walk.enter(node).ok()?,
            }
        }
        None
    }
}

impl Source for Merged<'_> {
    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn inode(&self, node: u32) -> SourceInode<'_> {
        let Some((table, inode)) = self.record(node) else {
            let mut record = InodeRecord::default();
            record.mode.set(libc::S_IFDIR | 0o755);
            return SourceInode { record, xattrs: &[], target: &[] };
        };
        let mut record = *inode;
        record.flags.set(record.flags.get() & inode_flags::ALL_ZEROS);
        if let Origin::Layer { layer, .. } = self.nodes[node as usize].origin
            && let Some(own) = self.applied[usize::from(layer)].layer
        {
            record.layer.set(own);
        }
        let target =
            if record.mode.get() & libc::S_IFMT == libc::S_IFLNK { table.target(inode) } else { &[] };
        SourceInode { record, xattrs: table.xattr_set(inode), target }
    }

    fn children(&self, node: u32, visit: &mut dyn FnMut(&[u8], Child)) {
        let directory = self.nodes[node as usize].directory;
        if directory != NONE {
            for (name, child) in &self.directories[directory as usize].children {
                visit(name, Child::Node(*child));
            }
        }
    }
}
