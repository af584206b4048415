//! Refs: counted handles that keep records.
//!
//! Taking a ref writes a row, in the transaction that finds the record; a clone shares the row; the last clone's release removes
//! it, in the transaction that counts who else holds the record. So a record cannot vanish between being found and being held, in
//! whatever process.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Attempt, Cache, CacheError, now, refuse};
use crate::error::chain;
use crate::store::Access;
use crate::store::record_tables::{CacheRecord, RecordId, RecordTables, RefRow, Retention, TableResult};

/// Why a ref is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To use the record: when the last ref like this is released, that is when it was last used.
    Use,
    /// To look at it, which does not make it worth keeping.
    Look,
}

/// A row of the table of refs, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    cache: Cache,
    number: i64,
    record: RecordId,
    is_mutable: bool,
    is_released: bool,
}

impl Held {
    /// The record as it is now.
    fn present(&self) -> Result<CacheRecord, CacheError> {
        self.cache.read("look at a record", |tables| present(tables, &self.record))
    }

    fn release(&mut self) -> Result<(), CacheError> {
        self.release_and(|_| Ok(()))
    }

    /// Releases it, and does something else in the same transaction.
    fn release_and(&mut self, also: impl Fn(&RecordTables<'_>) -> TableResult<()>) -> Result<(), CacheError> {
        if std::mem::replace(&mut self.is_released, true) {
            return Ok(());
        }
        let (session, now) = (&self.cache.session().id, now());
        // A mutable record may be marked by it, which must be on disk before its data go.
        let access = if self.is_mutable { Access::WriteDurably } else { Access::Write };
        let released = self.cache.transact("release a ref", access, |tables| {
            also(tables)?;
            let Some(row) = tables.remove_ref(self.number, session, &self.record)? else { return Ok(None) };
            tables.remove_idle_session(session)?;
            Ok(after_release(tables, &row, now, now)?)
        });
        let marked = released.inspect_err(|_| self.cache.session_is_stuck())?;
        marked.map_or(Ok(()), |marked| self.cache.finish_removal(&marked).map(|_| ()))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!(record = %self.record, error = %chain(&error), "a ref stays until its session is over");
        }
    }
}

/// What follows from the release of a ref, whose row is gone: the record's last use, and the mark on a mutable record that nothing
/// keeps any more. Gives the record that was marked.
pub(super) fn after_release(
    tables: &RecordTables<'_>,
    row: &RefRow,
    last_use: i64,
    now: i64,
) -> TableResult<Option<RecordId>> {
    let Some(mut record) = tables.record(&row.record)? else { return Ok(None) };
    let others = tables.refs_of_record(&row.record)?;
    if row.is_use && !others.iter().any(|other| other.is_use) {
        record.last_used = record.last_used.max(Some(last_use));
        record.use_count = record.use_count.saturating_add(1);
        tables.update_record(&record)?;
    }
    Ok(mark_if_abandoned(tables, &record, now)?.then_some(record.id))
}

/// Marks a mutable record that nobody retains and nothing keeps; false if it is none.
pub(super) fn mark_if_abandoned(
    tables: &RecordTables<'_>,
    record: &CacheRecord,
    now: i64,
) -> TableResult<bool> {
    let is_abandoned = is_abandoned(tables, record, now)?;
    if is_abandoned {
        tables.update_record(&CacheRecord { is_deleted: true, ..record.clone() })?;
    }
    Ok(is_abandoned)
}

/// Whether a record is mutable, nobody retains it, and nothing keeps it.
pub(super) fn is_abandoned(tables: &RecordTables<'_>, record: &CacheRecord, now: i64) -> TableResult<bool> {
    if !record.is_mutable || record.is_deleted || record.retention == Retention::Retain {
        return Ok(false);
    }
    let immutable = tables.equal_immutable(&record.id)?.map(|id| tables.record(&id)).transpose()?.flatten();
    let is_of_a_pair = immutable.is_some_and(|immutable| !immutable.is_deleted);
    Ok(!is_of_a_pair && tables.uses(&record.id, now)?.is_none())
}

/// Keeps an immutable record. Clones are of the same ref; it is released when the last of them is dropped.
#[derive(Clone, Debug)]
pub struct ImmutableRef {
    held: Arc<Held>,
}

impl ImmutableRef {
    /// The record's name.
    pub fn id(&self) -> &RecordId {
        &self.held.record
    }

    /// The record as it is now.
    pub fn record(&self) -> Result<CacheRecord, CacheError> {
        self.held.present()
    }

    /// Where it is from.
    pub fn cache(&self) -> &Cache {
        &self.held.cache
    }

    /// What was written, if the record is of a snapshot: in the form of an overlay's upper directory. Finalizes the record, so that the
    /// path stays what it is.
    pub fn fs(&self) -> Result<Option<PathBuf>, CacheError> {
        self.finalize()?;
        let snapshot = self.record()?.snapshot;
        Ok(snapshot.map(|snapshot| self.cache().store().snapshots().fs(&snapshot)))
    }

    /// Releases it, as [`release`](Self::release), and forgets the mount at that directory, if it is still the one of that process.
    pub fn end_mount(self, mountpoint: &Path, pid: u32) -> Result<(), CacheError> {
        let cache = self.cache().clone();
        let forget = |tables: &RecordTables<'_>| tables.forget_mount(mountpoint, pid);
        match Arc::into_inner(self.held) {
            Some(mut held) => held.release_and(forget),
            None => cache.write("forget a mount", |tables| Ok(forget(tables)?)),
        }
    }

    /// Releases it, unless there are other clones. Dropping it does the same, but cannot tell of errors.
    pub fn release(self) -> Result<(), CacheError> {
        Arc::into_inner(self.held).map_or(Ok(()), |mut held| held.release())
    }
}

/// Keeps a mutable record, for its only user.
#[derive(Debug)]
pub struct MutableRef {
    held: Held,
}

impl MutableRef {
    /// The record's name.
    pub fn id(&self) -> &RecordId {
        &self.held.record
    }

    /// The record as it is now.
    pub fn record(&self) -> Result<CacheRecord, CacheError> {
        self.held.present()
    }

    /// Where it is from.
    pub fn cache(&self) -> &Cache {
        &self.held.cache
    }

    /// Where to write: the upper directory of an overlay.
    pub fn fs(&self) -> PathBuf {
        self.cache().store().snapshots().fs(self.id())
    }

    /// The work directory of the overlay.
    pub fn work(&self) -> PathBuf {
        self.cache().store().snapshots().work(self.id())
    }

    /// Releases it. If the record is not to be retained, it and what was written are removed.
    pub fn release(mut self) -> Result<(), CacheError> {
        self.held.release()
    }

    /// The row of this ref, which keeps another record from now on.
    pub(super) fn into_immutable(mut self, record: RecordId) -> ImmutableRef {
        self.held.is_released = true;
        let (cache, number) = (self.held.cache.clone(), self.held.number);
        ImmutableRef { held: Arc::new(Held { cache, number, record, is_mutable: false, is_released: false }) }
    }

    pub(super) fn number(&self) -> i64 {
        self.held.number
    }
}

impl Cache {
    /// Writes the row of a ref.
    pub(super) fn hold(
        &self,
        tables: &RecordTables<'_>,
        record: &RecordId,
        is_mutable: bool,
        purpose: Purpose,
    ) -> TableResult<i64> {
        // It is not there if this is the first ref, or if the database was damaged and begun anew.
        tables.ensure_session(self.session())?;
        tables.add_ref(&RefRow {
            id: 0,
            session: self.session().id.clone(),
            record: record.clone(),
            is_mutable,
            is_use: purpose == Purpose::Use,
            since: now(),
        })
    }

    pub(super) fn immutable_ref(&self, number: i64, record: RecordId) -> ImmutableRef {
        ImmutableRef { held: Arc::new(self.held(number, record, false)) }
    }

    pub(super) fn mutable_ref(&self, number: i64, record: RecordId) -> MutableRef {
        MutableRef { held: self.held(number, record, true) }
    }

    fn held(&self, number: i64, record: RecordId, is_mutable: bool) -> Held {
        Held { cache: self.clone(), number, record, is_mutable, is_released: false }
    }
}

/// What a record was made of.
pub(super) fn present_parent(
    tables: &RecordTables<'_>,
    record: &RecordId,
    parent: &RecordId,
) -> Attempt<CacheRecord> {
    match tables.record(parent)? {
        Some(found) if !found.is_deleted => Ok(found),
        _ => refuse(CacheError::ParentGone { record: record.clone(), parent: parent.clone() }),
    }
}

/// The record of that id, unless it is being removed.
pub(super) fn present(tables: &RecordTables<'_>, id: &RecordId) -> Attempt<CacheRecord> {
    match tables.record(id)? {
        Some(record) if !record.is_deleted => Ok(record),
        _ => refuse(CacheError::unknown(id)),
    }
}
