//! What every layer format is read into: a sequence of entries, in the order of the archive.

use crate::table::Codec;
use crate::table::format::ChunkRecord;

/// Modification time of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Seconds since 1970, negative before.
    pub seconds: i64,
    /// Nanoseconds within that second, 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// One entry of a layer, as the archive or the table of contents states it. Names are not yet cleaned, whiteouts not yet
/// recognised: [`super::builder`] does both, for all formats alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, as written.
    pub path: Vec<u8>,
    /// Type, and what only this type has.
    pub kind: EntryKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Modification time.
    pub modified: Timestamp,
    /// Extended attributes, name (with its `security.`, `user.` … prefix) and value; a later pair of one name wins.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Type of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    Regular {
        /// Apparent size in bytes, holes included.
        size: u64,
        /// Where its bytes are.
        content: Content,
    },
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink {
        /// As written; never resolved here.
        target: Vec<u8>,
    },
    /// Another name of an earlier entry, of this layer or a lower one.
    Hardlink {
        /// Path in the image, as written.
        target: Vec<u8>,
    },
    /// A character device.
    CharacterDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
}

/// Where the bytes of a regular file lie in the layer's decoded space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of them, one after the other, from this decoded offset.
    Contiguous(u64),
    /// The pieces that hold data, in ascending order and apart from each other; all else is zeros.
    Sparse(Vec<Extent>),
}

/// A piece of a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte in the file.
    pub file_offset: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
    /// First byte in the decoded space.
    pub decoded_offset: u64,
}

/// What is fetched, decoded and verified together: a range of the blob and the range of the decoded space that it becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// First byte in the blob.
    pub blob_offset: u64,
    /// Bytes in the blob; 0 for [`Codec::Zeros`].
    pub blob_length: u64,
    /// First byte in the decoded space.
    pub decoded_offset: u64,
    /// Bytes in the decoded space, at least 1.
    pub decoded_length: u64,
    /// Bytes that the blob range decodes to before this chunk's begin.
    pub skip: u64,
    /// How the blob range is decoded.
    pub codec: Codec,
    /// For a codec that needs one: the number of the checkpoint at which it begins. Else 0.
    pub checkpoint: u32,
    /// SHA-256 of the decoded bytes; of the blob range for [`Codec::SealedGzipSpan`]; all zeros for [`Codec::Zeros`].
    pub digest: [u8; 32],
}

impl From<&Chunk> for ChunkRecord {
    fn from(chunk: &Chunk) -> ChunkRecord {
        ChunkRecord {
            blob_offset: chunk.blob_offset.into(),
            blob_length: chunk.blob_length.into(),
            decoded_offset: chunk.decoded_offset.into(),
            decoded_length: chunk.decoded_length.into(),
            skip: chunk.skip.into(),
            codec: chunk.codec as u8,
            reserved: [0; 3],
            checkpoint: chunk.checkpoint.into(),
            digest: chunk.digest,
        }
    }
}

impl From<&ChunkRecord> for Chunk {
    /// A codec that is not known is taken as none: its bytes do not match the digest then.
    fn from(record: &ChunkRecord) -> Chunk {
        Chunk {
            blob_offset: record.blob_offset.get(),
            blob_length: record.blob_length.get(),
            decoded_offset: record.decoded_offset.get(),
            decoded_length: record.decoded_length.get(),
            skip: record.skip.get(),
            codec: Codec::from_number(record.codec).unwrap_or(Codec::Raw),
            checkpoint: record.checkpoint.get(),
            digest: record.digest,
        }
    }
}
