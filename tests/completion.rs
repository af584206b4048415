//! Promise: who reads most of an image gets the rest as fast as by a pull, and who does not is not sent it.

use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::peel::{Mount, Peel};
use crate::support::registry::{FakeRegistry, Kind};
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
    assert!(largest(&registry) > 2 * MEBIBYTE, "{requests:?}");
    assert!(requests.len() < 100, "{} requests", requests.len());
    assert!(bytes < FILES * LENGTH * 5 / 4, "{bytes} bytes");
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

