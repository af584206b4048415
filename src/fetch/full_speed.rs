//! The switch to full speed: when readers read most of a layer, all of it is fetched, in the order of its blob and as fast as the link
//! carries it. So who reads everything waits little longer than who pulls first.
//!
//! ```text
//! first reads of chunks ──▶ the last 20 of them ──▶ as if by chance, all over the layer? ─┐
//!         │                                                                               ├─ one is missing ─▶ is there room? ─▶ run
//!         ├───────────────▶ how much of the layer? ──────────────────── half or more ─────┤                                      │
//!         └─▶ of all layers of the tree, the last 20 ─▶ as if by chance, all over the tree? ┘                                    │
//!                                                          nobody read anything new for a second: the end ◀── requests ◀─────────┘
//! ```
//!
//! - Only what readers read counts, each chunk once: not what was guessed, prefetched or brought for them.
//! - **Spread.** A program reads in a few places: of 20 chunks in a row, those of python's imports, of pip and of apt lie in 11 of the 32 parts of a
//!   layer at most; 20 taken by chance in 15, as a rule. Readers who go through the names in the order of a hash, or of a list that somebody
//!   shuffled, are known by that after 20 round trips; nobody else jumps so.
//! - **Tree.** Who goes through the names of a tree so goes through all of its layers, and of one with few files he reads few at first. So the chunks of
//!   all layers count as one line, too; 20 reads in a row of the same programs lie in 10 of its 32 parts at most. A layer of which something is missed while
//!   the tree is read so is fetched, as long as the tree is read, and the layer in its turn; but only once for that reason, then for what is read of itself.
//! - **Share.** Who goes through the layer in its own order is read ahead of, and loses little. When half of it was read, the rest comes: at worst
//!   twice as much is fetched as is read, as with guesses.
//! - **Loss.** In each round trip that readers wait for, the link could carry something. When that comes to [`LOSS`] times the layer, all of it
//!   would have been here long ago: so it is with several readers who each go on somewhere else.
//! - **Pace.** A pause of [`PAUSE`] begins anew: who reads a file now and then waits for few round trips, and may never read the rest.
//! - It goes on as long as somebody reads what was not read before, or waits for it, so a mistake costs what is under way and no more; and it ends with the first
//!   request that fails. To begin again takes as much as it took the first time.
//! - Where a budget has no room for all that is missing, it does not begin: what is warm would have to go.
//! - Readers first: before each request, as for all that is fetched ahead.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::content::LayerContent;
use super::extract::EVERYTHING;
use super::guess::blob_bytes;
use super::index::blocking;
use super::lazy::{Purpose, Waiting};
use super::planner::Limits;
use crate::table::format::ChunkRecord;

/// First reads that are looked at together.
const WINDOW: usize = 20;
/// Parts of a layer, of as many chunks each.
const PARTS: usize = 32;
/// So many parts are touched by first reads that are spread over the layer. By chance it is as many in 19 of 20 cases, by programs 11 at most.
const SPREAD: u32 = 13;
/// Who reads a tree as if by chance comes to each layer in its turn, more or less: after so many turns without that he reads the others alone.
const MISSING_TURNS: u64 = 8;
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
/// Requests of one tree under way at once, and bytes of each: some round trips' worth on the links that there are, and no more, as what a reader
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
    /// Where it lies in the tree that is read, if it is of one.
    place: OnceLock<Place>,
    /// It was fetched for how the tree is read.
    was_with_tree: AtomicBool,
}

/// The layers of a tree as one line of chunks, the lowest layer's first.
#[derive(Debug)]
struct Line {
    all_chunks: usize,
    recent: Mutex<Recent>,
    /// Counts first reads.
    news: watch::Sender<u64>,
    /// One for each request under way.
    turns: Arc<Semaphore>,
}

/// Where a layer begins on it.
#[derive(Clone, Debug)]
struct Place {
    first: usize,
    chunks: usize,
    line: Arc<Line>,
    /// The count of first reads of the tree when the layer had its last.
    last: Arc<AtomicU64>,
}

impl Place {
    /// Learns that a chunk of the layer was read for the first time.
    fn read(&self, chunk: usize, now: Instant) {
        self.line.recent().read(self.first + chunk, now);
        self.line.news.send_modify(|count| {
            *count += 1;
            self.last.store(*count, Ordering::Relaxed);
        });
    }

    /// Whether the layer is read among the others, as by chance.
    fn is_among(&self) -> bool {
        let since = self.line.news.borrow().saturating_sub(self.last.load(Ordering::Relaxed));
        // As counts of what fits into memory, they are far below the end of 64 bits.
        since.saturating_mul(self.chunks as u64) <= MISSING_TURNS.saturating_mul(self.line.all_chunks as u64)
    }

    fn is_all_over(&self) -> bool {
        self.line.recent().is_spread(self.line.all_chunks)
    }
}

impl Line {
    /// The places of layers of so many chunks each.
    fn places(chunks: &[usize]) -> Vec<Place> {
        let (recent, news) = (Mutex::default(), watch::Sender::new(0));
        let turns = Arc::new(Semaphore::new(REQUESTS));
        let line = Arc::new(Line { all_chunks: chunks.iter().sum(), recent, news, turns });
        let place = |first: &mut usize, chunks: &usize| {
            let place = Place { first: *first, chunks: *chunks, line: line.clone(), last: Arc::default() };
            *first += chunks;
            Some(place)
        };
        chunks.iter().scan(0, place).collect()
    }

    fn recent(&self) -> MutexGuard<'_, Recent> {
        self.recent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// From now on, what is read of one of these layers tells something of the others. To be called once for the layers of a tree.
pub fn read_together(layers: &[Arc<LayerContent>]) {
    let incomplete = layers.iter().filter(|layer| !layer.is_complete());
    let lazy: Vec<_> =
        incomplete.filter_map(|layer| Some((layer.lazy()?, layer.table().chunks().len()))).collect();
    let chunks: Vec<usize> = lazy.iter().map(|(_, chunks)| *chunks).collect();
    for ((lazy, _), place) in lazy.iter().zip(Line::places(&chunks)) {
        // The first word counts for a layer that is in the tree twice.
        let _ = lazy.full_speed().place.set(place);
    }
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
    place: Option<Place>,
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
        // A layer of few chunks has no more of them to read.
        let is_steady = self.chunks.len() >= WINDOW.min(all_chunks / 4);
        self.is_spread(all_chunks) || (is_steady && read >= all / SHARE)
    }

    /// Whether they are spread over so many chunks.
    fn is_spread(&self, all_chunks: usize) -> bool {
        let parts =
            self.chunks.iter().map(|chunk| 1_u32 << (chunk * PARTS / all_chunks.max(1)).min(PARTS - 1));
        let touched = parts.fold(0, |all, part| all | part).count_ones();
        all_chunks >= FEWEST_CHUNKS && self.chunks.len() == WINDOW && touched >= SPREAD
    }
}

impl Seen {
    fn new(chunks: &[ChunkRecord], place: Option<Place>) -> Seen {
        let all = chunks.iter().map(|chunk| chunk.decoded_length.get()).fold(0, u64::saturating_add);
        let words = (0..chunks.len().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Seen {
            words,
            read: AtomicU64::new(0),
            all,
            blob_bytes: blob_bytes(chunks, 0..chunks.len()),
            lost: AtomicU64::new(0),
            recent: Mutex::default(),
            place,
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
        let now = Instant::now();
        if let Some(place) = &self.place {
            place.read(number, now);
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.read(number, now);
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
        let seen = self.seen.get_or_init(|| Seen::new(content.table().chunks(), self.place.get().cloned()));
        // Those who wait together lose one round trip.
        let is_lost = fetcher.waiting().borrow().now <= 1 && seen.missed(fetcher.bytes_in_a_round_trip());
        let is_due = is_lost || self.is_due.load(Ordering::Relaxed);
        let with_tree = !is_due && self.is_due_with_tree();
        if !(is_due || with_tree) || self.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        match fetcher.runtime() {
            // It must not keep the layer open: nobody may read it any more.
            Ok(threads) => drop(threads.spawn(run(Arc::downgrade(content), with_tree))),
            // Readers are told of the same.
            Err(_) => self.is_running.store(false, Ordering::Release),
        }
    }

    /// True once at most.
    fn is_due_with_tree(&self) -> bool {
        self.place.get().is_some_and(Place::is_all_over) && !self.was_with_tree.swap(true, Ordering::Relaxed)
    }

    fn ended(&self) {
        self.is_due.store(false, Ordering::Relaxed);
        if let Some(seen) = self.seen.get() {
            seen.begin_anew();
        }
        self.is_running.store(false, Ordering::Release);
    }
}

async fn run(content: Weak<LayerContent>, with_tree: bool) {
    bring_all(&content, with_tree).await;
    if let Some(lazy) = content.upgrade().as_deref().and_then(LayerContent::lazy) {
        lazy.full_speed().ended();
    }
}

/// Fetches what is missing of the layer, while somebody reads it; or the tree, and the layer with it.
async fn bring_all(weak: &Weak<LayerContent>, with_tree: bool) {
    let Some((portions, mut readers)) = begin(weak, with_tree).await else { return };
    let (mut under_way, mut served) = (JoinSet::new(), 0);
    for portion in portions {
        if under_way.len() >= REQUESTS && !matches!(under_way.join_next().await, Some(Ok(true))) {
            break;
        }
        if !readers.go_on().await {
            break;
        }
        // All layers of a tree share the link: a reader finds as much before him as with one of them. The semaphore is never closed.
        let turn = readers.turns.clone().acquire_owned().await;
        let Some(content) = weak.upgrade().filter(|content| !content.is_poisoned()) else { break };
        let Some(lazy) = content.lazy() else { break };
        lazy.fetcher().turn_to_prefetch(&mut served).await;
        under_way.spawn(async move {
            let _turn = turn;
            match content.lazy() {
                Some(lazy) => content.bring_portion(lazy, &portion, Purpose::Ahead).await.is_ok(),
                None => false,
            }
        });
    }
    // What is under way comes: readers may wait for it.
    while under_way.join_next().await.is_some() {}
}

/// What is to be asked for, and those for whom; nothing if it is little, or there is no room for it.
async fn begin(weak: &Weak<LayerContent>, with_tree: bool) -> Option<(Vec<Vec<u32>>, Readers)> {
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
    let seen = lazy.full_speed().seen.get()?;
    let tree = seen.place.clone().filter(|_| with_tree);
    if let Some(tree) = &tree {
        // What somebody waits for at this moment is its turn.
        tree.last.store(*tree.line.news.borrow(), Ordering::Relaxed);
    }
    let news = tree.as_ref().map_or(&seen.news, |tree| &tree.line.news).subscribe();
    let own_turns = || Arc::new(Semaphore::new(REQUESTS));
    let turns = seen.place.as_ref().map_or_else(own_turns, |place| place.line.turns.clone());
    let waiting = lazy.fetcher().waiting();
    Some((content.portions(&missing, LIMITS), Readers { news, tree, turns, waiting }))
}

/// For whom a layer is fetched.
struct Readers {
    /// Counts what they read for the first time.
    news: watch::Receiver<u64>,
    /// If all of the tree counts.
    tree: Option<Place>,
    /// What keeps too many requests from being under way.
    turns: Arc<Semaphore>,
    /// Those who wait.
    waiting: watch::Receiver<Waiting>,
}

impl Readers {
    /// Waits until they have read something for the first time since this was asked last. False if they do not, or leave the layer out. Who
    /// waits for the network makes no pause, however slow that is.
    async fn go_on(&mut self) -> bool {
        loop {
            match tokio::time::timeout(PAUSE, self.news.changed()).await {
                Ok(Ok(())) => return self.tree.as_ref().is_none_or(Place::is_among),
                Err(_) if self.waiting.borrow().now > 0 => {}
                Ok(Err(_)) | Err(_) => return false,
            }
        }
    }
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
        let seen = Seen::new(&chunks, None);
        // Two readers, each in order.
        assert!(!(0..40).any(|step| seen.read(step % 2 * 150 + step / 2, &chunks)));
        let needed = (1..).find(|_| seen.missed(10_000)).unwrap();
        assert_eq!(needed, LOSS * 300_000 / 10_000);
        seen.begin_anew();
        assert!(!seen.missed(LOSS * 300_000), "nobody reads");
    }

    #[test]
    fn layers_of_a_tree_that_are_read_by_turns_are_known_by_what_is_read_of_all_of_them() {
        // A large layer and two small ones.
        let layers = [3600, 250, 250]
            .map(|count| (0..count).map(|number| chunk(number * 10, 10, Codec::Raw)).collect::<Vec<_>>());
        let seen = || {
            let places = Line::places(&layers.each_ref().map(Vec::len));
            layers
                .iter()
                .zip(places)
                .map(|(chunks, place)| Seen::new(chunks, Some(place)))
                .collect::<Vec<_>>()
        };
        let reads = |seen: &[Seen], numbers: &mut dyn Iterator<Item = usize>| {
            let told = numbers.filter(|number| {
                let layer = if *number < 3600 { 0 } else { 1 + (*number - 3600) / 250 };
                seen[layer].read(*number - [0, 3600, 3850][layer], &layers[layer])
            });
            told.count()
        };
        let is_all_over = |seen: &[Seen]| seen[2].place.as_ref().unwrap().is_all_over();
        let by_chance_seen = seen();
        reads(&by_chance_seen, &mut by_chance(3, 4100).take(3 * WINDOW));
        assert!(is_all_over(&by_chance_seen));
        // A layer follows the tree once.
        let full_speed = FullSpeed::default();
        assert!(!full_speed.is_due_with_tree());
        let _ = full_speed.place.set(by_chance_seen[2].place.clone().unwrap());
        assert!(full_speed.is_due_with_tree());
        assert!(!full_speed.is_due_with_tree());
        // Four directories by turns, one of them in the last layer.
        let program_seen = seen();
        assert_eq!(reads(&program_seen, &mut (0..400).map(|number| number % 4 * 1300 + number / 4)), 0);
        assert!(!is_all_over(&program_seen));
        // It is read in its turn, until it is left out for long.
        let place = by_chance_seen[2].place.clone().unwrap();
        assert!(place.is_among());
        reads(&by_chance_seen, &mut by_chance(5, 3600).take(60));
        assert!(place.is_among());
        reads(&by_chance_seen, &mut (0..300));
        assert!(!place.is_among());
    }

    #[test]
    fn a_chunk_counts_once() {
        let chunks: Vec<_> = (0..300).map(|number| chunk(number * 10, 10, Codec::Raw)).collect();
        let seen = Seen::new(&chunks, None);
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
