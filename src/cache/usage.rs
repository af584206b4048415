//! How much records take, and who uses them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Its own data on disk; of what it was made of, none.
    pub parts: Vec<DataPart>,
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

    /// Bytes of its own data on disk.
    pub fn size(&self) -> u64 {
        self.parts.iter().fold(0, |total, part| total.saturating_add(part.bytes))
    }
}

/// Data of a record: of a snapshot, or of a layer. Records with parts of the same name have the same data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPart {
    /// Id of the snapshot, or name of the layer.
    pub name: String,
    /// Whether it is a layer, which others may have, too.
    pub is_layer: bool,
    /// Bytes on disk.
    pub bytes: u64,
}

/// What comes of looking at the disk, for all who wait for it.
pub(super) type Measurement = Arc<Mutex<Option<Vec<DataPart>>>>;

/// What records take together; shared data count once.
pub fn total_bytes(usages: &[Usage]) -> u64 {
    together(usages.iter().flat_map(|usage| &usage.parts))
}

fn together<'a>(parts: impl Iterator<Item = &'a DataPart>) -> u64 {
    let by_name: HashMap<&str, u64> = parts.map(|part| (part.name.as_str(), part.bytes)).collect();
    by_name.into_values().fold(0, u64::saturating_add)
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
            let parts = self.parts_of(&record)?;
            Ok(Usage { record, uses, sharing, parts })
        });
        usages.collect()
    }

    /// A record's own data on disk. Of several who ask at the same time, one looks.
    fn parts_of(&self, record: &CacheRecord) -> Result<Vec<DataPart>, CacheError> {
        let snapshot = record.data_snapshot().map(|snapshot| (snapshot.to_string(), false));
        let layer = record.layer.clone().map(|layer| (layer, true));
        let names = snapshot.into_iter().chain(layer);
        let mut parts: Vec<_> = names.map(|(name, is_layer)| DataPart { name, is_layer, bytes: 0 }).collect();
        if let (Some(size), [one]) = (record.size, parts.as_mut_slice()) {
            one.bytes = size;
            return Ok(parts);
        }
        let sizes = || self.inner.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = sizes().entry(record.id.clone()).or_default().clone();
        let mut known = asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref() {
            return Ok(known.clone());
        }
        let measured = self.measure(record, parts);
        // Who comes later measures anew.
        sizes().remove(&record.id);
        measured.inspect(|parts| *known = Some(parts.clone()))
    }

    fn measure(&self, record: &CacheRecord, mut parts: Vec<DataPart>) -> Result<Vec<DataPart>, CacheError> {
        for part in &mut parts {
            part.bytes = match record.data_snapshot() {
                Some(snapshot) if !part.is_layer => self.store().snapshots().disk_bytes(snapshot)?,
                _ => self.store().layers().layer(&part.name)?.disk_bytes()?,
            };
        }
        let changes = record.is_mutable
            || record.equal_mutable.is_some()
            || (record.layer.is_some() && record.state != LayerState::Extracted);
        // Of two, the sum would not tell what each is.
        if let ([one], false) = (parts.as_slice(), changes) {
            self.write("record a size", |tables| {
                let known = tables.record(&record.id)?;
                if let Some(mut known) = known.filter(|known| known.layer == record.layer) {
                    known.size = Some(one.bytes);
                    tables.update_record(&known)?;
                }
                Ok(())
            })?;
        }
        Ok(parts)
    }
}

impl ImmutableRef {
    /// Bytes of the record's own data on disk.
    pub fn size(&self) -> Result<u64, CacheError> {
        Ok(together(self.cache().parts_of(&self.record()?)?.iter()))
    }

    /// Bytes on disk of all that the record was made of, data that are shared counted once.
    pub fn total_size(&self) -> Result<u64, CacheError> {
        let mut records = Vec::new();
        self.walk_ancestors(|record| records.push(record.clone()))?;
        let mut parts = Vec::new();
        for record in &records {
            parts.extend(self.cache().parts_of(record)?);
        }
        Ok(together(parts.iter()))
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
