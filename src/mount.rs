//! An image and a directory brought together: resolve, index, merge, mount, serve.
//!
//! ```text
//! known image?  ──yes──▶ open its layers from the store ──▶ merged tree there? ──yes──▶ mount        without the network
//!      │ no                                                        │ no
//!      ▼                                                           ▼
//! resolve ──▶ each layer, in parallel: index lazily, or stream ──▶ merge ──▶ mount
//! ```
//!
//! The mount appears only when all of it is there: no partial tree is ever seen. [`prepare`] gets ready, [`Prepared::mount`]
//! mounts, [`Mounted::wait`] serves until it is unmounted and then tidies up; [`live`] lists what is mounted. [`writable`] is the mount
//! that can be written to.

mod counters;
pub mod explain;
pub mod live;
mod prepare;
pub mod writable;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use peelfs_fuse::{KernelCache, MountError, MountOptions, Session};
use peelfs_registry::{ClientConfiguration, Digest, ImageReference, Platform};

use self::counters::Counters;
use self::writable::{HeldSnapshot, WritableError};
use crate::error::chain;
use crate::fetch::ThreadStarter;
use crate::fetch::index::{IndexError, Indexer, Progress};
use crate::image::origin::{Origin, ResolveError};
use crate::image::{Image, Layer};
use crate::layer::lookup::Lookup;
use crate::store::{ImageRecord, LayerRecord, LayerState, MountRecord, PendingTree, Store, StoreError};
use crate::table::TableError;
use crate::table::format::InodeRecord;
use crate::tree::merge::MergeError;
use crate::tree::serve::MergedTree;

pub use prepare::{image_of_manifest, known_image, local_tree, prepare};

/// When the registry is asked what a reference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pull {
    /// If the store does not know it.
    Missing,
    /// Each time.
    Always,
    /// Never: an unknown image is an error.
    Never,
}

/// What to mount, and how it is got.
pub struct Request {
    /// The image.
    pub reference: ImageReference,
    /// Whose image of an index.
    pub platform: Platform,
    /// The manifest that is meant, whatever the reference means by now.
    pub pinned: Option<Digest>,
    /// When to ask the registry.
    pub pull: Pull,
    /// How to reach it.
    pub client: ClientConfiguration,
    /// A reader waits at most so long for missing bytes.
    pub read_deadline: Duration,
    /// Whether an index that only refers to the image is believed: whoever may push to its repository may put one there.
    pub trust_referrers: bool,
    /// Told what happens to the layers.
    pub progress: Progress,
}

/// Why an image is not mounted. All but the last two name the image, and the layer and host if there is one.
#[derive(Debug, thiserror::Error)]
pub enum ImageMountError {
    /// The image cannot be had.
    #[error("cannot resolve {image}")]
    Resolve {
        /// The reference.
        image: String,
        /// Why.
        #[source]
        cause: ResolveError,
    },
    /// It is not in the store, and may not be fetched.
    #[error("{image} for {platform} is not in the store, and --pull=never forbids to fetch it")]
    Unknown {
        /// The reference.
        image: String,
        /// The platform.
        platform: String,
    },
    /// A layer cannot be had.
    #[error("cannot read layer {number} of {image} ({digest}) from {host}")]
    Layer {
        /// The reference.
        image: String,
        /// Which layer, 1 is the lowest.
        number: usize,
        /// The layer.
        digest: Digest,
        /// Where it comes from.
        host: String,
        /// Why.
        #[source]
        cause: Box<IndexError>,
    },
    /// The layers do not make a tree.
    #[error("cannot merge the layers of {image}")]
    Merge {
        /// The reference.
        image: String,
        /// Why.
        #[source]
        cause: MergeError,
    },
    /// The merged table that was just written.
    #[error("cannot use the merged tree of {image}")]
    Table {
        /// The reference.
        image: String,
        /// Why.
        #[source]
        cause: TableError,
    },
    /// The store.
    #[error("cannot use the store for {image}")]
    Store {
        /// The reference.
        image: String,
        /// Why.
        #[source]
        cause: Box<StoreError>,
    },
    /// The system gives no threads.
    #[error("cannot start the threads that fetch {image}")]
    Threads {
        /// The reference.
        image: String,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// The snapshot that is to take the changes.
    #[error(transparent)]
    Writable(#[from] WritableError),
    /// The kernel.
    #[error(transparent)]
    Mount(#[from] MountError),
}

/// An image whose tree is ready to be mounted.
pub struct Prepared {
    store: Arc<Store>,
    origin: Arc<Origin>,
    indexer: Arc<Indexer>,
    counters: Arc<Counters>,
    threads: ThreadStarter,
    image: Image,
    /// How the image was found, if the registry was asked.
    resolved: Option<Found>,
    /// Whether it is that of a manifest: no word on what the reference means.
    pinned: bool,
    platform: Platform,
    tree: Arc<MergedTree>,
    tree_key: String,
    unsettled: Mutex<Unsettled>,
}

/// What the mount does not wait for: it is usable, and is to be brought to disk.
#[derive(Default)]
struct Unsettled {
    documents: Vec<Digest>,
    tree: Option<PendingTree>,
}

/// What is recorded of an image that the registry was asked for.
struct Found {
    index: Option<Digest>,
    at: i64,
    documents: Vec<Digest>,
}

/// A mounted image.
pub struct Mounted {
    prepared: Prepared,
    session: Session,
    /// What takes the changes, if it is writable.
    held: Option<HeldSnapshot>,
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}

impl Prepared {
    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Mounts the tree. When this returns, the directory is usable and the mount is recorded.
    pub fn mount(self, options: &MountOptions) -> Result<Mounted, ImageMountError> {
        let session = peelfs_fuse::mount(self.tree.clone(), options)?;
        self.mounted(session, None)
    }

    fn mounted(self, session: Session, held: Option<HeldSnapshot>) -> Result<Mounted, ImageMountError> {
        if let Err(cause) = self.record(session.mountpoint()) {
            let image = self.origin.reference().to_string();
            // Dropping the session unmounts: a mount that nobody can find must not stay.
            return Err(ImageMountError::Store { image, cause: Box::new(cause) });
        }
        forget_poisoned_content(&self.tree, &session.cache());
        Ok(Mounted { prepared: self, session, held })
    }

    fn record(&self, mountpoint: &Path) -> Result<(), StoreError> {
        let reference = self.origin.reference().to_string();
        let (database, platform) = (self.store.database(), self.platform.to_string());
        if let Some(found) = self.resolved.as_ref().filter(|_| !self.pinned) {
            let record = ImageRecord {
                reference: reference.clone(),
                platform,
                manifest_digest: self.image.manifest_digest.to_string(),
                index_digest: found.index.as_ref().map(Digest::to_string),
                config_digest: self.image.config.digest.to_string(),
                resolved_at: found.at,
                last_used: now(),
            };
            let layers: Vec<_> = self.image.layers.iter().zip(self.tree.layers()).collect();
            let layers: Vec<_> =
                layers.into_iter().map(|(layer, content)| layer_record(layer, content)).collect();
            database.remember_image(&record, &layers)?;
        }
        self.counters.write(self.origin.statistics());
        let pid = std::process::id();
        database.remember_mount(&MountRecord {
            mountpoint: mountpoint.to_owned(),
            pid,
            pid_start_time: live::start_time(pid).unwrap_or_default(),
            reference,
            manifest_digest: self.image.manifest_digest.to_string(),
            tree: self.tree_key.clone(),
            started_at: now(),
            status_path: Some(self.counters.path().to_owned()),
        })
    }
}

/// Has the kernel forget the files of a layer that is found to be poisoned: it would answer from its own memory else.
fn forget_poisoned_content(tree: &Arc<MergedTree>, cache: &KernelCache) {
    for (number, layer) in tree.layers().iter().enumerate() {
        // The tree holds the layer.
        let (tree, cache) = (Arc::downgrade(tree), cache.clone());
        layer.when_poisoned(move || {
            let Some(tree) = tree.upgrade() else { return };
            let is_of_layer = |inode: &InodeRecord| {
                inode.mode.get() & libc::S_IFMT == libc::S_IFREG && usize::from(inode.layer.get()) == number
            };
            // The kernel counts inodes from 1.
            let inodes = (1..).zip(tree.table().inodes()).filter(|(_, inode)| is_of_layer(inode));
            for (inode, _) in inodes {
                if let Err(error) = cache.forget(inode) {
                    return tracing::warn!(%error, "the kernel may go on to show what it has of the layer");
                }
            }
        });
    }
}

fn layer_record(layer: &Layer, content: &crate::fetch::LayerContent) -> LayerRecord {
    let presence = content.presence();
    let lazy = presence.chunks < presence.all_chunks;
    // A layer that was streamed has chunks too, once it is here.
    let descriptor = &layer.descriptor;
    let has_toc = matches!(Lookup::new(&descriptor.annotations, descriptor.size), Ok(Some(_)));
    LayerRecord {
        digest: layer.descriptor.digest.to_string(),
        media_type: layer.descriptor.media_type.clone(),
        size: layer.descriptor.size,
        diff_id: Some(layer.diff_id.to_string()),
        toc_digest: None,
        format: if has_toc && presence.all_chunks > 0 { "estargz" } else { layer.archive_format() }
            .to_owned(),
        state: if lazy { LayerState::Lazy } else { LayerState::Extracted },
        chunk_count: (presence.all_chunks > 0).then_some(presence.all_chunks),
        decoded_bytes: None,
        created_at: now(),
        last_used: now(),
    }
}

impl Mounted {
    /// The kernel's side, to unmount it.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Brings to disk what this mount put into the store, so that it outlasts this process and a crash of the machine. What
    /// cannot be kept is fetched again some day: the mount goes on.
    pub fn settle(&self) {
        let Prepared { threads, indexer, tree, .. } = &self.prepared;
        if let Err(error) = self.keep_documents() {
            tracing::error!(error = %chain(&error), "the image could not be kept in the store");
        }
        if let Err(error) = self.record_use() {
            tracing::warn!(error = %chain(&error), "the image counts as unused since it was last mounted");
        }
        // Where no threads run, nothing was brought.
        if let Some(threads) = threads.running()
            && let Err(error) = threads.block_on(indexer.committed())
        {
            tracing::error!(error = %chain(&error), "a layer could not be kept in the store");
        }
        for layer in tree.layers() {
            if let Err(error) = layer.checkpoint() {
                tracing::warn!(layer = %layer.layer(), error = %chain(&error), "what was fetched may be fetched again after a crash");
            }
            // To merge it was to look at all of it.
            layer.table().release();
        }
    }

    /// Begins to prove the layers all of which is here and that are not proved yet; returns at once.
    pub fn prove(&self) {
        for layer in self.prepared.tree.layers() {
            layer.prove_if_complete();
        }
    }

    /// Says when an image that was known was used.
    fn record_use(&self) -> Result<(), StoreError> {
        let Prepared { store, origin, platform, resolved, pinned, .. } = &self.prepared;
        if resolved.is_none() && !pinned {
            store.database().use_image(&origin.reference().to_string(), &platform.to_string(), now())?;
        }
        Ok(())
    }

    fn keep_documents(&self) -> Result<(), StoreError> {
        let Prepared { store, unsettled, .. } = &self.prepared;
        let unsettled =
            std::mem::take(&mut *unsettled.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
        for digest in &unsettled.documents {
            store.content().sync(digest.as_str())?;
        }
        unsettled.tree.map_or(Ok(()), PendingTree::commit)
    }

    /// Serves until the directory is unmounted, by whomever, and then tidies up.
    pub fn wait(mut self) {
        if let Err(error) = self.session.wait() {
            tracing::error!(error = %chain(&error), "serving ended");
        }
        // Nobody writes any more: before the record goes, for which `peel unmount` waits.
        drop(self.held.take());
        self.settle();
        // Last, as `peel unmount` waits for this process while the record is there.
        if let Err(error) =
            self.prepared.store.database().forget_mount(self.session.mountpoint(), std::process::id())
        {
            tracing::warn!(error = %chain(&error), "the record of the mount stays until it is found to be stale");
        }
    }
}
