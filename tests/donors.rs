//! Promise: a file that another layer of the store has is not fetched again, whatever image or compression it came with; and whatever becomes of
//! that layer meanwhile, every byte that is read is right.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form, estargz_with_toc, toc_json};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Mount, Peel, instants};
use crate::support::registry::FakeRegistry;
use crate::support::space::disk_usage;
use crate::support::tree::{Tree, assert_same};

const ESTARGZ: Form =
    Form::Estargz(Estargz { chunk_size: 4 << 20, footer: Footer::Modern, annotated: true, landmark: None });

/// Small files, each fifth with other content in the second image, and two of several chunks' length, of which one is other.
const SMALL: u64 = 300;
const SMALL_LENGTH: u64 = 8_000;
const LARGE_LENGTH: u64 = 2_500_000;

fn layer(image: u64) -> Vec<TestEntry> {
    let noise = |seed, length| Content::Noise { seed, length };
    let small = (0..SMALL).map(|number| {
        let seed = if number % 5 == 4 { number + 1000 * image } else { number };
        TestEntry::file(format!("directory/{number:03}"), noise(seed, SMALL_LENGTH))
    });
    let large = [("same", 500), ("other", 600 + image)]
        .map(|(name, seed)| TestEntry::file(name, noise(seed, LARGE_LENGTH)));
    // What is different beside them makes another archive in any case.
    let own = TestEntry::file(format!("image{image}"), "x".repeat(image as usize).as_str());
    small.chain(large).chain([own]).collect()
}

/// Bytes of the second image that the first has not.
const CHANGED: u64 = SMALL / 5 * SMALL_LENGTH + LARGE_LENGTH;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Estargz,
    /// As podman writes it.
    ZstdChunked,
}

/// Two images that share most of their files, in a registry; and a store with the first, all of which was read.
struct Fixture {
    registry: FakeRegistry,
    layout: Layout,
    first: String,
    second: String,
    peel: Peel,
    _directory: tempfile::TempDir,
}

impl Fixture {
    fn new(first: Format, second: Format) -> Fixture {
        let fixture = Fixture::served(first, second);
        read_all(&fixture.peel, &fixture.first, 1);
        fixture
    }

    /// Nothing is in the store yet.
    fn served(first: Format, second: Format) -> Fixture {
        let (registry, directory, peel) = (FakeRegistry::start(), tempfile::tempdir().unwrap(), Peel::new());
        let mut layout = Layout::create(directory.path().join("layout"));
        let references = [(1, first), (2, second)].map(|(image, format)| {
            let tag = format!("image{image}");
            let reference = layout.image(&tag, &[layer(image)], ESTARGZ);
            match format {
                Format::Estargz => layout.serve(&registry, &tag, &tag),
                Format::ZstdChunked => {
                    let path = directory.path().join(&tag);
                    let to = format!("oci:{}:{tag}", path.display());
                    // Nothing of it may be in the store that the test looks at.
                    let format = ["--format", "zstd-chunked", "--quiet"];
                    Peel::new().succeed(&[&["convert", &reference, &to], &format[..]].concat());
                    Layout::open(path).serve(&registry, &tag, &tag)
                }
            }
        });
        let [first, second] = references;
        Fixture { registry, layout, first, second, peel, _directory: directory }
    }

    /// Bytes of blobs that came over since the last time.
    fn fetched(&self) -> u64 {
        let bytes = self.registry.counters().blob_bytes;
        self.registry.reset_counters();
        bytes
    }

    /// Reads all of the second image, whose every byte must be right, and gives what came over.
    #[track_caller]
    fn read_second(&self) -> u64 {
        self.fetched();
        read_all(&self.peel, &self.second, 2);
        self.fetched()
    }

    /// The folder of the layer that has this file in its data, of those that are there.
    fn layer_folders(&self) -> Vec<PathBuf> {
        let folder = self.peel.store().join("layers/sha256");
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

#[track_caller]
fn read_all(peel: &Peel, reference: &str, image: u64) {
    let mount = peel.mount(reference);
    is_image(&mount, image);
    mount.unmount();
    peel.wait_for_servers_to_end();
}

#[track_caller]
fn is_image(mount: &Mount<'_>, image: u64) {
    assert_same(&Tree::walk(mount.path()), &Model::of(&[layer(image)]).unwrap().tree(), &[]);
}

/// Beside the changed files: manifest and config, table of contents, headers of requests for several ranges.
#[track_caller]
fn is_what_is_missing(bytes: u64) {
    assert!((CHANGED..=CHANGED + CHANGED / 20 + 110_000).contains(&bytes), "{bytes} of {CHANGED}");
}

#[test]
fn of_a_second_image_what_is_missing_is_fetched_whatever_its_format() {
    for first in [Format::Estargz, Format::ZstdChunked] {
        for second in [Format::Estargz, Format::ZstdChunked] {
            println!("{first:?} {second:?}");
            let fixture = Fixture::new(first, second);
            let fetched = fixture.read_second();
            if first == second {
                is_what_is_missing(fetched);
            } else {
                // podman cuts files where their content says so: the large one, and some of the others.
                let cut = LARGE_LENGTH + SMALL * SMALL_LENGTH / 2;
                assert!((CHANGED..CHANGED + cut).contains(&fetched), "{fetched} of {CHANGED}");
            }
            assert_eq!(fixture.read_second(), 0, "it is here now");
            fixture.peel.is_clean();
        }
    }
}

#[test]
fn a_file_that_a_layer_has_twice_is_fetched_once() {
    let (registry, directory, peel) = (FakeRegistry::start(), tempfile::tempdir().unwrap(), Peel::new());
    let mut layout = Layout::create(directory.path());
    let same = || Content::Noise { seed: 1, length: 1_500_000 };
    let files = vec![TestEntry::file("a", same()), TestEntry::file("b", same())];
    layout.image("image", &[files], ESTARGZ);
    let mount = peel.mount(&layout.serve(&registry, "image", "image"));
    fs::read(mount.join("a")).unwrap();
    registry.reset_counters();
    assert_eq!(fs::read(mount.join("b")).unwrap(), same().to_vec());
    assert_eq!(registry.counters().blobs, 0);
    mount.unmount();
}

#[test]
fn what_is_copied_is_counted() {
    let fixture = Fixture::new(Format::Estargz, Format::Estargz);
    let mount = fixture.peel.mount(&fixture.second);
    is_image(&mount, 2);
    let copied = SMALL * SMALL_LENGTH + 2 * LARGE_LENGTH - CHANGED;
    fixture.peel.wait_for(|| fixture.peel.json(&["status", "--json"])[0]["copied_bytes"] == json!(copied));
    mount.unmount();
}

/// Whatever is done to the first image before the second is read, the bytes of that are right; says what came over.
#[track_caller]
fn read_after(harm: impl FnOnce(&Fixture)) -> u64 {
    let fixture = Fixture::new(Format::Estargz, Format::Estargz);
    harm(&fixture);
    let fetched = fixture.read_second();
    // Who mounts it next would fetch head and end of its archive, if the process that had read it ended before it was proved.
    fixture.peel.succeed(&["explain", "--prove", &fixture.second]);
    assert_eq!(fixture.read_second(), 0);
    fetched
}

#[test]
fn a_donor_that_was_evicted_damaged_or_removed_costs_a_fetch_and_no_wrong_byte() {
    let all = SMALL * SMALL_LENGTH + 2 * LARGE_LENGTH;
    assert!(read_after(|fixture| drop(fixture.peel.succeed(&["gc", "--keep-bytes", "0"]))) >= all);
    assert!(read_after(|fixture| drop(fixture.peel.succeed(&["rm", &fixture.first, "--now"]))) >= all);
    let damaged = read_after(|fixture| {
        for folder in fixture.layer_folders() {
            let large = fs::read_dir(folder.join("files")).unwrap().map(|entry| entry.unwrap().path());
            for path in large.chain([folder.join("data")]) {
                let file = File::options().read(true).write(true).open(path).unwrap();
                // A byte of each block.
                for block in 0..file.metadata().unwrap().len() / 4096 {
                    let mut byte = [0];
                    file.read_exact_at(&mut byte, block * 4096).unwrap();
                    file.write_all_at(&[!byte[0]], block * 4096).unwrap();
                }
            }
        }
    });
    assert!(damaged >= all, "{damaged}");
    let cut = read_after(|fixture| {
        for folder in fixture.layer_folders() {
            File::options().write(true).open(folder.join("data")).unwrap().set_len(0).unwrap();
            fs::remove_dir_all(folder.join("files")).unwrap();
        }
    });
    assert!(cut >= all, "{cut}");
}

#[test]
fn a_list_of_digests_that_is_missing_or_damaged_is_made_again() {
    let fixture = Fixture::new(Format::Estargz, Format::Estargz);
    let lists = || fixture.layer_folders().into_iter().map(|folder| folder.join("digests"));
    for damage in 0..4 {
        is_what_is_missing(fixture.read_second());
        assert!(lists().any(|list| list.exists()));
        fixture.peel.succeed(&["rm", &fixture.second, "--now"]);
        for list in lists().filter(|list| list.exists()) {
            let mut bytes = fs::read(&list).unwrap();
            match damage {
                0 => bytes.clear(),
                1 => bytes.truncate(50),
                2 => bytes[20..].fill(0xff),
                _ => bytes.extend([0; 12]),
            }
            fs::write(&list, bytes).unwrap();
        }
    }
    is_what_is_missing(fixture.read_second());
}

#[test]
fn readers_go_on_while_donors_are_evicted_and_removed() {
    let fixture = Fixture::new(Format::Estargz, Format::ZstdChunked);
    let mount = fixture.peel.mount(&fixture.second);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| is_image(&mount, 2));
        for round in 0..20 {
            fixture.peel.succeed(&["gc", "--keep-bytes", &(round % 3 * 1_000_000).to_string()]);
        }
        // The collections may have taken it.
        fixture.peel.run(&["rm", &fixture.first, "--now"]);
        reader.join().unwrap();
    });
    mount.unmount();
}

#[test]
fn several_processes_may_read_both_images_at_once_under_a_budget() {
    let fixture = Fixture::served(Format::Estargz, Format::ZstdChunked);
    let budget = 8 << 20;
    fixture.peel.succeed(&["store", "--budget", &budget.to_string()]);
    let mounts = [1, 2, 1, 2]
        .map(|image| (image, fixture.peel.mount(if image == 1 { &fixture.first } else { &fixture.second })));
    std::thread::scope(|scope| {
        let _ = mounts
            .each_ref()
            .map(|(image, mount)| scope.spawn(move || (0..2).for_each(|_| is_image(mount, *image))));
    });
    let used = disk_usage(fixture.peel.store());
    assert!(used <= budget, "{used}");
    mounts.into_iter().for_each(|(_, mount)| mount.unmount());
    fixture.peel.wait_for_servers_to_end();
    fixture.peel.is_clean();
}

#[test]
fn whoever_is_killed_while_it_copies_leaves_no_wrong_byte() {
    let fixture = Fixture::new(Format::Estargz, Format::Estargz);
    for instant in instants(Duration::from_millis(300)) {
        let mount = fixture.peel.mount(&fixture.second);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                // It may fail while nobody serves.
                fs::read_dir(mount.join("directory")).map(|entries| {
                    entries.flatten().for_each(|entry| drop(fs::read(entry.path())));
                })
            });
            std::thread::sleep(instant);
            fixture.peel.kill_servers();
            drop(reader.join());
        });
        drop(mount);
        fixture.peel.is_clean();
        fixture.peel.succeed(&["gc", "--keep-bytes", "4000000"]);
    }
    read_all(&fixture.peel, &fixture.second, 2);
    fixture.peel.is_clean();
}

#[test]
fn a_layer_of_a_lower_store_is_a_donor_and_nothing_is_written_there() {
    let fixture = Fixture::served(Format::Estargz, Format::Estargz);
    let lower = Peel::new();
    lower.succeed(&["extract", &fixture.first, "--quiet"]);
    let folder = fs::read_dir(lower.store().join("layers/sha256")).unwrap().next().unwrap().unwrap().path();
    let names = || {
        let mut names: Vec<_> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    fixture.peel.succeed(&["store", "--add-lower", lower.store().to_str().unwrap()]);
    is_what_is_missing(fixture.read_second());
    assert_eq!(names(), before);
}

#[test]
fn a_pull_and_a_completion_end_with_a_proved_layer() {
    for (second, ask) in
        [(Format::Estargz, "pull"), (Format::ZstdChunked, "pull"), (Format::ZstdChunked, "extract")]
    {
        let fixture = Fixture::new(Format::Estargz, second);
        let report = fixture.peel.json(&[ask, &fixture.second, "--quiet", "--json"]);
        drop(report);
        fixture.peel.succeed(&["extract", &fixture.second, "--quiet"]);
        let sheet = fixture.peel.json(&["explain", "--json", &fixture.second]);
        assert_eq!(sheet["layers"][0]["proof"], "proved", "{second:?} {ask}: {sheet}");
        assert_eq!(fixture.read_second(), 0, "{second:?} {ask}");
    }
}

#[test]
fn a_layer_that_came_by_copies_is_proved_when_somebody_asks() {
    let fixture = Fixture::new(Format::Estargz, Format::Estargz);
    is_what_is_missing(fixture.read_second());
    let sheet = fixture.peel.json(&["explain", "--json", &fixture.second]);
    assert_ne!(sheet["layers"][0]["proof"], "proved", "{sheet}");
    // Nor does another mount fetch its blob.
    assert_eq!(fixture.read_second(), 0);
    let sheet = fixture.peel.json(&["explain", "--prove", "--json", &fixture.second]);
    assert_eq!(sheet["layers"][0]["proof"], "proved", "{sheet}");
}

/// An image whose table of contents hides a file that its archive has.
fn lie(layout: &mut Layout, registry: &FakeRegistry) -> String {
    let hide = |mut entries: Vec<Value>| {
        entries.retain(|entry| entry["name"] != "image1");
        toc_json(entries)
    };
    let Form::Estargz(options) = ESTARGZ else { unreachable!() };
    let (encoded, bytes) = estargz_with_toc(&layer(1), options, &hide);
    layout.put(&bytes);
    let manifest = layout.put_image(&[encoded], this_architecture());
    layout.tag("lie", &manifest);
    layout.serve(registry, "lie", "lie")
}

fn read_files(mount: &Mount<'_>) {
    for entry in fs::read_dir(mount.join("directory")).unwrap() {
        drop(fs::read(entry.unwrap().path()));
    }
    ["same", "other"].iter().for_each(|name| drop(fs::read(mount.join(name))));
}

#[test]
fn a_poisoned_layer_gives_nothing_and_one_that_takes_is_found_out_as_ever() {
    let mut fixture = Fixture::served(Format::Estargz, Format::Estargz);
    let lie = lie(&mut fixture.layout, &fixture.registry);
    let proof = |options: &[&str]| {
        let sheet = fixture.peel.json(&[&["explain", "--json", &lie], options].concat());
        sheet["layers"][0]["proof"].clone()
    };
    let mount = fixture.peel.mount(&lie);
    read_files(&mount);
    assert_eq!(proof(&["--prove"]), "poisoned");
    mount.unmount();
    assert!(fixture.read_second() >= SMALL * SMALL_LENGTH + 2 * LARGE_LENGTH);

    fixture.peel.succeed(&["rm", &lie, &fixture.second, "--now"]);
    read_all(&fixture.peel, &fixture.first, 1);
    let mount = fixture.peel.mount(&lie);
    read_files(&mount);
    assert_eq!(proof(&[]), "unproved");
    assert_eq!(proof(&["--prove"]), "poisoned");
    assert!(fs::read(mount.join("image2")).is_err());
    mount.unmount();
}
