//! Promises of the spans: whatever a blob looks like, its chunks, fetched one by one, are the layer, and cost little.

use std::fs::File;
use std::io::Write;

use flate2::Compression as Level;
use proptest::prelude::*;

use super::spans::{FORCED, MINIMUM, PART};
use super::tests::{Kept, expectation};
use super::*;
use crate::layer::chunk::{ChunkError, decode_chunk, decode_span, decoder};
use crate::layer::gzip::checkpoint::{Checkpoint, Checkpoints};
use crate::layer::testing::pattern;
use crate::table::Codec;

fn gzip(bytes: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Level::new(level));
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// As pigz writes: one member, with an empty stored block after each piece.
fn gzip_in_pieces(bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Level::new(6));
    for piece in bytes.chunks(piece) {
        encoder.write_all(piece).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// One member whose only block has fixed codes: literals below 144 and the end of the block (RFC 1951, section 3.2.6).
fn gzip_fixed(bytes: &[u8]) -> Vec<u8> {
    let mut deflate = Vec::new();
    let (mut held, mut count) = (0_u32, 0);
    let mut put = |value: u32, bits: u32| {
        held |= value << count;
        count += bits;
        while count >= 8 {
            deflate.push(held as u8);
            held >>= 8;
            count -= 8;
        }
        count
    };
    put(0b011, 3);
    for byte in bytes {
        assert!(*byte < 144);
        put(u32::from(byte + 0x30).reverse_bits() >> 24, 8);
    }
    let left = put(0, 7);
    put(0, (8 - left) % 8);
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(bytes);
    [
        &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255][..],
        &deflate,
        &checksum.finalize().to_le_bytes(),
        &(bytes.len() as u32).to_le_bytes(),
    ]
    .concat()
}

/// Text that compresses to about a third, and never repeats for long.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let words: Vec<Vec<u8>> =
        (0..3000_u32).map(|word| format!("{:x} ", word.wrapping_mul(2_654_435_761)).into_bytes()).collect();
    let mut bytes = Vec::with_capacity(length + 16);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&words[(state >> 33) as usize % words.len()]);
    }
    bytes.truncate(length);
    bytes
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 7_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A tar of one file with that content.
fn layer(content: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, "file", content).unwrap();
    archive.into_inner().unwrap()
}

fn streamed(blob: &[u8], layer: &[u8], piece: usize) -> (Vec<Chunk>, Vec<u8>) {
    let mut checkpoints = Vec::new();
    let pieces = blob.chunks(piece).map(Ok::<_, SinkError>);
    let expected = expectation(blob, layer);
    let result = unpack_stream(pieces, &expected, &mut Kept::default(), &mut checkpoints, &|_| {});
    (result.unwrap().chunks, checkpoints)
}

fn open(bytes: &[u8]) -> Option<Checkpoints> {
    let mut file: File = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    (!bytes.is_empty()).then(|| Checkpoints::open(file).unwrap())
}

fn checkpoint(chunk: &Chunk, checkpoints: Option<&Checkpoints>) -> Option<Checkpoint> {
    (chunk.codec == Codec::GzipSpan).then(|| checkpoints.unwrap().get(chunk.checkpoint).unwrap())
}

fn decoded(chunk: &Chunk, checkpoint: Option<&Checkpoint>, blob: &[u8]) -> Result<Vec<u8>, ChunkError> {
    let range = chunk.blob_offset as usize..(chunk.blob_offset + chunk.blob_length) as usize;
    match checkpoint {
        Some(checkpoint) => decode_span(chunk, checkpoint, &blob[range]),
        None => decode_chunk(chunk, &blob[range]),
    }
}

/// Every chunk is its part of the layer, from its range of the blob alone; together they are the layer.
fn check(blob: &[u8], layer: &[u8], piece: usize) -> (Vec<Chunk>, Vec<u8>) {
    let (chunks, bytes) = streamed(blob, layer, piece);
    let checkpoints = open(&bytes);
    let mut position = 0;
    for chunk in &chunks {
        assert_eq!(chunk.decoded_offset, position);
        position += chunk.decoded_length;
        assert!(chunk.decoded_length <= PART);
        let checkpoint = checkpoint(chunk, checkpoints.as_ref());
        let result = decoded(chunk, checkpoint.as_ref(), blob).unwrap();
        assert!(
            result == layer[chunk.decoded_offset as usize..][..chunk.decoded_length as usize],
            "{chunk:?}"
        );
    }
    assert_eq!(position, layer.len() as u64);
    (chunks, bytes)
}

#[test]
fn every_kind_of_gzip_is_read_by_its_spans() {
    let whole = layer(&text(9 << 20, 1));
    let (first, second) = whole.split_at(3_000_000);
    let small = layer(&text(50_000, 2));
    let plain = layer(&text(2 << 20, 5).iter().map(|byte| byte & 0x7f).collect::<Vec<_>>());
    let one_by_one: Vec<u8> = small.iter().flat_map(|byte| gzip(&[*byte], 6)).collect();
    let empties = gzip(&[], 6).repeat(1000);
    let cases: [(&str, Vec<u8>, &[u8]); 13] = [
        ("fast", gzip(&whole, 1), &whole),
        ("default", gzip(&whole, 6), &whole),
        ("best", gzip(&whole, 9), &whole),
        ("stored blocks", gzip(&whole, 0), &whole),
        ("one fixed block", gzip_fixed(&plain), &plain),
        ("many blocks", gzip_in_pieces(&whole, 128 << 10), &whole),
        ("very many blocks", gzip_in_pieces(&whole[..], 1000), &whole),
        ("two members", [gzip(first, 6), gzip(second, 9)].concat(), &whole),
        (
            "empty members",
            [&empties[..], &gzip(first, 6), &empties, &gzip(second, 6), &empties].concat(),
            &whole,
        ),
        ("padding", [gzip(&whole, 6), vec![0; 100_000]].concat(), &whole),
        ("tiny", gzip(&small, 6), &small),
        ("members of one byte", one_by_one, &small),
        ("window shorter than usual", [gzip(&whole[..2000], 6), gzip(&whole[2000..], 6)].concat(), &whole),
    ];
    for (name, blob, layer) in &cases {
        for piece in [1 << 14, blob.len()] {
            let (chunks, checkpoints) = check(blob, layer, piece);
            let spans = chunks.iter().filter(|chunk| chunk.codec == Codec::GzipSpan).count();
            let cost = checkpoints.len() + 80 * spans;
            assert!(cost * 100 <= blob.len() + 100 * 100, "{name}: {cost} bytes for {}", blob.len());
            if layer.len() < MINIMUM as usize {
                assert_eq!((chunks.len(), checkpoints.len()), (1, 0), "{name}");
            }
        }
    }
    let spans = |at: usize| streamed(&cases[at].1, cases[at].2, 1 << 14).0.len();
    assert!(spans(1) > 2 && spans(3) > 2 && spans(5) > 2, "long members are cut");
    assert_eq!(spans(4), 1, "one block cannot be");
}

#[test]
fn what_is_not_encoded_and_what_has_many_frames_is_cut_without_checkpoints() {
    let whole = layer(&text(3 << 20, 3));
    let frames: Vec<u8> =
        whole.chunks(100_000).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect();
    for (blob, codec) in [(whole.clone(), Codec::Raw), (frames, Codec::Zstd)] {
        let (chunks, checkpoints) = check(&blob, &whole, 70_000);
        assert!(checkpoints.is_empty());
        assert!(chunks.iter().all(|chunk| chunk.codec == codec && chunk.skip == 0));
        let longest = chunks.iter().map(|chunk| chunk.decoded_length).max().unwrap();
        assert!(chunks.len() > 5 && longest < 2 * MINIMUM, "{codec:?}: {longest}");
    }
}

#[test]
fn a_frame_that_is_long_is_cut_into_parts_that_share_it() {
    let whole = layer(&text((2 * PART + 5000) as usize, 4));
    let blob = zstd::bulk::compress(&whole, 1).unwrap();
    let (chunks, _) = check(&blob, &whole, 1 << 16);
    assert_eq!(chunks.iter().map(|chunk| chunk.skip).collect::<Vec<_>>(), [0, PART, 2 * PART]);
    let range = |chunk: &Chunk| (chunk.blob_offset, chunk.blob_length);
    assert!(chunks.iter().all(|chunk| range(chunk) == (0, blob.len() as u64)));
}

#[test]
fn what_decodes_to_a_thousand_times_its_size_is_not_in_one_span() {
    // A window that does not compress after each stretch of zeros that costs nothing: no checkpoint is worth a hundredth.
    let mut content = Vec::new();
    for _ in 0..4 {
        content.extend(vec![0; 6 << 20]);
        content.extend(noise(40 << 10));
    }
    let whole = layer(&content);
    let blob = gzip(&whole, 6);
    let (chunks, checkpoints) = check(&blob, &whole, 1 << 14);
    let longest = chunks.iter().map(|chunk| chunk.decoded_length).max().unwrap();
    assert!(longest < FORCED + (5 << 20), "{longest}");
    assert!(checkpoints.len() < whole.len() / 200);
}

#[test]
fn a_wrong_checkpoint_never_gives_wrong_bytes() {
    let whole = layer(&text(6 << 20, 6));
    let blob = gzip(&whole, 6);
    let (chunks, bytes) = streamed(&blob, &whole, 1 << 14);
    let checkpoints = open(&bytes);
    let chunk = chunks.iter().find(|chunk| chunk.codec == Codec::GzipSpan).unwrap();
    let right = checkpoint(chunk, checkpoints.as_ref()).unwrap();
    let expected = decoded(chunk, Some(&right), &blob).unwrap();
    let wrong = [
        Checkpoint { bits: (right.bits + 1) % 8, ..right.clone() },
        Checkpoint { window: Vec::new(), ..right.clone() },
        Checkpoint { window: vec![1; 32 << 10], ..right.clone() },
        Checkpoint { window: vec![1; 64 << 10], ..right.clone() },
        Checkpoint { bits: 255, ..right.clone() },
    ];
    for checkpoint in &wrong {
        let result = decoded(chunk, Some(checkpoint), &blob);
        assert!(result.is_err() || result.as_ref() == Ok(&expected), "{}", checkpoint.bits);
    }
    assert_eq!(decoded(chunk, None, &blob), Err(ChunkError::NoCheckpoint { blob_offset: chunk.blob_offset }));
    assert!(decoder(chunk, None).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_content_in_any_members_of_any_level_is_read_by_its_spans(
        parts in proptest::collection::vec((0..600_000_usize, 0..4_u8, 0..=9_u32, any::<u64>()), 1..5),
        piece in 1000..300_000_usize,
    ) {
        let contents: Vec<Vec<u8>> = parts.iter().map(|(length, kind, _, seed)| match kind {
            0 => vec![*seed as u8; *length],
            1 => noise(*length),
            2 => text(*length, *seed),
            _ => pattern(*length),
        }).collect();
        let whole = layer(&contents.concat());
        let mut rest = &whole[..];
        let mut blob = Vec::new();
        for (length, _, level, _) in &parts {
            let (part, after) = rest.split_at((*length).min(rest.len()));
            blob.extend(gzip(part, *level));
            rest = after;
        }
        blob.extend(gzip(rest, 6));
        check(&blob, &whole, piece);
    }
}
