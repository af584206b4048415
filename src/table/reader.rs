//! Maps a table and answers from it. Nothing is parsed at opening: the header and the checksums are compared, then every
//! answer is read where it lies.
//!
//! A table that passes its checksum was written by us, but a reader still checks every index, so that the worst that a wrong
//! table can do is a wrong answer or [`None`], never a crash.

use std::fs::File;
use std::ops::Range;

use zerocopy::{FromBytes, IntoBytes};

use super::format::*;
use super::placement::{Pieces, pieces};

/// Why a table is not used. In each case the answer is to rebuild it.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// The file could not be mapped.
    #[error("the inode table cannot be mapped")]
    Map(#[from] std::io::Error),
    /// It is too short, or does not begin with [`MAGIC`].
    #[error("this is not an inode table")]
    NotATable,
    /// It has another version, or a feature that we do not know.
    #[error(
        "the inode table has version {version} and features {features:#x}, which this program does not read"
    )]
    OtherVersion {
        /// Its version.
        version: u32,
        /// Its incompatible features.
        features: u64,
    },
    /// It was damaged or not written to its end.
    #[error("the inode table is damaged: {what}")]
    Damaged {
        /// What does not fit.
        what: &'static str,
    },
    /// It was made from something else.
    #[error("the inode table is not the one of this layer or image")]
    OtherIdentity,
}

enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

/// A table, ready to be asked. Cheap to share; needs no lock.
pub struct Table {
    bytes: Bytes,
    header: Header,
    sections: [Range<usize>; SECTIONS],
}

impl Table {
    /// Maps the table in `file`, which must be the one made from `identity`.
    pub fn open(file: &File, identity: &[u8; 32]) -> Result<Table, TableError> {
        // SAFETY: the store's directory belongs to this user alone (mode 0700) and a table is never changed once it has its
        // name: it is replaced by rename. Bytes that change all the same give wrong answers, as every index is checked.
        let map = unsafe { memmap2::Mmap::map(file)? };
        let table = Table::check(Bytes::Mapped(map))?;
        if &table.header.identity != identity {
            return Err(TableError::OtherIdentity);
        }
        Ok(table)
    }

    /// A table that was just written and is kept in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Table, TableError> {
        Table::check(Bytes::Owned(bytes))
    }

    fn check(bytes: Bytes) -> Result<Table, TableError> {
        let all = bytes.as_slice();
        let (header, body) = Header::ref_from_prefix(all).map_err(|_| TableError::NotATable)?;
        if header.magic != MAGIC {
            return Err(TableError::NotATable);
        }
        if header.version.get() != VERSION || header.incompatible.get() != 0 {
            return Err(TableError::OtherVersion {
                version: header.version.get(),
                features: header.incompatible.get(),
            });
        }
        let mut header = *header;
        let stated = header.header_checksum.get();
        header.header_checksum.set(0);
        if crc32fast::hash(header.as_bytes()) != stated {
            return Err(TableError::Damaged { what: "the checksum of its header differs" });
        }
        if header.length.get() != all.len() as u64 {
            return Err(TableError::Damaged { what: "its length differs" });
        }
        if crc32fast::hash(body) != header.body_checksum.get() {
            return Err(TableError::Damaged { what: "its checksum differs" });
        }
        let mut sections: [Range<usize>; SECTIONS] = Default::default();
        for (range, place) in sections.iter_mut().zip(&header.sections) {
            let start = place.offset.get() as usize;
            let end = start.checked_add(place.length.get() as usize);
            *range = start
                ..end
                    .filter(|end| *end <= all.len())
                    .ok_or(TableError::Damaged { what: "a section ends outside" })?;
        }
        let table = Table { bytes, header, sections };
        if table.inodes().is_empty() {
            return Err(TableError::Damaged { what: "it has no root" });
        }
        Ok(table)
    }

    fn section(&self, section: Section) -> &[u8] {
        self.bytes.as_slice().get(self.sections[section as usize].clone()).unwrap_or_default()
    }

    /// All inodes; number 0 is the root.
    pub fn inodes(&self) -> &[InodeRecord] {
        <[InodeRecord]>::ref_from_bytes(self.section(Section::Inodes)).unwrap_or_default()
    }

    /// All chunks, sorted by decoded offset.
    pub fn chunks(&self) -> &[ChunkRecord] {
        <[ChunkRecord]>::ref_from_bytes(self.section(Section::Chunks)).unwrap_or_default()
    }

    /// All parts of the decoded space that have data files of their own.
    pub fn large(&self) -> &[LargeRecord] {
        <[LargeRecord]>::ref_from_bytes(self.section(Section::Large)).unwrap_or_default()
    }

    /// All names in all directories.
    pub fn entry_count(&self) -> usize {
        self.entries().len()
    }

    fn entries(&self) -> &[EntryRecord] {
        <[EntryRecord]>::ref_from_bytes(self.section(Section::Entries)).unwrap_or_default()
    }

    /// See [`Header::content_bytes`].
    pub fn content_bytes(&self) -> u64 {
        self.header.content_bytes.get()
    }

    /// See [`Header::layers`].
    pub fn layer_count(&self) -> u32 {
        self.header.layers.get()
    }

    /// Length of the table in bytes.
    pub fn length(&self) -> u64 {
        self.header.length.get()
    }

    /// The inode of that number.
    pub fn inode(&self, number: u32) -> Option<&InodeRecord> {
        self.inodes().get(number as usize)
    }

    /// The entries of a directory, sorted by name; none for anything else.
    pub fn directory(&self, inode: &InodeRecord) -> &[EntryRecord] {
        if inode.mode.get() & libc::S_IFMT != libc::S_IFDIR {
            return &[];
        }
        slice(self.entries(), inode.content.get(), inode.count.get())
    }

    /// The name of an entry.
    pub fn name(&self, entry: &EntryRecord) -> &[u8] {
        slice(self.section(Section::Names), entry.name_offset.get().into(), entry.name_length.get().into())
    }

    /// The entry of that name.
    pub fn find(&self, directory: &InodeRecord, name: &[u8]) -> Option<&EntryRecord> {
        let entries = self.directory(directory);
        entries.binary_search_by(|entry| self.name(entry).cmp(name)).ok().map(|place| &entries[place])
    }

    /// A symlink's target, or the path that a hardlink to a lower layer names.
    pub fn target(&self, inode: &InodeRecord) -> &[u8] {
        slice(self.section(Section::Names), inode.content.get(), inode.count.get())
    }

    /// The extents of a regular file that has any.
    pub fn extents(&self, inode: &InodeRecord) -> &[ExtentRecord] {
        let all = <[ExtentRecord]>::ref_from_bytes(self.section(Section::Extents)).unwrap_or_default();
        slice(all, inode.first_extent.get().into(), inode.count.get())
    }

    /// The encoded set of extended attributes, or nothing.
    pub fn xattr_set(&self, inode: &InodeRecord) -> &[u8] {
        let offset = inode.xattrs.get();
        if offset == NONE {
            return &[];
        }
        let rest = self.section(Section::Xattrs).get(offset as usize..).unwrap_or_default();
        let mut pairs = Xattrs::new(rest);
        while pairs.next().is_some() {}
        &rest[..rest.len() - pairs.rest.len()]
    }

    /// The extended attributes, sorted by name.
    pub fn xattrs(&self, inode: &InodeRecord) -> Xattrs<'_> {
        let offset = inode.xattrs.get();
        if offset == NONE {
            return Xattrs { left: 0, rest: &[] };
        }
        Xattrs::new(self.section(Section::Xattrs).get(offset as usize..).unwrap_or_default())
    }

    /// The chunks that cover any of these bytes of the decoded space, as a range of chunk numbers.
    pub fn chunks_of(&self, decoded: Range<u64>) -> Range<usize> {
        if decoded.is_empty() {
            return 0..0;
        }
        let chunks = self.chunks();
        let first = chunks.partition_point(|chunk| {
            chunk.decoded_offset.get().saturating_add(chunk.decoded_length.get()) <= decoded.start
        });
        let after = chunks.partition_point(|chunk| chunk.decoded_offset.get() < decoded.end);
        first..after.max(first)
    }

    /// The pieces of data files that hold this part of the decoded space.
    pub fn pieces(&self, decoded_offset: u64, length: u64) -> Pieces<'_, [LargeRecord]> {
        pieces(self.large(), decoded_offset, length)
    }
}

impl Bytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}

fn slice<T>(all: &[T], first: u64, count: u32) -> &[T] {
    let Ok(first) = usize::try_from(first) else { return &[] };
    first.checked_add(count as usize).and_then(|end| all.get(first..end)).unwrap_or_default()
}

/// Pairs of name and value.
pub struct Xattrs<'a> {
    left: u16,
    rest: &'a [u8],
}

impl<'a> Xattrs<'a> {
    /// The pairs of an encoded set; of nothing, none.
    pub fn new(set: &'a [u8]) -> Xattrs<'a> {
        match zerocopy::little_endian::U16::ref_from_prefix(set) {
            Ok((count, rest)) => Xattrs { left: count.get(), rest },
            Err(_) => Xattrs { left: 0, rest: &[] },
        }
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Xattrs<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let name_length = u16::from_le_bytes(self.take(2)?.try_into().ok()?);
        let value_length = u32::from_le_bytes(self.take(4)?.try_into().ok()?);
        Some((self.take(name_length.into())?, self.take(value_length as usize)?))
    }
}
