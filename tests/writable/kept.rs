//! What was changed is a cache record: it is listed and kept as one, becomes a layer without being copied, and comes back from a lost database and
//! from stores of earlier versions.

use super::{link_counts_of_an_overlay, small_image, small_layers};
use crate::support::blob::Form;
use crate::support::image::Layout;
use crate::support::peel::{Peel, duration_of, instants};
use crate::support::small_disk::SmallDisk;
use crate::support::tree::{Tree, assert_same};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

fn snapshots(peel: &Peel) -> Vec<Value> {
    peel.json(&["snapshot", "ls", "--json"]).as_array().unwrap().clone()
}

/// The one snapshot that there is.
#[track_caller]
fn only_snapshot(peel: &Peel) -> Value {
    let [one] = &snapshots(peel)[..] else { panic!("one snapshot") };
    one.clone()
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value:#}")).to_owned()
}

fn record(peel: &Peel, key: &str) -> Value {
    peel.json(&["records", key, "--json"])
}

/// The directory of a record's changes.
fn changes(peel: &Peel, record: &str) -> PathBuf {
    peel.store().join("snapshots").join(record).join("fs")
}

#[track_caller]
fn all_is_well(peel: &Peel) {
    let report = peel.json(&["check", "--json"]);
    assert_eq!(report["findings"], json!([]), "{report:#}");
}

/// Mounts `reference` with the snapshot `work`, writes a file, and unmounts.
fn write(peel: &Peel, reference: &str, name: &str, content: &str) {
    let mount = peel.mount_with(reference, &["--snapshot", "work"]);
    fs::write(mount.join(name), content).unwrap();
    mount.unmount();
    peel.wait_for_servers_to_end();
}

#[track_caller]
fn holds(peel: &Peel, reference: &str, options: &[&str], files: &[(&str, &str)]) {
    let mount = peel.mount_with(reference, options);
    for (name, content) in files {
        assert_eq!(fs::read_to_string(mount.join(name)).ok().as_deref(), Some(*content), "{name}");
    }
    assert_eq!(fs::read_to_string(mount.join("etc/passwd")).unwrap(), "root:x:0:0\n");
    mount.unmount();
    peel.wait_for_servers_to_end();
}

#[test]
fn changes_are_a_mutable_record_that_its_mount_holds_and_its_name_keeps() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    fs::write(mount.join("kept"), "kept").unwrap();
    let id = text(&only_snapshot(&peel), "record");
    let held = record(&peel, "work");
    assert_eq!((&held["id"], &held["mutable"], &held["retained"]), (&json!(id), &json!(true), &json!(true)));
    assert_eq!(held["parents"], json!([record(&peel, &reference)["id"]]));
    assert_eq!((&held["kind"], &held["names"]), (&json!("layer"), &json!(["work"])));
    assert_eq!(held["held_by"], json!(peel.servers()));
    assert!(held["disk_bytes"].as_u64().unwrap() >= 4096);
    mount.unmount();
    peel.wait_for_servers_to_end();
    assert_eq!(record(&peel, "work")["held_by"], json!([]));
    // Its image has no name any more, and nothing is to be kept but what must be.
    peel.succeed(&["rm", &reference]);
    peel.succeed(&["gc", "--keep-bytes", "0"]);
    peel.succeed(&["prune", "--filter", "mutable=true"]);
    all_is_well(&peel);
    holds(&peel, &reference, &["--snapshot", "work", "--pull=never"], &[("kept", "kept")]);
    peel.succeed(&["snapshot", "rm", "work"]);
    assert_eq!(peel.run(&["records", &id]).code, Some(3));
    assert!(!changes(&peel, &id).exists());
    peel.succeed(&["gc"]);
    assert_eq!(peel.json(&["records", "--json"]), json!([]), "nothing keeps the image any more");
    all_is_well(&peel);
}

#[test]
fn what_is_not_mounted_becomes_a_layer_without_being_copied_and_what_comes_then_lies_above_it() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    write(&peel, &reference, "first", "1");
    let before = text(&only_snapshot(&peel), "record");
    let inode = |record: &str| fs::metadata(changes(&peel, record).join("first")).unwrap().ino();
    let (number, base) = (inode(&before), record(&peel, &reference));
    let made = peel.json(&["commit", "work", "--json"]);
    assert_eq!(made["reference"], "localhost/work:latest");

    let committed = only_snapshot(&peel);
    let id = text(&committed, "record");
    assert_eq!(committed["committed"], json!(true));
    assert_eq!((inode(&id), changes(&peel, &before).exists()), (number, false), "it was moved");
    assert_eq!(peel.run(&["records", &before]).code, Some(3), "the mutable record is no more");
    let layer = record(&peel, "work");
    assert_eq!((&layer["mutable"], &layer["parents"]), (&json!(false), &json!([base["id"]])));
    assert_eq!((&layer["blob"], &layer["diff_id"]), (&made["layer"]["digest"], &made["layer"]["diff_id"]));
    assert_eq!(layer["names"], json!(["localhost/work:latest", "work"]), "the image is that record");
    // In another compression, of the same.
    let zstd = peel.json(&["commit", "work", "--tag", "other", "--format", "zstd", "--json"]);
    assert_eq!(zstd["layer"]["diff_id"], made["layer"]["diff_id"]);
    assert_eq!(record(&peel, "work")["variants"], json!([zstd["layer"]["digest"]]));
    peel.succeed(&["commit", &id, "--tag", "third", "--format", "estargz"]);
    for image in ["localhost/work", "localhost/other", "localhost/third"] {
        holds(&peel, image, &[], &[("first", "1")]);
    }
    all_is_well(&peel);

    write(&peel, &reference, "second", "2");
    let above = only_snapshot(&peel);
    let above_id = text(&above, "record");
    assert_eq!((&above["committed"], &above["reference"]), (&json!(false), &json!(reference)));
    assert_eq!(record(&peel, &above_id)["parents"], json!([id]));
    assert!(!changes(&peel, &above_id).join("first").exists());
    peel.succeed(&["commit", "work", "--tag", "both"]);
    let both = peel.json(&["show", "localhost/both", "--json"]);
    assert_eq!(both["layers"].as_array().unwrap().len(), small_layers().len() + 2);
    holds(&peel, "localhost/both", &[], &[("first", "1"), ("second", "2")]);

    // The image has its layer; what it was made of is not needed for that.
    let third = text(&only_snapshot(&peel), "record");
    peel.succeed(&["snapshot", "rm", "work"]);
    assert!(!changes(&peel, &third).exists());
    assert_eq!(snapshots(&peel), [] as [Value; 0]);
    peel.succeed(&["gc"]);
    holds(&peel, "localhost/both", &[], &[("first", "1"), ("second", "2")]);
    all_is_well(&peel);
    for name in ["work", "other", "third", "both"] {
        peel.succeed(&["rm", &format!("localhost/{name}")]);
    }
    peel.succeed(&["rm", &reference]);
    peel.succeed(&["gc"]);
    assert_eq!(peel.json(&["records", "--json"]), json!([]));
    let left = fs::read_dir(peel.store().join("snapshots"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name() != "ingest");
    assert_eq!(left.count(), 0);
}

#[test]
fn a_committed_snapshot_is_merged_compared_and_pushed_like_any_image() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    write(&peel, &reference, "first", "1");
    let made = peel.json(&["commit", "work", "--json"]);
    // Made again of the snapshot when it is needed.
    peel.succeed(&["rm", "localhost/work"]);
    for digest in [&made["manifest_digest"], &made["layer"]["digest"]] {
        let path = digest.as_str().unwrap().replace(':', "/");
        fs::remove_file(peel.store().join("content/blobs").join(path)).unwrap();
    }
    write(&peel, &reference, "second", "2");
    peel.succeed(&["commit", "work", "--tag", "both"]);
    peel.succeed(&["diff", "made", &reference, "localhost/both"]);
    peel.succeed(&["merge", "again", &reference, "localhost/made"]);
    holds(&peel, "localhost/again", &[], &[("first", "1"), ("second", "2")]);
    let layout = format!("oci:{}:pushed", peel.scratch().join("pushed").display());
    peel.succeed(&["push", "localhost/both", &layout]);
    let other = Peel::new();
    holds(&other, &layout, &[], &[("first", "1"), ("second", "2")]);
}

#[test]
fn names_and_changes_come_back_when_the_database_is_lost() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    write(&peel, &reference, "first", "1");
    peel.succeed(&["commit", "work"]);
    write(&peel, &reference, "second", "2");
    let id = text(&only_snapshot(&peel), "record");
    for suffix in ["", "-wal", "-shm"] {
        let _ = fs::remove_file(peel.store().join(format!("peel.db{suffix}")));
    }
    let found = snapshots(&peel);
    let named: Vec<String> = found.iter().map(|one| text(one, "name")).collect();
    assert!(named.len() == 2 && named[0] == "work" && named[1].starts_with("work-"), "{named:?}");
    assert_eq!(text(&found[0], "record"), id, "the later one has the name");
    holds(&peel, &reference, &["--snapshot", "work"], &[("first", "1"), ("second", "2")]);
    holds(&peel, &reference, &["--snapshot", &named[1]], &[("first", "1")]);
    all_is_well(&peel);
    peel.succeed(&["commit", "work", "--tag", "both"]);
    holds(&peel, "localhost/both", &[], &[("first", "1"), ("second", "2")]);
}

/// As earlier versions kept it.
fn as_before(peel: &Peel, name: &str, changes: &str) {
    let (id, directory) = (text(&only_snapshot(peel), "record"), peel.store().join("writable").join(name));
    let mut note: Value = serde_json::from_slice(
        &fs::read(peel.store().join("snapshots").join(&id).join("snapshot.json")).unwrap(),
    )
    .unwrap();
    let fields = note.as_object_mut().unwrap();
    fields.insert("version".to_owned(), 1.into());
    fields.remove("name");
    fields.remove("generation");
    peel.succeed(&["snapshot", "rm", "work"]);
    for part in ["fs", "work/work", "lower"] {
        fs::create_dir_all(directory.join(part)).unwrap();
    }
    fs::create_dir_all(peel.store().join("writable/ingest/1-1/fs")).unwrap();
    fs::write(directory.join("fs/changed"), changes).unwrap();
    fs::write(directory.join("snapshot.json"), note.to_string()).unwrap();
}

#[test]
fn what_earlier_versions_kept_is_brought_over_with_its_name() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    write(&peel, &reference, "first", "1");
    as_before(&peel, "old", "before");
    peel.succeed(&["rm", &reference]);
    // Whatever is the first to look.
    peel.succeed(&["gc", "--keep-bytes", "0"]);
    let one = only_snapshot(&peel);
    assert_eq!((&one["name"], &one["reference"]), (&json!("old"), &json!(reference)));
    assert!(!peel.store().join("writable").exists());
    holds(&peel, &reference, &["--snapshot", "old", "--pull=never"], &[("changed", "before")]);
    all_is_well(&peel);
    peel.succeed(&["commit", "old"]);
    holds(&peel, "localhost/old", &[], &[("changed", "before")]);
}

#[test]
fn what_earlier_versions_have_mounted_stays_until_it_is_not_and_what_cannot_be_read_stays() {
    use rustix::fs::{FlockOperation, flock};
    let peel = Peel::new();
    let reference = small_image(&peel);
    write(&peel, &reference, "first", "1");
    as_before(&peel, "old", "before");
    // A process of an earlier version holds it.
    let lock = fs::File::create(peel.store().join("locks/snapshot-old")).unwrap();
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    peel.succeed(&["rm", &reference]);
    peel.succeed(&["gc", "--keep-bytes", "0"]);
    assert_eq!(snapshots(&peel), [] as [Value; 0]);
    assert!(peel.store().join("writable/old/fs/changed").exists());
    drop(lock);
    fs::create_dir_all(peel.store().join("writable/damaged/fs")).unwrap();
    fs::write(peel.store().join("writable/damaged/snapshot.json"), "{").unwrap();
    holds(&peel, &reference, &["--snapshot", "old", "--pull=never"], &[("changed", "before")]);
    assert!(peel.store().join("writable/damaged/snapshot.json").exists(), "nothing is lost");
}

#[test]
fn a_commit_of_a_snapshot_that_is_killed_loses_nothing_and_goes_on() {
    let peel = Peel::new();
    let reference = small_image(&peel);
    write(&peel, &reference, "round", "-");
    let whole = duration_of(|| drop(peel.succeed(&["commit", "work", "--tag", "first"])));
    for (round, instant) in instants(whole).enumerate() {
        let content = round.to_string();
        write(&peel, &reference, "round", &content);
        peel.killed_after(instant, &["commit", "work", "--tag", "killed"]);
        // As the next command finds it: with the changes, by their name.
        if round % 2 == 0 {
            peel.succeed(&["commit", "work", "--tag", "next"]);
            all_is_well(&peel);
            holds(&peel, "localhost/next", &[], &[("round", &content)]);
        }
        holds(&peel, &reference, &["--snapshot", "work"], &[("round", &content)]);
        all_is_well(&peel);
    }
}

#[test]
fn a_full_disk_leaves_what_was_to_be_committed_as_it_was() {
    let peel = Peel::new();
    let disk = SmallDisk::make(peel.store(), 6);
    let reference = small_image(&peel);
    let noise = crate::support::content::Content::Noise { seed: 1, length: 3 << 20 }.to_vec();
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    fs::write(mount.join("half"), &noise).unwrap();
    mount.unmount();
    peel.wait_for_servers_to_end();
    let before = only_snapshot(&peel);
    let outcome = peel.run(&["commit", "work"]);
    assert_eq!(outcome.code, Some(8), "{outcome:?}");
    assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
    assert_eq!(only_snapshot(&peel)["record"], before["record"]);
    disk.grow(64);
    peel.succeed(&["commit", "work"]);
    let image = peel.mount("localhost/work");
    assert_eq!(fs::read(image.join("half")).unwrap(), noise);
    image.unmount();
    all_is_well(&peel);
}

#[test]
fn an_image_made_of_an_unmounted_snapshot_is_that_made_of_the_mount() {
    let peel = Peel::new();
    let layers = small_layers();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, Form::GZIP);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    super::changing::change_everything(mount.path());
    let live = peel.json(&["commit", mount.path().to_str().unwrap(), "--tag", "live", "--json"]);
    mount.unmount();
    peel.wait_for_servers_to_end();
    let apart = peel.json(&["commit", "work", "--tag", "apart", "--json"]);
    assert_eq!(apart["layer"], live["layer"]);
    assert_eq!(apart["left_out"], live["left_out"]);
    // What the commit before was of is below now.
    let (mount, live) = (peel.mount_with(&reference, &["--snapshot", "work"]), peel.mount("localhost/live"));
    assert_same(&Tree::walk(mount.path()), &Tree::walk(live.path()), &[link_counts_of_an_overlay()]);
    live.unmount();
    mount.unmount();
}
