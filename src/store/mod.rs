//! What is kept on this machine: blobs, layers, merged trees and records. One directory, of mode 0700, used by several
//! processes at once.
//!
//! ```text
//! VERSION          version of this layout; its presence says that the rest is there
//! content/         whole blobs, as an OCI image layout
//! layers/<algorithm>/<hex>/   inode table, data files, chunk map, checkpoints
//! trees/<hex>      merged inode tables
//! profiles/<algorithm>/<hex>  what mounts of an image read
//! notes/<kind>/<hex>   facts that belong to a name, made when there is one
//! origins/<algorithm>/<hex>   where the layers of images come from that were made here
//! snapshots/<id>/  fs/ and work/ of mutable records, among them what was changed in writable mounts; and of containerd's snapshots, whose
//!                  ids are numbers
//! directories/<id>/    plain directories of records
//! items/<name>     data kept with a record
//! lower            stores whose layers are used, too
//! budget           how many bytes all of it may take, if that is limited
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
mod budget;
mod check;
mod chunk_bits;
mod chunk_map;
mod collect;
mod container_snapshots;
mod content;
mod content_index;
mod counters;
mod data_files;
mod database;
mod descriptors;
mod digest;
mod digests;
mod directories;
mod draft;
mod durable;
mod earlier_snapshots;
mod error;
mod eviction;
mod framing;
mod items;
mod layers;
mod lock;
mod lower;
mod notes;
mod open;
mod origins;
mod profiles;
mod provenance;
pub mod record_tables;
mod records;
mod restore;
mod rests;
mod schema;
mod sessions;
mod shared_words;
mod snapshot_note;
mod snapshot_root;
pub mod snapshot_tables;
mod snapshots;
pub mod space;
mod temporary;
mod touched;
mod trees;
mod unmounted;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub use blob_draft::BlobDraft;
pub use check::{CheckReport, Finding, FindingKind};
pub use chunk_map::{ChunkMap, MarkLock};
pub use collect::CollectionLock;
pub use container_snapshots::{ContainerSnapshots, NewContainerSnapshot};
pub use content::Content;
pub use content_index::NamedDescriptor;
pub use counters::CounterFiles;
pub use data_files::{DataFile, DataFiles};
pub use database::{Access, Database, Stop};
pub use digests::{DigestRecord, Seen};
pub use directories::{Directories, KnownDirectory, MadeOf, NewDirectory, Removal};
pub use draft::{LayerDraft, PendingPublish, Publication};
pub use earlier_snapshots::EarlierSnapshots;
pub use error::StoreError;
pub use eviction::ChunkPlace;
pub use framing::NewFraming;
pub use items::{Items, NewItem};
pub use layers::{LayerDirectory, LayerFiles, LayerLock, LayerStore, WithdrawnLayer, table_identity};
pub use lock::FileLock;
pub use lower::LowerStore;
pub use notes::{NoteKind, Notes};
pub use origins::{ImageOrigins, LayerOrigin, Origins, Step};
pub use profiles::{MAXIMUM_PROFILE, Profiles};
pub use provenance::{Provenance, TableSource, Verdict};
pub use records::{ImageRecord, LayerRecord, LayerState, MountRecord};
pub use rests::{MAXIMUM_REST, Rest, RestWriter, Rests, maximum_rests};
pub use sessions::Session;
pub use snapshot_note::{
    AttributeSpace, RootAttributes, SnapshotName, SnapshotNameError, SnapshotNote, SnapshotOrigin,
};
pub use snapshots::{Leftover, NewSnapshot, OpenSnapshot, Snapshots};
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
    profiles: Profiles,
    notes: Notes,
    snapshots: Snapshots,
    container_snapshots: ContainerSnapshots,
    directories: Directories,
    items: Items,
    earlier_snapshots: EarlierSnapshots,
    origins: Origins,
    counters: CounterFiles,
    database: Database,
    lower: OnceLock<Vec<LowerStore>>,
}

impl Store {
    fn at(path: PathBuf) -> Store {
        let locks = path.join("locks");
        let content = Content::new(path.join("content"), &locks);
        let notes = Notes::new(path.join("notes"), content.temporaries().clone());
        Store {
            notes: notes.clone(),
            origins: Origins::new(path.join("origins"), content.temporaries().clone()),
            earlier_snapshots: EarlierSnapshots::new(path.join("writable"), locks.clone()),
            content,
            layers: LayerStore::new(path.join("layers"), locks.clone()),
            trees: Trees::new(path.join("trees")),
            profiles: Profiles::new(path.join("profiles"), locks.clone()),
            snapshots: Snapshots::new(path.join("snapshots")),
            container_snapshots: ContainerSnapshots::new(path.join("snapshots"), locks.clone()),
            directories: Directories::new(path.join("directories"), locks.clone()),
            items: Items::new(path.join("items")),
            counters: CounterFiles::new(path.join("run"), &locks),
            database: Database::new(path.join("peel.db"), locks.join("database"), notes),
            lower: OnceLock::new(),
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

    /// What mounts of images read.
    pub fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// Facts that belong to a name.
    pub fn notes(&self) -> &Notes {
        &self.notes
    }

    /// Snapshots of mutable records.
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Directories of containerd's snapshots.
    pub fn container_snapshots(&self) -> &ContainerSnapshots {
        &self.container_snapshots
    }

    /// Plain directories of records.
    pub fn directories(&self) -> &Directories {
        &self.directories
    }

    /// What was changed in writable mounts of earlier versions.
    pub fn earlier_snapshots(&self) -> &EarlierSnapshots {
        &self.earlier_snapshots
    }

    /// Where the layers of images come from that were made here.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// What its processes have counted.
    pub fn counters(&self) -> &CounterFiles {
        &self.counters
    }

    /// Files with data of records.
    pub fn items(&self) -> &Items {
        &self.items
    }

    /// Begins a session, in which refs are held.
    pub fn begin_session(&self) -> Result<Session, StoreError> {
        Session::begin(&self.locks)
    }

    /// Whether a session is over, however it ended. One that is being ended may look as if it were not.
    pub fn session_is_over(&self, id: &str) -> Result<bool, StoreError> {
        sessions::is_over(&self.locks, id)
    }

    /// The kernel's name for the present run of the machine.
    pub fn boot(&self) -> Result<String, StoreError> {
        chunk_map::boot_id().map(|[high, low]| format!("{high:016x}{low:016x}"))
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
        removed += self.profiles.sweep()?;
        removed += self.snapshots.sweep()? + self.items.sweep()?;
        removed += self.directories.sweep()?;
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

#[cfg(test)]
pub(crate) use crash_tests::{SmallDisk, eventually};
#[cfg(test)]
pub(crate) use durable::test_hook::die_after;

/// As much of an empty layer's table as the store looks at.
#[cfg(test)]
pub(crate) fn test_table() -> Vec<u8> {
    test_table_of(0)
}

/// The same of a layer of so many chunks.
#[cfg(test)]
pub(crate) fn test_table_of(chunks: u64) -> Vec<u8> {
    draft::tests::table(chunks, b"table")
}
