//! Promise: layers that are wholly in a lower store are used where they are: nothing of them is fetched, nothing is written there, and they
//! stay as long as somebody reads them. What is not whole, or damaged, is brought as if there were no such store.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount_bind, mount_remount};

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::Peel;
use crate::support::registry::FakeRegistry;
use crate::support::tree::{Tree, assert_same};

const LAZY: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });
const STREAMED: Form = Form::Gzip { members: 3 };

fn layers() -> Vec<Vec<TestEntry>> {
    let noise = |seed, length| Content::Noise { seed, length };
    vec![
        vec![TestEntry::file("large", noise(1, 3 << 20)), TestEntry::file("small", noise(2, 5000))],
        vec![TestEntry::file("other", noise(3, 200_000)), TestEntry::file("empty", "")],
    ]
}

struct Fixture {
    registry: FakeRegistry,
    reference: String,
    _directory: tempfile::TempDir,
    lower: Peel,
    upper: Peel,
}

impl Fixture {
    /// An image of that form in a registry, two empty stores.
    fn new(form: Form) -> Fixture {
        let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
        let mut layout = Layout::create(directory.path());
        layout.image("image", &layers(), form);
        let reference = layout.serve(&registry, "some/name", "image");
        Fixture { registry, reference, _directory: directory, lower: Peel::new(), upper: Peel::new() }
    }

    fn add_lower(&self, path: &Path) {
        self.upper.succeed(&["store", "--add-lower", path.to_str().unwrap()]);
    }

    /// Mounts the image by the upper store, holds all of it against what it should be, and gives the bytes of layers that came over.
    #[track_caller]
    fn bytes_to_read_all(&self) -> u64 {
        self.registry.reset_counters();
        let mount = self.upper.mount(&self.reference);
        assert_same(&Tree::walk(mount.path()), &Model::of(&layers()).unwrap().tree(), &[]);
        mount.unmount();
        // Beside manifest and config.
        self.registry.counters().blob_bytes.saturating_sub(1000)
    }
}

/// All names below a directory, and what would show that something was written.
fn listing(path: &Path) -> BTreeMap<PathBuf, (u64, u64, i64, i64)> {
    let mut all = BTreeMap::new();
    let mut left = vec![path.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        all.insert(path, (metadata.len(), metadata.blocks(), metadata.mtime(), metadata.mtime_nsec()));
    }
    all
}

#[test]
fn whole_layers_of_a_read_only_store_are_used_where_they_are() {
    for form in [LAZY, STREAMED] {
        let fixture = Fixture::new(form);
        fixture.lower.succeed(&["extract", &fixture.reference, "--quiet"]);
        // Below the upper store's scratch directory, whose mounts are cleaned up whatever happens.
        let read_only = fixture.upper.mount_point();
        mount_bind(fixture.lower.store(), &read_only).unwrap();
        mount_remount(&read_only, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
        let before = listing(fixture.lower.store());
        fixture.add_lower(&read_only);
        for _ in 0..2 {
            assert_eq!(fixture.bytes_to_read_all(), 0, "{form:?}");
        }
        let here = fs::read_dir(fixture.upper.store().join("layers/sha256")).unwrap().count();
        assert_eq!(here, 0, "{form:?}: nothing is copied");
        assert!(listing(fixture.lower.store()) == before, "{form:?}: nothing is written");
        fixture.upper.succeed(&["gc", "--keep-bytes", "0"]);
        assert_eq!(fixture.bytes_to_read_all(), 0, "{form:?}: after a collection above");
        fixture.upper.succeed(&["store", "--remove-lower", read_only.to_str().unwrap()]);
        assert!(fixture.bytes_to_read_all() > 3 << 20, "{form:?}: it is used no more");
    }
}

#[test]
fn what_is_read_from_a_lower_store_stays_there_meanwhile() {
    let fixture = Fixture::new(LAZY);
    fixture.lower.succeed(&["extract", &fixture.reference, "--quiet"]);
    fixture.add_lower(fixture.lower.store());
    let mount = fixture.upper.mount(&fixture.reference);
    // Each would take the content of a layer that nobody reads, and more.
    fixture.lower.succeed(&["gc", "--keep-bytes", "0"]);
    fixture.lower.succeed(&["store", "--budget", "1"]);
    fixture.registry.reset_counters();
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers()).unwrap().tree(), &[]);
    assert_eq!(fixture.registry.counters().blob_bytes, 0);
    mount.unmount();
    fixture.upper.wait_for_servers_to_end();
    fixture.lower.succeed(&["store", "--budget", "1"]);
    fixture.lower.succeed(&["gc", "--keep-bytes", "0"]);
    assert!(fixture.bytes_to_read_all() > 3 << 20, "now it could go, and is brought");
}

#[test]
fn what_is_not_whole_or_damaged_below_is_brought() {
    let layer_files = |fixture: &Fixture, name: &str| -> Vec<PathBuf> {
        let layers = fs::read_dir(fixture.lower.store().join("layers/sha256")).unwrap();
        layers.map(|layer| layer.unwrap().path().join(name)).collect()
    };
    let overwrite = |path: &Path, offset: u64| {
        let file = fs::File::options().write(true).open(path).unwrap();
        file.write_all_at(b"damaged", offset).unwrap();
    };
    type Harm<'a> = Box<dyn Fn(&Fixture) + 'a>;
    let harms: [(&str, Harm<'_>); 5] = [
        ("lazy", Box::new(|fixture| drop(fixture.lower.succeed(&["pull", &fixture.reference, "--quiet"])))),
        (
            "the table is damaged",
            Box::new(|fixture| {
                fixture.lower.succeed(&["extract", &fixture.reference, "--quiet"]);
                layer_files(fixture, "table").iter().for_each(|path| overwrite(path, 300));
            }),
        ),
        (
            "the map is damaged",
            Box::new(|fixture| {
                fixture.lower.succeed(&["extract", &fixture.reference, "--quiet"]);
                layer_files(fixture, "chunks").iter().for_each(|path| {
                    let length = fs::metadata(path).unwrap().len();
                    // Both slots.
                    (64..length - 8).step_by(7).for_each(|offset| overwrite(path, offset));
                });
            }),
        ),
        (
            "the content is gone",
            Box::new(|fixture| {
                fixture.lower.succeed(&["extract", &fixture.reference, "--quiet"]);
                layer_files(fixture, "data").iter().for_each(|path| fs::remove_file(path).unwrap());
            }),
        ),
        (
            "the store is gone",
            Box::new(|fixture| {
                fs::rename(fixture.lower.store(), fixture.lower.scratch().join("moved")).unwrap()
            }),
        ),
    ];
    for (name, harm) in harms {
        let fixture = Fixture::new(LAZY);
        fixture.lower.succeed(&["ls"]);
        fixture.add_lower(fixture.lower.store());
        harm(&fixture);
        assert!(fixture.bytes_to_read_all() > 3 << 20, "{name}");
    }
}

#[test]
fn what_cannot_be_a_lower_store_is_refused() {
    let peel = Peel::new();
    peel.succeed(&["ls"]);
    let (nothing, other) = (peel.scratch().join("nothing"), peel.scratch().join("other"));
    fs::create_dir(&other).unwrap();
    for (path, says) in
        [(nothing.as_path(), "nothing"), (other.as_path(), "VERSION"), (peel.store(), "this store itself")]
    {
        let outcome = peel.run(&["store", "--add-lower", path.to_str().unwrap()]);
        assert!(outcome.code != Some(0) && outcome.stderr.contains(says), "{}: {outcome:?}", path.display());
    }
    let outcome = peel.run(&["store", "--remove-lower", other.to_str().unwrap()]);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("no lower store"), "{outcome:?}");
    let lower = Peel::new();
    lower.succeed(&["ls"]);
    let path = lower.store().to_str().unwrap();
    let report = peel.json(&["store", "--add-lower", path, "--add-lower", path, "--json"]);
    assert_eq!(report["lower"], serde_json::json!([path]));
    fs::write(peel.store().join("lower"), "no list").unwrap();
    let outcome = peel.run(&["store"]);
    assert!(outcome.code == Some(8) && outcome.stderr.contains("--add-lower"), "{outcome:?}");
}
