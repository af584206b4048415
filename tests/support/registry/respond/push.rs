//! Taking blobs and manifests (OCI distribution specification 1.1, "Push"): a blob in one PUT, in pieces, or from another repository.

use super::super::sha256;
use super::{Answer, Content, Manifest, Request, State};

/// `POST uploads/`, with `?mount=…&from=…` if another repository may have it; `PATCH`, `GET` and `DELETE uploads/NUMBER`; and `PUT
/// uploads/NUMBER?digest=…`, with the rest of the blob.
pub(super) fn blob(
    state: &mut State,
    repository: &str,
    rest: &str,
    request: &Request,
    body: &[u8],
) -> Answer {
    let rest = rest.strip_prefix("uploads/").unwrap_or_default();
    if request.method == "POST" {
        let wanted = rest.strip_prefix("?mount=").and_then(|rest| rest.split_once("&from="));
        if let Some((digest, from)) = wanted {
            let (digest, from) = (digest.replace("%3A", ":"), from.replace("%2F", "/"));
            if state.has(&from, &digest) {
                state.give(repository, &digest);
                let location = format!("/v2/{repository}/blobs/{digest}");
                return Answer::empty(201, vec![("location", location)]);
            }
        }
        state.next_upload += 1;
        let number = state.next_upload;
        state.uploads.insert(number, Vec::new());
        return Answer::empty(202, vec![("location", location(repository, number))]);
    }
    let unknown = || Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
    let Some((number, query)) = rest.split_once("?state=x%3Dy") else { return unknown() };
    let Ok(number) = number.parse::<usize>() else { return unknown() };
    let Some(upload) = state.uploads.get_mut(&number) else { return unknown() };
    // As registries say it: of nothing the same as of one byte.
    let range = |upload: &[u8]| ("range", format!("0-{}", upload.len().saturating_sub(1)));
    let here = ("location", location(repository, number));
    match request.method.as_str() {
        "PATCH" => {
            let first =
                request.header("content-range").and_then(|range| range.split_once('-')?.0.parse().ok());
            if first != Some(upload.len()) {
                return Answer::empty(416, vec![range(upload)]);
            }
            upload.extend_from_slice(body);
            Answer::empty(202, vec![here, range(upload)])
        }
        "GET" => Answer::empty(204, vec![here, range(upload)]),
        "DELETE" => {
            state.uploads.remove(&number);
            Answer::empty(204, Vec::new())
        }
        "PUT" => {
            let whole = [upload.as_slice(), body].concat();
            let actual = sha256(&whole);
            if query.strip_prefix("&digest=").map(|digest| digest.replace("%3A", ":")).as_deref()
                != Some(actual.as_str())
            {
                return Answer::error(400, "DIGEST_INVALID", "the content has another digest");
            }
            state.uploads.remove(&number);
            state.blobs.insert(actual.to_string(), Content::Memory(whole.into()));
            state.give(repository, actual.as_str());
            Answer::empty(201, vec![("docker-content-digest", actual.to_string())])
        }
        _ => unknown(),
    }
}

fn location(repository: &str, upload: usize) -> String {
    format!("/v2/{repository}/blobs/uploads/{upload}?state=x%3Dy")
}

/// `PUT manifests/REFERENCE`.
pub(super) fn manifest(
    state: &mut State,
    repository: &str,
    reference: &str,
    request: &Request,
    body: &[u8],
) -> Answer {
    let digest = sha256(body);
    if reference.contains(':') && reference != digest.as_str() {
        return Answer::error(400, "DIGEST_INVALID", "the manifest has another digest");
    }
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(body) else {
        return Answer::error(400, "MANIFEST_INVALID", "not JSON");
    };
    let content_type = request.header("content-type").unwrap_or_default().to_owned();
    if document["mediaType"].as_str().is_some_and(|media_type| media_type != content_type) {
        return Answer::error(400, "MANIFEST_INVALID", "its type is another");
    }
    let blobs = document["layers"].as_array().into_iter().flatten().chain(document.get("config"));
    let missing_blob = blobs
        .map(|blob| blob["digest"].as_str().unwrap_or_default())
        .find(|digest| !state.has(repository, digest));
    let entries = document["manifests"].as_array().into_iter().flatten();
    let missing_manifest = entries
        .map(|entry| entry["digest"].as_str().unwrap_or_default())
        .find(|digest| !state.manifests.contains_key(&format!("{repository}/{digest}")));
    if let Some(missing) = missing_blob.or(missing_manifest) {
        state.violations.push(format!("manifest {reference} names {missing}, which is not there"));
        return Answer::error(404, "MANIFEST_BLOB_UNKNOWN", "it names what is not there");
    }
    let manifest = Manifest { content_type, digest: digest.clone(), bytes: body.to_vec().into() };
    state.manifests.insert(format!("{repository}/{digest}"), manifest.clone());
    state.manifests.insert(format!("{repository}/{reference}"), manifest);
    let mut headers = vec![("docker-content-digest", digest.to_string())];
    if let (Some(_), Some(subject)) = (&state.referrers, document["subject"]["digest"].as_str()) {
        headers.push(("oci-subject", subject.to_owned()));
    }
    Answer::empty(201, headers)
}
