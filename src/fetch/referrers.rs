//! SOCI indexes that refer to an image (v1). Whoever may push to a repository may put one there, so they are looked for only where
//! the user says that he trusts them.
//!
//! What comes of it is the lazy way of a layer or nothing: a list that cannot be had, an index of another image and one that makes no
//! sense keep nobody from mounting the image, which is streamed then. The log says why.

use peelfs_registry::{Digest, Error, Repository, Target};

use super::soci::attach;
use crate::error::chain;
use crate::image::origin::Origin;
use crate::image::{Image, IndexSource, Layer};
use crate::layer::soci::SociError;
use crate::layer::soci::index::{IndexVersion, SociIndex};

/// Most referrers that are looked at.
const MOST_LOOKED_AT: usize = 8;

/// Why one referrer is passed over.
#[derive(Debug, thiserror::Error)]
enum PassedOver {
    #[error(transparent)]
    Registry(#[from] Error),
    #[error(transparent)]
    Soci(#[from] SociError),
    #[error("it says that it refers to another manifest, {subject}")]
    OtherSubject { subject: String },
    #[error("it knows no layer of this image")]
    OtherLayers,
}

/// Gives the layers of an image the zTOCs of the first usable index that refers to it.
pub async fn attach_referrer(origin: &Origin, image: &Image, layers: &mut [Layer]) {
    let artifact_type = IndexVersion::V1.artifact_type();
    let listed = async {
        let repository = origin.repository().await?;
        let found = repository.referrers(&image.manifest_digest, artifact_type).await?;
        Ok::<_, Error>((repository, found))
    };
    let (repository, found) = match listed.await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(image = %image.manifest_digest, error = %chain(&error), "what refers to the image cannot be listed; its layers are streamed");
            return;
        }
    };
    for referrer in found.iter().take(MOST_LOOKED_AT) {
        match index_in(repository, &referrer.digest, image).await {
            Ok(index) => {
                tracing::info!(index = %referrer.digest, image = %image.manifest_digest, "a SOCI index that refers to the image is trusted");
                attach(&index, IndexSource::Referrer, layers);
                return;
            }
            Err(error) => {
                tracing::warn!(index = %referrer.digest, error = %chain(&error), "a SOCI index is passed over");
            }
        }
    }
}

/// The index of that digest, if it is one of this image.
async fn index_in(repository: &Repository, digest: &Digest, image: &Image) -> Result<SociIndex, PassedOver> {
    let document = repository.manifest(&Target::Digest(digest.clone())).await?;
    let index = SociIndex::parse(digest, &document.bytes)?;
    let subject = index.subject.as_ref().map(|subject| &subject.digest);
    if subject != Some(&image.manifest_digest) || index.version != IndexVersion::V1 {
        let subject = subject.map_or_else(|| "none".to_owned(), Digest::to_string);
        return Err(PassedOver::OtherSubject { subject });
    }
    if !image.layers.iter().any(|layer| index.ztoc_of(&layer.descriptor.digest).is_some()) {
        return Err(PassedOver::OtherLayers);
    }
    Ok(index)
}
