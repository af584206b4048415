//! A blob sent to a registry as it comes from elsewhere: never more than a piece of it in memory, and gone on with where the
//! connection broke (OCI distribution specification 1.1, "Pushing a blob in chunks", "Mounting a blob from another repository").
//!
//! ```text
//! POST blobs/uploads/ ──202 Location──▶ PATCH piece ──202──▶ PATCH piece … ──▶ PUT Location?digest= ──201──▶ there
//!                                          │ ▲
//!                          broken off ─────┘ └── GET Location: 204, and how much has come
//! ```
//!
//! The last piece is sent only if the whole has the digest that was promised: of anything else the registry keeps nothing, whatever
//! it would make of it. A blob of one piece goes with the PUT alone, which every registry takes. An upload that the registry has
//! lost is begun anew, as long as that is any use.

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt as _};
use reqwest::{Method, Response, Url, header};

use crate::digest::Digest;
use crate::endpoint::Endpoint;
use crate::error::{Context, Error, ErrorKind};
use crate::push::{Content, exchange, patience, upload_location};
use crate::retry::{Policy, Retrier};
use crate::transport::{Failure, Transport};

/// Bytes that are sent at once, and kept until the registry has them. Object stores take no smaller parts than 5 MiB.
const PIECE: u64 = 8 << 20;
/// Largest piece that is made if a registry wants larger ones (`OCI-Chunk-Min-Length`).
const LARGEST_PIECE: u64 = 64 << 20;
/// How often an upload is begun.
const SESSIONS: u32 = 3;

/// Where a registry takes a blob.
pub(crate) struct Session {
    url: Url,
    piece: u64,
}

/// What came of asking for a blob that another repository has.
pub(crate) enum Mounting {
    /// It is there.
    Mounted,
    /// It must be sent.
    Upload(Session),
}

/// One place that takes one blob.
pub(crate) struct Upload<'a> {
    pub(crate) transport: &'a Transport,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) context: &'a Context,
    pub(crate) digest: &'a Digest,
    pub(crate) size: u64,
}

/// Why a session ended.
enum Ended {
    /// What came from the source is the error.
    Source(Error),
    /// The registry has forgotten the upload, or its idea of it is another.
    Lost(Failure),
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Ended {
        Ended::Failed(failure)
    }
}

impl Upload<'_> {
    /// Asks for the blob that the repository `from` on this registry has.
    pub(crate) async fn mount(&self, from: &str) -> Result<Mounting, Error> {
        let endpoint = self.endpoint.mounting_from(from);
        let mut url = self.endpoint.url("blobs/uploads/").map_err(|failure| self.error(failure))?;
        url.query_pairs_mut().append_pair("mount", self.digest.as_str()).append_pair("from", from);
        let answer = self
            .insist(0, || {
                exchange(self.transport, &endpoint, Method::POST, &url, None, &Content::Nothing, &[201, 202])
            })
            .await;
        match answer {
            Ok(response) if response.status().as_u16() == 201 => {
                self.transport.discard(response).await;
                Ok(Mounting::Mounted)
            }
            Ok(response) => {
                let session = self.session(&url, response).await.map_err(|failure| self.error(failure))?;
                Ok(Mounting::Upload(session))
            }
            // It does not know how, or that repository is not for everybody: then the blob is sent.
            Err(failure)
                if matches!(
                    failure.kind,
                    ErrorKind::Unauthorized | ErrorKind::NotFound | ErrorKind::BadResponse
                ) =>
            {
                Ok(Mounting::Upload(self.begin().await.map_err(|failure| self.error(failure))?))
            }
            Err(failure) => Err(self.error(failure)),
        }
    }

    /// Sends what `source` gives, which is asked again for each attempt, and tells how many bytes have arrived.
    pub(crate) async fn send<S: Stream<Item = Result<Bytes, Error>>>(
        &self,
        mut session: Option<Session>,
        source: impl Fn() -> S,
        told: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), Error> {
        let mut sessions = 1;
        loop {
            let taken = match session.take() {
                Some(session) => session,
                None => self.begin().await.map_err(|failure| self.error(failure))?,
            };
            match self.send_all(taken, source(), told).await {
                Ok(()) => return Ok(()),
                Err(Ended::Source(error)) => return Err(error),
                Err(Ended::Lost(failure)) if sessions < SESSIONS => {
                    tracing::debug!(digest = %self.digest, failure = %failure.message, "the upload is begun anew");
                    sessions += 1;
                }
                Err(Ended::Lost(failure) | Ended::Failed(failure)) => return Err(self.error(failure)),
            }
        }
    }

    fn error(&self, failure: Failure) -> Error {
        failure.into_error(self.context)
    }

    async fn begin(&self) -> Result<Session, Failure> {
        let start = self.endpoint.url("blobs/uploads/")?;
        let begun = self.insist(0, || self.exchange(Method::POST, &start, &Content::Nothing, &[202])).await?;
        self.session(&start, begun).await
    }

    async fn session(&self, start: &Url, begun: Response) -> Result<Session, Failure> {
        let url = upload_location(self.transport, start, &begun)?;
        let least = begun.headers().get("oci-chunk-min-length");
        let least = least.and_then(|value| value.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
        self.transport.discard(begun).await;
        Ok(Session { url, piece: least.clamp(PIECE, LARGEST_PIECE) })
    }

    async fn send_all(
        &self,
        session: Session,
        source: impl Stream<Item = Result<Bytes, Error>>,
        told: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), Ended> {
        let Session { mut url, piece } = session;
        let mut source = std::pin::pin!(source);
        let mut left_over = Bytes::new();
        let mut digester = self.digest.digester();
        let mut offset = 0;
        loop {
            let length = piece.min(self.size - offset);
            let bytes = gather(&mut source, &mut left_over, length).await.map_err(Ended::Source)?;
            digester.update(&bytes);
            let end = offset + length;
            if end < self.size {
                url = self.send_piece(url, offset, bytes).await?;
                offset = end;
                told(offset);
                continue;
            }
            let actual = digester.finish();
            if actual != *self.digest {
                self.abandon(&url).await;
                let message = format!("what came to be copied is {actual}; nothing of it was kept");
                return Err(Ended::Source(Error::new(ErrorKind::DigestMismatch, self.context, message)));
            }
            let last = if offset == 0 {
                Content::Bytes(bytes)
            } else {
                url = self.send_piece(url, offset, bytes).await?;
                Content::Nothing
            };
            url.query_pairs_mut().append_pair("digest", self.digest.as_str());
            return match self.insist(last.size(), || self.exchange(Method::PUT, &url, &last, &[201])).await {
                Ok(done) => {
                    self.transport.discard(done).await;
                    told(self.size);
                    Ok(())
                }
                // If the answer to the first attempt was lost, the registry does not know the upload any more.
                Err(failure) if failure.status == Some(404) => Err(Ended::Lost(failure)),
                Err(failure) => Err(Ended::Failed(failure)),
            };
        }
    }

    /// Sends one piece, in as many parts as the connection makes of it. Gives where the next one goes.
    async fn send_piece(&self, mut url: Url, offset: u64, bytes: Bytes) -> Result<Url, Ended> {
        let end = offset + bytes.len() as u64;
        let mut position = offset;
        let mut retrier = self.retrier();
        loop {
            let rest = bytes.slice((position - offset) as usize..);
            let part = Content::Piece { offset: position, bytes: rest };
            let limit = patience(self.transport, part.size());
            let sent = tokio::time::timeout(limit, self.exchange(Method::PATCH, &url, &part, &[202])).await;
            let sent = sent.unwrap_or_else(|_| Err(too_slow()));
            let received = match sent {
                Ok(response) => {
                    url = upload_location(self.transport, &url, &response)?;
                    // Less is possible; what makes no sense the digest will tell.
                    let part = received(&response).filter(|received| (position + 1..end).contains(received));
                    self.transport.discard(response).await;
                    part.unwrap_or(end)
                }
                // This piece does not follow on what has come.
                Err(failure) if failure.status == Some(416) => match self.look(&mut url, position).await? {
                    same if same == position => return Err(Ended::Lost(failure)),
                    other => other,
                },
                Err(failure) if failure.status == Some(404) => return Err(Ended::Lost(failure)),
                Err(failure) => {
                    retrier.wait_after(failure, &self.transport.counters).await?;
                    self.look(&mut url, position).await?
                }
            };
            match received {
                all if all == end => return Ok(url),
                some if some >= position && some < end => {
                    retrier.progressed((some - position) as usize);
                    position = some;
                }
                other => {
                    let message = format!("the host has {other} bytes of the upload instead of {end}");
                    return Err(Ended::Lost(Failure::malformed(message)));
                }
            }
        }
    }

    /// How many bytes the registry has of the upload. It says the same of none and of one; the first was not sent alone.
    async fn look(&self, url: &mut Url, sent: u64) -> Result<u64, Ended> {
        let answer = self.insist(0, || self.exchange(Method::GET, url, &Content::Nothing, &[204])).await;
        match answer {
            Ok(response) => {
                if response.headers().contains_key(header::LOCATION) {
                    *url = upload_location(self.transport, url, &response)?;
                }
                let known = received(&response);
                self.transport.discard(response).await;
                Ok(known.filter(|known| *known > 1).unwrap_or(sent.min(known.unwrap_or(0))))
            }
            Err(failure) if failure.kind == ErrorKind::NotFound => Err(Ended::Lost(failure)),
            Err(failure) => Err(Ended::Failed(failure)),
        }
    }

    /// Tells the registry that the rest does not come. It would find out.
    async fn abandon(&self, url: &Url) {
        if let Ok(response) = self.exchange(Method::DELETE, url, &Content::Nothing, &[200, 202, 204]).await {
            self.transport.discard(response).await;
        }
    }

    async fn exchange(
        &self,
        method: Method,
        url: &Url,
        content: &Content,
        accepted: &[u16],
    ) -> Result<Response, Failure> {
        let octets = (content.size() > 0).then_some("application/octet-stream");
        exchange(self.transport, self.endpoint, method, url, octets, content, accepted).await
    }

    /// Tries until it is done, or there is no hope or no time left.
    async fn insist<F: Future<Output = Result<Response, Failure>>>(
        &self,
        size: u64,
        attempt: impl Fn() -> F,
    ) -> Result<Response, Failure> {
        let mut retrier = self.retrier();
        let limit = patience(self.transport, size);
        loop {
            match tokio::time::timeout(limit, attempt()).await.unwrap_or_else(|_| Err(too_slow())) {
                Ok(response) => return Ok(response),
                Err(failure) => retrier.wait_after(failure, &self.transport.counters).await?,
            }
        }
    }

    fn retrier(&self) -> Retrier {
        Retrier::new(Policy::INTERACTIVE, self.transport.configuration.timeouts.operation)
    }
}

fn too_slow() -> Failure {
    Failure::permanent(ErrorKind::Timeout, "the host takes next to nothing")
}

/// The number of bytes that `Range: 0-LAST` speaks of.
fn received(response: &Response) -> Option<u64> {
    let range = response.headers().get(header::RANGE)?.to_str().ok()?;
    let (first, last) = range.strip_prefix("bytes=").unwrap_or(range).split_once('-')?;
    let last: u64 = last.parse().ok()?;
    (first == "0").then(|| last.saturating_add(1))
}

/// Exactly so many bytes of the stream; what it gave beyond them waits for the next call.
async fn gather(
    source: &mut (impl Stream<Item = Result<Bytes, Error>> + Unpin),
    left_over: &mut Bytes,
    length: u64,
) -> Result<Bytes, Error> {
    // No more than LARGEST_PIECE.
    let length = length as usize;
    let mut gathered = BytesMut::with_capacity(length);
    loop {
        let wanted = length - gathered.len();
        gathered.extend_from_slice(&left_over.split_to(wanted.min(left_over.len())));
        if gathered.len() == length {
            return Ok(gathered.freeze());
        }
        match source.next().await {
            Some(piece) => *left_over = piece?,
            // A blob's stream gives all of it or an error; the digest tells if it is one piece short.
            None => return Ok(gathered.freeze()),
        }
    }
}
