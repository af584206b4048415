//! Listing what refers to a manifest (OCI distribution specification 1.1, "Listing Referrers").

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Answer, Content, Request, State};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `GET referrers/DIGEST?artifactType=…[&last=NUMBER]`.
pub(super) fn list(state: &State, repository: &str, query: &str, request: &Request) -> Answer {
    let Some(settings) = state.referrers else {
        return Answer::error(404, "NAME_UNKNOWN", "no such path");
    };
    if request.header("accept") != Some(INDEX) {
        return Answer::error(406, "UNSUPPORTED", "an index is not accepted");
    }
    let (subject, parameters) = query.split_once('?').unwrap_or((query, ""));
    let parameter = |wanted: &str| {
        let mut pairs = parameters.split('&').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(name, _)| *name == wanted)
            .map(|(_, value)| value.replace("%2F", "/").replace("%2B", "+"))
    };
    let wanted = parameter("artifactType").filter(|_| settings.filters);
    let prefix = format!("{repository}/sha256:");
    let entries: BTreeMap<&String, Value> = state
        .manifests
        .iter()
        .filter(|(name, _)| name.starts_with(&prefix))
        .filter_map(|(name, manifest)| {
            let document: Value = serde_json::from_slice(&manifest.bytes).ok()?;
            let artifact_type = document.get("artifactType").unwrap_or(&document["config"]["mediaType"]);
            let fits = wanted.as_ref().is_none_or(|wanted| artifact_type == wanted);
            (document["subject"]["digest"] == subject && fits).then(|| {
                let entry = json!({
                    "mediaType": manifest.content_type,
                    "digest": manifest.digest.as_str(),
                    "size": manifest.bytes.len(),
                    "artifactType": artifact_type,
                });
                (name, entry)
            })
        })
        .collect();
    let first = parameter("last").and_then(|last| last.parse().ok()).unwrap_or(0);
    let page: Vec<&Value> = entries.values().skip(first).take(settings.page).collect();
    let mut headers = vec![("content-type", INDEX.to_owned())];
    let next = first + page.len();
    if next < entries.len() {
        let artifact_type = parameter("artifactType").unwrap_or_default();
        let target = format!("/v2/{repository}/referrers/{subject}?artifactType={artifact_type}&last={next}");
        headers.push(("link", format!("<{target}>; rel=\"next\"")));
    }
    if settings.filters {
        headers.push(("oci-filters-applied", "artifactType".to_owned()));
    }
    let body = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": page }).to_string();
    Answer::new(200, headers, Content::Memory(body.into_bytes().into()))
}
