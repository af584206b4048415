//! Lays out the decoded space of a TOC, and checks that what it says of payloads can be.
//!
//! Rules, those that every writer of the format keeps: payloads are listed in the order in which they lie in the blob; those of one
//! member have one offset, and inner offsets that do not overlap; the chunks of a file follow it, and add up to it.

use super::{ALIGNMENT, EntryFault, EstargzError, Landmark, TOC_NAME, TableOfContents};
use crate::layer::chunk::{MAXIMUM_CHUNK, MAXIMUM_SKIP};
use crate::layer::entry::{Chunk, Content, Entry, EntryKind};
use crate::table::Codec;

const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";
const NO_PREFETCH_LANDMARK: &[u8] = b".no.prefetch.landmark";

/// What a `reg` or `chunk` entry says about its bytes; 0 is "not said".
#[derive(Debug)]
pub(super) struct Payload {
    pub size: u64,
    pub offset: u64,
    pub inner_offset: u64,
    pub chunk_offset: u64,
    pub chunk_size: u64,
    pub digest: Option<[u8; 32]>,
    pub chunk_digest: Option<[u8; 32]>,
}

/// The TOC as far as it was read.
pub(super) struct Layout {
    toc_offset: u64,
    entries: Vec<Entry>,
    /// Their blob lengths are still those up to the TOC.
    chunks: Vec<Chunk>,
    /// Where the decoded space ends.
    decoded_end: u64,
    prefetch: Option<Landmark>,
    names_are_lossy: bool,
    /// The file whose chunks are being read.
    file: Option<File>,
    /// The payload before: its member, and where it ended in there.
    member: Option<Member>,
}

struct File {
    name: String,
    size: u64,
    filled: u64,
    decoded_offset: u64,
    /// Its chunks become chunks of the layout; those of a landmark do not.
    is_shown: bool,
}

struct Member {
    offset: u64,
    inner_end: u64,
    /// Chunks before this one end at the latest where this member begins.
    first_chunk: usize,
}

impl Layout {
    pub fn new(toc_offset: u64) -> Self {
        Self {
            toc_offset,
            entries: Vec::new(),
            chunks: Vec::new(),
            decoded_end: 0,
            prefetch: None,
            names_are_lossy: false,
            file: None,
            member: None,
        }
    }

    /// An entry without bytes.
    pub fn other(&mut self, entry: Entry) -> Result<(), EntryFault> {
        self.end_file()?;
        if role(&entry.path) == Role::File {
            self.show(entry);
        }
        Ok(())
    }

    /// A regular file, and its first chunk.
    pub fn regular(&mut self, mut entry: Entry, payload: &Payload) -> Result<(), EntryFault> {
        self.end_file()?;
        let role = role(&entry.path);
        match role {
            Role::Prefetch => self.prefetch = Some(Landmark::Prefetch { blob_length: payload.offset }),
            Role::NoPrefetch => self.prefetch = Some(Landmark::None),
            Role::Toc | Role::File => {}
        }
        let is_shown = role == Role::File;
        let aligned = self.decoded_end.checked_next_multiple_of(ALIGNMENT).ok_or(EntryFault::TotalSize)?;
        // The first bit stays free, so that sums of an offset and a length never overflow.
        let end = aligned.checked_add(payload.size).filter(|end| *end <= i64::MAX as u64);
        let end = end.ok_or(EntryFault::TotalSize)?;
        if is_shown {
            self.decoded_end = end;
        }
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        if is_shown {
            entry.kind = EntryKind::Regular { size: payload.size, content: Content::Contiguous(aligned) };
            self.show(entry);
        }
        if payload.size == 0 {
            return Ok(());
        }
        self.file = Some(File { name, size: payload.size, filled: 0, decoded_offset: aligned, is_shown });
        // Without a chunkSize the file is one chunk.
        let length = if payload.chunk_size == 0 { payload.size } else { payload.chunk_size };
        self.add_chunk(payload, length)
    }

    /// A further chunk of the file before.
    pub fn chunk(&mut self, name: &str, payload: &Payload) -> Result<(), EntryFault> {
        let file = self.file.as_ref().filter(|file| name.is_empty() || file.name == name);
        let file = file.ok_or(EntryFault::StrayChunk)?;
        let rest = file.size - file.filled;
        let length = if payload.chunk_size == 0 { rest } else { payload.chunk_size };
        self.add_chunk(payload, length)
    }

    /// What the TOC says, once all of it was read.
    pub fn finish(mut self) -> Result<TableOfContents, EstargzError> {
        let name = self.file.as_ref().map(|file| file.name.clone()).unwrap_or_default();
        self.end_file().map_err(|fault| EstargzError::Entry { name, fault })?;
        Ok(TableOfContents {
            entries: self.entries,
            chunks: self.chunks,
            decoded_length: self.decoded_end,
            prefetch: self.prefetch,
            names_are_lossy: self.names_are_lossy,
        })
    }

    fn show(&mut self, entry: Entry) {
        let is_lossy = |name: &[u8]| name.windows(3).any(|bytes| bytes == "\u{fffd}".as_bytes());
        self.names_are_lossy |= is_lossy(&entry.path)
            || match &entry.kind {
                EntryKind::Symlink { target } | EntryKind::Hardlink { target } => is_lossy(target),
                _ => false,
            };
        self.entries.push(entry);
    }

    fn end_file(&mut self) -> Result<(), EntryFault> {
        match self.file.take() {
            Some(File { size, filled, .. }) if size != filled => {
                Err(EntryFault::ChunkSizes { chunks: filled, size })
            }
            _ => Ok(()),
        }
    }

    fn add_chunk(&mut self, payload: &Payload, length: u64) -> Result<(), EntryFault> {
        let file = self.file.as_ref().ok_or(EntryFault::StrayChunk)?;
        if payload.chunk_offset != file.filled {
            return Err(EntryFault::ChunkOffset { stated: payload.chunk_offset, expected: file.filled });
        }
        let limit = MAXIMUM_CHUNK.min(file.size - file.filled);
        if length == 0 || length > limit {
            return Err(EntryFault::ChunkTooLarge { length, limit });
        }
        self.enter_member(payload, length)?;
        let file = self.file.as_mut().ok_or(EntryFault::StrayChunk)?;
        // The digest of a whole file is that of its only chunk.
        let whole = payload.digest.filter(|_| length == file.size);
        let digest = match (payload.chunk_digest, whole) {
            (Some(chunk), Some(whole)) if chunk != whole => return Err(EntryFault::TwoDigests),
            (chunk, whole) => chunk.or(whole).ok_or(EntryFault::Digest { field: "chunkDigest" })?,
        };
        let decoded_offset = file.decoded_offset + file.filled;
        file.filled += length;
        if file.is_shown {
            self.chunks.push(Chunk {
                blob_offset: payload.offset,
                blob_length: blob_length(self.toc_offset - payload.offset, payload.inner_offset + length),
                decoded_offset,
                decoded_length: length,
                skip: payload.inner_offset,
                codec: Codec::Gzip,
                digest,
            });
        }
        Ok(())
    }

    /// Checks a payload's place in the blob against the one before; if it begins a member, that ends the chunks before.
    fn enter_member(&mut self, payload: &Payload, length: u64) -> Result<(), EntryFault> {
        let Payload { offset, inner_offset, .. } = *payload;
        let after = self.member.as_ref().map_or(0, |member| member.offset);
        // The first bytes of a blob are a tar header, so no payload begins there.
        let is_first_header = offset == 0 && inner_offset == 0;
        if offset < after || offset >= self.toc_offset || is_first_header {
            return Err(EntryFault::Offset { offset, after, toc_offset: self.toc_offset });
        }
        if inner_offset > MAXIMUM_SKIP {
            return Err(EntryFault::InnerOffsetTooLarge { inner_offset, limit: MAXIMUM_SKIP });
        }
        // Both are bounded by now.
        let inner_end = inner_offset + length;
        match &mut self.member {
            Some(member) if member.offset == offset => {
                if inner_offset < member.inner_end {
                    return Err(EntryFault::InnerOffset { inner_offset, after: member.inner_end });
                }
                member.inner_end = inner_end;
            }
            member => {
                if let Some(member) = member {
                    for chunk in &mut self.chunks[member.first_chunk..] {
                        chunk.blob_length = chunk.blob_length.min(offset - chunk.blob_offset);
                    }
                }
                *member = Some(Member { offset, inner_end, first_chunk: self.chunks.len() });
            }
        }
        Ok(())
    }
}

/// How many of the `available` bytes of a blob range are needed to decode `length` bytes. After a payload, a member may go on with the
/// headers of any number of entries, which nobody needs to fetch. Deflate adds 5 bytes to 64 KiB that it cannot compress, and some for
/// each flush; an eighth more is generous.
fn blob_length(available: u64, length: u64) -> u64 {
    const HEADER: u64 = 128 << 10;
    available.min(length + length / 8 + HEADER)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    File,
    Prefetch,
    NoPrefetch,
    Toc,
}

/// What the name of an entry makes of it. Writers put `./` or `/` before names, or nothing.
fn role(path: &[u8]) -> Role {
    let mut name = path;
    while let Some(rest) = name.strip_prefix(b"./").or_else(|| name.strip_prefix(b"/")) {
        name = rest;
    }
    match name {
        PREFETCH_LANDMARK => Role::Prefetch,
        NO_PREFETCH_LANDMARK => Role::NoPrefetch,
        TOC_NAME => Role::Toc,
        _ => Role::File,
    }
}
