//! From a tag to the manifest for a platform, every document proved.

use peelfs_registry::{Digest, Error, ErrorKind, ImageReference, Resolved, resolve};
use serde_json::{Value, json};

use super::client;
use crate::support::registry::{FakeRegistry, Fault};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

async fn resolved(reference: &ImageReference, platform: &str) -> Result<Resolved, Error> {
    let repository = client().repository(reference)?;
    resolve(&repository, &reference.target(), &platform.parse().unwrap()).await
}

fn manifest_bytes(registry: &FakeRegistry, media_type: &str, mark: &str) -> Vec<u8> {
    let config =
        registry.descriptor("application/vnd.oci.image.config.v1+json", &registry.put_blob(b"{}".to_vec()));
    json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [],
        "annotations": {"mark": mark},
    })
    .to_string()
    .into_bytes()
}

/// Stores a document and gives its descriptor.
fn stored(registry: &FakeRegistry, media_type: &str, bytes: &[u8], platform: Option<(&str, &str)>) -> Value {
    let digest = registry.put_manifest("name", "by-digest", media_type, bytes);
    let mut descriptor =
        json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() });
    if let Some((os, architecture)) = platform {
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
    }
    descriptor
}

fn index(media_type: &str, entries: &[Value]) -> Vec<u8> {
    json!({ "schemaVersion": 2, "mediaType": media_type, "manifests": entries }).to_string().into_bytes()
}

#[tokio::test]
async fn manifests_and_lists_of_oci_and_docker_lead_to_the_platforms_manifest() {
    for (list_type, manifest_type) in [(INDEX, MANIFEST), (DOCKER_LIST, DOCKER_MANIFEST)] {
        let registry = FakeRegistry::start();
        let arm = manifest_bytes(&registry, manifest_type, "arm");
        let amd = manifest_bytes(&registry, manifest_type, "amd");
        let entries = [
            stored(&registry, manifest_type, &arm, Some(("linux", "arm64"))),
            stored(&registry, manifest_type, &amd, Some(("linux", "amd64"))),
        ];
        let list = index(list_type, &entries);
        let list_digest = registry.put_manifest("name", "tag", list_type, &list);
        let reference = registry.reference("name", "tag");
        for (platform, expected) in [("linux/amd64", &amd), ("linux/arm64/v8", &arm)] {
            let resolved = resolved(&reference, platform).await.unwrap();
            assert_eq!(resolved.manifest_document().bytes, expected);
            assert_eq!(*resolved.manifest_digest(), Digest::sha256_of(expected));
            assert_eq!(*resolved.target_digest(), list_digest);
            assert_eq!(resolved.index().unwrap().bytes, list);
        }
        let error = resolved(&reference, "linux/s390x").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoMatchingPlatform);
        assert!(error.to_string().contains("linux/amd64, linux/arm64"), "{error}");
        assert_eq!(registry.counters().manifests, 5, "one request for each document, and no more");
    }
}

#[tokio::test]
async fn indexes_are_followed_two_deep_and_no_deeper() {
    let registry = FakeRegistry::start();
    let manifest = manifest_bytes(&registry, MANIFEST, "deep");
    let manifest = stored(&registry, MANIFEST, &manifest, Some(("linux", "amd64")));
    let inner = stored(&registry, INDEX, &index(INDEX, &[manifest]), None);
    let middle = index(INDEX, &[inner]);
    registry.put_manifest("name", "two", INDEX, &middle);
    let middle = stored(&registry, INDEX, &middle, None);
    registry.put_manifest("name", "three", INDEX, &index(INDEX, &[middle]));

    assert_eq!(resolved(&registry.reference("name", "two"), "linux/amd64").await.unwrap().documents.len(), 3);
    let error = resolved(&registry.reference("name", "three"), "linux/amd64").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadDocument, "{error}");
}

#[tokio::test]
async fn a_document_that_is_not_what_was_announced_is_refused() {
    let registry = FakeRegistry::start();
    let manifest = manifest_bytes(&registry, MANIFEST, "m");
    let descriptor = stored(&registry, MANIFEST, &manifest, Some(("linux", "amd64")));
    let changed = |field: &str, value: Value| {
        let mut descriptor = descriptor.clone();
        descriptor[field] = value;
        index(INDEX, &[descriptor])
    };
    let other_size = changed("size", json!(manifest.len() + 1));
    let other_type = changed("mediaType", json!(DOCKER_MANIFEST));
    let mut both: Value = serde_json::from_slice(&manifest).unwrap();
    both["manifests"] = json!([]);
    let both = both.to_string().into_bytes();
    for (what, content_type, bytes) in [
        ("size differs", INDEX, other_size.as_slice()),
        ("media type differs", INDEX, &other_type),
        ("index and manifest at once", MANIFEST, &both),
        ("announced as an index", INDEX, &manifest),
        ("schema 1", "application/vnd.docker.distribution.manifest.v1+prettyjws", br#"{"schemaVersion":1}"#),
        ("not JSON", MANIFEST, b"<html>"),
    ] {
        registry.put_raw_manifest("name", "tag", content_type, bytes);
        let error = resolved(&registry.reference("name", "tag"), "linux/amd64").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadDocument, "{what}: {error:?}");
        assert!(error.to_string().contains("name"), "{what}: {error}");
    }
}

#[tokio::test]
async fn a_document_with_another_digest_is_never_used() {
    let registry = FakeRegistry::start();
    let digest = registry.put_image("name", "tag", &[]);
    for (target, fault) in [
        (digest.to_string(), Fault::WrongBytes),
        ("tag".to_owned(), Fault::WrongBytes),
        ("tag".to_owned(), Fault::WrongDigestHeader),
        (digest.to_string(), Fault::WrongDigestHeader),
    ] {
        registry.set_fault("manifests/", fault.clone());
        let error = resolved(&registry.reference("name", &target), "linux/amd64").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DigestMismatch, "{target}, {fault:?}: {error:?}");
        registry.clear_faults();
        // Damage on the way is not for ever.
        registry.set_fault_times("manifests/", fault, 1);
        resolved(&registry.reference("name", &target), "linux/amd64").await.unwrap();
    }
}

#[tokio::test]
async fn an_endless_manifest_is_refused_before_it_fills_memory() {
    let registry = FakeRegistry::start();
    registry.put_raw_manifest("name", "tag", MANIFEST, &vec![b' '; 5 << 20]);
    let reference = registry.reference("name", "tag");
    assert_eq!(resolved(&reference, "linux/amd64").await.unwrap_err().kind(), ErrorKind::TooLarge);
    registry.set_fault("manifests/", Fault::LongBody(0));
    assert_eq!(resolved(&reference, "linux/amd64").await.unwrap_err().kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_config_is_proved_and_bounded() {
    let registry = FakeRegistry::start();
    registry.put_image("name", "tag", &[]);
    let reference = registry.reference("name", "tag");
    let resolved = resolved(&reference, "linux/amd64").await.unwrap();
    let repository = client().repository(&reference).unwrap();
    let size = resolved.config.size;
    assert_eq!(repository.small_blob(&resolved.config, size).await.unwrap().len() as u64, size);
    registry.reset_counters();
    let too_large = repository.small_blob(&resolved.config, size - 1).await.unwrap_err();
    assert_eq!(too_large.kind(), ErrorKind::TooLarge);
    assert_eq!(registry.counters().blobs, 0, "what is too large is not asked for");
    registry.put_blob_as(&resolved.config.digest, vec![b' '; size as usize]);
    let other = repository.small_blob(&resolved.config, size).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::DigestMismatch);
}
