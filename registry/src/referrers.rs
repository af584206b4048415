//! Referrers: manifests that name another one as their subject, and so say something about it (OCI distribution specification 1.1,
//! "Listing Referrers" and "Pushing Manifests with Subject").
//!
//! ```text
//! list   GET referrers/<digest>?artifactType=… ──200──▶ a page of an index ──Link──▶ the next page …
//!          └─ not known there ──▶ GET manifests/sha256-<hex>: the fall-back tag, an index that the pushers keep
//! put    PUT manifests/<digest> ──OCI-Subject──▶ the registry lists it
//!          └─ no such header ──▶ the fall-back tag: get the index, add the entry, put it, look whether it stayed
//! ```
//!
//! A layout has no list: what its `index.json` names is looked into.
//!
//! Whoever may push may add a referrer: an image does not vouch for any. What the list says is bounded, and otherwise not believed;
//! the manifests themselves are proved by their digests when they are got.

use std::collections::BTreeMap;

use bytes::Bytes;
use oci_spec::image::Descriptor;
use reqwest::{StatusCode, Url, header};
use serde_json::{Value, json};

use crate::client::{Place, Repository};
use crate::digest::Digest;
use crate::draft::blocking;
use crate::endpoint::Endpoint;
use crate::error::{Context, Error, ErrorKind};
use crate::manifest::{
    BlobDescriptor, Document, DocumentError, MAXIMUM_DESCRIPTORS, MAXIMUM_DOCUMENT_SIZE, OCI_INDEX,
};
use crate::push;
use crate::reference::Target;
use crate::retry::{Outcome, Policy, Retrier};
use crate::transport::{Failure, Request, Transport};

/// Most pages of a list that are asked for.
const MAXIMUM_PAGES: usize = 16;
/// How often an entry is put into the index of a fall-back tag that others write, too.
const ATTEMPTS: usize = 4;

/// A manifest that refers to another one, and is to be put.
#[derive(Clone, Debug)]
pub struct NewReferrer<'a> {
    /// Media type of the manifest.
    pub media_type: &'a str,
    /// Its bytes. They name the subject themselves.
    pub bytes: Bytes,
    /// Digest of the manifest that it refers to.
    pub subject: &'a Digest,
    /// What kind of thing it is, by which it is found.
    pub artifact_type: &'a str,
    /// Annotations of the manifest, which a list repeats.
    pub annotations: BTreeMap<String, String>,
}

impl NewReferrer<'_> {
    fn entry(&self, digest: &Digest) -> Value {
        let mut entry = json!({
            "mediaType": self.media_type,
            "digest": digest.as_str(),
            "size": self.bytes.len() as u64,
            "artifactType": self.artifact_type,
        });
        if !self.annotations.is_empty() {
            entry["annotations"] = json!(self.annotations);
        }
        entry
    }
}

impl Repository {
    /// The manifests of that artifact type that refer to `subject`, in the order of the list, which is the registry's. Entries
    /// that cannot be used are left out, and so is what a list has beyond 1,024 entries or 16 pages.
    ///
    /// A registry that does not know referrers is asked for the fall-back tag. Fails with [`ErrorKind::BadDocument`] if what
    /// should be a list is none, and with all that a network can do.
    pub async fn referrers(
        &self,
        subject: &Digest,
        artifact_type: &str,
    ) -> Result<Vec<BlobDescriptor>, Error> {
        let listed = match &self.place {
            Place::Layout(layout) => {
                let (layout, subject) = (layout.clone(), subject.clone());
                let found = blocking(self, move || layout.referrers(&subject)).await?;
                of_type(found, artifact_type)
            }
            Place::Registry { hosts, client, .. } => {
                match first_listed(&client.transport, hosts, subject, artifact_type).await? {
                    Some(listed) => listed,
                    None => of_type(self.fallback(subject).await?, artifact_type),
                }
            }
        };
        Ok(listed.iter().filter_map(|entry| BlobDescriptor::try_from(entry).ok()).collect())
    }

    async fn fallback(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let target = fallback_tag(subject);
        match self.manifest(&target).await {
            Ok(found) => match found.document {
                Document::Index(index) => Ok(index.manifests().clone()),
                Document::Manifest(_) => Err(no_list(&self.context(&target))),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    /// Puts a manifest that refers to another one, so that it is found by [`referrers`](Self::referrers). The blobs that it names
    /// must be there.
    ///
    /// Fails with what a network can do, with [`ErrorKind::BadDocument`] if the fall-back tag names something else, and with
    /// [`ErrorKind::TooLarge`] if its index is full.
    pub async fn put_referrer(&self, referrer: &NewReferrer<'_>) -> Result<Digest, Error> {
        let digest = Digest::sha256_of(&referrer.bytes);
        let entry = referrer.entry(&digest);
        let (endpoint, client) = match &self.place {
            Place::Layout(layout) => {
                let (layout, bytes) = (layout.clone(), referrer.bytes.clone());
                return blocking(self, move || layout.put_referrer(entry, &bytes)).await;
            }
            Place::Registry { endpoint, client, .. } => (endpoint, client),
        };
        let target = Target::Digest(digest);
        let (media_type, bytes) = (referrer.media_type, referrer.bytes.clone());
        let stored = push::put_document(&client.transport, endpoint, &target, media_type, bytes).await?;
        if !stored.is_listed {
            self.enter_in_fallback(referrer.subject, &entry).await?;
        }
        Ok(stored.digest)
    }

    /// Two that write the index at the same time overwrite each other: who finds his entry gone writes again.
    async fn enter_in_fallback(&self, subject: &Digest, entry: &Value) -> Result<(), Error> {
        let target = fallback_tag(subject);
        let context = self.context(&target).written();
        for attempt in 0..=ATTEMPTS {
            let mut index = match self.manifest(&target).await {
                Ok(found) => {
                    if let Document::Manifest(_) = found.document {
                        return Err(no_list(&context));
                    }
                    serde_json::from_slice(&found.bytes)
                        .map_err(|error| unusable(&context, DocumentError::NotJson(error)))?
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
                }
                Err(error) => return Err(error),
            };
            let Some(entries) = index["manifests"].as_array_mut() else { return Err(no_list(&context)) };
            if entries.iter().any(|other| other["digest"] == entry["digest"]) {
                return Ok(());
            }
            if attempt == ATTEMPTS {
                break;
            }
            if entries.len() >= MAXIMUM_DESCRIPTORS {
                let message = format!("the list of referrers has {} entries already", entries.len());
                return Err(Error::new(ErrorKind::TooLarge, &context, message));
            }
            entries.push(entry.clone());
            let media_type = index["mediaType"].as_str().unwrap_or(OCI_INDEX).to_owned();
            self.put_document(&target, &media_type, index.to_string().into()).await?;
        }
        let message = "others replace the list of referrers at the same time, again and again";
        Err(Error::new(ErrorKind::Server, &context, message)
            .with_optional(None, Some("try again".to_owned())))
    }
}

/// The tag under which the pushers list the referrers of a manifest where the registry does not: algorithm and hex digits, each cut
/// off where a tag may be too short for them.
fn fallback_tag(subject: &Digest) -> Target {
    let hex = subject.hex();
    Target::Tag(format!("{}-{}", subject.algorithm().name(), hex.get(..64).unwrap_or(hex)))
}

fn of_type(entries: Vec<Descriptor>, artifact_type: &str) -> Vec<Descriptor> {
    let fits = |entry: &Descriptor| {
        entry.artifact_type().as_ref().is_some_and(|found| found.as_ref() == artifact_type)
    };
    entries.into_iter().filter(fits).take(MAXIMUM_DESCRIPTORS).collect()
}

fn no_list(context: &Context) -> Error {
    Error::new(
        ErrorKind::BadDocument,
        context,
        "the tag should name a list of referrers, and names something else",
    )
}

fn unusable(context: &Context, error: DocumentError) -> Error {
    Error::new(ErrorKind::BadDocument, context, format!("the list of referrers: {error}")).with_cause(error)
}

/// The list of the first host that keeps one; nothing if none does. Nothing proves a list, so only those are asked that may say what a tag
/// means.
async fn first_listed(
    transport: &Transport,
    hosts: &[Endpoint],
    subject: &Digest,
    artifact_type: &str,
) -> Result<Option<Vec<Descriptor>>, Error> {
    let mut failed = None;
    for host in hosts.iter().filter(|host| host.capabilities.resolve) {
        match listed(transport, host, subject, artifact_type).await {
            Ok(Some(listed)) => return Ok(Some(listed)),
            Ok(None) => {}
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(None), Err)
}

/// A host's own list; nothing if it keeps none.
async fn listed(
    transport: &Transport,
    endpoint: &Endpoint,
    subject: &Digest,
    artifact_type: &str,
) -> Result<Option<Vec<Descriptor>>, Error> {
    let context = endpoint.context(format!("referrers of {subject}"));
    let patience = transport.configuration.timeouts.operation;
    let all_pages = async {
        let failed = |failure: Failure| failure.into_error(&context);
        let mut url = endpoint.url(&format!("referrers/{subject}")).map_err(failed)?;
        url.query_pairs_mut().append_pair("artifactType", artifact_type);
        let mut entries = Vec::new();
        for page in 0..MAXIMUM_PAGES {
            let mut retrier = Retrier::new(Policy::INTERACTIVE, patience);
            let answer = loop {
                match page_of(transport, endpoint, &url).await {
                    Ok(answer) => break answer,
                    Err(failure) => {
                        retrier.wait_after(failure, &transport.counters).await.map_err(failed)?;
                    }
                }
            };
            let page_of_index = match answer {
                Answered::Page(page_of_index) => page_of_index,
                Answered::NotKnown if page == 0 => return Ok(None),
                Answered::NotKnown => {
                    return Err(failed(Failure::malformed("the next page of the list is not there")));
                }
            };
            let Page { bytes, is_filtered, next } = page_of_index;
            let (document, _) =
                Document::parse(&bytes, Some(OCI_INDEX)).map_err(|error| unusable(&context, error))?;
            let Document::Index(index) = document else { return Err(no_list(&context)) };
            entries.extend(match is_filtered {
                true => index.manifests().clone(),
                false => of_type(index.manifests().clone(), artifact_type),
            });
            match next {
                Some(next) if entries.len() < MAXIMUM_DESCRIPTORS => url = next,
                _ => return Ok(Some(entries)),
            }
        }
        tracing::warn!(%subject, "the list of referrers does not end; what came is used");
        Ok(Some(entries))
    };
    // The retriers bound each page; this bounds all of them.
    let listed = tokio::time::timeout(patience, all_pages).await;
    let mut listed = listed.unwrap_or_else(|_| {
        let message = format!("it did not arrive within {} s", patience.as_secs());
        Err(Error::new(ErrorKind::Timeout, &context, message))
    })?;
    if let Some(entries) = &mut listed {
        entries.truncate(MAXIMUM_DESCRIPTORS);
    }
    Ok(listed)
}

enum Answered {
    Page(Page),
    /// The registry does not know referrers.
    NotKnown,
}

struct Page {
    bytes: Vec<u8>,
    /// It holds entries of the artifact type only.
    is_filtered: bool,
    next: Option<Url>,
}

async fn page_of(transport: &Transport, endpoint: &Endpoint, url: &Url) -> Result<Answered, Failure> {
    let request = Request { accept: Some(OCI_INDEX), range: None };
    let answer = match transport.get(endpoint, url, request).await {
        Ok(answer) => answer,
        // As a registry of an earlier version answers, or a proxy that lets through what it knows.
        Err(failure) if matches!(failure.status, Some(400 | 404 | 405 | 501)) => {
            return Ok(Answered::NotKnown);
        }
        Err(failure) => return Err(failure),
    };
    let headers = answer.response.headers();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let content_type = text(header::CONTENT_TYPE.as_str()).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    if answer.response.status() != StatusCode::OK || !media_type.eq_ignore_ascii_case(OCI_INDEX) {
        // A page for people, as some front ends show instead of an error.
        return Ok(Answered::NotKnown);
    }
    let filters = text("oci-filters-applied").unwrap_or_default();
    let is_filtered = filters.split(',').any(|filter| filter.trim() == "artifactType");
    let links = headers.get_all(header::LINK).iter().filter_map(|value| value.to_str().ok());
    let next = links.flat_map(next_link).next().map(|link| next_page(&answer.url, &link)).transpose()?;
    let bytes = transport.body(answer.response, MAXIMUM_DOCUMENT_SIZE as usize).await?;
    Ok(Answered::Page(Page { bytes, is_filtered, next }))
}

/// The target of the link to the next page in a `Link` header (RFC 8288), if there is one.
fn next_link(header: &str) -> Option<String> {
    let mut rest = header;
    while let Some((_, after)) = rest.split_once('<') {
        let (target, after) = after.split_once('>')?;
        // The next link, if there is one, begins at the next `<`.
        let parameters = after.split('<').next().unwrap_or_default();
        let is_next = parameters.split([';', ',']).any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            let value = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel")
                && value.split_ascii_whitespace().any(|relation| relation.eq_ignore_ascii_case("next"))
        });
        if is_next {
            return Some(target.to_owned());
        }
        rest = after;
    }
    None
}

/// Where the next page is: on the host that sent this one, over the connection that it was sent over, whatever scheme and port a
/// proxy's back end believes in.
fn next_page(from: &Url, link: &str) -> Result<Url, Failure> {
    let malformed = |_| Failure::malformed("the link to the next page is malformed");
    let next = from.join(link).map_err(malformed)?;
    if next.host_str() != from.host_str() {
        let message = "the link to the next page leads to another host";
        return Err(Failure::new(ErrorKind::BadResponse, Outcome::Permanent, message));
    }
    let mut page = from.clone();
    page.set_path(next.path());
    page.set_query(next.query());
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_to_the_next_page_is_found_among_others() {
        for (header, expected) in [
            (r#"</v2/n/referrers/d?last=1>; rel="next""#, Some("/v2/n/referrers/d?last=1")),
            ("</a>;rel=next", Some("/a")),
            (r#"</a>; rel="prev", </b,c;d>; title="x"; rel="last next""#, Some("/b,c;d")),
            (r#"</a>; rel="prev""#, None),
            ("</a", None),
            ("/a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_link(header).as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn the_next_page_is_on_the_same_host() {
        let from = Url::parse("https://host:5000/v2/n/referrers/d?artifactType=t").unwrap();
        for (link, expected) in [
            ("/v2/n/referrers/d?last=1", Some("https://host:5000/v2/n/referrers/d?last=1")),
            ("?last=1", Some("https://host:5000/v2/n/referrers/d?last=1")),
            ("http://host/v2/n/x", Some("https://host:5000/v2/n/x")),
            ("https://other/v2/n/x", None),
            ("//other/x", None),
        ] {
            let page = next_page(&from, link).ok().map(String::from);
            assert_eq!(page.as_deref(), expected, "{link}");
        }
    }

    #[test]
    fn the_fall_back_tag_is_made_of_the_digest() {
        let digest = Digest::sha256_of(b"");
        assert_eq!(fallback_tag(&digest), Target::Tag(digest.as_str().replace(':', "-")));
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        assert_eq!(fallback_tag(&long), Target::Tag(format!("sha512-{}", "ab".repeat(32))));
    }
}
