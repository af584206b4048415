//! One layer opened for reading: its inode table, its data files, and, while it is lazy, the way to what is missing.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Weak};

use super::donors::Donors;
use super::lazy::{FetchError, Fetcher, Lazy};
use super::planner::blob_range;
use super::proof::Trust;
use super::rebuild::RestKeeper;
use super::room::Room;
use super::source::BlobSource;
use crate::layer::entry::Chunk;
use crate::layer::gzip::checkpoint::{Checkpoint, CheckpointError, Checkpoints};
use crate::layer::soci::headers::Claims;
use crate::meter::{self, Count};
use crate::store::{ChunkPlace, DataFiles, LayerFiles, StoreError};
use crate::table::placement::DataFile;
use crate::table::{Codec, Table};

/// An open layer. Shared by all who read it.
pub struct LayerContent {
    layer: Arc<str>,
    table: Table,
    files: LayerFiles,
    /// If its chunks need any, and they are whole.
    checkpoints: Option<Checkpoints>,
    /// What is to be proved of its files before they are read. `None` within: it is damaged.
    claims: Option<Option<Claims>>,
    lazy: Option<Lazy>,
    trust: Trust,
    rests: RestKeeper,
    this: Weak<LayerContent>,
}

/// How much of a layer is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Presence {
    /// Chunks that are here.
    pub chunks: u64,
    /// All chunks; 0 if the layer came whole.
    pub all_chunks: u64,
    /// Bytes of the blob that the chunks which are here were decoded from.
    pub blob_bytes: u64,
    /// The same of all chunks.
    pub all_blob_bytes: u64,
}

impl LayerContent {
    /// A layer of which nothing more is fetched: one that is wholly here, or one that is only looked at.
    pub fn local(layer: &str, table: Table, files: LayerFiles) -> Arc<LayerContent> {
        LayerContent::new(layer, table, files, None)
    }

    /// A layer whose missing chunks come from `source`.
    pub fn lazy_from(
        layer: &str,
        table: Table,
        files: LayerFiles,
        source: Arc<dyn BlobSource>,
        fetcher: Arc<Fetcher>,
    ) -> Arc<LayerContent> {
        LayerContent::new(layer, table, files, Some(Lazy::new(source, fetcher)))
    }

    fn new(layer: &str, table: Table, mut files: LayerFiles, lazy: Option<Lazy>) -> Arc<LayerContent> {
        // Damaged ones matter only if they are needed some day, and are missed then.
        let checkpoints = files.checkpoints.take().and_then(|file| Checkpoints::open(file).ok());
        let claims = files.headers.take().map(|file| Claims::open(file).ok());
        let trust = Trust::default();
        Arc::new_cyclic(|this| LayerContent {
            layer: layer.into(),
            table,
            files,
            checkpoints,
            claims,
            lazy,
            trust,
            rests: RestKeeper::default(),
            this: this.clone(),
        })
    }

    pub(super) fn claims(&self) -> Option<&Option<Claims>> {
        self.claims.as_ref()
    }

    pub(super) fn files(&self) -> &LayerFiles {
        &self.files
    }

    pub(super) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(super) fn rest_keeper(&self) -> &RestKeeper {
        &self.rests
    }

    /// Itself, as it is shared; nothing while it is dropped.
    pub(super) fn shared(&self) -> Option<Arc<LayerContent>> {
        self.this.upgrade()
    }

    /// The checkpoint at which that chunk is decoded, if it needs one.
    pub(super) fn checkpoint_of(&self, chunk: &Chunk) -> Result<Option<Checkpoint>, FetchError> {
        if !chunk.codec.needs_checkpoint() {
            return Ok(None);
        }
        let checkpoint = match &self.checkpoints {
            Some(checkpoints) => checkpoints.get(chunk.checkpoint),
            None => Err(CheckpointError::Missing(chunk.checkpoint)),
        };
        checkpoint.map(Some).map_err(|cause| FetchError::Checkpoint {
            layer: self.layer.clone(),
            range: chunk.blob_offset..chunk.blob_offset.saturating_add(chunk.blob_length),
            cause: Arc::new(cause),
        })
    }

    /// How much of it is here.
    pub fn presence(&self) -> Presence {
        let Some(map) = &self.files.chunk_map else { return Presence::default() };
        let mut presence = Presence { all_chunks: map.len(), ..Presence::default() };
        let mut before = 0..0;
        for (number, chunk) in self.table.chunks().iter().enumerate() {
            // What several chunks share counts with the first.
            let range = blob_range(chunk);
            let counted = if before.start == range.start { before.end } else { range.start };
            let length = range.end.saturating_sub(counted);
            before = range.start..range.end.max(counted);
            presence.all_blob_bytes += length;
            if map.is_present(number as u64) {
                presence.chunks += 1;
                presence.blob_bytes += length;
            }
        }
        presence
    }

    /// Bytes of the blob whose content is here, of the `blob_size` that it has: what no chunk needs (headers, the table of contents)
    /// counts as soon as all chunks are here.
    pub fn blob_bytes_present(&self, blob_size: u64) -> u64 {
        let presence = self.presence();
        if presence.chunks == presence.all_chunks { blob_size } else { presence.blob_bytes.min(blob_size) }
    }

    /// Bytes of that part of the decoded space that are here.
    pub fn present_bytes(&self, decoded: Range<u64>) -> u64 {
        if self.files.chunk_map.is_none() {
            return decoded.end - decoded.start;
        }
        let here = self.table.chunks_of(decoded.clone()).filter(|number| self.has_chunk(*number));
        let chunks = here.filter_map(|number| self.table.chunks().get(number));
        chunks
            .map(|chunk| {
                let start = chunk.decoded_offset.get();
                let end = start.saturating_add(chunk.decoded_length.get());
                end.min(decoded.end).saturating_sub(start.max(decoded.start))
            })
            .sum()
    }

    /// Makes what is here outlast a crash of the machine.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        match &self.files.chunk_map {
            Some(map) => map.checkpoint(|| self.files.data.sync()),
            None => Ok(()),
        }
    }

    /// The layer's digest.
    pub fn layer(&self) -> &Arc<str> {
        &self.layer
    }

    /// Bytes of the blob, from its beginning, that its author wants to have fetched first; nothing if he does not say, or it is not
    /// known any more.
    pub fn landmark(&self) -> Option<u64> {
        self.files.provenance().ok().flatten()?.landmark
    }

    /// Its inode table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// Its data files.
    pub fn data(&self) -> &DataFiles {
        &self.files.data
    }

    pub(super) fn lazy(&self) -> Option<&Lazy> {
        self.lazy.as_ref()
    }

    /// Says where its chunks may be found besides.
    pub(super) fn copy_from(&self, donors: Donors) {
        if let Some(lazy) = &self.lazy {
            lazy.copy_from(donors);
        }
    }

    /// Whether that chunk is here. No lock, no system call.
    pub fn has_chunk(&self, number: usize) -> bool {
        self.files.chunk_map.as_ref().is_none_or(|map| map.is_present(number as u64))
    }

    /// Whether all these bytes of the decoded space are here.
    pub fn is_present(&self, decoded: Range<u64>) -> bool {
        self.files
            .chunk_map
            .as_ref()
            .is_none_or(|map| map.all_present(chunk_numbers(self.table.chunks_of(decoded))))
    }

    /// Reads bytes of the decoded space. False if not all of them are present, some were evicted meanwhile, or the layer is poisoned:
    /// then what is in the buffer is worth nothing.
    ///
    /// # Errors
    ///
    /// Those of the disk; data files that are too short, as when somebody truncated them.
    pub fn read(&self, decoded_offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        let (is_read, chunks) = self.read_chunks(decoded_offset, buffer)?;
        if is_read && !chunks.is_empty() {
            if let Some(lazy) = &self.lazy {
                lazy.note_read(self, chunks.start as usize..chunks.end as usize);
            }
            meter::count(Count::ChunksHere, chunks.end - chunks.start);
            self.touch(chunks);
        }
        Ok(is_read)
    }

    /// The same for who only looks whether it is of use to somebody: it does not count as read.
    ///
    /// # Errors
    /// As for [`read`](Self::read).
    pub fn peek(&self, decoded_offset: u64, buffer: &mut [u8]) -> io::Result<bool> {
        self.read_chunks(decoded_offset, buffer).map(|(is_read, _)| is_read)
    }

    /// Whether it was read, and the chunks that it is of; none of a layer that came whole.
    fn read_chunks(&self, decoded_offset: u64, buffer: &mut [u8]) -> io::Result<(bool, Range<u64>)> {
        let Some(map) = &self.files.chunk_map else {
            return self.read_data(decoded_offset, buffer).map(|()| (true, 0..0));
        };
        if self.is_poisoned() {
            return Ok((false, 0..0));
        }
        let end = decoded_offset.saturating_add(buffer.len() as u64);
        let chunks = chunk_numbers(self.table.chunks_of(decoded_offset..end));
        let is_read = map.read_present(chunks.clone(), || self.read_data(decoded_offset, buffer))?;
        Ok((is_read, chunks))
    }

    /// Says that these chunks are warm, if that matters to anybody.
    fn touch(&self, chunks: Range<u64>) {
        if self.room().is_some_and(|room| room.is_limited())
            && let Some(touched) = self.files.touched()
        {
            touched.touch(chunks);
        }
    }

    fn read_data(&self, decoded_offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        for piece in self.table.pieces(decoded_offset, buffer.len() as u64) {
            let (part, rest) = buffer.split_at_mut(piece.length as usize);
            self.data().read_at(piece.file, piece.file_offset, part)?;
            buffer = rest;
        }
        Ok(())
    }

    /// Writes the verified bytes of a chunk to their place and says that it is here; none are written for a hole.
    pub(super) fn write_and_mark(
        &self,
        number: usize,
        decoded_offset: u64,
        mut bytes: &[u8],
    ) -> Result<(), StoreError> {
        let Some(map) = &self.files.chunk_map else { return Ok(()) };
        let _lock = map.lock_for_marking()?;
        for piece in self.table.pieces(decoded_offset, bytes.len() as u64) {
            let (part, rest) = bytes.split_at(piece.length as usize);
            self.data().write_at(piece.file, piece.file_offset, part)?;
            bytes = rest;
        }
        map.mark(number as u64);
        self.touch(number as u64..number as u64 + 1);
        self.prove_if_complete();
        Ok(())
    }

    /// Discards the bytes of those chunks that are here, and gives their number; they are fetched again when somebody reads them.
    /// What a kernel reads by itself stays, and so does a layer that came without chunks. Readers need not be kept away.
    ///
    /// # Errors
    /// If the store cannot write or discard.
    pub fn evict(&self, chunks: Range<usize>) -> Result<u64, StoreError> {
        self.evict_chunks(chunks)
    }

    /// The same for single chunks, in ascending order.
    pub(super) fn evict_chunks(&self, chunks: impl IntoIterator<Item = usize>) -> Result<u64, StoreError> {
        self.files.evict(&self.places(chunks))
    }

    /// Discards what is on the disk of chunks that are not here: see [`LayerFiles::discard_leftovers`].
    pub(super) fn discard_leftovers(&self) -> Result<(), StoreError> {
        self.files.discard_leftovers(&self.places(0..self.table.chunks().len()))
    }

    fn places(&self, chunks: impl IntoIterator<Item = usize>) -> Vec<ChunkPlace> {
        let place = |number: usize| {
            let chunk = self.table.chunks().get(number)?;
            let pieces = self.table.pieces(chunk.decoded_offset.get(), chunk.decoded_length.get());
            Some(ChunkPlace { chunk: number as u64, pieces: pieces.collect() })
        };
        chunks.into_iter().map_while(place).collect()
    }

    /// Chunks that are here and whose bytes are so many or, if there are not as many, all that there are: the next ones from where it was
    /// asked last. Unless it may be any, those that were touched meanwhile are passed over this once.
    pub(super) fn evictable(&self, bytes: u64, any: bool) -> Vec<usize> {
        let Some(map) = &self.files.chunk_map else { return Vec::new() };
        let (touched, chunks) = (self.files.touched(), self.table.chunks());
        let hand = touched.map_or(0, |touched| touched.hand()) as usize;
        let (mut found, mut left, mut next) = (Vec::new(), bytes, hand);
        for number in (hand..chunks.len()).chain(0..hand) {
            if left == 0 {
                break;
            }
            next = number + 1;
            // Zeros are holes already.
            let is_of_use = map.is_present(number as u64) && chunks[number].codec != Codec::Zeros as u8;
            let is_warm = || touched.is_some_and(|touched| touched.take(number as u64));
            if is_of_use && (any || !is_warm()) {
                left = left.saturating_sub(chunks[number].decoded_length.get());
                found.push(number);
            }
        }
        if let Some(touched) = touched {
            touched.set_hand(next as u64);
        }
        found.sort_unstable();
        found
    }

    /// Brings what is missing of these bytes, then calls `done`: on this thread if nothing is missing.
    pub fn fetch(
        self: &Arc<Self>,
        decoded: Range<u64>,
        done: impl FnOnce(Result<(), FetchError>) + Send + 'static,
    ) {
        if self.is_poisoned() {
            let reason = self.poison().unwrap_or_default().into();
            return done(Err(FetchError::Poisoned { layer: self.layer.clone(), reason }));
        }
        match &self.lazy {
            Some(lazy) => lazy.request(self, self.table.chunks_of(decoded), Box::new(done)),
            None if self.is_present(decoded) => done(Ok(())),
            None => done(Err(FetchError::NoSource { layer: self.layer.clone() })),
        }
    }

    /// The data file that holds exactly the large file whose content begins there, if all of it is here. Nothing of it is evicted as long
    /// as it is open.
    pub fn whole_file(&self, decoded_offset: u64, size: u64) -> Option<Arc<std::fs::File>> {
        let decoded = decoded_offset..decoded_offset.saturating_add(size);
        let mut pieces = self.table.pieces(decoded_offset, size);
        let piece = pieces.next()?;
        let DataFile::Large(number) = piece.file else { return None };
        if self.is_poisoned()
            || piece.file_offset != 0
            || piece.length != size
            || !self.is_present(decoded.clone())
        {
            return None;
        }
        let file = self.data().large_kept(number).ok().flatten()?;
        // Evictions are kept away only now.
        self.is_present(decoded).then_some(file)
    }

    /// The same for the kernel, which nobody can stop once it reads it, and for which it is kept as long as somebody does: the layer is
    /// proved, so that it will never be found to be false, and there is no budget, for which it might have to go.
    pub fn whole_file_to_pass_through(&self, decoded_offset: u64, size: u64) -> Option<Arc<std::fs::File>> {
        let has_budget = || self.room().is_some_and(|room| room.has_budget_now());
        if !self.is_vouched_for() || has_budget() {
            return None;
        }
        let file = self.whole_file(decoded_offset, size)?;
        // Zeros at the end need not have been written, and the kernel would find the end before them.
        file.metadata().is_ok_and(|metadata| metadata.len() == size).then_some(file)
    }

    fn room(&self) -> Option<&Arc<Room>> {
        self.lazy.as_ref().and_then(|lazy| lazy.fetcher().room())
    }
}

fn chunk_numbers(chunks: Range<usize>) -> Range<u64> {
    chunks.start as u64..chunks.end as u64
}
