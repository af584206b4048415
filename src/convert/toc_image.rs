//! The image beside a converted one that holds the tables of contents of its layers, where they are not in the layers themselves
//! (stargz-snapshotter, `nativeconverter/estargz/externaltoc`).
//!
//! It is put before the image that needs it: so who finds that finds its tables. One image is for all platforms, as the layers are told
//! apart by their digests; so it has no platform, and its config says nothing.

use std::collections::BTreeMap;
use std::path::Path;

use peelfs_registry::{Digest, ImageReference, Repository, Target};
use serde_json::{Value, json};

use super::documents::{CONFIG, MANIFEST, layer_media_type};
use super::layers::put_bytes;
use super::{ConvertError, ConvertedLayer, Format};
use crate::layer::compression::Compression;
use crate::layer::estargz::LAYER_DIGEST_ANNOTATION;

/// A config that says nothing.
const EMPTY: &[u8] = b"{}";

/// The name of the TOC image, if the format has one.
pub(super) fn target(destination: &ImageReference, format: &Format) -> Result<Option<Target>, ConvertError> {
    let Some(suffix) = format.toc_image_suffix() else { return Ok(None) };
    match destination.sibling(suffix) {
        Some(target) => Ok(Some(target)),
        None => Err(ConvertError::TocImage { destination: destination.to_string(), suffix }),
    }
}

/// Puts the TOC image of `layers`, whose tables are at the destination already; gives its digest.
pub(super) async fn put(
    destination: &Repository,
    target: &Target,
    layers: impl Iterator<Item = &ConvertedLayer>,
    scratch: &Path,
) -> Result<Digest, ConvertError> {
    // Two layers of the source may have become the same.
    let tables: BTreeMap<&str, Value> = layers
        .filter_map(|layer| {
            let table = layer.toc_blob.as_ref()?;
            let descriptor = json!({
                "mediaType": layer_media_type(None, Compression::Gzip),
                "digest": table.digest.as_str(),
                "size": table.size,
                "annotations": { LAYER_DIGEST_ANNOTATION: layer.digest.as_str() },
            });
            Some((layer.digest.as_str(), descriptor))
        })
        .collect();
    let (config, config_size) = put_bytes(destination, scratch, EMPTY.to_vec()).await?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.as_str(), "size": config_size },
        "layers": tables.into_values().collect::<Vec<Value>>(),
    });
    Ok(destination.put_document(target, MANIFEST, manifest.to_string().into_bytes().into()).await?)
}
