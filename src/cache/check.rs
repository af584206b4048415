//! What records say, held against what is there; and on request what contradicts it is dropped, or recorded again.
//!
//! | what | is held against | if it does not match |
//! | --- | --- | --- |
//! | parents of a record | the other records | the record is removed, with all that was made of it |
//! | the snapshot of a record | `snapshots/` | likewise: what was written is nowhere else |
//! | data kept with a record | `items/` | the record has them no more |
//! | a plain directory | the records | removed: it can be made again |
//! | a snapshot, a file in `items/` | the records | removed if nothing is in it, else recorded as what was written by nobody known |
//!
//! A layer that is not here is no fault: it is fetched again. What somebody holds at this moment is left alone. It may run while others
//! use the store.

use std::collections::BTreeSet;

use super::recover::is_recorded;
use super::{Cache, CacheError, Stop, now};
use crate::store::record_tables::{CacheRecord, ItemPlace, RecordId, RecordTables};
use crate::store::{Finding, FindingKind};

/// What was found of the records.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordReport {
    /// Records that were looked at.
    pub records: u64,
    /// Leases that have expired; they keep nothing.
    pub stale_leases: Vec<String>,
    /// Sessions whose processes are gone, with refs that count no more.
    pub stale_sessions: u64,
    /// What is wrong.
    pub findings: Vec<Finding>,
}

/// What is wrong with a record.
struct Fault {
    kind: FindingKind,
    path: std::path::PathBuf,
    what: String,
    repair: Repair,
}

enum Repair {
    Remove(RecordId),
    RemoveItem(RecordId, String),
    Recover,
}

impl Cache {
    /// Looks at all records; with `repairs`, mends them.
    ///
    /// # Errors
    /// If they cannot be read or, with `repairs`, written at all.
    pub fn check(&self, repairs: bool) -> Result<RecordReport, CacheError> {
        let mut report = RecordReport::default();
        if !self.look_for_dangling(repairs, &mut report)? {
            return Ok(report);
        }
        let faults = self.faults(&mut report)?;
        self.look_at_what_is_over(&mut report)?;
        let mut is_recovered = false;
        for Fault { kind, path, what, repair } in faults {
            let is_repaired = repairs
                && match repair {
                    Repair::Remove(id) => self.drop_with_all_made_of_it(&id)?,
                    Repair::RemoveItem(id, key) => self
                        .write_durably("forget data of a record", |tables| {
                            Ok(tables.remove_item(&id, &key)?)
                        })?,
                    Repair::Recover => {
                        if !std::mem::replace(&mut is_recovered, true) {
                            self.recover()?;
                        }
                        true
                    }
                };
            report.findings.push(Finding { kind, path, what, is_repaired });
        }
        if repairs {
            self.recover()?;
            self.tidy()?;
        }
        Ok(report)
    }

    /// Looks for rows that name what is not there. False if such stay: not even a list of the records can be had then.
    fn look_for_dangling(&self, repairs: bool, report: &mut RecordReport) -> Result<bool, CacheError> {
        let (broken, tables) = self.read("look for records without parents", |tables| {
            Ok((tables.broken_records()?, tables.dangling_tables()?))
        })?;
        let mut told: Vec<String> =
            broken.iter().map(|id| format!("record {id} was made of what is not there")).collect();
        if told.is_empty() {
            // Where records are broken, what is kept with them is, too.
            told.extend(
                tables.iter().map(|table| format!("rows of {table} name a record that is not there")),
            );
        }
        let is_well = told.is_empty();
        let path = self.store().path().join("peel.db");
        report.findings.extend(told.into_iter().map(|what| Finding {
            kind: FindingKind::DanglingParent,
            path: path.clone(),
            what,
            is_repaired: repairs,
        }));
        if repairs && !is_well {
            self.write_durably("remove records without parents", |tables| Ok(tables.remove_broken()?))?;
        }
        Ok(is_well || repairs)
    }

    fn faults(&self, report: &mut RecordReport) -> Result<Vec<Fault>, CacheError> {
        let records = self.read("list the records", |tables| {
            let records = tables.records()?.into_iter().filter(|record| !record.is_deleted);
            let with_items = |record: CacheRecord| Ok((tables.items(&record.id)?, record));
            records.map(with_items).collect::<super::Attempt<Vec<_>>>()
        })?;
        report.records = records.len() as u64;
        let (snapshots, root) = (self.store().snapshots(), self.store().path());
        let mut faults = Vec::new();
        for (items, record) in records {
            // Under its own id it lies if its finalization was cut off, which is mended when the cache is opened.
            let places: BTreeSet<&RecordId> =
                record.data_snapshot().into_iter().chain([&record.id]).collect();
            let mut is_there = record.data_snapshot().is_none();
            for place in &places {
                is_there |= snapshots.has(place)?;
            }
            if !is_there {
                faults.push(Fault {
                    kind: FindingKind::RecordWithoutData,
                    path: root.join("snapshots").join(record.id.as_str()),
                    what: format!("what was written to record {} is gone", record.id),
                    repair: Repair::Remove(record.id.clone()),
                });
            }
            for item in items {
                let ItemPlace::File(file) = &item.place else { continue };
                if self.store().items().open(file)?.is_none() {
                    faults.push(Fault {
                        kind: FindingKind::RecordWithoutData,
                        path: root.join("items").join(file),
                        what: format!("{:?} of record {} is gone", item.key, record.id),
                        repair: Repair::RemoveItem(record.id.clone(), item.key),
                    });
                }
            }
        }
        for id in snapshots.list()? {
            let is_known =
                || self.read("look for the record of a snapshot", |tables| is_recorded(tables, &id));
            // Looked at twice: it may have got its record, or its name, in between.
            if !is_known()? && snapshots.is_left_over(&id)? && !is_known()? {
                faults.push(Fault {
                    kind: FindingKind::DataWithoutRecord,
                    path: root.join("snapshots").join(id.as_str()),
                    what: "it belongs to no record".to_owned(),
                    repair: Repair::Recover,
                });
            }
        }
        for id in self.store().directories().list()? {
            let is_known =
                self.read("look for the record of a directory", |tables| Ok(tables.record(&id)?.is_some()))?;
            if !is_known {
                faults.push(Fault {
                    kind: FindingKind::DataWithoutRecord,
                    path: root.join("directories").join(id.as_str()),
                    what: "it belongs to no record".to_owned(),
                    repair: Repair::Recover,
                });
            }
        }
        for file in self.store().items().list()? {
            let is_known =
                || self.read("look for the record of a file", |tables| Ok(tables.has_item_file(&file)?));
            if !is_known()? && self.store().items().is_left_over(&file)? && !is_known()? {
                faults.push(Fault {
                    kind: FindingKind::DataWithoutRecord,
                    path: root.join("items").join(&file),
                    what: "it belongs to no record".to_owned(),
                    repair: Repair::Recover,
                });
            }
        }
        // They may have gone since they were listed.
        faults.retain(|fault| match &fault.repair {
            Repair::Remove(id) | Repair::RemoveItem(id, _) => {
                self.read("look again", |tables| is_recorded(tables, id)).unwrap_or(true)
            }
            Repair::Recover => true,
        });
        Ok(faults)
    }

    fn look_at_what_is_over(&self, report: &mut RecordReport) -> Result<(), CacheError> {
        let now = now();
        let has_expired = |time: Option<i64>| time.is_some_and(|time| time <= now);
        let leases = self.leases()?.into_iter();
        report.stale_leases =
            leases.filter(|lease| has_expired(lease.expires_at)).map(|lease| lease.id).collect();
        let sessions = self.read("list the sessions", |tables| Ok(tables.sessions()?))?;
        for session in sessions.iter().filter(|session| session.id != self.session().id) {
            report.stale_sessions += u64::from(self.store().session_is_over(&session.id)?);
        }
        Ok(())
    }

    /// Removes a record and all that was made of it, whatever names or leases keep them; false if somebody holds one of them.
    fn drop_with_all_made_of_it(&self, id: &RecordId) -> Result<bool, CacheError> {
        self.end_dead_sessions()?;
        let marked = self.write_durably("remove a record without data", |tables| {
            let all = with_all_made_of_it(tables, id)?;
            for id in &all {
                if tables.uses(id, now())?.refs > 0 {
                    return Ok(None);
                }
            }
            for id in &all {
                tables.remove_names_of(id)?;
                if let Some(record) = tables.record(id)? {
                    tables.update_record(&CacheRecord { is_deleted: true, ..record })?;
                }
            }
            Ok(Some(all))
        })?;
        let is_dropped = marked.is_some();
        self.finish_removals()?;
        Ok(is_dropped)
    }
}

/// A record, its pair's other, and all that was made of either.
fn with_all_made_of_it(
    tables: &RecordTables<'_>,
    id: &RecordId,
) -> Result<BTreeSet<RecordId>, Stop<CacheError>> {
    let (mut all, mut left) = (BTreeSet::new(), vec![id.clone()]);
    while let Some(id) = left.pop() {
        if all.insert(id.clone()) {
            left.extend(tables.children(&id)?);
            left.extend(tables.equal_immutable(&id)?);
            left.extend(tables.record(&id)?.and_then(|record| record.equal_mutable));
        }
    }
    Ok(all)
}
