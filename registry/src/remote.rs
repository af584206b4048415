//! A blob in a registry: ranged reads and a resumable stream.
//!
//! ```text
//!           ┌── location known ──▶ storage host ──fails──┐ forget it
//! open ─────┤                                            ▼
//!           └── registry ──307──▶ storage host: remembered for the next read
//!                  │                 (of several hosts for the registry: one after the other, until one answers)
//!                 206 exactly what was asked: pass it on
//!                 200 the range was ignored: skip to it, stop after it, remember that, unless it was the whole blob
//!                 400, 416, 501: ranges are refused, remember that
//!                 404: ask the hosts that the descriptor names (a foreign layer), if that is allowed
//! ```
//!
//! Whatever the host sends, no more than the range asked for is kept, and no fewer bytes are taken for all of it. Whether they
//! are the right bytes the caller finds out, who knows digests.

mod parts;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use reqwest::header;
use reqwest::{Response, StatusCode, Url};

use crate::content_range;
use crate::digest::Digest;
use crate::endpoint::Endpoint;
use crate::error::{Context, Error, ErrorKind};
use crate::mirrors::first_answer;
use crate::origin::Origin;
use crate::retry::{Outcome, Policy, Retrier};
use crate::transport::{Answer, Failure, Request, Transport};

pub(crate) use parts::PartsReader;

/// A transfer slower than this, in bytes a second, is given up even if it never stops.
const SLOWEST_TRANSFER: u64 = 16 * 1024;

/// Stands for a time that cannot be told.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What is known about ranged reads.
#[derive(Debug, Default)]
pub(crate) struct RangeSupport {
    state: AtomicU8,
    /// Several by one request were refused, or answered with something else.
    lacks_parts: AtomicBool,
}

const UNKNOWN: u8 = 0;
const WORKS: u8 = 1;
const DOES_NOT_WORK: u8 = 2;

impl RangeSupport {
    fn learn(&self, works: bool) {
        self.state.store(if works { WORKS } else { DOES_NOT_WORK }, Ordering::Relaxed);
    }

    fn lacks_parts(&self) -> bool {
        self.lacks_parts.load(Ordering::Relaxed)
    }

    fn learn_lack_of_parts(&self) {
        self.lacks_parts.store(true, Ordering::Relaxed);
    }

    fn verdict(&self) -> Option<bool> {
        match self.state.load(Ordering::Relaxed) {
            UNKNOWN => None,
            state => Some(state == WORKS),
        }
    }
}

/// What a client has learnt of ranged reads, by registry.
#[derive(Debug, Default)]
pub(crate) struct RangeMemory {
    hosts: Mutex<HashMap<Origin, Arc<RangeSupport>>>,
}

impl RangeMemory {
    pub(crate) fn of(&self, origin: &Origin) -> Arc<RangeSupport> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        hosts.entry(origin.clone()).or_default().clone()
    }
}

/// One blob of one repository. Clones share what is learnt.
#[derive(Clone, Debug)]
pub(crate) struct RemoteBlob {
    shared: Arc<Shared>,
}

/// A host that may have a blob.
#[derive(Clone, Debug)]
pub(crate) struct BlobHost {
    pub(crate) endpoint: Endpoint,
    pub(crate) ranges: Arc<RangeSupport>,
}

/// Where the blob was found last.
#[derive(Clone, Debug)]
struct Location {
    /// The number of the host.
    host: usize,
    /// Where that sent us. It may be a signed URL, so it is never shown.
    elsewhere: Option<Url>,
}

#[derive(Debug)]
struct Shared {
    transport: Arc<Transport>,
    context: Context,
    /// In the order in which they are asked.
    hosts: Vec<BlobHost>,
    digest: Digest,
    size: u64,
    /// Where the blob is if the registry lacks it.
    foreign: Vec<String>,
    location: Mutex<Option<Location>>,
    ranges: RangeSupport,
}

impl RemoteBlob {
    pub(crate) fn new(
        transport: Arc<Transport>,
        context: Context,
        hosts: Vec<BlobHost>,
        digest: Digest,
        size: u64,
        foreign: Vec<String>,
    ) -> RemoteBlob {
        let ranges = RangeSupport::default();
        let location = Mutex::new(None);
        let shared = Shared { transport, context, hosts, digest, size, foreign, location, ranges };
        RemoteBlob { shared: Arc::new(shared) }
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.shared.digest
    }

    pub(crate) fn size(&self) -> u64 {
        self.shared.size
    }

    /// What this blob showed, else what its host showed: the one that gave some of it, or will be asked first.
    pub(crate) fn range_support(&self) -> Option<bool> {
        let host = self.location().map_or(0, |location| location.host);
        let of_host = || self.shared.hosts.get(host).and_then(|host| host.ranges.verdict());
        self.shared.ranges.verdict().or_else(of_host)
    }

    fn location(&self) -> Option<Location> {
        self.shared.location.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn locate_at(&self, location: Option<Location>) {
        *self.shared.location.lock().unwrap_or_else(PoisonError::into_inner) = location;
    }

    /// The same, else hope.
    pub(crate) fn ranges_work(&self) -> bool {
        self.range_support().unwrap_or(true)
    }

    pub(crate) fn context(&self) -> &Context {
        &self.shared.context
    }

    /// Reads exactly `range`, which lies within the blob.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let by_range = range != (0..self.shared.size);
        self.read_within_time(range, by_range).await
    }

    /// Reads all of it, but asks for that as for a range: so the host shows, as a rule, whether it reads by ranges.
    pub(crate) async fn read_whole_by_range(&self) -> Result<Bytes, Error> {
        self.read_within_time(0..self.shared.size, self.ranges_work()).await
    }

    async fn read_within_time(&self, range: Range<u64>, by_range: bool) -> Result<Bytes, Error> {
        let length = range.end.saturating_sub(range.start);
        let limit = self.time_limit(length);
        let read = tokio::time::timeout(limit, self.read_with_retries(range, by_range));
        match read.await {
            Ok(result) => result.map_err(|failure| failure.into_error(self.context())),
            Err(_) => Err(self.too_slow(length, limit)),
        }
    }

    fn too_slow(&self, length: u64, limit: Duration) -> Error {
        let message = format!("{length} bytes did not arrive within {} s", limit.as_secs());
        Error::new(ErrorKind::Timeout, self.context(), message)
    }

    async fn read_with_retries(&self, range: Range<u64>, mut by_range: bool) -> Result<Bytes, Failure> {
        let length = usize::try_from(range.end - range.start).map_err(|_| {
            Failure::permanent(ErrorKind::InvalidRange, "the range is larger than this machine's memory")
        })?;
        let transport = &self.shared.transport;
        let mut retrier = Retrier::new(Policy::PATIENT, transport.configuration.timeouts.operation);
        let mut content = BytesMut::with_capacity(length);
        loop {
            let start = range.start + content.len() as u64;
            let rest = start..range.end;
            let is_whole = rest == (0..self.shared.size);
            let failure = match self.open(rest, by_range || !is_whole).await {
                Ok(mut body) => match self.fill(&mut body, &mut content, &mut retrier).await {
                    Ok(()) => return Ok(content.freeze()),
                    Err(failure) => self.doubted(body.host, failure),
                },
                // All of it can be had otherwise.
                Err(failure) if failure.kind == ErrorKind::RangeUnsupported && is_whole => {
                    by_range = false;
                    continue;
                }
                Err(failure) => failure,
            };
            if content.len() == length {
                match failure.outcome {
                    // The connection broke after the last byte that was wanted.
                    Outcome::Interrupted => return Ok(content.freeze()),
                    // More came than belongs there, so what came before is suspect.
                    _ => content.clear(),
                }
            }
            retrier.wait_after(failure, &transport.counters).await?;
        }
    }

    async fn fill(
        &self,
        body: &mut Body,
        content: &mut BytesMut,
        retrier: &mut Retrier,
    ) -> Result<(), Failure> {
        while let Some(piece) = body.next(&self.shared.transport).await? {
            retrier.progressed(piece.len());
            content.extend_from_slice(&piece);
        }
        Ok(())
    }

    /// What the host sent that gave some of it last is of no use: if others may have the blob, they are asked before it is asked again.
    pub(crate) fn doubt(&self) {
        if let Some(location) = self.location() {
            self.doubt_host(location.host);
        }
    }

    fn doubt_host(&self, host: usize) {
        if self.shared.hosts.len() > 1
            && let Some(BlobHost { endpoint, .. }) = self.shared.hosts.get(host)
        {
            self.shared.transport.absent.doubt(endpoint);
            self.locate_at(None);
        }
    }

    /// A failure in the middle of what a host sends.
    fn doubted(&self, host: usize, failure: Failure) -> Failure {
        self.doubt_host(host);
        failure
    }

    /// The blob from `from` to its end, as it arrives.
    pub(crate) fn reader(&self, from: u64) -> BlobReader {
        self.reader_of(from..self.shared.size, true)
    }

    /// Those bytes, which lie within the blob, as they arrive; within the time in which all of them must have.
    pub(crate) fn part_reader(&self, range: Range<u64>) -> PartReader {
        let is_whole = range == (0..self.shared.size);
        let limit = self.time_limit(range.end.saturating_sub(range.start));
        PartReader { reader: self.reader_of(range, is_whole), limit, ends: None }
    }

    fn reader_of(&self, range: Range<u64>, falls_back: bool) -> BlobReader {
        let patience = self.shared.transport.configuration.timeouts.operation;
        BlobReader {
            blob: self.clone(),
            position: range.start,
            end: range.end,
            falls_back,
            body: None,
            patience,
            waited: Duration::ZERO,
            retrier: Retrier::new(Policy::PATIENT, patience),
        }
    }

    /// Longest time that so many bytes may take.
    fn time_limit(&self, length: u64) -> Duration {
        let patience = self.shared.transport.configuration.timeouts.operation;
        patience.saturating_add(Duration::from_secs(length / SLOWEST_TRANSFER))
    }

    /// Begins to read `range`; with `ranged` false, by reading the blob from its start.
    async fn open(&self, range: Range<u64>, ranged: bool) -> Result<Body, Failure> {
        let whole = range == (0..self.shared.size);
        let asked = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let (host, answer) = match self.locate(ranged.then_some(asked.as_str())).await {
            Err(failure) if failure.kind == ErrorKind::RangeUnsupported => {
                self.shared.ranges.learn(false);
                return Err(failure.hinted("the blob can still be read as a whole"));
            }
            other => other?,
        };
        let origin = Origin::of(&answer.url);
        match (answer.response.status(), ranged) {
            (StatusCode::PARTIAL_CONTENT, true) => {
                check_content_range(&answer.response, &range, self.shared.size, &origin)?;
                self.learn_ranges(host, true);
                let remaining = range.end - range.start;
                Ok(Body { host, response: answer.response, origin, skip: 0, remaining, to_end: true })
            }
            (StatusCode::PARTIAL_CONTENT, false) => Err(Failure::malformed(format!(
                "{origin} sent a part of the blob, but all of it was asked for"
            ))),
            _ => {
                if let Some(length) = answer.response.content_length()
                    && length != self.shared.size
                {
                    return Err(wrong_length(&origin, length, self.shared.size));
                }
                // To a range that is the whole blob a host may answer so that knows ranges.
                if ranged && !whole {
                    self.learn_ranges(host, false);
                }
                Ok(Body {
                    host,
                    response: answer.response,
                    origin,
                    skip: range.start,
                    remaining: range.end - range.start,
                    to_end: range.end == self.shared.size,
                })
            }
        }
    }

    fn learn_ranges(&self, host: usize, works: bool) {
        self.shared.ranges.learn(works);
        if let Some(host) = self.shared.hosts.get(host) {
            host.ranges.learn(works);
        }
    }

    /// Asks where the registry sent us last time, or else the registry: its hosts in turn. Tells which of them it was.
    async fn locate(&self, range: Option<&str>) -> Result<(usize, Answer), Failure> {
        let Shared { transport, hosts, digest, .. } = &*self.shared;
        let request = Request { accept: Some("application/octet-stream, */*;q=0.5"), range };
        let remembered = self.location();
        let known = remembered.as_ref().map(|location| location.host);
        if let Some(Location { host, elsewhere: Some(location) }) = remembered
            && let Some(BlobHost { endpoint, .. }) = hosts.get(host)
        {
            match transport.get(endpoint, &location, request).await {
                // It was answered, and the answer says nothing about the signature.
                Err(failure) if matches!(failure.status, Some(416 | 429)) => return Err(failure),
                Err(failure) => {
                    tracing::debug!(%digest, failure = %failure.message, "asking the registry again for the location");
                    self.locate_at(Some(Location { host, elsewhere: None }));
                }
                Ok(answer) => return Ok((host, answer)),
            }
        }
        let endpoints: Vec<&Endpoint> = hosts.iter().map(|host| &host.endpoint).collect();
        let asked = first_answer(&transport.absent, &endpoints, known, |host| self.ask(host, request));
        let asked = asked.await.unwrap_or_else(|| {
            let message = "no host that is named for it may be asked: \"pull\" is missing";
            Err(Failure::permanent(ErrorKind::Local, message))
        });
        let (host, (start, answer)) = match asked {
            Err(missing) if missing.kind == ErrorKind::NotFound && !self.shared.foreign.is_empty() => {
                // Whoever is asked for a foreign blob, it is on behalf of the registry.
                let host = hosts.len().saturating_sub(1);
                (host, (None, self.locate_foreign(missing, request).await?))
            }
            other => other?,
        };
        let elsewhere = (start.as_ref() != Some(&answer.url)).then(|| answer.url.clone());
        self.locate_at(Some(Location { host, elsewhere }));
        Ok((host, answer))
    }

    /// Asks a host; gives the address with which that began, too.
    async fn ask(&self, host: usize, request: Request<'_>) -> Result<(Option<Url>, Answer), Failure> {
        let Shared { transport, hosts, digest, .. } = &*self.shared;
        // Only numbers of hosts are asked for.
        let BlobHost { endpoint, ranges } = &hosts[host];
        let start = endpoint.url(&format!("blobs/{digest}"))?;
        let asked = transport.get(endpoint, &start, request).await;
        // 416 may speak of this blob only; the others speak of the host.
        if let Err(failure) = &asked
            && failure.kind == ErrorKind::RangeUnsupported
            && failure.status != Some(416)
            // One of several ranges says nothing of one.
            && !request.range.is_some_and(|range| range.contains(','))
        {
            ranges.learn(false);
        }
        Ok((Some(start), asked?))
    }

    /// Asks the hosts that the descriptor names, one after the other, if the user allows it. Our credentials are not theirs.
    async fn locate_foreign(&self, missing: Failure, request: Request<'_>) -> Result<Answer, Failure> {
        let Shared { transport, hosts, foreign, .. } = &*self.shared;
        // Missing it was, so somebody was asked.
        let Some(BlobHost { endpoint, .. }) = hosts.last() else { return Err(missing) };
        let urls: Vec<Url> = foreign.iter().filter_map(|url| foreign_url(url)).collect();
        let hosts: Vec<String> = urls.iter().map(|url| Origin::of(url).to_string()).collect();
        let mut failure = missing;
        if hosts.is_empty() {
            failure.message.push_str("; it is a foreign blob, said to be where nobody can ask for it");
            return Err(failure);
        }
        failure.message =
            format!("{}; it is a foreign blob, said to be at {}", failure.message, hosts.join(" and "));
        if !transport.configuration.follow_foreign_urls {
            return Err(failure.hinted("use --foreign-urls if it is to be fetched from there"));
        }
        for url in &urls {
            match transport.get(endpoint, url, request).await {
                Ok(answer) => return Ok(answer),
                Err(refused) => failure = refused,
            }
        }
        Err(failure)
    }
}

/// Reads a part of a blob from its first byte to its last, over as many connections as that takes.
pub(crate) struct BlobReader {
    blob: RemoteBlob,
    position: u64,
    end: u64,
    /// Whether it reads what its host refuses as a range from the beginning of the blob.
    falls_back: bool,
    body: Option<Body>,
    patience: Duration,
    /// Time spent waiting for the host since it last sent a good deal.
    waited: Duration,
    retrier: Retrier,
}

impl BlobReader {
    /// The next bytes; `None` after the last, whose end the host has confirmed.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.next_with_retries().await.map_err(|failure| failure.into_error(self.blob.context()))
    }

    async fn next_with_retries(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.body.is_none() && self.position == self.end {
                return Ok(None);
            }
            let begun = Instant::now();
            let stepped = self.step().await;
            self.waited = self.waited.saturating_add(begun.elapsed());
            let failure = match stepped {
                Ok(Some(piece)) => {
                    if self.retrier.progressed(piece.len()) {
                        self.waited = Duration::ZERO;
                    } else if self.waited > self.patience {
                        return Err(Failure::permanent(ErrorKind::Timeout, "the host sends next to nothing"));
                    }
                    self.position += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Ok(None) => {
                    self.body = None;
                    continue;
                }
                Err(failure) => failure,
            };
            self.body = None;
            if self.position == self.end {
                match failure.outcome {
                    // The connection broke after the last byte.
                    Outcome::Interrupted => return Ok(None),
                    // What was passed on cannot be taken back.
                    _ => return Err(failure),
                }
            }
            // What is refused as a range is read from the start and skipped.
            if failure.kind == ErrorKind::RangeUnsupported && self.falls_back {
                continue;
            }
            self.retrier.wait_after(failure, &self.blob.shared.transport.counters).await?;
        }
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Failure> {
        let body = match &mut self.body {
            Some(body) => body,
            empty => {
                let ranged = match self.falls_back {
                    true => self.position > 0 && self.blob.ranges_work(),
                    false => true,
                };
                empty.insert(self.blob.open(self.position..self.end, ranged).await?)
            }
        };
        let host = body.host;
        let next = body.next(&self.blob.shared.transport).await;
        next.map_err(|failure| self.blob.doubted(host, failure))
    }
}

/// Reads a part of a blob, and has a limit for all of it.
pub(crate) struct PartReader {
    reader: BlobReader,
    limit: Duration,
    /// From the first read on.
    ends: Option<tokio::time::Instant>,
}

impl PartReader {
    /// The next bytes; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let begins = tokio::time::Instant::now();
        // A limit of centuries is none.
        let ends =
            *self.ends.get_or_insert_with(|| begins.checked_add(self.limit).unwrap_or(begins + CENTURY));
        match tokio::time::timeout_at(ends, self.reader.next()).await {
            Ok(result) => result,
            Err(_) => {
                let left = self.reader.end - self.reader.position;
                Err(self.reader.blob.too_slow(left, self.limit))
            }
        }
    }
}

/// The part of an answer that was asked for.
struct Body {
    /// The number of the host that gives it.
    host: usize,
    response: Response,
    origin: Origin,
    /// Bytes still to be thrown away before it begins.
    skip: u64,
    /// Bytes still wanted.
    remaining: u64,
    /// Whether the answer must end with it.
    to_end: bool,
}

impl Body {
    async fn next(&mut self, transport: &Transport) -> Result<Option<Bytes>, Failure> {
        loop {
            if self.remaining == 0 && !self.to_end {
                return Ok(None);
            }
            let Some(mut piece) = transport.next_piece(&mut self.response, &self.origin).await? else {
                if self.remaining == 0 {
                    return Ok(None);
                }
                return Err(Failure::new(
                    ErrorKind::BadResponse,
                    Outcome::Interrupted,
                    format!("{} ended the answer {} bytes early", self.origin, self.remaining + self.skip),
                ));
            };
            let skipped = self.skip.min(piece.len() as u64);
            self.skip -= skipped;
            // Not more than the piece's own length, so it fits.
            piece.advance(skipped as usize);
            if piece.is_empty() {
                continue;
            }
            if piece.len() as u64 > self.remaining {
                if self.to_end {
                    let message = format!("{} sent more bytes than the blob has", self.origin);
                    return Err(Failure::malformed(message));
                }
                piece.truncate(self.remaining as usize);
            }
            self.remaining -= piece.len() as u64;
            return Ok(Some(piece));
        }
    }
}

/// A URL of a descriptor as far as it can be asked: one of HTTP, and without credentials, which would be an image author's.
fn foreign_url(url: &str) -> Option<Url> {
    let url = Url::parse(url).ok()?;
    let is_plain = url.has_host() && url.username().is_empty() && url.password().is_none();
    (matches!(url.scheme(), "http" | "https") && is_plain).then_some(url)
}

fn check_content_range(
    response: &Response,
    asked: &Range<u64>,
    size: u64,
    origin: &Origin,
) -> Result<(), Failure> {
    let header = response.headers().get(header::CONTENT_RANGE).and_then(|value| value.to_str().ok());
    let Some((given, whole)) = header.and_then(content_range::parsed) else {
        return Err(Failure::malformed(format!("{origin} sent a part of the blob without saying which")));
    };
    if given != *asked {
        return Err(Failure::malformed(format!(
            "{origin} sent bytes {}-{} instead of {}-{}",
            given.start,
            given.end - 1,
            asked.start,
            asked.end - 1
        )));
    }
    if let Some(whole) = whole
        && whole != size
    {
        return Err(wrong_length(origin, whole, size));
    }
    match response.content_length() {
        Some(length) if length != asked.end - asked.start => {
            Err(wrong_length(origin, length, asked.end - asked.start))
        }
        _ => Ok(()),
    }
}

fn wrong_length(origin: &Origin, found: u64, expected: u64) -> Failure {
    Failure::malformed(format!("{origin} announces {found} bytes where there should be {expected}"))
}
