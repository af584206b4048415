//! What processes that are gone have left: looked for when the cache is opened, by everyone who does. Each step may be done by
//! several at once, and again.
//!
//! | left behind | becomes |
//! | --- | --- |
//! | refs of a session that is over | last uses; mutable records that nobody retains are removed |
//! | a finalization between rename and commit | a finalized record |
//! | a pair of an earlier boot | the mutable record alone: what was committed need not be on disk |
//! | a volatile record of an earlier boot | nothing, nor what was made of it |
//! | a mutable record whose lease has expired | nothing, unless it is retained |
//! | a marked record | nothing |
//! | a snapshot without a record, empty | nothing |
//! | the same with something in it (the database was damaged, or an earlier version left it) | a mutable record, retained; if it is noted of which image it is and what it is called, on that image, and with that name |
//! | a snapshot that its record has given up for a layer | nothing |
//! | a file of no record, a plain directory of none | nothing |

use std::cmp::Reverse;

use super::named::is_given_up;
use super::refs::{after_release, is_abandoned};
use super::writable::finalize_in;
use super::{Attempt, Cache, CacheError, now, or_refuse};
use crate::error::chain;
use crate::store::Leftover;
use crate::store::record_tables::{CacheRecord, RecordId, RecordTables};

/// What was done about what others left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Sessions that are over.
    pub sessions: u64,
    /// Pairs whose finalization was ended.
    pub finalized: u64,
    /// Records whose data need not be whole since the machine went down.
    pub lost: u64,
    /// Marked records that are gone.
    pub removed: u64,
    /// Snapshots that got a record again.
    pub adopted: u64,
}

impl Cache {
    /// Finishes what processes that are gone have left unfinished. Done by [`Cache::open`]; what runs for days does it now and
    /// then.
    pub fn recover(&self) -> Result<Recovered, CacheError> {
        // The order is that of the table: a finalized record is of no boot, and what is marked on the way is removed.
        let sessions = self.end_dead_sessions()?;
        let finalized = self.end_finalizations()?;
        let lost = self.mark_lost()?;
        self.mark_abandoned()?;
        let removed = self.finish_removals()?;
        let adopted = self.look_at_snapshots()?;
        self.remove_files_of_no_record()?;
        self.remove_directories_of_no_record()?;
        let recovered = Recovered { sessions, finalized, lost, removed, adopted };
        if recovered != Recovered::default() {
            tracing::info!(?recovered, "what other processes left unfinished is finished");
        }
        Ok(recovered)
    }

    /// Gives up what sessions held that are over, and gives their number. Whether one is, the kernel says, who frees its lock: who counts
    /// refs, as those of mounts, does this first.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn end_dead_sessions(&self) -> Result<u64, CacheError> {
        let sessions = self.read("list the sessions", |tables| Ok(tables.sessions()?))?;
        let mut ended = 0;
        for session in sessions {
            if session.id == self.session().id || !self.store().session_is_over(&session.id)? {
                continue;
            }
            let marked = self.write_durably("end a session", |tables| {
                let mut marked = Vec::new();
                for row in tables.refs_of_session(&session.id)? {
                    tables.remove_ref(row.id, &session.id, &row.record)?;
                    // When it ended nobody knows.
                    marked.extend(after_release(tables, &row, row.since, now())?);
                }
                tables.remove_session(&session.id)?;
                Ok(marked)
            })?;
            for id in &marked {
                self.finish_removal(id)?;
            }
            ended += 1;
        }
        Ok(ended)
    }

    fn end_finalizations(&self) -> Result<u64, CacheError> {
        // First without keeping others from writing. One that another is about to end looks cut off, too, until it writes.
        if self.read("look for finalizations", |tables| self.cut_off(tables))?.is_empty() {
            return Ok(0);
        }
        self.write_durably("end finalizations", |tables| {
            let found = self.cut_off(tables)?;
            let count = found.len() as u64;
            for record in found {
                finalize_in(tables, self.store().snapshots(), record)?;
            }
            Ok(count)
        })
    }

    /// The records whose snapshot has its name already.
    fn cut_off(&self, tables: &RecordTables<'_>) -> Attempt<Vec<CacheRecord>> {
        let snapshots = self.store().snapshots();
        let mut found = Vec::new();
        for record in tables.records()?.into_iter().filter(|record| !record.is_deleted) {
            if let Some(mutable) = &record.equal_mutable
                && or_refuse(snapshots.has(&record.id))?
                && !or_refuse(snapshots.has(mutable))?
            {
                found.push(record);
            }
        }
        Ok(found)
    }

    /// Marks what was not brought to disk before the machine went down.
    fn mark_lost(&self) -> Result<u64, CacheError> {
        let is_lost = |record: &CacheRecord| {
            !record.is_deleted && record.boot.as_deref().is_some_and(|boot| boot != self.boot())
        };
        let any = self.read("look for lost records", |tables| Ok(tables.records()?.iter().any(is_lost)))?;
        if !any {
            return Ok(0);
        }
        self.write_durably("mark lost records", |tables| {
            let mut lost = 0;
            for mut record in tables.records()?.into_iter().filter(is_lost) {
                tables.remove_names_of(&record.id)?;
                record.is_deleted = true;
                tables.update_record(&record)?;
                lost += 1;
            }
            Ok(lost)
        })
    }

    /// Marks mutable records that nothing keeps since a lease has expired, or since the machine took the immutable one of the pair.
    pub(super) fn mark_abandoned(&self) -> Result<(), CacheError> {
        let now = now();
        let abandoned = |tables: &RecordTables<'_>| -> Attempt<Vec<CacheRecord>> {
            let mut abandoned = Vec::new();
            for record in tables.records()? {
                if is_abandoned(tables, &record, now)? {
                    abandoned.push(record);
                }
            }
            Ok(abandoned)
        };
        if self.read("look for abandoned records", abandoned)?.is_empty() {
            return Ok(());
        }
        self.write_durably("mark abandoned records", |tables| {
            for record in abandoned(tables)? {
                tables.update_record(&CacheRecord { is_deleted: true, ..record })?;
            }
            Ok(())
        })
    }

    pub(super) fn look_at_snapshots(&self) -> Result<u64, CacheError> {
        let snapshots = self.store().snapshots();
        let (mut adopted, mut lost) = (0, Vec::new());
        for id in snapshots.list()? {
            if self.read("look for a snapshot that was given up", |tables| is_given_up(tables, &id))? {
                snapshots.remove(&id)?;
                continue;
            }
            if self.has_snapshot_record(&id)?
                || snapshots.remove_leftover(&id, || self.has_snapshot_record(&id))? != Leftover::Filled
            {
                continue;
            }
            // One whose note cannot be read comes back without a name; what is in it is there.
            let note = snapshots.note(&id).unwrap_or_else(|error| {
                tracing::warn!(record = %id, error = %chain(&error), "what was noted of a snapshot is lost");
                None
            });
            lost.push((note.as_ref().map_or(0, |note| note.origin.generation), id, note));
        }
        // Of several of one name, that of the latest generation is meant.
        lost.sort_by_key(|(generation, id, _)| (Reverse(*generation), id.clone()));
        for (_, id, note) in lost {
            adopted += u64::from(self.adopt(&id, note)?);
        }
        Ok(adopted)
    }

    fn has_snapshot_record(&self, id: &RecordId) -> Result<bool, CacheError> {
        self.read("look for the record of a snapshot", |tables| is_recorded(tables, id))
    }

    fn remove_directories_of_no_record(&self) -> Result<(), CacheError> {
        let directories = self.store().directories();
        for id in directories.list()? {
            let is_recorded = || {
                self.read("look for the record of a directory", |tables| Ok(tables.record(&id)?.is_some()))
            };
            if !is_recorded()? {
                directories.remove_leftover(&id, is_recorded)?;
            }
        }
        Ok(())
    }

    fn remove_files_of_no_record(&self) -> Result<(), CacheError> {
        for file in self.store().items().list()? {
            let is_recorded =
                || self.read("look for the record of a file", |tables| Ok(tables.has_item_file(&file)?));
            if !is_recorded()? {
                self.store().items().remove_leftover(&file, is_recorded)?;
            }
        }
        Ok(())
    }
}

/// Whether some record's data are in that snapshot: it has the record's own id, unless the record has given it up.
pub(super) fn is_recorded(tables: &RecordTables<'_>, id: &RecordId) -> Attempt<bool> {
    Ok(tables.record(id)?.is_some() && !is_given_up(tables, id)?)
}
