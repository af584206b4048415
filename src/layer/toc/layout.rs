//! Lays out the decoded space of a TOC, and checks that what it says of payloads can be.
//!
//! Rules, those that every writer of the formats keeps: payloads are listed in the order in which they lie in the blob; those of one
//! member (gzip) or frame (zstd) have one offset, and inner offsets that do not overlap; the chunks of a file follow it, and add up to
//! it; where files state their ends, none begins before the end of the one before.

use super::{ALIGNMENT, Ends, EntryFault, Landmark, PayloadRules, TOC_NAME, TableOfContents, TocError};
use crate::layer::chunk::{MAXIMUM_CHUNK, MAXIMUM_SKIP};
use crate::layer::entry::{Chunk, Content, Entry, EntryKind};
use crate::table::Codec;

pub(in crate::layer) const PREFETCH_LANDMARK: &[u8] = b".prefetch.landmark";
pub(in crate::layer) const NO_PREFETCH_LANDMARK: &[u8] = b".no.prefetch.landmark";

/// What a `reg` or `chunk` entry says about its bytes; 0 is "not said".
#[derive(Debug)]
pub(super) struct Payload<'a> {
    pub size: u64,
    pub offset: u64,
    pub inner_offset: u64,
    pub chunk_offset: u64,
    pub chunk_size: u64,
    pub digest: Option<[u8; 32]>,
    pub chunk_digest: Option<[u8; 32]>,
    /// Of a file, never of a chunk.
    pub end_offset: u64,
    pub chunk_type: &'a str,
}

/// The TOC as far as it was read.
pub(super) struct Layout {
    rules: PayloadRules,
    entries: Vec<Entry>,
    /// The blob lengths of the last ones are still those up to the end of the file, or of all data.
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
    /// Its payload ends here at the latest.
    blob_end: u64,
    /// Its chunks become chunks of the layout; those of a landmark do not.
    is_shown: bool,
}

struct Member {
    offset: u64,
    /// Nothing else begins before this byte of the blob: `offset`, or the end of the file if that is stated.
    blob_end: u64,
    inner_end: u64,
    /// Chunks before this one end at the latest where this member begins.
    first_chunk: usize,
}

impl Layout {
    pub fn new(rules: PayloadRules) -> Self {
        Self {
            rules,
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
        if self.role(&entry.path) == Role::File {
            self.show(entry);
        }
        Ok(())
    }

    /// A regular file, and its first chunk.
    pub fn regular(&mut self, mut entry: Entry, payload: &Payload<'_>) -> Result<(), EntryFault> {
        self.end_file()?;
        let blob_end = if payload.size == 0 { self.rules.end } else { self.blob_end(payload)? };
        let role = self.role(&entry.path);
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
        let file = File { name, size: payload.size, filled: 0, decoded_offset: aligned, blob_end, is_shown };
        self.file = Some(file);
        // Without a chunkSize the file is one chunk.
        let length = if payload.chunk_size == 0 { payload.size } else { payload.chunk_size };
        self.add_chunk(payload, length)
    }

    /// A further chunk of the file before.
    pub fn chunk(&mut self, name: &str, payload: &Payload<'_>) -> Result<(), EntryFault> {
        let file = self.file.as_ref().filter(|file| name.is_empty() || file.name == name);
        let file = file.ok_or(EntryFault::StrayChunk)?;
        let rest = file.size - file.filled;
        let length = if payload.chunk_size == 0 { rest } else { payload.chunk_size };
        self.add_chunk(payload, length)
    }

    /// What the TOC says, once all of it was read.
    pub fn finish(mut self) -> Result<TableOfContents, TocError> {
        let name = self.file.as_ref().map(|file| file.name.clone()).unwrap_or_default();
        self.end_file().map_err(|fault| TocError::Entry { name, fault })?;
        Ok(TableOfContents {
            entries: self.entries,
            chunks: self.chunks,
            decoded_length: self.decoded_end,
            prefetch: self.prefetch,
            names_are_lossy: self.names_are_lossy,
        })
    }

    /// Where the payload of that file ends at the latest. The first file with a payload shows which schema the TOC has, unless the
    /// format tells it.
    fn blob_end(&mut self, payload: &Payload<'_>) -> Result<u64, EntryFault> {
        let Payload { offset, end_offset, .. } = *payload;
        let shown = if end_offset == 0 { Ends::Implied } else { Ends::Stated };
        match *self.rules.ends.get_or_insert(shown) {
            // JTOC has no such field, so what it says is of no use where the format is known to have that schema.
            Ends::Implied if shown == Ends::Implied || self.rules.codec == Codec::Gzip => Ok(self.rules.end),
            Ends::Stated if shown == Ends::Stated => {
                let end = self.rules.end;
                let fits = offset < end_offset && end_offset <= end;
                if fits { Ok(end_offset) } else { Err(EntryFault::EndOffset { end_offset, offset, end }) }
            }
            _ => Err(EntryFault::MixedEnds),
        }
    }

    /// Whether a payload is all zeros by the TOC's own word. JTOC knows no such chunks: their bytes are in the blob, and are verified.
    fn is_zeros(&self, payload: &Payload<'_>) -> Result<bool, EntryFault> {
        match payload.chunk_type {
            _ if self.rules.ends != Some(Ends::Stated) => Ok(false),
            "" => Ok(false),
            "zeros" => Ok(true),
            unknown => Err(EntryFault::ChunkType(unknown.to_owned())),
        }
    }

    fn role(&self, path: &[u8]) -> Role {
        if self.rules.ends == Some(Ends::Stated) { Role::File } else { role(path) }
    }

    fn show(&mut self, entry: Entry) {
        // Few names have a byte beyond ASCII at all, which is quicker to see.
        let is_lossy =
            |name: &[u8]| !name.is_ascii() && name.windows(3).any(|bytes| bytes == "\u{fffd}".as_bytes());
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

    fn add_chunk(&mut self, payload: &Payload<'_>, length: u64) -> Result<(), EntryFault> {
        let file = self.file.as_ref().ok_or(EntryFault::StrayChunk)?;
        if payload.chunk_offset != file.filled {
            return Err(EntryFault::ChunkOffset { stated: payload.chunk_offset, expected: file.filled });
        }
        let is_zeros = self.is_zeros(payload)?;
        let rest = file.size - file.filled;
        // Nobody decodes zeros, so there may be any number of them.
        let limit = if is_zeros { rest } else { MAXIMUM_CHUNK.min(rest) };
        if length == 0 || length > limit {
            return Err(EntryFault::ChunkTooLarge { length, limit });
        }
        let available = self.enter_member(payload, if is_zeros { 0 } else { length })?;
        let file = self.file.as_mut().ok_or(EntryFault::StrayChunk)?;
        let decoded_offset = file.decoded_offset + file.filled;
        file.filled += length;
        if !file.is_shown {
            return chunk_digest(payload, length == file.size).map(drop);
        }
        self.chunks.push(if is_zeros {
            Chunk {
                blob_offset: payload.offset,
                blob_length: 0,
                decoded_offset,
                decoded_length: length,
                skip: 0,
                codec: Codec::Zeros,
                checkpoint: 0,
                digest: ZEROS_DIGEST,
            }
        } else {
            Chunk {
                blob_offset: payload.offset,
                blob_length: blob_length(available, payload.inner_offset + length),
                decoded_offset,
                decoded_length: length,
                skip: payload.inner_offset,
                codec: self.rules.codec,
                checkpoint: 0,
                digest: chunk_digest(payload, length == file.size)?,
            }
        });
        Ok(())
    }

    /// Checks a payload's place in the blob against the one before; if it begins a member, that ends the chunks before. Gives the
    /// bytes of the blob that there are for it. A `length` of 0 is that of zeros, which may share their place with what comes next.
    fn enter_member(&mut self, payload: &Payload<'_>, length: u64) -> Result<u64, EntryFault> {
        let Payload { offset, inner_offset, .. } = *payload;
        let end = self.file.as_ref().map_or(self.rules.end, |file| file.blob_end);
        let is_first = self.file.as_ref().is_none_or(|file| file.filled == 0);
        let after = match &self.member {
            None => 0,
            Some(member) if is_first => member.blob_end,
            Some(member) => member.offset,
        };
        // The first bytes of a blob are a tar header, so no payload begins there.
        let is_first_header = offset == 0 && inner_offset == 0;
        if offset < after || offset >= end || is_first_header {
            return Err(EntryFault::Offset { offset, after, end });
        }
        if inner_offset > MAXIMUM_SKIP {
            return Err(EntryFault::InnerOffsetTooLarge { inner_offset, limit: MAXIMUM_SKIP });
        }
        let blob_end = if self.rules.ends == Some(Ends::Stated) { end } else { offset };
        // Both are bounded by now.
        let inner_end = inner_offset + length;
        match &mut self.member {
            Some(member) if member.offset == offset => {
                if inner_offset < member.inner_end {
                    return Err(EntryFault::InnerOffset { inner_offset, after: member.inner_end });
                }
                member.inner_end = inner_end;
                member.blob_end = blob_end;
            }
            member => {
                if let Some(member) = member {
                    for chunk in &mut self.chunks[member.first_chunk..] {
                        chunk.blob_length = chunk.blob_length.min(offset - chunk.blob_offset);
                    }
                }
                *member = Some(Member { offset, blob_end, inner_end, first_chunk: self.chunks.len() });
            }
        }
        Ok(end - offset)
    }
}

/// What chunks of zeros have for a digest: that of nothing, so that no other chunk is ever taken for one of them.
const ZEROS_DIGEST: [u8; 32] = [0; 32];

/// The digest of a chunk; that of a whole file is that of its only chunk.
fn chunk_digest(payload: &Payload<'_>, is_whole: bool) -> Result<[u8; 32], EntryFault> {
    match (payload.chunk_digest, payload.digest.filter(|_| is_whole)) {
        (Some(chunk), Some(whole)) if chunk != whole => Err(EntryFault::TwoDigests),
        (chunk, whole) => chunk.or(whole).ok_or(EntryFault::Digest { field: "chunkDigest" }),
    }
}

/// How many of the `available` bytes of a blob range are needed to decode `length` bytes. After a payload, a member may go on with the
/// headers of any number of entries, which nobody needs to fetch. Deflate adds 5 bytes to 64 KiB that it cannot compress, zstd 3 bytes
/// to a block, and both some for each flush; an eighth more is generous. A block of zstd, of up to 128 KiB, is wanted whole.
fn blob_length(available: u64, length: u64) -> u64 {
    const HEADER: u64 = 160 << 10;
    available.min(length + length / 8 + HEADER)
}

/// Whether an entry of that name is a landmark or the TOC of an eStargz layer: no part of the image.
pub(super) fn is_bookkeeping(path: &[u8]) -> bool {
    role(path) != Role::File
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
