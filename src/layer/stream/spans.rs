//! Where the blob of a streamed layer is cut, so that its parts can be got again one by one.
//!
//! ```text
//! blob      ──┬────────────────┬───────────────────────────────┬─────
//! spans       │ decoded anew from here: member, frame, block   │
//! decoded   ──┴────────────────┴───────────────┬───────────────┴─────
//! parts       a chunk each, with a digest      │ a long span has several
//! ```
//!
//! A span begins where a new decoder can begin: anywhere in what is not encoded, at a gzip member or a zstd frame, and, with a
//! checkpoint, between two deflate blocks. It ends with the blob byte that gave its last decoded byte; the byte in which a block
//! begins may belong to two spans.
//!
//! - Spans are not shorter than [`MINIMUM`]: a chunk costs 80 bytes of the table, a request more than that.
//! - Checkpoints take no more than a hundredth of the blob ([`BUDGET`]): one that would waits for more of the blob. Their windows
//!   shrink to a third as a rule, which leaves a checkpoint for each 1.2 MB of the blob. But after [`FORCED`] decoded bytes the
//!   next block begins a span at any cost, so that what decodes to a thousand times its size is not in one: that costs at
//!   most 0.4 % of the decoded bytes.
//! - Where a span finds no end for [`PART`] decoded bytes (a zstd layer of one frame), it is cut into parts that are verified one by
//!   one, but must be decoded from the span's beginning.

use std::io;

use super::Cutter;
use crate::layer::compression::{Boundary, Compression, Progress, Stop};
use crate::layer::entry::Chunk;
use crate::layer::gzip::checkpoint::{CheckpointWriter, Packed, RECORD_LENGTH};
use crate::table::Codec;
use crate::table::format::ChunkRecord;

/// Decoded bytes of a span before another may begin.
pub const MINIMUM: u64 = 256 << 10;
/// Decoded or blob bytes of a span after which the next boundary is taken, whatever it costs.
pub const FORCED: u64 = 8 << 20;
/// Most decoded bytes of a chunk.
pub const PART: u64 = 16 << 20;
/// Blob bytes for each byte of a checkpoint.
const BUDGET: u64 = 100;
/// What a window is taken to shrink to before the first was seen.
const FIRST_GUESS: u64 = 12 << 10;
/// What a span takes beside its window: a record among the checkpoints, and one in the table.
const SPAN_COST: u64 = RECORD_LENGTH + size_of::<ChunkRecord>() as u64;

struct Span {
    blob_offset: u64,
    blob_end: u64,
    decoded_offset: u64,
    checkpoint: Option<u32>,
}

struct Part {
    span: usize,
    decoded_offset: u64,
}

/// Watches a decoder and decides.
pub(super) struct SpanCutter<'a> {
    checkpoints: CheckpointWriter<'a>,
    spans: Vec<Span>,
    parts: Vec<Part>,
    consumed: u64,
    decoded: u64,
    /// What the checkpoints take so far, and what the next is likely to take.
    stored: u64,
    next_cost: u64,
}

impl<'a> SpanCutter<'a> {
    /// At the beginning of a blob.
    pub fn new(checkpoints: CheckpointWriter<'a>) -> SpanCutter<'a> {
        let first = Span { blob_offset: 0, blob_end: 0, decoded_offset: 0, checkpoint: None };
        SpanCutter {
            checkpoints,
            spans: vec![first],
            parts: vec![Part { span: 0, decoded_offset: 0 }],
            consumed: 0,
            decoded: 0,
            stored: 0,
            next_cost: FIRST_GUESS,
        }
    }

    /// Both have a first element from the start, and nothing is removed.
    fn span(&self) -> &Span {
        &self.spans[self.spans.len() - 1]
    }

    fn part_length(&self) -> u64 {
        self.decoded - self.parts[self.parts.len() - 1].decoded_offset
    }

    fn affords(&self, cost: u64) -> bool {
        (self.stored + cost).saturating_mul(BUDGET) <= self.consumed
    }

    /// Begins a span here, unless it costs too much; says whether a part begins with it.
    fn take(&mut self, boundary: Boundary) -> io::Result<Option<bool>> {
        let decoded = self.decoded - self.span().decoded_offset;
        let checkpoint = match &boundary.checkpoint {
            None => None,
            Some(checkpoint) => {
                let packed = Packed::new(checkpoint)?;
                let cost = packed.length() + SPAN_COST - RECORD_LENGTH;
                self.next_cost = cost;
                if decoded < FORCED && self.consumed - self.span().blob_offset < FORCED && !self.affords(cost)
                {
                    return Ok(None);
                }
                self.stored += cost;
                Some(self.checkpoints.add(&packed)?)
            }
        };
        // The byte that holds the first bit.
        let blob_offset = self.consumed.saturating_sub(boundary.unused_bits.div_ceil(8) as u64);
        let span = Span { blob_offset, blob_end: self.consumed, decoded_offset: self.decoded, checkpoint };
        let number = self.spans.len();
        if decoded == 0 {
            // Nothing came of all that was consumed: the span begins here instead.
            self.spans[number - 1] = span;
            return Ok(Some(false));
        }
        self.spans.push(span);
        if self.part_length() == 0 {
            let last = self.parts.len() - 1;
            self.parts[last].span = number;
            return Ok(Some(false));
        }
        self.parts.push(Part { span: number, decoded_offset: self.decoded });
        Ok(Some(true))
    }

    /// Ends the checkpoints. What is left is to be joined with the digests.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn finish(self, compression: Compression) -> io::Result<Cuts> {
        self.checkpoints.finish()?;
        Ok(Cuts { compression, spans: self.spans, parts: self.parts, decoded: self.decoded })
    }
}

impl Cutter for SpanCutter<'_> {
    fn stop(&self) -> Stop {
        let decoded = self.decoded - self.span().decoded_offset;
        let blob = self.consumed - self.span().blob_offset;
        if decoded >= FORCED || blob >= FORCED || (decoded >= MINIMUM && self.affords(self.next_cost)) {
            Stop::AtBlocks
        } else if decoded >= MINIMUM {
            Stop::AtStarts
        } else {
            Stop::Nowhere
        }
    }

    fn room(&self) -> u64 {
        let decoded = self.decoded - self.span().decoded_offset;
        let until_minimum = if decoded < MINIMUM { MINIMUM - decoded } else { u64::MAX };
        // A part that is full was cut.
        until_minimum.min(PART - self.part_length()).max(1)
    }

    fn advanced(&mut self, progress: Progress, boundary: Option<Boundary>) -> io::Result<bool> {
        self.consumed += progress.consumed as u64;
        self.decoded += progress.produced as u64;
        if progress.produced > 0 {
            let (span, consumed) = (self.spans.len() - 1, self.consumed);
            self.spans[span].blob_end = consumed;
        }
        if let Some(boundary) = boundary
            && let Some(is_part) = self.take(boundary)?
        {
            return Ok(is_part);
        }
        if self.part_length() >= PART {
            self.parts.push(Part { span: self.spans.len() - 1, decoded_offset: self.decoded });
            return Ok(true);
        }
        Ok(false)
    }
}

/// How a layer was cut.
pub(super) struct Cuts {
    pub compression: Compression,
    spans: Vec<Span>,
    parts: Vec<Part>,
    decoded: u64,
}

impl Cuts {
    /// The chunks of the layer, whose parts have these digests, in order.
    pub fn chunks(&self, digests: &[[u8; 32]]) -> Vec<Chunk> {
        let ends = self.parts.iter().skip(1).map(|part| part.decoded_offset).chain([self.decoded]);
        let parts = self.parts.iter().zip(ends).zip(digests);
        parts
            .filter(|((part, end), _)| part.decoded_offset < *end)
            .map(|((part, end), digest)| {
                let span = &self.spans[part.span];
                Chunk {
                    blob_offset: span.blob_offset,
                    blob_length: span.blob_end - span.blob_offset,
                    decoded_offset: part.decoded_offset,
                    decoded_length: end - part.decoded_offset,
                    skip: part.decoded_offset - span.decoded_offset,
                    codec: match (self.compression, span.checkpoint) {
                        (Compression::None, _) => Codec::Raw,
                        (Compression::Gzip, None) => Codec::Gzip,
                        (Compression::Gzip, Some(_)) => Codec::GzipSpan,
                        (Compression::Zstd, _) => Codec::Zstd,
                    },
                    checkpoint: span.checkpoint.unwrap_or(0),
                    digest: *digest,
                }
            })
            .collect()
    }
}
