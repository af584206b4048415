//! A stretch of a blob from which several chunks are decoded. Those that share a gzip member or a zstd frame are decoded in one pass.
//!
//! ```text
//! blob     ├──────────── member ────────────┤├── member ──┤
//! decoded  │ skip │ chunk │ headers │ chunk │  chunk       each verified by itself
//! ```
//!
//! Chunks may be asked for in any order; one that begins before the end of the last costs its member's beginning once more.

use super::{ChunkError, MAXIMUM_CHUNK, MAXIMUM_SKIP, decoder, verify_chunk};
use crate::layer::compression::{Decode, DecodeError, Progress};
use crate::layer::entry::Chunk;
use crate::layer::gzip::checkpoint::Checkpoint;
use crate::table::Codec;

/// Bytes of a blob, and what is decoded of them.
pub struct Stretch<'a> {
    start: u64,
    bytes: &'a [u8],
    member: Option<Member>,
    decoded_bytes: u64,
}

/// A member or frame that is being decoded.
struct Member {
    blob_offset: u64,
    codec: Codec,
    checkpoint: u32,
    decoder: Box<dyn Decode + Send>,
    /// Where its undecoded bytes begin in the stretch.
    consumed: usize,
    /// How many bytes came out of it.
    position: u64,
}

impl<'a> Stretch<'a> {
    /// The bytes of a blob from `start` on.
    pub fn new(start: u64, bytes: &'a [u8]) -> Stretch<'a> {
        Stretch { start, bytes, member: None, decoded_bytes: 0 }
    }

    /// Bytes that were decoded so far, those that no chunk wanted included.
    pub fn decoded_bytes(&self) -> u64 {
        self.decoded_bytes
    }

    /// The verified bytes of a chunk whose blob range lies in the stretch: `decoded_length` of them. `checkpoint` is where it begins, if
    /// it needs one.
    ///
    /// # Errors
    /// If the range does not decode to a chunk with that digest. Never are more than `decoded_length` bytes (plus a small buffer) held.
    pub fn chunk(&mut self, chunk: &Chunk, checkpoint: Option<&Checkpoint>) -> Result<Vec<u8>, ChunkError> {
        let blob_offset = chunk.blob_offset;
        for (length, limit) in [(chunk.decoded_length, MAXIMUM_CHUNK), (chunk.skip, MAXIMUM_SKIP)] {
            if length > limit {
                return Err(ChunkError::TooLarge { blob_offset, length, limit });
            }
        }
        // Both fit: the bounds are below 2³².
        let (skip, length) = (chunk.skip as usize, chunk.decoded_length as usize);
        if chunk.codec == Codec::Zeros {
            return Ok(vec![0; length]);
        }
        let short = || ChunkError::Short { blob_offset, length: chunk.decoded_length };
        let begin = blob_offset.checked_sub(self.start).and_then(|begin| usize::try_from(begin).ok());
        let begin = begin.filter(|begin| *begin <= self.bytes.len()).ok_or_else(short)?;
        let end = begin.saturating_add(usize::try_from(chunk.blob_length).unwrap_or(usize::MAX));
        let bytes = &self.bytes[..end.min(self.bytes.len())];
        let is_sealed = chunk.codec == Codec::SealedGzipSpan;
        if is_sealed {
            // Before a decoder sees them.
            verify_chunk(chunk, &bytes[begin..])?;
        }
        let continued = self.member.take().filter(|member| member.leads_to(chunk));
        let member = match continued {
            Some(member) => Some(member),
            None => decoder(chunk, checkpoint)?.map(|decoder| Member {
                blob_offset,
                codec: chunk.codec,
                checkpoint: chunk.checkpoint,
                decoder,
                consumed: begin,
                position: 0,
            }),
        };
        let decoded = match member {
            None => bytes[begin..].get(skip..skip + length).ok_or_else(short)?.to_vec(),
            Some(mut member) => {
                let before = member.position;
                let decoded = member.decode(bytes, chunk.skip, length);
                self.decoded_bytes += member.position - before;
                let decoded = decoded
                    .map_err(|source| ChunkError::Decode { blob_offset, source })?
                    .ok_or_else(short)?;
                // Kept even if this chunk is wrong: the next is verified by itself.
                self.member = Some(member);
                decoded
            }
        };
        if !is_sealed {
            verify_chunk(chunk, &decoded)?;
        }
        Ok(decoded)
    }

    /// Where the stretch ends in the blob.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.bytes.len() as u64)
    }

    /// What follows the chunk that was asked for last: the next `length` bytes that its member decodes to, or, without a length, all
    /// that its member and the following ones up to byte `end` of the blob do. None if it is more than `limit` bytes, or not all there.
    pub fn rest(&mut self, length: Option<u64>, end: u64, limit: usize) -> Option<Vec<u8>> {
        let mut member = self.member.take()?;
        let end = usize::try_from(end.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(..end)?;
        // One more than may be, to see whether there are more.
        let most = limit.saturating_add(1);
        let room =
            length.map_or(most, |length| usize::try_from(length).map_or(most, |length| length.min(most)));
        let mut rest = vec![0; room.min(16 << 10)];
        let mut filled = 0;
        while filled < room {
            if filled == rest.len() {
                rest.resize(room.min(rest.len() * 4), 0);
            }
            match member.step(bytes, &mut rest[filled..]).ok()? {
                0 => break,
                produced => filled += produced,
            }
        }
        self.decoded_bytes += filled as u64;
        rest.truncate(filled);
        let is_whole = match length {
            Some(length) => filled as u64 == length,
            None => member.consumed == end && member.decoder.finish().is_ok(),
        };
        if length.is_some() {
            // The next chunk of the same member begins here, or further on.
            self.member = Some(member);
        }
        (is_whole && filled <= limit).then_some(rest)
    }
}

impl Member {
    /// Whether the chunk is in what is still to be decoded.
    fn leads_to(&self, chunk: &Chunk) -> bool {
        self.blob_offset == chunk.blob_offset
            && self.codec == chunk.codec
            && self.checkpoint == chunk.checkpoint
            && self.position <= chunk.skip
    }

    /// The `length` decoded bytes from `start` on, or none if there are not as many.
    fn decode(&mut self, bytes: &[u8], start: u64, length: usize) -> Result<Option<Vec<u8>>, DecodeError> {
        let mut discarded = vec![0; start.saturating_sub(self.position).min(64 << 10) as usize];
        while self.position < start {
            let room = (start - self.position).min(discarded.len() as u64) as usize;
            if self.step(bytes, &mut discarded[..room])? == 0 {
                return Ok(None);
            }
        }
        let mut decoded = vec![0; length];
        let mut filled = 0;
        while filled < length {
            match self.step(bytes, &mut decoded[filled..])? {
                0 => return Ok(None),
                produced => filled += produced,
            }
        }
        Ok(Some(decoded))
    }

    /// Decodes something into `room`; nothing only if no more comes out of `bytes`.
    fn step(&mut self, bytes: &[u8], room: &mut [u8]) -> Result<usize, DecodeError> {
        loop {
            let input = bytes.get(self.consumed..).unwrap_or_default();
            let Progress { consumed, produced } = self.decoder.decode(input, room)?;
            self.consumed += consumed;
            self.position += produced as u64;
            if produced > 0 || consumed == 0 {
                return Ok(produced);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::layer::testing::pattern;

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A stretch from byte 100 of a blob: two members, each of 100 chunks of 1,000 bytes with 512 bytes before each.
    fn stretch(codec: Codec, encode: Encode) -> (Vec<u8>, Vec<Chunk>, Vec<u8>) {
        let all = pattern(2 * 151_200);
        let mut bytes = Vec::new();
        let mut chunks = Vec::new();
        for member in all.chunks(151_200) {
            let blob_offset = 100 + bytes.len() as u64;
            bytes.extend(encode(member));
            chunks.extend((0..100_usize).map(|number| Chunk {
                blob_offset,
                blob_length: 100 + bytes.len() as u64 - blob_offset,
                decoded_offset: 0,
                decoded_length: 1000,
                skip: number as u64 * 1512 + 512,
                codec,
                checkpoint: 0,
                digest: Sha256::digest(&member[number * 1512 + 512..][..1000]).into(),
            }));
        }
        (bytes, chunks, all)
    }

    fn content(all: &[u8], number: usize) -> &[u8] {
        &all[number / 100 * 151_200 + number % 100 * 1512 + 512..][..1000]
    }

    type Encode = fn(&[u8]) -> Vec<u8>;

    const FORMATS: [(Codec, Encode); 2] =
        [(Codec::Gzip, gzip), (Codec::Zstd, |bytes| zstd::bulk::compress(bytes, 3).unwrap())];

    #[test]
    fn the_chunks_of_a_member_cost_its_decoding_once() {
        for (codec, encode) in FORMATS {
            let (bytes, chunks, all) = stretch(codec, encode);
            let mut stretch = Stretch::new(100, &bytes);
            for (number, chunk) in chunks.iter().enumerate() {
                assert!(
                    stretch.chunk(chunk, None).as_deref() == Ok(content(&all, number)),
                    "{codec:?} {number}"
                );
            }
            assert_eq!(stretch.decoded_bytes(), all.len() as u64, "{codec:?}");
        }
    }

    #[test]
    fn chunks_are_given_in_whatever_order_they_are_asked_for() {
        for (codec, encode) in FORMATS {
            let (bytes, chunks, all) = stretch(codec, encode);
            let mut stretch = Stretch::new(100, &bytes);
            for number in [5, 5, 199, 3, 100, 4, 7, 0, 150, 99] {
                let result = stretch.chunk(&chunks[number], None);
                assert!(result.as_deref() == Ok(content(&all, number)), "{codec:?} {number}");
            }
        }
    }

    #[test]
    fn a_wrong_chunk_spoils_no_other() {
        for (codec, encode) in FORMATS {
            let (bytes, mut chunks, all) = stretch(codec, encode);
            chunks[1].digest = [7; 32];
            chunks[3].blob_length = 10;
            chunks[5].skip = 151_000;
            chunks[7].blob_offset = 99;
            chunks[9].blob_offset = u64::MAX;
            chunks[11].decoded_length = MAXIMUM_CHUNK;
            let mut stretch = Stretch::new(100, &bytes);
            for (number, chunk) in chunks.iter().enumerate() {
                let result = stretch.chunk(chunk, None);
                if number < 12 && number % 2 == 1 {
                    // What a member's decoder has taken in already needs no bytes of its range.
                    assert!(result.is_err() || number == 3, "{codec:?} {number}");
                } else {
                    assert!(result.as_deref() == Ok(content(&all, number)), "{codec:?} {number}: {result:?}");
                }
            }
        }
    }
}
