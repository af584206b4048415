//! What is kept on this machine: blobs, layers, merged trees and records. One directory, of mode 0700, used by several
//! processes at once.
//!
//! ```text
//! VERSION          version of this layout; its presence says that the rest is there
//! content/         whole blobs, as an OCI image layout
//! layers/<algorithm>/<hex>/   inode table, data files, chunk map, checkpoints
//! trees/<hex>      merged inode tables
//! snapshots/       what was changed in writable mounts
//! origins/<algorithm>/<hex>   where the layers of images come from that were made here
//! locks/           lock files
//! peel.db          records (SQLite)
//! */ingest/        what is not visible yet
//! ```
//!
//! Rules
//! - What becomes visible does so by rename or commit, after its bytes are on disk.
//! - Whoever is killed leaves locks that the kernel frees, and temporaries that the next [`Store::sweep`] removes. Nothing needs
//!   to be repaired before the store can be used.
//! - A store belongs to one machine and one user.
//! - Locks and the database's connection do not survive `fork`: a process that goes into the background does so before it
//!   opens the store.

mod blob_draft;
mod chunk_bits;
mod chunk_map;
mod content;
mod content_index;
mod data_files;
mod database;
mod descriptors;
mod digest;
mod draft;
mod durable;
mod error;
mod eviction;
mod layers;
mod lock;
mod open;
mod origins;
mod provenance;
mod records;
mod rests;
mod schema;
mod shared_words;
mod snapshots;
pub mod space;
mod temporary;
mod trees;

use std::path::{Path, PathBuf};

pub use blob_draft::BlobDraft;
pub use chunk_map::{ChunkMap, MarkLock};
pub use content::Content;
pub use content_index::NamedDescriptor;
pub use data_files::{DataFile, DataFiles};
pub use database::Database;
pub use draft::{LayerDraft, PendingPublish, Publication};
pub use error::StoreError;
pub use eviction::ChunkPlace;
pub use layers::{LayerDirectory, LayerFiles, LayerLock, LayerStore};
pub use lock::FileLock;
pub use origins::{ImageOrigins, LayerOrigin, Origins};
pub use provenance::{Provenance, TableSource, Verdict};
pub use records::{ImageRecord, LayerRecord, LayerState, MountRecord};
pub use rests::{MAXIMUM_REST, Rest, RestWriter, Rests};
pub use snapshots::{
    AttributeSpace, NewSnapshot, RootAttributes, Snapshot, SnapshotName, SnapshotNameError, SnapshotRecord,
    Snapshots,
};
pub use trees::{PendingTree, Trees};

/// Where temporaries are made, within each part of the store.
const INGEST: &str = "ingest";

/// An open store. Cheap to open and to share between threads.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    locks: PathBuf,
    content: Content,
    layers: LayerStore,
    trees: Trees,
    snapshots: Snapshots,
    origins: Origins,
    database: Database,
}

impl Store {
    fn at(path: PathBuf) -> Store {
        let locks = path.join("locks");
        let content = Content::new(path.join("content"), &locks);
        Store {
            origins: Origins::new(path.join("origins"), content.temporaries().clone()),
            snapshots: Snapshots::new(path.join("snapshots"), locks.clone()),
            content,
            layers: LayerStore::new(path.join("layers"), locks.clone()),
            trees: Trees::new(path.join("trees")),
            database: Database::new(path.join("peel.db"), locks.join("database")),
            locks,
            path,
        }
    }

    /// The store's directory, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whole blobs.
    pub fn content(&self) -> &Content {
        &self.content
    }

    /// Inode tables and data of layers.
    pub fn layers(&self) -> &LayerStore {
        &self.layers
    }

    /// Merged trees.
    pub fn trees(&self) -> &Trees {
        &self.trees
    }

    /// What was changed in writable mounts.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Where the layers of images come from that were made here.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Records. Opened when they are first asked for.
    pub fn database(&self) -> &Database {
        &self.database
    }

    /// Room on the store's file system.
    pub fn space(&self) -> Result<space::Space, StoreError> {
        space::file_system_space(&self.path)
    }

    /// Removes what processes that are gone have left behind, and gives the number of files and directories. What a living
    /// process uses stays. May take as long as removing big files takes; may run at any time, in several processes at once.
    pub fn sweep(&self) -> Result<u64, StoreError> {
        let mut removed = 0;
        for temporaries in [self.content.temporaries(), self.layers.temporaries(), self.trees.temporaries()] {
            removed += temporaries.sweep()?;
        }
        removed += self.snapshots.sweep()?;
        // Idle lock files are no leftovers, but there would be one for every layer there ever was.
        lock::sweep(&self.locks)?;
        Ok(removed)
    }
}

/// For names of what is set aside.
fn seconds_since_1970() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

#[cfg(test)]
mod crash_tests;
