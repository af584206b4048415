//! What refers to a manifest is found in every kind of registry and in layouts, and what is put is found.

use std::collections::{BTreeMap, BTreeSet};

use peelfs_registry::{BlobDescriptor, Digest, ErrorKind, ImageReference, NewReferrer, Repository, Target};
use serde_json::{Value, json};

use super::client;
use crate::support::docker_registry::{DockerRegistry, Options};
use crate::support::registry::{FakeRegistry, Fault, Referrers};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const WANTED: &str = "application/vnd.example.wanted.v1+json";
const OTHER: &str = "application/vnd.example.other.v1+json";

/// Puts a manifest that refers to `subject`; `mark` makes it another one.
async fn put(repository: &Repository, subject: &Digest, artifact_type: &str, mark: &str) -> Digest {
    let scratch = tempfile::tempdir().unwrap();
    let mut config = repository.new_blob(scratch.path()).unwrap();
    std::io::Write::write_all(&mut config, b"{}").unwrap();
    let (config, _) = config.keep().await.unwrap();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": artifact_type, "digest": config.as_str(), "size": 2 },
        "subject": { "mediaType": MANIFEST, "digest": subject.as_str(), "size": 1 },
        "annotations": { "mark": mark },
    });
    let referrer = NewReferrer {
        media_type: MANIFEST,
        bytes: manifest.to_string().into(),
        subject,
        artifact_type,
        annotations: BTreeMap::from([("mark".to_owned(), mark.to_owned())]),
    };
    repository.put_referrer(&referrer).await.unwrap()
}

fn digests(found: &[BlobDescriptor]) -> BTreeSet<Digest> {
    found.iter().map(|entry| entry.digest.clone()).collect()
}

/// Puts referrers of two kinds and two subjects, and finds those of one.
async fn what_is_put_is_found(repository: &Repository) {
    let (subject, another) = (Digest::sha256_of(b"subject"), Digest::sha256_of(b"another"));
    assert_eq!(repository.referrers(&subject, WANTED).await.unwrap(), []);
    let mut expected = BTreeSet::new();
    for number in 0..5 {
        expected.insert(put(repository, &subject, WANTED, &number.to_string()).await);
    }
    put(repository, &subject, OTHER, "").await;
    put(repository, &another, WANTED, "").await;
    // Again, which changes nothing.
    put(repository, &subject, WANTED, "0").await;
    let found = repository.referrers(&subject, WANTED).await.unwrap();
    assert_eq!((digests(&found), found.len()), (expected, 5));
    for entry in &found {
        let document = repository.manifest(&Target::Digest(entry.digest.clone())).await.unwrap();
        assert_eq!((document.bytes.len() as u64, document.media_type.as_str()), (entry.size, MANIFEST));
    }
}

fn repository(reference: &ImageReference) -> Repository {
    client().repository(reference).unwrap()
}

#[tokio::test]
async fn a_registry_that_lists_referrers_is_asked_page_by_page() {
    for filters in [true, false] {
        for page in [1, 2, 100] {
            let registry = FakeRegistry::start();
            registry.take_pushes();
            registry.list_referrers(Referrers { page, filters });
            what_is_put_is_found(&repository(&registry.reference("some/name", "tag"))).await;
            let tag = Digest::sha256_of(b"subject").as_str().replace(':', "-");
            assert_eq!(registry.manifest("some/name", &tag), None, "the registry keeps the list itself");
        }
    }
}

#[tokio::test]
async fn a_registry_that_does_not_has_a_tag_for_them() {
    let registry = FakeRegistry::start();
    registry.take_pushes();
    what_is_put_is_found(&repository(&registry.reference("some/name", "tag"))).await;
    let tag = Digest::sha256_of(b"subject").as_str().replace(':', "-");
    let index: Value = serde_json::from_slice(&registry.manifest("some/name", &tag).unwrap()).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    let of_type = |kind: &str| entries.iter().filter(|entry| entry["artifactType"] == kind).count();
    assert_eq!((index["mediaType"].as_str(), of_type(WANTED), of_type(OTHER)), (Some(INDEX), 5, 1));
    assert!(entries.iter().all(|entry| entry["annotations"]["mark"].is_string()));
}

#[tokio::test]
async fn a_real_registry_has_them() {
    let registry = DockerRegistry::start(Options::default()).unwrap();
    let reference = format!("{}/some/name:tag", registry.url_host()).parse().unwrap();
    what_is_put_is_found(&repository(&reference)).await;
}

#[tokio::test]
async fn a_layout_is_looked_through() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layout");
    let reference: ImageReference = format!("oci:{}:tag", path.display()).parse().unwrap();
    let repository = repository(&reference);
    // A layout that is not there yet cannot be looked through.
    put(&repository, &Digest::sha256_of(b"third"), WANTED, "").await;
    what_is_put_is_found(&repository).await;

    // What refers to an image does not make two of one.
    let config = Digest::sha256_of(b"{}");
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "layers": [],
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.as_str(), "size": 2 },
    });
    let put = |text: String| async {
        repository.put_document(&Target::OnlyImage, MANIFEST, text.into()).await.unwrap()
    };
    put(manifest.to_string()).await;
    let digest = put(format!("{manifest} ")).await;
    assert_eq!(repository.manifest(&Target::OnlyImage).await.unwrap().digest, digest);
    assert_eq!(repository.referrers(&Digest::sha256_of(b"subject"), WANTED).await.unwrap().len(), 5);
}

#[tokio::test]
async fn entries_that_others_put_into_the_list_stay() {
    let registry = FakeRegistry::start();
    registry.take_pushes();
    let subject = Digest::sha256_of(b"subject");
    let tag = subject.as_str().replace(':', "-");
    let others = json!({
        "schemaVersion": 2, "mediaType": INDEX, "annotations": { "kept": "1" },
        "manifests": [{ "mediaType": MANIFEST, "digest": Digest::sha256_of(b"x").as_str(), "size": 1, "artifactType": OTHER }],
    });
    registry.put_manifest("name", &tag, INDEX, others.to_string().as_bytes());
    registry.put_manifest("name", "x", MANIFEST, b"{}");
    let repository = repository(&registry.reference("name", "tag"));
    // The entry of the others names a manifest that the registry must have.
    registry.put_raw_manifest("name", Digest::sha256_of(b"x").as_str(), MANIFEST, b"{}");
    let digest = put(&repository, &subject, WANTED, "").await;
    let list: Value = serde_json::from_slice(&registry.manifest("name", &tag).unwrap()).unwrap();
    assert_eq!(list["annotations"]["kept"], "1");
    assert_eq!(list["manifests"][0], others["manifests"][0]);
    assert_eq!(list["manifests"][1]["digest"], digest.as_str());
}

#[tokio::test]
async fn a_registry_that_knows_no_referrers_may_say_so_in_many_ways() {
    let subject = Digest::sha256_of(b"subject");
    let tag = subject.as_str().replace(':', "-");
    let entry = json!({ "mediaType": MANIFEST, "digest": Digest::sha256_of(b"x").as_str(), "size": 1, "artifactType": WANTED });
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string();
    for fault in [
        Fault::Status(400),
        Fault::Status(404),
        Fault::Status(405),
        Fault::Status(501),
        Fault::ContentType("text/html".to_owned()),
    ] {
        let registry = FakeRegistry::start();
        registry.list_referrers(Referrers { page: 10, filters: true });
        registry.put_manifest("name", &tag, INDEX, list.as_bytes());
        registry.set_fault("/referrers/", fault.clone());
        let found = repository(&registry.reference("name", "tag")).referrers(&subject, WANTED).await.unwrap();
        assert_eq!(digests(&found), BTreeSet::from([Digest::sha256_of(b"x")]), "{fault:?}");
    }
}

#[tokio::test]
async fn a_list_that_is_none_or_never_ends_is_an_error_or_an_end() {
    let subject = Digest::sha256_of(b"subject");
    let tag = subject.as_str().replace(':', "-");
    let registry = FakeRegistry::start();
    registry.put_manifest("name", &tag, MANIFEST, format!(r#"{{"schemaVersion":2,"layers":[],"config":{{"mediaType":"{OTHER}","digest":"{subject}","size":1}}}}"#).as_bytes());
    let here = repository(&registry.reference("name", "tag"));
    let error = here.referrers(&subject, WANTED).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadDocument, "{error}");

    registry.list_referrers(Referrers { page: 10, filters: true });
    for (fault, kind) in [
        (Fault::Status(403), ErrorKind::Unauthorized),
        (Fault::Header("link", "<http://elsewhere.example/>; rel=next".to_owned()), ErrorKind::BadResponse),
        (Fault::WrongLength(5 << 20), ErrorKind::TooLarge),
    ] {
        registry.set_fault("/referrers/", fault.clone());
        let error = here.referrers(&subject, WANTED).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{fault:?}: {error}");
        assert!(error.to_string().contains("referrers of sha256:"), "{error}");
        registry.clear_faults();
    }
    // Each page says that there is another.
    registry.reset_counters();
    let again = format!("</v2/name/referrers/{subject}?again>; rel=next");
    registry.set_fault("/referrers/", Fault::Header("link", again));
    assert_eq!(repository(&registry.reference("name", "tag")).referrers(&subject, WANTED).await.unwrap(), []);
    assert_eq!(registry.requests().len(), 16);
}
