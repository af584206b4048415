//! Chunks that are present are discarded, to be fetched again when somebody reads them.
//!
//! ```text
//! evict   eviction lock ─▶ clear bits ─▶ evictions += 1 ─▶ checkpoint ─▶ punch holes ─▶ unlock
//! mark    eviction lock, shared ─▶ write ─▶ set bits ─▶ unlock
//! read    evictions? ─▶ bits set? ─▶ pread ─▶ evictions as before? else again
//! ```
//!
//! Rules
//! - A reader takes no lock, so the bytes that it was told are present may be discarded before it has read them, and then it
//!   gets zeros. It must not use what it read unless [`evictions`](ChunkMap::evictions), asked *before* the bits, has the same value
//!   afterwards.
//!   Why that is enough: say it read a byte of a hole that an eviction punched. The eviction had been counted before, so the reader
//!   saw that count afterwards, and, as it is the same, before it asked for the bits too. By then the bits had been cleared. It found
//!   them set, so the chunk had been marked again; that needs the lock, so it came after the punching, and the bytes were
//!   written under the same lock: they are no hole. (It asks whether it is the *same* number; 2⁶⁴ evictions do not happen.)
//! - Bytes go after the checkpoint: at no time does the disk have a durable bit for bytes that were punched. A crash between the two
//!   leaves bytes that nothing vouches for; they are overwritten when the chunk is fetched, or discarded as leftovers: under the same
//!   lock, which who writes a chunk holds until it is marked, and counted as an eviction, as who cleared them may not have come to that.
//! - Who reads a layer as part of a [lower store](super::lower) holds a shared lock on its table, which keeps all of it.
//! - Whoever is given a large file to read it without asking (the kernel, for passthrough) holds a shared lock on it, which
//!   keeps its chunks from being evicted ([`DataFiles::large_kept`](super::DataFiles::large_kept)).

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{FlockOperation, OFlags};

use super::chunk_map::{ChunkMap, EvictionLock};
use super::data_files::DataFile;
use super::error::{Context, StoreError};
use super::layers::{LayerFiles, TABLE};
use super::lock::try_flock;
use crate::table::placement::Piece;

/// A chunk and the parts of data files that hold its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkPlace {
    /// Its number.
    pub chunk: u64,
    /// Where its bytes are. No byte of another chunk is among them.
    pub pieces: Vec<Piece>,
}

impl ChunkMap {
    /// Runs `read` if all these chunks are present, and says whether what it read is theirs: if not they are missing, or were
    /// evicted meanwhile, and it is worth nothing.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn read_present<E>(
        &self,
        chunks: Range<u64>,
        read: impl FnOnce() -> Result<(), E>,
    ) -> Result<bool, E> {
        let evictions = self.evictions();
        if !self.all_present(chunks) {
            return Ok(false);
        }
        read()?;
        // What was read comes before the second question.
        fence(Ordering::Acquire);
        Ok(self.evictions() == evictions)
    }
}

impl LayerFiles {
    /// Discards those of the chunks that are present, and gives their number; with them goes what is only kept to prove the layer. What somebody else holds stays: see the head of
    /// this file. Blocks that a chunk shares with its neighbours stay too, unless both are discarded at once.
    ///
    /// # Errors
    /// If the chunk map could not be written (nothing is discarded then), or the file system cannot punch holes.
    pub fn evict(&self, places: &[ChunkPlace]) -> Result<u64, StoreError> {
        let evicted = self.discard(places, |lock, chunks| lock.clear(chunks, || self.data.sync()))?;
        if evicted > 0 {
            self.remove_rests()?;
        }
        Ok(evicted)
    }

    /// Discards what is on the disk of those of the chunks that are not present: what was written or cleared by somebody who was killed
    /// before he had marked or discarded it, and blocks that belonged to two chunks of which one was discarded after the other.
    ///
    /// # Errors
    /// As for [`evict`](Self::evict).
    pub fn discard_leftovers(&self, places: &[ChunkPlace]) -> Result<(), StoreError> {
        self.discard(places, |lock, chunks| lock.missing(chunks, || self.data.sync())).map(drop)
    }

    /// Discards those of the chunks that nobody keeps and that `choose`, of these, says may go; gives their number.
    fn discard(
        &self,
        places: &[ChunkPlace],
        choose: impl FnOnce(&EvictionLock<'_>, Vec<u64>) -> Result<Vec<u64>, StoreError>,
    ) -> Result<u64, StoreError> {
        let Some(map) = &self.chunk_map else { return Ok(0) };
        let lock = map.lock_for_eviction()?;
        // Held until the end: who reads the layer as part of a lower store asks nobody whether a chunk is there.
        let home = self.data.home();
        let table = home.open(TABLE, OFlags::RDONLY).context("open", home.path())?;
        if !try_flock(&table, FlockOperation::NonBlockingLockExclusive).context("lock", home.path())? {
            return Ok(0);
        }
        let mut large: HashMap<u32, Option<Option<File>>> = HashMap::new();
        for piece in places.iter().flat_map(|place| &place.pieces) {
            if let DataFile::Large(number) = piece.file
                && !large.contains_key(&number)
            {
                let held = self
                    .data
                    .large_discardable(number)
                    .context("lock a large file in", self.data.home().path())?;
                large.insert(number, held);
            }
        }
        let is_free = |piece: &Piece| match piece.file {
            DataFile::Packed => true,
            DataFile::Large(number) => large.get(&number).is_some_and(Option::is_some),
        };
        let free = places.iter().filter(|place| place.pieces.iter().all(is_free));
        let chosen: HashSet<u64> =
            choose(&lock, free.map(|place| place.chunk).collect())?.into_iter().collect();

        let mut parts: Vec<Piece> = places
            .iter()
            .filter(|place| chosen.contains(&place.chunk))
            .flat_map(|place| place.pieces.iter().copied())
            .collect();
        parts.sort_by_key(|piece| (piece.file, piece.file_offset));
        for joined in parts.chunk_by(|one, next| {
            one.file == next.file && one.file_offset.checked_add(one.length) == Some(next.file_offset)
        }) {
            let (first, last) = (&joined[0], &joined[joined.len() - 1]);
            self.data.discard(first.file, first.file_offset, last.file_offset.saturating_add(last.length))?;
        }
        Ok(chosen.len() as u64)
    }
}
