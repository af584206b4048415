//! Whether the inode table of a layer says what the layer's archive says. A table of contents is vouched for by the manifest, and so
//! is the archive, but nobody vouches that they agree: whoever makes an image can show one to a scanner and the other to a container.
//!
//! ```text
//! archive ─▶ tar reader ─▶ ArchiveSink ─▶ a table of its own, a digest of each file ─┐
//!                                                                                   ├─▶ differences
//! the table that was believed, the content that it gives ───────────────────────────┘
//! ```
//!
//! The archive's own table is built by the same rules as any layer's that is streamed, so what is compared is what somebody would see
//! of either: each name, what it stands for, and all bytes. Where the content lies in the two decoded spaces does not matter.
//!
//! Whoever feeds the sink proves the archive against its diff ID.

mod differences;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::collections::VecDeque;

use sha2::{Digest, Sha256};

pub use self::differences::Difference;
use super::builder::{BuildError, LayerBuilder};
use super::entry::{Content, Entry, EntryKind, Extent};
use super::lookup::is_bookkeeping;
use super::stream::MAXIMUM_DECODED;
use super::tar::{SinkError, TarSink};
use crate::table::format::{InodeRecord, inode_flags};
use crate::table::{Table, TableError};

/// Differences that are told at most: whoever looks for the cause needs the first.
pub const MOST_DIFFERENCES: usize = 8;

/// Why archive and table could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The archive's entries make no layer.
    #[error("the entries of the archive make no layer")]
    Build(#[from] BuildError),
    /// The archive's table, which was just written.
    #[error("the table of the archive cannot be used")]
    Table(#[from] TableError),
    /// What the believed table gives could not be read.
    #[error("cannot read what is here of the layer")]
    Read(#[from] std::io::Error),
    /// Not all of it is here.
    #[error("a part of the layer was discarded meanwhile")]
    Absent,
}

/// Takes an archive in, and keeps what is needed to compare it: a record of each entry, a digest of each file's content.
pub struct ArchiveSink {
    builder: LayerBuilder,
    annotations: BTreeMap<String, String>,
    /// By the decoded offset of a file's first byte, ascending, as archives are read from front to back.
    digests: Vec<(u64, [u8; 32])>,
    /// The file whose data come next.
    file: Option<FileHasher>,
    /// Bytes of holes that may still be hashed.
    holes_left: u64,
}

/// Hashes the content of one file, holes included.
struct FileHasher {
    /// Decoded offset of the first byte that is stored.
    key: u64,
    size: u64,
    /// Bytes of the content that were hashed.
    position: u64,
    /// What is still to come.
    extents: VecDeque<Extent>,
    hasher: Sha256,
}

impl ArchiveSink {
    /// For the layer with these annotations.
    pub fn new(annotations: BTreeMap<String, String>) -> ArchiveSink {
        ArchiveSink {
            builder: LayerBuilder::new(),
            annotations,
            digests: Vec::new(),
            file: None,
            holes_left: MAXIMUM_DECODED,
        }
    }

    /// What is different in `believed`, the layer's table, and the archive that was taken in: the first of all differences, in the
    /// order of the names; nothing if there is none. `content` gives the SHA-256 of the content of a regular file of `believed`,
    /// and is asked for those of files of equal size only.
    ///
    /// # Errors
    /// If they cannot be compared, or with the error of `content`.
    pub fn differences(
        self,
        believed: &Table,
        content: impl FnMut(&InodeRecord) -> Result<[u8; 32], CompareError>,
    ) -> Result<Vec<Difference>, CompareError> {
        // The table never leaves this function, so it needs no identity.
        let archive = Table::from_bytes(self.builder.finish([0; 32], &[])?)?;
        let digests = self.digests;
        let of_archive = |inode: &InodeRecord| {
            let key = match archive.extents(inode).first() {
                Some(extent) if inode.count.get() > 0 => extent.decoded_offset.get(),
                _ => inode.content.get(),
            };
            let place = digests.binary_search_by_key(&key, |(key, _)| *key).ok()?;
            Some(digests[place].1)
        };
        differences::differences(believed, &archive, of_archive, content)
    }

    /// Hashes as many zeros as a hole has.
    fn hash_hole(&mut self, length: u64) -> Result<(), SinkError> {
        self.holes_left =
            self.holes_left.checked_sub(length).ok_or("its sparse files are too large to be compared")?;
        if let Some(file) = &mut self.file {
            hash_zeros(&mut file.hasher, length);
            file.position += length;
        }
        Ok(())
    }

    /// Keeps the digest of a file all of whose data have come.
    fn end_file(&mut self) -> Result<(), SinkError> {
        let rest = match &self.file {
            Some(file) if file.extents.is_empty() => file.size - file.position,
            _ => return Ok(()),
        };
        self.hash_hole(rest)?;
        if let Some(file) = self.file.take() {
            self.digests.push((file.key, file.hasher.finalize().into()));
        }
        Ok(())
    }
}

impl TarSink for ArchiveSink {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.file = None;
        if is_bookkeeping(&self.annotations, &entry.path) {
            return Ok(());
        }
        if let EntryKind::Regular { size, content } = &entry.kind {
            let extents: VecDeque<Extent> = match content {
                Content::Contiguous(decoded_offset) if *size > 0 => {
                    [Extent { file_offset: 0, length: *size, decoded_offset: *decoded_offset }].into()
                }
                Content::Contiguous(_) => VecDeque::new(),
                Content::Sparse(extents) => extents.iter().copied().collect(),
            };
            // A file that is one hole is known by its record.
            self.file = extents.front().map(|first| FileHasher {
                key: first.decoded_offset,
                size: *size,
                position: 0,
                hasher: Sha256::new(),
                extents: extents.clone(),
            });
        }
        Ok(self.builder.add(entry)?)
    }

    fn payload(&mut self, _decoded_offset: u64, mut bytes: &[u8]) -> Result<(), SinkError> {
        while !bytes.is_empty() {
            // Data of an entry that is passed over.
            let Some(file) = &self.file else { return Ok(()) };
            let Some(extent) = file.extents.front().copied() else { return Ok(()) };
            self.hash_hole(extent.file_offset.saturating_sub(file.position))?;
            let Some(file) = &mut self.file else { return Ok(()) };
            let left = extent.file_offset.saturating_add(extent.length).saturating_sub(file.position);
            let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            file.hasher.update(&bytes[..taken]);
            file.position += taken as u64;
            bytes = &bytes[taken..];
            if taken as u64 == left {
                file.extents.pop_front();
                self.end_file()?;
            }
        }
        Ok(())
    }
}

/// Adds so many zeros.
pub fn hash_zeros(hasher: &mut Sha256, mut length: u64) {
    static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
    while length > 0 {
        let part = length.min(ZEROS.len() as u64);
        hasher.update(&ZEROS[..part as usize]);
        length -= part;
    }
}

/// SHA-256 of so many zeros.
fn digest_of_zeros(length: u64) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hash_zeros(&mut hasher, length);
    hasher.finalize().into()
}

/// Whether a regular file is one hole, of which nothing is stored.
fn is_hole(inode: &InodeRecord) -> bool {
    inode.flags.get() & inode_flags::ALL_ZEROS != 0
}
