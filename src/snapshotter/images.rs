//! Images as the snapshotter sees them: which of them has the layer that is asked for, and that layer brought.
//!
//! The image that was asked about last is kept at hand, as containerd asks for each of its layers; so it is resolved once. Where a manifest is
//! named, whoever pulls has its documents as a rule: they are taken from there, as what they are is proved by their digests, and the
//! registry is asked for what they say alone.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use peelfs_registry::{Digest, ImageReference};

use super::locks::Locks;
use super::{BoxError, DiskUsage, LayerRequest, Remote, RemoteStack};
use crate::fetch::{ThreadStarter, names};
use crate::image::Image;
use crate::mount::parts::{Bringing, ImageInParts};
use crate::mount::{Request, image_of_manifest};
use crate::store::{Store, StoreError};

/// Images at hand. Each holds its layers' tables open.
const AT_HAND: usize = 8;

/// What has the tree of a stack appear at an empty directory.
pub type Mounter = Box<dyn Fn(&RemoteStack, &Path) -> Result<(), BoxError> + Send + Sync>;

/// The manifest of that digest and its config, as somebody has them at hand: by containerd's namespace and the digest. What it gives is not
/// believed, but held against digests.
pub type DocumentsAtHand = Box<dyn Fn(&str, &Digest) -> Option<(Bytes, Bytes)> + Send + Sync>;

/// How images are got.
pub struct Images {
    store: Arc<Store>,
    threads: ThreadStarter,
    request: Box<dyn Fn(ImageReference) -> Request + Send + Sync>,
    bringing: Bringing,
    mounter: Mounter,
    documents: Option<DocumentsAtHand>,
    /// The one that was found last comes last.
    at_hand: Mutex<VecDeque<AtHand>>,
    /// Who looks for an image, by its reference.
    finding: Locks<String>,
}

struct AtHand {
    image: Arc<ImageInParts>,
    /// All of its layers were asked for.
    is_whole: bool,
}

impl Images {
    /// `request` says how an image is to be asked for; what it is to be mounted with does not count.
    pub fn new(
        store: Arc<Store>,
        threads: ThreadStarter,
        request: impl Fn(ImageReference) -> Request + Send + Sync + 'static,
        bringing: Bringing,
        mounter: Mounter,
    ) -> Images {
        let (at_hand, finding) = (Mutex::default(), Locks::default());
        let request = Box::new(request);
        Images { store, threads, request, bringing, mounter, documents: None, at_hand, finding }
    }

    /// The same; the registry is not asked for documents that these have.
    pub fn with_documents(self, documents: DocumentsAtHand) -> Images {
        Images { documents: Some(documents), ..self }
    }

    /// The image that has the layer, with the number of layers up to it.
    fn find(
        &self,
        wanted: &LayerRequest,
        namespace: &str,
    ) -> Result<Option<(Arc<ImageInParts>, usize)>, BoxError> {
        let has = |image: Arc<ImageInParts>| {
            let layers = image.layers_of(&wanted.target, &wanted.layer)?;
            Some((image, layers))
        };
        if let Some(found) = self.among_those_at_hand(wanted).into_iter().find_map(has) {
            // Garbage may have been collected since.
            if found.0.is_kept()? {
                return Ok(Some(found));
            }
        }
        let reference = ImageReference::Registry(wanted.reference.clone());
        let request = Request { pinned: wanted.manifest.clone(), ..(self.request)(reference) };
        let known = || ImageInParts::known(&self.store, &self.threads, &request, self.bringing);
        let known = match known()? {
            None if self.takes_documents(wanted, namespace)? => known()?,
            known => known,
        };
        let found = match known.and_then(has) {
            Some(found) => Some(found),
            None => has(ImageInParts::resolved(&self.store, &self.threads, &request, self.bringing)?),
        };
        if let Some((image, _)) = &found {
            let mut at_hand = self.lock_at_hand();
            at_hand.retain(|other| other.image.image().manifest_digest != image.image().manifest_digest);
            at_hand.push_back(AtHand { image: image.clone(), is_whole: false });
            if at_hand.len() > AT_HAND {
                at_hand.pop_front();
            }
        }
        Ok(found)
    }

    /// Puts the documents of the image into the store, if somebody has them at hand who is asked before its registry.
    fn takes_documents(&self, wanted: &LayerRequest, namespace: &str) -> Result<bool, StoreError> {
        let (Some(documents), Some(digest)) = (&self.documents, &wanted.manifest) else { return Ok(false) };
        let Some((manifest, config)) = documents(namespace, digest) else { return Ok(false) };
        let parsed = || Image::parse(digest, &manifest, &config).ok();
        let Some(image) = Some(()).filter(|()| digest.matches(&manifest)).and_then(|()| parsed()) else {
            return Ok(false);
        };
        if !image.config.digest.matches(&config) {
            return Ok(false);
        }
        self.store.content().put(image.config.digest.as_str(), &config)?;
        self.store.content().put(digest.as_str(), &manifest)?;
        Ok(true)
    }

    fn among_those_at_hand(&self, wanted: &LayerRequest) -> Vec<Arc<ImageInParts>> {
        let is_wanted = |image: &&Arc<ImageInParts>| {
            let same_manifest =
                wanted.manifest.as_ref().is_none_or(|manifest| *manifest == image.image().manifest_digest);
            same_manifest
                && matches!(image.reference(), ImageReference::Registry(other) if *other == wanted.reference)
        };
        self.lock_at_hand().iter().rev().map(|at_hand| &at_hand.image).filter(is_wanted).cloned().collect()
    }

    fn lock_at_hand(&self) -> MutexGuard<'_, VecDeque<AtHand>> {
        self.at_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Remote for Images {
    fn bring(&self, wanted: &LayerRequest, namespace: &str) -> Result<Option<RemoteStack>, BoxError> {
        let found = self.finding.alone(wanted.reference.to_string(), || self.find(wanted, namespace));
        let Some((image, layers)) = found? else {
            tracing::warn!(image = %wanted.reference, layer = %wanted.layer, target = %wanted.target, "the image has no such layer; containerd unpacks it");
            return Ok(None);
        };
        let Some(tree) = image.bring(layers)? else { return Ok(None) };
        let manifest_digest = image.image().manifest_digest.clone();
        if layers == image.image().layers.len() {
            let mut at_hand = self.lock_at_hand();
            let this =
                at_hand.iter_mut().find(|other| other.image.image().manifest_digest == manifest_digest);
            this.into_iter().for_each(|at_hand| at_hand.is_whole = true);
        }
        Ok(Some(RemoteStack {
            reference: image.reference().to_string(),
            platform: image.platform().to_string(),
            manifest_digest: manifest_digest.to_string(),
            // An image has 1,024 layers at most.
            layers: layers as u32,
            tree,
        }))
    }

    fn let_go(&self) {
        self.lock_at_hand().retain(|at_hand| !at_hand.is_whole);
    }

    fn usage(&self, stack: &RemoteStack) -> Result<DiskUsage, BoxError> {
        Ok(remote_usage(&self.store, stack)?)
    }

    fn mount(&self, stack: &RemoteStack, mount_point: &Path) -> Result<(), BoxError> {
        (self.mounter)(stack, mount_point)
    }
}

/// What the uppermost layer of a stack takes on disk; nothing if it is not there, or its image is not known.
///
/// # Errors
/// [`StoreError`].
pub fn remote_usage(store: &Store, stack: &RemoteStack) -> Result<DiskUsage, StoreError> {
    let Ok(manifest) = stack.manifest_digest.parse::<Digest>() else { return Ok(DiskUsage::default()) };
    let Some(image) = image_of_manifest(store, &manifest)? else { return Ok(DiskUsage::default()) };
    let Some(layer) = image.layers.get(stack.layers.saturating_sub(1) as usize) else {
        return Ok(DiskUsage::default());
    };
    for name in names::names(layer, &manifest, true) {
        let usage = store.layers().layer(name.as_str())?.usage()?;
        if usage.inodes > 0 {
            return Ok(usage);
        }
    }
    Ok(DiskUsage::default())
}
