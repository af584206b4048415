//! What can go wrong with a conversion, said for the person who reads it.

use peelfs_registry::Digest;

use crate::image::ImageError;
use crate::layer::compression::MediaTypeError;
use crate::layer::stream::StreamError;
use crate::layer::write::WriteError;
use crate::store::StoreError;

/// Why an image was not converted.
#[derive(Debug, thiserror::Error)]
pub enum ConvertError {
    /// The registry or layout that is read or written.
    #[error(transparent)]
    Registry(#[from] peelfs_registry::Error),
    /// A document of the source.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The destination is named by a digest, which nobody can know before.
    #[error("the destination {destination} must be named by a tag, not by a digest")]
    Destination {
        /// As it was given.
        destination: String,
    },
    /// An index in an index in an index.
    #[error("index {digest} is nested too deep")]
    NestedTooDeep {
        /// Its digest.
        digest: Digest,
    },
    /// A descriptor that names nothing.
    #[error("an index names {digest}, which cannot be used")]
    Digest {
        /// As written.
        digest: String,
    },
    /// A document that cannot be made anew.
    #[error("document {digest} cannot be rewritten: {reason}")]
    Document {
        /// Digest of the one in the source.
        digest: Digest,
        /// Why not.
        reason: String,
    },
    /// Nothing to name the image with the tables of contents by.
    #[error(
        "the tables of contents go into an image beside {destination}, named by its tag and \"{suffix}\": give it a tag that leaves room for that"
    )]
    TocImage {
        /// As it was given.
        destination: String,
        /// What comes after the tag.
        suffix: &'static str,
    },
    /// A config or a table of contents cannot be stored.
    #[error("a blob of the new image cannot be written: {reason}")]
    SmallBlob {
        /// Why not.
        reason: String,
    },
    /// A layer that is none.
    #[error("layer {layer}: {source}")]
    MediaType {
        /// Digest of its blob.
        layer: Digest,
        /// What it is.
        source: MediaTypeError,
    },
    /// A layer that cannot be read.
    #[error("layer {layer} cannot be read")]
    Read {
        /// Digest of its blob.
        layer: Digest,
        /// Why not.
        source: Box<StreamError>,
    },
    /// A layer that cannot be written.
    #[error("layer {layer} cannot be converted")]
    Write {
        /// Digest of its blob in the source.
        layer: Digest,
        /// Why not.
        source: Box<WriteError>,
    },
    /// No file for a layer that is being unpacked.
    #[error("no file can be made in {directory}: {source}")]
    Scratch {
        /// Where it should be.
        directory: String,
        /// Why not.
        source: std::io::Error,
    },
    /// Nobody knows which files come first.
    #[error(
        "no mount of {image} has recorded which files it reads; mount it, use it and unmount it before, or list the files with --order"
    )]
    NoProfile {
        /// The image.
        image: String,
    },
    /// The profiles cannot be read.
    #[error("cannot read what mounts of the image recorded")]
    Store {
        /// Why not.
        #[source]
        cause: Box<StoreError>,
    },
    /// No layer can have a zTOC.
    #[error("{image}: there is nothing to index: {reasons}")]
    NothingToIndex {
        /// The image.
        image: String,
        /// Why not, layer by layer.
        reasons: String,
    },
    /// A layer that cannot be kept while it is copied.
    #[error("layer {layer} cannot be copied: {source}")]
    Copy {
        /// Digest of its blob.
        layer: Digest,
        /// Why not.
        source: std::io::Error,
    },
}
