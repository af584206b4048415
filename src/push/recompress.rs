//! A push in another compression: layers that are not in it are converted on the way, the others stay as they are. The result is another
//! image, with the same files.
//!
//! What a layer became is noted: where the destination has that variant already, it is named again and nothing is compressed.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

use peelfs_registry::{BlobDescriptor, Client, Digest, ImageReference, LayoutReference};
use serde::{Deserialize, Serialize};

use super::plan::{Plan, root_digest};
use super::{Platforms, PushError, Pushed, Request, push};
use crate::convert::{self, ConvertedLayer, Format};
use crate::image::Layer;
use crate::layer::compression::Compression;
use crate::layer::estargz::writer::{self as estargz, EstargzOptions};
use crate::layer::lookup::Lookup;
use crate::layer::write::WrittenLayer;
use crate::layer::zstd_chunked::writer::{self as zstd_chunked, ZstdChunkedOptions};
use crate::store::{NoteKind, Store, StoreError};

/// How layers are to be compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compressed {
    /// Gzip, with or without a table of contents.
    Gzip,
    /// Zstandard, with or without one.
    Zstd,
    /// Gzip with one.
    Estargz,
    /// Zstandard with one.
    ZstdChunked,
}

/// What is to become of the layers.
pub struct Recompression {
    /// How they are to be compressed.
    pub compressed: Compressed,
    /// Also those that are so already.
    pub is_forced: bool,
    /// Directory for files that are needed meanwhile.
    pub scratch: PathBuf,
    /// Who is told what happens.
    pub progress: convert::Progress,
}

impl Compressed {
    /// In notes.
    fn name(self) -> &'static str {
        match self {
            Compressed::Gzip => "gzip",
            Compressed::Zstd => "zstd",
            Compressed::Estargz => "estargz",
            Compressed::ZstdChunked => "zstd:chunked",
        }
    }

    fn format(self) -> Format {
        let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        match self {
            Compressed::Gzip => Format::Plain(Compression::Gzip),
            Compressed::Zstd => Format::Plain(Compression::Zstd),
            Compressed::Estargz => Format::Estargz(EstargzOptions {
                chunk_size: estargz::DEFAULT_CHUNK_SIZE,
                minimum_chunk: 0,
                level: estargz::DEFAULT_LEVEL,
                threads,
                external_toc: false,
            }),
            Compressed::ZstdChunked => Format::ZstdChunked(ZstdChunkedOptions {
                chunk_size: None,
                level: zstd_chunked::DEFAULT_LEVEL,
                threads,
            }),
        }
    }

    /// Whether a layer is so, as its descriptor says.
    fn is_of(self, descriptor: &BlobDescriptor) -> bool {
        let toc = || match Lookup::new(&descriptor.annotations, descriptor.size) {
            Ok(Some(lookup)) => Some(lookup.format()),
            _ => None,
        };
        match self {
            Compressed::Gzip => compression_of(descriptor) == Compression::Gzip,
            Compressed::Zstd => compression_of(descriptor) == Compression::Zstd,
            Compressed::Estargz => toc() == Some("estargz"),
            Compressed::ZstdChunked => toc().is_some_and(|format| format.starts_with("zstd:chunked")),
        }
    }
}

fn compression_of(descriptor: &BlobDescriptor) -> Compression {
    match &descriptor.media_type {
        zstd if zstd.ends_with("zstd") => Compression::Zstd,
        gzip if gzip.ends_with("gzip") => Compression::Gzip,
        _ => Compression::None,
    }
}

/// What a layer became.
#[derive(Serialize, Deserialize)]
struct Variant {
    digest: Digest,
    size: u64,
    is_zstd: bool,
    annotations: BTreeMap<String, String>,
    diff_id: Digest,
    uncompressed_size: u64,
    toc_digest: Option<Digest>,
}

/// By how they are compressed.
type Variants = BTreeMap<String, Variant>;

impl Variant {
    /// Nothing if there is more to say of it than a note holds.
    fn of(converted: &ConvertedLayer) -> Option<Variant> {
        let WrittenLayer {
            compression, annotations, diff_id, uncompressed_size, toc_digest, not_lazy, ..
        } = &converted.written;
        (not_lazy.is_none() && *compression != Compression::None).then(|| Variant {
            digest: converted.digest.clone(),
            size: converted.size,
            is_zstd: *compression == Compression::Zstd,
            annotations: annotations.clone(),
            diff_id: diff_id.clone(),
            uncompressed_size: *uncompressed_size,
            toc_digest: toc_digest.clone(),
        })
    }

    fn layer(self) -> ConvertedLayer {
        let written = WrittenLayer {
            compression: if self.is_zstd { Compression::Zstd } else { Compression::Gzip },
            annotations: self.annotations,
            diff_id: self.diff_id,
            uncompressed_size: self.uncompressed_size,
            toc_digest: self.toc_digest,
            external_toc: None,
            missed: Vec::new(),
            not_lazy: None,
        };
        ConvertedLayer { digest: self.digest, size: self.size, written, toc_blob: None }
    }
}

/// A layer that stays what it is.
fn as_it_is(layer: &Layer) -> ConvertedLayer {
    let descriptor = &layer.descriptor;
    let written = WrittenLayer {
        compression: compression_of(descriptor),
        annotations: descriptor.annotations.clone(),
        diff_id: layer.diff_id.clone(),
        // Nobody unpacks it.
        uncompressed_size: 0,
        toc_digest: None,
        external_toc: None,
        missed: Vec::new(),
        not_lazy: None,
    };
    ConvertedLayer { digest: descriptor.digest.clone(), size: descriptor.size, written, toc_blob: None }
}

/// What a push in a certain compression did.
pub enum Recompressed {
    /// All layers were so already.
    AsItIs(Pushed),
    /// It made another image.
    Anew(convert::Converted),
}

/// Pushes an image with its layers compressed otherwise. They come from where the image came from.
///
/// # Errors
/// [`PushError`]; the destination names what it named before then.
pub async fn push_recompressed(
    store: &Arc<Store>,
    request: &Request,
    recompression: Recompression,
) -> Result<Recompressed, PushError> {
    // What the tag means now may be another image.
    let source = pinned(&request.origin, root_digest(store, request)?);
    let Recompression { compressed, is_forced, scratch, progress } = recompression;
    let origin = Client::new(request.client.clone())?.repository(&request.origin)?;
    let plan = Plan::make(store, &origin, request).await?;
    if !is_forced && plan.layers.iter().all(|layer| compressed.is_of(layer)) {
        return Ok(Recompressed::AsItIs(push(store, request).await?));
    }
    let known: convert::Known = {
        let store = store.clone();
        Arc::new(move |layer| {
            if !is_forced && compressed.is_of(&layer.descriptor) {
                return Some(as_it_is(layer));
            }
            let noted = noted(&store, layer).unwrap_or_else(|error| {
                tracing::warn!(layer = %layer.descriptor.digest, error = %crate::error::chain(&error), "it is converted again");
                None
            });
            noted?.remove(compressed.name()).map(Variant::layer)
        })
    };
    let converted = convert::convert(convert::Request {
        source,
        destination: request.destination.clone(),
        platforms: match &request.platforms {
            Platforms::One(platform) => convert::Platforms::One(platform.clone()),
            Platforms::All => convert::Platforms::All,
        },
        format: compressed.format(),
        wanted: Vec::new(),
        client: request.client.clone(),
        profiles: None,
        scratch,
        progress,
        known,
    })
    .await?;
    for (layer, became) in converted.images.iter().flat_map(|image| &image.layers) {
        if became.digest != layer.descriptor.digest
            && let Some(variant) = Variant::of(became)
        {
            let mut variants = noted(store, layer)?.unwrap_or_default();
            variants.insert(compressed.name().to_owned(), variant);
            store.notes().put(NoteKind::Variants, layer.descriptor.digest.as_str(), &variants)?;
        }
    }
    Ok(Recompressed::Anew(converted))
}

fn noted(store: &Store, layer: &Layer) -> Result<Option<Variants>, StoreError> {
    store.notes().get(NoteKind::Variants, layer.descriptor.digest.as_str())
}

fn pinned(origin: &ImageReference, digest: Digest) -> ImageReference {
    match origin {
        ImageReference::Registry(reference) => ImageReference::Registry(reference.with_digest(digest)),
        ImageReference::Layout(layout) => ImageReference::Layout(LayoutReference {
            path: layout.path.clone(),
            name: None,
            digest: Some(digest),
        }),
    }
}
