//! A chunk's blob range becomes its bytes: decoded within bounds, and verified before anybody sees them.

mod stretch;

use sha2::{Digest, Sha256};

pub use self::stretch::Stretch;
use super::compression::{Decode, DecodeError};
use super::entry::Chunk;
use super::gzip::GzipDecoder;
use super::gzip::checkpoint::Checkpoint;
use super::zstd::ZstdDecoder;
use crate::table::Codec;

/// Most bytes that one chunk decodes to. It bounds what one read may cost in memory, whatever a table of contents says. Writers make
/// chunks of 4 MiB unless told otherwise.
pub const MAXIMUM_CHUNK: u64 = 64 << 20;

/// Most bytes that are decoded before a chunk's begin. They cost time only; members that several files share are small as a rule.
pub const MAXIMUM_SKIP: u64 = 256 << 20;

/// Why a chunk has no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The chunk claims more than any chunk may.
    #[error("chunk at byte {blob_offset} of the blob claims {length} bytes, more than {limit}")]
    TooLarge {
        /// First byte of its range.
        blob_offset: u64,
        /// What it claims.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// The range holds something else than the codec expects.
    #[error("chunk at byte {blob_offset} of the blob: {source}")]
    Decode {
        /// First byte of its range.
        blob_offset: u64,
        /// What is wrong.
        source: DecodeError,
    },
    /// The range begins within a gzip member, and nothing is known of what went before.
    #[error("chunk at byte {blob_offset} of the blob needs a checkpoint")]
    NoCheckpoint {
        /// First byte of its range.
        blob_offset: u64,
    },
    /// The range decodes to too little.
    #[error("chunk at byte {blob_offset} of the blob ends before its {length} bytes")]
    Short {
        /// First byte of its range.
        blob_offset: u64,
        /// Bytes that it should have.
        length: u64,
    },
    /// The bytes are not those that the table of contents vouches for.
    #[error(
        "chunk at byte {blob_offset} of the blob does not match its digest: it is corrupt or was tampered with"
    )]
    Digest {
        /// First byte of its range.
        blob_offset: u64,
    },
}

/// The bytes of `chunk`, from the bytes of its blob range. They match its digest, and there are `decoded_length` of them.
///
/// A gzip member or zstd frame may hold more than the chunk, before and after it; nothing after it is decoded. A range may hold several
/// members or frames. Zeros have no digest: it is the table of contents itself that says they are.
///
/// # Errors
/// If the range does not decode to a chunk with that digest. Never are more than `decoded_length` bytes (plus a small buffer) held.
/// [`ChunkError::NoCheckpoint`] for [`Codec::GzipSpan`]: see [`decode_span`].
pub fn decode_chunk(chunk: &Chunk, blob_bytes: &[u8]) -> Result<Vec<u8>, ChunkError> {
    Stretch::new(chunk.blob_offset, blob_bytes).chunk(chunk, None)
}

/// The same for a chunk that begins at `checkpoint`. The checkpoint need not be trusted: if it is wrong, the digest does not match.
///
/// # Errors
/// As for [`decode_chunk`].
pub fn decode_span(chunk: &Chunk, checkpoint: &Checkpoint, blob_bytes: &[u8]) -> Result<Vec<u8>, ChunkError> {
    Stretch::new(chunk.blob_offset, blob_bytes).chunk(chunk, Some(checkpoint))
}

/// A decoder for the blob range of a chunk; none is needed for what is not encoded.
///
/// # Errors
/// [`ChunkError::NoCheckpoint`] if it needs one.
pub fn decoder(
    chunk: &Chunk,
    checkpoint: Option<&Checkpoint>,
) -> Result<Option<Box<dyn Decode + Send>>, ChunkError> {
    Ok(match (chunk.codec, checkpoint) {
        (Codec::Raw | Codec::Zeros, _) => None,
        (Codec::Gzip, _) => Some(Box::new(GzipDecoder::new())),
        (Codec::Zstd, _) => Some(Box::new(ZstdDecoder::new())),
        (Codec::GzipSpan, Some(checkpoint)) => Some(Box::new(GzipDecoder::resume(checkpoint))),
        (Codec::GzipSpan, None) => {
            return Err(ChunkError::NoCheckpoint { blob_offset: chunk.blob_offset });
        }
    })
}

/// Checks decoded bytes against the digest of their chunk.
///
/// # Errors
/// [`ChunkError::Digest`] if they do not match.
pub fn verify_chunk(chunk: &Chunk, decoded: &[u8]) -> Result<(), ChunkError> {
    if <[u8; 32]>::from(Sha256::digest(decoded)) == chunk.digest {
        Ok(())
    } else {
        Err(ChunkError::Digest { blob_offset: chunk.blob_offset })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::layer::testing::pattern;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn chunk(codec: Codec, skip: u64, bytes: &[u8]) -> Chunk {
        Chunk {
            blob_offset: 100,
            // Whatever is given.
            blob_length: u64::MAX,
            decoded_offset: 0,
            decoded_length: bytes.len() as u64,
            skip,
            codec,
            checkpoint: 0,
            digest: Sha256::digest(bytes).into(),
        }
    }

    #[test]
    fn a_chunk_is_decoded_from_the_middle_of_its_range() {
        let all = pattern(200_000);
        let frames: Vec<u8> =
            all.chunks(60_000).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect();
        let encodings = [
            (Codec::Raw, all.clone()),
            (Codec::Gzip, gzip(&all)),
            (Codec::Zstd, zstd::bulk::compress(&all, 3).unwrap()),
            (Codec::Zstd, frames),
        ];
        for (codec, encoded) in encodings {
            for (skip, length) in [(0, 1), (0, 200_000), (512, 70_000), (199_999, 1)] {
                let part = &all[skip..skip + length];
                let result = decode_chunk(&chunk(codec, skip as u64, part), &encoded);
                assert!(result.as_deref() == Ok(part), "{codec:?} {skip} {length}");
            }
        }
    }

    #[test]
    fn a_hole_needs_no_bytes() {
        assert_eq!(decode_chunk(&chunk(Codec::Zeros, 0, &[0; 5000]), &[]), Ok(vec![0; 5000]));
    }

    #[test]
    fn bytes_that_the_digest_does_not_vouch_for_are_never_given() {
        let all = pattern(1000);
        let zstd = zstd::bulk::compress(&all, 3).unwrap();
        for (codec, encoded) in [(Codec::Raw, all.clone()), (Codec::Gzip, gzip(&all)), (Codec::Zstd, zstd)] {
            let chunk = Chunk { digest: [7; 32], ..chunk(codec, 0, &all) };
            assert_eq!(decode_chunk(&chunk, &encoded), Err(ChunkError::Digest { blob_offset: 100 }));
        }
    }

    #[test]
    fn a_range_that_decodes_to_too_little_is_refused() {
        let all = pattern(1000);
        let encodings = [
            (Codec::Raw, all.clone()),
            (Codec::Gzip, gzip(&all)),
            (Codec::Zstd, zstd::bulk::compress(&all, 3).unwrap()),
        ];
        for (codec, encoded) in encodings {
            for (skip, blob) in
                [(1, &encoded[..]), (2000, &encoded), (0, &encoded[..encoded.len() / 2]), (0, &[])]
            {
                let result = decode_chunk(&chunk(codec, skip, &all), blob);
                assert!(matches!(result, Err(ChunkError::Short { .. })), "{codec:?} {skip}: {result:?}");
            }
        }
    }

    #[test]
    fn no_claim_makes_it_allocate_without_bound() {
        let cases = [(0, MAXIMUM_CHUNK + 1), (0, u64::MAX), (MAXIMUM_SKIP + 1, 1), (u64::MAX, 1)];
        for (skip, decoded_length) in cases {
            let chunk = Chunk { decoded_length, ..chunk(Codec::Zeros, skip, &[]) };
            assert!(matches!(decode_chunk(&chunk, &[]), Err(ChunkError::TooLarge { .. })));
        }
    }
}
