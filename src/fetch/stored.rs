//! An image as the store has it, without a word to its origin.

use peelfs_registry::Digest;

use super::names;
use super::twins::{Twin, twins_of};
use crate::image::Image;
use crate::store::{Store, StoreError};

/// The image of that manifest; nothing if not all of its documents are in the store.
pub fn image_of_manifest(store: &Store, digest: &Digest) -> Result<Option<Image>, StoreError> {
    let Some(manifest) = store.content().get(digest.as_str())? else { return Ok(None) };
    let Ok((_, config)) = Image::manifest(digest, &manifest) else { return Ok(None) };
    let Some(config) = store.content().get(config.digest.as_str())? else { return Ok(None) };
    Ok(Image::parse(digest, &manifest, &config).ok())
}

/// The manifests of the images that an image was made of, if it was made here.
pub(super) fn ancestors(store: &Store, image: &Digest) -> Result<Vec<Digest>, StoreError> {
    let origins = store.origins().of(image.as_str())?;
    let ancestors = origins.into_iter().flat_map(|origins| origins.ancestors);
    Ok(ancestors.filter_map(|digest| digest.parse().ok()).collect())
}

/// For each layer of an image, the lowest first, all names by which it may be kept in the store, the one to be preferred first. If none is
/// there, that of a layer with the same archive may be.
pub fn possible_names(store: &Store, image: &Image) -> Result<Vec<Vec<Digest>>, StoreError> {
    let ancestors = ancestors(store, &image.manifest_digest)?;
    let images = || std::iter::once(&image.manifest_digest).chain(&ancestors);
    let all_names = |layer| {
        let mut names = names::names_of_made(layer, images(), true);
        for name in &names {
            if store.layers().layer(name.as_str())?.is_there()? {
                return Ok(names);
            }
        }
        names.extend(twins_of(store, layer)?.iter().filter_map(Twin::name));
        Ok(names)
    };
    image.layers.iter().map(all_names).collect()
}

/// The names of all layers with the same archive as one of an image: a mount of it may read any of them, also where there is one of its own by now.
pub fn names_of_same_archives(store: &Store, image: &Image) -> Result<Vec<Digest>, StoreError> {
    let mut names = Vec::new();
    for layer in &image.layers {
        names.extend(twins_of(store, layer)?.iter().filter_map(Twin::name));
    }
    Ok(names)
}
