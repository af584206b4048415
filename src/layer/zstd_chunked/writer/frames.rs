//! Pieces of the archive are cut into chunks, hashed and compressed, some of them together as one job.

use std::num::NonZeroU64;
use std::ops::Range;

use sha2::{Digest, Sha256};

use super::chunking::{self, ChunkRange};
use super::toc::ChunkPlace;
use crate::layer::spool::Spool;
use crate::layer::write::WriteError;
use crate::layer::write::items::Item;
use crate::layer::write::pieces::Piece;
use crate::layer::zstd_chunked::tar_split::Crc64;

/// Where data are cut before their content says where.
pub(super) const SPAN: NonZeroU64 = NonZeroU64::new(chunking::SPAN).unwrap();

/// Pieces, ready to be written.
pub(super) struct PackedJob {
    pub uncompressed: Vec<u8>,
    pub compressed: Vec<u8>,
    pub parts: Vec<PackedPart>,
}

/// What a piece became. Ranges are of the job's uncompressed bytes.
pub(super) enum PackedPart {
    Headers {
        item: usize,
        bytes: Range<usize>,
        /// No more of them follow.
        are_last: bool,
    },
    Padding(Range<usize>),
    Data {
        item: usize,
        bytes: Range<usize>,
        chunks: Vec<PackedChunk>,
        /// Digest and checksum of the file, if these are all of its bytes.
        whole: Option<([u8; 32], u64)>,
    },
}

pub(super) struct PackedChunk {
    length: u64,
    is_zeros: bool,
    digest: [u8; 32],
    /// Its frame, of the job's compressed bytes.
    frame: Range<usize>,
}

impl PackedChunk {
    /// Where it is in a blob in which the job's frames begin at `offset`.
    pub fn at(&self, offset: u64) -> ChunkPlace {
        let blob = offset + self.frame.start as u64..offset + self.frame.end as u64;
        ChunkPlace { blob, length: self.length, is_zeros: self.is_zeros, digest: self.digest }
    }
}

/// Makes frames.
pub(super) struct Compressor {
    zstd: zstd::bulk::Compressor<'static>,
    is_content_defined: bool,
}

impl Compressor {
    pub fn new(level: u32, is_content_defined: bool) -> Result<Compressor, WriteError> {
        let zstd = zstd::bulk::Compressor::new(super::zstd_level(level)).map_err(super::failed)?;
        Ok(Compressor { zstd, is_content_defined })
    }

    /// A frame that decodes to `content`.
    pub fn frame(&mut self, content: &[u8]) -> Result<Vec<u8>, WriteError> {
        self.zstd.compress(content).map_err(super::failed)
    }

    pub fn pack(
        &mut self,
        job: Vec<Piece>,
        items: &[Item<'_>],
        spool: &Spool,
    ) -> Result<PackedJob, WriteError> {
        let mut packed = PackedJob { uncompressed: Vec::new(), compressed: Vec::new(), parts: Vec::new() };
        let length: u64 = job.iter().map(Piece::length).sum();
        packed.uncompressed.reserve(usize::try_from(length).unwrap_or(0));
        // Bytes before this one are in frames.
        let mut framed = 0;
        for piece in job {
            let at = packed.uncompressed.len();
            if let Piece::Data { item, offset, length } = piece {
                self.append_frame(&packed.uncompressed[framed..], &mut packed.compressed)?;
                self.pack_data(item, offset..offset + length, &items[item], spool, &mut packed)?;
                framed = packed.uncompressed.len();
                continue;
            }
            piece.append(items, spool, &mut packed.uncompressed)?;
            let bytes = at..packed.uncompressed.len();
            packed.parts.push(match piece {
                Piece::Headers { item, part } => {
                    let are_last = part.end == items[item].headers_length();
                    PackedPart::Headers { item, bytes, are_last }
                }
                _ => PackedPart::Padding(bytes),
            });
        }
        self.append_frame(&packed.uncompressed[framed..], &mut packed.compressed)?;
        Ok(packed)
    }

    fn append_frame(&mut self, content: &[u8], to: &mut Vec<u8>) -> Result<(), WriteError> {
        if !content.is_empty() {
            to.append(&mut self.frame(content)?);
        }
        Ok(())
    }

    fn pack_data(
        &mut self,
        number: usize,
        span: Range<u64>,
        item: &Item<'_>,
        spool: &Spool,
        packed: &mut PackedJob,
    ) -> Result<(), WriteError> {
        let mut view = Vec::new();
        let (view_range, ranges) = if self.is_content_defined {
            let view_range = chunking::view(&span, item.size);
            item.append_data(spool, view_range.start, view_range.end - view_range.start, &mut view)?;
            let ranges = chunking::chunks(&view, &span, item.size);
            (view_range, ranges)
        } else {
            item.append_data(spool, span.start, span.end - span.start, &mut view)?;
            let is_zeros = view.iter().all(|byte| *byte == 0);
            (span.clone(), vec![ChunkRange { bytes: span, is_zeros }])
        };
        let (Some(first), Some(last)) = (ranges.first(), ranges.last()) else { return Ok(()) };
        let all = first.bytes.start..last.bytes.end;
        // Within what was read, which was of a length that fits.
        let in_view = |range: &Range<u64>| {
            (range.start - view_range.start) as usize..(range.end - view_range.start) as usize
        };
        let mut chunks = Vec::with_capacity(ranges.len());
        for ChunkRange { bytes, is_zeros } in &ranges {
            let content = &view[in_view(bytes)];
            let start = packed.compressed.len();
            self.append_frame(content, &mut packed.compressed)?;
            let frame = start..packed.compressed.len();
            let digest = Sha256::digest(content).into();
            chunks.push(PackedChunk { length: bytes.end - bytes.start, is_zeros: *is_zeros, digest, frame });
        }
        let data = &view[in_view(&all)];
        let is_whole = all == (0..item.size);
        let whole = is_whole.then(|| {
            let mut crc64 = Crc64::default();
            crc64.update(data);
            let digest = match &chunks[..] {
                [only] => only.digest,
                _ => Sha256::digest(data).into(),
            };
            (digest, crc64.finish())
        });
        let at = packed.uncompressed.len();
        packed.uncompressed.extend_from_slice(data);
        let bytes = at..packed.uncompressed.len();
        packed.parts.push(PackedPart::Data { item: number, bytes, chunks, whole });
        Ok(())
    }
}
