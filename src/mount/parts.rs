//! An image of which layers are brought when they are asked for, one after the other, as containerd does; and the others ahead of that.
//!
//! What was brought is on disk before it is said to be there. The documents of the image are kept as soon as the first layer is.

use std::sync::Arc;

use peelfs_registry::{Digest, ImageReference, Platform};
use tokio::runtime::Handle;
use tokio::sync::OnceCell;

use super::bring::{host, keep, origins};
use super::prepare::{Composition, hex};
use super::{ImageMountError, Request, image_of_manifest, known_image};
use crate::cache::digests::chain_id;
use crate::fetch::index::{IndexError, Indexer};
use crate::fetch::{Fetcher, LayerContent, Room, ThreadStarter, referrers, soci};
use crate::image::origin::Origin;
use crate::image::{Image, Layer};
use crate::store::{Store, StoreError};

/// What may be done to have a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bringing {
    /// Only what leaves its content where it is.
    Lazily,
    /// What cannot be read lazily is streamed.
    OrStreamed,
}

/// An image whose documents are here.
pub struct ImageInParts {
    store: Arc<Store>,
    threads: Handle,
    indexer: Arc<Indexer>,
    reference: ImageReference,
    platform: Platform,
    trusts_referrers: bool,
    bringing: Bringing,
    image: Image,
    /// Of each layer and those below it.
    chain_ids: Vec<String>,
    /// With what lies beside them.
    layers: OnceCell<Vec<Layer>>,
    contents: Vec<OnceCell<Option<Arc<LayerContent>>>>,
    /// Whoever waits until layers are on disk.
    committing: tokio::sync::Mutex<()>,
}

impl ImageInParts {
    /// The image as the store knows it; nothing if it does not.
    ///
    /// # Errors
    /// [`ImageMountError`]: the store, threads.
    pub fn known(
        store: &Arc<Store>,
        threads: &ThreadStarter,
        request: &Request,
        bringing: Bringing,
    ) -> Result<Option<Arc<ImageInParts>>, ImageMountError> {
        let in_store = |cause| ImageMountError::in_store(&request.reference, cause);
        let image = match &request.pinned {
            Some(manifest) => image_of_manifest(store, manifest),
            None if store.database().is_missing().map_err(in_store)? => Ok(None),
            None => known_image(store, &request.reference, &request.platform),
        };
        let Some(image) = image.map_err(in_store)? else { return Ok(None) };
        let origin = Origin::new(request.reference.clone(), request.client.clone());
        ImageInParts::new(store, threads, request, bringing, origin, image).map(Some)
    }

    /// The image as its registry has it now.
    ///
    /// # Errors
    /// [`ImageMountError`].
    pub fn resolved(
        store: &Arc<Store>,
        threads: &ThreadStarter,
        request: &Request,
        bringing: Bringing,
    ) -> Result<Arc<ImageInParts>, ImageMountError> {
        let name = || request.reference.to_string();
        let running = threads.handle().map_err(|cause| ImageMountError::Threads { image: name(), cause })?;
        let origin = Origin::new(request.reference.clone(), request.client.clone());
        let resolved = running.block_on(async {
            match &request.pinned {
                Some(manifest) => origin.resolve_pinned(manifest, &request.platform).await,
                None => origin.resolve(&request.platform).await,
            }
        });
        let resolved = resolved.map_err(|cause| ImageMountError::Resolve { image: name(), cause })?;
        let in_store = |cause| ImageMountError::in_store(&request.reference, cause);
        let (image, found) = keep(store, resolved).map_err(in_store)?;
        for document in &found.documents {
            store.content().sync(document.as_str()).map_err(in_store)?;
        }
        ImageInParts::new(store, threads, request, bringing, origin, image)
    }

    fn new(
        store: &Arc<Store>,
        threads: &ThreadStarter,
        request: &Request,
        bringing: Bringing,
        origin: Arc<Origin>,
        image: Image,
    ) -> Result<Arc<ImageInParts>, ImageMountError> {
        let in_store = |cause| ImageMountError::in_store(&request.reference, cause);
        let image_name = || request.reference.to_string();
        let running =
            threads.handle().map_err(|cause| ImageMountError::Threads { image: image_name(), cause })?;
        let room = Arc::new(Room::new(store.clone()));
        let fetcher = Fetcher::new(threads.clone(), request.read_deadline, Some(room), |_| {});
        let indexer = Indexer::new(store.clone(), origin.clone(), fetcher, request.progress.clone());
        let (elsewhere, ancestors) = origins(store, &image.manifest_digest).map_err(in_store)?;
        origin.layers_are_elsewhere(elsewhere);
        indexer.bring_for(&image.manifest_digest, ancestors, request.trust_referrers);
        let mut chain_ids: Vec<String> = Vec::with_capacity(image.layers.len());
        for layer in &image.layers {
            chain_ids.push(chain_id(chain_ids.last().map(String::as_str), layer.diff_id.as_str()));
        }
        Ok(Arc::new(ImageInParts {
            store: store.clone(),
            threads: running,
            indexer,
            reference: request.reference.clone(),
            platform: request.platform.clone(),
            trusts_referrers: request.trust_referrers,
            bringing,
            contents: image.layers.iter().map(|_| OnceCell::new()).collect(),
            image,
            chain_ids,
            layers: OnceCell::new(),
            committing: tokio::sync::Mutex::default(),
        }))
    }

    /// The image.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// By what it was asked for.
    pub fn reference(&self) -> &ImageReference {
        &self.reference
    }

    /// Its platform, as it was asked for.
    pub fn platform(&self) -> &Platform {
        &self.platform
    }

    /// How many layers of it make up the stack of that chain ID which ends with the layer of that digest; nothing if none do.
    pub fn layers_of(&self, chain_id: &Digest, layer: &Digest) -> Option<usize> {
        let position = self.chain_ids.iter().position(|known| known == chain_id.as_str())?;
        (self.image.layers[position].descriptor.digest == *layer).then_some(position + 1)
    }

    /// Brings the lowest so many layers, and gives the key of their merged tree. Nothing if one of them would have to be streamed, and
    /// may not be. The other layers are brought, too, as they will be asked for next; but nobody waits for them.
    ///
    /// To be called on a thread that may wait.
    ///
    /// # Errors
    /// [`ImageMountError`].
    pub fn bring(self: &Arc<Self>, layers: usize) -> Result<Option<String>, ImageMountError> {
        for number in 0..self.contents.len() {
            if !self.contents[number].initialized() {
                let image = self.clone();
                // Whoever needs it asks again, and is told what is wrong.
                self.threads.spawn(async move { image.content(number).await.map(drop) });
            }
        }
        self.threads.block_on(async {
            let mut contents = Vec::with_capacity(layers);
            for number in 0..layers.min(self.contents.len()) {
                match self.content(number).await.map_err(|cause| self.of_layer(number, cause))? {
                    Some(content) => contents.push(content),
                    None => return Ok(None),
                }
            }
            // Who waits second may find nothing to wait for, while the first still does.
            let _alone = self.committing.lock().await;
            let committed = self.indexer.committed().await;
            committed.map_err(|cause| ImageMountError::in_store(&self.reference, cause))?;
            Ok(Some(hex(&Composition::of_part(&self.image, &contents).identity)))
        })
    }

    async fn content(self: &Arc<Self>, number: usize) -> Result<Option<Arc<LayerContent>>, IndexError> {
        let content = self.contents[number].get_or_try_init(|| async {
            if let Some(content) = self.indexer.open_known(&self.image.layers[number])? {
                return Ok(Some(content));
            }
            let layer = self.layers().await?[number].clone();
            match self.bringing {
                Bringing::Lazily => self.indexer.clone().open_lazily(layer).await,
                Bringing::OrStreamed => self.indexer.clone().open(layer).await.map(Some),
            }
        });
        content.await.cloned()
    }

    async fn layers(&self) -> Result<&Vec<Layer>, IndexError> {
        let layers = self.layers.get_or_try_init(|| async {
            let mut layers = soci::with_index(self.indexer.origin(), &self.image).await?;
            if self.trusts_referrers && layers.iter().all(|layer| layer.lazy_index.is_none()) {
                referrers::attach_referrer(self.indexer.origin(), &self.image, &mut layers).await;
            }
            Ok(layers)
        });
        layers.await
    }

    fn of_layer(&self, number: usize, cause: IndexError) -> ImageMountError {
        let digest = self.image.layers[number].descriptor.digest.clone();
        ImageMountError::Layer {
            image: self.reference.to_string(),
            number: number + 1,
            host: host(self.indexer.origin().reference_of(&digest)),
            digest,
            cause: Box::new(cause),
        }
    }

    /// Sees to it that the documents of the image are in the store.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn is_kept(&self) -> Result<bool, StoreError> {
        Ok(image_of_manifest(&self.store, &self.image.manifest_digest)?.is_some())
    }
}

impl ImageMountError {
    fn in_store(image: &ImageReference, cause: StoreError) -> ImageMountError {
        ImageMountError::Store { image: image.to_string(), cause: Box::new(cause) }
    }
}
