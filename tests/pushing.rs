//! Promise: a pushed image is the image: same documents, same digests. What the destination has is not sent, what it can get from itself
//! does not move, and what is false never gets there. Whatever ends a push, the next one does the rest. All of it is counted at the
//! registry.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::content::Content;
use crate::support::docker_registry::{DockerRegistry, Options};
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants};
use crate::support::registry::{Authentication, FakeRegistry, Fault};
use crate::support::small_disk::SmallDisk;
use crate::support::tree::{Tree, assert_same};
use serde_json::Value;
use std::fs;
use std::process::Command;

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });
const MEBIBYTE: u64 = 1 << 20;

/// Two layers, of which the second is longer than what is sent at once.
fn layers() -> Vec<Vec<TestEntry>> {
    let file = |name: &str, seed, length| TestEntry::file(name, Content::Noise { seed, length });
    vec![
        vec![file("small", 1, MEBIBYTE)],
        vec![file("large", 2, 10 * MEBIBYTE), file("larger", 3, 11 * MEBIBYTE)],
    ]
}

/// [`layers`] in a registry that takes pushes, in a repository of their own, and pulled from there.
struct Pulled {
    registry: FakeRegistry,
    reference: String,
    layout: Layout,
    peel: Peel,
}

fn pulled(form: Form) -> Pulled {
    let (registry, peel) = (FakeRegistry::start(), Peel::new());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &layers(), form);
    let reference = layout.serve(&registry, "source/name", "test");
    registry.take_pushes();
    registry.keep_repositories_apart("source/name");
    peel.succeed(&["pull", &reference]);
    registry.reset_counters();
    Pulled { registry, reference, layout, peel }
}

/// A registry that takes pushes and has nothing.
fn empty() -> FakeRegistry {
    let registry = FakeRegistry::start();
    registry.take_pushes();
    registry.keep_repositories_apart("nobody");
    registry
}

fn reference(registry: &FakeRegistry, name: &str) -> String {
    registry.reference(name, "pushed").to_string()
}

fn how(report: &Value) -> Vec<&str> {
    report["blobs"].as_array().unwrap().iter().map(|blob| blob["how"].as_str().unwrap()).collect()
}

#[track_caller]
fn is_the_image(destination: &str, model: &Tree) {
    is_the_image_but_for(destination, model, &[]);
}

#[track_caller]
fn is_the_image_but_for(destination: &str, model: &Tree, paths: &[&str]) {
    let peel = Peel::new();
    let mount = peel.mount(destination);
    let mut shown = Tree::walk(mount.path());
    for path in paths {
        shown.nodes.remove(path.as_bytes());
    }
    assert_same(&shown, model, &[]);
    // It keeps the directory open.
    drop(shown);
    mount.unmount();
}

fn model() -> Tree {
    Model::of(&layers()).unwrap().tree()
}

/// Bytes of blobs that came in requests.
fn sent(registry: &FakeRegistry) -> u64 {
    let requests = registry.requests();
    let uploads = requests.iter().filter(|request| request.target.contains("/blobs/uploads/"));
    uploads.filter_map(|request| request.header("content-length")?.parse::<u64>().ok()).sum()
}

#[test]
fn an_image_that_was_made_here_is_pushed_from_where_its_layers_are() {
    let Pulled { registry, reference: source, peel, .. } = pulled(SMALL_CHUNKS);
    let mount = peel.mount_with(&source, &["--writable"]);
    fs::write(mount.join("new"), "new").unwrap();
    fs::remove_file(mount.join("small")).unwrap();
    peel.succeed(&["commit", mount.path().to_str().unwrap(), "--tag", "made-here"]);
    mount.unmount();
    // Not the writable mount: overlayfs counts the links of directories in its own way.
    let committed = peel.mount("localhost/made-here");
    let made = Tree::walk(committed.path());
    assert!(made.nodes.contains_key(&b"new"[..]) && !made.nodes.contains_key(&b"small"[..]));
    registry.reset_counters();
    let within = reference(&registry, "another/name");
    let report = peel.json(&["push", "localhost/made-here", &within, "--json"]);
    let mut within_registry = how(&report);
    within_registry.sort_unstable();
    assert_eq!(
        within_registry,
        ["mounted", "mounted", "sent", "sent"],
        "config and changes are sent: {report:#}"
    );
    assert!(sent(&registry) < 64 << 10, "{}", sent(&registry));
    is_the_image(&within, &made);

    let other = empty();
    let elsewhere = reference(&other, "some/name");
    peel.succeed(&["push", "localhost/made-here", &elsewhere]);
    is_the_image(&elsewhere, &made);
}

#[test]
fn a_lazy_image_is_pushed_within_its_registry_without_a_byte_of_a_layer() {
    let Pulled { registry, reference: source, layout, peel } = pulled(SMALL_CHUNKS);
    let destination = reference(&registry, "other/name");
    let report = peel.json(&["push", &source, &destination, "--json"]);
    assert_eq!(how(&report), ["mounted"; 3], "config and layers");
    assert_eq!(report["digest"], layout.descriptor("test")["digest"]);
    assert_eq!((sent(&registry), registry.counters().blob_bytes), (0, 0));
    let bytes = registry.manifest("other/name", "pushed").unwrap();
    assert_eq!(bytes, registry.manifest("source/name", "test").unwrap());
    is_the_image(&destination, &model());

    // Again, nothing is left to do.
    registry.reset_counters();
    assert_eq!(how(&peel.json(&["push", &source, &destination, "--json"])), ["present"; 3]);
    assert_eq!(sent(&registry), 0);
}

#[test]
fn a_registry_that_does_not_lend_is_sent_the_original_bytes() {
    for (path, fault) in [("mount=", Fault::Status(405)), ("mount=", Fault::Status(401))] {
        let Pulled { registry, reference: source, peel, .. } = pulled(Form::GZIP);
        registry.set_fault(path, fault);
        let destination = reference(&registry, "other/name");
        assert_eq!(how(&peel.json(&["push", &source, &destination, "--json"])), ["sent"; 3]);
        registry.clear_faults();
        is_the_image(&destination, &model());
    }
}

#[test]
fn a_push_to_another_registry_streams_the_original_bytes_and_names_them_last() {
    for form in [SMALL_CHUNKS, Form::GZIP] {
        let Pulled { registry: _source_registry, reference: source, layout, peel } = pulled(form);
        let registry = empty();
        let destination = reference(&registry, "some/name");
        let report = peel.json(&["push", &source, &destination, "--json"]);
        assert_eq!(how(&report), ["sent"; 3], "{form:?}");
        let manifest = layout.manifest("test");
        let size: u64 =
            manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
        assert!((size..size + 10_000).contains(&sent(&registry)), "{form:?}: {} of {size}", sent(&registry));
        let last = registry.requests().pop().unwrap();
        assert_eq!((last.method.as_str(), last.target.as_str()), ("PUT", "/v2/some/name/manifests/pushed"));
        assert_eq!(registry.open_uploads(), 0);
        is_the_image(&destination, &model());
    }
}

#[test]
fn a_layout_is_a_destination_too() {
    let Pulled { registry: _registry, reference: source, layout, peel } = pulled(SMALL_CHUNKS);
    let path = peel.scratch().join("new");
    let destination = format!("oci:{}:pushed", path.display());
    let report = peel.json(&["push", &source, &destination, "--json"]);
    assert_eq!(how(&report), ["sent"; 3]);
    assert_eq!(Layout::open(&path).descriptor("pushed")["digest"], layout.descriptor("test")["digest"]);
    is_the_image(&destination, &model());
    assert_eq!(how(&peel.json(&["push", &source, &destination, "--json"])), ["present"; 3]);
}

#[test]
fn real_registries_take_it_and_skopeo_finds_the_same_image() {
    let Some(registry) = DockerRegistry::start(Options::default()) else { return };
    let Pulled { registry: _registry, reference: source, layout, peel } = pulled(SMALL_CHUNKS);
    let there = format!("{}/some/name:pushed", registry.url_host());
    assert_eq!(how(&peel.json(&["push", &source, &there, "--json"])), ["sent"; 3]);
    let inspected =
        Command::new("skopeo").args(["inspect", "--tls-verify=false", &format!("docker://{there}")]).output();
    if let Ok(output) = inspected {
        let found: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(found["Digest"], layout.descriptor("test")["digest"]);
        let manifest = layout.manifest("test");
        let layers: Vec<&Value> =
            manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["digest"]).collect();
        assert_eq!(found["Layers"].as_array().unwrap().iter().collect::<Vec<_>>(), layers);
    }
    is_the_image(&there, &model());
    // And from there to its neighbour.
    let other = Peel::new();
    other.succeed(&["pull", &there]);
    let neighbour = format!("{}/another/name:pushed", registry.url_host());
    assert_eq!(how(&other.json(&["push", &there, &neighbour, "--json"])), ["mounted"; 3]);
    is_the_image(&neighbour, &model());
}

#[test]
fn false_bytes_never_become_a_blob_at_the_destination() {
    let Pulled { registry: source_registry, reference: source, layout, peel } = pulled(SMALL_CHUNKS);
    let manifest = layout.manifest("test");
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        let (registry, path) = (empty(), peel.scratch().join(&digest[7..20]));
        source_registry.set_fault(digest, Fault::WrongBytes);
        for destination in [reference(&registry, "some/name"), format!("oci:{}:pushed", path.display())] {
            let outcome = peel.run(&["push", &source, &destination]);
            assert_eq!(outcome.code, Some(6), "{outcome:?}");
            assert!(outcome.stderr.contains(digest), "{outcome:?}");
        }
        assert!(!registry.has_blob(digest) && registry.manifest("some/name", "pushed").is_none());
        assert!(!path.join("blobs").join(digest.replace(':', "/")).exists());
        let requests = registry.requests();
        assert!(requests.iter().any(|request| request.method == "DELETE"), "the upload is given up");
        source_registry.clear_faults();
        peel.succeed(&["push", &source, &reference(&registry, "some/name")]);
        is_the_image(&reference(&registry, "some/name"), &model());
    }
}

#[test]
fn an_upload_that_breaks_goes_on_where_it_broke() {
    let Pulled { registry: _registry, reference: source, peel, layout } = pulled(Form::Tar);
    let large = layout.manifest("test")["layers"][1]["size"].as_u64().unwrap();
    for (method, faults) in [
        ("nothing came", vec![Fault::Close]),
        ("a part came", vec![Fault::TakeOnly(3_000_000), Fault::TakeOnly(1)]),
        ("it was busy", vec![Fault::Status(503), Fault::Status(500)]),
    ] {
        let registry = empty();
        for fault in faults {
            registry.set_fault_times("PATCH ", fault, 1);
        }
        let destination = reference(&registry, "some/name");
        peel.succeed(&["push", &source, &destination]);
        let twice = sent(&registry).saturating_sub(large + MEBIBYTE);
        assert!(twice < 2 * (8 << 20) + MEBIBYTE, "{method}: {twice} bytes were sent again");
        is_the_image(&destination, &model());
    }
}

#[test]
fn an_upload_that_the_registry_forgets_is_begun_anew() {
    let Pulled { registry: _registry, reference: source, peel, .. } = pulled(Form::Tar);
    let registry = empty();
    let destination = reference(&registry, "some/name");
    registry.set_fault_times("uploads/1?", Fault::Status(404), 1);
    registry.set_fault_times("uploads/2?", Fault::Status(404), 1);
    peel.succeed(&["push", &source, &destination]);
    is_the_image(&destination, &model());
}

#[test]
fn credentials_allow_to_read_where_it_is_lent_from() {
    let Pulled { registry, reference: source, peel, .. } = pulled(SMALL_CHUNKS);
    registry.require(Authentication::Basic("user:secret".to_owned()));
    let destination = reference(&registry, "other/name");
    let outcome = peel.run(&["push", &source, &destination]);
    assert_eq!(outcome.code, Some(4), "{outcome:?}");
    let directory = peel.home().join(".docker");
    fs::create_dir(&directory).unwrap();
    // `user:secret`.
    let login = format!(r#"{{"auths":{{"{}":{{"auth":"dXNlcjpzZWNyZXQ="}}}}}}"#, registry.url_host());
    fs::write(directory.join("config.json"), login).unwrap();
    assert_eq!(how(&peel.json(&["push", &source, &destination, "--json"])), ["mounted"; 3]);
}

#[test]
fn an_extracted_image_whose_registry_is_gone_cannot_be_pushed_elsewhere_and_that_is_said() {
    let Pulled { registry: mut source_registry, reference: source, peel, .. } = pulled(SMALL_CHUNKS);
    peel.succeed(&["extract", &source]);
    source_registry.down();
    let registry = empty();
    let outcome = peel.run(&["push", &source, &reference(&registry, "some/name"), "--network-timeout", "1"]);
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    assert!(
        outcome.stderr.contains("not the blob it came in") && outcome.stderr.contains(&source),
        "{outcome:?}"
    );
    assert!(registry.manifest("some/name", "pushed").is_none());
    source_registry.up();
}

#[test]
fn an_index_is_pushed_with_all_its_images_or_not_at_all() {
    let (registry, peel) = (FakeRegistry::start(), Peel::new());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let images: Vec<Value> = [this_architecture(), "s390x"]
        .into_iter()
        .enumerate()
        .map(|(number, architecture)| {
            let layer =
                layout.put_layer(&[TestEntry::file("file", format!("{number}").as_str())], SMALL_CHUNKS);
            layout.put_image(&[layer], architecture)
        })
        .collect();
    let index = layout.put_index(&images);
    layout.tag("test", &index);
    let source = layout.serve(&registry, "source/name", "test");
    registry.take_pushes();
    registry.keep_repositories_apart("source/name");
    peel.succeed(&["pull", &source]);
    let destination = reference(&registry, "other/name");
    let outcome = peel.run(&["push", &source, &destination, "--all-platforms"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains("--platform linux/s390x"), "{outcome:?}");
    peel.succeed(&["pull", &source, "--platform", "linux/s390x"]);
    let report = peel.json(&["push", &source, &destination, "--all-platforms", "--json"]);
    assert_eq!(report["digest"], index["digest"]);
    let bytes = registry.manifest("other/name", "pushed").unwrap();
    assert_eq!(bytes, registry.manifest("source/name", "test").unwrap());

    // One of them alone is its manifest.
    let alone = registry.reference("alone", "pushed").to_string();
    let report = peel.json(&["push", &source, &alone, "--json"]);
    assert_eq!(report["digest"], images[0]["digest"]);
    let outcome = peel.run(&["push", &source, "oci:nowhere:x", "--platform", "linux/riscv64"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
}

#[test]
fn layers_are_compressed_anew_if_they_are_compressed_otherwise_and_it_is_done_once() {
    let Pulled { registry: source_registry, reference: source, layout, peel } = pulled(SMALL_CHUNKS);
    // In an archive that stays what it was, a table of contents that nothing announces any more is a file.
    const TABLES: &[&str] = &["stargz.index.json"];
    let registry = empty();
    let destination = reference(&registry, "some/name");
    for compression in ["gzip", "estargz"] {
        let report = peel.json(&["push", &source, &destination, "--json", "--compression", compression]);
        assert_eq!(report["digest"], layout.descriptor("test")["digest"], "{compression}: it is so already");
    }
    for (compression, format) in [("zstd", "tar+zstd"), ("zstd-chunked", "zstd:chunked (podman)")] {
        let push = ["push", &source, &destination, "--json", "--compression", compression];
        let first = peel.json(&push);
        assert_eq!(how(&first), ["recompressed"; 2], "{compression}");
        let other = Peel::new();
        other.succeed(&["pull", &destination]);
        let sheet = other.json(&["explain", &destination, "--json"]);
        assert_eq!(sheet["layers"][1]["format"], format, "{compression}");
        is_the_image_but_for(&destination, &model(), TABLES);
        // The destination has what the layers became.
        source_registry.reset_counters();
        assert_eq!(peel.json(&push)["digest"], first["digest"], "{compression}");
        assert!(source_registry.counters().blob_bytes < 100_000, "{compression}");
    }
    let forced = ["push", &source, &destination, "--json", "--compression", "gzip", "--force-compression"];
    assert_eq!(how(&peel.json(&forced)), ["recompressed"; 2]);
    is_the_image_but_for(&destination, &model(), TABLES);
    assert_eq!(peel.run(&["push", &source, &destination, "--force-compression"]).code, Some(2));
}

#[test]
fn layers_that_are_compressed_so_already_stay_among_others_that_are_not() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let forms = [Form::GZIP, Form::ZSTD];
    let layers: Vec<_> =
        layers().iter().zip(forms).map(|(layer, form)| layout.put_layer(layer, form)).collect();
    let manifest = layout.put_image(&layers, this_architecture());
    layout.tag("test", &manifest);
    let source = layout.reference("test");
    peel.succeed(&["pull", &source]);
    let registry = empty();
    let destination = reference(&registry, "some/name");
    let report = peel.json(&["push", &source, &destination, "--json", "--compression", "gzip"]);
    assert_eq!(how(&report), ["kept", "recompressed"]);
    assert_eq!(report["blobs"][0]["digest"], layers[0].digest.as_str());
    is_the_image(&destination, &model());
}

#[test]
fn a_full_disk_at_the_destination_is_an_error_and_space_makes_it_work() {
    let Pulled { registry: _registry, reference: source, peel, .. } = pulled(Form::GZIP);
    let path = peel.scratch().join("disk");
    let disk = SmallDisk::make(&path, 12);
    let layout = path.join("layout");
    let destination = format!("oci:{}:pushed", layout.display());
    let outcome = peel.run(&["push", &source, &destination]);
    assert_eq!(outcome.code, Some(7), "{outcome:?}");
    assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
    assert!(!layout.join("index.json").exists());
    disk.grow(64);
    peel.succeed(&["push", &source, &destination]);
    is_the_image(&destination, &model());
}

#[test]
fn a_push_killed_at_any_instant_is_made_good_by_the_next() {
    let Pulled { registry: _source_registry, reference: source, peel, .. } = pulled(Form::GZIP);
    let undisturbed = empty();
    let whole = duration_of(|| drop(peel.succeed(&["push", &source, &reference(&undisturbed, "some/name")])));
    let registry = empty();
    let destination = reference(&registry, "some/name");
    for instant in instants(whole) {
        peel.killed_after(instant, &["push", &source, &destination]);
        if registry.manifest("some/name", "pushed").is_some() {
            // It is named only if it is whole.
            is_the_image(&destination, &model());
        }
    }
    peel.succeed(&["push", &source, &destination]);
    is_the_image(&destination, &model());
    peel.is_clean();
}
