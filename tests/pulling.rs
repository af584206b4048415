//! Promise: a pulled image is mounted without asking anybody, an extracted one is also read so, whatever its format; the work is done
//! once, whoever asks for it, and goes on where it was cut off. What is false is said to be so. All of it is counted at the registry.

use crate::changes::archives_are_the_layers_own;
use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form, estargz_with_toc, toc_json};
use crate::support::cases::many_layers;
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants, wait_or_kill};
use crate::support::registry::{FakeRegistry, Fault};
use crate::support::small_disk::SmallDisk;
use crate::support::tools::real_images;
use crate::support::tree::{Tree, assert_same};
use serde_json::{Value, json};
use std::fs;
use std::process::{Child, Stdio};

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });
/// Decoded bytes of one of [`layers`], less names.
const LAYER_BYTES: u64 = 15 * 300_000;

/// Three layers with some megabytes that do not compress.
fn layers() -> Vec<Vec<TestEntry>> {
    let mut layers = many_layers(3);
    for (number, layer) in layers.iter_mut().enumerate() {
        layer.extend((0..5).map(|part: u64| {
            let content = Content::Noise { seed: number as u64 * 100 + part, length: 300_000 * (part + 1) };
            TestEntry::file(format!("bulk/{number}/{part}"), content)
        }));
    }
    layers
}

/// [`layers`] in a registry.
struct Served {
    registry: FakeRegistry,
    reference: String,
    layout: Layout,
    _directory: tempfile::TempDir,
}

fn served(form: Form) -> Served {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let mut layout = Layout::create(directory.path().join("layout"));
    layout.image("test", &layers(), form);
    let reference = layout.serve(&registry, "some/name", "test");
    Served { registry, reference, layout, _directory: directory }
}

fn blob_bytes(layout: &Layout) -> u64 {
    let manifest = layout.manifest("test");
    manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum()
}

#[track_caller]
fn is_readable_without_registry(peel: &Peel, served: &mut Served) {
    served.registry.down();
    let mount = peel.mount(&served.reference);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers()).unwrap().tree(), &[]);
    mount.unmount();
    served.registry.up();
}

fn states(report: &Value) -> Vec<&str> {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["state"].as_str().unwrap()).collect()
}

fn start(peel: &Peel, arguments: &[&str]) -> Child {
    let mut command = peel.command(arguments);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting peel")
}

#[test]
fn a_pulled_image_has_its_tables_only_and_is_mounted_without_its_registry() {
    let mut served = served(SMALL_CHUNKS);
    let peel = Peel::new();
    let report = peel.json(&["pull", &served.reference, "--json"]);
    assert_eq!(states(&report), ["lazy"; 3]);
    assert_eq!(report["manifest_digest"], served.layout.descriptor("test")["digest"]);
    let counters = served.registry.counters();
    assert!(counters.blob_bytes < blob_bytes(&served.layout) / 10, "{counters:?}");
    assert_eq!(peel.json(&["ls", "--json"])[0]["reference"], served.reference.as_str());

    served.registry.down();
    let mount = peel.mount(&served.reference);
    assert_eq!(fs::read_dir(mount.join("bulk/0")).unwrap().count(), 5);
    mount.unmount();
    served.registry.up();
}

#[test]
fn what_is_here_already_is_not_pulled_again() {
    let registry = FakeRegistry::start();
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(directory.path());
    let all = layers();
    layout.image("two", &all[..2], Form::GZIP);
    layout.image("three", &all, Form::GZIP);
    let two = layout.serve(&registry, "some/name", "two");
    let three = layout.serve(&registry, "some/name", "three");
    let peel = Peel::new();
    peel.succeed(&["pull", &two]);
    registry.reset_counters();
    peel.succeed(&["pull", &three]);
    let third = layout.manifest("three")["layers"][2]["size"].as_u64().unwrap();
    let fetched = registry.counters().blob_bytes;
    assert!((third..third + 10_000).contains(&fetched), "{fetched} of {third}");
    registry.reset_counters();
    // The registry is asked whether the tag is still the same image, and what is known comes with it.
    peel.succeed(&["pull", &three]);
    let counters = registry.counters();
    assert_eq!((counters.manifests, counters.blobs), (1, 1), "manifest and config");
}

#[test]
fn an_extracted_image_of_any_format_is_proved_and_read_without_its_registry() {
    for form in [SMALL_CHUNKS, Form::ESTARGZ, Form::GZIP, Form::ZSTD, Form::Tar] {
        let mut served = served(form);
        let peel = Peel::new();
        let report = peel.json(&["extract", &served.reference, "--json"]);
        assert_eq!(states(&report), ["extracted"; 3], "{form:?}");
        let counters = served.registry.counters();
        let all = blob_bytes(&served.layout);
        assert!(counters.blob_bytes < all + all / 10, "{form:?}: {counters:?} for {all}");
        // Manifest, config, tables; each layer in a few large requests; head and end for its proof.
        assert!(counters.blobs <= 1 + 3 * 6, "{form:?}: {counters:?}");
        let sheet = peel.json(&["explain", &served.reference, "--json"]);
        for layer in sheet["layers"].as_array().unwrap() {
            assert!(["proved", "streamed"].contains(&layer["proof"].as_str().unwrap()), "{layer:#}");
        }
        served.registry.reset_counters();
        peel.succeed(&["extract", &served.reference, "--quiet"]);
        assert_eq!(served.registry.requests().len(), 0, "{form:?}: it is extracted once");
        is_readable_without_registry(&peel, &mut served);
    }
}

#[test]
fn an_image_with_an_index_beside_it_is_fetched_once_to_be_extracted_and_proved() {
    let mut served = served(Form::Gzip { members: 97 });
    served.registry.take_pushes();
    let options = ["--min-layer-size", "0", "--span-size", "524288", "--quiet"];
    Peel::new().succeed(&[&["index", "push", &served.reference][..], &options].concat());
    let peel = Peel::new();
    served.registry.reset_counters();
    assert_eq!(states(&peel.json(&["pull", &served.reference, "--json"])), ["lazy"; 3]);
    peel.succeed(&["extract", &served.reference]);
    let (fetched, all) = (served.registry.counters().blob_bytes, blob_bytes(&served.layout));
    assert!(fetched < all + all / 5, "{fetched} of {all}");
    let sheet = peel.json(&["explain", &served.reference, "--json"]);
    for layer in sheet["layers"].as_array().unwrap() {
        assert_eq!((&layer["proof"], &layer["index"]), (&json!("proved"), &json!("soci-named")), "{layer:#}");
    }
    is_readable_without_registry(&peel, &mut served);
}

#[test]
fn a_pull_can_extract_at_once() {
    let mut served = served(SMALL_CHUNKS);
    let peel = Peel::new();
    assert_eq!(states(&peel.json(&["pull", "--extract", &served.reference, "--json"])), ["extracted"; 3]);
    is_readable_without_registry(&peel, &mut served);
    assert_eq!(peel.run(&["pull", "--extract", "--lazy", &served.reference]).code, Some(2));
}

#[test]
fn the_files_of_a_path_are_extracted_alone() {
    let mut served = served(SMALL_CHUNKS);
    let peel = Peel::new();
    peel.succeed(&["pull", &served.reference]);
    served.registry.reset_counters();
    let report =
        peel.json(&["extract", &served.reference, "/bulk/1", "bulk/../bulk/2/0", "layers", "--json"]);
    assert_eq!(states(&report)[1], "partial");
    let fetched = served.registry.counters().blob_bytes;
    assert!((LAYER_BYTES..LAYER_BYTES + 700_000).contains(&fetched), "{fetched}");

    served.registry.down();
    let model = Model::of(&layers()).unwrap().tree();
    let mount = peel.mount_with(&served.reference, &["--read-timeout", "1"]);
    for path in ["bulk/1/0", "bulk/1/4", "bulk/2/0", "layers/last"] {
        assert!(fs::read(mount.join(path)).unwrap() == model.read(path), "{path}");
    }
    assert!(fs::read(mount.join("bulk/0/4")).is_err());
    mount.unmount();
    served.registry.up();

    let outcome = peel.run(&["extract", &served.reference, "bulk/nothing"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains("bulk/nothing"), "{outcome:?}");
}

#[test]
fn processes_that_extract_one_image_at_the_same_moment_fetch_it_once() {
    let mut served = served(SMALL_CHUNKS);
    let peel = Peel::new();
    peel.succeed(&["pull", &served.reference]);
    served.registry.reset_counters();
    let started: Vec<Child> = (0..4).map(|_| start(&peel, &["extract", &served.reference])).collect();
    for child in started {
        assert!(wait_or_kill(child, "peel extract").success());
    }
    let (fetched, all) = (served.registry.counters().blob_bytes, blob_bytes(&served.layout));
    assert!(fetched < all + all / 10, "{fetched} of {all}");
    is_readable_without_registry(&peel, &mut served);
}

#[test]
fn an_extraction_that_is_interrupted_keeps_what_came_and_goes_on_from_there() {
    let mut served = served(SMALL_CHUNKS);
    let peel = Peel::new();
    peel.succeed(&["pull", &served.reference]);
    let layers = served.layout.manifest("test")["layers"].clone();
    // Two layers come, the last does not.
    let last = layers[2]["digest"].as_str().unwrap();
    served.registry.reset_counters();
    served.registry.set_fault(last, Fault::Stall);
    let child = start(&peel, &["extract", &served.reference]);
    served.registry.wait_for_stalled(1);
    let here = |peel: &Peel| {
        let sheet = peel.json(&["show", &served.reference, "--json"]);
        sheet["layers"].as_array().unwrap().iter().filter(|layer| layer["state"] == "extracted").count()
    };
    while here(&peel) < 2 {
        std::thread::yield_now();
    }
    let process = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    assert_eq!(wait_or_kill(child, "peel extract").code(), Some(130));
    served.registry.clear_faults();
    served.registry.release();
    served.registry.reset_counters();
    peel.succeed(&["extract", &served.reference]);
    let (fetched, size) = (served.registry.counters().blob_bytes, layers[2]["size"].as_u64().unwrap());
    assert!(fetched < size + size / 5, "{fetched} of {size}");
    is_readable_without_registry(&peel, &mut served);
}

#[test]
fn an_extraction_of_a_layer_that_lies_says_so_and_fails() {
    let peel = Peel::new();
    let layer = [TestEntry::file("tool", "#!/bin/sh\n").mode(0o4755), TestEntry::file("one", "content")];
    let options = Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None };
    let (encoded, bytes) = estargz_with_toc(&layer, options, &|mut entries| {
        let tool = entries.iter_mut().find(|entry| entry["name"] == "tool").unwrap();
        tool["mode"] = 0o755.into();
        toc_json(entries)
    });
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.put(&bytes);
    let manifest = layout.put_image(std::slice::from_ref(&encoded), this_architecture());
    layout.tag("test", &manifest);
    for _ in 0..2 {
        let outcome = peel.run(&["extract", &layout.reference("test")]);
        assert_eq!(outcome.code, Some(6), "{outcome:?}");
        for named in [encoded.digest.as_str(), "\"/tool\"", &layout.reference("test")] {
            assert!(outcome.stderr.contains(named), "{named} is not named: {outcome:?}");
        }
    }
}

#[test]
fn a_layer_that_fails_ends_the_pull_and_leaves_no_image() {
    let served = served(Form::GZIP);
    let manifest = served.layout.manifest("test");
    let second = manifest["layers"][1]["digest"].as_str().unwrap();
    for (fault, code) in [(Fault::WrongBytes, 6), (Fault::Status(404), 3)] {
        let peel = Peel::new();
        served.registry.set_fault(second, fault);
        let outcome = peel.run(&["pull", &served.reference]);
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert!(outcome.stderr.contains(second) && outcome.stderr.contains("layer 2"), "{outcome:?}");
        assert_eq!(peel.json(&["ls", "--json"]), json!([]));
        served.registry.clear_faults();
        peel.succeed(&["pull", &served.reference]);
    }
}

#[test]
fn an_image_for_another_platform_is_refused_if_one_was_asked_for() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let layer = layout.put_layer(&[TestEntry::file("file", "x")], Form::GZIP);
    let manifest = layout.put_image(&[layer], "s390x");
    layout.tag("test", &manifest);
    let reference = layout.reference("test");
    let outcome = peel.run(&["pull", &reference, "--platform", "linux/riscv64"]);
    assert_eq!(outcome.code, Some(3), "{outcome:?}");
    assert!(outcome.stderr.contains("s390x") && outcome.stderr.contains("riscv64"), "{outcome:?}");
    assert_eq!(peel.json(&["ls", "--json"]), json!([]));
    peel.succeed(&["pull", &reference, "--platform", "linux/s390x"]);
    let outcome = peel.run(&["pull", &reference]);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("s390x"), "{outcome:?}");
}

#[test]
fn as_many_diff_ids_as_layers_or_an_error() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let layer = layout.put_layer(&[TestEntry::file("file", "x")], Form::GZIP);
    let config = json!({
        "architecture": this_architecture(), "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer.diff_id, layer.diff_id] },
    });
    let config = layout.put_json(crate::support::image::CONFIG, &config);
    let manifest = crate::support::image::manifest_document(&config, &[layer]);
    let manifest = layout.put_json(crate::support::image::MANIFEST, &manifest);
    layout.tag("test", &manifest);
    let outcome = peel.run(&["pull", &layout.reference("test")]);
    assert_eq!(outcome.code, Some(6), "{outcome:?}");
    assert!(outcome.stderr.contains("1 layers") && outcome.stderr.contains("2 diff IDs"), "{outcome:?}");
}

/// Kills the command at instants spread over what an undisturbed one takes; then it must do its work. Each kill finds what the ones
/// before left, and every fourth an empty store.
fn killed_at_any_instant(form: Form, command: &str) {
    let mut served = served(form);
    let undisturbed = Peel::new();
    let whole = duration_of(|| drop(undisturbed.succeed(&[command, &served.reference])));
    let peel = Peel::new();
    for (part, instant) in instants(whole).enumerate() {
        if part % 4 == 0 {
            peel.run(&["rm", "--now", &served.reference]);
        }
        peel.killed_after(instant, &[command, &served.reference]);
        peel.json(&["ls", "--json"]);
        peel.is_clean();
    }
    assert_eq!(states(&peel.json(&["extract", &served.reference, "--json"])), ["extracted"; 3]);
    is_readable_without_registry(&peel, &mut served);
    let leftovers = fs::read_dir(peel.store().join("layers/ingest")).unwrap().count();
    assert_eq!(leftovers, 0, "what was killed left something behind");
}

#[test]
fn a_pull_killed_at_any_instant_is_made_good_by_the_next() {
    for form in [Form::GZIP, SMALL_CHUNKS] {
        killed_at_any_instant(form, "pull");
    }
}

#[test]
fn an_extraction_killed_at_any_instant_is_made_good_by_the_next() {
    killed_at_any_instant(SMALL_CHUNKS, "extract");
}

#[test]
fn a_full_disk_stops_an_extraction_with_an_error_and_space_makes_it_work() {
    let mut served = served(SMALL_CHUNKS);
    let peel = Peel::new();
    let disk = SmallDisk::make(peel.store(), 4);
    let outcome = peel.run(&["extract", &served.reference]);
    assert_eq!(outcome.code, Some(8), "{outcome:?}");
    assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
    disk.grow(64);
    peel.succeed(&["extract", &served.reference]);
    is_readable_without_registry(&peel, &mut served);
}

#[test]
fn a_registry_that_goes_away_ends_an_extraction_with_an_error() {
    let mut served = served(SMALL_CHUNKS);
    let peel = Peel::new();
    peel.succeed(&["pull", &served.reference]);
    served.registry.down();
    let outcome = peel.run(&["extract", &served.reference, "--network-timeout", "1"]);
    assert_eq!(outcome.code, Some(5), "{outcome:?}");
    served.registry.up();
    peel.succeed(&["extract", &served.reference]);
}

#[test]
fn real_images_are_extracted_and_proved() {
    let layout = Layout::open(real_images().join("python"));
    for tag in ["estargz", "zstd-chunked", "gzip"].into_iter().filter(|tag| layout.has_tag(tag)) {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let reference = layout.serve(&registry, "python", tag);
        peel.succeed(&["extract", &reference]);
        let all: u64 = layout.manifest(tag)["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer["size"].as_u64().unwrap())
            .sum();
        let fetched = registry.counters().blob_bytes;
        assert!(fetched < all + all / 10, "{tag}: {fetched} bytes for {all}");
        let sheet = peel.json(&["explain", &reference, "--json"]);
        for layer in sheet["layers"].as_array().unwrap() {
            assert!(["proved", "streamed"].contains(&layer["proof"].as_str().unwrap()), "{tag}: {layer:#}");
        }
        archives_are_the_layers_own(&peel, &reference, tag);
    }
}
