//! Taking blobs and manifests (OCI distribution specification 1.1, "Push"), in the one way that our client uses: a blob in one PUT.

use super::super::sha256;
use super::{Answer, Content, Manifest, Request, State};

/// `POST uploads/` and `PUT uploads/NUMBER?digest=…`.
pub(super) fn blob(
    state: &mut State,
    repository: &str,
    rest: &str,
    request: &Request,
    body: &[u8],
) -> Answer {
    if request.method == "POST" && rest == "uploads/" {
        state.next_upload += 1;
        let location = format!("/v2/{repository}/blobs/uploads/{}?state=x%3Dy", state.next_upload);
        return Answer::empty(202, vec![("location", location)]);
    }
    let upload = rest.strip_prefix("uploads/").and_then(|rest| rest.split_once("?state=x%3Dy&digest="));
    let Some((number, digest)) = upload.filter(|_| request.method == "PUT") else {
        return Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
    };
    if number.parse::<usize>().is_ok_and(|number| number == 0 || number > state.next_upload) {
        return Answer::error(404, "BLOB_UPLOAD_UNKNOWN", "no such upload");
    }
    let actual = sha256(body);
    if digest.replace("%3A", ":") != actual.as_str() {
        return Answer::error(400, "DIGEST_INVALID", "the content has another digest");
    }
    state.blobs.insert(actual.to_string(), Content::Memory(body.to_vec().into()));
    Answer::empty(201, vec![("docker-content-digest", actual.to_string())])
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
        .find(|digest| !state.blobs.contains_key(*digest));
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
