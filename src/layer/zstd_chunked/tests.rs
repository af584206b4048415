//! Promises of the zstd:chunked reader, on blobs that are written here frame by frame.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::layer::chunk::decode_chunk;
use crate::layer::entry::{Content, Entry, EntryKind};
use crate::layer::lookup::Lookup;
use crate::layer::testing::pattern;
use crate::layer::toc::{Landmark, TocError, hex};

fn frame(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    [&[0x50, 0x2a, 0x4d, 0x18][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

fn data(length: usize, seed: u8) -> Vec<u8> {
    pattern(length).iter().map(|byte| byte.wrapping_add(seed)).collect()
}

/// A blob in the making: payloads in front, then the TOC.
struct Blob {
    bytes: Vec<u8>,
    entries: Vec<Value>,
    tar_split: Option<Vec<u8>>,
}

impl Blob {
    /// A blob begins with a frame that holds the first tar header.
    fn new() -> Self {
        Self { bytes: frame(&[0; 512]), entries: Vec::new(), tar_split: None }
    }

    fn frame(&mut self, bytes: &[u8]) -> usize {
        let offset = self.bytes.len();
        self.bytes.extend(frame(bytes));
        offset
    }

    /// A file as containers/storage writes it: a frame for each chunk, zeros included; then the header of the next entry.
    fn podman_file(&mut self, name: &str, chunks: &[&[u8]]) {
        let whole = chunks.concat();
        let mut chunk_offset = 0;
        let first = self.entries.len();
        for chunk in chunks {
            let offset = self.frame(chunk);
            let mut entry = json!({"type": "chunk", "name": name, "offset": offset});
            if chunks.len() > 1 {
                entry["chunkSize"] = json!(chunk.len());
                entry["chunkDigest"] = json!(digest(chunk));
            }
            if chunk_offset > 0 {
                entry["chunkOffset"] = json!(chunk_offset);
            }
            if chunks.len() > 1 && chunk.iter().all(|byte| *byte == 0) {
                entry["chunkType"] = json!("zeros");
            }
            chunk_offset += chunk.len();
            self.entries.push(entry);
        }
        let file = &mut self.entries[first];
        file["type"] = json!("reg");
        file["size"] = json!(whole.len());
        file["digest"] = json!(digest(&whole));
        file["endOffset"] = json!(self.bytes.len());
        self.frame(&[0; 1024]);
    }

    /// A file as the stargz project writes it: the frame goes on with padding and the next header.
    fn stargz_file(&mut self, name: &str, content: &[u8]) {
        let offset = self.frame(&[content, &[0; 1024]].concat());
        self.entries.push(json!({
            "name": name, "type": "reg", "size": content.len(), "offset": offset,
            "digest": digest(content), "chunkDigest": digest(content),
        }));
    }

    fn json(&self) -> Vec<u8> {
        let mut toc = json!({"version": 1, "entries": self.entries});
        if let Some(tar_split) = &self.tar_split {
            toc["tarSplitDigest"] = json!(digest(tar_split));
        }
        serde_json::to_vec(&toc).unwrap()
    }

    fn finish(&self) -> Finished {
        Finished::new(self.bytes.clone(), &self.json(), self.tar_split.as_deref())
    }

    fn read(&self) -> Result<TableOfContents, ZstdChunkedError> {
        self.finish().read().map(|read| read.contents)
    }
}

/// A whole blob, and what its manifest would say of it.
struct Finished {
    blob: Vec<u8>,
    toc: Vec<u8>,
    json: Vec<u8>,
    positions: Positions,
}

impl Finished {
    fn new(mut blob: Vec<u8>, json: &[u8], tar_split: Option<&[u8]>) -> Self {
        let toc = frame(json);
        let place = |blob: &mut Vec<u8>, bytes: &[u8], decoded_length| {
            blob.extend(skippable(bytes));
            let compressed_length = bytes.len() as u64;
            Place { offset: blob.len() as u64 - compressed_length, compressed_length, decoded_length }
        };
        let toc_place = place(&mut blob, &toc, json.len() as u64);
        let tar_split = tar_split.map(|bytes| place(&mut blob, bytes, 1000));
        let positions = Positions { toc: toc_place, tar_split };
        Self { blob, toc, json: json.to_vec(), positions }
    }

    fn claims(&self) -> Claims {
        Claims {
            positions: Some(self.positions),
            compressed_digest: Some(Sha256::digest(&self.toc).into()),
            json_digest: None,
            tar_split_digest: None,
        }
    }

    fn read(&self) -> Result<ZstdChunked, ZstdChunkedError> {
        read_toc(&self.toc, &self.positions, &self.claims(), self.blob.len() as u64)
    }

    fn footer(&self, is_long: bool, magic: &[u8; 8]) -> Vec<u8> {
        let numbers = |place: Place| [place.offset, place.compressed_length, place.decoded_length];
        let none = Place { offset: 0, compressed_length: 0, decoded_length: 0 };
        let mut all = numbers(self.positions.toc).to_vec();
        all.push(1);
        if is_long {
            all.extend(numbers(self.positions.tar_split.unwrap_or(none)));
        }
        let bytes: Vec<u8> = all.iter().flat_map(|number| number.to_le_bytes()).collect();
        skippable(&[&bytes[..], magic].concat())
    }
}

/// Bytes of the decoded space, from the chunks of a blob.
fn decoded(blob: &[u8], toc: &TableOfContents) -> Vec<u8> {
    let mut decoded = vec![0; toc.decoded_length as usize];
    for chunk in &toc.chunks {
        let range = chunk.blob_offset as usize..(chunk.blob_offset + chunk.blob_length) as usize;
        let bytes = decode_chunk(chunk, &blob[range]).unwrap();
        decoded[chunk.decoded_offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    decoded
}

fn contiguous(entry: &Entry) -> std::ops::Range<usize> {
    match entry.kind {
        EntryKind::Regular { size, content: Content::Contiguous(at) } => at as usize..(at + size) as usize,
        _ => panic!("a regular file: {entry:?}"),
    }
}

#[test]
fn files_of_podmans_schema_decode_to_their_bytes() {
    let (a, b) = (data(70_000, 1), data(5000, 2));
    let zeros = [0; 6000];
    let mut blob = Blob::new();
    blob.podman_file("whole", &[&a]);
    blob.podman_file("chunks", &[&a, &zeros, &b, &zeros]);
    blob.entries.push(json!({"type": "reg", "name": "empty", "modtime": "2023-06-10T10:00:00Z"}));
    blob.podman_file("zeros first", &[&zeros, &b]);
    let toc = blob.read().unwrap();
    let content = decoded(&blob.bytes, &toc);
    let expected = [a.clone(), [&a[..], &zeros, &b, &zeros].concat(), vec![], [&zeros[..], &b].concat()];
    assert_eq!(toc.entries.len(), expected.len());
    for (entry, file) in toc.entries.iter().zip(&expected) {
        let range = contiguous(entry);
        assert_eq!(range.start % 4096, 0);
        assert!(content[range] == file[..], "{}", entry.path.escape_ascii());
    }
    let zeros: Vec<_> = toc.chunks.iter().filter(|chunk| chunk.codec == Codec::Zeros).collect();
    assert_eq!(zeros.len(), 3);
    assert!(zeros.iter().all(|chunk| chunk.blob_length == 0 && chunk.digest == [0; 32]));
    // Between the files are headers, which no chunk includes; and between chunks nothing.
    let data: Vec<_> = toc.chunks.iter().filter(|chunk| chunk.codec == Codec::Zstd).collect();
    for (chunk, frame_length) in data.iter().zip([&a, &a, &b, &b].map(|bytes| frame(bytes).len() as u64)) {
        assert_eq!(chunk.blob_length, frame_length);
    }
}

#[test]
fn files_of_the_stargz_schema_decode_to_their_bytes() {
    let (a, b) = (data(70_000, 1), data(5000, 2));
    let mut blob = Blob::new();
    blob.stargz_file(".no.prefetch.landmark", b"\x0f");
    blob.stargz_file("a", &a);
    let offset = blob.frame(&b[..3000]);
    blob.entries.push(json!({"name": "b", "type": "reg", "size": 5000, "offset": offset, "chunkSize": 3000,
                             "chunkDigest": digest(&b[..3000]), "digest": digest(&b)}));
    let offset = blob.frame(&b[3000..]);
    // This schema has no chunks of zeros: whoever says so is not believed, and the bytes are verified.
    blob.entries.push(json!({"name": "b", "type": "chunk", "offset": offset, "chunkOffset": 3000,
                             "chunkDigest": digest(&b[3000..]), "chunkType": "zeros"}));
    let toc = blob.read().unwrap();
    assert_eq!(toc.prefetch, Some(Landmark::None));
    let content = decoded(&blob.bytes, &toc);
    let files: Vec<_> = toc.entries.iter().map(|entry| &content[contiguous(entry)]).collect();
    assert!(files == [&a[..], &b[..]]);
}

#[test]
fn a_file_that_is_named_like_a_landmark_is_a_file_where_there_are_none() {
    let mut blob = Blob::new();
    blob.podman_file(".prefetch.landmark", &[b"x"]);
    blob.podman_file("stargz.index.json", &[b"{}"]);
    let toc = blob.read().unwrap();
    assert_eq!((toc.prefetch, toc.entries.len()), (None, 2));
}

#[test]
fn a_file_of_nothing_but_zeros_has_any_size() {
    let size = 1_u64 << 40;
    let mut blob = Blob::new();
    let offset = blob.frame(b"");
    let end = blob.bytes.len();
    blob.entries
        .push(json!({"type": "reg", "name": "hole", "size": size, "offset": offset, "endOffset": end,
                             "chunkType": "zeros"}));
    let toc = blob.read().unwrap();
    assert_eq!((toc.chunks.len(), toc.chunks[0].decoded_length, toc.decoded_length), (1, size, size));
}

#[test]
fn tar_split_data_are_kept_in_mind_with_the_digest_that_vouches_for_them() {
    let mut blob = Blob::new();
    blob.podman_file("f", &[b"content"]);
    assert_eq!(blob.finish().read().unwrap().tar_split, None);
    blob.tar_split = Some(frame(b"{\"type\":1}\n"));
    let finished = blob.finish();
    let tar_split = finished.read().unwrap().tar_split.unwrap();
    let range = tar_split.blob_range.start as usize..tar_split.blob_range.end as usize;
    assert_eq!(Sha256::digest(&finished.blob[range])[..], tar_split.digest);
    assert_eq!(tar_split.decoded_length, 1000);
    // A digest of the manifest serves where the TOC has none; without any, the data are of no use.
    let json = serde_json::to_vec(&json!({"version": 1, "entries": []})).unwrap();
    let finished = Finished::new(blob.bytes.clone(), &json, blob.tar_split.as_deref());
    assert_eq!(finished.read().unwrap().tar_split, None);
    let claims = Claims { tar_split_digest: Some([7; 32]), ..finished.claims() };
    let read = read_toc(&finished.toc, &finished.positions, &claims, finished.blob.len() as u64).unwrap();
    assert_eq!(read.tar_split.unwrap().digest, [7; 32]);
}

#[test]
fn every_combination_of_annotations_footers_and_schemas_is_found() {
    let mut podman = Blob::new();
    podman.podman_file("f", &[b"content"]);
    podman.tar_split = Some(frame(b"{}"));
    let mut stargz = Blob::new();
    stargz.stargz_file("f", b"content");
    for blob in [podman, stargz] {
        let Finished { toc, json, positions, .. } = &blob.finish();
        let (checksum, json_digest) = (digest(toc), digest(json));
        let Place { offset, compressed_length, decoded_length } = positions.toc;
        let position = format!("{offset}:{compressed_length}:{decoded_length}:1");
        for (is_long, magic) in
            [(true, b"GnUlInUx"), (true, b"GNUlInUx"), (false, b"GnUlInUx"), (false, b"GNUlInUx")]
        {
            let finished = blob.finish();
            let bytes = [&finished.blob[..], &finished.footer(is_long, magic)].concat();
            let size = bytes.len() as u64;
            for prefix in ["io.github.containers.zstd-chunked", "io.containers.zstd-chunked"] {
                let by_checksum = (format!("{prefix}.manifest-checksum"), checksum.clone());
                let by_json = ("containerd.io/snapshot/stargz/toc.digest".to_owned(), json_digest.clone());
                let place = (format!("{prefix}.manifest-position"), position.clone());
                for annotations in [
                    vec![by_checksum.clone()],
                    vec![by_json.clone()],
                    vec![by_checksum.clone(), place.clone()],
                    vec![by_json.clone(), place.clone()],
                    vec![by_checksum, by_json, place.clone()],
                ] {
                    let lookup = Lookup::new(&annotations.iter().cloned().collect(), size).unwrap().unwrap();
                    let first = lookup.first_range();
                    if annotations.contains(&place) {
                        assert_eq!(first, offset..offset + compressed_length, "nothing else is read");
                    }
                    let bytes = |range: Range<u64>| &bytes[range.start as usize..range.end as usize];
                    let located = lookup.locate(bytes(first)).unwrap().expect("a TOC");
                    let toc = located.read_toc(bytes(located.range())).unwrap();
                    assert_eq!(decoded(&finished.blob, &toc), b"content", "{annotations:?}");
                }
            }
        }
    }
}

#[test]
fn a_layer_for_which_nothing_vouches_is_an_ordinary_one() {
    assert!(Lookup::new(&BTreeMap::new(), 1000).unwrap().is_none());
    let annotated = ("io.containers.zstd-chunked.manifest-checksum".to_owned(), digest(b"x"));
    let lookup = Lookup::new(&[annotated].into(), 1000).unwrap().unwrap();
    assert!(lookup.locate(&[0; 1000]).unwrap().is_none(), "without a footer");
    let annotations = [
        ("io.containers.zstd-chunked.manifest-checksum".to_owned(), digest(b"x")),
        ("io.containers.zstd-chunked.manifest-position".to_owned(), "900:101:500:1".to_owned()),
    ];
    assert!(Lookup::new(&annotations.into(), 1000).is_err(), "a place outside the blob");
}

#[test]
fn a_table_that_the_manifest_does_not_vouch_for_is_refused() {
    let mut blob = Blob::new();
    blob.podman_file("f", &[b"content"]);
    let finished = blob.finish();
    let size = finished.blob.len() as u64;
    let read = |positions: &Positions, claims: &Claims| read_toc(&finished.toc, positions, claims, size);
    let claims = finished.claims();
    let json_digest = Some(Sha256::digest(&finished.json).into());
    assert!(read(&finished.positions, &Claims { json_digest, ..claims.clone() }).is_ok());
    assert!(
        read(&finished.positions, &Claims { json_digest, compressed_digest: None, ..claims.clone() }).is_ok()
    );
    for lie in [
        Claims { compressed_digest: Some([7; 32]), ..claims.clone() },
        Claims { compressed_digest: Some([7; 32]), json_digest, ..claims.clone() },
        Claims { json_digest: Some([7; 32]), ..claims.clone() },
    ] {
        assert!(matches!(read(&finished.positions, &lie), Err(ZstdChunkedError::Digest { .. })));
    }
    let toc = finished.positions.toc;
    let with_toc = |toc| Positions { toc, tar_split: None };
    for decoded_length in [0, 1, toc.decoded_length - 1, toc.decoded_length + 1, MAXIMUM_TOC] {
        let result = read(&with_toc(Place { decoded_length, ..toc }), &claims);
        assert!(matches!(result, Err(ZstdChunkedError::Length { .. })), "{decoded_length}");
    }
    for length in [MAXIMUM_TOC + 1, u64::MAX] {
        for place in [Place { decoded_length: length, ..toc }, Place { compressed_length: length, ..toc }] {
            let result = read(&with_toc(place), &claims);
            assert!(matches!(result, Err(ZstdChunkedError::TooLarge { .. })), "{length}");
        }
    }
    for offset in [0, 7, toc.offset + 1, u64::MAX] {
        let lie = Place { offset, ..toc };
        let lies = [with_toc(lie), Positions { toc, tar_split: Some(lie) }];
        for positions in &lies {
            let result = read(positions, &claims);
            // The first bytes of a blob may hold as much; then it is the payloads that do not fit.
            let is_refused = match result {
                Err(ZstdChunkedError::Place { .. }) => true,
                Err(ZstdChunkedError::Contents(_)) => offset < 8,
                _ => false,
            };
            assert!(is_refused, "{offset}: {result:?}");
        }
    }
    let truncated = &finished.toc[..finished.toc.len() - 1];
    let claims = Claims { compressed_digest: Some(Sha256::digest(truncated).into()), ..claims };
    assert!(matches!(
        read_toc(truncated, &finished.positions, &claims, size),
        Err(ZstdChunkedError::Decode(_))
    ));
    let json = br#"{"version":1,"entries":[],"tarSplitDigest":"md5:00"}"#;
    let error = Finished::new(frame(b""), json, None).read().unwrap_err();
    assert!(error.to_string().contains("tarSplitDigest is not a SHA-256 digest"), "{error}");
}

#[test]
fn every_lie_is_refused_by_name() {
    let some = digest(b"x");
    let first = json!({"chunkSize": 4, "digest": null, "chunkDigest": some});
    // Fields that replace those of a good file of 10 bytes at 500 to 600 (null removes), what follows it, and what the error says.
    let chunk = |fields: Value| {
        let mut entry =
            json!({"name": "f", "type": "chunk", "offset": 550, "chunkOffset": 4, "chunkDigest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| entry[key] = value.clone());
        entry
    };
    let next = |fields: Value| {
        let mut entry =
            json!({"name": "f", "type": "reg", "size": 1, "offset": 600, "endOffset": 700, "digest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| entry[key] = value.clone());
        entry
    };
    let zeros = |length: i64| json!({"chunkType": "zeros", "chunkSize": length, "chunkDigest": null});
    let huge = i64::MAX;
    let cases = [
        (json!({"type": "socket"}), vec![], "unknown type \"socket\""),
        (json!({"size": -1}), vec![], "size -1 is out of range"),
        (json!({"offset": -5}), vec![], "offset -5 is out of range"),
        (json!({"endOffset": -5}), vec![], "endOffset -5 is out of range"),
        (json!({"endOffset": 500}), vec![], "endOffset 500 is not between"),
        (json!({"endOffset": 499}), vec![], "endOffset 499 is not between"),
        (
            json!({"endOffset": 993}),
            vec![],
            "endOffset 993 is not between its offset (500) and the end of the data (992)",
        ),
        (json!({"endOffset": huge}), vec![], "is not between"),
        (json!({"offset": null}), vec![], "offset 0 is not between"),
        (json!({"offset": 600}), vec![], "endOffset 600 is not between"),
        (json!({"digest": null}), vec![], "chunkDigest is missing"),
        (json!({"digest": "sha512:00"}), vec![], "digest is missing or not"),
        (json!({"chunkDigest": digest(b"y")}), vec![], "contradict"),
        (json!({"chunkType": "holes"}), vec![], "unknown chunkType \"holes\""),
        (zeros(11), vec![], "a chunk of 11 bytes, more than 10"),
        (zeros(9), vec![], "hold 9 of its 10 bytes"),
        (zeros(-9), vec![], "chunkSize -9"),
        (json!({"size": huge}), vec![], "bytes, more than 67108864"),
        (json!({"size": huge, "chunkType": "zeros"}), vec![next(json!({}))], "add up to more than any layer"),
        (json!({"innerOffset": huge}), vec![], "innerOffset 9223372036854775807 is more"),
        (first.clone(), vec![], "hold 4 of its 10 bytes"),
        (first.clone(), vec![chunk(json!({"chunkOffset": 5}))], "a chunk at 5 of the file"),
        (first.clone(), vec![chunk(json!({"chunkSize": 7}))], "a chunk of 7 bytes, more than 6"),
        (first.clone(), vec![chunk(json!({"chunkSize": 5}))], "hold 9 of its 10 bytes"),
        (first.clone(), vec![chunk(json!({"chunkDigest": null}))], "chunkDigest is missing"),
        (first.clone(), vec![chunk(json!({"offset": 499}))], "offset 499 is not between"),
        (first.clone(), vec![chunk(json!({"offset": 500}))], "innerOffset 0 is before"),
        (first.clone(), vec![chunk(json!({"offset": 600}))], "offset 600 is not between"),
        (first.clone(), vec![chunk(json!({"name": "g"}))], "does not follow its file"),
        (
            json!({}),
            vec![next(json!({"offset": 599}))],
            "offset 599 is not between the payload before it (600)",
        ),
        (
            json!({}),
            vec![next(json!({"endOffset": null}))],
            "endOffset is in some files and missing in others",
        ),
        (
            json!({"endOffset": null}),
            vec![next(json!({}))],
            "endOffset is in some files and missing in others",
        ),
    ];
    for (fields, following, expected) in cases {
        let mut file = json!({"name": "f", "type": "reg", "size": 10, "offset": 500, "endOffset": 600,
                              "chunkDigest": null, "digest": some});
        fields.as_object().unwrap().iter().for_each(|(key, value)| file[key] = value.clone());
        let entries: Vec<_> = [file].into_iter().chain(following).collect();
        let json = serde_json::to_vec(&json!({"version": 1, "entries": entries})).unwrap();
        match Finished::new(vec![0; 992], &json, None).read() {
            Err(ZstdChunkedError::Contents(TocError::Entry { name, fault })) => {
                assert_eq!(name, entries.last().unwrap()["name"].as_str().unwrap());
                let message = fault.to_string();
                assert!(message.contains(expected), "{message} should have {expected}");
            }
            other => panic!("{fields} should give {expected}: {other:?}"),
        }
    }
}

/// What every reader of a table relies on.
fn check_chunks(toc: &TableOfContents, payload_end: u64) -> Result<(), TestCaseError> {
    let (mut end, mut blob_end) = (0, 0);
    for chunk in &toc.chunks {
        prop_assert!(chunk.decoded_length > 0 && chunk.decoded_offset >= end);
        prop_assert_eq!(chunk.codec == Codec::Zeros, chunk.blob_length == 0);
        end = chunk.decoded_offset + chunk.decoded_length;
        prop_assert!(chunk.blob_offset + chunk.blob_length <= payload_end);
        if chunk.skip == 0 {
            prop_assert!(chunk.blob_offset >= blob_end);
            blob_end = chunk.blob_offset + chunk.blob_length;
        }
    }
    prop_assert!(end <= toc.decoded_length);
    for entry in &toc.entries {
        if let EntryKind::Regular { size, content: Content::Contiguous(at) } = entry.kind {
            let inside = |offset: u64| (at..at + size).contains(&offset);
            let chunks = toc.chunks.iter().filter(|chunk| inside(chunk.decoded_offset));
            prop_assert_eq!(chunks.map(|chunk| chunk.decoded_length).sum::<u64>(), size);
        }
    }
    Ok(())
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0_i64..3000).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(Value::Null),
        Just(json!("zeros")),
    ]
}

proptest! {
    #[test]
    fn no_changed_table_gives_chunks_that_overlap(
        changes in proptest::collection::vec(
            (0_usize..12, prop::sample::select(&["size", "offset", "endOffset", "innerOffset", "chunkOffset", "chunkSize", "chunkType", "mode"][..]), number()),
            0..4,
        ),
        swap in (0_usize..12, 0_usize..12),
        is_stargz in any::<bool>(),
    ) {
        let mut blob = Blob::new();
        if is_stargz {
            blob.stargz_file("a", &data(3000, 1));
            blob.stargz_file(".prefetch.landmark", b"\x0f");
            blob.stargz_file("b", &data(100, 2));
        } else {
            blob.podman_file("a", &[&data(1000, 1), &[0; 2000], &data(100, 2)]);
            blob.podman_file("b", &[&data(100, 3)]);
            blob.podman_file("c", &[&[0; 1500], &data(300, 4)]);
        }
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
        let mut json = br#"{"version":1,"entries":[{"name":"a","type":"reg","size":3,"offset":9,"endOffset":20,"chunkType":"zeros"}]}"#.to_vec();
        let at = at % json.len();
        json.splice(at..at, bytes.iter().copied());
        let _ = Finished::new(vec![0; 100], &json, None).read();
        let _ = parse_footer(&bytes);
        let finished = Finished::new(vec![0; 100], br#"{"version":1,"entries":[]}"#, None);
        let claims = Claims { compressed_digest: None, json_digest: Some([7; 32]), ..finished.claims() };
        prop_assert!(read_toc(&bytes, &finished.positions, &claims, 1000).is_err());
    }
}

#[test]
fn tar_split_data_that_nothing_vouches_for_are_refused() {
    let json = b"{\"type\":2,\"payload\":\"AA==\",\"position\":0}\n";
    let compressed = frame(json);
    let place = TarSplitPlace {
        blob_range: 0..compressed.len() as u64,
        decoded_length: json.len() as u64,
        digest: Sha256::digest(&compressed).into(),
    };
    assert_eq!(read_tar_split(&compressed, &place).unwrap().archive_length(), 1);
    let refusal = |bytes: &[u8], place: &TarSplitPlace| read_tar_split(bytes, place).unwrap_err();
    let changed = [&compressed[..], b"x"].concat();
    assert!(matches!(refusal(&changed, &place), ZstdChunkedError::Digest { .. }));
    for stated in [place.decoded_length - 1, place.decoded_length + 1] {
        let place = TarSplitPlace { decoded_length: stated, ..place.clone() };
        assert!(matches!(refusal(&compressed, &place), ZstdChunkedError::Length { .. }));
    }
    let long = TarSplitPlace { decoded_length: MAXIMUM_TAR_SPLIT + 1, ..place.clone() };
    assert!(matches!(refusal(&compressed, &long), ZstdChunkedError::TooLarge { .. }));
    // What is vouched for may still make no sense.
    for bytes in [frame(b"{"), frame(b"{\"type\":7}"), b"no zstd".to_vec()] {
        let digest = Sha256::digest(&bytes).into();
        let decoded_length = zstd::decode_all(&bytes[..]).map_or(1, |json| json.len() as u64);
        read_tar_split(&bytes, &TarSplitPlace { digest, decoded_length, ..place.clone() }).unwrap_err();
    }
}

proptest! {
    #[test]
    fn no_tar_split_data_make_it_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
        kinds in proptest::collection::vec((0..4_i64, -1..600_i64, any::<[u8; 8]>()), 0..8),
    ) {
        let _ = tar_split::TarSplit::parse(&bytes);
        let lines = kinds.into_iter().map(|(kind, size, payload)| {
            use base64::Engine;
            let payload = base64::engine::general_purpose::STANDARD.encode(payload);
            format!("{}\n", json!({"type": kind, "name": "n", "size": size, "payload": payload}))
        });
        if let Ok(split) = tar_split::TarSplit::parse(lines.collect::<String>().as_bytes()) {
            let _ = tar_split::compare(&split, &[]);
            let nothing = split.rebuild(&mut |_, _, _| Ok(()), &mut |_| Ok(()));
            prop_assert_eq!(nothing.is_ok(), !split.pieces().any(|piece| matches!(piece, tar_split::Piece::File { .. })));
        }
    }
}
