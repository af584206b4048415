//! The layers of an image as containerd's snapshots, the lowest first.
//!
//! ```text
//! the snapshot of that chain ID there? ──yes──▶ next
//!        │ no
//!        ▼
//! Prepare, with the labels that name the layer ──AlreadyExists──▶ lazy: next
//!        │ mounts
//!        ▼
//! its blob (this one and those above it, several at once) ──▶ Apply ──▶ its diff ID? ──▶ Commit
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use peelfs_registry::{BlobDescriptor, Digest, Reference, Repository};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::ContainerdError;
use super::connection::Connection;
use super::content::{Content, Labels};
use super::messages::{CommitRequest, CreateRequest, InfoResponse, KeyRequest, Mount, MountsResponse};
use super::pull::{Event, Outcome, Progress};
use super::pull_messages::{ApplyRequest, ApplyResponse, Descriptor};
use crate::cache::digests::chain_id;
use crate::image::{Image, Layer};
use crate::snapshotter::LayerRequest;

/// Blobs that are fetched at once.
const FETCHES: usize = 3;
/// How often a snapshot is asked for that is there and then is not: another client may remove it meanwhile.
const ATTEMPTS: usize = 3;
/// What containerd passes on of a descriptor's annotations.
const PASSED_ON: &str = "containerd.io/snapshot/";
/// What containerd calls the digest of the archive of a blob.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What brings the layers of one image.
pub(super) struct Layers<'a> {
    pub connection: &'a Connection,
    pub content: &'a Content,
    pub snapshotter: &'a str,
    pub reference: &'a Reference,
    pub repository: &'a Repository,
    pub image: &'a Image,
    pub progress: &'a Progress,
}

/// What there is of a layer that was asked for.
enum Prepared {
    Lazily,
    Mounts { key: String, mounts: Vec<Mount> },
}

impl Layers<'_> {
    /// Brings them all; gives what became of each, and the name of the uppermost snapshot. Nothing is left that is not whole but on an
    /// error of containerd, or by being dropped; that, the lease keeps.
    pub async fn bring(&self) -> Result<(Vec<Outcome>, Option<String>), ContainerdError> {
        let mut outcomes = Vec::with_capacity(self.image.layers.len());
        let mut parent: Option<String> = None;
        let mut downloads: Option<Downloads> = None;
        for (number, layer) in self.image.layers.iter().enumerate() {
            let chain = chain_id(parent.as_deref(), layer.diff_id.as_str());
            let outcome = if self.is_there(&chain).await? {
                Outcome::Known
            } else {
                match self.prepare(number, &chain, parent.as_deref()).await? {
                    Prepared::Lazily => Outcome::Lazy,
                    Prepared::Mounts { key, mounts } => {
                        let rest = &self.image.layers[number..];
                        let begin = || Downloads::begin(self.content, self.repository, rest, self.progress);
                        let downloads = downloads.get_or_insert_with(begin);
                        let unpacked = async {
                            downloads.wait_for(&layer.descriptor.digest).await?;
                            self.unpack(layer, &chain, &key, mounts).await
                        };
                        if let Err(error) = unpacked.await {
                            self.remove(&key).await;
                            return Err(error);
                        }
                        Outcome::Unpacked
                    }
                }
            };
            (self.progress)(Event::Done(layer.descriptor.digest.clone(), outcome));
            outcomes.push(outcome);
            parent = Some(chain);
        }
        Ok((outcomes, parent))
    }

    /// Whether there is a snapshot of that name, which stays from now on.
    async fn is_there(&self, chain: &str) -> Result<bool, ContainerdError> {
        self.content.keep(&format!("snapshots/{}", self.snapshotter), chain).await?;
        let asked: Result<InfoResponse, _> =
            self.connection.call("containerd.services.snapshots.v1.Snapshots/Stat", self.key(chain)).await;
        match asked {
            Ok(_) => Ok(true),
            Err(failed) if failed.is_not_found() => Ok(false),
            Err(failed) => Err(self.connection.failed(failed)),
        }
    }

    fn key(&self, key: &str) -> KeyRequest {
        KeyRequest { snapshotter: self.snapshotter.to_owned(), key: key.to_owned() }
    }

    async fn prepare(
        &self,
        number: usize,
        chain: &str,
        parent: Option<&str>,
    ) -> Result<Prepared, ContainerdError> {
        let layer = &self.image.layers[number];
        let labels = self.labels(number, chain);
        for _ in 0..ATTEMPTS {
            let key = format!("extract-{} {chain}", unique());
            let request = CreateRequest {
                snapshotter: self.snapshotter.to_owned(),
                key: key.clone(),
                parent: parent.unwrap_or_default().to_owned(),
                labels: labels.clone(),
            };
            let prepared =
                self.connection.call("containerd.services.snapshots.v1.Snapshots/Prepare", request).await;
            match prepared {
                Ok(MountsResponse { mounts }) => return Ok(Prepared::Mounts { key, mounts }),
                Err(failed) if failed.is_already_exists() => {
                    if self.is_there(chain).await? {
                        return Ok(Prepared::Lazily);
                    }
                }
                Err(failed) => return Err(self.connection.failed(failed)),
            }
        }
        let (snapshotter, layer) = (self.snapshotter.to_owned(), layer.descriptor.digest.clone());
        Err(ContainerdError::NoSnapshot { snapshotter, layer, chain_id: chain.to_owned() })
    }

    /// What names a layer to its snapshotter, besides what the image's author says of it.
    fn labels(&self, number: usize, chain: &str) -> Labels {
        let layer = &self.image.layers[number];
        let annotations = layer.descriptor.annotations.iter();
        let mut labels: Labels = annotations
            .filter(|(key, _)| key.starts_with(PASSED_ON))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        let above = self.image.layers[number..].iter().map(|layer| &layer.descriptor.digest);
        let digest = &layer.descriptor.digest;
        let manifest = &self.image.manifest_digest;
        labels.extend(LayerRequest::labels(self.reference, digest, manifest, chain, above));
        labels
    }

    async fn unpack(
        &self,
        layer: &Layer,
        chain: &str,
        key: &str,
        mounts: Vec<Mount>,
    ) -> Result<(), ContainerdError> {
        let digest = &layer.descriptor.digest;
        (self.progress)(Event::Unpacking(digest.clone()));
        let failed = |failed| self.connection.failed(failed);
        let request = ApplyRequest { diff: Some(descriptor(&layer.descriptor)), mounts };
        let applied: ApplyResponse =
            self.connection.call("containerd.services.diff.v1.Diff/Apply", request).await.map_err(failed)?;
        let found = applied.applied.unwrap_or_default().digest;
        if found != layer.diff_id.as_str() {
            let (layer, diff_id) = (digest.clone(), layer.diff_id.clone());
            return Err(ContainerdError::DiffId { layer, diff_id, found });
        }
        let request = CommitRequest {
            snapshotter: self.snapshotter.to_owned(),
            name: chain.to_owned(),
            key: key.to_owned(),
            labels: [(LayerRequest::TARGET.to_owned(), chain.to_owned())].into(),
            parent: String::new(),
        };
        let committed: Result<(), _> =
            self.connection.call("containerd.services.snapshots.v1.Snapshots/Commit", request).await;
        match committed {
            // Another client was faster.
            Err(error) if error.is_already_exists() => self.remove(key).await,
            other => other.map_err(failed)?,
        }
        let label = [(UNCOMPRESSED.to_owned(), found)].into();
        self.content.set_labels(digest.as_str(), label).await
    }

    async fn remove(&self, key: &str) {
        let removed: Result<(), _> =
            self.connection.call("containerd.services.snapshots.v1.Snapshots/Remove", self.key(key)).await;
        if let Err(failed) = removed
            && !failed.is_not_found()
        {
            tracing::warn!(key, error = %failed.status, "a snapshot stays until garbage is collected");
        }
    }
}

/// What a snapshot that is being made is known by, apart from its chain ID.
fn unique() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!("{}-{:x}.{number:x}", now.subsec_nanos(), std::process::id())
}

/// A descriptor as containerd has it. Sizes are at most `i64::MAX`.
pub(super) fn descriptor(blob: &BlobDescriptor) -> Descriptor {
    Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest.to_string(),
        size: i64::try_from(blob.size).unwrap_or(i64::MAX),
        annotations: blob.annotations.clone(),
    }
}

/// Blobs of layers on their way into containerd, the first one first. They stop when this is dropped.
struct Downloads(VecDeque<(Digest, JoinHandle<Result<(), ContainerdError>>)>);

impl Downloads {
    fn begin(content: &Content, repository: &Repository, layers: &[Layer], progress: &Progress) -> Downloads {
        let places = Arc::new(Semaphore::new(FETCHES));
        let begin = |layer: &Layer| {
            let (content, repository) = (content.clone(), repository.clone());
            let (descriptor, places, progress) = (layer.descriptor.clone(), places.clone(), progress.clone());
            let digest = layer.descriptor.digest.clone();
            let fetch = async move {
                // The semaphore is fair and never closed: places are given in this order.
                let _place = places.acquire().await;
                progress(Event::Fetching(descriptor.digest.clone(), descriptor.size));
                let blob = repository.blob_of(&descriptor);
                let source = |from| Box::pin(blob.stream(from));
                let told = |bytes| progress(Event::Fetched(descriptor.digest.clone(), bytes));
                content.put(&descriptor.digest, descriptor.size, Labels::new(), source, told).await
            };
            (digest, tokio::spawn(fetch))
        };
        Downloads(layers.iter().map(begin).collect())
    }

    /// Waits for the blob of that digest and those before it.
    async fn wait_for(&mut self, wanted: &Digest) -> Result<(), ContainerdError> {
        while let Some((blob, fetch)) = self.0.front_mut() {
            let is_wanted = blob == wanted;
            let fetched = fetch.await;
            let blob = blob.clone();
            self.0.pop_front();
            fetched.unwrap_or(Err(ContainerdError::Task { blob }))?;
            if is_wanted {
                break;
            }
        }
        Ok(())
    }
}

impl Drop for Downloads {
    fn drop(&mut self) {
        for (_, fetch) in &self.0 {
            fetch.abort();
        }
    }
}
