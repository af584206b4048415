//! Promises of the eStargz reader, on blobs that are written here member by member.

use std::io::Write;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::layer::entry::Timestamp;
use crate::layer::toc::testing::{check_chunks, contiguous, data, decoded, digest, field};
use crate::layer::toc::{Landmark, TocError};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn tar_member(name: &str, data: &[u8]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    archive.append_data(&mut header, name, data).unwrap();
    archive.into_inner().unwrap()
}

/// A blob in the making: payloads in front, then the TOC.
#[derive(Default)]
struct Blob {
    bytes: Vec<u8>,
    entries: Vec<Value>,
}

impl Blob {
    /// A blob begins with a member that holds the first tar header.
    fn new() -> Self {
        Self { bytes: gzip(&[0; 512]), entries: Vec::new() }
    }

    /// A member that holds these bytes, and where it begins.
    fn member(&mut self, bytes: &[u8]) -> usize {
        let offset = self.bytes.len();
        self.bytes.extend(gzip(bytes));
        offset
    }

    /// A file in members of at most `chunk_size` bytes, as the reference writer makes them.
    fn file(&mut self, name: &str, data: &[u8], chunk_size: usize) {
        if data.is_empty() {
            self.entries.push(json!({"name": name, "type": "reg", "digest": digest(b"")}));
        }
        for (number, chunk) in data.chunks(chunk_size).enumerate() {
            // Behind a payload come its padding and the next header.
            let offset = self.member(&[chunk, &[0; 1024]].concat());
            let mut entry = json!({
                "name": name, "type": "chunk", "offset": offset, "chunkOffset": number * chunk_size,
                "chunkDigest": digest(chunk),
            });
            if chunk.len() == chunk_size {
                entry["chunkSize"] = json!(chunk_size);
            }
            if number == 0 {
                entry["type"] = json!("reg");
                entry["size"] = json!(data.len());
                entry["digest"] = json!(digest(data));
            }
            self.entries.push(entry);
        }
    }

    fn json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(&json!({"version": 1, "entries": self.entries})).unwrap()
    }

    fn read(&self) -> Result<TableOfContents, EstargzError> {
        read_json_as_toc(&self.json(), self.bytes.len() as u64)
    }

    fn decoded(&self, toc: &TableOfContents) -> Vec<u8> {
        decoded(&self.bytes, toc)
    }
}

fn read_json_as_toc(json: &[u8], toc_offset: u64) -> Result<TableOfContents, EstargzError> {
    let member = gzip(&tar_member("stargz.index.json", json));
    let blob_size = toc_offset + member.len() as u64 + 51;
    read_toc(&member, Sha256::digest(json).into(), blob_size, toc_offset)
}

#[test]
fn files_lie_aligned_in_the_decoded_space_and_decode_to_their_bytes() {
    let mut blob = Blob::new();
    let files = [data(10_000, 1), data(0, 2), data(1, 3), data(4096, 4), data(12_288, 5)];
    for (number, file) in files.iter().enumerate() {
        blob.file(&format!("f{number}"), file, 4096);
    }
    let toc = blob.read().unwrap();
    let decoded = blob.decoded(&toc);
    assert_eq!(toc.entries.len(), files.len());
    assert_eq!(toc.chunks.len(), 3 + 1 + 1 + 3);
    for (entry, file) in toc.entries.iter().zip(&files) {
        let range = contiguous(entry);
        assert_eq!((range.start % 4096, &decoded[range]), (0, &file[..]));
    }
    assert!(
        toc.chunks.windows(2).all(|pair| pair[0].blob_offset + pair[0].blob_length == pair[1].blob_offset)
    );
}

#[test]
fn payloads_that_share_a_member_are_told_apart() {
    let mut blob = Blob::new();
    let (one, two, three) = (data(100, 1), data(200, 2), data(5000, 3));
    // The first member of a blob has an offset of 0, and the payload comes behind its header.
    blob.bytes = gzip(&[&[0; 512], &one[..]].concat());
    let shared = blob.member(&[&two[..], &[0; 512], &three, &[0; 512]].concat());
    let last = blob.member(&one);
    blob.entries = vec![
        json!({"name": "one", "type": "reg", "size": 100, "innerOffset": 512, "chunkDigest": digest(&one)}),
        json!({"name": "two", "type": "reg", "size": 200, "offset": shared, "chunkDigest": digest(&two)}),
        json!({"name": "three", "type": "reg", "size": 5000, "offset": shared, "innerOffset": 712,
               "chunkDigest": digest(&three)}),
        json!({"name": "four", "type": "reg", "size": 100, "offset": last, "digest": digest(&one)}),
    ];
    let toc = blob.read().unwrap();
    let decoded = blob.decoded(&toc);
    for (entry, file) in toc.entries.iter().zip([&one, &two, &three, &one]) {
        assert_eq!(decoded[contiguous(entry)], file[..]);
    }
    let ranges: Vec<_> =
        toc.chunks.iter().map(|chunk| (chunk.blob_offset, chunk.blob_offset + chunk.blob_length)).collect();
    let (shared, last) = (shared as u64, last as u64);
    assert_eq!(ranges, [(0, shared), (shared, last), (shared, last), (last, blob.bytes.len() as u64)]);
}

#[test]
fn the_chunks_of_a_file_may_lie_in_shared_members_and_so_may_a_landmark() {
    let mut blob = Blob::new();
    let (one, three) = (data(100, 1), data(20, 3));
    let two = [data(300, 2), data(300, 4), data(50, 5)];
    let gap = &[0; 512][..];
    let first = blob.member(&[&one[..], gap, &two[0], &two[1]].concat());
    let second = blob.member(&[&two[2][..], gap, b"\x0f", gap, &three].concat());
    let whole = digest(&two.concat());
    blob.entries = vec![
        json!({"name": "one", "type": "reg", "size": 100, "offset": first, "digest": digest(&one)}),
        json!({"name": "two", "type": "reg", "size": 650, "offset": first, "innerOffset": 612, "chunkSize": 300,
               "digest": whole, "chunkDigest": digest(&two[0])}),
        json!({"name": "two", "type": "chunk", "offset": first, "innerOffset": 912, "chunkOffset": 300, "chunkSize": 300,
               "chunkDigest": digest(&two[1])}),
        json!({"name": "two", "type": "chunk", "offset": second, "chunkOffset": 600, "chunkDigest": digest(&two[2])}),
        json!({"name": ".prefetch.landmark", "type": "reg", "size": 1, "offset": second, "innerOffset": 562,
               "digest": digest(b"\x0f")}),
        json!({"name": "three", "type": "reg", "size": 20, "offset": second, "innerOffset": 1075, "digest": digest(&three)}),
    ];
    let toc = blob.read().unwrap();
    let decoded = blob.decoded(&toc);
    assert_eq!((toc.entries.len(), toc.chunks.len()), (3, 5));
    for (entry, file) in toc.entries.iter().zip([&one, &two.concat(), &three]) {
        assert_eq!(decoded[contiguous(entry)], file[..]);
    }
    assert_eq!(toc.prefetch, Some(Landmark::Prefetch { blob_length: second as u64 }));
}

#[test]
fn landmarks_and_the_table_itself_are_no_entries() {
    for (name, is_prefetch) in [(".prefetch.landmark", true), ("./.no.prefetch.landmark", false)] {
        let mut blob = Blob::new();
        blob.file("first", b"first", 4096);
        let offset = blob.bytes.len() as u64;
        blob.file(name, b"\x0f", 4096);
        blob.file("second", b"second", 4096);
        blob.file("d/.prefetch.landmark", b"not at the root", 4096);
        blob.entries.push(json!({"name": "stargz.index.json", "type": "reg"}));
        let toc = blob.read().unwrap();
        let names: Vec<_> = toc.entries.iter().map(|entry| &entry.path[..]).collect();
        assert_eq!(names, [&b"first"[..], b"second", b"d/.prefetch.landmark"]);
        assert_eq!(toc.chunks.len(), 3);
        assert_eq!(
            toc.chunks[0].blob_offset + toc.chunks[0].blob_length,
            offset,
            "a landmark begins a member"
        );
        let expected = if is_prefetch { Landmark::Prefetch { blob_length: offset } } else { Landmark::None };
        assert_eq!(toc.prefetch, Some(expected));
    }
}

#[test]
fn entries_have_what_the_table_says() {
    let entries = json!([
        {"name": "d/", "type": "dir", "mode": 0o41777, "uid": 1000, "gid": 4_294_967_295_u32, "userName": "u",
         "modtime": "1969-12-31T23:59:58Z", "xattrs": {"user.b": "AP8K", "user.e": "", "user.n": null}, "new": {"x": [1]}},
        {"name": "s", "type": "symlink", "linkName": "../t\u{e9}"},
        {"name": "h", "type": "hardlink", "linkName": "f", "xattrs": null},
        {"name": "c", "type": "char", "devMajor": 1, "devMinor": 1_048_575},
        {"name": "b", "type": "block", "devMajor": 8},
        {"name": "p", "type": "fifo", "mode": 0o644},
    ]);
    let json = serde_json::to_vec(&json!({"entries": entries, "version": 1, "more": null})).unwrap();
    let toc = read_json_as_toc(&json, 1000).unwrap();
    let kinds: Vec<_> = toc.entries.iter().map(|entry| entry.kind.clone()).collect();
    assert_eq!(
        kinds,
        [
            EntryKind::Directory,
            EntryKind::Symlink { target: "../t\u{e9}".into() },
            EntryKind::Hardlink { target: b"f".to_vec() },
            EntryKind::CharacterDevice { major: 1, minor: 1_048_575 },
            EntryKind::BlockDevice { major: 8, minor: 0 },
            EntryKind::Fifo,
        ]
    );
    let directory = &toc.entries[0];
    assert_eq!((directory.mode, directory.uid, directory.gid), (0o1777, 1000, u32::MAX));
    assert_eq!(directory.modified, Timestamp { seconds: -2, nanoseconds: 0 });
    let xattr = |name: &str, value: &[u8]| (name.as_bytes().to_vec(), value.to_vec());
    assert_eq!(directory.xattrs, [xattr("user.b", b"\0\xff\n"), xattr("user.e", b""), xattr("user.n", b"")]);
    assert_eq!(toc.entries[5].modified, Timestamp::default());
    assert!(!toc.names_are_lossy);
}

#[test]
fn names_that_json_could_not_hold_are_reported() {
    for entry in [
        json!({"name": "latin1-\u{fffd}", "type": "fifo"}),
        json!({"name": "s", "type": "symlink", "linkName": "\u{fffd}"}),
    ] {
        let json = serde_json::to_vec(&json!({"version": 1, "entries": [entry]})).unwrap();
        assert!(read_json_as_toc(&json, 1000).unwrap().names_are_lossy);
    }
}

#[test]
fn an_empty_layer_is_no_error() {
    for json in [r#"{"version":1,"entries":null}"#, r#"{"version":1,"entries":[]}"#, "{\"version\": 1}\n"] {
        assert_eq!(read_json_as_toc(json.as_bytes(), 1000).unwrap().entries, []);
    }
}

#[test]
fn every_lie_is_refused() {
    let some = digest(b"x");
    let zeros = format!("sha256:{}", "0".repeat(64));
    // Each case is the fields that replace those of a good file of 10 bytes (null removes), what follows it, and what the error says.
    let chunk = |fields: Value| {
        let mut entry =
            json!({"name": "f", "type": "chunk", "offset": 700, "chunkOffset": 4, "chunkDigest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| entry[key] = value.clone());
        entry
    };
    let first = json!({"chunkSize": 4, "digest": null});
    let with = |more: Value| {
        let mut fields = first.clone();
        more.as_object().unwrap().iter().for_each(|(key, value)| fields[key] = value.clone());
        fields
    };
    let huge = i64::MAX;
    let cases = [
        (json!({"type": "socket"}), vec![], "unknown type \"socket\""),
        (json!({"type": null}), vec![], "unknown type \"\""),
        (json!({"size": -1}), vec![], "size -1 is out of range"),
        (json!({"offset": -5}), vec![], "offset -5 is out of range"),
        (json!({"innerOffset": -1}), vec![], "innerOffset -1"),
        (json!({"uid": -1}), vec![], "uid -1"),
        (json!({"gid": 4_294_967_296_i64}), vec![], "gid 4294967296"),
        (json!({"mode": -1}), vec![], "mode -1"),
        (json!({"type": "char", "devMajor": -1}), vec![], "devMajor -1"),
        (json!({"modtime": "yesterday"}), vec![], "modtime \"yesterday\""),
        (json!({"xattrs": {"user.x": "%%%"}}), vec![], "extended attribute \"user.x\""),
        (json!({"xattrs": {"": ""}}), vec![], "extended attribute \"\""),
        (json!({"name": "n".repeat(70_000)}), vec![], "70000 bytes is too long"),
        (json!({"digest": "md5:00", "chunkDigest": null}), vec![], "digest is missing or not"),
        (json!({"digest": some.to_uppercase()}), vec![], "digest is missing or not"),
        (json!({"chunkDigest": null, "digest": null}), vec![], "chunkDigest is missing"),
        (json!({"digest": zeros}), vec![], "contradict"),
        (json!({"offset": null}), vec![], "offset 0 is not between"),
        (json!({"offset": 1000}), vec![], "offset 1000 is not between"),
        (json!({"offset": huge}), vec![], "is not between"),
        (json!({"size": huge}), vec![], "bytes, more than 67108864"),
        (json!({"size": huge, "chunkSize": 10}), vec![], "hold 10 of its 9223372036854775807 bytes"),
        (json!({"chunkSize": 11}), vec![], "a chunk of 11 bytes, more than 10"),
        (json!({"chunkSize": 4, "digest": null}), vec![], "hold 4 of its 10 bytes"),
        (json!({"chunkOffset": 1}), vec![], "a chunk at 1 of the file"),
        (json!({"innerOffset": huge}), vec![], "innerOffset 9223372036854775807 is more"),
        (first.clone(), vec![chunk(json!({"chunkOffset": 5}))], "a chunk at 5 of the file"),
        (first.clone(), vec![chunk(json!({"chunkOffset": 3}))], "a chunk at 3 of the file"),
        (first.clone(), vec![chunk(json!({"chunkSize": 7}))], "a chunk of 7 bytes, more than 6"),
        (first.clone(), vec![chunk(json!({"chunkSize": 5}))], "hold 9 of its 10 bytes"),
        (first.clone(), vec![chunk(json!({"chunkDigest": null, "digest": some}))], "chunkDigest is missing"),
        (first.clone(), vec![chunk(json!({"offset": 499}))], "offset 499 is not between"),
        (first.clone(), vec![chunk(json!({"offset": 500, "innerOffset": 3}))], "innerOffset 3 is before"),
        (first.clone(), vec![chunk(json!({"name": "g"}))], "does not follow its file"),
        (
            first.clone(),
            vec![json!({"name": "p", "type": "fifo"}), chunk(json!({}))],
            "hold 4 of its 10 bytes",
        ),
        (with(json!({})), vec![chunk(json!({})), chunk(json!({"chunkOffset": 10}))], "a chunk of 0 bytes"),
        (json!({"size": 0}), vec![chunk(json!({}))], "does not follow its file"),
        (json!({"type": "dir"}), vec![chunk(json!({}))], "does not follow its file"),
    ];
    for (fields, following, expected) in cases {
        let mut file = json!({"name": "f", "type": "reg", "size": 10, "offset": 500, "chunkDigest": some, "digest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| file[key] = value.clone());
        let entries: Vec<_> = [file].into_iter().chain(following).collect();
        let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
        match read_json_as_toc(&json, 1000) {
            Err(error @ EstargzError::Contents(TocError::Entry { .. })) => {
                let message = error.to_string();
                assert!(message.contains(expected), "{message} should have {expected}");
            }
            other => panic!("{fields} should give {expected}: {other:?}"),
        }
    }
}

#[test]
fn what_is_no_table_is_refused() {
    for (json, expected) in [
        ("", "EOF"),
        ("[]", "invalid type"),
        ("{}", "version 0"),
        (r#"{"version":2,"entries":[]}"#, "version 2"),
        (r#"{"version":1,"version":1}"#, "duplicate field"),
        (r#"{"version":1,"entries":[],"entries":[]}"#, "duplicate field"),
        (r#"{"version":1,"entries":[{"name":"a","name":"b"}]}"#, "duplicate field"),
        (r#"{"version":1,"entries":[]} x"#, "trailing characters"),
        (
            r#"{"version":1,"entries":[{"name":"a","type":"fifo"},{"size":18446744073709551615}]}"#,
            "after entry \"a\"",
        ),
        (r#"{"version":1,"entries":[{"name":"a","type":"fifo"},{"name":1}]}"#, "after entry \"a\""),
    ] {
        let message = read_json_as_toc(json.as_bytes(), 1000).unwrap_err().to_string();
        assert!(message.contains(expected), "{json}: {message}");
    }
    let nested = format!("{{\"version\":1,\"x\":{}", "[".repeat(100_000));
    assert!(read_json_as_toc(nested.as_bytes(), 1000).is_err(), "nesting is bounded");
}

#[test]
fn a_table_that_the_manifest_does_not_vouch_for_is_refused() {
    let json = br#"{"version":1,"entries":[]}"#;
    let member = gzip(&tar_member("stargz.index.json", json));
    let size = 2000 + member.len() as u64;
    let good = Sha256::digest(json).into();
    assert!(read_toc(&member, good, size, 1000).is_ok());
    assert!(matches!(read_toc(&member, [7; 32], size, 1000), Err(EstargzError::Digest { .. })));
    assert!(matches!(read_toc(&member, good, 1000, 1000), Err(EstargzError::Place { .. })));
    assert!(matches!(read_toc(&member, good, u64::MAX, u64::MAX), Err(EstargzError::Place { .. })));
    for length in 0..member.len() - 8 {
        let result = read_toc(&member[..length], good, size, 1000);
        // The end of the member is not needed: the JSON is whole and proven before.
        assert!(result.is_err() || length > json.len(), "{length}");
    }
    let other = gzip(&tar_member("other.json", json));
    assert!(matches!(read_toc(&other, good, size, 1000), Err(EstargzError::Tar(_))));
    assert!(matches!(read_toc(&gzip(&[0; 1024]), good, size, 1000), Err(EstargzError::Missing)));
    assert!(matches!(read_toc(b"garbage garbage", good, size, 1000), Err(EstargzError::Decode(_))));
}

#[test]
fn a_table_of_a_gigabyte_is_refused_before_it_is_decoded() {
    let mut header = tar::Header::new_ustar();
    header.set_path("stargz.index.json").unwrap();
    header.set_size(1 << 30);
    header.set_cksum();
    let member = gzip(header.as_bytes());
    let error = read_toc(&member, [0; 32], 10_000, 1000).unwrap_err();
    assert!(
        matches!(error, EstargzError::TooLarge { length, limit: MAXIMUM_TOC } if length == 1 << 30),
        "{error}"
    );
}

proptest! {
    #[test]
    fn no_changed_table_gives_chunks_that_overlap(
        changes in proptest::collection::vec(
            (0_usize..12, prop::sample::select(&["size", "offset", "innerOffset", "chunkOffset", "chunkSize", "uid", "mode"][..]), field()),
            0..4,
        ),
        swap in (0_usize..12, 0_usize..12),
    ) {
        let mut blob = Blob::new();
        blob.file("a", &data(10_000, 1), 4096);
        blob.file(".prefetch.landmark", b"\x0f", 4096);
        blob.file("b", &data(100, 2), 4096);
        blob.file("c", &data(9000, 3), 3000);
        blob.file("e", b"", 4096);
        let count = blob.entries.len();
        for (at, field, value) in changes {
            blob.entries[at % count][field] = value;
        }
        blob.entries.swap(swap.0 % count, swap.1 % count);
        if let Ok(toc) = blob.read() {
            check_chunks(&toc, blob.bytes.len() as u64)?;
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..400) {
        let mut json = br#"{"version":1,"entries":[{"name":"a","type":"reg","size":3,"offset":9,"digest":"sha256:00"}]}"#.to_vec();
        let at = at % json.len();
        json.splice(at..at, bytes);
        let _ = read_json_as_toc(&json, 1000);
    }
}
