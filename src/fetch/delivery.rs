//! One request under way: each of its chunks is decoded, verified and delivered as soon as its bytes are here, while others are still
//! coming. So who waits for a chunk does not wait for what was asked for behind it.
//!
//! ```text
//! blob       │ chunk │ chunk   │ gap │ chunks of a member │ chunk │
//! portions   ├───────┼─────────┼─────┴────────────────────┼───────┤    none shares a byte with another
//!            └ delivered ──────┴ being decoded ───────────┴ coming
//! ```
//!
//! - A portion is decoded when all of it is here. Several that are here at once are decoded together, what somebody waits for first; while
//!   they are, others come.
//! - Each chunk leaves the state of its layer exactly once: delivered, with what is wrong with it, or, if its bytes did not come, with the
//!   reason. What came before a failure stays.
//! - All bytes of a request that are not delivered yet are in memory, for which it has its permit.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::task::JoinHandle;

use super::content::LayerContent;
use super::lazy::{FetchError, Lazy, Purpose};
use super::planner::{Request, blob_range};
use super::room::Urgency;
use super::source::SourceError;
use crate::error::chain;
use crate::layer::chunk::Stretch;
use crate::layer::entry::Chunk;
use crate::layer::rebuild::next_stored;
use crate::meter::{self, Count};
use crate::table::format::{ChunkRecord, Codec};

/// Fetches what somebody wants.
pub(super) async fn bring(content: Arc<LayerContent>, request: Request, purpose: Purpose) {
    // Those who wait for it are told what became of it.
    carry(&content, request, purpose).await;
}

/// Fetches what nobody wants yet, whose chunks were [claimed](Lazy::claim). False if not all of it came.
pub(super) async fn bring_ahead(content: Arc<LayerContent>, request: Request) -> bool {
    carry(&content, request, Purpose::Ahead).await
}

/// Fetches one request, and delivers its chunks. False if not all of them came.
async fn carry(content: &Arc<LayerContent>, request: Request, purpose: Purpose) -> bool {
    let Some(lazy) = content.lazy() else { return false };
    let range = content.with_rest(&request);
    let length = range.end - range.start;
    let _wanted = purpose.take_turn(lazy.fetcher()).await;
    let _permit = lazy.fetcher().reserve(length).await;
    let (begun, mut first) = (Instant::now(), Duration::ZERO);
    let mut arriving = Arriving::new(content, &request, range.clone());
    let mut all_came = true;
    let mut pieces = lazy.source().pieces(range.clone());
    let mut is_over = length == 0;
    // One at a time: what is decoded together, and as it was asked for.
    let mut delivery: Option<JoinHandle<bool>> = None;
    loop {
        if delivery.is_none() {
            delivery = arriving.take().map(|(start, bytes, chunks)| {
                // Who reads what comes of it may look at the counters next.
                lazy.fetcher().observed();
                let content = content.clone();
                tokio::task::spawn_blocking(move || deliver_all(&content, start, &bytes, &chunks))
            });
        }
        tokio::select! {
            delivered = async { delivery.as_mut()?.await.ok() }, if delivery.is_some() => {
                // The task ends the waits of its chunks; should it panic, their deadline does.
                all_came &= delivered.unwrap_or(false);
                delivery = None;
            }
            piece = pieces.next(), if !is_over => match piece {
                Some(Ok(piece)) => {
                    if arriving.position == range.start {
                        first = begun.elapsed();
                    }
                    let taken = arriving.push(&piece);
                    meter::count(Count::FetchedBytes, taken);
                    if purpose == Purpose::Ahead {
                        lazy.fetcher().count_prefetched(taken);
                    }
                }
                // What all has come of need not end well.
                ended => {
                    is_over = true;
                    if arriving.is_whole() {
                        lazy.fetcher().learn(length, first, begun.elapsed());
                    } else {
                        all_came = false;
                        arriving.give_up(lazy, content, ended);
                    }
                    lazy.fetcher().observed();
                }
            },
            else => break,
        }
    }
    tracing::trace!(layer = %content.layer(), chunks = request.chunks.len(), start = range.start, bytes = length, "a request ended");
    all_came
}

/// Some chunks of a request, and the byte of the blob before which all that they need lies.
#[derive(Debug, PartialEq, Eq)]
struct Portion {
    end: u64,
    chunks: Vec<u32>,
}

/// The portions of a request, in the order of the blob. With `rests`, what follows a chunk up to the next one belongs to it, as far as it is
/// in `range`.
fn portions(chunks: &[ChunkRecord], request: &Request, range: &Range<u64>, rests: bool) -> VecDeque<Portion> {
    let mut portions: VecDeque<Portion> = VecDeque::new();
    for number in &request.chunks {
        let Some(chunk) = chunks.get(*number as usize) else { continue };
        let needed = blob_range(chunk);
        let next = next_stored(chunks, *number).filter(|_| rests && !needed.is_empty());
        let rest = next.map_or(0, |next| next.blob_offset.get());
        let end = needed.end.max(rest.min(range.end));
        match portions.back_mut() {
            Some(last) if needed.start < last.end || needed.is_empty() => {
                last.end = last.end.max(end);
                last.chunks.push(*number);
            }
            _ => portions.push_back(Portion { end, chunks: vec![*number] }),
        }
    }
    portions
}

/// What has come of a request and was not delivered yet.
struct Arriving {
    portions: VecDeque<Portion>,
    /// Bytes of the blob up to `position`.
    bytes: BytesMut,
    position: u64,
    end: u64,
}

impl Arriving {
    fn new(content: &LayerContent, request: &Request, range: Range<u64>) -> Arriving {
        let portions = portions(content.table().chunks(), request, &range, content.keeps_rests());
        // It fits: a permit was given for it.
        let bytes = BytesMut::with_capacity((range.end - range.start) as usize);
        Arriving { portions, bytes, position: range.start, end: range.end }
    }

    /// Takes in what came, nothing beyond what was asked for, and gives how many bytes these are.
    fn push(&mut self, piece: &[u8]) -> u64 {
        let left = usize::try_from(self.end - self.position).unwrap_or(usize::MAX);
        let piece = piece.get(..left).unwrap_or(piece);
        self.bytes.extend_from_slice(piece);
        self.position += piece.len() as u64;
        piece.len() as u64
    }

    fn is_whole(&self) -> bool {
        self.position == self.end
    }

    /// The portions that are here: where in the blob their bytes begin, these, and their chunks.
    fn take(&mut self) -> Option<(u64, Bytes, Vec<u32>)> {
        let (mut chunks, mut end) = (Vec::new(), 0);
        let here = self.portions.iter().take_while(|portion| portion.end <= self.position).count();
        for portion in self.portions.drain(..here) {
            end = portion.end;
            chunks.extend(portion.chunks);
        }
        if chunks.is_empty() {
            return None;
        }
        let start = self.position - self.bytes.len() as u64;
        // What is here of what follows stays. Chunks of zeros need no bytes.
        let bytes = self.bytes.split_to(end.saturating_sub(start) as usize).freeze();
        Some((start, bytes, chunks))
    }

    /// Tells those who wait for what did not come.
    fn give_up(&mut self, lazy: &Lazy, content: &LayerContent, ended: Option<Result<Bytes, SourceError>>) {
        let is_missing = |portion: &Portion| portion.end > self.position;
        let missing: Vec<u32> = self
            .portions
            .iter()
            .filter(|portion| is_missing(portion))
            .flat_map(|portion| portion.chunks.clone())
            .collect();
        self.portions.retain(|portion| !is_missing(portion));
        let cause = match ended {
            Some(Err(cause)) => cause,
            _ => "what came ended early".into(),
        };
        let (layer, range) = (content.layer().clone(), self.position..self.end);
        lazy.finish(&missing, Err(FetchError::Source { layer, range, cause: cause.into() }));
    }
}

/// Delivers chunks of which all bytes are here, from `start` of the blob on. False if something is wrong with one.
fn deliver_all(content: &LayerContent, start: u64, bytes: &[u8], chunks: &[u32]) -> bool {
    let Some(lazy) = content.lazy() else { return false };
    let mut stretch = Stretch::new(start, bytes);
    let mut all_came = true;
    for number in &lazy.awaited_first(content, chunks) {
        let result = deliver(content, *number, &mut stretch);
        all_came &= result.is_ok();
        if let Err(error) = &result {
            if matches!(error, FetchError::Chunk { .. }) {
                lazy.source().doubt();
            }
            tracing::error!(layer = %content.layer(), chunk = number, error = %chain(error), "a chunk did not arrive");
        }
        lazy.finish(&[*number], result);
    }
    tracing::trace!(layer = %content.layer(), chunks = chunks.len(), bytes = bytes.len(), decoded = stretch.decoded_bytes(), "delivered");
    all_came
}

/// Decodes, verifies, writes and marks one chunk, in that order.
fn deliver(content: &LayerContent, number: u32, stretch: &mut Stretch<'_>) -> Result<(), FetchError> {
    let Some(record) = content.table().chunks().get(number as usize) else { return Ok(()) };
    let chunk = Chunk::from(record);
    let decoded = if record.codec == Codec::Zeros as u8 {
        // A chunk of zeros is a hole.
        Vec::new()
    } else {
        let checkpoint = content.checkpoint_of(&chunk)?;
        let decoded = stretch.chunk(&chunk, checkpoint.as_ref()).map_err(|cause| FetchError::Chunk {
            layer: content.layer().clone(),
            range: blob_range(record),
            cause: Arc::new(cause),
        })?;
        if content.keeps_rests() {
            content.keep_rest(number, stretch);
        }
        decoded
    };
    deliver_decoded(content, number, &chunk, &decoded)
}

/// Writes the verified bytes of a chunk and marks it; an eviction waits for both. Where there is no room, what is only kept for a proof
/// makes some.
pub(super) fn deliver_decoded(
    content: &LayerContent,
    number: u32,
    chunk: &Chunk,
    decoded: &[u8],
) -> Result<(), FetchError> {
    // A reader is never refused.
    let room = content.lazy().and_then(|lazy| lazy.fetcher().room());
    let _admitted = room.and_then(|room| room.admit(decoded.len() as u64, Urgency::Reader));
    let write = || content.write_and_mark(number as usize, chunk.decoded_offset, decoded);
    let written = match write() {
        Err(error) if error.is_full() && content.give_up_rests() => write(),
        written => written,
    };
    if written.is_ok() {
        meter::count(Count::DecodedBytes, decoded.len() as u64);
    }
    written.map_err(|cause| FetchError::Store { layer: content.layer().clone(), cause: Arc::new(cause) })
}

#[cfg(test)]
#[path = "delivery_tests.rs"]
mod tests;
