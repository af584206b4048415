//! Stores beneath this one, whose layers are used where they are: shared by many users or machines, on a file system that may be read-only.
//!
//! ```text
//! layer wanted ─▶ here? ─no─▶ wholly in a lower store? ─no─▶ brought
//!                   └─yes─┐             └─yes─┐
//!                         ▼                   ▼
//!                       used                used: its files are opened for reading, nothing is copied
//! ```
//!
//! Rules
//! - Nothing is ever written below: no lock file, no bit, no time of use. Only layers count that are wholly there and on disk by what their
//!   own chunk map says; no other process of this store could add what is missing.
//! - Who reads such a layer holds a shared lock on its table, besides the one on its directory. The lower store's own
//!   processes neither remove the layer nor evict anything of it meanwhile. Between machines that holds as far as the file system
//!   carries locks: where it does not, a store that others read must not be changed.
//! - What is in a lower store is believed as what is in this one is: it must belong to this user, or to root.
//! - A lower store that is gone (not mounted, say) is passed over, and the log says so.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::Store;
use super::chunk_bits;
use super::content::write_file;
use super::data_files::{DataFiles, Home, PACKED};
use super::durable::open_directory;
use super::error::{Context, StoreError};
use super::layers::{CHUNKS, COMPLETE, LayerFiles, LayerStore, TABLE, chunk_count, optional};
use super::lock::{flock, try_flock};
use super::open::check_version;
use super::provenance::Verdict;
use super::touched;
use crate::error::chain;
use crate::table::format::Header;

const FILE: &str = "lower";
/// Longest list that is read.
const MAXIMUM: u64 = 1 << 20;

/// Layers of another store.
#[derive(Debug)]
pub struct LowerStore {
    layers: LayerStore,
}

impl Store {
    /// Where the stores beneath this one are, the first to be asked first.
    ///
    /// # Errors
    /// If the list cannot be read.
    pub fn lower_paths(&self) -> Result<Vec<PathBuf>, StoreError> {
        let path = self.path.join(FILE);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.context("open", &path)?,
        };
        serde_json::from_reader(std::io::Read::take(file, MAXIMUM)).map_err(|error| StoreError::Damaged {
            reason: format!("it is no list of paths ({error}); remove it, and name them again with `peel store --add-lower`"),
            path,
        })
    }

    /// From now on, uses the layers of the store in that directory, too, after those of the stores that were named before.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`], also for this store itself; [`StoreError::Permission`] for another user's.
    pub fn add_lower(&self, path: &Path) -> Result<(), StoreError> {
        let path = std::fs::canonicalize(path).context("find", path)?;
        let own = std::fs::canonicalize(&self.path).context("find", &self.path)?;
        if path == own || !check_version(&path)? {
            let found = if path == own { "this store itself" } else { "no file VERSION" };
            return Err(StoreError::NotAStore { path, found: found.to_owned() });
        }
        check_owner(&path)?;
        let mut paths = self.lower_paths()?;
        if !paths.contains(&path) {
            paths.push(path);
            self.write_lower(&paths)?;
        }
        Ok(())
    }

    /// Uses the layers of that store no more. Who has them open keeps them.
    ///
    /// # Errors
    /// [`StoreError::NotAStore`] if it is not one of those that were named.
    pub fn remove_lower(&self, path: &Path) -> Result<(), StoreError> {
        // It may be gone.
        let path =
            std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).context("find", path)?;
        let mut paths = self.lower_paths()?;
        let before = paths.len();
        paths.retain(|lower| *lower != path);
        if paths.len() == before {
            return Err(StoreError::NotAStore { path, found: "it is no lower store of this one".to_owned() });
        }
        self.write_lower(&paths)
    }

    fn write_lower(&self, paths: &[PathBuf]) -> Result<(), StoreError> {
        let path = self.path.join(FILE);
        let text = serde_json::to_vec(paths).map_err(std::io::Error::from).context("write", &path)?;
        write_file(self.content.temporaries(), &path, &text)
    }

    /// The stores beneath this one that are there, as they were when this was first asked.
    pub fn lower(&self) -> &[LowerStore] {
        self.lower.get_or_init(|| {
            let paths = self.lower_paths().unwrap_or_else(|error| {
                tracing::warn!(error = %chain(&error), "no lower store is used");
                Vec::new()
            });
            let is_usable = |path: &PathBuf| match check_owner(path).and_then(|()| check_version(path)) {
                Ok(true) => true,
                Ok(false) => {
                    tracing::warn!(path = %path.display(), "there is no store; it is passed over");
                    false
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = %chain(&error), "the lower store is passed over");
                    false
                }
            };
            let layers = |path: PathBuf| LayerStore::new(path.join("layers"), path.join("locks"));
            paths.into_iter().filter(is_usable).map(|path| LowerStore { layers: layers(path) }).collect()
        })
    }
}

fn check_owner(path: &Path) -> Result<(), StoreError> {
    let owner = std::fs::metadata(path).context("look at", path)?.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner != user && owner != 0 {
        return Err(StoreError::Permission {
            operation: "use",
            path: path.to_owned(),
            reason: format!("it belongs to user {owner}, who is neither root nor user {user}"),
        });
    }
    Ok(())
}

impl LowerStore {
    /// Its layers.
    pub fn layers(&self) -> &LayerStore {
        &self.layers
    }

    /// The files of a layer, to be read only, if all of it is there and it is not known to be false.
    ///
    /// # Errors
    /// If they cannot be read.
    pub fn open(&self, digest: &str) -> Result<Option<LayerFiles>, StoreError> {
        let place = self.layers.layer(digest)?;
        let path = place.path();
        let directory = match open_directory(path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(StoreError::from_io("open", path, error)),
        };
        flock(&directory, FlockOperation::LockShared).context("lock", path)?;
        let home = Arc::new(Home::Found { directory, path: path.to_owned() });
        let open = |name| optional(home.open(name, OFlags::RDONLY)).context("open", path.join(name));
        let Some(table) = open(TABLE)? else { return Ok(None) };
        // One who evicts has it for an instant.
        if !try_flock(&table, FlockOperation::NonBlockingLockShared).context("lock", path.join(TABLE))? {
            return Ok(None);
        }
        if open(COMPLETE)?.is_none() {
            let Some(map) = open(CHUNKS)? else { return Ok(None) };
            if !is_whole(&table, &map).context("read", path.join(CHUNKS))? {
                return Ok(None);
            }
        }
        let data = DataFiles::open_to_read(Arc::clone(&home), Arc::clone(place.descriptors()))
            .context("open", path.join(PACKED))?;
        let (data, touched) = (Arc::new(data), touched::Kept::new());
        let files = LayerFiles { table, data, chunk_map: None, checkpoints: None, headers: None, touched };
        let is_false = matches!(files.verdict()?, Some(Verdict::Poisoned { .. }));
        Ok((!is_false).then_some(files))
    }
}

/// Whether the durable part of a chunk map says that all chunks of the table are there.
fn is_whole(table: &File, map: &File) -> std::io::Result<bool> {
    let mut header = vec![0; size_of::<Header>()];
    if table.metadata()?.len() < header.len() as u64 {
        return Ok(false);
    }
    table.read_exact_at(&mut header, 0)?;
    let Ok(count) = chunk_count(&header) else { return Ok(false) };
    let Some(words) = chunk_bits::words_for(count) else { return Ok(false) };
    let length = words * size_of::<u64>();
    if map.metadata()?.len() != length as u64 {
        return Ok(false);
    }
    let mut bytes = vec![0; length];
    map.read_exact_at(&mut bytes, 0)?;
    let (words, _) = bytes.as_chunks();
    let words: Vec<u64> = words.iter().map(|word| u64::from_ne_bytes(*word)).collect();
    Ok(chunk_bits::is_durably_whole(&words, count))
}
