//! Promise: who reads most of an image gets the rest as fast as by a pull, and who does not is not sent it; and what is asked for in the
//! background comes to its end without disturbing anybody.

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::peel::{Mount, Peel, kill_and_wait};
use crate::support::registry::{FakeRegistry, Fault, Kind};
use crate::support::small_disk::SmallDisk;
use std::fs;
use tempfile::TempDir;

const MEBIBYTE: u64 = 1 << 20;
const FILES: u64 = 1200;
const LENGTH: u64 = 20_000;

fn name(number: u64) -> String {
    format!("directory-{:02}/file-{number:04}", number / 100)
}

fn content(number: u64) -> Content {
    Content::Noise { seed: number, length: LENGTH }
}

/// An image of 24 MB in many files that do not compress, in a registry.
fn many_files() -> (FakeRegistry, String, TempDir) {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let files = (0..FILES).map(|number| TestEntry::file(name(number), content(number))).collect();
    let mut layout = Layout::create(directory.path());
    layout.image("test", &[files], Form::ESTARGZ);
    let reference = layout.serve(&registry, "many", "test");
    (registry, reference, directory)
}

fn read(mount: &Mount<'_>, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        assert!(fs::read(mount.join(&name(number))).unwrap() == content(number).to_vec(), "{number}");
    }
}

/// All of them, one far from the other.
fn in_no_order() -> impl Iterator<Item = u64> {
    (0..FILES).map(|step| step * 487 % FILES)
}

/// Lengths of the ranges that were asked for.
fn requested(registry: &FakeRegistry) -> Vec<u64> {
    let requests = registry.requests().into_iter().filter(|request| request.kind == Kind::Blob);
    requests.map(|request| request.bytes).collect()
}

fn largest(registry: &FakeRegistry) -> u64 {
    requested(registry).into_iter().max().unwrap_or(0)
}

#[test]
fn who_reads_every_file_in_no_order_gets_the_layer_in_large_requests() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    registry.reset_counters();
    read(&mount, in_no_order());
    let (requests, bytes) = (requested(&registry), registry.counters().blob_bytes);
    assert!(largest(&registry) > MEBIBYTE, "{requests:?}");
    assert!(requests.len() < 100, "{} requests", requests.len());
    assert!(bytes < FILES * LENGTH * 5 / 4, "{bytes} bytes");
    mount.unmount();
}

#[test]
fn a_layer_of_few_files_comes_with_the_others_of_a_tree_that_is_read_in_no_order() {
    const LARGE: u64 = 48;
    let large = |number: u64| Content::Noise { seed: FILES + number, length: 25 * LENGTH };
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let many = (0..FILES).map(|number| TestEntry::file(name(number), content(number))).collect();
    let few = (0..LARGE).map(|number| TestEntry::file(format!("large-{number:02}"), large(number))).collect();
    let mut layout = Layout::create(directory.path());
    layout.image("test", &[many, few], Form::ESTARGZ);
    let reference = layout.serve(&registry, "many", "test");
    let upper = layout.manifest("test")["layers"][1]["digest"].as_str().unwrap().to_owned();
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    registry.reset_counters();
    // One of the large ones after each 25 of the others.
    for (step, number) in in_no_order().enumerate() {
        read(&mount, [number]);
        if step % 25 == 24 {
            let number = step as u64 / 25 * 11 % LARGE;
            let read = fs::read(mount.join(&format!("large-{number:02}"))).unwrap();
            assert!(read == large(number).to_vec(), "{number}");
        }
    }
    let of_upper = registry.requests().into_iter().filter(|request| request.target.contains(&upper));
    let lengths: Vec<u64> = of_upper.map(|request| request.bytes).collect();
    // The first of them by itself, and then the others as they lie.
    assert!(lengths.len() < LARGE as usize / 2, "{} requests: {lengths:?}", lengths.len());
    mount.unmount();
}

#[test]
fn who_reads_a_fifth_of_a_layer_gets_no_more_than_he_asks_for_and_guesses() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    registry.reset_counters();
    // Two directories and some files beside.
    read(&mount, (100..200).chain(700..800).map(|number| number ^ 1).chain([3, 450, 999]));
    let bytes = registry.counters().blob_bytes;
    assert!(bytes < 2 * 203 * LENGTH + MEBIBYTE, "{bytes} bytes, {:?}", requested(&registry));
    mount.unmount();
}

#[test]
fn a_store_without_room_for_all_of_a_layer_is_not_filled_with_it() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    peel.succeed(&["store", "--budget", "16MiB"]);
    let mount = peel.mount(&reference);
    registry.reset_counters();
    read(&mount, in_no_order().take(300));
    assert!(largest(&registry) < MEBIBYTE, "{:?}", requested(&registry));
    mount.unmount();
}

fn completion(peel: &Peel) -> String {
    peel.json(&["status", "--json"])[0]["completion"].as_str().unwrap_or("none").to_owned()
}

#[track_caller]
fn becomes_complete(peel: &Peel) {
    peel.wait_for(|| completion(peel) == "complete");
    let status = peel.json(&["status", "--json"]);
    assert_eq!(status[0]["present_bytes"], status[0]["blob_bytes"], "{status}");
}

#[test]
fn a_mount_that_is_completed_needs_no_registry_afterwards() {
    let (mut registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    let mount = peel.mount_with(&reference, &["--complete"]);
    becomes_complete(&peel);
    let explained = peel.succeed(&["explain", &reference]);
    assert!(explained.contains("proved"), "{explained}");
    registry.down();
    read(&mount, in_no_order());
    mount.unmount();
    assert_eq!(peel.run(&["complete", &reference]).code, Some(3), "it is not mounted");
}

#[test]
fn a_completion_is_begun_paused_and_resumed_while_the_image_is_mounted() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    assert_eq!(completion(&peel), "none", "nobody asked for it");
    // Not two requests in the time of a test.
    let path = mount.path().to_str().unwrap().to_owned();
    registry.reset_counters();
    peel.succeed(&["complete", &path, "--rate", "1K"]);
    peel.wait_for(|| registry.counters().blobs > 0);
    assert_eq!(peel.json(&["status", "--json"])[0]["completion_rate"], 1024);
    peel.succeed(&["complete", &reference, "--pause"]);
    peel.wait_for(|| completion(&peel) == "paused");
    assert_eq!(registry.counters().blobs, 1);
    read(&mount, [5]);
    peel.succeed(&["complete", &path, "--resume", "--rate", "none"]);
    becomes_complete(&peel);
    assert!(largest(&registry) < 3 * MEBIBYTE / 2, "{:?}", requested(&registry));
    mount.unmount();
    let left = fs::read_dir(peel.store().join("run")).unwrap().map(|entry| entry.unwrap().file_name());
    let left: Vec<_> = left.filter(|name| name != "ended").collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().ends_with("wish")), "{left:?}");
}

#[test]
fn a_completion_goes_on_when_the_serving_process_is_killed() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    let mount = peel.mount_with(&reference, &["--complete=1K"]);
    registry.reset_counters();
    peel.wait_for(|| registry.counters().blobs > 0);
    peel.succeed(&["complete", &reference, "--pause"]);
    peel.wait_for(|| completion(&peel) == "paused");
    for server in peel.servers() {
        kill_and_wait(server);
    }
    // The successor knows what was wished last, and not only how the mount began.
    read(&mount, [5]);
    assert_eq!(completion(&peel), "paused");
    peel.succeed(&["complete", &reference, "--rate", "none"]);
    becomes_complete(&peel);
    mount.unmount();
    peel.is_clean();
}

#[test]
fn a_completion_that_fails_says_so_once_and_is_tried_again_when_somebody_asks() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    let log = peel.scratch().join("log");
    let mount = peel.mount_with(&reference, &["--log", log.to_str().unwrap()]);
    registry.set_fault("blobs/", Fault::Status(404));
    peel.succeed(&["complete", &reference]);
    peel.wait_for(|| completion(&peel) == "retrying");
    let told = fs::read_to_string(&log).unwrap();
    assert_eq!(told.matches("tried again later").count(), 1, "{told}");
    let status = peel.succeed(&["status"]);
    assert!(status.contains(&format!("{}: retrying: ", mount.path().display())), "{status}");
    assert!(status.contains("404"), "{status}");
    registry.clear_faults();
    peel.succeed(&["complete", &reference]);
    becomes_complete(&peel);
    mount.unmount();
}

#[test]
fn what_is_wished_of_a_mount_while_it_ends_leaves_nothing_behind() {
    let (_registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    for _ in 0..12 {
        let mount = peel.mount(&reference);
        let path = mount.path().to_owned();
        std::thread::scope(|scope| {
            scope.spawn(|| while peel.run(&["complete", path.to_str().unwrap()]).code == Some(0) {});
            mount.unmount();
        });
        peel.wait_for_servers_to_end();
        let files = fs::read_dir(peel.store().join("run")).unwrap().map(|file| file.unwrap().file_name());
        // What was counted of mounts that have ended.
        let left: Vec<_> = files.filter(|name| name != "ended").collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_completion_evicts_nothing_for_a_budget() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    peel.succeed(&["store", "--budget", "16MiB"]);
    let mount = peel.mount(&reference);
    read(&mount, [5]);
    registry.reset_counters();
    peel.succeed(&["complete", &reference]);
    peel.wait_for(|| completion(&peel) == "retrying");
    assert_eq!(registry.counters().blobs, 0);
    peel.succeed(&["store", "--budget", "none"]);
    peel.succeed(&["complete", &reference]);
    becomes_complete(&peel);
    mount.unmount();
}

#[test]
fn a_completion_does_not_fill_the_disk() {
    let (registry, reference, _blobs) = many_files();
    let peel = Peel::new();
    // Unmounted before the directory of the store is removed.
    let disk = SmallDisk::make(peel.store(), 16);
    let mount = peel.mount(&reference);
    registry.reset_counters();
    peel.succeed(&["complete", &reference]);
    peel.wait_for(|| completion(&peel) == "retrying");
    assert_eq!(registry.counters().blobs, 0);
    disk.grow(128);
    peel.succeed(&["complete", &reference]);
    becomes_complete(&peel);
    mount.unmount();
}
