//! The bytes beside the entries of a zTOC that tell where its spans begin (soci-snapshotter, `ztoc/compression`). All numbers are
//! little-endian.
//!
//! ```text
//! gzip           count i32 · span size i64 · n × { in i64, out i64, bits u8, window [32768] }
//!                n is count; or count − 1 (the first version), and the first checkpoint is implied: in 10, out 0, bits 0, zeros
//! uncompressed   version i32 (2) · span size i64 · length of the archive i64
//! ```

use super::SociError;
use super::fault::CheckpointFault;
use super::ztoc::{CompressionAlgorithm, CompressionInfo};
use crate::layer::gzip::checkpoint::WINDOW;

/// Bytes before the first checkpoint of a gzip layer.
const HEADER: usize = 4 + 8;
/// Bytes of a checkpoint.
const CHECKPOINT: usize = 8 + 8 + 1 + WINDOW;
/// Version of the record of an uncompressed layer.
const TAR_VERSION: i32 = 2;

/// Where the spans of a layer begin, and what a decoder needs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checkpoints<'a> {
    /// Of a gzip layer.
    Gzip {
        /// Decoded bytes after which a span ended at the next block, when they were made.
        span_size: u64,
        /// One for each span, at least one.
        list: Vec<GzipCheckpoint<'a>>,
    },
    /// Of an uncompressed layer.
    Uncompressed {
        /// Bytes of each span but the last, at least 1.
        span_size: u64,
        /// Bytes of the layer.
        size: u64,
    },
}

/// Where a decoder can start: between two deflate blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GzipCheckpoint<'a> {
    /// First byte of the blob that belongs to the block alone; with `bits`, some of the byte before do, too.
    pub compressed_offset: u64,
    /// First byte of the archive that the block decodes to.
    pub uncompressed_offset: u64,
    /// How many of the topmost bits of the byte before belong to the block: 0 to 7.
    pub bits: u8,
    /// The bytes of the archive before it: [`WINDOW`] of them, zeros in front if there are fewer. A writer may give fewer.
    pub window: &'a [u8],
}

impl<'a> Checkpoints<'a> {
    /// Those of a zTOC.
    ///
    /// # Errors
    /// If their length, a count or a number of bits is not what the format allows.
    pub fn of(compression: &'a CompressionInfo) -> Result<Checkpoints<'a>, SociError> {
        match compression.algorithm {
            CompressionAlgorithm::Gzip => Checkpoints::gzip(&compression.checkpoints),
            CompressionAlgorithm::Uncompressed => Checkpoints::uncompressed(&compression.checkpoints),
        }
        .map_err(SociError::Checkpoints)
    }

    fn gzip(bytes: &'a [u8]) -> Result<Checkpoints<'a>, CheckpointFault> {
        static ZEROS: [u8; WINDOW] = [0; WINDOW];
        let length = CheckpointFault::Length { length: bytes.len() };
        let (count, rest) = bytes.split_first_chunk::<4>().ok_or(length.clone())?;
        let (span_size, rest) = rest.split_first_chunk::<8>().ok_or(length.clone())?;
        let stated = i32::from_le_bytes(*count);
        let count = usize::try_from(stated).ok().filter(|count| *count > 0);
        let count = count.ok_or(CheckpointFault::OutOfRange { field: "count", value: stated.into() })?;
        let present = rest.len() / CHECKPOINT;
        if rest.len() % CHECKPOINT != 0 || !(present == count || present == count - 1) {
            return Err(length);
        }
        let mut list = Vec::with_capacity(count);
        if present < count {
            // The first version takes it that no header has more than its 10 fixed bytes.
            list.push(GzipCheckpoint {
                compressed_offset: 10,
                uncompressed_offset: 0,
                bits: 0,
                window: &ZEROS,
            });
        }
        for record in rest.chunks_exact(CHECKPOINT) {
            list.push(checkpoint(record)?);
        }
        Ok(Checkpoints::Gzip { span_size: unsigned("span size", *span_size)?, list })
    }

    fn uncompressed(bytes: &[u8]) -> Result<Checkpoints<'a>, CheckpointFault> {
        let length = CheckpointFault::Length { length: bytes.len() };
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(length.clone())?;
        let (span_size, rest) = rest.split_first_chunk::<8>().ok_or(length.clone())?;
        let size: &[u8; 8] = rest.try_into().map_err(|_| length)?;
        let version = i32::from_le_bytes(*version);
        if !(1..=TAR_VERSION).contains(&version) {
            return Err(CheckpointFault::OutOfRange { field: "version", value: version.into() });
        }
        let span_size = unsigned("span size", *span_size)?;
        if span_size == 0 {
            return Err(CheckpointFault::OutOfRange { field: "span size", value: 0 });
        }
        Ok(Checkpoints::Uncompressed { span_size, size: unsigned("size", *size)? })
    }
}

/// The bytes of the checkpoints of a gzip layer, in the layout that states all of them. Of windows that are too long the end is taken.
pub fn gzip_checkpoints<'a>(
    span_size: u64,
    checkpoints: impl ExactSizeIterator<Item = GzipCheckpoint<'a>>,
) -> Vec<u8> {
    let count = checkpoints.len();
    let mut bytes = Vec::with_capacity(HEADER + count * CHECKPOINT);
    // No zTOC that anybody reads holds as many.
    bytes.extend_from_slice(&i32::try_from(count).unwrap_or(i32::MAX).to_le_bytes());
    bytes.extend_from_slice(&span_size.to_le_bytes());
    for GzipCheckpoint { compressed_offset, uncompressed_offset, bits, window } in checkpoints {
        bytes.extend_from_slice(&compressed_offset.to_le_bytes());
        bytes.extend_from_slice(&uncompressed_offset.to_le_bytes());
        bytes.push(bits);
        let window = &window[window.len().saturating_sub(WINDOW)..];
        bytes.resize(bytes.len() + WINDOW - window.len(), 0);
        bytes.extend_from_slice(window);
    }
    bytes
}

/// The same of an uncompressed layer of `size` bytes.
pub fn uncompressed_checkpoints(span_size: u64, size: u64) -> Vec<u8> {
    [&TAR_VERSION.to_le_bytes()[..], &span_size.to_le_bytes(), &size.to_le_bytes()].concat()
}

fn checkpoint(record: &[u8]) -> Result<GzipCheckpoint<'_>, CheckpointFault> {
    let length = CheckpointFault::Length { length: record.len() };
    let (compressed_offset, rest) = record.split_first_chunk::<8>().ok_or(length.clone())?;
    let (uncompressed_offset, rest) = rest.split_first_chunk::<8>().ok_or(length.clone())?;
    let (bits, window) = rest.split_first().ok_or(length)?;
    if *bits > 7 {
        return Err(CheckpointFault::OutOfRange { field: "bits", value: (*bits).into() });
    }
    Ok(GzipCheckpoint {
        compressed_offset: unsigned("in", *compressed_offset)?,
        uncompressed_offset: unsigned("out", *uncompressed_offset)?,
        bits: *bits,
        window,
    })
}

fn unsigned(field: &'static str, bytes: [u8; 8]) -> Result<u64, CheckpointFault> {
    let value = i64::from_le_bytes(bytes);
    u64::try_from(value).map_err(|_| CheckpointFault::OutOfRange { field, value })
}
