//! Images as cache records: what people type, and the record that is meant.

use peelfs_registry::{ImageReference, Platform};

use super::bring::{known_image, recorded_image};
use crate::cache::{Cache, CacheError, ImmutableRef, Key, Purpose};

/// The record of the topmost layer of an image that the store knows; made, and those of the layers below, if there is none. Nothing if
/// the image has no layers.
///
/// # Errors
/// [`CacheError::Unknown`] if the store does not know the image.
pub fn chain_of(
    cache: &Cache,
    reference: &ImageReference,
    platform: &Platform,
    purpose: Purpose,
) -> Result<Option<ImmutableRef>, CacheError> {
    let Some(image) = known_image(cache.store(), reference, platform)? else {
        return Err(CacheError::Unknown { key: "image name", value: format!("{reference} for {platform}") });
    };
    cache.record_image(&image, &reference.to_string(), purpose)
}

/// The record that is meant by what somebody typed: a known image for that platform, or else whatever [`Key::Any`] finds.
///
/// # Errors
/// [`CacheError::Unknown`], also of an image without layers; [`CacheError::Ambiguous`]; [`CacheError::Mutable`].
pub fn find(
    cache: &Cache,
    text: &str,
    platform: &Platform,
    purpose: Purpose,
) -> Result<ImmutableRef, CacheError> {
    if let Ok(reference) = text.parse::<ImageReference>() {
        match chain_of(cache, &reference, platform, purpose) {
            Ok(Some(found)) => return Ok(found),
            Ok(None) | Err(CacheError::Unknown { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    match cache.find(Key::Any(text), purpose) {
        Err(CacheError::Unknown { .. }) => {}
        found => return found,
    }
    // It may be a layer of an image that has no record yet.
    record_all(cache)?;
    cache.find(Key::Any(text), purpose)
}

/// Records all images that the store knew before it had records of them. Those whose documents are not here are left out.
pub fn record_all(cache: &Cache) -> Result<(), CacheError> {
    for record in cache.images_without_record()? {
        if let Some(image) = recorded_image(cache.store(), &record)? {
            cache.record_image(&image, &record.reference, Purpose::Look)?;
        }
    }
    Ok(())
}
