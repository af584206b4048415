//! Promises of the zstd:chunked reader, on blobs that are written here frame by frame.

mod lies;

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::layer::lookup::{Lookup, TocPlace};
use crate::layer::toc::Landmark;
use crate::layer::toc::testing::{contiguous, data, decoded, digest};

fn frame(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}

fn skippable(bytes: &[u8]) -> Vec<u8> {
    [&[0x50, 0x2a, 0x4d, 0x18][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
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
                    let TocPlace::Blob(range) = located.place().clone() else { panic!("a TOC in the blob") };
                    let toc = located.read_toc(bytes(range)).unwrap();
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
