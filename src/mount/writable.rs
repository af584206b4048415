//! Mounts that can be written to: an overlay above the image, whose changes are the snapshot of a mutable record on the image's.
//!
//! ```text
//!   plan ──▶ prepare (what was changed before: its image, by digest) ──▶ mount_writable ──▶ … ──▶ unmounted
//!   the mutable record, if there is one, is held from here on            or made here             released; it stays, by its name
//! ```

use std::path::{Path, PathBuf};

use peelfs_fuse::{MountOptions, OverlayAttributes, Tree, Upper};
use peelfs_registry::{Digest, ImageReference, Platform};

use super::bring::Brought;
use super::handover::HeldNote;
use super::passthrough::forget_records;
use super::{ImageMountError, Mounted, Prepared, now};
use crate::cache::{Cache, CacheError, ImmutableRef, MutableRef, NamedSnapshot, Purpose};
use crate::error::chain;
use crate::store::record_tables::RecordId;
use crate::store::{
    AttributeSpace, OpenSnapshot, RootAttributes, SnapshotName, SnapshotOrigin, Store, StoreError,
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
    /// Its note names no manifest.
    #[error("snapshot {name} names its image by {digest:?}, which is no digest")]
    Note {
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
    /// The store, or its records.
    #[error("cannot keep what is changed in {image}")]
    Store {
        /// The image.
        image: String,
        /// Why.
        #[source]
        cause: Box<CacheError>,
    },
}

impl WritableError {
    fn in_store(image: &str, cause: impl Into<CacheError>) -> WritableError {
        WritableError::Store { image: image.to_owned(), cause: Box::new(cause.into()) }
    }
}

fn shown_place(place: &Option<PathBuf>) -> String {
    place.as_ref().map(|place| format!(" at {}", place.display())).unwrap_or_default()
}

/// What takes the changes of a mount. Nobody else mounts it, and nobody discards it.
#[derive(Debug)]
pub(super) struct HeldSnapshot {
    name: SnapshotName,
    /// Released when the mount has ended.
    mutable: MutableRef,
}

impl HeldSnapshot {
    /// What its next holder needs to know.
    pub(super) fn note(&self) -> HeldNote {
        HeldNote { name: self.name.to_string(), record: self.mutable.id().to_string() }
    }

    /// Holds what a process held that is gone. Where it is mounted, it takes the changes all the while.
    pub(super) fn again(brought: &Brought, note: HeldNote) -> Result<HeldSnapshot, WritableError> {
        let image = brought.reference.to_string();
        let unknown = || StoreError::Damaged {
            path: brought.store.path().join("snapshots").join(&note.record),
            reason: "what takes the changes of the mount has another name than any that is given".to_owned(),
        };
        let failed = |cause: CacheError| WritableError::in_store(&image, cause);
        let name = note.name.parse().map_err(|_| failed(unknown().into()))?;
        let record = RecordId::parse(&note.record).ok_or_else(|| failed(unknown().into()))?;
        let cache = Cache::open_as_it_is(brought.store.clone()).map_err(failed)?;
        let mutable = cache.get_mutable(&record).map_err(failed)?;
        Ok(HeldSnapshot { name, mutable })
    }
}

/// What will take the changes of a mount.
#[derive(Debug)]
pub struct WritablePlan {
    cache: Cache,
    name: SnapshotName,
    stage: Stage,
}

/// What there is of a name.
#[derive(Debug)]
enum Stage {
    /// Nothing.
    New,
    /// What was changed, to go on with; and the manifest of its image.
    Begun(MutableRef, Digest),
    /// What was committed, as it was noted; a new one is put on it.
    Committed { record: ImmutableRef, generation: u32, manifest: Option<Digest> },
}

/// Opens the records of a store, with all that is known of writable mounts.
///
/// # Errors
/// If they cannot be read or written.
pub fn open_cache(store: std::sync::Arc<Store>) -> Result<Cache, CacheError> {
    let cache = Cache::open(store)?;
    bring_over(&cache)?;
    Ok(cache)
}

/// Brings over what earlier versions kept of writable mounts, but for what is mounted.
///
/// # Errors
/// If the records cannot be written.
pub fn bring_over(cache: &Cache) -> Result<(), CacheError> {
    if !cache.store().earlier_snapshots().is_there() {
        return Ok(());
    }
    // Where the kernel does not tell, its processes' locks alone count.
    let mounts = peelfs_fuse::mounts().unwrap_or_default();
    let is_mounted = |changes: &Path| {
        let is_it = |upper: &Path| upper == changes || is_same(upper, changes);
        mounts.iter().filter_map(|entry| entry.upper.as_deref()).any(is_it)
    };
    let brought = cache.bring_over(is_mounted)?;
    if brought > 0 {
        tracing::info!(brought, "what was changed in writable mounts is kept as cache records now");
    }
    Ok(())
}

/// Whether two paths lead to one directory.
fn is_same(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
    identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Looks what there is of that name, or takes a new one, for a mount of that image.
///
/// # Errors
/// [`WritableError::OtherImage`] if it is not of that image and platform; [`WritableError::Mounted`]; [`WritableError::Store`].
pub fn plan(
    cache: Cache,
    name: Option<&SnapshotName>,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<WritablePlan, WritableError> {
    let Some(name) = name else {
        return Ok(WritablePlan { cache, name: SnapshotName::new(), stage: Stage::New });
    };
    let image = reference.to_string();
    let failed = |cause| WritableError::in_store(&image, cause);
    loop {
        let Some(found) = cache.named_snapshot(name).map_err(failed)? else {
            return Ok(WritablePlan { cache, name: name.clone(), stage: Stage::New });
        };
        let note = &found.snapshot.note;
        if note.origin.reference != image || note.origin.platform != platform.to_string() {
            return Err(WritableError::OtherImage {
                name: name.clone(),
                of: format!("{} for {}", note.origin.reference, note.origin.platform),
                wanted: format!("{image} for {platform}"),
            });
        }
        let digest = note.origin.manifest_digest.parse().map_err(|_| WritableError::Note {
            name: name.clone(),
            digest: note.origin.manifest_digest.clone(),
        })?;
        let id = &found.record.id;
        let taken = if found.record.is_mutable {
            cache.get_mutable(id).map(|mutable| Stage::Begun(mutable, digest))
        } else {
            let generation = note.origin.generation;
            let of = |record| Stage::Committed { record, generation, manifest: None };
            cache.get(id, Purpose::Use).map(of)
        };
        match taken {
            Ok(stage) => return Ok(WritablePlan { cache, name: name.clone(), stage }),
            Err(CacheError::InUse { .. }) => return Err(mounted(cache.store(), name, id)),
            // It was committed, or discarded, since it was found.
            Err(CacheError::Immutable { .. } | CacheError::Unknown { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

fn mounted(store: &Store, name: &SnapshotName, id: &RecordId) -> WritableError {
    WritableError::Mounted { name: name.clone(), place: places_of(store, id).into_iter().next() }
}

impl WritablePlan {
    /// What has to become an image before it can be mounted: what was changed before, and committed.
    pub fn committed(&self) -> Option<&ImmutableRef> {
        match &self.stage {
            Stage::Committed { record, .. } => Some(record),
            Stage::New | Stage::Begun(..) => None,
        }
    }

    /// The image of what was committed, by its manifest.
    pub fn stand_on(&mut self, image: Digest) {
        if let Stage::Committed { manifest, .. } = &mut self.stage {
            *manifest = Some(image);
        }
    }

    /// The manifest of the image that is to be mounted, whatever its name means by now; nothing if nothing was changed before.
    pub fn pinned(&self) -> Option<&Digest> {
        match &self.stage {
            Stage::New => None,
            Stage::Begun(_, manifest) => Some(manifest),
            Stage::Committed { manifest, .. } => manifest.as_ref(),
        }
    }

    /// The records in which it is kept.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }
}

/// The record whose writable mount is at that directory, dead or alive; nothing if there is no such mount, or it is another store's.
pub fn snapshot_at(store: &Store, mountpoint: &Path) -> std::io::Result<Option<RecordId>> {
    let mounted = peelfs_fuse::mount_at(mountpoint)?.filter(peelfs_fuse::MountEntry::is_writable);
    let changes = mounted.and_then(|entry| entry.upper);
    Ok(changes.and_then(|changes| store.snapshots().of_changes(&changes)))
}

/// Where snapshots of the store are mounted.
pub fn mounted_snapshots(store: &Store) -> std::io::Result<Vec<(RecordId, PathBuf)>> {
    let writable = peelfs_fuse::mounts()?.into_iter().filter(peelfs_fuse::MountEntry::is_writable);
    let mounted = writable.filter_map(|entry| {
        let id = store.snapshots().of_changes(entry.upper.as_deref()?)?;
        Some((id, entry.mountpoint))
    });
    Ok(mounted.collect())
}

/// Where one is mounted, as far as the kernel tells.
pub fn places_of(store: &Store, id: &RecordId) -> Vec<PathBuf> {
    let mounted = mounted_snapshots(store).unwrap_or_default().into_iter();
    mounted.filter(|(mounted, _)| mounted == id).map(|(_, place)| place).collect()
}

/// Whether what was found can be written to by nobody: nobody holds it, and it is mounted nowhere, not even by a process that was killed.
///
/// # Errors
/// [`WritableError::Mounted`].
pub fn refuse_mounted(store: &Store, found: &NamedSnapshot) -> Result<(), WritableError> {
    match places_of(store, &found.snapshot.id).into_iter().next() {
        Some(place) => Err(WritableError::Mounted { name: found.name.clone(), place: Some(place) }),
        None => Ok(()),
    }
}

/// Why something is not mounted, and what would have taken the changes, unless it is released.
struct NotMounted {
    error: ImageMountError,
    mutable: Option<MutableRef>,
}

impl NotMounted {
    fn new(error: impl Into<ImageMountError>, mutable: MutableRef) -> Box<NotMounted> {
        Box::new(NotMounted { error: error.into(), mutable: Some(mutable) })
    }
}

impl Prepared {
    /// Mounts the tree below what takes the changes, which is made if there is nothing to go on with. Otherwise as [`mount`](Self::mount).
    ///
    /// # Errors
    /// [`ImageMountError`]; what was made is discarded again then.
    pub fn mount_writable(
        self,
        options: &MountOptions,
        plan: WritablePlan,
    ) -> Result<Mounted, ImageMountError> {
        peelfs_fuse::may_mount_writable(options)?;
        let image = self.brought.reference.to_string();
        let WritablePlan { cache, name, stage } = plan;
        let is_new = matches!(stage, Stage::New);
        let mutable = match stage {
            Stage::Begun(mutable, _) => mutable,
            Stage::New => {
                let parent = self.brought.record_in(&cache, &self.tree_key, None);
                let parent = parent.map_err(|cause| WritableError::in_store(&image, cause))?;
                self.new_snapshot(&cache, &name, 0, parent.as_ref(), None)?
            }
            Stage::Committed { record, generation, .. } => {
                let generation = generation.saturating_add(1);
                self.new_snapshot(&cache, &name, generation, Some(&record), Some(record.id()))?
            }
        };
        let options = self.with_passthrough(options, true);
        let open_records = self.open_records.clone();
        match self.mount_above(&options, &name, mutable) {
            Ok(mounted) => Ok(mounted),
            Err(refused) => {
                let NotMounted { error, mutable } = *refused;
                forget_records(&open_records);
                if let Some(mutable) = mutable.filter(|_| is_new) {
                    discard(&cache, &name, mutable);
                }
                Err(error)
            }
        }
    }

    /// Mounts it, or says why not.
    fn mount_above(
        self,
        options: &MountOptions,
        name: &SnapshotName,
        mutable: MutableRef,
    ) -> Result<Mounted, Box<NotMounted>> {
        let (image, store) = (self.brought.reference.to_string(), self.brought.store.clone());
        // A dead mount at this very directory is removed when it is mounted at.
        let is_replaced = |place: &PathBuf| {
            let wanted = std::path::absolute(&options.mountpoint).unwrap_or_default();
            let parent = wanted.parent().and_then(|parent| parent.canonicalize().ok());
            parent.zip(wanted.file_name()).is_some_and(|(parent, name)| parent.join(name) == *place)
        };
        // A process that was killed holds nothing any more, but has left its mount.
        if let Some(place) = places_of(&store, mutable.id()).into_iter().find(|place| !is_replaced(place)) {
            let error = WritableError::Mounted { name: name.clone(), place: Some(place) };
            return Err(NotMounted::new(error, mutable));
        }
        let snapshot = match open(&store, mutable.id()) {
            Ok(snapshot) => snapshot,
            Err(cause) => return Err(NotMounted::new(WritableError::in_store(&image, cause), mutable)),
        };
        let upper = Upper {
            name: name.to_string(),
            changes: snapshot.changes(),
            work: snapshot.work(),
            lower: snapshot.lower(),
            attributes: match snapshot.note.attributes {
                AttributeSpace::Trusted => OverlayAttributes::Trusted,
                AttributeSpace::User => OverlayAttributes::User,
            },
        };
        match peelfs_fuse::mount_writable(self.tree.clone(), options, &upper) {
            Ok(session) => {
                let held = HeldSnapshot { name: name.clone(), mutable };
                self.mounted(session, Some(held))
                    .map_err(|error| Box::new(NotMounted { error, mutable: None }))
            }
            Err(error) => Err(NotMounted::new(error, mutable)),
        }
    }

    fn new_snapshot(
        &self,
        cache: &Cache,
        name: &SnapshotName,
        generation: u32,
        parent: Option<&ImmutableRef>,
        replaces: Option<&RecordId>,
    ) -> Result<MutableRef, WritableError> {
        let image = self.brought.reference.to_string();
        let root = root_attributes(&*self.tree)
            .map_err(|error| WritableError::Root { image: image.clone(), error })?;
        let new = SnapshotOrigin {
            name: name.clone(),
            generation,
            reference: image.clone(),
            platform: self.brought.platform.to_string(),
            manifest_digest: self.brought.image.manifest_digest.to_string(),
            created_at: now(),
            root,
        };
        cache.new_writable(parent, new, replaces).map_err(|cause| WritableError::in_store(&image, cause))
    }
}

fn open(store: &Store, id: &RecordId) -> Result<OpenSnapshot, CacheError> {
    let gone = || StoreError::Damaged {
        path: store.path().join("snapshots").join(id.as_str()),
        reason: "what was noted of it is gone".to_owned(),
    };
    Ok(store.snapshots().open(id)?.ok_or_else(gone)?)
}

fn discard(cache: &Cache, name: &SnapshotName, mutable: MutableRef) {
    if let Err(error) = mutable.release().and_then(|()| cache.remove_named(name)) {
        tracing::warn!(%name, error = %chain(&error), "an empty snapshot stays");
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
        self.held.as_ref().map(|held| &held.name)
    }
}
