//! Promise: an archive that is cut, corrupt, impossible or endless is refused, within bounded memory.

use super::*;

#[test]
fn mounting_truncated_and_corrupt_layers_is_refused() {
    let peel = Peel::new();
    for form in [Form::GZIP, Form::ZSTD, Form::Tar, Form::Gzip { members: 5 }] {
        let (_, whole) = encode_to_vec(&layer(), form);
        let mut cases = vec![
            ("empty", Vec::new()),
            ("garbage", noise(5000).to_vec()),
            ("doubled", [&whole[..], &whole].concat()),
        ];
        for cut in [1, 10, 511, 512, 513, 100_000, whole.len() - 600, whole.len() - 1] {
            cases.push(("cut", whole[..cut].to_vec()));
        }
        for place in [0, 3, 100, 200_000, whole.len() / 2] {
            let mut damaged = whole.clone();
            damaged[place] ^= 0x55;
            cases.push(("damaged", damaged));
        }
        for (number, (what, bytes)) in cases.into_iter().enumerate() {
            let (encoded, bytes) = blob(form, &bytes);
            let reference = image_of_blob(
                &peel,
                &format!("{number}-{what}-{}", form.media_type().len()),
                &encoded,
                &bytes,
            );
            refused(&peel, &reference, WRONG_CONTENT, &[&encoded.digest]);
        }
        // All right in itself, but not what the config says.
        let (mut encoded, bytes) = encode_to_vec(&layer(), form);
        encoded.diff_id = sha256(b"another archive");
        let reference = image_of_blob(&peel, "diff-id", &encoded, &bytes);
        refused(&peel, &reference, WRONG_CONTENT, &[&encoded.digest]);
    }
    still_works(&peel);
}

/// The header of an entry, with eight or twelve bytes of it replaced and the checksum put right.
fn header_with(entry: &TestEntry, offset: usize, field: &[u8]) -> Vec<u8> {
    let mut bytes = tar_bytes(std::slice::from_ref(entry));
    bytes[offset..offset + field.len()].copy_from_slice(field);
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|byte| u32::from(*byte)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

#[test]
fn mounting_archives_with_impossible_entries_is_refused() {
    let peel = Peel::new();
    let file = TestEntry::file("file", "content");
    let base256 = |bytes: [u8; 12]| header_with(&file, 124, &bytes);
    let pax = |name: &str, value: &[u8]| {
        [pax_entry(&[(name.as_bytes().to_vec(), value.to_vec())]), tar_bytes(std::slice::from_ref(&file))]
            .concat()
    };
    let sparse = |map: &str, size: &str| {
        let record = |name: &str, value: &str| (name.as_bytes().to_vec(), value.as_bytes().to_vec());
        let count = (map.split(',').count() / 2).to_string();
        let records = [
            record("GNU.sparse.size", size),
            record("GNU.sparse.numblocks", &count),
            record("GNU.sparse.map", map),
        ];
        [pax_entry(&records), tar_bytes(std::slice::from_ref(&file))].concat()
    };
    let entries = |entries: &[TestEntry]| tar_bytes(entries);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("checksum", {
            let mut bytes = entries(std::slice::from_ref(&file));
            bytes[148] ^= 1;
            bytes
        }),
        ("size beyond the end", header_with(&file, 124, b"00077777777\0")),
        ("largest size", base256([0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("size beyond 63 bits", base256([0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])),
        ("negative size", base256([0xff; 12])),
        ("size that is no number", header_with(&file, 124, b"99999999999\0")),
        ("mode that is no number", header_with(&file, 100, b"zzzzzzz\0")),
        ("PAX size beyond the end", pax("size", b"99999999999")),
        ("PAX size that is no number", pax("size", b"12x")),
        ("PAX negative size", pax("size", b"-1")),
        (
            "PAX length that lies",
            [special_entry(b'x', b"x", b"99 path=x\n"), entries(std::slice::from_ref(&file))].concat(),
        ),
        (
            "PAX length zero",
            [special_entry(b'x', b"x", b"0 path=x\n"), entries(std::slice::from_ref(&file))].concat(),
        ),
        (
            "PAX without equals",
            [special_entry(b'x', b"x", b"9 pathxx\n"), entries(std::slice::from_ref(&file))].concat(),
        ),
        ("PAX header of many GiB", header_with(&file, 124, b"77777777777\0")),
        ("empty name with NUL", pax("path", b"a\0b")),
        ("long component", pax("path", &b"n".repeat(256))),
        ("nesting of 100,000", pax("path", &b"d/".repeat(100_000))),
        ("sparse map out of order", sparse("512,3,0,4", "1000")),
        ("sparse map that overlaps", sparse("0,4,2,3", "1000")),
        ("sparse map beyond the size", sparse("0,7", "5")),
        ("sparse map with more data than is stored", sparse("0,100000", "200000")),
        ("sparse map at the end of numbers", sparse("18446744073709551615,7", "18446744073709551615")),
        ("sparse map of odd length", sparse("0,4,5", "1000")),
        ("hardlink to nothing", entries(&[TestEntry::hardlink("link", "missing")])),
        ("hardlink to a directory", entries(&[TestEntry::directory("d"), TestEntry::hardlink("link", "d")])),
        ("hardlink out of the tree", entries(&[TestEntry::hardlink("link", "../../../../etc/passwd")])),
        ("whiteout of no name", entries(&[TestEntry::file("a/.wh.", "")])),
        ("whiteout of the parent", entries(&[TestEntry::file("a/.wh...", "")])),
        ("root that is a file", entries(&[TestEntry::file("./", "x")])),
        ("symlink to nothing", entries(&[TestEntry::symlink("link", "")])),
        (
            "symlinks in a circle",
            entries(&[
                TestEntry::symlink("a", "b"),
                TestEntry::symlink("b", "a"),
                TestEntry::file("a/x", "x"),
            ]),
        ),
        ("attribute name of 300 bytes", pax(&format!("SCHILY.xattr.user.{}", "n".repeat(300)), b"x")),
        ("attribute value of 70,000 bytes", pax("SCHILY.xattr.user.x", &b"v".repeat(70_000))),
    ];
    for (number, (what, archive)) in cases.into_iter().enumerate() {
        let mut encoded = blob(Form::GZIP, &gzip_member(&archive)).0;
        encoded.diff_id = sha256(&archive);
        let reference = image_of_blob(&peel, &format!("case-{number}"), &encoded, &gzip_member(&archive));
        let point = peel.mount_point();
        let outcome = peel.run(&["mount", &reference, point.to_str().unwrap()]);
        // The largest files are no contradiction in themselves, but no disk holds them.
        let is_large = what.starts_with("largest") && outcome.code == Some(STORE);
        assert!(outcome.code == Some(WRONG_CONTENT) || is_large, "{what}: {outcome:?}");
        assert!(outcome.stderr.contains(&reference), "{what}: {outcome:?}");
        assert!(!is_mount_point(&point), "{what}");
    }
    still_works(&peel);
}

#[test]
fn mounting_a_gzip_bomb_and_a_million_entries_of_one_name_takes_bounded_memory() {
    let peel = Peel::new();
    // 2 GiB of zeros in a file, from 2 MiB of gzip.
    let header = {
        let mut entry = tar_bytes(&[TestEntry::file("bomb", Content::empty())]);
        entry.truncate(512);
        entry[124..136].copy_from_slice(b"20000000000\0");
        entry[148..156].fill(b' ');
        let sum: u32 = entry.iter().map(|byte| u32::from(*byte)).sum();
        entry[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        entry
    };
    let zeros = gzip_member(&vec![0; 32 << 20]);
    let bomb = [gzip_member(&header), zeros.repeat(64), gzip_member(&[0; 1024])].concat();
    let (entry, count) = (TestEntry::file("same", "x"), 1_000_000);
    let entries = tar_bytes(&vec![entry; 10_000]);
    let crowd =
        [gzip_member(&entries[..entries.len() - 1024]).repeat(count / 10_000), gzip_member(&[0; 1024])]
            .concat();
    for (what, bytes) in [("bomb", bomb), ("crowd", crowd)] {
        let mut encoded = blob(Form::GZIP, &bytes).0;
        encoded.diff_id = decoded_digest(&bytes);
        let reference = image_of_blob(&peel, what, &encoded, &bytes);
        let point = peel.mount_point();
        let outcome = mount_within(&peel, &reference, &point, 300);
        match outcome.code {
            Some(0) => {
                assert_eq!(Tree::walk(&point).nodes.len(), 2, "{what}");
                peel.unmount(&point);
            }
            Some(WRONG_CONTENT) => assert!(outcome.stderr.contains(&encoded.digest), "{what}: {outcome:?}"),
            _ => panic!("{what}: {outcome:?}"),
        }
    }
}

fn decoded_digest(gzip: &[u8]) -> String {
    let mut sink = crate::support::blob::Hashing::new(std::io::sink());
    std::io::copy(&mut flate2::read::MultiGzDecoder::new(gzip), &mut sink).unwrap();
    sink.digest()
}
