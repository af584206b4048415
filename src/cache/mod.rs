//! Cache records and refs: which layers there are, how they lie on each other, who holds them, and what may be done with them.
//! Everything here is metadata: no layer's bytes are copied, and none are fetched.
//!
//! ```text
//!                    get_by_blob                    merge, diff
//!                        │                               │
//!  new_mutable ──▶ mutable ──commit──▶ pair ──finalize──▶ immutable ──remove──▶ marked ──▶ gone
//!                     ▲                 │
//!                     └── get_mutable ──┘   while nobody holds the pair
//! ```
//!
//! A record is *immutable*, or *mutable* and held by one alone. `commit` only writes a record: the data stay in the mutable one's
//! snapshot, and the two are a *pair* until `finalize` gives the snapshot to the immutable one. What is to last (a child, a merge, a
//! name, a lease) finalizes first, so a pair is held by refs alone.
//!
//! Rules
//! - A record stays while a ref, a child, a name or a lease keeps it. Refs are counted in the database, across processes; those of
//!   a session that is over count no more ([`crate::store::Session`]).
//! - A record is removed in three steps: marked (and on disk), its data removed, its row removed. Marked, nobody finds it. Whoever
//!   opens the cache next finishes what was interrupted, and likewise a finalization.
//! - Data that were written without being brought to disk (pairs, volatile records) are bound to the boot of the machine in
//!   which that was: after another, they are removed. A child of a volatile record is volatile.
//! - How much of a layer is here its directory says, and never the database ([`LayerState`](crate::store::LayerState)).
//! - Data are shared between records only if they were proved to have the diff ID: else an image could put its own content into
//!   another that claims the same layer.

mod apply;
mod blob;
mod check;
mod compose;
pub mod digests;
mod error;
mod image;
mod items;
mod leases;
mod lookup;
mod named;
pub mod prune;
mod recover;
mod refs;
mod remove;
mod truth;
mod usage;
mod walk;
mod writable;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::store::record_tables::{RecordId, RecordTables, SessionRow};
use crate::store::{Access, Session, Stop, Store};

pub use apply::{Application, AppliedLayer, LayerSource, MAXIMUM_APPLICATIONS, leaves};
pub use blob::LayerDescription;
pub use check::RecordReport;
pub use digests::{chain_id, link};
pub use error::CacheError;
pub use image::{BroughtImage, layer_names};
pub use items::MAXIMUM_ITEM;
pub use lookup::Key;
pub use named::{NamedSnapshot, Unnamed};
pub use recover::Recovered;
pub use refs::{ImmutableRef, MutableRef, Purpose};
pub use truth::layer_states;
pub use usage::{Beside, DataPart, Usage, total_bytes};
pub use walk::LayerDigests;
pub use writable::{NewMutable, NotCommitted};

/// What a transaction of the cache gives.
type Attempt<T> = Result<T, Stop<CacheError>>;

/// The cache records of a store, open for one session. Cheap to clone; the clones and all refs are of the same session.
#[derive(Clone, Debug)]
pub struct Cache {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    session: SessionRow,
    boot: String,
    /// Whether a ref could not be released.
    is_stuck: AtomicBool,
    /// What is being measured, for those who ask meanwhile.
    sizes: Mutex<HashMap<RecordId, usage::Measurement>>,
    // Last, so that it is freed once the session's row is gone.
    _lock: Session,
}

impl Cache {
    /// Opens the cache records of a store, and finishes what processes that are gone have left unfinished.
    pub fn open(store: Arc<Store>) -> Result<Cache, CacheError> {
        let cache = Cache::open_as_it_is(store)?;
        cache.recover()?;
        Ok(cache)
    }

    /// The same without looking at what others have left: for who is in haste, and does it afterwards ([`Cache::recover`]), or only
    /// looks.
    pub fn open_as_it_is(store: Arc<Store>) -> Result<Cache, CacheError> {
        let lock = store.begin_session()?;
        let session = SessionRow { id: lock.id().to_owned(), pid: std::process::id(), began_at: now() };
        let boot = store.boot()?;
        let sizes = Mutex::new(HashMap::new());
        let is_stuck = AtomicBool::new(false);
        Ok(Cache { inner: Arc::new(Inner { store, session, boot, is_stuck, sizes, _lock: lock }) })
    }

    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    fn session(&self) -> &SessionRow {
        &self.inner.session
    }

    /// The session's row stays after its last ref.
    fn session_is_stuck(&self) {
        self.inner.is_stuck.store(true, Ordering::Relaxed);
    }

    fn boot(&self) -> &str {
        &self.inner.boot
    }

    fn transact<T>(
        &self,
        operation: &'static str,
        access: Access,
        work: impl FnMut(&RecordTables<'_>) -> Attempt<T>,
    ) -> Result<T, CacheError> {
        self.store().database().with_records(operation, access, work)
    }

    fn read<T>(
        &self,
        operation: &'static str,
        work: impl FnMut(&RecordTables<'_>) -> Attempt<T>,
    ) -> Result<T, CacheError> {
        self.transact(operation, Access::Read, work)
    }

    fn write<T>(
        &self,
        operation: &'static str,
        work: impl FnMut(&RecordTables<'_>) -> Attempt<T>,
    ) -> Result<T, CacheError> {
        self.transact(operation, Access::Write, work)
    }

    fn write_durably<T>(
        &self,
        operation: &'static str,
        work: impl FnMut(&RecordTables<'_>) -> Attempt<T>,
    ) -> Result<T, CacheError> {
        self.transact(operation, Access::WriteDurably, work)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // All refs hold the cache, so there are none any more, and the row went with the last.
        if !self.is_stuck.load(Ordering::Relaxed) {
            return;
        }
        let ended: Result<(), CacheError> =
            self.store.database().with_records("end a session", Access::Write, |tables| {
                Ok(tables.remove_session(&self.session.id)?)
            });
        if let Err(error) = ended {
            tracing::warn!(%error, "the session stays on record until the next is begun");
        }
    }
}

/// Ends a transaction with an error of ours.
fn refuse<T>(error: impl Into<CacheError>) -> Attempt<T> {
    Err(Stop::Refused(error.into()))
}

/// Has an error from outside the database end a transaction.
fn or_refuse<T>(result: Result<T, impl Into<CacheError>>) -> Attempt<T> {
    result.map_err(|error| Stop::Refused(error.into()))
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}

#[cfg(test)]
mod tests;
