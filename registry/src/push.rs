//! Writing to a registry (OCI distribution specification 1.1, "Push").
//!
//! ```text
//! blob        HEAD blobs/<digest> ──200──▶ it is there
//!               └─404──▶ POST blobs/uploads/ ──202 Location──▶ PUT Location?digest= ──201──▶ there
//! document    PUT manifests/<tag or digest> ──201──▶ there
//! ```
//!
//! A blob that is made here is sent in one request, from a file, so that it can be sent again after a failure: from the beginning, with
//! a new upload. One that comes from elsewhere is sent in pieces: see [`upload`](crate::upload). Credentials go to the registry itself; an upload that it moves to another
//! origin is sent there without them, and never from TLS to plain HTTP.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{self, HeaderValue};
use reqwest::{Body, Method, Response, Url};

use crate::auth::Tried;
use crate::digest::Digest;
use crate::endpoint::Endpoint;
use crate::error::{Context, Error, ErrorKind};
use crate::origin::Origin;
use crate::reference::{DEFAULT_TAG, Target};
use crate::retry::{Policy, Retrier};
use crate::transport::{Answer, Failure, Request, Transport};

/// A transfer slower than this, in bytes a second, is given up even if it never stops.
const SLOWEST_UPLOAD: u64 = 16 * 1024;
/// How much of a file is read at once.
const PIECE: u64 = 1024 * 1024;

/// What is sent.
#[derive(Clone, Debug)]
pub(crate) enum Content {
    Nothing,
    Bytes(Bytes),
    /// Part of an upload, which begins at that byte of the blob.
    Piece {
        offset: u64,
        bytes: Bytes,
    },
    File {
        file: Arc<File>,
        size: u64,
    },
}

impl Content {
    pub(crate) fn size(&self) -> u64 {
        match self {
            Content::Nothing => 0,
            Content::Bytes(bytes) | Content::Piece { bytes, .. } => bytes.len() as u64,
            Content::File { size, .. } => *size,
        }
    }

    fn body(&self) -> Body {
        match self {
            Content::Nothing => Body::from(Bytes::new()),
            Content::Bytes(bytes) | Content::Piece { bytes, .. } => Body::from(bytes.clone()),
            Content::File { file, size } => Body::wrap_stream(file_pieces(file.clone(), *size)),
        }
    }
}

fn file_pieces(
    file: Arc<File>,
    size: u64,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
    futures_util::stream::unfold(0, move |position| {
        let file = file.clone();
        async move {
            let length = PIECE.min(size - position);
            if length == 0 {
                return None;
            }
            let read = tokio::task::spawn_blocking(move || {
                // No more than PIECE.
                let mut piece = vec![0; length as usize];
                file.read_exact_at(&mut piece, position)?;
                Ok(Bytes::from(piece))
            });
            let piece = read.await.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            // After an error the stream ends.
            let next = if piece.is_ok() { position + length } else { size };
            Some((piece, next))
        }
    })
}

/// Uploads a blob, unless it is there.
pub(crate) async fn put_blob(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: &Digest,
    file: Arc<File>,
    size: u64,
) -> Result<(), Error> {
    let endpoint = &endpoint.written();
    let context = endpoint.context(format!("blob {digest}"));
    let content = Content::File { file, size };
    persist(transport, &context, size, || put_blob_once(transport, endpoint, digest, &content)).await
}

/// Whether a blob of that length is there.
pub(crate) async fn has_blob(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: &Digest,
    size: u64,
) -> Result<bool, Error> {
    let endpoint = &endpoint.written();
    let context = endpoint.context(format!("blob {digest}"));
    persist(transport, &context, 0, || has_blob_once(transport, endpoint, digest, size)).await
}

/// A manifest or index that the registry took.
pub(crate) struct StoredDocument {
    pub(crate) digest: Digest,
    /// The registry lists it among the referrers of its subject (`OCI-Subject`).
    pub(crate) is_listed: bool,
}

/// Uploads a manifest or index.
pub(crate) async fn put_document(
    transport: &Transport,
    endpoint: &Endpoint,
    target: &Target,
    media_type: &str,
    bytes: Bytes,
) -> Result<StoredDocument, Error> {
    let endpoint = &endpoint.written();
    let context = endpoint.context(format!("manifest {target}"));
    let digest = Digest::sha256_of(&bytes);
    let size = bytes.len() as u64;
    let content = Content::Bytes(bytes);
    let is_listed = persist(transport, &context, size, || {
        put_document_once(transport, endpoint, target, media_type, &content, &digest)
    })
    .await?;
    Ok(StoredDocument { digest, is_listed })
}

/// How long so many bytes may take.
pub(crate) fn patience(transport: &Transport, size: u64) -> Duration {
    transport.configuration.timeouts.operation.saturating_add(Duration::from_secs(size / SLOWEST_UPLOAD))
}

/// Tries until it is done, or there is no hope or no time left.
async fn persist<T, F: Future<Output = Result<T, Failure>>>(
    transport: &Transport,
    context: &Context,
    size: u64,
    attempt: impl Fn() -> F,
) -> Result<T, Error> {
    let limit = patience(transport, size);
    let attempts = async {
        let mut retrier = Retrier::new(Policy::INTERACTIVE, limit);
        loop {
            match attempt().await {
                Ok(done) => return Ok(done),
                Err(failure) => retrier.wait_after(failure, &transport.counters).await?,
            }
        }
    };
    match tokio::time::timeout(limit, attempts).await {
        Ok(result) => result.map_err(|failure: Failure| failure.into_error(context)),
        Err(_) => {
            let message = format!("{size} bytes were not taken within {} s", limit.as_secs());
            Err(Error::new(ErrorKind::Timeout, context, message))
        }
    }
}

async fn put_blob_once(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: &Digest,
    content: &Content,
) -> Result<(), Failure> {
    if has_blob_once(transport, endpoint, digest, content.size()).await? {
        return Ok(());
    }
    let start = endpoint.url("blobs/uploads/")?;
    let begun = exchange(transport, endpoint, Method::POST, &start, None, &Content::Nothing, &[202]).await?;
    let mut upload = upload_location(transport, &start, &begun)?;
    transport.discard(begun).await;
    upload.query_pairs_mut().append_pair("digest", digest.as_str());
    let octets = Some("application/octet-stream");
    let done = exchange(transport, endpoint, Method::PUT, &upload, octets, content, &[201]).await?;
    transport.discard(done).await;
    Ok(())
}

async fn has_blob_once(
    transport: &Transport,
    endpoint: &Endpoint,
    digest: &Digest,
    size: u64,
) -> Result<bool, Failure> {
    let place = endpoint.url(&format!("blobs/{digest}"))?;
    match exchange(transport, endpoint, Method::HEAD, &place, None, &Content::Nothing, &[200]).await {
        Ok(answer) => {
            let length = answer.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
            // A blob cannot have another length under the same digest; a registry that says so lost something.
            Ok(length.is_none_or(|length| length == size.to_string()))
        }
        Err(failure) if failure.kind == ErrorKind::NotFound => Ok(false),
        // Some answer 403 or 405 to a HEAD; the upload tells more.
        Err(failure) if matches!(failure.status, Some(403 | 405)) => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// Whether the registry says that it took note of the document's subject.
async fn put_document_once(
    transport: &Transport,
    endpoint: &Endpoint,
    target: &Target,
    media_type: &str,
    content: &Content,
    digest: &Digest,
) -> Result<bool, Failure> {
    let name = match target {
        Target::Tag(tag) => tag,
        Target::Digest(digest) => digest.as_str(),
        Target::OnlyImage => DEFAULT_TAG,
    };
    let place = endpoint.url(&format!("manifests/{name}"))?;
    let done = exchange(transport, endpoint, Method::PUT, &place, Some(media_type), content, &[201]).await?;
    let stored = done.headers().get("docker-content-digest").and_then(|value| value.to_str().ok());
    let differs = stored.is_some_and(|stored| stored.starts_with("sha256:") && stored != digest.as_str());
    let is_listed = done.headers().contains_key("oci-subject");
    transport.discard(done).await;
    if differs {
        return Err(Failure::malformed("the host stored the manifest under another digest"));
    }
    Ok(is_listed)
}

/// Sends a request to exactly this URL, after answering a challenge if there is one. Only the `accepted` statuses are answers.
pub(crate) async fn exchange(
    transport: &Transport,
    endpoint: &Endpoint,
    method: Method,
    url: &Url,
    content_type: Option<&str>,
    content: &Content,
    accepted: &[u16],
) -> Result<Response, Failure> {
    let at_home = Origin::of(url) == endpoint.origin;
    let mut authorization =
        if at_home { transport.authenticator.known(transport, endpoint).await? } else { None };
    let mut tried = Tried::default();
    loop {
        let mut headers = endpoint.headers(url);
        if let Some(content_type) = content_type.and_then(|text| HeaderValue::from_str(text).ok()) {
            headers.insert(header::CONTENT_TYPE, content_type);
        }
        if let Some(authorization) = &authorization {
            headers.insert(header::AUTHORIZATION, authorization.clone());
        }
        if let Content::Piece { offset, bytes } = content
            && let Some(last) = (bytes.len() as u64).checked_sub(1)
            && let Ok(range) = HeaderValue::from_str(&format!("{offset}-{}", offset + last))
        {
            headers.insert(header::CONTENT_RANGE, range);
        }
        let body = (method != Method::HEAD && method != Method::GET).then(|| {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(content.size()));
            content.body()
        });
        let response = transport.send(endpoint, method.clone(), url, headers, body).await?;
        let status = response.status().as_u16();
        if accepted.contains(&status) {
            return Ok(response);
        }
        if status != 401 || !at_home || tried.is_all() {
            let answer = Answer { response, url: url.clone() };
            return Err(transport.refusal(answer, Request::default(), authorization.is_some()).await);
        }
        let headers = response.headers().clone();
        transport.discard(response).await;
        let rejected = authorization.as_ref();
        let answer = transport.authenticator.answer(transport, endpoint, &headers, rejected, &mut tried);
        authorization = Some(answer.await?);
    }
}

/// Where the host wants to have the blob.
pub(crate) fn upload_location(
    transport: &Transport,
    start: &Url,
    response: &Response,
) -> Result<Url, Failure> {
    let location = crate::transport::redirect_target(start, response)?;
    let (from, to) = (Origin::of(start), Origin::of(&location));
    if from.is_secure() && !to.is_secure() && !transport.configuration.plain_http {
        let message = format!("{from} wants uploads at {to}, which is not encrypted");
        return Err(Failure::permanent(ErrorKind::BadResponse, message)
            .hinted("use --plain-http if that is intended"));
    }
    Ok(location)
}
