//! How snapshots come, change and go.
//!
//! | step | what is on disk, and in which order |
//! | --- | --- |
//! | prepare, view | the directory, locked; its row |
//! | commit | its row alone: what was written stays where it is, and is containerd's to sync |
//! | remove | its row goes |
//! | clean up | directories without a row; trees that are no snapshot's, or idle |

use peelfs_fuse::IdMap;

use super::{
    Attempt, Labels, Mount, SnapshotKind, Snapshotter, SnapshotterError, check_labels, found, now, owners,
    refuse, without_empty,
};
use crate::error::chain;
use crate::store::StoreError;
use crate::store::snapshot_tables::{SnapshotRow, SnapshotTables};

impl Snapshotter {
    /// Makes a snapshot that can be written to, on that committed one (or on nothing, if it is empty), and gives its mounts.
    ///
    /// # Errors
    /// [`SnapshotterError::AlreadyExists`], also if the labels name a layer that is now committed as a remote snapshot, so that nothing
    /// needs to be unpacked; [`SnapshotterError::NotFound`] for the parent; [`SnapshotterError::InvalidArgument`];
    /// [`SnapshotterError::Unavailable`] if the tree of an image below cannot be mounted.
    pub fn prepare(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, SnapshotterError> {
        check_labels("prepare", key, labels)?;
        if let Some(name) = self.prepare_remote(key, parent, labels)? {
            return Err(SnapshotterError::AlreadyExists { name });
        }
        self.create("prepare", SnapshotKind::Active, key, parent, labels)
    }

    /// Makes a snapshot to look at a committed one, and gives its mounts. Otherwise as [`prepare`](Self::prepare).
    ///
    /// # Errors
    /// As there.
    pub fn view(&self, key: &str, parent: &str, labels: &Labels) -> Result<Vec<Mount>, SnapshotterError> {
        check_labels("view", key, labels)?;
        self.create("view", SnapshotKind::View, key, parent, labels)
    }

    fn create(
        &self,
        operation: &'static str,
        kind: SnapshotKind,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<Vec<Mount>, SnapshotterError> {
        if key.is_empty() {
            let reason = "it has no name".to_owned();
            return Err(SnapshotterError::InvalidArgument { operation, name: String::new(), reason });
        }
        let map = owner_map(operation, key, labels)?;
        let (below, used) = self.read("look for a snapshot", |tables| {
            check_is_new(tables, key)?;
            let below = match committed_parent(tables, operation, key, parent)? {
                Some(parent) => tables.chain(parent.id)?,
                None => Vec::new(),
            };
            Ok((below, tables.largest_id()?))
        })?;
        let lower = self.lower_directories(key, &below)?;
        let directories = self.store.container_snapshots();
        let directory = directories.create(used, kind == SnapshotKind::Active)?;
        let owner = lower.first().map(|highest| directories.owner(highest)).transpose()?;
        match (owner, &map) {
            (Some((uid, gid)), None) => directory.set_owner(uid, gid)?,
            (owner, Some(map)) => {
                let (uid, gid) = owners::outside(map, owner.unwrap_or_default());
                directory.set_owner(uid, gid)?;
            }
            (None, None) => {}
        }
        // What cannot be mapped is said while there is no row yet.
        self.mapped(key, directory.id(), map.as_ref(), lower)?;
        let now = now();
        let row = SnapshotRow {
            id: directory.id(),
            name: key.to_owned(),
            kind,
            parent: below.first().map(|parent| parent.id),
            created_at: now,
            updated_at: now,
            usage: None,
            remote: None,
        };
        self.write("record a snapshot", |tables| {
            check_is_new(tables, key)?;
            // It may have been removed meanwhile.
            committed_parent(tables, operation, key, parent)?;
            Ok(tables.insert(&row, &without_empty(labels))?)
        })?;
        // Since there is a row, nobody unmounts what is below; before it, somebody may have.
        let lower = self.lower_directories(key, &below)?;
        let lower = self.mapped(key, row.id, map.as_ref(), lower)?;
        Ok(self.mounts_of(&row, &lower))
    }

    /// The mounts of an active snapshot or a view.
    ///
    /// # Errors
    /// [`SnapshotterError::NotFound`]; [`SnapshotterError::FailedPrecondition`] for a committed one;
    /// [`SnapshotterError::Unavailable`] if the tree of an image below cannot be mounted.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, SnapshotterError> {
        let (chain, labels) = self.read("look for a snapshot", |tables| {
            let row = found(tables, key)?;
            if row.kind == SnapshotKind::Committed {
                return refuse(SnapshotterError::FailedPrecondition {
                    operation: "mount",
                    name: key.to_owned(),
                    reason: "it is committed",
                });
            }
            Ok((tables.chain(row.id)?, tables.labels(row.id)?))
        })?;
        // The first is the one that was found.
        let Some((row, below)) = chain.split_first() else {
            return Err(SnapshotterError::NotFound { name: key.to_owned() });
        };
        let map = owner_map("mount", key, &labels)?;
        let lower = self.lower_directories(key, below)?;
        let lower = self.mapped(key, row.id, map.as_ref(), lower)?;
        Ok(self.mounts_of(row, &lower))
    }

    /// Makes an active snapshot one that never changes, of another name and with other labels.
    ///
    /// # Errors
    /// [`SnapshotterError::AlreadyExists`] for the name; [`SnapshotterError::NotFound`] for the key;
    /// [`SnapshotterError::FailedPrecondition`] if that is not active.
    pub fn commit(
        &self,
        name: &str,
        key: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<(), SnapshotterError> {
        check_labels("commit", name, labels)?;
        if name.is_empty() {
            let reason = "it has no name".to_owned();
            return Err(SnapshotterError::InvalidArgument {
                operation: "commit",
                name: key.to_owned(),
                reason,
            });
        }
        let active = |tables: &SnapshotTables<'_>| {
            check_is_new(tables, name)?;
            let row = found(tables, key)?;
            if row.kind != SnapshotKind::Active {
                let reason = "it is not active";
                let name = key.to_owned();
                return refuse(SnapshotterError::FailedPrecondition { operation: "commit", name, reason });
            }
            if !parent.is_empty()
                && committed_parent(tables, "commit", key, parent)?.map(|row| row.id) != row.parent
            {
                let reason = "it was prepared on another parent".to_owned();
                let name = key.to_owned();
                return refuse(SnapshotterError::InvalidArgument { operation: "commit", name, reason });
            }
            Ok(row)
        };
        let row = self.read("look for a snapshot", active)?;
        let usage = self.store.container_snapshots().usage(row.id)?;
        self.write("commit a snapshot", |tables| {
            let now = now();
            let row = SnapshotRow {
                name: name.to_owned(),
                kind: SnapshotKind::Committed,
                created_at: now,
                updated_at: now,
                usage: Some(usage),
                ..active(tables)?
            };
            tables.update(&row)?;
            Ok(tables.set_labels(row.id, &without_empty(labels))?)
        })
    }

    /// Forgets a snapshot. Returns at once: what it leaves behind, [`clean_up`](Self::clean_up) removes.
    ///
    /// # Errors
    /// [`SnapshotterError::NotFound`]; [`SnapshotterError::FailedPrecondition`] if others lie on it.
    pub fn remove(&self, key: &str) -> Result<(), SnapshotterError> {
        self.write("remove a snapshot", |tables| {
            let row = found(tables, key)?;
            if tables.has_children(row.id)? {
                return refuse(SnapshotterError::FailedPrecondition {
                    operation: "remove",
                    name: key.to_owned(),
                    reason: "other snapshots lie on it",
                });
            }
            Ok(tables.remove(row.id)?)
        })
    }

    /// Removes what snapshots that are gone have left, and unmounts what none needs any more.
    ///
    /// # Errors
    /// The first of those that arose; the rest was done all the same.
    pub fn clean_up(&self) -> Result<(), SnapshotterError> {
        let mut first_error = None;
        let mut note = |result: Result<(), SnapshotterError>| {
            if let Err(error) = result {
                tracing::warn!(error = %chain(&error), "a snapshot that was removed left something behind");
                first_error.get_or_insert(error);
            }
        };
        self.remote.let_go();
        note(self.unmount_unneeded());
        note(self.unmount_idle().map(drop));
        let directories = self.store.container_snapshots();
        for id in directories.list()? {
            let is_recorded = || self.read("look for a snapshot", |tables| Ok(tables.has(id)?));
            let is_needed = || match is_recorded()? {
                true => Ok(true),
                // Nobody is about to write it: before it is removed, what lies below it must be out of reach.
                false => self.unmap(id).map(|()| false),
            };
            note(match is_recorded() {
                Ok(true) => Ok(()),
                Ok(false) => directories.remove_leftover(id, is_needed).map(drop),
                Err(error) => Err(error),
            });
        }
        note(self.store.database().shorten_log().map_err(<SnapshotterError as From<StoreError>>::from));
        first_error.map_or(Ok(()), Err)
    }
}

fn owner_map(operation: &'static str, key: &str, labels: &Labels) -> Result<Option<IdMap>, SnapshotterError> {
    owners::of_labels(labels).map_err(|reason| {
        let name = key.to_owned();
        SnapshotterError::InvalidArgument { operation, name, reason }
    })
}

fn check_is_new(tables: &SnapshotTables<'_>, name: &str) -> Attempt<()> {
    match tables.find(name)? {
        None => Ok(()),
        Some(_) => refuse(SnapshotterError::AlreadyExists { name: name.to_owned() }),
    }
}

/// The snapshot on which another is to lie.
fn committed_parent(
    tables: &SnapshotTables<'_>,
    operation: &'static str,
    key: &str,
    parent: &str,
) -> Attempt<Option<SnapshotRow>> {
    if parent.is_empty() {
        return Ok(None);
    }
    let row = found(tables, parent)?;
    if row.kind != SnapshotKind::Committed {
        let reason = format!("its parent {parent:?} is not committed");
        return refuse(SnapshotterError::InvalidArgument { operation, name: key.to_owned(), reason });
    }
    Ok(Some(row))
}
