//! An image pulled into containerd: documents, layers, and last its name.
//!
//! ```text
//! resolve ──▶ lease ──▶ config, manifest, index: content ──▶ layers ──▶ the config keeps the uppermost snapshot ──▶ name ──▶ lease ends
//! ```
//!
//! What keeps what: the name keeps the first document, that the next and so on (`containerd.io/gc.ref.content.*`), the manifest its
//! layers' blobs as far as there are any, and the config the uppermost snapshot, which keeps those below. Until the name is there the
//! lease keeps all; it expires a day later, should nobody end it. So whoever is killed leaves nothing that stays.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::stream;
use peelfs_registry::{
    BlobDescriptor, Client, ClientConfiguration, Digest, ImageReference, Platform, Reference, Repository,
    Resolved, Statistics,
};

use super::ContainerdError;
use super::connection::Connection;
use super::content::{Content, Labels};
use super::layers::Layers;
use super::messages::FieldMask;
use super::pull_messages::{
    CreateLeaseRequest, CreateLeaseResponse, DeleteLeaseRequest, Descriptor, Image as ImageRecord,
    ImageMessage,
};
use crate::image::Image;
use crate::image::origin::MAXIMUM_CONFIG;
use crate::layer::entry::Timestamp;
use crate::layer::write::time::rfc3339;

/// How long what a pull has made is kept if it does not come to an end, as with containerd's own clients.
const EXPIRY: Duration = Duration::from_secs(24 * 3600);
const CONTENT_REFERENCE: &str = "containerd.io/gc.ref.content";
const SNAPSHOT_REFERENCE: &str = "containerd.io/gc.ref.snapshot";

/// What to pull, and where to.
pub struct PullRequest {
    /// The image.
    pub reference: Reference,
    /// Whose image of an index.
    pub platform: Platform,
    /// How to reach the registry.
    pub client: ClientConfiguration,
    /// containerd's socket.
    pub address: PathBuf,
    /// Which of containerd's namespaces.
    pub namespace: String,
    /// Which of containerd's snapshotters.
    pub snapshotter: String,
    /// Told what happens to the layers.
    pub progress: Progress,
}

/// What happens to the layers of an image.
#[derive(Clone, Debug)]
pub enum Event {
    /// A blob begins to be fetched; it has so many bytes.
    Fetching(Digest, u64),
    /// So many bytes of it are there.
    Fetched(Digest, u64),
    /// containerd unpacks it.
    Unpacking(Digest),
    /// A layer has its snapshot.
    Done(Digest, Outcome),
}

/// Who is told of [`Event`]s.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

/// What became of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// containerd had its snapshot.
    Known,
    /// The snapshotter brings its content when it is read.
    Lazy,
    /// It was fetched and unpacked by containerd.
    Unpacked,
}

/// An image that containerd has.
#[derive(Debug)]
pub struct PulledImage {
    /// The image.
    pub image: Image,
    /// What its name stands for: the digest of a manifest or index.
    pub target: Digest,
    /// What became of each layer, the lowest first.
    pub outcomes: Vec<Outcome>,
    /// What crossed the network here. What the snapshotter fetches is not in it.
    pub statistics: Statistics,
}

/// Pulls an image; `interrupted` ends it before.
///
/// # Errors
/// [`ContainerdError`].
pub async fn pull(
    request: PullRequest,
    interrupted: impl Future<Output = ()>,
) -> Result<PulledImage, ContainerdError> {
    let connection = Connection::open(&request.address, &request.namespace).await?;
    let lease = Lease::take(&connection).await?;
    let result = tokio::select! {
        result = pull_under(&request, &lease) => result,
        () = interrupted => Err(ContainerdError::Interrupted),
    };
    lease.end().await;
    result
}

async fn pull_under(request: &PullRequest, lease: &Lease) -> Result<PulledImage, ContainerdError> {
    let PullRequest { reference, platform, snapshotter, progress, .. } = request;
    let client = Client::new(request.client.clone())?;
    let repository = client.repository(&ImageReference::Registry(reference.clone()))?;
    let resolved = peelfs_registry::resolve(&repository, &reference.target(), platform).await?;
    let connection = &lease.connection;
    let (host, name) = (reference.host(), reference.repository());
    let content = Content::new(connection.clone(), lease.id.clone(), host, name);
    let documents = Documents { content: &content, repository: &repository, resolved: &resolved };
    let image = documents.keep().await?;
    let layers = Layers {
        connection,
        content: &content,
        snapshotter,
        reference,
        repository: &repository,
        image: &image,
        progress,
    };
    let (outcomes, uppermost) = layers.bring().await?;
    if let Some(uppermost) = uppermost {
        let label = (format!("{SNAPSHOT_REFERENCE}.{snapshotter}"), uppermost);
        content.set_labels(image.config.digest.as_str(), [label].into()).await?;
    }
    record(connection, reference, target(&resolved)).await?;
    let target = resolved.target_digest().clone();
    Ok(PulledImage { image, target, outcomes, statistics: client.statistics() })
}

/// The documents of an image.
struct Documents<'a> {
    content: &'a Content,
    repository: &'a Repository,
    resolved: &'a Resolved,
}

impl Documents<'_> {
    /// Puts them into containerd, and gives the image.
    async fn keep(&self) -> Result<Image, ContainerdError> {
        let manifest = self.resolved.manifest_document();
        let config = &self.resolved.config;
        // What is not an image is not asked for more.
        Image::manifest(&manifest.digest, &manifest.bytes)?;
        let keep_config = async {
            let bytes = match self.content.read(&config.digest, config.size.min(MAXIMUM_CONFIG)).await? {
                Some(bytes) => bytes,
                None => self.repository.small_blob(config, MAXIMUM_CONFIG).await?,
            };
            let image = Image::parse(&manifest.digest, &manifest.bytes, &bytes)?;
            self.put(&config.digest, &bytes, Labels::new()).await?;
            Ok(image)
        };
        // The lease keeps all of them, in whatever order they come: so the disk works while the registry is waited for.
        let (image, ()) = tokio::try_join!(keep_config, self.keep_chain())?;
        Ok(image)
    }

    /// Those from the manifest up to what the reference names.
    async fn keep_chain(&self) -> Result<(), ContainerdError> {
        let config = &self.resolved.config;
        let mut below: Option<&Digest> = None;
        for document in self.resolved.documents.iter().rev() {
            let labels = match below {
                None => references_of_manifest(config, &self.resolved.layers),
                Some(below) => [(format!("{CONTENT_REFERENCE}.m.0"), below.to_string())].into(),
            };
            self.put(&document.digest, &document.bytes, labels).await?;
            below = Some(&document.digest);
        }
        Ok(())
    }

    async fn put(
        &self,
        digest: &Digest,
        bytes: &bytes::Bytes,
        labels: Labels,
    ) -> Result<(), ContainerdError> {
        let size = bytes.len() as u64;
        let source = |from: u64| {
            // It is at most as long as what is in memory.
            let rest = bytes.slice(usize::try_from(from).unwrap_or(bytes.len()).min(bytes.len())..);
            stream::iter([Ok::<_, ContainerdError>(rest)])
        };
        self.content.put(digest, size, labels, source, |_| {}).await
    }
}

/// What a manifest keeps: its config, and the blobs of its layers as far as there are any.
fn references_of_manifest(config: &BlobDescriptor, layers: &[BlobDescriptor]) -> Labels {
    let config = (format!("{CONTENT_REFERENCE}.config"), config.digest.to_string());
    let layers = layers
        .iter()
        .enumerate()
        .map(|(number, layer)| (format!("{CONTENT_REFERENCE}.l.{number}"), layer.digest.to_string()));
    std::iter::once(config).chain(layers).collect()
}

/// What the name of an image stands for.
fn target(resolved: &Resolved) -> Descriptor {
    let first = &resolved.documents[0];
    Descriptor {
        media_type: first.media_type.clone(),
        digest: first.digest.to_string(),
        // At most 4 MiB.
        size: first.bytes.len() as i64,
        annotations: BTreeMap::new(),
    }
}

/// Gives the image its name, or the name to it.
async fn record(
    connection: &Connection,
    reference: &Reference,
    target: Descriptor,
) -> Result<(), ContainerdError> {
    let image = ImageRecord { name: reference.to_string(), labels: Labels::new(), target: Some(target) };
    loop {
        let create = ImageMessage { image: Some(image.clone()), update_mask: None };
        let created: Result<ImageMessage, _> =
            connection.call("containerd.services.images.v1.Images/Create", create).await;
        match created {
            Err(failed) if failed.is_already_exists() => {}
            other => return other.map(drop).map_err(|failed| connection.failed(failed)),
        }
        // The labels that somebody gave it stay.
        let update_mask = Some(FieldMask { paths: vec!["target".to_owned()] });
        let update = ImageMessage { image: Some(image.clone()), update_mask };
        let updated: Result<ImageMessage, _> =
            connection.call("containerd.services.images.v1.Images/Update", update).await;
        match updated {
            // It was removed meanwhile.
            Err(failed) if failed.is_not_found() => {}
            other => return other.map(drop).map_err(|failed| connection.failed(failed)),
        }
    }
}

/// What keeps all that a pull makes until it has its name.
struct Lease {
    id: String,
    /// Whatever is made through it is kept.
    connection: Connection,
}

impl Lease {
    async fn take(connection: &Connection) -> Result<Lease, ContainerdError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = format!("peel-{}-{}", now.as_nanos(), std::process::id());
        let expires = Timestamp { seconds: (now + EXPIRY).as_secs() as i64, nanoseconds: 0 };
        let labels = [("containerd.io/gc.expire".to_owned(), rfc3339(expires))].into();
        let request = CreateLeaseRequest { id: id.clone(), labels };
        let created: Result<CreateLeaseResponse, _> =
            connection.call("containerd.services.leases.v1.Leases/Create", request).await;
        created.map_err(|failed| connection.failed(failed))?;
        // Letters, digits and hyphens are a name.
        let leased = connection.with_lease(&id).unwrap_or_else(|| connection.clone());
        Ok(Lease { id, connection: leased })
    }

    async fn end(self) {
        let request = DeleteLeaseRequest { id: self.id.clone(), sync: false };
        let deleted: Result<(), _> =
            self.connection.call("containerd.services.leases.v1.Leases/Delete", request).await;
        if let Err(failed) = deleted {
            tracing::warn!(lease = self.id, error = %failed.status, "the lease stays until it expires");
        }
    }
}
