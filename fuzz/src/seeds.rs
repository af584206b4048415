//! What a target begins with: small layers of every case that the project's tests know, in each format, made anew each time, so that
//! no binary files are kept.
//!
//! A target that is started with `PEELFS_FUZZ_SEEDS=DIRECTORY` writes its own there before anything else.

use std::io::Write;
use std::path::Path;

use flate2::write::GzEncoder;
use flate2::{Compression, GzBuilder};
use peelfs::layer::compression::{Decode, Stop};
use peelfs::layer::entry::{Entry, EntryKind, Timestamp};
use peelfs::layer::gzip::GzipDecoder;
use peelfs::layer::gzip::checkpoint::{CheckpointWriter, Packed};
use peelfs::layer::soci::checkpoints::uncompressed_checkpoints;
use peelfs::layer::soci::headers::{Claim, fingerprint, written};
use peelfs::layer::soci::index::{IndexVersion, SociIndex, ZtocDescriptor};
use peelfs::layer::soci::ztoc::{CompressionAlgorithm, CompressionInfo, FileMetadata, FileType, Ztoc};
use peelfs::table::Table;
use peelfs::tree::merge::merge;
use peelfs_registry::{BlobDescriptor, Digest};
use serde_json::{Value, json};

use crate::IDENTITY;
use crate::digest_text;
use crate::support::archive::{Kind, TestEntry, pax_entry, tar_bytes};
use crate::support::blob::{Estargz, Footer, Landmark, estargz_with_toc, toc_json};
use crate::support::cases::every_case_of_archives;
use crate::support::content::Content;
use crate::tar::{table_of, told};

/// Larger files only slow the fuzzer.
const LARGEST: u64 = 1500;

/// Writes these where the environment says, if it does.
pub fn plant(seeds: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(directory) = std::env::var_os("PEELFS_FUZZ_SEEDS") else { return };
    for (number, seed) in seeds().iter().enumerate() {
        let file = Path::new(&directory).join(format!("seed-{number:03}"));
        std::fs::write(&file, seed)
            .unwrap_or_else(|error| panic!("cannot write {}: {error}", file.display()));
    }
}

/// Small layers that together have every case.
fn layers() -> Vec<Vec<TestEntry>> {
    let stored = |entry: &TestEntry| match entry.content() {
        Some(Content::Sparse { pieces, .. }) => pieces.iter().map(|(_, piece)| piece.length()).sum(),
        Some(content) => content.length(),
        None => 0,
    };
    let entries: Vec<TestEntry> = every_case_of_archives().into_iter().flatten().collect();
    let entries: Vec<TestEntry> = entries.into_iter().filter(|entry| stored(entry) <= LARGEST).collect();
    entries.chunks(4).map(<[_]>::to_vec).collect()
}

/// What a table of contents can say: names of UTF-8, no holes.
fn layers_for_tocs() -> Vec<Vec<TestEntry>> {
    let is_fit = |entry: &TestEntry| {
        let texts = match &entry.kind {
            Kind::SparseFile(..) => return false,
            Kind::Symlink(target) | Kind::Hardlink(target) => [&entry.path, target],
            _ => [&entry.path, &entry.path],
        };
        texts.iter().all(|text| std::str::from_utf8(text).is_ok())
    };
    let fit = |layer: Vec<TestEntry>| layer.into_iter().filter(is_fit).collect::<Vec<_>>();
    layers().into_iter().map(fit).filter(|layer| !layer.is_empty()).collect()
}

/// Archives; the last has an attribute in libarchive's encoding, with all that a name can have in it.
pub fn archives() -> Vec<Vec<u8>> {
    let mut archives: Vec<Vec<u8>> = layers().iter().map(|layer| tar_bytes(layer)).collect();
    let record = (b"LIBARCHIVE.xattr.user.a%3Db%25%FF".to_vec(), b"AAH/".to_vec());
    archives.push([pax_entry(&[record]), tar_bytes(&[TestEntry::file("a", "content")])].concat());
    archives
}

/// Blobs of gzip and zstd: stored, fixed and dynamic blocks, several members and frames, headers and padding of every kind.
pub fn compressed() -> Vec<Vec<u8>> {
    let text: Vec<u8> = (0..700_u32).flat_map(|at| (at * at % 251).to_string().into_bytes()).collect();
    let noise: Vec<u8> = (0..300_u32).map(|at| ((at * at) >> 3) as u8).collect();
    let gzip = |bytes: &[u8], level| {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::new(level));
        encoder.write_all(bytes).expect("writing to memory");
        encoder.flush().expect("writing to memory");
        encoder.write_all(&bytes[..bytes.len() / 2]).expect("writing to memory");
        encoder.finish().expect("writing to memory")
    };
    let mut named = GzBuilder::new()
        .extra(vec![7; 20])
        .filename("name")
        .comment("comment")
        .mtime(9)
        .write(Vec::new(), Compression::fast());
    named.write_all(b"content").expect("writing to memory");
    let named = named.finish().expect("writing to memory");
    let zstd = |bytes: &[u8], level| zstd::bulk::compress(bytes, level).expect("compressing in memory");
    let mut summed = zstd::stream::Encoder::new(Vec::new(), 3).expect("an encoder");
    summed.include_checksum(true).expect("a parameter");
    summed.write_all(&text).expect("writing to memory");
    let summed = summed.finish().expect("writing to memory");
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0][..], b"data"].concat();
    let mut all: Vec<Vec<u8>> = [0, 1, 6, 9]
        .iter()
        .flat_map(|level| [gzip(&text, *level), gzip(&noise, *level), gzip(b"", *level)])
        .collect();
    all.push([&gzip(&noise, 1)[..], &named, &gzip(b"x", 6), &[0; 20]].concat());
    all.extend(
        [1, 3, 19]
            .iter()
            .flat_map(|level| [zstd(&text, *level), zstd(&noise, *level), zstd(&[5; 900], *level)]),
    );
    all.push([&skippable[..], &zstd(&noise, 1), &skippable, &zstd(b"", 1), &zstd(&text, 1)].concat());
    all.push(summed);
    all.push(text);
    all
}

/// Archives and blobs for the streaming target, with the bytes that choose its way behind them.
pub fn streams() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (number, archive) in archives().into_iter().enumerate() {
        // Some with a tail of 320 KiB, which makes two spans of it.
        let tail: u16 = if number.is_multiple_of(5) { 0x5000 } else { 0 };
        let cut = archive.len() as u16 / 3;
        let way = 1 + (number % 3) as u8 + ((number as u8 % 4) << 4);
        seeds.push([&archive[..], &cut.to_le_bytes(), &tail.to_le_bytes(), &[way]].concat());
    }
    seeds.extend(compressed().into_iter().map(|blob| [&blob[..], &[0; 5]].concat()));
    seeds
}

/// Files of checkpoints, and one of claims.
pub fn checkpoints() -> Vec<Vec<u8>> {
    let claims: Vec<Claim> = archives()
        .iter()
        .flat_map(|archive| told(archive, usize::MAX).entries)
        .enumerate()
        .map(|(number, (entry, ..))| {
            let headers = number as u64 * 512..(number as u64 + 1) * 512;
            Claim { headers, digest: fingerprint(&entry) }
        })
        .take(30)
        .collect();
    let of_blob = |blob: &Vec<u8>| {
        let mut file = Vec::new();
        let mut writer = CheckpointWriter::new(&mut file);
        let mut decoder = GzipDecoder::new();
        let (mut rest, mut stop, mut room) = (&blob[..], Stop::AtBlocks, vec![0; 4096]);
        while let Ok((progress, boundary)) = decoder.decode_until(stop, rest, &mut room) {
            rest = &rest[progress.consumed..];
            stop = if boundary.is_some() { Stop::Nowhere } else { Stop::AtBlocks };
            if let Some(checkpoint) = boundary.as_ref().and_then(|boundary| boundary.checkpoint.as_ref()) {
                writer
                    .add(&Packed::new(checkpoint).expect("compressing in memory"))
                    .expect("writing to memory");
            }
            if boundary.is_none() && rest.is_empty() && progress.produced < room.len() {
                break;
            }
        }
        writer.finish().expect("writing to memory");
        file
    };
    let mut files: Vec<Vec<u8>> =
        compressed().iter().filter(|blob| blob.starts_with(&[0x1f, 0x8b])).map(of_blob).collect();
    files.retain(|file| !file.is_empty());
    files.push(written(&claims));
    files
}

/// Tables of layers and of merged trees.
pub fn tables() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut tables = Vec::new();
    for archive in archives() {
        let told = told(&archive, usize::MAX);
        let entries = || told.entries.iter().map(|(entry, ..)| entry);
        if let Some(table) = table_of(entries(), archive.len() as u64) {
            let mut builder = peelfs::layer::builder::LayerBuilder::new();
            entries().for_each(|entry| builder.add(entry.clone()).expect("it was taken before"));
            bytes.push(builder.finish(IDENTITY, &[]).expect("it was made before"));
            tables.push(table);
        }
    }
    let merged = tables.windows(2).filter_map(|pair| merge(&[&pair[0], &pair[1]], IDENTITY).ok());
    let merged: Vec<Vec<u8>> = merged.collect();
    debug_assert!(merged.iter().all(|table| Table::from_bytes(table.clone()).is_ok()));
    bytes.extend(merged);
    bytes.retain(|table| table.len() < 4000);
    bytes
}

/// TOC, payloads, the length of the payloads and the way, as the targets `estargz` and `zstd_chunked` want them.
fn with_way(toc: &[u8], payloads: &[u8], way: u8) -> Option<Vec<u8>> {
    let length = u16::try_from(payloads.len()).ok()?.to_le_bytes();
    Some([toc, payloads, &length, &[way]].concat())
}

/// Blobs of eStargz.
pub fn estargz() -> Vec<Vec<u8>> {
    let options = Estargz {
        chunk_size: 1000,
        footer: Footer::Modern,
        annotated: true,
        landmark: Some(Landmark::Prefetch),
    };
    let mut seeds = Vec::new();
    for layer in layers_for_tocs() {
        let json = std::cell::RefCell::new(Vec::new());
        use peelfs::layer::estargz::Footer::{self, Internal};
        let make_toc = |entries| {
            *json.borrow_mut() =
                serde_json::to_vec(&json!({ "version": 1, "entries": entries })).expect("plain JSON");
            json.borrow().clone()
        };
        let (_, blob) = estargz_with_toc(&layer, options, &make_toc);
        let Some(Internal { toc_offset, toc_length }) = Footer::parse(&blob, blob.len() as u64) else {
            panic!("a footer");
        };
        let (payloads, rest) = blob.split_at(toc_offset as usize);
        let member = &rest[..toc_length as usize];
        seeds.extend(with_way(&json.borrow(), payloads, 0));
        seeds.extend(with_way(member, payloads, 3));
    }
    seeds
}

/// Blobs of zstd:chunked, in both schemas.
pub fn zstd_chunked() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let files: [(&str, Vec<u8>); 3] = [
        ("a", b"content".repeat(9)),
        ("d/b", b"x".to_vec()),
        ("d/large", (0..3000_u32).map(|at| (at * at) as u8).collect()),
    ];
    for is_podman in [true, false] {
        let mut payloads = zstd::bulk::compress(&tar_bytes(&[])[..512], 1).expect("compressing in memory");
        let mut entries =
            vec![json!({"type": "dir", "name": "d/", "mode": 0o755, "modtime": "2020-09-13T12:26:40Z"})];
        for (name, content) in &files {
            for (number, part) in content.chunks(2000).enumerate() {
                let offset = payloads.len();
                payloads.extend(zstd::bulk::compress(part, 1).expect("compressing in memory"));
                let mut entry = match number {
                    0 => {
                        json!({"type": "reg", "name": name, "size": content.len(), "digest": digest_text(content)})
                    }
                    _ => json!({"type": "chunk", "name": name, "chunkOffset": number * 2000}),
                };
                entry["offset"] = offset.into();
                entry["chunkSize"] = part.len().into();
                entry["chunkDigest"] = digest_text(part).into();
                if is_podman && number == 0 {
                    let rest = content
                        .chunks(2000)
                        .map(|part| zstd::bulk::compress(part, 1).map_or(0, |frame| frame.len()));
                    entry["endOffset"] = (offset + rest.sum::<usize>()).into();
                }
                entries.push(entry);
            }
        }
        if is_podman {
            let offset = payloads.len();
            entries.push(
                json!({"type": "reg", "name": "hole", "size": 9000, "offset": offset, "endOffset": offset + 1,
                "chunkSize": 9000, "chunkType": "zeros"}),
            );
            payloads.push(0);
        }
        entries.push(json!({"type": "symlink", "name": "l", "linkName": "d/b", "mode": 0o777}));
        entries.push(
            json!({"type": "hardlink", "name": "h", "linkName": "a", "uid": 7, "xattrs": {"user.a": "AAA="}}),
        );
        let mut toc = json!({ "version": 1, "entries": entries });
        if is_podman {
            toc["tarSplitDigest"] = digest_text(b"tar-split").into();
        }
        let json = serde_json::to_vec(&toc).expect("plain JSON");
        let way = if is_podman { 0 } else { 2 };
        let compressed = zstd::bulk::compress(&json, 1).expect("compressing in memory");
        seeds.extend(with_way(&json, &payloads, way));
        seeds.extend(with_way(&json, &payloads, way | 4));
        seeds.extend(with_way(&compressed, &payloads, way | 9));
    }
    for layer in layers_for_tocs() {
        let entries: Vec<Value> = layer
            .iter()
            .map(|entry| json!({"type": "dir", "name": String::from_utf8_lossy(&entry.path)}))
            .collect();
        seeds.extend(with_way(&toc_json(entries), &[], 12));
    }
    seeds
}

/// Manifests, an index and a config, between NULs.
pub fn documents() -> Vec<Vec<u8>> {
    let descriptor =
        |kind: &str| json!({"mediaType": kind, "digest": digest_text(kind.as_bytes()), "size": 7});
    let layer = |kind: &str| {
        let mut layer = descriptor(kind);
        layer["annotations"] = json!({"containerd.io/snapshot/stargz/toc.digest": digest_text(b"toc")});
        layer
    };
    let (oci, docker) = ("application/vnd.oci.image", "application/vnd.docker");
    let manifests = [
        json!({"schemaVersion": 2, "mediaType": format!("{oci}.manifest.v1+json"),
            "config": descriptor(&format!("{oci}.config.v1+json")), "layers": [layer(&format!("{oci}.layer.v1.tar+gzip"))]}),
        json!({"schemaVersion": 2, "mediaType": format!("{docker}.distribution.manifest.v2+json"),
            "config": descriptor(&format!("{docker}.container.image.v1+json")),
            "layers": [layer(&format!("{docker}.image.rootfs.diff.tar.gzip"))]}),
    ];
    let mut entry = descriptor(&format!("{oci}.manifest.v1+json"));
    entry["platform"] = json!({"os": "linux", "architecture": "arm", "variant": "v7"});
    let mut attestation = descriptor(&format!("{oci}.manifest.v1+json"));
    attestation["annotations"] = json!({"vnd.docker.reference.type": "attestation-manifest"});
    attestation["artifactType"] = json!(format!("{oci}.config.v1+json"));
    let index = json!({"schemaVersion": 2, "mediaType": format!("{oci}.index.v1+json"), "manifests": [entry, attestation],
        "subject": descriptor("x"), "annotations": {"a": "b"}});
    let config = json!({"architecture": "amd64", "os": "linux", "config": {"Env": ["A=b"], "Cmd": ["x"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": [digest_text(b"diff")]}, "history": [{"created": "2020-09-13T12:26:40Z", "empty_layer": true}]});
    let mut seeds: Vec<Vec<u8>> =
        manifests.iter().map(|manifest| format!("\0{manifest}\0{config}").into_bytes()).collect();
    seeds.push(format!("{oci}.index.v1+json\0{index}\0").into_bytes());
    seeds.extend(soci_indexes());
    seeds
}

/// Texts, each with the byte that says what it is.
pub fn headers() -> Vec<Vec<u8>> {
    let texts: [(&str, u8); 17] = [
        (
            r#"Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push""#,
            0,
        ),
        (r#"Basic realm="x, \"y", BEARER Realm = t, Negotiate oYG2==, ,Digest"#, 0),
        ("bytes 0-99/1234", 1),
        ("bytes 5-18446744073709551614/*", 1),
        ("120", 2),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 2),
        (
            r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dXNlcjpwYXNzd29yZAA="},"quay.io/org":{"identitytoken":"t"},
            "h:5000":{"username":"u","password":"p","registrytoken":""}},"credHelpers":{"h":"n"},"credsStore":"n"}"#,
            3,
        ),
        ("docker.io/library/python:3.12", 4),
        ("[::1]:5000/a_b/c--d__e.f:T-a.g_1", 4),
        ("oci:some/path:name@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 4),
        ("localhost/x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 4),
        ("index.docker.io/x", 4),
        ("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 5),
        (
            "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e",
            5,
        ),
        ("linux/arm64/v8.1", 6),
        ("armel", 6),
        ("windows/x86_64/v3", 6),
    ];
    texts.iter().map(|(text, kind)| [text.as_bytes(), &[*kind]].concat()).collect()
}

/// zTOCs of uncompressed layers, which are small, and one of gzip without checkpoints of its own.
pub fn ztocs() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (number, archive) in archives().into_iter().enumerate() {
        let told = told(&archive, usize::MAX);
        let mut files: Vec<FileMetadata> =
            told.entries.iter().map(|(entry, headers, _)| ztoc_file(entry, headers.end)).collect();
        let length = archive.len() as u64;
        let span_size = 4096;
        let spans = length.div_ceil(span_size);
        // Years before 0 and beyond four digits among them.
        if number == 0 {
            let times = [i64::MIN, -62_167_219_201, 253_402_300_800, i64::MAX]
                .map(|seconds| Timestamp { seconds, nanoseconds: 0 });
            files.iter_mut().zip(times).for_each(|(file, time)| file.modified = Some(time));
        }
        let mut ztoc = Ztoc {
            version: b"0.9".to_vec(),
            build_tool: b"tool".to_vec(),
            compressed_size: length,
            uncompressed_size: length,
            files,
            compression: CompressionInfo {
                algorithm: CompressionAlgorithm::Uncompressed,
                max_span_id: spans as u32 - 1,
                span_digests: vec![[1; 32]; spans as usize],
                checkpoints: uncompressed_checkpoints(span_size, length),
            },
        };
        seeds.push(ztoc.write());
        // The first version implies the first checkpoint.
        ztoc.compression = CompressionInfo {
            algorithm: CompressionAlgorithm::Gzip,
            max_span_id: 0,
            span_digests: vec![[1; 32]],
            checkpoints: [&1_i32.to_le_bytes()[..], &(4_i64 << 20).to_le_bytes()].concat(),
        };
        seeds.push(ztoc.write());
    }
    seeds
}

fn ztoc_file(entry: &Entry, uncompressed_offset: u64) -> FileMetadata {
    let none = Vec::new();
    let (kind, size, target, (major, minor)) = match &entry.kind {
        EntryKind::Regular { size, .. } => (FileType::Regular, *size, &none, (0, 0)),
        EntryKind::Directory => (FileType::Directory, 0, &none, (0, 0)),
        EntryKind::Symlink { target } => (FileType::Symlink, 0, target, (0, 0)),
        EntryKind::Hardlink { target } => (FileType::Hardlink, 0, target, (0, 0)),
        EntryKind::CharacterDevice { major, minor } => {
            (FileType::CharacterDevice, 0, &none, (*major, *minor))
        }
        EntryKind::BlockDevice { major, minor } => (FileType::BlockDevice, 0, &none, (*major, *minor)),
        EntryKind::Fifo => (FileType::Fifo, 0, &none, (0, 0)),
    };
    let record = |(name, value): &(Vec<u8>, Vec<u8>)| ([b"SCHILY.xattr.", &name[..]].concat(), value.clone());
    FileMetadata {
        name: entry.path.clone(),
        kind,
        uncompressed_offset,
        uncompressed_size: size,
        link_name: target.clone(),
        mode: entry.mode.into(),
        uid: entry.uid,
        gid: entry.gid,
        user_name: b"root".to_vec(),
        group_name: vec![],
        modified: Some(entry.modified),
        device_major: major.into(),
        device_minor: minor.into(),
        pax_records: entry.xattrs.iter().map(record).collect(),
    }
}

/// SOCI indexes, as a manifest alone between NULs.
fn soci_indexes() -> Vec<Vec<u8>> {
    let digest = Digest::sha256_of(b"digest");
    let ztoc = ZtocDescriptor {
        digest: digest.clone(),
        size: 7,
        layer_digest: digest.clone(),
        layer_media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        span_size: Some(4 << 20),
    };
    let subject = BlobDescriptor {
        digest,
        size: 7,
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        annotations: Default::default(),
        urls: vec![],
    };
    let index = |version, subject| SociIndex {
        version,
        subject,
        ztocs: vec![ztoc.clone()],
        build_tool: "tool".to_owned(),
    };
    [index(IndexVersion::V1, Some(subject)), index(IndexVersion::V2, None)]
        .iter()
        .map(|index| [&b"\0"[..], &index.write(), b"\0"].concat())
        .collect()
}

/// Archives, which are split, and data of tar-split as they are.
pub fn tar_splits() -> Vec<Vec<u8>> {
    let mut seeds: Vec<Vec<u8>> =
        archives().into_iter().map(|archive| [&archive[..], &[0]].concat()).collect();
    let lines = br#"{"type":2,"payload":"aGVhZGVy","position":0}
{"type":1,"name":"a","size":3,"payload":"AAAAAAAAAAA=","position":1}
{"type":1,"name_raw":"/w==","payload":null,"position":2}
"#;
    seeds.push([&lines[..], &[1]].concat());
    seeds
}
