//! The archive of a layer put together again from what is here: so that proving it costs the network little more than nothing. What
//! came with its chunks and is no part of a file is kept until then ([`rests`](crate::store::Rest)); only what never came is fetched.
//!
//! This proves a layer or finds differences, never more: whatever else goes wrong, its blob is streamed, and that decides.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use peelfs_registry::Digest;
use peelfs_registry::digest::Digester;

use super::content::LayerContent;
use super::proof::{ProofSink, Prover};
use super::source::BlobSource;
use crate::layer::chunk::Stretch;
use crate::layer::compression::Compression;
use crate::layer::entry::Chunk;
use crate::layer::rebuild::{Step, blob_bytes, next_stored, rest_of, steps};
use crate::layer::stream::MAXIMUM_DECODED;
use crate::layer::tar::{Limits, SinkError, TarReader, TarSink};
use crate::store::{MAXIMUM_REST, Rest, RestWriter, Rests, StoreError, TableSource, maximum_rests};
use crate::table::Codec;
use crate::table::format::ChunkRecord;

/// Requests that are made for the parts that never came: more are dearer than one for all of the blob.
const MOST_REQUESTS: usize = 128;
/// Headers that are fetched with the chunk before them: more than any file has that has no thousand links.
const SMALL_GAP: u64 = 16 << 10;
/// Bytes of the blob that are fetched at once.
const STEP: u64 = 4 << 20;
/// Bytes of the archive that are read at once.
const PIECE: usize = 1 << 20;

/// Of a layer with chunks from other layers, no more of its blob is fetched to prove it, unless somebody asks for that: one of so many parts,
/// or so many bytes.
const LITTLE_PART: u64 = 16;
const LITTLE: u64 = 1 << 20;

/// Where the rests of a layer go, as long as it is to be proved.
#[derive(Default)]
pub(super) struct RestKeeper {
    writer: OnceLock<Option<RestWriter>>,
    /// It is noted that some chunks have none.
    has_copies: AtomicBool,
    /// They could not be kept: they are not worth the room that files may need.
    has_failed: AtomicBool,
}

impl LayerContent {
    /// Whether what comes with chunks is kept: for a layer that is still to be proved.
    pub(super) fn keeps_rests(&self) -> bool {
        !self.rest_keeper().has_failed.load(Ordering::Relaxed)
            && self.rest_writer().is_some()
            && self.needs_proof()
    }

    fn rest_writer(&self) -> Option<&RestWriter> {
        let open = || {
            let is_wanted = self.needs_proof()
                && self.table().chunks().iter().all(|chunk| {
                    [Codec::Gzip, Codec::Zstd, Codec::Zeros].map(|codec| codec as u8).contains(&chunk.codec)
                });
            // Another process may have proved the layer since this one looked.
            let is_open = is_wanted && matches!(self.files().verdict(), Ok(None));
            let writer = is_open.then(|| self.files().rest_writer(maximum_rests(self.decoded_length())))?;
            // Without them its blob is fetched twice, and that is all.
            writer
                .inspect_err(|error| tracing::debug!(layer = %self.layer(), %error, "no rests are kept"))
                .ok()
                .flatten()
        };
        self.rest_keeper().writer.get_or_init(open).as_ref()
    }

    /// The bytes of the blob to ask for: those of a range of a request, and what lies between the last of the chunks in it, which are
    /// these, and the next if that is little.
    pub(super) fn with_rest(&self, range: Range<u64>, chunks: &[u32]) -> Range<u64> {
        let last = chunks.last().filter(|_| !range.is_empty() && self.keeps_rests());
        let next = last.and_then(|last| next_stored(self.table().chunks(), *last));
        match next.map(|next| next.blob_offset.get()) {
            Some(next) if next.checked_sub(range.end).is_some_and(|gap| gap <= SMALL_GAP) => {
                range.start..next
            }
            _ => range,
        }
    }

    /// Keeps what follows a chunk that `stretch` was just asked for. That it cannot be kept is no error.
    pub(super) fn keep_rest(&self, number: u32, stretch: &mut Stretch<'_>) {
        let chunks = self.table().chunks();
        let Some(chunk) = chunks.get(number as usize).map(Chunk::from) else { return };
        let next = next_stored(chunks, number).map(Chunk::from);
        let Some((bytes, blob_end)) = rest_of(stretch, &chunk, next.as_ref(), MAXIMUM_REST) else { return };
        if let Some(writer) = self.rest_writer()
            && let Err(error) = writer.add(number, &Rest { bytes, blob_end })
        {
            tracing::debug!(layer = %self.layer(), %error, "no more rests are kept");
            self.give_up_rests();
        }
    }

    /// Notes that a chunk is copied from another layer: before it is.
    pub(super) fn note_copies(&self) -> Result<(), StoreError> {
        let keeper = self.rest_keeper();
        if self.needs_proof() && !keeper.has_copies.load(Ordering::Relaxed) {
            self.files().note_copies()?;
            keeper.has_copies.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Whether to prove the layer would fetch much of what was copied from other layers.
    pub(super) fn lacks_rests_of_copies(&self) -> bool {
        if !self.files().has_copies() || self.is_the_archive() {
            return false;
        }
        let size = self.prover().map_or(0, |prover| prover.layer().descriptor.size);
        let rests = self.files().rests().ok();
        let steps =
            rests.and_then(|rests| steps(self.table().chunks(), size, |number| rests.blob_end(number)));
        let needed =
            steps.filter(|steps| can_be_fetched(steps, size)).map_or(size, |steps| blob_bytes(&steps));
        needed > LITTLE.max(size / LITTLE_PART)
    }

    /// Frees the room that the rests take; whether they took any.
    pub(super) fn give_up_rests(&self) -> bool {
        self.rest_keeper().has_failed.store(true, Ordering::Relaxed);
        self.rest_writer().is_some_and(RestWriter::give_up)
    }
}

/// Why an archive could not be put together.
#[derive(Debug, thiserror::Error)]
pub(super) enum RebuildError {
    #[error("too much of it never came")]
    TooMuch,
    #[error("a part of it is missing: {0}")]
    Missing(String),
    #[error("what came does not make the archive: {0}")]
    Wrong(String),
}

impl Prover {
    /// Gives the archive to `sink`, which has the layer's diff ID if this succeeds.
    pub(super) fn rebuild(
        &self,
        content: &LayerContent,
        sink: &mut ProofSink<'_>,
    ) -> Result<(), RebuildError> {
        if content.is_the_archive() {
            return self.read_archive(content, sink);
        }
        let missing = |error: &dyn std::fmt::Display| RebuildError::Missing(error.to_string());
        let rests = content.files().rests().map_err(|error| missing(&error))?;
        let chunks = content.table().chunks();
        let size = self.layer().descriptor.size;
        let steps = steps(chunks, size, |number| rests.blob_end(number)).ok_or(RebuildError::TooMuch)?;
        if !can_be_fetched(&steps, size) {
            return Err(RebuildError::TooMuch);
        }
        let is_zstd = chunks.iter().any(|chunk| chunk.codec == Codec::Zstd as u8);
        let compression = if is_zstd { Compression::Zstd } else { Compression::Gzip };
        let diff_id = &self.layer().diff_id;
        let mut archive = Archive::new(diff_id, sink);
        for step in steps {
            match step {
                Step::Chunk(number) => archive.chunk(content, &rests, number)?,
                Step::Blob(range) => {
                    let mut decoder = compression.decoder();
                    let mut position = range.start;
                    while position < range.end {
                        let part = position..range.end.min(position + STEP);
                        position = part.end;
                        let bytes = self.read(part).ok_or_else(|| missing(&"its blob cannot be read"))?;
                        let mut output = |decoded: &[u8]| {
                            archive.push(decoded).map_err(|error| -> SinkError { error.to_string().into() })
                        };
                        decoder
                            .push(&bytes, &mut output)
                            .map_err(|error| RebuildError::Wrong(error.to_string()))?;
                    }
                    decoder.finish().map_err(|error| RebuildError::Wrong(error.to_string()))?;
                }
            }
        }
        archive.finish(diff_id)
    }

    /// The same where all of it is here as it is.
    fn read_archive(&self, content: &LayerContent, sink: &mut ProofSink<'_>) -> Result<(), RebuildError> {
        let diff_id = &self.layer().diff_id;
        let mut archive = Archive::new(diff_id, sink);
        let mut buffer = vec![0; PIECE];
        for chunk in content.table().chunks() {
            let (mut position, end) = (chunk.decoded_offset.get(), decoded_end(chunk));
            while position < end {
                let part = (end - position).min(PIECE as u64) as usize;
                match content.read(position, &mut buffer[..part]) {
                    Ok(true) => archive.push(&buffer[..part])?,
                    _ => return Err(RebuildError::Missing(format!("what is at byte {position}"))),
                }
                position += part as u64;
            }
        }
        archive.finish(diff_id)
    }

    /// Bytes of the blob; none if they cannot be had, or this process ends.
    fn read(&self, range: Range<u64>) -> Option<bytes::Bytes> {
        let (sender, mut receiver) = tokio::sync::mpsc::channel(1);
        let (blob, fetcher) = (self.blob().clone(), self.fetcher().clone());
        self.fetcher().runtime().ok()?.spawn(async move {
            fetcher.wait_for_readers().await;
            let read = blob.read(range).await;
            fetcher.observed();
            // Nobody listens if this process ends.
            let _ = sender.send(read).await;
        });
        receiver
            .blocking_recv()?
            .inspect_err(|error| tracing::debug!(%error, "a part of a layer's archive"))
            .ok()
    }
}

impl LayerContent {
    /// Whether the decoded space is the archive itself, byte for byte: of a layer that was streamed, and of one with a zTOC. If it is not,
    /// the diff ID tells.
    pub(super) fn is_the_archive(&self) -> bool {
        let was_streamed = || match self.provenance() {
            Ok(Some(provenance)) => matches!(provenance.index, TableSource::Stream { .. }),
            _ => false,
        };
        let spans = [Codec::Raw, Codec::GzipSpan, Codec::SealedGzipSpan].map(|codec| codec as u8);
        let chunks = self.table().chunks();
        let follows = |pair: &[ChunkRecord]| decoded_end(&pair[0]) == pair[1].decoded_offset.get();
        chunks.first().is_some_and(|first| first.decoded_offset.get() == 0)
            && chunks.windows(2).all(follows)
            && (chunks.iter().all(|chunk| spans.contains(&chunk.codec)) || was_streamed())
    }
}

/// Whether to fetch what these steps need costs less than to fetch all of the blob.
fn can_be_fetched(steps: &[Step], size: u64) -> bool {
    let requests = steps.iter().filter(|step| matches!(step, Step::Blob(_))).count();
    blob_bytes(steps) <= size / 2 && requests <= MOST_REQUESTS
}

fn decoded_end(chunk: &ChunkRecord) -> u64 {
    chunk.decoded_offset.get().saturating_add(chunk.decoded_length.get())
}

/// An archive while it is put together.
struct Archive<'a, S> {
    reader: TarReader,
    hasher: Digester,
    length: u64,
    sink: &'a mut S,
}

impl<'a, S: TarSink> Archive<'a, S> {
    fn new(diff_id: &Digest, sink: &'a mut S) -> Archive<'a, S> {
        Archive { reader: TarReader::new(Limits::default()), hasher: diff_id.digester(), length: 0, sink }
    }
    fn push(&mut self, bytes: &[u8]) -> Result<(), RebuildError> {
        self.length = self.length.saturating_add(bytes.len() as u64);
        if self.length > MAXIMUM_DECODED {
            return Err(RebuildError::Wrong("it is too long".to_owned()));
        }
        self.hasher.update(bytes);
        self.reader.push(bytes, self.sink).map_err(|error| RebuildError::Wrong(error.to_string()))
    }

    fn chunk(&mut self, content: &LayerContent, rests: &Rests, number: u32) -> Result<(), RebuildError> {
        let missing = |what: &str| RebuildError::Missing(format!("{what} {number}"));
        let chunk =
            content.table().chunks().get(number as usize).map(Chunk::from).ok_or_else(|| missing("chunk"))?;
        // No chunk is longer than what memory has room for: else it would not be here.
        let mut bytes = vec![0; chunk.decoded_length as usize];
        match content.read(chunk.decoded_offset, &mut bytes) {
            Ok(true) => self.push(&bytes)?,
            _ => return Err(missing("chunk")),
        }
        match rests.get(number) {
            Ok(Some(rest)) => self.push(&rest.bytes),
            _ => Err(missing("the rest of chunk")),
        }
    }

    fn finish(self, expected: &Digest) -> Result<(), RebuildError> {
        let actual = self.hasher.finish();
        if actual != *expected {
            return Err(RebuildError::Wrong(format!("it is {actual}")));
        }
        self.reader.finish().map_err(|error| RebuildError::Wrong(error.to_string()))
    }
}
