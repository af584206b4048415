//! Gzip and zstd (`layer/gzip.rs`, `layer/zstd.rs`): the pieces in which a blob arrives decide nothing; a library's own reader decodes
//! the same; and from each boundary at which a decoder stops, another gives the rest.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;
use peelfs::layer::chunk::{decode_chunk, decode_span};
use peelfs::layer::compression::{Boundary, Compression, DecodeError, Stop};
use peelfs::layer::entry::Chunk;
use peelfs::table::Codec;
use peelfs_fuzz::{seeds, sha256};

/// Where a bomb is given up.
const LIMIT: usize = 1 << 20;
/// Boundaries that are tried.
const BOUNDARIES: usize = 12;

fuzz_target!(init: seeds::plant(seeds::compressed), |blob: &[u8]| {
    let compression = Compression::sniff(blob);
    let whole = decoded(compression, blob, usize::MAX, LIMIT);
    for (piece, room) in [(1, 100_000), (100, 1), (7, 4096)] {
        let in_pieces = decoded(compression, blob, piece, room);
        match (&whole, &in_pieces) {
            (Ok(whole), Ok(in_pieces)) => assert!(whole == in_pieces, "in pieces of {piece} with room for {room}"),
            (Err(_), Err(_)) => {}
            _ => panic!("in pieces of {piece} with room for {room}: {in_pieces:?}"),
        }
    }
    let Ok(whole) = whole else { return };
    if whole.len() < LIMIT {
        check_against_library(compression, blob, &whole);
        check_boundaries(compression, blob, &whole);
    }
});

/// What a blob decodes to, at most `LIMIT` bytes of it.
fn decoded(compression: Compression, blob: &[u8], piece: usize, room: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = compression.decoder();
    let mut buffer = vec![0; room];
    let mut all = Vec::new();
    for mut piece in blob.chunks(piece.max(1)) {
        loop {
            let progress = decoder.decode(piece, &mut buffer)?;
            assert!(progress.consumed <= piece.len() && progress.produced <= room);
            all.extend_from_slice(&buffer[..progress.produced]);
            piece = &piece[progress.consumed..];
            if all.len() >= LIMIT {
                all.truncate(LIMIT);
                return Ok(all);
            }
            if piece.is_empty() && progress.produced < room {
                break;
            }
        }
    }
    decoder.finish()?;
    Ok(all)
}

fn check_against_library(compression: Compression, blob: &[u8], decoded: &[u8]) {
    let mut library = Vec::new();
    match compression {
        Compression::None => library.extend_from_slice(blob),
        Compression::Gzip => {
            // What follows the last member, flate2 takes for another; zeros are allowed here.
            let _ = flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut library);
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::new(blob).expect("a decoder");
            decoder.window_log_max(27).expect("a window");
            decoder.read_to_end(&mut library).expect("what was decoded already");
        }
    }
    assert!(library == decoded, "the library decodes {} bytes, not {}", library.len(), decoded.len());
}

/// A boundary: where in the blob, where in what it decodes to, and what is needed there.
struct Found {
    blob_offset: usize,
    decoded_offset: usize,
    boundary: Boundary,
}

fn check_boundaries(compression: Compression, blob: &[u8], whole: &[u8]) {
    for stop in [Stop::AtStarts, Stop::AtBlocks] {
        let (all, boundaries) = stopped(compression, blob, stop);
        assert!(all == whole, "stops change what is decoded");
        for Found { blob_offset, decoded_offset, boundary } in boundaries {
            let rest = &whole[decoded_offset..];
            // What nothing comes of is no span.
            if rest.is_empty() {
                continue;
            }
            let codec = match (compression, &boundary.checkpoint) {
                (Compression::None, _) => Codec::Raw,
                (Compression::Gzip, None) => Codec::Gzip,
                (Compression::Gzip, Some(_)) => Codec::GzipSpan,
                (Compression::Zstd, _) => Codec::Zstd,
            };
            let bytes = &blob[blob_offset..];
            let chunk = Chunk {
                blob_offset: blob_offset as u64,
                blob_length: bytes.len() as u64,
                decoded_offset: decoded_offset as u64,
                decoded_length: rest.len() as u64,
                skip: 0,
                codec,
                checkpoint: 0,
                digest: sha256(rest),
            };
            let again = match &boundary.checkpoint {
                Some(checkpoint) => decode_span(&chunk, checkpoint, bytes),
                None => decode_chunk(&chunk, bytes),
            };
            assert!(again.as_deref() == Ok(rest), "from byte {blob_offset}: {:?}", again.err());
        }
    }
}

fn stopped(compression: Compression, blob: &[u8], stop: Stop) -> (Vec<u8>, Vec<Found>) {
    let mut decoder = compression.decoder();
    let (mut all, mut boundaries) = (Vec::new(), Vec::new());
    let mut buffer = vec![0; 4096];
    let (mut rest, mut next) = (blob, stop);
    loop {
        let (progress, boundary) =
            decoder.decode_until(next, rest, &mut buffer).expect("it was decoded before");
        rest = &rest[progress.consumed..];
        all.extend_from_slice(&buffer[..progress.produced]);
        next = stop;
        if let Some(boundary) = boundary {
            next = Stop::Nowhere;
            if boundaries.len() < BOUNDARIES {
                let blob_offset = blob.len() - rest.len() - boundary.unused_bits.div_ceil(8);
                boundaries.push(Found { blob_offset, decoded_offset: all.len(), boundary });
            }
        } else if rest.is_empty() && progress.produced < buffer.len() {
            break;
        }
    }
    decoder.finish().expect("it was finished before");
    (all, boundaries)
}
