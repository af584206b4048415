//! One layer opened for reading: its inode table, its data files, and, while it is lazy, the way to what is missing.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::lazy::{FetchError, Fetcher, Lazy};
use super::source::BlobSource;
use crate::store::{DataFiles, LayerFiles, StoreError};
use crate::table::Table;
use crate::table::placement::DataFile;

/// An open layer. Shared by all who read it.
pub struct LayerContent {
    layer: Arc<str>,
    table: Table,
    files: LayerFiles,
    lazy: Option<Lazy>,
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
        Arc::new(LayerContent { layer: layer.into(), table, files, lazy: None })
    }

    /// A layer whose missing chunks come from `source`.
    pub fn lazy_from(
        layer: &str,
        table: Table,
        files: LayerFiles,
        source: Arc<dyn BlobSource>,
        fetcher: Arc<Fetcher>,
    ) -> Arc<LayerContent> {
        Arc::new(LayerContent { layer: layer.into(), table, files, lazy: Some(Lazy::new(source, fetcher)) })
    }

    /// How much of it is here.
    pub fn presence(&self) -> Presence {
        let Some(map) = &self.files.chunk_map else { return Presence::default() };
        let mut presence = Presence { all_chunks: map.len(), ..Presence::default() };
        for (number, chunk) in self.table.chunks().iter().enumerate() {
            presence.all_blob_bytes += chunk.blob_length.get();
            if map.is_present(number as u64) {
                presence.chunks += 1;
                presence.blob_bytes += chunk.blob_length.get();
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

    /// Reads bytes of the decoded space that are present.
    ///
    /// # Errors
    ///
    /// Those of the disk; data files that are too short, as when somebody truncated them.
    pub fn read(&self, decoded_offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        for piece in self.table.pieces(decoded_offset, buffer.len() as u64) {
            let (part, rest) = buffer.split_at_mut(piece.length as usize);
            self.data().read_at(piece.file, piece.file_offset, part)?;
            buffer = rest;
        }
        Ok(())
    }

    /// Writes verified bytes to their place.
    pub(super) fn write(&self, decoded_offset: u64, mut bytes: &[u8]) -> Result<(), StoreError> {
        for piece in self.table.pieces(decoded_offset, bytes.len() as u64) {
            let (part, rest) = bytes.split_at(piece.length as usize);
            self.data().write_at(piece.file, piece.file_offset, part)?;
            bytes = rest;
        }
        Ok(())
    }

    pub(super) fn mark(&self, number: usize) {
        if let Some(map) = &self.files.chunk_map {
            map.mark(number as u64);
        }
    }

    /// Brings what is missing of these bytes, then calls `done`: on this thread if nothing is missing.
    pub fn fetch(
        self: &Arc<Self>,
        decoded: Range<u64>,
        done: impl FnOnce(Result<(), FetchError>) + Send + 'static,
    ) {
        match &self.lazy {
            Some(lazy) => lazy.request(self, self.table.chunks_of(decoded), Box::new(done)),
            None if self.is_present(decoded) => done(Ok(())),
            None => done(Err(FetchError::NoSource { layer: self.layer.clone() })),
        }
    }

    /// The data file that holds exactly the large file whose content begins there, if all of it is here.
    pub fn whole_file(&self, decoded_offset: u64, size: u64) -> Option<Arc<std::fs::File>> {
        let mut pieces = self.table.pieces(decoded_offset, size);
        let piece = pieces.next()?;
        let DataFile::Large(number) = piece.file else { return None };
        let whole = piece.file_offset == 0
            && piece.length == size
            && self.is_present(decoded_offset..decoded_offset + size);
        whole.then(|| self.data().large(number).ok()).flatten()
    }
}

fn chunk_numbers(chunks: Range<usize>) -> Range<u64> {
    chunks.start as u64..chunks.end as u64
}
