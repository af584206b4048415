//! Promise: an image can be mounted so that it can be written to. What is changed outlives the mount and whatever happens to its processes,
//! and `peel commit` makes an image of it that is what the mount was: by its own word, and by umoci's. A full disk, a killed process and
//! wrong words are errors that leave what was there as it was.

mod changing;
mod kept;
mod lifecycle;

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::cases::every_case_of_archives;
use crate::support::image::Layout;
use crate::support::peel::Peel;
use crate::support::registry::FakeRegistry;
use crate::support::tools::Unpacked;
use crate::support::tree::{Allowed, Aspect, NodeKind, Tree, assert_same};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The layers of a small image with something of each kind to be changed.
pub(super) fn small_layers() -> Vec<Vec<TestEntry>> {
    vec![
        vec![
            TestEntry::directory("./").mode(0o751).modified(1_500_000_000, 0),
            TestEntry::directory("etc"),
            TestEntry::file("etc/passwd", "root:x:0:0\n").modified(1_500_000_000, 123),
            TestEntry::file("etc/shadow", "secret").mode(0o600).owner(0, 42),
            TestEntry::directory("usr/share/doc").modified(1_400_000_000, 0),
            TestEntry::file("usr/share/doc/readme", "read me"),
            TestEntry::file("usr/share/doc/more", "more"),
            TestEntry::symlink("bin", "usr/bin"),
            TestEntry::directory("usr/bin"),
            TestEntry::file("usr/bin/tool", "#!/bin/sh\n").mode(0o4755),
            TestEntry::hardlink("usr/bin/alias", "usr/bin/tool"),
        ],
        vec![
            TestEntry::directory("opt/app/data").owner(1000, 1000),
            TestEntry::file("opt/app/data/one", "1").owner(1000, 1000).xattr("user.kept", "yes"),
            TestEntry::file("opt/app/data/two", "2"),
            TestEntry::whiteout("etc/shadow"),
        ],
    ]
}

pub(super) fn small_image(peel: &Peel) -> String {
    Layout::create(peel.scratch().join("layout")).image("test", &small_layers(), Form::ESTARGZ)
}

/// An overlay does not count the directories in a merged one, and shows the count of a file of the image as it was there.
pub(super) fn link_counts_of_an_overlay() -> Allowed {
    Allowed::new("an overlay counts no links of directories", |difference| {
        difference.aspect == Aspect::LinkCount
    })
}

/// Commits what is mounted at `path` in that format, mounts the result, and compares it with `path` as it is.
#[track_caller]
pub(super) fn commit_is_the_mount(peel: &Peel, path: &Path, name: &str, format: &str) -> Value {
    let report = peel.json(&["commit", path.to_str().unwrap(), "--tag", name, "--format", format, "--json"]);
    let committed = peel.mount(report["reference"].as_str().unwrap());
    assert_same(&Tree::walk(committed.path()), &tree_without_sockets(path), &[link_counts_of_an_overlay()]);
    committed.unmount();
    report
}

/// The committed image in a layout that other tools read: its blobs, and those of the image below.
fn export(peel: &Peel, manifest_digest: &str, below: &str, tag: &str) -> String {
    let mut layout = Layout::open(below);
    let content = peel.store().join("content/blobs/sha256");
    for blob in fs::read_dir(content).unwrap() {
        layout.put(&fs::read(blob.unwrap().path()).unwrap());
    }
    let size = fs::metadata(layout.blob_path(manifest_digest)).unwrap().len();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    layout.tag(tag, &json!({"mediaType": media_type, "digest": manifest_digest, "size": size}));
    format!("{}:{tag}", layout.path().display())
}

#[test]
fn a_commit_in_each_format_is_the_mount_and_what_umoci_unpacks() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--writable"]);
    changing::change_everything(mount.path());
    for format in ["gzip", "zstd", "estargz"] {
        println!("{format}");
        let name = format!("host.example/of:{format}");
        let report = commit_is_the_mount(&peel, mount.path(), &name, format);
        assert_eq!(report["left_out"], json!(["new/socket"]));
        assert_eq!(report["reference"], name);
        // umoci reads no layers of zstd.
        if format == "zstd" {
            continue;
        }
        let image = export(
            &peel,
            report["manifest_digest"].as_str().unwrap(),
            peel.scratch().join("layout").to_str().unwrap(),
            format,
        );
        let unpacked = Unpacked::by_umoci(&image).expect("umoci unpacks the committed image");
        let own_files = Allowed::new("eStargz has files of its own", |difference| {
            let own: [&[u8]; 2] = [b"stargz.index.json", b".no.prefetch.landmark"];
            difference.aspect == Aspect::OnlyLeft && own.contains(&difference.path.as_slice())
        });
        let allowed = [link_counts_of_an_overlay(), own_files];
        assert_same(&Tree::walk(&unpacked.path()), &tree_without_sockets(mount.path()), &allowed);
    }
    mount.unmount();
}

pub(super) fn tree_without_sockets(path: &Path) -> Tree {
    let mut tree = Tree::walk(path);
    tree.nodes.retain(|_, node| !matches!(node.kind, NodeKind::Socket));
    tree
}

#[test]
fn changes_of_every_kind_of_file_are_committed() {
    let peel = Peel::new();
    let layers = every_case_of_archives();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, Form::GZIP);
    let mount = peel.mount_with(&reference, &["--writable"]);
    changing::touch_everything(mount.path());
    commit_is_the_mount(&peel, mount.path(), "touched", "gzip");
    mount.unmount();
}

#[test]
fn a_directory_deeper_than_any_path_reaches_is_committed() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--writable"]);
    changing::make_deep(&mount.join("deep"), 120);
    commit_is_the_mount(&peel, mount.path(), "deep", "estargz");
    mount.unmount();
}

#[test]
fn random_changes_are_those_of_an_ordinary_directory_and_are_committed() {
    for seed in 0..12 {
        println!("seed {seed}");
        let peel = Peel::new();
        let mut layout = Layout::create(peel.scratch().join("layout"));
        let reference = layout.image("test", &small_layers(), Form::GZIP);
        let plain = Unpacked::by_umoci(&format!("{}:test", peel.scratch().join("layout").display())).unwrap();
        let mount = peel.mount_with(&reference, &["--writable"]);
        for round in 0..2 {
            changing::change_at_random(&[mount.path(), &plain.path()], seed * 100 + round);
            let times = Allowed::new("directories were changed one after the other", |difference| {
                difference.aspect == Aspect::Modified
            });
            let allowed = [link_counts_of_an_overlay(), times];
            assert_same(&Tree::walk(mount.path()), &Tree::walk(&plain.path()), &allowed);
            let format = ["gzip", "zstd", "estargz"][(seed + round) as usize % 3];
            commit_is_the_mount(&peel, mount.path(), &format!("random:{round}"), format);
        }
        mount.unmount();
    }
}

#[test]
fn the_same_changes_give_the_same_image() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--writable"]);
    changing::change_everything(mount.path());
    for format in ["gzip", "zstd", "estargz"] {
        let commit = |tag: &str, message: &[&str]| {
            let path = mount.path().to_str().unwrap();
            let mut arguments = vec!["commit", path, "--tag", tag, "--format", format, "--json"];
            arguments.extend(message);
            let mut command = peel.command(&arguments);
            command.env("SOURCE_DATE_EPOCH", "1700000000");
            let outcome = crate::support::peel::run_to_end(command, peel.scratch());
            assert_eq!(outcome.code, Some(0), "{outcome:?}");
            let mut report: Value = serde_json::from_str(&outcome.stdout).unwrap();
            report["reference"] = Value::Null;
            report
        };
        let first = commit("one", &[]);
        assert_eq!(commit("two", &[]), first);
        let told = commit("three", &["--message", "why"]);
        assert_eq!(told["layer"], first["layer"]);
        assert_ne!(told["manifest_digest"], first["manifest_digest"]);
        let config = told["config_digest"].as_str().unwrap().replace(':', "/");
        let config: Value =
            serde_json::from_slice(&fs::read(peel.store().join("content/blobs").join(config)).unwrap())
                .unwrap();
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
        assert_eq!(config["history"][2]["comment"], "why");
        assert_eq!(config["rootfs"]["diff_ids"][2], told["layer"]["diff_id"]);
    }
    mount.unmount();
}

/// What was committed is here; what is below is got from where it was, when somebody reads it.
#[test]
fn a_committed_image_needs_no_registry_for_its_own_layer_and_stays_lazy_below() {
    let mut registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &small_layers(), Form::ESTARGZ);
    let reference = layout.serve(&registry, "small", "test");
    let mount = peel.mount_with(&reference, &["--writable"]);
    fs::write(mount.join("new"), "made here").unwrap();
    let path = mount.path().to_str().unwrap().to_owned();
    registry.down();
    peel.succeed(&["commit", &path, "--tag", "one"]);
    mount.unmount();
    let lists = peel.json(&["ls", "--json"]);
    let line = lists.as_array().unwrap().iter().find(|line| line["reference"] == "localhost/one:latest");
    assert_eq!(line.expect("it is listed")["layers"], 3);

    // Made of what was made here, in turn; none of it was read before.
    let mount = peel.mount_with("localhost/one", &["--writable"]);
    assert_eq!(fs::read_to_string(mount.join("new")).unwrap(), "made here");
    fs::write(mount.join("newer"), "on top").unwrap();
    let path = mount.path().to_str().unwrap().to_owned();
    peel.succeed(&["commit", &path, "--tag", "two"]);
    mount.unmount();
    registry.up();
    let mount = peel.mount("localhost/two");
    assert_eq!(fs::read_to_string(mount.join("new")).unwrap(), "made here");
    assert_eq!(fs::read_to_string(mount.join("newer")).unwrap(), "on top");
    assert_eq!(fs::read_to_string(mount.join("opt/app/data/one")).unwrap(), "1");
    assert_eq!(fs::read_to_string(mount.join("usr/share/doc/more")).unwrap(), "more");
    mount.unmount();
    assert_eq!(registry.take_violations(), Vec::<String>::new());
}

#[test]
fn a_collection_at_the_same_time_takes_nothing_of_what_is_committed() {
    let peel = Peel::new();
    let mount = peel.mount_with(&small_image(&peel), &["--writable"]);
    let path = mount.path().to_str().unwrap();
    for round in 0..12 {
        fs::write(mount.join("opt/round"), round.to_string()).unwrap();
        let name = format!("localhost/round:{round}");
        let commit = ["commit", path, "--tag", &name];
        let mut commit = peel.command(&commit).stdout(std::process::Stdio::null()).spawn().unwrap();
        while commit.try_wait().unwrap().is_none() {
            peel.succeed(&["gc"]);
        }
        assert!(commit.wait().unwrap().success());
        let committed = peel.mount(&name);
        assert_eq!(fs::read_to_string(committed.join("opt/round")).unwrap(), round.to_string());
        committed.unmount();
        peel.succeed(&["rm", &name]);
    }
    mount.unmount();
    peel.succeed(&["gc"]);
    let origins = peel.store().join("origins/sha256");
    assert_eq!(
        fs::read_dir(origins).unwrap().count(),
        0,
        "where the layers of forgotten images come from is forgotten, too"
    );
}
