//! Where a layer's missing bytes come from.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryFutureExt, TryStreamExt};
use peelfs_registry::{Blob, BlobDescriptor, ImageReference};
use tokio::sync::{OnceCell, mpsc};

use crate::image::origin::Origin;

/// What ends a ranged read.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// A ranged read under way.
pub type ReadFuture = Pin<Box<dyn Future<Output = Result<Bytes, SourceError>> + Send>>;

/// The bytes of a ranged read, as they arrive.
pub type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;

/// A blob that can be read by ranges.
pub trait BlobSource: Send + Sync + 'static {
    /// Exactly these bytes, not yet verified. It ends within the source's own deadline, retries included.
    fn read(&self, range: Range<u64>) -> ReadFuture;

    /// The same, piece by piece, none of which is empty: together they are these bytes, in order, unless one is an error, which is the last.
    fn pieces(&self, range: Range<u64>) -> Pieces {
        Box::pin(futures_util::stream::once(self.read(range)))
    }

    /// Whether bytes that lie apart can be had by one request, as far as is known.
    fn reads_parts(&self) -> bool {
        false
    }

    /// The bytes of these ranges, which are apart and in order, one after the other, piece by piece. Where that is an error, and
    /// [`reads_parts`](Self::reads_parts) is false now, each of them can still be had by itself.
    fn parts(&self, ranges: Vec<Range<u64>>) -> Pieces {
        let parts: Vec<Pieces> = ranges.into_iter().map(|range| self.pieces(range)).collect();
        Box::pin(futures_util::stream::iter(parts).flatten())
    }

    /// What came last is not what it should be. If somebody else may have the blob, he is asked next.
    fn doubt(&self) {}
}

/// Hands the pieces of a blob to the thread that decodes it, up to the first that did not come. That thread hangs up when it fails or has
/// seen enough: its own word tells more than the end of this.
pub async fn feed<E>(pieces: impl Stream<Item = Result<Bytes, E>>, decoder: mpsc::Sender<Result<Bytes, E>>) {
    let mut pieces = std::pin::pin!(pieces);
    while let Some(piece) = pieces.next().await {
        let failed = piece.is_err();
        if decoder.send(piece).await.is_err() || failed {
            break;
        }
    }
}

/// A blob of the registry or layout that an image comes from. It is opened once, as it remembers what its host can do and
/// where it was redirected to.
#[derive(Clone)]
pub struct OriginBlob(Arc<Unopened>);

struct Unopened {
    origin: Arc<Origin>,
    descriptor: BlobDescriptor,
    /// Where it is, if the origin does not say so.
    place: Option<ImageReference>,
    blob: OnceCell<Blob>,
}

impl OriginBlob {
    /// The blob of that descriptor.
    pub fn new(origin: Arc<Origin>, descriptor: BlobDescriptor) -> OriginBlob {
        OriginBlob(Arc::new(Unopened { origin, descriptor, place: None, blob: OnceCell::new() }))
    }

    /// A blob of another image, which can be had where that is.
    pub fn of_other(origin: Arc<Origin>, descriptor: BlobDescriptor, image: ImageReference) -> OriginBlob {
        OriginBlob(Arc::new(Unopened { origin, descriptor, place: Some(image), blob: OnceCell::new() }))
    }

    /// The image by which it is got.
    pub fn reference(&self) -> &ImageReference {
        let Unopened { origin, descriptor, place, .. } = &*self.0;
        place.as_ref().unwrap_or_else(|| origin.reference_of(&descriptor.digest))
    }

    /// The blob itself.
    ///
    /// # Errors
    ///
    /// Those of [`Origin::repository`].
    pub async fn open(&self) -> Result<&Blob, peelfs_registry::Error> {
        let Unopened { origin, descriptor, place, blob } = &*self.0;
        let open = || async {
            let repository = match place {
                Some(image) => origin.repository_at(image).await?,
                None => origin.repository_of(&descriptor.digest).await?,
            };
            Ok(repository.blob_of(descriptor))
        };
        blob.get_or_try_init(open).await
    }
}

impl BlobSource for OriginBlob {
    fn read(&self, range: Range<u64>) -> ReadFuture {
        let blob = self.clone();
        Box::pin(async move { Ok(blob.open().await?.read(range).await?) })
    }

    fn pieces(&self, range: Range<u64>) -> Pieces {
        let blob = self.clone();
        let pieces =
            async move { Ok::<_, SourceError>(blob.open().await?.pieces(range).map_err(SourceError::from)) };
        Box::pin(pieces.try_flatten_stream())
    }

    fn reads_parts(&self) -> bool {
        self.0.blob.get().is_some_and(Blob::reads_parts)
    }

    fn parts(&self, ranges: Vec<Range<u64>>) -> Pieces {
        let blob = self.clone();
        let pieces =
            async move { Ok::<_, SourceError>(blob.open().await?.parts(&ranges).map_err(SourceError::from)) };
        Box::pin(pieces.try_flatten_stream())
    }

    fn doubt(&self) {
        if let Some(blob) = self.0.blob.get() {
            blob.doubt();
        }
    }
}
