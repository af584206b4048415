//! How the archive of a layer is put together again from its chunks: what lies between them in the archive came with them, in the same
//! member or frame or in the next ones, and is kept as their *rests*.
//!
//! ```text
//! blob       │ head │ member of chunk 0 │ of chunks 1, 2     │ of chunk 3 │ frames │ of chunk 4 │ … │ TOC, footer │
//! archive    headers │ 0 │ rest          │ 1 │ rest │ 2 │ rest │ 3 │ rest           │ 4 │ rest    │ … │ TOC entry   │
//!            fetched  └ data files, rests ┘                                                   fetched
//! ```
//!
//! Nothing here is trusted: what comes out has the layer's diff ID, or is worth nothing.

#[cfg(test)]
mod tests;

use std::ops::Range;

use super::chunk::Stretch;
use super::entry::Chunk;
use crate::table::Codec;
use crate::table::format::ChunkRecord;

/// A part of the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The chunk of that number, and its rest.
    Chunk(u32),
    /// What these bytes of the blob decode to. They begin with a member or frame, and end with one.
    Blob(Range<u64>),
}

/// The archive of a layer, part by part. `blob_end` tells where the rest of a chunk ends in the blob, if it was kept. Nothing if the
/// chunks are not such that they and their rests make an archive.
pub fn steps(
    chunks: &[ChunkRecord],
    blob_size: u64,
    blob_end: impl Fn(u32) -> Option<u64>,
) -> Option<Vec<Step>> {
    let codec = |chunk: &ChunkRecord| Codec::from_number(chunk.codec);
    // Zeros are stored in the blob like all else; they only need not be fetched by who reads them.
    let stored: Vec<u32> = (0..u32::try_from(chunks.len()).ok()?)
        .filter(|number| codec(&chunks[*number as usize]) != Some(Codec::Zeros))
        .collect();
    let chunk = |number: u32| &chunks[number as usize];
    let first = codec(chunk(*stored.first()?))?;
    if !matches!(first, Codec::Gzip | Codec::Zstd)
        || stored.iter().any(|number| codec(chunk(*number)) != Some(first))
    {
        return None;
    }
    let mut steps = Vec::new();
    let mut position = 0;
    let groups: Vec<&[u32]> =
        stored.chunk_by(|one, next| chunk(*one).blob_offset == chunk(*next).blob_offset).collect();
    for (place, group) in groups.iter().enumerate() {
        let start = chunk(group[0]).blob_offset.get();
        let end = groups.get(place + 1).map_or(blob_size, |next| chunk(next[0]).blob_offset.get());
        if start < position || end < start {
            return None;
        }
        let is_kept =
            chunk(group[0]).skip.get() == 0 && group.iter().all(|number| blob_end(*number).is_some());
        let rest_end = group
            .last()
            .and_then(|number| blob_end(*number))
            .filter(|rest_end| is_kept && start < *rest_end && *rest_end <= end);
        let Some(rest_end) = rest_end else {
            // Fetched with the next ones.
            continue;
        };
        fetch(&mut steps, position..start);
        steps.extend(group.iter().map(|number| Step::Chunk(*number)));
        position = rest_end;
    }
    fetch(&mut steps, position..blob_size);
    Some(steps)
}

fn fetch(steps: &mut Vec<Step>, range: Range<u64>) {
    if !range.is_empty() {
        steps.push(Step::Blob(range));
    }
}

/// Bytes of the blob that these steps need.
pub fn blob_bytes(steps: &[Step]) -> u64 {
    let lengths = steps.iter().map(|step| match step {
        Step::Blob(range) => range.end - range.start,
        Step::Chunk(_) => 0,
    });
    lengths.fold(0, u64::saturating_add)
}

/// The chunk that follows this one in the blob.
pub fn next_stored(chunks: &[ChunkRecord], number: u32) -> Option<&ChunkRecord> {
    let mut next = chunks.get(number as usize + 1..)?.iter();
    next.find(|chunk| chunk.codec != Codec::Zeros as u8)
}

/// The rest of `chunk`, the one that `stretch` was asked for last, and where it ends in the blob; `next` is the chunk that follows. None
/// if not all of it is in the stretch, or it is longer than `limit`.
pub fn rest_of(
    stretch: &mut Stretch<'_>,
    chunk: &Chunk,
    next: Option<&Chunk>,
    limit: usize,
) -> Option<(Vec<u8>, u64)> {
    let chunk_end = chunk.blob_offset.checked_add(chunk.blob_length)?;
    let (length, end) = match next {
        Some(next) if next.blob_offset == chunk.blob_offset => {
            let after = chunk.skip.checked_add(chunk.decoded_length)?;
            (Some(next.skip.checked_sub(after)?), chunk_end)
        }
        Some(next) if chunk_end <= next.blob_offset && next.blob_offset <= stretch.end() => {
            (None, next.blob_offset)
        }
        // What follows the last chunk is the table of contents, which need not be here.
        _ => (None, chunk_end),
    };
    Some((stretch.rest(length, end, limit)?, end))
}
