//! Promise: a command that finds no room for what it writes says so, or does its work all the same, and in both cases the store stays what
//! it was or becomes what it should: nothing in between, nothing lost, and with room the command works. Each command is run with a little
//! more room each time, from none on, so that the disk is full at another place of its work.

use std::fs;
use std::path::Path;

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Outcome, Peel};
use crate::support::registry::FakeRegistry;
use crate::support::small_disk::SmallDisk;
use crate::support::tree::{Tree, assert_same};

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });
/// Pages of 4 KiB that are free while a command runs.
const ROOM: [u64; 6] = [0, 1, 5, 20, 60, 200];

fn layer(seed: u64) -> Vec<TestEntry> {
    let noise = |part, length| Content::Noise { seed: 100 * seed + part, length };
    (0..6).map(|part| TestEntry::file(format!("{seed}/{part}"), noise(part, 1 << (12 + part)))).collect()
}

/// A store on a disk of its own with an image that is wholly there, `one`, and one of which the tables are, `two`; `three` is not there.
struct House {
    _registry: FakeRegistry,
    _directory: tempfile::TempDir,
    // Unmounted before the directory of the store is removed.
    disk: SmallDisk,
    peel: Peel,
    references: [String; 3],
}

const IMAGES: [(&str, &[u64], Form); 3] =
    [("one", &[1, 2], Form::GZIP), ("two", &[1, 3], SMALL_CHUNKS), ("three", &[2, 4], SMALL_CHUNKS)];

impl House {
    fn new() -> House {
        let (registry, directory, peel) = (FakeRegistry::start(), tempfile::tempdir().unwrap(), Peel::new());
        let disk = SmallDisk::make(peel.store(), 64);
        let mut layout = Layout::create(directory.path());
        let references = IMAGES.map(|(tag, layers, form)| {
            let layers: Vec<_> = layers.iter().map(|seed| layer(*seed)).collect();
            layout.image(tag, &layers, form);
            layout.serve(&registry, "some/name", tag)
        });
        peel.succeed(&["extract", &references[0], "--quiet"]);
        peel.succeed(&["pull", &references[1], "--quiet"]);
        House { _registry: registry, _directory: directory, disk, peel, references }
    }

    /// The names of all images, and what they name: but of those made here, which tell when they were made.
    fn names(&self) -> Vec<(String, Option<String>)> {
        let list = self.peel.json(&["ls", "--json"]);
        let images = list.as_array().unwrap().iter().map(|image| {
            let text = |key: &str| image[key].as_str().unwrap().to_owned();
            let is_made_here = text("reference").starts_with("localhost/");
            (text("reference"), (!is_made_here).then(|| text("manifest_digest")))
        });
        images.collect()
    }

    #[track_caller]
    fn is_whole(&self) {
        for ((_, layers, _), reference) in IMAGES.iter().zip(&self.references) {
            let layers: Vec<_> = layers.iter().map(|seed| layer(*seed)).collect();
            let mount = self.peel.mount(reference);
            assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
            mount.unmount();
        }
        self.peel.succeed(&["rm", "--now", &self.references[2]]);
    }

    /// Runs a command in little room again and again, and after each time, with room again, what takes back what it did.
    #[track_caller]
    fn in_little_room(&self, command: &[&str], undo: &[&[&str]]) {
        self.in_little_room_and(command, |_| {
            for undoing in undo {
                self.peel.run(undoing);
            }
        });
    }

    #[track_caller]
    fn in_little_room_and(&self, command: &[&str], undo: impl Fn(&Peel)) {
        let before = self.names();
        let mut seen = Vec::new();
        // The last time there is room enough.
        for room in ROOM.into_iter().map(Some).chain([None]) {
            let filled = room.map(|pages| self.disk.fill_up_to(pages));
            let outcome = self.peel.run(command);
            drop(filled);
            self.peel.is_clean();
            seen.push((outcome.code, self.names()));
            if outcome.code != Some(0) {
                says_that_there_is_no_room(command, &outcome);
            }
            undo(&self.peel);
            assert_eq!(self.names(), before, "{command:?}");
        }
        let (code, after) = seen.last().unwrap();
        assert_eq!(*code, Some(0), "{command:?} with room");
        for (code, names) in &seen {
            // Each name is as before or as afterwards: a command may have done a part that stands by itself, such as to pull what it was
            // to extract.
            let is_known = names.iter().all(|name| before.contains(name) || after.contains(name));
            let is_kept = before.iter().all(|name| names.contains(name) || !after.contains(name));
            let is_allowed = names == after || *code != Some(0) && is_known && is_kept;
            assert!(is_allowed, "{command:?}: {code:?} {names:?}");
        }
        self.is_whole();
        self.peel.is_clean();
    }
}

#[track_caller]
fn says_that_there_is_no_room(command: &[&str], outcome: &Outcome) {
    let words = ["No space left on device", "database or disk is full"];
    assert!(words.iter().any(|words| outcome.stderr.contains(words)), "{command:?}: {outcome:?}");
    assert!(matches!(outcome.code, Some(7 | 8)), "{command:?}: {outcome:?}");
}

#[test]
fn of_commands_that_bring_images() {
    let house = House::new();
    let three = house.references[2].as_str();
    let forget: &[&[&str]] = &[&["rm", "--now", three]];
    house.in_little_room(&["pull", three, "--quiet"], forget);
    house.in_little_room(&["extract", three, "--quiet"], forget);
    house.in_little_room(&["extract", three, "4/3", "--quiet"], forget);
    let point = house.peel.mount_point();
    let point = point.to_str().unwrap();
    house.in_little_room(&["mount", three, point], &[&["unmount", point], &["rm", "--now", three]]);
}

#[test]
fn of_commands_that_name_and_keep() {
    let house = House::new();
    let [one, two, _] = house.references.each_ref().map(String::as_str);
    house.in_little_room(&["tag", one, "localhost/other"], &[&["rm", "localhost/other"]]);
    house.in_little_room(&["lease", "create", "kept", one], &[&["lease", "rm", "kept"]]);
    house.in_little_room(&["rm", two], &[&["pull", two]]);
    house.in_little_room(&["gc", "--keep-bytes", "0"], &[&["extract", one], &["pull", two]]);
    house.in_little_room(&["store", "--budget", "100kB"], &[&["store", "--budget", "none"]]);
    house.in_little_room(&["check", "--repair"], &[]);
}

#[test]
fn of_commands_that_make_images() {
    let house = House::new();
    let [one, two, _] = house.references.each_ref().map(String::as_str);
    let made = &[&["rm", "--now", "localhost/made"][..]];
    house.in_little_room(&["merge", "made", one, two], made);
    house.in_little_room(&["diff", "made", one, two], made);
    let mount = house.peel.mount_with(one, &["--writable"]);
    for seed in 0..20 {
        let content = Content::Noise { seed, length: 20_000 };
        fs::write(mount.join(&format!("new{seed}")), content.to_vec()).unwrap();
    }
    let commit = ["commit", mount.path().to_str().unwrap(), "--tag", "localhost/made"];
    house.in_little_room(&commit, made);
    mount.unmount();
    house.peel.wait_for_servers_to_end();
}

#[test]
fn of_commands_that_only_read() {
    let house = House::new();
    let one = house.references[0].as_str();
    let destination = house.peel.scratch().join("pushed");
    let name = format!("oci:{}:pushed", destination.display());
    let remove = |_: &Peel| remove_if_there(&destination);
    house.in_little_room_and(&["push", one, &name], remove);
    house.in_little_room_and(&["convert", one, &name, "--format", "estargz"], remove);
    for command in [
        &["ls"][..],
        &["show", one],
        &["tree", one],
        &["explain", one],
        &["records"],
        &["check"],
        &["gc", "--dry-run"],
    ] {
        house.in_little_room(command, &[]);
    }
}

fn remove_if_there(directory: &Path) {
    if directory.exists() {
        fs::remove_dir_all(directory).unwrap();
    }
}
