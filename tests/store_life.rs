//! Promise: a store outlives what happens to its processes and its disk. Several processes use it at once; one that is killed at
//! any moment leaves what the next command can use; a full disk is an error and no more.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::cases::{every_case, many_layers};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants, is_mount_point, kill_and_wait, wait_or_kill};
use crate::support::registry::{FakeRegistry, Fault};
use crate::support::small_disk::SmallDisk;
use crate::support::tree::{Tree, assert_same};
use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};

/// Layers with some megabytes that do not compress, so that there is something to be interrupted.
fn bulky_layers() -> Vec<Vec<TestEntry>> {
    let mut layers = many_layers(4);
    for (number, layer) in layers.iter_mut().enumerate() {
        let file = |part: u64| {
            let content = Content::Noise { seed: number as u64 * 100 + part, length: 300_000 * (part + 1) };
            TestEntry::file(format!("bulk/{number}/{part}"), content)
        };
        layer.extend((0..5).map(file));
    }
    layers
}

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });

fn start_mount(peel: &Peel, reference: &str, path: &Path) -> Child {
    let mut command = peel.command(&["mount", reference, path.to_str().unwrap()]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting peel")
}

#[track_caller]
fn mount_equals(peel: &Peel, reference: &str, layers: &[Vec<TestEntry>]) {
    let mount = peel.mount(reference);
    assert_same(&Tree::walk(mount.path()), &Model::of(layers).unwrap().tree(), &[]);
    mount.unmount();
}

#[test]
fn processes_that_mount_one_image_at_the_same_moment_all_show_it() {
    for form in [Form::GZIP, SMALL_CHUNKS] {
        let registry = FakeRegistry::start();
        let peel = Peel::new();
        let layers = bulky_layers();
        let mut layout = Layout::create(peel.scratch().join("layout"));
        layout.image("test", &layers, form);
        let reference = layout.serve(&registry, "bulky", "test");
        let points: Vec<_> = (0..4).map(|_| peel.mount_point()).collect();
        let started: Vec<Child> = points.iter().map(|point| start_mount(&peel, &reference, point)).collect();
        for child in started {
            assert!(wait_or_kill(child, "peel mount").success());
        }
        let model = Model::of(&layers).unwrap().tree();
        for point in &points {
            assert_same(&Tree::walk(point), &model, &[]);
        }
        for point in &points {
            peel.unmount(point);
        }
        mount_equals(&peel, &reference, &layers);
    }
}

#[test]
fn a_mount_whose_server_was_killed_can_be_unmounted_and_mounted_over() {
    let peel = Peel::new();
    let layers = every_case();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, Form::ESTARGZ);

    let mount = peel.mount(&reference);
    assert_eq!(peel.kill_servers(), 1);
    assert_eq!(peel.json(&["status", "--json"])[0]["state"], "dead");
    mount.unmount();
    assert_eq!(peel.json(&["status", "--json"]), serde_json::json!([]));

    let mount = peel.mount(&reference);
    assert_eq!(peel.kill_servers(), 1);
    peel.succeed(&["mount", &reference, mount.path().to_str().unwrap()]);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
    mount.unmount();
}

/// Kills a first mount once a request for `path` stalls after so many bytes, and mounts again with the same store.
fn killed_and_mounted_again(layout: &Layout, layers: &[Vec<TestEntry>], path: &str, bytes: u64) {
    let registry = FakeRegistry::start();
    let reference = layout.serve(&registry, "bulky", "test");
    let peel = Peel::new();
    registry.set_fault(path, Fault::StallAfter(bytes));
    let point = peel.mount_point();
    let child = start_mount(&peel, &reference, &point);
    registry.wait_for_stalled(1);
    peel.kill_servers();
    wait_or_kill(child, "peel mount");
    assert!(!is_mount_point(&point), "a part of an image was mounted");
    registry.clear_faults();
    registry.release();
    assert_eq!(peel.json(&["ls", "--json"]), serde_json::json!([]));
    mount_equals(&peel, &reference, layers);
    peel.wait_for_servers_to_end();
}

#[test]
fn a_first_mount_killed_anywhere_in_its_transfers_is_made_good_by_the_next() {
    let layers = bulky_layers();
    let directory = tempfile::tempdir().unwrap();
    for form in [Form::GZIP, Form::Tar, SMALL_CHUNKS] {
        let mut layout = Layout::create(directory.path().join(format!("{form:?}")));
        layout.image("test", &layers, form);
        let manifest = layout.manifest("test");
        let layer = |number: usize| manifest["layers"][number]["digest"].as_str().unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        for (path, bytes) in [("manifests/", 100), (config, 1), (layer(0), 1), (layer(3), 60_000)] {
            killed_and_mounted_again(&layout, &layers, path, bytes);
        }
        if form != SMALL_CHUNKS {
            killed_and_mounted_again(&layout, &layers, layer(1), 3_000_000);
        }
    }
}

#[test]
fn a_mount_killed_at_any_instant_is_made_good_by_the_next() {
    for form in [Form::GZIP, SMALL_CHUNKS] {
        let peel = Peel::new();
        let layers = bulky_layers();
        let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, form);
        let undisturbed = Peel::new();
        let whole = duration_of(|| mount_equals(&undisturbed, &reference, &layers));
        // Nothing is expected of any of them but that the store stays good.
        for instant in instants(whole) {
            let point = peel.mount_point();
            let child = start_mount(&peel, &reference, &point);
            std::thread::sleep(instant);
            peel.kill_servers();
            kill_and_wait(child.id() as i32);
            wait_or_kill(child, "peel mount");
            if is_mount_point(&point) {
                peel.unmount(&point);
            }
            peel.json(&["ls", "--json"]);
        }
        mount_equals(&peel, &reference, &layers);
    }
}

#[test]
fn content_read_from_a_mount_before_its_server_was_killed_is_right_afterwards() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let layers = bulky_layers();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &layers, SMALL_CHUNKS);
    let reference = layout.serve(&registry, "bulky", "test");
    let model = Model::of(&layers).unwrap().tree();
    for number in 0..4 {
        let mount = peel.mount(&reference);
        let start = |part: u64| {
            let name = format!("bulk/{number}/{part}");
            let path = mount.join(&name);
            (name, std::thread::spawn(move || fs::read(path)))
        };
        let readers: Vec<_> = (0..5).map(start).collect();
        assert_eq!(peel.kill_servers(), 1);
        for (name, reader) in readers {
            // Cut off in the middle it fails; what it gives is right.
            if let Ok(bytes) = reader.join().unwrap() {
                assert!(bytes == model.read(&name), "wrong bytes of {name}");
            }
        }
        // Not by `peel unmount`, which would fail: killed so soon after it mounted, the server now and then leaves no dead mount.
        drop(mount);
    }
    mount_equals(&peel, &reference, &layers);
}

#[test]
fn a_full_disk_stops_a_first_mount_with_an_error_and_space_makes_it_work() {
    for form in [Form::GZIP, Form::Tar] {
        let peel = Peel::new();
        let disk = SmallDisk::make(peel.store(), 4);
        let layers = bulky_layers();
        let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, form);
        let point = peel.mount_point();
        let outcome = peel.run(&["mount", &reference, point.to_str().unwrap()]);
        assert!(outcome.code.is_some_and(|code| code != 0), "{outcome:?}");
        assert!(outcome.stderr.contains("No space left on device"), "{outcome:?}");
        assert!(outcome.stderr.contains(&reference), "{outcome:?}");
        assert!(!is_mount_point(&point));
        peel.json(&["ls", "--json"]);
        disk.grow(64);
        mount_equals(&peel, &reference, &layers);
    }
}

#[test]
fn a_full_disk_under_a_lazy_mount_gives_an_error_or_the_right_bytes_and_space_makes_it_work() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let disk = SmallDisk::make(peel.store(), 3);
    let layers = bulky_layers();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &layers, SMALL_CHUNKS);
    let reference = layout.serve(&registry, "bulky", "test");
    let mount = peel.mount(&reference);
    let model = Model::of(&layers).unwrap().tree();
    let read = |number: u64, part: u64| {
        let path = format!("bulk/{number}/{part}");
        (fs::read(mount.join(&path)), model.read(&path))
    };
    for number in 0..4 {
        for part in 0..5 {
            if let (Ok(bytes), expected) = read(number, part) {
                assert!(bytes == expected, "wrong bytes of bulk/{number}/{part}");
            }
        }
    }
    disk.grow(64);
    assert_same(&Tree::walk(mount.path()), &model, &[]);
    mount.unmount();
}

/// Headers and padding are kept until the layer is proved. They take no room from files, and what becomes of them does no harm.
#[test]
fn what_is_kept_for_a_proof_gives_way_on_a_full_disk() {
    const FILES: u64 = 1000;
    let name = |number: u64| format!("file{number:04}");
    let content = |number: u64| Content::Noise { seed: number, length: 4000 };
    let entries: Vec<_> = (0..FILES).map(|number| TestEntry::file(name(number), content(number))).collect();
    // With room for all files, but hardly for anything else; and for half of the files.
    for (room, all_fit) in [(FILES * 4096 + (128 << 10), true), (FILES * 2048, false)] {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let _disk = SmallDisk::make(peel.store(), 32);
        let mut layout = Layout::create(peel.scratch().join("layout"));
        layout.image("test", std::slice::from_ref(&entries), SMALL_CHUNKS);
        let reference = layout.serve(&registry, "small", "test");
        let mount = peel.mount(&reference);
        let proof = |options: &[&str]| {
            let arguments = [&["explain", "--json", &reference], options].concat();
            peel.json(&arguments)["layers"][0]["proof"].clone()
        };
        // It is published before this command sees it.
        assert_eq!(proof(&[]), "incomplete");
        let space = rustix::fs::statvfs(peel.store()).unwrap();
        let ballast = peel.store().join("content/ballast");
        fs::write(&ballast, vec![1; (space.f_bavail * space.f_frsize - room) as usize]).unwrap();
        let mut failed = 0;
        for number in 0..FILES {
            match fs::read(mount.join(&name(number))) {
                Ok(bytes) => assert!(bytes == content(number).to_vec(), "wrong bytes of {number}"),
                Err(error) => {
                    assert_eq!(error.raw_os_error(), Some(libc::EIO));
                    failed += 1;
                }
            }
        }
        assert_eq!(failed == 0, all_fit, "{failed} reads failed");
        let layer = fs::read_dir(peel.store().join("layers/sha256")).unwrap().next().unwrap().unwrap();
        let rests = fs::metadata(layer.path().join("rests")).map_or(0, |rests| rests.len());
        assert!(rests <= 1, "{rests} bytes are kept");
        // Cut first: a process that another test starts may hold it open for an instant.
        fs::File::options().write(true).open(&ballast).unwrap().set_len(0).unwrap();
        fs::remove_file(&ballast).unwrap();
        assert_same(
            &Tree::walk(mount.path()),
            &Model::of(std::slice::from_ref(&entries)).unwrap().tree(),
            &[],
        );
        assert_eq!(proof(&["--prove"]), "proved");
        mount.unmount();
    }
}
