//! Maps a table and answers from it. Nothing is parsed at opening: the header and the checksums are compared, then every
//! answer is read where it lies.
//!
//! A table that passes its checksum was written by us, but a reader still checks every index, so that the worst that a wrong
//! table can do is a wrong answer or [`None`], never a crash.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

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
    ///
    /// The checksum is computed over what is read, not over what is mapped: so only those pages count for this process that it
    /// looks at later, which for the table of a layer is little.
    pub fn open(file: &File, identity: &[u8; 32]) -> Result<Table, TableError> {
        let length = file.metadata()?.len();
        let mut start = [0; size_of::<Header>()];
        if length < start.len() as u64 {
            return Err(TableError::NotATable);
        }
        file.read_exact_at(&mut start, 0)?;
        let checked = CheckedHeader::of(&start, length)?;
        if &checked.header.identity != identity {
            return Err(TableError::OtherIdentity);
        }
        let mut checksum = crc32fast::Hasher::new();
        let mut buffer = vec![0; (256 << 10).min(length as usize)];
        let mut offset = start.len() as u64;
        while offset < length {
            let part = (length - offset).min(buffer.len() as u64) as usize;
            file.read_exact_at(&mut buffer[..part], offset)?;
            checksum.update(&buffer[..part]);
            offset += part as u64;
        }
        // SAFETY: the store's directory belongs to this user alone (mode 0700) and a table is never changed once it has its
        // name: it is replaced by rename. Bytes that change all the same give wrong answers, as every index is checked.
        let map = unsafe { memmap2::Mmap::map(file)? };
        checked.table(Bytes::Mapped(map), checksum.finalize())
    }

    /// A table that was just written and is kept in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Table, TableError> {
        let checked = CheckedHeader::of(&bytes, bytes.len() as u64)?;
        let checksum = crc32fast::hash(&bytes[size_of::<Header>()..]);
        checked.table(Bytes::Owned(bytes), checksum)
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

    /// Whether any entry is a whiteout.
    pub fn has_whiteouts(&self) -> bool {
        self.entries().iter().any(|entry| entry.kind.get() == 0)
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

/// A header that belongs to a table of this version and length.
struct CheckedHeader {
    header: Header,
    sections: [Range<usize>; SECTIONS],
}

impl CheckedHeader {
    /// The header of a table of `length` bytes that begins with `start`.
    fn of(start: &[u8], length: u64) -> Result<CheckedHeader, TableError> {
        let (header, _) = Header::read_from_prefix(start).map_err(|_| TableError::NotATable)?;
        if header.magic != MAGIC {
            return Err(TableError::NotATable);
        }
        if header.version.get() != VERSION || header.incompatible.get() & !incompatible_features::KNOWN != 0 {
            return Err(TableError::OtherVersion {
                version: header.version.get(),
                features: header.incompatible.get(),
            });
        }
        let mut unsigned = header;
        unsigned.header_checksum.set(0);
        if crc32fast::hash(unsigned.as_bytes()) != header.header_checksum.get() {
            return Err(TableError::Damaged { what: "the checksum of its header differs" });
        }
        if header.length.get() != length {
            return Err(TableError::Damaged { what: "its length differs" });
        }
        let mut sections: [Range<usize>; SECTIONS] = Default::default();
        for (range, place) in sections.iter_mut().zip(&header.sections) {
            let start = place.offset.get();
            let end = start.checked_add(place.length.get()).filter(|end| *end <= length);
            let end = end.ok_or(TableError::Damaged { what: "a section ends outside" })?;
            *range = start as usize..end as usize;
        }
        Ok(CheckedHeader { header, sections })
    }

    /// The table whose bytes after the header have that checksum.
    fn table(self, bytes: Bytes, checksum: u32) -> Result<Table, TableError> {
        if checksum != self.header.body_checksum.get() {
            return Err(TableError::Damaged { what: "its checksum differs" });
        }
        let table = Table { bytes, header: self.header, sections: self.sections };
        if table.inodes().is_empty() {
            return Err(TableError::Damaged { what: "it has no root" });
        }
        Ok(table)
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

#[cfg(test)]
mod tests {
    use super::super::writer::{Child, Contents, Source, SourceInode, encode_xattrs, write};
    use super::*;

    /// A root with two names of one file, which has attributes.
    struct Small;

    impl Source for Small {
        fn nodes(&self) -> usize {
            2
        }
        fn inode(&self, node: u32) -> SourceInode<'_> {
            let mut record = InodeRecord::default();
            record.mode.set(if node == 0 { libc::S_IFDIR | 0o755 } else { libc::S_IFREG | 0o644 });
            record.size.set(5);
            let xattrs =
                encode_xattrs(&[(b"user.b".into(), b"".into()), (b"user.a".into(), b"\0\xff".into())]).leak();
            SourceInode { record, xattrs: if node == 0 { &[] } else { xattrs }, target: &[] }
        }
        fn children(&self, node: u32, visit: &mut dyn FnMut(&[u8], Child)) {
            if node == 0 {
                [&b"a"[..], b"b"].into_iter().for_each(|name| visit(name, Child::Node(1)));
            }
        }
    }

    fn small() -> Vec<u8> {
        let contents = Contents { identity: [7; 32], layers: 1, extents: &[], chunks: &[], large: &[] };
        write(&Small, contents).unwrap()
    }

    #[test]
    fn what_was_written_is_read() {
        let table = Table::from_bytes(small()).unwrap();
        let root = table.inode(0).unwrap();
        assert_eq!((root.link_count.get(), root.parent.get()), (2, 0));
        let entry = table.find(root, b"b").unwrap();
        assert!(table.find(root, b"c").is_none());
        let file = table.inode(entry.inode.get()).unwrap();
        assert_eq!((file.link_count.get(), file.size.get(), table.content_bytes()), (2, 5, 5));
        let pairs: Vec<_> = table.xattrs(file).collect();
        assert_eq!(pairs, [(&b"user.a"[..], &b"\0\xff"[..]), (b"user.b", b"")]);
        assert!(table.inode(2).is_none() && table.directory(file).is_empty());
    }

    #[test]
    fn a_table_that_is_not_whole_or_not_this_one_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let open = |bytes: &[u8], identity| {
            let path = directory.path().join("table");
            std::fs::write(&path, bytes).unwrap();
            Table::open(&File::open(path).unwrap(), identity)
        };
        let good = small();
        assert!(open(&good, &[7; 32]).is_ok());
        assert!(matches!(open(&good, &[8; 32]), Err(TableError::OtherIdentity)));
        for length in 0..good.len() {
            assert!(open(&good[..length], &[7; 32]).is_err(), "cut to {length}");
        }
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x10;
            assert!(open(&bad, &[7; 32]).is_err(), "changed at {place}");
            assert!(Table::from_bytes(bad).is_err(), "changed at {place}");
        }
    }
}
