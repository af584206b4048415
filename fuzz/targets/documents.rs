//! Manifests, indexes, SOCI indexes and configs (`registry/src/manifest.rs`, `platform.rs`, `image/mod.rs`, `layer/soci/index.rs`): what
//! is accepted can be read in one way.
//!
//! Input: media type, manifest and config, with NULs between them.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use peelfs::image::Image;
use peelfs::layer::soci::index::SociIndex;
use peelfs_fuzz::seeds;
use peelfs_registry::manifest::{MAXIMUM_DESCRIPTORS, is_index_media_type, is_manifest_media_type};
use peelfs_registry::platform::{candidates, offered_platforms};
use peelfs_registry::{BlobDescriptor, Digest, Document, Platform};
use serde_json::Value;

fuzz_target!(init: seeds::plant(seeds::documents), |bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let media_type = std::str::from_utf8(parts.next().unwrap_or_default()).ok().filter(|text| !text.is_empty());
    let (manifest, config) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    if let Ok((document, media_type)) = Document::parse(manifest, media_type) {
        check_document(&document, &media_type, manifest);
    }
    let digest = Digest::sha256_of(manifest);
    if let Ok(image) = Image::parse(&digest, manifest, config) {
        assert!(image.layers.len() <= MAXIMUM_DESCRIPTORS);
        assert_eq!(image.layers.len(), image.configuration.rootfs().diff_ids().len());
        let total = image.blob_bytes();
        assert!(image.layers.iter().all(|layer| layer.descriptor.size <= total));
    }
    if let Ok(index) = SociIndex::parse(&digest, manifest) {
        let again = SociIndex::parse(&digest, &index.write()).expect("what was just written");
        assert_eq!(again.ztocs, index.ztocs);
        assert!(index.ztocs.iter().all(|ztoc| index.ztoc_of(&ztoc.layer_digest).is_some()));
    }
});

fn check_document(document: &Document, media_type: &str, bytes: &[u8]) {
    // What is ignored may hold half a surrogate pair, which a value cannot.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let object = value.as_object().expect("an object");
    let lower: HashSet<String> = object.keys().map(|key| key.to_ascii_lowercase()).collect();
    assert!(lower.contains("schemaversion") && object.contains_key("schemaVersion"));
    check_keys(&value);
    for field in ["config", "layers", "manifests", "subject"] {
        let below = value.get(field).unwrap_or(&Value::Null);
        let descriptors = below.as_array().map_or(std::slice::from_ref(below), Vec::as_slice);
        for descriptor in descriptors {
            check_keys(descriptor);
            check_keys(descriptor.get("platform").unwrap_or(&Value::Null));
        }
    }
    let descriptors = match document {
        Document::Index(index) => {
            assert!(is_index_media_type(media_type));
            assert!(!lower.contains("config") && !lower.contains("layers"), "an index and a manifest");
            for platform in ["linux/amd64", "linux/arm/v7", "windows/amd64"] {
                let platform: Platform = platform.parse().expect("a platform");
                let chosen = candidates(index.manifests(), &platform);
                assert!(chosen.len() <= index.manifests().len());
            }
            assert!(offered_platforms(index.manifests()).len() <= index.manifests().len());
            index.manifests().clone()
        }
        Document::Manifest(manifest) => {
            assert!(is_manifest_media_type(media_type));
            assert!(!lower.contains("manifests"), "an index and a manifest");
            manifest.layers().iter().chain([manifest.config()]).cloned().collect()
        }
    };
    assert!(descriptors.len() <= MAXIMUM_DESCRIPTORS + 1);
    for descriptor in &descriptors {
        if let Ok(blob) = BlobDescriptor::try_from(descriptor) {
            assert!(i64::try_from(blob.size).is_ok());
            assert_eq!(blob.digest.as_str(), descriptor.digest().to_string());
        }
    }
}

/// No field has two spellings that a reader which ignores case takes for one.
fn check_keys(value: &Value) {
    let Some(object) = value.as_object() else { return };
    let folded = |key: &String| key.to_lowercase().replace('\u{17f}', "s");
    let of_fields: Vec<String> = object.keys().map(folded).filter(|key| FIELDS.contains(&&key[..])).collect();
    let different: HashSet<&String> = of_fields.iter().collect();
    assert_eq!(of_fields.len(), different.len(), "{:?}", object.keys());
}

/// In lower case.
const FIELDS: [&str; 10] = [
    "schemaversion",
    "mediatype",
    "config",
    "layers",
    "manifests",
    "digest",
    "size",
    "platform",
    "os",
    "architecture",
];
