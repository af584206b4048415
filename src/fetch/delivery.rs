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
use super::planner::{self, Limits, Request, blob_range};
use super::room::Urgency;
use super::source::SourceError;
use crate::error::chain;
use crate::layer::chunk::Stretch;
use crate::layer::entry::Chunk;
use crate::layer::rebuild::next_stored;
use crate::meter::{self, Count};
use crate::store::StoreError;
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
    let mut arriving = Arriving::new(content, &request);
    let length = arriving.left();
    let _wanted = purpose.take_turn(lazy.fetcher()).await;
    let mut permit = lazy.fetcher().reserve(length).await;
    let (begun, mut first) = (Instant::now(), Duration::ZERO);
    let mut all_came = true;
    let mut pieces = match arriving.ranges() {
        ranges if ranges.len() > 1 => lazy.source().parts(ranges),
        mut ranges => lazy.source().pieces(ranges.pop().unwrap_or_default()),
    };
    let mut is_over = length == 0;
    // One at a time: what is decoded together, and as it was asked for.
    let mut delivery: Option<JoinHandle<bool>> = None;
    loop {
        if delivery.is_none() {
            delivery = Some(arriving.take()).filter(|here| !here.is_empty()).map(|here| {
                // Who reads what comes of it may look at the counters next.
                lazy.fetcher().observed();
                let content = content.clone();
                tokio::task::spawn_blocking(move || {
                    let came = here.iter().map(|here| deliver_all(&content, here));
                    came.fold(true, |all_came, came| all_came & came)
                })
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
                    if arriving.left() == length {
                        first = begun.elapsed();
                    }
                    let taken = arriving.push(&piece);
                    meter::count(Count::FetchedBytes, taken);
                    if purpose.is_ahead() {
                        lazy.fetcher().count_prefetched(taken);
                    }
                }
                // What all has come of need not end well.
                ended => {
                    is_over = true;
                    if arriving.left() == 0 {
                        lazy.fetcher().learn(length, first, begun.elapsed());
                    } else if request.ranges.len() > 1 && !lazy.source().reads_parts() {
                        // Each by itself, then.
                        drop(permit.take());
                        let missing = arriving.take_missing();
                        let requests = planner::plan(content.table().chunks(), missing, Limits::default());
                        let all = requests.into_iter().map(|request| Box::pin(carry(content, request, purpose)));
                        all_came &= futures_util::future::join_all(all).await.into_iter().all(|came| came);
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
    tracing::trace!(layer = %content.layer(), chunks = request.chunks.len(), ranges = request.ranges.len(), start = request.start(), bytes = length, "a request ended");
    all_came
}

/// Some chunks of a request, and the byte of the blob before which all that they need lies.
#[derive(Debug, PartialEq, Eq)]
struct Portion {
    end: u64,
    chunks: Vec<u32>,
}

/// The portions of these chunks, in the order of the blob. With `rests`, what follows a chunk up to the next one belongs to it, as far as it is
/// in `range`.
fn portions(chunks: &[ChunkRecord], wanted: &[u32], range: &Range<u64>, rests: bool) -> VecDeque<Portion> {
    let mut portions: VecDeque<Portion> = VecDeque::new();
    for number in wanted {
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

/// Chunks that are here, with the bytes of the blob that they need, and where these begin.
struct Here {
    start: u64,
    bytes: Bytes,
    chunks: Vec<u32>,
}

/// What has come of a request and was not delivered yet: its ranges, which come one after the other.
struct Arriving(VecDeque<ArrivingRange>);

/// What has come of one range.
struct ArrivingRange {
    portions: VecDeque<Portion>,
    /// Bytes of the blob up to `position`.
    bytes: BytesMut,
    position: u64,
    end: u64,
}

impl Arriving {
    fn new(content: &LayerContent, request: &Request) -> Arriving {
        let chunks = content.table().chunks();
        let mut rest = request.chunks.as_slice();
        let ranges = request.ranges.iter().enumerate().map(|(number, range)| {
            let lies_within = |number: &&u32| {
                chunks.get(**number as usize).is_some_and(|chunk| blob_range(chunk).end <= range.end)
            };
            let (within, others) = rest.split_at(rest.iter().take_while(lies_within).count());
            rest = others;
            let next = request.ranges.get(number + 1).map_or(u64::MAX, |next| next.start);
            let Range { start, end } = content.with_rest(range.clone(), within);
            let range = start..end.min(next);
            let portions = portions(chunks, within, &range, content.keeps_rests());
            // It is made when its first bytes come: a permit was given for all of them.
            ArrivingRange { portions, bytes: BytesMut::new(), position: range.start, end: range.end }
        });
        Arriving(ranges.collect())
    }

    /// The ranges to ask for.
    fn ranges(&self) -> Vec<Range<u64>> {
        self.0.iter().map(|range| range.position..range.end).collect()
    }

    /// Bytes that have not come.
    fn left(&self) -> u64 {
        self.0.iter().map(|range| range.end - range.position).fold(0, u64::saturating_add)
    }

    /// Takes in what came, nothing beyond what was asked for, and gives how many bytes these are.
    fn push(&mut self, piece: &[u8]) -> u64 {
        let mut rest = piece;
        for range in &mut self.0 {
            let left = usize::try_from(range.end - range.position).unwrap_or(usize::MAX);
            let (taken, others) = rest.split_at(left.min(rest.len()));
            if range.bytes.is_empty() && !taken.is_empty() {
                range.bytes.reserve(left);
            }
            range.bytes.extend_from_slice(taken);
            range.position += taken.len() as u64;
            rest = others;
        }
        (piece.len() - rest.len()) as u64
    }

    /// What is here.
    fn take(&mut self) -> Vec<Here> {
        self.0.iter_mut().filter_map(ArrivingRange::take).collect()
    }

    /// The chunks that did not come: nobody waits for them here any more.
    fn take_missing(&mut self) -> Vec<u32> {
        let mut missing = Vec::new();
        for range in &mut self.0 {
            let position = range.position;
            range.portions.retain_mut(|portion| {
                let is_here = portion.end <= position;
                if !is_here {
                    missing.append(&mut portion.chunks);
                }
                is_here
            });
        }
        missing
    }

    /// Tells those who wait for what did not come.
    fn give_up(&mut self, lazy: &Lazy, content: &LayerContent, ended: Option<Result<Bytes, SourceError>>) {
        let is_missing = |range: &&ArrivingRange| range.position < range.end;
        let range = self.0.iter().find(is_missing).map(|range| range.position..range.end).unwrap_or_default();
        let missing = self.take_missing();
        let cause = match ended {
            Some(Err(cause)) => cause,
            _ => "what came ended early".into(),
        };
        let layer = content.layer().clone();
        lazy.finish(&missing, Err(FetchError::Source { layer, range, cause: cause.into() }));
    }
}

impl ArrivingRange {
    /// The portions that are here.
    fn take(&mut self) -> Option<Here> {
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
        Some(Here { start, bytes, chunks })
    }
}

/// Delivers chunks of which all bytes are here. False if something is wrong with one.
fn deliver_all(content: &LayerContent, here: &Here) -> bool {
    let Some(lazy) = content.lazy() else { return false };
    let Here { start, bytes, chunks } = here;
    let mut stretch = Stretch::new(*start, bytes);
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
    keep_decoded(content, number, chunk, decoded)
        .map_err(|cause| FetchError::Store { layer: content.layer().clone(), cause: Arc::new(cause) })?;
    meter::count(Count::DecodedBytes, decoded.len() as u64);
    Ok(())
}

/// The same, wherever they come from.
pub(super) fn keep_decoded(
    content: &LayerContent,
    number: u32,
    chunk: &Chunk,
    decoded: &[u8],
) -> Result<(), StoreError> {
    // A reader is never refused.
    let room = content.lazy().and_then(|lazy| lazy.fetcher().room());
    let _admitted = room.and_then(|room| room.admit(decoded.len() as u64, Urgency::Reader));
    let write = || content.write_and_mark(number as usize, chunk.decoded_offset, decoded);
    match write() {
        Err(error) if error.is_full() && content.give_up_rests() => write(),
        written => written,
    }
}

#[cfg(test)]
#[path = "delivery_tests.rs"]
mod tests;
