//! What the fake registry answers to a request: the rules it enforces, its content, tokens and signed URLs.

mod push;
mod referrers;

use std::io;
use std::sync::Arc;

use super::{Authentication, Content, Fault, Manifest, Request, Shared, State, WrongParts};

/// An answer before it is written: the body is read as it is sent.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    body: Content,
    /// Where in the content the body begins.
    start: u64,
    length: u64,
}

impl Answer {
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Bytes of the body, from `offset` in it.
    pub(super) fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        self.body.read(self.start + offset, length)
    }

    fn new(status: u16, headers: Vec<(&'static str, String)>, body: Content) -> Answer {
        let length = body.size();
        Answer { status, headers, body, start: 0, length }
    }

    fn empty(status: u16, headers: Vec<(&'static str, String)>) -> Answer {
        Answer::new(status, headers, Content::Memory(Arc::from([])))
    }

    /// An error as the distribution specification wants it.
    fn error(status: u16, code: &str, message: &str) -> Answer {
        let body = serde_json::json!({ "errors": [{ "code": code, "message": message }] }).to_string();
        let headers = vec![("content-type", "application/json".to_owned())];
        Answer::new(status, headers, Content::Memory(body.into_bytes().into()))
    }

    fn json(value: serde_json::Value) -> Answer {
        let headers = vec![("content-type", "application/json".to_owned())];
        Answer::new(200, headers, Content::Memory(value.to_string().into_bytes().into()))
    }
}

/// The answer to a request; `None` closes the connection instead.
pub(super) fn answer(
    shared: &Shared,
    is_storage: bool,
    request: &Request,
    body: &[u8],
    fault: Option<&Fault>,
) -> Option<Answer> {
    let state = &mut *shared.lock();
    // Other programs have manners of their own.
    let is_ours = !request.header("user-agent").is_some_and(|name| name.starts_with("containerd/"));
    if is_ours && let Some(violation) = violation(shared, state, is_storage, request) {
        state.violations.push(format!("{violation}: {} {}", request.method, request.target));
        return Some(Answer::error(400, "UNSUPPORTED", &violation));
    }
    match fault {
        Some(Fault::Close) => return None,
        Some(Fault::RefuseRange(status)) if request.header("range").is_some() => {
            return Some(Answer::error(*status, "UNSUPPORTED", "told to"));
        }
        Some(Fault::RefuseParts(status)) if is_of_parts(request) => {
            return Some(Answer::error(*status, "UNSUPPORTED", "told to"));
        }
        Some(Fault::TakeOnly(bytes)) if request.method == "PATCH" => {
            let part = &body[..(*bytes).min(body.len())];
            api(shared, state, request, part, fault);
            return None;
        }
        Some(Fault::Status(status)) => return Some(Answer::error(*status, "UNKNOWN", "told to")),
        Some(Fault::RetryAfter(status, after)) => {
            return Some(Answer::empty(*status, vec![("retry-after", after.clone())]));
        }
        Some(Fault::RedirectTo(location)) => {
            return Some(Answer::empty(307, vec![("location", location.clone())]));
        }
        _ => {}
    }
    let mut answer = if is_storage {
        storage(state, request, fault)
    } else if request.target.starts_with("/token") {
        token(state, request, body)
    } else {
        api(shared, state, request, body, fault)
    };
    match fault {
        Some(Fault::ContentEncoding) => answer.headers.push(("content-encoding", "gzip".to_owned())),
        Some(Fault::ContentType(content_type)) => replace(&mut answer, "content-type", content_type.clone()),
        Some(Fault::WrongDigestHeader) => {
            replace(&mut answer, "docker-content-digest", format!("sha256:{}", "0".repeat(64)));
        }
        Some(Fault::Header(name, value)) => answer.headers.push((name, value.clone())),
        Some(Fault::NoContentRange) => answer.headers.retain(|(name, _)| *name != "content-range"),
        _ => {}
    }
    Some(answer)
}

fn replace(answer: &mut Answer, name: &'static str, value: String) {
    answer.headers.retain(|(key, _)| *key != name);
    answer.headers.push((name, value));
}

/// What a well-behaved client never does.
fn violation(shared: &Shared, state: &State, is_storage: bool, request: &Request) -> Option<String> {
    let own = if is_storage { shared.storage_address } else { shared.registry_address };
    if request.header("host") != Some(own.to_string().as_str()) {
        return Some(format!("the Host header is {:?}", request.header("host")));
    }
    let is_token_post = request.method == "POST" && request.target.starts_with("/token");
    let writes = ["POST", "PUT", "PATCH", "DELETE"].contains(&request.method.as_str());
    let is_push = state.takes_pushes && writes && !is_storage;
    if request.method != "GET" && request.method != "HEAD" && !is_token_post && !is_push {
        return Some(format!("the method is {}", request.method));
    }
    if request.header("accept-encoding").is_some_and(|encoding| encoding != "identity") {
        return Some("a compressed transfer was asked for".to_owned());
    }
    if request.header("authorization").is_some() {
        if is_storage {
            return Some("Authorization reached the object store".to_owned());
        }
        if state.authentication.is_none() {
            return Some("Authorization was sent, and nobody asked for it".to_owned());
        }
    }
    if let Some(range) = request.header("range") {
        if !request.target.contains("/blobs/") && !is_storage {
            return Some("a range of something that is no blob was asked for".to_owned());
        }
        if parsed_range(range).is_none() && parsed_ranges(range).is_none() {
            return Some(format!("the Range header is {range:?}"));
        }
    }
    None
}

fn api(shared: &Shared, state: &mut State, request: &Request, body: &[u8], fault: Option<&Fault>) -> Answer {
    let root = state.root.as_deref().unwrap_or("/v2/");
    let Some(path) = request.target.strip_prefix(root) else {
        return Answer::error(404, "NAME_UNKNOWN", "no such path");
    };
    // Of which registry this is the mirror is nothing to us.
    let path = path.split_once("?ns=").map_or(path, |(path, _)| path);
    let split = |at: &str| path.split_once(at);
    let (repository, what) = match (split("/manifests/"), split("/blobs/"), split("/referrers/")) {
        (Some((repository, reference)), ..) => (repository, What::Manifest(reference)),
        (None, Some((repository, digest)), _) => (repository, What::Blob(digest)),
        (None, None, Some((repository, query))) => (repository, What::Referrers(query)),
        (None, None, None) => (path.trim_end_matches('/'), What::Nothing),
    };
    if let Some(challenge) = challenge(shared, state, request, repository) {
        return challenge;
    }
    match what {
        What::Manifest(reference) if request.method == "PUT" => {
            push::manifest(state, repository, reference, request, body)
        }
        What::Blob(rest) if rest.starts_with("uploads/") => {
            push::blob(state, repository, rest, request, body)
        }
        What::Referrers(query) => referrers::list(state, repository, query, request),
        What::Nothing if path.is_empty() => Answer::json(serde_json::json!({})),
        What::Nothing => Answer::error(404, "NAME_UNKNOWN", "no such path"),
        What::Manifest(reference) => match state.manifests.get(&format!("{repository}/{reference}")) {
            Some(manifest) => manifest_answer(&manifest.clone(), state, request),
            None => Answer::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
        },
        What::Blob(digest) => {
            let Some(content) = state.blobs.get(digest).cloned().filter(|_| state.has(repository, digest))
            else {
                return Answer::error(404, "BLOB_UNKNOWN", "blob unknown to registry");
            };
            if state.redirects {
                let signature = state.next_signature;
                state.next_signature += 1;
                let location =
                    format!("http://{}/storage/{digest}?signature={signature}", shared.storage_address);
                return Answer::empty(307, vec![("location", location)]);
            }
            blob_answer(content, digest, request, fault)
        }
    }
}

enum What<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Referrers(&'a str),
    Nothing,
}

fn manifest_answer(manifest: &Manifest, state: &mut State, request: &Request) -> Answer {
    let known = manifest.content_type.starts_with("application/vnd.");
    let accepts = request.header("accept").unwrap_or_default();
    let accepted = accepts.split(',').any(|accepted| accepted.trim() == manifest.content_type);
    if known && !accepted && !manifest.content_type.contains("manifest.v1+") {
        state.violations.push(format!("{} is not accepted by {accepts:?}", manifest.content_type));
        return Answer::error(404, "MANIFEST_UNKNOWN", "its type is not accepted");
    }
    let headers = vec![
        ("content-type", manifest.content_type.clone()),
        ("docker-content-digest", manifest.digest.to_string()),
    ];
    Answer::new(200, headers, Content::Memory(manifest.bytes.clone()))
}

fn blob_answer(content: Content, digest: &str, request: &Request, fault: Option<&Fault>) -> Answer {
    let size = content.size();
    let headers = vec![
        ("content-type", "application/octet-stream".to_owned()),
        ("docker-content-digest", digest.to_owned()),
    ];
    if let Some(ranges) = request.header("range").and_then(parsed_ranges) {
        return match fault {
            Some(Fault::IgnoreRange | Fault::IgnoreParts) => Answer::new(200, headers, content),
            Some(Fault::WrongParts(WrongParts::OnlyFirst)) => part_answer(content, headers, ranges[0], 0),
            Some(Fault::WrongParts(wrong)) => parts_answer(&content, &wrong_parts(ranges, *wrong)),
            _ => parts_answer(&content, &ranges),
        };
    }
    let range = request.header("range").and_then(parsed_range);
    let is_ignored = |(first, last): &(u64, Option<u64>)| match fault {
        Some(Fault::IgnoreRange) => true,
        Some(Fault::IgnoreWholeRange) => *first == 0 && last.is_none_or(|last| last + 1 >= size),
        _ => false,
    };
    let Some((first, last)) = range.filter(|range| !is_ignored(range)) else {
        return Answer::new(200, headers, content);
    };
    if first >= size {
        return Answer::empty(416, vec![("content-range", format!("bytes */{size}"))]);
    }
    let last = last.unwrap_or(size - 1).min(size - 1);
    let shift = u64::from(matches!(fault, Some(Fault::WrongContentRange)));
    part_answer(content, headers, (first, last), shift)
}

/// A 206 with the bytes from the first to the last, which says that they begin so many bytes later.
fn part_answer(
    content: Content,
    mut headers: Vec<(&'static str, String)>,
    (first, last): (u64, u64),
    shift: u64,
) -> Answer {
    let size = content.size();
    headers.push(("content-range", format!("bytes {}-{}/{size}", first + shift, last + shift)));
    Answer { status: 206, headers, body: content, start: first, length: last - first + 1 }
}

fn parts_answer(content: &Content, ranges: &[(u64, u64)]) -> Answer {
    let size = content.size();
    if ranges.iter().any(|(_, last)| *last >= size) {
        return Answer::empty(416, vec![("content-range", format!("bytes */{size}"))]);
    }
    let mut body = Vec::new();
    for (first, last) in ranges {
        let head = format!(
            "\r\n--{BOUNDARY}\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes {first}-{last}/{size}\r\n\r\n"
        );
        body.extend_from_slice(head.as_bytes());
        body.extend(content.read(*first, (last - first + 1) as usize).expect("the bytes of a blob"));
    }
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    let headers = vec![("content-type", format!("multipart/byteranges; boundary={BOUNDARY}"))];
    Answer::new(206, headers, Content::Memory(body.into()))
}

/// What separates parts; it may be in their bytes, too.
const BOUNDARY: &str = "0";

fn wrong_parts(mut ranges: Vec<(u64, u64)>, wrong: WrongParts) -> Vec<(u64, u64)> {
    match wrong {
        WrongParts::Reversed => ranges.reverse(),
        WrongParts::Joined => ranges = vec![(ranges[0].0, ranges[ranges.len() - 1].1)],
        WrongParts::WithoutLast | WrongParts::OnlyFirst => {
            ranges.pop();
        }
    }
    ranges
}

fn is_of_parts(request: &Request) -> bool {
    request.header("range").is_some_and(|range| parsed_ranges(range).is_some())
}

/// Several ranges, which must be apart and in order, and not too many for any host.
fn parsed_ranges(header: &str) -> Option<Vec<(u64, u64)>> {
    let ranges = header.strip_prefix("bytes=")?.split(',').map(|range| {
        let (first, last) = range.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    let ranges: Vec<(u64, u64)> = ranges.collect::<Option<_>>()?;
    let is_in_order = ranges.iter().all(|(first, last)| first <= last)
        && ranges.windows(2).all(|pair| pair[0].1 < pair[1].0);
    ((2..=64).contains(&ranges.len()) && is_in_order).then_some(ranges)
}

fn parsed_range(header: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let first = first.parse().ok()?;
    match last {
        "" => Some((first, None)),
        last => Some((first, Some(last.parse().ok().filter(|last| *last >= first)?))),
    }
}

/// The object store: no credentials but the signature.
fn storage(state: &mut State, request: &Request, fault: Option<&Fault>) -> Answer {
    let path = request.target.strip_prefix("/storage/");
    let Some((digest, signature)) = path.and_then(|path| path.split_once("?signature=")) else {
        return Answer::error(404, "UNKNOWN", "no such object");
    };
    let Ok(signature) = signature.parse::<usize>() else {
        return Answer::error(403, "UNKNOWN", "malformed signature");
    };
    let used = state.signatures_used.entry(signature).or_default();
    *used += 1;
    let worn = state.signature_uses.is_some_and(|uses| *used > uses);
    if signature < state.oldest_signature || signature >= state.next_signature || worn {
        return Answer::error(403, "UNKNOWN", "the signature has expired");
    }
    match state.blobs.get(digest).cloned() {
        Some(content) => blob_answer(content, digest, request, fault),
        None => Answer::error(404, "UNKNOWN", "no such object"),
    }
}

/// The 401 that a request deserves, if it does.
fn challenge(shared: &Shared, state: &mut State, request: &Request, repository: &str) -> Option<Answer> {
    let authorization = request.header("authorization");
    match state.authentication.clone()? {
        Authentication::Basic(login) => (authorization != Some(&basic(&login))).then(|| {
            let mut answer = Answer::error(401, "UNAUTHORIZED", "authentication required");
            answer.headers.push(("www-authenticate", "Basic realm=\"fake, with a comma\"".to_owned()));
            answer
        }),
        Authentication::Token { realm, .. } => {
            let token = authorization.and_then(|authorization| authorization.strip_prefix("Bearer "));
            if let Some((allowed, uses)) = token.and_then(|token| state.tokens.get_mut(token))
                && allowed == repository
                && *uses > 0
            {
                *uses -= 1;
                return None;
            }
            let realm = realm.unwrap_or_else(|| format!("http://{}/token", shared.registry_address));
            let mut answer = Answer::error(401, "UNAUTHORIZED", "authentication required");
            answer.headers.push((
                "www-authenticate",
                format!(r#"Bearer realm="{realm}",service="fake",scope="repository:{repository}:pull""#),
            ));
            Some(answer)
        }
    }
}

/// The token service: `GET /token?service=fake&scope=…`, or a POST with a refresh token.
fn token(state: &mut State, request: &Request, body: &[u8]) -> Answer {
    let Some(Authentication::Token { login, identity_token, uses, .. }) = state.authentication.clone() else {
        return Answer::error(404, "UNKNOWN", "there are no tokens here");
    };
    let body = String::from_utf8_lossy(body);
    let query = match request.method.as_str() {
        "POST" => body.as_ref(),
        _ => request.target.split_once('?').map_or("", |(_, query)| query),
    };
    let parameters: Vec<(String, String)> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.replace("%3A", ":").replace("%2F", "/")))
        .collect();
    let parameter = |wanted: &str| {
        parameters
            .iter()
            .find(|(name, _)| name == wanted)
            .map(|(_, value)| value.as_str())
            .unwrap_or_default()
    };
    let allowed = match request.method.as_str() {
        "POST" => {
            parameter("grant_type") == "refresh_token"
                && identity_token.as_deref() == Some(parameter("refresh_token"))
                && request.header("authorization").is_none()
        }
        _ => request.header("authorization") == login.as_deref().map(basic).as_deref(),
    };
    let scope = parameter("scope").strip_prefix("repository:").and_then(|scope| scope.strip_suffix(":pull"));
    let (true, "fake", Some(repository)) = (allowed, parameter("service"), scope) else {
        return Answer::error(401, "UNAUTHORIZED", "no token for you");
    };
    let token = format!("token-{}", state.next_token);
    state.next_token += 1;
    state.tokens.insert(token.clone(), (repository.to_owned(), uses));
    let name = if request.method == "POST" { "access_token" } else { "token" };
    Answer::json(serde_json::json!({ name: token, "expires_in": 3600 }))
}

/// `Basic` with `user:password` in base64, written out here so that the client's encoder is not its own judge.
fn basic(login: &str) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("Basic ");
    for group in login.as_bytes().chunks(3) {
        let bits = group
            .iter()
            .enumerate()
            .fold(0_u32, |bits, (place, byte)| bits | u32::from(*byte) << (16 - 8 * place));
        for digit in 0..4 {
            match digit <= group.len() {
                true => text.push(ALPHABET[(bits >> (18 - 6 * digit)) as usize & 63] as char),
                false => text.push('='),
            }
        }
    }
    text
}
