//! A layer while it is made, and how it becomes visible: contents synced, then renamed, then the directory synced.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

use super::chunk_map::ChunkMap;
use super::data_files::{DataFile, DataFiles, Home};
use super::durable::{crash_point, rename, sync_directory, write_all};
use super::error::{Context, StoreError};
use super::layers::{
    CHECKPOINTS, CHUNKS, COMPLETE, HEADERS, LayerDirectory, LayerFiles, TABLE, chunk_count, optional,
};
use super::provenance::{self, PROVENANCE, Provenance};
use super::temporary::{Temporary, remove_unused};
use super::touched;
use crate::table::placement::Piece;

/// Holes are kept at this granularity: the block size of the usual file systems.
const BLOCK: usize = 4096;

/// A layer that nobody else sees yet. Removed on drop; if the process is killed, by the next sweep.
#[derive(Debug)]
pub struct LayerDraft {
    layer: LayerDirectory,
    data: Arc<DataFiles>,
    /// End of what was written to the packed file, holes included.
    packed_end: AtomicU64,
}

/// What of a layer is there when it is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// All, for ever.
    Complete,
    /// None of its chunks.
    Lazy(u64),
    /// All of its chunks.
    Whole(u64),
}

/// What came of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Publication {
    /// The layer is in its place.
    Published,
    /// Another was there first and stays. This one goes when its files are no longer used.
    AlreadyThere,
}

impl LayerDraft {
    pub(super) fn new(layer: LayerDirectory, directory: Temporary) -> Result<LayerDraft, StoreError> {
        let home = Arc::new(Home::Made(directory));
        let data = DataFiles::open(Arc::clone(&home), Arc::clone(layer.descriptors()), OFlags::CREATE)
            .context("make a data file in", home.path())?;
        Ok(LayerDraft { layer, data: Arc::new(data), packed_end: AtomicU64::new(0) })
    }

    /// The data files, to read back what was written.
    pub fn data(&self) -> &Arc<DataFiles> {
        &self.data
    }

    /// Makes the data file of a large file, all hole, of its final length in bytes. Before the first
    /// [`write`](Self::write) to it; for a lazy layer it may be left to the first bytes that are fetched.
    pub fn large_file(&self, number: u32, length: u64) -> Result<(), StoreError> {
        self.data.set_length(DataFile::Large(number), length)
    }

    /// The file that keeps what chunks need beside the blob, made empty. It is part of the layer from then on.
    pub fn checkpoints(&self) -> Result<File, StoreError> {
        self.make_beside(CHECKPOINTS)
    }

    /// The same for what is to be proved of its files before they are read.
    pub fn headers(&self) -> Result<File, StoreError> {
        self.make_beside(HEADERS)
    }

    fn make_beside(&self, name: &str) -> Result<File, StoreError> {
        let home = self.data.home();
        crash_point();
        home.open(name, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC).context("make", home.path().join(name))
    }

    /// Says how the layer comes to be here. At most once; it is part of the layer from then on.
    pub fn provenance(&self, provenance: &Provenance) -> Result<(), StoreError> {
        provenance::write(self.data.home(), PROVENANCE, provenance).map(drop)
    }

    /// Writes bytes at an offset. Each byte is written at most once: whole blocks of zeros are left out and stay holes.
    /// Several threads may write at once.
    pub fn write(&self, file: DataFile, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let (large, open): (Arc<File>, &File);
        match file {
            DataFile::Packed => {
                self.packed_end.fetch_max(offset.saturating_add(bytes.len() as u64), Ordering::Relaxed);
                open = self.data.packed();
            }
            DataFile::Large(number) => {
                large = self
                    .data
                    .large(number)
                    .context("open the data file of a large file in", self.data.home().path())?;
                open = &large;
            }
        }
        for run in data_runs(offset, bytes) {
            crash_point();
            open.write_all_at(&bytes[run.clone()], offset + run.start as u64)
                .context("write", self.data.home().path())?;
        }
        Ok(())
    }

    /// Gives back what was written of a part: its chunk is not whole.
    pub fn discard(&self, piece: &Piece) -> Result<(), StoreError> {
        let end = piece.file_offset.saturating_add(piece.length);
        self.data.discard(piece.file, piece.file_offset, end)
    }

    /// Finishes the layer and makes it visible; all of it is on disk when this returns. If another process published the same
    /// layer meanwhile, that one's files are given and this draft goes. `chunk_count` as for
    /// [`finish_unsynced`](Self::finish_unsynced).
    pub fn publish(self, table: &[u8], chunk_count: Option<u64>) -> Result<LayerFiles, StoreError> {
        let layer = self.layer.clone();
        let (files, pending) = self.finish_unsynced(table, chunk_count)?;
        match pending.commit()? {
            Publication::Published => Ok(files),
            // Removed again in this instant? Then ours are as good.
            Publication::AlreadyThere => Ok(layer.open()?.unwrap_or(files)),
        }
    }

    /// Like [`publish`](Self::publish), but takes the place of a layer that is there.
    pub fn replace(self, table: &[u8], chunk_count: Option<u64>) -> Result<LayerFiles, StoreError> {
        let (files, pending) = self.finish_unsynced(table, chunk_count)?;
        pending.commit_replacing()?;
        Ok(files)
    }

    /// Finishes the layer. Its files can be used at once; it is published by [`PendingPublish::commit`], on any thread.
    ///
    /// `table` is the inode table. `chunk_count` is the number of its chunks if the layer is lazy (none is present yet), and
    /// `None` if every byte was written.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if the table has another number of chunks; [`StoreError::Full`]. The draft is gone then.
    pub fn finish_unsynced(
        self,
        table: &[u8],
        chunks: Option<u64>,
    ) -> Result<(LayerFiles, PendingPublish), StoreError> {
        self.finish(table, chunks.map_or(Presence::Complete, Presence::Lazy))
    }

    /// The same for a layer of that many chunks of which every byte was written, but for those chunks that are missing: they
    /// can be [evicted](LayerFiles::evict), and fetched again.
    ///
    /// # Errors
    /// As for [`finish_unsynced`](Self::finish_unsynced).
    pub fn finish_whole_unsynced(
        self,
        table: &[u8],
        chunks: u64,
        missing: &[u64],
    ) -> Result<(LayerFiles, PendingPublish), StoreError> {
        let (files, pending) = self.finish(table, Presence::Whole(chunks))?;
        if let (Some(map), false) = (&files.chunk_map, missing.is_empty()) {
            missing.iter().for_each(|chunk| {
                map.clear(*chunk);
            });
            // Durable before the layer is visible, as what is there is: its data are synced before that.
            map.checkpoint(|| Ok(()))?;
        }
        Ok((files, pending))
    }

    fn finish(self, table: &[u8], presence: Presence) -> Result<(LayerFiles, PendingPublish), StoreError> {
        let home = Arc::clone(self.data.home());
        let path = home.path();
        if let Presence::Lazy(expected) | Presence::Whole(expected) = presence {
            let damaged = |reason| StoreError::Damaged { path: path.join(TABLE), reason };
            let found = chunk_count(table).map_err(damaged)?;
            if found != expected {
                return Err(damaged(format!("it has {found} chunks, not {expected}")));
            }
        }
        // Nobody else writes any more: the length that trailing holes are missing.
        let end = self.packed_end.load(Ordering::Relaxed);
        if end > 0 {
            self.data.set_length(DataFile::Packed, end)?;
        }
        let make = |name| {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            home.open(name, flags).context("make", path.join(name))
        };
        let table_file = make(TABLE)?;
        write_all(&table_file, table, &path.join(TABLE))?;
        let (mark, chunk_map) = match presence {
            Presence::Lazy(count) | Presence::Whole(count) => {
                let file = make(CHUNKS)?;
                let published = self.layer.path().join(CHUNKS);
                // That all is present is durable once the draft is in its place, and before that its data are synced.
                let all_present = matches!(presence, Presence::Whole(_));
                let map = ChunkMap::create(&file, &self.layer.map_place(&published), count, all_present)?;
                (file, Some(Arc::new(map)))
            }
            Presence::Complete => (make(COMPLETE)?, None),
        };
        let beside = |name| optional(home.open(name, OFlags::RDONLY)).context("open", path.join(name));
        let (checkpoints, headers) = (beside(CHECKPOINTS)?, beside(HEADERS)?);
        let clone = |file: &File| file.try_clone().context("open", path);
        let mut others = vec![clone(&table_file)?, mark];
        for file in [&checkpoints, &headers].into_iter().flatten() {
            others.push(clone(file)?);
        }
        let provenance =
            optional(home.open(PROVENANCE, OFlags::RDONLY)).context("open", path.join(PROVENANCE))?;
        others.extend(provenance);
        let pending = PendingPublish { layer: self.layer, data: Arc::clone(&self.data), others };
        let touched = touched::Kept::new();
        Ok((
            LayerFiles { table: table_file, data: self.data, chunk_map, checkpoints, headers, touched },
            pending,
        ))
    }
}

/// A layer that is finished but not published. Dropping it leaves the layer unpublished.
#[derive(Debug)]
pub struct PendingPublish {
    layer: LayerDirectory,
    data: Arc<DataFiles>,
    others: Vec<File>,
}

impl PendingPublish {
    /// Brings the layer to disk and to its place, unless one is there.
    pub fn commit(self) -> Result<Publication, StoreError> {
        self.sync()?;
        let Some(temporary) = self.temporary() else { return Ok(Publication::AlreadyThere) };
        match temporary.publish(self.layer.path()) {
            Ok(()) => {}
            // A directory that holds something is never replaced by rename(2).
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Publication::AlreadyThere),
            Err(error) => return Err(StoreError::from_io("publish", self.layer.path(), error)),
        }
        sync_directory(self.layer.parent())?;
        Ok(Publication::Published)
    }

    /// Brings the layer to disk and to its place. What was there stays usable for those who have it open.
    pub fn commit_replacing(self) -> Result<(), StoreError> {
        self.sync()?;
        let Some(temporary) = self.temporary() else { return Ok(()) };
        let place = self.layer.path();
        crash_point();
        match rustix::fs::renameat_with(CWD, temporary.path(), CWD, place, RenameFlags::EXCHANGE) {
            Ok(()) => {
                temporary.set_published();
                sync_directory(self.layer.parent())?;
                remove_unused(temporary.path()).context("remove", temporary.path())?;
                return Ok(());
            }
            // Nothing to replace, or a file system that cannot exchange.
            Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {}
            Err(error) => return Err(StoreError::from_io("replace", place, error)),
        }
        let removed = self.layer.temporaries().unused_name();
        loop {
            match rename(place, &removed) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(error) => return Err(StoreError::from_io("replace", place, error)),
            }
            match temporary.publish(place) {
                Ok(()) => break,
                // Another process published in between.
                Err(Errno::NOTEMPTY | Errno::EXIST) => {
                    remove_unused(&removed).context("remove", &removed)?;
                }
                Err(error) => return Err(StoreError::from_io("publish", place, error)),
            }
        }
        sync_directory(self.layer.parent())?;
        remove_unused(&removed).context("remove", &removed)?;
        Ok(())
    }

    fn sync(&self) -> Result<(), StoreError> {
        let home = self.data.home();
        self.data.sync().context("sync", home.path())?;
        for file in &self.others {
            super::durable::sync_data(file, home.path())?;
        }
        crash_point();
        rustix::fs::fsync(home.directory()).context("sync directory", home.path())
    }

    fn temporary(&self) -> Option<&Temporary> {
        match &**self.data.home() {
            Home::Made(temporary) => Some(temporary),
            Home::Found { .. } => None,
        }
    }
}

/// The parts of `bytes`, which lie at `offset`, that are not whole blocks of zeros. Neighbours come as one.
fn data_runs(offset: u64, bytes: &[u8]) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
    static ZEROS: [u8; BLOCK] = [0; BLOCK];
    // End of the block in which `position` lies.
    let block_end = move |position: usize| {
        let within = (offset.wrapping_add(position as u64) % BLOCK as u64) as usize;
        (position + (BLOCK - within)).min(bytes.len())
    };
    let is_hole = move |position: usize| {
        let block = &bytes[position..block_end(position)];
        block.len() == BLOCK && *block == ZEROS
    };
    let mut position = 0;
    std::iter::from_fn(move || {
        while position < bytes.len() && is_hole(position) {
            position = block_end(position);
        }
        let start = position;
        while position < bytes.len() && !is_hole(position) {
            position = block_end(position);
        }
        (start < position).then_some(start..position)
    })
}

#[cfg(test)]
#[path = "layer_tests.rs"]
pub(super) mod tests;
