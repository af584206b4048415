//! Chunks that other layers have: they are copied, and not fetched.
//!
//! ```text
//! missing ─▶ who has such? ─▶ read there ─▶ SHA-256 as the own table says ─▶ written ─▶ marked
//!                │                └─ gone, or something else: the next one ─┐
//!                └──────── nobody ──────────────────────────────────────────┴─▶ fetched
//! ```
//!
//! A table of contents gives each chunk the digest of its decoded bytes, and a file that is no longer than a chunk is one: so a file
//! that two layers have is the same chunk in both, whatever compresses them. A chunk that the layer has twice is found so, too.
//!
//! Rules
//! - What makes a copy right is the digest in the own table, for which the manifest vouches, as for what is fetched. Nothing of the donor need
//!   be right: that it was evicted, damaged, removed or lied costs a fetch, and never a wrong byte.
//! - Who knows the digest of a chunk that is here is shown it, as he is shown an archive whose diff ID he knows.
//! - The layers are looked through once, by their [lists](crate::store::DigestRecord), when the first chunk is missing; again no sooner than
//!   [`AGAIN`], if the store has other layers then or some had nothing yet. Of many layers those count that have most in common with this one.
//!   Of 1,000 layers of 10,000 chunks each that takes a fraction of a second, of a usual store some milliseconds; who misses something then waits for it.
//! - A donor is open for [`IDLE`] beyond its last use: what is open is neither removed nor the first to be evicted.
//! - What came with a chunk in the archive does not come with a copy. So of a layer that is brought as a whole to be proved, nothing is
//!   copied if its proof needs these bytes; and one that became whole by copies is not proved by itself if most of its blob would be
//!   fetched for that: see [`proof`](super::proof).
//! - All of it is done on threads that may block.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use peelfs_registry::Digest;
use sha2::{Digest as _, Sha256};

use super::content::LayerContent;
use super::delivery::keep_decoded;
use super::index::open_local;
use super::lazy::Lazy;
use crate::layer::chunk::MAXIMUM_CHUNK;
use crate::layer::entry::Chunk;
use crate::meter::{self, Count};
use crate::store::{DigestRecord, LayerDirectory, Seen, Store, StoreError, table_identity};
use crate::table::format::ChunkRecord;
use crate::table::{Codec, Table};

/// Layers that are looked through wholly.
const MOST_LAYERS: usize = 64;
/// Lists that are made at once, of layers that have none. One takes a millisecond.
const MOST_MADE: usize = 64;
/// Chunks of one layer that are remembered as the same as one, and of all layers.
const MOST_ALIKE: usize = 4;
const MOST_OF_CHUNK: usize = 8;
/// Time between two looks, at least; and so many times as long as the last one took.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_TIMES: u32 = 100;
/// Donors that are open at once.
const MOST_OPEN: usize = 8;
/// How long a donor stays open that nobody needs.
const IDLE: Duration = Duration::from_millis(250);

/// Where one layer finds chunks that it lacks.
pub(super) struct Donors {
    store: Arc<Store>,
    /// What the layer itself is kept by.
    name: Digest,
    known: Mutex<Option<Arc<Known>>>,
    /// Held by whoever looks through the layers.
    looking: Mutex<()>,
    open: Mutex<Open>,
}

/// What a look through the layers found.
#[derive(Clone)]
struct Known {
    /// Donors: the layer itself, then the best ones first.
    names: Arc<[Digest]>,
    /// In the order of chunk and donor.
    offers: Arc<[Offer]>,
    /// By what is seen whether there are other layers.
    generation: Vec<Option<SystemTime>>,
    /// Some layers were left out that may be of use another time.
    is_partial: bool,
    at: Instant,
    took: Duration,
}

/// A donor has a chunk that may be the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Offer {
    chunk: u32,
    donor: u32,
    chunk_there: u32,
}

#[derive(Default)]
struct Open {
    /// The ones used last come last; nothing of one that could not be opened.
    layers: Vec<(Digest, Option<Arc<LayerContent>>)>,
    used: Option<Instant>,
    /// A task will close them.
    is_watched: bool,
}

impl Donors {
    /// For the layer that is kept by that name.
    pub(super) fn new(store: Arc<Store>, name: Digest) -> Donors {
        let (known, looking, open) = (Mutex::default(), Mutex::default(), Mutex::default());
        Donors { store, name, known, looking, open }
    }

    /// Whether there may be any. No system call.
    fn may_be(&self) -> bool {
        let known = lock(&self.known);
        known.as_ref().is_none_or(|known| !known.offers.is_empty() || known.is_old())
    }

    /// What is known of them; found out if need be, which may take some milliseconds.
    fn known(&self, content: &LayerContent) -> Arc<Known> {
        let _turn = lock(&self.looking);
        let last = lock(&self.known).clone();
        let generation = match &last {
            Some(known) if !known.is_old() => return known.clone(),
            _ => generation(&self.store),
        };
        let next = match last {
            Some(last) if !last.is_partial && last.generation == generation => {
                Arc::new(Known { at: Instant::now(), ..Known::clone(&last) })
            }
            _ => Arc::new(self.look(content, generation)),
        };
        *lock(&self.known) = Some(next.clone());
        next
    }

    /// Looks through the layers of the store and of those beneath it.
    fn look(&self, content: &LayerContent, generation: Vec<Option<SystemTime>>) -> Known {
        let begun = Instant::now();
        let own = records_of(content.table());
        let mut search = Search::new(&self.name, &own);
        if let Err(error) = search.collect(&self.store) {
            tracing::debug!(layer = %content.layer(), %error, "not all layers can be looked through");
        }
        search.choose();
        let (names, offers) = search.offers();
        let (at, took) = (Instant::now(), begun.elapsed());
        tracing::debug!(layer = %content.layer(), donors = names.len(), chunks = offers.len(), ?took, "looked for layers with the same chunks");
        Known {
            names: names.into(),
            offers: offers.into(),
            generation,
            is_partial: search.is_partial,
            at,
            took,
        }
    }

    /// Copies those of these chunks that a donor has, and gives those that none has.
    fn copy(&self, content: &LayerContent, lazy: &Lazy, wanted: &[u32]) -> Vec<u32> {
        let known = self.known(content);
        let (mut left, mut bytes) = (Vec::new(), 0);
        for number in lazy.awaited_first(content, wanted) {
            match self.copy_one(content, &known, number) {
                Some(length) => {
                    bytes += length;
                    lazy.finish(&[number], Ok(()));
                }
                None => left.push(number),
            }
        }
        let copied = wanted.len() - left.len();
        if copied > 0 {
            tracing::debug!(layer = %content.layer(), chunks = copied, bytes, left = left.len(), "copied from other layers");
        }
        left
    }

    /// Copies one chunk, and gives its length; nothing if that cannot be done.
    fn copy_one(&self, content: &LayerContent, known: &Known, number: u32) -> Option<u64> {
        let record = content.table().chunks().get(number as usize)?;
        let length = record.decoded_length.get();
        if !has_digest_of_content(record) || length > MAXIMUM_CHUNK {
            return None;
        }
        let bytes = known.offers_of(number).iter().find_map(|offer| {
            let name = known.names.get(offer.donor as usize)?;
            if *name == self.name {
                return read_same(content, offer.chunk_there, record);
            }
            read_same(&*self.donor(name)?, offer.chunk_there, record)
        })?;
        // Else a proof would be begun that fetches all of the blob.
        let noted =
            content.note_copies().and_then(|()| keep_decoded(content, number, &Chunk::from(record), &bytes));
        if let Err(error) = noted {
            // Whoever fetches it will say so.
            tracing::debug!(layer = %content.layer(), %error, "a chunk could not be copied");
            return None;
        }
        meter::count(Count::CopiedBytes, length);
        Some(length)
    }

    /// That layer, open; nothing if it is not there any more.
    fn donor(&self, name: &Digest) -> Option<Arc<LayerContent>> {
        let mut open = lock(&self.open);
        open.used = Some(Instant::now());
        let place = open.layers.iter().position(|(other, _)| other == name);
        let layer = match place {
            Some(place) => open.layers.remove(place).1,
            None => open_local(&self.store, name).unwrap_or_else(|error| {
                tracing::debug!(donor = %name, %error, "nothing is copied from a layer");
                None
            }),
        };
        open.layers.push((name.clone(), layer.clone()));
        let too_many = open.layers.len().saturating_sub(MOST_OPEN);
        open.layers.drain(..too_many);
        layer
    }

    /// Whether somebody must see to it that the donors which are open are closed.
    fn begin_to_watch(&self) -> bool {
        let mut open = lock(&self.open);
        !open.layers.is_empty() && !std::mem::replace(&mut open.is_watched, true)
    }

    /// Closes the donors if nobody needed one of late; says whether it did.
    fn close_if_idle(&self) -> bool {
        let mut open = lock(&self.open);
        if open.used.is_some_and(|used| used.elapsed() < IDLE) {
            return false;
        }
        *open = Open::default();
        true
    }
}

impl Known {
    fn is_old(&self) -> bool {
        self.at.elapsed() >= AGAIN.max(self.took.saturating_mul(AGAIN_TIMES))
    }

    fn offers_of(&self, chunk: u32) -> &[Offer] {
        let begin = self.offers.partition_point(|offer| offer.chunk < chunk);
        let rest = &self.offers[begin..];
        &rest[..rest.partition_point(|offer| offer.chunk == chunk)]
    }
}

impl LayerContent {
    /// Whether it may be worth asking other layers for its chunks. No system call.
    pub(super) fn may_have_donors(&self) -> bool {
        self.lazy().and_then(Lazy::donors).is_some_and(Donors::may_be)
    }
}

/// Copies those of these chunks that another layer has; they leave the state of the layer as those that arrive do. Gives those that are to be
/// fetched. They were [claimed](Lazy::claim).
pub(super) async fn bring(content: &Arc<LayerContent>, wanted: Vec<u32>) -> Vec<u32> {
    if wanted.is_empty() || !content.may_have_donors() {
        return wanted;
    }
    let Some(lazy) = content.lazy() else { return wanted };
    // Each has a chunk in memory.
    let _turn = lazy.fetcher().turn_to_copy().await;
    let copying = {
        let (content, wanted) = (content.clone(), wanted.clone());
        tokio::task::spawn_blocking(move || {
            let lazy = content.lazy()?;
            let donors = lazy.donors()?;
            Some((donors.copy(&content, lazy, &wanted), donors.begin_to_watch()))
        })
    };
    let (left, is_to_be_watched) = copying.await.ok().flatten().unzip();
    if is_to_be_watched == Some(true) {
        let weak = Arc::downgrade(content);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE).await;
                let Some(content) = weak.upgrade() else { break };
                if content.lazy().and_then(Lazy::donors).is_none_or(Donors::close_if_idle) {
                    break;
                }
            }
        });
    }
    // It panicked, which was logged: what is here has come, and all else is fetched.
    left.unwrap_or_else(|| {
        let (here, left) = wanted.iter().partition(|number| content.has_chunk(**number as usize));
        let here: Vec<u32> = here;
        lazy.finish(&here, Ok(()));
        left
    })
}

/// The bytes of a donor's chunk, if they are what `wanted` asks for.
fn read_same(donor: &LayerContent, chunk: u32, wanted: &ChunkRecord) -> Option<Vec<u8>> {
    let there = donor.table().chunks().get(chunk as usize)?;
    let is_same = there.digest == wanted.digest && there.decoded_length == wanted.decoded_length;
    if !is_same || !has_digest_of_content(there) || !donor.has_chunk(chunk as usize) {
        return None;
    }
    let mut bytes = vec![0; usize::try_from(wanted.decoded_length.get()).ok()?];
    match donor.peek(there.decoded_offset.get(), &mut bytes) {
        Ok(true) if Sha256::digest(&bytes)[..] == wanted.digest => Some(bytes),
        Ok(true) => {
            tracing::warn!(donor = %donor.layer(), chunk, "what is on the disk of a chunk is not what its digest says; `peel check` tells more");
            None
        }
        // Evicted in this instant, or poisoned.
        Ok(false) => None,
        Err(error) => {
            tracing::debug!(donor = %donor.layer(), chunk, %error, "a chunk cannot be read");
            None
        }
    }
}

fn has_digest_of_content(chunk: &ChunkRecord) -> bool {
    ![Codec::Zeros, Codec::SealedGzipSpan].map(|codec| codec as u8).contains(&chunk.codec)
}

/// The list of a layer's chunks.
fn records_of(table: &Table) -> Vec<DigestRecord> {
    let chunks = (0..).zip(table.chunks()).filter(|(_, chunk)| has_digest_of_content(chunk));
    let mut records: Vec<_> =
        chunks.map(|(number, chunk)| DigestRecord::new(&chunk.digest, number)).collect();
    records.sort_unstable_by_key(|record| (record.prefix.get(), record.chunk.get()));
    records
}

fn generation(store: &Store) -> Vec<Option<SystemTime>> {
    let lower = store.lower().iter().flat_map(|lower| lower.layers().generation());
    store.layers().generation().into_iter().chain(lower).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What a panic leaves behind is whole: each change is one assignment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A layer that may be a donor.
struct Candidate {
    name: Digest,
    place: LayerDirectory,
    seen: Seen,
    is_own_store: bool,
    /// When it was published.
    age: Option<SystemTime>,
}

/// One look through all layers.
struct Search<'a> {
    name: &'a Digest,
    own: &'a [DigestRecord],
    candidates: Vec<Candidate>,
    is_partial: bool,
}

impl<'a> Search<'a> {
    fn new(name: &'a Digest, own: &'a [DigestRecord]) -> Search<'a> {
        Search { name, own, candidates: Vec::new(), is_partial: false }
    }

    /// All other layers of which something is here.
    fn collect(&mut self, store: &Store) -> Result<(), StoreError> {
        let lower = store.lower().iter().map(|lower| (lower.layers(), false));
        for (layers, is_own_store) in std::iter::once((store.layers(), true)).chain(lower) {
            for name in layers.list()? {
                let (place, Ok(name)) = (layers.layer(&name)?, name.parse::<Digest>()) else { continue };
                if name == *self.name {
                    continue;
                }
                let seen = place.seen();
                if !seen.has_any() {
                    self.is_partial = true;
                } else if !self.candidates.iter().any(|other| other.name == name) || is_own_store {
                    let age = place.published_at();
                    self.candidates.push(Candidate { name, place, seen, is_own_store, age });
                }
            }
        }
        Ok(())
    }

    /// Leaves those that have most in common with the layer.
    fn choose(&mut self) {
        if self.candidates.len() <= MOST_LAYERS {
            return;
        }
        self.is_partial = true;
        let ranks: Vec<_> =
            self.candidates.iter().map(|candidate| (self.in_common(candidate), candidate.age)).collect();
        let mut order: Vec<usize> = (0..ranks.len()).collect();
        order.sort_by_key(|place| std::cmp::Reverse(ranks[*place]));
        let mut candidates: Vec<Option<Candidate>> =
            std::mem::take(&mut self.candidates).into_iter().map(Some).collect();
        self.candidates =
            order.into_iter().take(MOST_LAYERS).filter_map(|place| candidates[place].take()).collect();
    }

    /// How many of the chunks in a sample of it the layer has, too, of those that are here. One of which no list is kept counts as one that has something.
    fn in_common(&self, candidate: &Candidate) -> usize {
        let Some(sample) = candidate.place.digest_sample() else { return 1 };
        let mut count = 0;
        join(self.own, &sample, |_, there| count += usize::from(candidate.seen.has(there)));
        count
    }

    /// The donors, and what they offer.
    fn offers(&mut self) -> (Vec<Digest>, Vec<Offer>) {
        let (mut names, mut offers, mut made) = (vec![self.name.clone()], Vec::new(), 0);
        join(self.own, self.own, |chunk, chunk_there| {
            if chunk != chunk_there {
                offers.push(Offer { chunk, donor: 0, chunk_there });
            }
        });
        for candidate in &self.candidates {
            let list = match candidate.place.digests() {
                Some(list) => list,
                None if made < MOST_MADE => {
                    made += 1;
                    let Some(list) = make_list(candidate) else { continue };
                    list
                }
                None => {
                    self.is_partial = true;
                    continue;
                }
            };
            let (donor, before) = (names.len() as u32, offers.len());
            join(self.own, &list, |chunk, chunk_there| offers.push(Offer { chunk, donor, chunk_there }));
            if offers.len() > before {
                names.push(candidate.name.clone());
            }
        }
        offers.sort_unstable();
        let mut of_chunk = 0;
        let mut last = None;
        offers.retain(|offer| {
            of_chunk = if last == Some(offer.chunk) { of_chunk + 1 } else { 1 };
            last = Some(offer.chunk);
            of_chunk <= MOST_OF_CHUNK
        });
        (names, offers)
    }
}

/// The list of a layer of which none is kept, made of its table.
fn make_list(candidate: &Candidate) -> Option<Vec<DigestRecord>> {
    let file = candidate.place.open_table()?;
    let table = Table::open(&file, &table_identity(candidate.name.as_str())).ok()?;
    let records = records_of(&table);
    if candidate.is_own_store
        && let Err(error) = candidate.place.keep_digests(&records)
    {
        tracing::debug!(layer = %candidate.name, %error, "the list of its chunks is not kept");
    }
    Some(records)
}

/// Calls `same` with the chunks of both lists whose digests begin alike; of many that do, with some.
fn join(own: &[DigestRecord], other: &[DigestRecord], mut same: impl FnMut(u32, u32)) {
    let mut rest = other;
    for record in own {
        let prefix = record.prefix.get();
        let skipped = rest.iter().take_while(|there| there.prefix.get() < prefix).count();
        rest = &rest[skipped..];
        let alike = rest.iter().take(MOST_ALIKE).take_while(|there| there.prefix.get() == prefix);
        alike.for_each(|there| same(record.chunk.get(), there.chunk.get()));
    }
}

#[cfg(test)]
#[path = "donors_tests.rs"]
mod tests;
