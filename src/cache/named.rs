//! What was changed in writable mounts: records with a name, whose snapshots say how they are mounted again.
//!
//! ```text
//!                       peel mount --snapshot NAME             peel commit NAME
//! (nothing) ──▶ NAME = M, mutable, on the image's record ──▶ NAME = I, immutable: the pair, finalized ──┐
//!                 ▲                                                                                    │
//!                 └──── NAME = M', mutable, on I ◀───────── peel mount --snapshot NAME ────────────────┘
//! ```
//!
//! The name is one of the names that records have, and keeps what it names: no collection removes that, nor what it was made of. Whoever mounts
//! a mutable one holds it ([`MutableRef`]), so there is one at a time, across processes.
//!
//! What is needed to mount it is noted in the snapshot itself ([`SnapshotNote`]): it goes where that goes, and is there if the database is
//! lost, which then gets the records again. Stores of earlier versions kept such snapshots beside the records; they are brought over.

use std::path::Path;

use super::refs::{ImmutableRef, MutableRef, Purpose, present};
use super::remove::{keepers, pair_of};
use super::{Attempt, Cache, CacheError, NewMutable, now, or_refuse, refuse};
use crate::error::chain;
use crate::fetch::image_of_manifest;
use crate::store::record_tables::{CacheRecord, RecordId, RecordKind, RecordTables, Retention};
use crate::store::{LayerState, OpenSnapshot, SnapshotName, SnapshotNote, SnapshotOrigin};

/// What a name of changes stands for.
#[derive(Debug)]
pub struct NamedSnapshot {
    /// The name.
    pub name: SnapshotName,
    /// The record; of a pair, the mutable one.
    pub record: CacheRecord,
    /// What was changed.
    pub snapshot: OpenSnapshot,
}

/// What became of changes whose name was taken away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unnamed {
    /// They are gone; if they were committed, the image that has them is not.
    Removed,
    /// They stay as long as these keep them.
    Kept {
        /// The record.
        record: RecordId,
        /// What keeps it, for people.
        by: Vec<String>,
    },
}

fn description(reference: &str) -> String {
    format!("what was changed in {reference}")
}

impl Cache {
    /// An empty mutable record on a parent, to be mounted above an image, under that name. `replaces` is the record that has the name, and
    /// loses it.
    ///
    /// # Errors
    /// [`CacheError::NameTaken`] if another has it.
    pub fn new_writable(
        &self,
        parent: Option<&ImmutableRef>,
        new: SnapshotOrigin,
        replaces: Option<&RecordId>,
    ) -> Result<MutableRef, CacheError> {
        let name = new.name.clone();
        let about = NewMutable {
            description: description(&new.reference),
            retention: Retention::Retain,
            ..NewMutable::default()
        };
        let make = |id: &RecordId| self.store().snapshots().create_for_mount(id, new);
        self.record_mutable(parent, &about, make, |tables, id| match tables.named_record(name.as_str())? {
            Some(holder) if Some(&holder) != replaces => {
                refuse(CacheError::NameTaken { name: name.to_string(), record: holder })
            }
            _ => Ok(tables.set_name(name.as_str(), id)?),
        })
    }

    /// What a name of changes stands for; nothing if there are none of that name.
    pub fn named_snapshot(&self, name: &SnapshotName) -> Result<Option<NamedSnapshot>, CacheError> {
        // Between two looks it may have been finalized, which gives the snapshot another place; or be removed.
        for _ in 0..3 {
            let found = self.read("look for a name", |tables| {
                tables.named_record(name.as_str())?.map(|id| present(tables, &id)).transpose()
            })?;
            let Some(record) = found else { return Ok(None) };
            let Some(place) = record.data_snapshot() else { return Ok(None) };
            if let Some(snapshot) = self.store().snapshots().open(place)? {
                return Ok(Some(NamedSnapshot { name: name.clone(), record, snapshot }));
            }
        }
        Ok(None)
    }

    /// All names of changes, sorted, and what they stand for.
    pub fn named_snapshots(&self) -> Result<Vec<NamedSnapshot>, CacheError> {
        let mut found = Vec::new();
        for (name, _) in self.names()? {
            // Records have other names, too.
            let Ok(name) = name.parse::<SnapshotName>() else { continue };
            found.extend(self.named_snapshot(&name)?);
        }
        Ok(found)
    }

    /// Takes the name of changes away, and removes them: if nothing else keeps the record, with the record; if an image is it, the image has its
    /// layer. Nothing if there is no such name.
    ///
    /// # Errors
    /// [`CacheError::InUse`] if they are not committed, and somebody holds them, or a lease keeps them.
    pub fn remove_named(&self, name: &SnapshotName) -> Result<Option<Unnamed>, CacheError> {
        enum Left {
            Marked(Vec<RecordId>),
            Layer(RecordId),
            Kept(RecordId, Vec<String>),
        }
        let left = self.unless_held_by_the_dead(|| {
            self.write_durably("take a name away", |tables| {
                let Some(id) = tables.named_record(name.as_str())? else { return Ok(None) };
                let pair = pair_of(tables, present(tables, &id)?)?;
                let now = now();
                tables.remove_name(name.as_str())?;
                let mut by = Vec::new();
                for record in &pair {
                    by.extend(keepers(tables, &record.id, now)?);
                }
                if by.is_empty() {
                    for record in &pair {
                        tables.update_record(&CacheRecord { is_deleted: true, ..record.clone() })?;
                    }
                    return Ok(Some(Left::Marked(pair.into_iter().map(|record| record.id).collect())));
                }
                let committed =
                    pair.into_iter().find(|record| !record.is_mutable && record.equal_mutable.is_none());
                let Some(mut record) = committed else {
                    return refuse(CacheError::InUse { record: id, by });
                };
                if record.layer.is_some() && tables.uses(&record.id, now)?.images > 0 {
                    (record.snapshot, record.size) = (None, None);
                    tables.update_record(&record)?;
                    return Ok(Some(Left::Layer(record.id)));
                }
                Ok(Some(Left::Kept(record.id, by)))
            })
        })?;
        Ok(match left {
            None => None,
            Some(Left::Marked(ids)) => {
                for id in &ids {
                    self.finish_removal(id)?;
                }
                Some(Unnamed::Removed)
            }
            Some(Left::Layer(id)) => {
                self.store().snapshots().remove(&id)?;
                Some(Unnamed::Removed)
            }
            Some(Left::Kept(record, by)) => Some(Unnamed::Kept { record, by }),
        })
    }

    /// Brings what earlier versions kept of writable mounts into records, but for what is mounted: `is_mounted` is asked of the directory
    /// that takes the changes. Gives their number.
    pub fn bring_over(&self, is_mounted: impl Fn(&Path) -> bool) -> Result<u64, CacheError> {
        let earlier = self.store().earlier_snapshots();
        if !earlier.is_there() {
            return Ok(0);
        }
        let mut brought = 0;
        for name in earlier.names()? {
            if is_mounted(&earlier.changes(&name)) {
                continue;
            }
            let id = RecordId::random()?;
            match earlier.bring_over(&name, self.store().snapshots(), &id) {
                Ok(is_brought) => brought += u64::from(is_brought),
                Err(error) if error.is_full() => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%name, error = %chain(&error), "a snapshot of an earlier version stays where it is");
                }
            }
        }
        if brought > 0 {
            self.look_at_snapshots()?;
        }
        earlier.remove_if_empty()?;
        Ok(brought)
    }

    /// Records a snapshot that has no record, with what is noted of it. False if it has one by now.
    pub(super) fn adopt(&self, id: &RecordId, note: Option<SnapshotNote>) -> Result<bool, CacheError> {
        let parent = note.as_ref().map(|note| self.image_below(note)).transpose()?.flatten();
        let name = note.map(|note| self.free_name(id, note)).transpose()?;
        self.write_durably("adopt a snapshot", |tables| {
            // It may have been finalized, or removed, since it was listed.
            if super::recover::is_recorded(tables, id)? || !or_refuse(self.store().snapshots().has(id))? {
                return Ok(false);
            }
            let kind = parent
                .as_ref()
                .map_or(RecordKind::Base, |parent| RecordKind::Layer { parent: parent.id().clone() });
            let mut record = CacheRecord::new(id.clone(), kind, now());
            (record.retention, record.state) = (Retention::Retain, LayerState::Extracted);
            (record.snapshot, record.is_mutable) = (Some(id.clone()), true);
            match &name {
                Some((_, reference)) => record.description = description(reference),
                None => "a snapshot whose record was lost".clone_into(&mut record.description),
            }
            tables.insert_record(&record)?;
            if let Some((name, _)) = &name
                && tables.named_record(name.as_str())?.is_none()
            {
                tables.set_name(name.as_str(), id)?;
            }
            Ok(true)
        })
    }

    /// The record of the image that a snapshot is of, if its documents are here.
    fn image_below(&self, note: &SnapshotNote) -> Result<Option<ImmutableRef>, CacheError> {
        let digest = note.origin.manifest_digest.parse().ok();
        let image = digest.map(|digest| image_of_manifest(self.store(), &digest)).transpose();
        match image.map(Option::flatten) {
            Ok(Some(image)) => self.record_image(&image, &note.origin.reference, Purpose::Look),
            Ok(None) => Ok(None),
            Err(error) => {
                tracing::warn!(snapshot = %note.origin.name, error = %chain(&error), "its image is not known");
                Ok(None)
            }
        }
    }

    /// The name by which a snapshot is known from now on, and its image's: its own, unless that stands for another by now.
    fn free_name(&self, id: &RecordId, note: SnapshotNote) -> Result<(SnapshotName, String), CacheError> {
        let is_taken =
            self.read("look for a name", |tables| Ok(tables.named_record(note.origin.name.as_str())?))?;
        if is_taken.is_none() {
            return Ok((note.origin.name, note.origin.reference));
        }
        let name = note.origin.name.with(id);
        tracing::warn!(was = %note.origin.name, %name, "of two snapshots of one name, the earlier one has another now");
        let note = note.renamed(name);
        self.store().snapshots().set_note(id, &note)?;
        Ok((note.origin.name, note.origin.reference))
    }

    /// The manifests of the images that a record is.
    pub fn manifests_of(&self, record: &RecordId) -> Result<Vec<String>, CacheError> {
        self.read("list the images that a record is", |tables| Ok(tables.manifests_of_record(record)?))
    }
}

/// Whether a snapshot under a record's own id is one that the record has given up: it has its data in a layer.
pub(super) fn is_given_up(tables: &RecordTables<'_>, id: &RecordId) -> Attempt<bool> {
    Ok(tables.record(id)?.is_some_and(|record| {
        !record.is_deleted && record.data_snapshot().is_none() && record.layer.is_some()
    }))
}
