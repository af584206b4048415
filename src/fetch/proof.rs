//! A layer that was indexed by a table of contents is proved once all of it is here: its archive must have its diff ID, and say
//! what the table says. Until then each chunk is verified, but nobody knows whether the table shows the files that the archive holds.
//!
//! ```text
//! unproved ── all chunks here ──▶ proving ──▶ proved      for ever: recorded with the layer
//!     ▲                              │  └───▶ poisoned    for ever: recorded, and no byte of the layer is read any more, by anybody
//!     └── the blob cannot be read ───┘                    tried again at the next mount, or when the layer is complete again
//! ```
//!
//! - The work is done on a thread of its own, of low priority, once for all processes: whoever has the layer's proof lock. Others
//!   wait for it on such threads and take over what it found.
//! - The archive is put together from what is here ([`rebuild`](super::rebuild)), or the blob is streamed from its origin again; a
//!   reader who waits for chunks of any layer of this process goes first.
//! - Where chunks were copied from other layers ([`donors`](super::donors)), what comes with them in the archive is not here. If that is more than a
//!   little, nobody fetches the blob for it unasked: the layer is proved when it is extracted or completed.
//! - Of a layer that holds, what its archive has beside its files is kept, so that the archive can be written again
//!   ([`archive`](super::archive)).
//! - Only a blob that has its digest can poison a layer. A registry that sends something else is told of, and asked again some day.

use std::fs::File;
use std::io::{BufWriter, Seek};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use peelfs_registry::Digest;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::content::LayerContent;
use super::lazy::Fetcher;
use super::source::OriginBlob;
use super::twins;
use crate::error::chain;
use crate::image::Layer;
use crate::layer::builder::BuildError;
use crate::layer::entry::{Chunk, Entry};
use crate::layer::framing::FramingRecorder;
use crate::layer::lookup::Lookup;
use crate::layer::proof::{ArchiveSink, CompareError, hash_zeros};
use crate::layer::stream::{self, StreamError, StreamExpectation};
use crate::layer::tar::{SinkError, TarSink};
use crate::store::{
    LayerDirectory, LayerState, NewFraming, Provenance, Store, StoreError, TableSource, Verdict,
    maximum_rests,
};
use crate::table::Codec;
use crate::table::format::InodeRecord;

/// Why a layer could not be proved, nor poisoned.
#[derive(Debug, thiserror::Error)]
pub enum ProofError {
    /// The layer is opened without a way to its blob.
    #[error("{layer}: it was opened without a source")]
    NoSource {
        /// The layer's digest.
        layer: Arc<str>,
    },
    /// Its blob did not come, or is another.
    #[error("cannot read the blob again, to compare it with what is here")]
    Stream(#[from] Box<StreamError>),
    /// What is here.
    #[error("cannot compare it with its archive")]
    Compare(#[from] CompareError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is known of a layer's truth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its table was made of its archive, which has its diff ID.
    Streamed,
    /// Its table was compared with its archive.
    Judged(Verdict),
    /// Not all of it is here; each chunk is verified.
    Incomplete,
    /// All of it is here, and nobody has compared it with its archive yet.
    Unproved,
}

/// What proves one layer.
pub struct Prover {
    layer: Layer,
    /// What the layer is kept by.
    name: Digest,
    store: Arc<Store>,
    blob: OriginBlob,
    fetcher: Arc<Fetcher>,
}

/// What this process knows of a layer's truth.
#[derive(Default)]
pub(super) struct Trust {
    prover: OnceLock<Prover>,
    /// No verdict was recorded when this process first wanted to know, and none was needless.
    was_open: OnceLock<bool>,
    /// Proved, or without need of it.
    is_settled: AtomicBool,
    is_running: AtomicBool,
    poison: OnceLock<String>,
    /// Told when the layer is found to be poisoned.
    observer: OnceLock<Box<dyn Fn() + Send + Sync>>,
    /// No chunk before it is missing, unless one was evicted.
    first_missing: AtomicU64,
}

/// What a layer's provenance and verdict say; a layer of an earlier version has no provenance, and was streamed unless its
/// descriptor names a table of contents.
fn recorded(layer: &Layer, provenance: Option<Provenance>, verdict: Option<Verdict>) -> Option<Standing> {
    let descriptor = &layer.descriptor;
    let was_streamed = match provenance {
        Some(provenance) => matches!(provenance.index, TableSource::Stream { .. }),
        None => !matches!(Lookup::new(&descriptor.annotations, descriptor.size), Ok(Some(_))),
    };
    match verdict {
        Some(verdict) => Some(Standing::Judged(verdict)),
        None => was_streamed.then_some(Standing::Streamed),
    }
}

impl Prover {
    /// Proves that layer, which `store` keeps by that name, by its blob.
    pub(super) fn new(
        layer: Layer,
        name: Digest,
        store: Arc<Store>,
        blob: OriginBlob,
        fetcher: Arc<Fetcher>,
    ) -> Prover {
        Prover { layer, name, store, blob, fetcher }
    }

    pub(super) fn layer(&self) -> &Layer {
        &self.layer
    }

    pub(super) fn blob(&self) -> &OriginBlob {
        &self.blob
    }

    pub(super) fn fetcher(&self) -> &Arc<Fetcher> {
        &self.fetcher
    }

    /// Where the layer lies in the store.
    pub(super) fn place(&self) -> Result<LayerDirectory, StoreError> {
        self.store.layers().layer(self.name.as_str())
    }

    /// Records that all of the layer is here and proved. The record of a layer says nothing of one made by an index beside it.
    pub(super) fn record_extracted(&self) -> Result<(), StoreError> {
        let digest = &self.layer.descriptor.digest;
        if self.name != *digest {
            return Ok(());
        }
        self.store.database().set_layer_state(digest.as_str(), LayerState::Extracted).map(drop)
    }

    /// Proves the layer, unless that was done. Waits for another process that does it at this moment.
    fn prove(&self, content: &LayerContent) -> Result<Standing, ProofError> {
        let _lock = self.store.layers().layer(self.name.as_str())?.lock_for_proof()?;
        let files = content.files();
        if let Some(standing) = recorded(&self.layer, files.provenance()?, files.verdict()?) {
            content.remove_rests();
            return Ok(standing);
        }
        if !content.is_complete() {
            return Ok(Standing::Incomplete);
        }
        let verdict = self.judge(content)?;
        files.record_verdict(verdict.clone())?;
        if twins::is_proved(files)? {
            twins::note(&self.store, &self.layer, &self.name, self.blob.reference());
        }
        content.remove_rests();
        Ok(Standing::Judged(verdict))
    }

    fn judge(&self, content: &LayerContent) -> Result<Verdict, ProofError> {
        let framing = new_framing(content);
        let (reason, is_recorded) = self.compare(content, framing.as_ref())?;
        if let (None, true, Some(framing)) = (&reason, is_recorded, framing)
            && let Err(error) = framing.keep()
        {
            tracing::debug!(layer = %content.layer(), %error, "no framing is kept");
        }
        self.fetcher.observed();
        let at = now();
        Ok(reason.map_or(Verdict::Proved { at }, |reason| Verdict::Poisoned { at, reason }))
    }

    /// Why the layer is false, if it is; and whether what its archive has beside its files was recorded.
    fn compare(
        &self,
        content: &LayerContent,
        framing: Option<&NewFraming>,
    ) -> Result<(Option<String>, bool), ProofError> {
        let new_sink = || ProofSink {
            archive: ArchiveSink::new(self.layer.descriptor.annotations.clone()),
            framing: framing.and_then(|new| recorder(content, new)),
        };
        let mut sink = new_sink();
        let streamed = match self.rebuild(content, &mut sink) {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::info!(layer = %content.layer(), %error, "the layer is proved by streaming its blob again");
                // What it still holds back is written when it is dropped, and must not come after what the next one writes.
                drop(sink);
                sink = new_sink();
                self.stream(&mut sink)
            }
        };
        let reason = match streamed {
            Ok(()) => {
                let ProofSink { archive, framing } = sink;
                let differences =
                    archive.differences(content.table(), |inode| digest_of_content(content, inode));
                match differences {
                    Ok(differences) => {
                        let is_recorded = framing.and_then(FramingRecorder::finish).is_some();
                        return Ok((differences.first().map(ToString::to_string), is_recorded));
                    }
                    Err(CompareError::Build(error)) => {
                        format!("its archive cannot be used: {}", chain(&error))
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            // The last thing to be compared: the blob has its digest.
            Err(error @ StreamError::DiffId { .. }) => error.to_string(),
            Err(error) if is_of_archive(&error) && self.has_digest() => {
                format!("its archive cannot be used: {}", chain(&error))
            }
            Err(error) => return Err(Box::new(error).into()),
        };
        Ok((Some(reason), false))
    }

    /// Gives the archive to `sink`, and proves blob digest and diff ID.
    fn stream(&self, sink: &mut ProofSink<'_>) -> Result<(), StreamError> {
        let descriptor = &self.layer.descriptor;
        let expectation = StreamExpectation {
            blob_digest: descriptor.digest.clone(),
            blob_size: descriptor.size,
            diff_id: Some(self.layer.diff_id.clone()),
            maximum_decoded: stream::MAXIMUM_DECODED,
        };
        let pieces = self.pieces().map_err(StreamError::Thread)?;
        stream::unpack_stream(pieces, &expectation, sink, &mut std::io::sink(), &|_| {}).map(drop)
    }

    /// Whether the blob that comes has its digest. Asked if what came made no sense, before anything else was known of it.
    fn has_digest(&self) -> bool {
        let mut hasher = self.layer.descriptor.digest.digester();
        let Ok(pieces) = self.pieces() else { return false };
        for piece in pieces {
            let Ok(piece) = piece else { return false };
            hasher.update(&piece);
        }
        hasher.finish() == self.layer.descriptor.digest
    }

    /// The blob, in the pieces in which it comes.
    fn pieces(
        &self,
    ) -> std::io::Result<impl Iterator<Item = Result<Bytes, peelfs_registry::Error>> + Send + use<>> {
        let (sender, mut receiver) = mpsc::channel(8);
        let (blob, fetcher) = (self.blob.clone(), self.fetcher.clone());
        self.fetcher.runtime()?.spawn(async move {
            let opened = match blob.open().await {
                Ok(opened) => opened,
                Err(error) => return drop(sender.send(Err(error)).await),
            };
            let mut pieces = std::pin::pin!(opened.stream(0));
            loop {
                fetcher.wait_for_readers().await;
                let Some(piece) = pieces.next().await else { break };
                let failed = piece.is_err();
                // Whoever decodes hangs up when it has seen enough.
                if sender.send(piece).await.is_err() || failed {
                    break;
                }
            }
        });
        Ok(std::iter::from_fn(move || receiver.blocking_recv()))
    }
}

/// Takes in the archive of a layer: to compare it, and to keep what of it is in no file.
pub(super) struct ProofSink<'a> {
    archive: ArchiveSink,
    framing: Option<FramingRecorder<'a, BufWriter<&'a File>>>,
}

impl TarSink for ProofSink<'_> {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        if let Some(framing) = &mut self.framing {
            framing.entry(entry.clone())?;
        }
        self.archive.entry(entry)
    }

    fn payload(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        if let Some(framing) = &mut self.framing {
            framing.payload(decoded_offset, bytes)?;
        }
        self.archive.payload(decoded_offset, bytes)
    }

    fn framing(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.framing.as_mut().map_or(Ok(()), |framing| framing.framing(decoded_offset, bytes))
    }
}

/// A place for what of the archive is in no file. Nobody needs it to read files, so that there is none is no error.
fn new_framing(content: &LayerContent) -> Option<NewFraming> {
    if content.is_the_archive() {
        return None;
    }
    let new = content.files().new_framing();
    new.inspect_err(|error| tracing::debug!(layer = %content.layer(), %error, "no framing is kept")).ok()
}

fn recorder<'a>(
    content: &'a LayerContent,
    new: &'a NewFraming,
) -> Option<FramingRecorder<'a, BufWriter<&'a File>>> {
    let mut file = new.file();
    // There may be something of an attempt that failed.
    file.set_len(0).and_then(|()| file.rewind()).ok()?;
    // A quarter of the room that the layer takes, as rests.
    let limit = maximum_rests(content.decoded_length());
    Some(FramingRecorder::new(content.table(), BufWriter::new(file), limit))
}

/// Whether a stream failed by what is in it, and not by how it came.
fn is_of_archive(error: &StreamError) -> bool {
    match error {
        StreamError::Decode(_) | StreamError::TooLarge { .. } | StreamError::Tar(_) => true,
        StreamError::Sink(error) => error.is::<BuildError>(),
        _ => false,
    }
}

impl LayerContent {
    /// Says who proves the layer once all of it is here.
    pub(super) fn prove_by(&self, prover: Prover) {
        // A content is given one when it is made.
        let _ = self.trust().prover.set(prover);
    }

    /// Who proves it; nobody if it came whole, or is only looked at.
    pub(super) fn prover(&self) -> Option<&Prover> {
        self.trust().prover.get()
    }

    /// `observer` is told when the layer is found to be poisoned, on any thread but one that serves reads.
    pub fn when_poisoned(&self, observer: impl Fn() + Send + Sync + 'static) {
        // Who mounts the layer is the only one who wants to know.
        let _ = self.trust().observer.set(Box::new(observer));
    }

    /// How the layer came to be here, if that was recorded.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn provenance(&self) -> Result<Option<Provenance>, StoreError> {
        self.files().provenance()
    }

    /// How the truth of this layer stands, which is that of `layer`.
    ///
    /// # Errors
    /// If what was recorded cannot be read.
    pub fn standing(&self, layer: &Layer) -> Result<Standing, StoreError> {
        let recorded = recorded(layer, self.files().provenance()?, self.files().verdict()?);
        let unproved = || if self.is_complete() { Standing::Unproved } else { Standing::Incomplete };
        Ok(recorded.unwrap_or_else(unproved))
    }

    /// Whether all chunks are here.
    pub fn is_complete(&self) -> bool {
        let Some(map) = &self.files().chunk_map else { return true };
        let missing = |from| map.missing_in(from..map.len()).next();
        let from = self.trust().first_missing.load(Ordering::Relaxed);
        let first = missing(from).or_else(|| missing(0));
        self.trust().first_missing.store(first.unwrap_or(map.len()), Ordering::Relaxed);
        first.is_none()
    }

    /// Where the layer's decoded space ends.
    pub(super) fn decoded_length(&self) -> u64 {
        let last = self.table().chunks().last();
        last.map_or(0, |chunk| chunk.decoded_offset.get().saturating_add(chunk.decoded_length.get()))
    }

    /// Whether the layer is still to be proved, as far as this process knows.
    pub(super) fn needs_proof(&self) -> bool {
        let trust = self.trust();
        let Some(prover) = trust.prover.get() else { return false };
        let was_open = || {
            let files = self.files();
            let recorded =
                |provenance| Ok::<_, StoreError>(recorded(&prover.layer, provenance, files.verdict()?));
            let found = files.provenance().and_then(recorded);
            if matches!(found, Ok(Some(Standing::Judged(_)))) {
                // Who judged it may have been killed before it removed them.
                self.remove_rests();
            }
            matches!(found, Ok(None))
        };
        *trust.was_open.get_or_init(was_open)
            && !trust.is_settled.load(Ordering::Relaxed)
            && trust.poison.get().is_none()
    }

    /// Whether the layer will never be found to be false: it is proved, or there was nothing to prove.
    pub(super) fn is_vouched_for(&self) -> bool {
        let trust = self.trust();
        if self.files().chunk_map.is_none() || trust.is_settled.load(Ordering::Relaxed) {
            return true;
        }
        let Some(prover) = trust.prover.get() else { return false };
        let holds = matches!(
            self.standing(&prover.layer),
            Ok(Standing::Streamed | Standing::Judged(Verdict::Proved { .. }))
        );
        if holds {
            trust.is_settled.store(true, Ordering::Relaxed);
        }
        holds
    }

    fn remove_rests(&self) {
        if let Err(error) = self.files().remove_rests() {
            tracing::warn!(layer = %self.layer(), error = %chain(&error), "what is of no more use stays behind");
        }
    }

    /// Begins to prove the layer if all of it is here and that was not done yet; returns at once.
    pub fn prove_if_complete(&self) {
        let trust = self.trust();
        if !self.needs_proof() || !self.is_complete() || trust.is_running.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(content) = self.shared() else { return };
        // Not a task of the runtime: that would wait for it when it ends.
        let thread = std::thread::Builder::new().name("peel-proof".into()).spawn(move || {
            // Of this thread alone, and those that it makes (setpriority(2), "C library/kernel differences").
            let _ = rustix::process::setpriority_process(None, 10);
            if content.lacks_rests_of_copies() {
                tracing::info!(layer = %content.layer(), "all of the layer is here, much of it from other layers: it is proved when it is extracted or completed");
            } else if let Err(error) = content.prove() {
                tracing::warn!(layer = %content.layer(), error = %chain(&error), "the layer could not be proved; this is tried again");
            }
            content.trust().is_running.store(false, Ordering::Release);
        });
        if let Err(error) = thread {
            tracing::warn!(layer = %self.layer(), %error, "no thread to prove the layer; this is tried again");
            trust.is_running.store(false, Ordering::Release);
        }
    }

    /// Proves the layer now if all of it is here, and says how it stands. Blocks, for as long as reading all of its blob takes.
    ///
    /// # Errors
    /// If that cannot be found out: most probably as the blob cannot be had.
    pub fn prove(&self) -> Result<Standing, ProofError> {
        let trust = self.trust();
        let prover =
            trust.prover.get().ok_or_else(|| ProofError::NoSource { layer: self.layer().clone() })?;
        let standing = prover.prove(self)?;
        match &standing {
            Standing::Judged(Verdict::Poisoned { reason, .. }) => self.poisoned_by(reason.clone()),
            Standing::Judged(Verdict::Proved { .. }) | Standing::Streamed => {
                tracing::info!(layer = %self.layer(), "the layer is proved");
                trust.is_settled.store(true, Ordering::Relaxed);
            }
            Standing::Incomplete | Standing::Unproved => {}
        }
        Ok(standing)
    }

    /// Why nothing of the layer may be read, if so.
    pub fn poison(&self) -> Option<&str> {
        self.trust().poison.get().map(String::as_str)
    }

    /// Whether nothing of the layer may be read; found out from other processes, too.
    pub(super) fn is_poisoned(&self) -> bool {
        let told = self.files().chunk_map.as_ref().is_some_and(|map| map.is_poisoned());
        if told && self.poison().is_none() {
            let reason = match self.files().verdict() {
                Ok(Some(Verdict::Poisoned { reason, .. })) => reason,
                _ => "another process found it to be false".to_owned(),
            };
            self.poisoned_by(reason);
        }
        told || self.poison().is_some()
    }

    fn poisoned_by(&self, reason: String) {
        let trust = self.trust();
        if trust.poison.set(reason).is_err() {
            return;
        }
        tracing::error!(
            layer = %self.layer(), reason = self.poison(),
            "THIS LAYER IS FALSE: its table of contents does not say what its archive says; nothing of it is read any more"
        );
        let Some(content) = self.shared().filter(|_| trust.observer.get().is_some()) else { return };
        // The observer may wait for reads, of which one may be waiting for us.
        std::thread::spawn(move || {
            if let Some(observer) = content.trust().observer.get() {
                observer();
            }
        });
    }
}

/// SHA-256 of a regular file as readers get it.
fn digest_of_content(content: &LayerContent, inode: &InodeRecord) -> Result<[u8; 32], CompareError> {
    let (table, size) = (content.table(), inode.size.get());
    if inode.count.get() == 0 {
        let (start, end) = (inode.content.get(), inode.content.get().saturating_add(size));
        let chunks = table.chunks().get(table.chunks_of(start..end)).unwrap_or_default();
        if let [chunk] = chunks
            // The digest of others covers something else than what readers get.
            && [Codec::Raw, Codec::Gzip, Codec::Zstd, Codec::GzipSpan].map(|codec| codec as u8).contains(&chunk.codec)
            && Chunk::from(chunk).decoded_offset == start
            && chunk.decoded_length.get() == size
        {
            // The bytes that are here were held against it.
            return Ok(chunk.digest);
        }
        let mut hasher = Sha256::new();
        hash_decoded(content, start, size, &mut hasher)?;
        return Ok(hasher.finalize().into());
    }
    let mut hasher = Sha256::new();
    let mut position = 0;
    for extent in table.extents(inode) {
        hash_zeros(&mut hasher, extent.file_offset.get().saturating_sub(position));
        hash_decoded(content, extent.decoded_offset.get(), extent.length.get(), &mut hasher)?;
        position = extent.file_offset.get().saturating_add(extent.length.get());
    }
    hash_zeros(&mut hasher, size.saturating_sub(position));
    Ok(hasher.finalize().into())
}

/// Bytes that are read at once.
const STEP: u64 = 1 << 20;

fn hash_decoded(
    content: &LayerContent,
    start: u64,
    length: u64,
    hasher: &mut Sha256,
) -> Result<(), CompareError> {
    let mut buffer = vec![0; length.min(STEP) as usize];
    let mut position = 0;
    while position < length {
        let part = (length - position).min(STEP) as usize;
        if !content.read(start.saturating_add(position), &mut buffer[..part])? {
            return Err(CompareError::Absent);
        }
        hasher.update(&buffer[..part]);
        position += part as u64;
    }
    Ok(())
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}
