//! From a zTOC to the entries and chunks of its layer: the same tree that reading the archive gives, without the archive.
//!
//! ```text
//! archive (= decoded space)   │ headers │ content, padded │ headers │ headers │ content, … │
//!                                        ▲ uncompressed_offset of the entry; its headers are what lies before, from the end of the
//!                                          content of the entry before
//! ```
//!
//! Each span is a chunk, whose digest is that of its bytes in the blob. A layer whose zTOC does not tell enough ([`Shortfall`])
//! is no error: it can be streamed.

use std::collections::BTreeMap;
use std::io;

use super::checkpoints::Checkpoints;
use super::fault::{FileFault, Shortfall, SociError};
use super::headers::{self, Claim, MAXIMUM_HEADERS};
use super::ztoc::{FileMetadata, FileType, Ztoc};
use crate::layer::chunk::MAXIMUM_CHUNK;
use crate::layer::entry::{Chunk, Content, Entry, EntryKind};
use crate::layer::gzip::checkpoint::{Checkpoint, CheckpointWriter, Packed};
use crate::layer::lookup::is_bookkeeping;
use crate::layer::stream::MAXIMUM_DECODED;
use crate::layer::tar::{Limits, RecordedAttributes};
use crate::table::Codec;

/// Bytes of a block of a tar.
const BLOCK: u64 = 512;

/// What a zTOC says of its layer.
#[derive(Debug)]
pub struct SociContents {
    /// In the order of the archive.
    pub entries: Vec<Entry>,
    /// Sorted by decoded offset, without gaps.
    pub chunks: Vec<Chunk>,
    /// Length of the decoded space in bytes: that of the archive, as far as anybody needs it.
    pub decoded_length: u64,
    /// What is to be proved of the regular files that have content, in the order of the archive.
    pub claims: Vec<Claim>,
    ztoc: Ztoc,
}

impl SociContents {
    /// Of the layer of `blob_size` bytes whose descriptor has these annotations.
    ///
    /// # Errors
    /// If the zTOC contradicts itself or the blob, or claims what cannot be; [`SociError::Insufficient`] if the layer is to be streamed.
    pub fn of(
        ztoc: Ztoc,
        blob_size: u64,
        annotations: &BTreeMap<String, String>,
    ) -> Result<SociContents, SociError> {
        if ztoc.uncompressed_size > MAXIMUM_DECODED {
            let (length, limit) = (ztoc.uncompressed_size, MAXIMUM_DECODED);
            return Err(SociError::ArchiveTooLarge { length, limit });
        }
        let chunks = chunks(&ztoc, blob_size)?;
        let decoded_length = chunks.last().map_or(0, |chunk| chunk.decoded_offset + chunk.decoded_length);
        let (mut entries, mut claims) = (Vec::with_capacity(ztoc.files.len()), Vec::new());
        let mut files: Vec<&FileMetadata> = ztoc.files.iter().collect();
        files.sort_by_key(|file| file.uncompressed_offset);
        let mut end = 0;
        for file in files {
            let name = || file.name.escape_ascii().to_string();
            let content = file.uncompressed_offset;
            let headers = content
                .checked_sub(end)
                .filter(|length| (BLOCK..=MAXIMUM_HEADERS).contains(length) && length.is_multiple_of(BLOCK));
            let fault = |fault| SociError::File { name: name(), fault };
            if headers.is_none() {
                return Err(fault(FileFault::Headers { start: end, end: content }));
            }
            let headers = end..content;
            let length = if file.kind == FileType::Regular { file.uncompressed_size } else { 0 };
            let stored = content.checked_add(length).filter(|end| *end <= decoded_length);
            let stored =
                stored.ok_or_else(|| fault(FileFault::Content { length, archive: decoded_length }))?;
            // Bounded by the archive, which is far below the largest number.
            end = stored.next_multiple_of(BLOCK);
            let entry = entry(file).map_err(|reason| match reason {
                Reason::Wrong(reason) => fault(reason),
                Reason::Unknown(shortfall) => SociError::Insufficient(shortfall),
            })?;
            if is_bookkeeping(annotations, &entry.path) {
                continue;
            }
            if length > 0 {
                claims.push(Claim { headers, digest: headers::fingerprint(&entry) });
            }
            entries.push(entry);
        }
        Ok(SociContents { entries, chunks, decoded_length, claims, ztoc })
    }

    /// Writes the checkpoints that the chunks name.
    ///
    /// # Errors
    /// Those of the output.
    pub fn write_checkpoints(&self, mut writer: CheckpointWriter<'_>) -> io::Result<()> {
        // They were read before.
        if let Ok(Checkpoints::Gzip { list, .. }) = Checkpoints::of(&self.ztoc.compression) {
            for checkpoint in &list {
                // At the beginning nothing went before.
                let window = if checkpoint.uncompressed_offset == 0 { &[] } else { checkpoint.window };
                let checkpoint = Checkpoint { bits: checkpoint.bits, window: window.to_vec() };
                writer.add(&Packed::new(&checkpoint)?)?;
            }
        }
        writer.finish()
    }
}

fn chunks(ztoc: &Ztoc, blob_size: u64) -> Result<Vec<Chunk>, SociError> {
    let checkpoints = Checkpoints::of(&ztoc.compression)?;
    let is_gzip = matches!(checkpoints, Checkpoints::Gzip { .. });
    let mut chunks = Vec::new();
    for (number, (span, digest)) in ztoc.spans(&checkpoints, blob_size)?.into_iter().enumerate() {
        let blob_length = span.compressed.end - span.compressed.start;
        // What is not compressed is verified as it is read, up to its last byte.
        let decoded = if is_gzip { span.uncompressed } else { span.compressed.clone() };
        let decoded_length = decoded.end - decoded.start;
        if blob_length.max(decoded_length) > MAXIMUM_CHUNK {
            let (length, limit) = (blob_length.max(decoded_length), MAXIMUM_CHUNK);
            return Err(SociError::Insufficient(Shortfall::Span { number, length, limit }));
        }
        if decoded_length == 0 {
            continue;
        }
        chunks.push(Chunk {
            blob_offset: span.compressed.start,
            blob_length,
            decoded_offset: decoded.start,
            decoded_length,
            skip: 0,
            codec: if is_gzip { Codec::SealedGzipSpan } else { Codec::Raw },
            // No zTOC has as many spans as do not fit.
            checkpoint: if is_gzip { number as u32 } else { 0 },
            digest,
        });
    }
    Ok(chunks)
}

/// Why an entry cannot be had.
enum Reason {
    Wrong(FileFault),
    Unknown(Shortfall),
}

fn entry(file: &FileMetadata) -> Result<Entry, Reason> {
    let limits = Limits::default();
    let length = file.name.len().max(file.link_name.len());
    if length > limits.path {
        return Err(Reason::Wrong(FileFault::PathTooLong { length, limit: limits.path }));
    }
    let recorded = RecordedAttributes::of(&file.pax_records, &limits)
        .map_err(|fault| Reason::Wrong(FileFault::Record(fault)))?;
    let name = || file.name.escape_ascii().to_string();
    if recorded.is_sparse {
        return Err(Reason::Unknown(Shortfall::Sparse { name: name() }));
    }
    let modified = file.modified.ok_or_else(|| Reason::Unknown(Shortfall::Time { name: name() }))?;
    let device = |field, value| {
        u32::try_from(value).map_err(|_| Reason::Wrong(FileFault::OutOfRange { field, value }))
    };
    let devices = || Ok((device("devmajor", file.device_major)?, device("devminor", file.device_minor)?));
    let kind = match file.kind {
        FileType::Regular => {
            let (size, offset) = (file.uncompressed_size, file.uncompressed_offset);
            EntryKind::Regular { size, content: Content::Contiguous(offset) }
        }
        FileType::Directory => EntryKind::Directory,
        FileType::Symlink => EntryKind::Symlink { target: file.link_name.clone() },
        FileType::Hardlink => EntryKind::Hardlink { target: file.link_name.clone() },
        FileType::CharacterDevice => {
            let (major, minor) = devices()?;
            EntryKind::CharacterDevice { major, minor }
        }
        FileType::BlockDevice => {
            let (major, minor) = devices()?;
            EntryKind::BlockDevice { major, minor }
        }
        FileType::Fifo => EntryKind::Fifo,
    };
    Ok(Entry {
        path: file.name.clone(),
        kind,
        // As in a header: what is above are no permissions.
        mode: (file.mode & 0o7777) as u32,
        uid: file.uid,
        gid: file.gid,
        modified,
        xattrs: recorded.xattrs,
    })
}
