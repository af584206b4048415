//! containerd's snapshots: trees that lie on each other, of which the lower ones never change (containerd, package `snapshots`).
//!
//! ```text
//! Prepare ──▶ active ──Commit──▶ committed ◀── parent of ── active, view ──Mounts──▶ overlay or bind mount, for containerd to make
//!    │                             ▲                           │
//!    └─ of a layer that can be     │                           └─ a remote one below: its tree is mounted first, one for all
//!       read lazily: at once ──────┘                              snapshots above the same layers
//! ```
//!
//! - An *ordinary* snapshot is a directory, as containerd's own overlayfs snapshotter keeps it, and its mounts are the same.
//! - A *remote* snapshot is the lowest layers of an image, all of which are in the store lazily or as a whole. It has no directory. It
//!   is committed while it is prepared, and containerd is told that it is there already: so nothing of the layer is pulled. Remote
//!   snapshots lie on remote ones or on nothing; what is not lazy comes above them.
//! - A container in a user namespace sees what is below its snapshot mapped to the owners of that namespace: mounted for it alone, and
//!   shared all the same.
//! - Rows are the truth. A directory without a row is nobody's, whatever it was: [`Snapshotter::clean_up`] removes it, and unmounts what
//!   no snapshot has. [`Snapshotter::remove`] only takes the row away, as containerd stands still meanwhile.
//! - What is not used for a while is unmounted, though snapshots have it: [`Snapshotter::unmount_idle`]. It is mounted again when somebody
//!   asks for mounts on it.
//! - What containerd was told is on disk: it remembers it, too.

pub mod error;
pub mod filter;
mod idle;
pub mod images;
mod labels;
mod lifecycle;
mod locks;
mod mounts;
mod owners;
mod remote;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use error::{BoxError, SnapshotterError};
use filter::{Fields, Filters};
pub use idle::{MountedTrees, is_used};
pub use labels::LayerRequest;
use locks::Locks;
pub use mounts::{Mount, store_fault};

pub use crate::store::snapshot_tables::{Labels, RemoteStack, SnapshotKind};
use crate::store::snapshot_tables::{SnapshotRow, SnapshotTables};
pub use crate::store::space::DiskUsage;
use crate::store::{Access, FileLock, Stop, Store, StoreError};

/// What a transaction gives.
type Attempt<T> = Result<T, Stop<SnapshotterError>>;

/// What has to do with images and processes: how layers come, and how their trees appear.
pub trait Remote: Send + Sync {
    /// Brings a layer and those below it; tells what the layer's snapshot consists of. Nothing if that cannot be read lazily, or if
    /// the image has no such layer: then containerd is to unpack it. `namespace` is that of containerd's for which it is asked, if that is
    /// known, else empty.
    fn bring(&self, request: &LayerRequest, namespace: &str) -> Result<Option<RemoteStack>, BoxError>;

    /// Lets go of what is kept at hand for layers that will not be asked for soon.
    fn let_go(&self) {}

    /// What the uppermost layer of a stack takes on disk.
    fn usage(&self, stack: &RemoteStack) -> Result<DiskUsage, BoxError>;

    /// Has the tree of a stack appear at an empty directory, where it stays until it is unmounted.
    fn mount(&self, stack: &RemoteStack, mount_point: &Path) -> Result<(), BoxError>;
}

/// What containerd knows of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its key or name.
    pub name: String,
    /// The name of the snapshot below; empty if there is none.
    pub parent: String,
    /// What it is.
    pub kind: SnapshotKind,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970.
    pub updated_at: i64,
    /// Labels, none of which is empty.
    pub labels: Labels,
}

/// How many snapshots of a kind there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotCount {
    /// What they are.
    pub kind: SnapshotKind,
    /// Whether they are layers of an image, and no directories.
    pub is_remote: bool,
    /// How many.
    pub snapshots: u64,
}

impl Fields for Info {
    fn field(&self, path: &[String]) -> Option<&str> {
        let (first, rest) = path.split_first()?;
        match first.as_str() {
            "name" => Some(&self.name),
            "parent" => Some(&self.parent),
            "kind" => Some(self.kind.name()),
            "labels" => self.labels.get(&rest.join(".")).map(String::as_str),
            _ => None,
        }
    }
}

/// The snapshots of a store. One process serves them at a time.
pub struct Snapshotter {
    store: Arc<Store>,
    remote: Box<dyn Remote>,
    overlay: mounts::OverlayOptions,
    /// Who mounts or unmounts a tree, by its mount point.
    mounting: Locks<PathBuf>,
    idle: idle::IdleTrees,
    _lock: FileLock,
}

impl Snapshotter {
    /// Opens the snapshots of a store; nothing if another process serves them. A tree that nobody has used for as long as `idle_after` is
    /// unmounted by [`unmount_idle`](Self::unmount_idle).
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(
        store: Arc<Store>,
        remote: Box<dyn Remote>,
        idle_after: Duration,
    ) -> Result<Option<Snapshotter>, StoreError> {
        let Some(lock) = store.container_snapshots().lock()? else { return Ok(None) };
        let overlay = mounts::OverlayOptions::of_this_machine();
        let (mounting, idle) = (Locks::default(), idle::IdleTrees::new(idle_after));
        Ok(Some(Snapshotter { store, remote, overlay, mounting, idle, _lock: lock }))
    }

    /// What is known of a snapshot.
    ///
    /// # Errors
    /// [`SnapshotterError::NotFound`], [`SnapshotterError::Store`].
    pub fn stat(&self, name: &str) -> Result<Info, SnapshotterError> {
        self.read("look for a snapshot", |tables| info(tables, found(tables, name)?))
    }

    /// The snapshots of which one of the filters holds, by name; all if there is none.
    ///
    /// # Errors
    /// [`SnapshotterError::Filter`], [`SnapshotterError::Store`].
    pub fn list(&self, filters: &[String]) -> Result<Vec<Info>, SnapshotterError> {
        let filters = Filters::parse(filters)?;
        let (rows, mut labels) =
            self.read("list the snapshots", |tables| Ok((tables.all()?, tables.all_labels()?)))?;
        let names: HashMap<i64, String> = rows.iter().map(|row| (row.id, row.name.clone())).collect();
        let infos = rows.into_iter().map(|row| {
            let parent = row.parent.and_then(|parent| names.get(&parent).cloned()).unwrap_or_default();
            let labels = labels.remove(&row.id).unwrap_or_default();
            info_of(row, parent, labels)
        });
        Ok(infos.filter(|info| filters.match_fields(info)).collect())
    }

    /// How many there are of each kind.
    ///
    /// # Errors
    /// [`SnapshotterError::Store`].
    pub fn counts(&self) -> Result<Vec<SnapshotCount>, SnapshotterError> {
        let rows = self.read("count the snapshots", |tables| Ok(tables.all()?))?;
        let all = [SnapshotKind::View, SnapshotKind::Active, SnapshotKind::Committed];
        let of_kind = |kind| {
            [false, true].map(|is_remote| {
                let is_such = |row: &&SnapshotRow| row.kind == kind && row.remote.is_some() == is_remote;
                SnapshotCount { kind, is_remote, snapshots: rows.iter().filter(is_such).count() as u64 }
            })
        };
        let counts = all.into_iter().flat_map(of_kind);
        // Remote ones are committed from the first.
        Ok(counts.filter(|count| !count.is_remote || count.kind == SnapshotKind::Committed).collect())
    }

    /// Changes labels. `paths` names what: `labels` all of them, `labels.KEY` one, which goes if `labels` has it not; no path at all is
    /// the same as `labels`.
    ///
    /// # Errors
    /// [`SnapshotterError::NotFound`]; [`SnapshotterError::InvalidArgument`] for what cannot be changed.
    pub fn update(&self, name: &str, labels: &Labels, paths: &[String]) -> Result<Info, SnapshotterError> {
        check_labels("update", name, labels)?;
        self.write("update a snapshot", |tables| {
            let mut row = found(tables, name)?;
            let mut updated = tables.labels(row.id)?;
            if paths.is_empty() {
                updated = labels.clone();
            }
            for path in paths {
                match path.strip_prefix("labels.") {
                    Some(key) => {
                        updated.remove(key);
                        updated.extend(labels.get(key).map(|value| (key.to_owned(), value.clone())));
                    }
                    None if path == "labels" => updated = labels.clone(),
                    None => {
                        let reason = format!("its field {path:?} never changes");
                        let name = name.to_owned();
                        return refuse(SnapshotterError::InvalidArgument {
                            operation: "update",
                            name,
                            reason,
                        });
                    }
                }
            }
            row.updated_at = now();
            tables.update(&row)?;
            tables.set_labels(row.id, &without_empty(&updated))?;
            info(tables, row)
        })
    }

    /// What a snapshot takes on disk, without those below it: of an active one, now; of a remote one, what is here of its layer.
    ///
    /// # Errors
    /// [`SnapshotterError::NotFound`], [`SnapshotterError::Store`].
    pub fn usage(&self, name: &str) -> Result<DiskUsage, SnapshotterError> {
        let row = self.read("look for a snapshot", |tables| found(tables, name))?;
        match (&row.remote, row.kind) {
            (Some(stack), _) => Ok(self.remote.usage(stack).unwrap_or_else(|error| {
                tracing::warn!(name, %error, "what a layer takes on disk is not known");
                DiskUsage::default()
            })),
            (None, SnapshotKind::Active) => Ok(self.store.container_snapshots().usage(row.id)?),
            (None, _) => Ok(row.usage.unwrap_or_default()),
        }
    }

    fn read<T>(
        &self,
        operation: &'static str,
        work: impl FnMut(&SnapshotTables<'_>) -> Attempt<T>,
    ) -> Result<T, SnapshotterError> {
        self.store.database().with_snapshots(operation, Access::Read, work)
    }

    fn write<T>(
        &self,
        operation: &'static str,
        work: impl FnMut(&SnapshotTables<'_>) -> Attempt<T>,
    ) -> Result<T, SnapshotterError> {
        self.store.database().with_snapshots(operation, Access::WriteDurably, work)
    }
}

/// The snapshot of that name, which must be there.
fn found(tables: &SnapshotTables<'_>, name: &str) -> Attempt<SnapshotRow> {
    match tables.find(name)? {
        Some(row) => Ok(row),
        None => refuse(SnapshotterError::NotFound { name: name.to_owned() }),
    }
}

fn info(tables: &SnapshotTables<'_>, row: SnapshotRow) -> Attempt<Info> {
    let parent = row.parent.map(|parent| tables.get(parent)).transpose()?.flatten();
    let labels = tables.labels(row.id)?;
    Ok(info_of(row, parent.map(|parent| parent.name).unwrap_or_default(), labels))
}

fn info_of(row: SnapshotRow, parent: String, labels: Labels) -> Info {
    let SnapshotRow { name, kind, created_at, updated_at, .. } = row;
    Info { name, parent, kind, created_at, updated_at, labels }
}

/// Ends a transaction with an error of ours.
fn refuse<T>(error: SnapshotterError) -> Attempt<T> {
    Err(Stop::Refused(error))
}

fn check_labels(operation: &'static str, name: &str, labels: &Labels) -> Result<(), SnapshotterError> {
    match labels::fault(labels) {
        None => Ok(()),
        Some(reason) => Err(SnapshotterError::InvalidArgument { operation, name: name.to_owned(), reason }),
    }
}

/// containerd keeps no label without a value.
fn without_empty(labels: &Labels) -> Labels {
    let kept = labels.iter().filter(|(_, value)| !value.is_empty());
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Nanoseconds since 1970: enough for two centuries more.
fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    elapsed.map_or(0, |elapsed| i64::try_from(elapsed.as_nanos()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
