//! From a layer's annotations to its table of contents, whatever its format: which bytes to read, and what they say. Pure; whoever
//! has the blob reads them.
//!
//! ```text
//! annotations ─▶ Lookup ─▶ first_range ── read ──▶ locate ─▶ Located ── read its place, if it is another ──▶ read_toc
//! ```
//!
//! - An annotated place of a zstd:chunked TOC is read, and nothing else.
//! - Else the end of the blob is read, large enough to hold footer and TOC as a rule.

use std::collections::BTreeMap;
use std::ops::Range;

use super::estargz::{self, EstargzError};
use super::toc::{self, TableOfContents, sha256};
use super::zstd_chunked::{self, Claims, Positions, ZstdChunkedError};

/// Why a TOC cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// That of an eStargz layer.
    #[error(transparent)]
    Estargz(#[from] EstargzError),
    /// That of a zstd:chunked layer.
    #[error(transparent)]
    ZstdChunked(#[from] ZstdChunkedError),
}

/// A TOC that the manifest vouches for, and that is still to be found.
#[derive(Clone, Debug)]
pub struct Lookup {
    blob_size: u64,
    estargz_digest: Option<[u8; 32]>,
    claims: Option<Claims>,
    first_range: Range<u64>,
}

/// A TOC that was found.
#[derive(Clone, Debug)]
pub struct Located {
    place: TocPlace,
    blob_size: u64,
    format: Format,
}

/// Where a TOC is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TocPlace {
    /// In these bytes of the layer's blob.
    Blob(Range<u64>),
    /// In a layer of the image's TOC image ([`estargz::TOC_IMAGE_SUFFIX`]), all of whose bytes are wanted.
    TocImage,
}

#[derive(Clone, Debug)]
enum Format {
    Estargz { digest: [u8; 32], toc_offset: u64 },
    ExternalEstargz { digest: [u8; 32], payload_end: u64 },
    ZstdChunked { positions: Positions, claims: Claims },
}

impl Lookup {
    /// The TOC that these annotations of a layer's descriptor vouch for, if they do.
    ///
    /// # Errors
    /// If they place it where it cannot be.
    pub fn new(
        annotations: &BTreeMap<String, String>,
        blob_size: u64,
    ) -> Result<Option<Lookup>, LookupError> {
        let estargz_digest =
            annotations.get(estargz::TOC_DIGEST_ANNOTATION).and_then(|digest| sha256(digest));
        let claims = Claims::from_annotations(annotations);
        if estargz_digest.is_none() && claims.is_none() {
            return Ok(None);
        }
        let first_range = match claims.as_ref().and_then(|claims| claims.positions) {
            Some(positions) => positions.toc_range(blob_size)?,
            None => blob_size - tail_length(blob_size)..blob_size,
        };
        Ok(Some(Lookup { blob_size, estargz_digest, claims, first_range }))
    }

    /// SHA-256 of the TOC, by which other tools look the layer up: of a zstd:chunked one with both, that of its JSON.
    pub fn toc_sha256(&self) -> Option<[u8; 32]> {
        let claims = self.claims.as_ref();
        self.estargz_digest
            .or_else(|| claims.and_then(|claims| claims.compressed_digest.or(claims.json_digest)))
    }

    /// The layer's format as its descriptor announces it, for people.
    pub fn format(&self) -> &'static str {
        match &self.claims {
            // The eStargz annotation alone: the stargz project's zstd:chunked has others, too.
            Some(claims) if claims.positions.is_none() && claims.compressed_digest.is_none() => "estargz",
            None => "estargz",
            Some(claims) if claims.positions.is_some_and(|positions| positions.tar_split.is_some()) => {
                "zstd:chunked (podman)"
            }
            Some(_) => "zstd:chunked (stargz)",
        }
    }

    /// All that the descriptor claims of the TOC, in words that are the same for the same claims, and for no others: they decide what is
    /// read of a blob. What layers are kept by depends on these words.
    pub fn claims(&self) -> String {
        let estargz = self.estargz_digest.map_or("-".to_owned(), |digest| toc::hex(&digest));
        let annotated = self.claims.as_ref().map_or("-".to_owned(), Claims::to_string);
        format!("{} bytes, eStargz {estargz}, zstd:chunked {annotated}", self.blob_size)
    }

    /// The bytes of the blob to read first.
    pub fn first_range(&self) -> Range<u64> {
        self.first_range.clone()
    }

    /// Where the TOC is, by the bytes of [`Self::first_range`]; `None` if the blob has none.
    ///
    /// # Errors
    /// If the footer places it where it cannot be.
    pub fn locate(self, first: &[u8]) -> Result<Option<Located>, LookupError> {
        let blob_size = self.blob_size;
        let annotated = self.claims.as_ref().and_then(|claims| claims.positions);
        let gzip_footer = if annotated.is_none() { estargz::Footer::parse(first, blob_size) } else { None };
        if let (Some(footer), Some(digest)) = (gzip_footer, self.estargz_digest) {
            let (place, format) = match footer {
                // The footer's own check: the sum is within the blob.
                estargz::Footer::Internal { toc_offset, toc_length } => (
                    TocPlace::Blob(toc_offset..toc_offset + toc_length),
                    Format::Estargz { digest, toc_offset },
                ),
                estargz::Footer::External { payload_end } => {
                    (TocPlace::TocImage, Format::ExternalEstargz { digest, payload_end })
                }
            };
            return Ok(Some(Located { place, blob_size, format }));
        }
        let positions = annotated.or_else(|| zstd_chunked::parse_footer(first));
        let (Some(positions), Some(claims)) = (positions, self.claims) else { return Ok(None) };
        let place = TocPlace::Blob(positions.toc_range(blob_size)?);
        Ok(Some(Located { place, blob_size, format: Format::ZstdChunked { positions, claims } }))
    }
}

/// Whether an entry of that name is no part of the image but what the writer of a layer with these annotations added to its archive.
/// A layer that is streamed shows the same files as one whose TOC is used.
pub fn is_bookkeeping(annotations: &BTreeMap<String, String>, path: &[u8]) -> bool {
    hides_bookkeeping(annotations) && toc::is_bookkeeping(path)
}

/// Whether there may be such entries in a layer with these annotations.
pub fn hides_bookkeeping(annotations: &BTreeMap<String, String>) -> bool {
    annotations.contains_key(estargz::TOC_DIGEST_ANNOTATION)
}

impl Located {
    /// The layer's format, for people.
    pub fn format(&self) -> &'static str {
        match &self.format {
            Format::Estargz { .. } => "estargz",
            Format::ExternalEstargz { .. } => "estargz with an external table of contents",
            // Only that dialect has tar-split data.
            Format::ZstdChunked { positions, .. } if positions.tar_split.is_some() => "zstd:chunked (podman)",
            Format::ZstdChunked { .. } => "zstd:chunked (stargz)",
        }
    }

    /// Where the TOC is.
    pub fn place(&self) -> &TocPlace {
        &self.place
    }

    /// Reads the TOC from the bytes of [`Self::place`], and proves it.
    ///
    /// # Errors
    /// If it is not what the manifest vouches for, or does not make sense.
    pub fn read_toc(&self, bytes: &[u8]) -> Result<TableOfContents, LookupError> {
        Ok(match &self.format {
            Format::Estargz { digest, toc_offset } => {
                estargz::read_toc(bytes, *digest, self.blob_size, *toc_offset)?
            }
            Format::ExternalEstargz { digest, payload_end } => {
                estargz::read_external_toc(bytes, *digest, *payload_end)?
            }
            Format::ZstdChunked { positions, claims } => {
                zstd_chunked::read_toc(bytes, positions, claims, self.blob_size)?.contents
            }
        })
    }
}

/// Bytes of the end of a layer blob that are fetched first. One hundredth is more than footer and table of contents take as a
/// rule: 0.7 % of the layers of a Debian system with Python.
fn tail_length(blob_size: u64) -> u64 {
    (blob_size / 100).clamp(64 << 10, 8 << 20).min(blob_size)
}
