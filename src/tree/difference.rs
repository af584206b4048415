//! What has to be done to one merged tree to get another, as the table of a layer.
//!
//! ```text
//! lower  upper                                in the layer
//! ─      anything                             that, with all below it
//! any    ─                                    a whiteout
//! any    no directory, and not the same file  that
//! other  directory                            that, opaque, with all below it
//! dir    directory                            that, if its attributes differ or anything below it does
//! ```
//!
//! Rules
//! - Applied to the lower tree, the layer gives the upper one, exactly. Applied to another, it does what its archive would do there.
//! - A directory on the way to a change is stated, with its attributes, as the tools that write layers do: where it is applied there may be
//!   none.
//! - A file is all its names: it is the same if the lower tree has all of them, and has them as one file with the same attributes and the
//!   same content. Else it is stated under each of its names, which stay links to each other.
//! - Content is the same if it is in the same place of the same layer, or if it is in chunks that begin and end with the file and have the
//!   same digests. Nothing is fetched to find out: a file that might be the same is stated.
//! - Files of the result name the layers of the trees, as those of a merged tree do.

use std::collections::{BTreeMap, HashMap};

use super::merge::{MergeError, TableWalk};
use crate::table::Table;
use crate::table::format::*;
use crate::table::writer::{self, Child, Contents, Source, SourceInode};

/// The table of the layer that makes `upper` of `lower`, two merged trees over the same layers, which have these tables.
///
/// # Errors
/// [`MergeError::NotATree`] (1 is the lower, 2 the upper), [`MergeError::TooLarge`].
pub fn difference(
    lower: &Table,
    upper: &Table,
    layers: &[&Table],
    identity: [u8; 32],
) -> Result<Vec<u8>, MergeError> {
    let same = Files { lower, upper, layers }.same()?;
    let mut difference = Difference { lower, upper, same, nodes: Vec::new(), files: HashMap::new() };
    difference.compare()?;
    let contents = Contents { identity, layers: upper.layer_count(), extents: &[], chunks: &[], large: &[] };
    Ok(writer::write(&difference, contents)?)
}

/// Whether the upper inode of each number is in the lower tree, too, with all its names.
type SameFiles = Vec<bool>;

fn is_directory(inode: &InodeRecord) -> bool {
    inode.mode.get() & libc::S_IFMT == libc::S_IFDIR
}

/// The files of two trees, to be compared.
struct Files<'a> {
    lower: &'a Table,
    upper: &'a Table,
    layers: &'a [&'a Table],
}

/// What is known of an upper file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Twin {
    Unseen,
    /// All names so far are names of that lower inode, which has the same attributes and content.
    Lower(u32),
    None,
}

impl Files<'_> {
    fn same(&self) -> Result<SameFiles, MergeError> {
        let mut twins = vec![Twin::Unseen; self.upper.inodes().len()];
        let (mut walk_lower, mut walk_upper) = (TableWalk::new(self.lower, 0), TableWalk::new(self.upper, 1));
        let mut left = vec![(self.lower.inodes().first(), &self.upper.inodes()[0])];
        while let Some((lower, upper)) = left.pop() {
            if let Some(lower) = lower {
                // So that a circle in it is seen.
                walk_lower.enter(lower)?;
            }
            for entry in walk_upper.enter(upper)? {
                let Some(inode) = self.upper.inode(entry.inode.get()) else { continue };
                let before = lower.and_then(|lower| self.lower.find(lower, self.upper.name(entry)));
                let before = before.map(|entry| entry.inode.get());
                let before = before.and_then(|number| Some((number, self.lower.inode(number)?)));
                if is_directory(inode) {
                    let before = before.map(|(_, before)| before).filter(|before| is_directory(before));
                    left.push((before, inode));
                    continue;
                }
                let twin = &mut twins[entry.inode.get() as usize];
                *twin = match (*twin, before) {
                    (Twin::Unseen, Some((other, before))) if self.is_same(before, inode) => {
                        Twin::Lower(other)
                    }
                    (Twin::Lower(known), Some((other, _))) if known == other => Twin::Lower(known),
                    _ => Twin::None,
                };
            }
        }
        // Where one file has become several, none of them is it.
        let mut twins_of = vec![0_u32; self.lower.inodes().len()];
        for twin in &twins {
            if let Twin::Lower(number) = twin {
                twins_of[*number as usize] += 1;
            }
        }
        Ok(twins
            .iter()
            .map(|twin| matches!(twin, Twin::Lower(one) if twins_of[*one as usize] == 1))
            .collect())
    }

    fn is_same(&self, lower: &InodeRecord, upper: &InodeRecord) -> bool {
        if !has_same_attributes((self.lower, lower), (self.upper, upper)) {
            return false;
        }
        match upper.mode.get() & libc::S_IFMT {
            libc::S_IFREG => lower.size == upper.size && self.has_same_content(lower, upper),
            libc::S_IFLNK => self.lower.target(lower) == self.upper.target(upper),
            libc::S_IFCHR | libc::S_IFBLK => lower.content == upper.content,
            _ => true,
        }
    }

    fn has_same_content(&self, lower: &InodeRecord, upper: &InodeRecord) -> bool {
        let place =
            |inode: &InodeRecord| (inode.layer, inode.content, inode.count, inode.first_extent, inode.flags);
        if lower.size.get() == 0 || place(lower) == place(upper) {
            return true;
        }
        let digests = |inode: &InodeRecord| digests(self.layers.get(usize::from(inode.layer.get()))?, inode);
        digests(lower).is_some_and(|lower| Some(lower) == digests(upper))
    }
}

fn has_same_attributes(
    (lower_table, lower): (&Table, &InodeRecord),
    (upper_table, upper): (&Table, &InodeRecord),
) -> bool {
    let attributes = |inode: &InodeRecord| {
        (inode.mode, inode.uid, inode.gid, inode.modified_seconds, inode.modified_nanoseconds)
    };
    // Sets are sorted by name, so equal ones have equal bytes.
    attributes(lower) == attributes(upper) && lower_table.xattr_set(lower) == upper_table.xattr_set(upper)
}

/// A piece of a file by its offset and length in it, and the digest of its bytes.
type Piece = (u64, u64, [u8; 32]);

/// What the chunks say of a regular file's content: nothing if they do not begin and end with it. Holes have no chunks.
fn digests(layer: &Table, inode: &InodeRecord) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    if inode.flags.get() & inode_flags::ALL_ZEROS != 0 {
        return Some(pieces);
    }
    let whole = [(0, inode.content.get(), inode.size.get())];
    let extents = layer.extents(inode).iter();
    let extents: Vec<_> = extents
        .map(|extent| (extent.file_offset.get(), extent.decoded_offset.get(), extent.length.get()))
        .collect();
    let extents = if inode.count.get() == 0 { &whole[..] } else { &extents };
    for &(file_offset, start, length) in extents {
        let end = start.checked_add(length)?;
        let mut position = start;
        for chunk in layer.chunks().get(layer.chunks_of(start..end))? {
            let (offset, length) = (chunk.decoded_offset.get(), chunk.decoded_length.get());
            if offset != position || chunk.codec == Codec::SealedGzipSpan as u8 {
                return None;
            }
            pieces.push((file_offset.checked_add(offset - start)?, length, chunk.digest));
            position = offset.checked_add(length)?;
        }
        if position != end {
            return None;
        }
    }
    Some(pieces)
}

/// Something of the upper tree that is in the layer.
struct Node {
    inode: u32,
    /// Of a directory, sorted by name.
    children: Vec<Named>,
    /// Nothing of the lower tree is seen in it.
    is_opaque: bool,
    /// It is stated, whatever is in it.
    is_changed: bool,
}

/// A name in a directory.
struct Named {
    /// The entry's name, in the table of one of the trees.
    entry: EntryRecord,
    is_lower: bool,
    child: Child,
}

struct Difference<'a> {
    lower: &'a Table,
    upper: &'a Table,
    same: SameFiles,
    nodes: Vec<Node>,
    /// The nodes of files that have several names, by inode.
    files: HashMap<u32, u32>,
}

impl<'a> Difference<'a> {
    fn compare(&mut self) -> Result<(), MergeError> {
        let (lower, upper) = (self.lower, self.upper);
        let (mut walk_lower, mut walk_upper) = (TableWalk::new(lower, 0), TableWalk::new(upper, 1));
        let roots = (&lower.inodes()[0], &upper.inodes()[0]);
        let root = self.pair(roots.0, 0, roots.1);
        // Directories of the upper tree, and of the lower one, if it has them.
        let mut left = vec![(root, Some(roots.0), roots.1)];
        while let Some((node, before, after)) = left.pop() {
            let mut names: BTreeMap<&[u8], (Option<&EntryRecord>, Option<&EntryRecord>)> = BTreeMap::new();
            if let Some(before) = before {
                names.extend(
                    walk_lower.enter(before)?.iter().map(|entry| (lower.name(entry), (Some(entry), None))),
                );
            }
            for entry in walk_upper.enter(after)? {
                names.entry(upper.name(entry)).or_default().1 = Some(entry);
            }
            let mut children = Vec::new();
            for (before, after) in names.into_values() {
                let Some(entry) = after else {
                    children.extend(before.map(|entry| Named {
                        entry: *entry,
                        is_lower: true,
                        child: Child::Whiteout,
                    }));
                    continue;
                };
                let number = entry.inode.get();
                let Some(inode) = upper.inode(number) else { continue };
                let before = before.and_then(|entry| lower.inode(entry.inode.get()));
                let child = match before {
                    _ if !is_directory(inode) && self.same[number as usize] => continue,
                    _ if !is_directory(inode) => self.file(number, inode),
                    Some(before) if is_directory(before) => {
                        let child = self.pair(before, number, inode);
                        left.push((child, Some(before), inode));
                        child
                    }
                    before => {
                        let child = self.add(number, before.is_some(), true);
                        left.push((child, None, inode));
                        child
                    }
                };
                children.push(Named { entry: *entry, is_lower: false, child: Child::Node(child) });
            }
            self.nodes[node as usize].children = children;
        }
        self.drop_what_is_unchanged();
        Ok(())
    }

    fn add(&mut self, inode: u32, is_opaque: bool, is_changed: bool) -> u32 {
        self.nodes.push(Node { inode, children: Vec::new(), is_opaque, is_changed });
        (self.nodes.len() - 1) as u32
    }

    /// A directory of both trees.
    fn pair(&mut self, before: &InodeRecord, number: u32, after: &InodeRecord) -> u32 {
        let is_changed = !has_same_attributes((self.lower, before), (self.upper, after));
        self.add(number, false, is_changed)
    }

    fn file(&mut self, number: u32, inode: &InodeRecord) -> u32 {
        if let Some(node) = self.files.get(&number) {
            return *node;
        }
        let node = self.add(number, false, true);
        if inode.link_count.get() > 1 {
            self.files.insert(number, node);
        }
        node
    }

    /// Leaves out the directories that are the same, and in which nothing changed.
    fn drop_what_is_unchanged(&mut self) {
        // Whatever is in a directory has a higher number.
        for number in (0..self.nodes.len()).rev() {
            let mut children = std::mem::take(&mut self.nodes[number].children);
            children.retain(|named| match named.child {
                Child::Node(child) => self.nodes[child as usize].is_changed,
                Child::Whiteout => true,
            });
            let node = &mut self.nodes[number];
            node.is_changed |= !children.is_empty();
            node.children = children;
        }
    }
}

impl Source for Difference<'_> {
    fn nodes(&self) -> usize {
        self.nodes.len()
    }

    fn inode(&self, node: u32) -> SourceInode<'_> {
        let node = &self.nodes[node as usize];
        let inode = &self.upper.inodes()[node.inode as usize];
        let mut record = *inode;
        let mut flags = inode.flags.get() & inode_flags::ALL_ZEROS;
        if node.is_opaque {
            flags |= inode_flags::OPAQUE;
        }
        // The root alone is there though nothing is said of it.
        if !node.is_changed {
            flags |= inode_flags::IMPLICIT;
        }
        record.flags.set(flags);
        let is_symlink = record.mode.get() & libc::S_IFMT == libc::S_IFLNK;
        let target = if is_symlink { self.upper.target(inode) } else { &[] };
        SourceInode { record, xattrs: self.upper.xattr_set(inode), target }
    }

    fn children(&self, node: u32, visit: &mut dyn FnMut(&[u8], Child)) {
        for named in &self.nodes[node as usize].children {
            let table = if named.is_lower { self.lower } else { self.upper };
            visit(table.name(&named.entry), named.child);
        }
    }
}
