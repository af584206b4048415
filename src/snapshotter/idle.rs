//! Trees that nobody uses go away after a while, and come back when somebody asks for mounts on them.
//!
//! ```text
//! asked for ──▶ used: an overlay has it below, or it is mounted once more somewhere ──▶ looked at now and then
//!                 ▲                                                                          │ not used, nor asked for, for so long
//!                 └────── asked for again: mounted again ◀── unmounted ◀─────────────────────┘
//! ```
//!
//! Whether it is used, the kernel's lists of mounts say, and not rows: a container that has ended keeps its snapshot, and one that is only
//! prepared may never start. Who is overlooked loses nothing: the kernel keeps the file system of a tree as long as an overlay is on it,
//! and its process serves on. Then the next container has a process of its own.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peelfs_fuse::InUse;

use super::{Snapshotter, SnapshotterError};
use crate::store::Store;

/// When trees were used last.
#[derive(Debug)]
pub(super) struct IdleTrees {
    after: Duration,
    used: Mutex<HashMap<PathBuf, Instant>>,
}

/// How many trees are mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountedTrees {
    /// Below a container, or a view.
    pub used: u64,
    /// Not used, and not unmounted yet.
    pub idle: u64,
    /// Unmounted in this round.
    pub unmounted: u64,
}

impl IdleTrees {
    pub(super) fn new(after: Duration) -> IdleTrees {
        IdleTrees { after, used: Mutex::default() }
    }

    /// The tree at that mount point is used from now on, as far as one knows.
    pub(super) fn is_asked_for(&self, mount_point: &Path) {
        self.lock().insert(mount_point.to_owned(), Instant::now());
    }

    /// Whether it was idle for so long. One that was not seen before, as another process has mounted it, begins now.
    fn is_idle(&self, mount_point: &Path) -> bool {
        self.lock().entry(mount_point.to_owned()).or_insert_with(Instant::now).elapsed() >= self.after
    }

    fn keep_only(&self, mount_points: &[PathBuf]) {
        self.lock().retain(|known, _| mount_points.contains(known));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<PathBuf, Instant>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Snapshotter {
    /// Unmounts the trees that nobody has used for long. To be called now and then.
    ///
    /// # Errors
    /// [`SnapshotterError::Store`]; what cannot be unmounted stays, and the log says why.
    pub fn unmount_idle(&self) -> Result<MountedTrees, SnapshotterError> {
        let directories = self.store.container_snapshots();
        let mount_points = directories.other_mount_points(&[])?;
        self.idle.keep_only(&mount_points);
        let mut mounted = MountedTrees::default();
        if mount_points.is_empty() {
            return Ok(mounted);
        }
        let in_use = match InUse::look() {
            Ok(in_use) => in_use,
            Err(error) => {
                tracing::warn!(%error, "it is not known which trees are in use; they stay mounted");
                return Ok(MountedTrees { used: mount_points.len() as u64, ..mounted });
            }
        };
        for mount_point in mount_points {
            if is_used(&self.store, &mount_point, &in_use) {
                self.idle.is_asked_for(&mount_point);
                mounted.used += 1;
            } else if !self.idle.is_idle(&mount_point) {
                mounted.idle += 1;
            } else if self.unmount_if_idle(&mount_point)? {
                mounted.unmounted += 1;
            } else {
                mounted.used += 1;
            }
        }
        Ok(mounted)
    }

    /// False if somebody came to use it.
    fn unmount_if_idle(&self, mount_point: &Path) -> Result<bool, SnapshotterError> {
        self.mounting.alone(mount_point.to_owned(), || {
            // Who asks for it from now on waits, and finds it gone.
            let Ok(in_use) = InUse::look() else { return Ok(false) };
            if !self.idle.is_idle(mount_point) || is_used(&self.store, mount_point, &in_use) {
                return Ok(false);
            }
            for id in self.mapped_from(mount_point, &in_use) {
                self.unmap(id)?;
            }
            tracing::info!(tree = %mount_point.display(), "unmounted, as nobody used it");
            self.unmount(mount_point)?;
            Ok(true)
        })
    }

    /// The numbers of snapshots for which the tree is mounted with other owners.
    fn mapped_from(&self, mount_point: &Path, in_use: &InUse) -> Vec<i64> {
        let Ok(Some(mounted)) = peelfs_fuse::mount_at(mount_point) else { return Vec::new() };
        let directories = self.store.container_snapshots();
        let places = in_use.mount_points(mounted.device).filter_map(|place| directories.mapped_for(place));
        // Each ends with the number, `lower`, and another number.
        let numbers = places.filter_map(|end| end.iter().next()?.to_str()?.parse().ok());
        numbers.collect()
    }
}

/// Whether an overlay has the tree below it that is mounted there, or it is mounted once more where others look at it. What a daemon has
/// mounted for a container of a user namespace counts as far as an overlay has that below it.
pub fn is_used(store: &Store, mount_point: &Path, in_use: &InUse) -> bool {
    // Its name tells it apart: overlays are often mounted by paths that begin anywhere.
    if mount_point.file_name().is_some_and(|name| in_use.is_lower(Path::new(name))) {
        return true;
    }
    let Ok(Some(mounted)) = peelfs_fuse::mount_at(mount_point) else { return false };
    let is_used = |place: &Path| match store.container_snapshots().mapped_for(place) {
        Some(end) => in_use.is_lower(end),
        None => place != mount_point,
    };
    in_use.mount_points(mounted.device).any(is_used)
}
