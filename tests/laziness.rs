//! Promise: mounting fetches names and no content; reading fetches what is read and little more; what was fetched is not fetched
//! again. All of it is counted at the registry.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::peel::{Mount, Peel, run_to_end};
use crate::support::registry::{Counters, FakeRegistry};
use crate::support::tools::{Unpacked, real_images};
use crate::support::tree::Tree;
use flate2::read::MultiGzDecoder;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const MEBIBYTE: u64 = 1 << 20;

/// Requests of every kind that mounting an image of so many layers may make: index, manifest, config and one for each layer.
fn most_requests(layers: usize) -> u64 {
    3 + layers as u64
}

fn requests(counters: &Counters) -> u64 {
    counters.manifests + counters.blobs + counters.storage + counters.tokens
}

fn bytes(counters: &Counters) -> u64 {
    counters.manifest_bytes + counters.blob_bytes
}

fn layer_sizes(layout: &Layout, tag: &str) -> Vec<u64> {
    let manifest = layout.manifest(tag);
    manifest["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).collect()
}

/// The python image, in a registry that counts.
fn python_in_registry() -> (FakeRegistry, Layout, String) {
    let layout = Layout::open(real_images().join("python"));
    let registry = FakeRegistry::start();
    let reference = layout.serve(&registry, "python", "estargz");
    (registry, layout, reference)
}

#[test]
fn mounting_python_fetches_less_than_a_fiftieth_in_a_request_for_each_layer() {
    let (registry, layout, reference) = python_in_registry();
    let sizes = layer_sizes(&layout, "estargz");
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    let mounted = registry.counters();
    assert!(requests(&mounted) <= most_requests(sizes.len()), "{mounted:?}");
    assert!(bytes(&mounted) * 50 < sizes.iter().sum(), "{mounted:?} of {sizes:?}");

    // Looking at every name and attribute asks nobody.
    let mut find = Command::new("find");
    find.arg(mount.path()).args(["-printf", "%p %s %l %T@\n"]);
    assert_eq!(run_to_end(find, peel.scratch()).code, Some(0));
    assert_eq!(registry.counters(), mounted, "finding made requests");
}

#[test]
fn python_importing_ssl_fetches_the_files_it_touches_and_little_more() {
    let (registry, layout, reference) = python_in_registry();
    let unpacked = Unpacked::by_umoci(&format!("{}:gzip", layout.path().display())).unwrap();
    let touched = files_touched(&unpacked.path());
    assert!(
        touched.iter().any(|path| path.ends_with("ssl.py") || path.contains("ssl.cpython")),
        "{touched:?}"
    );
    let needed = compressed_bytes(&layout, &touched);

    let peel = Peel::new();
    let mount = peel.mount(&reference);
    let before = bytes(&registry.counters());
    let outcome = run_to_end(import_ssl(mount.path()), peel.scratch());
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "imported\n"), "{}", outcome.stderr);
    let fetched = bytes(&registry.counters()) - before;
    assert!(fetched <= needed * 2 + MEBIBYTE, "fetched {fetched} bytes where {needed} were needed");
    // The bound above must mean something.
    assert!(needed * 2 + MEBIBYTE < layer_sizes(&layout, "estargz").iter().sum::<u64>() / 2);
}

fn import_ssl(root: &Path) -> Command {
    let mut command = Command::new("chroot");
    command.arg(root).args(["python3", "-c", "import ssl; print('imported')"]);
    command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Files that the program reads from an unpacked root: those whose access time it moves.
fn files_touched(root: &Path) -> Vec<String> {
    let mut age = Command::new("find");
    age.arg(root).args([
        "-xdev",
        "-type",
        "f",
        "-exec",
        "touch",
        "--no-create",
        "--time=access",
        "--date=@1",
        "{}",
        "+",
    ]);
    assert_eq!(run_to_end(age, root.parent().unwrap()).code, Some(0));
    let outcome = run_to_end(import_ssl(root), root.parent().unwrap());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let tree = Tree::walk(root);
    let is_touched = |path: &&Vec<u8>| {
        use std::os::unix::ffi::OsStrExt;
        let path = root.join(std::ffi::OsStr::from_bytes(path));
        path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.atime() > 1)
    };
    let touched = tree.nodes.keys().filter(is_touched);
    touched.map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

/// Bytes that these files take in the blobs of the eStargz image, as its tables of contents say.
fn compressed_bytes(layout: &Layout, files: &[String]) -> u64 {
    let mut sizes = BTreeMap::new();
    for layer in layout.manifest("estargz")["layers"].as_array().unwrap() {
        let blob = layout.blob_path(layer["digest"].as_str().unwrap());
        let (toc, toc_offset) = table_of_contents(&blob);
        let entries = toc["entries"].as_array().unwrap();
        let starts = entries.iter().filter(|entry| entry["innerOffset"].as_u64().unwrap_or(0) == 0);
        let mut starts: Vec<u64> = starts.filter_map(|entry| entry["offset"].as_u64()).collect();
        starts.push(toc_offset);
        starts.sort_unstable();
        for entry in entries {
            if let Some(offset) = entry["offset"].as_u64() {
                let end = starts[starts.partition_point(|start| *start <= offset)];
                // Some writers begin every name with it.
                let name = entry["name"].as_str().unwrap().trim_start_matches("./");
                *sizes.entry(name.to_owned()).or_insert(0) += end - offset;
            }
        }
    }
    files.iter().filter_map(|path| sizes.get(path)).sum()
}

/// The table of contents of an eStargz blob, and where it begins.
fn table_of_contents(blob: &Path) -> (Value, u64) {
    let file = File::open(blob).unwrap();
    let size = file.metadata().unwrap().len();
    let mut footer = [0; 51];
    file.read_exact_at(&mut footer, size - 51).unwrap();
    let offset = u64::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let mut compressed = vec![0; (size - 51 - offset) as usize];
    file.read_exact_at(&mut compressed, offset).unwrap();
    let mut archive = Vec::new();
    MultiGzDecoder::new(compressed.as_slice()).read_to_end(&mut archive).unwrap();
    let length = std::str::from_utf8(&archive[124..135]).unwrap();
    let length = usize::from_str_radix(length.trim_matches(['\0', ' ']), 8).unwrap();
    (serde_json::from_slice(&archive[512..512 + length]).unwrap(), offset)
}

/// Sixteen files of 2 MiB that do not compress, in chunks of 256 KiB.
fn noise_files() -> Vec<TestEntry> {
    let file = |number| {
        TestEntry::file(format!("noise-{number}"), Content::Noise { seed: number, length: 2 * MEBIBYTE })
    };
    (0..16).map(file).collect()
}

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 256 << 10, footer: Footer::Modern, annotated: true, landmark: None });

/// An image of them in a registry, which reads its blobs from the directory.
fn noise_in_registry() -> (FakeRegistry, String, TempDir) {
    let registry = FakeRegistry::start();
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(directory.path());
    layout.image("test", &[noise_files()], SMALL_CHUNKS);
    let reference = layout.serve(&registry, "noise", "test");
    (registry, reference, directory)
}

fn expected_noise(number: u64) -> Vec<u8> {
    Content::Noise { seed: number, length: 2 * MEBIBYTE }.to_vec()
}

#[test]
fn mounting_and_reading_one_byte_costs_its_chunk_and_readahead() {
    let (registry, reference, _blobs) = noise_in_registry();
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    let mounted = registry.counters();
    assert!(requests(&mounted) <= most_requests(1), "{mounted:?}");
    let mut byte = [0];
    File::open(mount.join("noise-3")).unwrap().read_exact_at(&mut byte, MEBIBYTE).unwrap();
    assert_eq!(byte[0], expected_noise(3)[MEBIBYTE as usize]);
    let fetched = registry.counters().blob_bytes - mounted.blob_bytes;
    assert!((1..=2 * MEBIBYTE).contains(&fetched), "one byte cost {fetched}");
}

#[test]
fn a_program_that_reads_many_small_files_asks_once_for_several_of_them() {
    const FILES: u64 = 100;
    const LENGTH: u64 = 8 << 10;
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let content = |number| Content::Noise { seed: number, length: LENGTH };
    let name = |number| format!("directory/file-{number:03}");
    // What it reads first is large.
    let program = Content::Noise { seed: 1000, length: 2 * MEBIBYTE };
    let mut files = vec![TestEntry::file("aaa", program)];
    files.extend((0..FILES).map(|number| TestEntry::file(name(number), content(number))));
    let mut layout = Layout::create(directory.path());
    layout.image("test", &[files], Form::ESTARGZ);
    let reference = layout.serve(&registry, "many", "test");
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    fs::read(mount.join("aaa")).unwrap();
    let before = registry.counters();
    for step in 0..FILES {
        // All of them, in no order.
        let number = step * 37 % FILES;
        assert_eq!(fs::read(mount.join(&name(number))).unwrap(), content(number).to_vec());
    }
    let requests = requests(&registry.counters()) - requests(&before);
    let fetched = bytes(&registry.counters()) - bytes(&before);
    assert!(requests * 4 < FILES, "{requests} requests for {FILES} files");
    assert!(fetched < 2 * FILES * LENGTH, "{fetched} bytes for {}", FILES * LENGTH);
}

/// An eStargz in a registry, of files that share gzip members of at least so many bytes.
struct SharedMembers {
    registry: FakeRegistry,
    reference: String,
    layer_size: u64,
    /// Each file, and where its member begins in the blob.
    files: Vec<(String, u64)>,
    _directory: TempDir,
}

impl SharedMembers {
    /// Written by our own converter, which has tests of its own.
    fn new(files: &[TestEntry], minimum: &str) -> SharedMembers {
        let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
        let [from, to] = ["from", "to"].map(|name| directory.path().join(name));
        let ordinary = Layout::create(from).image("test", &[files.to_vec()], Form::GZIP);
        let estargz = format!("oci:{}:test", to.display());
        let peel = Peel::new();
        peel.succeed(&["convert", &ordinary, &estargz, "--format", "estargz", "--min-chunk", minimum]);
        let layout = Layout::open(to);
        let manifest = layout.manifest("test");
        let (toc, _) =
            table_of_contents(&layout.blob_path(manifest["layers"][0]["digest"].as_str().unwrap()));
        let files = toc["entries"].as_array().unwrap().iter().filter_map(|entry| {
            let name = entry["name"].as_str().unwrap();
            (!name.starts_with('.')).then(|| (name.to_owned(), entry["offset"].as_u64().unwrap()))
        });
        SharedMembers {
            reference: layout.serve(&registry, "name", "test"),
            layer_size: layer_sizes(&layout, "test")[0],
            files: files.collect(),
            registry,
            _directory: directory,
        }
    }
}

fn small_content(number: u64, length: u64) -> Content {
    Content::Noise { seed: number, length }
}

#[test]
fn mounted_files_that_share_a_member_come_with_one_request() {
    let entries: Vec<TestEntry> =
        (0..200).map(|number| TestEntry::file(format!("{number:03}"), small_content(number, 3000))).collect();
    let image = SharedMembers::new(&entries, "65536");
    let peel = Peel::new();
    let mount = peel.mount(&image.reference);
    let in_middle = image.files[100].1;
    let together: Vec<&str> = image
        .files
        .iter()
        .filter(|(_, member)| *member == in_middle)
        .map(|(name, _)| name.as_str())
        .collect();
    assert!((10..50).contains(&together.len()), "{together:?}");
    image.registry.reset_counters();
    // The last one first, so that nothing is due to reading ahead.
    for name in together.iter().rev() {
        let expected = small_content(name.parse().unwrap(), 3000).to_vec();
        assert!(fs::read(mount.join(name)).unwrap() == expected, "{name}");
    }
    let counters = image.registry.counters();
    assert_eq!(counters.blobs, 1, "{counters:?}");
    assert!(counters.blob_bytes < 100_000, "{counters:?}");
}

#[test]
fn mounted_files_that_share_a_long_member_are_not_fetched_anew_for_each_of_them() {
    // None of it compresses, so each file needs more of the member than the one before.
    let entries: Vec<TestEntry> = (0..800)
        .map(|number| TestEntry::file(format!("{number:03}"), small_content(number, 20_000)))
        .collect();
    let image = SharedMembers::new(&entries, "33554432");
    assert!(image.files.iter().all(|(_, member)| *member == image.files[0].1), "one member");
    for is_reversed in [false, true] {
        let peel = Peel::new();
        let mount = peel.mount(&image.reference);
        image.registry.reset_counters();
        for number in 0..800 {
            let number = if is_reversed { 799 - number } else { number };
            let expected = small_content(number, 20_000).to_vec();
            assert!(fs::read(mount.join(&format!("{number:03}"))).unwrap() == expected, "{number}");
        }
        let counters = image.registry.counters();
        // Three times for the files, and once more to prove the layer: of a long member no rests are kept.
        assert!(counters.blob_bytes < 5 * image.layer_size, "{counters:?} of {} bytes", image.layer_size);
        assert!(counters.blobs < 20, "{counters:?}");
        mount.unmount();
    }
}

#[test]
fn mounted_content_is_fetched_once_by_all_readers_mounts_and_processes() {
    let (registry, reference, _blobs) = noise_in_registry();
    let peel = Peel::new();
    let (mount, other) = (peel.mount(&reference), peel.mount(&reference));
    // Readers of both mounts and all at once.
    std::thread::scope(|scope| {
        for reader in 0..8 {
            let path = if reader % 2 == 0 { mount.join("noise-1") } else { other.join("noise-1") };
            scope.spawn(move || assert!(fs::read(path).unwrap() == expected_noise(1)));
        }
    });
    let fetched = registry.counters().blob_bytes;
    // Two processes may ask for the same at the same moment, and each for some more ahead. Readers by themselves would cost 16 MiB.
    assert!(fetched < 8 * MEBIBYTE, "2 MiB of content cost {fetched}");
    mount.unmount();
    other.unmount();

    registry.reset_counters();
    let again = peel.mount(&reference);
    assert!(fs::read(again.join("noise-1")).unwrap() == expected_noise(1));
    assert_eq!(registry.counters(), Counters::default(), "a second mount needs no network");
}

#[test]
fn mounting_again_works_with_the_registry_stopped() {
    let (mut registry, reference, _blobs) = noise_in_registry();
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    assert!(fs::read(mount.join("noise-2")).unwrap() == expected_noise(2));
    mount.unmount();
    registry.down();
    let mount = peel.mount(&reference);
    assert!(fs::read(mount.join("noise-2")).unwrap() == expected_noise(2));
    assert_eq!(Tree::walk(mount.path()).nodes.len(), 17);
}

#[test]
fn mounting_an_ordinary_layer_fetches_it_once() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &[noise_files(), vec![TestEntry::file("upper", "x")]], Form::GZIP);
    let reference = layout.serve(&registry, "noise", "test");
    let mount = peel.mount(&reference);
    assert!(fs::read(mount.join("noise-5")).unwrap() == expected_noise(5));
    let counters = registry.counters();
    let size: u64 = layer_sizes(&layout, "test").iter().sum();
    assert!(counters.blob_bytes < size + MEBIBYTE, "{counters:?} for {size} bytes");
}

/// What `peel` says of its mount agrees with what the registry saw, once nothing is under way any more.
#[track_caller]
fn status_tells_the_truth(peel: &Peel, mount: &Mount<'_>, registry: &FakeRegistry) {
    let status = || peel.json(&["status", "--json"]);
    // Who reads has what he wants before all is here that comes with it.
    peel.wait_for(|| status()[0]["fetched_bytes"] == bytes(&registry.counters()));
    let (status, counters) = (status(), registry.counters());
    let line = &status[0];
    assert_eq!(line["mountpoint"], mount.path().to_str().unwrap());
    assert_eq!(line["state"], "live");
    assert_eq!(line["requests"], requests(&counters), "{line} {counters:?}");
    assert_eq!(line["fetched_bytes"], bytes(&counters), "{line} {counters:?}");
}

#[test]
fn status_of_a_mount_counts_what_the_registry_counts() {
    let (registry, reference, _blobs) = noise_in_registry();
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    status_tells_the_truth(&peel, &mount, &registry);
    fs::read(mount.join("noise-7")).unwrap();
    status_tells_the_truth(&peel, &mount, &registry);
}
