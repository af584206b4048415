//! An image of the store put elsewhere as it is: the same documents, the same blobs, the same digests.
//!
//! ```text
//! documents, from the store ─▶ blobs, each once ─▶ manifests below indexes ─▶ what the destination names
//!                                 │
//!                                 ├─ there already: nothing
//!                                 ├─ in another repository of the same registry: mounted from there
//!                                 ├─ whole in the store (configs): from there
//!                                 └─ else: streamed through, from where the image came from
//! ```
//!
//! What names the image comes last, so a push that is cut off leaves blobs that nothing points to. The next one finds them. The store
//! keeps what is in a layer, not the blob that it came in: what is not lent must come from where the image came from.

mod error;
mod plan;
mod recompress;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt};
use peelfs_registry::{
    BlobDescriptor, Client, ClientConfiguration, Copied, Digest, ErrorKind, ImageReference, LayoutReference,
    Platform, Repository, Target,
};

pub use self::error::PushError;
use self::plan::{NamedDocument, Plan};
pub use self::recompress::{Compressed, Recompressed, Recompression, push_recompressed};
use crate::store::{LayerOrigin, Store};

/// Blobs that are sent at the same time, of each of which a piece is in memory.
const BLOBS: usize = 3;

/// Which images are pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// The one for that platform: its manifest.
    One(Platform),
    /// The image index, with all images that it names; all of them must be in the store.
    All,
}

/// What is to be done.
pub struct Request {
    /// The image, as the store knows it.
    pub reference: ImageReference,
    /// Where its blobs come from, if the store does not have them.
    pub origin: ImageReference,
    /// Where it goes.
    pub destination: ImageReference,
    /// Which of its images.
    pub platforms: Platforms,
    /// How registries are reached.
    pub client: ClientConfiguration,
    /// Who is told what happens.
    pub progress: Progress,
}

/// What happens to the blobs, for a progress bar.
#[derive(Clone, Debug)]
pub enum Event {
    /// A blob of so many bytes begins to be put there.
    Started(Digest, u64),
    /// So many bytes of it have arrived.
    Sent(Digest, u64),
    /// It is there.
    Done(Digest, Copied),
}

/// Who is told of [`Event`]s.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// What was pushed.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// Digest of what the destination names: an index or a manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Configs and layers, each once, and how they came there.
    pub blobs: Vec<(BlobDescriptor, Copied)>,
    /// Digests of layers that are distributed by others, and are not put anywhere.
    pub foreign: Vec<Digest>,
}

/// Pushes an image.
///
/// # Errors
/// [`PushError`]; the destination names what it named before then.
pub async fn push(store: &Arc<Store>, request: &Request) -> Result<Pushed, PushError> {
    let client = Client::new(request.client.clone())?;
    let mut places = Places {
        origin: client.repository(&request.origin)?,
        store: client.repository(&ImageReference::Layout(LayoutReference {
            path: content_path(store),
            name: None,
            digest: None,
        }))?,
        destination: client.repository(&request.destination)?,
        elsewhere: BTreeMap::new(),
    };
    let plan = Plan::make(store, &places.origin, request).await?;
    for document in plan.below.iter().chain([&plan.root]) {
        places.add_elsewhere(&client, store, &document.digest)?;
    }
    if let Some(digest) = request.destination.digest()
        && *digest != plan.root.digest
    {
        return Err(PushError::Destination {
            destination: request.destination.to_string(),
            digest: plan.root.digest,
        });
    }
    let work = plan.blobs.iter().enumerate().map(|(number, blob)| {
        let put = places.put_blob(store, blob, request);
        async move { put.await.map(|put| (number, put)) }
    });
    let work = futures_util::stream::iter(work).buffer_unordered(BLOBS);
    let blobs: BTreeMap<usize, (BlobDescriptor, Copied)> = work.try_collect().await?;
    let blobs = blobs.into_values().collect();
    for document in &plan.below {
        places.put_document(&Target::Digest(document.digest.clone()), document).await?;
    }
    places.put_document(&request.destination.target(), &plan.root).await?;
    let NamedDocument { digest, media_type, .. } = plan.root;
    Ok(Pushed { digest, media_type, blobs, foreign: plan.foreign })
}

fn content_path(store: &Store) -> PathBuf {
    store.path().join("content")
}

/// Where blobs are, and where they go.
struct Places {
    origin: Repository,
    store: Repository,
    destination: Repository,
    /// Where single layers are, by their digests: those of an image that was made here.
    elsewhere: BTreeMap<String, Repository>,
}

impl Places {
    /// Notes where the layers of that manifest's image are, if it was made here.
    fn add_elsewhere(&mut self, client: &Client, store: &Store, manifest: &Digest) -> Result<(), PushError> {
        let origins = store.origins().of(manifest.as_str())?;
        for (digest, origin) in origins.into_iter().flat_map(|origins| origins.layers) {
            // What is in the store is found there anyway.
            if let LayerOrigin::Image { reference } = origin
                && let Ok(reference) = reference.parse::<ImageReference>()
            {
                self.elsewhere.insert(digest, client.repository(&reference)?);
            }
        }
        Ok(())
    }

    async fn put_blob(
        &self,
        store: &Arc<Store>,
        descriptor: &BlobDescriptor,
        request: &Request,
    ) -> Result<(BlobDescriptor, Copied), PushError> {
        let (digest, progress) = (&descriptor.digest, &request.progress);
        progress(Event::Started(digest.clone(), descriptor.size));
        let told = |sent| progress(Event::Sent(digest.clone(), sent));
        let is_kept = store.content().has(digest.as_str())?;
        let origin = self.elsewhere.get(digest.as_str()).unwrap_or(&self.origin);
        let source = if is_kept { &self.store } else { origin };
        let copied = self.destination.copy_blob(&source.blob_of(descriptor), Some(origin), &told).await;
        let copied = copied.map_err(|cause| {
            if cause.is_of_writing() && cause.kind() != ErrorKind::DigestMismatch {
                return PushError::Registry(cause);
            }
            PushError::Blob {
                image: request.reference.to_string(),
                digest: digest.clone(),
                origin: request.origin.to_string(),
                cause,
            }
        })?;
        progress(Event::Done(digest.clone(), copied));
        Ok((descriptor.clone(), copied))
    }

    async fn put_document(&self, target: &Target, document: &NamedDocument) -> Result<(), PushError> {
        let NamedDocument { digest, media_type, bytes } = document;
        let stored = self.destination.put_document(target, media_type, bytes.clone()).await?;
        // Documents are stored by SHA-256; one that is named by another algorithm would change its name.
        if stored != *digest {
            return Err(PushError::Renamed { digest: digest.clone(), stored });
        }
        Ok(())
    }
}
