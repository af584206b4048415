//! Layers on disk: `layers/<algorithm>/<hex>/`.
//!
//! ```text
//! table      inode table
//! data       bytes of small files          ┐ sparse while the layer is lazy
//! files/<n>  bytes of large files          ┘
//! chunks     the chunk map of a lazy layer ┐ one of the two; if neither is there, the layer
//! complete   empty: no byte is missing     ┘ counts as lazy with nothing present
//! provenance    where the table came from     ┐ see provenance
//! verdict       whether the layer was proved   ┘
//! rests         what came between the chunks of a layer that is not proved yet: see rests
//! framing       what its archive has beside its files, once it is proved: see framing
//! touched       which chunks were read of late, made when somebody needs it
//! checkpoints   of a gzip layer read by spans: its decoder's states, in the format that the layer's reader gave it
//! headers    of a layer whose index lies beside it: what is to be proved of its files, likewise
//! ```
//!
//! States: nothing → [`LayerDraft`] (in `layers/ingest/`) → published. A published layer is only ever replaced as a whole.
//! Several processes may make the same layer at once: the first to publish wins, the others take its layer. To do the work
//! once only, take [`LayerDirectory::lock`] first.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use zerocopy::FromBytes;

use super::chunk_map::{ChunkMap, MapPlace};
use super::data_files::{DataFiles, Home};
use super::descriptors::Descriptors;
use super::digest::DigestName;
use super::draft::LayerDraft;
use super::durable::{open_directory, still_names, sync_directory};
use super::error::{Context, StoreError};
use super::lock::{FileLock, flock};
use super::temporary::{Temporaries, remove_unused};
use super::touched;
use crate::table::format::{self, ChunkRecord, Header, Section};

pub(super) const TABLE: &str = "table";
pub(super) const CHUNKS: &str = "chunks";
pub(super) const COMPLETE: &str = "complete";
pub(super) const CHECKPOINTS: &str = "checkpoints";
pub(super) const HEADERS: &str = "headers";

/// All layers of a store.
#[derive(Clone, Debug)]
pub struct LayerStore {
    directory: PathBuf,
    locks: PathBuf,
    temporaries: Temporaries,
    descriptors: Arc<Descriptors>,
}

impl LayerStore {
    pub(super) fn new(directory: PathBuf, locks: PathBuf) -> LayerStore {
        let temporaries = Temporaries::new(directory.join(super::INGEST));
        LayerStore { directory, locks, temporaries, descriptors: Arc::new(Descriptors::new()) }
    }

    /// The layer of that digest, whether it is there or not.
    ///
    /// # Errors
    /// [`StoreError::InvalidDigest`].
    pub fn layer(&self, digest: &str) -> Result<LayerDirectory, StoreError> {
        let digest = DigestName::parse(digest)?;
        Ok(LayerDirectory {
            path: digest.path_in(&self.directory),
            lock: self.locks.join(format!("layer-{}", digest.flat())),
            chunks_lock: self.locks.join(format!("chunks-{}", digest.flat())),
            eviction_lock: self.locks.join(format!("eviction-{}", digest.flat())),
            proof_lock: self.locks.join(format!("proof-{}", digest.flat())),
            extraction_lock: self.locks.join(format!("extraction-{}", digest.flat())),
            digest,
            store: self.clone(),
        })
    }

    pub(super) fn temporaries(&self) -> &Temporaries {
        &self.temporaries
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }
}

/// What the inode table of the layer that is kept by that name has for its identity.
pub fn table_identity(name: &str) -> [u8; 32] {
    Sha256::digest(name).into()
}

/// The exclusive right to make a layer; ends when it is dropped.
pub type LayerLock = FileLock;

/// Place of one layer.
#[derive(Clone, Debug)]
pub struct LayerDirectory {
    path: PathBuf,
    lock: PathBuf,
    chunks_lock: PathBuf,
    eviction_lock: PathBuf,
    proof_lock: PathBuf,
    extraction_lock: PathBuf,
    digest: DigestName,
    store: LayerStore,
}

/// A layer's files, open. They stay usable, and are not removed, until this is dropped, even if the layer is replaced.
#[derive(Debug)]
pub struct LayerFiles {
    /// The inode table.
    pub table: File,
    /// The bytes.
    pub data: Arc<DataFiles>,
    /// Which of them are there; `None` if all are.
    pub chunk_map: Option<Arc<ChunkMap>>,
    /// What its chunks need beside the blob, if they need anything. Not verified.
    pub checkpoints: Option<File>,
    /// What is to be proved of its files before they are read, if anything is. Not verified.
    pub headers: Option<File>,
    /// See [`LayerFiles::touched`].
    pub(super) touched: touched::Kept,
}

/// A layer that nobody finds any more.
#[derive(Debug)]
pub struct WithdrawnLayer {
    path: PathBuf,
}

impl WithdrawnLayer {
    /// Removes its bytes; false if somebody uses them: then a later sweep does it.
    pub fn remove(self) -> Result<bool, StoreError> {
        remove_unused(&self.path).context("remove", self.path)
    }
}

impl LayerDirectory {
    /// Waits for the exclusive right to make this layer. Needed by nothing here: it only saves work done twice.
    pub fn lock(&self) -> Result<LayerLock, StoreError> {
        FileLock::acquire(&self.lock)
    }

    /// The same without waiting: `None` if another has it.
    pub fn try_lock(&self) -> Result<Option<LayerLock>, StoreError> {
        FileLock::try_acquire(&self.lock)
    }

    /// Waits for the exclusive right to bring all of this layer. Like [`lock`](Self::lock), it only saves work done twice.
    pub fn lock_for_extraction(&self) -> Result<FileLock, StoreError> {
        FileLock::acquire(&self.extraction_lock)
    }

    /// The layer's files, if it was published.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if files are missing or the table's header is not of this version: make the layer again and
    /// [`replace`](LayerDraft::replace) it.
    pub fn open(&self) -> Result<Option<LayerFiles>, StoreError> {
        let Some(directory) = self.open_home()? else { return Ok(None) };
        let home = Arc::new(Home::Found { directory, path: self.path.clone() });
        let damaged = |name: &'static str| {
            move |error| match error {
                Errno::NOENT => {
                    StoreError::Damaged { path: self.path.clone(), reason: format!("it has no {name:?}") }
                }
                error => StoreError::from_io("open", self.path.join(name), error),
            }
        };
        let table = home.open(TABLE, OFlags::RDONLY).map_err(damaged(TABLE))?;
        let is_complete = match rustix::fs::accessat(
            home.directory(),
            COMPLETE,
            rustix::fs::Access::EXISTS,
            rustix::fs::AtFlags::empty(),
        ) {
            Ok(()) => true,
            Err(Errno::NOENT) => false,
            Err(error) => return Err(StoreError::from_io("look at", self.path.join(COMPLETE), error)),
        };
        let chunk_map = if is_complete { None } else { Some(Arc::new(self.open_chunk_map(&table)?)) };
        let data = DataFiles::open(Arc::clone(&home), Arc::clone(&self.store.descriptors), OFlags::empty())
            .map_err(damaged(super::data_files::PACKED))?;
        let beside = |name| optional(home.open(name, OFlags::RDONLY)).context("open", self.path.join(name));
        let (checkpoints, headers) = (beside(CHECKPOINTS)?, beside(HEADERS)?);
        Ok(Some(LayerFiles {
            table,
            data: Arc::new(data),
            chunk_map,
            checkpoints,
            headers,
            touched: touched::Kept::new(),
        }))
    }

    /// Whether anything lies there, whole or not.
    pub fn is_there(&self) -> Result<bool, StoreError> {
        self.path.try_exists().context("look at", &self.path)
    }

    /// Begins to make the layer, in a temporary directory that nobody else sees.
    pub fn create(&self) -> Result<LayerDraft, StoreError> {
        LayerDraft::new(self.clone(), self.store.temporaries.directory()?)
    }

    /// Removes the layer; false if it was not there. Whoever has its files open keeps them, and a later sweep removes them.
    pub fn remove(&self) -> Result<bool, StoreError> {
        self.withdraw()?.map_or(Ok(false), |withdrawn| withdrawn.remove().map(|_| true))
    }

    /// Takes the layer away, so that nobody finds it; nothing if it was not there. Takes no time: its bytes are still to be removed.
    pub fn withdraw(&self) -> Result<Option<WithdrawnLayer>, StoreError> {
        let path = self.store.temporaries.unused_name();
        match super::durable::rename(&self.path, &path) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(StoreError::from_io("remove", &self.path, error)),
        }
        sync_directory(self.parent())?;
        Ok(Some(WithdrawnLayer { path }))
    }

    /// Bytes on disk, of the tables and what is present of the data; 0 if the layer is not there.
    pub fn disk_bytes(&self) -> Result<u64, StoreError> {
        super::space::allocated_bytes(&self.path)
    }

    /// Opens the directory and locks it against removal, unless it is not there.
    fn open_home(&self) -> Result<Option<File>, StoreError> {
        loop {
            let directory = match open_directory(&self.path) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(StoreError::from_io("open", &self.path, error)),
            };
            flock(&directory, FlockOperation::LockShared).context("lock", &self.path)?;
            // It may have been replaced, and removed, before we had the lock.
            if still_names(&self.path, &directory).context("look at", &self.path)? {
                return Ok(Some(directory));
            }
        }
    }

    fn open_chunk_map(&self, table: &File) -> Result<ChunkMap, StoreError> {
        let mut header = [0; size_of::<Header>()];
        let path = self.path.join(TABLE);
        match std::os::unix::fs::FileExt::read_exact_at(table, &mut header, 0) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            result => result.context("read", &path)?,
        }
        let chunks = chunk_count(&header).map_err(|reason| StoreError::Damaged { path, reason })?;
        ChunkMap::open(&self.map_place(&self.path.join(CHUNKS)), chunks)
    }

    pub(super) fn map_place<'a>(&'a self, path: &'a Path) -> MapPlace<'a> {
        MapPlace {
            path,
            lock: &self.chunks_lock,
            eviction_lock: &self.eviction_lock,
            temporaries: &self.store.temporaries,
        }
    }

    pub(super) fn descriptors(&self) -> &Arc<Descriptors> {
        &self.store.descriptors
    }

    pub(super) fn temporaries(&self) -> &Temporaries {
        &self.store.temporaries
    }

    pub(super) fn proof_lock(&self) -> &Path {
        &self.proof_lock
    }

    /// Where the layer lies once it is published.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn parent(&self) -> &Path {
        // `path_in` puts two components before it.
        self.path.parent().unwrap_or(&self.path)
    }

    /// The digest as it was given.
    pub fn digest(&self) -> String {
        self.digest.to_string()
    }
}

/// A file that need not be there.
pub(super) fn optional(opened: rustix::io::Result<File>) -> rustix::io::Result<Option<File>> {
    match opened {
        Err(Errno::NOENT) => Ok(None),
        opened => opened.map(Some),
    }
}

/// How many chunks the table of these first bytes has. Only its header is looked at: the rest is its reader's to judge.
pub(super) fn chunk_count(table: &[u8]) -> Result<u64, String> {
    let (header, _) =
        Header::read_from_prefix(table).map_err(|_| "it is too short for a table".to_owned())?;
    if header.magic != format::MAGIC || header.version.get() != format::VERSION {
        return Err(format!("it is not a table of version {}", format::VERSION));
    }
    Ok(header.sections[Section::Chunks as usize].length.get() / size_of::<ChunkRecord>() as u64)
}
