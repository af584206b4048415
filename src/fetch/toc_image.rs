//! Tables of contents that are not in their layers but in the layers of another image, the *TOC image*, beside the one that is mounted.
//!
//! ```text
//! name:tag          manifest ─▶ layer A (its footer says: external), layer B
//! name:tag-esgztoc  manifest ─▶ a tar.gz for A, a tar.gz for B            each annotated with the digest of its layer
//! ```
//!
//! Its manifest is asked for once, when the first layer wants it. Nothing of it is trusted: whoever reads a table holds it against the
//! digest in the layer's own descriptor. So a TOC image that is missing, or is none, costs laziness and nothing else.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use peelfs_registry::{BlobDescriptor, Digest, Document, Error, ErrorKind};
use tokio::sync::OnceCell;

use crate::error::chain;
use crate::image::origin::Origin;
use crate::layer::estargz::{LAYER_DIGEST_ANNOTATION, TOC_IMAGE_SUFFIX};

/// Longest table that is fetched, in bytes of its blob. Compressed, JSON has a sixth of its length.
const MAXIMUM_TABLE: u64 = 64 << 20;

/// The TOC image of the image that an origin leads to.
pub(super) struct TocImage {
    origin: Arc<Origin>,
    /// By the digest of the layer that they describe.
    tables: OnceCell<HashMap<Digest, BlobDescriptor>>,
}

impl TocImage {
    /// Nothing is asked for yet.
    pub(super) fn new(origin: Arc<Origin>) -> TocImage {
        TocImage { origin, tables: OnceCell::new() }
    }

    /// The blob with the table of that layer; nothing, and a line in the log, if there is none.
    ///
    /// # Errors
    ///
    /// If the registry cannot be reached, refuses, or gives another blob than the one it was asked for.
    pub(super) async fn table_of(&self, layer: &Digest) -> Result<Option<Bytes>, Error> {
        let tables = self.tables.get_or_try_init(|| self.tables()).await?;
        let Some(table) = tables.get(layer) else {
            tracing::warn!(%layer, "no TOC image has the table of contents of this layer; it is streamed");
            return Ok(None);
        };
        match self.origin.repository().await?.small_blob(table, MAXIMUM_TABLE).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if is_no_table(&error) => {
                tracing::warn!(%layer, error = %chain(&error), "the layer is streamed");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn tables(&self) -> Result<HashMap<Digest, BlobDescriptor>, Error> {
        let reference = self.origin.reference();
        let Some(target) = reference.sibling(TOC_IMAGE_SUFFIX) else {
            tracing::warn!(image = %reference, "its tables of contents are in another image, which is found by the tag; name the tag too");
            return Ok(HashMap::new());
        };
        let found = match self.origin.repository().await?.manifest(&target).await {
            Ok(found) => found,
            Err(error) if is_no_table(&error) => {
                tracing::warn!(image = %reference, error = %chain(&error), "the image's TOC image cannot be used");
                return Ok(HashMap::new());
            }
            Err(error) => return Err(error),
        };
        let Document::Manifest(manifest) = &found.document else {
            tracing::warn!(image = %reference, toc_image = %target, "the image's TOC image is an index, not a manifest");
            return Ok(HashMap::new());
        };
        let tables = manifest.layers().iter().filter_map(|descriptor| {
            let table = BlobDescriptor::try_from(descriptor).ok()?;
            let layer = table.annotations.get(LAYER_DIGEST_ANNOTATION)?.parse().ok()?;
            Some((layer, table))
        });
        Ok(tables.collect())
    }
}

/// Whether what was asked for is not there, or is something else.
fn is_no_table(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::BadDocument | ErrorKind::TooLarge)
}
