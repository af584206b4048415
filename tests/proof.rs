//! Promise: once all of a layer is here it is proved to be what its archive says. A table of contents that lies is found out whatever it
//! lies about, and from then on nobody reads a byte of its layer: not in any mount, not ever. What cannot be proved today is
//! proved another day, and meanwhile reads go on.

use crate::support::archive::TestEntry;
use crate::support::blob::{Encoded, Estargz, Footer, Form, estargz_with_toc, sha256, toc_json};
use crate::support::cases::every_case;
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::peel::{Mount, Peel, run_to_end};
use crate::support::registry::{FakeRegistry, Fault};
use crate::support::tools::real_images;
use crate::support::tree::Tree;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const SMALL_CHUNKS: Estargz =
    Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None };

fn noise(seed: u64) -> Content {
    Content::Noise { seed, length: 200_000 }
}

fn layer() -> Vec<TestEntry> {
    vec![
        TestEntry::directory("bin"),
        TestEntry::file("bin/tool", "#!/bin/sh\n").mode(0o4755),
        TestEntry::file("one", noise(1)),
        TestEntry::file("two", noise(2)),
        TestEntry::symlink("link", "one"),
        TestEntry::file("secret", "key").mode(0o600),
    ]
}

/// What `peel explain --prove` says of the layers. All proofs that were under way are done when it returns.
#[track_caller]
fn proved(peel: &Peel, reference: &str) -> Vec<Value> {
    let sheet = peel.json(&["explain", "--prove", "--json", reference]);
    sheet["layers"].as_array().unwrap().clone()
}

#[track_caller]
fn explained(peel: &Peel, reference: &str) -> Vec<Value> {
    let sheet = peel.json(&["explain", "--json", reference]);
    sheet["layers"].as_array().unwrap().clone()
}

/// Reads all bytes of all files that are there.
#[track_caller]
fn read_everything(peel: &Peel, directory: &Path) {
    let mut command = Command::new("sh");
    command.args(["-c", "find \"$1\" -xdev -type f -exec cat {} + | wc -c", "sh"]).arg(directory);
    let outcome = run_to_end(command, peel.scratch());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
}

/// Reads past what the kernel keeps.
fn read_uncached(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::options().read(true).custom_flags(libc::O_DIRECT).open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[test]
fn real_images_of_every_lazy_format_are_proved_when_all_of_them_was_read() {
    let layout = Layout::open(real_images().join("python"));
    let index = fs::read_to_string(layout.path().join("index.json")).unwrap();
    for (tag, format) in [
        ("estargz", "estargz"),
        ("zstd-chunked", "zstd:chunked (stargz)"),
        ("zstd-chunked-podman", "zstd:chunked (podman)"),
    ] {
        if !index.contains(&format!("\"{tag}\"")) {
            eprintln!("skipped: the python image has no form {tag}; scripts/images --all makes it");
            continue;
        }
        let peel = Peel::new();
        let reference = layout.reference(tag);
        let mount = peel.mount(&reference);
        assert_eq!(explained(&peel, &reference)[0]["proof"], "incomplete");
        read_everything(&peel, mount.path());
        let layers = proved(&peel, &reference);
        let of = |key: &str| layers.iter().map(|layer| layer[key].clone()).collect::<Vec<_>>();
        // The last has a name that is not UTF-8, which no table can tell.
        assert_eq!(of("proof"), ["proved", "proved", "streamed"], "{tag}: {layers:#?}");
        assert_eq!(of("index"), ["toc", "toc", "stream"], "{tag}");
        assert_eq!(of("format")[..2], [format, format], "{tag}");
        assert_eq!(of("state"), ["whole", "whole", "whole"], "{tag}");
    }
}

#[test]
fn proving_a_layer_that_was_read_costs_little_more_than_reading_it() {
    let layout = Layout::open(real_images().join("python"));
    let index = fs::read_to_string(layout.path().join("index.json")).unwrap();
    for tag in ["estargz", "zstd-chunked", "zstd-chunked-podman"] {
        if !index.contains(&format!("\"{tag}\"")) {
            continue;
        }
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let reference = layout.serve(&registry, "python", tag);
        let mount = peel.mount(&reference);
        read_everything(&peel, mount.path());
        let layers = proved(&peel, &reference);
        assert!(layers[..2].iter().all(|layer| layer["proof"] == "proved"), "{tag}: {layers:#?}");
        let size: u64 = layers.iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
        let fetched = registry.counters().blob_bytes;
        assert!(fetched < size + size / 10, "{tag}: {fetched} bytes were fetched for a proof of {size}");
    }
}

#[test]
fn honest_layers_of_every_case_are_proved() {
    let peel = Peel::new();
    let layers = every_case();
    for (name, form) in [("large", Form::ESTARGZ), ("small", Form::Estargz(SMALL_CHUNKS))] {
        let reference = Layout::create(peel.scratch().join(name)).image("test", &layers, form);
        let mount = peel.mount(&reference);
        read_everything(&peel, mount.path());
        for layer in proved(&peel, &reference) {
            // Of what a higher layer hides nobody reads all.
            let expected = if layer["state"] == "whole" { "proved" } else { "incomplete" };
            assert_eq!(layer["proof"], expected, "{layer:#}");
        }
        read_everything(&peel, mount.path());
    }
}

/// An image with that one layer.
fn image_of(peel: &Peel, name: &str, layer: &Encoded, bytes: &[u8]) -> String {
    let mut layout = Layout::create(peel.scratch().join(name));
    layout.put(bytes);
    let manifest = layout.put_image(std::slice::from_ref(layer), this_architecture());
    layout.tag("test", &manifest);
    layout.reference("test")
}

/// Reads what can be read of all files.
fn read_all(mount: &Path) {
    for entry in ["bin/tool", "bin/toul", "one", "two", "secret", "extra"] {
        let _ = fs::read(mount.join(entry));
    }
}

/// No file of the layer is read any more, not even what the kernel had of it.
#[track_caller]
fn nothing_is_read(mount: &Mount<'_>) {
    for path in ["one", "two"] {
        let read = read_uncached(&mount.join(path)).map(drop);
        assert_eq!(read.unwrap_err().raw_os_error(), Some(libc::EIO), "{path}");
        // The serving process tells the kernel after it has learned of the verdict.
        while fs::read(mount.join(path)).is_ok() {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_table_of_contents_that_lies_poisons_its_layer_once_all_of_it_is_here() {
    type Edit = fn(&mut Vec<Value>);
    fn at<'a>(entries: &'a mut [Value], name: &str) -> &'a mut Value {
        entries
            .iter_mut()
            .find(|entry| entry["name"] == name && entry["type"] != "chunk")
            .expect("it is there")
    }
    let cases: [(&str, &str, Edit); 9] = [
        ("mode", "/bin/tool", |entries| at(entries, "bin/tool")["mode"] = 0o755.into()),
        ("owner", "/secret", |entries| at(entries, "secret")["uid"] = 1000.into()),
        ("name", "/bin/tool", |entries| at(entries, "bin/tool")["name"] = "bin/toul".into()),
        ("hidden", "/secret", |entries| entries.retain(|entry| entry["name"] != "secret")),
        ("extra", "/extra", |entries| {
            let mut extra = at(entries, "secret").clone();
            extra["name"] = "extra".into();
            // As large as nothing, so that it needs no bytes of its own.
            extra["size"] = 0.into();
            entries.push(extra);
        }),
        ("type", "/link", |entries| {
            *at(entries, "link") = json!({ "name": "link", "type": "hardlink", "linkName": "one" });
        }),
        ("target", "/link", |entries| at(entries, "link")["linkName"] = "two".into()),
        ("xattrs", "/one", |entries| at(entries, "one")["xattrs"] = json!({ "user.x": "AA==" })),
        // All chunks are right, and each file is the other.
        ("swapped", "/one", |entries| {
            for entry in entries.iter_mut() {
                let other = match entry["name"].as_str() {
                    Some("one") => "two",
                    Some("two") => "one",
                    _ => continue,
                };
                entry["name"] = other.into();
            }
        }),
    ];
    for (what, path, edit) in cases {
        let peel = Peel::new();
        let (encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &|mut entries| {
            edit(&mut entries);
            toc_json(entries)
        });
        let reference = image_of(&peel, what, &encoded, &bytes);
        let (mount, other) = (peel.mount(&reference), peel.mount(&reference));
        assert_eq!(explained(&peel, &reference)[0]["proof"], "incomplete", "{what}");
        read_all(mount.path());
        let verdict = proved(&peel, &reference).remove(0);
        assert_eq!(verdict["proof"], "poisoned", "{what}: {verdict:#}");
        assert!(verdict["reason"].as_str().unwrap().contains(&format!("\"{path}\"")), "{what}: {verdict:#}");
        nothing_is_read(&mount);
        nothing_is_read(&other);
        mount.unmount();
        other.unmount();
        is_refused(&peel, &reference, &[&encoded.digest, path, "peel convert"]);

        // The way out that the error names.
        let destination = format!("oci:{}:true", peel.scratch().join("converted").display());
        peel.succeed(&["convert", &reference, &destination, "--format", "estargz"]);
        let mount = peel.mount(&destination);
        assert_eq!(Tree::walk(mount.path()).node("bin/tool").mode & 0o7777, 0o4755);
        assert!(fs::read(mount.join("one")).unwrap() == noise(1).to_vec());
    }
}

/// The image is not mounted, and the error names all of these.
#[track_caller]
fn is_refused(peel: &Peel, reference: &str, named: &[&str]) {
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", reference, point.to_str().unwrap()]);
    assert_eq!(outcome.code, Some(6), "{outcome:?}");
    for name in named.iter().chain([&reference]) {
        assert!(outcome.stderr.contains(name), "{name} is not named: {outcome:?}");
    }
}

#[test]
fn a_layer_that_is_not_the_one_of_its_diff_id_is_poisoned() {
    let peel = Peel::new();
    let (mut encoded, bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &toc_json);
    let true_diff_id = std::mem::replace(&mut encoded.diff_id, sha256(b"another archive"));
    let reference = image_of(&peel, "layout", &encoded, &bytes);
    let mount = peel.mount(&reference);
    read_all(mount.path());
    let verdict = proved(&peel, &reference).remove(0);
    assert_eq!(verdict["proof"], "poisoned");
    assert!(verdict["reason"].as_str().unwrap().contains(&true_diff_id), "{verdict:#}");
    nothing_is_read(&mount);
}

#[test]
fn an_archive_that_nobody_can_read_poisons_its_layer() {
    let peel = Peel::new();
    // The first member is the headers of what has no payload and of the first file: nothing that a chunk needs.
    let (mut encoded, mut bytes) = estargz_with_toc(&layer(), SMALL_CHUNKS, &toc_json);
    bytes[20] ^= 0xff;
    encoded.digest = sha256(&bytes);
    let reference = image_of(&peel, "layout", &encoded, &bytes);
    let mount = peel.mount(&reference);
    read_all(mount.path());
    let verdict = proved(&peel, &reference).remove(0);
    assert_eq!(verdict["proof"], "poisoned", "{verdict:#}");
    nothing_is_read(&mount);
}

/// A mount of an image all of which was read, and whose proof waits for a registry that does not answer whoever wants a whole blob.
struct Stalled {
    registry: FakeRegistry,
    reference: String,
    point: PathBuf,
    peel: Peel,
}

/// That of its only file.
const CONTENT: &str = "content";

impl Stalled {
    fn new() -> Stalled {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let mut layout = Layout::create(peel.scratch().join("layout"));
        // Most of it is names: so its blob is read once more rather than put together.
        let mut layer: Vec<_> = (0..100).map(|number| TestEntry::directory(format!("d/{number}"))).collect();
        layer.push(TestEntry::file("one", CONTENT));
        layout.image("test", &[layer], Form::Estargz(SMALL_CHUNKS));
        let reference = layout.serve(&registry, "some/name", "test");
        let point = peel.mount_point();
        peel.succeed(&["mount", &reference, point.to_str().unwrap()]);
        registry.set_fault("blobs/", Fault::StallWhole);
        read_all(&point);
        registry.wait_for_stalled(1);
        // The layer is published before this command sees it.
        assert_eq!(explained(&peel, &reference)[0]["proof"], "unproved");
        Stalled { registry, reference, point, peel }
    }
}

#[test]
fn proving_waits_for_nobody_and_is_done_by_the_next_mount_if_its_process_was_killed() {
    let Stalled { registry, reference, point, peel } = Stalled::new();
    // Reads and unmounting do not wait for it.
    assert_eq!(fs::read_to_string(point.join("one")).unwrap(), CONTENT);
    assert_eq!(explained(&peel, &reference)[0]["proof"], "unproved");
    assert_eq!(peel.kill_servers(), 1);
    peel.unmount(&point);
    registry.clear_faults();
    registry.release();
    assert_eq!(explained(&peel, &reference)[0]["proof"], "unproved");

    registry.reset_counters();
    let mount = peel.mount(&reference);
    assert_eq!(proved(&peel, &reference)[0]["proof"], "proved");
    assert_eq!(
        registry.counters().blobs,
        1,
        "the mount and the command prove it once: {:?}",
        registry.requests()
    );
    mount.unmount();
    // Proved once is proved for ever.
    let mount = peel.mount(&reference);
    read_all(mount.path());
    proved(&peel, &reference);
    assert_eq!(registry.counters().blobs, 1);
}

#[test]
fn unmounting_does_not_wait_for_a_proof() {
    let Stalled { registry: _registry, point, peel, .. } = Stalled::new();
    peel.unmount(&point);
    peel.wait_for_servers_to_end();
}

#[test]
fn a_layer_whose_registry_is_gone_stays_unproved_and_is_read_on() {
    let Stalled { registry, reference, point, peel } = Stalled::new();
    peel.kill_servers();
    peel.unmount(&point);
    registry.clear_faults();
    registry.set_fault("blobs/", Fault::Status(404));
    registry.release();
    // Its own attempt fails, and so does this one.
    let mount = peel.mount(&reference);
    let layer = proved(&peel, &reference).remove(0);
    assert_eq!(layer["proof"], "unproved");
    assert!(layer["reason"].as_str().unwrap().contains(&registry.url_host()), "{layer:#}");
    assert_eq!(read_uncached(&mount.join("one")).unwrap(), CONTENT.as_bytes());
    registry.clear_faults();
    assert_eq!(proved(&peel, &reference)[0]["proof"], "proved");
    assert_eq!(read_uncached(&mount.join("one")).unwrap(), CONTENT.as_bytes());
}

/// The folder of the only layer of the store.
fn layer_folder(peel: &Peel) -> PathBuf {
    let mut folders = fs::read_dir(peel.store().join("layers/sha256")).unwrap();
    folders.next().unwrap().unwrap().path()
}

#[test]
fn what_is_kept_for_a_proof_may_be_lost_or_wrong_without_harm() {
    type Harm = fn(&Path);
    let harms: [(&str, Harm); 2] = [
        ("cannot be written", |rests| fs::create_dir(rests).unwrap()),
        ("wrong", |rests| fs::write(rests, &noise(9).to_vec()[..1000]).unwrap()),
    ];
    for (what, harm) in harms {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let mut layout = Layout::create(peel.scratch().join("layout"));
        layout.image("test", &[layer()], Form::Estargz(SMALL_CHUNKS));
        let reference = layout.serve(&registry, "some/name", "test");
        let mount = peel.mount(&reference);
        // It is published before this command sees it.
        assert_eq!(explained(&peel, &reference)[0]["proof"], "incomplete");
        harm(&layer_folder(&peel).join("rests"));
        for (path, content) in [
            ("one", noise(1)),
            ("two", noise(2)),
            ("secret", "key".into()),
            ("bin/tool", "#!/bin/sh\n".into()),
        ] {
            assert!(fs::read(mount.join(path)).unwrap() == content.to_vec(), "{what}: {path}");
        }
        assert_eq!(proved(&peel, &reference)[0]["proof"], "proved", "{what}");
    }
}

#[test]
fn what_is_kept_for_a_proof_is_gone_with_it_whoever_was_killed_meanwhile() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &[layer()], Form::Estargz(SMALL_CHUNKS));
    let reference = layout.serve(&registry, "some/name", "test");
    let mount = peel.mount(&reference);
    assert_eq!(explained(&peel, &reference)[0]["proof"], "incomplete");
    let rests = layer_folder(&peel).join("rests");
    fs::read(mount.join("one")).unwrap();
    assert!(fs::metadata(&rests).unwrap().len() > 1);
    read_everything(&peel, mount.path());
    assert_eq!(proved(&peel, &reference)[0]["proof"], "proved");
    assert!(!rests.exists());
    mount.unmount();
    // As if whoever recorded the verdict had been killed then and there.
    fs::write(&rests, "rest").unwrap();
    peel.mount(&reference).unmount();
    peel.wait_for_servers_to_end();
    assert!(!rests.exists());
}

#[test]
fn a_registry_that_sends_another_blob_does_not_poison_a_layer() {
    /// What the registry does, given the layer's blob.
    type Wrong = fn(&FakeRegistry, &str, Vec<u8>);
    let cases: [(&str, Wrong); 3] = [
        ("wrong bytes", |registry, _, _| registry.set_fault("blobs/", Fault::WrongBytes)),
        ("gone", |registry, _, _| registry.set_fault("blobs/", Fault::Status(404))),
        // In a deflate block: it makes no sense long before all of it came and its digest could be known.
        ("damaged", |registry, digest, mut blob| {
            blob[20] ^= 0xff;
            registry.put_blob_as(&digest.parse().unwrap(), blob);
        }),
    ];
    for (what, wrong) in cases {
        let Stalled { registry, reference, point, peel } = Stalled::new();
        peel.kill_servers();
        peel.unmount(&point);
        registry.clear_faults();
        let layout = Layout::open(peel.scratch().join("layout"));
        let digest = layout.manifest("test")["layers"][0]["digest"].as_str().unwrap().to_owned();
        let blob = fs::read(layout.blob_path(&digest)).unwrap();
        wrong(&registry, &digest, blob.clone());
        registry.release();
        let layer = proved(&peel, &reference).remove(0);
        assert_eq!(layer["proof"], "unproved", "{what}: {layer:#}");
        registry.clear_faults();
        registry.put_blob(blob);
        assert_eq!(proved(&peel, &reference)[0]["proof"], "proved", "{what}");
    }
}

#[test]
fn streamed_layers_are_proved_from_the_start_and_say_why_they_were_streamed() {
    let not_annotated = Form::Estargz(Estargz { annotated: false, ..SMALL_CHUNKS });
    for (name, form, parts) in [
        ("gzip", Form::GZIP, "gzip"),
        ("zstd", Form::Zstd { frames: 3 }, "zstd"),
        ("tar", Form::Tar, "any range"),
        ("estargz", not_annotated, "gzip"),
    ] {
        // In a store of its own: what has been streamed in one form is there in the others.
        let peel = Peel::new();
        let mut layout = Layout::create(peel.scratch().join(name));
        let reference = layout.image("test", &[layer()], form);
        let before = explained(&peel, &reference).remove(0);
        assert_eq!((&before["state"], &before["proof"]), (&json!("missing"), &json!("none")));
        let _mount = peel.mount(&reference);
        // Nothing is read for it.
        fs::remove_file(layout.blob_path(before["digest"].as_str().unwrap())).unwrap();
        let layer = proved(&peel, &reference).remove(0);
        assert_eq!((&layer["proof"], &layer["index"]), (&json!("streamed"), &json!("stream")), "{layer:#}");
        assert_eq!(layer["streamed_because"], "its descriptor names none");
        assert!(layer["parts"].as_str().unwrap().contains(parts), "{layer:#}");
    }
}

#[test]
fn layers_of_a_host_without_ranges_say_so() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &[layer()], Form::Estargz(SMALL_CHUNKS));
    let reference = layout.serve(&registry, "some/name", "test");
    registry.set_fault("blobs/", Fault::IgnoreRange);
    let _mount = peel.mount(&reference);
    let layer = explained(&peel, &reference).remove(0);
    assert_eq!(layer["streamed_because"], "its host does not read by ranges", "{layer:#}");
    let text = peel.succeed(&["explain", &reference]);
    assert!(text.contains("does not read by ranges") && text.contains("matched its diff ID"), "{text}");
}

#[test]
fn an_image_that_is_not_in_the_store_is_explained_by_its_manifest() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &[layer()], Form::Estargz(SMALL_CHUNKS));
    let reference = layout.serve(&registry, "some/name", "test");
    let layer = explained(&peel, &reference).remove(0);
    assert_eq!((&layer["format"], &layer["state"]), (&json!("estargz"), &json!("missing")));
    assert_eq!(registry.counters().blobs, 1, "the config is asked for, and no layer");
    assert!(peel.succeed(&["explain", &reference]).contains("not in the store"));
    let missing = format!("{}/some/name:other", registry.url_host());
    assert_eq!(peel.run(&["explain", &missing]).code, Some(3));
}
