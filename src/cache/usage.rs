//! How much records take, and who uses them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::apply::{applications, leaves};
use super::refs::{ImmutableRef, present};
use super::truth::{States, together as all_of};
use super::{Attempt, Cache, CacheError, now};
use crate::store::LayerState;
use crate::store::record_tables::{
    CacheRecord, LayerBlob, LayerSharing, RecordId, RecordKind, RecordTables, RecordUse, SessionRow,
};

/// A record, and what it takes. Of a pair, the immutable one stands for both.
#[derive(Clone, Debug)]
pub struct Usage {
    /// The record.
    pub record: CacheRecord,
    /// What keeps it, and the other of its pair.
    pub uses: RecordUse,
    /// How much of it is here; of a merge or a diff, of all that it stands for.
    pub state: LayerState,
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

/// Data of a record: of a snapshot, of a layer, or of a plain directory. Records with parts of the same name have the same data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataPart {
    /// Id of the snapshot, name of the layer, or the directory's place in the store.
    pub name: String,
    /// Whether it is a layer, which others may have, too.
    pub is_layer: bool,
    /// Bytes on disk. Of a directory, those of files that one which was made before has, too, are left out.
    pub bytes: u64,
}

impl DataPart {
    fn of_directory(id: &RecordId, bytes: u64) -> DataPart {
        DataPart { name: format!("directories/{id}"), is_layer: false, bytes }
    }
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

/// The records of all layers that a merge or a diff stands for; nothing if the record has a layer of its own.
fn applied_records(tables: &RecordTables<'_>, record: &CacheRecord) -> Attempt<Option<Vec<CacheRecord>>> {
    if matches!(record.kind, RecordKind::Base | RecordKind::Layer { .. }) {
        return Ok(None);
    }
    let applications = applications(tables, [record.id.clone()].into_iter())?;
    leaves(&applications)
        .into_iter()
        .map(|layer| present(tables, &layer.record))
        .collect::<Attempt<_>>()
        .map(Some)
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
                    uses.names += other.names;
                }
                let sharing = match &record.layer {
                    Some(layer) => tables.layer_sharing(layer, &record.id)?,
                    None => LayerSharing::default(),
                };
                let applied = applied_records(tables, &record)?;
                found.push((record, uses, sharing, applied));
            }
            Ok(found)
        })?;
        let mut states = States::default();
        let mut usages = Vec::with_capacity(found.len());
        let mut directories = self.directory_parts()?;
        for (record, uses, sharing, applied) in found {
            let mut parts = self.parts_of(&record)?;
            parts.extend(directories.remove(&record.id));
            let state = match applied {
                None => states.of(self.store(), &record)?,
                Some(applied) => {
                    let applied = applied.iter().map(|record| states.of(self.store(), record));
                    all_of(applied.collect::<Result<Vec<_>, _>>()?.into_iter())
                }
            };
            usages.push(Usage { record, uses, state, sharing, parts });
        }
        Ok(usages)
    }

    /// The plain directories that there are, by record: each with what it adds to those that were made before.
    fn directory_parts(&self) -> Result<HashMap<RecordId, DataPart>, CacheError> {
        let directories = self.store().directories();
        let records = directories.list()?;
        let bytes = directories.disk_bytes(&records)?;
        let part = |(id, bytes): (RecordId, u64)| (id.clone(), DataPart::of_directory(&id, bytes));
        Ok(records.into_iter().zip(bytes).map(part).collect())
    }

    /// A record's own data on disk, but for its directory. Of several who ask at the same time, one looks.
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
        // Of a layer, chunks come and go.
        let changes = record.is_mutable || record.equal_mutable.is_some() || record.layer.is_some();
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
        let mut parts = self.cache().parts_of(&self.record()?)?;
        parts.extend(self.cache().directory_parts()?.remove(self.id()));
        Ok(together(parts.iter()))
    }

    /// Bytes on disk of all that the record was made of, data that are shared counted once.
    pub fn total_size(&self) -> Result<u64, CacheError> {
        let mut records = Vec::new();
        self.walk_ancestors(|record| records.push(record.clone()))?;
        let mut parts = Vec::new();
        for record in &records {
            parts.extend(self.cache().parts_of(record)?);
        }
        // What only others have that are not among them does not count.
        let ids: Vec<&RecordId> = records.iter().map(|record| &record.id).collect();
        let bytes = self.cache().store().directories().disk_bytes(ids.iter().copied())?;
        parts.extend(ids.iter().zip(bytes).map(|(id, bytes)| DataPart::of_directory(id, bytes)));
        Ok(together(parts.iter()))
    }
}

/// What is kept beside a record.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// References of the images that it came from.
    pub images: Vec<String>,
    /// Leases that keep it, and have not expired.
    pub leases: Vec<String>,
    /// Other blobs of its layer.
    pub variants: Vec<LayerBlob>,
    /// Processes that hold it, for people.
    pub holders: Vec<u32>,
}

impl Cache {
    /// What is kept beside a record; of a pair, beside either.
    pub fn beside(&self, record: &CacheRecord) -> Result<Beside, CacheError> {
        let now = now();
        self.read("look beside a record", |tables| {
            let mut beside = Beside {
                images: tables.images_of(&record.id)?,
                variants: tables.variants(&record.id)?,
                ..Beside::default()
            };
            let sessions = tables.sessions()?;
            for id in std::iter::once(&record.id).chain(&record.equal_mutable) {
                beside.leases.extend(tables.leases_of(id, now)?);
                let refs = tables.refs_of_record(id)?;
                let holds = |session: &&SessionRow| refs.iter().any(|held| held.session == session.id);
                beside.holders.extend(sessions.iter().filter(holds).map(|session| session.pid));
            }
            Ok(beside)
        })
    }

    /// The immutable one of the pair of which that record is the mutable one.
    pub fn immutable_of(&self, mutable: &RecordId) -> Result<Option<RecordId>, CacheError> {
        self.read("look for the other of a pair", |tables| {
            let immutable = tables.equal_immutable(mutable)?.map(|id| tables.record(&id)).transpose()?;
            Ok(immutable.flatten().filter(|immutable| !immutable.is_deleted).map(|immutable| immutable.id))
        })
    }
}
