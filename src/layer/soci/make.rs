//! From a layer to its zTOC, in one pass over the blob that proves its digest and its diff ID, too.
//!
//! ```text
//! blob ─▶ digest, spans ─▶ decoder ─▶ archive ─▶ diff ID, headers ─▶ files
//!            └───────────────── zTOC ◀───────────────────────────────┘
//! ```
//!
//! The zTOC is a function of blob and options: the same on any machine, however the blob arrives.

use std::ops::Range;

use super::cutter::SpanCutter;
use super::ztoc::{FileMetadata, FileType, MAXIMUM_ZTOC, VERSION, Ztoc};
use crate::layer::compression::Compression;
use crate::layer::entry::{Content, Entry, EntryKind, Timestamp};
use crate::layer::stream::{LayerSink, StreamError, StreamExpectation, unpack_cut};
use crate::layer::tar::{RawHeaders, SinkError, raw_headers};

/// Bytes of a span, decoded, unless somebody wants others; the reference's choice.
pub const DEFAULT_SPAN_SIZE: u64 = 4 << 20;
/// Smallest size of a span: below it, checkpoints are larger than what they make reachable.
pub const MINIMUM_SPAN_SIZE: u64 = 64 << 10;
/// Largest size of a span: what is read as a whole is held in memory.
pub const MAXIMUM_SPAN_SIZE: u64 = 32 << 20;

/// Most bytes of headers of one entry; only global ones could be more.
const LONGEST_HEADERS: usize = 32 << 20;
/// What an entry takes in a zTOC beside its names and records.
const FILE_COST: usize = 128;

/// Why a layer can have no zTOC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoZtoc {
    /// Only gzip and plain archives can.
    #[error("a zstd layer can have no zTOC")]
    Zstd,
    /// Where the pieces of a sparse file are, a zTOC does not say.
    #[error("a zTOC cannot tell where the pieces of the sparse file {name:?} are")]
    Sparse {
        /// Its name.
        name: String,
    },
    /// Nothing to be read.
    #[error("the layer is empty")]
    Empty,
    /// More than readers take.
    #[error("its zTOC would be larger than {MAXIMUM_ZTOC} bytes; larger spans make it smaller")]
    TooLarge,
    /// Headers that go on and on.
    #[error("an entry has more than {LONGEST_HEADERS} bytes of headers")]
    Headers,
}

/// How zTOCs are made.
#[derive(Clone, Debug)]
pub struct ZtocOptions {
    /// Decoded bytes after which a span ends: from [`MINIMUM_SPAN_SIZE`] to [`MAXIMUM_SPAN_SIZE`].
    pub span_size: u64,
    /// What says that it made them.
    pub build_tool: String,
}

/// The bytes of the zTOC of a layer whose blob arrives as `input`, or why there is none. `progress` is told how many bytes of the
/// blob have arrived so far. As for [`unpack_stream`](crate::layer::stream::unpack_stream), `input` is asked on a thread of its own,
/// and all of it is read in any case.
///
/// # Errors
/// If the blob, or what it decodes to, is not what was expected, or cannot be read.
pub fn make_ztoc<I, B, E>(
    input: I,
    expected: &StreamExpectation,
    options: &ZtocOptions,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Result<Vec<u8>, NoZtoc>, StreamError>
where
    I: Iterator<Item = Result<B, E>> + Send,
    B: AsRef<[u8]>,
    E: Into<SinkError>,
{
    let mut sink = FileSink::default();
    let cutter = SpanCutter::new(options.span_size);
    let (whole, cutter, compression) = unpack_cut(input, expected, cutter, &mut sink, progress)?;
    Ok(match (compression, sink.refusal) {
        (Compression::Zstd, _) => Err(NoZtoc::Zstd),
        (_, Some(refusal)) => Err(refusal),
        _ if whole.decoded_length == 0 => Err(NoZtoc::Empty),
        _ => cutter.finish(expected.blob_size).ok_or(NoZtoc::TooLarge).and_then(|compression| {
            let ztoc = Ztoc {
                version: VERSION.into(),
                build_tool: options.build_tool.clone().into_bytes(),
                compressed_size: expected.blob_size,
                uncompressed_size: whole.decoded_length,
                files: sink.files,
                compression,
            };
            let bytes = ztoc.write();
            if bytes.len() as u64 > MAXIMUM_ZTOC { Err(NoZtoc::TooLarge) } else { Ok(bytes) }
        }),
    })
}

/// Makes files of entries and their headers.
#[derive(Default)]
struct FileSink {
    /// The archive from `base` on, as far as the headers of the next entry may be in it.
    recent: Vec<u8>,
    base: u64,
    /// What is before this is data, or headers that were read.
    done: u64,
    headers: RawHeaders,
    /// Where the data of the next entry begin.
    data: u64,
    files: Vec<FileMetadata>,
    /// Bytes that the files will take at the least.
    weight: usize,
    refusal: Option<NoZtoc>,
}

impl FileSink {
    fn forget_until(&mut self, offset: u64) {
        let count = usize::try_from(offset.saturating_sub(self.base)).unwrap_or(usize::MAX);
        let count = count.min(self.recent.len());
        self.recent.drain(..count);
        self.base += count as u64;
    }

    fn refuse(&mut self, refusal: NoZtoc) {
        self.files = Vec::new();
        self.recent = Vec::new();
        self.refusal.get_or_insert(refusal);
    }
}

impl LayerSink for FileSink {
    fn archive(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        if self.refusal.is_some() {
            return Ok(());
        }
        self.forget_until(self.done);
        if self.recent.len() > LONGEST_HEADERS {
            // Either headers without end, or what follows the archive's end: then nothing more will be asked for.
            self.forget_until(u64::MAX);
        }
        self.recent.extend_from_slice(bytes);
        Ok(())
    }

    fn headers(&mut self, place: Range<u64>) -> Result<(), SinkError> {
        if self.refusal.is_some() {
            return Ok(());
        }
        let index = |offset: u64| offset.checked_sub(self.base).and_then(|at| usize::try_from(at).ok());
        let bytes = index(place.start).zip(index(place.end)).and_then(|(from, to)| self.recent.get(from..to));
        match bytes {
            Some(bytes) => self.headers = raw_headers(bytes),
            None => self.refuse(NoZtoc::Headers),
        }
        (self.done, self.data) = (place.end, place.end);
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        if self.refusal.is_some() {
            return Ok(());
        }
        if let EntryKind::Regular { content: Content::Sparse(_), .. } = entry.kind {
            self.refuse(NoZtoc::Sparse { name: String::from_utf8_lossy(&entry.path).into_owned() });
            return Ok(());
        }
        let file = metadata(entry, std::mem::take(&mut self.headers), self.data);
        let records: usize = file.pax_records.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.weight =
            self.weight.saturating_add(FILE_COST + file.name.len() + file.link_name.len() + records);
        self.files.push(file);
        if self.weight as u64 > MAXIMUM_ZTOC {
            self.refuse(NoZtoc::TooLarge);
        }
        Ok(())
    }

    fn payload(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.done = decoded_offset + bytes.len() as u64;
        Ok(())
    }
}

/// The entry as a zTOC has it.
fn metadata(entry: Entry, headers: RawHeaders, data: u64) -> FileMetadata {
    let (mut size, mut link_name) = (0, Vec::new());
    let (mut device_major, mut device_minor) = (0, 0);
    let kind = match entry.kind {
        EntryKind::Regular { size: bytes, .. } => {
            size = bytes;
            FileType::Regular
        }
        EntryKind::Directory => FileType::Directory,
        EntryKind::Symlink { target } => {
            link_name = target;
            FileType::Symlink
        }
        EntryKind::Hardlink { target } => {
            link_name = target;
            FileType::Hardlink
        }
        EntryKind::CharacterDevice { major, minor } => {
            (device_major, device_minor) = (major.into(), minor.into());
            FileType::CharacterDevice
        }
        EntryKind::BlockDevice { major, minor } => {
            (device_major, device_minor) = (major.into(), minor.into());
            FileType::BlockDevice
        }
        EntryKind::Fifo => FileType::Fifo,
    };
    FileMetadata {
        name: entry.path,
        kind,
        uncompressed_offset: data,
        uncompressed_size: size,
        link_name,
        mode: headers.mode,
        uid: entry.uid,
        gid: entry.gid,
        user_name: headers.owners.user,
        group_name: headers.owners.group,
        modified: Some(entry.modified).filter(has_four_digit_year),
        device_major,
        device_minor,
        pax_records: headers.records.into_iter().collect(),
    }
}

/// RFC 3339 has years from 0 to 9999.
fn has_four_digit_year(time: &Timestamp) -> bool {
    (-62_167_219_200..253_402_300_800).contains(&time.seconds)
}
