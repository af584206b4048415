//! The switch to full speed: when readers read most of a layer, all of it is fetched, in the order of its blob and as fast as the link
//! carries it. So who reads everything waits little longer than who pulls first.
//!
//! ```text
//! first reads of chunks ──▶ the last 20 of them ──▶ as if by chance, all over the layer? ─┐
//!         │                                                                               ├─ one is missing ─▶ is there room? ─▶ run
//!         └───────────────▶ how much of the layer? ──────────────────── half or more ─────┘                                      │
//!                                                          nobody read anything new for a second: the end ◀── requests ◀─────────┘
//! ```
//!
//! - Only what readers read counts, each chunk once: not what was guessed, prefetched or brought for them.
//! - **Spread.** A program reads in a few places: of 20 chunks in a row, those of python's imports, of pip and of apt lie in 11 of the 32 parts of a
//!   layer at most; 20 taken by chance in 15, as a rule. Readers who go through the names in the order of a hash, or of a list that somebody
//!   shuffled, are known by that after 20 round trips; nobody else jumps so.
//! - **Share.** Who goes through the layer in its own order is read ahead of, and loses little. When half of it was read, the rest comes: at worst
//!   twice as much is fetched as is read, as with guesses.
//! - **Loss.** In each round trip that readers wait for, the link could carry something. When that comes to [`LOSS`] times the layer, all of it
//!   would have been here long ago: so it is with several readers who each go on somewhere else.
//! - **Pace.** A pause of [`PAUSE`] begins anew: who reads a file now and then waits for few round trips, and may never read the rest.
//! - It goes on as long as somebody reads what was not read before, so a mistake costs what is under way and no more; and it ends with the first
//!   request that fails. To begin again takes as much as it took the first time.
//! - Where a budget has no room for all that is missing, it does not begin: what is warm would have to go.
//! - Readers first: before each request, as for all that is fetched ahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::content::LayerContent;
use super::extract::EVERYTHING;
use super::guess::blob_bytes;
use super::index::blocking;
use super::lazy::Purpose;
use super::planner::Limits;
use crate::table::format::ChunkRecord;

/// First reads that are looked at together.
const WINDOW: usize = 20;
/// Parts of a layer, of as many chunks each.
const PARTS: usize = 32;
/// So many parts are touched by first reads that are spread over the layer. By chance it is as many in 19 of 20 cases, by programs 11 at most.
const SPREAD: u32 = 13;
/// A layer of fewer chunks has no parts that tell anything.
const FEWEST_CHUNKS: usize = 8 * PARTS;
/// Share of the layer, decoded, after which the rest is fetched: one of so many.
const SHARE: u64 = 2;
/// So many layers' worth of bytes could have come while readers waited.
const LOSS: u64 = 3;
/// Where fewer bytes of the blob are missing, readers get them in few requests anyway.
const LITTLE: u64 = 8 << 20;
/// Readers that read nothing new for so long read something else, or nothing.
const PAUSE: Duration = Duration::from_secs(1);
/// Requests of one layer under way at once, and bytes of each: some round trips' worth on the links that there are, and no more, as what a reader
/// asks for meanwhile may have to wait for all of them.
const REQUESTS: usize = 3;
const LIMITS: Limits = Limits { gap: 64 << 10, request: 2 << 20 };

/// What readers have read of a layer, from the first miss on.
#[derive(Default)]
pub(super) struct FullSpeed {
    seen: OnceLock<Seen>,
    /// Whether it is worth it, as soon as something is missing.
    is_due: AtomicBool,
    is_running: AtomicBool,
}

struct Seen {
    /// A bit for each chunk.
    words: Box<[AtomicU64]>,
    /// Bytes of the decoded space, of which chunks never share any.
    read: AtomicU64,
    all: u64,
    /// Bytes of the blob that all chunks need.
    blob_bytes: u64,
    /// Those that the link could have carried while a reader waited.
    lost: AtomicU64,
    recent: Mutex<Recent>,
    /// Counts first reads.
    news: watch::Sender<u64>,
}

/// The last first reads.
#[derive(Debug, Default)]
struct Recent {
    chunks: VecDeque<usize>,
    last: Option<Instant>,
}

impl Recent {
    /// Learns that a chunk was read for the first time.
    fn read(&mut self, chunk: usize, now: Instant) {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) > PAUSE) {
            self.chunks.clear();
        }
        self.last = Some(now);
        if self.chunks.len() == WINDOW {
            self.chunks.pop_front();
        }
        self.chunks.push_back(chunk);
    }

    /// Whether the rest of a layer of so many chunks is worth fetching, of which so many bytes were read.
    fn asks_for_all(&self, all_chunks: usize, read: u64, all: u64) -> bool {
        let is_spread = || {
            let parts =
                self.chunks.iter().map(|chunk| 1_u32 << (chunk * PARTS / all_chunks.max(1)).min(PARTS - 1));
            let touched = parts.fold(0, |all, part| all | part).count_ones();
            all_chunks >= FEWEST_CHUNKS && self.chunks.len() == WINDOW && touched >= SPREAD
        };
        // A layer of few chunks has no more of them to read.
        let is_steady = self.chunks.len() >= WINDOW.min(all_chunks / 4);
        is_spread() || (is_steady && read >= all / SHARE)
    }
}

impl Seen {
    fn new(chunks: &[ChunkRecord]) -> Seen {
        let all = chunks.iter().map(|chunk| chunk.decoded_length.get()).fold(0, u64::saturating_add);
        let words = (0..chunks.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Seen {
            words,
            read: AtomicU64::new(0),
            all,
            blob_bytes: blob_bytes(chunks, 0..chunks.len()),
            lost: AtomicU64::new(0),
            recent: Mutex::default(),
            news: watch::Sender::new(0),
        }
    }

    /// Learns that a chunk is read; says whether all of the layer is worth fetching now.
    fn read(&self, number: usize, chunks: &[ChunkRecord]) -> bool {
        let (Some(word), Some(chunk)) = (self.words.get(number / 64), chunks.get(number)) else {
            return false;
        };
        let bit = 1 << (number % 64);
        // Asked first, so that those who read do not take the words from each other's caches.
        if word.load(Ordering::Relaxed) & bit != 0 || word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return false;
        }
        let length = chunk.decoded_length.get();
        let read = self.read.fetch_add(length, Ordering::Relaxed).saturating_add(length);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.read(number, Instant::now());
        let is_due = recent.asks_for_all(chunks.len(), read, self.all);
        drop(recent);
        self.news.send_modify(|count| *count += 1);
        is_due
    }

    /// Learns that a reader waits for a round trip, which carries so many bytes; says whether all of the layer is worth fetching now.
    fn missed(&self, bytes: u64) -> bool {
        let lost = self.lost.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.chunks.len() == WINDOW && lost >= self.blob_bytes.saturating_mul(LOSS)
    }

    fn begin_anew(&self) {
        self.lost.store(0, Ordering::Relaxed);
        *self.recent.lock().unwrap_or_else(PoisonError::into_inner) = Recent::default();
    }
}

impl FullSpeed {
    /// Learns that these chunks, which are here, are read. Nothing counts before something was missing: a warm layer pays nothing.
    pub(super) fn read(&self, read: Range<usize>, chunks: &[ChunkRecord]) {
        let Some(seen) = self.seen.get() else { return };
        for number in read {
            if seen.read(number, chunks) {
                self.is_due.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Learns that something of the layer is missing. Fetches all of it if that is worth it.
    pub(super) fn missed(&self, content: &Arc<LayerContent>) {
        let Some(fetcher) = content.lazy().map(|lazy| lazy.fetcher()) else { return };
        let seen = self.seen.get_or_init(|| Seen::new(content.table().chunks()));
        // Those who wait together lose one round trip.
        let is_lost = fetcher.waiting().borrow().now <= 1 && seen.missed(fetcher.bytes_in_a_round_trip());
        if !(is_lost || self.is_due.load(Ordering::Relaxed)) || self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        match fetcher.runtime() {
            // It must not keep the layer open: nobody may read it any more.
            Ok(threads) => drop(threads.spawn(run(Arc::downgrade(content)))),
            // Readers are told of the same.
            Err(_) => self.is_running.store(false, Ordering::Release),
        }
    }

    fn ended(&self) {
        self.is_due.store(false, Ordering::Relaxed);
        if let Some(seen) = self.seen.get() {
            seen.begin_anew();
        }
        self.is_running.store(false, Ordering::Release);
    }
}

async fn run(content: Weak<LayerContent>) {
    bring_all(&content).await;
    if let Some(lazy) = content.upgrade().as_deref().and_then(LayerContent::lazy) {
        lazy.full_speed().ended();
    }
}

/// Fetches what is missing of the layer, while somebody reads it.
async fn bring_all(weak: &Weak<LayerContent>) {
    let Some((portions, mut news)) = begin(weak).await else { return };
    let (mut under_way, mut served) = (JoinSet::new(), 0);
    for portion in portions {
        if under_way.len() >= REQUESTS && !matches!(under_way.join_next().await, Some(Ok(true))) {
            break;
        }
        if !is_still_read(&mut news).await {
            break;
        }
        let Some(content) = weak.upgrade().filter(|content| !content.is_poisoned()) else { break };
        let Some(lazy) = content.lazy() else { break };
        lazy.fetcher().turn_to_prefetch(&mut served).await;
        under_way.spawn(async move {
            match content.lazy() {
                Some(lazy) => content.bring_portion(lazy, &portion, Purpose::Ahead).await.is_ok(),
                None => false,
            }
        });
    }
    // What is under way comes: readers may wait for it.
    while under_way.join_next().await.is_some() {}
}

/// What is to be asked for, and the count of first reads; nothing if it is little, or there is no room for it.
async fn begin(weak: &Weak<LayerContent>) -> Option<(Vec<Vec<u32>>, watch::Receiver<u64>)> {
    let content = weak.upgrade()?;
    let lazy = content.lazy()?;
    let missing = content.missing(EVERYTHING);
    let chunks = content.table().chunks();
    if blob_bytes(chunks, missing.iter().map(|number| *number as usize)) < LITTLE {
        return None;
    }
    let decoded = content.bytes_missing(&missing);
    if let Some(room) = lazy.fetcher().room().cloned() {
        let has_space = blocking(move || room.has_space_beside_all(decoded)).await;
        if !has_space {
            tracing::debug!(layer = %content.layer(), "the store's budget has no room for all of the layer");
            return None;
        }
    }
    tracing::info!(layer = %content.layer(), bytes = decoded, "readers read most of the layer: all of it is fetched");
    let news = lazy.full_speed().seen.get()?.news.subscribe();
    Some((content.portions(&missing, LIMITS), news))
}

/// Waits until somebody has read something for the first time since this was asked last. False if nobody does.
async fn is_still_read(news: &mut watch::Receiver<u64>) -> bool {
    matches!(tokio::time::timeout(PAUSE, news.changed()).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::testing::chunk;
    use crate::table::Codec;

    /// Whether all is asked for after these first reads, each of which comes so many milliseconds after the one before.
    fn asks(reads: impl IntoIterator<Item = usize>, all_chunks: usize, read: u64, milliseconds: u64) -> bool {
        let (mut recent, mut now) = (Recent::default(), Instant::now());
        for chunk in reads {
            now += Duration::from_millis(milliseconds);
            recent.read(chunk, now);
        }
        recent.asks_for_all(all_chunks, read, 1000)
    }

    /// Numbers below `below` as if by chance (a linear congruential generator).
    fn by_chance(seed: u64, below: usize) -> impl Iterator<Item = usize> {
        let step = |state: &u64| {
            Some(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407))
        };
        std::iter::successors(Some(seed), step).skip(1).map(move |state| (state >> 33) as usize % below)
    }

    #[test]
    fn readers_that_jump_all_over_a_layer_are_known_after_some_dozen_reads() {
        for seed in 0..100 {
            let needed =
                (WINDOW..3 * WINDOW).find(|count| asks(by_chance(seed, 4000).take(*count), 4000, 1, 20));
            assert!(needed.is_some(), "{seed}");
        }
        let within_the_window =
            (0..100).filter(|seed| asks(by_chance(*seed, 4000).take(WINDOW), 4000, 1, 20));
        assert!(within_the_window.count() > 80);
    }

    #[test]
    fn a_program_that_reads_some_of_a_layer_does_not_bring_all_of_it() {
        // Four directories by turns, each from its beginning.
        let places = |count| (0..count).map(|number| number % 4 * 900 + number / 4);
        assert!(!asks(places(800), 4000, 400, 20));
        // In order, however much of it, until it is half.
        assert!(!asks(0..1900, 4000, 499, 20));
        assert!(asks(0..1900, 4000, 500, 20));
        // A third of the layer, by chance.
        assert!(!asks(by_chance(1, 1300).take(400), 4000, 320, 20));
    }

    #[test]
    fn a_reader_who_pauses_and_a_layer_of_few_chunks_are_no_reason() {
        let pause = PAUSE.as_millis() as u64;
        assert!(asks(by_chance(1, 4000).take(100), 4000, 1, pause));
        assert!(!asks(by_chance(1, 4000).take(100), 4000, 900, pause + 1));
        assert!(!asks(by_chance(1, FEWEST_CHUNKS - 1).take(100), FEWEST_CHUNKS - 1, 1, 20));
        // Half of 12 chunks that are long, one after the other.
        assert!(!asks(0..2, 12, 600, 20));
        assert!(asks(0..6, 12, 600, 20));
    }

    #[test]
    fn round_trips_count_until_the_layer_could_have_come_several_times() {
        let chunks: Vec<_> = (0..300).map(|number| chunk(number * 1000, 1000, Codec::Raw)).collect();
        let seen = Seen::new(&chunks);
        // Two readers, each in order.
        assert!(!(0..40).any(|step| seen.read(step % 2 * 150 + step / 2, &chunks)));
        let needed = (1..).find(|_| seen.missed(10_000)).unwrap();
        assert_eq!(needed, LOSS * 300_000 / 10_000);
        seen.begin_anew();
        assert!(!seen.missed(LOSS * 300_000), "nobody reads");
    }

    #[test]
    fn a_chunk_counts_once() {
        let chunks: Vec<_> = (0..300).map(|number| chunk(number * 10, 10, Codec::Raw)).collect();
        let seen = Seen::new(&chunks);
        for _ in 0..100 {
            assert!(!seen.read(7, &chunks));
        }
        assert_eq!(*seen.news.borrow(), 1);
        assert_eq!(seen.read.load(Ordering::Relaxed), chunks[7].decoded_length.get());
        let due: Vec<usize> =
            by_chance(3, 300).take(200).filter(|number| seen.read(*number, &chunks)).collect();
        assert!(!due.is_empty());
    }
}
