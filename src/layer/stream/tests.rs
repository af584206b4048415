//! Promises of the one pass over a layer.

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::layer::entry::Entry;
use crate::layer::testing::pattern;

fn sha256(bytes: &[u8]) -> Digest {
    Digest::sha256_of(bytes)
}

fn sha512(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha512, bytes)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// A layer of a few files, larger than all buffers together, with bytes behind its end.
fn layer() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, size) in [("a", 10), ("b", 2_000_000), ("c", 0), ("d", 300_000)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(size);
        header.set_mode(0o644);
        archive.append_data(&mut header, name, &pattern(size as usize)[..]).unwrap();
    }
    let mut bytes = archive.into_inner().unwrap();
    bytes.extend([0; 9000]);
    bytes.extend(b"what follows the end counts for the digests");
    bytes
}

pub(super) fn expectation(blob: &[u8], layer: &[u8]) -> StreamExpectation {
    StreamExpectation {
        blob_digest: sha256(blob),
        blob_size: blob.len() as u64,
        diff_id: Some(sha256(layer)),
        maximum_decoded: 1 << 30,
    }
}

#[derive(Default)]
pub(super) struct Kept {
    names: Vec<String>,
    payload: Vec<u8>,
    /// Fails once it has got that many bytes.
    room: Option<usize>,
}

impl TarSink for Kept {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.names.push(String::from_utf8(entry.path).unwrap());
        Ok(())
    }

    fn payload(&mut self, _: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.payload.extend_from_slice(bytes);
        match self.room {
            Some(room) if self.payload.len() > room => Err("no space left on device".into()),
            _ => Ok(()),
        }
    }
}

fn unpack(blob: &[u8], piece: usize, expected: &StreamExpectation) -> Result<(Streamed, Kept), StreamError> {
    let mut kept = Kept::default();
    let pieces = blob.chunks(piece).map(Ok::<_, SinkError>);
    unpack_stream(pieces, expected, &mut kept, &mut Vec::new(), &|_| {}).map(|streamed| (streamed, kept))
}

#[test]
fn every_compression_gives_the_same_layer() {
    let layer = layer();
    let (first, second) = layer.split_at(1_000_000);
    let encodings = [
        (Compression::None, layer.clone()),
        (Compression::Gzip, gzip(&layer)),
        (Compression::Gzip, [gzip(first), gzip(second), vec![0; 100]].concat()),
        (Compression::Zstd, zstd::bulk::compress(&layer, 1).unwrap()),
        (
            Compression::Zstd,
            [zstd::bulk::compress(first, 1).unwrap(), zstd::bulk::compress(second, 1).unwrap()].concat(),
        ),
    ];
    let payload = [pattern(10), pattern(2_000_000), pattern(300_000)].concat();
    for (compression, blob) in encodings {
        for piece in [1 << 10, 100_003, blob.len()] {
            let (streamed, kept) = unpack(&blob, piece, &expectation(&blob, &layer)).unwrap();
            assert_eq!((streamed.decoded_length, streamed.compression), (layer.len() as u64, compression));
            assert_eq!(streamed.diff_id, sha256(&layer));
            assert_eq!(kept.names, ["a", "b", "c", "d"]);
            assert!(kept.payload == payload);
        }
    }
}

#[test]
fn pieces_of_single_bytes_tell_the_compression_too() {
    let layer = vec![0; 1024];
    for blob in [gzip(&layer), zstd::bulk::compress(&layer, 1).unwrap(), layer.clone()] {
        assert_eq!(unpack(&blob, 1, &expectation(&blob, &layer)).unwrap().0.decoded_length, 1024);
    }
    for length in 0..4 {
        let layer = vec![0; length];
        let result = unpack(&layer, 1, &expectation(&layer, &layer));
        assert_eq!(result.is_ok(), length == 0, "{length} bytes are no archive");
    }
}

#[test]
fn a_layer_of_unknown_diff_id_tells_its_own() {
    let layer = layer();
    let blob = gzip(&layer);
    let expected = StreamExpectation { diff_id: None, ..expectation(&blob, &layer) };
    assert_eq!(unpack(&blob, 5000, &expected).unwrap().0.diff_id, sha256(&layer));
}

#[test]
fn digests_may_be_sha512() {
    let layer = layer();
    let blob = gzip(&layer);
    let expected = StreamExpectation {
        blob_digest: sha512(&blob),
        diff_id: Some(sha512(&layer)),
        ..expectation(&blob, &layer)
    };
    assert_eq!(unpack(&blob, 5000, &expected).unwrap().0.diff_id, sha512(&layer));
    assert_eq!(
        sha256(b"").to_string(),
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

#[test]
fn progress_counts_the_bytes_of_the_blob() {
    let layer = layer();
    let blob = gzip(&layer);
    let told = Mutex::new(Vec::new());
    let pieces = blob.chunks(10_000).map(Ok::<_, SinkError>);
    let progress = |received| told.lock().unwrap().push(received);
    unpack_stream(pieces, &expectation(&blob, &layer), &mut Kept::default(), &mut Vec::new(), &progress)
        .unwrap();
    let told = told.into_inner().unwrap();
    assert!(told.is_sorted());
    assert_eq!(told.last(), Some(&(blob.len() as u64)));
}

#[test]
fn what_is_not_as_expected_is_refused() {
    let layer = layer();
    let blob = gzip(&layer);
    let good = expectation(&blob, &layer);
    let size = blob.len() as u64;
    let mut corrupt = blob.clone();
    corrupt[blob.len() / 2] ^= 0xff;
    let torn = gzip(&layer[..1_000_000]);
    let garbage = gzip(&[b'x'; 1000]);
    let cases: [(&str, &[u8], StreamExpectation); 10] = [
        ("longer than", &blob, StreamExpectation { blob_size: size - 1, ..good.clone() }),
        ("ended after", &blob, StreamExpectation { blob_size: size + 1, ..good.clone() }),
        ("ended after", &[], good.clone()),
        ("does not match its digest", &blob, StreamExpectation { blob_digest: sha256(b""), ..good.clone() }),
        (
            "does not match its diff ID",
            &blob,
            StreamExpectation { diff_id: Some(sha256(b"")), ..good.clone() },
        ),
        (
            "does not match its diff ID",
            &blob,
            StreamExpectation { diff_id: Some(sha512(b"")), ..good.clone() },
        ),
        ("more than 1000000 bytes", &blob, StreamExpectation { maximum_decoded: 1_000_000, ..good.clone() }),
        ("corrupt gzip data", &corrupt, expectation(&corrupt, &layer)),
        ("is cut off", &torn, expectation(&torn, &layer[..1_000_000])),
        ("not a tar header", &garbage, expectation(&garbage, &[b'x'; 1000])),
    ];
    for (expected, blob, expectation) in cases {
        for piece in [1000, usize::MAX] {
            let message = unpack(blob, piece, &expectation).err().expect("an error").to_string();
            assert!(message.contains(expected), "{message} should have {expected}");
        }
    }
}

#[test]
fn a_bomb_stops_at_its_limit() {
    let layer = vec![0; 200 << 20];
    let blob = gzip(&layer);
    let expected = StreamExpectation { maximum_decoded: 10 << 20, ..expectation(&blob, &layer) };
    assert!(
        matches!(unpack(&blob, 4096, &expected), Err(StreamError::TooLarge { limit }) if limit == 10 << 20)
    );
}

#[test]
fn an_input_that_breaks_off_says_why() {
    let layer = layer();
    let blob = gzip(&layer);
    let pieces = blob.chunks(1000).take(3).map(Ok).chain([Err("connection reset")]);
    let result =
        unpack_stream(pieces, &expectation(&blob, &layer), &mut Kept::default(), &mut Vec::new(), &|_| {});
    assert_eq!(result.unwrap_err().to_string(), "the layer did not arrive: connection reset");
}

#[test]
fn a_full_disk_stops_the_download() {
    let layer = [&layer()[..512 * 3], &vec![7; 64 << 20]].concat();
    let expected = StreamExpectation { blob_size: u64::MAX, ..expectation(&layer, &layer) };
    let taken = AtomicUsize::new(0);
    // It never ends: only the failure of the sink can.
    let pieces = layer.chunks(10_000).cycle().map(|piece| {
        taken.fetch_add(piece.len(), Ordering::Relaxed);
        Ok::<_, SinkError>(piece)
    });
    let mut full = Kept { room: Some(500_000), ..Kept::default() };
    let error = unpack_stream(pieces, &expected, &mut full, &mut Vec::new(), &|_| {}).unwrap_err();
    assert_eq!(error.to_string(), "the layer cannot be stored: no space left on device");
    let ahead = taken.into_inner() - 500_000;
    assert!(ahead <= (BUFFERS + 2) * buffers::BUFFER, "{ahead} bytes were read ahead");
}
