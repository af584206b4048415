//! Entries in the order of the archive → the tree of one layer → its inode table.
//!
//! The rules, the same for every format:
//! - names are cleaned ([`path`](super::path)); a later entry of a name replaces the earlier one, but a directory over a
//!   directory changes only its attributes;
//! - a missing parent is made as an *implicit* directory, whose attributes a lower layer decides (else 0755 root); a parent
//!   that this layer made a symlink is followed inside the image, one that is another non-directory is replaced;
//! - whiteouts and opaque markers act on lower layers only, so they are kept apart from this layer's own entries, whatever
//!   their place in the archive;
//! - a hardlink whose target this layer has not made yet names a file of a lower layer.

use std::collections::BTreeMap;

use super::entry::{Chunk, Content, Entry, EntryKind};
use super::path::{self, Meaning, PathError};
use super::walk::{Patience, Walk, WalkError};
use crate::table::format::*;
use crate::table::placement::LargePart;
use crate::table::writer::{self, Child, Contents, Source, SourceInode, encode_xattrs};

/// Longest name of an extended attribute in bytes (`XATTR_NAME_MAX`).
const MAXIMUM_XATTR_NAME: usize = 255;
/// Largest value of an extended attribute in bytes (`XATTR_SIZE_MAX`).
const MAXIMUM_XATTR_VALUE: usize = 64 << 10;

/// An entry that cannot be part of a layer.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Its name cannot be in a tree.
    #[error("entry {name:?}: {reason}")]
    Path {
        /// The name as written, escaped.
        name: String,
        /// What is wrong with it.
        reason: PathError,
    },
    /// The directory that is to hold it cannot be reached.
    #[error("entry {name:?}: {reason}")]
    Parent {
        /// The name as written, escaped.
        name: String,
        /// Why not.
        reason: WalkError,
    },
    /// Something else about it.
    #[error("entry {name:?}: {what}")]
    Entry {
        /// The name as written, escaped.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Chunks or large files that overlap in the decoded space.
    #[error("the layer's {what} overlap")]
    Overlap {
        /// Which records.
        what: &'static str,
    },
    /// More than a table can number.
    #[error(transparent)]
    TooLarge(#[from] writer::TooLarge),
}

#[derive(Default)]
struct Node {
    record: InodeRecord,
    xattrs: Vec<u8>,
    target: Vec<u8>,
    children: BTreeMap<Box<[u8]>, Slot>,
    names: u32,
}

/// What a layer says of one name: an inode, a whiteout, or both.
#[derive(Clone, Copy, Default)]
struct Slot {
    node: Option<u32>,
    whiteout: bool,
}

/// What a directory is looked for: to hold an entry, or a whiteout or opaque marker.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Entry,
    Marker,
}

/// Collects the entries of one layer.
pub struct LayerBuilder {
    nodes: Vec<Node>,
    free: Vec<u32>,
    extents: Vec<ExtentRecord>,
    large: Vec<LargePart>,
    large_sizes: Vec<u64>,
    patience: Patience,
    last_parent: LastParent,
}

/// Where the last entry's parent was found. Archives list a directory's files one after the other, and need not walk to it for each.
/// It holds until a name is replaced: nothing else changes where a path leads.
#[derive(Default)]
struct LastParent {
    /// All of the entry's name before its last component, as written.
    prefix: Vec<u8>,
    node: Option<u32>,
}

impl Node {
    fn kind(&self) -> u32 {
        self.record.mode.get() & libc::S_IFMT
    }
    fn is_directory(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
    fn is_stated_directory(&self) -> bool {
        self.is_directory() && self.record.flags.get() & inode_flags::IMPLICIT == 0
    }
    fn is_symlink(&self) -> bool {
        self.kind() == libc::S_IFLNK
    }
}

fn implicit_directory() -> Node {
    let mut node = Node::default();
    node.record.mode.set(libc::S_IFDIR | 0o755);
    node.record.flags.set(inode_flags::IMPLICIT);
    node
}

impl Default for LayerBuilder {
    fn default() -> Self {
        LayerBuilder {
            nodes: vec![implicit_directory()],
            free: vec![],
            extents: vec![],
            large: vec![],
            large_sizes: vec![],
            patience: Patience::default(),
            last_parent: LastParent::default(),
        }
    }
}

impl LayerBuilder {
    /// A layer without entries.
    pub fn new() -> LayerBuilder {
        LayerBuilder::default()
    }

    /// The parts of the decoded space that have data files of their own, of the entries so far. Those of an entry are there
    /// as soon as it was added, so that its payload can be put in place while it arrives.
    pub fn large_parts(&self) -> &[LargePart] {
        &self.large
    }

    /// The sizes in bytes of the large files so far, by the number of their data file.
    pub fn large_sizes(&self) -> &[u64] {
        &self.large_sizes
    }

    /// Adds the next entry of the archive.
    pub fn add(&mut self, mut entry: Entry) -> Result<(), BuildError> {
        let name = std::mem::take(&mut entry.path);
        let at_path = |reason| BuildError::Path { name: name.escape_ascii().to_string(), reason };
        let wrong = |what| BuildError::Entry { name: name.escape_ascii().to_string(), what };
        let components = path::components(&name).map_err(at_path)?;
        let Some((last, parents)) = components.split_last() else {
            if entry.kind != EntryKind::Directory {
                return Err(wrong("the root of the image must be a directory"));
            }
            let node = self.node_of(&entry).map_err(wrong)?;
            self.change_attributes(0, node);
            return Ok(());
        };
        let meaning = path::meaning(last).map_err(at_path)?;
        if meaning == Meaning::Bookkeeping {
            return Ok(());
        }
        let purpose = if matches!(meaning, Meaning::Name(_)) { Purpose::Entry } else { Purpose::Marker };
        let prefix = &name[..last.as_ptr() as usize - name.as_ptr() as usize];
        let parent = self
            .parent(prefix, parents, purpose)
            .map_err(|reason| BuildError::Parent { name: name.escape_ascii().to_string(), reason })?;
        let Some(parent) = parent else { return Ok(()) };
        match meaning {
            Meaning::Whiteout(hidden) => {
                self.nodes[parent as usize].children.entry(hidden.into()).or_default().whiteout = true;
            }
            Meaning::OpaqueWhiteout => self.nodes[parent as usize].record.flags |= inode_flags::OPAQUE,
            _ => self.put(parent, last, &entry).map_err(wrong)?,
        }
        if self.nodes.len() - self.free.len() > MAXIMUM_INODES || self.extents.len() > MAXIMUM_EXTENTS {
            return Err(wrong("the layer has more entries than a table can hold"));
        }
        Ok(())
    }

    fn put(&mut self, parent: u32, name: &[u8], entry: &Entry) -> Result<(), &'static str> {
        let known = self.child(parent, name);
        let node = match &entry.kind {
            EntryKind::Hardlink { target } => match self.find(target)? {
                Some(node) if self.nodes[node as usize].is_stated_directory() => {
                    return Err("it is a hardlink to a directory");
                }
                Some(node) if known == Some(node) => return Ok(()),
                // A directory that this layer only implies may be a symlink of a lower one, of which this is another name.
                Some(node) if !self.nodes[node as usize].is_directory() => node,
                _ => {
                    let node = self.node_of(entry)?;
                    self.insert(node)
                }
            },
            _ => {
                let node = self.node_of(entry)?;
                if let (Some(known), EntryKind::Directory) = (known, &entry.kind)
                    && self.nodes[known as usize].is_directory()
                {
                    self.change_attributes(known, node);
                    return Ok(());
                }
                self.insert(node)
            }
        };
        self.link(parent, name, node);
        Ok(())
    }

    fn change_attributes(&mut self, directory: u32, new: Node) {
        let node = &mut self.nodes[directory as usize];
        let opaque = node.record.flags.get() & inode_flags::OPAQUE;
        node.record = new.record;
        node.record.flags.set(opaque);
        node.xattrs = new.xattrs;
    }

    fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.nodes[parent as usize].children.get(name)?.node
    }

    fn insert(&mut self, node: Node) -> u32 {
        match self.free.pop() {
            Some(place) => {
                self.nodes[place as usize] = node;
                place
            }
            None => {
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
        }
    }

    /// Gives `node` that name; what had it before loses it, and is forgotten with its last name (else a million entries of
    /// one name would cost the memory of a million files).
    fn link(&mut self, parent: u32, name: &[u8], node: u32) {
        self.nodes[node as usize].names += 1;
        let slot = self.nodes[parent as usize].children.entry(name.into()).or_default();
        let replaced = slot.node.replace(node);
        if replaced.is_some() {
            self.last_parent.node = None;
        }
        let mut unlinked: Vec<u32> = replaced.into_iter().collect();
        while let Some(number) = unlinked.pop() {
            let node = &mut self.nodes[number as usize];
            node.names -= 1;
            if node.names == 0 {
                unlinked.extend(std::mem::take(node).children.values().filter_map(|slot| slot.node));
                self.free.push(number);
            }
        }
    }

    /// [`Self::directory`] of the parents that `prefix` spells.
    fn parent(
        &mut self,
        prefix: &[u8],
        parents: &[&[u8]],
        purpose: Purpose,
    ) -> Result<Option<u32>, WalkError> {
        if let Some(node) = self.last_parent.node
            && self.last_parent.prefix == prefix
        {
            return Ok(Some(node));
        }
        let found = self.directory(parents, purpose)?;
        // A marker leaves its directories as they are; for an entry they must become ones that are seen.
        if purpose == Purpose::Entry {
            self.last_parent.prefix.clear();
            self.last_parent.prefix.extend_from_slice(prefix);
            self.last_parent.node = found;
        }
        Ok(found)
    }

    /// The directory of that path, made where it is missing. A marker makes none that is seen, and has none below this layer's own
    /// non-directories.
    fn directory(&mut self, parents: &[&[u8]], purpose: Purpose) -> Result<Option<u32>, WalkError> {
        let mut walk = Walk::new(vec![], parents.iter().map(|name| name.to_vec()));
        while let Some(name) = walk.next_name() {
            match self.child(walk.here(), &name) {
                Some(node) if self.nodes[node as usize].is_directory() => {
                    if purpose == Purpose::Entry {
                        let flags = &mut self.nodes[node as usize].record.flags;
                        flags.set(flags.get() & !inode_flags::MARKERS_ONLY);
                    }
                    walk.enter(node)?;
                }
                Some(node) if self.nodes[node as usize].is_symlink() => {
                    walk.follow(&self.nodes[node as usize].target, &mut self.patience)?;
                }
                Some(_) if purpose == Purpose::Marker => return Ok(None),
                _ => {
                    let mut node = implicit_directory();
                    if purpose == Purpose::Marker {
                        node.record.flags |= inode_flags::MARKERS_ONLY;
                    }
                    let node = self.insert(node);
                    self.link(walk.here(), &name, node);
                    walk.enter(node)?;
                }
            }
        }
        Ok(Some(walk.here()))
    }

    /// What this layer has under that path; symlinks are followed in all but the last component.
    fn find(&mut self, path: &[u8]) -> Result<Option<u32>, &'static str> {
        let components = path::components(path).map_err(|_| "it is a hardlink to a name that cannot be")?;
        let mut walk = Walk::new(vec![], components.iter().map(|name| name.to_vec()));
        while let Some(name) = walk.next_name() {
            let Some(node) = self.child(walk.here(), &name) else { return Ok(None) };
            if walk.is_at_end() {
                return Ok(Some(node));
            }
            let walked = match self.nodes[node as usize].is_symlink() {
                true => walk.follow(&self.nodes[node as usize].target, &mut self.patience),
                false => walk.enter(node),
            };
            walked.map_err(|_| "it is a hardlink through symlinks that lead nowhere")?;
        }
        Ok(Some(walk.here()))
    }

    fn node_of(&mut self, entry: &Entry) -> Result<Node, &'static str> {
        let mut node = Node { xattrs: encoded_xattrs(entry)?, ..Node::default() };
        let record = &mut node.record;
        record.uid.set(entry.uid);
        record.gid.set(entry.gid);
        record.modified_seconds.set(entry.modified.seconds);
        record.modified_nanoseconds.set(entry.modified.nanoseconds.min(999_999_999));
        let mode = entry.mode & 0o7777;
        match &entry.kind {
            EntryKind::Regular { size, content } => {
                record.mode.set(libc::S_IFREG | mode);
                record.size.set(*size);
                self.place_content(record, *size, content)?;
            }
            EntryKind::Directory => record.mode.set(libc::S_IFDIR | mode),
            EntryKind::Symlink { target } => {
                if target.is_empty() || target.len() > MAXIMUM_SYMLINK || target.contains(&0) {
                    return Err("its symlink target is empty, too long, or holds a NUL byte");
                }
                record.mode.set(libc::S_IFLNK | 0o777);
                node.target = target.clone();
            }
            EntryKind::Hardlink { target } => {
                let components =
                    path::components(target).map_err(|_| "it is a hardlink to a name that cannot be")?;
                if components.is_empty() {
                    return Err("it is a hardlink to a directory");
                }
                record.mode.set(libc::S_IFREG);
                record.flags.set(inode_flags::LINK_TO_LOWER);
                node.target = components.join(&b'/');
            }
            EntryKind::CharacterDevice { major, minor } => {
                record.mode.set(libc::S_IFCHR | mode);
                record.content.set(u64::from(*major) << 32 | u64::from(*minor));
            }
            EntryKind::BlockDevice { major, minor } => {
                record.mode.set(libc::S_IFBLK | mode);
                record.content.set(u64::from(*major) << 32 | u64::from(*minor));
            }
            EntryKind::Fifo => record.mode.set(libc::S_IFIFO | mode),
        }
        Ok(node)
    }

    fn place_content(
        &mut self,
        record: &mut InodeRecord,
        size: u64,
        content: &Content,
    ) -> Result<(), &'static str> {
        if size > i64::MAX as u64 {
            return Err("its size is beyond what a file system can hold");
        }
        let large = size >= LARGE_FILE;
        let number = self.large_sizes.len() as u32;
        let mut parts = Vec::new();
        match content {
            Content::Contiguous(decoded_offset) => {
                decoded_offset.checked_add(size).ok_or("its content is out of range")?;
                record.content.set(*decoded_offset);
                parts.push(LargePart {
                    decoded_offset: *decoded_offset,
                    length: size,
                    file: number,
                    file_offset: 0,
                });
            }
            Content::Sparse(extents) => {
                record
                    .first_extent
                    .set(u32::try_from(self.extents.len()).map_err(|_| "there are too many extents")?);
                record.count.set(u32::try_from(extents.len()).map_err(|_| "there are too many extents")?);
                let mut position = 0;
                for extent in extents {
                    let end = extent.file_offset.checked_add(extent.length);
                    if extent.file_offset < position || extent.length == 0 || end.is_none_or(|end| end > size)
                    {
                        return Err("the pieces of the sparse file are out of order or out of range");
                    }
                    position = extent.file_offset + extent.length;
                    extent.decoded_offset.checked_add(extent.length).ok_or("its content is out of range")?;
                    self.extents.push(ExtentRecord {
                        file_offset: extent.file_offset.into(),
                        length: extent.length.into(),
                        decoded_offset: extent.decoded_offset.into(),
                    });
                    parts.push(LargePart {
                        decoded_offset: extent.decoded_offset,
                        length: extent.length,
                        file: number,
                        file_offset: extent.file_offset,
                    });
                }
                if extents.is_empty() {
                    // No extents means "contiguous" in a record: nothing of it is ever read, for all of it is a hole.
                    record.flags.set(inode_flags::ALL_ZEROS);
                }
            }
        }
        if large && !parts.is_empty() {
            self.large.extend(parts);
            self.large_sizes.push(size);
        }
        Ok(())
    }

    /// The table of the layer with that identity (the SHA-256 of its digest's text), whose content arrives in `chunks`; a
    /// layer that is wholly here has none.
    pub fn finish(mut self, identity: [u8; 32], chunks: &[Chunk]) -> Result<Vec<u8>, BuildError> {
        for number in 0..self.nodes.len() {
            let children = std::mem::take(&mut self.nodes[number].children);
            for slot in children.values().filter(|slot| slot.whiteout) {
                if let Some(node) =
                    slot.node.map(|node| &mut self.nodes[node as usize]).filter(|node| node.is_directory())
                {
                    node.record.flags |= inode_flags::REMADE;
                }
            }
            self.nodes[number].children = children;
        }
        self.large.sort_by_key(|part| part.decoded_offset);
        if self.large.windows(2).any(|pair| pair[0].decoded_offset + pair[0].length > pair[1].decoded_offset)
        {
            return Err(BuildError::Overlap { what: "large files" });
        }
        if chunks.windows(2).any(|pair| {
            pair[0]
                .decoded_offset
                .checked_add(pair[0].decoded_length)
                .is_none_or(|end| end > pair[1].decoded_offset)
        }) {
            return Err(BuildError::Overlap { what: "chunks" });
        }
        let chunks: Vec<ChunkRecord> = chunks.iter().map(ChunkRecord::from).collect();
        let large: Vec<LargeRecord> = self.large.iter().map(large_record).collect();
        let contents =
            Contents { identity, layers: 0, extents: &self.extents, chunks: &chunks, large: &large };
        Ok(writer::write(&self, contents)?)
    }
}

fn encoded_xattrs(entry: &Entry) -> Result<Vec<u8>, &'static str> {
    let overlays = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let kept: Vec<_> = entry.xattrs.iter().filter(|(name, _)| !overlays(name)).cloned().collect();
    if kept.len() > usize::from(u16::MAX) {
        return Err("it has too many extended attributes");
    }
    for (name, value) in &kept {
        if name.is_empty()
            || name.len() > MAXIMUM_XATTR_NAME
            || name.contains(&0)
            || value.len() > MAXIMUM_XATTR_VALUE
        {
            return Err("an extended attribute has an empty or too long name, or too long a value");
        }
    }
    Ok(encode_xattrs(&kept))
}

fn large_record(part: &LargePart) -> LargeRecord {
    LargeRecord {
        decoded_offset: part.decoded_offset.into(),
        length: part.length.into(),
        file_offset: part.file_offset.into(),
        file: part.file.into(),
        reserved: 0.into(),
    }
}

impl Source for LayerBuilder {
    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn inode(&self, node: u32) -> SourceInode<'_> {
        let node = &self.nodes[node as usize];
        SourceInode { record: node.record, xattrs: &node.xattrs, target: &node.target }
    }

    fn children(&self, node: u32, visit: &mut dyn FnMut(&[u8], Child)) {
        for (name, slot) in &self.nodes[node as usize].children {
            match slot.node {
                Some(node) => visit(name, Child::Node(node)),
                None => visit(name, Child::Whiteout),
            }
        }
    }
}
