//! Promise: with `peel serve`, containerd starts containers of images that it has not pulled, and does with them, and with ordinary
//! images, all that it does with its own overlayfs snapshotter. All with the real containerd and runc; laziness is counted at the
//! registry.

mod claims;
mod cri;
mod ctr_pull;
mod killed;
mod many;
mod operations;
mod removing;
mod services;
mod transfer;
mod upgrading;
mod user_namespaces;

use crate::support::archive::TestEntry;
use crate::support::blob::{Form, sha256};
use crate::support::containerd::{Containerd, Daemon};
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Peel, mounts_below};
use crate::support::registry::{Counters, FakeRegistry};
use crate::support::small_disk::SmallDisk;
use crate::support::tools::real_images;
use crate::support::tree::{Allowed, Aspect, Tree, assert_same};
use crate::writable::link_counts_of_an_overlay;

const IMPORTS: &str = "import json, ssl, sqlite3; print('imported', ssl.OPENSSL_VERSION_INFO[0])";

fn bytes(counters: &Counters) -> u64 {
    counters.manifest_bytes + counters.blob_bytes
}

fn layer_bytes(layout: &Layout, tag: &str) -> u64 {
    let manifest = layout.manifest(tag);
    manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum()
}

/// Mounts below a directory that this project's file system serves.
fn trees(peel: &Peel) -> usize {
    mounts_below(peel.store()).len()
}

/// Bytes on disk of all snapshots that are layers of the image, as containerd is told.
fn usage(containerd: &Containerd, layout: &Layout) -> u64 {
    let layers = chain_ids(layout, "estargz");
    let told = layers.iter().map(|layer| {
        let line = containerd.ctr(&["snapshots", "--snapshotter", "peel", "usage", "-b", layer]);
        let bytes = line.lines().nth(1).and_then(|line| line.split_whitespace().nth(1));
        bytes.and_then(|bytes| bytes.parse::<u64>().ok()).unwrap_or_else(|| panic!("{line}"))
    });
    told.sum()
}

/// containerd has no layer of the image.
#[track_caller]
fn has_documents_only(containerd: &Containerd, layout: &Layout, tag: &str) {
    let content = containerd.content();
    for layer in layout.manifest(tag)["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        assert!(!content.iter().any(|have| have == digest), "{digest} was pulled");
    }
}

/// The real python image as eStargz, in a registry of its own; and its name there.
fn served_python() -> (Layout, FakeRegistry, String) {
    let layout = Layout::open(real_images().join("python"));
    let registry = FakeRegistry::start();
    let reference = layout.serve(&registry, "python", "estargz");
    (layout, registry, reference)
}

#[test]
fn a_container_runs_before_its_image_is_here() {
    let (layout, registry, reference) = served_python();
    let all = layer_bytes(&layout, "estargz");
    let peel = Peel::new();
    let daemon = Daemon::start(&peel, &[]);
    let mut containerd = Containerd::start(&peel);

    containerd.rpull(&reference);
    let pulled = registry.counters();
    assert!(bytes(&pulled) * 30 < all, "{pulled:?} of {all}");
    has_documents_only(&containerd, &layout, "estargz");
    assert_eq!(trees(&peel), 0, "layers are not mounted");

    let before = usage(&containerd, &layout);
    let output = containerd.run_container(&reference, "one", &["python3", "-c", IMPORTS]);
    assert!(output.starts_with("imported"), "{output}");
    let ran = registry.counters();
    assert!(bytes(&ran) * 2 < all, "{ran:?} of {all}");
    // What is here is told, and no more: it decides what a kubelet removes.
    let used = usage(&containerd, &layout);
    assert!(before < used && used < before + 8 * bytes(&ran), "{before} {used} {ran:?}");

    // A second container of the image: the tree is shared, and nothing is fetched again.
    containerd.ctr(&["run", "--detach", "--snapshotter", "peel", &reference, "two", "sleep", "600"]);
    let output = containerd.ctr(&["tasks", "exec", "--exec-id", "x", "two", "python3", "-c", IMPORTS]);
    assert!(output.starts_with("imported"), "{output}");
    assert_eq!(trees(&peel), 1);
    containerd.ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "y",
        "two",
        "sh",
        "-c",
        "echo new >/etc/motd; rm /etc/issue",
    ]);

    // Both sides begin anew; the container does not notice, and its snapshots are there.
    let before = containerd.snapshots();
    daemon.terminate();
    let output = containerd.ctr(&["tasks", "exec", "--exec-id", "z", "two", "cat", "/etc/motd"]);
    assert_eq!(output, "new\n");
    let daemon = Daemon::start(&peel, &[]);
    containerd.restart();
    assert_eq!(containerd.snapshots(), before);
    let output = containerd.ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "z2",
        "two",
        "python3",
        "-c",
        "import decimal, csv; print(1)",
    ]);
    assert_eq!(output, "1\n");

    // Killed, while the container reads.
    daemon.kill();
    let output = containerd.ctr(&[
        "tasks",
        "exec",
        "--exec-id",
        "k",
        "two",
        "python3",
        "-c",
        "import email, html; print(2)",
    ]);
    assert_eq!(output, "2\n");
    let daemon = Daemon::start(&peel, &[]);
    containerd.wait_for_snapshotter();
    assert_eq!(trees(&peel), 1);

    // What was changed becomes an image's layer, and runs.
    containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", "two"]);
    let removed = containerd.run(&["tasks", "rm", "--force", "two"]);
    assert!(removed.code == Some(0) || removed.stderr.contains("not found"), "{removed:?}");
    containerd.ctr(&["snapshots", "--snapshotter", "peel", "commit", "changed", "two"]);
    let view = containerd.view(&peel, "changed");
    assert_eq!(std::fs::read_to_string(view.path().join("etc/motd")).unwrap(), "new\n");
    assert!(!view.path().join("etc/issue").exists() && view.path().join("etc/passwd").exists());
    assert!(std::fs::write(view.path().join("new"), "").is_err(), "a view is read-only");
    drop(view);

    // All goes: snapshots, mounts, processes.
    containerd.ctr(&["containers", "rm", "two"]);
    containerd.ctr(&["snapshots", "--snapshotter", "peel", "rm", "changed"]);
    containerd.ctr(&["images", "rm", "--sync", &reference]);
    assert_eq!(containerd.snapshots().lines().count(), 1, "{}", containerd.snapshots());
    assert_eq!(trees(&peel), 0, "{}", daemon.log());
    daemon.terminate();
    peel.wait_for_servers_to_end();
}

/// Two layers of `lower`, and one of `upper` above them.
fn small_image(
    peel: &Peel,
    registry: &FakeRegistry,
    lower: Form,
    upper: Form,
) -> (String, Vec<Vec<TestEntry>>) {
    let layers = vec![
        vec![
            TestEntry::directory("./").mode(0o755),
            TestEntry::directory("etc"),
            TestEntry::file("etc/lowest", "1"),
            TestEntry::file("etc/gone", "1").mode(0o600).owner(7, 8),
        ],
        vec![
            TestEntry::directory("opt/app").owner(1000, 1000),
            TestEntry::file("opt/app/tool", "#!/bin/sh").mode(0o4755),
            TestEntry::file("etc/replaced", "lower").xattr("user.kept", "yes"),
            TestEntry::symlink("bin", "opt/app"),
        ],
        vec![
            TestEntry::whiteout("etc/gone"),
            TestEntry::file("etc/replaced", "upper"),
            TestEntry::opaque("opt/app"),
            TestEntry::file("opt/app/other", "3"),
        ],
    ];
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let forms = [lower, lower, upper];
    let encoded: Vec<_> =
        layers.iter().zip(forms).map(|(layer, form)| layout.put_layer(layer, form)).collect();
    let image = layout.put_image(&encoded, this_architecture());
    layout.tag("test", &image);
    (layout.serve(registry, "small", "test"), layers)
}

/// Whether containerd has the blobs of layers, the lowest first.
fn pulled(peel: &Peel, containerd: &Containerd) -> Vec<bool> {
    let manifest = Layout::open(peel.scratch().join("layout")).manifest("test");
    let content = containerd.content();
    let layers = manifest["layers"].as_array().unwrap().iter();
    layers.map(|layer| content.iter().any(|have| have == layer["digest"].as_str().unwrap())).collect()
}

/// The chain ID of each layer of an image and those below it, the lowest first.
fn chain_ids(layout: &Layout, tag: &str) -> Vec<String> {
    let manifest = layout.manifest(tag);
    let config = std::fs::read(layout.blob_path(manifest["config"]["digest"].as_str().unwrap())).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    let mut chain_ids: Vec<String> = Vec::new();
    for diff_id in config["rootfs"]["diff_ids"].as_array().unwrap() {
        let diff_id = diff_id.as_str().unwrap();
        chain_ids.push(match chain_ids.last() {
            None => diff_id.to_owned(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        });
    }
    chain_ids
}

#[track_caller]
fn shows_what_the_layers_say(peel: &Peel, containerd: &Containerd, layers: &[Vec<TestEntry>]) {
    let model = Model::of(layers).unwrap().tree();
    let layout = Layout::open(peel.scratch().join("layout"));
    let view = containerd.view(peel, &chain_ids(&layout, "test")[2]);
    // It shows what a writer of eStargz adds to an archive, too.
    let added = Allowed::new("containerd unpacks all", |difference| {
        let added: [&[u8]; 2] = [b".no.prefetch.landmark", b"stargz.index.json"];
        difference.aspect == Aspect::OnlyLeft && added.contains(&difference.path.as_slice())
    });
    // It leaves directories in which it unpacks something with the time of that.
    let times = Allowed::new("containerd unpacks", |difference| {
        let unpacked: [&[u8]; 4] = [b"", b"etc", b"opt", b"opt/app"];
        difference.aspect == Aspect::Modified && unpacked.contains(&difference.path.as_slice())
    });
    let allowed = [link_counts_of_an_overlay(), times, added];
    let exactly = pulled(peel, containerd) == [false; 3];
    assert_same(&Tree::walk(view.path()), &model, if exactly { &[] } else { &allowed });
}

#[test]
fn an_image_is_shown_as_its_layers_say_whatever_can_be_lazy() {
    const ESTARGZ: Form = Form::ESTARGZ;
    const GZIP: Form = Form::GZIP;
    for (lower, upper, options, expected) in [
        (ESTARGZ, ESTARGZ, &[][..], [false, false, false]),
        (GZIP, GZIP, &[], [true, true, true]),
        (ESTARGZ, GZIP, &[], [false, false, true]),
        // From the first that is not lazy on.
        (GZIP, ESTARGZ, &[], [true, true, true]),
        (GZIP, Form::ZSTD, &["--stream"], [false, false, false]),
        (ESTARGZ, GZIP, &["--stream"], [false, false, false]),
    ] {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let (reference, layers) = small_image(&peel, &registry, lower, upper);
        let daemon = Daemon::start(&peel, options);
        let containerd = Containerd::start(&peel);
        containerd.rpull(&reference);
        assert_eq!(pulled(&peel, &containerd), expected, "{lower:?} {upper:?} {options:?}\n{}", daemon.log());
        shows_what_the_layers_say(&peel, &containerd, &layers);
        drop(containerd);
        daemon.terminate();
    }
}

#[test]
fn an_ordinary_pull_without_any_labels_works_as_with_overlayfs() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, layers) = small_image(&peel, &registry, Form::GZIP, Form::ZSTD);
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    containerd.ctr(&["images", "pull", "--plain-http", "--snapshotter", "peel", &reference]);
    assert_eq!(pulled(&peel, &containerd), [true; 3]);
    shows_what_the_layers_say(&peel, &containerd, &layers);
    drop(containerd);
    daemon.terminate();
}

#[test]
fn what_is_here_is_shown_after_a_restart_when_the_registry_is_gone() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, layers) = small_image(&peel, &registry, Form::ESTARGZ, Form::ESTARGZ);
    let daemon = Daemon::start(&peel, &[]);
    let mut containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    // All of it is read.
    shows_what_the_layers_say(&peel, &containerd, &layers);
    let before = containerd.snapshots();
    daemon.kill();
    peel.kill_servers();
    drop(registry);
    // Nothing of it is garbage, though no image of that name is known and nobody has it open.
    peel.succeed(&["gc"]);
    let daemon = Daemon::start(&peel, &[]);
    containerd.restart();
    assert_eq!(containerd.snapshots(), before);
    shows_what_the_layers_say(&peel, &containerd, &layers);
    drop(containerd);
    daemon.terminate();
}

#[test]
fn only_root_and_the_user_may_speak_and_a_socket_is_served_once() {
    let peel = Peel::new();
    let daemon = Daemon::start(&peel, &[]);
    let address = daemon.address().to_str().unwrap();
    let second = peel.run(&["serve", "--address", address]);
    assert!(second.code != Some(0) && second.stderr.contains("another peel serve"), "{second:?}");
    let elsewhere = Peel::new();
    let second = elsewhere.run(&["serve", "--address", address]);
    assert!(second.code != Some(0) && second.stderr.contains("is served already"), "{second:?}");
    daemon.kill();
    let daemon = Daemon::start(&peel, &[]);
    daemon.terminate();
    assert!(!peel.scratch().join("peel.sock").exists());
}

#[test]
fn a_full_disk_refuses_a_container_with_words_and_room_makes_it_start() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let disk = SmallDisk::make(peel.store(), 64);
    let (reference, layers) = small_image(&peel, &registry, Form::ESTARGZ, Form::GZIP);
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let top = chain_ids(&Layout::open(peel.scratch().join("layout")), "test").pop().unwrap();
    let prepare = |key: &str| {
        let outcome = containerd.run(&["snapshots", "--snapshotter", "peel", "prepare", key, &top]);
        (outcome.code == Some(0), outcome.stderr)
    };
    let before = containerd.snapshots();
    for pages in [0, 1, 2, 3, 5, 8] {
        let filled = disk.fill_up_to(pages);
        let (is_there, told) = prepare("little room");
        drop(filled);
        match is_there {
            true => drop(containerd.ctr(&["snapshots", "--snapshotter", "peel", "rm", "little room"])),
            false => {
                let words = ["No space left on device", "database or disk is full"];
                assert!(words.iter().any(|words| told.contains(words)), "{pages}: {told}");
            }
        }
        assert_eq!(containerd.snapshots(), before);
    }
    assert!(prepare("room").0);
    containerd.ctr(&["snapshots", "--snapshotter", "peel", "rm", "room"]);
    shows_what_the_layers_say(&peel, &containerd, &layers);
    drop(containerd);
    daemon.terminate();
    peel.is_clean();
}
