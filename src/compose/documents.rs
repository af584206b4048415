//! Config and manifest of an image that is made of others: what is run, and in which environment, is what one of them says; the layers
//! are those of all. Documents and media types are OCI's, whatever they were.

use peelfs_registry::Digest;
use serde_json::{Map, Value, json};

use super::Part;
use crate::commit::oci_layer_type;
use crate::store::Step;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Annotation of a manifest whose layers do not lie on each other. It gives the manifest a digest of its own, and is believed by nobody: what
/// counts is what the store keeps beside it.
const COMPOSITION: &str = "io.peelfs.composition";

/// A document of an image, of which none can be made.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// What an image is described by.
    #[error("the {document} of an image cannot be used: {reason}")]
    Unusable {
        /// Which.
        document: &'static str,
        /// Why not.
        reason: String,
    },
    /// What is recorded of an image.
    #[error("the records of {image} do not fit its layers; remove it and bring it in again")]
    Records {
        /// The reference.
        image: String,
    },
}

fn unusable(document: &'static str, reason: impl ToString) -> DocumentError {
    DocumentError::Unusable { document, reason: reason.to_string() }
}

/// Reads a document, which is an object.
pub(super) fn parse(document: &'static str, bytes: &[u8]) -> Result<Value, DocumentError> {
    let object: Map<String, Value> =
        serde_json::from_slice(bytes).map_err(|error| unusable(document, error))?;
    Ok(Value::Object(object))
}

/// What the history in a config says of the layer of that number, where it says something of each layer.
pub(super) fn history_of(config: &Value, number: usize) -> Value {
    let layers = config["rootfs"]["diff_ids"].as_array().map_or(0, Vec::len);
    let told = config["history"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut told = told.iter().filter(|entry| entry["empty_layer"] != json!(true));
    if told.clone().count() == layers
        && let Some(entry @ Value::Object(_)) = told.nth(number)
    {
        return entry.clone();
    }
    json!({})
}

/// The config with these layers instead of its own; `told` is what its history says of how that came.
pub(super) fn config(config: &Value, parts: &[&Part], told: &str) -> Result<Vec<u8>, DocumentError> {
    let mut config = config.clone();
    let diff_ids: Vec<&str> = parts.iter().map(|part| part.layer.diff_id.as_str()).collect();
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    let layers = parts.iter().map(|part| part.history.clone());
    config["history"] = layers.chain([json!({"created_by": told, "empty_layer": true})]).collect();
    serde_json::to_vec(&config).map_err(|error| unusable("config", error))
}

/// The manifest with that config and these layers.
pub(super) fn manifest(
    config: &Digest,
    config_size: u64,
    parts: &[&Part],
    composition: Option<&[Step]>,
) -> Result<Vec<u8>, DocumentError> {
    let layers = parts.iter().map(|part| {
        let mut descriptor = part.descriptor.clone();
        if let Some(media_type) = descriptor["mediaType"].as_str().and_then(oci_layer_type) {
            descriptor["mediaType"] = media_type.into();
        }
        descriptor
    });
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config.as_str(), "size": config_size},
        "layers": layers.collect::<Value>(),
    });
    if let Some(steps) = composition {
        let steps = serde_json::to_string(steps).map_err(|error| unusable("composition", error))?;
        manifest["annotations"] = json!({COMPOSITION: steps});
    }
    serde_json::to_vec(&manifest).map_err(|error| unusable("manifest", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_keeps_what_its_image_says_of_it_where_that_is_told_layer_by_layer() {
        let config = |history: Value| json!({"rootfs": {"diff_ids": ["a", "b"]}, "history": history});
        let of = |one: &str| json!({"created_by": one});
        let empty = json!({"created_by": "ENV", "empty_layer": true});
        for (history, expected) in [
            (json!([of("one"), empty, of("two")]), [of("one"), of("two")]),
            (json!([of("one")]), [json!({}), json!({})]),
            (json!([of("one"), 7]), [of("one"), json!({})]),
            (Value::Null, [json!({}), json!({})]),
        ] {
            let config = config(history);
            assert_eq!([0, 1].map(|number| history_of(&config, number)), expected);
        }
    }
}
