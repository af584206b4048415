//! What is known of the layers of an image: how each is read, why so, how much of it is here, and what was proved of it.

use std::sync::Arc;
use std::time::Duration;

use peelfs_registry::{ClientConfiguration, ImageReference};

use crate::fetch::content::Presence;
use crate::fetch::index::{IndexError, Indexer, open_local_when_made};
use crate::fetch::proof::{ProofError, Standing};
use crate::fetch::{Fetcher, LayerContent, ThreadStarter};
use crate::image::origin::Origin;
use crate::image::{Image, Layer};
use crate::layer::lookup::Lookup;
use crate::store::{Provenance, Store, StoreError};
use crate::table::Codec;

/// What is known of a layer that is in the store.
#[derive(Clone, Debug)]
pub struct LayerAccount {
    /// How it came to be here; a layer that an earlier version of this program made does not say.
    pub provenance: Option<Provenance>,
    /// How much of it is here.
    pub presence: Presence,
    /// Bytes of the blob whose content is here.
    pub present_bytes: u64,
    /// What was proved of it.
    pub standing: Standing,
    /// How it is got again, part by part.
    pub parts: Parts,
}

/// The parts in which a layer is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// It is never fetched again.
    None,
    /// Any range of its blob.
    Ranges,
    /// So many ranges of a gzip blob can be decoded each by itself.
    GzipSpans(u64),
    /// So many frames, or groups of them, of a zstd blob.
    ZstdFrames(u64),
    /// One part of the blob holds all: it is decoded whole again whenever anything of it is missing.
    Whole,
}

/// What is known of a layer of `image`; nothing if it is not in the store.
///
/// # Errors
/// If the store cannot be read.
pub fn explain_layer(
    store: &Store,
    image: &Image,
    layer: &Layer,
) -> Result<Option<LayerAccount>, StoreError> {
    let content = open_local_when_made(store, &image.manifest_digest, layer)?;
    let Some(content) = content else { return Ok(None) };
    let provenance = content.provenance()?;
    Ok(Some(LayerAccount {
        presence: content.presence(),
        present_bytes: content.blob_bytes_present(layer.descriptor.size),
        standing: content.standing(layer)?,
        parts: parts(&content),
        provenance,
    }))
}

/// The format that a layer's descriptor announces, which is all that is known of it before it is read.
pub fn announced_format(layer: &Layer) -> &'static str {
    let descriptor = &layer.descriptor;
    match Lookup::new(&descriptor.annotations, descriptor.size) {
        Ok(Some(lookup)) => lookup.format(),
        Ok(None) | Err(_) => layer.archive_format(),
    }
}

/// Proves those layers of an image that are wholly here and are not proved yet, and tells which could not be: their numbers from 0
/// on. Blocks, for as long as reading their blobs takes.
///
/// # Errors
/// If the store cannot be read.
pub fn prove(
    store: &Arc<Store>,
    threads: &ThreadStarter,
    reference: &ImageReference,
    client: ClientConfiguration,
    image: &Image,
) -> Result<Vec<(usize, ProofError)>, StoreError> {
    let origin = super::names::origin_of_manifest(store, reference, image.manifest_digest.as_str())?;
    let origin = Origin::new(origin, client);
    let (elsewhere, ancestors) = super::bring::origins(store, &image.manifest_digest)?;
    origin.layers_are_elsewhere(elsewhere);
    // Nothing is read, so nobody waits.
    let fetcher = Fetcher::new(threads.clone(), Duration::MAX, None, |_| {});
    let indexer = Indexer::new(store.clone(), origin, fetcher, Arc::new(|_| {}));
    // Whatever is here may be proved, whoever was believed when it was made.
    indexer.bring_for(&image.manifest_digest, ancestors, true);
    let mut failed = Vec::new();
    for (number, layer) in image.layers.iter().enumerate() {
        let content = match indexer.open_known(layer) {
            Ok(Some(content)) => content,
            Err(IndexError::Store(error)) => return Err(error),
            // It is not here, or is known to be poisoned.
            Ok(None) | Err(_) => continue,
        };
        if let Err(error) = content.prove() {
            failed.push((number, error));
        }
    }
    Ok(failed)
}

fn parts(content: &LayerContent) -> Parts {
    let chunks = content.table().chunks();
    if content.presence().all_chunks == 0 {
        return Parts::None;
    }
    let (mut distinct, mut before, mut codec) = (0, None, None);
    for chunk in chunks.iter().filter(|chunk| chunk.codec != Codec::Zeros as u8) {
        let range = Some((chunk.blob_offset.get(), chunk.blob_length.get()));
        distinct += u64::from(before != range);
        before = range;
        codec = codec.or(Codec::from_number(chunk.codec));
    }
    match codec {
        Some(Codec::Raw) => Parts::Ranges,
        Some(_) if distinct == 1 && chunks.len() > 1 => Parts::Whole,
        Some(Codec::Gzip | Codec::GzipSpan | Codec::SealedGzipSpan) => Parts::GzipSpans(distinct),
        Some(Codec::Zstd) => Parts::ZstdFrames(distinct),
        Some(Codec::Zeros) | None => Parts::None,
    }
}
