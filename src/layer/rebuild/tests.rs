//! What chunks and rests are put together to is the archive, byte for byte, whatever was kept and whatever was not.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::*;
use crate::layer::chunk::ChunkError;
use crate::layer::compression::{Compression, Decode};
use crate::layer::testing::pattern;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).unwrap()
}

/// The bytes of a chunk, and its rest, from these bytes of the blob, which begin with it.
fn with_rest(
    chunk: &Chunk,
    next: Option<&Chunk>,
    bytes: &[u8],
    limit: usize,
) -> Result<(Vec<u8>, Option<Vec<u8>>), ChunkError> {
    let mut stretch = Stretch::new(chunk.blob_offset, bytes);
    let decoded = stretch.chunk(chunk, None)?;
    Ok((decoded, rest_of(&mut stretch, chunk, next, limit).map(|(rest, _)| rest)))
}

/// A blob, its archive and its chunks.
struct Layer {
    blob: Vec<u8>,
    archive: Vec<u8>,
    chunks: Vec<Chunk>,
    compression: Compression,
}

impl Layer {
    /// Members of these parts: whether a part is a payload, and how long it is.
    fn new(codec: Codec, members: &[&[(bool, usize)]]) -> Layer {
        let compress = if codec == Codec::Gzip { gzip } else { zstd };
        let compression = if codec == Codec::Gzip { Compression::Gzip } else { Compression::Zstd };
        let mut layer = Layer { blob: Vec::new(), archive: Vec::new(), chunks: Vec::new(), compression };
        let mut seen = 0;
        for member in members {
            let (offset, first) = (layer.blob.len() as u64, layer.chunks.len());
            let mut bytes = Vec::new();
            for (is_payload, length) in *member {
                seen += 1;
                // No two parts are alike.
                let part = pattern(length + seen)[seen..].to_vec();
                if *is_payload {
                    layer.chunks.push(Chunk {
                        blob_offset: offset,
                        blob_length: 0,
                        decoded_offset: layer.chunks.len() as u64 * 1_000_000,
                        decoded_length: *length as u64,
                        skip: bytes.len() as u64,
                        codec,
                        checkpoint: 0,
                        digest: Sha256::digest(&part).into(),
                    });
                }
                bytes.extend(part);
            }
            layer.blob.extend(compress(&bytes));
            layer.archive.extend(bytes);
            let end = layer.blob.len() as u64;
            for chunk in &mut layer.chunks[first..] {
                chunk.blob_length = end - offset;
            }
        }
        layer
    }

    fn records(&self) -> Vec<ChunkRecord> {
        self.chunks.iter().map(ChunkRecord::from).collect()
    }

    /// What each chunk decodes to, and what follows it, up to so many bytes.
    fn rests(&self, limit: usize) -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
        let of = |number: usize| {
            let (chunk, next) = (&self.chunks[number], self.chunks.get(number + 1));
            let start = chunk.blob_offset;
            let end = match next {
                Some(next) if next.blob_offset > start => next.blob_offset,
                _ => start + chunk.blob_length,
            };
            with_rest(chunk, next, &self.blob[start as usize..end as usize], limit).unwrap()
        };
        (0..self.chunks.len()).map(of).collect()
    }

    /// The archive put together from the rests that `is_kept` tells of, and how many bytes of the blob that took.
    fn rebuilt(&self, limit: usize, is_kept: impl Fn(u32) -> bool) -> (Vec<u8>, u64) {
        let parts = self.rests(limit);
        let records = self.records();
        let end = |number: u32| {
            let next = next_stored(&records, number).map(|next| next.blob_offset.get());
            let chunk = &self.chunks[number as usize];
            next.filter(|next| *next > chunk.blob_offset).unwrap_or(chunk.blob_offset + chunk.blob_length)
        };
        let kept: BTreeMap<u32, u64> = (0..parts.len() as u32)
            .filter(|number| is_kept(*number) && parts[*number as usize].1.is_some())
            .map(|number| (number, end(number)))
            .collect();
        let steps = steps(&records, self.blob.len() as u64, |number| kept.get(&number).copied()).unwrap();
        let mut archive = Vec::new();
        for step in &steps {
            match step {
                Step::Chunk(number) => {
                    let (payload, rest) = &parts[*number as usize];
                    archive.extend(payload);
                    archive.extend(rest.as_ref().unwrap());
                }
                Step::Blob(range) => {
                    let mut decoder = self.compression.decoder();
                    let bytes = &self.blob[range.start as usize..range.end as usize];
                    let mut output = |decoded: &[u8]| {
                        archive.extend(decoded);
                        Ok(())
                    };
                    Decode::push(decoder.as_mut(), bytes, &mut output).unwrap();
                    decoder.finish().unwrap();
                }
            }
        }
        (archive, blob_bytes(&steps))
    }
}

/// Headers, payloads with headers after them; frames between; payloads that share a member; one that begins in the middle of its member;
/// a long tail.
fn layers() -> Vec<Layer> {
    let members: &[&[(bool, usize)]] = &[
        &[(false, 1024)],
        &[(true, 5000), (false, 1536)],
        &[(true, 100), (false, 412), (true, 3), (false, 509)],
        &[(true, 70_000)],
        &[(false, 512)],
        &[(false, 1024)],
        &[(true, 1), (false, 511)],
        &[(false, 100), (true, 400), (false, 600)],
        &[(true, 9), (false, 2000)],
        &[(false, 40_000)],
    ];
    vec![Layer::new(Codec::Gzip, members), Layer::new(Codec::Zstd, members)]
}

#[test]
fn whatever_was_kept_the_archive_comes_out() {
    for layer in layers() {
        for kept in 0..1_u32 << layer.chunks.len() {
            let (archive, _) = layer.rebuilt(1 << 20, |number| kept & 1 << number != 0);
            assert!(archive == layer.archive, "with {kept:b}");
        }
    }
}

#[test]
fn with_all_rests_only_head_tail_and_what_begins_amid_a_member_is_fetched() {
    for layer in layers() {
        let (_, fetched) = layer.rebuilt(1 << 20, |_| true);
        let at = |chunk: usize| layer.chunks[chunk].blob_offset;
        let head = at(0);
        let amid = at(6) - at(5);
        let tail = layer.blob.len() as u64 - at(6) - layer.chunks[6].blob_length;
        assert_eq!(fetched, head + amid + tail);
    }
}

#[test]
fn a_rest_that_is_too_long_or_cut_off_is_not_kept() {
    for layer in layers() {
        for (limit, kept) in
            [(1536, [true; 4]), (1535, [false, true, true, true]), (411, [false, false, false, false])]
        {
            let rests = layer.rests(limit);
            let is_kept: Vec<bool> = rests[..4].iter().map(|(_, rest)| rest.is_some()).collect();
            // The fourth is followed by two members of 1,536 bytes in all.
            let kept = if limit == 1536 { kept } else { [kept[0], kept[1], kept[2], false] };
            assert_eq!(is_kept, kept, "{limit}");
        }
        let (chunk, blob) = (&layer.chunks[0], &layer.blob);
        let part = &blob[chunk.blob_offset as usize..(chunk.blob_offset + chunk.blob_length) as usize];
        for cut in 0..part.len() {
            // Without its payload it is an error, and without all of the rest there is none.
            match with_rest(chunk, layer.chunks.get(1), &part[..cut], 1 << 20) {
                Ok((bytes, rest)) => assert_eq!((bytes.len(), rest), (5000, None), "{cut}"),
                Err(error) => {
                    assert!(matches!(error, ChunkError::Short { .. } | ChunkError::Decode { .. }), "{error}")
                }
            }
        }
    }
}

#[test]
fn chunks_that_make_no_archive_are_not_put_together() {
    let chunk = |blob_offset: u64, codec| {
        let mut record = ChunkRecord::from(&layers()[0].chunks[0]);
        record.blob_offset.set(blob_offset);
        record.codec = codec as u8;
        record
    };
    let none = |_| None;
    let all = |_| Some(15);
    for chunks in [
        vec![],
        vec![chunk(10, Codec::Zeros)],
        vec![chunk(10, Codec::Raw)],
        vec![chunk(10, Codec::GzipSpan)],
        vec![chunk(10, Codec::Gzip), chunk(20, Codec::Zstd)],
        vec![chunk(20, Codec::Gzip), chunk(10, Codec::Gzip)],
        vec![chunk(200, Codec::Gzip)],
    ] {
        assert_eq!(steps(&chunks, 100, none), None, "{chunks:?}");
        assert_eq!(steps(&chunks, 100, all), None, "{chunks:?}");
    }
    // A rest that ends where it cannot.
    for end in [0, 10, 31] {
        let chunks = [chunk(10, Codec::Gzip), chunk(30, Codec::Gzip)];
        assert_eq!(
            steps(&chunks, 100, |number| (number == 0).then_some(end)),
            Some(vec![Step::Blob(0..100)])
        );
    }
}
