//! The bytes of an inode table: what a reader maps and a writer lays out.
//!
//! ```text
//! header     Header: magic, version, feature flags, checksums, place of each section
//! inodes     InodeRecord × n   number 0 is the root; children of a directory are numbered together
//! entries    EntryRecord × n   of each directory contiguous and sorted by the bytes of the name
//! names      bytes             names and symlink targets, pointed into by offset and length
//! xattrs     sets of pairs     count, then (name length, value length, name, value) each; equal sets are stored once
//! extents    ExtentRecord × n  where the pieces of a sparse file lie in the decoded space
//! chunks     ChunkRecord × n   sorted by decoded offset, never overlapping: what is fetched, decoded and verified together
//! large      LargeRecord × n   sorted by decoded offset: the parts of the decoded space that have a data file of their own
//! ```
//!
//! All numbers are little-endian and unaligned, so a table is used as it is mapped.
//!
//! One format serves one layer and a merged tree. The table of a *layer* may hold whiteouts, opaque and implicit directories
//! and hardlinks to names of lower layers, and its regular files lie in the layer's *decoded space*: one line of bytes into
//! which every chunk of the layer decodes (for a tar it is the archive itself, for a layer with a table of contents a line that
//! the reader laid out). The table of a *merged tree* holds none of these; its regular files name the layer (by its place in
//! the stack) whose table says more about the content.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First bytes of every table.
pub const MAGIC: [u8; 8] = *b"peeltabl";
/// Layout version. A table of another version is rebuilt.
pub const VERSION: u32 = 1;
/// "No such thing" in a 32-bit index field.
pub const NONE: u32 = u32::MAX;

/// Longest name of one directory entry in bytes (`NAME_MAX`).
pub const MAXIMUM_NAME: usize = 255;
/// Longest symlink target in bytes (`PATH_MAX` without its NUL).
pub const MAXIMUM_SYMLINK: usize = 4095;
/// Deepest directory, counted from the root.
pub const MAXIMUM_DEPTH: usize = 4096;
/// Most inodes of one table.
pub const MAXIMUM_INODES: usize = 8 << 20;
/// Most extents of one table.
pub const MAXIMUM_EXTENTS: usize = 8 << 20;

/// A regular file of at least this many bytes has a data file of its own.
pub const LARGE_FILE: u64 = 1 << 20;

/// The sections, in the order in which they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Section {
    /// [`InodeRecord`]s.
    Inodes,
    /// [`EntryRecord`]s.
    Entries,
    /// Bytes of names and symlink targets.
    Names,
    /// Sets of extended attributes.
    Xattrs,
    /// [`ExtentRecord`]s.
    Extents,
    /// [`ChunkRecord`]s.
    Chunks,
    /// [`LargeRecord`]s.
    Large,
}

/// How many sections there are.
pub const SECTIONS: usize = 7;

/// Where a section lies, in bytes from the start of the table.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SectionRecord {
    /// First byte.
    pub offset: U64,
    /// Length in bytes.
    pub length: U64,
}

/// The first bytes of a table.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// CRC-32 of the header with this field zero.
    pub header_checksum: U32,
    /// CRC-32 of all that follows the header.
    pub body_checksum: U32,
    /// Layers of the stack; 0 for the table of one layer.
    pub layers: U32,
    /// Features that a reader may ignore.
    pub compatible: U64,
    /// Features that a reader must know to read, though not to leave the table in place.
    pub read_only_compatible: U64,
    /// Features without whose knowledge the table is rebuilt.
    pub incompatible: U64,
    /// Length of the whole table in bytes.
    pub length: U64,
    /// Sum of the sizes of all regular files, each inode counted once, in bytes.
    pub content_bytes: U64,
    /// SHA-256 of what the table was made from: the layer's digest, or the list of the stack's digests.
    pub identity: [u8; 32],
    /// Place of each [`Section`].
    pub sections: [SectionRecord; SECTIONS],
}

/// Features without whose knowledge a table is rebuilt, as [`Header::incompatible`] has them.
pub mod incompatible_features {
    /// Some chunks have the codec [`SealedGzipSpan`](super::Codec::SealedGzipSpan).
    pub const SEALED_SPANS: u64 = 1;
    /// All that this program knows.
    pub const KNOWN: u64 = SEALED_SPANS;
}

/// Flags of an [`InodeRecord`].
pub mod inode_flags {
    /// The layer never mentions this directory, only something below it.
    pub const IMPLICIT: u16 = 1;
    /// Nothing of lower layers is seen in this directory.
    pub const OPAQUE: u16 = 2;
    /// A hardlink to a name of a lower layer: `content` and `count` point at the path, as for a symlink.
    pub const LINK_TO_LOWER: u16 = 4;
    /// The layer removes what lower layers have of this name and makes the directory anew.
    pub const REMADE: u16 = 8;
    /// A regular file without extents that is one hole: nothing of it is stored.
    pub const ALL_ZEROS: u16 = 16;
    /// An implicit directory below which the layer has whiteouts and opaque markers only: it is made by none of them.
    pub const MARKERS_ONLY: u16 = 32;
}

/// One inode.
///
/// | type | `content` | `count` | `first_extent` |
/// | --- | --- | --- | --- |
/// | directory | its first entry | number of entries | – |
/// | regular | decoded offset, if it has no extents | number of extents | its first extent |
/// | symlink | offset in the names | length of the target | – |
/// | device | major << 32 \| minor | – | – |
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeRecord {
    /// `st_mode`: type and permission bits.
    pub mode: U32,
    /// Numeric owner.
    pub uid: U32,
    /// Numeric group.
    pub gid: U32,
    /// Names of this inode; for a directory 2 plus its subdirectories.
    pub link_count: U32,
    /// Bytes of a regular file or of a symlink's target.
    pub size: U64,
    /// Modification time, seconds since 1970, negative before.
    pub modified_seconds: I64,
    /// Nanoseconds within that second.
    pub modified_nanoseconds: U32,
    /// See [`inode_flags`].
    pub flags: U16,
    /// In a merged tree: the layer that holds the content, 0 is the lowest.
    pub layer: U16,
    /// See the table above.
    pub content: U64,
    /// See the table above.
    pub count: U32,
    /// See the table above.
    pub first_extent: U32,
    /// Offset of the set in the xattrs section, or [`NONE`].
    pub xattrs: U32,
    /// The directory that holds this directory (the root holds itself); [`NONE`] for all else.
    pub parent: U32,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EntryRecord {
    /// Offset of the name in the names section.
    pub name_offset: U32,
    /// Length of the name in bytes, 1 to [`MAXIMUM_NAME`].
    pub name_length: U16,
    /// `st_mode >> 12` of the inode; 0 for a whiteout.
    pub kind: U16,
    /// The inode, or [`NONE`] for a whiteout.
    pub inode: U32,
}

/// A piece of a sparse file that holds data; what no extent covers is zeros.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ExtentRecord {
    /// First byte in the file.
    pub file_offset: U64,
    /// Length in bytes.
    pub length: U64,
    /// First byte in the layer's decoded space.
    pub decoded_offset: U64,
}

/// How a chunk's blob range becomes its decoded bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// The range is the bytes.
    Raw = 0,
    /// Gzip members.
    Gzip = 1,
    /// Zstandard frames.
    Zstd = 2,
    /// All zeros: nothing is fetched.
    Zeros = 3,
    /// Gzip members from within the first one: between two of its deflate blocks, where the layer has a checkpoint.
    GzipSpan = 4,
    /// The same, but the digest is that of the blob's bytes: all of the range, as it is fetched. What it decodes to follows from them
    /// and the checkpoint, which is trusted.
    SealedGzipSpan = 5,
}

impl Codec {
    /// The codec of that number, if there is one.
    pub fn from_number(number: u8) -> Option<Codec> {
        [Codec::Raw, Codec::Gzip, Codec::Zstd, Codec::Zeros, Codec::GzipSpan, Codec::SealedGzipSpan]
            .into_iter()
            .find(|codec| *codec as u8 == number)
    }

    /// Whether a decoder needs a checkpoint to start.
    pub fn needs_checkpoint(self) -> bool {
        matches!(self, Codec::GzipSpan | Codec::SealedGzipSpan)
    }
}

/// What is fetched, decoded and verified together.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkRecord {
    /// First byte in the blob.
    pub blob_offset: U64,
    /// Bytes in the blob.
    pub blob_length: U64,
    /// First byte in the decoded space.
    pub decoded_offset: U64,
    /// Bytes in the decoded space.
    pub decoded_length: U64,
    /// Bytes that the blob range decodes to before those of this chunk begin (several files in one gzip member, several parts of
    /// a span that is too long for one chunk).
    pub skip: U64,
    /// A [`Codec`].
    pub codec: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Number of the checkpoint for codecs that need one, else zero.
    pub checkpoint: U32,
    /// SHA-256 of the decoded bytes; of the range for [`Codec::SealedGzipSpan`].
    pub digest: [u8; 32],
}

/// A part of the decoded space that is stored in a data file of its own.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LargeRecord {
    /// First byte in the decoded space.
    pub decoded_offset: U64,
    /// Length in bytes.
    pub length: U64,
    /// First byte in the data file.
    pub file_offset: U64,
    /// Number of the data file within the layer.
    pub file: U32,
    /// Zero.
    pub reserved: U32,
}
