//! Promises of the zTOCs that we make of a layer.

use std::io::{Read, Write};

use flate2::{Compression as Level, GzBuilder};
use peelfs_registry::Digest;
use sha2::{Digest as _, Sha256};

use super::checkpoints::Checkpoints;
use super::make::{NoZtoc, ZtocOptions, make_ztoc};
use super::ztoc::{FileType, Ztoc};
use crate::layer::compression::{Decode, Stop};
use crate::layer::gzip::GzipDecoder;
use crate::layer::gzip::checkpoint::Checkpoint;
use crate::layer::stream::{StreamError, StreamExpectation};

const SPAN: u64 = 64 << 10;

/// Words in an order that does not repeat, and now and then a stretch of zeros.
fn text(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(length + 4000);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        match state >> 52 {
            0 => bytes.resize(bytes.len() + 3000, 0),
            _ => bytes.extend_from_slice(format!("{:x} ", (state >> 33) % 5000).as_bytes()),
        }
    }
    bytes.truncate(length);
    bytes
}

fn fill(header: &mut tar::Header, mode: u32) {
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(0);
}

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o040_755);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1);
    header.set_size(0);
    builder.append_data(&mut header, "etc/", std::io::empty()).unwrap();
    for (number, length) in [0, 1, 511, 512, 513, 300_000, 70_000, 700_000].into_iter().enumerate() {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o4644);
        header.set_uid(1000);
        header.set_gid(7);
        header.set_mtime(1_700_000_000);
        header.set_username("user").unwrap();
        header.set_groupname("group").unwrap();
        header.set_size(length as u64);
        let records = [("SCHILY.xattr.user.key", &b"a value"[..]), ("mtime", &b"1700000000.25"[..])];
        if number % 2 == 1 {
            builder.append_pax_extensions(records).unwrap();
        }
        builder
            .append_data(&mut header, format!("etc/file-{number}"), &text(length, number as u64)[..])
            .unwrap();
    }
    for (name, kind) in [("link", tar::EntryType::Symlink), ("hard", tar::EntryType::Link)] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        fill(&mut header, 0o777);
        builder.append_link(&mut header, name, "etc/file-1").unwrap();
    }
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Char);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    fill(&mut header, 0o600);
    builder.append_data(&mut header, "null", std::io::empty()).unwrap();
    builder.into_inner().unwrap()
}

fn member(builder: GzBuilder, bytes: &[u8], flush_every: usize, level: u32) -> Vec<u8> {
    let mut encoder = builder.write(Vec::new(), Level::new(level));
    for piece in bytes.chunks(flush_every) {
        encoder.write_all(piece).unwrap();
        if piece.len() == flush_every {
            encoder.flush().unwrap();
        }
    }
    encoder.finish().unwrap()
}

/// One archive in all the ways in which gzip may hold it, and bare.
fn blobs() -> Vec<(&'static str, Vec<u8>)> {
    let archive = archive();
    let plain = |bytes: &[u8], level| member(GzBuilder::new(), bytes, usize::MAX, level);
    let named = GzBuilder::new().filename("layer.tar").comment("x".repeat(500)).extra(vec![1; 90]);
    let members = archive.chunks(20_000).flat_map(|piece| plain(piece, 6)).collect();
    let empty_members = [plain(&[], 6), plain(&archive, 9), plain(&[], 6), vec![0; 300]].concat();
    vec![
        ("gzip", plain(&archive, 6)),
        ("fast", plain(&archive, 1)),
        ("stored", plain(&archive, 0)),
        ("header with fields", member(named, &archive, usize::MAX, 6)),
        ("empty blocks", member(GzBuilder::new(), &archive, 1000, 6)),
        ("flushed at the span's end", member(GzBuilder::new(), &archive, SPAN as usize, 6)),
        ("members", members),
        ("empty members and padding", empty_members),
        ("tar", archive),
    ]
}

fn expectation(blob: &[u8]) -> StreamExpectation {
    StreamExpectation {
        blob_digest: Digest::sha256_of(blob),
        blob_size: blob.len() as u64,
        diff_id: None,
        maximum_decoded: 1 << 30,
    }
}

fn made(blob: &[u8], piece: usize) -> Result<Vec<u8>, NoZtoc> {
    let pieces = blob.chunks(piece).map(Ok::<_, std::io::Error>);
    let options = ZtocOptions { span_size: SPAN, build_tool: "test".to_owned() };
    make_ztoc(pieces, &expectation(blob), &options, &|_| {}).unwrap()
}

#[test]
fn a_ztoc_depends_on_the_blob_and_not_on_how_it_arrives() {
    for (name, blob) in blobs() {
        let whole = made(&blob, blob.len()).unwrap();
        for piece in [3, 1000, 4096, 65_536] {
            assert!(made(&blob, piece).unwrap() == whole, "{name} in pieces of {piece}");
        }
    }
}

#[test]
fn every_span_is_proved_and_decoded_by_itself() {
    let archive = archive();
    for (name, blob) in blobs() {
        let ztoc = Ztoc::read(&made(&blob, 4096).unwrap()).unwrap();
        assert_eq!(ztoc.uncompressed_size, archive.len() as u64);
        let checkpoints = Checkpoints::of(&ztoc.compression).unwrap();
        let spans = ztoc.spans(&checkpoints, blob.len() as u64).unwrap();
        assert!(spans.len() > 1, "{name}");
        for (number, (span, digest)) in spans.iter().enumerate() {
            let bytes = &blob[span.compressed.start as usize..span.compressed.end as usize];
            assert_eq!(<[u8; 32]>::from(Sha256::digest(bytes)), *digest, "{name}, span {number}");
            let expected = &archive[span.uncompressed.start as usize..span.uncompressed.end as usize];
            let Checkpoints::Gzip { list, .. } = &checkpoints else {
                assert!(bytes == expected, "{name}, span {number}");
                continue;
            };
            let from = Checkpoint { bits: list[number].bits, window: list[number].window.to_vec() };
            let mut decoded = vec![0; expected.len()];
            let mut decoder = GzipDecoder::resume(&from);
            let progress = decoder.decode(bytes, &mut decoded).unwrap();
            assert!(progress.produced == expected.len() && decoded == expected, "{name}, span {number}");
        }
    }
}

/// All places in a blob where a block begins that is not the first of a blob: bytes consumed, bits of the last left over, bytes decoded.
fn blocks(blob: &[u8]) -> Vec<(u64, u8, u64)> {
    let mut decoder = GzipDecoder::new();
    let (mut consumed, mut decoded, mut found) = (0, 0, Vec::new());
    let mut buffer = vec![0; 8 << 20];
    while consumed < blob.len() {
        let (progress, boundary) =
            decoder.decode_until(Stop::InMembers, &blob[consumed..], &mut buffer).unwrap();
        consumed += progress.consumed;
        decoded += progress.produced;
        match boundary {
            Some(boundary) => {
                let unused = boundary.unused_bits;
                found.push(((consumed - unused / 8) as u64, (unused % 8) as u8, decoded as u64));
            }
            None => assert_eq!(consumed, blob.len()),
        }
    }
    found
}

#[test]
fn a_checkpoint_is_the_first_block_after_more_than_a_span() {
    let length = archive().len() as u64;
    for (name, blob) in blobs().into_iter().filter(|(name, _)| *name != "tar") {
        let ztoc = Ztoc::read(&made(&blob, 4096).unwrap()).unwrap();
        let Checkpoints::Gzip { list, span_size } = Checkpoints::of(&ztoc.compression).unwrap() else {
            panic!("{name}");
        };
        assert_eq!(span_size, SPAN);
        let found: Vec<_> =
            list.iter().map(|at| (at.compressed_offset, at.bits, at.uncompressed_offset)).collect();
        let mut expected: Vec<(u64, u8, u64)> = Vec::new();
        for block in blocks(&blob) {
            if expected.last().is_none_or(|last| block.2 - last.2 > SPAN) && block.2 < length {
                expected.push(block);
            }
        }
        assert_eq!(found, expected, "{name}");
        // The first is where its header ends.
        assert_eq!((found[0].1, found[0].2), (0, 0));
    }
    let (_, named) = blobs().swap_remove(3);
    assert_eq!(blocks(&named)[0].0, 10 + 92 + 10 + 501);
}

#[test]
fn the_files_are_those_of_the_archive() {
    let archive = archive();
    let ztoc = Ztoc::read(&made(&archive, 1000).unwrap()).unwrap();
    let mut oracle = tar::Archive::new(&archive[..]);
    let mut count = 0;
    for (entry, file) in oracle.entries().unwrap().zip(&ztoc.files) {
        let mut entry = entry.unwrap();
        let records: Vec<(Vec<u8>, Vec<u8>)> = match entry.pax_extensions().unwrap() {
            Some(records) => records
                .map(|record| record.unwrap())
                .map(|record| (record.key_bytes().to_vec(), record.value_bytes().to_vec()))
                .collect(),
            None => Vec::new(),
        };
        let mut sorted = records.clone();
        sorted.sort();
        assert_eq!(file.pax_records, sorted);
        let header = entry.header();
        assert_eq!(file.name, *entry.path_bytes());
        assert_eq!(file.uncompressed_offset, entry.raw_file_position());
        assert_eq!(file.uncompressed_size, entry.size());
        assert_eq!(file.mode, i64::from(header.mode().unwrap()));
        assert_eq!((file.uid, file.gid), (header.uid().unwrap() as u32, header.gid().unwrap() as u32));
        assert_eq!(file.user_name, header.username_bytes().unwrap_or_default());
        assert_eq!(file.group_name, header.groupname_bytes().unwrap_or_default());
        assert_eq!(file.link_name, entry.link_name_bytes().unwrap_or_default().to_vec());
        let modified = file.modified.unwrap();
        assert_eq!(modified.seconds, header.mtime().unwrap() as i64);
        assert_eq!(modified.nanoseconds, if records.is_empty() { 0 } else { 250_000_000 });
        if file.kind == FileType::CharacterDevice {
            assert_eq!((file.device_major, file.device_minor), (1, 3));
        }
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let start = file.uncompressed_offset as usize;
        assert!(archive[start..start + content.len()] == content);
        count += 1;
    }
    assert_eq!((count, ztoc.files.len()), (12, 12));
}

#[test]
fn what_a_ztoc_cannot_tell_has_none() {
    let mut sparse = tar::Header::new_gnu();
    sparse.set_path("holes").unwrap();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_size(512);
    let fields = sparse.as_gnu_mut().unwrap();
    fields.set_real_size(1 << 20);
    fields.sparse[0].set_offset(4096);
    fields.sparse[0].set_length(512);
    sparse.set_cksum();
    let sparse = [&sparse.as_bytes()[..], &[1; 512], &[0; 1024]].concat();
    assert_eq!(made(&sparse, 100), Err(NoZtoc::Sparse { name: "holes".to_owned() }));
    assert_eq!(made(&zstd::bulk::compress(&archive(), 1).unwrap(), 1000), Err(NoZtoc::Zstd));
    assert_eq!(made(&member(GzBuilder::new(), &[], usize::MAX, 6), 5), Err(NoZtoc::Empty));
}

#[test]
fn a_blob_that_is_another_is_refused() {
    let blob = archive();
    let options = ZtocOptions { span_size: SPAN, build_tool: String::new() };
    let mut other = blob.clone();
    // In the content of a file: headers have checksums.
    let at = blob.len() - 100_000;
    other[at] ^= 1;
    let pieces = other.chunks(1000).map(Ok::<_, std::io::Error>);
    let refused = make_ztoc(pieces, &expectation(&blob), &options, &|_| {});
    assert!(matches!(refused, Err(StreamError::BlobDigest { .. })));
}
