//! From the SOCI index of an image to its layers: which zTOC each of them has, and the zTOC to a layer in the store.
//!
//! - An index that the manifest names (v2) is part of the image: what has another digest than named, or makes no sense, is an error.
//!   One that is gone is none: the layers are streamed, and the log says so. Likewise for a zTOC.
//! - An index that refers to the image (v1) is attached by whoever found it and was told to trust it.

use std::io::Write;
use std::sync::Arc;

use peelfs_registry::{Blob, BlobDescriptor, Digest, ErrorKind, Target};

use super::index::{Draft, DraftCheckpoints, IndexError, NO_RANGES, blocking, draft_of};
use crate::error::chain;
use crate::image::origin::Origin;
use crate::image::{Image, IndexSource, Layer, LazyIndex};
use crate::layer::gzip::checkpoint::CheckpointWriter;
use crate::layer::soci::index::SociIndex;
use crate::layer::soci::ztoc::{MAXIMUM_ZTOC, ZTOC_MEDIA_TYPE, Ztoc};
use crate::layer::soci::{SociContents, SociError, headers};
use crate::store::{LayerFiles, PendingPublish, Store, StoreError, TableSource};

/// Gives each of these layers the zTOC that the index has for it, unless it has one already; what the manifest names goes before what
/// refers to it.
pub fn attach(index: &SociIndex, source: IndexSource, layers: &mut [Layer]) {
    let takes = |layer: &&mut Layer| layer.lazy_index.is_none() || source == IndexSource::Manifest;
    for layer in layers.iter_mut().filter(takes) {
        let Some(ztoc) = index.ztoc_of(&layer.descriptor.digest) else { continue };
        let descriptor = BlobDescriptor {
            digest: ztoc.digest.clone(),
            size: ztoc.size,
            media_type: ZTOC_MEDIA_TYPE.to_owned(),
            annotations: Default::default(),
            urls: Vec::new(),
        };
        layer.lazy_index = Some(LazyIndex { descriptor, source });
    }
}

/// The layers of an image with the zTOCs of the index that its manifest names, if it names one. One request.
///
/// # Errors
/// If it is not what the manifest names, or no index; or if the registry fails otherwise than by not having it.
pub async fn with_index(origin: &Origin, image: &Image) -> Result<Vec<Layer>, IndexError> {
    let mut layers = image.layers.clone();
    let Some(digest) = &image.soci_index else { return Ok(layers) };
    let document = match origin.repository().await?.manifest(&Target::Digest(digest.clone())).await {
        Ok(document) => document,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            tracing::warn!(index = %digest, "the manifest names a SOCI index that is not there; the layers are streamed");
            return Ok(layers);
        }
        Err(error) => return Err(error.into()),
    };
    let index = SociIndex::parse(digest, &document.bytes).map_err(Box::new)?;
    attach(&index, IndexSource::Manifest, &mut layers);
    Ok(layers)
}

/// What came of a zTOC.
pub(super) enum ByZtoc {
    /// The layer.
    Lazily(Box<(LayerFiles, PendingPublish)>),
    /// It is to be streamed.
    Not { because: &'static str },
}

/// Fetches the zTOC of a layer, and makes the layer of it, which is kept under that name. If the layer is to be streamed, the log says
/// why. What only a referrer claimed fails nobody's mount.
pub(super) async fn index_by_ztoc(
    store: &Arc<Store>,
    origin: &Origin,
    layer: &Layer,
    lazy_index: &LazyIndex,
    name: &Digest,
) -> Result<ByZtoc, IndexError> {
    match (try_ztoc(store, origin, layer, lazy_index, name).await, lazy_index.source) {
        (Err(error), IndexSource::Referrer) if !matches!(error, IndexError::Store(_)) => {
            tracing::warn!(layer = %layer.descriptor.digest, error = %chain(&error), "its zTOC cannot be used; the layer is streamed");
            Ok(ByZtoc::Not { because: "its zTOC cannot be used" })
        }
        (tried, _) => tried,
    }
}

async fn try_ztoc(
    store: &Arc<Store>,
    origin: &Origin,
    layer: &Layer,
    lazy_index: &LazyIndex,
    name: &Digest,
) -> Result<ByZtoc, IndexError> {
    let digest = layer.descriptor.digest.clone();
    let streamed = |because: &'static str, details: String| {
        tracing::warn!(layer = %digest, ztoc = %lazy_index.descriptor.digest, because, details, "the layer is streamed");
        Ok(ByZtoc::Not { because })
    };
    if lazy_index.descriptor.size > MAXIMUM_ZTOC {
        let details = format!("{} bytes, {MAXIMUM_ZTOC} at most", lazy_index.descriptor.size);
        return streamed("its zTOC is too long", details);
    }
    let repository = origin.repository().await?;
    let bytes = match repository.small_blob_by_range(&lazy_index.descriptor, MAXIMUM_ZTOC).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return streamed("its zTOC is not there", chain(&error));
        }
        Err(error) => return Err(error.into()),
    };
    if !reads_by_ranges(&repository.blob_of(&layer.descriptor)).await? {
        return streamed(NO_RANGES, origin.reference().to_string());
    }
    let format = layer.archive_format();
    let (store, descriptor, name) = (store.clone(), layer.descriptor.clone(), name.clone());
    let brought = blocking(move || {
        let ztoc = Ztoc::read(&bytes)?;
        drop(bytes);
        let contents = SociContents::of(ztoc, descriptor.size, &descriptor.annotations)?;
        Ok((contents, store))
    });
    match brought.await {
        Ok((contents, store)) => {
            let source = match lazy_index.source {
                IndexSource::Manifest => TableSource::SociNamed,
                IndexSource::Referrer => TableSource::SociReferrer,
            };
            let brought = blocking(move || draft_of_contents(&store, &name, contents, format, source)).await;
            Ok(ByZtoc::Lazily(Box::new(brought?)))
        }
        Err(SociError::Insufficient(shortfall)) => {
            streamed("its zTOC does not tell enough of it", shortfall.to_string())
        }
        Err(error) => Err(Box::new(error).into()),
    }
}

/// Whether the host of a layer reads by ranges. As a rule the zTOC has shown it; else the layer's first byte is asked for, which costs no
/// more where ranges are ignored.
async fn reads_by_ranges(layer: &Blob) -> Result<bool, peelfs_registry::Error> {
    if layer.range_support().is_none()
        && layer.size() > 1
        && let Err(error) = layer.read(0..1).await
        && error.kind() != ErrorKind::RangeUnsupported
    {
        return Err(error);
    }
    Ok(layer.ranges_work())
}

fn draft_of_contents(
    store: &Store,
    layer: &Digest,
    mut contents: SociContents,
    format: &'static str,
    source: TableSource,
) -> Result<(LayerFiles, PendingPublish), IndexError> {
    let draft = Draft {
        entries: std::mem::take(&mut contents.entries),
        chunks: std::mem::take(&mut contents.chunks),
        decoded_length: contents.decoded_length,
        format,
        source,
        landmark: None,
    };
    draft_of(store, layer, draft, |draft| {
        let written = |name, error| StoreError::from_io("write", name, error);
        let mut checkpoints = DraftCheckpoints::of(draft);
        contents
            .write_checkpoints(CheckpointWriter::new(&mut checkpoints))
            .map_err(|error| written("checkpoints", error))?;
        let claims = headers::written(&contents.claims);
        draft.headers()?.write_all(&claims).map_err(|error| written("headers", error))
    })
}
