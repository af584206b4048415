//! What can go wrong with a push, said for the person who reads it.

use peelfs_registry::Digest;

use crate::image::ImageError;
use crate::store::StoreError;

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The destination, or the way to either side.
    #[error(transparent)]
    Registry(#[from] peelfs_registry::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The image is not there.
    #[error("{image} for {platform} is not in the store; `peel pull` brings it")]
    Unknown {
        /// The reference.
        image: String,
        /// The platform.
        platform: String,
    },
    /// The image was not found through an index.
    #[error("{image} is not known by an image index, so there is only the image of one platform to push")]
    NoIndex {
        /// The reference.
        image: String,
    },
    /// Not all images of an index are there.
    #[error(
        "{digest}, which the index of {image} names for {platform}, is not in the store; `peel pull --platform {platform}` brings it"
    )]
    Absent {
        /// The reference.
        image: String,
        /// Digest of the manifest.
        digest: Digest,
        /// Its platform, as the index says.
        platform: String,
    },
    /// A part of the image is no layer.
    #[error(
        "{image} cannot be pushed: it has the difference of two trees that do not lie on each other, and no layer is made of that; it can be mounted"
    )]
    Difference {
        /// The reference.
        image: String,
    },
    /// A document that makes no sense.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A blob that does not come.
    #[error(
        "cannot push blob {digest} of {image}: the store keeps what is in a layer, not the blob it came in, which must come from {origin}"
    )]
    Blob {
        /// The reference.
        image: String,
        /// The blob.
        digest: Digest,
        /// Where it should come from.
        origin: String,
        /// Why it does not.
        #[source]
        cause: peelfs_registry::Error,
    },
    /// The destination is pinned to something else.
    #[error("{destination} is pinned to another digest than that of the image, {digest}")]
    Destination {
        /// As it was given.
        destination: String,
        /// Of what was to be pushed.
        digest: Digest,
    },
    /// A layer that is to be compressed otherwise.
    #[error(transparent)]
    Convert(#[from] crate::convert::ConvertError),
    /// A document whose digest cannot be kept.
    #[error("document {digest} would be stored as {stored}, and nothing that names it would find it")]
    Renamed {
        /// Its digest.
        digest: Digest,
        /// What it would become.
        stored: Digest,
    },
}
