//! Config and manifest of the new image: those of the image below, with a layer more. What we do not know in them stays.
//!
//! Documents and media types are OCI's, whatever they were: Docker's know no zstd. What a manifest says of itself alone is dropped: which
//! SOCI index was made for it, and what it refers to.

use peelfs_registry::Digest;
use serde_json::{Map, Value, json};

use super::error::CommitError;
use crate::layer::compression::Compression;
use crate::layer::entry::Timestamp;
use crate::layer::write::WrittenLayer;
use crate::layer::write::time::rfc3339;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// Docker's names of layers, and OCI's. What follows says how they are compressed.
const LAYER_TYPES: [(&str, &str); 2] = [
    ("application/vnd.docker.image.rootfs.diff.tar", LAYER),
    (
        "application/vnd.docker.image.rootfs.foreign.diff.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
    ),
];

/// The layer that is added.
pub(super) struct NewLayer<'a> {
    pub digest: &'a Digest,
    pub size: u64,
    pub written: &'a WrittenLayer,
}

/// The config with the diff ID of one layer more, and a word on it in its history.
pub(super) fn config(
    parent: &[u8],
    diff_id: &Digest,
    created: i64,
    message: Option<&str>,
) -> Result<Vec<u8>, CommitError> {
    let unusable = |reason: &str| CommitError::Document { document: "config", reason: reason.to_owned() };
    let mut config = object("config", parent)?;
    let created = time(created);
    let diff_ids = config.get_mut("rootfs").and_then(|rootfs| rootfs.get_mut("diff_ids"));
    let diff_ids = diff_ids.and_then(Value::as_array_mut).ok_or_else(|| unusable("it lists no layers"))?;
    let layers_below = diff_ids.len();
    diff_ids.push(diff_id.as_str().into());
    let history = config.entry("history").or_insert_with(|| json!([]));
    if history.is_null() {
        *history = json!([]);
    }
    let history = history.as_array_mut().ok_or_else(|| unusable("its history is no list"))?;
    // Readers count: one entry for each layer.
    let told = history.iter().filter(|entry| entry["empty_layer"] != json!(true)).count();
    history.extend((told..layers_below).map(|_| json!({})));
    let mut entry = json!({"created": created, "created_by": "peel commit"});
    if let Some(message) = message {
        entry["comment"] = message.into();
    }
    history.push(entry);
    config.insert("created".to_owned(), created.into());
    bytes("config", config)
}

/// The manifest with that config, and the layer above the others.
pub(super) fn manifest(
    parent: &[u8],
    config: &Digest,
    config_size: u64,
    layer: &NewLayer<'_>,
) -> Result<Vec<u8>, CommitError> {
    let mut manifest = object("manifest", parent)?;
    manifest.insert("mediaType".to_owned(), MANIFEST.into());
    manifest.insert(
        "config".to_owned(),
        json!({"mediaType": CONFIG, "digest": config.as_str(), "size": config_size}),
    );
    manifest.remove("subject");
    if let Some(Value::Object(annotations)) = manifest.get_mut("annotations") {
        annotations.retain(|key, _| !key.starts_with("com.amazon.soci."));
        if annotations.is_empty() {
            manifest.remove("annotations");
        }
    }
    let layers = manifest.get_mut("layers").and_then(Value::as_array_mut);
    let layers = layers.ok_or_else(|| CommitError::Document {
        document: "manifest",
        reason: "it lists no layers".to_owned(),
    })?;
    for below in layers.iter_mut() {
        if let Some(media_type) = below["mediaType"].as_str().and_then(oci_layer_type) {
            below["mediaType"] = media_type.into();
        }
    }
    let suffix = match layer.written.compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    let mut descriptor = json!({
        "mediaType": format!("{LAYER}{suffix}"), "digest": layer.digest.as_str(), "size": layer.size,
    });
    if !layer.written.annotations.is_empty() {
        descriptor["annotations"] = json!(layer.written.annotations);
    }
    layers.push(descriptor);
    bytes("manifest", manifest)
}

/// The name that OCI has for a layer of Docker's; nothing for all others.
pub(crate) fn oci_layer_type(media_type: &str) -> Option<String> {
    LAYER_TYPES.iter().find_map(|(docker, oci)| match media_type.strip_prefix(docker)? {
        "" => Some((*oci).to_owned()),
        compression => Some(format!("{oci}+{}", compression.strip_prefix('.')?)),
    })
}

fn time(seconds: i64) -> String {
    match seconds {
        // For which a table of contents has no word.
        0 => "1970-01-01T00:00:00Z".to_owned(),
        seconds => rfc3339(Timestamp { seconds, nanoseconds: 0 }),
    }
}

fn object(document: &'static str, bytes: &[u8]) -> Result<Map<String, Value>, CommitError> {
    serde_json::from_slice(bytes)
        .map_err(|error| CommitError::Document { document, reason: error.to_string() })
}

fn bytes(document: &'static str, object: Map<String, Value>) -> Result<Vec<u8>, CommitError> {
    serde_json::to_vec(&object).map_err(|error| CommitError::Document { document, reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn config_of(parent: Value, created: i64, message: Option<&str>) -> Value {
        let bytes = config(parent.to_string().as_bytes(), &Digest::sha256_of(b"new"), created, message);
        serde_json::from_slice(&bytes.unwrap()).unwrap()
    }

    #[test]
    fn a_config_is_extended_and_what_is_unknown_in_it_stays() {
        let parent = json!({
            "os": "linux", "x-unknown": {"a": [1]}, "created": "2001-01-01T00:00:00Z",
            "rootfs": {"type": "layers", "diff_ids": ["sha256:old"]},
            "history": [{"created_by": "base"}, {"created_by": "ENV", "empty_layer": true}],
        });
        let made = config_of(parent, 1_795_251_095, Some("why"));
        assert_eq!(made["x-unknown"], json!({"a": [1]}));
        assert_eq!(made["created"], "2026-11-21T08:51:35Z");
        let new = Digest::sha256_of(b"new");
        assert_eq!(made["rootfs"]["diff_ids"], json!(["sha256:old", new.as_str()]));
        assert_eq!(
            made["history"],
            json!([
                {"created_by": "base"}, {"created_by": "ENV", "empty_layer": true},
                {"created": "2026-11-21T08:51:35Z", "created_by": "peel commit", "comment": "why"},
            ])
        );
    }

    #[test]
    fn a_history_has_one_entry_for_each_layer() {
        for history in [Value::Null, json!([])] {
            let parent = json!({"rootfs": {"diff_ids": ["a", "b"]}, "history": history});
            let made = config_of(parent, 0, None);
            let word = json!({"created": "1970-01-01T00:00:00Z", "created_by": "peel commit"});
            assert_eq!(made["history"], json!([{}, {}, word]));
        }
        for parent in ["[]", "{}", r#"{"rootfs":{"diff_ids":[]},"history":7}"#] {
            assert!(config(parent.as_bytes(), &Digest::sha256_of(b""), 0, None).is_err(), "{parent}");
        }
    }

    #[test]
    fn a_manifest_of_docker_becomes_one_of_oci_and_loses_what_is_true_of_it_alone() {
        let parent = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "subject": {}, "config": {"digest": "sha256:old"},
            "annotations": {"com.amazon.soci.index-digest": "sha256:x"},
            "layers": [
                {"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": "a", "size": 1,
                 "annotations": {"kept": "yes"}},
                {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar", "digest": "b", "size": 2},
                {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": "c", "size": 3},
            ],
        });
        let new = Digest::sha256_of(b"new");
        let written = WrittenLayer {
            compression: Compression::Zstd,
            annotations: BTreeMap::from([("toc".to_owned(), "here".to_owned())]),
            diff_id: new.clone(),
            uncompressed_size: 9,
            toc_digest: None,
            external_toc: None,
            missed: vec![],
            not_lazy: None,
        };
        let layer = NewLayer { digest: &new, size: 8, written: &written };
        let made = manifest(parent.to_string().as_bytes(), &new, 7, &layer).unwrap();
        let made: Value = serde_json::from_slice(&made).unwrap();
        assert_eq!(
            made,
            json!({
                "schemaVersion": 2, "mediaType": MANIFEST,
                "config": {"mediaType": CONFIG, "digest": new.as_str(), "size": 7},
                "layers": [
                    {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": "a", "size": 1,
                     "annotations": {"kept": "yes"}},
                    {"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": "b", "size": 2},
                    {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": "c", "size": 3},
                    {"mediaType": "application/vnd.oci.image.layer.v1.tar+zstd", "digest": new.as_str(), "size": 8,
                     "annotations": {"toc": "here"}},
                ],
            })
        );
    }
}
