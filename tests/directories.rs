//! Promise: any image, a merge and a difference too, can be had as a plain directory that nobody serves: what is in it is what unpacking its
//! layers gives. Directories share the files of the layers that they have in common, on disk once, and no two files of one tree become one.
//! Whatever ends the making of one leaves nothing of it, and nothing that is mounted is removed.

use crate::merge_rules::umoci_differs;
use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::cases::{every_case, every_case_of_archives, every_case_of_umoci};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants};
use crate::support::random::stacks;
use crate::support::small_disk::SmallDisk;
use crate::support::tools::{Unpacked, real_images};
use crate::support::tree::{Allowed, Aspect, Tree, assert_same, differences};
use proptest::prelude::*;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

fn create(peel: &Peel, reference: &str) -> Value {
    peel.json(&["directory", "create", reference, "--json", "--quiet"])
}

fn path(report: &Value) -> PathBuf {
    PathBuf::from(report["path"].as_str().unwrap())
}

/// A file has as many names as there are directories with it.
fn shared() -> Allowed {
    Allowed::new("names in other directories", |difference| difference.aspect == Aspect::LinkCount)
}

#[track_caller]
fn is_tree_of(directory: &Path, layers: &[Vec<TestEntry>]) {
    assert_same(&Tree::walk(directory), &Model::of(layers).unwrap().tree(), &[shared()]);
}

/// Blocks below a directory, each inode once, as `du` counts.
fn blocks(directory: &Path, counted: &mut HashSet<u64>) -> u64 {
    let here = fs::symlink_metadata(directory).unwrap();
    let mut bytes = if counted.insert(here.ino()) { here.blocks() * 512 } else { 0 };
    if here.is_dir() {
        for entry in fs::read_dir(directory).unwrap() {
            bytes += blocks(&entry.unwrap().path(), counted);
        }
    }
    bytes
}

/// What the directories of a store take, whatever is beside them.
fn directory_blocks(peel: &Peel) -> u64 {
    let mut counted = HashSet::new();
    let all = fs::read_dir(peel.store().join("directories")).unwrap();
    let records = all.map(|entry| entry.unwrap().path()).filter(|path| !path.ends_with("ingest"));
    records.map(|path| blocks(&path, &mut counted)).sum()
}

fn ingest_is_empty(peel: &Peel) -> bool {
    fs::read_dir(peel.store().join("directories/ingest")).unwrap().next().is_none()
}

/// Two layers with a large file, a small one of two names, and names that other layers have.
fn layers(seed: u64) -> Vec<Vec<TestEntry>> {
    let noise = |part, length| Content::Noise { seed: 10 * seed + part, length };
    let own = |name: &str| format!("own/{seed}/{name}");
    vec![
        vec![
            TestEntry::directory(own("")).mode(0o700).owner(seed as u32, 1),
            TestEntry::file(own("large"), noise(1, 1_500_000)),
            TestEntry::file(own("small"), noise(2, 9000)).mode(0o4755).xattr("user.of", "its own"),
            TestEntry::hardlink(own("link"), own("small")),
            TestEntry::file("shared/newest", format!("of {seed}").as_str()),
        ],
        vec![
            TestEntry::file(own("medium"), noise(3, 50_000)),
            TestEntry::whiteout(format!("shared/without-{seed}")),
            TestEntry::file(format!("shared/without-{}", seed + 1), "here"),
        ],
    ]
}

/// A store that knows the images `one`, `two` and, as a merge, `localhost/both`.
fn merged(peel: &Peel) -> (Layout, [String; 3]) {
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let one = layout.image("one", &layers(1), Form::ESTARGZ);
    let two = layout.image("two", &layers(2), Form::GZIP);
    peel.succeed(&["merge", "both", &one, &two]);
    (layout, [one, two, "localhost/both".to_owned()])
}

#[test]
fn every_case_is_in_the_directory_as_in_the_mount() {
    for (form, layers) in [(Form::GZIP, every_case_of_archives()), (Form::ESTARGZ, every_case())] {
        let peel = Peel::new();
        let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, form);
        let report = create(&peel, &reference);
        is_tree_of(&path(&report), &layers);
        assert_eq!((&report["made"], &report["shared_files"]), (&json!(true), &json!(0)));
        assert_eq!(create(&peel, &reference)["made"], json!(false));
        let holes = path(&report).join("sparse/Pax10-hole");
        assert!(form != Form::GZIP || fs::metadata(holes).unwrap().blocks() == 0, "holes stay holes");
    }
}

#[test]
fn a_merge_has_the_files_of_its_inputs_and_takes_no_room_for_them() {
    let peel = Peel::new();
    let (_layout, [one, two, both]) = merged(&peel);
    let first = create(&peel, &one);
    let second = create(&peel, &two);
    let before = directory_blocks(&peel);
    let report = create(&peel, &both);
    assert_eq!((&report["base"], &report["base_layers"]), (&first["record"], &json!(2)));
    // All but what neither input alone shows.
    assert_eq!(report["copied_bytes"], json!(0), "{report}");
    assert_eq!(report["shared_files"], report["files"]);
    assert!(directory_blocks(&peel) - before < 200_000, "{}", directory_blocks(&peel) - before);
    let inode = |report: &Value, name: &str| fs::metadata(path(report).join(name)).unwrap().ino();
    assert_eq!(inode(&first, "own/1/large"), inode(&report, "own/1/large"));
    assert_eq!(inode(&second, "own/2/large"), inode(&report, "own/2/large"));
    is_tree_of(&path(&report), &[layers(1), layers(2)].concat());
    is_tree_of(&path(&first), &layers(1));

    // What several have counts once, and all that is told is all there is.
    let told = |list: &Value, what: &str| -> u64 {
        list.as_array().unwrap().iter().map(|line| line[what].as_u64().unwrap()).sum()
    };
    let listed = peel.json(&["directory", "ls", "--json"]);
    assert_eq!(told(&listed, "disk_bytes"), directory_blocks(&peel));
    assert!(told(&listed, "whole_bytes") > directory_blocks(&peel) + 3_000_000);
    let of_directory = |record: &Value| -> u64 {
        let lines = listed.as_array().unwrap().iter().filter(|line| line["record"] == *record);
        lines.map(|line| line["disk_bytes"].as_u64().unwrap()).sum()
    };
    let records = peel.json(&["records", "--json"]);
    let own = |line: &Value| line["disk_bytes"].as_u64().unwrap() - of_directory(&line["id"]);
    // What was merged has no layer of its own.
    let of_layers = records.as_array().unwrap().iter().filter(|line| line["layer"].is_string());
    let by_layer: HashMap<_, _> =
        of_layers.map(|line| (line["layer"].as_str().unwrap(), own(line))).collect();
    let layer = |name: &str| peel.store().join("layers/sha256").join(&name["sha256:".len()..]);
    for (name, told) in by_layer {
        assert_eq!(told, blocks(&layer(name), &mut HashSet::new()), "{name}");
    }

    // What the others had stays what it is when they go.
    peel.succeed(&["directory", "rm", &one]);
    peel.succeed(&["directory", "rm", &two]);
    assert_eq!(peel.run(&["directory", "rm", &two]).code, Some(3));
    let listed = peel.json(&["directory", "ls", "--json"]);
    assert_eq!(listed[0]["disk_bytes"], listed[0]["whole_bytes"]);
    assert_eq!(listed[0]["disk_bytes"].as_u64().unwrap(), directory_blocks(&peel));
    is_tree_of(&path(&report), &[layers(1), layers(2)].concat());
    peel.is_clean();
}

#[test]
fn a_difference_is_a_directory_too() {
    let peel = Peel::new();
    let (_layout, [one, two, _]) = merged(&peel);
    peel.succeed(&["diff", "between", &one, &two]);
    peel.succeed(&["merge", "led", &one, "localhost/between"]);
    create(&peel, &two);
    let report = create(&peel, "localhost/led");
    is_tree_of(&path(&report), &layers(2));
    assert_eq!(report["copied_bytes"], json!(0), "the files of the upper image are there already");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn directories_of_random_layers_are_what_the_model_says_whatever_they_share(
        lower in stacks().prop_map(Model::with_plain_markers),
        upper in stacks().prop_map(Model::with_plain_markers),
    ) {
        let all = [lower.clone(), upper.clone()].concat();
        let (Ok(one), Ok(both)) = (Model::of(&lower), Model::of(&all)) else { return Ok(()) };
        let peel = Peel::new();
        let mut layout = Layout::create(peel.scratch().join("layout"));
        let references = [layout.image("one", &lower, Form::GZIP), layout.image("both", &all, Form::GZIP)];
        for (reference, expected) in references.iter().zip([one.tree(), both.tree()]) {
            let found = differences(&Tree::walk(&path(&create(&peel, reference))), &expected);
            let found: Vec<String> = found.iter().filter(|one| one.aspect != Aspect::LinkCount).map(ToString::to_string).collect();
            prop_assert!(found.is_empty(), "{}", found.join("\n"));
        }
    }
}

#[test]
fn two_files_of_a_tree_stay_two_and_a_file_that_was_changed_is_not_shared_on() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let below = vec![
        TestEntry::file("a", "the same"),
        TestEntry::hardlink("b", "a"),
        TestEntry::file("written", "as it was"),
        TestEntry::file("of another mode", "x"),
        TestEntry::file("with an attribute", "x"),
        TestEntry::file("gone", "x"),
        TestEntry::file("replaced", "x"),
        TestEntry::file("untouched", "x"),
    ];
    let one = layout.image("one", std::slice::from_ref(&below), Form::GZIP);
    let two = layout.image("two", &[below.clone(), vec![TestEntry::whiteout("b")]], Form::GZIP);
    let first = path(&create(&peel, &one));
    fs::write(first.join("written"), "afterward").unwrap();
    fs::set_permissions(first.join("of another mode"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(first.join("with an attribute"), "user.x", b"y", flags).unwrap();
    fs::remove_file(first.join("gone")).unwrap();
    fs::remove_file(first.join("replaced")).unwrap();
    std::os::unix::fs::symlink("untouched", first.join("replaced")).unwrap();
    let report = create(&peel, &two);
    is_tree_of(&path(&report), &[below, vec![TestEntry::whiteout("b")]]);
    assert_eq!((&report["files"], &report["shared_files"]), (&json!(7), &json!(2)), "a and untouched");
}

/// A file system has a limit of the names of a file. Where there is none to be met, that is no failure.
#[test]
fn a_file_that_has_as_many_names_as_it_can_have_is_copied() {
    let peel = Peel::new();
    let (_layout, [one, _, both]) = merged(&peel);
    let first = path(&create(&peel, &one));
    let names = peel.scratch().join("names");
    fs::create_dir(&names).unwrap();
    let is_full = (0..66_000)
        .any(|number| fs::hard_link(first.join("own/1/large"), names.join(number.to_string())).is_err());
    let report = create(&peel, &both);
    is_tree_of(&path(&report), &[layers(1), layers(2)].concat());
    let inode = |directory: &Path| fs::metadata(directory.join("own/1/large")).unwrap().ino();
    assert_eq!(inode(&first) != inode(&path(&report)), is_full);
}

#[test]
fn what_is_mounted_is_not_removed_and_nothing_below_it() {
    for is_inside in [true, false] {
        let peel = Peel::new();
        let (_layout, [_, two, _]) = merged(&peel);
        let directory = path(&create(&peel, &two));
        let precious = peel.scratch().join("precious");
        fs::create_dir(&precious).unwrap();
        fs::write(precious.join("file"), "mine").unwrap();
        let elsewhere = peel.mount_point();
        let (from, to) =
            if is_inside { (&precious, directory.join("shared")) } else { (&directory, elsewhere) };
        mount_bind(from, &to).unwrap();
        let outcome = peel.run(&["directory", "rm", &two]);
        let forgotten = peel.run(&["rm", &two, "--now"]);
        let is_there = directory.join("own/2/large").exists() && precious.join("file").exists();
        unmount(&to, UnmountFlags::DETACH).unwrap();
        assert_eq!(outcome.code, Some(7), "{outcome:?}");
        assert!(outcome.stderr.contains("unmount that first"), "{outcome:?}");
        assert_eq!((forgotten.code, is_there), (Some(0), true), "{forgotten:?}");
        // What was to go goes as soon as it can.
        peel.succeed(&["gc"]);
        assert!(!directory.exists() && precious.join("file").exists());
        is_tree_of(&path(&create(&peel, &two)), &layers(2));
    }
}

#[test]
fn the_directory_goes_with_its_image() {
    let peel = Peel::new();
    let (_layout, [one, two, both]) = merged(&peel);
    let [first, _, third] = [&one, &two, &both].map(|reference| path(&create(&peel, reference)));
    peel.succeed(&["rm", &both, "--now"]);
    assert!(first.exists() && !third.exists());
    is_tree_of(&first, &layers(1));
    peel.succeed(&["rm", &one, &two, "--now"]);
    assert!(!first.exists() && ingest_is_empty(&peel));
    assert_eq!(peel.json(&["directory", "ls", "--json"]), json!([]));
    peel.is_clean();
}

#[test]
fn a_full_disk_leaves_nothing_of_a_directory_and_space_makes_it_work() {
    let peel = Peel::new();
    let disk = SmallDisk::make(peel.store(), 12);
    let (_layout, [one, two, both]) = merged(&peel);
    let first = create(&peel, &one);
    peel.succeed(&["extract", &both, "--quiet"]);
    let filler = peel.store().join("filler");
    fs::write(&filler, vec![1; 12 << 20]).unwrap_err();
    let room = fs::metadata(&filler).unwrap().len().saturating_sub(800_000);
    fs::File::options().write(true).open(&filler).unwrap().set_len(room).unwrap();
    let outcome = peel.run(&["directory", "create", &two, "--quiet"]);
    assert_eq!(outcome.code, Some(8), "{outcome:?}");
    assert!(outcome.stderr.contains("no space left"), "{outcome:?}");
    assert!(ingest_is_empty(&peel));
    assert_eq!(peel.json(&["directory", "ls", "--json"]).as_array().unwrap().len(), 1);
    is_tree_of(&path(&first), &layers(1));
    disk.grow(64);
    is_tree_of(&path(&create(&peel, &both)), &[layers(1), layers(2)].concat());
    peel.is_clean();
}

#[test]
fn a_directory_whose_maker_is_killed_is_whole_or_not_there() {
    let peel = Peel::new();
    let (_layout, [one, _, both]) = merged(&peel);
    create(&peel, &one);
    peel.succeed(&["extract", &both, "--quiet"]);
    let mut report = Value::Null;
    let whole = duration_of(|| report = create(&peel, &both));
    for instant in instants(whole) {
        peel.run(&["directory", "rm", &both]);
        peel.killed_after(instant, &["directory", "create", &both, "--quiet"]);
        if path(&report).exists() {
            is_tree_of(&path(&report), &[layers(1), layers(2)].concat());
        }
        peel.is_clean();
        create(&peel, &both);
        assert!(ingest_is_empty(&peel));
        is_tree_of(&path(&report), &[layers(1), layers(2)].concat());
    }
}

/// The same layers, stacked, unpacked by another tool.
#[test]
fn a_merge_is_what_umoci_unpacks() {
    let (lower, mut upper) = (every_case_of_umoci(), layers(2));
    upper[1].extend([
        TestEntry::whiteout("merge"),
        TestEntry::opaque("types"),
        TestEntry::file("modes", "x"),
    ]);
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let one = layout.image("one", &lower, Form::GZIP);
    let two = layout.image("two", &upper, Form::GZIP);
    layout.image("stacked", &[lower, upper].concat(), Form::GZIP);
    peel.succeed(&["merge", "both", &one, &two]);
    create(&peel, &one);
    let report = create(&peel, "localhost/both");
    assert_eq!(report["base_layers"], json!(3));
    let of_upper_alone = report["files"].as_u64().unwrap() - report["shared_files"].as_u64().unwrap();
    assert_eq!(of_upper_alone, 6, "{report}");
    let unpacked = Unpacked::by_umoci(&format!("{}:stacked", layout.path().display())).unwrap();
    let allowed = umoci_differs().into_iter().chain([shared()]).collect::<Vec<_>>();
    assert_same(&Tree::walk(&unpacked.path()), &Tree::walk(&path(&report)), &allowed);
}

/// A large image takes long to unpack: only if it is asked for (`PEEL_TEST_LARGE`).
#[test]
fn a_real_image_is_what_umoci_unpacks() {
    if std::env::var_os("PEEL_TEST_LARGE").is_none() {
        return;
    }
    let images = real_images();
    let peel = Peel::new();
    let report = create(&peel, &format!("oci:{}:gzip", images.join("python").display()));
    let unpacked = Unpacked::by_umoci(&format!("{}:gzip", images.join("python").display())).unwrap();
    assert_same(&Tree::walk(&path(&report)), &Tree::walk(&unpacked.path()), &[]);
}
