//! The readers on a real image: every layer of every image of an OCI layout that the environment names.
//!
//! `PEELFS_TEST_LAYOUT=DIR cargo test --lib real_image_tests -- --ignored`

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::Value;

use super::chunk::decode_chunk;
use super::entry::{Content, Entry, EntryKind, Timestamp};
use super::lookup::{Lookup, TocPlace};
use super::stream::{MAXIMUM_DECODED, StreamExpectation, Streamed, unpack_stream};
use super::tar::{SinkError, TarSink};

/// Keeps all entries and the data of each regular file.
#[derive(Default)]
struct Collected {
    entries: Vec<(Entry, Vec<u8>)>,
    payload_bytes: u64,
    keeps_data: bool,
}

impl TarSink for Collected {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.entries.push((entry, Vec::new()));
        Ok(())
    }

    fn payload(&mut self, _decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        self.payload_bytes += bytes.len() as u64;
        if self.keeps_data {
            self.entries.last_mut().ok_or("payload without entry")?.1.extend_from_slice(bytes);
        }
        Ok(())
    }
}

/// JSON has no other names than UTF-8.
fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn blob_path(layout: &Path, digest: &str) -> PathBuf {
    layout.join("blobs").join(digest.replace(':', "/"))
}

fn document(layout: &Path, descriptor: &Value) -> Value {
    let path = blob_path(layout, descriptor["digest"].as_str().unwrap());
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn layout() -> PathBuf {
    std::env::var_os("PEELFS_TEST_LAYOUT").expect("PEELFS_TEST_LAYOUT names an OCI layout").into()
}

/// Name of the image, descriptor of the layer, its diff ID.
fn layers(layout: &Path) -> Vec<(String, Value, String)> {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let mut layers = Vec::new();
    for descriptor in index["manifests"].as_array().unwrap() {
        let name = descriptor["annotations"]["org.opencontainers.image.ref.name"].to_string();
        let manifest = document(layout, descriptor);
        let config = document(layout, &manifest["config"]);
        let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap().clone();
        for (layer, diff_id) in manifest["layers"].as_array().unwrap().iter().zip(diff_ids) {
            layers.push((name.clone(), layer.clone(), diff_id.as_str().unwrap().to_owned()));
        }
    }
    layers
}

fn streamed(
    layout: &Path,
    layer: &Value,
    diff_id: &str,
    sink: &mut Collected,
    checkpoints: &mut Vec<u8>,
) -> Streamed {
    let digest = layer["digest"].as_str().unwrap();
    let blob = std::fs::read(blob_path(layout, digest)).unwrap();
    let expectation = StreamExpectation {
        blob_digest: digest.parse().unwrap(),
        blob_size: layer["size"].as_u64().unwrap(),
        diff_id: Some(diff_id.parse().unwrap()),
        maximum_decoded: MAXIMUM_DECODED,
    };
    let pieces = blob.chunks(16 << 10).map(Ok::<_, SinkError>);
    unpack_stream(pieces, &expectation, sink, checkpoints, &|_| {}).unwrap()
}

#[test]
#[ignore = "needs an image: set PEELFS_TEST_LAYOUT"]
fn every_layer_streams_and_proves_its_diff_id() {
    let layout = layout();
    for (name, layer, diff_id) in layers(&layout) {
        let mut sink = Collected::default();
        let start = Instant::now();
        let mut checkpoints = Vec::new();
        let streamed = streamed(&layout, &layer, &diff_id, &mut sink, &mut checkpoints);
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{name} {:?}: {} entries, {} MB → {} MB in {seconds:.2} s, {:.0} MB/s decoded; {} chunks, checkpoints {:.2} %",
            streamed.compression,
            sink.entries.len(),
            layer["size"].as_u64().unwrap() / 1_000_000,
            streamed.decoded_length / 1_000_000,
            streamed.decoded_length as f64 / 1e6 / seconds,
            streamed.chunks.len(),
            checkpoints.len() as f64 * 100.0 / layer["size"].as_f64().unwrap(),
        );
        assert!(sink.payload_bytes < streamed.decoded_length);
    }
}

/// The archive itself is the oracle: what the TOC says must be what the tar says.
#[test]
#[ignore = "needs an image: set PEELFS_TEST_LAYOUT"]
fn the_table_of_contents_says_what_the_archive_says() {
    let layout = layout();
    for (name, layer, diff_id) in layers(&layout) {
        let annotations = layer["annotations"].as_object().cloned().unwrap_or_default();
        let annotations = annotations.into_iter().map(|(name, value)| (name, value.as_str().unwrap().into()));
        let size = layer["size"].as_u64().unwrap();
        let Some(lookup) = Lookup::new(&annotations.collect(), size).unwrap() else { continue };
        let blob = std::fs::read(blob_path(&layout, layer["digest"].as_str().unwrap())).unwrap();
        let bytes = |range: Range<u64>| &blob[range.start as usize..range.end as usize];
        let located = lookup.clone().locate(bytes(lookup.first_range())).unwrap().unwrap();
        let start = Instant::now();
        let TocPlace::Blob(range) = located.place().clone() else { continue };
        let toc = located.read_toc(bytes(range)).unwrap();
        println!(
            "{name}: {} entries, {} chunks in {:?}",
            toc.entries.len(),
            toc.chunks.len(),
            start.elapsed()
        );

        let mut decoded = vec![0; toc.decoded_length as usize];
        for chunk in &toc.chunks {
            let range = chunk.blob_offset as usize..(chunk.blob_offset + chunk.blob_length) as usize;
            let bytes = decode_chunk(chunk, &blob[range]).unwrap();
            decoded[chunk.decoded_offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        }
        let mut archive = Collected { keeps_data: true, ..Collected::default() };
        streamed(&layout, &layer, &diff_id, &mut archive, &mut Vec::new());
        let mut lossy_names = false;
        let hidden: [&[u8]; 3] = [b"stargz.index.json", b".prefetch.landmark", b".no.prefetch.landmark"];
        let is_shown = |entry: &Entry| !hidden.contains(&&entry.path[..]);
        let mut expected: BTreeMap<_, _> = archive
            .entries
            .iter()
            .filter(|(entry, _)| is_shown(entry))
            .map(|pair| (lossy(&pair.0.path), pair))
            .collect();
        for entry in &toc.entries {
            let (of_archive, data) = expected
                .remove(&lossy(&entry.path))
                .unwrap_or_else(|| panic!("not in the archive: {entry:?}"));
            lossy_names |= entry.path != of_archive.path;
            let kinds = match (&entry.kind, &of_archive.kind) {
                (
                    EntryKind::Regular { size, content: Content::Contiguous(at) },
                    EntryKind::Regular { .. },
                ) => *at % 4096 == 0 && decoded[*at as usize..][..*size as usize] == data[..],
                (one, other) => one == other,
            };
            assert!(kinds, "{entry:?} {of_archive:?}");
            let mut rounded = of_archive.clone();
            rounded.path = entry.path.clone();
            rounded.kind = entry.kind.clone();
            rounded.xattrs.sort();
            // The writer of the TOC rounds to seconds, and has no time of 1970-01-01T00:00:00Z.
            let up = i64::from(rounded.modified.nanoseconds >= 500_000_000);
            rounded.modified = Timestamp { seconds: rounded.modified.seconds + up, nanoseconds: 0 };
            assert_eq!(*entry, rounded);
        }
        assert_eq!(toc.names_are_lossy, lossy_names);
        assert!(expected.is_empty(), "missing in the TOC: {:?}", expected.keys());
    }
}
