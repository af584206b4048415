//! Promise: once somebody has published the index of an ordinary image, the next machine reads that image lazily from its first read,
//! layers unchanged; and whoever publishes leaves either the image as it was or the image with its index, whatever happens.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use peelfs::layer::soci::checkpoints::{Checkpoints, GzipCheckpoint};
use peelfs::layer::soci::make::{DEFAULT_SPAN_SIZE, ZtocOptions, make_ztoc};
use peelfs::layer::soci::ztoc::Ztoc;
use peelfs::layer::stream::StreamExpectation;
use serde_json::{Value, json};

use crate::support::archive::TestEntry;
use crate::support::blob::{Form, sha256};
use crate::support::cases::{every_case, every_case_of_archives};
use crate::support::content::Content;
use crate::support::docker_registry::{DockerRegistry, Options};
use crate::support::image::{CONFIG, INDEX, Layout, MANIFEST, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Mount, Peel};
use crate::support::registry::{FakeRegistry, Fault, Referrers};
use crate::support::tools::{Unpacked, docker_registry, push, real_images};
use crate::support::tree::{Tree, assert_same};

const MEBIBYTE: u64 = 1 << 20;
/// Bytes of a large file: more than the kernel reads ahead.
const FILE: u64 = 4 * MEBIBYTE;
const ANNOTATION: &str = "com.amazon.soci.index-digest";
const V1: &str = "application/vnd.amazon.soci.index.v1+json";
const V2: &str = "application/vnd.amazon.soci.index.v2+json";
/// Every layer gets a zTOC, and a span is small: not too small, as each has a window of 32 KiB in the zTOC.
const SMALL: [&str; 4] = ["--min-layer-size", "0", "--span-size", "524288"];

fn publish(peel: &Peel, reference: &str, options: &[&str]) -> Value {
    peel.json(&[&["index", "push", reference, "--quiet", "--json"], options].concat())
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

/// What a layout's `index.json` names, and what is below.
fn document(layout: &Path, digest: &Value) -> Value {
    let bytes = fs::read(layout.join("blobs").join(text(digest).replace(':', "/"))).unwrap();
    assert_eq!(sha256(&bytes), text(digest));
    serde_json::from_slice(&bytes).unwrap()
}

/// Bytes that a mount has fetched, as `peel status` says.
fn fetched(peel: &Peel, mount: &Mount<'_>) -> u64 {
    let status = peel.json(&["status", "--json"]);
    let lines = status.as_array().unwrap();
    let line = lines.iter().find(|line| line["mountpoint"] == mount.path().to_str().unwrap()).unwrap();
    line["fetched_bytes"].as_u64().unwrap()
}

/// Gzip of many members: the encoder of the tests makes one block of a member that does not compress.
const MEMBERS: Form = Form::Gzip { members: 97 };

/// Files of a size that no span hides, in two layers.
fn layers() -> Vec<Vec<TestEntry>> {
    let noise = |seed, length| Content::Noise { seed, length };
    vec![
        vec![
            TestEntry::directory("directory").mode(0o750),
            TestEntry::file("directory/first", noise(1, FILE)).xattr("user.key", b"\x00value\xff"),
            TestEntry::file("directory/second", noise(2, FILE)).modified(1_700_000_000, 123_456_789),
            TestEntry::file("third", noise(3, FILE)),
            TestEntry::hardlink("link", "third"),
        ],
        vec![TestEntry::whiteout("directory/first"), TestEntry::file("upper", noise(4, FILE))],
    ]
}

fn model(layers: &[Vec<TestEntry>]) -> Tree {
    Model::of(layers).unwrap_or_else(|refusal| panic!("{}", refusal.0)).tree()
}

/// An image of [`layers`] in a registry that takes pushes.
fn in_fake_registry(form: Form) -> (FakeRegistry, String, tempfile::TempDir) {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let mut layout = Layout::create(directory.path());
    layout.image("test", &layers(), form);
    let reference = layout.serve(&registry, "some/name", "test");
    registry.take_pushes();
    (registry, reference, directory)
}

/// Mounts an image and finds [`layers`] in it, of which only what is read is fetched.
#[track_caller]
fn is_lazy(registry: &FakeRegistry, reference: &str, options: &[&str]) {
    let peel = Peel::new();
    registry.reset_counters();
    let mount = peel.mount_with(reference, options);
    let mounted = registry.counters().blob_bytes;
    assert!(mounted < 2 * MEBIBYTE, "mounting fetched {mounted} bytes");
    let mut byte = [0];
    use std::os::unix::fs::FileExt;
    fs::File::open(mount.join("upper")).unwrap().read_exact_at(&mut byte, 1000).unwrap();
    let read = registry.counters().blob_bytes - mounted;
    assert!((1..FILE / 2).contains(&read), "one byte cost {read}");
    assert_same(&Tree::walk(mount.path()), &model(&layers()), &[]);
    mount.unmount();
}

/// Mounts an image and finds [`layers`] in it, which were streamed.
#[track_caller]
fn is_streamed(registry: &FakeRegistry, reference: &str, options: &[&str]) {
    let peel = Peel::new();
    registry.reset_counters();
    let mount = peel.mount_with(reference, options);
    let mounted = registry.counters().blob_bytes;
    assert!(mounted > 4 * FILE, "mounting fetched {mounted} bytes");
    assert_same(&Tree::walk(mount.path()), &model(&layers()), &[]);
    mount.unmount();
}

#[test]
fn a_published_debian_python_is_lazy_from_the_first_read_and_what_it_was() {
    let images = real_images().join("python");
    let registry = docker_registry();
    let reference = push(&images, "gzip", &registry, "some/python");
    let publisher = Peel::new();
    let report = publish(&publisher, &reference, &[]);
    let layers = report["images"][0]["layers"].as_array().unwrap();
    let size: u64 = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    let ztocs: u64 = layers.iter().filter_map(|layer| layer["ztoc_size"].as_u64()).sum();
    assert!(ztocs > 0 && ztocs * 20 < size, "{ztocs} of {size}");
    assert_eq!(layers.last().unwrap()["reason"], "it is small");

    let peel = Peel::new();
    let mount = peel.mount(&reference);
    let mounted = fetched(&peel, &mount);
    assert!(mounted < ztocs + MEBIBYTE, "{mounted} bytes for zTOCs of {ztocs}");
    let name = fs::read_to_string(mount.join("etc/os-release")).unwrap();
    assert!(name.contains("Debian"), "{name}");
    let read = fetched(&peel, &mount) - mounted;
    assert!((1..size / 8).contains(&read), "{read} of {size} bytes for one file");
    let expected = Unpacked::by_umoci(&format!("{}:gzip", images.display())).unwrap();
    assert_same(&Tree::walk(mount.path()), &Tree::walk(&expected.path()), &[]);
    mount.unmount();
}

#[test]
fn every_case_that_a_ztoc_can_tell_is_mounted_as_it_was() {
    for form in [Form::GZIP, Form::Gzip { members: 97 }, Form::Tar] {
        let peel = Peel::new();
        let mut layout = Layout::create(peel.scratch().join("layout"));
        let reference = layout.image("test", &every_case(), form);
        let report = publish(&peel, &reference, &["--min-layer-size", "0", "--span-size", "65536"]);
        for layer in report["images"][0]["layers"].as_array().unwrap() {
            assert!(layer["ztoc"].is_string(), "{form:?}: {layer}");
        }
        let mount = peel.mount(&reference);
        assert_same(&Tree::walk(mount.path()), &model(&every_case()), &[]);
        mount.unmount();
    }
}

#[test]
fn a_layer_with_holes_stays_without_a_ztoc_and_is_mounted_all_the_same() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let reference = layout.image("test", &every_case_of_archives(), Form::GZIP);
    let report = publish(&peel, &reference, &SMALL);
    let layers = report["images"][0]["layers"].as_array().unwrap();
    assert!(text(&layers[0]["reason"]).contains("sparse file"), "{}", layers[0]);
    assert!(layers[1]["ztoc"].is_string());
    let mount = peel.mount(&reference);
    assert_same(&Tree::walk(mount.path()), &model(&every_case_of_archives()), &[]);
    mount.unmount();
}

#[test]
fn the_documents_are_those_that_others_look_for() {
    let peel = Peel::new();
    let out = peel.scratch().join("layout");
    let mut layout = Layout::create(&out);
    let layer = layout.put_layer(&layers()[0], Form::GZIP);
    // As Docker has it.
    let mut manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": layout.put_json("application/vnd.docker.container.image.v1+json", &crate::support::image::config_document(std::slice::from_ref(&layer), this_architecture())),
        "layers": [{ "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "digest": layer.digest, "size": layer.size }],
        "annotations": { "kept": "1", ANNOTATION: sha256(b"stale") },
    });
    let source = layout.put_json(text(&manifest["mediaType"]), &manifest);
    layout.tag("docker", &source);
    let report = publish(&peel, &layout.reference("docker"), &[&SMALL[..], &["--tag", "soci"]].concat());

    let layout = Layout::open(&out);
    assert_eq!(layout.descriptor("docker")["digest"], source["digest"], "the image itself stays");
    let named = layout.descriptor("soci");
    assert_eq!((&named["digest"], text(&named["mediaType"])), (&report["digest"], INDEX));
    let index = document(&out, &named["digest"]);
    let [image, soci] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
    let platform = json!({ "os": "linux", "architecture": this_architecture() });
    assert_eq!((&image["platform"], &soci["platform"]), (&platform, &platform));
    assert_eq!((&soci["artifactType"], &soci["mediaType"]), (&json!(V2), &json!(MANIFEST)));
    assert_eq!(soci["annotations"]["com.amazon.soci.image-manifest-digest"], image["digest"]);

    manifest["mediaType"] = MANIFEST.into();
    manifest["config"]["mediaType"] = CONFIG.into();
    manifest["layers"][0]["mediaType"] = layer.media_type.clone().into();
    manifest["annotations"][ANNOTATION] = soci["digest"].clone();
    assert_eq!(document(&out, &image["digest"]), manifest);

    let soci = document(&out, &soci["digest"]);
    assert_eq!(soci["config"], json!({ "mediaType": V2, "digest": sha256(b"{}"), "size": 2 }));
    assert_eq!(soci.get("subject"), None);
    let ztoc = &soci["layers"][0];
    let annotations = json!({
        "com.amazon.soci.image-layer-digest": layer.digest,
        "com.amazon.soci.image-layer-mediaType": layer.media_type,
        "com.amazon.soci.span-size": "524288",
    });
    assert_eq!(
        (&ztoc["mediaType"], &ztoc["annotations"]),
        (&json!("application/octet-stream"), &annotations)
    );
    assert_eq!(
        fs::read(layout.blob_path(text(&ztoc["digest"]))).unwrap().len() as u64,
        ztoc["size"].as_u64().unwrap()
    );
}

#[test]
fn the_same_image_gives_the_same_digests_wherever_it_is_and_again() {
    let peel = Peel::new();
    let images = real_images().join("python");
    let convert = |source: &str, destination: &str| {
        peel.json(&["convert", source, destination, "--format", "soci", "--quiet", "--json"])
    };
    let out = peel.scratch().join("out");
    let source = format!("oci:{}:gzip", images.display());
    let first = convert(&source, &format!("oci:{}:one", out.display()));
    let registry = docker_registry();
    let there = format!("{}/some/python:soci", registry.url_host());
    assert_eq!(convert(&source, &there)["images"], first["images"]);
    // An image that has an index already gets the same one: its layers are what they were.
    let again = convert(&there, &format!("{}/another/name:tag", registry.url_host()));
    assert_eq!(again["digest"], first["digest"]);
    assert_eq!(again["images"][0]["index"], first["images"][0]["index"]);

    let manifest = Layout::open(&out).manifest("one");
    let layers = |manifest: &Value| -> Vec<Value> {
        let layers = manifest["layers"].as_array().unwrap().iter();
        layers.map(|layer| json!([layer["digest"], layer["size"]])).collect()
    };
    assert_eq!(layers(&manifest), layers(&Layout::open(&images).manifest("gzip")));
    let unpacked = Unpacked::by_umoci(&format!("{}:gzip", images.display())).unwrap();
    let mount = peel.mount(&format!("{}/another/name:tag", registry.url_host()));
    assert_same(&Tree::walk(mount.path()), &Tree::walk(&unpacked.path()), &[]);
    mount.unmount();
}

#[test]
fn an_index_that_refers_to_an_image_is_believed_only_by_those_who_say_so() {
    for listed in [Some(Referrers { page: 1, filters: false }), None] {
        let (mut registry, reference, _blobs) = in_fake_registry(MEMBERS);
        if let Some(referrers) = listed {
            registry.list_referrers(referrers);
        }
        let before = registry.manifest("some/name", "test").unwrap();
        let report = publish(&Peel::new(), &reference, &[&SMALL[..], &["--v1"]].concat());
        assert_eq!(report["digest"], Value::Null);
        assert_eq!(report["images"][0]["digest"], sha256(&before));
        assert_eq!(registry.manifest("some/name", "test").unwrap(), before, "the image stays as it is");
        let index = registry.manifest("some/name", text(&report["images"][0]["index"])).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["config"]["mediaType"], V1);
        let subject = json!({ "mediaType": MANIFEST, "digest": sha256(&before), "size": before.len() });
        assert_eq!(index["subject"], subject);

        is_streamed(&registry, &reference, &[]);
        let asks = registry.requests().iter().any(|request| {
            request.target.contains("/referrers/") || request.target.contains("/manifests/sha256-")
        });
        assert!(!asks, "nobody who does not trust referrers asks for them");
        is_lazy(&registry, &reference, &["--trust-referrers"]);

        // What was believed once is known.
        let peel = Peel::new();
        peel.mount_with(&reference, &["--trust-referrers"]).unmount();
        registry.down();
        let mount = peel.mount_with(&reference, &["--trust-referrers"]);
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 4);
        mount.unmount();
    }
}

#[test]
fn what_an_index_says_of_a_layer_counts_for_its_image_and_for_those_who_trust_it() {
    let (registry, reference, _blobs) = in_fake_registry(MEMBERS);
    let streams = |peel: &Peel, reference: &str, options: &[&str]| {
        registry.reset_counters();
        let mount = peel.mount_with(reference, options);
        let streamed = registry.counters().blob_bytes > 4 * FILE;
        assert_same(&Tree::walk(mount.path()), &model(&layers()), &[]);
        mount.unmount();
        streamed
    };
    let publisher = Peel::new();
    publish(&publisher, &reference, &[&SMALL[..], &["--tag", "soci"]].concat());
    let indexed = registry.reference("some/name", "soci").to_string();
    // The same layers, of an image that names an index and of one that names none.
    let peel = Peel::new();
    assert!(!streams(&peel, &indexed, &[]));
    assert!(streams(&peel, &reference, &[]));

    publish(&publisher, &reference, &[&SMALL[..], &["--v1"]].concat());
    let peel = Peel::new();
    assert!(!streams(&peel, &reference, &["--trust-referrers"]));
    assert!(streams(&peel, &reference, &[]));
    // The layers themselves are there now, proved by their digests: they are preferred.
    registry.reset_counters();
    assert!(!streams(&peel, &reference, &["--trust-referrers"]));
    assert_eq!(registry.counters().blob_bytes, 0);
}

#[test]
fn an_index_that_refers_to_an_image_of_a_real_registry_or_a_layout_is_found() {
    let registry = docker_registry();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let local = layout.image("test", &layers(), Form::GZIP);
    let remote = push(layout.path(), "test", &registry, "some/name");
    for reference in [local, remote] {
        let report = publish(&peel, &reference, &[&SMALL[..], &["--v1"]].concat());
        // Again changes nothing.
        assert_eq!(publish(&peel, &reference, &[&SMALL[..], &["--v1"]].concat()), report);
        let reader = Peel::new();
        let mount = reader.mount_with(&reference, &["--trust-referrers"]);
        let sheet = reader.json(&["show", &reference, "--json"]);
        assert_eq!(sheet["layers"][0]["state"], "lazy", "{sheet}");
        assert_same(&Tree::walk(mount.path()), &model(&layers()), &[]);
        mount.unmount();
    }
}

#[test]
fn layers_that_are_lazy_small_or_zstd_need_or_have_no_index() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let entries = layers().remove(0);
    let parts = [
        layout.put_layer(&entries, Form::GZIP),
        layout.put_layer(&entries, Form::ESTARGZ),
        layout.put_layer(&entries, Form::ZSTD),
        layout.put_layer(&[TestEntry::file("small", "x")], Form::GZIP),
        layout.put_layer(&entries, Form::Tar),
    ];
    let image = layout.put_image(&parts, this_architecture());
    layout.tag("mixed", &image);
    let report = publish(&peel, &layout.reference("mixed"), &["--min-layer-size", "1000"]);
    let reasons: Vec<&Value> =
        report["images"][0]["layers"].as_array().unwrap().iter().map(|layer| &layer["reason"]).collect();
    let expected = [
        Value::Null,
        "it has a table of contents already".into(),
        "a zstd layer can have no zTOC".into(),
        "it is small".into(),
        Value::Null,
    ];
    assert_eq!(reasons, expected.iter().collect::<Vec<_>>());

    let reference = layout.image("zstd", &layers(), Form::ZSTD);
    let before = fs::read(layout.path().join("index.json")).unwrap();
    let outcome = peel.run(&["index", "push", &reference]);
    assert_eq!(outcome.code, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("nothing to index") && outcome.stderr.contains("zstd"), "{outcome:?}");
    assert_eq!(fs::read(layout.path().join("index.json")).unwrap(), before);
}

#[test]
fn of_an_index_one_image_or_all_are_published_and_the_rest_stays() {
    let peel = Peel::new();
    let out = peel.scratch().join("layout");
    let mut layout = Layout::create(&out);
    let images = ["amd64", "arm64"].map(|architecture| {
        let entries = [&layers()[0][..], &[TestEntry::file("of", architecture)]].concat();
        let layer = layout.put_layer(&entries, Form::GZIP);
        layout.put_image(&[layer], architecture)
    });
    let attestations = [0, 1].map(|number: usize| {
        let mut attestation = layout.put_image(&[], ["amd64", "arm64"][number]);
        attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
        attestation["annotations"] = json!({
            "vnd.docker.reference.type": "attestation-manifest",
            "vnd.docker.reference.digest": images[number]["digest"],
        });
        attestation
    });
    let [amd64, arm64] = &images;
    let index =
        layout.put_index(&[amd64.clone(), arm64.clone(), attestations[0].clone(), attestations[1].clone()]);
    layout.tag("test", &index);
    let reference = layout.reference("test");

    let options = [&SMALL[..], &["--platform", "linux/arm64", "--tag", "one"]].concat();
    let report = publish(&peel, &reference, &options);
    assert_eq!(report["left_out"], json!([attestations[1]["digest"]]));
    let one = document(&out, &report["digest"]);
    let entries = one["manifests"].as_array().unwrap();
    assert_eq!((&entries[0], entries.len()), (amd64, 4));
    assert_eq!(entries[1]["platform"], arm64["platform"]);
    assert_ne!(entries[1]["digest"], arm64["digest"]);
    assert_eq!(entries[2], attestations[0]);
    assert_eq!(entries[3]["annotations"]["com.amazon.soci.image-manifest-digest"], entries[1]["digest"]);

    let all = publish(&peel, &reference, &SMALL);
    assert_eq!(all["images"].as_array().unwrap().len(), 2);
    assert_eq!(all["images"][1]["digest"], entries[1]["digest"]);
    let left_out: BTreeSet<&str> = all["left_out"].as_array().unwrap().iter().map(text).collect();
    assert_eq!(left_out, attestations.iter().map(|entry| text(&entry["digest"])).collect());
    // The image of one of them, with its index, was published before: now both are, and of the one before nothing is left.
    assert_eq!(document(&out, &all["digest"])["manifests"].as_array().unwrap().len(), 4);
    let again = publish(&peel, &reference, &SMALL);
    assert_eq!(again["digest"], all["digest"]);
    for architecture in ["amd64", "arm64"] {
        let platform = format!("linux/{architecture}");
        let mount = peel.mount_with(&reference, &["--platform", &platform]);
        assert_eq!(fs::read(mount.join("of")).unwrap(), architecture.as_bytes());
        mount.unmount();
    }
    let v1 = publish(&peel, &layout.reference("one"), &[&SMALL[..], &["--v1"]].concat());
    assert_eq!(v1["images"].as_array().unwrap().len(), 2);
}

#[test]
fn a_push_that_is_cut_leaves_the_image_as_it_was_and_can_be_made_again() {
    for form in [MEMBERS, Form::Tar] {
        let (registry, reference, _blobs) = in_fake_registry(form);
        let before = registry.manifest("some/name", "test").unwrap();
        let arguments = [&["index", "push", &reference, "--quiet"], &SMALL[..]].concat();
        for (path, fault) in [
            ("blobs/uploads/", Fault::Status(501)),
            ("state=x", Fault::Close),
            ("manifests/sha256:", Fault::Status(400)),
            ("manifests/test", Fault::Status(413)),
            ("blobs/sha256:", Fault::CutAfter(1000)),
        ] {
            registry.set_fault(path, fault.clone());
            let outcome = {
                let peel = Peel::new();
                peel.run(&arguments)
            };
            assert_eq!(outcome.code, Some(5), "{path} {fault:?}: {}", outcome.stderr);
            assert_eq!(registry.manifest("some/name", "test").unwrap(), before, "{path} {fault:?}");
            registry.clear_faults();
        }
        Peel::new().succeed(&arguments);
        assert_ne!(registry.manifest("some/name", "test").unwrap(), before);
        is_lazy(&registry, &reference, &[]);
    }
}

#[test]
fn where_nothing_may_be_written_that_is_said() {
    let registry = DockerRegistry::start(Options { password: true, ..Options::default() }).unwrap();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let source = layout.image("test", &layers(), Form::GZIP);
    let destination = format!("{}/name:tag", registry.url_host());
    let outcome = peel.run(&["convert", &source, &destination, "--format", "soci"]);
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);

    let (registry, reference, _blobs) = in_fake_registry(MEMBERS);
    registry.set_fault("blobs/uploads/", Fault::Status(403));
    let outcome = peel.run(&[&["index", "push", &reference], &SMALL[..]].concat());
    assert_eq!(outcome.code, Some(4), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("cannot put blob"), "{}", outcome.stderr);

    for (arguments, code) in [
        (vec!["index", "push", &reference, "--v1", "--tag", "x"], 2),
        (vec!["index", "push", &reference, "--span-size", "1"], 2),
        (vec!["index", "push", "oci:/nowhere:x"], 3),
    ] {
        assert_eq!(peel.run(&arguments).code, Some(code), "{arguments:?}");
    }
    let manifest = registry.manifest("some/name", "test").unwrap();
    let pinned = registry.reference("some/name", &sha256(&manifest)).to_string();
    let outcome = peel.run(&["index", "push", &pinned]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("must be named by a tag"), "{}", outcome.stderr);
}

#[test]
fn a_layer_that_is_not_what_the_manifest_says_is_not_indexed() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let mut layer = layout.put_layer(&layers()[0], Form::GZIP);
    layer.diff_id = format!("sha256:{:064}", 0);
    let image = layout.put_image(&[layer], this_architecture());
    layout.tag("lying", &image);
    let outcome = peel.run(&[&["index", "push", &layout.reference("lying")], &SMALL[..]].concat());
    assert_eq!(outcome.code, Some(6), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("diff ID"), "{}", outcome.stderr);
    assert_eq!(layout.descriptor("lying")["digest"], image["digest"]);
}

/// Puts a manifest that refers to the image `test`, changed by `change`, and lists it.
fn put_lying_referrer(
    registry: &FakeRegistry,
    index: &Value,
    number: usize,
    change: impl FnOnce(&mut Value),
) {
    let mut lying = index.clone();
    lying["annotations"]["number"] = json!(number.to_string());
    change(&mut lying);
    registry.put_raw_manifest("some/name", &format!("lie-{number}"), MANIFEST, lying.to_string().as_bytes());
}

#[test]
fn referrers_that_lie_are_passed_over_and_never_keep_an_image_from_being_mounted() {
    let (registry, reference, _blobs) = in_fake_registry(MEMBERS);
    registry.list_referrers(Referrers { page: 2, filters: true });
    let report = publish(&Peel::new(), &reference, &[&SMALL[..], &["--v1"]].concat());
    let index = registry.manifest("some/name", text(&report["images"][0]["index"])).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    let garbage = registry.put_blob(vec![7; 1000]);
    let layer = "com.amazon.soci.image-layer-digest";
    type Lie<'a> = Box<dyn Fn(&mut Value) + 'a>;
    let lies: Vec<Lie<'_>> = vec![
        Box::new(|lie| lie["layers"][0]["annotations"][layer] = sha256(b"other").into()),
        Box::new(|lie| {
            lie["layers"][0]["digest"] = garbage.to_string().into();
            lie["layers"][0]["size"] = 1000.into();
        }),
        Box::new(|lie| lie["layers"][0]["digest"] = sha256(b"missing").into()),
        Box::new(|lie| lie["layers"][0]["size"] = json!(1_u64 << 50)),
        Box::new(|lie| {
            // The zTOCs of each other's layers.
            let first = lie["layers"][0]["annotations"].take();
            lie["layers"][0]["annotations"] = lie["layers"][1]["annotations"].take();
            lie["layers"][1]["annotations"] = first;
        }),
        Box::new(|lie| lie["layers"] = json!([])),
        Box::new(|lie| lie["config"]["size"] = json!(-1)),
    ];
    for (number, lie) in lies.iter().enumerate() {
        let (registry, reference, _blobs) = in_fake_registry(MEMBERS);
        registry.list_referrers(Referrers { page: 2, filters: true });
        registry.put_blob(vec![7; 1000]);
        put_lying_referrer(&registry, &index, number, lie);
        let peel = Peel::new();
        let mount = peel.mount_with(&reference, &["--trust-referrers"]);
        assert_same(&Tree::walk(mount.path()), &model(&layers()), &[]);
        mount.unmount();
    }
    // One that names another subject than it is listed for, which a registry must not do but may.
    let (lying, reference_there, _blobs) = in_fake_registry(MEMBERS);
    let subject = sha256(&lying.manifest("some/name", "test").unwrap());
    let mut other = index.clone();
    other["subject"]["digest"] = sha256(b"another").into();
    let digest = lying.put_raw_manifest("some/name", "other", MANIFEST, other.to_string().as_bytes());
    let entry = json!({ "mediaType": MANIFEST, "digest": digest.as_str(), "size": 1, "artifactType": V1 });
    let list = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] });
    lying.put_manifest("some/name", &subject.replace(':', "-"), INDEX, list.to_string().as_bytes());
    is_streamed(&lying, &reference_there, &["--trust-referrers"]);

    // A list that never ends, and one that cannot be had.
    for fault in [
        Fault::Header("link", "</v2/some/name/referrers/again>; rel=\"next\"".to_owned()),
        Fault::Status(403),
        Fault::ContentType("text/html".to_owned()),
    ] {
        let (registry, reference, _blobs) = in_fake_registry(MEMBERS);
        registry.list_referrers(Referrers { page: 2, filters: true });
        registry.set_fault("/referrers/", fault);
        is_streamed(&registry, &reference, &["--trust-referrers"]);
    }
    is_lazy(&registry, &reference, &["--trust-referrers"]);
}

/// The real image with the index that Debian's soci makes of it, if `scripts/images --all` made it.
#[test]
fn our_ztocs_are_the_reference_s() {
    let directory = real_images().join("python-soci");
    if !directory.join("index.json").exists() {
        println!("{} is not there: scripts/images --all makes it", directory.display());
        return;
    }
    let layout = Layout::open(&directory);
    let index = document(&directory, &layout.descriptor("soci-v1")["digest"]);
    let config = document(&directory, &layout.manifest("gzip")["config"]["digest"]);
    let manifest = layout.manifest("gzip");
    let layers = manifest["layers"].as_array().unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let mut compared = 0;
    for (layer, diff_id) in layers.iter().zip(diff_ids) {
        let is_of_layer =
            |ztoc: &&Value| ztoc["annotations"]["com.amazon.soci.image-layer-digest"] == layer["digest"];
        let Some(theirs) = index["layers"].as_array().unwrap().iter().find(is_of_layer) else { continue };
        let theirs = Ztoc::read(&fs::read(layout.blob_path(text(&theirs["digest"]))).unwrap()).unwrap();
        let blob = fs::read(layout.blob_path(text(&layer["digest"]))).unwrap();
        let expected = StreamExpectation {
            blob_digest: text(&layer["digest"]).parse().unwrap(),
            blob_size: blob.len() as u64,
            diff_id: Some(text(diff_id).parse().unwrap()),
            maximum_decoded: 1 << 30,
        };
        let pieces = blob.chunks(100_000).map(Ok::<_, std::io::Error>);
        let options = ZtocOptions { span_size: DEFAULT_SPAN_SIZE, build_tool: String::new() };
        let ours = make_ztoc(pieces, &expected, &options, &|_| {}).unwrap().unwrap();
        let ours = Ztoc::read(&ours).unwrap();

        assert_eq!((ours.compressed_size, &ours.version), (theirs.compressed_size, &theirs.version));
        let at = |ztoc: &Ztoc| -> Vec<(u64, u64, u8, String)> {
            let Checkpoints::Gzip { list, .. } = Checkpoints::of(&ztoc.compression).unwrap() else {
                panic!("a gzip layer");
            };
            let place = |at: &GzipCheckpoint<'_>| {
                (at.compressed_offset, at.uncompressed_offset, at.bits, sha256(at.window))
            };
            list.iter().map(place).collect()
        };
        assert_eq!(at(&ours), at(&theirs));
        assert_eq!(ours.compression.span_digests, theirs.compression.span_digests);
        assert_eq!(ours.compression.max_span_id, theirs.compression.max_span_id);
        let files = |ztoc: &Ztoc| {
            let mut files = ztoc.files.clone();
            // They write records in any order.
            files.iter_mut().for_each(|file| file.pax_records.sort());
            files
        };
        let (ours, theirs) = (files(&ours), files(&theirs));
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(&theirs) {
            assert_eq!(ours, theirs);
        }
        compared += 1;
    }
    assert!(compared > 0, "{index}");
}
