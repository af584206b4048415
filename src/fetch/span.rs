//! Chunks that cannot be got one by one: they share a stretch of the blob that must be decoded from its beginning, and that is too
//! long to be held in memory. A zstd layer of one frame is the usual case.
//!
//! ```text
//! blob     ├──── step ────┼──── step ────┼── … ──┤   read one after the other, one ahead of the decoder
//! decoded  ├─ chunk ─┼─ chunk ─┼─ chunk ─┼── … ──┤   each verified, written and marked as it becomes whole
//! ```
//!
//! Whoever wants one chunk gets all that come before it on the way, and those after it that are missing, for nothing can be had
//! more cheaply later. The memory is bounded by a step of the blob and one chunk.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::content::LayerContent;
use super::delivery::deliver_decoded;
use super::lazy::{FetchError, Purpose};
use super::planner::{LONGEST_REQUEST, blob_range};
use super::source::SourceError;
use crate::layer::chunk::{self, ChunkError, MAXIMUM_CHUNK};
use crate::layer::compression::Progress;
use crate::layer::entry::Chunk;
use crate::layer::stream::spans::PART;
use crate::table::format::{ChunkRecord, Codec};

/// Bytes of the blob that are read at once.
const STEP: u64 = 4 << 20;

/// Memory that bringing a long span takes, in bytes.
pub(super) const MEMORY: u64 = 3 * STEP + PART;

/// The chunks that share the blob range of that one, if they are to be got in one pass.
pub(super) fn long_span(chunks: &[ChunkRecord], number: usize) -> Option<Range<usize>> {
    let chunk = chunks.get(number)?;
    if !matches!(Codec::from_number(chunk.codec)?, Codec::Gzip | Codec::GzipSpan | Codec::Zstd) {
        return None;
    }
    let range = blob_range(chunk);
    let is_longest = |range: &Range<u64>| range.end - range.start > LONGEST_REQUEST;
    let shares = |other: &&ChunkRecord| {
        let others = blob_range(other);
        other.codec == chunk.codec
            && other.checkpoint == chunk.checkpoint
            // Of a member so long, each chunk needs more bytes than the one before.
            && (others == range || (others.start == range.start && is_longest(&others) && is_longest(&range)))
    };
    let start = number - chunks[..number].iter().rev().take_while(shares).count();
    let end = number + chunks[number..].iter().take_while(shares).count();
    let last = &chunks[end - 1];
    let decoded = last.skip.get().saturating_add(last.decoded_length.get());
    let is_long = is_longest(&range) || (end - start > 1 && decoded > PART);
    is_long.then_some(start..end)
}

/// Fetches those chunks of one long span, which are in ascending order, and delivers them.
pub(super) async fn bring(content: Arc<LayerContent>, wanted: Vec<u32>, purpose: Purpose) {
    let Some(lazy) = content.lazy() else { return };
    // The last one needs most.
    let Some(range) =
        wanted.last().and_then(|last| content.table().chunks().get(*last as usize)).map(blob_range)
    else {
        return;
    };
    let _wanted = purpose.take_turn(lazy.fetcher()).await;
    let _permit = lazy.fetcher().reserve(MEMORY).await;
    let (sender, receiver) = mpsc::channel(1);
    let decoding = {
        let (content, wanted) = (content.clone(), wanted.clone());
        tokio::task::spawn_blocking(move || decode(&content, &wanted, receiver))
    };
    let mut position = range.start;
    while position < range.end {
        let step = position..range.end.min(position + STEP);
        let piece = lazy.source().read(step.clone()).await;
        let failed = piece.is_err();
        // The decoder hangs up when it has what was wanted, or has failed.
        if sender.send((step.clone(), piece)).await.is_err() || failed {
            break;
        }
        position = step.end;
    }
    drop(sender);
    lazy.fetcher().observed();
    // The task ends the waits of all its chunks; should it panic, their deadline does.
    let _ = decoding.await;
}

type Piece = (Range<u64>, Result<Bytes, SourceError>);

/// Decodes what arrives until all that is wanted was delivered, and ends the waits for all of it, whatever happens.
fn decode(content: &LayerContent, wanted: &[u32], receiver: mpsc::Receiver<Piece>) {
    let Some(lazy) = content.lazy() else { return };
    let mut left = wanted;
    if let Err(error) = decode_parts(content, &mut left, receiver) {
        tracing::error!(layer = %content.layer(), chunks = left.len(), error = %crate::error::chain(&error), "chunks did not arrive");
        lazy.finish(left, Err(error));
    }
}

fn decode_parts(
    content: &LayerContent,
    left: &mut &[u32],
    mut receiver: mpsc::Receiver<Piece>,
) -> Result<(), FetchError> {
    let chunk_of = |number: u32| content.table().chunks().get(number as usize).map(Chunk::from);
    let Some(mut chunk) = left.first().and_then(|number| chunk_of(*number)) else { return Ok(()) };
    let wrong = |chunk: &Chunk, cause| FetchError::Chunk {
        layer: content.layer().clone(),
        range: chunk.blob_offset..chunk.blob_offset.saturating_add(chunk.blob_length),
        cause: Arc::new(cause),
    };
    let checkpoint = content.checkpoint_of(&chunk)?;
    let decoder = chunk::decoder(&chunk, checkpoint.as_ref()).map_err(|cause| wrong(&chunk, cause))?;
    // No long span is without a decoder.
    let Some(mut decoder) = decoder else { return Ok(()) };
    // Of the span's decoded bytes: how many went by, and those of the chunk that comes next.
    let (mut position, mut filled) = (0_u64, 0_usize);
    let mut discarded = vec![0; 256 << 10];
    let mut bytes = room_for(&chunk).map_err(|cause| wrong(&chunk, cause))?;
    loop {
        let Some((range, piece)) = receiver.blocking_recv() else {
            let (blob_offset, length) = (chunk.blob_offset, chunk.decoded_length);
            return Err(wrong(&chunk, ChunkError::Short { blob_offset, length }));
        };
        let layer = content.layer().clone();
        let piece = piece.map_err(|cause| FetchError::Source { layer, range, cause: cause.into() })?;
        let mut input = &piece[..];
        loop {
            let skips = position < chunk.skip;
            let room = if skips {
                let length = (chunk.skip - position).min(discarded.len() as u64) as usize;
                &mut discarded[..length]
            } else {
                &mut bytes[filled..]
            };
            let room_length = room.len();
            let Progress { consumed, produced } = decoder.decode(input, room).map_err(|source| {
                wrong(&chunk, ChunkError::Decode { blob_offset: chunk.blob_offset, source })
            })?;
            input = &input[consumed..];
            position = position.saturating_add(produced as u64);
            if !skips {
                filled += produced;
            }
            if !skips && filled == bytes.len() {
                chunk::verify_chunk(&chunk, &bytes).map_err(|cause| wrong(&chunk, cause))?;
                let number = left[0];
                deliver_decoded(content, number, &chunk, &bytes)?;
                *left = &left[1..];
                if let Some(lazy) = content.lazy() {
                    lazy.finish(&[number], Ok(()));
                }
                let Some(next) = left.first().and_then(|number| chunk_of(*number)) else { return Ok(()) };
                chunk = next;
                bytes = room_for(&chunk).map_err(|cause| wrong(&chunk, cause))?;
                filled = 0;
            } else if input.is_empty() && produced < room_length {
                break;
            }
        }
    }
}

fn room_for(chunk: &Chunk) -> Result<Vec<u8>, ChunkError> {
    if chunk.decoded_length > MAXIMUM_CHUNK {
        let (blob_offset, length) = (chunk.blob_offset, chunk.decoded_length);
        return Err(ChunkError::TooLarge { blob_offset, length, limit: MAXIMUM_CHUNK });
    }
    Ok(vec![0; chunk.decoded_length as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(blob_offset: u64, blob_length: u64, skip: u64, decoded_length: u64) -> ChunkRecord {
        ChunkRecord {
            blob_offset: blob_offset.into(),
            blob_length: blob_length.into(),
            decoded_offset: 0.into(),
            decoded_length: decoded_length.into(),
            skip: skip.into(),
            codec: Codec::Gzip as u8,
            reserved: [0; 3],
            checkpoint: 0.into(),
            digest: [0; 32],
        }
    }

    #[test]
    fn what_is_decoded_from_far_before_it_is_got_in_one_pass() {
        const MEBIBYTE: u64 = 1 << 20;
        let mut chunks = vec![chunk(10, 90, 0, MEBIBYTE), chunk(10, 90, MEBIBYTE, MEBIBYTE)];
        // Compressed well: all need the whole member.
        chunks.extend((0..20).map(|number| chunk(100, 5000, number * MEBIBYTE, MEBIBYTE)));
        // Not compressed: each needs more of the member, those from 70 MiB on more than one request may bring.
        chunks
            .extend((1..=10).map(|number| chunk(10_000, number * 10 * MEBIBYTE, number * 10 * MEBIBYTE, 1)));
        for (number, expected) in [
            (0, None),
            (1, None),
            (2, Some(2..22)),
            (21, Some(2..22)),
            (22, None),
            (27, None),
            (28, Some(28..32)),
            (31, Some(28..32)),
            (32, None),
        ] {
            assert_eq!(long_span(&chunks, number), expected, "{number}");
        }
    }
}
