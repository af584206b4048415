//! tar-split data (`layer/zstd_chunked/tar_split.rs`): an archive that was split comes back byte for byte, and agrees with its own
//! entries; whatever else the data say, no more comes back than they state.
#![no_main]

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use peelfs::layer::entry::{Content, EntryKind};
use peelfs::layer::zstd_chunked::tar_split::{Crc64, Piece, TarSplit, compare};
use peelfs_fuzz::tar::{Told, told};
use peelfs_fuzz::{choice, repair, seeds};

/// Larger archives are not rebuilt here.
const REBUILT: u64 = 1 << 20;

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    repair::mutate(data, size, max_size, seed, repair::tar)
});

fuzz_target!(init: seeds::plant(seeds::tar_splits), |bytes: &[u8]| {
    let mut bytes = bytes;
    if choice(&mut bytes) & 1 == 0 {
        check_archive(bytes);
    } else if let Ok(split) = TarSplit::parse(bytes) {
        check_any(&split);
    }
});

fn check_archive(archive: &[u8]) {
    let told = told(archive, usize::MAX);
    if told.error.is_some() {
        return;
    }
    let is_sparse = |kind: &EntryKind| matches!(kind, EntryKind::Regular { content: Content::Sparse(_), .. });
    let split = TarSplit::parse(split(archive, &told).as_bytes()).expect("what was split");
    assert_eq!(split.archive_length(), archive.len() as u64);
    let entries: Vec<_> = told.entries.iter().map(|(entry, ..)| entry.clone()).collect();
    let compared = compare(&split, &entries);
    let has_sparse = entries.iter().any(|entry| is_sparse(&entry.kind));
    assert_eq!(compared.is_err(), has_sparse, "{compared:?}");

    let mut contents = told.entries.iter().filter(|(.., payload)| !payload.is_empty());
    let mut rebuilt = Vec::new();
    let result = split.rebuild(
        &mut |path, size, give| {
            let (entry, _, payload) = contents.next().ok_or("no more files")?;
            assert!(entry.path == path && payload.len() as u64 == size);
            payload.chunks(100).try_for_each(give)
        },
        &mut |bytes| {
            rebuilt.extend_from_slice(bytes);
            Ok(())
        },
    );
    assert!(result.is_ok() && rebuilt == archive, "{result:?}");
}

/// The archive's tar-split, as its format is defined: names may be anything, so all are given as base 64.
fn split(archive: &[u8], told: &Told) -> String {
    let mut lines = String::new();
    let mut position = 0;
    let segment = |lines: &mut String, bytes: &[u8]| {
        let _ = writeln!(lines, r#"{{"type":2,"payload":"{}","position":0}}"#, BASE64.encode(bytes));
    };
    for (entry, headers, payload) in &told.entries {
        let data = headers.end as usize;
        segment(&mut lines, &archive[position..data]);
        let mut crc64 = Crc64::default();
        crc64.update(payload);
        let (name, checksum) = (BASE64.encode(&entry.path), BASE64.encode(crc64.finish().to_be_bytes()));
        let size = payload.len();
        let _ = writeln!(
            lines,
            r#"{{"type":1,"name_raw":"{name}","size":{size},"payload":"{checksum}","position":1}}"#
        );
        position = data + size;
    }
    segment(&mut lines, &archive[position..]);
    lines
}

fn check_any(split: &TarSplit) {
    let length = split.archive_length();
    if length > REBUILT {
        return;
    }
    let _ = compare(split, &[]);
    let stated: u64 = split
        .pieces()
        .map(|piece| match piece {
            Piece::Segment(bytes) => bytes.len() as u64,
            Piece::File { size, .. } => size,
        })
        .sum();
    assert_eq!(stated, length);
    // As much as is wanted, and once more than that.
    for surplus in [0, 1] {
        let mut rebuilt = 0;
        let result =
            split.rebuild(&mut |_, size, give| give(&vec![0; (size + surplus) as usize]), &mut |bytes| {
                rebuilt += bytes.len() as u64;
                Ok(())
            });
        assert!(rebuilt <= length && (result.is_err() || rebuilt == length), "{rebuilt} of {length} bytes");
    }
}
