//! An image as people name it to commands that bring it into the store if it is not there: by its reference; or, if it is there, by what
//! `peel records` finds it by.

use std::sync::Arc;

use peelfs::cache::{Cache, CacheError, Purpose};
use peelfs::mount::known_image;
use peelfs::mount::records::find;
use peelfs::store::Store;
use peelfs::store::record_tables::RecordId;
use peelfs_registry::{ImageReference, Platform};

use super::environment;
use super::failure::Usage;

/// Fewer digits of an id are taken for the name of an image: `peel records` shows as many.
const SHORTEST_ID: usize = 12;

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeantImage {
    text: String,
    reference: ImageReference,
}

impl MeantImage {
    /// Reads what was typed: whatever it is, it can be read as a reference.
    pub fn parse(text: &str) -> anyhow::Result<MeantImage> {
        Ok(MeantImage { text: text.to_owned(), reference: environment::reference(text)? })
    }

    /// The image's reference. A name that the store knows comes first; then the record of a known image, by the beginning of its id or a
    /// digest; and else it is one that is brought.
    ///
    /// # Errors
    /// If several records fit, or the one that does is no image.
    pub fn find(&self, store: &Arc<Store>, platform: &Platform) -> anyhow::Result<ImageReference> {
        if !is_key(&self.text) || known_image(store, &self.reference, platform)?.is_some() {
            return Ok(self.reference.clone());
        }
        let cache = Cache::open_as_it_is(store.clone())?;
        let record = match find(&cache, &self.text, platform, Purpose::Look) {
            Err(CacheError::Unknown { .. }) => return Ok(self.reference.clone()),
            found => found?.record()?,
        };
        let names = cache.image_names()?.into_iter().filter(|(_, named)| *named == record.id);
        let names: Vec<String> = names.map(|(name, _)| name).collect();
        let mut manifests = Vec::new();
        for name in &names {
            let known = store.database().find_image(name, &platform.to_string())?;
            manifests.extend(known.map(|image| (image.manifest_digest, name)));
        }
        manifests.sort();
        manifests.dedup_by(|one, other| one.0 == other.0);
        match manifests.as_slice() {
            [(_, name)] => Ok(name.parse()?),
            [] => {
                let images = cache.beside(&record)?.images;
                let of = if images.is_empty() {
                    String::new()
                } else {
                    format!(", but a layer of {}", images.join(", "))
                };
                Err(Usage(format!("record {} is no image for {platform}{of}; name an image", record.id))
                    .into())
            }
            several => {
                let names: Vec<&str> = several.iter().map(|(_, name)| name.as_str()).collect();
                Err(Usage(format!(
                    "record {} is several images: {}; name one of them",
                    record.id,
                    names.join(", ")
                ))
                .into())
            }
        }
    }
}

/// Whether a text can be the beginning of an id, or a digest.
fn is_key(text: &str) -> bool {
    let is_digest = text.split_once(':').is_some_and(|(algorithm, hex)| {
        ["sha256", "sha512"].contains(&algorithm)
            && hex.len() >= 64
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    });
    is_digest || (text.len() >= SHORTEST_ID && RecordId::is_prefix(text))
}

#[cfg(test)]
mod tests {
    use super::is_key;

    #[test]
    fn names_of_images_are_no_keys() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, expected) in [
            ("0123456789ab", true),
            (&digest, true),
            ("cafe", false),
            ("0123456789a", false),
            ("deadbeefcafe:latest", false),
            ("sha256:0a", false),
            ("python:3.12", false),
            ("host:5000/name", false),
        ] {
            assert_eq!(is_key(text), expected, "{text}");
        }
    }
}
