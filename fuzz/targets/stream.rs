//! A layer streamed (`layer/stream.rs`): a blob gives what its archive does; no more than the bound comes out of one; and every part
//! of it can be decoded again by itself.
#![no_main]

use std::io::Write;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use peelfs::layer::chunk::{decode_chunk, decode_span};
use peelfs::layer::compression::Compression;
use peelfs::layer::entry::Entry;
use peelfs::layer::gzip::checkpoint::Checkpoints;
use peelfs::layer::stream::{LayerSink, StreamExpectation, Streamed, unpack_stream};
use peelfs::layer::tar::SinkError;
use peelfs_fuzz::tar::told;
use peelfs_fuzz::{choice, digest_text, file_of, number, one_of, repair, seeds};

/// Most bytes that a layer decodes to here.
const LIMIT: u64 = 2 << 20;
/// Bytes that a streaming layer may decode beyond its bound before that is noticed: one buffer.
const SLACK: u64 = 256 << 10;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    repair::mutate(data, size, max_size, seed, repair::tar)
});

#[derive(Default)]
struct Sink {
    archive: Vec<u8>,
    entries: usize,
}

impl LayerSink for Sink {
    fn archive(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        self.archive.extend_from_slice(bytes);
        Ok(())
    }

    fn entry(&mut self, _entry: Entry) -> Result<(), SinkError> {
        self.entries += 1;
        Ok(())
    }

    fn payload(&mut self, _decoded_offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }
}

fuzz_target!(init: seeds::plant(seeds::streams), |bytes: &[u8]| {
    let mut bytes = bytes;
    let way = choice(&mut bytes);
    // Behind the end of an archive anything may follow: enough of it for several spans.
    let tail = number(&mut bytes, 0x7000) << 4;
    let longest = bytes.len();
    let cut = number(&mut bytes, longest).min(bytes.len());
    let piece = one_of(way >> 4, &[1 << 20, 4096, 100, 3]);
    if way.is_multiple_of(4) {
        // The blob itself, whatever it is.
        unpacked(bytes, piece);
        return;
    }
    let mut archive = bytes.to_vec();
    archive.extend((0..tail).map(|at| ((at * at) >> 7) as u8 ^ at as u8));
    let (first, second) = archive.split_at(cut);
    let (blob, compression) = match way % 4 {
        1 => ([gzip(first), gzip(second)].concat(), Compression::Gzip),
        2 => ([zstd(first), zstd(second)].concat(), Compression::Zstd),
        _ => (archive.clone(), Compression::sniff(&archive)),
    };
    if compression != Compression::sniff(&blob) || (way % 4 == 3 && compression != Compression::None) {
        return;
    }
    let expected = told(&archive, usize::MAX);
    let found = unpacked(&blob, piece);
    assert_eq!(found.is_some(), expected.error.is_none(), "{:?}", expected.error);
    if let Some((streamed, sink)) = found {
        assert_eq!(streamed.compression, compression);
        assert_eq!(sink.entries, expected.entries.len());
        assert!(sink.archive == archive, "another archive");
    }
});

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 1).expect("compressing in memory")
}

/// What a blob gives, if it is a layer; each of its parts was decoded again.
fn unpacked(blob: &[u8], piece: usize) -> Option<(Streamed, Sink)> {
    let expected = StreamExpectation {
        blob_digest: digest_text(blob).parse().expect("a digest"),
        blob_size: blob.len() as u64,
        diff_id: None,
        maximum_decoded: LIMIT,
    };
    let (mut sink, mut checkpoints) = (Sink::default(), Vec::new());
    let pieces = blob.chunks(piece).map(Ok::<_, std::io::Error>);
    let streamed = unpack_stream(pieces, &expected, &mut sink, &mut checkpoints, &|_| {});
    assert!(sink.archive.len() as u64 <= LIMIT + SLACK, "{} bytes came of it", sink.archive.len());
    let streamed = streamed.ok()?;
    assert_eq!(streamed.decoded_length, sink.archive.len() as u64);
    assert_eq!(streamed.diff_id.as_str(), digest_text(&sink.archive));
    check_parts(&streamed, blob, &sink.archive, &checkpoints);
    Some((streamed, sink))
}

fn check_parts(streamed: &Streamed, blob: &[u8], archive: &[u8], checkpoints: &[u8]) {
    let checkpoints = (!checkpoints.is_empty())
        .then(|| Checkpoints::open(file_of(checkpoints)).expect("what was just written"));
    let mut position = 0;
    for chunk in &streamed.chunks {
        assert_eq!(chunk.decoded_offset, position, "a gap between parts");
        position += chunk.decoded_length;
        let bytes = &blob[chunk.blob_offset as usize..(chunk.blob_offset + chunk.blob_length) as usize];
        let checkpoint = match chunk.codec {
            peelfs::table::Codec::GzipSpan => {
                Some(checkpoints.as_ref().expect("checkpoints").get(chunk.checkpoint).expect("a checkpoint"))
            }
            _ => None,
        };
        let decoded = match &checkpoint {
            Some(checkpoint) => decode_span(chunk, checkpoint, bytes),
            None => decode_chunk(chunk, bytes),
        };
        assert!(decoded.as_deref() == Ok(&archive[chunk.decoded_offset as usize..position as usize]));
    }
    assert_eq!(position, archive.len() as u64);
}
