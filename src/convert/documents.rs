//! The documents of a converted image: those of the source with other layers in them. What we do not know in them stays.
//!
//! Documents and media types are OCI's, whatever the source's were. Annotations that say where a format's index of a layer is, or
//! that name an index made for the image as it was, are dropped.

use std::collections::BTreeMap;

use peelfs_registry::{Digest, FetchedDocument};
use serde_json::{Map, Value, json};

use super::{ConvertError, ConvertedLayer};
use crate::layer::compression::Compression;

/// Media type of a manifest.
pub(super) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of an index.
pub(super) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of a config.
pub(super) const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Beginnings of the keys of annotations that are true of the source only.
const STALE: [&str; 5] = [
    "containerd.io/snapshot/stargz/",
    "io.containers.estargz.",
    "io.containers.zstd-chunked.",
    "io.github.containers.zstd-chunked.",
    "com.amazon.soci.",
];

/// A document that was written.
#[derive(Clone, Debug)]
pub(super) struct NewDocument {
    pub digest: Digest,
    pub size: u64,
    pub media_type: &'static str,
}

/// The config with the diff IDs of the new layers: as it was, to the byte, if they are those of the old.
pub(super) fn config(
    digest: &Digest,
    bytes: &[u8],
    layers: &[&ConvertedLayer],
) -> Result<Vec<u8>, ConvertError> {
    let mut config = object(digest, bytes)?;
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.written.diff_id.as_str()).collect();
    if config.get("rootfs").and_then(|rootfs| rootfs.get("diff_ids")) == Some(&json!(diff_ids)) {
        return Ok(bytes.to_vec());
    }
    config.insert("rootfs".to_owned(), json!({"type": "layers", "diff_ids": diff_ids}));
    written(digest, config)
}

/// The manifest with the new layers and their config.
pub(super) fn manifest(
    source: &FetchedDocument,
    config: &Digest,
    config_size: u64,
    layers: &[&ConvertedLayer],
) -> Result<Vec<u8>, ConvertError> {
    let mut manifest = object(&source.digest, &source.bytes)?;
    drop_stale(&mut manifest);
    manifest.insert("mediaType".to_owned(), MANIFEST.into());
    manifest.insert(
        "config".to_owned(),
        json!({"mediaType": CONFIG, "digest": config.as_str(), "size": config_size}),
    );
    let descriptors = manifest.get_mut("layers").and_then(Value::as_array_mut);
    let descriptors = descriptors.filter(|descriptors| descriptors.len() == layers.len());
    let descriptors = descriptors.ok_or_else(|| unusable(&source.digest, "its layers changed"))?;
    for (descriptor, layer) in descriptors.iter_mut().zip(layers) {
        let descriptor =
            descriptor.as_object_mut().ok_or_else(|| unusable(&source.digest, "a layer is no object"))?;
        drop_stale(descriptor);
        // Where the blob as it was can be got.
        descriptor.remove("urls");
        descriptor.remove("data");
        let media_type =
            layer_media_type(descriptor.get("mediaType").and_then(Value::as_str), layer.written.compression);
        descriptor.insert("mediaType".to_owned(), media_type.into());
        descriptor.insert("digest".to_owned(), layer.digest.as_str().into());
        descriptor.insert("size".to_owned(), layer.size.into());
        if !layer.written.annotations.is_empty() {
            let annotations = descriptor.entry("annotations").or_insert_with(|| json!({}));
            for (key, value) in &layer.written.annotations {
                annotations[key] = value.as_str().into();
            }
        }
    }
    written(&source.digest, manifest)
}

/// The index with those of its entries that were written, by the digests that they had.
pub(super) fn index(
    source: &FetchedDocument,
    entries: &BTreeMap<String, NewDocument>,
) -> Result<Vec<u8>, ConvertError> {
    let mut index = object(&source.digest, &source.bytes)?;
    drop_stale(&mut index);
    index.insert("mediaType".to_owned(), INDEX.into());
    let descriptors = index.get_mut("manifests").and_then(Value::as_array_mut);
    let descriptors = descriptors.ok_or_else(|| unusable(&source.digest, "its manifests changed"))?;
    descriptors.retain_mut(|descriptor| {
        let new = descriptor["digest"].as_str().and_then(|digest| entries.get(digest));
        let (Some(new), Some(descriptor)) = (new, descriptor.as_object_mut()) else { return false };
        drop_stale(descriptor);
        descriptor.remove("data");
        descriptor.insert("mediaType".to_owned(), new.media_type.into());
        descriptor.insert("digest".to_owned(), new.digest.as_str().into());
        descriptor.insert("size".to_owned(), new.size.into());
        true
    });
    written(&source.digest, index)
}

/// A layer that may not be distributed stays one.
pub(super) fn layer_media_type(source: Option<&str>, compression: Compression) -> String {
    let base = match source {
        Some(source) if source.contains("nondistributable") || source.contains(".foreign.") => {
            "application/vnd.oci.image.layer.nondistributable.v1.tar"
        }
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    let suffix = match compression {
        Compression::None => "",
        Compression::Gzip => "+gzip",
        Compression::Zstd => "+zstd",
    };
    format!("{base}{suffix}")
}

/// Drops annotations that are not true of what is written.
pub(super) fn drop_stale(object: &mut Map<String, Value>) {
    let Some(Value::Object(annotations)) = object.get_mut("annotations") else {
        // `null` is as good as nothing.
        object.remove("annotations");
        return;
    };
    annotations.retain(|key, _| !STALE.iter().any(|stale| key.starts_with(stale)));
    if annotations.is_empty() {
        object.remove("annotations");
    }
}

/// A document, whatever is in it.
pub(super) fn object(digest: &Digest, bytes: &[u8]) -> Result<Map<String, Value>, ConvertError> {
    serde_json::from_slice(bytes).map_err(|error| unusable(digest, &error.to_string()))
}

/// The bytes of a document that is made of the one with that digest.
pub(super) fn written(digest: &Digest, object: Map<String, Value>) -> Result<Vec<u8>, ConvertError> {
    serde_json::to_vec(&object).map_err(|error| unusable(digest, &error.to_string()))
}

/// A document that cannot be made anew.
pub(super) fn unusable(digest: &Digest, reason: &str) -> ConvertError {
    ConvertError::Document { digest: digest.clone(), reason: reason.to_owned() }
}
