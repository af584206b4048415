//! Lays out a table: walks a tree breadth first, numbers its inodes in that order, and writes the sections.
//!
//! The order makes inode numbers a pure function of the tree, and keeps what one `ls` reads close together.

use std::collections::HashMap;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::format::*;

/// A tree that can be written as a table.
pub trait Source {
    /// One more than the highest node number.
    fn nodes(&self) -> usize;
    /// The node's record as far as the source knows it; the writer fills in what depends on the layout (`link_count`,
    /// `xattrs`, `parent`, a directory's and a symlink's `content` and `count`).
    fn inode(&self, node: u32) -> SourceInode<'_>;
    /// The children of a directory, sorted by the bytes of their names. Node 0 is the root.
    fn children(&self, node: u32, visit: &mut dyn FnMut(&[u8], Child));
}

/// What a [`Source`] knows of one inode.
pub struct SourceInode<'a> {
    /// Attributes, and for a regular file where its content is.
    pub record: InodeRecord,
    /// Encoded set of extended attributes ([`encode_xattrs`]), or nothing.
    pub xattrs: &'a [u8],
    /// A symlink's target, or the path that a hardlink to a lower layer names.
    pub target: &'a [u8],
}

/// One child of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Child {
    /// An inode, by its node number.
    Node(u32),
    /// The name is removed from lower layers.
    Whiteout,
}

/// What a table says beside the tree.
#[derive(Clone, Copy, Debug)]
pub struct Contents<'a> {
    /// See [`Header::identity`].
    pub identity: [u8; 32],
    /// Layers of the stack; 0 for one layer.
    pub layers: u32,
    /// See [`Section::Extents`].
    pub extents: &'a [ExtentRecord],
    /// See [`Section::Chunks`].
    pub chunks: &'a [ChunkRecord],
    /// See [`Section::Large`].
    pub large: &'a [LargeRecord],
}

/// The tree has more than the format can number.
#[derive(Debug, thiserror::Error)]
#[error("the tree has too many {what} for an inode table (at most {limit})")]
pub struct TooLarge {
    what: &'static str,
    limit: u64,
}

/// The set of extended attributes in the form in which a table keeps it; nothing for none. Pairs are sorted by name, of
/// pairs with one name the last is kept.
pub fn encode_xattrs(pairs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let set: std::collections::BTreeMap<&[u8], &[u8]> =
        pairs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    if set.is_empty() {
        return Vec::new();
    }
    let mut bytes = Vec::new();
    bytes.extend_from_slice(U16::new(set.len() as u16).as_bytes());
    for (name, value) in set {
        bytes.extend_from_slice(U16::new(name.len() as u16).as_bytes());
        bytes.extend_from_slice(U32::new(value.len() as u32).as_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
    }
    bytes
}

/// The table of that tree.
pub fn write(source: &impl Source, contents: Contents<'_>) -> Result<Vec<u8>, TooLarge> {
    Layout::new(source).lay_out(contents)
}

struct Layout<'a, S> {
    source: &'a S,
    numbers: Vec<u32>,
    inodes: Vec<InodeRecord>,
    entries: Vec<EntryRecord>,
    names: Vec<u8>,
    xattrs: Vec<u8>,
    known_xattrs: HashMap<Vec<u8>, u32>,
    directories: std::collections::VecDeque<(u32, u32)>,
    content_bytes: u64,
}

const IS_DIRECTORY: u32 = libc::S_IFDIR >> 12;

impl<'a, S: Source> Layout<'a, S> {
    fn new(source: &'a S) -> Self {
        Layout {
            source,
            numbers: vec![NONE; source.nodes()],
            inodes: Vec::with_capacity(source.nodes()),
            entries: Vec::with_capacity(source.nodes()),
            names: Vec::with_capacity(source.nodes() * 16),
            xattrs: Vec::new(),
            known_xattrs: HashMap::new(),
            directories: Default::default(),
            content_bytes: 0,
        }
    }

    fn lay_out(mut self, contents: Contents<'_>) -> Result<Vec<u8>, TooLarge> {
        self.number(0, 0)?;
        while let Some((node, number)) = self.directories.pop_front() {
            self.directory(node, number)?;
        }
        if self.names.len() > NONE as usize || self.xattrs.len() > NONE as usize {
            return Err(TooLarge { what: "bytes of names", limit: NONE.into() });
        }
        Ok(self.assemble(contents))
    }

    fn directory(&mut self, node: u32, number: u32) -> Result<(), TooLarge> {
        let first = self.entries.len();
        let mut result = Ok(());
        let source = self.source;
        source.children(node, &mut |name, child| {
            if result.is_ok() {
                result = self.entry(name, child, number);
            }
        });
        result?;
        let subdirectories =
            self.entries[first..].iter().filter(|entry| u32::from(entry.kind.get()) == IS_DIRECTORY).count();
        let record = &mut self.inodes[number as usize];
        record.content.set(first as u64);
        record.count.set((self.entries.len() - first) as u32);
        record.link_count.set(2 + subdirectories as u32);
        Ok(())
    }

    fn entry(&mut self, name: &[u8], child: Child, parent: u32) -> Result<(), TooLarge> {
        let (kind, inode) = match child {
            Child::Whiteout => (0, NONE),
            Child::Node(node) => {
                let number = self.number(node, parent)?;
                let record = &mut self.inodes[number as usize];
                let kind = record.mode.get() >> 12;
                if kind != IS_DIRECTORY {
                    record.link_count += 1;
                }
                (kind as u16, number)
            }
        };
        let name_offset = U32::new(self.names.len() as u32);
        self.names.extend_from_slice(name);
        self.entries.push(EntryRecord {
            name_offset,
            name_length: U16::new(name.len() as u16),
            kind: U16::new(kind),
            inode: U32::new(inode),
        });
        Ok(())
    }

    fn number(&mut self, node: u32, parent: u32) -> Result<u32, TooLarge> {
        let known = self.numbers[node as usize];
        if known != NONE {
            return Ok(known);
        }
        if self.inodes.len() >= MAXIMUM_INODES {
            return Err(TooLarge { what: "inodes", limit: MAXIMUM_INODES as u64 });
        }
        let number = self.inodes.len() as u32;
        self.numbers[node as usize] = number;
        let source = self.source;
        let SourceInode { mut record, xattrs, target } = source.inode(node);
        record.link_count.set(0);
        record.parent.set(NONE);
        record.xattrs.set(self.xattr_set(xattrs));
        let kind = record.mode.get() & libc::S_IFMT;
        if kind == libc::S_IFDIR {
            record.parent.set(parent);
            record.size.set(0);
            self.directories.push_back((node, number));
        } else if kind == libc::S_IFLNK || record.flags.get() & inode_flags::LINK_TO_LOWER != 0 {
            record.content.set(self.names.len() as u64);
            record.count.set(target.len() as u32);
            record.size.set(target.len() as u64);
            self.names.extend_from_slice(target);
        } else if kind == libc::S_IFREG {
            self.content_bytes = self.content_bytes.saturating_add(record.size.get());
        }
        self.inodes.push(record);
        Ok(number)
    }

    fn xattr_set(&mut self, set: &[u8]) -> u32 {
        if set.is_empty() {
            return NONE;
        }
        if let Some(offset) = self.known_xattrs.get(set) {
            return *offset;
        }
        let offset = self.xattrs.len() as u32;
        self.xattrs.extend_from_slice(set);
        self.known_xattrs.insert(set.to_vec(), offset);
        offset
    }

    fn assemble(self, contents: Contents<'_>) -> Vec<u8> {
        let sections: [&[u8]; SECTIONS] = [
            self.inodes.as_bytes(),
            self.entries.as_bytes(),
            &self.names,
            &self.xattrs,
            contents.extents.as_bytes(),
            contents.chunks.as_bytes(),
            contents.large.as_bytes(),
        ];
        let mut places = [SectionRecord::default(); SECTIONS];
        let mut end = size_of::<Header>() as u64;
        for (place, section) in places.iter_mut().zip(sections) {
            place.offset.set(end);
            place.length.set(section.len() as u64);
            end += section.len() as u64;
        }
        let is_sealed = |chunk: &ChunkRecord| chunk.codec == Codec::SealedGzipSpan as u8;
        let sealed = contents.chunks.iter().any(is_sealed);
        let mut body_checksum = crc32fast::Hasher::new();
        sections.iter().for_each(|section| body_checksum.update(section));
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.into(),
            header_checksum: 0.into(),
            body_checksum: body_checksum.finalize().into(),
            layers: contents.layers.into(),
            compatible: 0.into(),
            read_only_compatible: 0.into(),
            incompatible: if sealed { incompatible_features::SEALED_SPANS } else { 0 }.into(),
            length: end.into(),
            content_bytes: self.content_bytes.into(),
            identity: contents.identity,
            sections: places,
        };
        header.header_checksum.set(crc32fast::hash(header.as_bytes()));
        let mut table = Vec::with_capacity(end as usize);
        table.extend_from_slice(header.as_bytes());
        sections.iter().for_each(|section| table.extend_from_slice(section));
        table
    }
}
