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
//! that can be written to, [`handover`] how one is served on when its process was killed.

mod bring;
pub mod completion;
pub mod counters;
pub mod explain;
pub mod extract;
pub mod handover;
pub mod live;
pub mod memory;
mod names;
mod needs;
pub mod parts;
pub mod passthrough;
mod prefetch;
mod prepare;
mod profile;
pub mod pull;
mod recorder;
pub mod records;
pub mod writable;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use peelfs_fuse::{KernelCache, MountError, MountOptions, ServeError, Session};
use peelfs_registry::{ClientConfiguration, Digest, ImageReference, Platform};

use tokio::task::AbortHandle;

use self::bring::Brought;
use self::completion::Files;
use self::counters::Counters;
use self::passthrough::{Passthrough, forget_records};
use self::profile::ProfileKeeper;
use self::recorder::Recorder;
use self::writable::{HeldSnapshot, WritableError};
use crate::cache::{CacheError, ImmutableRef};
use crate::error::chain;
use crate::fetch::index::{IndexError, Progress};
use crate::image::Image;
use crate::image::origin::ResolveError;
use crate::store::{MountRecord, PendingTree, StoreError};
use crate::table::TableError;
use crate::table::format::InodeRecord;
use crate::tree::merge::MergeError;
use crate::tree::serve::MergedTree;
use crate::tree::status_files::{NamedLayer, StatusTree};

pub use crate::fetch::image_of_manifest;
pub use bring::{known_image, layer_record, recorded_image};
pub use names::{give_name, give_name_on, origin_note, origin_of, origin_of_manifest, take_name};
pub use prefetch::Prefetching;
pub use prepare::{local_tree, prepare, prepare_lowest, tree_key, tree_of};

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
    /// If it is mounted, by another process whose place is to be taken: what its layers are kept by, the lowest first, as far as that is known.
    pub takes_over: Option<Vec<Digest>>,
    /// When to ask the registry.
    pub pull: Pull,
    /// How to reach it.
    pub client: ClientConfiguration,
    /// A reader waits at most so long for missing bytes.
    pub read_deadline: Duration,
    /// Whether an index that only refers to the image is believed: whoever may push to its repository may put one there.
    pub trust_referrers: bool,
    /// Whether it is recorded which files are read, for later mounts.
    pub records_profile: bool,
    /// What is fetched before it is read.
    pub prefetching: Prefetching,
    /// Whether the registry is asked for a profile if there is none here: whoever may push to the image's repository may have put it there.
    pub profile_from_registry: bool,
    /// The process that the mount is known by: the one that serves it, or the one that holds it as long as it is there.
    pub known_by: u32,
    /// Whether the mount has files that say how much of each layer is here, in `/.peel`; not one that can be written to.
    pub status_files: bool,
    /// Whether the kernel reads large files by itself.
    pub passthrough: Passthrough,
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
    /// It is for other machines than those that were asked for.
    #[error("{image} is an image for {found}, not for {wanted}")]
    Platform {
        /// The reference.
        image: String,
        /// What its config says.
        found: String,
        /// What was asked for.
        wanted: String,
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
    /// The records of its layers.
    #[error("cannot record the layers of {image}")]
    Records {
        /// The reference.
        image: String,
        /// Why.
        #[source]
        cause: Box<CacheError>,
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
    /// The store gives another tree than the one that is mounted.
    #[error(
        "the tree of {image} that is mounted at {mountpoint} is not in the store any more: nobody can go on serving it"
    )]
    OtherTree {
        /// The reference.
        image: String,
        /// Where it is mounted.
        mountpoint: String,
    },
    /// A mount cannot be served on.
    #[error("cannot go on serving {image} at {mountpoint}")]
    TakeOver {
        /// The reference.
        image: String,
        /// Where it is mounted.
        mountpoint: String,
        /// Why.
        #[source]
        error: std::io::Error,
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
    brought: Brought,
    counters: Arc<Counters>,
    prefetching: Prefetching,
    profile_from_registry: bool,
    tree: Arc<MergedTree>,
    tree_key: String,
    /// The mount does not wait for it: it is usable, and is to be brought to disk.
    pending_tree: Mutex<Option<PendingTree>>,
    /// The process that the record of the mount will name.
    pid: u32,
    has_status_files: bool,
    passthrough: Passthrough,
    /// Where it is written down which files are open how, if any are passed through.
    open_records: PathBuf,
    /// What brings the needs of programs. It listens before anybody can read: who reads at once begins a program, too.
    needs: Option<needs::Following>,
}

/// A mounted image.
pub struct Mounted {
    prepared: Prepared,
    session: Session,
    /// All from when [`Mounted::follow_profile`] was called.
    recorder: OnceLock<Recorder>,
    prefetch: OnceLock<AbortHandle>,
    completion: OnceLock<AbortHandle>,
    /// What takes the changes, if it is writable.
    held: Option<HeldSnapshot>,
    /// Keeps the records of the image's layers; nothing if it has none.
    records: Option<ImmutableRef>,
    /// The process that the record of the mount names.
    pid: Arc<AtomicU32>,
    /// Seconds since 1970.
    started_at: i64,
    /// Of the files that say how much of the layers is here.
    status_inodes: RangeInclusive<u64>,
}

#[allow(clippy::reversed_empty_ranges, reason = "it is empty")]
const NO_INODES: RangeInclusive<u64> = 1..=0;

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}

impl Prepared {
    /// The image.
    pub fn image(&self) -> &Image {
        &self.brought.image
    }

    /// Mounts the tree. When this returns, the directory is usable and the mount is recorded.
    pub fn mount(self, options: &MountOptions) -> Result<Mounted, ImageMountError> {
        let options = self.with_passthrough(options, false);
        let status_tree = self.status_tree(now());
        let status_inodes = status_tree.as_ref().map_or(NO_INODES, StatusTree::inodes);
        let session = match status_tree {
            Some(tree) => peelfs_fuse::mount(Arc::new(tree), &options),
            None => peelfs_fuse::mount(self.tree.clone(), &options),
        };
        let session = session.inspect_err(|_| forget_records(&self.open_records))?;
        Ok(Mounted { status_inodes, ..self.mounted(session, None)? })
    }

    fn status_tree(&self, since: i64) -> Option<StatusTree> {
        if !self.has_status_files {
            return None;
        }
        let layers = self.brought.image.layers.iter().map(|layer| NamedLayer {
            digest: layer.descriptor.digest.to_string(),
            size: layer.descriptor.size,
        });
        let tree = StatusTree::new(self.tree.clone(), layers.collect(), since);
        if tree.is_none() {
            tracing::warn!(image = %self.brought.reference, "the image has a .peel of its own: its layers' status is not shown");
        }
        tree
    }

    fn mounted(self, session: Session, held: Option<HeldSnapshot>) -> Result<Mounted, ImageMountError> {
        let started_at = now();
        self.counters.begin();
        // Of a process of the same number that was killed.
        Files::beside(self.counters.path()).remove();
        let records = match self.record(session.mountpoint(), started_at) {
            Ok(records) => records,
            // Dropping the session unmounts: a mount that nobody can find must not stay.
            Err(cause) => {
                let image = self.brought.reference.to_string();
                forget_records(&self.open_records);
                return Err(ImageMountError::Records { image, cause: Box::new(cause) });
            }
        };
        Ok(self.serving(session, held, records, started_at))
    }

    fn serving(
        self,
        session: Session,
        held: Option<HeldSnapshot>,
        records: Option<ImmutableRef>,
        started_at: i64,
    ) -> Mounted {
        forget_poisoned_content(&self.tree, &session.cache());
        let (recorder, prefetch, completion) = Default::default();
        let (pid, status_inodes) = (Arc::new(AtomicU32::new(self.pid)), NO_INODES);
        Mounted {
            prepared: self,
            session,
            recorder,
            prefetch,
            completion,
            held,
            records,
            pid,
            started_at,
            status_inodes,
        }
    }

    fn record(&self, mountpoint: &Path, started_at: i64) -> Result<Option<ImmutableRef>, CacheError> {
        let Brought { store, origin, reference, image, .. } = &self.brought;
        // Its record is replaced, and with that nobody would know of its counters, and of what was wished.
        if let Err(error) = live::forget_unmounted(store, mountpoint) {
            tracing::debug!(error = %chain(&error), "what a dead mount has left in this place stays behind");
        }
        self.counters.write(origin.statistics(), 0);
        let pid = self.pid;
        let mount = MountRecord {
            mountpoint: mountpoint.to_owned(),
            pid,
            pid_start_time: live::start_time(pid).unwrap_or_default(),
            reference: reference.to_string(),
            manifest_digest: image.manifest_digest.to_string(),
            tree: self.tree_key.clone(),
            started_at,
            status_path: Some(self.counters.path().to_owned()),
        };
        self.brought.record(&self.tree_key, Some(&mount))
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

impl Mounted {
    /// What it was asked for by.
    pub fn reference(&self) -> &ImageReference {
        &self.prepared.brought.reference
    }

    /// The kernel's side, to unmount it.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Begins to fetch what earlier mounts read or the image's author wants first, and to record what this one reads; returns at once.
    /// To be called once.
    pub fn follow_profile(&self) {
        let Prepared { brought, prefetching, tree, .. } = &self.prepared;
        let Brought { store, reference, image, platform, threads, .. } = brought;
        let image =
            profile::MountedImage { store, reference, platform, manifest: &image.manifest_digest, tree };
        let plan = prefetch::plan(*prefetching, &image);
        let asks_registry =
            self.prepared.profile_from_registry && prefetching.is_by_profile() && image.lacks_profile();
        if asks_registry || !plan.is_empty() {
            let (origin, tree) = (asks_registry.then(|| brought.origin.clone()), tree.clone());
            let keeper = ProfileKeeper::of(&image);
            let work = async move {
                let found = match &origin {
                    Some(origin) => keeper.bring(origin, tree).await,
                    None => None,
                };
                found.unwrap_or(plan).run().await;
            };
            match threads.handle() {
                Ok(threads) => drop(self.prefetch.set(threads.spawn(work).abort_handle())),
                Err(error) => tracing::warn!(%error, "nothing is prefetched"),
            }
        }
        if let Some(threads) = threads.running() {
            let (cache, inodes) = (self.session.cache(), self.status_inodes.clone());
            self.prepared.counters.keep_fresh(&threads, move || {
                for inode in inodes.clone() {
                    if let Err(error) = cache.forget(inode) {
                        return tracing::debug!(%error, "the status of a layer is shown as it was");
                    }
                }
            });
        }
        if let Some(recorder) = Recorder::start(&image) {
            let _ = self.recorder.set(recorder);
        }
        image.carry_over();
    }

    /// Brings to disk what this mount put into the store, so that it outlasts this process and a crash of the machine. What
    /// cannot be kept is fetched again some day: the mount goes on.
    pub fn settle(&self) {
        let Prepared { brought, pending_tree, .. } = &self.prepared;
        let pending_tree = pending_tree.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Err(error) =
            brought.keep_documents().and_then(|()| pending_tree.map_or(Ok(()), PendingTree::commit))
        {
            tracing::error!(error = %chain(&error), "the image could not be kept in the store");
        }
        if let Err(error) = brought.note() {
            tracing::warn!(error = %chain(&error), "if the records are lost, so is what the image's name means");
        }
        if let Err(error) = brought.record_use() {
            tracing::warn!(error = %chain(&error), "the image counts as unused since it was last mounted");
        }
        if let Err(error) = brought.keep_layers() {
            tracing::error!(error = %chain(&error), "a layer could not be kept in the store");
        }
        brought.settled();
        brought.checkpoint();
        for layer in &brought.layers {
            // To merge it was to look at all of it.
            layer.table().release();
        }
    }

    /// Finishes what other processes have left unfinished of the records. What fails is tried by the next one who looks.
    pub fn recover_records(&self) {
        let Some(records) = &self.records else { return };
        if let Err(error) = records.cache().recover() {
            tracing::warn!(error = %chain(&error), "what others have left unfinished of the records stays so");
        }
    }

    /// Begins to prove the layers all of which is here and that are not proved yet; returns at once.
    pub fn prove(&self) {
        for layer in self.prepared.tree.layers() {
            layer.prove_if_complete();
        }
    }

    /// Serves until the directory is unmounted, by whomever, and then tidies up.
    ///
    /// # Errors
    /// If serving ended otherwise: then the mount is still there, and so is its record.
    pub fn wait(mut self) -> Result<(), ServeError> {
        let served = self.session.wait();
        for work in [&self.prefetch, &self.completion].into_iter().filter_map(OnceLock::get) {
            work.abort();
        }
        if let Some(needs) = &self.prepared.needs {
            needs.end();
        }
        if let Some(recorder) = self.recorder.get() {
            recorder.finish();
        }
        served?;
        // Nobody writes any more: before the record goes, for which `peel unmount` waits.
        drop(self.held.take());
        self.settle();
        self.prepared.counters.end();
        let files = Files::beside(self.prepared.counters.path());
        files.remove();
        forget_records(&self.prepared.open_records);
        // Last, as `peel unmount` waits for this process while the record is there.
        let (mountpoint, pid) = (self.session.mountpoint(), self.pid.load(Ordering::Relaxed));
        let ended = match self.records.take() {
            Some(records) => records.end_mount(mountpoint, pid),
            None => {
                let database = self.prepared.brought.store.database();
                database.forget_mount(mountpoint, pid).map(drop).map_err(CacheError::from)
            }
        };
        if let Err(error) = ended {
            tracing::warn!(error = %chain(&error), "the record of the mount stays until it is found to be stale");
        }
        // Who found the record may have wished something meanwhile.
        files.remove();
        Ok(())
    }
}
