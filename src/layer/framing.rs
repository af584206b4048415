//! What a layer's archive has beside the content of its files: headers, padding, a table of contents, the end. Kept of a layer whose data
//! files hold files and nothing else, so that its archive can be written again, to the byte. (The podman family keeps the same as
//! *tar-split*.)
//!
//! ```text
//! header    magic "peelfram" │ version u32 │ features u32                                  little-endian, as all of it
//! records   one zstd frame:
//!   raw       length u64, 1 to 64 KiB │ bytes of the archive
//!   content   2⁶³ + length u64 │ decoded offset u64                bytes of the archive that are in the data files
//!   end       0 u64 │ length of the archive u64
//! ```
//!
//! It is made while the archive is read to be proved, and is worth nothing unless the proof holds. Nothing in it is trusted: what is
//! put together by it has the layer's diff ID, or is of no use.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::ops::Range;

use super::entry::{Content, Entry, EntryKind};
use super::path::components;
use super::stream::MAXIMUM_DECODED;
use super::tar::{SinkError, TarSink};
use crate::table::Table;
use crate::table::format::{InodeRecord, inode_flags};

const MAGIC: [u8; 8] = *b"peelfram";
const VERSION: u32 = 1;
/// Longest piece of raw bytes.
const LONGEST_RAW: usize = 64 << 10;
/// Marks the length of a piece of content.
const CONTENT: u64 = 1 << 63;
/// Headers of an archive are alike: a higher level gains nothing.
const LEVEL: i32 = 3;

/// A framing that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FramingError {
    /// The file.
    #[error("it cannot be read")]
    Read(#[from] io::Error),
    /// Of another version, or no framing.
    #[error("it is of a version that this program does not know")]
    Version,
    /// What it says makes no archive.
    #[error("it is damaged: {0}")]
    Damaged(&'static str),
}

/// A part of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a> {
    /// These bytes.
    Raw(&'a [u8]),
    /// Bytes of the layer's decoded space.
    Content {
        /// The first.
        decoded_offset: u64,
        /// How many, at least 1.
        length: u64,
    },
}

/// Shows the parts of an archive, from its first byte to its last.
///
/// # Errors
/// Those of `show`; [`FramingError`], also after parts were shown.
pub fn parts<E: From<FramingError>>(
    mut file: impl Read,
    mut show: impl FnMut(Part<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut found = [0; HEADER];
    file.read_exact(&mut found).map_err(FramingError::Read)?;
    if found != header() {
        return Err(FramingError::Version.into());
    }
    let mut records = Records(zstd::Decoder::new(file).map_err(FramingError::Read)?);
    let mut buffer = vec![0; LONGEST_RAW];
    let mut archive_length = 0_u64;
    loop {
        let head = records.number()?;
        let length = head & !CONTENT;
        archive_length = archive_length.saturating_add(length);
        if archive_length > MAXIMUM_DECODED {
            return Err(FramingError::Damaged("it is longer than any archive").into());
        }
        match (head & CONTENT != 0, length) {
            (false, 0) if records.number()? == archive_length => return Ok(records.end()?),
            (_, 0) => return Err(FramingError::Damaged("it does not end where it should").into()),
            (true, length) => show(Part::Content { decoded_offset: records.number()?, length })?,
            (false, length) => {
                let piece = usize::try_from(length).ok().and_then(|length| buffer.get_mut(..length));
                let piece = piece.ok_or(FramingError::Damaged("a part of it is too long"))?;
                records.0.read_exact(piece).map_err(FramingError::Read)?;
                show(Part::Raw(piece))?;
            }
        }
    }
}

struct Records<R: Read>(zstd::Decoder<'static, io::BufReader<R>>);

impl<R: Read> Records<R> {
    fn number(&mut self) -> Result<u64, FramingError> {
        let mut bytes = [0; 8];
        self.0.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Nothing follows. The frame's checksum comes last, and is looked at only by who reads to the end.
    fn end(&mut self) -> Result<(), FramingError> {
        match self.0.read(&mut [0])? {
            0 => Ok(()),
            _ => Err(FramingError::Damaged("something follows its end")),
        }
    }
}

const HEADER: usize = 16;

fn header() -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..8].copy_from_slice(&MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header
}

/// Takes an archive in, and writes what its files' content is not. That it cannot is no error: nothing needs it.
pub struct FramingRecorder<'a, W: Write> {
    /// The layer's table, which says where the content of its files lies.
    table: &'a Table,
    /// Nothing once writing has failed.
    writer: Option<Writer<W>>,
    /// Where the data of the last entry lie: in the archive, and in the decoded space. In order and apart from each other.
    pieces: VecDeque<(Range<u64>, u64)>,
}

impl<'a, W: Write> FramingRecorder<'a, W> {
    /// Writes to `file`, at most so many bytes.
    pub fn new(table: &'a Table, file: W, limit: u64) -> FramingRecorder<'a, W> {
        FramingRecorder { table, writer: Writer::new(file, limit).ok(), pieces: VecDeque::new() }
    }

    /// Ends it, once all of the archive was taken in; nothing if it could not be written.
    pub fn finish(self) -> Option<W> {
        self.writer?.finish().inspect_err(|error| tracing::debug!(%error, "no framing is kept")).ok()
    }

    fn write(&mut self, write: impl FnOnce(&mut Writer<W>) -> io::Result<()>) {
        if let Some(writer) = &mut self.writer
            && let Err(error) = write(writer)
        {
            tracing::debug!(%error, "no framing is kept");
            self.writer = None;
        }
    }

    /// The regular file of that name and size, as the table has it. What is behind a symlink is not looked for.
    fn file(&self, path: &[u8], size: u64) -> Option<&'a InodeRecord> {
        let mut inode = self.table.inode(0)?;
        for name in components(path).ok()? {
            inode = self.table.inode(self.table.find(inode, name)?.inode.get())?;
        }
        let is_file = inode.mode.get() & libc::S_IFMT == libc::S_IFREG;
        (is_file && inode.size.get() == size && inode.flags.get() & inode_flags::ALL_ZEROS == 0)
            .then_some(inode)
    }

    /// Where the bytes of a file that lie in the archive lie in the decoded space, as far as they do.
    fn pieces_of(&self, file: &InodeRecord, content: &Content) -> VecDeque<(Range<u64>, u64)> {
        let size = file.size.get();
        // Parts of the file, and where they are in the archive; and the same of the decoded space.
        let stored: Vec<(u64, u64, u64)> = match content {
            Content::Contiguous(offset) => vec![(0, size, *offset)],
            Content::Sparse(extents) => extents
                .iter()
                .map(|extent| (extent.file_offset, extent.length, extent.decoded_offset))
                .collect(),
        };
        let decoded: Vec<(u64, u64, u64)> = match file.count.get() {
            0 => vec![(0, size, file.content.get())],
            _ => {
                let extents = self.table.extents(file).iter();
                let numbers = extents.map(|extent| {
                    (extent.file_offset.get(), extent.length.get(), extent.decoded_offset.get())
                });
                numbers.collect()
            }
        };
        let mut pieces = VecDeque::new();
        let (mut one, mut other) = (stored.iter().peekable(), decoded.iter().peekable());
        while let (Some(stored), Some(decoded)) = (one.peek(), other.peek()) {
            let ends = (stored.0.saturating_add(stored.1), decoded.0.saturating_add(decoded.1));
            let (start, end) = (stored.0.max(decoded.0), ends.0.min(ends.1));
            if start < end {
                let archive = stored.2.saturating_add(start - stored.0);
                let place = decoded.2.saturating_add(start - decoded.0);
                pieces.push_back((archive..archive.saturating_add(end - start), place));
            }
            if ends.0 <= ends.1 {
                one.next();
            } else {
                other.next();
            }
        }
        pieces
    }
}

impl<W: Write> TarSink for FramingRecorder<'_, W> {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.pieces.clear();
        if let EntryKind::Regular { size, content } = &entry.kind
            && *size > 0
            && let Some(file) = self.file(&entry.path, *size)
        {
            self.pieces = self.pieces_of(file, content);
        }
        Ok(())
    }

    fn payload(&mut self, mut offset: u64, mut bytes: &[u8]) -> Result<(), SinkError> {
        while !bytes.is_empty() {
            let next = self.pieces.front().cloned();
            let until = match &next {
                Some((archive, _)) if archive.end <= offset => {
                    self.pieces.pop_front();
                    continue;
                }
                Some((archive, _)) if archive.start <= offset => archive.end,
                Some((archive, _)) => archive.start,
                None => u64::MAX,
            };
            let length =
                usize::try_from(until - offset).map_or(bytes.len(), |length| length.min(bytes.len()));
            let (part, rest) = bytes.split_at(length);
            match next {
                Some((archive, place)) if archive.start <= offset => {
                    let place = place.saturating_add(offset - archive.start);
                    self.write(|writer| writer.content(place, part.len() as u64));
                }
                _ => self.write(|writer| writer.raw(part)),
            }
            offset += part.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    fn framing(&mut self, _decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.write(|writer| writer.raw(bytes));
        Ok(())
    }
}

/// Writes records; neighbours become one.
struct Writer<W: Write> {
    encoder: zstd::Encoder<'static, Limited<W>>,
    raw: Vec<u8>,
    content: Option<(u64, u64)>,
    length: u64,
}

impl<W: Write> Writer<W> {
    fn new(mut file: W, limit: u64) -> io::Result<Writer<W>> {
        file.write_all(&header())?;
        let mut encoder = zstd::Encoder::new(Limited { file, left: limit }, LEVEL)?;
        encoder.include_checksum(true)?;
        Ok(Writer { encoder, raw: Vec::new(), content: None, length: 0 })
    }

    fn raw(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.end_content()?;
        while !bytes.is_empty() {
            let (part, rest) = bytes.split_at(bytes.len().min(LONGEST_RAW - self.raw.len()));
            self.raw.extend_from_slice(part);
            bytes = rest;
            if self.raw.len() == LONGEST_RAW {
                self.end_raw()?;
            }
        }
        Ok(())
    }

    fn content(&mut self, place: u64, length: u64) -> io::Result<()> {
        self.end_raw()?;
        match &mut self.content {
            Some((start, known)) if start.saturating_add(*known) == place => *known += length,
            _ => {
                self.end_content()?;
                self.content = Some((place, length));
            }
        }
        Ok(())
    }

    fn end_raw(&mut self) -> io::Result<()> {
        if self.raw.is_empty() {
            return Ok(());
        }
        self.length += self.raw.len() as u64;
        self.encoder.write_all(&(self.raw.len() as u64).to_le_bytes())?;
        self.encoder.write_all(&self.raw)?;
        self.raw.clear();
        Ok(())
    }

    fn end_content(&mut self) -> io::Result<()> {
        let Some((place, length)) = self.content.take() else { return Ok(()) };
        self.length += length;
        self.encoder.write_all(&(length | CONTENT).to_le_bytes())?;
        self.encoder.write_all(&place.to_le_bytes())
    }

    fn finish(mut self) -> io::Result<W> {
        self.end_raw()?;
        self.end_content()?;
        self.encoder.write_all(&0_u64.to_le_bytes())?;
        self.encoder.write_all(&self.length.to_le_bytes())?;
        let mut limited = self.encoder.finish()?;
        limited.flush()?;
        Ok(limited.file)
    }
}

/// Refuses what is more than there is room for.
struct Limited<W> {
    file: W,
    left: u64,
}

impl<W: Write> Write for Limited<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "it would take more than its share of the layer's room",
            )
        })?;
        self.file.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::builder::LayerBuilder;
    use crate::layer::entry::Extent;
    use crate::layer::tar::{END_OF_ARCHIVE, Limits, OwnerNames, TarReader, entry_headers};

    fn entry(path: &str, size: u64, content: Content) -> Entry {
        Entry {
            path: path.as_bytes().to_vec(),
            kind: EntryKind::Regular { size, content },
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: Default::default(),
            xattrs: vec![],
        }
    }

    /// An archive of these files, and the table of a layer whose decoded space is their content, one after the other; and that space.
    fn layer(files: &[(&str, &[u8])]) -> (Vec<u8>, Table, Vec<u8>) {
        let (mut archive, mut decoded) = (Vec::new(), Vec::new());
        let mut builder = LayerBuilder::new();
        for (path, bytes) in files {
            let size = bytes.len() as u64;
            archive.extend(entry_headers(
                &entry(path, size, Content::Contiguous(0)),
                &OwnerNames::default(),
                size,
            ));
            archive.extend_from_slice(bytes);
            archive.resize(archive.len().next_multiple_of(512), 0);
            builder.add(entry(path, size, Content::Contiguous(decoded.len() as u64))).unwrap();
            decoded.extend_from_slice(bytes);
        }
        archive.extend(END_OF_ARCHIVE);
        (archive, Table::from_bytes(builder.finish([0; 32], &[]).unwrap()).unwrap(), decoded)
    }

    fn framing(archive: &[u8], table: &Table, piece: usize, limit: u64) -> Option<Vec<u8>> {
        let mut recorder = FramingRecorder::new(table, Vec::new(), limit);
        let mut reader = TarReader::new(Limits::default());
        archive.chunks(piece).for_each(|piece| reader.push(piece, &mut recorder).unwrap());
        reader.finish().unwrap();
        recorder.finish()
    }

    fn put_together(framing: &[u8], decoded: &[u8]) -> Result<Vec<u8>, FramingError> {
        let mut archive = Vec::new();
        parts(framing, |part| -> Result<(), FramingError> {
            match part {
                Part::Raw(bytes) => archive.extend_from_slice(bytes),
                Part::Content { decoded_offset, length } => {
                    let end = decoded_offset.saturating_add(length) as usize;
                    let bytes = decoded.get(decoded_offset as usize..end);
                    archive.extend_from_slice(bytes.ok_or(FramingError::Damaged("nothing is there"))?);
                }
            }
            Ok(())
        })?;
        Ok(archive)
    }

    #[test]
    fn the_archive_comes_out_to_the_byte_and_content_is_kept_once() {
        let large: Vec<u8> = (0..300_000_u32).flat_map(|number| number.to_le_bytes()).collect();
        let files = [("a", &b"one"[..]), ("dir/./large", &large), ("../b", b""), ("z", b"last")];
        let (archive, table, decoded) = layer(&files);
        for piece in [1 << 20, 513, 7] {
            let framing = framing(&archive, &table, piece, u64::MAX).unwrap();
            assert!(framing.len() < 2000, "{} bytes: content is in it", framing.len());
            assert!(put_together(&framing, &decoded).unwrap() == archive, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_the_table_does_not_have_is_kept_as_it_is() {
        // The first "a" is replaced by the second, of another size; nobody lists "hidden".
        let (archive, _, _) = layer(&[("a", b"replaced"), ("hidden", b"nobody lists this"), ("a", b"it")]);
        let (_, table, decoded) = layer(&[("a", b"it")]);
        let framing = framing(&archive, &table, 100, u64::MAX).unwrap();
        assert!(put_together(&framing, &decoded).unwrap() == archive);
    }

    #[test]
    fn pieces_of_sparse_files_are_found_on_either_side() {
        let extent = |file_offset, length, decoded_offset| Extent { file_offset, length, decoded_offset };
        let (_, table, _) = layer(&[("a", &[7; 100])]);
        let recorder = FramingRecorder::new(&table, Vec::new(), u64::MAX);
        let file = recorder.file(b"/a", 100).unwrap();
        assert!(recorder.file(b"a", 99).is_none());
        let stored = Content::Sparse(vec![extent(10, 20, 1000), extent(50, 50, 1020)]);
        assert_eq!(recorder.pieces_of(file, &stored), [(1000..1020, 10), (1020..1070, 50)]);

        let mut builder = LayerBuilder::new();
        builder.add(entry("a", 100, Content::Sparse(vec![extent(0, 15, 0), extent(25, 30, 15)]))).unwrap();
        let table = Table::from_bytes(builder.finish([0; 32], &[]).unwrap()).unwrap();
        let recorder = FramingRecorder::new(&table, Vec::new(), u64::MAX);
        let file = recorder.file(b"a", 100).unwrap();
        assert_eq!(recorder.pieces_of(file, &stored), [(1000..1005, 10), (1015..1020, 15), (1020..1025, 40)]);
        assert_eq!(recorder.pieces_of(file, &Content::Contiguous(512)), [(512..527, 0), (537..567, 15)]);
    }

    #[test]
    fn one_that_would_take_too_much_room_or_is_damaged_is_of_no_use() {
        let noise: Vec<u8> =
            (0..50_000_u64).flat_map(|number| (number * number * 0x9e37_79b9).to_le_bytes()).collect();
        let (archive, _, _) = layer(&[("unlisted", &noise)]);
        let (_, table, decoded) = layer(&[("a", b"it")]);
        assert!(framing(&archive, &table, 4096, 1000).is_none());

        let (archive, table, _) = layer(&[("a", b"it")]);
        let whole = framing(&archive, &table, 4096, u64::MAX).unwrap();
        for cut in 0..whole.len() {
            put_together(&whole[..cut], &decoded).expect_err("it is cut off");
        }
        for place in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[place] ^= 0x55;
            // Some bits of a zstd frame mean nothing.
            if let Ok(found) = put_together(&bytes, &decoded) {
                assert!(found == archive, "changed at {place}");
            }
        }
    }
}
