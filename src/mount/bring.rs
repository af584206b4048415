//! An image brought into the store: its documents, and its layers, each lazily or streamed. What mounting, pulling and extracting an
//! image have in common.
//!
//! ```text
//! known? ──yes──▶ its layers from the store ──▶ those that are missing, in parallel ──▶ Brought
//!   │ no                                              ▲
//!   └──▶ resolve ──▶ documents kept ──────────────────┘
//! ```
//!
//! What is brought can be used at once; it outlasts this process, and the machine, when it was kept: see [`Brought::keep`]. The first
//! layer that fails ends the others.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use peelfs_registry::{Digest, ImageReference, LayoutReference, Platform, Statistics};
use tokio::sync::Semaphore;

use super::names::origin_of_manifest;
use super::{ImageMountError, Pull, Request, now};
use crate::cache::{BroughtImage, Cache, CacheError, ImmutableRef};
use crate::error::chain;
use crate::fetch::index::{IndexError, Indexer};
use crate::fetch::{Fetcher, LayerContent, Room, ThreadStarter, image_of_manifest, referrers, soci};
use crate::image::origin::{Elsewhere, Origin, ResolvedImage};
use crate::image::{Image, Layer};
use crate::layer::lookup::Lookup;
use crate::store::{
    CollectionLock, ImageRecord, LayerOrigin, LayerRecord, LayerState, MountRecord, Store, StoreError,
};

/// Layers that are brought at the same time, of which fewer are streamed. Whoever waits here holds no layer's lock.
const LAYERS: usize = 16;

/// An image all of whose layers are in the store, open.
pub(super) struct Brought {
    pub store: Arc<Store>,
    /// What it was asked for by.
    pub reference: ImageReference,
    pub origin: Arc<Origin>,
    pub indexer: Arc<Indexer>,
    pub threads: ThreadStarter,
    pub image: Image,
    /// How the image was found, if the registry was asked.
    pub resolved: Option<Found>,
    /// Whether it is that of a manifest: no word on what the reference means.
    pinned: bool,
    pub platform: Platform,
    /// The lowest first.
    pub layers: Vec<Arc<LayerContent>>,
    /// The image has more layers than these.
    pub is_part: bool,
    /// Documents that are not yet on disk.
    unsettled: Mutex<Vec<Digest>>,
    making: Mutex<Option<JoinHandle<Result<(), StoreError>>>>,
    /// Keeps it from being collected before it is recorded.
    lock: Mutex<Option<CollectionLock>>,
}

/// What is recorded of an image that the registry was asked for.
pub(super) struct Found {
    index: Option<Digest>,
    at: i64,
    pub documents: Vec<Digest>,
}

/// The host that a reference names, or the directory of a layout.
pub(super) fn host(reference: &ImageReference) -> String {
    match reference {
        ImageReference::Registry(reference) => reference.host().to_owned(),
        ImageReference::Layout(layout) => layout.path().display().to_string(),
    }
}

/// The image of that reference and platform as the store knows it; nothing if it is not wholly known.
pub fn known_image(
    store: &Store,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<Option<Image>, StoreError> {
    let record = store.database().find_image(&reference.to_string(), &platform.to_string())?;
    record.map_or(Ok(None), |record| recorded_image(store, &record))
}

/// Where the layers of an image come from that was made here, and the manifests of the images that it was made of. Nothing comes from
/// elsewhere for one that was not.
pub(super) fn origins(store: &Store, image: &Digest) -> Result<(Elsewhere, Vec<Digest>), StoreError> {
    let Some(origins) = store.origins().of(image.as_str())? else { return Ok(Default::default()) };
    let here = LayoutReference { path: store.content().path().to_owned(), name: None, digest: None };
    let elsewhere = origins.layers.into_iter().filter_map(|(digest, origin)| {
        let reference = match origin {
            LayerOrigin::Content => ImageReference::Layout(here.clone()),
            LayerOrigin::Image { reference } => reference.parse().ok()?,
        };
        Some((digest.parse().ok()?, reference))
    });
    let ancestors = origins.ancestors.iter().filter_map(|digest| digest.parse().ok());
    Ok((elsewhere.collect(), ancestors.collect()))
}

/// The image of a record; nothing if not all of its documents are in the store.
pub fn recorded_image(store: &Store, record: &ImageRecord) -> Result<Option<Image>, StoreError> {
    let Some(manifest) = store.content().get(&record.manifest_digest)? else { return Ok(None) };
    let Some(config) = store.content().get(&record.config_digest)? else { return Ok(None) };
    let image =
        record.manifest_digest.parse().ok().and_then(|digest| Image::parse(&digest, &manifest, &config).ok());
    Ok(image)
}

/// Brings an image. `observer` is told after each request what has crossed the network, and how many bytes of it nobody waited for.
pub(super) fn bring(
    store: Arc<Store>,
    threads: &ThreadStarter,
    request: Request,
    observer: impl Fn(Statistics, u64) + Send + Sync + 'static,
) -> Result<Brought, ImageMountError> {
    bring_lowest(store, threads, request, usize::MAX, observer)
}

/// The same, with the lowest so many layers alone: what comes of it is an image that has no others.
pub(super) fn bring_lowest(
    store: Arc<Store>,
    threads: &ThreadStarter,
    request: Request,
    layers: usize,
    observer: impl Fn(Statistics, u64) + Send + Sync + 'static,
) -> Result<Brought, ImageMountError> {
    let name = request.reference.to_string();
    let in_store = |cause| ImageMountError::Store { image: name.clone(), cause: Box::new(cause) };
    let running =
        || threads.handle().map_err(|cause| ImageMountError::Threads { image: name.clone(), cause });
    let nothing_is_known = store.database().is_missing().map_err(in_store)?;
    // Beside the network rather than after it. If it fails, so will the record of the mount, which tells why.
    let making = nothing_is_known.then(|| {
        let store = store.clone();
        std::thread::spawn(move || store.database().make())
    });
    let known = match request.pull {
        _ if request.pinned.is_some() => {
            let pinned = request.pinned.as_ref().map(|manifest| image_of_manifest(&store, manifest));
            pinned.transpose().map_err(in_store)?.flatten()
        }
        Pull::Always => None,
        _ if nothing_is_known => None,
        Pull::Missing | Pull::Never => {
            known_image(&store, &request.reference, &request.platform).map_err(in_store)?
        }
    };
    if known.is_none() && request.pull == Pull::Never {
        return Err(ImageMountError::Unknown { image: name, platform: request.platform.to_string() });
    }
    let mut lock = match known {
        Some(_) => None,
        None => Some(store.lock_for_bringing().map_err(in_store)?),
    };
    let origin = match &known {
        Some(image) => origin_of_manifest(&store, &request.reference, image.manifest_digest.as_str()),
        None => Ok(request.reference.clone()),
    };
    let origin = origin.map_err(in_store)?;
    let origin = Origin::new(origin, request.client);
    let observed = origin.clone();
    let room = Some(Arc::new(Room::new(store.clone())));
    let fetcher = Fetcher::new(threads.clone(), request.read_deadline, room, move |ahead| {
        observer(observed.statistics(), ahead)
    });
    let indexer = Indexer::new(store.clone(), origin.clone(), fetcher, request.progress);
    let (mut image, resolved) = match known {
        Some(image) => (image, None),
        None => running()?
            .block_on(origin.resolve_telling(request.pinned.as_ref(), &request.platform, |blobs| {
                indexer.look_ahead(blobs.get(..layers).unwrap_or(blobs), nothing_is_known);
            }))
            .map_err(|cause| ImageMountError::Resolve { image: name.clone(), cause })
            .and_then(|resolved| keep(&store, resolved).map_err(in_store))
            .map(|(image, found)| (image, Some(found)))?,
    };
    let is_part = layers < image.layers.len();
    image.layers.truncate(layers);
    let image = image;
    let of_layer = |(number, cause): (usize, IndexError)| ImageMountError::Layer {
        image: name.clone(),
        number: number + 1,
        digest: image.layers[number].descriptor.digest.clone(),
        host: host(indexer.origin().reference_of(&image.layers[number].descriptor.digest)),
        cause: Box::new(cause),
    };
    let (elsewhere, ancestors) = origins(&store, &image.manifest_digest).map_err(in_store)?;
    indexer.origin().layers_are_elsewhere(elsewhere);
    indexer.bring_for(&image.manifest_digest, ancestors, request.trust_referrers);
    let mounted = request.takes_over.as_deref().unwrap_or_default();
    let mut layers = known_layers(&indexer, &image, mounted).map_err(of_layer)?;
    if layers.iter().any(Option::is_none) {
        if lock.is_none() {
            lock = Some(store.lock_for_bringing().map_err(in_store)?);
        }
        let bringing = bring_layers(&indexer, &image, request.trust_referrers, &mut layers);
        running()?.block_on(bringing).map_err(of_layer)?;
    }
    indexer.end_looking_ahead();
    let layers = layers.into_iter().flatten().collect();
    let documents = resolved.as_ref().map(|found| found.documents.clone()).unwrap_or_default();
    Ok(Brought {
        store,
        reference: request.reference,
        origin,
        indexer,
        threads: threads.clone(),
        image,
        resolved,
        pinned: request.pinned.is_some(),
        is_part,
        platform: request.platform,
        layers,
        unsettled: Mutex::new(documents),
        making: Mutex::new(making),
        lock: Mutex::new(lock),
    })
}

impl Brought {
    /// Waits for the thread that makes the database, if there is one.
    pub fn wait_for_database(&self) {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(making) = making {
            let _ = making.join();
        }
    }

    /// Records the image and its layers; its name, if the registry was asked for it; and its mount, if it is mounted. `tree` is what the
    /// tree of the layers is kept by. What is given keeps the records while it lives; nothing if the image has no layers.
    pub fn record(
        &self,
        tree: &str,
        mount: Option<&MountRecord>,
    ) -> Result<Option<ImmutableRef>, CacheError> {
        self.record_in(&Cache::open_as_it_is(self.store.clone())?, tree, mount)
    }

    /// The same in records that are open.
    pub fn record_in(
        &self,
        cache: &Cache,
        tree: &str,
        mount: Option<&MountRecord>,
    ) -> Result<Option<ImmutableRef>, CacheError> {
        let reference = self.reference.to_string();
        let layers = || self.image.layers.iter().zip(&self.layers);
        let names = self.layer_names();
        let found = self.resolved.as_ref().filter(|_| !self.pinned).map(|found| {
            let record = ImageRecord {
                reference: reference.clone(),
                platform: self.platform.to_string(),
                manifest_digest: self.image.manifest_digest.to_string(),
                index_digest: found.index.as_ref().map(Digest::to_string),
                config_digest: self.image.config.digest.to_string(),
                resolved_at: found.at,
                last_used: now(),
            };
            let layers: Vec<_> = layers().map(|(layer, content)| layer_record(layer, content)).collect();
            (record, layers)
        });
        cache.record_brought(&BroughtImage {
            image: &self.image,
            is_part: self.is_part,
            reference: &reference,
            layers: &names,
            tree,
            named: found.as_ref().map(|(record, layers)| (record, layers.as_slice())),
            mount,
        })
    }

    /// What its layers are kept by, the lowest first.
    pub fn layer_names(&self) -> Vec<Digest> {
        let layers = self.image.layers.iter().zip(&self.layers);
        layers.map(|(layer, content)| self.indexer.name_of(layer, content)).collect()
    }

    /// Says when an image that was known was used.
    pub fn record_use(&self) -> Result<(), StoreError> {
        if self.resolved.is_some() || self.pinned {
            return Ok(());
        }
        let (reference, platform) = (self.reference.to_string(), self.platform.to_string());
        self.store.database().use_image(&reference, &platform, now()).map(drop)
    }

    /// Brings the documents to disk.
    pub fn keep_documents(&self) -> Result<(), StoreError> {
        let unsettled = std::mem::take(&mut *self.unsettled.lock().unwrap_or_else(PoisonError::into_inner));
        for digest in &unsettled {
            self.store.content().sync(digest.as_str())?;
        }
        Ok(())
    }

    /// Notes what the name means, if that is news, so that it is known even if the database is lost.
    pub fn note(&self) -> Result<(), StoreError> {
        match self.resolved {
            Some(_) if !self.pinned => self.store.note_images(),
            _ => Ok(()),
        }
    }

    /// Brings the layers to disk, and makes them visible to others.
    pub fn keep_layers(&self) -> Result<(), StoreError> {
        // Where no threads run, nothing was brought.
        self.threads.running().map_or(Ok(()), |threads| threads.block_on(self.indexer.committed()))
    }

    /// It is recorded and on disk: from now on it is the collector's to judge.
    pub fn settled(&self) {
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// Makes what was fetched of the layers outlast a crash of the machine.
    pub fn checkpoint(&self) {
        for layer in &self.layers {
            if let Err(error) = layer.checkpoint() {
                tracing::warn!(layer = %layer.layer(), error = %chain(&error), "what was fetched may be fetched again after a crash");
            }
        }
    }
}

/// Keeps the documents that the registry gave.
pub(super) fn keep(store: &Store, resolved: ResolvedImage) -> Result<(Image, Found), StoreError> {
    let ResolvedImage { image, resolved, config } = resolved;
    let index = resolved.index().map(|document| document.digest.clone());
    let documents = resolved.documents.into_iter().map(|document| (document.digest, document.bytes));
    let mut kept = Vec::new();
    for (digest, bytes) in documents.chain([(image.config.digest.clone(), config)]) {
        store.content().put_unsynced(digest.as_str(), &bytes)?;
        kept.push(digest);
    }
    Ok((image, Found { index, at: now(), documents: kept }))
}

/// Opens the layers that are in the store, those that are mounted as what they are mounted by; or tells which one failed.
fn known_layers(
    indexer: &Indexer,
    image: &Image,
    mounted: &[Digest],
) -> Result<Vec<Option<Arc<LayerContent>>>, (usize, IndexError)> {
    let open = |number: usize, layer| {
        let as_mounted = mounted.get(number).map(|name| indexer.open_as(layer, name)).transpose()?.flatten();
        as_mounted.map_or_else(|| indexer.open_known(layer), |content| Ok(Some(content)))
    };
    let layers = image.layers.iter().enumerate();
    layers.map(|(number, layer)| open(number, layer).map_err(|cause| (number, cause))).collect()
}

/// Brings the other layers, in parallel; or tells which one failed.
async fn bring_layers(
    indexer: &Arc<Indexer>,
    image: &Image,
    trusts_referrers: bool,
    layers: &mut [Option<Arc<LayerContent>>],
) -> Result<(), (usize, IndexError)> {
    let mut tasks = tokio::task::JoinSet::new();
    let first = layers.iter().position(Option::is_none).unwrap_or(0);
    let mut wanted = soci::with_index(indexer.origin(), image).await.map_err(|error| (first, error))?;
    if trusts_referrers && wanted.iter().all(|layer| layer.lazy_index.is_none()) {
        referrers::attach_referrer(indexer.origin(), image, &mut wanted).await;
    }
    let slots = Arc::new(Semaphore::new(LAYERS));
    for (number, layer) in wanted.into_iter().enumerate().filter(|(number, _)| layers[*number].is_none()) {
        let (indexer, slots) = (indexer.clone(), slots.clone());
        tasks.spawn(async move {
            // The semaphore is never closed, so this is always a permit.
            let _slot = slots.acquire().await;
            (number, indexer.open(layer).await)
        });
    }
    while let Some(opened) = tasks.join_next().await {
        match opened {
            Ok((number, Ok(content))) => layers[number] = Some(content),
            // The others are cancelled with the set.
            Ok((number, Err(error))) => return Err((number, error)),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    Ok(())
}

/// What is recorded of a layer of an image.
pub fn layer_record(layer: &Layer, content: &LayerContent) -> LayerRecord {
    let presence = content.presence();
    let lazy = presence.chunks < presence.all_chunks;
    // A layer that was streamed has chunks too, once it is here.
    let descriptor = &layer.descriptor;
    let has_toc = matches!(Lookup::new(&descriptor.annotations, descriptor.size), Ok(Some(_)));
    LayerRecord {
        digest: layer.descriptor.digest.to_string(),
        media_type: layer.descriptor.media_type.clone(),
        size: layer.descriptor.size,
        diff_id: Some(layer.diff_id.to_string()),
        toc_digest: None,
        format: if has_toc && presence.all_chunks > 0 { "estargz" } else { layer.archive_format() }
            .to_owned(),
        state: if lazy { LayerState::Lazy } else { LayerState::Extracted },
        chunk_count: (presence.all_chunks > 0).then_some(presence.all_chunks),
        decoded_bytes: None,
        created_at: now(),
        last_used: now(),
    }
}
