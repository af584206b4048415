//! What is fetched before anybody reads it: an access profile replayed, or the part of a layer that its author marked.
//!
//! ```text
//! wanted, in order ──▶ missing chunks ──▶ requests, each in the place of its first chunk ──▶ at most 3 at once
//!                                                                                              │ a turn for each:
//!                                         no reader waits, or one was served since the last ◀──┘
//! ```
//!
//! All wanted chunks are planned together, so that neighbours in the blob come with one request even if they are wanted at different
//! times. A request has at most 1 MiB, unless one chunk has more: that, three times, is all that a reader may find under way
//! before him, and none is begun while he waits. What a reader wants out of turn he asks for himself.
//!
//! A layer of which half of what is wanted is here was read on this machine before: the rest lies beside what was read, and is left to
//! readers, so that a known image asks the network for nothing. So is what can only be got from far before it (a layer of one zstd
//! frame). The first request that fails ends it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use tokio::task::JoinSet;

use super::content::LayerContent;
use super::delivery;
use super::donors;
use super::planner::{self, Limits, Request, blob_range, companions};
use super::span::long_span;
use crate::table::format::Codec;

/// Requests under way at once.
const IN_FLIGHT: usize = 3;
/// How chunks are joined. The gap is that of readers.
const LIMITS: Limits = Limits { gap: 64 << 10, request: 1 << 20 };
/// Bytes of blobs that are prefetched at most, for one mount.
pub const MAXIMUM: u64 = 512 << 20;

/// What is to be fetched, the most wanted first.
pub struct Prefetch(VecDeque<(Arc<LayerContent>, Request)>);

/// What is wanted: of a layer, counted from the lowest, a part of its decoded space.
pub type Wanted = (usize, Range<u64>);

impl Prefetch {
    /// What is missing of these parts, which are given in the order in which they are wanted; nothing of layers that are not cold.
    pub fn plan(layers: &[Arc<LayerContent>], wanted: impl IntoIterator<Item = Wanted>) -> Prefetch {
        // Of each layer the wanted chunks, and their place in the order.
        let mut places: Vec<HashMap<u32, usize>> = vec![HashMap::new(); layers.len()];
        for (place, (number, decoded)) in wanted.into_iter().enumerate() {
            let (Some(layer), Some(places)) = (layers.get(number), places.get_mut(number)) else { continue };
            let chunks = layer.table().chunks();
            for chunk in layer.table().chunks_of(decoded).flat_map(|chunk| companions(chunks, chunk)) {
                if is_worth_it(layer, chunk) {
                    places.entry(chunk as u32).or_insert(place);
                }
            }
        }
        let mut requests = Vec::new();
        for (number, (layer, places)) in layers.iter().zip(&places).enumerate() {
            for request in in_order(layer, places) {
                let place = request.chunks.iter().filter_map(|chunk| places.get(chunk)).min();
                requests.push((place.copied(), number, request.start(), layer.clone(), request));
            }
        }
        requests.sort_by_key(|(place, number, start, ..)| (*place, *number, *start));
        let mut left = MAXIMUM;
        let requests = requests.into_iter().map(|(.., layer, request)| (layer, request));
        let affordable = requests.take_while(|(_, request)| {
            left.checked_sub(request.length()).inspect(|rest| left = *rest).is_some()
        });
        Prefetch(affordable.collect())
    }

    /// Whether all is here already.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Fetches it. May be dropped at any time, which ends the requests under way; readers who wait for these are told at their deadline.
    pub async fn run(self) {
        let (mut under_way, mut served) = (JoinSet::new(), 0);
        // All layers of a mount have one.
        let fetcher = self.0.front().and_then(|(layer, _)| layer.lazy()).map(|lazy| lazy.fetcher().clone());
        let _no_guesses = fetcher.map(|fetcher| fetcher.ledger().pause());
        for (layer, request) in self.0 {
            if under_way.len() >= IN_FLIGHT && !one_succeeded(&mut under_way).await {
                break;
            }
            let Some(lazy) = layer.lazy() else { continue };
            lazy.fetcher().turn_to_prefetch(&mut served).await;
            if layer.is_poisoned() {
                continue;
            }
            let claimed = donors::bring(&layer, lazy.claim(&layer, &request.chunks)).await;
            for request in planner::plan_parts(layer.table().chunks(), claimed, LIMITS, reads_parts(&layer)) {
                under_way.spawn(delivery::bring_ahead(layer.clone(), request));
            }
        }
        while !under_way.is_empty() {
            one_succeeded(&mut under_way).await;
        }
    }
}

/// Brings what is missing of these parts, and what costs little more with it, in one go: somebody will want it soon, one thinks. It is a
/// guess, of which no more is made than the ledger allows, the first part first. Returns when all that was begun has ended; if it is dropped, so is that.
pub async fn bring_soon(layers: &[Arc<LayerContent>], wanted: impl IntoIterator<Item = Wanted>) {
    let mut claimed: Vec<Vec<u32>> = vec![Vec::new(); layers.len()];
    for (number, decoded) in wanted {
        let (Some(layer), Some(claimed)) = (layers.get(number), claimed.get_mut(number)) else { continue };
        let Some(lazy) = layer.lazy().filter(|_| !layer.is_poisoned()) else { continue };
        let chunks = layer.table().chunks();
        let with_companions = layer.table().chunks_of(decoded).flat_map(|chunk| companions(chunks, chunk));
        let useful: BTreeSet<u32> =
            with_companions.filter(|chunk| is_worth_it(layer, *chunk)).map(|chunk| chunk as u32).collect();
        claimed.extend(lazy.claim_guess(layer, &useful.into_iter().collect::<Vec<_>>()));
    }
    let mut under_way = JoinSet::new();
    for (layer, claimed) in layers.iter().zip(claimed) {
        let claimed = donors::bring(layer, claimed).await;
        for request in
            planner::plan_parts(layer.table().chunks(), claimed, Limits::default(), reads_parts(layer))
        {
            under_way.spawn(delivery::bring_ahead(layer.clone(), request));
        }
    }
    while under_way.join_next().await.is_some() {}
}

/// Waits for the end of one request, and tells whether it brought what it should.
async fn one_succeeded(under_way: &mut JoinSet<bool>) -> bool {
    match under_way.join_next().await {
        None | Some(Ok(true)) => true,
        Some(Ok(false)) => {
            tracing::warn!("a prefetch failed; what is missing is fetched when it is read");
            false
        }
        // It panicked, which was logged.
        Some(Err(_)) => false,
    }
}

fn is_worth_it(layer: &LayerContent, number: usize) -> bool {
    let chunks = layer.table().chunks();
    let is_stored = chunks
        .get(number)
        .is_some_and(|chunk| chunk.codec != Codec::Zeros as u8 && !blob_range(chunk).is_empty());
    is_stored && layer.lazy().is_some() && long_span(chunks, number).is_none()
}

fn reads_parts(layer: &LayerContent) -> bool {
    layer.lazy().is_some_and(|lazy| lazy.source().reads_parts())
}

/// The requests for what is missing of those chunks, whose places in the order in which they are wanted are given. Where several ranges
/// make one request, each has what is wanted next.
fn in_order(layer: &LayerContent, places: &HashMap<u32, usize>) -> Vec<Request> {
    let chunks = layer.table().chunks();
    let mut missing = missing_if_cold(layer, places);
    if !reads_parts(layer) {
        return planner::plan(chunks, missing, LIMITS);
    }
    missing.sort_by_key(|chunk| (places.get(chunk), *chunk));
    let (mut bins, mut left, mut covered) = (Vec::<Vec<u32>>::new(), 0, 0..0);
    for number in missing {
        let range = chunks.get(number as usize).map(blob_range).unwrap_or_default();
        // What shares a member stays together.
        let more =
            range.end.saturating_sub(if range.start == covered.start { covered.end } else { range.start });
        match bins.last_mut() {
            Some(bin) if more <= left || range.start == covered.start => {
                bin.push(number);
                left = left.saturating_sub(more);
            }
            _ => {
                bins.push(vec![number]);
                left = LIMITS.request.saturating_sub(more);
            }
        }
        covered = range;
    }
    bins.into_iter().flat_map(|bin| planner::plan_parts(chunks, bin, LIMITS, true)).collect()
}

/// The missing ones of those chunks, if they have more bytes than those that are here.
fn missing_if_cold(layer: &LayerContent, wanted: &HashMap<u32, usize>) -> Vec<u32> {
    let length = |number: &u32| {
        let range = layer.table().chunks().get(*number as usize).map(blob_range).unwrap_or_default();
        range.end - range.start
    };
    let (here, mut missing): (Vec<u32>, Vec<u32>) =
        wanted.keys().copied().partition(|number| layer.has_chunk(*number as usize));
    let bytes = |chunks: &[u32]| chunks.iter().map(length).fold(0, u64::saturating_add);
    if bytes(&missing) <= bytes(&here) {
        return Vec::new();
    }
    missing.sort_unstable();
    missing
}

#[cfg(test)]
#[path = "prefetch_tests.rs"]
mod tests;
