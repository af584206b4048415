//! Promises of zTOCs and their checkpoints.

use proptest::prelude::*;

use super::checkpoints::{Checkpoints, GzipCheckpoint, gzip_checkpoints, uncompressed_checkpoints};
use super::spans::Span;
use super::ztoc::{
    CompressionAlgorithm, CompressionInfo, FileMetadata, FileType, MAXIMUM_ZTOC, VERSION, Ztoc,
};
use super::*;
use crate::layer::entry::Timestamp;
use crate::layer::gzip::checkpoint::WINDOW;

fn file(name: &[u8], kind: FileType, uncompressed_offset: u64, uncompressed_size: u64) -> FileMetadata {
    FileMetadata {
        name: name.to_vec(),
        kind,
        uncompressed_offset,
        uncompressed_size,
        link_name: Vec::new(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        user_name: Vec::new(),
        group_name: Vec::new(),
        modified: Some(Timestamp::default()),
        device_major: 0,
        device_minor: 0,
        pax_records: Vec::new(),
    }
}

fn small() -> Ztoc {
    let window = [7; WINDOW];
    let checkpoints =
        [(10, 0, 0), (500, 4_200_000, 3)].map(|(compressed_offset, uncompressed_offset, bits)| {
            GzipCheckpoint { compressed_offset, uncompressed_offset, bits, window: &window }
        });
    Ztoc {
        version: VERSION.into(),
        build_tool: b"a tool".to_vec(),
        compressed_size: 1000,
        uncompressed_size: 5_000_192,
        files: vec![
            FileMetadata {
                mode: 0o040_755,
                uid: u32::MAX,
                gid: 7,
                user_name: b"root".to_vec(),
                modified: Some(Timestamp { seconds: -1, nanoseconds: 500_000_000 }),
                pax_records: vec![
                    (b"SCHILY.xattr.security.capability".to_vec(), b"\x01\0\0\x02\xff".to_vec()),
                    (b"mtime".to_vec(), b"-0.5".to_vec()),
                ],
                ..file(b"etc/", FileType::Directory, 2048, 0)
            },
            file(b"etc/latin1-\xe9", FileType::Regular, 2560, 4_900_000),
            FileMetadata {
                link_name: b"../\xff".to_vec(),
                modified: None,
                ..file(b"link", FileType::Symlink, 4_903_424, 0)
            },
            FileMetadata {
                device_major: 8,
                device_minor: 1,
                ..file(b"device", FileType::BlockDevice, 4_903_936, 0)
            },
        ],
        compression: CompressionInfo {
            algorithm: CompressionAlgorithm::Gzip,
            max_span_id: 1,
            span_digests: vec![[1; 32], [2; 32]],
            checkpoints: gzip_checkpoints(4 << 20, checkpoints.into_iter()),
        },
    }
}

#[test]
fn what_is_written_is_read() {
    let tar = Ztoc {
        files: FileType::ALL.map(|kind| file(b"x", kind, 512, 0)).to_vec(),
        compression: CompressionInfo {
            algorithm: CompressionAlgorithm::Uncompressed,
            checkpoints: uncompressed_checkpoints(1 << 20, 1000),
            ..small().compression
        },
        ..small()
    };
    let empty = Ztoc { files: Vec::new(), ..small() };
    for ztoc in [small(), tar, empty] {
        let bytes = ztoc.write();
        assert_eq!(bytes, ztoc.write());
        assert_eq!(Ztoc::read(&bytes).unwrap(), ztoc);
        // Some tools append a list of files to prefetch.
        let appended = [&bytes[..], b"---SOCI-PREFETCH---[]"].concat();
        assert_eq!(Ztoc::read(&appended).unwrap(), ztoc);
    }
}

/// The bytes are laid out by hand, by the schema and the documentation of flatbuffers ("Internals").
#[test]
fn the_bytes_are_those_of_the_schema() {
    let ztoc = Ztoc {
        version: b"0.9".to_vec(),
        build_tool: b"t".to_vec(),
        compressed_size: 0x0102,
        uncompressed_size: 0,
        files: vec![],
        compression: CompressionInfo {
            algorithm: CompressionAlgorithm::Uncompressed,
            max_span_id: 0,
            span_digests: vec![],
            checkpoints: vec![0xaa],
        },
    };
    let expected = [
        // 00: the root is at 14.
        "14000000",
        // 04: its vtable: 10 bytes, of a table of 1c; fields at 18, 14, 0c, none, 08 and 04 of it.
        "1000 1c00 1800 1400 0c00 0000 0800 0400",
        // 14: the root; its vtable is 10 before. compression_info is at 18 + 24, toc at 1c + 40.
        "10000000 24000000 40000000",
        // 20: compressed_archive_size; build_tool_identifier is at 28 + 40, version at 2c + 44.
        "0201000000000000 40000000 44000000",
        // 30: vtable of compression_info: 0c bytes, of a table of 10; fields at 0f, none, 08 and 04 of it.
        "0c00 1000 0f00 0000 0800 0400",
        // 3c: compression_info: checkpoints are at 40 + 10, span_digests at 44 + 08; compression_algorithm is the last byte.
        "0c000000 10000000 08000000 000000 02",
        // 4c: span_digests, none. 50: checkpoints, one byte, and one to align what comes next.
        "00000000 01000000 aa 00",
        // 56: vtable of toc: 6 bytes, of a table of 8. 5c: toc. 64: metadata, none.
        "0600 0800 0400 06000000 04000000 00000000",
        // 68: build_tool_identifier, with its zero and two to align. 70: version, with its zero.
        "01000000 74 00 0000 03000000 302e39 00",
    ];
    let expected = expected.concat().replace(' ', "");
    assert_eq!(crate::layer::toc::hex(&ztoc.write()), expected);
}

#[test]
fn every_layout_of_checkpoints_is_read() {
    let windows: Vec<Vec<u8>> = (0..3).map(|number| vec![number; WINDOW]).collect();
    let list: Vec<GzipCheckpoint> = [(10, 0, 0), (2000, 5000, 7), (3000, 9000, 0)]
        .into_iter()
        .zip(&windows)
        .map(|((compressed_offset, uncompressed_offset, bits), window)| GzipCheckpoint {
            compressed_offset,
            uncompressed_offset,
            bits,
            window,
        })
        .collect();
    let written = gzip_checkpoints(4096, list.iter().copied());
    assert_eq!(written.len(), 12 + 3 * 32_785);
    // The first version leaves out the first one.
    let first_version = [&written[..12], &written[12 + 32_785..]].concat();
    let information = |algorithm, checkpoints: &[u8]| CompressionInfo {
        algorithm,
        max_span_id: 2,
        span_digests: Vec::new(),
        checkpoints: checkpoints.to_vec(),
    };
    for bytes in [written.clone(), first_version.clone()] {
        let information = information(CompressionAlgorithm::Gzip, &bytes);
        assert_eq!(
            Checkpoints::of(&information).unwrap(),
            Checkpoints::Gzip { span_size: 4096, list: list.clone() }
        );
    }
    let tar = information(CompressionAlgorithm::Uncompressed, &uncompressed_checkpoints(512, 1 << 40));
    let expected = Checkpoints::Uncompressed { span_size: 512, size: 1 << 40 };
    assert_eq!(Checkpoints::of(&tar).unwrap(), expected);
    let record = b"\x02\0\0\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\x01\0\0";
    assert_eq!(tar.checkpoints, record);

    let changed = |bytes: &[u8], at: usize, to: u8| {
        let mut bytes = bytes.to_vec();
        bytes[at] = to;
        bytes
    };
    let (gzip, tar_bytes) = (CompressionAlgorithm::Gzip, &tar.checkpoints[..]);
    let uncompressed = CompressionAlgorithm::Uncompressed;
    for (case, (algorithm, bytes)) in [
        (gzip, Vec::new()),
        (gzip, written[..11].to_vec()),
        (gzip, written[..12].to_vec()),
        (gzip, written[..written.len() - 1].to_vec()),
        (gzip, [&written[..], &[0]].concat()),
        (gzip, first_version[..12 + 32_785].to_vec()),
        (gzip, changed(&written, 0, 0)),
        (gzip, changed(&written, 0, 5)),
        (gzip, changed(&written, 3, 0x80)),
        (gzip, changed(&written, 11, 0x80)),
        (gzip, changed(&written, 12 + 7, 0xff)),
        (gzip, changed(&written, 12 + 15, 0xff)),
        (gzip, changed(&written, 12 + 16, 8)),
        (uncompressed, Vec::new()),
        (uncompressed, tar_bytes[..19].to_vec()),
        (uncompressed, [tar_bytes, &[0]].concat()),
        (uncompressed, changed(tar_bytes, 0, 3)),
        (uncompressed, changed(tar_bytes, 11, 0x80)),
        (uncompressed, changed(tar_bytes, 19, 0x80)),
        (uncompressed, uncompressed_checkpoints(0, 1000)),
    ]
    .into_iter()
    .enumerate()
    {
        let information = information(algorithm, &bytes);
        let result = Checkpoints::of(&information);
        assert!(matches!(result, Err(SociError::Checkpoints(_))), "{case}: {result:?}");
    }
}

#[test]
fn a_window_that_is_short_is_filled_with_zeros_in_front() {
    let checkpoint = GzipCheckpoint { compressed_offset: 10, uncompressed_offset: 0, bits: 0, window: b"ab" };
    let bytes = gzip_checkpoints(1, [checkpoint].into_iter());
    assert!(bytes.ends_with(b"\0\0ab") && bytes.len() == 12 + 32_785);
}

/// Compressed offset, uncompressed offset, bits.
type Place = (u64, u64, u8);

fn spans_of(list: &[Place], blob: u64, archive: u64) -> Result<Vec<Span>, SpanFault> {
    let list = list.iter().map(|&(compressed_offset, uncompressed_offset, bits)| GzipCheckpoint {
        compressed_offset,
        uncompressed_offset,
        bits,
        window: &[],
    });
    spans::spans(&Checkpoints::Gzip { span_size: 1, list: list.collect() }, blob, archive, 100)
}

#[test]
fn spans_follow_on_each_other_and_share_a_byte_where_a_block_begins_within_it() {
    let span = |compressed, uncompressed| Span { compressed, uncompressed };
    assert_eq!(
        spans_of(&[(10, 0, 0), (500, 4000, 3), (700, 8000, 0)], 1000, 9000).unwrap(),
        [span(10..500, 0..4000), span(499..700, 4000..8000), span(700..1000, 8000..9000)]
    );
    // A last block that decodes to nothing; zeros after the archive that its writer did not look at.
    assert_eq!(
        spans_of(&[(10, 0, 0), (500, 4000, 0)], 508, 4000).unwrap(),
        [span(10..500, 0..4000), span(500..508, 4000..4000)]
    );
    assert_eq!(
        spans_of(&[(10, 0, 0), (500, 4000, 0)], 508, 3000).unwrap(),
        [span(10..500, 0..3000), span(500..508, 3000..3000)]
    );
    let tar = Checkpoints::Uncompressed { span_size: 400, size: 1000 };
    assert_eq!(
        spans::spans(&tar, 1000, 900, 3).unwrap(),
        [span(0..400, 0..400), span(400..800, 400..800), span(800..1000, 800..900)]
    );
}

#[test]
fn spans_that_go_back_or_leave_the_blob_are_refused() {
    let cases: [(&[Place], u64, u64); 10] = [
        (&[(10, 1, 0)], 1000, 9000),
        (&[(0, 0, 1)], 1000, 9000),
        (&[(1000, 0, 0)], 1000, 9000),
        (&[(10, 0, 0), (10, 4000, 0)], 1000, 9000),
        (&[(10, 0, 0), (9, 4000, 0)], 1000, 9000),
        (&[(10, 0, 0), (500, 0, 0)], 1000, 9000),
        (&[(10, 0, 0), (500, 4000, 0), (600, 3000, 0)], 1000, 9000),
        (&[(10, 0, 0), (1001, 4000, 0)], 1000, 9000),
        (&[(10, 0, 0), (1000, 4000, 0)], 1000, 9000),
        (&[(10, 0, 0), (u64::MAX, u64::MAX, 0)], 1000, 9000),
    ];
    for (list, blob, archive) in cases {
        assert!(spans_of(list, blob, archive).is_err(), "{list:?}");
    }
    let tar = |span_size, size| Checkpoints::Uncompressed { span_size, size };
    assert!(spans::spans(&tar(400, 1000), 999, 999, 3).is_err());
    assert!(spans::spans(&tar(400, 1000), 1000, 1000, 2).is_err());
    assert!(spans::spans(&tar(1, u64::MAX), u64::MAX, u64::MAX, 1000).is_err());
}

#[test]
fn a_ztoc_that_contradicts_itself_or_its_blob_is_refused() {
    let holds = |ztoc: &Ztoc| ztoc.spans(&Checkpoints::of(&ztoc.compression).unwrap(), 1000).is_ok();
    assert!(holds(&small()));
    let changes: [fn(&mut Ztoc); 4] = [
        |ztoc| ztoc.compressed_size = 999,
        |ztoc| ztoc.compression.max_span_id = 2,
        |ztoc| ztoc.compression.span_digests.push([3; 32]),
        |ztoc| ztoc.compression.span_digests.truncate(1),
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut ztoc = small();
        change(&mut ztoc);
        assert!(!holds(&ztoc), "{number}");
    }
}

#[test]
fn values_that_no_layer_has_are_refused() {
    let cases: [fn(&mut Ztoc); 4] = [
        |ztoc| ztoc.compressed_size = u64::MAX,
        |ztoc| ztoc.uncompressed_size = u64::MAX,
        |ztoc| ztoc.files[1].uncompressed_offset = u64::MAX,
        |ztoc| ztoc.files[1].uncompressed_size = u64::MAX,
    ];
    let good = small().write();
    for change in cases {
        let mut ztoc = small();
        change(&mut ztoc);
        // What does not fit is written as the largest number; as a negative one it is that with the other sign.
        let mut bytes = ztoc.write();
        let largest = i64::MAX.to_le_bytes();
        let at = bytes.windows(8).position(|window| window == largest).unwrap();
        bytes[at..at + 8].copy_from_slice(&(-1_i64).to_le_bytes());
        assert!(
            matches!(
                Ztoc::read(&bytes),
                Err(SociError::OutOfRange { .. }
                    | SociError::File { fault: FileFault::OutOfRange { .. }, .. })
            ),
            "{:?}",
            Ztoc::read(&bytes)
        );
    }
    let replaced = |from: &[u8], to: &[u8]| {
        let at = good.windows(from.len()).position(|window| window == from).unwrap();
        [&good[..at], to, &good[at + from.len()..]].concat()
    };
    let other_type = replaced(b"block", b"plock");
    assert!(matches!(Ztoc::read(&other_type), Err(SociError::File { fault: FileFault::Type(_), .. })));
    assert!(matches!(Ztoc::read(&replaced(b"sha256:0101", b"sha512:0101")), Err(SociError::SpanDigest)));
    let too_long = vec![0; MAXIMUM_ZTOC as usize + 1];
    assert!(matches!(Ztoc::read(&too_long), Err(SociError::TooLarge { .. })));
}

/// A file of a table that all elements of a vector point at: 4 bytes for each, and a name of a megabyte.
#[test]
fn what_points_at_one_table_a_million_times_is_refused() {
    let mut builder = flatbuffers::FlatBufferBuilder::new();
    let name = builder.create_byte_string(&[b'x'; 1 << 20]);
    let table = builder.start_table();
    builder.push_slot_always(schema::slot(0), name);
    let file = builder.end_table(table);
    let files = builder.create_vector(&vec![file; 1 << 20]);
    let table = builder.start_table();
    builder.push_slot_always(schema::slot(0), files);
    let toc = builder.end_table(table);
    let table = builder.start_table();
    builder.push_slot_always(schema::slot(4), toc);
    let root = builder.end_table(table);
    builder.finish_minimal(root);
    let result = Ztoc::read(builder.finished_data());
    assert!(matches!(result, Err(SociError::Flatbuffer { .. })), "{result:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// No bytes make the reader panic; and what it reads can be written and read again.
    #[test]
    fn changed_bytes_are_refused_or_read(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        // Without the windows, so that what is changed matters.
        let mut ztoc = small();
        ztoc.compression.checkpoints.truncate(30);
        let mut bytes = ztoc.write();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        if let Ok(read) = Ztoc::read(&bytes) {
            prop_assert_eq!(Ztoc::read(&read.write()).unwrap(), read.clone());
            if let Ok(checkpoints) = Checkpoints::of(&read.compression) {
                let _ = read.spans(&checkpoints, read.compressed_size);
            }
        }
    }

    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = Ztoc::read(&bytes);
    }

    /// Whatever the checkpoints say, spans follow on each other within blob and archive.
    #[test]
    fn spans_are_in_order_and_in_bounds(
        list in prop::collection::vec((0_u64..40, 0_u64..40, 0_u8..8), 1..5),
        blob in 0_u64..40,
        archive in 0_u64..40,
    ) {
        let Ok(spans) = spans_of(&list, blob, archive) else { return Ok(()) };
        let mut before = Span { compressed: 0..spans[0].compressed.start, uncompressed: 0..0 };
        for span in spans {
            prop_assert!(span.compressed.start < span.compressed.end && span.compressed.end <= blob);
            prop_assert!(span.compressed.start + 1 >= before.compressed.end);
            prop_assert!(span.uncompressed.start == before.uncompressed.end);
            prop_assert!(span.uncompressed.start <= span.uncompressed.end && span.uncompressed.end <= archive);
            before = span;
        }
        prop_assert_eq!((before.compressed.end, before.uncompressed.end), (blob, archive));
    }
}
