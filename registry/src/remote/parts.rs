//! Several ranges of a blob by one request.
//!
//! ```text
//! ranges ──▶ request for all ──206 multipart, as asked──▶ their bytes, one after the other
//!              ▲       │
//!              │       └─ 200, 400, 416, 501, another type, other parts: the host cannot; it is remembered, and who asked is told
//!              └── cut: what is left is asked for again
//! ```
//!
//! A host that cannot costs one request, once for each client: who is told so asks for each range by itself, and so does whoever asks
//! [`RemoteBlob::reads_parts`] before.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{Response, StatusCode, header};

use super::{BlobReader, CENTURY, RemoteBlob};
use crate::error::{Error, ErrorKind};
use crate::multipart::{MOST_HEAD, Multipart, NotAsAsked};
use crate::origin::Origin;
use crate::retry::{Outcome, Policy, Retrier};
use crate::transport::Failure;

impl RemoteBlob {
    /// Whether several ranges can be had by one request: it is not known that they cannot, and single ones can.
    pub(crate) fn reads_parts(&self) -> bool {
        let host = self.location().map_or(0, |location| location.host);
        let cannot = self.shared.hosts.get(host).is_some_and(|host| host.ranges.lacks_parts());
        self.range_support() == Some(true) && !cannot
    }

    /// The bytes of these ranges, one after the other. They are not empty, lie within the blob, apart and in order.
    pub(crate) fn parts_reader(&self, ranges: VecDeque<Range<u64>>) -> PartsReader {
        let length =
            ranges.iter().map(|range| range.end.saturating_sub(range.start)).fold(0, u64::saturating_add);
        let retrier = Retrier::new(Policy::PATIENT, self.shared.transport.configuration.timeouts.operation);
        let limit = self.time_limit(length);
        PartsReader { blob: self.clone(), left: ranges, way: Way::None, retrier, limit, ends: None }
    }

    async fn open_parts(&self, ranges: &VecDeque<Range<u64>>) -> Result<PartsBody, Failure> {
        let mut header = String::new();
        for Range { start, end } in ranges {
            let separator = if header.is_empty() { "bytes=" } else { "," };
            // Nothing keeps a string from growing.
            let _ = write!(header, "{separator}{start}-{}", end.saturating_sub(1));
        }
        let (host, answer) = self.locate(Some(&header)).await?;
        let origin = Origin::of(&answer.url);
        let content_type = answer.response.headers().get(header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let multipart = Multipart::new(content_type, self.shared.size, ranges.clone())
            .filter(|_| answer.response.status() == StatusCode::PARTIAL_CONTENT);
        match multipart {
            Some(multipart) => {
                Ok(PartsBody { host, response: answer.response, origin, multipart, beyond: 0 })
            }
            None => Err(cannot(&origin, "it sent something else")),
        }
    }

    /// The host cannot, or does it in another way.
    fn learn_lack_of_parts(&self) {
        let host = self.location().map_or(0, |location| location.host);
        if let Some(host) = self.shared.hosts.get(host) {
            host.ranges.learn_lack_of_parts();
        }
    }
}

fn cannot(origin: &Origin, why: &str) -> Failure {
    let message = format!("{origin} does not give several ranges at once: {why}");
    Failure::permanent(ErrorKind::RangeUnsupported, message)
}

/// Reads several parts of a blob.
pub(crate) struct PartsReader {
    blob: RemoteBlob,
    /// What has not come.
    left: VecDeque<Range<u64>>,
    way: Way,
    retrier: Retrier,
    limit: Duration,
    /// From the first read on.
    ends: Option<tokio::time::Instant>,
}

enum Way {
    None,
    Parts(Box<PartsBody>),
    /// What is left is one range.
    One(Box<BlobReader>),
}

impl PartsReader {
    /// The next bytes; `None` after the last. If the host cannot give them so, it is [`ErrorKind::RangeUnsupported`].
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let begins = tokio::time::Instant::now();
        // A limit of centuries is none.
        let ends =
            *self.ends.get_or_insert_with(|| begins.checked_add(self.limit).unwrap_or(begins + CENTURY));
        match tokio::time::timeout_at(ends, self.next_with_retries()).await {
            Ok(result) => result,
            Err(_) => {
                let left = self.left.iter().map(|range| range.end.saturating_sub(range.start));
                Err(self.blob.too_slow(left.fold(0, u64::saturating_add), self.limit))
            }
        }
    }

    async fn next_with_retries(&mut self) -> Result<Option<Bytes>, Error> {
        let blob = self.blob.clone();
        let transport = &blob.shared.transport;
        loop {
            let step = match &mut self.way {
                Way::One(reader) => {
                    let piece = reader.next().await?;
                    if let Some(piece) = &piece {
                        self.came(piece.len());
                    }
                    return Ok(piece);
                }
                Way::None if self.left.is_empty() => return Ok(None),
                Way::None if self.left.len() == 1 => {
                    let range = self.left.front().cloned().unwrap_or_default();
                    self.way = Way::One(Box::new(blob.reader_of(range, false)));
                    continue;
                }
                Way::None => match blob.open_parts(&self.left).await {
                    Ok(body) => {
                        self.way = Way::Parts(Box::new(body));
                        continue;
                    }
                    Err(failure) => Err(failure),
                },
                Way::Parts(body) => body.next(&blob).await,
            };
            let failure = match step {
                Ok(Some(piece)) => {
                    self.retrier.progressed(piece.len());
                    self.came(piece.len());
                    return Ok(Some(piece));
                }
                Ok(None) => {
                    self.way = Way::None;
                    continue;
                }
                Err(failure) => failure,
            };
            self.way = Way::None;
            if matches!(failure.outcome, Outcome::Permanent | Outcome::Malformed) {
                tracing::debug!(digest = %blob.digest(), failure = %failure.message, "each range is asked for by itself");
                blob.learn_lack_of_parts();
                return Err(cannot_after(failure).into_error(blob.context()));
            }
            let waited = self.retrier.wait_after(failure, &transport.counters).await;
            waited.map_err(|failure| failure.into_error(blob.context()))?;
        }
    }

    /// Takes so many bytes off what is left.
    fn came(&mut self, bytes: usize) {
        let mut bytes = bytes as u64;
        while let Some(first) = self.left.front_mut() {
            let taken = bytes.min(first.end.saturating_sub(first.start));
            first.start += taken;
            bytes -= taken;
            if first.start < first.end {
                break;
            }
            self.left.pop_front();
        }
    }
}

/// Whatever is wrong, the ranges by themselves will show whether it is with them all.
fn cannot_after(mut failure: Failure) -> Failure {
    failure.kind = ErrorKind::RangeUnsupported;
    failure
}

/// The parts that one answer has.
struct PartsBody {
    /// The number of the host that gives it.
    host: usize,
    response: Response,
    origin: Origin,
    multipart: Multipart,
    /// Bytes that came after the last part.
    beyond: usize,
}

impl PartsBody {
    /// The next bytes of parts; `None` after the last.
    async fn next(&mut self, blob: &RemoteBlob) -> Result<Option<Bytes>, Failure> {
        let transport = &blob.shared.transport;
        loop {
            if let Some(bytes) = self.multipart.next().map_err(|NotAsAsked(why)| cannot(&self.origin, why))? {
                return Ok(Some(bytes));
            }
            let is_over = self.multipart.is_over();
            // The rest is read so that the connection can be used again; only that is lost if it is too long, or breaks.
            if is_over && self.beyond > MOST_HEAD {
                return Ok(None);
            }
            match transport.next_piece(&mut self.response, &self.origin).await {
                Ok(Some(piece)) => {
                    self.beyond += if is_over { piece.len() } else { 0 };
                    self.multipart.push(&piece);
                }
                Ok(None) | Err(_) if is_over => return Ok(None),
                Ok(None) => {
                    let message = format!("{} ended the answer early", self.origin);
                    let failure = Failure::new(ErrorKind::BadResponse, Outcome::Interrupted, message);
                    return Err(blob.doubted(self.host, failure));
                }
                Err(failure) => return Err(blob.doubted(self.host, failure)),
            }
        }
    }
}
