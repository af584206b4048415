//! One layer: read once for its zTOC, and copied where it is not yet.

use std::fmt;
use std::io::{self, Write};

use bytes::Bytes;
use peelfs_registry::{BlobDraft, Error, Repository};

use super::super::ConvertError;
use super::super::layers::blocking;
use super::{Event, IndexRequest};
use crate::fetch::source::feed;
use crate::image::Layer;
use crate::layer::compression::check_media_type;
use crate::layer::lookup::Lookup;
use crate::layer::soci::index::ZtocDescriptor;
use crate::layer::soci::make::{NoZtoc, make_ztoc};
use crate::layer::stream::{MAXIMUM_DECODED, StreamExpectation};

/// Pieces of a layer that wait for the thread that decodes them.
const PIECES: usize = 64;

/// Why a layer has no zTOC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unindexed {
    /// It is so small that it is fetched as a whole.
    Small,
    /// It has a table of contents of its own.
    HasToc,
    /// It can have none.
    Impossible(NoZtoc),
}

impl fmt::Display for Unindexed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unindexed::Small => formatter.write_str("it is small"),
            Unindexed::HasToc => formatter.write_str("it has a table of contents already"),
            Unindexed::Impossible(reason) => reason.fmt(formatter),
        }
    }
}

/// The zTOC of a layer, or why it has none.
pub type LayerIndex = Result<ZtocDescriptor, Unindexed>;

/// Why no zTOC need be tried.
fn known_without(layer: &Layer, minimum: u64) -> Option<Unindexed> {
    let descriptor = &layer.descriptor;
    // A table of contents that cannot be used is as good as none.
    if let Ok(Some(_)) = Lookup::new(&descriptor.annotations, descriptor.size) {
        return Some(Unindexed::HasToc);
    }
    if descriptor.media_type.ends_with("zstd") {
        return Some(Unindexed::Impossible(NoZtoc::Zstd));
    }
    (descriptor.size < minimum).then_some(Unindexed::Small)
}

/// Makes the zTOC of a layer and puts it at the destination; and the layer itself, if it is to be `copied` and is not there.
pub(super) async fn index_layer(
    layer: &Layer,
    source: &Repository,
    destination: &Repository,
    copied: bool,
    request: &IndexRequest,
) -> Result<LayerIndex, ConvertError> {
    let descriptor = &layer.descriptor;
    let digest = descriptor.digest.clone();
    check_media_type(&descriptor.media_type)
        .map_err(|source| ConvertError::MediaType { layer: digest.clone(), source })?;
    let without = known_without(layer, request.minimum_layer);
    let is_missing = copied && !destination.has_blob(&digest, descriptor.size).await?;
    if let (Some(without), false) = (&without, is_missing) {
        return Ok(Err(without.clone()));
    }
    (request.progress)(Event::Reading(digest.clone(), descriptor.size));
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<Result<Bytes, Error>>(PIECES);
    let work = {
        let (layer, destination, progress) = (layer.clone(), destination.clone(), request.progress.clone());
        let (options, scratch) = (request.options.clone(), request.scratch.clone());
        blocking(move || {
            let digest = &layer.descriptor.digest;
            let draft = is_missing.then(|| destination.new_copy(digest, &scratch)).transpose()?;
            let told = |bytes| progress(Event::Read(digest.clone(), bytes));
            let mut tee = Tee { draft, failed: None };
            let pieces = std::iter::from_fn(|| receiver.blocking_recv());
            let made = match without {
                Some(without) => tee.copy(pieces, &told).map(|()| Err(without)),
                None => {
                    let expected = StreamExpectation {
                        blob_digest: digest.clone(),
                        blob_size: layer.descriptor.size,
                        diff_id: Some(layer.diff_id.clone()),
                        maximum_decoded: MAXIMUM_DECODED,
                    };
                    let pieces = pieces.inspect(|piece| {
                        if let Ok(piece) = piece {
                            tee.take(piece);
                        }
                    });
                    make_ztoc(pieces, &expected, &options, &told)
                        .map(|made| made.map_err(Unindexed::Impossible))
                        .map_err(|source| ConvertError::Read { layer: digest.clone(), source: source.into() })
                }
            };
            if let Some(source) = tee.failed {
                return Err(ConvertError::Copy { layer: digest.clone(), source });
            }
            let ztoc = match made? {
                Ok(bytes) => {
                    let mut ztoc = destination.new_blob(&scratch)?;
                    ztoc.write_all(&bytes)
                        .map_err(|source| ConvertError::Copy { layer: digest.clone(), source })?;
                    Ok(ztoc)
                }
                Err(without) => Err(without),
            };
            Ok((tee.draft, ztoc))
        })
    };
    let feeding = feed(source.blob_of(descriptor).stream(0), sender);
    let (worked, ()) = futures_util::future::join(work, feeding).await;
    let (copy, ztoc) = worked?;
    if let Some(copy) = copy {
        copy.keep().await?;
    }
    let ztoc = match ztoc {
        Err(without) => Err(without),
        Ok(ztoc) => {
            let (ztoc_digest, size) = ztoc.keep().await?;
            Ok(ZtocDescriptor {
                digest: ztoc_digest,
                size,
                layer_digest: digest.clone(),
                layer_media_type: super::documents::oci_layer_type(&descriptor.media_type),
                span_size: Some(request.options.span_size),
            })
        }
    };
    (request.progress)(Event::Done(digest, ztoc.as_ref().ok().map(|ztoc| ztoc.size)));
    Ok(ztoc)
}

/// Keeps what passes by.
struct Tee {
    draft: Option<BlobDraft>,
    /// Why nothing more is kept.
    failed: Option<io::Error>,
}

impl Tee {
    fn take(&mut self, piece: &[u8]) {
        if let Some(draft) = &mut self.draft
            && self.failed.is_none()
        {
            self.failed = draft.write_all(piece).err();
        }
    }

    fn copy(
        &mut self,
        pieces: impl Iterator<Item = Result<Bytes, Error>>,
        told: &dyn Fn(u64),
    ) -> Result<(), ConvertError> {
        let mut copied = 0;
        for piece in pieces {
            let piece = piece?;
            self.take(&piece);
            copied += piece.len() as u64;
            told(copied);
        }
        Ok(())
    }
}
