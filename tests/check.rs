//! Promise: `peel check` finds whatever in the store is not what was put there, `--repair` drops it, and the image is shown again as it
//! is.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::cases::many_layers;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Peel, is_mount_point};
use crate::support::registry::FakeRegistry;
use crate::support::tree::{Tree, assert_same};
use serde_json::Value;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 4 << 10, footer: Footer::Modern, annotated: true, landmark: None });

/// All files below a directory, sorted.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()))
        } else {
            found.push(entry.path())
        }
    }
    found.sort();
    found
}

fn files_named(store: &Path, name: &str) -> Vec<PathBuf> {
    files(&store.join("layers")).into_iter().filter(|path| path.ends_with(name)).collect()
}

/// Changes the last byte of a file that is not zero.
fn alter(path: &Path) {
    let bytes = fs::read(path).unwrap();
    let place = bytes.iter().rposition(|byte| *byte != 0).expect("a file with bytes");
    File::options().write(true).open(path).unwrap().write_all_at(&[bytes[place] ^ 1], place as u64).unwrap();
}

fn largest(paths: Vec<PathBuf>) -> PathBuf {
    paths.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).expect("a file")
}

fn kinds(report: &Value) -> Vec<&str> {
    report["findings"].as_array().unwrap().iter().map(|finding| finding["kind"].as_str().unwrap()).collect()
}

/// Runs `peel check --json`; gives its exit code and what it says.
fn check(peel: &Peel, options: &[&str]) -> (i32, Value) {
    let outcome = peel.run(&[&["check", "--json"], options].concat());
    let report = serde_json::from_str(&outcome.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", outcome.stdout, outcome.stderr));
    (outcome.code.expect("an exit code"), report)
}

#[track_caller]
fn is_well(peel: &Peel) -> Value {
    let (code, report) = check(peel, &[]);
    assert_eq!((code, kinds(&report)), (0, vec![]), "{report:#}");
    report
}

/// Layers with a file of many chunks, which has a data file of its own, and small ones.
fn layers() -> Vec<Vec<TestEntry>> {
    let mut layers = many_layers(3);
    let file = |name: &str, length| TestEntry::file(name, Content::Noise { seed: length, length });
    layers.push(vec![file("large", 3 << 20), file("small", 100_000)]);
    layers
}

/// Mounts, reads everything, unmounts, and waits until all of it is in its place.
#[track_caller]
fn mount_reads(peel: &Peel, reference: &str, model: &Tree) {
    let mount = peel.mount(reference);
    assert_same(&Tree::walk(mount.path()), model, &[]);
    mount.unmount();
    peel.wait_for_servers_to_end();
}

#[test]
fn what_is_altered_is_found_and_repaired_and_the_image_is_whole_again() {
    type Damage = fn(&Path);
    let cases: [(&str, &[&str], Damage); 9] = [
        ("a manifest", &["altered-blob"], |store| alter(&largest(files(&store.join("content/blobs"))))),
        ("a config that is gone", &["missing-document"], |store| {
            let mut documents = files(&store.join("content/blobs"));
            // The only one of an image's documents that names a platform.
            documents.retain(|path| fs::read_to_string(path).unwrap().contains("\"rootfs\""));
            fs::remove_file(&documents[0]).unwrap();
        }),
        ("a table", &["damaged-layer"], |store| alter(&files_named(store, "table")[0])),
        ("a table of another layer", &["damaged-layer"], |store| {
            let tables = files_named(store, "table");
            fs::copy(&tables[0], tables[1].with_extension("new")).unwrap();
            fs::rename(tables[1].with_extension("new"), &tables[1]).unwrap();
        }),
        ("data files that are gone", &["damaged-layer"], |store| {
            fs::remove_file(largest(files_named(store, "data"))).unwrap();
        }),
        ("bytes of small files", &["altered-chunks"], |store| alter(&largest(files_named(store, "data")))),
        ("data files cut short", &["altered-chunks"], |store| {
            File::options()
                .write(true)
                .open(largest(files_named(store, "data")))
                .unwrap()
                .set_len(1)
                .unwrap();
        }),
        ("a merged tree", &["damaged-tree"], |store| {
            let mut trees = files(&store.join("trees"));
            trees.retain(|path| !path.starts_with(store.join("trees/ingest")));
            alter(&trees[0]);
        }),
        ("a stranger", &["stranger"], |store| fs::write(store.join("trees/notes.txt"), "mine").unwrap()),
    ];
    for form in [SMALL_CHUNKS, Form::GZIP] {
        let layers = layers();
        let model = Model::of(&layers).unwrap().tree();
        for (name, expected, damage) in &cases {
            let registry = FakeRegistry::start();
            let peel = Peel::new();
            let mut layout = Layout::create(peel.scratch().join("layout"));
            layout.image("test", &layers, form);
            let reference = layout.serve(&registry, "checked", "test");
            mount_reads(&peel, &reference, &model);
            let report = is_well(&peel);
            assert!(report["chunks"].as_u64().unwrap() > 0, "{report:#}");

            damage(peel.store());
            let (code, report) = check(&peel, &[]);
            assert_eq!((code, kinds(&report)), (6, expected.to_vec()), "{name}, {form:?}: {report:#}");
            let (code, report) = check(&peel, &["--repair"]);
            if *expected == ["stranger"] {
                assert_eq!(code, 6, "{name}: {report:#}");
                continue;
            }
            assert_eq!(code, 0, "{name}, {form:?}: {report:#}");
            is_well(&peel);
            mount_reads(&peel, &reference, &model);
            is_well(&peel);
        }
    }
}

#[test]
fn chunks_are_repaired_under_a_mount_that_goes_on() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let layers = vec![vec![TestEntry::file("file", Content::Noise { seed: 1, length: 100_000 })]];
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &layers, SMALL_CHUNKS);
    let reference = layout.serve(&registry, "checked", "test");
    let model = Model::of(&layers).unwrap().tree();
    mount_reads(&peel, &reference, &model);
    // A proof that is still under way would take what is altered for what the archive says.
    peel.succeed(&["explain", "--prove", &reference]);
    let _mount = peel.mount(&reference);
    alter(&largest(files_named(peel.store(), "data")));
    let (code, report) = check(&peel, &["--repair"]);
    assert_eq!((code, kinds(&report)), (0, vec!["altered-chunks"]), "{report:#}");
    let before = registry.counters().blobs;
    // A second mount has none of the first one's pages in the kernel's cache.
    let other = peel.mount(&reference);
    assert_same(&Tree::walk(other.path()), &model, &[]);
    assert!(registry.counters().blobs > before, "what was discarded is fetched again");
    is_well(&peel);
}

#[test]
fn records_that_contradict_each_other_are_begun_anew_with_what_is_known() {
    let peel = Peel::new();
    let layers = layers();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, Form::ESTARGZ);
    peel.mount(&reference).unmount();
    peel.wait_for_servers_to_end();
    let before = peel.json(&["ls", "--json"]);
    peel.succeed(&["lease", "create", "kept", &reference]);
    let database = rusqlite::Connection::open(peel.store().join("peel.db")).unwrap();
    database.execute_batch("PRAGMA foreign_keys = OFF; DELETE FROM layers").unwrap();
    drop(database);
    let (code, report) = check(&peel, &[]);
    assert_eq!((code, kinds(&report)), (6, vec!["damaged-records"]), "{report:#}");
    let (code, report) = check(&peel, &["--repair"]);
    assert_eq!(code, 0, "{report:#}");
    let without_use = |images: &Value| {
        let mut image = images[0].clone();
        image["last_used"].take();
        image
    };
    assert_eq!(without_use(&peel.json(&["ls", "--json"])), without_use(&before));
    assert_eq!(peel.json(&["lease", "ls", "--json"])[0]["records"].as_array().unwrap().len(), 1);
    mount_reads(&peel, &reference, &Model::of(&layers).unwrap().tree());
    is_well(&peel);
}

fn set_aside(peel: &Peel) -> usize {
    let entries = fs::read_dir(peel.store()).unwrap().map(|entry| entry.unwrap().file_name());
    let aside = |name: &std::ffi::OsString| {
        let name = name.to_str().unwrap();
        name.starts_with("peel.db.damaged-") && !name.ends_with("-wal") && !name.ends_with("-shm")
    };
    entries.filter(aside).count()
}

#[test]
fn a_damaged_database_is_kept_aside_and_what_it_said_of_images_is_known_again_without_the_network() {
    type Damage = fn(&Path);
    let damages: [(&str, bool, Damage); 3] = [
        ("overwritten", true, |path| fs::write(path, vec![0xa5; 100_000]).unwrap()),
        ("lost", false, |path| fs::remove_file(path).unwrap()),
        ("a page in the middle", true, |path| {
            // The first page of the table of images.
            let database = rusqlite::Connection::open(path).unwrap();
            let sql = "SELECT rootpage FROM sqlite_schema WHERE name = 'images'";
            let page: u32 = database.query_row(sql, [], |row| row.get(0)).unwrap();
            let size: u32 = database.query_row("PRAGMA page_size", [], |row| row.get(0)).unwrap();
            drop(database);
            let file = File::options().write(true).open(path).unwrap();
            file.write_all_at(&vec![0xa5; size as usize], u64::from((page - 1) * size)).unwrap();
        }),
    ];
    for (name, is_aside, damage) in damages {
        let mut registry = FakeRegistry::start();
        let peel = Peel::new();
        let layers = layers();
        let mut layout = Layout::create(peel.scratch().join("layout"));
        layout.image("test", &layers, SMALL_CHUNKS);
        let reference = layout.serve(&registry, "checked", "test");
        mount_reads(&peel, &reference, &Model::of(&layers).unwrap().tree());
        peel.succeed(&["tag", &reference, "localhost/other:tag"]);
        peel.succeed(&["pull", &layout.reference("test")]);
        peel.succeed(&["rm", &layout.reference("test")]);
        let names = |peel: &Peel| -> Vec<String> {
            let images = peel.json(&["ls", "--json"]);
            images.as_array().unwrap().iter().map(|image| image["reference"].to_string()).collect()
        };
        let records = |peel: &Peel| -> Vec<String> {
            let records = peel.json(&["records", "--json"]);
            let mut blobs: Vec<_> =
                records.as_array().unwrap().iter().map(|record| record["blob"].to_string()).collect();
            blobs.sort();
            blobs
        };
        let (names_before, records_before) = (names(&peel), records(&peel));
        assert_eq!((names_before.len(), records_before.len()), (2, layers.len()));

        // All of it is in one file.
        let path = peel.store().join("peel.db");
        rusqlite::Connection::open(&path)
            .unwrap()
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
            .unwrap();
        damage(&path);
        registry.down();
        assert_eq!(names(&peel), names_before, "{name}");
        assert_eq!(set_aside(&peel), usize::from(is_aside), "{name}");
        assert_eq!(records(&peel), records_before, "{name}");
        let (code, report) = check(&peel, &["--repair"]);
        assert_eq!((code, kinds(&report)), (0, vec![]), "{name}: {report:#}");
        mount_reads(&peel, &reference, &Model::of(&layers).unwrap().tree());
        mount_reads(&peel, "localhost/other:tag", &Model::of(&layers).unwrap().tree());
        is_well(&peel);
    }
}

#[test]
fn a_mount_that_is_alive_while_its_database_is_lost_goes_on_and_keeps_what_it_uses() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let layers = layers();
    layout.image("test", &layers, SMALL_CHUNKS);
    let reference = layout.serve(&registry, "checked", "test");
    let mount = peel.mount(&reference);
    fs::write(peel.store().join("peel.db"), vec![0xa5; 100_000]).unwrap();
    peel.succeed(&["rm", "--now", &reference]);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
    mount.unmount();
    peel.wait_for_servers_to_end();
    is_well(&peel);
}

#[test]
fn a_record_whose_parent_is_gone_is_removed_and_made_again() {
    let peel = Peel::new();
    let layers = layers();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, Form::ESTARGZ);
    peel.succeed(&["pull", &reference]);
    let database = rusqlite::Connection::open(peel.store().join("peel.db")).unwrap();
    let sql = "PRAGMA foreign_keys = OFF; DELETE FROM cache_records WHERE kind = 'base'";
    database.execute_batch(sql).unwrap();
    drop(database);
    let (code, report) = check(&peel, &[]);
    assert_eq!((code, kinds(&report)), (6, vec!["dangling-parent"]), "{report:#}");
    let (code, report) = check(&peel, &["--repair"]);
    assert_eq!((code, kinds(&report)), (0, vec!["dangling-parent"]), "{report:#}");
    let records = peel.json(&["records", "--json"]);
    assert_eq!(
        records.as_array().unwrap().len(),
        layers.len(),
        "an image's records are made when they are asked for"
    );
    is_well(&peel);
    mount_reads(&peel, &reference, &Model::of(&layers).unwrap().tree());
}

#[test]
fn a_mount_whose_process_was_killed_is_told_of() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers(), Form::ESTARGZ);
    let mount = peel.mount(&reference);
    assert_eq!(peel.kill_servers(), 1);
    let report = is_well(&peel);
    assert_eq!(report["dead_mounts"], serde_json::json!([mount.path().to_str().unwrap()]));
    assert_eq!(report["stale_sessions"], 1);
    let (code, report) = check(&peel, &["--repair"]);
    assert_eq!((code, report["dead_mounts"].as_array().unwrap().len()), (0, 1));
    assert!(!is_mount_point(mount.path()));
    let report = is_well(&peel);
    assert_eq!(
        (&report["dead_mounts"], &report["stale_sessions"]),
        (&serde_json::json!([]), &serde_json::json!(0))
    );
}
