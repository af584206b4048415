//! Where the layers of images come from that were made here: for each, the image by which it can be had, or this store itself.
//!
//! ```text
//! origins/ALG/HEX   JSON, named by the digest of the image's manifest
//! ```
//!
//! An image that was pulled has none: its layers come from where it is named. What lies here is written before the image gets its name,
//! so an image that is known has it.
//!
//! The layers of an image lie on each other, unless it says here how else: a difference of two trees has no layer of its own. Only what was
//! made here can say so; a manifest cannot.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::content::write_file;
use super::digest::DigestName;
use super::durable::{ensure_directory, sync_directory};
use super::error::{Context, StoreError};
use super::temporary::Temporaries;

/// Of [`ImageOrigins`] whose layers lie on each other.
const VERSION: u32 = 1;
/// Of those with a composition, which a program that does not know it must not read as if there were none.
const VERSION_WITH_COMPOSITION: u32 = 2;

/// Where the layers of one image come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageOrigins {
    /// Of this file's form.
    version: u32,
    /// Digests of the manifests of the images that it was made of, the nearest first: what they say of a layer holds for it, too.
    pub ancestors: Vec<String>,
    /// Of each layer, by its digest.
    pub layers: BTreeMap<String, LayerOrigin>,
    /// What is applied, one after another, if that is not each layer once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub composition: Option<Vec<Step>>,
}

/// Something that is applied to a tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// The layer of that number in the manifest, which counts from 0.
    Layer(u16),
    /// What has to be done to one tree to get the other.
    Difference {
        /// What makes the tree before.
        lower: Vec<Step>,
        /// What makes the tree after.
        upper: Vec<Step>,
    },
}

/// Where a layer comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum LayerOrigin {
    /// Its blob is in [`Content`](super::Content), and perhaps nowhere else.
    Content,
    /// From where the image of that reference is.
    Image {
        /// The reference.
        reference: String,
    },
}

impl ImageOrigins {
    /// Those of an image made of these.
    pub fn new(ancestors: Vec<String>, layers: BTreeMap<String, LayerOrigin>) -> ImageOrigins {
        ImageOrigins { version: VERSION, ancestors, layers, composition: None }
    }

    /// The same, with layers that do not lie on each other.
    pub fn composed(self, composition: Option<Vec<Step>>) -> ImageOrigins {
        let version = if composition.is_some() { VERSION_WITH_COMPOSITION } else { VERSION };
        ImageOrigins { version, composition, ..self }
    }
}

/// The origins of all images that were made here.
#[derive(Clone, Debug)]
pub struct Origins {
    directory: PathBuf,
    temporaries: Temporaries,
}

impl Origins {
    pub(super) fn new(directory: PathBuf, temporaries: Temporaries) -> Origins {
        Origins { directory, temporaries }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the layers of the image with that manifest come from; nothing if it was not made here.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if what is there cannot be read, [`StoreError::Newer`] if a later version wrote it.
    pub fn of(&self, manifest_digest: &str) -> Result<Option<ImageOrigins>, StoreError> {
        let path = DigestName::parse(manifest_digest)?.path_in(&self.directory);
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            bytes => bytes.context("read", &path)?,
        };
        let damaged =
            |error: serde_json::Error| StoreError::Damaged { path: path.clone(), reason: error.to_string() };
        let value: serde_json::Value = serde_json::from_slice(&bytes).map_err(damaged)?;
        match value["version"].as_u64() {
            Some(found) if found > u64::from(VERSION_WITH_COMPOSITION) => {
                Err(StoreError::Newer { path, found, known: VERSION_WITH_COMPOSITION.into() })
            }
            _ => serde_json::from_value(value).map(Some).map_err(damaged),
        }
    }

    /// Says where the layers of an image come from, on disk when this returns.
    pub fn put(&self, manifest_digest: &str, origins: &ImageOrigins) -> Result<(), StoreError> {
        let path = DigestName::parse(manifest_digest)?.path_in(&self.directory);
        // Stores of earlier versions have none.
        ensure_directory(&self.directory)?;
        if let Some(directory) = path.parent() {
            ensure_directory(directory)?;
            sync_directory(&self.directory)?;
        }
        let bytes = serde_json::to_vec(origins).map_err(std::io::Error::from).context("write", &path)?;
        write_file(&self.temporaries, &path, &bytes)
    }

    /// Forgets those of an image; false if there were none.
    pub fn remove(&self, manifest_digest: &str) -> Result<bool, StoreError> {
        let path = DigestName::parse(manifest_digest)?.path_in(&self.directory);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            result => result.map(|()| true).context("remove", &path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn what_was_said_of_an_image_is_read_until_it_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let digest = format!("sha256:{}", "5".repeat(64));
        assert_eq!(store.origins().of(&digest).unwrap(), None);
        let from = LayerOrigin::Image { reference: "host/name:tag".to_owned() };
        let layers = [("sha256:a".to_owned(), from), ("sha256:b".to_owned(), LayerOrigin::Content)];
        let origins = ImageOrigins::new(vec![digest.clone()], layers.into());
        let difference = Step::Difference { lower: vec![Step::Layer(0)], upper: vec![Step::Layer(1)] };
        for (composition, version) in [(None, 1), (Some(vec![Step::Layer(1), difference]), 2)] {
            let origins = origins.clone().composed(composition);
            assert_eq!(origins.version, version);
            store.origins().put(&digest, &origins).unwrap();
            assert_eq!(store.origins().of(&digest).unwrap(), Some(origins));
        }
        let file = directory.path().join("origins/sha256").join(&digest[7..]);
        std::fs::write(&file, r#"{"version":9}"#).unwrap();
        assert!(matches!(store.origins().of(&digest), Err(StoreError::Newer { .. })));
        std::fs::write(&file, "{").unwrap();
        assert!(matches!(store.origins().of(&digest), Err(StoreError::Damaged { .. })));
        assert!(store.origins().remove(&digest).unwrap() && !store.origins().remove(&digest).unwrap());
        assert!(store.origins().of("sha256:../x").is_err());
    }
}
