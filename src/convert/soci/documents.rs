//! The documents of an image with a SOCI index (v2): those that it had, with what leads to the index. What we do not know in them stays.
//!
//! Documents and media types are OCI's, whatever the source's were; blobs stay as they are.

use std::collections::BTreeMap;

use oci_spec::image::Descriptor;
use peelfs_registry::{Digest, FetchedDocument};
use serde_json::{Value, json};

use super::super::ConvertError;
use super::super::documents::{CONFIG, INDEX, MANIFEST, NewDocument, object, unusable, written};
use crate::layer::soci::index::{IMAGE_MANIFEST_DIGEST_ANNOTATION, INDEX_DIGEST_ANNOTATION, IndexVersion};

/// What the annotations of SOCI begin with.
const SOCI: &str = "com.amazon.soci.";

/// A SOCI index that was put.
#[derive(Clone, Debug)]
pub(super) struct PutIndex {
    pub digest: Digest,
    pub size: u64,
}

/// An image that was put: its manifest, its SOCI index if it has one, and its platform as an index states it.
#[derive(Clone, Debug)]
pub(super) struct PutImage {
    pub manifest: NewDocument,
    pub index: Option<PutIndex>,
    pub platform: Value,
}

/// The OCI media type of a layer of that media type.
pub(super) fn oci_layer_type(media_type: &str) -> String {
    let bases = [
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
        ),
        ("application/vnd.docker.image.rootfs.diff.tar", "application/vnd.oci.image.layer.v1.tar"),
    ];
    for (docker, oci) in bases {
        if let Some(suffix) = media_type.strip_prefix(docker) {
            return format!("{oci}{}", suffix.replacen('.', "+", 1));
        }
    }
    media_type.to_owned()
}

/// The manifest that names its SOCI index, or, without one, no longer any.
pub(super) fn manifest(source: &FetchedDocument, index: Option<&Digest>) -> Result<Vec<u8>, ConvertError> {
    let mut manifest = object(&source.digest, &source.bytes)?;
    manifest.insert("mediaType".to_owned(), MANIFEST.into());
    let config = manifest.get_mut("config").and_then(Value::as_object_mut);
    let config = config.ok_or_else(|| unusable(&source.digest, "its config changed"))?;
    config.insert("mediaType".to_owned(), CONFIG.into());
    let layers = manifest.get_mut("layers").and_then(Value::as_array_mut);
    for layer in layers.into_iter().flatten().filter_map(Value::as_object_mut) {
        let media_type = layer.get("mediaType").and_then(Value::as_str).map(oci_layer_type);
        layer.insert("mediaType".to_owned(), media_type.into());
    }
    let mut annotations = match manifest.remove("annotations") {
        Some(Value::Object(annotations)) => annotations,
        // `null` is as good as nothing.
        _ => serde_json::Map::new(),
    };
    annotations.retain(|key, _| !key.starts_with(SOCI));
    if let Some(index) = index {
        annotations.insert(INDEX_DIGEST_ANNOTATION.to_owned(), index.as_str().into());
    }
    if !annotations.is_empty() {
        manifest.insert("annotations".to_owned(), annotations.into());
    }
    written(&source.digest, manifest)
}

/// The entry of a SOCI index in the index that names its image.
fn entry_of(image: &PutImage, index: &PutIndex) -> Value {
    let mut entry = json!({
        "mediaType": MANIFEST,
        "digest": index.digest.as_str(),
        "size": index.size,
        "artifactType": IndexVersion::V2.artifact_type(),
        "annotations": { IMAGE_MANIFEST_DIGEST_ANNOTATION: image.manifest.digest.as_str() },
    });
    if !image.platform.is_null() {
        entry["platform"] = image.platform.clone();
    }
    entry
}

/// An index of one image.
pub(super) fn index_of_one(image: &PutImage) -> Vec<u8> {
    let manifest = &image.manifest;
    let entry = json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest.as_str(),
        "size": manifest.size,
        "platform": image.platform,
    });
    let entries: Vec<Value> =
        [entry].into_iter().chain(image.index.as_ref().map(|index| entry_of(image, index))).collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries }).to_string().into_bytes()
}

/// What became of the entry of an index.
pub(super) enum Entry {
    /// It stays.
    Kept,
    /// It is left out.
    LeftOut,
    /// It names this document now.
    Became(NewDocument),
    /// It names this image now.
    Image(PutImage),
}

/// The index with its entries as they became, by the digests that they had; then the SOCI indexes of its images.
pub(super) fn index(
    source: &FetchedDocument,
    entries: &BTreeMap<String, Entry>,
) -> Result<Vec<u8>, ConvertError> {
    let mut index = object(&source.digest, &source.bytes)?;
    index.insert("mediaType".to_owned(), INDEX.into());
    let descriptors = index.get_mut("manifests").and_then(Value::as_array_mut);
    let descriptors = descriptors.ok_or_else(|| unusable(&source.digest, "its manifests changed"))?;
    let mut indexes: Vec<Value> = Vec::new();
    descriptors.retain_mut(|descriptor| {
        let became = descriptor["digest"].as_str().and_then(|digest| entries.get(digest));
        let new = match became {
            Some(Entry::Kept) => return true,
            Some(Entry::LeftOut) | None => return false,
            Some(Entry::Became(new)) => new,
            Some(Entry::Image(image)) => {
                let mut image = image.clone();
                if !descriptor["platform"].is_null() {
                    image.platform = descriptor["platform"].clone();
                }
                let entry = image.index.as_ref().map(|index| entry_of(&image, index));
                indexes.extend(entry.filter(|entry| !indexes.contains(entry)));
                &image.manifest.clone()
            }
        };
        descriptor["mediaType"] = new.media_type.into();
        descriptor["digest"] = new.digest.as_str().into();
        descriptor["size"] = new.size.into();
        if let Some(descriptor) = descriptor.as_object_mut() {
            descriptor.remove("data");
        }
        true
    });
    // That of an image which is what it was may have stayed.
    indexes.retain(|entry| !descriptors.iter().any(|other| other["digest"] == entry["digest"]));
    descriptors.extend(indexes);
    written(&source.digest, index)
}

/// Whether an entry that is no image says something about one that changed: then it is true no more.
pub(super) fn speaks_of(entry: &Descriptor, changed: &dyn Fn(&str) -> bool) -> bool {
    entry.annotations().iter().flatten().any(|(_, value)| changed(value))
}
