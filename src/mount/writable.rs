//! Mounts that can be written to: an overlay above the image, whose changes are a snapshot of the store.
//!
//! ```text
//!   find ──▶ prepare (a snapshot that was made before: its image, by digest) ──▶ mount_writable ──▶ … ──▶ unmounted
//!                                                                       lock, or make it      the snapshot stays
//! ```

use std::path::{Path, PathBuf};

use peelfs_fuse::{MountOptions, OverlayAttributes, Tree, Upper};
use peelfs_registry::{Digest, ImageReference, Platform};

use super::{ImageMountError, Mounted, Prepared, now};
use crate::store::{
    AttributeSpace, FileLock, NewWritableSnapshot, RootAttributes, Snapshot, SnapshotName, Store, StoreError,
};

/// Why a snapshot cannot take the changes of a mount.
#[derive(Debug, thiserror::Error)]
pub enum WritableError {
    /// It is of another image.
    #[error("snapshot {name} was made of {of}, not of {wanted}; mount that image, or choose another name")]
    OtherImage {
        /// The snapshot.
        name: SnapshotName,
        /// Its image and platform.
        of: String,
        /// What was asked for.
        wanted: String,
    },
    /// Its record names no manifest.
    #[error("snapshot {name} names its image by {digest:?}, which is no digest")]
    Record {
        /// The snapshot.
        name: SnapshotName,
        /// As written.
        digest: String,
    },
    /// It is mounted.
    #[error("snapshot {name} is mounted{}; unmount it first, or use another", shown_place(place))]
    Mounted {
        /// The snapshot.
        name: SnapshotName,
        /// Where, if the kernel tells.
        place: Option<PathBuf>,
    },
    /// The image's root cannot be looked at.
    #[error("the root of {image} has no attributes: {error}")]
    Root {
        /// The image.
        image: String,
        /// What the tree says.
        error: peelfs_fuse::Errno,
    },
    /// The store.
    #[error("cannot keep what is changed in {image}")]
    Store {
        /// The image.
        image: String,
        /// Why.
        #[source]
        cause: Box<StoreError>,
    },
}

impl WritableError {
    fn in_store(image: String, cause: StoreError) -> WritableError {
        WritableError::Store { image, cause: Box::new(cause) }
    }
}

fn shown_place(place: &Option<PathBuf>) -> String {
    place.as_ref().map(|place| format!(" at {}", place.display())).unwrap_or_default()
}

/// The snapshot of a writable mount. Nobody else mounts it, and nobody discards it.
#[derive(Debug)]
pub struct HeldSnapshot {
    snapshot: Snapshot,
    _lock: FileLock,
}

/// The snapshot of that name, to go on with what was changed, and the manifest of its image; nothing if there is none yet.
///
/// # Errors
/// [`WritableError::OtherImage`] if it is not of that image and platform; [`WritableError::Store`].
pub fn find_snapshot(
    store: &Store,
    name: &SnapshotName,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<Option<(Snapshot, Digest)>, WritableError> {
    let opened = store.writable_snapshots().open(name);
    let opened = opened.map_err(|cause| WritableError::in_store(reference.to_string(), cause))?;
    let Some(snapshot) = opened else { return Ok(None) };
    let record = &snapshot.record;
    if record.reference != reference.to_string() || record.platform != platform.to_string() {
        return Err(WritableError::OtherImage {
            name: name.clone(),
            of: format!("{} for {}", record.reference, record.platform),
            wanted: format!("{reference} for {platform}"),
        });
    }
    let digest = record
        .manifest_digest
        .parse()
        .map_err(|_| WritableError::Record { name: name.clone(), digest: record.manifest_digest.clone() })?;
    Ok(Some((snapshot, digest)))
}

/// The snapshot whose writable mount is at that directory, dead or alive; nothing if there is no such mount, or it is another store's.
pub fn snapshot_at(store: &Store, mountpoint: &Path) -> std::io::Result<Option<SnapshotName>> {
    let mounted = peelfs_fuse::mount_at(mountpoint)?.filter(peelfs_fuse::MountEntry::is_writable);
    let changes = mounted.and_then(|entry| entry.upper);
    Ok(changes.and_then(|changes| store.writable_snapshots().of_changes(&changes)))
}

/// Where each snapshot of the store is mounted.
pub fn mounted_snapshots(store: &Store) -> std::io::Result<Vec<(SnapshotName, PathBuf)>> {
    let writable = peelfs_fuse::mounts()?.into_iter().filter(peelfs_fuse::MountEntry::is_writable);
    let mounted = writable.filter_map(|entry| {
        let name = store.writable_snapshots().of_changes(entry.upper.as_deref()?)?;
        Some((name, entry.mountpoint))
    });
    Ok(mounted.collect())
}

/// The exclusive right to a snapshot that nobody has mounted.
///
/// # Errors
/// [`WritableError::Mounted`], also if its serving process was killed and the mount is still there; [`WritableError::Store`].
pub fn hold(store: &Store, name: &SnapshotName, image: &str) -> Result<FileLock, WritableError> {
    hold_besides(store, name, image, |_| false)
}

/// As [`hold`]; of dead mounts, those at such places do not count.
fn hold_besides(
    store: &Store,
    name: &SnapshotName,
    image: &str,
    is_replaced: impl Fn(&Path) -> bool,
) -> Result<FileLock, WritableError> {
    let in_store = |cause| WritableError::in_store(image.to_owned(), cause);
    let lock = store.writable_snapshots().lock(name).map_err(in_store)?;
    // Where the kernel does not tell, the lock alone counts.
    let mounted = mounted_snapshots(store).unwrap_or_default();
    let mut places = mounted.into_iter().filter(|(mounted, _)| mounted == name).map(|(_, place)| place);
    match lock {
        None => Err(WritableError::Mounted { name: name.clone(), place: places.next() }),
        // A process that was killed has left its lock, but not its mount.
        Some(lock) => match places.find(|place| !is_replaced(place)) {
            Some(place) => Err(WritableError::Mounted { name: name.clone(), place: Some(place) }),
            None => Ok(lock),
        },
    }
}

impl Prepared {
    /// Mounts the tree below a snapshot that takes what is changed: `existing`, which is of this image, or a new one of that name.
    /// Otherwise as [`mount`](Self::mount).
    ///
    /// # Errors
    /// [`ImageMountError`]; a new snapshot is discarded again then.
    pub fn mount_writable(
        self,
        options: &MountOptions,
        name: &SnapshotName,
        existing: Option<Snapshot>,
    ) -> Result<Mounted, ImageMountError> {
        peelfs_fuse::may_mount_writable(options)?;
        let store = self.brought.store.clone();
        let image = self.brought.reference.to_string();
        let is_new = existing.is_none();
        // A dead mount at this very directory is removed when it is mounted at.
        let is_replaced = |place: &Path| {
            let wanted = std::path::absolute(&options.mountpoint).unwrap_or_default();
            let parent = wanted.parent().and_then(|parent| parent.canonicalize().ok());
            parent.zip(wanted.file_name()).is_some_and(|(parent, name)| parent.join(name) == place)
        };
        let lock = hold_besides(&store, name, &image, is_replaced)?;
        let snapshot = match existing {
            Some(snapshot) => snapshot,
            None => self.new_snapshot(name)?,
        };
        let upper = Upper {
            name: name.to_string(),
            changes: snapshot.changes(),
            work: snapshot.work(),
            lower: snapshot.lower(),
            attributes: match snapshot.record.attributes {
                AttributeSpace::Trusted => OverlayAttributes::Trusted,
                AttributeSpace::User => OverlayAttributes::User,
            },
        };
        let held = HeldSnapshot { snapshot, _lock: lock };
        let session = match peelfs_fuse::mount_writable(self.tree.clone(), options, &upper) {
            Ok(session) => session,
            Err(error) => {
                if is_new {
                    let HeldSnapshot { snapshot, _lock: lock } = held;
                    drop(snapshot);
                    discard(&store, name, &lock);
                }
                return Err(error.into());
            }
        };
        self.mounted(session, Some(held))
    }

    fn new_snapshot(&self, name: &SnapshotName) -> Result<Snapshot, WritableError> {
        let image = self.brought.reference.to_string();
        let root = root_attributes(&*self.tree)
            .map_err(|error| WritableError::Root { image: image.clone(), error })?;
        let new = NewWritableSnapshot {
            reference: image.clone(),
            platform: self.brought.platform.to_string(),
            manifest_digest: self.brought.image.manifest_digest.to_string(),
            created_at: now(),
            root,
        };
        self.brought
            .store
            .writable_snapshots()
            .create(name, new)
            .map_err(|cause| WritableError::in_store(image, cause))
    }
}

fn discard(store: &Store, name: &SnapshotName, lock: &FileLock) {
    if let Err(error) = store.writable_snapshots().remove(name, lock) {
        tracing::warn!(%name, error = %crate::error::chain(&error), "an empty snapshot stays");
    }
}

fn root_attributes(tree: &impl Tree) -> Result<RootAttributes, peelfs_fuse::Errno> {
    let root = tree.attributes(peelfs_fuse::ROOT_INODE)?;
    let mut names = Vec::new();
    tree.xattr_names(root.inode, &mut |name| names.push(name.to_vec()))?;
    let mut xattrs = Vec::new();
    for name in names {
        let value = tree.xattr(root.inode, &name)?.to_vec();
        xattrs.push((name, value));
    }
    Ok(RootAttributes {
        mode: root.mode & 0o7777,
        uid: root.uid,
        gid: root.gid,
        modified_seconds: root.modified.seconds,
        modified_nanoseconds: root.modified.nanoseconds,
        xattrs,
    })
}

impl Mounted {
    /// The snapshot that takes what is changed, if it can be written to.
    pub fn snapshot(&self) -> Option<&SnapshotName> {
        self.held.as_ref().map(|held| &held.snapshot.name)
    }
}
