//! A mount that outlives the process that serves it: what is told to whoever holds it, and how the next one goes on.
//!
//! ```text
//!   Mounted::handover ──▶ held by another process ──▶ the serving one dies ──▶ Predecessor::parse ──▶ prepare ──▶ Prepared::take_over
//! ```
//!
//! The successor must find the very tree that was mounted: the same manifest, whatever its name means by now, and of it a tree with the
//! same identity. Else it does not serve, as numbers of inodes would mean other files.
//!
//! The record of the mount names the process that holds it, which is there as long as the mount is, whoever serves. If that one is killed, the
//! one that serves takes its place.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use peelfs_fuse::MountOptions;
use peelfs_registry::Digest;
use serde::{Deserialize, Serialize};

use super::writable::HeldSnapshot;
use super::{ImageMountError, Mounted, NO_INODES, Prepared, live};
use crate::error::chain;
use crate::store::{Store, StoreError};
use crate::tree::status_files::StatusTree;

/// What a successor is told, beside what the kernel's side needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    manifest: Digest,
    /// What the tree is known by.
    tree: String,
    /// What its layers are kept by, the lowest first: several may have the same archive. Programs from before do not say it.
    #[serde(default)]
    layers: Vec<Digest>,
    /// Where it is mounted, for those who are told of it.
    mountpoint: String,
    started_at: i64,
    /// What takes the changes, if it is writable.
    snapshot: Option<HeldNote>,
}

/// Of what takes the changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HeldNote {
    pub name: String,
    pub record: String,
}

/// All that is to be held for a successor.
pub struct Handover {
    /// As long as it is held, readers wait when nobody serves.
    pub device: OwnedFd,
    /// The rest. It names no credentials.
    pub note: Vec<u8>,
}

/// A mount whose process is gone.
pub struct Predecessor {
    kernel: peelfs_fuse::Handover,
    note: Note,
}

/// What was held cannot be understood: it is of another version of this program.
#[derive(Debug, thiserror::Error)]
#[error("what is known of the mount is of another version of this program")]
pub struct UnknownNote;

impl Predecessor {
    /// What was held.
    ///
    /// # Errors
    /// [`UnknownNote`].
    pub fn parse(Handover { device, note }: Handover) -> Result<Predecessor, UnknownNote> {
        let length = note.first_chunk().map(|length| u32::from_le_bytes(*length) as usize);
        let (kernel, own) =
            length.and_then(|length| note[4..].split_at_checked(length)).ok_or(UnknownNote)?;
        let kernel = peelfs_fuse::Handover { device, note: kernel.to_vec() };
        if !kernel.is_known() {
            return Err(UnknownNote);
        }
        Ok(Predecessor { kernel, note: serde_json::from_slice(own).map_err(|_| UnknownNote)? })
    }

    /// The manifest of the image that is mounted.
    pub fn manifest(&self) -> &Digest {
        &self.note.manifest
    }

    /// What the layers of its tree are kept by, the lowest first, as far as that is known.
    pub fn layers(&self) -> &[Digest] {
        &self.note.layers
    }
}

impl Mounted {
    /// What another process needs to go on when this one is killed; nothing if none could.
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub fn handover(&self) -> std::io::Result<Option<Handover>> {
        let Some(kernel) = self.session.handover()? else { return Ok(None) };
        let own = Note {
            manifest: self.prepared.brought.image.manifest_digest.clone(),
            tree: self.prepared.tree_key.clone(),
            layers: self.prepared.brought.layer_names(),
            mountpoint: self.session.mountpoint().display().to_string(),
            started_at: self.started_at,
            snapshot: self.held.as_ref().map(HeldSnapshot::note),
        };
        let own = serde_json::to_vec(&own)?;
        let length = u32::try_from(kernel.note.len()).map_err(std::io::Error::other)?;
        let note = [&length.to_le_bytes()[..], &kernel.note, &own].concat();
        Ok(Some(Handover { device: kernel.device, note }))
    }

    /// From now on another process holds the mount, and has it served if this one ends before it is unmounted.
    pub fn is_held(&self) {
        self.session.leave_mounted();
    }

    /// Who has the mount recorded as its own, whatever becomes of the process that holds it.
    pub fn keeper(&self) -> Keeper {
        Keeper {
            store: self.prepared.brought.store.clone(),
            mountpoint: self.session.mountpoint().to_owned(),
            pid: self.pid.clone(),
        }
    }
}

/// Which process the record of a mount names.
#[derive(Clone)]
pub struct Keeper {
    store: Arc<Store>,
    mountpoint: PathBuf,
    pid: Arc<AtomicU32>,
}

impl Keeper {
    /// From now on the record names this process: the one that held the mount is gone. If this one took the place of another that served, that
    /// may have had the mount recorded as its own before it was ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn serve_alone(&self, predecessor: Option<u32>) -> Result<(), StoreError> {
        let own = std::process::id();
        let holder = self.pid.swap(own, Ordering::Relaxed);
        let began = live::start_time(own).unwrap_or_default();
        let database = self.store.database();
        [Some(holder), predecessor]
            .into_iter()
            .flatten()
            .try_for_each(|from| database.hand_mount_on(&self.mountpoint, from, own, began))
    }
}

impl Prepared {
    /// Whether this is what the other process has mounted; [`take_over`](Self::take_over) asks the same, when it is late.
    ///
    /// # Errors
    /// [`ImageMountError::OtherTree`].
    pub fn is_tree_of(&self, predecessor: &Predecessor) -> Result<(), ImageMountError> {
        if predecessor.note.tree == self.tree_key {
            return Ok(());
        }
        let (image, mountpoint) = (self.brought.reference.to_string(), predecessor.note.mountpoint.clone());
        Err(ImageMountError::OtherTree { image, mountpoint })
    }

    /// Goes on to serve the mount of another process, which is gone: what nobody answered is answered first. If anything goes wrong the
    /// mount stays, and another may try.
    ///
    /// # Errors
    /// [`ImageMountError::OtherTree`], [`ImageMountError::Writable`], [`ImageMountError::TakeOver`].
    pub fn take_over(
        self,
        options: &MountOptions,
        predecessor: Predecessor,
    ) -> Result<Mounted, ImageMountError> {
        self.is_tree_of(&predecessor)?;
        let Predecessor { kernel, note } = predecessor;
        let image = self.brought.reference.to_string();
        let held = note.snapshot.map(|held| HeldSnapshot::again(&self.brought, held)).transpose()?;
        self.counters.go_on();
        let status_tree = self.status_tree(note.started_at);
        let status_inodes = status_tree.as_ref().map_or(NO_INODES, StatusTree::inodes);
        let options = match kernel.passes_through() {
            true => self.with_records_of_predecessor(options),
            false => options.clone(),
        };
        let session = match status_tree {
            Some(tree) => peelfs_fuse::take_over(Arc::new(tree), kernel, &options),
            None => peelfs_fuse::take_over(self.tree.clone(), kernel, &options),
        };
        let session = session.map_err(|error| ImageMountError::TakeOver {
            image,
            mountpoint: note.mountpoint,
            error,
        })?;
        // The mount's own row is there since it was mounted; if it is not, another mount has its directory now.
        let records = self.brought.record(&self.tree_key, None).unwrap_or_else(|error| {
            tracing::error!(error = %chain(&error), "the records of the image's layers are not held");
            None
        });
        Ok(Mounted { status_inodes, ..self.serving(session, held, records, note.started_at) })
    }
}
