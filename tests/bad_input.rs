//! Promise: what is wrong with an image, a registry or a directory is told in an error that names the image, the layer and the
//! host; nothing is mounted, nothing is lost, nothing hangs, and the next command works. And however a table of contents lies,
//! nobody reads bytes that the image does not hold.

mod foreign_urls;
mod stalling;

use crate::support::archive::{TestEntry, pax_entry, special_entry, tar_bytes};
use crate::support::blob::{
    Encoded, Estargz, Footer, Form, TOC_DIGEST, encode_to_vec, estargz_with_toc, gzip_member, sha256,
    toc_json,
};
use crate::support::content::Content;
use crate::support::image::{INDEX, Layout, MANIFEST, manifest_document, this_architecture};
use crate::support::peel::{Outcome, Peel, is_mount_point, run_to_end};
use crate::support::registry::{Authentication, FakeRegistry, Fault};
use crate::support::tree::Tree;
use serde_json::{Value, json};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::process::Command;

/// Exit codes, as `peel mount --help` and the handbook give them.
const NOT_FOUND: i32 = 3;
const UNAUTHORIZED: i32 = 4;
const UNREACHABLE: i32 = 5;
const WRONG_CONTENT: i32 = 6;
const THIS_MACHINE: i32 = 7;
const STORE: i32 = 8;

/// Mounting fails with this code; the error names the image and all of `named`; nothing is mounted.
#[track_caller]
fn refused(peel: &Peel, reference: &str, code: i32, named: &[&str]) -> Outcome {
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", reference, point.to_str().unwrap()]);
    is_an_error(&outcome, code, reference, named);
    assert!(!is_mount_point(&point), "something is mounted after {outcome:?}");
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
    outcome
}

#[track_caller]
fn is_an_error(outcome: &Outcome, code: i32, reference: &str, named: &[&str]) {
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
    assert_eq!(outcome.code, Some(code), "{reference}: {outcome:?}");
    for name in named.iter().chain([&reference]) {
        assert!(outcome.stderr.contains(name), "{name:?} is not named: {}", outcome.stderr);
    }
}

/// The store is as good as new: an image can be mounted and read, and it is the only one.
#[track_caller]
fn still_works(peel: &Peel) {
    peel.wait_for_servers_to_end();
    assert_eq!(peel.json(&["ls", "--json"]), json!([]));
    let directory = tempfile::tempdir().unwrap();
    let reference =
        Layout::create(directory.path()).image("good", &[vec![TestEntry::file("file", "good")]], Form::GZIP);
    let mount = peel.mount(&reference);
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"good");
    mount.unmount();
}

fn noise(length: u64) -> Content {
    Content::Noise { seed: length, length }
}

fn layer() -> Vec<TestEntry> {
    vec![
        TestEntry::file("large", noise(3 << 20)),
        TestEntry::file("small", "small"),
        TestEntry::directory("directory"),
    ]
}

const SMALL_CHUNKS: Estargz =
    Estargz { chunk_size: 256 << 10, footer: Footer::Modern, annotated: true, landmark: None };

/// A registry with an image in it; the layout is the image's truth.
struct Served {
    registry: FakeRegistry,
    layout: Layout,
    reference: String,
    _directory: tempfile::TempDir,
}

impl Served {
    fn image(form: Form) -> Served {
        let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
        let mut layout = Layout::create(directory.path());
        layout.image("test", &[layer()], form);
        let reference = layout.serve(&registry, "some/name", "test");
        Served { registry, layout, reference, _directory: directory }
    }

    fn layer_digest(&self) -> String {
        self.layout.manifest("test")["layers"][0]["digest"].as_str().unwrap().to_owned()
    }

    fn config_digest(&self) -> String {
        self.layout.manifest("test")["config"]["digest"].as_str().unwrap().to_owned()
    }
}

#[test]
fn mounting_from_where_nothing_is_says_so() {
    let peel = Peel::new();
    refused(&peel, "no-such-host.invalid:5000/name:tag", UNREACHABLE, &["no-such-host.invalid"]);
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    refused(&peel, &format!("{closed}/name:tag"), UNREACHABLE, &["refused"]);
    let served = Served::image(Form::GZIP);
    let host = served.registry.url_host();
    refused(&peel, &format!("{host}/some/name:other"), NOT_FOUND, &[]);
    refused(&peel, &format!("{host}/other/name:test"), NOT_FOUND, &[]);
    refused(&peel, &format!("{host}/some/name@sha256:{}", "0".repeat(64)), NOT_FOUND, &[]);
    let mut layout = Layout::create(peel.scratch().join("layout"));
    refused(&peel, &layout.reference("missing"), NOT_FOUND, &[]);
    refused(&peel, "oci:/no/such/layout:tag", NOT_FOUND, &[]);
    layout.image("test", &[layer()], Form::GZIP);
    let digest = layout.manifest("test")["layers"][0]["digest"].as_str().unwrap().to_owned();
    fs::remove_file(layout.blob_path(&digest)).unwrap();
    refused(&peel, &layout.reference("test"), NOT_FOUND, &[&digest]);
    still_works(&peel);
}

#[test]
fn mounting_with_wrong_credentials_says_so_and_does_not_show_them() {
    let served = Served::image(Form::GZIP);
    let login = |login: &str| Authentication::Token {
        login: Some(login.to_owned()),
        identity_token: None,
        uses: usize::MAX,
        realm: None,
    };
    for authentication in [Authentication::Basic("user:right".to_owned()), login("user:right")] {
        served.registry.require(authentication);
        let peel = Peel::new();
        let host = served.registry.url_host();
        refused(&peel, &served.reference, UNAUTHORIZED, &[&host]);
        fs::create_dir(peel.home().join(".docker")).unwrap();
        // base64 of user:wrong-secret and of user:right
        for (encoded, code) in [("dXNlcjp3cm9uZy1zZWNyZXQ=", UNAUTHORIZED), ("dXNlcjpyaWdodA==", 0)] {
            let configuration = json!({ "auths": { host.clone(): { "auth": encoded } } });
            fs::write(peel.home().join(".docker/config.json"), configuration.to_string()).unwrap();
            if code == 0 {
                peel.mount(&served.reference).unmount();
                continue;
            }
            let outcome = refused(&peel, &served.reference, code, &[&host]);
            assert!(
                !outcome.stderr.contains("wrong-secret") && !outcome.stderr.contains(encoded),
                "{outcome:?}"
            );
        }
    }
}

#[test]
fn mounting_what_does_not_match_its_digest_is_refused() {
    for form in [Form::GZIP, Form::ZSTD, Form::Tar, Form::Estargz(SMALL_CHUNKS)] {
        let served = Served::image(form);
        let peel = Peel::new();
        let (host, layer, config) =
            (served.registry.url_host(), served.layer_digest(), served.config_digest());
        for (path, named) in [("manifests/", None), (&config, Some(&config)), (&layer, Some(&layer))] {
            // Of a lazy layer this is a chunk that mounting does not look at.
            if form == Form::Estargz(SMALL_CHUNKS) && path == layer {
                continue;
            }
            served.registry.set_fault(path, Fault::WrongBytes);
            let named: Vec<&str> = named.map(String::as_str).into_iter().chain([host.as_str()]).collect();
            refused(&peel, &served.reference, WRONG_CONTENT, &named);
            served.registry.clear_faults();
        }
        still_works(&peel);
    }
    // A manifest that was asked for by digest.
    let served = Served::image(Form::GZIP);
    let peel = Peel::new();
    let digest = served.layout.descriptor("test")["digest"].as_str().unwrap().to_owned();
    served.registry.set_fault("manifests/", Fault::WrongBytes);
    let reference = format!("{}/some/name@{digest}", served.registry.url_host());
    refused(&peel, &reference, WRONG_CONTENT, &[&digest]);
}

#[test]
fn mounting_while_the_registry_breaks_the_protocol_gives_the_image_or_an_error() {
    let faults = [
        Fault::IgnoreRange,
        Fault::Status(416),
        Fault::Status(501),
        Fault::Status(400),
        Fault::Status(403),
        Fault::WrongContentRange,
        Fault::NoContentRange,
        Fault::CutAfter(1000),
        Fault::ShortBody(1000),
        Fault::LongBody(1000),
        Fault::WrongLength(1000),
        Fault::ContentEncoding,
        Fault::RedirectTo("http://127.0.0.1:1/nowhere".to_owned()),
        Fault::RedirectTo("file:///etc/passwd".to_owned()),
        Fault::Close,
    ];
    std::thread::scope(|scope| {
        for form in [Form::GZIP, Form::Estargz(SMALL_CHUNKS)] {
            for fault in &faults {
                scope.spawn(move || gives_the_image_or_an_error(form, fault));
            }
        }
    });
}

fn gives_the_image_or_an_error(form: Form, fault: &Fault) {
    let served = Served::image(form);
    let peel = Peel::new();
    served.registry.set_fault(&served.layer_digest(), fault.clone());
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &served.reference, point.to_str().unwrap(), "--read-timeout", "2"]);
    if outcome.code == Some(0) {
        for (path, expected) in [("large", noise(3 << 20).to_vec()), ("small", b"small".to_vec())] {
            match fs::read(point.join(path)) {
                Ok(bytes) => assert!(bytes == expected, "wrong bytes of {path} with {fault:?}"),
                Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EIO), "{fault:?}"),
            }
        }
        served.registry.clear_faults();
        // As soon as the registry behaves, so does the mount.
        assert!(fs::read(point.join("large")).unwrap() == noise(3 << 20).to_vec(), "{fault:?}");
    } else {
        let named = [served.layer_digest(), served.registry.url_host(), served.reference.clone()];
        assert!(outcome.code.is_some() && !outcome.stderr.contains("panicked"), "{fault:?}: {outcome:?}");
        for name in named {
            assert!(outcome.stderr.contains(&name), "{fault:?}: {name} is not named: {}", outcome.stderr);
        }
        assert!(!is_mount_point(&point));
        served.registry.clear_faults();
        peel.mount(&served.reference).unmount();
    }
}

#[test]
fn reading_a_mount_fails_while_the_registry_is_gone_and_works_when_it_is_back() {
    let mut served = Served::image(Form::Estargz(SMALL_CHUNKS));
    let peel = Peel::new();
    // Longer than the longest wait between two attempts, or a reader who joins another's fetch could miss the registry's return.
    let mount = peel.mount_with(&served.reference, &["--read-timeout", "6"]);
    let file = fs::File::open(mount.join("large")).unwrap();
    let read = |offset: u64| {
        let mut bytes = vec![0; 1000];
        file.read_exact_at(&mut bytes, offset).map(|()| bytes)
    };
    let expected = noise(3 << 20).to_vec();
    assert!(read(0).unwrap() == expected[..1000]);

    served.registry.down();
    assert_eq!(read((2 << 20) + 500).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert!(read(0).unwrap() == expected[..1000], "what is here is still read");
    served.registry.up();
    assert!(read((2 << 20) + 500).unwrap() == expected[(2 << 20) + 500..][..1000]);

    // It answers, but never to the end.
    served.registry.set_fault("blobs/", Fault::StallAfter(10));
    assert_eq!(fs::read(mount.join("small")).unwrap_err().raw_os_error(), Some(libc::EIO));
    served.registry.clear_faults();
    served.registry.release();
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
}

/// A layout with one image whose single layer is these bytes.
fn image_of_blob(peel: &Peel, name: &str, layer: &Encoded, bytes: &[u8]) -> String {
    let mut layout = Layout::create(peel.scratch().join(name));
    layout.put(bytes);
    let manifest = layout.put_image(std::slice::from_ref(layer), this_architecture());
    layout.tag("test", &manifest);
    layout.reference("test")
}

/// A blob that is what its descriptor says, and makes no sense.
fn blob(form: Form, bytes: &[u8]) -> (Encoded, Vec<u8>) {
    let encoded = Encoded {
        media_type: form.media_type().to_owned(),
        digest: sha256(bytes),
        size: bytes.len() as u64,
        diff_id: sha256(b"whatever"),
        annotations: Vec::new(),
    };
    (encoded, bytes.to_vec())
}

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
fn mounting_documents_that_cannot_be_is_refused() {
    let peel = Peel::new();
    let layout = Layout::create(peel.scratch().join("layout"));
    let good = layout.put_layer(&layer(), Form::GZIP);
    let image = layout.put_image(std::slice::from_ref(&good), this_architecture());
    let config: Value = json!({ "mediaType": "application/vnd.oci.image.config.v1+json",
        "digest": layout.put(b"{}"), "size": 2 });
    let manifest = manifest_document(&config, std::slice::from_ref(&good));
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut document = manifest.clone();
        edit(&mut document);
        layout.put_json(MANIFEST, &document)
    };
    let raw =
        |bytes: &[u8]| json!({ "mediaType": MANIFEST, "digest": layout.put(bytes), "size": bytes.len() });
    let index = |inner: &Value| layout.put_index(std::slice::from_ref(inner));
    let cases = [
        ("no JSON", raw(b"not JSON")),
        ("empty", raw(b"")),
        ("not an object", raw(b"[]")),
        ("nested without end", raw("[".repeat(200_000).as_bytes())),
        ("a manifest and an index at once", edited(&|document| document["manifests"] = json!([]))),
        ("config without layers", edited(&|_| {})),
        ("layer of another size", edited(&|document| document["layers"][0]["size"] = 1.into())),
        ("layer of negative size", edited(&|document| document["layers"][0]["size"] = (-1).into())),
        ("layer of the largest size", edited(&|document| document["layers"][0]["size"] = i64::MAX.into())),
        ("digest that is none", edited(&|document| document["layers"][0]["digest"] = "sha256:xyz".into())),
        (
            "digest that is a path",
            edited(&|document| document["layers"][0]["digest"] = "../../etc/passwd".into()),
        ),
        ("no config", edited(&|document| document["config"] = Value::Null)),
        (
            "unknown media type of a layer",
            edited(&|document| document["layers"][0]["mediaType"] = "text/plain".into()),
        ),
        ("index of index of index", index(&index(&index(&image)))),
        (
            "index of nothing",
            layout.put_json(INDEX, &json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] })),
        ),
    ];
    for (number, (what, descriptor)) in cases.iter().enumerate() {
        let tag = format!("case-{number}");
        let mut layout = Layout::open(peel.scratch().join("layout"));
        layout.tag(&tag, descriptor);
        let point = peel.mount_point();
        let outcome = peel.run(&["mount", &layout.reference(&tag), point.to_str().unwrap()]);
        assert!(matches!(outcome.code, Some(NOT_FOUND | WRONG_CONTENT)), "{what}: {outcome:?}");
        assert!(outcome.stderr.contains(&layout.reference(&tag)), "{what}: {outcome:?}");
        assert!(!is_mount_point(&point), "{what}");
    }
    still_works(&peel);
}

/// Whatever the table of contents says, a mount that comes about gives the image's bytes or errors.
#[track_caller]
fn never_wrong_bytes(peel: &Peel, what: &str, encoded: &Encoded, bytes: &[u8]) {
    let name = what.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let reference = image_of_blob(peel, &name, encoded, bytes);
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &reference, point.to_str().unwrap(), "--read-timeout", "5"]);
    if outcome.code != Some(0) {
        assert_eq!(outcome.code, Some(WRONG_CONTENT), "{what}: {outcome:?}");
        let names_layer = outcome.stderr.contains(&encoded.digest) || outcome.stderr.contains("layer 1 ");
        assert!(names_layer, "{what}: {}", outcome.stderr);
        assert!(!is_mount_point(&point), "{what}");
        return;
    }
    let tree = Tree::walk(&point);
    for (path, node) in &tree.nodes {
        if !matches!(node.kind, crate::support::tree::NodeKind::File(_)) || node.size > 64 << 20 {
            continue;
        }
        let Ok(read) = fs::read(point.join(std::str::from_utf8(path).unwrap())) else { continue };
        let known = layer().into_iter().filter_map(|entry| Some(entry.content()?.to_vec()));
        // A shortened file is what the table says, and its digest vouches for: so the pieces must be the image's, or nothing.
        assert!(
            read.is_empty() || known.clone().any(|content| content == read),
            "{what}: {} gives bytes that the image does not hold ({} of them)",
            path.escape_ascii(),
            read.len()
        );
    }
    drop(tree);
    peel.unmount(&point);
}

#[test]
fn mounting_lying_tables_of_contents_never_gives_wrong_bytes() {
    type Edit = Box<dyn Fn(&mut Vec<Value>)>;
    let at = |place: usize, key: &'static str, value: Value| -> Edit {
        Box::new(move |entries| entries[place][key] = value.clone())
    };
    let large = u64::MAX;
    // Entry 0 is `large` (chunks 0 to 11), then `small`, then `directory`.
    let mut edits: Vec<(String, Edit)> = Vec::new();
    for (key, values) in [
        (
            "size",
            vec![
                json!(0),
                json!(1),
                json!(-1),
                json!(large),
                json!(i64::MAX),
                json!(1_u64 << 60),
                json!(1.5),
                json!("7"),
                json!((3 << 20) + 1),
            ],
        ),
        (
            "offset",
            vec![
                json!(0),
                json!(1),
                json!(-1),
                json!(large),
                json!(i64::MAX),
                json!(100_000_000),
                json!("x"),
            ],
        ),
        ("innerOffset", vec![json!(1), json!(-1), json!(large), json!(i64::MAX)]),
        (
            "chunkSize",
            vec![
                json!(0),
                json!(1),
                json!(-1),
                json!(large),
                json!(i64::MAX),
                json!(1_u64 << 40),
                json!((256 << 10) + 1),
            ],
        ),
        (
            "chunkOffset",
            vec![json!(1), json!(-1), json!(large), json!(i64::MAX), json!(3 << 20), json!(256 << 10)],
        ),
        (
            "chunkDigest",
            vec![json!(""), json!("sha256:"), json!(sha256(b"x")), json!(null), json!("md5:abc"), json!(7)],
        ),
        ("digest", vec![json!(sha256(b"x")), json!("")]),
        (
            "name",
            vec![
                json!(""),
                json!("../../etc/passwd"),
                json!("a\u{0}b"),
                json!("/"),
                json!(null),
                json!("x".repeat(256)),
                json!("d/".repeat(5000)),
                json!(".wh."),
            ],
        ),
        (
            "type",
            vec![
                json!("unknown"),
                json!(""),
                json!("dir"),
                json!("symlink"),
                json!("hardlink"),
                json!("chunk"),
                json!("char"),
                json!(null),
                json!(3),
            ],
        ),
        ("mode", vec![json!(-1), json!(large), json!("rwx")]),
        ("uid", vec![json!(-1), json!(large), json!(1_u64 << 32)]),
        (
            "modtime",
            vec![
                json!("yesterday"),
                json!("9999999-01-01T00:00:00Z"),
                json!("2020-13-45T99:99:99Z"),
                json!(""),
            ],
        ),
        (
            "xattrs",
            vec![
                json!({ "user.x": "not base64!" }),
                json!({ "": "AA==" }),
                json!([]),
                json!({ "user.x": 5 }),
            ],
        ),
        ("linkName", vec![json!("../../.."), json!("")]),
    ] {
        for value in values {
            let shown: String = value.to_string().chars().take(20).collect();
            for place in if key.starts_with("chunk") { [0, 5] } else { [0, 12] } {
                edits.push((
                    format!("{key} of entry {place} {shown} {}", edits.len()),
                    at(place, key, value.clone()),
                ));
            }
        }
    }
    edits.push(("chunk missing".into(), Box::new(|entries| drop(entries.remove(3)))));
    edits.push(("chunks swapped".into(), Box::new(|entries| entries.swap(3, 4))));
    edits.push(("chunk twice".into(), Box::new(|entries| entries.insert(3, entries[3].clone()))));
    edits.push(("chunk first".into(), Box::new(|entries| drop(entries.remove(0)))));
    edits.push(("no entries".into(), Box::new(Vec::clear)));
    edits.push((
        "hardlink to itself".into(),
        Box::new(|entries| {
            entries.push(json!({ "name": "self", "type": "hardlink", "linkName": "self" }));
        }),
    ));
    let peel = Peel::new();
    for (what, edit) in &edits {
        let (encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &|mut entries| {
            edit(&mut entries);
            toc_json(entries)
        });
        never_wrong_bytes(&peel, what, &encoded, &bytes);
    }
    for (what, json) in [
        ("no JSON", b"x".to_vec()),
        ("empty", Vec::new()),
        ("half", toc_json(vec![json!({ "name": "x", "type": "reg" })])[..20].to_vec()),
        ("other version", br#"{"version":2,"entries":[]}"#.to_vec()),
        ("entries null", br#"{"version":1,"entries":null}"#.to_vec()),
        ("deep", "[".repeat(1_000_000).into_bytes()),
    ] {
        let (encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &|_| json.clone());
        never_wrong_bytes(&peel, what, &encoded, &bytes);
    }
    peel.json(&["ls", "--json"]);
}

#[test]
fn mounting_a_table_of_contents_that_the_manifest_does_not_vouch_for_is_refused() {
    let peel = Peel::new();
    let (mut encoded, bytes) = encode_to_vec(&layer(), Form::Estargz(SMALL_CHUNKS));
    encoded.annotations = vec![(TOC_DIGEST.to_owned(), sha256(b"another table of contents"))];
    let reference = image_of_blob(&peel, "layout", &encoded, &bytes);
    refused(&peel, &reference, WRONG_CONTENT, &[&encoded.digest]);
    still_works(&peel);
}

#[test]
fn reading_a_mounted_chunk_that_does_not_match_its_digest_is_an_error_and_the_rest_is_right() {
    let peel = Peel::new();
    let (encoded, mut bytes) = encode_to_vec(&layer(), Form::Estargz(SMALL_CHUNKS));
    // In the second chunk, whose bytes do not compress.
    bytes[300 << 10] ^= 1;
    let mut layout = Layout::create(peel.scratch().join("layout"));
    fs::write(layout.blob_path(&encoded.digest), &bytes).unwrap();
    let manifest = layout.put_image(std::slice::from_ref(&encoded), this_architecture());
    layout.tag("test", &manifest);
    let mount = peel.mount(&layout.reference("test"));
    let file = fs::File::open(mount.join("large")).unwrap();
    let mut bytes = vec![0; 1000];
    let error = file.read_exact_at(&mut bytes, 300 << 10).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    file.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert!(bytes == noise(3 << 20).to_vec()[1 << 20..][..1000]);
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
}

/// `peel mount` with no more than this much private memory.
fn mount_within(peel: &Peel, reference: &str, point: &std::path::Path, mebibytes: u64) -> Outcome {
    let inner = peel.command(&["mount", reference, point.to_str().unwrap()]);
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--data={}", mebibytes << 20))
        .arg("--")
        .arg(inner.get_program())
        .args(inner.get_args());
    command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run_to_end(command, peel.scratch())
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

#[test]
fn mounting_a_table_of_contents_of_a_gibibyte_takes_bounded_memory() {
    let peel = Peel::new();
    // Spaces around an empty table: valid JSON, and vouched for.
    let (encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &|_| {
        let mut json = br#"{"version":1,"entries":[]}"#.to_vec();
        json.resize(1 << 30, b' ');
        json
    });
    let reference = image_of_blob(&peel, "layout", &encoded, &bytes);
    let point = peel.mount_point();
    let outcome = mount_within(&peel, &reference, &point, 300);
    is_an_error(&outcome, WRONG_CONTENT, &reference, &[&encoded.digest]);
    assert!(!is_mount_point(&point));
    still_works(&peel);
}

#[test]
fn mounting_where_one_cannot_says_why() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &[layer()], Form::GZIP);
    let mount_at = |path: &std::path::Path| peel.run(&["mount", &reference, path.to_str().unwrap()]);
    let fails = |outcome: &Outcome, path: &std::path::Path| {
        assert_eq!(outcome.code, Some(THIS_MACHINE), "{outcome:?}");
        assert!(outcome.stderr.contains(path.to_str().unwrap()), "{outcome:?}");
    };
    let missing = peel.scratch().join("missing");
    fails(&mount_at(&missing), &missing);
    assert!(!missing.exists());

    let file = peel.scratch().join("file");
    fs::write(&file, "content").unwrap();
    fails(&mount_at(&file), &file);

    let full = peel.mount_point();
    fs::write(full.join("file"), "content").unwrap();
    fails(&mount_at(&full), &full);
    assert_eq!(fs::read(full.join("file")).unwrap(), b"content");

    let mount = peel.mount(&reference);
    fails(&mount_at(mount.path()), mount.path());
    assert_eq!(fs::read(mount.join("small")).unwrap(), b"small", "the first mount goes on");

    let outcome = peel.run(&["unmount", full.to_str().unwrap()]);
    assert!(outcome.code.is_some_and(|code| code != 0), "{outcome:?}");
    assert_eq!(fs::read(full.join("file")).unwrap(), b"content");
}

#[test]
fn mounting_without_dev_fuse_says_so() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &[layer()], Form::GZIP);
    let keep_null = "mknod -m 666 /dev/null c 1 3";
    for (what, prepare) in [
        ("missing", format!("mount -t tmpfs none /dev && {keep_null}")),
        (
            "forbidden",
            format!(
                "mount -t tmpfs none /dev && {keep_null} && mknod /dev/fuse c 10 229 && mount -o remount,nodev /dev"
            ),
        ),
    ] {
        let point = peel.mount_point();
        let inner = peel.command(&["mount", &reference, point.to_str().unwrap()]);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &format!("{prepare} && exec \"$@\""), "sh"]);
        command.arg(inner.get_program()).args(inner.get_args());
        let outcome = run_to_end(command, peel.scratch());
        assert_eq!(outcome.code, Some(THIS_MACHINE), "{what}: {outcome:?}");
        assert!(outcome.stderr.contains("/dev/fuse"), "{what}: {outcome:?}");
        assert!(!is_mount_point(&point), "{what}");
    }
    assert_eq!(fs::read(peel.mount(&reference).join("small")).unwrap(), b"small");
}

#[test]
fn unmounting_what_is_no_mount_says_so() {
    let peel = Peel::new();
    let path = peel.mount_point();
    let outcome = peel.run(&["unmount", path.to_str().unwrap()]);
    assert!(outcome.code.is_some_and(|code| code != 0), "{outcome:?}");
    assert!(outcome.stderr.contains(path.to_str().unwrap()), "{outcome:?}");
    let missing = fs::metadata(path.join("missing")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
}
