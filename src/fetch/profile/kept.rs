//! The profiles that are in the store. One that cannot be read is as good as none: it is said, and the next run replaces it.

use super::format;
use super::{Profile, Run};
use crate::error::chain;
use crate::store::{Store, StoreError};

/// The profile of the image with that manifest, if there is one that can be read.
///
/// # Errors
/// If the store cannot be read.
pub fn load(store: &Store, manifest: &str) -> Result<Option<Profile>, StoreError> {
    match store.profiles().get(manifest) {
        Ok(text) => Ok(text.and_then(|text| parse(manifest, &text))),
        Err(error @ StoreError::Damaged { .. }) => {
            tracing::warn!(manifest, error = %chain(&error), "the access profile of the image is dropped");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Records what a run of that image read so far; what is known of other runs stays.
///
/// # Errors
/// If the store cannot be read or written.
pub fn record(store: &Store, image: &str, manifest: &str, run: &Run) -> Result<(), StoreError> {
    store.profiles().update(manifest, |text| {
        let recorded = super::record(text.as_deref(), image, manifest, run).or_else(|error| {
            tracing::warn!(manifest, %error, "the access profile of the image is dropped");
            super::record(None, image, manifest, run)
        });
        // In no profile, each run can be recorded.
        recorded.ok()
    })
}

/// Keeps the profile for an image that has none; one that it has stays.
///
/// # Errors
/// If the store cannot be read or written.
pub fn keep_if_none(store: &Store, profile: &Profile) -> Result<(), StoreError> {
    store.profiles().update(&profile.manifest, |text| {
        let known = text.and_then(|text| parse(&profile.manifest, &text));
        known.is_none().then(|| format::write(profile))
    })
}

fn parse(manifest: &str, text: &[u8]) -> Option<Profile> {
    let read = format::read(text);
    read.inspect_err(|error| tracing::warn!(manifest, %error, "the access profile of the image is dropped"))
        .ok()
}
