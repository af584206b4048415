//! Mutable records, and how they become immutable.
//!
//! ```text
//!              record of M      record of I              snapshots/M   snapshots/I
//! new_mutable  mutable                                   there
//! commit       mutable          equal_mutable = M        there                       one transaction
//! finalize     (gone)           snapshot = I                           there         a rename, within the transaction
//! ```
//!
//! A crash between the rename and the end of its transaction leaves `equal_mutable = M` and `snapshots/I`: opening the cache ends what was
//! begun. No other process sees it meanwhile, as nobody else writes. Before, what was written is brought to disk.

use super::refs::{ImmutableRef, MutableRef, Purpose, present};
use super::remove::{keepers, pair_of};
use super::{Attempt, Cache, CacheError, now, or_refuse, refuse};
use crate::store::record_tables::{
    CacheRecord, ItemPlace, RecordId, RecordKind, RecordTables, RecordType, Retention,
};
use crate::store::{Access, LayerState, NewSnapshot, Snapshots, StoreError};

/// What a new mutable record is.
#[derive(Clone, Debug)]
pub struct NewMutable {
    /// What it is, for people.
    pub description: String,
    /// What it is for.
    pub record_type: RecordType,
    /// Whether it outlives its ref.
    pub retention: Retention,
    /// Whether it is never brought to disk: faster, and lost with a crash of the machine. So is what is made of it.
    pub is_volatile: bool,
}

impl Default for NewMutable {
    fn default() -> NewMutable {
        NewMutable {
            description: String::new(),
            record_type: RecordType::Regular,
            retention: Retention::Default,
            is_volatile: false,
        }
    }
}

impl Cache {
    /// An empty mutable record on a parent, or on nothing.
    pub fn new_mutable(
        &self,
        parent: Option<&ImmutableRef>,
        new: &NewMutable,
    ) -> Result<MutableRef, CacheError> {
        self.record_mutable(parent, new, |id| self.store().snapshots().create(id), |_, _| Ok(()))
    }

    /// The same with a snapshot that `make` makes; `also` is done in the transaction that records it.
    pub(super) fn record_mutable(
        &self,
        parent: Option<&ImmutableRef>,
        new: &NewMutable,
        make: impl FnOnce(&RecordId) -> Result<NewSnapshot, StoreError>,
        also: impl Fn(&RecordTables<'_>, &RecordId) -> Attempt<()>,
    ) -> Result<MutableRef, CacheError> {
        if let Some(parent) = parent {
            parent.finalize()?;
        }
        let id = RecordId::random()?;
        let snapshot = make(&id)?;
        let kind =
            parent.map_or(RecordKind::Base, |parent| RecordKind::Layer { parent: parent.id().clone() });
        let mut record = CacheRecord::new(id.clone(), kind, now());
        record.description.clone_from(&new.description);
        (record.record_type, record.retention) = (new.record_type, new.retention);
        (record.snapshot, record.is_mutable) = (Some(id.clone()), true);
        record.state = LayerState::Extracted;
        let written = self.transact("record a mutable snapshot", durability(new.is_volatile), |tables| {
            let mut record = record.clone();
            let parent = parent.map(|parent| present(tables, parent.id())).transpose()?;
            record.is_volatile = new.is_volatile || parent.is_some_and(|parent| parent.is_volatile);
            record.boot = record.is_volatile.then(|| self.boot().to_owned());
            tables.insert_record(&record)?;
            also(tables, &id)?;
            Ok(self.hold(tables, &id, true, Purpose::Use)?)
        });
        // Without a record, the snapshot is removed when the cache is next opened.
        drop(snapshot);
        Ok(self.mutable_ref(written?, id))
    }

    /// The mutable record of that id, or that of the pair of which it is the immutable one. The immutable one is then no more.
    ///
    /// # Errors
    /// [`CacheError::InUse`] if somebody holds it, or the immutable one; [`CacheError::Immutable`]; [`CacheError::Unknown`].
    pub fn get_mutable(&self, id: &RecordId) -> Result<MutableRef, CacheError> {
        let (number, id, files) = self.unless_held_by_the_dead(|| {
            self.write("take a mutable record", |tables| {
                let (mutable, files) = separate(tables, id)?;
                Ok((self.hold(tables, &mutable, true, Purpose::Use)?, mutable, files))
            })
        })?;
        for file in files {
            self.store().items().remove(&file)?;
        }
        Ok(self.mutable_ref(number, id))
    }
}

/// The mutable record that is meant, without the immutable one of its pair, and the files that this one had.
fn separate(tables: &RecordTables<'_>, id: &RecordId) -> Attempt<(RecordId, Vec<String>)> {
    let pair = pair_of(tables, present(tables, id)?)?;
    let Some(mutable) = pair.iter().find(|record| record.is_mutable) else {
        return refuse(CacheError::Immutable { record: id.clone() });
    };
    for record in &pair {
        // Leases and names keep a mutable record, but from being removed only.
        let uses = tables.uses(&record.id, now())?;
        let is_held = uses.refs + uses.children > 0;
        if is_held || (!record.is_mutable && uses.leases + uses.names > 0) {
            let by = keepers(tables, &record.id, now())?;
            return refuse(CacheError::InUse { record: record.id.clone(), by });
        }
    }
    let mut files = Vec::new();
    for immutable in pair.iter().filter(|record| !record.is_mutable) {
        let items = tables.items(&immutable.id)?.into_iter();
        files.extend(items.filter_map(|item| match item.place {
            ItemPlace::File(file) => Some(file),
            ItemPlace::Bytes(_) => None,
        }));
        tables.remove_record(&immutable.id)?;
    }
    Ok((mutable.id.clone(), files))
}

/// A record that could not be committed, and can still be written to.
#[derive(Debug, thiserror::Error)]
#[error("record {} is not committed, and still mutable", mutable.id())]
pub struct NotCommitted {
    /// The ref on it.
    pub mutable: MutableRef,
    /// Why not.
    #[source]
    pub cause: CacheError,
}

impl MutableRef {
    /// Makes an immutable record of what was written, without touching it. Nobody may write to it any more.
    ///
    /// # Errors
    /// [`NotCommitted`], with the ref: what was written is not lost.
    pub fn commit(self) -> Result<ImmutableRef, Box<NotCommitted>> {
        match self.record_commit() {
            Ok(immutable) => Ok(self.into_immutable(immutable)),
            Err(cause) => Err(Box::new(NotCommitted { mutable: self, cause })),
        }
    }

    fn record_commit(&self) -> Result<RecordId, CacheError> {
        let (cache, id, now) = (self.cache(), RecordId::random()?, now());
        // Whether it is on disk does not matter: after a crash of the machine, an unfinalized pair counts as not committed.
        cache.write("commit a record", |tables| {
            let mutable = present(tables, self.id())?;
            let mut immutable = CacheRecord { id: id.clone(), created_at: now, ..mutable.clone() };
            (immutable.last_used, immutable.use_count) = (None, 0);
            (immutable.snapshot, immutable.equal_mutable) = (None, Some(mutable.id.clone()));
            (immutable.is_mutable, immutable.retention) = (false, Retention::Default);
            (immutable.size, immutable.boot) = (None, Some(cache.boot().to_owned()));
            tables.insert_record(&immutable)?;
            if !tables.turn_ref(self.number(), &cache.session().id, self.id(), &id)? {
                return refuse(CacheError::unknown(self.id()));
            }
            Ok(())
        })?;
        Ok(id)
    }
}

impl ImmutableRef {
    /// Gives the record its own snapshot, if it is of a pair; the mutable one is then no more. What was written is on disk when
    /// this returns, unless it is volatile.
    pub fn finalize(&self) -> Result<(), CacheError> {
        let (cache, record) = (self.cache(), self.record()?);
        let Some(mutable) = &record.equal_mutable else { return Ok(()) };
        let snapshots = cache.store().snapshots();
        if !record.is_volatile {
            // If it is not there, its name was changed before, and it was brought to disk before that.
            snapshots.bring_to_disk(mutable)?;
        }
        cache.transact("finalize a record", durability(record.is_volatile), |tables| {
            finalize_in(tables, snapshots, present(tables, self.id())?)
        })
    }
}

/// Gives a record of a pair its own snapshot, or ends what was begun.
pub(super) fn finalize_in(
    tables: &RecordTables<'_>,
    snapshots: &Snapshots,
    mut record: CacheRecord,
) -> Attempt<()> {
    let Some(mutable) = record.equal_mutable.take() else { return Ok(()) };
    if !or_refuse(snapshots.rename(&mutable, &record.id))? && !or_refuse(snapshots.has(&record.id))? {
        let reason = "its snapshot is gone";
        return refuse(CacheError::WithoutData { record: record.id, reason });
    }
    record.snapshot = Some(record.id.clone());
    if !record.is_volatile {
        record.boot = None;
    }
    tables.update_record(&record)?;
    tables.move_leases(&mutable, &record.id)?;
    tables.move_names(&mutable, &record.id)?;
    Ok(tables.remove_record(&mutable)?)
}

fn durability(is_volatile: bool) -> Access {
    if is_volatile { Access::Write } else { Access::WriteDurably }
}
