//! The store's size budget, kept by those who bring bytes.
//!
//! ```text
//! bytes to write ─▶ granted? ─yes─▶ written
//!                      │ no
//!                      ▼           one process at a time (the room's lock)
//!          what does the store take? ── little ─▶ another grant
//!                      │ too much
//!                      ▼
//!        evict: layers that nobody has open, the one unused for longest first;
//!               then of all others the chunks that were not touched since the hand went over them;
//!               then what those who were killed have left of chunks that are not here; then, for a reader, any
//! ```
//!
//! Rules
//! - A grant is a [`GRANTS`]th of the budget. Eviction begins as soon as less than [`SPARE`] grants are left, so as many processes may write
//!   at once without the store's becoming too large; and it frees as many again, so that it is seldom asked for.
//! - Reads go before the budget: if nothing more can go (tables, what is written in mounts, files that the kernel has), a
//!   reader's bytes are written all the same, and the log says so. Bytes of a layer that is streamed are not: the chunks that
//!   they belong to are left missing, and are fetched when somebody reads them.
//! - What is streamed cannot be evicted before it is published, which mounts do not wait for. A reader for whom there is no room waits for it.
//! - Without a budget nothing is measured; that there is one now is noticed after the next grant.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use peelfs_registry::Digest;

use super::content::LayerContent;
use super::index::open_local;
use super::stored::{image_of_manifest, possible_names};
use crate::error::chain;
use crate::store::{LayerState, Store, StoreError};

/// How many grants a budget is.
const GRANTS: u64 = 64;
/// Grants that are left when eviction begins.
const SPARE: u64 = 8;
/// What is left of a disk for others by those whom nobody waits for: one of so many parts of it.
const LEFT: u64 = 64;
/// How long a reader waits for what is being published, on a disk that hangs.
const PUBLISHING: Duration = Duration::from_secs(10);
/// What is granted where there is no budget: bytes.
const UNLIMITED: u64 = 64 << 20;

/// What happens where nothing more can be evicted without hurting somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// A reader waits: warm chunks go, and at last the budget is overrun.
    Reader,
    /// The bytes can be fetched another time.
    Spare,
}

/// Who keeps the budget in this process.
pub struct Room {
    store: Arc<Store>,
    /// Bytes that may still be written before anybody looks.
    granted: AtomicI64,
    /// Bytes that were admitted beside a grant and may not be on the disk yet.
    in_flight: AtomicU64,
    has_budget: AtomicBool,
    /// Whether it was said that the budget cannot be kept.
    was_told: Mutex<bool>,
    /// Layers of this process that are being published.
    publishing: Mutex<usize>,
    published: Condvar,
}

/// A layer is being published, until this is dropped.
#[must_use]
pub(super) struct Publishing(Arc<Room>);

/// The right to write some bytes, until it is dropped.
#[must_use]
pub(super) struct Admitted<'a> {
    room: &'a Room,
    bytes: u64,
}

impl Room {
    /// In that store.
    pub fn new(store: Arc<Store>) -> Room {
        let room = Room {
            store,
            granted: AtomicI64::new(0),
            in_flight: AtomicU64::new(0),
            has_budget: AtomicBool::new(false),
            was_told: Mutex::new(false),
            publishing: Mutex::new(0),
            published: Condvar::new(),
        };
        room.has_budget_now();
        room
    }

    /// To be asked when a layer is whole and before it is published, which takes as long as the disk does.
    pub(super) fn publishing(self: &Arc<Self>) -> Publishing {
        *self.publishing.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Publishing(self.clone())
    }

    fn is_publishing(&self) -> bool {
        *self.publishing.lock().unwrap_or_else(PoisonError::into_inner) > 0
    }

    /// Waits until nothing is being published.
    fn wait_until_published(&self) {
        let publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.published.wait_timeout_while(publishing, PUBLISHING, |publishing| *publishing > 0);
        drop(waited);
    }

    /// Whether there is a budget, so that it matters what was read of late.
    pub(super) fn is_limited(&self) -> bool {
        self.has_budget.load(Ordering::Relaxed)
    }

    /// The same, looked up: for who acts on it seldom, and must not act on what was true when something was last written.
    pub fn has_budget_now(&self) -> bool {
        // If it cannot be read, the first who writes says so.
        let has_budget = self.store.budget().map_or(true, |budget| budget.is_some());
        self.has_budget.store(has_budget, Ordering::Relaxed);
        has_budget
    }

    /// To be asked before so many bytes are written; what it gives is dropped once they are. Nothing: they are not to be written; a reader
    /// is never told so. May take as long as evicting takes.
    pub(super) fn admit(&self, bytes: u64, urgency: Urgency) -> Option<Admitted<'_>> {
        let length = i64::try_from(bytes).unwrap_or(i64::MAX);
        if self.granted.fetch_sub(length, Ordering::Relaxed) >= length {
            return Some(Admitted { room: self, bytes: 0 });
        }
        let mut was_told = self.was_told.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have got a grant meanwhile. What was taken above was not taken from that.
        if self.granted.fetch_sub(length, Ordering::Relaxed) >= length {
            return Some(Admitted { room: self, bytes: 0 });
        }
        let (grant, is_full) = match self.grant(bytes, urgency) {
            Ok(grant) => grant,
            Err(error) => {
                tracing::warn!(store = %self.store.path().display(), error = %chain(&error), "the store's budget cannot be kept");
                (UNLIMITED, false)
            }
        };
        if is_full && !std::mem::replace(&mut *was_told, true) {
            tracing::warn!(store = %self.store.path().display(), "the store's budget is too small for what is in use");
        }
        let is_admitted = !is_full || urgency == Urgency::Reader;
        // Who is refused writes nothing, and nor does the next one before he has asked.
        let grant = if is_admitted { i64::try_from(grant).unwrap_or(i64::MAX) } else { 0 };
        self.granted.store(grant, Ordering::Relaxed);
        is_admitted.then(|| {
            self.in_flight.fetch_add(bytes, Ordering::Relaxed);
            Admitted { room: self, bytes }
        })
    }

    /// To be asked before so many bytes are written that are never evicted. May take as long as evicting takes.
    pub fn has_room_for(&self, bytes: u64) -> bool {
        self.admit(bytes, Urgency::Spare).is_some()
    }

    /// Whether so many bytes can be written beside all that is here, so that nothing need go and the disk is not full then. May take as long as
    /// looking at the store takes.
    pub(super) fn has_space_beside_all(&self, bytes: u64) -> bool {
        let fits = || {
            let space = self.store.space()?;
            if space.available < bytes.saturating_add(space.total / LEFT) {
                return Ok(false);
            }
            let Some(budget) = self.store.budget()? else { return Ok(true) };
            // As much as is left when eviction begins, and a grant for this.
            let spare = budget / GRANTS * (SPARE + 1);
            let taken = self.store.allocated()?.saturating_add(self.in_flight.load(Ordering::Relaxed));
            Ok::<_, StoreError>(taken.saturating_add(bytes).saturating_add(spare) <= budget)
        };
        // Who writes says what is wrong with it.
        fits().unwrap_or(false)
    }

    /// Evicts what is too much, if anything is.
    ///
    /// # Errors
    /// If the store cannot be read or changed.
    pub fn keep(&self) -> Result<(), StoreError> {
        self.grant(0, Urgency::Reader).map(drop)
    }

    /// What may be written beside these bytes until it is asked again, and whether there is no room even for these.
    fn grant(&self, wanted: u64, urgency: Urgency) -> Result<(u64, bool), StoreError> {
        let budget = self.store.budget()?;
        self.has_budget.store(budget.is_some(), Ordering::Relaxed);
        let Some(budget) = budget else { return Ok((UNLIMITED, false)) };
        let grant = budget / GRANTS;
        let under_way = self.in_flight.load(Ordering::Relaxed).saturating_add(wanted);
        let full_at = budget.saturating_sub((grant * SPARE).saturating_add(under_way));
        if urgency == Urgency::Reader && self.is_publishing() && self.store.allocated()? > full_at {
            self.wait_until_published();
        }
        let _lock = self.store.lock_for_room()?;
        let mut taken = self.store.allocated()?;
        if taken > full_at {
            taken = make_room(&self.store, taken, taken - full_at + grant * SPARE, urgency)?;
        }
        Ok((grant, taken > full_at))
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.room.in_flight.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Drop for Publishing {
    fn drop(&mut self) {
        *self.0.publishing.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.published.notify_all();
    }
}

/// Evicts about so many bytes, the coldest first, and gives what the store takes then, of the bytes that it took before. The caller has the
/// room's lock.
fn make_room(store: &Store, before: u64, too_much: u64, urgency: Urgency) -> Result<u64, StoreError> {
    let target = before.saturating_sub(too_much);
    let (idle, used) = candidates(store)?;
    let mut taken = before;
    let mut evict = |layers: &[Digest], choice: Choice| {
        for name in layers {
            // What decoded bytes take on the disk differs from their number (holes, shared blocks), so it is measured.
            while taken > target {
                let Some(content) = open_local(store, name)? else { break };
                match choice {
                    Choice::Leftovers => content.discard_leftovers()?,
                    _ if evict_some(store, name, &content, taken - target, choice)? == 0 => break,
                    _ => {}
                }
                drop(content);
                let now = store.allocated()?;
                if now >= taken {
                    break;
                }
                taken = now;
            }
        }
        Ok::<_, StoreError>(())
    };
    evict(&idle, Choice::Any)?;
    evict(&used, Choice::Cold)?;
    evict(&idle, Choice::Leftovers)?;
    evict(&used, Choice::Leftovers)?;
    if urgency == Urgency::Reader {
        evict(&used, Choice::Any)?;
    }
    Ok(taken)
}

/// Layers that hold something: those that nobody has open, the one that was unused for longest first, and the others likewise.
fn candidates(store: &Store) -> Result<(Vec<Digest>, Vec<Digest>), StoreError> {
    let mut last_used: HashMap<String, i64> = HashMap::new();
    if !store.database().is_missing()? {
        for image in store.database().images()? {
            let Ok(manifest) = image.manifest_digest.parse() else { continue };
            let Some(stored) = image_of_manifest(store, &manifest)? else { continue };
            for name in possible_names(store, &stored)?.into_iter().flatten() {
                let used = last_used.entry(name.to_string()).or_default();
                *used = (*used).max(image.last_used);
            }
        }
    }
    let (mut idle, mut used) = (Vec::new(), Vec::new());
    for name in store.layers().list()? {
        let place = store.layers().layer(&name)?;
        let Ok(digest) = name.parse::<Digest>() else { continue };
        // What no image has was left by one that is forgotten.
        let age = last_used.get(&name).copied().unwrap_or(0);
        if place.allocated_content()? == 0 {
            continue;
        }
        if place.is_in_use()? { used.push((age, digest)) } else { idle.push((age, digest)) }
    }
    let in_order = |mut layers: Vec<(i64, Digest)>| {
        layers.sort_by(|one, other| (one.0, one.1.as_str()).cmp(&(other.0, other.1.as_str())));
        layers.into_iter().map(|(_, name)| name).collect()
    };
    Ok((in_order(idle), in_order(used)))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// What is on the disk of chunks that are not here. It is looked for when little else can go, as it takes a look at all of a layer.
    Leftovers,
    /// Chunks that were not touched since the hand went over them.
    Cold,
    Any,
}

/// Evicts chunks of about so many bytes, from the hand on; gives how many there were.
fn evict_some(
    store: &Store,
    name: &Digest,
    content: &LayerContent,
    bytes: u64,
    choice: Choice,
) -> Result<u64, StoreError> {
    let chunks = content.evictable(bytes, choice == Choice::Any);
    if chunks.is_empty() {
        return Ok(0);
    }
    // Before: a record that promises too much is worse than one that promises too little.
    forget_extraction(store, name)?;
    content.evict_chunks(chunks)
}

/// Records that a layer is not wholly here any more.
fn forget_extraction(store: &Store, name: &Digest) -> Result<(), StoreError> {
    let database = store.database();
    if database.is_missing()? {
        return Ok(());
    }
    match database.find_layer(name.as_str())? {
        Some(layer) if matches!(layer.state, LayerState::Extracted | LayerState::Partial) => {
            match database.set_layer_state(name.as_str(), LayerState::Lazy) {
                // Not as bad as a disk that stays full.
                Err(error) if !error.is_full() => Err(error),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_without_room_waits_for_what_is_being_published_and_nobody_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        store.set_budget(Some(1)).unwrap();
        let room = Arc::new(Room::new(store));
        let publishing = room.publishing();
        assert!(room.admit(1, Urgency::Spare).is_none());
        let (sender, admitted) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let room = &room;
            scope.spawn(move || sender.send(room.admit(1, Urgency::Reader).is_some()).unwrap());
            assert!(admitted.recv_timeout(Duration::from_millis(300)).is_err(), "it waits");
            drop(publishing);
            assert_eq!(admitted.recv_timeout(Duration::from_secs(60)), Ok(true));
        });
    }

    #[test]
    fn those_who_wait_for_a_grant_together_are_not_all_admitted_by_it() {
        const THREADS: u64 = 24;
        const LENGTH: u64 = 1 << 20;
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(directory.path()).unwrap());
        store.set_budget(Some(8 * LENGTH)).unwrap();
        let room = Room::new(store.clone());
        let (room, admitted) = (&room, AtomicU64::new(0));
        let (lock, done) = (store.lock_for_room().unwrap(), std::sync::Barrier::new(THREADS as usize));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let right = room.admit(LENGTH, Urgency::Spare);
                    admitted.fetch_add(right.is_some().into(), Ordering::Relaxed);
                    // Nobody has written anything before all were told.
                    done.wait();
                });
            }
            // Until all have found that there is no grant for them.
            while room.granted.load(Ordering::Relaxed) > -((THREADS * LENGTH) as i64) {
                std::thread::yield_now();
            }
            drop(lock);
        });
        assert!((1..8).contains(&admitted.load(Ordering::Relaxed)), "{admitted:?}");
    }
}
