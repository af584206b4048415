//! zstd:chunked: a tar.zst whose files can be decoded each by itself, and whose table of contents lies in skippable frames that other
//! readers pass over.
//!
//! ```text
//! blob    │ frame │ frame │ … │ skip: TOC, zstd │ skip: tar-split, zstd │ skip: footer │
//!           ▲                   ▲                 ▲                             where the others are
//!           payload of a file, or of a chunk of it, begins here
//! ```
//!
//! Two dialects. What each was seen to write, in images made by skopeo 1.22 and by `ctr-remote images convert --zstdchunked` (stargz-snapshotter 0.12):
//!
//! | | podman family (containers/storage) | stargz project (stargz-snapshotter) |
//! | --- | --- | --- |
//! | annotations | `io.github.containers.zstd-chunked.*` | `io.containers.zstd-chunked.*`, `…stargz/toc.digest` |
//! | schema of the TOC | with `endOffset`, chunks of zeros | JTOC, as in eStargz |
//! | tar-split | yes, its digest in the TOC | no |
//! | footer | 64 bytes of data | 40 bytes of data |
//!
//! The reader takes any mixture of these: early releases of containers/storage wrote the other prefix and the short footer.
//!
//! Only what the manifest vouches for is believed: the TOC must have the digest that an annotation states, that of its compressed bytes
//! (`manifest-checksum`), of its JSON (`toc.digest`), or both. A layer without such an annotation is an ordinary tar.zst. The place of
//! the TOC is annotated as well, so that one request gets it; where it is not, the footer tells it.

mod claims;
mod fault;
mod footer;
pub mod tar_split;
pub mod writer;

#[cfg(test)]
mod tests;

use std::ops::Range;

use sha2::{Digest, Sha256};

pub use self::claims::Claims;
pub use self::fault::ZstdChunkedError;
pub use self::footer::{MAXIMUM_FOOTER, parse_footer};
use self::tar_split::{MAXIMUM_TAR_SPLIT, TarSplit};
use super::compression::{Decode, PushError};
use super::toc::{self, PayloadRules, TableOfContents};
use super::zstd::ZstdDecoder;
use crate::table::Codec;

/// Longest TOC that is read, in bytes, compressed or not: what containers/storage accepts.
pub const MAXIMUM_TOC: u64 = 150 << 20;

/// What comes before the data of a skippable frame: magic and length (RFC 8878, section 3.1.2).
const SKIPPABLE_HEADER: u64 = 8;
/// The magic, of the sixteen that there are, that all writers of the format use.
const SKIPPABLE_MAGIC: [u8; 4] = [0x50, 0x2a, 0x4d, 0x18];

/// Where compressed data of the format's own are in the blob, without the header of their skippable frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte in the blob.
    pub offset: u64,
    /// Bytes in the blob.
    pub compressed_length: u64,
    /// Bytes that they decode to.
    pub decoded_length: u64,
}

impl Place {
    /// The bytes of the blob; `None` if they are not all in the `blob_size` that it has, with the header before them.
    pub fn range(&self, blob_size: u64) -> Option<Range<u64>> {
        let end = self.offset.checked_add(self.compressed_length)?;
        (SKIPPABLE_HEADER <= self.offset && end <= blob_size).then_some(self.offset..end)
    }
}

/// Where TOC and tar-split data are, as the annotations or the footer say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Positions {
    /// The table of contents.
    pub toc: Place,
    /// What rebuilds the tar from the files.
    pub tar_split: Option<Place>,
}

impl Positions {
    /// The bytes of a blob of `blob_size` bytes that hold the TOC.
    ///
    /// # Errors
    /// If TOC or tar-split data cannot be where they are said to be, or the TOC is longer than [`MAXIMUM_TOC`].
    pub fn toc_range(&self, blob_size: u64) -> Result<Range<u64>, ZstdChunkedError> {
        let range = |what, place: &Place| {
            let Place { offset, compressed_length, .. } = *place;
            let outside = ZstdChunkedError::Place { what, offset, length: compressed_length, blob_size };
            place.range(blob_size).ok_or(outside)
        };
        if let Some(tar_split) = &self.tar_split {
            range("tar-split data", tar_split)?;
        }
        let length = self.toc.compressed_length.max(self.toc.decoded_length);
        if length > MAXIMUM_TOC {
            return Err(ZstdChunkedError::TooLarge { length, limit: MAXIMUM_TOC });
        }
        range("table of contents", &self.toc)
    }

    /// Where the files' payloads end: before the first skippable frame.
    fn payload_end(&self) -> u64 {
        let first = self.tar_split.map_or(self.toc.offset, |place| place.offset.min(self.toc.offset));
        first.saturating_sub(SKIPPABLE_HEADER)
    }
}

/// Where the tar-split data are, which rebuild the tar of a layer, and prove that a TOC says what the tar says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarSplitPlace {
    /// The compressed data in the blob.
    pub blob_range: Range<u64>,
    /// Bytes that they decode to.
    pub decoded_length: u64,
    /// SHA-256 of the compressed data, vouched for by TOC or manifest.
    pub digest: [u8; 32],
}

/// What a zstd:chunked layer says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZstdChunked {
    /// Its files.
    pub contents: TableOfContents,
    /// Its tar-split data, if it has such and says what digest they have.
    pub tar_split: Option<TarSplitPlace>,
}

/// Reads the TOC of a blob of `blob_size` bytes from the bytes at its place, and proves it against all digests that the manifest
/// claims for it.
///
/// # Errors
/// If it is not the TOC with these digests, or does not make sense. Memory is bounded by [`MAXIMUM_TOC`] and what is built from it.
pub fn read_toc(
    compressed: &[u8],
    positions: &Positions,
    claims: &Claims,
    blob_size: u64,
) -> Result<ZstdChunked, ZstdChunkedError> {
    positions.toc_range(blob_size)?;
    let check = |annotation, expected: Option<[u8; 32]>, bytes: &[u8]| match expected {
        Some(expected) if <[u8; 32]>::from(Sha256::digest(bytes)) != expected => {
            let actual = Sha256::digest(bytes).into();
            Err(ZstdChunkedError::Digest { annotation, expected, actual })
        }
        _ => Ok(()),
    };
    check("manifest-checksum", claims.compressed_digest, compressed)?;
    let json = decode(compressed, positions.toc.decoded_length)?;
    check("toc.digest", claims.json_digest, &json)?;
    let rules = PayloadRules { end: positions.payload_end(), codec: Codec::Zstd, ends: None };
    let parsed = toc::parse(&json, rules)?;
    let tar_split = positions.tar_split.and_then(|place| {
        let digest = parsed.tar_split_digest.or(claims.tar_split_digest)?;
        let blob_range = place.range(blob_size)?;
        Some(TarSplitPlace { blob_range, decoded_length: place.decoded_length, digest })
    });
    Ok(ZstdChunked { contents: parsed.contents, tar_split })
}

/// Reads tar-split data from the bytes at their place, and proves them against their digest.
///
/// # Errors
/// If they are not the data with that digest, or do not make sense. Memory is bounded by [`tar_split::MAXIMUM_TAR_SPLIT`].
pub fn read_tar_split(compressed: &[u8], place: &TarSplitPlace) -> Result<TarSplit, ZstdChunkedError> {
    let length = place.decoded_length.max(compressed.len() as u64);
    if length > MAXIMUM_TAR_SPLIT {
        return Err(ZstdChunkedError::TooLarge { length, limit: MAXIMUM_TAR_SPLIT });
    }
    let (expected, actual) = (place.digest, <[u8; 32]>::from(Sha256::digest(compressed)));
    if actual != expected {
        return Err(ZstdChunkedError::Digest { annotation: "tarSplitDigest", expected, actual });
    }
    Ok(TarSplit::parse(&decode(compressed, place.decoded_length)?)?)
}

/// The `length` bytes that `compressed` must decode to.
fn decode(compressed: &[u8], length: u64) -> Result<Vec<u8>, ZstdChunkedError> {
    let mut json = Vec::new();
    let mut decoder = ZstdDecoder::new();
    let pushed = decoder.push(compressed, &mut |bytes| {
        json.extend_from_slice(bytes);
        if json.len() as u64 > length { Err("longer than stated".into()) } else { Ok(()) }
    });
    match pushed {
        Err(PushError::Decode(error)) => return Err(error.into()),
        // Ours is the only error of the output.
        Err(PushError::Output(_)) => return Err(ZstdChunkedError::Length { stated: length }),
        Ok(()) => decoder.finish()?,
    }
    if json.len() as u64 == length { Ok(json) } else { Err(ZstdChunkedError::Length { stated: length }) }
}
