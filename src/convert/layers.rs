//! One layer: unpacked into a file as it arrives, and written from there.

use std::io::Write;
use std::path::Path;

use peelfs_registry::{Digest, Repository};

use super::{ConvertError, Event, Request};
use crate::fetch::source::feed;
use crate::image::Layer;
use crate::layer::compression::check_media_type;
use crate::layer::spool::spool_layer;
use crate::layer::stream::{MAXIMUM_DECODED, StreamExpectation};
use crate::layer::write::WrittenLayer;

/// Pieces of a layer that wait for the unpacking thread.
const PIECES: usize = 64;

/// What became of a layer.
#[derive(Clone, Debug)]
pub struct ConvertedLayer {
    /// Digest of the new blob.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// What is in it.
    pub written: WrittenLayer,
    /// The blob with its table of contents, if that is at the destination beside it.
    pub toc_blob: Option<TocBlob>,
}

/// A blob that holds the table of contents of a layer.
#[derive(Clone, Debug)]
pub struct TocBlob {
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Converts a layer and puts it at its destination.
pub(super) async fn convert_layer(
    layer: &Layer,
    source: &Repository,
    destination: &Repository,
    request: &Request,
) -> Result<ConvertedLayer, ConvertError> {
    let descriptor = &layer.descriptor;
    let digest = descriptor.digest.clone();
    if let Some(known) = (request.known)(layer)
        && is_there(layer, &known, source, destination, request).await?
    {
        (request.progress)(Event::Done(digest, Box::new(known.clone())));
        return Ok(known);
    }
    check_media_type(&descriptor.media_type)
        .map_err(|source| ConvertError::MediaType { layer: digest.clone(), source })?;
    (request.progress)(Event::Reading(digest.clone(), descriptor.size));
    let (sender, mut receiver) = tokio::sync::mpsc::channel(PIECES);
    let work = {
        let (layer, destination, progress) = (layer.clone(), destination.clone(), request.progress.clone());
        let (format, wanted, scratch) =
            (request.format.clone(), request.wanted.clone(), request.scratch.clone());
        blocking(move || {
            let digest = &layer.descriptor.digest;
            let file = tempfile::tempfile_in(&scratch).map_err(|source| ConvertError::Scratch {
                directory: scratch.display().to_string(),
                source,
            })?;
            let expected = StreamExpectation {
                blob_digest: digest.clone(),
                blob_size: layer.descriptor.size,
                diff_id: Some(layer.diff_id.clone()),
                maximum_decoded: MAXIMUM_DECODED,
            };
            let read = |bytes| progress(Event::Read(digest.clone(), bytes));
            let pieces = std::iter::from_fn(|| receiver.blocking_recv());
            let (spool, streamed) = spool_layer(pieces, &expected, file, &read)
                .map_err(|source| ConvertError::Read { layer: digest.clone(), source: Box::new(source) })?;
            progress(Event::Writing(digest.clone(), streamed.decoded_length));
            let mut draft = destination.new_blob(&scratch)?;
            let told = |bytes| progress(Event::Written(digest.clone(), bytes));
            let written = format
                .write(&spool, &wanted, &mut draft, &told)
                .map_err(|source| ConvertError::Write { layer: digest.clone(), source: Box::new(source) })?;
            Ok::<_, ConvertError>((draft, written))
        })
    };
    let feeding = feed(source.blob_of(descriptor).stream(0), sender);
    let (worked, ()) = futures_util::future::join(work, feeding).await;
    let (draft, mut written) = worked?;
    let (new_digest, size) = draft.keep().await?;
    let toc_blob = match written.external_toc.take() {
        None => None,
        Some(bytes) => {
            let (digest, size) = put_bytes(destination, &request.scratch, bytes).await?;
            Some(TocBlob { digest, size })
        }
    };
    let converted = ConvertedLayer { digest: new_digest, size, written, toc_blob };
    (request.progress)(Event::Done(digest, Box::new(converted.clone())));
    Ok(converted)
}

/// Puts a blob that is all in memory at the destination; gives its digest and size.
pub(super) async fn put_bytes(
    destination: &Repository,
    scratch: &Path,
    bytes: Vec<u8>,
) -> Result<(Digest, u64), ConvertError> {
    let (destination, scratch) = (destination.clone(), scratch.to_owned());
    let draft = blocking(move || {
        let mut draft = destination.new_blob(&scratch)?;
        draft.write_all(&bytes).map_err(|error| ConvertError::SmallBlob { reason: error.to_string() })?;
        Ok::<_, ConvertError>(draft)
    });
    Ok(draft.await?.keep().await?)
}

/// Whether what is known of a layer is at the destination, where it is copied to if it is the layer itself.
async fn is_there(
    layer: &Layer,
    known: &ConvertedLayer,
    source: &Repository,
    destination: &Repository,
    request: &Request,
) -> Result<bool, ConvertError> {
    let digest = &layer.descriptor.digest;
    if known.digest != *digest {
        return Ok(destination.has_blob(&known.digest, known.size).await?);
    }
    (request.progress)(Event::Reading(digest.clone(), known.size));
    let told = |bytes| (request.progress)(Event::Read(digest.clone(), bytes));
    destination.copy_blob(&source.blob_of(&layer.descriptor), Some(source), &told).await?;
    Ok(true)
}

/// Runs what blocks beside the runtime's own threads; its panic goes on here.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => std::panic::panic_any(error.to_string()),
        },
    }
}
