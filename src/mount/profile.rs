//! The access profile of a mounted image: its own, or what can be carried over from another image of the same repository.

use std::sync::Arc;

use peelfs_registry::{Digest, ImageReference, Platform};

use super::prefetch;
use crate::error::chain;
use crate::fetch::prefetch::Prefetch;
use crate::fetch::profile::{Profile, kept, referrer};
use crate::image::origin::Origin;
use crate::store::{Store, StoreError};
use crate::tree::paths::file_at;
use crate::tree::serve::MergedTree;

/// What is mounted, as far as profiles are concerned.
pub(super) struct MountedImage<'a> {
    pub store: &'a Arc<Store>,
    pub reference: &'a ImageReference,
    pub platform: &'a Platform,
    pub manifest: &'a Digest,
    pub tree: &'a Arc<MergedTree>,
}

impl MountedImage<'_> {
    /// The profile, if there is any. That it cannot be read is no reason not to mount.
    pub(super) fn profile(&self) -> Option<Profile> {
        self.find().unwrap_or_else(|error| {
            tracing::warn!(image = %self.reference, error = %chain(&error), "the access profile is not used");
            None
        })
    }

    /// Whether something of it is missing, and nothing is known of what is wanted first.
    pub(super) fn lacks_profile(&self) -> bool {
        !self.tree.layers().iter().all(|layer| layer.is_complete()) && self.profile().is_none()
    }

    /// Sees to it that it has one, if one can be carried over.
    pub(super) fn carry_over(&self) {
        let carried = match self.store.profiles().has(self.manifest.as_str()) {
            Ok(true) => return,
            Ok(false) => self.carried_over(),
            Err(error) => Err(error),
        };
        if let Err(error) = carried {
            tracing::warn!(image = %self.reference, error = %chain(&error), "no access profile is carried over");
        }
    }

    fn find(&self) -> Result<Option<Profile>, StoreError> {
        match kept::load(self.store, self.manifest.as_str())? {
            Some(profile) => Ok(Some(profile)),
            None => self.carried_over(),
        }
    }

    /// The profile of the image of the same repository and platform that was used last, of the files that this image has, too. From
    /// now on it is this image's own.
    fn carried_over(&self) -> Result<Option<Profile>, StoreError> {
        let (manifest, platform) = (self.manifest.to_string(), self.platform.to_string());
        let mut others = self.store.database().images()?;
        others.retain(|other| {
            let reference = other.reference.parse();
            other.platform == platform
                && other.manifest_digest != manifest
                && reference.is_ok_and(|reference| is_same_repository(&reference, self.reference))
        });
        // The list is sorted by reference, and stays so among equals.
        others.sort_by_key(|other| std::cmp::Reverse(other.last_used));
        for other in others {
            let Some(mut profile) = kept::load(self.store, &other.manifest_digest)? else { continue };
            let table = self.tree.table();
            profile.retain(|file| {
                let Some(size) = file_at(table, &file.path).map(|record| record.size.get()) else {
                    return false;
                };
                let was_whole = file.parts.is_empty();
                file.parts.retain_mut(|part| {
                    part.end = part.end.min(size);
                    part.start < part.end
                });
                was_whole || !file.parts.is_empty()
            });
            if profile.runs.is_empty() {
                continue;
            }
            (profile.image, profile.manifest) = (self.reference.to_string(), manifest);
            kept::keep_if_none(self.store, &profile)?;
            return Ok(Some(profile));
        }
        Ok(None)
    }
}

/// Brings the profile of an image that has none here.
pub(super) struct ProfileKeeper {
    store: Arc<Store>,
    reference: String,
    manifest: Digest,
}

impl ProfileKeeper {
    /// For that image.
    pub(super) fn of(image: &MountedImage<'_>) -> ProfileKeeper {
        let (store, manifest) = (image.store.clone(), image.manifest.clone());
        ProfileKeeper { store, reference: image.reference.to_string(), manifest }
    }

    /// The profile that lies beside the image in its registry, if there is one. From now on it is this image's own, unless it has got one
    /// meanwhile.
    ///
    /// Gives what is missing of what it says.
    pub(super) async fn bring(self, origin: &Origin, tree: Arc<MergedTree>) -> Option<Prefetch> {
        let profile = referrer::find(origin, &self.manifest, &self.reference).await?;
        let plan = tokio::task::spawn_blocking(move || {
            if let Err(error) = kept::keep_if_none(&self.store, &profile) {
                tracing::warn!(image = %self.reference, error = %chain(&error), "the access profile of the registry is not kept");
            }
            prefetch::plan_of(&tree, &profile)
        });
        plan.await.ok()
    }
}

fn is_same_repository(one: &ImageReference, other: &ImageReference) -> bool {
    match (one, other) {
        (ImageReference::Registry(one), ImageReference::Registry(other)) => {
            one.host() == other.host() && one.repository() == other.repository()
        }
        (ImageReference::Layout(one), ImageReference::Layout(other)) => one.path() == other.path(),
        _ => false,
    }
}
