//! A chunk's blob range becomes its bytes: decoded within bounds, and verified before anybody sees them.

use sha2::{Digest, Sha256};

use super::compression::{Decode, DecodeError, Progress};
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
/// [`ChunkError::NoCheckpoint`] for codecs that need one: see [`decode_span`].
pub fn decode_chunk(chunk: &Chunk, blob_bytes: &[u8]) -> Result<Vec<u8>, ChunkError> {
    decode_from(chunk, None, blob_bytes)
}

/// The same for a chunk that begins at `checkpoint`. The checkpoint need not be trusted, if it is wrong, the digest does not match;
/// but for [`Codec::SealedGzipSpan`] it must be, for the digest is that of `blob_bytes`.
///
/// # Errors
/// As for [`decode_chunk`].
pub fn decode_span(chunk: &Chunk, checkpoint: &Checkpoint, blob_bytes: &[u8]) -> Result<Vec<u8>, ChunkError> {
    decode_from(chunk, Some(checkpoint), blob_bytes)
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
        (Codec::GzipSpan | Codec::SealedGzipSpan, Some(checkpoint)) => {
            Some(Box::new(GzipDecoder::resume(checkpoint)))
        }
        (Codec::GzipSpan | Codec::SealedGzipSpan, None) => {
            return Err(ChunkError::NoCheckpoint { blob_offset: chunk.blob_offset });
        }
    })
}

fn decode_from(
    chunk: &Chunk,
    checkpoint: Option<&Checkpoint>,
    blob_bytes: &[u8],
) -> Result<Vec<u8>, ChunkError> {
    let too_large = |length, limit| ChunkError::TooLarge { blob_offset: chunk.blob_offset, length, limit };
    if chunk.decoded_length > MAXIMUM_CHUNK {
        return Err(too_large(chunk.decoded_length, MAXIMUM_CHUNK));
    }
    if chunk.skip > MAXIMUM_SKIP {
        return Err(too_large(chunk.skip, MAXIMUM_SKIP));
    }
    // Both fit: the bounds are below 2³².
    let (skip, length) = (chunk.skip as usize, chunk.decoded_length as usize);
    let is_sealed = chunk.codec == Codec::SealedGzipSpan;
    if is_sealed {
        // Before a decoder sees them.
        verify_chunk(chunk, blob_bytes)?;
    }
    let short = || ChunkError::Short { blob_offset: chunk.blob_offset, length: chunk.decoded_length };
    let decoded = match decoder(chunk, checkpoint)? {
        Some(mut decoder) => decode_part(decoder.as_mut(), blob_bytes, skip, length)
            .map_err(|source| ChunkError::Decode { blob_offset: chunk.blob_offset, source })?
            .ok_or_else(short)?,
        None if chunk.codec == Codec::Zeros => return Ok(vec![0; length]),
        None => blob_bytes.get(skip..skip + length).ok_or_else(short)?.to_vec(),
    };
    if !is_sealed {
        verify_chunk(chunk, &decoded)?;
    }
    Ok(decoded)
}

/// Checks the bytes of a chunk that its digest covers: the decoded ones, unless the codec says otherwise.
///
/// # Errors
/// [`ChunkError::Digest`] if they do not match.
pub fn verify_chunk(chunk: &Chunk, covered: &[u8]) -> Result<(), ChunkError> {
    if <[u8; 32]>::from(Sha256::digest(covered)) == chunk.digest {
        Ok(())
    } else {
        Err(ChunkError::Digest { blob_offset: chunk.blob_offset })
    }
}

/// `length` decoded bytes after the first `skip` ones, or none if there are not as many.
fn decode_part(
    decoder: &mut dyn Decode,
    mut input: &[u8],
    mut skip: usize,
    length: usize,
) -> Result<Option<Vec<u8>>, DecodeError> {
    let mut discarded = vec![0; skip.min(64 << 10)];
    while skip > 0 {
        let room = skip.min(discarded.len());
        let Progress { consumed, produced } = decoder.decode(input, &mut discarded[..room])?;
        input = &input[consumed..];
        skip -= produced;
        if consumed == 0 && produced == 0 {
            return Ok(None);
        }
    }
    let mut decoded = vec![0; length];
    let mut filled = 0;
    while filled < length {
        let Progress { consumed, produced } = decoder.decode(input, &mut decoded[filled..])?;
        input = &input[consumed..];
        filled += produced;
        if consumed == 0 && produced == 0 {
            return Ok(None);
        }
    }
    Ok(Some(decoded))
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
            blob_length: 0,
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
    fn a_sealed_span_is_verified_as_it_was_fetched() {
        let all = pattern(200_000);
        let blob = gzip(&all);
        // Past the header, a member is one deflate stream, and its beginning a checkpoint without anything before it.
        let (span, checkpoint) = (&blob[10..], Checkpoint { bits: 0, window: Vec::new() });
        let sealed = |range: &[u8], length| Chunk {
            digest: Sha256::digest(range).into(),
            decoded_length: length,
            ..chunk(Codec::SealedGzipSpan, 0, &all)
        };
        // The end of a span need not be wanted.
        for length in [200_000, 5] {
            let decoded = decode_span(&sealed(span, length), &checkpoint, span);
            assert!(decoded.unwrap() == all[..length as usize]);
        }
        let wrong = ChunkError::Digest { blob_offset: 100 };
        for range in [&blob[11..], &blob[10..blob.len() - 1], &[]] {
            assert_eq!(decode_span(&sealed(span, 5), &checkpoint, range), Err(wrong.clone()));
        }
        // A digest of what it decodes to does not do.
        let of_decoded = Chunk { digest: Sha256::digest(&all).into(), ..sealed(span, 200_000) };
        assert_eq!(decode_span(&of_decoded, &checkpoint, span), Err(wrong));
        let missing = decode_chunk(&sealed(span, 5), span);
        assert_eq!(missing, Err(ChunkError::NoCheckpoint { blob_offset: 100 }));
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
