//! Promise: a store with a budget is never larger, whatever is read from it and by how many, as long as content that can be fetched again
//! may go; and every byte that is read is right. What is warm stays rather than what is cold.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use sha2::{Digest, Sha256};

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants};
use crate::support::registry::FakeRegistry;
use crate::support::space::{disk_usage, where_it_is};
use crate::support::tools::{docker_registry, push, real_images};
use crate::support::tree::{Tree, assert_same};

const MEBIBYTE: u64 = 1 << 20;
const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });
const GZIP: Form = Form::Gzip { members: 40 };

/// Sixteen files of one mebibyte, and small ones.
fn layer(seed: u64) -> Vec<TestEntry> {
    let noise = |number, length| Content::Noise { seed: 1000 * seed + number, length };
    let large =
        (0..8).map(|number| TestEntry::file(format!("{seed}/large{number}"), noise(number, MEBIBYTE)));
    let small =
        (0..80).map(|number| TestEntry::file(format!("{seed}/small{number}"), noise(100 + number, 100_000)));
    large.chain(small).collect()
}

fn served(form: Form, layers: &[u64]) -> (FakeRegistry, tempfile::TempDir, String, Vec<Vec<TestEntry>>) {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let mut layout = Layout::create(directory.path());
    let layers: Vec<_> = layers.iter().map(|seed| layer(*seed)).collect();
    layout.image("image", &layers, form);
    let reference = layout.serve(&registry, "some/name", "image");
    (registry, directory, reference, layers)
}

fn files_below(path: &Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            files.extend(files_below(&entry.path()));
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    files.sort();
    files
}

fn digest(path: &Path) -> [u8; 32] {
    let (mut file, mut hasher, mut buffer) = (File::open(path).unwrap(), Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).unwrap_or_else(|error| panic!("{}: {error}", path.display())) {
            0 => return hasher.finalize().into(),
            length => hasher.update(&buffer[..length]),
        }
    }
}

fn read_all(mount: &Path) {
    for path in files_below(mount) {
        digest(&path);
    }
}

#[test]
fn reading_more_than_the_budget_keeps_the_store_under_it_and_every_byte_right() {
    for form in [SMALL_CHUNKS, GZIP, Form::Tar, Form::Zstd { frames: 40 }] {
        let (_registry, _directory, reference, layers) = served(form, &[1, 2]);
        let peel = Peel::new();
        let budget = 12 * MEBIBYTE;
        peel.succeed(&["store", "--budget", &budget.to_string()]);
        for _ in 0..2 {
            let mount = peel.mount(&reference);
            let used = disk_usage(peel.store());
            assert!(used <= budget, "{form:?}: {used} bytes once it is mounted");
            for path in files_below(mount.path()) {
                digest(&path);
                let used = disk_usage(peel.store());
                assert!(used <= budget, "{form:?}: {used} bytes after {}", path.display());
            }
            assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
            mount.unmount();
        }
        peel.is_clean();
    }
}

#[test]
fn several_processes_keep_one_budget() {
    let (_registry, _directory, reference, layers) = served(SMALL_CHUNKS, &[1, 2]);
    let (_registry2, _directory2, other, other_layers) = served(GZIP, &[3]);
    let peel = Peel::new();
    let budget = 12 * MEBIBYTE;
    peel.succeed(&["store", "--budget", &budget.to_string()]);
    let mounts = [peel.mount(&reference), peel.mount(&other), peel.mount(&reference)];
    let digests = |mount: &Path| files_below(mount).iter().map(|path| digest(path)).collect::<Vec<_>>();
    let read: Vec<_> = std::thread::scope(|scope| {
        let readers = mounts.each_ref().map(|mount| {
            let path = mount.path().to_owned();
            scope.spawn(move || digests(&path))
        });
        while readers.iter().any(|reader| !reader.is_finished()) {
            let used = disk_usage(peel.store());
            assert!(used <= budget, "{used} bytes");
        }
        readers.into_iter().map(|reader| reader.join().unwrap()).collect()
    });
    for ((mount, layers), read) in mounts.iter().zip([&layers, &other_layers, &layers]).zip(read) {
        assert_same(&Tree::walk(mount.path()), &Model::of(layers).unwrap().tree(), &[]);
        assert!(digests(mount.path()) == read, "what was read while others did was the same");
    }
    mounts.into_iter().for_each(|mount| mount.unmount());
}

#[test]
fn what_is_read_again_and_again_stays_and_what_nobody_has_open_goes_first() {
    let (registry, _directory, reference, _) = served(SMALL_CHUNKS, &[1]);
    let (other_registry, _directory2, other, _) = served(SMALL_CHUNKS, &[2]);
    let peel = Peel::new();
    let read = |mount: &Path, name: &str| {
        let path = if name.is_empty() { mount.to_owned() } else { mount.join(name) };
        // Past the kernel's page cache, which would hide from the store that it is read again.
        let file = File::open(&path).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        digest(&path)
    };
    // The idle image takes some 16 MiB, all of which can go before anything of the other.
    let idle = peel.mount(&other);
    read_all(idle.path());
    idle.unmount();
    peel.wait_for_servers_to_end();
    let budget = disk_usage(peel.store()) + 12 * MEBIBYTE;
    peel.succeed(&["store", "--budget", &budget.to_string()]);
    let mount = peel.mount(&reference);
    let warm = ["1/small3", "1/small40", "1/small77"];
    let read_warm = || warm.map(|name| read(mount.path(), name));
    let before = read_warm();
    for path in files_below(mount.path()) {
        digest(&path);
        read_warm();
    }
    // What comes beside what is read comes after it.
    let sent = || registry.counters().manifest_bytes + registry.counters().blob_bytes;
    let is_quiet = || {
        let before = sent();
        // Takes long enough for the next request to begin, if there is one.
        peel.succeed(&["status"]);
        sent() == before && !registry.is_answering()
    };
    peel.wait_for(is_quiet);
    let all_before = sent();
    let after = read_warm();
    assert!(before == after);
    let fetched = sent() - all_before;
    assert!(fetched < 64 << 10, "what is warm stayed: {fetched} bytes");
    // Nothing of the mounted image had to go, as there was enough that nobody had open.
    read_all(mount.path());
    let fetched = sent() - all_before;
    assert!(fetched < 64 << 10, "what is open stayed, and was only proved: {fetched} bytes");
    // Now something of it has to go, again and again: what is cold.
    peel.succeed(&["store", "--budget", &(12 * MEBIBYTE).to_string()]);
    let mut fetched_again = 0;
    for (number, path) in (0..4).flat_map(|_| files_below(mount.path())).enumerate() {
        read(&path, "");
        if number % 4 == 0 {
            // What still comes beside the file that was read would be counted.
            peel.wait_for(is_quiet);
            let before = registry.counters().blob_bytes;
            read_warm();
            fetched_again += registry.counters().blob_bytes - before;
        }
    }
    // Some 96 MB pass through 12 MiB meanwhile, so what is cold goes eight times. On a busy machine more comes beside what is read, and what is
    // warm has gone nearly three times.
    assert!(fetched_again < 1_200_000, "what is warm went four times at most: {fetched_again} bytes");
    registry.reset_counters();
    files_below(mount.path()).iter().for_each(|path| {
        read(path, "");
    });
    assert!(registry.counters().blob_bytes > 4 * MEBIBYTE, "what was cold went");
    other_registry.reset_counters();
    let idle = peel.mount(&other);
    read_all(idle.path());
    assert!(other_registry.counters().blob_bytes > 0, "what nobody had open went");
    idle.unmount();
    mount.unmount();
}

#[test]
fn a_budget_can_be_ended_and_one_that_cannot_be_kept_fails_nobody() {
    let (_registry, _directory, reference, layers) = served(SMALL_CHUNKS, &[1]);
    let peel = Peel::new();
    let report = peel.json(&["store", "--budget", "1", "--json"]);
    assert_eq!(report["budget"], 1);
    let mount = peel.mount(&reference);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
    mount.unmount();
    let report = peel.json(&["store", "--budget", "none", "--json"]);
    assert_eq!(report["budget"], serde_json::Value::Null);
    let mount = peel.mount(&reference);
    read_all(mount.path());
    assert!(disk_usage(peel.store()) > 15 * MEBIBYTE);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers).unwrap().tree(), &[]);
    mount.unmount();
    assert_eq!(peel.run(&["store", "--budget", "much"]).code, Some(2));
    fs::write(peel.store().join("budget"), "much").unwrap();
    let outcome = peel.run(&["store"]);
    assert!(outcome.code == Some(8) && outcome.stderr.contains("--budget"), "{outcome:?}");
}

/// A server that is killed while it makes room, and a command that is: the store stays whole and under its budget, and the next mount
/// reads right.
#[test]
fn an_eviction_killed_at_any_instant_loses_nothing_else_and_leaves_nothing() {
    for form in [SMALL_CHUNKS, GZIP] {
        let (_registry, _directory, reference, layers) = served(form, &[1, 2]);
        let (budget, peel) = (12 * MEBIBYTE, Peel::new());
        let model = Model::of(&layers).unwrap().tree();
        let kept = "localhost/kept:here";
        commit_something(&peel, kept);
        let set_budget = |size: &str| peel.succeed(&["store", "--budget", size]);
        set_budget(&budget.to_string());
        let mount = peel.mount(&reference);
        let whole = duration_of(|| read_all(mount.path()));
        mount.unmount();
        let no_content = || disk_usage(peel.store()) - disk_usage(&peel.store().join("layers"));
        for instant in instants(whole) {
            let before = no_content();
            let mount = peel.mount(&reference);
            std::thread::scope(|scope| {
                let files = files_below(mount.path());
                let reader = scope.spawn(move || {
                    // Until there is no server any more.
                    let mut files = files.iter().cycle();
                    while fs::read(files.next().unwrap()).is_ok() {}
                });
                std::thread::sleep(instant);
                assert_eq!(peel.kill_servers(), 1);
                reader.join().unwrap();
            });
            drop(mount);
            peel.is_clean();
            // What is no content, as logs are, is counted when room is next looked for, which who is killed does not do.
            let (used, grown) = (disk_usage(peel.store()), no_content().saturating_sub(before));
            assert!(
                used - grown <= budget,
                "{form:?}: {used} bytes after a kill, of which {grown} are new and no content\n{}",
                where_it_is(peel.store())
            );
        }
        for instant in instants(whole / 4) {
            set_budget("none");
            peel.succeed(&["extract", &reference, "--quiet"]);
            peel.killed_after(instant, &["store", "--budget", &budget.to_string()]);
            peel.is_clean();
        }
        set_budget(&budget.to_string());
        let mount = peel.mount(&reference);
        assert_same(&Tree::walk(mount.path()), &model, &[]);
        mount.unmount();
        let leftovers = fs::read_dir(peel.store().join("layers/ingest")).unwrap().count();
        assert_eq!(leftovers, 0, "what was killed left something behind");
        let mount = peel.mount(kept);
        assert_eq!(fs::read_to_string(mount.join("made/here")).unwrap(), "made here");
        mount.unmount();
    }
}

/// An image with a layer that was made here and is nowhere else.
fn commit_something(peel: &Peel, name: &str) {
    let mut layout = Layout::create(peel.scratch().join("base"));
    layout.image("base", &[vec![TestEntry::file("base", "base")]], Form::GZIP);
    let mount = peel.mount_with(&layout.reference("base"), &["--writable"]);
    fs::create_dir(mount.join("made")).unwrap();
    fs::write(mount.join("made/here"), "made here").unwrap();
    peel.succeed(&["commit", mount.path().to_str().unwrap(), "--tag", name]);
    mount.unmount();
    peel.wait_for_servers_to_end();
}

/// All real images that were made, some of them with as many bytes as five times the budget.
#[test]
fn real_images_are_read_right_under_a_small_budget() {
    let registry = docker_registry();
    let (peel, plain) = (Peel::new(), Peel::new());
    let budget = 200_000_000;
    peel.succeed(&["store", "--budget", "200MB"]);
    for image in ["python", "node", "jdk"] {
        let layout = real_images().join(image);
        if !layout.exists() {
            eprintln!("skipped: there is no {image} image; scripts/images --all makes it");
            continue;
        }
        let mount = plain.mount(&format!("oci:{}:gzip", layout.display()));
        let expected: BTreeMap<_, _> = files_below(mount.path())
            .into_iter()
            .map(|path| (path.strip_prefix(mount.path()).unwrap().to_owned(), digest(&path)))
            .collect();
        mount.unmount();
        plain.succeed(&["rm", "--now", &format!("oci:{}:gzip", layout.display())]);
        for tag in ["estargz", "gzip"] {
            let mount = peel.mount(&push(&layout, tag, &registry, image));
            for (number, (path, expected)) in expected.iter().enumerate() {
                assert!(digest(&mount.path().join(path)) == *expected, "{tag}: {}", path.display());
                if number % 256 == 0 {
                    let used = disk_usage(peel.store());
                    assert!(used <= budget, "{tag}: {used} bytes after {}", path.display());
                }
            }
            mount.unmount();
        }
    }
    peel.is_clean();
}
