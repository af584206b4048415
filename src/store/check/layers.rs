//! Layers: their tables, and each chunk that counts as present.

use sha2::{Digest as _, Sha256};

use super::super::error::StoreError;
use super::super::layers::{LayerFiles, table_identity};
use super::{Check, FindingKind};
use crate::store::ChunkPlace;
use crate::table::format::ChunkRecord;
use crate::table::{Codec, Table};

/// Altered chunks that are named in a finding; of more, the number is told.
const NAMED: usize = 3;

impl Check<'_> {
    pub(super) fn layers(&mut self) -> Result<(), StoreError> {
        let directory = self.store.layers().directory().to_owned();
        for (name, path) in self.named_by_digests(&directory)? {
            let layer = self.store.layers().layer(&name.to_string())?;
            let opened = match layer.open() {
                Ok(None) => continue,
                Ok(Some(files)) => {
                    self.report.bytes += files.table.metadata().map_or(0, |metadata| metadata.len());
                    match Table::open(&files.table, &table_identity(&layer.digest())) {
                        Ok(table) => Ok((table, files)),
                        Err(error) => Err(error.to_string()),
                    }
                }
                Err(StoreError::Damaged { reason, .. }) => Err(reason),
                Err(error) => return Err(error),
            };
            self.report.layers += 1;
            let (table, files) = match opened {
                Ok(opened) => opened,
                Err(what) => {
                    self.found(FindingKind::DamagedLayer, &path, what, || layer.remove())?;
                    continue;
                }
            };
            let altered = self.altered_chunks(&table, &files);
            if altered.is_empty() {
                continue;
            }
            let named: Vec<String> = altered.iter().take(NAMED).map(u64::to_string).collect();
            let more = if altered.len() > NAMED { " …" } else { "" };
            let what = format!(
                "{} of its {} chunks have not their digest any more: {}{more}",
                altered.len(),
                table.chunks().len(),
                named.join(", ")
            );
            let (kind, has_map) = match files.chunk_map {
                Some(_) => (FindingKind::AlteredChunks, true),
                None => (FindingKind::DamagedLayer, false),
            };
            self.found(kind, &path, what, || {
                if has_map { discard(&table, &files, &altered) } else { layer.remove() }
            })?;
        }
        Ok(())
    }

    /// The chunks that count as present and whose bytes are others.
    fn altered_chunks(&mut self, table: &Table, files: &LayerFiles) -> Vec<u64> {
        let mut altered = Vec::new();
        for (number, chunk) in (0..).zip(table.chunks()) {
            let is_present = files.chunk_map.as_ref().is_none_or(|map| map.is_present(number));
            match Codec::from_number(chunk.codec) {
                _ if !is_present => continue,
                // No bytes are written for it.
                Some(Codec::Zeros) => self.report.chunks += 1,
                Some(Codec::SealedGzipSpan) => {
                    self.report.chunks += 1;
                    self.report.chunks_without_digest += 1;
                }
                _ => {
                    let mut is_whole = false;
                    let mut look = || {
                        is_whole = digest(table, files, chunk, &mut self.buffer) == Some(chunk.digest);
                        Ok::<(), ()>(())
                    };
                    let was_there = match &files.chunk_map {
                        Some(map) => map.read_present(number..number + 1, look),
                        None => look().map(|()| true),
                    };
                    // Else it was evicted meanwhile.
                    if was_there == Ok(true) {
                        self.report.chunks += 1;
                        self.report.bytes += chunk.decoded_length.get();
                        if !is_whole {
                            altered.push(number);
                        }
                    }
                }
            }
        }
        altered
    }
}

/// SHA-256 of the bytes that the data files have for a chunk; nothing if they cannot be read.
fn digest(table: &Table, files: &LayerFiles, chunk: &ChunkRecord, buffer: &mut [u8]) -> Option<[u8; 32]> {
    let mut hasher = Sha256::new();
    for piece in table.pieces(chunk.decoded_offset.get(), chunk.decoded_length.get()) {
        let (mut offset, mut left) = (piece.file_offset, piece.length);
        while left > 0 {
            let length = left.min(buffer.len() as u64);
            let part = &mut buffer[..length as usize];
            files.data.read_at(piece.file, offset, part).ok()?;
            hasher.update(part);
            (offset, left) = (offset + length, left - length);
        }
    }
    Some(hasher.finalize().into())
}

/// Has these chunks count as missing; false if somebody holds one, as a kernel does that reads a large file by itself.
fn discard(table: &Table, files: &LayerFiles, chunks: &[u64]) -> Result<bool, StoreError> {
    let places: Vec<ChunkPlace> = chunks
        .iter()
        .filter_map(|number| {
            let chunk = table.chunks().get(usize::try_from(*number).ok()?)?;
            let pieces = table.pieces(chunk.decoded_offset.get(), chunk.decoded_length.get());
            Some(ChunkPlace { chunk: *number, pieces: pieces.collect() })
        })
        .collect();
    files.evict(&places)?;
    let is_gone = |number: &u64| files.chunk_map.as_ref().is_none_or(|map| !map.is_present(*number));
    Ok(chunks.iter().all(is_gone))
}
