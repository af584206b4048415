//! What is too long to describe is an ordinary layer.

use std::io::Write as _;

use super::*;
use crate::layer::spool::spool_layer;
use crate::layer::stream::{MAXIMUM_DECODED, StreamExpectation};
use crate::layer::testing::{decoded, pattern};
use crate::layer::zstd::ZstdDecoder;

fn archive() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for number in 0..50 {
        let data = pattern(1000 * number);
        let mut header = tar::Header::new_ustar();
        header.set_size(data.len() as u64);
        archive.append_data(&mut header, format!("file{number}"), &data[..]).unwrap();
    }
    archive.into_inner().unwrap()
}

fn spool(archive: &[u8]) -> Spool {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(archive).unwrap();
    let blob = encoder.finish().unwrap();
    let expected = StreamExpectation {
        blob_digest: Digest::sha256_of(&blob),
        blob_size: blob.len() as u64,
        diff_id: None,
        maximum_decoded: MAXIMUM_DECODED,
    };
    let pieces = [Ok::<_, std::io::Error>(blob)];
    spool_layer(pieces.into_iter(), &expected, tempfile::tempfile().unwrap(), &|_| ()).unwrap().0
}

#[test]
fn a_layer_whose_description_would_be_too_long_is_an_ordinary_one() {
    let archive = archive();
    let spool = spool(&archive);
    let options = ZstdChunkedOptions { chunk_size: None, level: 3, threads: NonZeroUsize::new(2).unwrap() };
    let write = |longest: &Longest| {
        let mut blob = Vec::new();
        let written = write_within(longest, &spool, &[], &options, &mut blob, &|_| ()).unwrap();
        let diff_id = Digest::sha256_of(&archive);
        assert_eq!((&written.diff_id, written.uncompressed_size), (&diff_id, archive.len() as u64));
        let content = decoded(&mut ZstdDecoder::new(), &blob, blob.len(), 1 << 20).unwrap();
        assert!(content == archive);
        (written, blob)
    };
    let (described, blob) = write(&LONGEST);
    assert_eq!((described.not_lazy, described.annotations.len()), (None, 3));
    for (longest, limit) in
        [(Longest { toc: 1000, ..LONGEST }, 1000), (Longest { tar_split: 2000, ..LONGEST }, 2000)]
    {
        let (written, ordinary) = write(&longest);
        assert!(
            matches!(written.not_lazy, Some(NotLazy::TooLong { length, limit: at }) if length > limit && at == limit),
            "{:?}",
            written.not_lazy
        );
        assert_eq!((written.toc_digest, written.annotations.len()), (None, 0));
        // The same frames, and nothing behind them.
        assert!(blob.starts_with(&ordinary) && ordinary.len() < blob.len());
    }
}
