//! Checkpoints of a layer: what a decoder must know to start between two deflate blocks, kept in a file beside the inode table.
//!
//! ```text
//! header    magic "peelckpt", version u32, incompatible features u32
//! windows   zstd frames, one for each record that has one
//! records   n × { offset of the window u64, its length as stored u32, bits u8, zeros [3], CRC-32 of all this and the stored window }
//! footer    offset of the records u64, n u32, CRC-32 of the records u32, CRC-32 of header and footer up to here u32
//! ```
//!
//! All numbers are little-endian. The file is written once, in order, while the layer is streamed, so a layer of any size costs little
//! memory; the footer comes last, so a file that was cut off is not taken for a whole one. A record is read when its span is.
//!
//! Nothing here is trusted: a checkpoint that is wrong gives bytes that do not match the digest of their chunk.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use super::inflate::WINDOW;

const MAGIC: [u8; 8] = *b"peelckpt";
const VERSION: u32 = 1;
/// Windows of program text shrink to 30 to 40 % at this level, in 0.2 ms each; higher ones gain 2 %.
const LEVEL: i32 = 3;
/// A window that does not compress grows by a frame's header only.
const MAXIMUM_STORED: usize = WINDOW + 64;

/// Where a decoder can start within a gzip member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// How many of the topmost bits of the first byte belong to the block that begins here; 0 if the whole byte does.
    pub bits: u8,
    /// The bytes that went before, at most [`WINDOW`].
    pub window: Vec<u8>,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    incompatible: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    window_offset: U64,
    window_length: U32,
    bits: u8,
    reserved: [u8; 3],
    checksum: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Footer {
    records_offset: U64,
    count: U32,
    records_checksum: U32,
    checksum: U32,
}

/// Bytes that a checkpoint takes beside its window.
pub const RECORD_LENGTH: u64 = size_of::<Record>() as u64;

const HEADER: Header = Header { magic: MAGIC, version: U32::new(VERSION), incompatible: U32::new(0) };

impl Record {
    fn checksum(&self, stored: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.as_bytes()[..size_of::<Record>() - size_of::<U32>()]);
        hasher.update(stored);
        hasher.finalize()
    }
}

impl Footer {
    fn checksum(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(HEADER.as_bytes());
        hasher.update(&self.as_bytes()[..size_of::<Footer>() - size_of::<U32>()]);
        hasher.finalize()
    }
}

/// Writes checkpoints, and nothing at all if there are none.
pub struct CheckpointWriter<'a> {
    output: &'a mut (dyn Write + Send),
    position: u64,
    records: Vec<Record>,
}

/// A checkpoint as it would be written.
pub struct Packed {
    bits: u8,
    stored: Vec<u8>,
}

impl Packed {
    /// Compresses the window.
    ///
    /// # Errors
    /// For want of memory.
    pub fn new(checkpoint: &Checkpoint) -> io::Result<Packed> {
        let stored = match &checkpoint.window[..] {
            [] => Vec::new(),
            window => zstd::bulk::compress(window, LEVEL)?,
        };
        Ok(Packed { bits: checkpoint.bits, stored })
    }

    /// Bytes that it takes in the file.
    pub fn length(&self) -> u64 {
        self.stored.len() as u64 + RECORD_LENGTH
    }
}

impl<'a> CheckpointWriter<'a> {
    /// Writes to `output`, from its beginning on.
    pub fn new(output: &'a mut (dyn Write + Send)) -> CheckpointWriter<'a> {
        CheckpointWriter { output, position: 0, records: Vec::new() }
    }

    /// Adds a checkpoint, and gives its number.
    ///
    /// # Errors
    /// Those of the output.
    pub fn add(&mut self, packed: &Packed) -> io::Result<u32> {
        let number = u32::try_from(self.records.len())
            .map_err(|_| io::Error::other("a layer cannot have more checkpoints"))?;
        if self.records.is_empty() {
            self.write(HEADER.as_bytes())?;
        }
        let mut record = Record {
            window_offset: self.position.into(),
            // Bounded by `MAXIMUM_STORED`.
            window_length: (packed.stored.len() as u32).into(),
            bits: packed.bits,
            reserved: [0; 3],
            checksum: 0.into(),
        };
        record.checksum = record.checksum(&packed.stored).into();
        self.write(&packed.stored)?;
        self.records.push(record);
        Ok(number)
    }

    /// Writes what comes last.
    ///
    /// # Errors
    /// Those of the output.
    pub fn finish(mut self) -> io::Result<()> {
        if self.records.is_empty() {
            return Ok(());
        }
        let records = std::mem::take(&mut self.records);
        let mut footer = Footer {
            records_offset: self.position.into(),
            count: (records.len() as u32).into(),
            records_checksum: crc32fast::hash(records.as_bytes()).into(),
            checksum: 0.into(),
        };
        footer.checksum = footer.checksum().into();
        self.write(records.as_bytes())?;
        self.write(footer.as_bytes())?;
        self.output.flush()
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        self.output.write_all(bytes)
    }
}

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file is not as it was written.
    #[error("the layer's checkpoints are damaged: {0}")]
    Damaged(&'static str),
    /// There is none of that number.
    #[error("the layer has no checkpoint {0}")]
    Missing(u32),
    /// The disk.
    #[error("the layer's checkpoints cannot be read: {0}")]
    Io(#[from] io::Error),
}

/// Reads checkpoints out of their file.
#[derive(Debug)]
pub struct Checkpoints {
    file: File,
    records: Vec<Record>,
}

impl Checkpoints {
    /// Reads the records of a file, but none of the windows.
    ///
    /// # Errors
    /// If the file is not whole, or of another version: the layer is to be made again.
    pub fn open(file: File) -> Result<Checkpoints, CheckpointError> {
        let length = file.metadata()?.len();
        let damaged = CheckpointError::Damaged;
        let (mut header, mut footer) = ([0; size_of::<Header>()], [0; size_of::<Footer>()]);
        let footer_offset = length
            .checked_sub(size_of::<Footer>() as u64)
            .filter(|offset| *offset >= size_of::<Header>() as u64)
            .ok_or(damaged("the file is too short"))?;
        file.read_exact_at(&mut header, 0)?;
        if header != HEADER.as_bytes() {
            return Err(damaged("its header is not one of this version"));
        }
        file.read_exact_at(&mut footer, footer_offset)?;
        let footer: Footer = zerocopy::transmute!(footer);
        if footer.checksum.get() != footer.checksum() {
            return Err(damaged("the checksum of the footer does not match"));
        }
        let bytes = u64::from(footer.count.get()) * RECORD_LENGTH;
        if footer.records_offset.get().checked_add(bytes) != Some(footer_offset) {
            return Err(damaged("the records are not where they should be"));
        }
        let mut records = vec![Record::new_zeroed(); footer.count.get() as usize];
        file.read_exact_at(records.as_mut_bytes(), footer.records_offset.get())?;
        if crc32fast::hash(records.as_bytes()) != footer.records_checksum.get() {
            return Err(damaged("the checksum of the records does not match"));
        }
        Ok(Checkpoints { file, records })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.records.len()
    }

    /// The checkpoint of that number.
    ///
    /// # Errors
    /// If its window is not as it was written, or cannot be read.
    pub fn get(&self, number: u32) -> Result<Checkpoint, CheckpointError> {
        let record = self.records.get(number as usize).ok_or(CheckpointError::Missing(number))?;
        let length = record.window_length.get() as usize;
        if length > MAXIMUM_STORED || record.bits > 7 {
            return Err(CheckpointError::Damaged("a record is out of range"));
        }
        let mut stored = vec![0; length];
        self.file.read_exact_at(&mut stored, record.window_offset.get())?;
        if record.checksum(&stored) != record.checksum.get() {
            return Err(CheckpointError::Damaged("the checksum of a window does not match"));
        }
        let window = match &stored[..] {
            [] => Vec::new(),
            stored => zstd::bulk::decompress(stored, WINDOW)
                .map_err(|_| CheckpointError::Damaged("a window does not decode"))?,
        };
        Ok(Checkpoint { bits: record.bits, window })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::testing::pattern;

    fn checkpoints() -> Vec<Checkpoint> {
        let lengths = [0, 1, 500, WINDOW, WINDOW];
        let checkpoint =
            |(bits, length): (usize, usize)| Checkpoint { bits: bits as u8, window: pattern(length) };
        lengths.into_iter().enumerate().map(checkpoint).collect()
    }

    fn written(checkpoints: &[Checkpoint]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = CheckpointWriter::new(&mut bytes);
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            assert_eq!(writer.add(&Packed::new(checkpoint).unwrap()).unwrap(), number as u32);
        }
        writer.finish().unwrap();
        bytes
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn checkpoints_are_read_as_they_were_written() {
        let checkpoints = checkpoints();
        let read = Checkpoints::open(file(&written(&checkpoints))).unwrap();
        assert_eq!(read.count(), checkpoints.len());
        for (number, checkpoint) in checkpoints.iter().enumerate() {
            assert_eq!(read.get(number as u32).unwrap(), *checkpoint);
        }
        assert!(matches!(read.get(5), Err(CheckpointError::Missing(5))));
        assert_eq!(written(&[]), b"");
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let checkpoints = checkpoints();
        let whole = written(&checkpoints);
        for length in 0..whole.len() {
            assert!(Checkpoints::open(file(&whole[..length])).is_err(), "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let Ok(read) = Checkpoints::open(file(&bytes)) else { continue };
            let results: Vec<_> = (0..checkpoints.len()).map(|number| read.get(number as u32)).collect();
            assert!(results.iter().any(Result::is_err), "byte {at}");
            for (result, checkpoint) in results.iter().zip(&checkpoints) {
                assert!(result.as_ref().map_or(true, |read| read == checkpoint), "byte {at}");
            }
        }
    }
}
