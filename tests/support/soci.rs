//! SOCI images: ordinary layers, the zTOC of each, and the index that the image names. Entries and offsets come from the description of
//! the layer, checkpoints from the way in which it is compressed here: a block begins at each span, so where and what its window is
//! is known without decoding anything. Only the flatbuffer is written by the code under test; its bytes are judged elsewhere.

use super::archive::{Kind, SparseEncoding, TestEntry, entry_headers, padding, tar_bytes};
use super::blob::{Encoded, Form, sha256};
use super::image::{Layout, MANIFEST, config_document, manifest_document, this_architecture};
use super::registry::FakeRegistry;
use flate2::{Compress, Compression, Crc, FlushCompress};
use peelfs::layer::entry::Timestamp;
use peelfs::layer::soci::checkpoints::{GzipCheckpoint, gzip_checkpoints, uncompressed_checkpoints};
use peelfs::layer::soci::ztoc::{
    CompressionAlgorithm, CompressionInfo, FileMetadata, FileType, VERSION, Ztoc,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::ops::Range;

const WINDOW: usize = 32 << 10;
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// Name of the annotation with the digest of the SOCI index.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";
const ZTOC: &str = "application/octet-stream";

/// A layer and what lies beside it.
#[derive(Clone)]
pub struct SociLayer {
    pub encoded: Encoded,
    pub blob: Vec<u8>,
    /// Where the spans lie in the blob.
    pub spans: Vec<Range<usize>>,
    /// `None` where the reference makes none.
    pub ztoc: Option<Ztoc>,
}

/// A gzip layer with a span for each `span` bytes of the archive; a new member begins with each `spans_of_member` of them.
pub fn gzip_layer(entries: &[TestEntry], span: usize, spans_of_member: usize) -> SociLayer {
    let archive = tar_bytes(entries);
    let (mut blob, mut starts) = (Vec::new(), Vec::new());
    let pieces: Vec<&[u8]> = archive.chunks(span).collect();
    for member in pieces.chunks(spans_of_member) {
        blob.extend_from_slice(&GZIP_HEADER);
        let (mut deflate, mut sum) = (Compress::new(Compression::fast(), false), Crc::new());
        for (number, piece) in member.iter().enumerate() {
            starts.push(blob.len());
            let flush = if number + 1 == member.len() { FlushCompress::Finish } else { FlushCompress::Sync };
            blob.reserve(piece.len() + piece.len() / 100 + 1000);
            deflate.compress_vec(piece, &mut blob, flush).expect("deflate takes all bytes");
            sum.update(piece);
        }
        assert_eq!(deflate.total_in(), member.iter().map(|piece| piece.len() as u64).sum::<u64>());
        blob.extend_from_slice(&sum.sum().to_le_bytes());
        blob.extend_from_slice(&sum.amount().to_le_bytes());
    }
    let checkpoints = starts.iter().enumerate().map(|(number, start)| GzipCheckpoint {
        compressed_offset: *start as u64,
        uncompressed_offset: (number * span) as u64,
        bits: 0,
        window: &archive[(number * span).saturating_sub(WINDOW)..number * span],
    });
    let checkpoints = gzip_checkpoints(span as u64, checkpoints);
    let ends = starts.iter().skip(1).copied().chain([blob.len()]);
    let spans = starts.iter().copied().zip(ends).map(|(start, end)| start..end).collect();
    layer(entries, &archive, blob, Form::GZIP, CompressionAlgorithm::Gzip, spans, checkpoints)
}

/// An uncompressed layer with spans of that length.
pub fn tar_layer(entries: &[TestEntry], span: usize) -> SociLayer {
    let archive = tar_bytes(entries);
    let spans =
        (0..archive.len()).step_by(span).map(|start| start..archive.len().min(start + span)).collect();
    let checkpoints = uncompressed_checkpoints(span as u64, archive.len() as u64);
    let algorithm = CompressionAlgorithm::Uncompressed;
    layer(entries, &archive, archive.clone(), Form::Tar, algorithm, spans, checkpoints)
}

fn layer(
    entries: &[TestEntry],
    archive: &[u8],
    blob: Vec<u8>,
    form: Form,
    algorithm: CompressionAlgorithm,
    spans: Vec<Range<usize>>,
    checkpoints: Vec<u8>,
) -> SociLayer {
    let digest = |span: &Range<usize>| Sha256::digest(&blob[span.clone()]).into();
    let compression = CompressionInfo {
        algorithm,
        max_span_id: spans.len() as u32 - 1,
        span_digests: spans.iter().map(digest).collect(),
        checkpoints,
    };
    // The reference's tar reader does not take what GNU tar calls old.
    let is_old = |entry: &TestEntry| matches!(entry.kind, Kind::SparseFile(_, SparseEncoding::OldGnu));
    let ztoc = (!entries.iter().any(is_old)).then(|| Ztoc {
        version: VERSION.into(),
        build_tool: b"test".to_vec(),
        compressed_size: blob.len() as u64,
        uncompressed_size: archive.len() as u64,
        files: files(entries),
        compression,
    });
    let encoded = Encoded {
        media_type: form.media_type().to_owned(),
        digest: sha256(&blob),
        size: blob.len() as u64,
        diff_id: sha256(archive),
        annotations: Vec::new(),
    };
    SociLayer { encoded, blob, spans, ztoc }
}

fn files(entries: &[TestEntry]) -> Vec<FileMetadata> {
    let mut position = 0;
    let mut files = Vec::new();
    for entry in entries {
        position += entry_headers(entry).len() as u64;
        files.push(file(entry, position));
        // Layers with sparse files are streamed whatever stands here.
        let length = entry.content().map_or(0, |content| content.length());
        position += length + padding(length) as u64;
    }
    files
}

fn file(entry: &TestEntry, uncompressed_offset: u64) -> FileMetadata {
    let (mut link_name, mut devices) = (Vec::new(), (0, 0));
    let kind = match &entry.kind {
        Kind::File(_) | Kind::SparseFile(..) => FileType::Regular,
        Kind::Directory => FileType::Directory,
        Kind::Symlink(target) => {
            link_name.clone_from(target);
            FileType::Symlink
        }
        Kind::Hardlink(target) => {
            link_name.clone_from(target);
            FileType::Hardlink
        }
        Kind::CharacterDevice(major, minor) => {
            devices = (i64::from(*major), i64::from(*minor));
            FileType::CharacterDevice
        }
        Kind::BlockDevice(major, minor) => {
            devices = (i64::from(*major), i64::from(*minor));
            FileType::BlockDevice
        }
        Kind::Fifo => FileType::Fifo,
    };
    let mut name = entry.path.clone();
    if kind == FileType::Directory && !name.ends_with(b"/") {
        name.push(b'/');
    }
    let xattr =
        |(name, value): &(Vec<u8>, Vec<u8>)| ([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone());
    let mut pax_records: Vec<(Vec<u8>, Vec<u8>)> = entry.xattrs.iter().map(xattr).collect();
    if let Kind::SparseFile(..) = entry.kind {
        pax_records.push((b"GNU.sparse.major".to_vec(), b"1".to_vec()));
    }
    pax_records.sort();
    FileMetadata {
        name,
        kind,
        uncompressed_offset,
        uncompressed_size: entry.content().map_or(0, |content| content.length()),
        link_name,
        mode: i64::from(entry.mode),
        uid: entry.uid,
        gid: entry.gid,
        user_name: Vec::new(),
        group_name: Vec::new(),
        modified: Some(Timestamp { seconds: entry.modified.0, nanoseconds: entry.modified.1 }),
        device_major: devices.0,
        device_minor: devices.1,
        pax_records,
    }
}

/// What was put beside the layers of an image.
pub struct SociIndex {
    /// Digest of the index.
    pub digest: String,
    /// Digest of each zTOC, by its layer's.
    pub ztocs: Vec<(String, String)>,
}

/// Puts an image of these layers, with an index that its manifest names (v2); returns what was put beside them.
pub fn put_image(layout: &mut Layout, tag: &str, layers: &[SociLayer]) -> SociIndex {
    for layer in layers {
        assert_eq!(layout.put(&layer.blob), layer.encoded.digest);
    }
    let encoded: Vec<Encoded> = layers.iter().map(|layer| layer.encoded.clone()).collect();
    let config_type = "application/vnd.oci.image.config.v1+json";
    let config = layout.put_json(config_type, &config_document(&encoded, this_architecture()));
    let with_ztoc = layers.iter().filter_map(|layer| Some((layer, layer.ztoc.as_ref()?.write())));
    let described: Vec<Value> = with_ztoc
        .map(|(layer, ztoc)| {
            json!({
                "mediaType": ZTOC, "digest": layout.put(&ztoc), "size": ztoc.len(),
                "annotations": {
                    "com.amazon.soci.image-layer-digest": layer.encoded.digest,
                    "com.amazon.soci.image-layer-mediaType": layer.encoded.media_type,
                },
            })
        })
        .collect();
    let index = put_index(layout, described);
    name_index(layout, tag, manifest_document(&config, &encoded), &index.digest);
    index
}

/// Puts a SOCI index (v2) of these descriptors of zTOCs.
pub fn put_index(layout: &Layout, ztocs: Vec<Value>) -> SociIndex {
    let text = |value: &Value| value.as_str().expect("a string").to_owned();
    let layer_of = |ztoc: &Value| text(&ztoc["annotations"]["com.amazon.soci.image-layer-digest"]);
    let by_layer = ztocs.iter().map(|ztoc| (layer_of(ztoc), text(&ztoc["digest"]))).collect();
    let config = layout.put_json("application/vnd.amazon.soci.index.v2+json", &json!({}));
    let document = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": ztocs });
    SociIndex { digest: text(&layout.put_json(MANIFEST, &document)["digest"]), ztocs: by_layer }
}

/// Tags that manifest, with the annotation that names the index.
pub fn name_index(layout: &mut Layout, tag: &str, mut manifest: Value, index: &str) {
    manifest["annotations"][INDEX_DIGEST] = index.into();
    let mut descriptor = layout.put_json(MANIFEST, &manifest);
    descriptor["platform"] = json!({ "os": "linux", "architecture": this_architecture() });
    layout.tag(tag, &descriptor);
}

/// Puts image and index into the registry; returns the reference.
pub fn serve(
    layout: &Layout,
    registry: &FakeRegistry,
    repository: &str,
    tag: &str,
    index: &SociIndex,
) -> String {
    let bytes = std::fs::read(layout.blob_path(&index.digest)).expect("reading an index");
    registry.put_manifest(repository, &format!("{tag}.soci"), MANIFEST, &bytes);
    for (_, ztoc) in &index.ztocs {
        registry.put_blob_file(&layout.blob_path(ztoc));
    }
    layout.serve(registry, repository, tag)
}
