//! The client, and what it gives: repositories, documents and blobs, in a registry or in a layout.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use reqwest::header;

use crate::configuration::ClientConfiguration;
use crate::digest::Digest;
use crate::endpoint::{Endpoint, Endpoints};
use crate::error::{Context, Error, ErrorKind};
use crate::layout::{Layout, LayoutBlob};
use crate::manifest::{ACCEPT, BlobDescriptor, Document, MAXIMUM_DOCUMENT_SIZE};
use crate::mirrors::first_answer;
use crate::reference::{DEFAULT_TAG, ImageReference, Target};
use crate::remote::{BlobHost, BlobReader, PartReader, PartsReader, RangeMemory, RemoteBlob};
use crate::retry::{Policy, Retrier};
use crate::statistics::Statistics;
use crate::transport::{Failure, Request, Transport};

/// How much of a layout's blob a stream reads at once.
const LAYOUT_PIECE: u64 = 1024 * 1024;

/// Connections, tokens and counters shared by all repositories. Clones are cheap and share them.
///
/// Its connections live on the tokio runtime they were opened on.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) transport: Arc<Transport>,
    ranges: Arc<RangeMemory>,
}

impl Client {
    /// A client that has not yet touched a file or a host. Fails if a proxy's address is malformed.
    pub fn new(configuration: ClientConfiguration) -> Result<Client, Error> {
        Ok(Client { transport: Transport::new(configuration)?, ranges: Arc::default() })
    }

    /// The repository, or the layout, that a reference names. Nothing is asked of it yet.
    pub fn repository(&self, reference: &ImageReference) -> Result<Repository, Error> {
        let place = match reference {
            ImageReference::Layout(layout) => Place::Layout(Layout::new(layout.path.clone())),
            ImageReference::Registry(reference) => {
                let Endpoints { written, all } = Endpoints::new(reference, &self.transport.configuration)?;
                Place::Registry { endpoint: Box::new(written), hosts: all, client: self.clone() }
            }
        };
        Ok(Repository { place })
    }

    /// What crossed the network since the client was made.
    pub fn statistics(&self) -> Statistics {
        self.transport.counters.snapshot()
    }
}

/// Manifests and blobs under one name.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) place: Place,
}

#[derive(Clone, Debug)]
pub(crate) enum Place {
    Registry {
        /// Where it is written to, and by which it is named.
        endpoint: Box<Endpoint>,
        /// Who is asked for what is there, in that order.
        hosts: Arc<[Endpoint]>,
        client: Client,
    },
    Layout(Layout),
}

/// A manifest or index, proved by its digest and read.
#[derive(Clone, Debug)]
pub struct FetchedDocument {
    /// Digest of the bytes: the one asked for, or the one the tag pointed to.
    pub digest: Digest,
    /// The bytes as they came.
    pub bytes: Bytes,
    /// Media type, without parameters.
    pub media_type: String,
    /// What the bytes say.
    pub document: Document,
}

impl Repository {
    /// Whether both are the same place: what is in one need not be put into the other.
    pub fn is_same_as(&self, other: &Repository) -> bool {
        match (&self.place, &other.place) {
            (Place::Registry { endpoint, .. }, Place::Registry { endpoint: other, .. }) => {
                endpoint.origin == other.origin && endpoint.repository == other.repository
            }
            (Place::Layout(layout), Place::Layout(other)) => layout.is_same_as(other),
            _ => false,
        }
    }

    /// Gets a manifest or index.
    ///
    /// Fails with [`ErrorKind::NotFound`], [`ErrorKind::DigestMismatch`] (also if the registry's own
    /// `Docker-Content-Digest` contradicts what it sent), [`ErrorKind::BadDocument`], [`ErrorKind::TooLarge`] above
    /// 4 MiB, and all that a network can do.
    pub async fn manifest(&self, target: &Target) -> Result<FetchedDocument, Error> {
        self.manifest_announced_as(target, None).await
    }

    /// As [`manifest`](Self::manifest); a descriptor announced `media_type`, which the document may not contradict.
    pub(crate) async fn manifest_announced_as(
        &self,
        target: &Target,
        announced: Option<&str>,
    ) -> Result<FetchedDocument, Error> {
        let (bytes, media_type, digest) = match &self.place {
            Place::Registry { hosts, client, .. } => {
                registry_document(&client.transport, hosts, target, &self.context(target)).await?
            }
            Place::Layout(layout) => layout_document(layout, target).await?,
        };
        let refused = |message: String| Error::new(ErrorKind::BadDocument, &self.context(target), message);
        let (document, media_type) = Document::parse(&bytes, media_type.as_deref())
            .map_err(|error| refused(format!("{digest}: {error}")).with_cause(error))?;
        if let Some(announced) = announced
            && announced != media_type
        {
            return Err(refused(format!("{digest} was announced as {announced:?} but is {media_type:?}")));
        }
        Ok(FetchedDocument { digest, bytes, media_type, document })
    }

    /// A handle on a blob. Nothing is asked for yet; `size` is the descriptor's, in bytes.
    pub fn blob(&self, digest: Digest, size: u64) -> Blob {
        self.blob_or_foreign(digest, size, &[])
    }

    fn blob_or_foreign(&self, digest: Digest, size: u64, urls: &[String]) -> Blob {
        let place = match &self.place {
            Place::Registry { endpoint, hosts, client } => {
                let hosts = hosts.iter().filter(|host| host.capabilities.pull);
                let hosts = hosts
                    .map(|host| BlobHost { endpoint: host.clone(), ranges: client.ranges.of(&host.origin) });
                let (transport, hosts) = (client.transport.clone(), hosts.collect());
                let context = endpoint.context(format!("blob {digest}"));
                BlobPlace::Registry(RemoteBlob::new(transport, context, hosts, digest, size, urls.to_vec()))
            }
            Place::Layout(layout) => BlobPlace::Layout(LayoutBlob::new(layout, digest, size)),
        };
        Blob { place }
    }

    /// A handle on the blob of a descriptor. If the registry lacks it, it is fetched from the descriptor's URLs where
    /// [`ClientConfiguration::follow_foreign_urls`] allows that.
    pub fn blob_of(&self, descriptor: &BlobDescriptor) -> Blob {
        self.blob_or_foreign(descriptor.digest.clone(), descriptor.size, &descriptor.urls)
    }

    /// Gets a small blob whole, such as an image's config, and proves it by its digest.
    ///
    /// Fails with [`ErrorKind::TooLarge`] if it is larger than `limit` bytes, before anything is asked for.
    pub async fn small_blob(&self, descriptor: &BlobDescriptor, limit: u64) -> Result<Bytes, Error> {
        let blob = self.small(descriptor, limit)?;
        proved(&blob, blob.read(0..descriptor.size).await?)
    }

    /// The same, by a request for a range that is all of it. That costs nothing, and shows as a rule whether the host reads by
    /// ranges: what came of it, [`Blob::range_support`] of any blob of the host tells afterwards.
    pub async fn small_blob_by_range(&self, descriptor: &BlobDescriptor, limit: u64) -> Result<Bytes, Error> {
        let blob = self.small(descriptor, limit)?;
        proved(&blob, blob.read_whole_by_range().await?)
    }

    fn small(&self, descriptor: &BlobDescriptor, limit: u64) -> Result<Blob, Error> {
        let blob = self.blob_of(descriptor);
        if descriptor.size > limit {
            let message = format!("it has {} bytes, more than the {limit} allowed", descriptor.size);
            return Err(Error::new(ErrorKind::TooLarge, &blob.context(), message));
        }
        Ok(blob)
    }

    pub(crate) fn context(&self, target: &Target) -> Context {
        self.context_of(format!("manifest {target}"))
    }

    pub(crate) fn context_of_blob(&self, digest: &Digest) -> Context {
        self.context_of(format!("blob {digest}"))
    }

    fn context_of(&self, subject: String) -> Context {
        match &self.place {
            Place::Registry { endpoint, .. } => endpoint.context(subject),
            Place::Layout(layout) => layout.context(subject),
        }
    }
}

/// The bytes of a blob, if they have its digest.
fn proved(blob: &Blob, bytes: Bytes) -> Result<Bytes, Error> {
    if !blob.digest().matches(&bytes) {
        let message = "what came has another digest";
        return Err(Error::new(ErrorKind::DigestMismatch, &blob.context(), message));
    }
    Ok(bytes)
}

type FetchedBytes = (Bytes, Option<String>, Digest);

async fn layout_document(layout: &Layout, target: &Target) -> Result<FetchedBytes, Error> {
    let (reader, wanted) = (layout.clone(), target.clone());
    let stored = tokio::task::spawn_blocking(move || reader.document(&wanted)).await.map_err(|error| {
        let context = layout.context(format!("manifest {target}"));
        Error::new(ErrorKind::Local, &context, "the reading thread failed").with_cause(error)
    })??;
    Ok((stored.bytes, stored.media_type, stored.digest))
}

/// Of a host that may not say what a tag means, only what has a digest is asked for.
async fn registry_document(
    transport: &Transport,
    hosts: &[Endpoint],
    target: &Target,
    context: &Context,
) -> Result<FetchedBytes, Error> {
    let is_proved = matches!(target, Target::Digest(_));
    let may = |host: &&Endpoint| if is_proved { host.capabilities.pull } else { host.capabilities.resolve };
    let hosts: Vec<&Endpoint> = hosts.iter().filter(may).collect();
    let nobody = || {
        let capability = if is_proved { "pull" } else { "resolve" };
        let message = format!("no host that is named for it may be asked: \"{capability}\" is missing");
        Failure::permanent(ErrorKind::Local, message)
    };
    let patience = transport.configuration.timeouts.operation;
    let attempts = async {
        let mut retrier = Retrier::new(Policy::INTERACTIVE, patience);
        loop {
            let asked = first_answer(&transport.absent, &hosts, None, |number| {
                registry_document_once(transport, hosts[number], target)
            });
            match asked.await.unwrap_or_else(|| Err(nobody())) {
                Ok((_, found)) => return Ok(found),
                Err(failure) => retrier.wait_after(failure, &transport.counters).await?,
            }
        }
    };
    // The retrier bounds the waits; this bounds a host that sends a byte now and then.
    match tokio::time::timeout(patience, attempts).await {
        Ok(result) => result.map_err(|failure: Failure| failure.into_error(context)),
        Err(_) => {
            let message = format!("it did not arrive within {} s", patience.as_secs());
            Err(Error::new(ErrorKind::Timeout, context, message))
        }
    }
}

async fn registry_document_once(
    transport: &Transport,
    endpoint: &Endpoint,
    target: &Target,
) -> Result<FetchedBytes, Failure> {
    let name = match target {
        Target::Tag(tag) => tag,
        Target::Digest(digest) => digest.as_str(),
        Target::OnlyImage => DEFAULT_TAG,
    };
    let url = endpoint.url(&format!("manifests/{name}"))?;
    let request = Request { accept: Some(ACCEPT), range: None };
    let answer = transport.get(endpoint, &url, request).await?;
    if answer.response.status() != reqwest::StatusCode::OK {
        return Err(Failure::malformed("the host sent a part of the manifest, but all of it was asked for"));
    }
    let text = |name: &str| {
        answer.response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
    };
    let media_type = text(header::CONTENT_TYPE.as_str());
    let claimed = text("docker-content-digest").and_then(|claimed| claimed.parse::<Digest>().ok());
    let limit = MAXIMUM_DOCUMENT_SIZE as usize;
    let bytes = Bytes::from(transport.body(answer.response, limit).await?);
    let digest = match target {
        Target::Digest(digest) => digest.clone(),
        _ => claimed.clone().unwrap_or_else(|| Digest::sha256_of(&bytes)),
    };
    for expected in [Some(&digest), claimed.as_ref()].into_iter().flatten() {
        if !expected.matches(&bytes) {
            // It may have been damaged on the way, so it is worth another attempt.
            return Err(Failure::new(
                ErrorKind::DigestMismatch,
                crate::retry::Outcome::Malformed,
                format!("what came is {} instead of {expected}", Digest::sha256_of(&bytes)),
            ));
        }
    }
    Ok((bytes, media_type, digest))
}

/// A blob, wherever it is. Clones are cheap and share what is learnt about its host.
#[derive(Clone, Debug)]
pub struct Blob {
    place: BlobPlace,
}

#[derive(Clone, Debug)]
enum BlobPlace {
    Registry(RemoteBlob),
    Layout(LayoutBlob),
}

impl Blob {
    /// Digest of the whole blob.
    pub fn digest(&self) -> &Digest {
        match &self.place {
            BlobPlace::Registry(blob) => blob.digest(),
            BlobPlace::Layout(blob) => blob.digest(),
        }
    }

    /// Size of the whole blob in bytes, as its descriptor says.
    pub fn size(&self) -> u64 {
        match &self.place {
            BlobPlace::Registry(blob) => blob.size(),
            BlobPlace::Layout(blob) => blob.size(),
        }
    }

    /// Whether reading a part costs only that part, if this blob or its host has shown it yet.
    pub fn range_support(&self) -> Option<bool> {
        match &self.place {
            BlobPlace::Registry(blob) => blob.range_support(),
            BlobPlace::Layout(_) => Some(true),
        }
    }

    /// Whether reading a part costs only that part, as far as is known: true until the host showed otherwise.
    pub fn ranges_work(&self) -> bool {
        match &self.place {
            BlobPlace::Registry(blob) => blob.ranges_work(),
            BlobPlace::Layout(_) => true,
        }
    }

    /// Reads exactly the bytes of `range`, retrying and resuming as needed.
    ///
    /// Holds no more than the range in memory. A host that ignores ranges is read from the start of the blob to the end of
    /// the range; one that refuses them fails with [`ErrorKind::RangeUnsupported`], and then [`stream`](Self::stream)
    /// still works. A range that is not within the blob fails with [`ErrorKind::InvalidRange`]. The bytes
    /// are not verified: the caller knows the digest of what it asked for.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        if range.start > range.end || range.end > self.size() {
            return Err(self.not_within(&range));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match &self.place {
            BlobPlace::Registry(blob) => blob.read(range).await,
            BlobPlace::Layout(blob) => blob.read(range).await,
        }
    }

    /// The bytes of `range`, in pieces as they arrive: exactly these, or an error, after which the stream ends. What was given stays good: a
    /// body that is cut goes on behind it. Otherwise as [`read`](Self::read), its time included.
    pub fn pieces(&self, range: Range<u64>) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let state = match &self.place {
            _ if range.start > range.end || range.end > self.size() => {
                StreamState::Failed(self.not_within(&range))
            }
            _ if range.is_empty() => StreamState::Ended,
            BlobPlace::Registry(blob) => StreamState::Part(Box::new(blob.part_reader(range))),
            BlobPlace::Layout(blob) => StreamState::Layout {
                blob: blob.clone(),
                position: range.start,
                end: range.end,
                rest: VecDeque::new(),
            },
        };
        state.stream()
    }

    /// Whether bytes that lie apart cost one request, as far as is known: the host reads by ranges, and has not shown that it cannot give
    /// several at once.
    pub fn reads_parts(&self) -> bool {
        match &self.place {
            BlobPlace::Registry(blob) => blob.reads_parts(),
            BlobPlace::Layout(_) => false,
        }
    }

    /// The bytes of these ranges, one after the other, in pieces as they arrive, by one request; otherwise as [`pieces`](Self::pieces). They
    /// must not be empty, and lie apart and in order ([`ErrorKind::InvalidRange`]).
    ///
    /// A host that cannot give them so fails with [`ErrorKind::RangeUnsupported`], and [`reads_parts`](Self::reads_parts) says so from then on.
    pub fn parts(&self, ranges: &[Range<u64>]) -> impl Stream<Item = Result<Bytes, Error>> + Send + use<> {
        let mut end = 0;
        let wrong = ranges.iter().find(|range| {
            let follows = range.start >= end && range.start < range.end && range.end <= self.size();
            end = range.end;
            !follows
        });
        let state = match (&self.place, wrong, ranges) {
            (_, Some(range), _) => StreamState::Failed(self.not_within(range)),
            (_, _, []) => StreamState::Ended,
            (BlobPlace::Registry(blob), ..) => {
                StreamState::Parts(Box::new(blob.parts_reader(ranges.iter().cloned().collect())))
            }
            (BlobPlace::Layout(blob), _, [Range { start, end }, rest @ ..]) => {
                let rest = rest.iter().cloned().collect();
                StreamState::Layout { blob: blob.clone(), position: *start, end: *end, rest }
            }
        };
        state.stream()
    }

    fn not_within(&self, range: &Range<u64>) -> Error {
        let message = format!("bytes {}..{} are not within its {}", range.start, range.end, self.size());
        Error::new(ErrorKind::InvalidRange, &self.context(), message)
    }

    /// What came last is not what it should be: of several hosts that stand for the registry, another is asked next.
    pub fn doubt(&self) {
        if let BlobPlace::Registry(blob) = &self.place {
            blob.doubt();
        }
    }

    async fn read_whole_by_range(&self) -> Result<Bytes, Error> {
        match &self.place {
            BlobPlace::Registry(blob) if blob.size() > 0 => blob.read_whole_by_range().await,
            _ => self.read(0..self.size()).await,
        }
    }

    /// The blob from `from` to its end, in pieces as they arrive; after an error the stream ends.
    ///
    /// A body that is cut is resumed where it stopped, or, where ranges do not work, read again from the start and
    /// skipped. Exactly `size() - from` bytes come, or an error: neither fewer nor more are taken for the whole.
    /// The caller hashes them to verify the blob.
    pub fn stream(&self, from: u64) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
        let state = match &self.place {
            _ if from > self.size() => {
                let message = format!("byte {from} is not within its {}", self.size());
                StreamState::Failed(Error::new(ErrorKind::InvalidRange, &self.context(), message))
            }
            BlobPlace::Registry(blob) => StreamState::Registry(Box::new(blob.reader(from))),
            BlobPlace::Layout(blob) => StreamState::Layout {
                blob: blob.clone(),
                position: from,
                end: blob.size(),
                rest: VecDeque::new(),
            },
        };
        state.stream()
    }

    fn context(&self) -> Context {
        match &self.place {
            BlobPlace::Registry(blob) => blob.context().clone(),
            BlobPlace::Layout(blob) => blob.context().clone(),
        }
    }
}

enum StreamState {
    Registry(Box<BlobReader>),
    Part(Box<PartReader>),
    Parts(Box<PartsReader>),
    Layout { blob: LayoutBlob, position: u64, end: u64, rest: VecDeque<Range<u64>> },
    Failed(Error),
    Ended,
}

impl StreamState {
    fn stream(self) -> impl Stream<Item = Result<Bytes, Error>> + Send + 'static {
        futures_util::stream::unfold(self, |mut state| async move {
            let next = state.next().await;
            if let Err(error) = next {
                return Some((Err(error), StreamState::Ended));
            }
            next.transpose().map(|piece| (piece, state))
        })
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        match self {
            StreamState::Ended => Ok(None),
            StreamState::Failed(_) => match std::mem::replace(self, StreamState::Ended) {
                StreamState::Failed(error) => Err(error),
                _ => Ok(None),
            },
            StreamState::Registry(reader) => reader.next().await,
            StreamState::Part(reader) => reader.next().await,
            StreamState::Parts(reader) => reader.next().await,
            StreamState::Layout { blob, position, end, rest } => {
                if position == end
                    && let Some(next) = rest.pop_front()
                {
                    (*position, *end) = (next.start, next.end);
                }
                let part = *position..position.saturating_add(LAYOUT_PIECE).min(*end);
                if part.is_empty() {
                    return Ok(None);
                }
                *position = part.end;
                blob.read(part).await.map(Some)
            }
        }
    }
}
