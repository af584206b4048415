//! Removal: marked, and on disk; then the data; then the row. Each step may be done again, by anyone.

use super::refs::present;
use super::{Attempt, Cache, CacheError, now, or_refuse, refuse};
use crate::store::record_tables::{CacheRecord, ItemPlace, LayerSharing, RecordId, RecordTables};
use crate::store::{Removal, Stop};

impl Cache {
    /// Removes a record, of a pair both, and what only it has of data.
    ///
    /// # Errors
    /// [`CacheError::Unknown`]; [`CacheError::InUse`] if anything keeps it, but for refs of sessions that are over.
    pub fn remove(&self, id: &RecordId) -> Result<(), CacheError> {
        let marked = self.unless_held_by_the_dead(|| {
            self.write_durably("mark a record", |tables| mark(tables, id, now()))
        })?;
        for id in &marked {
            self.finish_removal(id)?;
        }
        Ok(())
    }

    /// Removes those of these records that nothing keeps, in their order: what was made of others comes before them. Gives those that are
    /// gone, or will be once another process is done with what was made of them.
    pub fn remove_all(&self, ids: &[RecordId]) -> Result<Vec<RecordId>, CacheError> {
        if ids.is_empty() {
            return Ok(vec![]);
        }
        let now = now();
        let (gone, marked) = self.write_durably("mark records", |tables| {
            let (mut gone, mut marked) = (Vec::new(), Vec::new());
            for id in ids {
                // Somebody may have taken it since, or have removed it.
                match mark(tables, id, now) {
                    Ok(pair) => {
                        gone.push(id.clone());
                        marked.extend(pair);
                    }
                    Err(Stop::Refused(CacheError::InUse { .. } | CacheError::Unknown { .. })) => {}
                    Err(error) => return Err(error),
                }
            }
            Ok((gone, marked))
        })?;
        for id in &marked {
            self.finish_removal(id)?;
        }
        Ok(gone)
    }

    /// Runs `attempt`; once more if it failed because of refs of sessions that are over.
    pub(super) fn unless_held_by_the_dead<T>(
        &self,
        attempt: impl Fn() -> Result<T, CacheError>,
    ) -> Result<T, CacheError> {
        match attempt() {
            Err(CacheError::InUse { .. }) if self.end_dead_sessions()? > 0 => attempt(),
            result => result,
        }
    }

    /// Removes data and row of a record that is marked; of one that is not, nothing. False if something made of it is to go
    /// first, or if its plain directory is mounted.
    pub(super) fn finish_removal(&self, id: &RecordId) -> Result<bool, CacheError> {
        let found = self.read("look at a marked record", |tables| {
            let Some(record) = tables.record(id)?.filter(|record| record.is_deleted) else { return Ok(None) };
            let is_last = tables.children(id)?.is_empty() && tables.equal_immutable(id)?.is_none();
            Ok(Some((record, is_last, tables.items(id)?)))
        })?;
        let Some((record, is_last, items)) = found else { return Ok(true) };
        if !is_last {
            return Ok(false);
        }
        if self.store().directories().remove(id)? == Removal::Mounted {
            tracing::warn!(record = %id, "a record that was removed stays as long as its directory is mounted");
            return Ok(false);
        }
        // Under its own id it lies if its finalization was cut off.
        for snapshot in record.snapshot.iter().chain([id]) {
            self.store().snapshots().remove(snapshot)?;
        }
        for item in items {
            if let ItemPlace::File(file) = &item.place {
                self.store().items().remove(file)?;
            }
        }
        let withdrawn = self.write("remove a record", |tables| {
            // Another may have been here first.
            let Some(record) = tables.record(id)? else { return Ok(None) };
            // Nobody can begin to share the layer before this transaction ends.
            let withdrawn = match &record.layer {
                Some(layer) if tables.layer_sharing(layer, id)? == LayerSharing::default() => {
                    let directory = self.store().layers().layer(layer);
                    // One that somebody has open without a ref is the collector's, some day.
                    or_refuse(directory.and_then(|directory| directory.withdraw_unused()))?
                }
                _ => None,
            };
            tables.remove_record(id)?;
            Ok(withdrawn)
        })?;
        Ok(withdrawn.map_or(Ok(true), |withdrawn| withdrawn.remove().map(|_| true))?)
    }

    /// Finishes all removals that were begun, and gives the number of records that are gone.
    pub(super) fn finish_removals(&self) -> Result<u64, CacheError> {
        let mut finished = 0;
        loop {
            let marked: Vec<RecordId> =
                self.read("list marked records", |tables| Ok(tables.marked_records()?))?;
            let mut gone = 0;
            for id in &marked {
                gone += u64::from(self.finish_removal(id)?);
            }
            finished += gone;
            // What was made of others goes first, so the others are looked at again.
            if gone == 0 || gone == marked.len() as u64 {
                return Ok(finished);
            }
        }
    }
}

/// Marks a record that nothing keeps; of a pair both. Gives what was marked, in the order in which it is to go.
pub(super) fn mark(tables: &RecordTables<'_>, id: &RecordId, now: i64) -> Attempt<Vec<RecordId>> {
    let pair = pair_of(tables, present(tables, id)?)?;
    for record in &pair {
        let by = keepers(tables, &record.id, now)?;
        if !by.is_empty() {
            return refuse(CacheError::InUse { record: record.id.clone(), by });
        }
    }
    for record in &pair {
        tables.update_record(&CacheRecord { is_deleted: true, ..record.clone() })?;
    }
    Ok(pair.into_iter().map(|record| record.id).collect())
}

/// A record alone, or the immutable and the mutable one of its pair.
pub(super) fn pair_of(tables: &RecordTables<'_>, record: CacheRecord) -> Attempt<Vec<CacheRecord>> {
    let other = match &record.equal_mutable {
        Some(mutable) => tables.record(mutable)?,
        None => tables.equal_immutable(&record.id)?.map(|id| tables.record(&id)).transpose()?.flatten(),
    };
    Ok(match other {
        Some(immutable) if record.is_mutable => vec![immutable, record],
        Some(mutable) => vec![record, mutable],
        None => vec![record],
    })
}

/// What keeps a record, for people.
pub(super) fn keepers(tables: &RecordTables<'_>, id: &RecordId, now: i64) -> Attempt<Vec<String>> {
    let uses = tables.uses(id, now)?;
    let counted = |count: u64, one: &str, many: &str| match count {
        0 => None,
        1 => Some(format!("1 {one}")),
        count => Some(format!("{count} {many}")),
    };
    let kinds = [
        counted(uses.refs, "ref", "refs"),
        counted(uses.children, "record made of it", "records made of it"),
        counted(uses.names, "name", "names"),
        counted(uses.images, "image", "images"),
        counted(uses.leases, "lease", "leases"),
    ];
    Ok(kinds.into_iter().flatten().collect())
}
