//! The chunks of one layer that are on their way, and who waits for them.
//!
//! Lock: one mutex per layer around [`State`]; held for bookkeeping only, never across a read, a write or a callback. A chunk
//! is marked in the chunk map before it leaves `State`, so whoever looks under the lock finds it in one of the two.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use super::content::LayerContent;
use super::delivery::bring;
use super::donors::{self, Donors};
use super::full_speed::FullSpeed;
use super::guess::{Guesses, Ledger, Misses, Neighbour, blob_bytes, neighbours};
use super::link::Link;
use super::planner::{self, Limits, blob_range};
use super::readahead::Readahead;
use super::room::Room;
use super::source::BlobSource;
use super::span;
use super::threads::ThreadStarter;
use crate::layer::chunk::ChunkError;
use crate::layer::gzip::checkpoint::CheckpointError;
use crate::layer::soci::headers::HeadersError;
use crate::meter::{self, Count};
use crate::store::StoreError;

/// Why chunks did not arrive.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    /// The blob could not be read.
    #[error("{layer}: cannot read bytes {}..{} of the blob", range.start, range.end)]
    Source {
        /// The layer's digest.
        layer: Arc<str>,
        /// Which bytes.
        range: Range<u64>,
        /// What the source said.
        #[source]
        cause: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// What came is not what the digest promises.
    #[error("{layer}: bytes {}..{} of the blob are not what its table of contents promises", range.start, range.end)]
    Chunk {
        /// The layer's digest.
        layer: Arc<str>,
        /// Which bytes.
        range: Range<u64>,
        /// What is wrong.
        #[source]
        cause: Arc<ChunkError>,
    },
    /// What is needed to decode it is not as it was stored.
    #[error("{layer}: bytes {}..{} of the blob cannot be decoded; remove the layer, and it is made again", range.start, range.end)]
    Checkpoint {
        /// The layer's digest.
        layer: Arc<str>,
        /// Which bytes.
        range: Range<u64>,
        /// What is wrong.
        #[source]
        cause: Arc<CheckpointError>,
    },
    /// A file is not what the layer's index says, or that is not known any more.
    #[error("{layer}: the file at byte {offset} of the archive is not proved")]
    Headers {
        /// The layer's digest.
        layer: Arc<str>,
        /// Where its content begins.
        offset: u64,
        /// Why not.
        #[source]
        cause: Arc<HeadersError>,
    },
    /// It could not be kept.
    #[error("{layer}: cannot write to the store")]
    Store {
        /// The layer's digest.
        layer: Arc<str>,
        /// What the store said.
        #[source]
        cause: Arc<StoreError>,
    },
    /// There is nothing to fetch it with.
    #[error("{layer}: cannot start to fetch")]
    Threads {
        /// The layer's digest.
        layer: Arc<str>,
        /// What the system said.
        #[source]
        cause: Arc<std::io::Error>,
    },
    /// The layer was opened only to be looked at.
    #[error("{layer}: not all of it is here, and it was opened without a source")]
    NoSource {
        /// The layer's digest.
        layer: Arc<str>,
    },
    /// Its table of contents was proved to be false.
    #[error(
        "{layer}: nothing of it is read, as its table of contents does not say what its archive says: {reason}"
    )]
    Poisoned {
        /// The layer's digest.
        layer: Arc<str>,
        /// What is wrong, naming an entry if it is one.
        reason: Arc<str>,
    },
    /// It took too long.
    #[error("{layer}: no answer within {} s", deadline.as_secs())]
    Deadline {
        /// The layer's digest.
        layer: Arc<str>,
        /// How long was waited.
        deadline: Duration,
    },
}

/// What all layers of a process share for fetching.
pub struct Fetcher {
    threads: ThreadStarter,
    /// One permit per KiB of blob bytes that may be in memory.
    memory: Semaphore,
    /// Batches of chunks that are copied from other layers at once.
    copies: Semaphore,
    deadline: Duration,
    /// If its size matters.
    room: Option<Arc<Room>>,
    observer: Box<dyn Fn(u64) + Send + Sync>,
    /// Bytes of blobs that were fetched before anybody wanted them.
    prefetched: AtomicU64,
    waiting: watch::Sender<Waiting>,
    link: Link,
    ledger: Arc<Ledger>,
}

/// How many wait for the network.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    /// Readers, and requests under way that were made for readers.
    pub now: usize,
    /// Those who have waited so far.
    pub served: u64,
}

/// As many threads as can be busy with it; each may have a chunk in memory.
const COPIES: usize = 3;
/// Blob bytes in memory at once, in KiB.
const MEMORY: u32 = 96 << 10;

impl FetchError {
    /// As what it is counted.
    pub fn count(&self) -> Count {
        match self {
            FetchError::Source { .. } => Count::ErrorsSource,
            FetchError::Chunk { .. } | FetchError::Checkpoint { .. } => Count::ErrorsContent,
            FetchError::Headers { .. } | FetchError::Poisoned { .. } => Count::ErrorsTrust,
            FetchError::Store { .. } => Count::ErrorsStore,
            FetchError::Deadline { .. } => Count::ErrorsDeadline,
            FetchError::Threads { .. } | FetchError::NoSource { .. } => Count::ErrorsOther,
        }
    }
}

impl Fetcher {
    /// Fetches on those threads. A reader waits at most `deadline`. What is written keeps to the budget of `room`'s store. `observer` is called after each request, with
    /// the bytes of blobs that were prefetched so far.
    pub fn new(
        threads: ThreadStarter,
        deadline: Duration,
        room: Option<Arc<Room>>,
        observer: impl Fn(u64) + Send + Sync + 'static,
    ) -> Arc<Fetcher> {
        let (memory, copies) = (Semaphore::new(MEMORY as usize), Semaphore::new(COPIES));
        let (prefetched, waiting) = (AtomicU64::new(0), watch::Sender::default());
        let observer = Box::new(observer);
        let (link, ledger) = (Link::default(), Arc::default());
        Arc::new(Fetcher {
            threads,
            memory,
            copies,
            deadline,
            room,
            observer,
            prefetched,
            waiting,
            link,
            ledger,
        })
    }
}

impl Fetcher {
    /// Waits until so many bytes may be in memory.
    pub(super) async fn reserve(&self, bytes: u64) -> Option<SemaphorePermit<'_>> {
        let permits = u32::try_from(bytes >> 10).unwrap_or(MEMORY).clamp(1, MEMORY);
        // The semaphore is never closed, so this is always a permit.
        self.memory.acquire_many(permits).await.ok()
    }

    /// Waits until chunks may be copied from other layers.
    pub(super) async fn turn_to_copy(&self) -> Option<SemaphorePermit<'_>> {
        // As above.
        self.copies.acquire().await.ok()
    }

    /// Who keeps the store's budget, if anybody need.
    pub(super) fn room(&self) -> Option<&Arc<Room>> {
        self.room.as_ref()
    }

    /// The runtime of the network's threads, which are started if they do not run.
    pub(super) fn runtime(&self) -> std::io::Result<Handle> {
        self.threads.handle()
    }

    /// What is guessed in all layers.
    pub(super) fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Says that a reader waits for the network, until it is dropped.
    pub(super) fn wanted(self: &Arc<Self>) -> Wanted {
        self.waiting.send_modify(|waiting| waiting.now += 1);
        Wanted(self.clone())
    }

    /// Waits until no reader waits for the network, but no longer than [`COURTESY`]: a connection that nobody reads is closed.
    pub(super) async fn wait_for_readers(&self) {
        let mut waiting = self.waiting.subscribe();
        let _ = tokio::time::timeout(COURTESY, waiting.wait_for(|waiting| waiting.now == 0)).await;
    }

    /// Bytes that can be fetched in the time of one more request, about.
    pub(super) fn bytes_in_a_round_trip(&self) -> u64 {
        self.link.bytes_in_a_round_trip()
    }

    /// Who waits for the network.
    pub(super) fn waiting(&self) -> watch::Receiver<Waiting> {
        self.waiting.subscribe()
    }

    /// Waits until it is the turn of a prefetch: no reader waits, or one was served since the turn before, of which `served` tells. One
    /// reader after the other would leave it none else.
    pub(super) async fn turn_to_prefetch(&self, served: &mut u64) {
        let mut waiting = self.waiting.subscribe();
        let is_turn = |waiting: &Waiting| waiting.now == 0 || waiting.served != *served;
        // Its sender lives as long as this.
        if let Ok(waiting) = waiting.wait_for(is_turn).await {
            *served = waiting.served;
        }
    }

    /// Learns of a request: how many bytes it brought, and after what time the first and all of them were here.
    pub(super) fn learn(&self, bytes: u64, first: Duration, all: Duration) {
        self.link.learn(bytes, first, all);
    }

    /// Counts bytes that were fetched before anybody wanted them.
    pub(super) fn count_prefetched(&self, bytes: u64) {
        self.prefetched.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Tells the observer of a request that ended.
    pub(super) fn observed(&self) {
        (self.observer)(self.prefetched.load(Ordering::Relaxed));
    }
}

/// Most time that background work lets pass for readers, before each piece.
const COURTESY: Duration = Duration::from_secs(1);

/// See [`Fetcher::wanted`].
pub(super) struct Wanted(Arc<Fetcher>);

impl Drop for Wanted {
    fn drop(&mut self) {
        self.0.waiting.send_modify(|waiting| {
            waiting.now -= 1;
            waiting.served += 1;
        });
    }
}

pub(super) type Done = Box<dyn FnOnce(Result<(), FetchError>) + Send>;

/// Who wants chunks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Somebody waits for them to go on: they come before all else, and soon or not at all.
    Reader,
    /// Parts of a layer are brought: in large requests, and after readers.
    Background,
    /// So is all of it, to be proved then.
    Extraction,
    /// Somebody will want them, one thinks. Who asks for them has waited for his turn.
    Ahead,
    /// In the same way comes all of a layer, to be proved then.
    Completion,
}

/// Longest time for one request of the background. The source's own patience is shorter; this ends the wait for a thread that died.
const BACKGROUND_DEADLINE: Duration = Duration::from_secs(3600);

impl Purpose {
    fn limits(self) -> Limits {
        match self {
            Purpose::Reader | Purpose::Ahead | Purpose::Completion => Limits::default(),
            Purpose::Background | Purpose::Extraction => planner::BACKGROUND,
        }
    }

    /// Whether they are brought before anybody wants them.
    pub(super) fn is_ahead(self) -> bool {
        matches!(self, Purpose::Ahead | Purpose::Completion)
    }

    /// Whether the layer is proved then.
    fn ends_with_proof(self) -> bool {
        matches!(self, Purpose::Extraction | Purpose::Completion)
    }

    /// Lets readers go first, and says that one waits if it is one.
    pub(super) async fn take_turn(self, fetcher: &Arc<Fetcher>) -> Option<Wanted> {
        match self {
            Purpose::Reader => Some(fetcher.wanted()),
            Purpose::Background | Purpose::Extraction => {
                fetcher.wait_for_readers().await;
                None
            }
            Purpose::Ahead | Purpose::Completion => None,
        }
    }
}

/// A reader who waits for several chunks.
struct Waiter {
    left: usize,
    /// What it waits with, until it is told; and, of one who waits to read, the word that he does.
    done: Option<(Done, Option<Wanted>)>,
}

#[derive(Default)]
struct State {
    in_flight: HashMap<u32, Vec<Arc<Mutex<Waiter>>>>,
    readahead: Readahead,
    misses: Misses,
}

/// The lazy side of a layer.
pub(super) struct Lazy {
    source: Arc<dyn BlobSource>,
    fetcher: Arc<Fetcher>,
    state: Mutex<State>,
    guesses: Guesses,
    full_speed: FullSpeed,
    donors: OnceLock<Donors>,
}

impl Lazy {
    pub(super) fn new(source: Arc<dyn BlobSource>, fetcher: Arc<Fetcher>) -> Lazy {
        let (state, guesses, full_speed) = (Mutex::default(), Guesses::default(), FullSpeed::default());
        Lazy { source, fetcher, state, guesses, full_speed, donors: OnceLock::new() }
    }

    /// Says where chunks may be found besides.
    pub(super) fn copy_from(&self, donors: Donors) {
        // A content is given them when it is made.
        let _ = self.donors.set(donors);
    }

    pub(super) fn donors(&self) -> Option<&Donors> {
        self.donors.get()
    }

    pub(super) fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    pub(super) fn full_speed(&self) -> &FullSpeed {
        &self.full_speed
    }

    pub(super) fn source(&self) -> &dyn BlobSource {
        &*self.source
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held leaves bookkeeping that is still whole: every change is one insert or remove.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Brings these chunks of `content` and then calls `done`, on this thread if they are all here.
    pub(super) fn request(&self, content: &Arc<LayerContent>, chunks: Range<usize>, done: Done) {
        let numbers = chunks.start as u32..chunks.end as u32;
        self.ask(content, Purpose::Reader, numbers, done, |state, fresh| {
            let brought = bring_along(content, state, fresh);
            let wanted = fresh.len();
            let bytes = bytes_of(content, fresh);
            meter::count(Count::ChunksMissing, wanted as u64);
            self.read_ahead(content, chunks, brought, state, fresh);
            // Who reads on and on is known better; but that is a guess, too.
            match fresh.get(wanted..) {
                None | Some([]) => self.guess(content, state, fresh),
                Some(ahead) => self.note_guess(content, ahead, bytes_of(content, ahead)),
            }
            self.fetcher.ledger.wanted(bytes);
        });
    }

    /// Brings exactly these chunks, for nobody who waits to read them.
    pub(super) fn request_for_nobody(
        &self,
        content: &Arc<LayerContent>,
        chunks: &[u32],
        purpose: Purpose,
        done: Done,
    ) {
        self.ask(content, purpose, chunks.iter().copied(), done, |_, _| {});
    }

    /// `more` adds to the chunks that are to be fetched, if there are any.
    fn ask(
        &self,
        content: &Arc<LayerContent>,
        purpose: Purpose,
        chunks: impl Iterator<Item = u32>,
        done: Done,
        more: impl FnOnce(&mut State, &mut Vec<u32>),
    ) {
        let waiter = Arc::new(Mutex::new(Waiter { left: 0, done: None }));
        let (mut done, mut fresh) = (Some(done), Vec::new());
        let mut waited = 0;
        {
            let mut state = self.state();
            for number in chunks {
                if content.has_chunk(number as usize) {
                    continue;
                }
                let waiters = state.in_flight.entry(number).or_insert_with(|| {
                    fresh.push(number);
                    Vec::new()
                });
                waiters.push(waiter.clone());
                waited += 1;
            }
            if !fresh.is_empty() {
                more(&mut state, &mut fresh);
            }
            if waited > 0 {
                // Nobody counts down before the state is unlocked: the waiters are found through it.
                let wanted = (purpose == Purpose::Reader).then(|| self.fetcher.wanted());
                let done = done.take().map(|done| (done, wanted));
                *lock(&waiter) = Waiter { left: waited, done };
            }
        }
        if let Some(done) = done {
            return done(Ok(()));
        }
        let threads = match self.fetcher.threads.handle() {
            Ok(threads) => threads,
            Err(error) => {
                let (layer, cause) = (content.layer().clone(), Arc::new(error));
                return self.finish(&fresh, Err(FetchError::Threads { layer, cause }));
            }
        };
        let deadline = match purpose {
            Purpose::Reader => self.fetcher.deadline,
            _ => BACKGROUND_DEADLINE,
        };
        self.watch(&threads, &waiter, content, deadline);
        // What comes with chunks is not copied with them.
        let is_needed_for_proof = purpose.ends_with_proof() && content.needs_proof();
        if fresh.is_empty() || is_needed_for_proof || !content.may_have_donors() {
            return self.fetch(&threads, content, fresh, purpose);
        }
        let (content, runtime) = (content.clone(), threads.clone());
        threads.spawn(async move {
            let left = donors::bring(&content, fresh).await;
            match content.lazy() {
                Some(lazy) if !left.is_empty() => lazy.fetch(&runtime, &content, left, purpose),
                _ => {}
            }
        });
    }

    /// Fetches these chunks, which were claimed.
    fn fetch(&self, threads: &Handle, content: &Arc<LayerContent>, mut chunks: Vec<u32>, purpose: Purpose) {
        for span in self.take_long_spans(content, &mut chunks) {
            threads.spawn(span::bring(content.clone(), span, purpose));
        }
        for request in self.plan(content, chunks, purpose) {
            threads.spawn(bring(content.clone(), request, purpose));
        }
        if purpose == Purpose::Reader {
            self.full_speed.missed(content);
        }
    }

    /// The requests that bring these chunks.
    fn plan(&self, content: &LayerContent, chunks: Vec<u32>, purpose: Purpose) -> Vec<planner::Request> {
        let is_large = matches!(purpose, Purpose::Background | Purpose::Extraction);
        let reads_parts = !is_large && self.source.reads_parts();
        planner::plan_parts(content.table().chunks(), chunks, purpose.limits(), reads_parts)
    }

    /// Takes out of `fresh` what lies in long spans, and adds what else of these is missing: a list for each of them.
    fn take_long_spans(&self, content: &LayerContent, fresh: &mut Vec<u32>) -> Vec<Vec<u32>> {
        let chunks = content.table().chunks();
        let mut spans: BTreeMap<(usize, usize), BTreeSet<u32>> = BTreeMap::new();
        fresh.retain(|number| match span::long_span(chunks, *number as usize) {
            None => true,
            Some(range) => {
                spans.entry((range.start, range.end)).or_default().insert(*number);
                false
            }
        });
        let mut state = self.state();
        for ((start, end), wanted) in &mut spans {
            for number in (*start..*end).filter(|number| !content.has_chunk(*number)) {
                state.in_flight.entry(number as u32).or_insert_with(|| {
                    wanted.insert(number as u32);
                    Vec::new()
                });
            }
        }
        spans.into_values().map(|wanted| wanted.into_iter().collect()).collect()
    }

    /// Those of these chunks that are missing and that nobody fetches; who gets them must see to it that they leave the state again.
    pub(super) fn claim(&self, content: &LayerContent, chunks: &[u32]) -> Vec<u32> {
        let mut state = self.state();
        let missing = chunks.iter().copied().filter(|number| !content.has_chunk(*number as usize));
        let mut claimed = Vec::new();
        for number in missing {
            state.in_flight.entry(number).or_insert_with(|| {
                claimed.push(number);
                Vec::new()
            });
        }
        claimed
    }

    /// The same, but none if nobody wants them yet and guesses may not have as many bytes.
    pub(super) fn claim_guess(&self, content: &LayerContent, chunks: &[u32]) -> Vec<u32> {
        let missing: Vec<u32> =
            chunks.iter().copied().filter(|number| !content.has_chunk(*number as usize)).collect();
        if !self.fetcher.ledger.allows_soon(bytes_of(content, &missing)) {
            return Vec::new();
        }
        let claimed = self.claim(content, &missing);
        self.note_guess(content, &claimed, bytes_of(content, &claimed));
        claimed
    }

    /// Adds chunks that follow on `wanted` in the blob, as many as the readahead says; those before `brought` are asked for anyway.
    fn read_ahead(
        &self,
        content: &LayerContent,
        wanted: Range<usize>,
        brought: usize,
        state: &mut State,
        fresh: &mut Vec<u32>,
    ) {
        let begin = wanted.end.max(brought);
        let mut left = state.readahead.missed(wanted);
        state.readahead.extended(begin);
        let chunks = content.table().chunks();
        let mut covered = chunks.get(begin.saturating_sub(1)).map_or(0, |chunk| blob_range(chunk).end);
        for (number, chunk) in chunks.iter().enumerate().skip(begin) {
            let range = blob_range(chunk);
            let length = range.end.saturating_sub(range.start.max(covered));
            if left < length {
                break;
            }
            left -= length;
            covered = covered.max(range.end);
            state.readahead.extended(number + 1);
            if !content.has_chunk(number) {
                state.in_flight.entry(number as u32).or_insert_with(|| {
                    fresh.push(number as u32);
                    Vec::new()
                });
            }
        }
    }

    /// Adds what lies beside these chunks, as far as guessing pays.
    fn guess(&self, content: &LayerContent, state: &mut State, fresh: &mut Vec<u32>) {
        let (chunks, ledger) = (content.table().chunks(), &self.fetcher.ledger);
        let (Some(first), Some(last)) = (fresh.iter().min(), fresh.iter().max()) else { return };
        let (first, last) = (*first as usize, *last as usize);
        let offset = chunks.get(first).map_or(0, |chunk| blob_range(chunk).start);
        let most = state.misses.missed(offset, self.fetcher.link.bytes_in_a_round_trip());
        let most = ledger.allowed(most);
        let is_missing =
            |number: usize| !content.has_chunk(number) && !state.in_flight.contains_key(&(number as u32));
        // Though what is between need not come, it counts: what is mostly here is known, and a guess there would push out what is warm.
        let found = neighbours(chunks, first..last + 1, most, Limits::default().gap, is_missing);
        for Neighbour { chunks: group, bytes, between } in found {
            let begin = fresh.len();
            for number in group.filter(|number| !content.has_chunk(*number)) {
                state.in_flight.entry(number as u32).or_insert_with(|| {
                    fresh.push(number as u32);
                    Vec::new()
                });
            }
            self.note_guess(content, fresh.get(begin..).unwrap_or_default(), bytes);
            ledger.wasted(between);
        }
    }

    /// Notes that these chunks, which take so many bytes, are fetched and not wanted yet.
    fn note_guess(&self, content: &LayerContent, numbers: &[u32], bytes: u64) {
        let numbers = numbers.iter().map(|number| *number as usize);
        self.guesses.add(numbers, bytes, content.table().chunks().len(), &self.fetcher.ledger);
    }

    /// These chunks, those that somebody waits for before the others; what shares a member stays together.
    pub(super) fn awaited_first(&self, content: &LayerContent, numbers: &[u32]) -> Vec<u32> {
        let chunks = content.table().chunks();
        let start = |number: &u32| chunks.get(*number as usize).map(|chunk| blob_range(chunk).start);
        let mut members: Vec<&[u32]> = numbers.chunk_by(|one, other| start(one) == start(other)).collect();
        let state = self.state();
        let is_awaited =
            |number: &u32| state.in_flight.get(number).is_some_and(|waiters| !waiters.is_empty());
        members.sort_by_key(|member| !member.iter().any(is_awaited));
        members.concat()
    }

    /// Says that these chunks are read.
    pub(super) fn note_read(&self, content: &LayerContent, chunks: Range<usize>) {
        self.guesses.read(chunks.clone(), content.table().chunks(), &self.fetcher.ledger);
        self.full_speed.read(chunks, content.table().chunks());
    }

    /// Ends the wait at the deadline.
    fn watch(
        &self,
        threads: &Handle,
        waiter: &Arc<Mutex<Waiter>>,
        content: &LayerContent,
        deadline: Duration,
    ) {
        let (waiter, layer) = (Arc::downgrade(waiter), content.layer().clone());
        threads.spawn(async move {
            tokio::time::sleep(deadline).await;
            if let Some(waiter) = waiter.upgrade() {
                settle(&waiter, Err(FetchError::Deadline { layer, deadline }));
            }
        });
    }

    /// Tells everyone who waits for these chunks, which leave the state.
    pub(super) fn finish(&self, chunks: &[u32], result: Result<(), FetchError>) {
        let waiters: Vec<_> = {
            let mut state = self.state();
            chunks.iter().filter_map(|number| state.in_flight.remove(number)).flatten().collect()
        };
        for waiter in waiters {
            settle(&waiter, result.clone());
        }
    }
}

/// Adds to `fresh` the missing chunks that cost little more once these are fetched. They are all before the chunk that is given.
fn bring_along(content: &LayerContent, state: &mut State, fresh: &mut Vec<u32>) -> usize {
    let chunks = content.table().chunks();
    let mut brought = 0..0;
    for number in fresh.clone() {
        if brought.contains(&(number as usize)) {
            continue;
        }
        brought = planner::companions(chunks, number as usize);
        for number in brought.clone().filter(|number| !content.has_chunk(*number)) {
            state.in_flight.entry(number as u32).or_insert_with(|| {
                fresh.push(number as u32);
                Vec::new()
            });
        }
    }
    brought.end
}

/// Bytes of the blob that these chunks need.
fn bytes_of(content: &LayerContent, numbers: &[u32]) -> u64 {
    let mut numbers: Vec<usize> = numbers.iter().map(|number| *number as usize).collect();
    numbers.sort_unstable();
    blob_bytes(content.table().chunks(), numbers)
}

fn lock(waiter: &Mutex<Waiter>) -> MutexGuard<'_, Waiter> {
    waiter.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Counts one chunk of a waiter as settled; the last one, or the first error, calls it back.
fn settle(waiter: &Mutex<Waiter>, result: Result<(), FetchError>) {
    let done = {
        let mut waiter = lock(waiter);
        waiter.left = waiter.left.saturating_sub(1);
        if result.is_err() || waiter.left == 0 { waiter.done.take() } else { None }
    };
    if let Some((done, _wanted)) = done {
        done(result);
    }
}
