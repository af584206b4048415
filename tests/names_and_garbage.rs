//! Promise: an image goes by the names that it was given until they are taken away, and its bytes come from where they are whatever it is
//! called; what nobody needs any more goes, what somebody uses stays, and sizes are those of the disk.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::clock::next_second;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants, wait_or_kill};
use crate::support::registry::FakeRegistry;
use crate::support::small_disk::SmallDisk;
use crate::support::space::disk_usage;
use crate::support::tree::{Tree, assert_same};
use serde_json::{Value, json};
use std::fs;
use std::process::Stdio;

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });
const MEBIBYTE: u64 = 1 << 20;

fn layer(seed: u64) -> Vec<TestEntry> {
    let content = |part| Content::Noise { seed: 10 * seed + part, length: MEBIBYTE };
    vec![
        TestEntry::file(format!("{seed}/first"), content(1)),
        TestEntry::file(format!("{seed}/second"), content(2)),
        TestEntry::file(format!("{seed}/name"), format!("{seed}").as_str()),
    ]
}

/// Images of these layers, served.
fn served(images: &[(&str, &[u64])]) -> (FakeRegistry, tempfile::TempDir, Vec<String>) {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let mut layout = Layout::create(directory.path());
    let references = images
        .iter()
        .map(|(tag, layers)| {
            let layers: Vec<_> = layers.iter().map(|seed| layer(*seed)).collect();
            layout.image(tag, &layers, SMALL_CHUNKS);
            layout.serve(&registry, "some/name", tag)
        })
        .collect();
    (registry, directory, references)
}

#[track_caller]
fn is_image_of(peel: &Peel, name: &str, layers: &[u64]) {
    let layers: Vec<_> = layers.iter().map(|seed| layer(*seed)).collect();
    let mount = peel.mount(name);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
    mount.unmount();
}

fn layers_here(peel: &Peel) -> usize {
    fs::read_dir(peel.store().join("layers/sha256")).unwrap().count()
}

fn names(list: &Value, key: &str) -> Vec<String> {
    list.as_array().unwrap().iter().map(|item| item[key].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_tag_is_a_name_like_any_other_and_its_bytes_come_from_where_they_are() {
    let (_registry, _directory, references) = served(&[("one", &[1, 2])]);
    let peel = Peel::new();
    peel.succeed(&["pull", &references[0]]);
    // A registry that does not exist.
    let name = "registry.invalid/my/name:tag";
    peel.succeed(&["tag", &references[0], name]);
    peel.succeed(&["tag", name, "localhost/again:tag"]);
    let mut expected = vec![references[0].clone(), "localhost/again:tag".to_owned(), name.to_owned()];
    expected.sort();
    assert_eq!(names(&peel.json(&["ls", "--json"]), "reference"), expected);
    peel.succeed(&["rm", &references[0]]);
    is_image_of(&peel, "localhost/again:tag", &[1, 2]);
    is_image_of(&peel, name, &[1, 2]);
    peel.succeed(&["gc"]);
    is_image_of(&peel, "localhost/again:tag", &[1, 2]);

    assert_eq!(peel.run(&["tag", "localhost/nothing:tag", "x"]).code, Some(3));
    assert_eq!(peel.run(&["rm", &references[0]]).code, Some(3));
    let pinned = format!("localhost/x@sha256:{}", "0".repeat(64));
    assert_eq!(peel.run(&["tag", name, &pinned]).code, Some(2));
}

#[test]
fn what_no_image_needs_goes_and_what_another_shares_stays() {
    let (_registry, _directory, references) = served(&[("one", &[1, 2]), ("two", &[1, 3])]);
    let peel = Peel::new();
    for reference in &references {
        peel.succeed(&["extract", reference, "--quiet"]);
    }
    assert_eq!(layers_here(&peel), 3);
    let collected = peel.json(&["gc", "--json"]);
    assert_eq!(
        (&collected["layers"], &collected["trees"], &collected["documents"]),
        (&json!([]), &json!([]), &json!([]))
    );
    peel.succeed(&["rm", &references[0]]);
    assert_eq!(layers_here(&peel), 3);

    let dry = peel.json(&["gc", "--dry-run", "--json"]);
    assert_eq!((dry["layers"].as_array().unwrap().len(), layers_here(&peel)), (1, 3));
    let collected = peel.json(&["gc", "--json"]);
    assert_eq!(
        (&dry["layers"], &dry["trees"], &dry["documents"]),
        (&collected["layers"], &collected["trees"], &collected["documents"])
    );
    assert_eq!(
        (collected["trees"].as_array().unwrap().len(), collected["documents"].as_array().unwrap().len()),
        (1, 2)
    );
    assert_eq!(layers_here(&peel), 2);
    is_image_of(&peel, &references[1], &[1, 3]);

    peel.succeed(&["rm", "--now", &references[1]]);
    assert_eq!((layers_here(&peel), peel.json(&["ls", "--json"])), (0, json!([])));
    assert_eq!(fs::read_dir(peel.store().join("trees")).unwrap().count(), 1, "ingest");
    // And it can be had again.
    is_image_of(&peel, &references[0], &[1, 2]);
}

#[test]
fn sizes_are_those_of_the_disk() {
    let (_registry, _directory, references) = served(&[("one", &[1, 2]), ("two", &[3, 4])]);
    let peel = Peel::new();
    peel.succeed(&["extract", &references[0], "--quiet"]);
    let layers = fs::read_dir(peel.store().join("layers/sha256")).unwrap();
    let expected: u64 = layers.map(|layer| disk_usage(&layer.unwrap().path())).sum();
    assert!(expected > 4 * MEBIBYTE);
    assert_eq!(peel.json(&["ls", "--json"])[0]["disk_bytes"], expected);
    peel.succeed(&["extract", &references[1], "--quiet"]);

    peel.succeed(&["rm", &references[0]]);
    let before = disk_usage(peel.store());
    let collected = peel.json(&["gc", "--json"]);
    let after = disk_usage(peel.store());
    let near = |told: &Value, counted: u64| told.as_u64().unwrap().abs_diff(counted) < 256 << 10;
    assert!(near(&collected["bytes_before"], before), "{} {before}", collected["bytes_before"]);
    assert!(near(&collected["bytes_after"], after), "{} {after}", collected["bytes_after"]);
    assert!(before - after >= expected, "{before} - {after} < {expected}");
}

#[test]
fn over_a_limit_cold_content_goes_before_images_and_is_fetched_again() {
    let (registry, _directory, references) = served(&[("cold", &[1, 2]), ("warm", &[3])]);
    let peel = Peel::new();
    for reference in &references {
        peel.succeed(&["extract", reference, "--quiet"]);
        next_second();
    }
    let limit = (disk_usage(peel.store()) - 3 * MEBIBYTE).to_string();
    let collected = peel.json(&["gc", "--keep-bytes", &limit, "--json"]);
    assert_eq!((collected["evicted"].as_array().unwrap().len(), &collected["images"]), (2, &json!([])));
    assert!(disk_usage(peel.store()) <= limit.parse().unwrap());
    registry.reset_counters();
    is_image_of(&peel, &references[1], &[3]);
    assert_eq!(registry.counters().blob_bytes, 0, "what is warm stayed");
    is_image_of(&peel, &references[0], &[1, 2]);
    assert!(registry.counters().blob_bytes > 4 * MEBIBYTE);

    // A limit that content alone does not meet.
    let collected = peel.json(&["gc", "--keep-bytes", "0", "--json"]);
    assert_eq!(collected["images"].as_array().unwrap().len(), 2);
    assert_eq!((layers_here(&peel), peel.json(&["ls", "--json"])), (0, json!([])));
}

#[test]
fn images_that_were_unused_for_long_go_first() {
    let (_registry, _directory, references) = served(&[("one", &[1]), ("two", &[2])]);
    let peel = Peel::new();
    peel.succeed(&["pull", &references[0]]);
    next_second();
    peel.succeed(&["pull", &references[1]]);
    next_second();
    // Used again: now the other is the old one.
    is_image_of(&peel, &references[0], &[1]);
    let collected = peel.json(&["gc", "--keep-duration", "1h", "--json"]);
    assert_eq!(collected["images"], json!([]));
    let collected = peel.json(&["gc", "--keep-bytes", "0", "--dry-run", "--json"]);
    assert_eq!(names(&collected["images"], "reference"), [references[1].clone(), references[0].clone()]);
    assert_eq!(peel.json(&["ls", "--json"]).as_array().unwrap().len(), 2);
    assert_eq!(peel.run(&["gc", "--keep-bytes", "much"]).code, Some(2));
}

#[test]
fn what_is_mounted_stays_whatever_is_asked() {
    let (registry, _directory, references) = served(&[("one", &[1, 2])]);
    let peel = Peel::new();
    let mount = peel.mount(&references[0]);
    let model = Model::of(&[layer(1), layer(2)]).unwrap().tree();
    assert!(fs::read(mount.join("1/first")).unwrap() == model.read("1/first"));
    let collected = peel.json(&["gc", "--keep-bytes", "0", "--json"]);
    assert_eq!((&collected["images"], &collected["evicted"]), (&json!([]), &json!([])));
    peel.succeed(&["rm", "--now", &references[0]]);
    assert_eq!(layers_here(&peel), 2);
    registry.reset_counters();
    assert_same(&Tree::walk(mount.path()), &model, &[]);
    mount.unmount();
    peel.wait_for_servers_to_end();
    peel.succeed(&["gc"]);
    assert_eq!(layers_here(&peel), 0);
}

#[test]
fn a_collection_killed_at_any_instant_is_made_good_by_the_next() {
    let (_registry, _directory, references) = served(&[("one", &[1, 2]), ("two", &[2, 3])]);
    let peel = Peel::new();
    let fill = || {
        for reference in &references {
            peel.succeed(&["extract", reference, "--quiet"]);
        }
    };
    fill();
    let whole = duration_of(|| drop(peel.succeed(&["gc", "--keep-bytes", "0"])));
    for instant in instants(whole) {
        fill();
        peel.killed_after(instant, &["gc", "--keep-bytes", "0"]);
        peel.is_clean();
        // Whatever is still named is whole.
        for reference in names(&peel.json(&["ls", "--json"]), "reference") {
            let layers: &[u64] = if reference == references[0] { &[1, 2] } else { &[2, 3] };
            is_image_of(&peel, &reference, layers);
        }
    }
    peel.succeed(&["gc", "--keep-bytes", "0"]);
    assert_eq!(layers_here(&peel), 0);
    assert_eq!(fs::read_dir(peel.store().join("layers/ingest")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(peel.store().join("content/blobs/sha256")).unwrap().count(), 0);
}

#[test]
fn images_pulled_while_garbage_is_collected_are_whole() {
    let (_registry, _directory, references) = served(&[("one", &[1, 2]), ("two", &[2, 3])]);
    let peel = Peel::new();
    for _ in 0..5 {
        let start = |arguments: &[&str]| {
            peel.command(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        };
        let children = [
            start(&["pull", &references[0]]),
            start(&["gc"]),
            start(&["pull", &references[1]]),
            start(&["gc"]),
        ];
        for child in children {
            assert!(wait_or_kill(child, "peel").success());
        }
        is_image_of(&peel, &references[0], &[1, 2]);
        is_image_of(&peel, &references[1], &[2, 3]);
        peel.succeed(&["rm", "--now", &references[0], &references[1]]);
    }
}

#[test]
fn a_full_disk_can_be_cleared() {
    let (_registry, _directory, references) = served(&[("one", &[1, 2]), ("two", &[3, 4])]);
    let peel = Peel::new();
    let _disk = SmallDisk::make(peel.store(), 6);
    peel.succeed(&["extract", &references[0], "--quiet"]);
    let outcome = peel.run(&["extract", &references[1], "--quiet"]);
    assert_eq!(outcome.code, Some(8), "{outcome:?}");
    // Whatever is left.
    let filler = peel.store().join("filler");
    let full = fs::write(&filler, vec![1; 8 << 20]);
    assert!(full.is_err());
    // Content that can be fetched again makes the room that it takes to forget a name.
    let collected = peel.json(&["gc", "--keep-bytes", "4MiB", "--json"]);
    assert_eq!(collected["images"], json!([]));
    peel.succeed(&["gc", "--keep-bytes", "0"]);
    assert_eq!(layers_here(&peel), 0);
    // Cut first: a process that another test starts may hold it open for an instant.
    fs::File::options().write(true).open(&filler).unwrap().set_len(0).unwrap();
    fs::remove_file(&filler).unwrap();
    is_image_of(&peel, &references[1], &[3, 4]);
}
