//! How a layer comes into the store: known already, lazily by its table of contents, or streamed once.
//!
//! Whoever brings a layer holds its lock from the look into the store until the layer is published there, so that of two
//! processes one works and the other finds the result.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use bytes::Bytes;
use futures_util::future::Either;
use peelfs_registry::{BlobDescriptor, Digest};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use super::content::LayerContent;
use super::donors::Donors;
use super::draft_sink::DraftSink;
use super::lazy::Fetcher;
use super::names;
use super::proof::{Prover, now};
use super::room::Room;
use super::soci::{ByZtoc, index_by_ztoc};
use super::source::{OriginBlob, feed};
use super::stored::ancestors;
use super::toc_image::TocImage;
use super::twins;
use crate::error::chain;
use crate::image::origin::Origin;
use crate::image::{IndexSource, Layer};
use crate::layer::builder::{BuildError, LayerBuilder};
use crate::layer::compression::{MediaTypeError, check_media_type};
use crate::layer::entry::{Chunk, Entry};
use crate::layer::gzip::checkpoint::Checkpoints;
use crate::layer::lookup::{Lookup, LookupError, TocPlace};
use crate::layer::soci::SociError;
use crate::layer::stream::{self, StreamError, StreamExpectation};
use crate::layer::tar::SinkError;
use crate::layer::toc::{Landmark, TableOfContents};
use crate::store::{
    LayerDraft, LayerFiles, LayerLock, LowerStore, NoteKind, PendingPublish, Provenance, Store, StoreError,
    TableSource, Verdict, table_identity,
};
use crate::table::format::ChunkRecord;
use crate::table::placement::{self, DataFile};
use crate::table::{Codec, Table, TableError};

/// Most bytes of what is read first of layers that are on their way before all is known of the image.
const MOST_AHEAD: u64 = 32 << 20;
/// Layers that are streamed at the same time. Each keeps a decoder and a hasher busy.
const STREAMS: usize = 4;

/// Why a layer cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Its media type is not one that is read.
    #[error(transparent)]
    MediaType(#[from] MediaTypeError),
    /// The registry or layout.
    #[error(transparent)]
    Registry(#[from] peelfs_registry::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its table of contents.
    #[error("its table of contents cannot be used")]
    Toc(#[from] Box<LookupError>),
    /// The index beside it.
    #[error("its SOCI index cannot be used")]
    Soci(#[from] Box<SociError>),
    /// Its archive.
    #[error("its archive cannot be used")]
    Stream(#[from] Box<StreamError>),
    /// An entry.
    #[error("its entries cannot be used")]
    Build(#[from] BuildError),
    /// It was proved to be false.
    #[error(
        "its table of contents does not say what its archive says, so nothing of it is read: {reason}; use another image, or `peel convert` this one, which goes by the archive alone"
    )]
    Poisoned {
        /// What is wrong, naming an entry if it is one.
        reason: String,
    },
    /// The table that was just written.
    #[error("its inode table cannot be used")]
    Table(#[from] TableError),
}

/// What happens to the layers of an image, for a progress bar.
#[derive(Clone, Debug)]
pub enum Event {
    /// The table of contents of a lazy layer was got.
    Indexed(Digest),
    /// A layer begins to be streamed; it has so many bytes.
    StreamStarted(Digest, u64),
    /// So many bytes of a streamed layer have come in all.
    Streamed(Digest, u64),
    /// A streamed layer is whole and verified.
    StreamFinished(Digest),
}

/// Who is told of [`Event`]s.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// What became of a layer that was to be indexed lazily.
enum Indexed {
    /// It is, and is to be published under that name.
    Lazily(Box<(Digest, (LayerFiles, PendingPublish))>),
    /// It cannot be, and is to be streamed: from here, if all of its blob came meanwhile.
    Not { whole_blob: Option<Bytes>, because: &'static str },
}

/// What is read first of a blob, on its way.
struct Ahead {
    blob: OriginBlob,
    /// One task, which ends with it.
    read: JoinSet<Result<Bytes, peelfs_registry::Error>>,
}

/// A layer that is being brought.
struct Begun {
    lock: LayerLock,
    blob: OriginBlob,
    indexed: Indexed,
}

/// Brings the layers of one image.
pub struct Indexer {
    store: Arc<Store>,
    origin: Arc<Origin>,
    toc_image: TocImage,
    fetcher: Arc<Fetcher>,
    progress: Progress,
    streams: Semaphore,
    commits: Mutex<Vec<JoinHandle<Result<(), StoreError>>>>,
    image: OnceLock<ImageTrust>,
    ahead: Mutex<HashMap<Digest, Ahead>>,
}

/// Whose layers are brought, and who is believed about them.
#[derive(Clone, Debug)]
struct ImageTrust {
    manifest: Digest,
    /// If it was made here: of which images.
    ancestors: Vec<Digest>,
    trusts_referrers: bool,
}

/// Why a layer is streamed for which there is a table or an index.
pub(super) const NO_RANGES: &str = "its host does not read by ranges";

/// What a layer's table is known by.
pub fn identity(layer: &Digest) -> [u8; 32] {
    table_identity(layer.as_str())
}

impl Indexer {
    /// Brings layers from `origin` into `store`.
    pub fn new(
        store: Arc<Store>,
        origin: Arc<Origin>,
        fetcher: Arc<Fetcher>,
        progress: Progress,
    ) -> Arc<Indexer> {
        let (streams, commits, image) = (Semaphore::new(STREAMS), Mutex::default(), OnceLock::new());
        let toc_image = TocImage::new(origin.clone());
        let ahead = Mutex::default();
        Arc::new(Indexer { store, origin, toc_image, fetcher, progress, streams, commits, image, ahead })
    }

    /// From now on, layers may also be those that were made of an index of the image with this manifest; of one that only refers to
    /// it, too, if such are trusted. `ancestors` are the manifests of the images that an image was made of that was made here.
    pub fn bring_for(&self, manifest: &Digest, ancestors: Vec<Digest>, trusts_referrers: bool) {
        // It brings the layers of one image, so the first word counts.
        let _ = self.image.set(ImageTrust { manifest: manifest.clone(), ancestors, trusts_referrers });
    }

    /// By what the layer may be kept that was made for it.
    fn names(&self, layer: &Layer) -> Vec<Digest> {
        match self.image.get() {
            Some(image) => {
                let images = std::iter::once(&image.manifest).chain(&image.ancestors);
                names::names_of_made(layer, images, image.trusts_referrers)
            }
            None => vec![names::streamed(layer)],
        }
    }

    /// What a layer is kept by that was opened here.
    pub fn name_of(&self, layer: &Layer, content: &LayerContent) -> Digest {
        let is_it = |name: &Digest| identity(name) == *content.table().identity();
        let shared = || {
            let twins = twins::twins_of(&self.store, layer).unwrap_or_default();
            twins.iter().filter_map(twins::Twin::name).find(is_it)
        };
        let own = self.names(layer).into_iter().find(is_it);
        own.or_else(shared).unwrap_or_else(|| names::streamed(layer))
    }

    /// What a layer is kept as if it is made of an index beside it; nothing if that is not believed.
    fn kept_apart(&self, layer: &Layer) -> Option<Digest> {
        let (source, image) = (layer.lazy_index.as_ref()?.source, self.image.get()?);
        let is_believed = source == IndexSource::Manifest || image.trusts_referrers;
        is_believed.then(|| names::kept_apart(&layer.descriptor.digest, &image.manifest, source))
    }

    /// Where it brings layers from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Asks for what tells where the tables of contents of these layers are, and is them as a rule, before all is known of the image: beside the
    /// config, and not after it. Layers that may be here already are left out: all, if archives of other blobs are known, as only the
    /// config says which archive a layer has, and where lower stores may have them. Must be called where tasks can be spawned.
    pub fn look_ahead(&self, layers: &[BlobDescriptor], nothing_is_known: bool) {
        let knows_archives = || self.store.notes().all::<serde_json::Value>(NoteKind::Archive);
        let may_be_elsewhere = !self.store.lower().is_empty();
        if may_be_elsewhere || !nothing_is_known && !knows_archives().is_ok_and(|known| known.is_empty()) {
            return;
        }
        let is_new = |layer: &&BlobDescriptor| {
            nothing_is_known || matches!(self.store.database().find_layer(layer.digest.as_str()), Ok(None))
        };
        let mut left = MOST_AHEAD;
        for layer in layers.iter().filter(is_new).take(STREAMS * 4) {
            let Ok(Some(lookup)) = Lookup::new(&layer.annotations, layer.size) else { continue };
            let range = lookup.first_range();
            let Some(rest) = left.checked_sub(range.end - range.start) else { break };
            left = rest;
            let blob = OriginBlob::new(self.origin.clone(), layer.clone());
            let (mut read, source) = (JoinSet::new(), blob.clone());
            read.spawn(async move { source.open().await?.read(range).await });
            self.ahead().insert(layer.digest.clone(), Ahead { blob, read });
        }
    }

    /// What was asked for of layers that nobody opened is not wanted any more.
    pub fn end_looking_ahead(&self) {
        self.ahead().clear();
    }

    fn ahead(&self) -> MutexGuard<'_, HashMap<Digest, Ahead>> {
        self.ahead.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Opens a layer that is in the store, or another whose archive is the same and all of which is here.
    ///
    /// # Errors
    /// [`IndexError::Store`], [`IndexError::Poisoned`].
    pub fn open_known(&self, layer: &Layer) -> Result<Option<Arc<LayerContent>>, IndexError> {
        for name in self.names(layer) {
            if let Some(content) = self.open_own(layer, &name)? {
                return Ok(Some(content));
            }
        }
        for twin in twins::twins_of(&self.store, layer)? {
            if let Some(content) = self.open_twin(layer, &twin, true)? {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    /// Opens a layer that is mounted as what is kept by that name: its own or, whether or not all of it is still here, another's
    /// whose archive is the same. Nothing if that is not there.
    ///
    /// # Errors
    /// [`IndexError::Store`], [`IndexError::Poisoned`].
    pub fn open_as(&self, layer: &Layer, name: &Digest) -> Result<Option<Arc<LayerContent>>, IndexError> {
        if self.names(layer).contains(name) {
            return self.open_own(layer, name);
        }
        let twins = twins::twins_of(&self.store, layer)?;
        let twin = twins.iter().find(|twin| twin.name().as_ref() == Some(name));
        Ok(twin.map(|twin| self.open_twin(layer, twin, false)).transpose()?.flatten())
    }

    /// Opens a layer by one of its names.
    fn open_own(&self, layer: &Layer, name: &Digest) -> Result<Option<Arc<LayerContent>>, IndexError> {
        let Some((table, files)) = open_files(&self.store, name)? else { return Ok(None) };
        if let Some(Verdict::Poisoned { reason, .. }) = files.verdict()? {
            return Err(IndexError::Poisoned { reason });
        }
        Ok(Some(self.content(layer, name, table, files)))
    }

    /// Opens a layer of another blob, whose archive was found to be that of this layer; if wanted, only if all of it is here. What of it is
    /// discarded later comes again from that blob, as it would not fit into this one.
    fn open_twin(
        &self,
        layer: &Layer,
        twin: &twins::Twin,
        is_to_be_whole: bool,
    ) -> Result<Option<Arc<LayerContent>>, StoreError> {
        let (Some(name), Some((descriptor, image))) = (twin.name(), twin.blob()) else { return Ok(None) };
        let Some((table, files)) = open_own_files(&self.store, &name)? else { return Ok(None) };
        let is_complete = files.chunk_map.as_ref().is_none_or(|map| map.present() >= map.len());
        if is_to_be_whole && !is_complete || !twins::is_proved(&files)? {
            return Ok(None);
        }
        tracing::info!(layer = %layer.descriptor.digest, same = %name, "its archive is here, from another blob");
        let blob = OriginBlob::of_other(self.origin.clone(), descriptor, image);
        Ok(Some(self.content_from(layer, &name, table, files, blob)))
    }

    /// The content of a layer that is kept by that name.
    fn content(&self, layer: &Layer, name: &Digest, table: Table, files: LayerFiles) -> Arc<LayerContent> {
        let blob = OriginBlob::new(self.origin.clone(), layer.descriptor.clone());
        self.content_from(layer, name, table, files, blob)
    }

    /// The same, of which what is missing is in that blob.
    fn content_from(
        &self,
        layer: &Layer,
        name: &Digest,
        table: Table,
        files: LayerFiles,
        blob: OriginBlob,
    ) -> Arc<LayerContent> {
        let descriptor = &layer.descriptor;
        if files.chunk_map.is_none() {
            return LayerContent::local(descriptor.digest.as_str(), table, files);
        }
        let (store, fetcher) = (self.store.clone(), self.fetcher.clone());
        let prover = Prover::new(layer.clone(), name.clone(), store, blob.clone(), fetcher);
        let (source, fetcher) = (Arc::new(blob), self.fetcher.clone());
        let content = LayerContent::lazy_from(descriptor.digest.as_str(), table, files, source, fetcher);
        content.prove_by(prover);
        content.copy_from(Donors::new(self.store.clone(), name.clone()));
        content
    }

    /// Opens a layer, bringing it into the store if it is not there. What was brought is usable at once, and visible to
    /// others as soon as it is on disk.
    pub async fn open(self: Arc<Self>, layer: Layer) -> Result<Arc<LayerContent>, IndexError> {
        if let Some(content) = self.open_known(&layer)? {
            return Ok(content);
        }
        match self.begin(&layer).await? {
            Either::Left(content) => Ok(content),
            Either::Right(begun) => self.bring(&layer, begun).await,
        }
    }

    /// The same, but nothing for a layer that would have to be streamed, unless all of it is here already.
    pub async fn open_lazily(self: Arc<Self>, layer: Layer) -> Result<Option<Arc<LayerContent>>, IndexError> {
        if let Some(content) = self.open_known(&layer)? {
            return Ok(Some(content));
        }
        match self.begin(&layer).await? {
            Either::Left(content) => Ok(Some(content)),
            Either::Right(Begun { indexed: Indexed::Not { whole_blob: None, because }, .. }) => {
                tracing::info!(layer = %layer.descriptor.digest, because, "the layer cannot be read lazily");
                Ok(None)
            }
            Either::Right(begun) => self.bring(&layer, begun).await.map(Some),
        }
    }

    /// Takes the lock of a layer and looks for a table or an index; or gives what another brought meanwhile.
    async fn begin(self: &Arc<Self>, layer: &Layer) -> Result<Either<Arc<LayerContent>, Begun>, IndexError> {
        check_media_type(&layer.descriptor.media_type)?;
        let (indexer, digest) = (self.clone(), layer.descriptor.digest.clone());
        let lock = blocking(move || indexer.store.layers().layer(digest.as_str())?.lock()).await?;
        if let Some(content) = self.open_known(layer)? {
            return Ok(Either::Left(content));
        }
        let ahead = self.ahead().remove(&layer.descriptor.digest);
        let (blob, read) = match ahead {
            Some(Ahead { blob, read }) => (blob, Some(read)),
            None => (OriginBlob::new(self.origin.clone(), layer.descriptor.clone()), None),
        };
        let indexed = match self.index(layer, &blob, read).await? {
            Indexed::Not { whole_blob: None, because } => self.index_beside(layer, because).await?,
            // What is here already is streamed sooner than an index beside it is asked for.
            indexed => indexed,
        };
        Ok(Either::Right(Begun { lock, blob, indexed }))
    }

    /// Makes a layer usable that was indexed, or streams it. The lock ends when it is on disk.
    async fn bring(&self, layer: &Layer, begun: Begun) -> Result<Arc<LayerContent>, IndexError> {
        let Begun { lock, blob, indexed } = begun;
        let is_streamed = matches!(indexed, Indexed::Not { .. });
        let (name, (files, pending)) = match indexed {
            Indexed::Lazily(brought) => *brought,
            Indexed::Not { whole_blob, because } => {
                let name = names::streamed(layer);
                let brought = self.stream(layer, &name, &blob, whole_blob, because).await?;
                (name, brought)
            }
        };
        let table = Table::open(&files.table, &identity(&name))?;
        let (store, brought, kept_as) = (self.store.clone(), layer.clone(), name.clone());
        let from = blob.reference().clone();
        let publishing = self.fetcher.room().map(Room::publishing);
        // Not after the last layer: two processes that each held a layer for which the other waits would never end.
        let commit = tokio::task::spawn_blocking(move || {
            // If something stands there it is damaged: else it would have been opened.
            pending.commit_replacing()?;
            drop(publishing);
            if is_streamed {
                twins::note(&store, &brought, &kept_as, &from);
            }
            drop(lock);
            Ok(())
        });
        self.commits().push(commit);
        // It knows where it was found.
        Ok(self.content_from(layer, &name, table, files, blob))
    }

    fn commits(&self) -> MutexGuard<'_, Vec<JoinHandle<Result<(), StoreError>>>> {
        self.commits.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until all that was brought is on disk and visible to others.
    pub async fn committed(&self) -> Result<(), StoreError> {
        let commits = std::mem::take(&mut *self.commits());
        for commit in commits {
            joined(commit.await)?;
        }
        Ok(())
    }

    /// The lazy way, if the layer has a table of contents that the manifest vouches for and its host reads by ranges.
    /// `ahead` reads what is to be read first, if that was begun before.
    async fn index(
        &self,
        layer: &Layer,
        blob: &OriginBlob,
        ahead: Option<JoinSet<Result<Bytes, peelfs_registry::Error>>>,
    ) -> Result<Indexed, IndexError> {
        let Layer { descriptor, .. } = layer;
        let Some(lookup) = Lookup::new(&descriptor.annotations, descriptor.size).map_err(Box::new)? else {
            return Ok(Indexed::Not { whole_blob: None, because: "its descriptor names none" });
        };
        let blob = blob.open().await?;
        let name_in_blob = names::from_toc(layer, &lookup);
        let first_range = lookup.first_range();
        let begun = match ahead {
            Some(mut read) => read.join_next().await.and_then(Result::ok),
            None => None,
        };
        let first = match begun {
            Some(read) => read,
            None => blob.read(first_range.clone()).await,
        };
        let first = match first {
            Ok(first) => first,
            Err(error) if error.kind() == peelfs_registry::ErrorKind::RangeUnsupported => {
                return Ok(Indexed::Not { whole_blob: None, because: NO_RANGES });
            }
            Err(error) => return Err(error.into()),
        };
        // Of a small layer the first read brings all: then streaming it costs no other request.
        let whole_blob = (first_range == (0..descriptor.size)).then(|| first.clone());
        let Some(located) = lookup.locate(&first).map_err(Box::new)? else {
            tracing::warn!(layer = %descriptor.digest, "the manifest names a table of contents that the layer does not have; it is streamed");
            return Ok(Indexed::Not { whole_blob, because: "there is none where its descriptor says" });
        };
        if !blob.ranges_work() {
            return Ok(Indexed::Not { whole_blob, because: NO_RANGES });
        }
        let toc = match located.place().clone() {
            TocPlace::Blob(range) if first_range.start <= range.start && range.end <= first_range.end => {
                first.slice(
                    (range.start - first_range.start) as usize..(range.end - first_range.start) as usize,
                )
            }
            TocPlace::Blob(range) => blob.read(range).await?,
            // What is here already is streamed sooner than its table is asked for.
            TocPlace::TocImage if whole_blob.is_some() => {
                return Ok(Indexed::Not {
                    whole_blob,
                    because: "all of it came before its table was asked for",
                });
            }
            TocPlace::TocImage => match self.toc_image.table_of(&descriptor.digest).await? {
                Some(toc) => toc,
                None => {
                    return Ok(Indexed::Not { whole_blob, because: "its image of tables has none for it" });
                }
            },
        };
        let name = match (located.place(), self.image.get()) {
            (TocPlace::Blob(_), _) => name_in_blob,
            // No part of the blob, like a zTOC that the manifest names.
            (TocPlace::TocImage, Some(image)) => {
                names::kept_apart(&descriptor.digest, &image.manifest, IndexSource::Manifest)
            }
            (TocPlace::TocImage, None) => {
                return Ok(Indexed::Not { whole_blob, because: "nobody says which image its table is of" });
            }
        };
        let (store, digest, kept_as) = (self.store.clone(), descriptor.digest.clone(), name.clone());
        let brought = blocking(move || {
            let contents = located.read_toc(&toc).map_err(Box::new)?;
            if contents.names_are_lossy {
                tracing::info!(layer = %digest, "a table of contents cannot tell all names of this layer; it is streamed");
                return Ok(None);
            }
            let TableOfContents { entries, chunks, decoded_length, prefetch, .. } = contents;
            let landmark = match prefetch {
                Some(Landmark::Prefetch { blob_length }) => Some(blob_length),
                Some(Landmark::None) | None => None,
            };
            let (format, source) = (located.format(), TableSource::Toc);
            let draft = Draft { entries, chunks, decoded_length, format, source, landmark };
            draft_of(&store, &kept_as, draft, |_| Ok(())).map(Some)
        });
        let Some(brought) = brought.await? else {
            return Ok(Indexed::Not { whole_blob, because: "it cannot tell all names of the layer" });
        };
        (self.progress)(Event::Indexed(descriptor.digest.clone()));
        Ok(Indexed::Lazily(Box::new((name, brought))))
    }

    /// The lazy way by an index that lies beside the layer, if there is one and it is of use. Why not is what is said, else what was known
    /// before.
    async fn index_beside(&self, layer: &Layer, because: &'static str) -> Result<Indexed, IndexError> {
        let not = |because| Ok(Indexed::Not { whole_blob: None, because });
        let (Some(lazy_index), Some(name)) = (&layer.lazy_index, self.kept_apart(layer)) else {
            return not(because);
        };
        match index_by_ztoc(&self.store, &self.origin, layer, lazy_index, &name).await? {
            ByZtoc::Lazily(brought) => {
                (self.progress)(Event::Indexed(layer.descriptor.digest.clone()));
                Ok(Indexed::Lazily(Box::new((name, *brought))))
            }
            ByZtoc::Not { because } => not(because),
        }
    }

    /// The one pass over a layer that has no table of contents, which is kept under that name; its blob is read unless it is here
    /// already.
    async fn stream(
        &self,
        layer: &Layer,
        name: &Digest,
        blob: &OriginBlob,
        whole_blob: Option<Bytes>,
        because: &'static str,
    ) -> Result<(LayerFiles, PendingPublish), IndexError> {
        // The semaphore is never closed, so this is always a permit.
        let _permit = self.streams.acquire().await;
        let (digest, size) = (layer.descriptor.digest.clone(), layer.descriptor.size);
        (self.progress)(Event::StreamStarted(digest.clone(), size));
        let (sender, mut receiver) = tokio::sync::mpsc::channel(64);
        let unpack = {
            let (store, layer, progress) = (self.store.clone(), layer.clone(), self.progress.clone());
            let (name, room) = (name.clone(), self.fetcher.room().cloned());
            tokio::task::spawn_blocking(move || {
                let descriptor = &layer.descriptor;
                let draft = store.layers().layer(name.as_str())?.create()?;
                draft.provenance(&Provenance {
                    format: layer.archive_format().to_owned(),
                    index: TableSource::Stream { because: because.to_owned() },
                    made_at: now(),
                    landmark: None,
                })?;
                let annotations = descriptor.annotations.clone();
                let expectation = StreamExpectation {
                    blob_digest: descriptor.digest.clone(),
                    blob_size: descriptor.size,
                    diff_id: Some(layer.diff_id.clone()),
                    maximum_decoded: stream::MAXIMUM_DECODED,
                };
                let told = |bytes| progress(Event::Streamed(descriptor.digest.clone(), bytes));
                let pieces = std::iter::from_fn(|| receiver.blocking_recv());
                unpack(draft, &name, annotations, pieces, &expectation, room.as_deref(), &told)
            })
        };
        let pieces = match whole_blob {
            Some(bytes) => Either::Left(futures_util::stream::iter([Ok(bytes)])),
            None => Either::Right(blob.open().await?.stream(0)),
        };
        feed(pieces, sender).await;
        let brought = joined(unpack.await)?;
        (self.progress)(Event::StreamFinished(digest));
        Ok(brought)
    }
}

/// Streams a layer with these annotations into its draft, to be kept under that name. It is wholly there then, and can be fetched again
/// in chunks; what there is no room for is missing then.
pub(super) fn unpack<I, B, E>(
    draft: LayerDraft,
    name: &Digest,
    annotations: BTreeMap<String, String>,
    pieces: I,
    expectation: &StreamExpectation,
    room: Option<&Room>,
    told: &(dyn Fn(u64) + Sync),
) -> Result<(LayerFiles, PendingPublish), IndexError>
where
    I: Iterator<Item = Result<B, E>> + Send,
    B: AsRef<[u8]>,
    E: Into<SinkError>,
{
    let mut sink = DraftSink::new(&draft, annotations, room);
    let mut checkpoints = DraftCheckpoints::of(&draft);
    let streamed =
        stream::unpack_stream(pieces, expectation, &mut sink, &mut checkpoints, told).map_err(Box::new)?;
    let (builder, dropped) = sink.finish()?;
    let missing = chunks_with(&streamed.chunks, &dropped);
    if !missing.is_empty() {
        tracing::info!(layer = %expectation.blob_digest, missing = missing.len(), chunks = streamed.chunks.len(), "not all of the layer fits in the store's budget; the rest is fetched when it is read");
    }
    for number in &missing {
        let chunk = &streamed.chunks[*number as usize];
        let parts = placement::pieces(builder.large_parts(), chunk.decoded_offset, chunk.decoded_length);
        for piece in parts {
            draft.discard(&piece)?;
        }
    }
    draft.data().set_length(DataFile::Packed, streamed.decoded_length)?;
    let table = builder.finish(identity(name), &streamed.chunks)?;
    Ok(draft.finish_whole_unsynced(&table, streamed.chunks.len() as u64, &missing)?)
}

/// The numbers of the chunks, which follow one another in the decoded space, that have something of these parts of it.
fn chunks_with(chunks: &[Chunk], parts: &[Range<u64>]) -> Vec<u64> {
    let mut found = Vec::new();
    for part in parts {
        let first = chunks.partition_point(|chunk| chunk.decoded_offset + chunk.decoded_length <= part.start);
        let after = chunks.partition_point(|chunk| chunk.decoded_offset < part.end);
        found.extend((first..after).map(|number| number as u64));
    }
    found.dedup();
    found
}

/// Opens a layer that is in the store under its digest, only to look at it; nothing if it is not there or must be made again.
pub fn open_local(store: &Store, layer: &Digest) -> Result<Option<Arc<LayerContent>>, StoreError> {
    let files = open_files(store, layer)?;
    Ok(files.map(|(table, files)| LayerContent::local(layer.as_str(), table, files)))
}

/// Opens a layer of the image with that manifest, whatever it was made of, or another with the same archive. Otherwise as
/// [`open_local`].
pub fn open_local_of(
    store: &Store,
    image: &Digest,
    layer: &Layer,
) -> Result<Option<Arc<LayerContent>>, StoreError> {
    let ancestors = ancestors(store, image)?;
    for name in names::names_of_made(layer, std::iter::once(image).chain(&ancestors), true) {
        if let Some((table, files)) = open_files(store, &name)? {
            return Ok(Some(LayerContent::local(layer.descriptor.digest.as_str(), table, files)));
        }
    }
    for name in twins::twins_of(store, layer)?.iter().filter_map(twins::Twin::name) {
        if let Some((table, files)) = open_own_files(store, &name)?
            && twins::is_proved(&files)?
        {
            return Ok(Some(LayerContent::local(layer.descriptor.digest.as_str(), table, files)));
        }
    }
    Ok(None)
}

/// Like [`open_local_of`], but waits for a process that is making the layer at this moment.
pub fn open_local_when_made(
    store: &Store,
    image: &Digest,
    layer: &Layer,
) -> Result<Option<Arc<LayerContent>>, StoreError> {
    match open_local_of(store, image, layer)? {
        Some(content) => Ok(Some(content)),
        None => {
            drop(store.layers().layer(layer.descriptor.digest.as_str())?.lock()?);
            open_local_of(store, image, layer)
        }
    }
}

/// A table that does not hold, or files that are not whole, are as good as none: the layer is made again.
fn open_files(store: &Store, layer: &Digest) -> Result<Option<(Table, LayerFiles)>, StoreError> {
    match open_own_files(store, layer)? {
        Some(opened) => Ok(Some(opened)),
        None => Ok(open_lower_files(store, layer)),
    }
}

/// Those of a layer that is wholly in a lower store. Whatever is wrong there, the layer can be brought here.
fn open_lower_files(store: &Store, layer: &Digest) -> Option<(Table, LayerFiles)> {
    let open = |lower: &LowerStore| -> Result<Option<(Table, LayerFiles)>, IndexError> {
        let Some(files) = lower.open(layer.as_str())? else { return Ok(None) };
        let table = Table::open(&files.table, &identity(layer))?;
        table.release();
        Ok(Some((table, files)))
    };
    store.lower().iter().find_map(|lower| {
        open(lower).unwrap_or_else(|error| {
            tracing::warn!(%layer, error = %chain(&error), "the layer of a lower store is passed over");
            None
        })
    })
}

fn open_own_files(store: &Store, layer: &Digest) -> Result<Option<(Table, LayerFiles)>, StoreError> {
    let files = match store.layers().layer(layer.as_str())?.open() {
        Ok(Some(files)) => files,
        Ok(None) => return Ok(None),
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::warn!(%layer, error = %chain(&error), "the layer is made again");
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match Table::open(&files.table, &identity(layer)) {
        Ok(table) if has_checkpoints(&table, &files)? => {
            // Little of it is looked at again: what is read is found through the merged table.
            table.release();
            Ok(Some((table, files)))
        }
        Ok(_) => {
            tracing::warn!(%layer, "the layer is made again: its checkpoints are damaged");
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(%layer, error = %chain(&error), "the layer is made again");
            Ok(None)
        }
    }
}

/// What makes a lazy layer, whatever its format.
pub(super) struct Draft {
    pub entries: Vec<Entry>,
    pub chunks: Vec<Chunk>,
    pub decoded_length: u64,
    /// What it is read as.
    pub format: &'static str,
    pub source: TableSource,
    /// See [`Provenance::landmark`].
    pub landmark: Option<u64>,
}

/// A layer of which only the table of contents is here; `beside` writes what else belongs to it.
pub(super) fn draft_of(
    store: &Store,
    layer: &Digest,
    contents: Draft,
    beside: impl FnOnce(&LayerDraft) -> Result<(), StoreError>,
) -> Result<(LayerFiles, PendingPublish), IndexError> {
    let mut builder = LayerBuilder::new();
    for entry in contents.entries {
        builder.add(entry)?;
    }
    let draft = store.layers().layer(layer.as_str())?.create()?;
    let (format, index) = (contents.format.to_owned(), contents.source);
    draft.provenance(&Provenance { format, index, made_at: now(), landmark: contents.landmark })?;
    for (number, length) in builder.large_sizes().iter().enumerate() {
        draft.large_file(number as u32, *length)?;
    }
    draft.data().set_length(DataFile::Packed, contents.decoded_length)?;
    beside(&draft)?;
    let table = builder.finish(identity(layer), &contents.chunks)?;
    let (files, pending) = draft.finish_unsynced(&table, Some(contents.chunks.len() as u64))?;
    if let Some(map) = &files.chunk_map {
        // The data files are holes still, which is what these chunks are.
        let zeros = contents.chunks.iter().enumerate().filter(|(_, chunk)| chunk.codec == Codec::Zeros);
        for (number, _) in zeros {
            map.mark(number as u64);
        }
    }
    Ok((files, pending))
}

/// Whether the checkpoints and claims are there that the table needs. They are looked at when they are needed.
fn has_checkpoints(table: &Table, files: &LayerFiles) -> Result<bool, StoreError> {
    let needs_one = |codec| Codec::from_number(codec).is_some_and(Codec::needs_checkpoint);
    let named = table.chunks().iter().filter(|chunk| needs_one(chunk.codec));
    let Some(last) = named.map(|chunk| chunk.checkpoint.get() as usize).max() else { return Ok(true) };
    let is_sealed = |chunk: &ChunkRecord| chunk.codec == Codec::SealedGzipSpan as u8;
    if files.headers.is_none() && table.chunks().iter().any(is_sealed) {
        return Ok(false);
    }
    let Some(file) = &files.checkpoints else { return Ok(false) };
    let file = file.try_clone().map_err(|error| StoreError::from_io("open", "checkpoints", error))?;
    Ok(Checkpoints::open(file).is_ok_and(|checkpoints| last < checkpoints.count()))
}

/// Runs what blocks beside the runtime's own threads.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    joined(tokio::task::spawn_blocking(work).await)
}

/// The result of a task; its panic goes on here.
fn joined<T>(result: Result<T, tokio::task::JoinError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => std::panic::panic_any(error.to_string()),
        },
    }
}

/// Checkpoints go to their file, which is made for the first of them.
pub(super) struct DraftCheckpoints<'a> {
    draft: &'a LayerDraft,
    file: Option<BufWriter<File>>,
}

impl DraftCheckpoints<'_> {
    pub fn of(draft: &LayerDraft) -> DraftCheckpoints<'_> {
        DraftCheckpoints { draft, file: None }
    }
}

impl Write for DraftCheckpoints<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(BufWriter::new(self.draft.checkpoints().map_err(io::Error::other)?)),
        };
        file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.as_mut().map_or(Ok(()), BufWriter::flush)
    }
}
