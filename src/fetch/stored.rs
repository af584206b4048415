//! An image as the store has it, without a word to its origin.

use peelfs_registry::Digest;

use super::index::ancestors;
use super::names;
use crate::image::Image;
use crate::store::{Store, StoreError};

/// The image of that manifest; nothing if not all of its documents are in the store.
pub fn image_of_manifest(store: &Store, digest: &Digest) -> Result<Option<Image>, StoreError> {
    let Some(manifest) = store.content().get(digest.as_str())? else { return Ok(None) };
    let Ok((_, config)) = Image::manifest(digest, &manifest) else { return Ok(None) };
    let Some(config) = store.content().get(config.digest.as_str())? else { return Ok(None) };
    Ok(Image::parse(digest, &manifest, &config).ok())
}

/// All names by which layers of that image may be kept; none if its documents are not in the store.
pub(super) fn possible_names(store: &Store, manifest: &Digest) -> Result<Vec<Digest>, StoreError> {
    let Some(image) = image_of_manifest(store, manifest)? else { return Ok(Vec::new()) };
    let ancestors = ancestors(store, manifest)?;
    let images = || std::iter::once(manifest).chain(&ancestors);
    Ok(image.layers.iter().flat_map(|layer| names::names_of_made(layer, images(), true)).collect())
}
