//! An image that the store knows: what commands ask for that look at what is here, and fetch nothing.

use peelfs::image::Image;
use peelfs::mount::known_image;
use peelfs::store::Store;
use peelfs_registry::{ImageReference, Platform};

use super::environment;
use super::failure::NotFound;

/// How such a command names its image.
#[derive(clap::Args)]
pub struct KnownImage {
    /// The image, as it was mounted
    #[arg(value_name = "REF", value_parser = environment::reference)]
    pub reference: ImageReference,
    /// The platform, if it was mounted for another than this machine's
    #[arg(long)]
    platform: Option<Platform>,
}

impl KnownImage {
    /// The platform that is meant.
    pub fn platform(&self) -> Platform {
        environment::platform(self.platform.clone())
    }

    /// The image, which must be in the store.
    pub fn find(&self, store: &Store) -> anyhow::Result<Image> {
        let (reference, platform) = (&self.reference, self.platform());
        let found = known_image(store, reference, &platform)?;
        Ok(found.ok_or_else(|| {
            NotFound(format!(
                "{reference} for {platform} is not in the store; `peel ls` lists what is, `peel mount` brings it"
            ))
        })?)
    }
}
