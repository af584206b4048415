//! How much records take, and who uses them.

use std::collections::HashMap;
use std::sync::PoisonError;

use super::refs::{ImmutableRef, present};
use super::{Cache, CacheError, now};
use crate::store::LayerState;
use crate::store::record_tables::{CacheRecord, LayerSharing, RecordId, RecordUse};

/// A record, and what it takes. Of a pair, the immutable one stands for both.
#[derive(Clone, Debug)]
pub struct Usage {
    /// The record.
    pub record: CacheRecord,
    /// What keeps it, and the other of its pair.
    pub uses: RecordUse,
    /// Who else has its data: then removing this one alone frees nothing.
    pub sharing: LayerSharing,
    /// Bytes of its own data on disk; of what it was made of, none.
    pub size: u64,
}

impl Usage {
    /// Whether others have its data, too.
    pub fn is_shared(&self) -> bool {
        self.sharing.records || self.sharing.images
    }

    /// Whether somebody holds it.
    pub fn is_in_use(&self) -> bool {
        self.uses.refs > 0
    }

    /// Names its data: records with the same have the same data. Nothing if it has none.
    pub(super) fn data(&self) -> Option<String> {
        data(&self.record)
    }
}

fn data(record: &CacheRecord) -> Option<String> {
    match (&record.layer, record.data_snapshot()) {
        (_, Some(snapshot)) => Some(snapshot.to_string()),
        (Some(layer), None) => Some(layer.clone()),
        (None, None) => None,
    }
}

/// What records take together; shared data count once.
pub fn total_bytes(usages: &[Usage]) -> u64 {
    let by_data: HashMap<String, u64> =
        usages.iter().filter_map(|usage| Some((usage.data()?, usage.size))).collect();
    by_data.into_values().fold(0, u64::saturating_add)
}

impl Cache {
    /// All records, by id, with what they take. Looks at the disk for those whose size is not known.
    pub fn usage(&self) -> Result<Vec<Usage>, CacheError> {
        let now = now();
        let found = self.read("list the records", |tables| {
            let records = tables.records()?;
            let mut found = Vec::with_capacity(records.len());
            for record in records.into_iter().filter(|record| !record.is_deleted) {
                if tables.equal_immutable(&record.id)?.is_some() {
                    continue;
                }
                let mut uses = tables.uses(&record.id, now)?;
                if let Some(mutable) = &record.equal_mutable {
                    let other = tables.uses(mutable, now)?;
                    uses.refs += other.refs;
                    uses.leases += other.leases;
                }
                let sharing = match &record.layer {
                    Some(layer) => tables.layer_sharing(layer, &record.id)?,
                    None => LayerSharing::default(),
                };
                found.push((record, uses, sharing));
            }
            Ok(found)
        })?;
        let usages = found.into_iter().map(|(record, uses, sharing)| {
            let size = self.size_of(&record)?;
            Ok(Usage { record, uses, sharing, size })
        });
        usages.collect()
    }

    /// Bytes of a record's own data on disk. Of several who ask at the same time, one looks.
    fn size_of(&self, record: &CacheRecord) -> Result<u64, CacheError> {
        if let Some(size) = record.size {
            return Ok(size);
        }
        let sizes = || self.inner.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = sizes().entry(record.id.clone()).or_default().clone();
        let mut size = asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(size) = *size {
            return Ok(size);
        }
        let measured = self.measure(record);
        // Who comes later measures anew.
        sizes().remove(&record.id);
        measured.inspect(|bytes| *size = Some(*bytes))
    }

    fn measure(&self, record: &CacheRecord) -> Result<u64, CacheError> {
        let snapshot = record.data_snapshot();
        let mut bytes = match snapshot {
            Some(snapshot) => self.store().snapshots().disk_bytes(snapshot)?,
            None => 0,
        };
        if let Some(layer) = &record.layer {
            bytes = bytes.saturating_add(self.store().layers().layer(layer)?.disk_bytes()?);
        }
        let changes = record.is_mutable
            || record.equal_mutable.is_some()
            || (record.layer.is_some() && record.state != LayerState::Extracted);
        if !changes {
            self.write("record a size", |tables| {
                if let Some(mut known) =
                    tables.record(&record.id)?.filter(|known| known.layer == record.layer)
                {
                    known.size = Some(bytes);
                    tables.update_record(&known)?;
                }
                Ok(())
            })?;
        }
        Ok(bytes)
    }
}

impl ImmutableRef {
    /// Bytes of the record's own data on disk.
    pub fn size(&self) -> Result<u64, CacheError> {
        self.cache().size_of(&self.record()?)
    }

    /// Bytes on disk of all that the record was made of, data that are shared counted once.
    pub fn total_size(&self) -> Result<u64, CacheError> {
        let cache = self.cache();
        let mut by_data: HashMap<String, CacheRecord> = HashMap::new();
        self.walk_ancestors(|record| {
            if let Some(data) = data(record) {
                by_data.entry(data).or_insert_with(|| record.clone());
            }
        })?;
        by_data.values().try_fold(0_u64, |total, record| Ok(total.saturating_add(cache.size_of(record)?)))
    }
}

impl Cache {
    /// Who holds refs on a record: processes, for people.
    pub fn holders(&self, id: &RecordId) -> Result<Vec<u32>, CacheError> {
        self.read("list who holds a record", |tables| {
            present(tables, id)?;
            let refs = tables.refs_of_record(id)?;
            let sessions = tables.sessions()?.into_iter();
            Ok(sessions
                .filter(|session| refs.iter().any(|held| held.session == session.id))
                .map(|session| session.pid)
                .collect())
        })
    }
}
