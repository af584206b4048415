//! What a zTOC says, in plain types. Values are those of the flatbuffer, not yet held against each other or against a blob.

use super::{SociError, read, write};
use crate::layer::entry::Timestamp;

/// Longest zTOC in bytes: checkpoints of 32 GiB of decoded layer, at the usual 4 MiB a span.
pub const MAXIMUM_ZTOC: u64 = 256 << 20;

/// Media type of a zTOC's descriptor.
pub const ZTOC_MEDIA_TYPE: &str = "application/octet-stream";

/// The version that the reference writes, and so do we.
pub const VERSION: &str = "0.9";

/// Index of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ztoc {
    /// Of the format: [`VERSION`].
    pub version: Vec<u8>,
    /// What wrote it.
    pub build_tool: Vec<u8>,
    /// Bytes of the layer blob.
    pub compressed_size: u64,
    /// Bytes of the archive, as far as the tar reader of the writer went: what pads its end may be missing.
    pub uncompressed_size: u64,
    /// The archive's entries, in its order.
    pub files: Vec<FileMetadata>,
    /// How the blob is read from within.
    pub compression: CompressionInfo,
}

/// One entry of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileMetadata {
    /// As the archive's headers say it; any bytes.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: FileType,
    /// Where its content begins in the archive: the end of its headers.
    pub uncompressed_offset: u64,
    /// Bytes of the content, by the header; for a sparse file its whole size, though less is stored.
    pub uncompressed_size: u64,
    /// Target of a symlink or hardlink.
    pub link_name: Vec<u8>,
    /// Of the header, which may hold more than permission bits.
    pub mode: i64,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Name of the owner.
    pub user_name: Vec<u8>,
    /// Name of the group.
    pub group_name: Vec<u8>,
    /// Modification time. `None` for one that RFC 3339 cannot tell: the reference writes nothing then.
    pub modified: Option<Timestamp>,
    /// Major number of a device.
    pub device_major: i64,
    /// Minor number of a device.
    pub device_minor: i64,
    /// The entry's PAX records, keys and values: attributes, but also times, sizes and maps of sparse files. The field of the flatbuffer
    /// is called `xattrs` all the same.
    pub pax_records: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Type of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// `reg`.
    Regular,
    /// `dir`.
    Directory,
    /// `symlink`.
    Symlink,
    /// `hardlink`.
    Hardlink,
    /// `char`.
    CharacterDevice,
    /// `block`.
    BlockDevice,
    /// `fifo`.
    Fifo,
}

impl FileType {
    /// All of them.
    pub const ALL: [FileType; 7] = [
        FileType::Regular,
        FileType::Directory,
        FileType::Symlink,
        FileType::Hardlink,
        FileType::CharacterDevice,
        FileType::BlockDevice,
        FileType::Fifo,
    ];

    /// As the flatbuffer has it.
    pub fn name(self) -> &'static str {
        match self {
            FileType::Regular => "reg",
            FileType::Directory => "dir",
            FileType::Symlink => "symlink",
            FileType::Hardlink => "hardlink",
            FileType::CharacterDevice => "char",
            FileType::BlockDevice => "block",
            FileType::Fifo => "fifo",
        }
    }

    /// The type of that name, if there is one.
    pub fn from_name(name: &[u8]) -> Option<FileType> {
        FileType::ALL.into_iter().find(|kind| kind.name().as_bytes() == name)
    }
}

/// How the blob is read from within.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressionInfo {
    /// What the blob is.
    pub algorithm: CompressionAlgorithm,
    /// Number of the last span, the first being 0.
    pub max_span_id: u32,
    /// SHA-256 of each span's bytes in the blob.
    pub span_digests: Vec<[u8; 32]>,
    /// See [`Checkpoints`](super::checkpoints::Checkpoints).
    pub checkpoints: Vec<u8>,
}

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(i8)]
pub enum CompressionAlgorithm {
    /// Gzip.
    #[default]
    Gzip = 1,
    /// Not at all.
    Uncompressed = 2,
}

impl Ztoc {
    /// Reads a zTOC. What follows the flatbuffer is ignored.
    ///
    /// # Errors
    /// If it is longer than [`MAXIMUM_ZTOC`], no flatbuffer of this kind, or holds a value that its type cannot have. Memory is bounded
    /// by a small multiple of its length.
    pub fn read(bytes: &[u8]) -> Result<Ztoc, SociError> {
        read::read(bytes)
    }

    /// The flatbuffer, the same bytes for the same values.
    pub fn write(&self) -> Vec<u8> {
        write::write(self)
    }
}
