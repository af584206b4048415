//! One exchange with a host: a GET, the redirects it leads to, and the challenge it may have to answer.
//!
//! ```text
//! home ──401──▶ authenticator ──▶ home again, once
//!   └──307──▶ elsewhere            without our Authorization, from then on
//!               └──200/206──▶ the answer, and where it came from
//! ```
//!
//! Retries are not here: every failure is a [`Failure`] that says what [`retry`](crate::retry) may do about it.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Response, StatusCode, Url};

use crate::auth::{Authenticator, Tried};
use crate::configuration::ClientConfiguration;
use crate::connections::Connections;
use crate::endpoint::Endpoint;
use crate::error::{Cause, Context, Error, ErrorKind, printable};
use crate::mirrors::Absent;
use crate::origin::Origin;
use crate::retry::{Outcome, retry_after};
use crate::statistics::Counters;

/// Most redirects of one request.
const MAXIMUM_REDIRECTS: usize = 10;
const PLAIN_HTTP_HINT: &str = "does the host speak plain HTTP? then use --plain-http";
/// Most bytes of an error's body that are read for its message.
const MAXIMUM_ERROR_BODY: usize = 16 * 1024;

/// Everything that the repositories of one client share.
#[derive(Debug)]
pub(crate) struct Transport {
    pub(crate) configuration: ClientConfiguration,
    pub(crate) counters: Counters,
    connections: Connections,
    pub(crate) authenticator: Authenticator,
    /// Hosts in a registry's place that did not answer of late.
    pub(crate) absent: Absent,
}

/// What a request asks for, wherever it goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Request<'a> {
    pub(crate) accept: Option<&'a str>,
    /// The value of `Range`.
    pub(crate) range: Option<&'a str>,
}

/// A successful answer, and where it came from.
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) url: Url,
}

impl Transport {
    pub(crate) fn new(configuration: ClientConfiguration) -> Result<Arc<Transport>, Error> {
        Ok(Arc::new(Transport {
            connections: Connections::new(&configuration.proxies)?,
            authenticator: Authenticator::default(),
            absent: Absent::default(),
            counters: Counters::new(configuration.observer.clone()),
            configuration,
        }))
    }

    /// GETs `start`, which is the endpoint's own URL or one that it redirected to before. Only 200 and 206 are answers.
    pub(crate) async fn get(
        &self,
        endpoint: &Endpoint,
        start: &Url,
        request: Request<'_>,
    ) -> Result<Answer, Failure> {
        let starts_at_home = Origin::of(start) == endpoint.origin;
        let mut authorization =
            if starts_at_home { self.authenticator.known(self, endpoint).await? } else { None };
        let mut tried = Tried::default();
        loop {
            let answer = self.follow(endpoint, start, request, authorization.as_ref()).await?;
            let status = answer.response.status();
            let at_home = Origin::of(&answer.url) == endpoint.origin;
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(answer),
                StatusCode::UNAUTHORIZED if starts_at_home && at_home && !tried.is_all() => {
                    let headers = answer.response.headers().clone();
                    self.discard(answer.response).await;
                    let rejected = authorization.as_ref();
                    let answered =
                        self.authenticator.answer(self, endpoint, &headers, rejected, &mut tried).await?;
                    authorization = Some(answered);
                }
                _ => {
                    let sent_credentials = authorization.is_some();
                    return Err(self.refusal(answer, request, sent_credentials).await);
                }
            }
        }
    }

    /// Sends a GET and follows redirects; the last answer is given whatever its status.
    ///
    /// `authorization` belongs to the origin of `start`. Once a redirect has led elsewhere it is not sent any more, even if
    /// another leads back.
    pub(crate) async fn follow(
        &self,
        endpoint: &Endpoint,
        start: &Url,
        request: Request<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let home = Origin::of(start);
        let mut url = start.clone();
        let mut authorization = authorization;
        let mut has_left = false;
        for _ in 0..=MAXIMUM_REDIRECTS {
            let mut headers = if has_left { HeaderMap::new() } else { endpoint.headers(&url) };
            if let Some(accept) = request.accept.and_then(|accept| HeaderValue::from_str(accept).ok()) {
                headers.insert(header::ACCEPT, accept);
            }
            if let Some(range) = request.range.and_then(|range| HeaderValue::from_str(range).ok()) {
                headers.insert(header::RANGE, range);
            }
            if let Some(authorization) = authorization {
                headers.insert(header::AUTHORIZATION, authorization.clone());
            }
            let response = self.send(endpoint, reqwest::Method::GET, &url, headers, None).await?;
            if !is_redirect(response.status()) {
                return Ok(Answer { response, url });
            }
            let next = redirect_target(&url, &response)?;
            let (from, to) = (Origin::of(&url), Origin::of(&next));
            if from.is_secure() && !to.is_secure() && !self.configuration.plain_http {
                return Err(Failure::permanent(
                    ErrorKind::BadResponse,
                    format!("{from} redirects to {to}, which is not encrypted"),
                )
                .hinted("use --plain-http if that is intended"));
            }
            if to != home {
                authorization = None;
                has_left = true;
            }
            self.discard(response).await;
            url = next;
        }
        Err(Failure::permanent(ErrorKind::BadResponse, format!("more than {MAXIMUM_REDIRECTS} redirects")))
    }

    /// Sends one request to exactly this URL.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        method: reqwest::Method,
        url: &Url,
        mut headers: HeaderMap,
        body: Option<reqwest::Body>,
    ) -> Result<Response, Failure> {
        let client = self.connections.client(&self.configuration, endpoint, url)?;
        // Blobs are named by the digest of what is stored; a transfer compressed on the way would not match it.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let mut builder = client.request(method, url.clone()).headers(headers);
        if let Some(body) = body {
            builder = builder.body(body);
        }
        self.counters.request_sent();
        let begun = Instant::now();
        let sent = builder.send().await;
        let status = sent.as_ref().ok().map(Response::status);
        self.configuration.observer.tell_answer(url, status, begun.elapsed());
        let response = sent.map_err(|error| Failure::from_reqwest(error, &Origin::of(url)))?;
        tracing::trace!(origin = %Origin::of(url), path = url.path(), status = %response.status(), "answered");
        let encoding = response.headers().get(header::CONTENT_ENCODING);
        if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Failure::malformed("the host compressed its answer, which was not asked for"));
        }
        Ok(response)
    }

    /// Reads the rest of a small body, so that the connection can be used again.
    pub(crate) async fn discard(&self, response: Response) {
        if response.content_length().is_some_and(|length| length <= MAXIMUM_ERROR_BODY as u64) {
            // Only the connection is lost if this fails.
            let _ = self.body(response, MAXIMUM_ERROR_BODY).await;
        }
    }

    /// Reads a body of at most `limit` bytes.
    pub(crate) async fn body(&self, mut response: Response, limit: usize) -> Result<Vec<u8>, Failure> {
        let too_large =
            || Failure::permanent(ErrorKind::TooLarge, format!("the answer is larger than {limit} bytes"));
        let origin = Origin::of(response.url());
        if response.content_length().is_some_and(|length| length > limit as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(piece) = self.next_piece(&mut response, &origin).await? {
            if body.len() + piece.len() > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// The next bytes of a body, as they arrive; `None` at its end.
    pub(crate) async fn next_piece(
        &self,
        response: &mut Response,
        origin: &Origin,
    ) -> Result<Option<Bytes>, Failure> {
        let piece = response.chunk().await.map_err(|error| Failure::from_reqwest(error, origin))?;
        if let Some(piece) = &piece {
            self.counters.bytes_received(piece.len());
        }
        Ok(piece)
    }

    /// Turns an answer that is none into a failure, with the host's own words.
    pub(crate) async fn refusal(
        &self,
        answer: Answer,
        request: Request<'_>,
        sent_credentials: bool,
    ) -> Failure {
        let status = answer.response.status();
        let wait = answer
            .response
            .headers()
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, unix_now()));
        let origin = Origin::of(&answer.url);
        let said = match self.body(answer.response, MAXIMUM_ERROR_BODY).await {
            Ok(body) => host_message(&body),
            Err(_) => String::new(),
        };
        let message = format!("{origin} answered {status}{said}");
        let busy = Outcome::Busy { retry_after: wait };
        let ranged = request.range.is_some();
        let (kind, outcome) = match status.as_u16() {
            401 | 403 => (ErrorKind::Unauthorized, Outcome::Permanent),
            404 | 410 => (ErrorKind::NotFound, Outcome::Permanent),
            400 | 416 | 501 if ranged => (ErrorKind::RangeUnsupported, Outcome::Permanent),
            408 => (ErrorKind::Timeout, busy),
            429 => (ErrorKind::RateLimited, busy),
            501 => (ErrorKind::Server, Outcome::Permanent),
            500..=599 => (ErrorKind::Server, busy),
            _ => (ErrorKind::BadResponse, Outcome::Permanent),
        };
        let mut failure = Failure::new(kind, outcome, message);
        failure.status = Some(status.as_u16());
        match (kind, sent_credentials) {
            (ErrorKind::Unauthorized, true) => {
                failure.hinted("the credentials do not allow this in this repository")
            }
            (ErrorKind::Unauthorized, false) => {
                failure.hinted("log in first, with `podman login` or `docker login`")
            }
            (ErrorKind::NotFound, _) => {
                failure.hinted("check the name; a private repository may look missing until you log in")
            }
            _ => failure,
        }
    }
}

fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

pub(crate) fn redirect_target(from: &Url, response: &Response) -> Result<Url, Failure> {
    let malformed = || Failure::malformed("the host redirects to nowhere (Location is missing or malformed)");
    let location = response.headers().get(header::LOCATION).ok_or_else(malformed)?;
    let location = std::str::from_utf8(location.as_bytes()).map_err(|_| malformed())?;
    let mut next = from.join(location).map_err(|_| malformed())?;
    if !matches!(next.scheme(), "http" | "https") || !next.has_host() {
        return Err(malformed());
    }
    // `http://user:password@host` would be sent as Basic credentials of the host's own choosing.
    if !next.username().is_empty() || next.password().is_some() {
        return Err(Failure::malformed("the host redirects to an address with credentials in it"));
    }
    next.set_fragment(None);
    Ok(next)
}

/// The first error of a registry's answer (OCI distribution specification, "Error Codes"), for a message.
fn host_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        code: Option<String>,
        message: Option<String>,
    }
    let first = serde_json::from_slice::<Body>(body).ok().and_then(|body| body.errors.into_iter().next());
    let Some(One { code, message }) = first else { return String::new() };
    let words: Vec<String> = [code, message].into_iter().flatten().map(|text| printable(&text)).collect();
    format!(" ({})", words.join(": "))
}

fn unix_now() -> u64 {
    // A clock before 1970 makes every date in `Retry-After` far away, and the deadline ends the wait.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

/// Why one attempt failed, before it is known for whom.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: ErrorKind,
    pub(crate) outcome: Outcome,
    pub(crate) message: String,
    /// The HTTP status, if it was one that failed the attempt.
    pub(crate) status: Option<u16>,
    hint: Option<String>,
    cause: Option<Cause>,
}

impl Failure {
    pub(crate) fn new(kind: ErrorKind, outcome: Outcome, message: impl Into<String>) -> Failure {
        Failure { kind, outcome, message: message.into(), status: None, hint: None, cause: None }
    }

    pub(crate) fn permanent(kind: ErrorKind, message: impl Into<String>) -> Failure {
        Failure::new(kind, Outcome::Permanent, message)
    }

    pub(crate) fn malformed(message: impl Into<String>) -> Failure {
        Failure::new(ErrorKind::BadResponse, Outcome::Malformed, message)
    }

    pub(crate) fn hinted(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn caused_by(mut self, cause: impl Into<Cause>) -> Failure {
        self.cause = Some(cause.into());
        self
    }

    pub(crate) fn after_attempts(mut self, attempts: u32) -> Failure {
        if attempts > 1 {
            self.message = format!("{} (after {attempts} attempts)", self.message);
        }
        self
    }

    /// The same, after another host in the registry's place failed.
    pub(crate) fn after(mut self, before: &Failure) -> Failure {
        self.message = format!("{}; {}", before.message, self.message);
        self
    }

    pub(crate) fn into_error(self, context: &Context) -> Error {
        Error::new(self.kind, context, self.message).with_optional(self.cause, self.hint)
    }

    /// Classifies what the HTTP library reports. Its URL is left out: a signed one is a credential.
    fn from_reqwest(error: reqwest::Error, origin: &Origin) -> Failure {
        let error = error.without_url();
        let tls = tls_problem(&error);
        let failure = if let Some(problem) = tls {
            let failure =
                Failure::permanent(ErrorKind::Unreachable, format!("TLS with {origin} failed: {problem}"));
            match problem {
                TlsProblem::NotTls => failure.hinted(PLAIN_HTTP_HINT),
                TlsProblem::Certificate => {
                    failure.hinted("put the authority's certificate into certs.d/HOST/ca.crt")
                }
                TlsProblem::Other => failure,
            }
        } else if error.is_connect() {
            let message = match (error.is_dns(), error.is_timeout()) {
                (true, _) => format!("the name of {origin} cannot be resolved"),
                (false, true) => format!("{origin} does not accept the connection in time"),
                (false, false) => format!("{origin} cannot be connected to"),
            };
            let failure = Failure::new(ErrorKind::Unreachable, Outcome::Unreachable, message);
            // Some servers hang up on what is not HTTP instead of answering.
            match origin.is_secure() && hung_up(&error) {
                true => failure.hinted(PLAIN_HTTP_HINT),
                false => failure,
            }
        } else if error.is_timeout() {
            Failure::new(ErrorKind::Timeout, Outcome::Interrupted, format!("{origin} stopped answering"))
        } else if error.is_builder() {
            Failure::permanent(ErrorKind::Local, "the request cannot be made")
        } else {
            let message = format!("the connection to {origin} broke off");
            Failure::new(ErrorKind::BadResponse, Outcome::Interrupted, message)
        };
        failure.caused_by(error)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsProblem {
    NotTls,
    Certificate,
    Other,
}

impl std::fmt::Display for TlsProblem {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            TlsProblem::NotTls => "the host does not speak TLS",
            TlsProblem::Certificate => "its certificate is not trusted",
            TlsProblem::Other => "the handshake was refused",
        })
    }
}

/// What the TLS library complains of, if that is the cause.
fn tls_problem(error: &reqwest::Error) -> Option<TlsProblem> {
    find_cause(error, |cause| {
        Some(match cause.downcast_ref::<rustls::Error>()? {
            rustls::Error::InvalidMessage(_) => TlsProblem::NotTls,
            rustls::Error::InvalidCertificate(_) => TlsProblem::Certificate,
            _ => TlsProblem::Other,
        })
    })
}

fn hung_up(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
    let found = find_cause(error, |cause| {
        let kind = cause.downcast_ref::<std::io::Error>()?.kind();
        matches!(kind, UnexpectedEof | ConnectionReset).then_some(())
    });
    found.is_some()
}

type AnyError = dyn std::error::Error + 'static;

/// The first answer that one of an error's causes gives, however they are wrapped.
fn find_cause<T>(error: &reqwest::Error, answer: impl Fn(&AnyError) -> Option<T>) -> Option<T> {
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        if let Some(found) = answer(error) {
            return Some(found);
        }
        // An I/O error names as its source not what it wraps but that one's source.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}
