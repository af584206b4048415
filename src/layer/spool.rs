//! A layer unpacked for writing it anew: its archive in a file, and where each entry lies in there.
//!
//! ```text
//! file    │ headers │ data │ padding │ headers │ headers │ data │ …
//!           ▲ entry 0                  ▲ entry 1   ▲ entry 2
//! ```
//!
//! The file has no name, so a crash leaves nothing behind. Memory is needed for the entries alone: what their inode table or table
//! of contents will need, too.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use super::entry::{Content, Entry, EntryKind, Extent};
use super::stream::{self, LayerSink, StreamError, StreamExpectation, Streamed};
use super::tar::{HeaderFields, OwnerNames, SinkError, owner_names, plain_fields};

/// Most bytes of headers that are read for the names in them.
const LONGEST_HEADERS: u64 = 32 << 20;

/// An entry, and its headers in the archive.
#[derive(Clone, Debug)]
pub struct SpooledEntry {
    /// What it says.
    pub entry: Entry,
    /// All its headers, extended ones included: bytes of the archive.
    pub headers: Range<u64>,
}

/// A layer in a file.
#[derive(Debug)]
pub struct Spool {
    file: File,
    /// In the order of the archive.
    pub entries: Vec<SpooledEntry>,
}

/// Unpacks a layer into `file`, which is empty. Otherwise as [`stream::unpack_stream`].
///
/// # Errors
/// As there.
pub fn spool_layer<I, B, E>(
    input: I,
    expected: &StreamExpectation,
    file: File,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Spool, Streamed), StreamError>
where
    I: Iterator<Item = Result<B, E>> + Send,
    B: AsRef<[u8]>,
    E: Into<SinkError>,
{
    let mut sink = SpoolSink { file, headers: 0..0, entries: Vec::new() };
    let streamed = stream::unpack_stream(input, expected, &mut sink, &mut std::io::sink(), progress)?;
    Ok((Spool::new(sink.file, sink.entries), streamed))
}

struct SpoolSink {
    file: File,
    headers: Range<u64>,
    entries: Vec<SpooledEntry>,
}

impl LayerSink for SpoolSink {
    fn archive(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        Ok(self.file.write_all(bytes)?)
    }

    fn headers(&mut self, place: Range<u64>) -> Result<(), SinkError> {
        self.headers = place;
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.entries.push(SpooledEntry { entry, headers: self.headers.clone() });
        Ok(())
    }

    fn payload(&mut self, _decoded_offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }
}

impl Spool {
    /// The layer whose archive is in that file, and whose entries lie there.
    pub fn new(file: File, entries: Vec<SpooledEntry>) -> Spool {
        Spool { file, entries }
    }

    /// Appends bytes of the archive to `buffer`.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn append(&self, place: Range<u64>, buffer: &mut Vec<u8>) -> io::Result<()> {
        let start = buffer.len();
        let length = usize::try_from(place.end.saturating_sub(place.start)).map_err(io::Error::other)?;
        buffer.resize(start + length, 0);
        self.file.read_exact_at(&mut buffer[start..], place.start)
    }

    /// The names of an entry's owners; none if its headers are longer than any writer makes them (of global ones there may be any
    /// number): they are not worth the memory.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn owner_names(&self, entry: &SpooledEntry) -> io::Result<OwnerNames> {
        if entry.headers.end - entry.headers.start > LONGEST_HEADERS {
            return Ok(OwnerNames::default());
        }
        let mut headers = Vec::new();
        self.append(entry.headers.clone(), &mut headers)?;
        Ok(owner_names(&headers))
    }

    /// What the headers of an entry say beside it; `None` if they are unusual, or longer than any writer makes them.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn header_fields(&self, entry: &SpooledEntry) -> io::Result<Option<HeaderFields>> {
        if entry.headers.end - entry.headers.start > LONGEST_HEADERS {
            return Ok(None);
        }
        let mut headers = Vec::new();
        self.append(entry.headers.clone(), &mut headers)?;
        Ok(plain_fields(&headers))
    }

    /// Bytes of the archive.
    ///
    /// # Errors
    /// If the file cannot be asked.
    pub fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Appends `length` bytes of a regular file, from `offset` on, to `buffer`; holes are zeros.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn append_content(
        &self,
        entry: &Entry,
        offset: u64,
        length: u64,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        let EntryKind::Regular { content, .. } = &entry.kind else { return Ok(()) };
        let extents = match content {
            Content::Contiguous(decoded_offset) => {
                let start = decoded_offset.saturating_add(offset);
                return self.append(start..start.saturating_add(length), buffer);
            }
            Content::Sparse(extents) => extents,
        };
        let end = offset.saturating_add(length);
        let mut position = offset;
        let first = extents.partition_point(|extent| file_end(extent) <= offset);
        for extent in extents[first..].iter().take_while(|extent| extent.file_offset < end) {
            let from = extent.file_offset.max(offset);
            let to = file_end(extent).min(end);
            append_zeros(buffer, from - position)?;
            let decoded = extent.decoded_offset + (from - extent.file_offset);
            self.append(decoded..decoded + (to - from), buffer)?;
            position = to;
        }
        append_zeros(buffer, end - position)
    }
}

/// The tar reader has checked that this is no more than the file's size.
fn file_end(extent: &Extent) -> u64 {
    extent.file_offset + extent.length
}

fn append_zeros(buffer: &mut Vec<u8>, count: u64) -> io::Result<()> {
    let length = buffer.len() as u64 + count;
    buffer.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
    Ok(())
}
