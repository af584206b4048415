//! Promise: a large file that is wholly here and proved is read by the kernel from the store's disk, and every byte is the same, whoever is killed,
//! upgraded, or evicts beside it. Nobody's open fails for it. What is not to be read so, is not.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form, estargz_with_toc, toc_json};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::mapped::Mapped;
use crate::support::peel::{Mount, Peel, kill_and_wait, run_to_end, shuffled_instants};

const MEBIBYTE: u64 = 1 << 20;
const CHUNKS: Estargz =
    Estargz { chunk_size: 256 << 10, footer: Footer::Modern, annotated: true, landmark: None };
const STREAMED: Form = Form::Gzip { members: 1 };
const ALWAYS: [&str; 2] = ["--passthrough", "always"];

fn noise(seed: u64, length: u64) -> Content {
    Content::Noise { seed, length }
}

/// Two large files with metadata of their own, one that is not large, and a link.
fn layer() -> Vec<TestEntry> {
    vec![
        TestEntry::file("large", noise(1, 3 * MEBIBYTE + 4321)).mode(0o751).owner(1234, 4321),
        TestEntry::file("other", noise(2, 2 * MEBIBYTE)),
        TestEntry::hardlink("link", "large"),
        TestEntry::file("small", noise(3, 100_000)),
    ]
}

fn large() -> Vec<u8> {
    noise(1, 3 * MEBIBYTE + 4321).to_vec()
}

fn image(peel: &Peel, form: Form) -> String {
    Layout::create(peel.scratch().join("layout")).image("test", &[layer()], form)
}

/// The data files of large files of the store.
fn data_files(peel: &Peel) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for layer in fs::read_dir(peel.store().join("layers/sha256")).unwrap() {
        let files = fs::read_dir(layer.unwrap().path().join("files")).into_iter().flatten();
        found.extend(files.map(|file| file.unwrap().path()));
    }
    found.sort();
    found
}

/// How many of those of layers that are published are kept for a kernel that reads them.
fn kept(peel: &Peel) -> usize {
    let is_kept = |path: &PathBuf| {
        let file = File::open(path).unwrap();
        flock(&file, FlockOperation::NonBlockingLockExclusive) == Err(Errno::WOULDBLOCK)
    };
    data_files(peel).iter().filter(|path| is_kept(path)).count()
}

fn only_server(peel: &Peel) -> i32 {
    let servers = peel.servers();
    assert_eq!(servers.len(), 1, "{servers:?}");
    servers[0]
}

fn killed(peel: &Peel) {
    kill_and_wait(only_server(peel));
    peel.wait_for(|| peel.servers().len() == 1);
}

fn whole(file: &File) -> Vec<u8> {
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// All of the image is in the store, and proved.
fn extracted(peel: &Peel, reference: &str) {
    peel.succeed(&["extract", reference]);
    for layer in peel.json(&["explain", "--prove", "--json", reference])["layers"].as_array().unwrap() {
        assert!(["proved", "streamed"].contains(&layer["proof"].as_str().unwrap()), "{layer:#}");
    }
}

/// Whether the kernel can: it came with Linux 6.9, and needs root.
fn can_pass_through() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(9)) && rustix::process::geteuid().is_root()
}

macro_rules! require_passthrough {
    () => {
        if !can_pass_through() {
            eprintln!("skipped: passing files through needs root and Linux 6.9");
            return;
        }
    };
}

#[test]
fn a_large_file_is_read_and_mapped_from_the_disk_with_the_metadata_of_the_image() {
    require_passthrough!();
    for form in [STREAMED, Form::Tar, Form::Zstd { frames: 3 }, Form::Estargz(CHUNKS)] {
        let peel = Peel::new();
        let reference = image(&peel, form);
        extracted(&peel, &reference);
        let mount = peel.mount_with(&reference, &ALWAYS);
        assert_eq!(kept(&peel), 0);
        let (file, link) =
            (File::open(mount.join("large")).unwrap(), File::open(mount.join("link")).unwrap());
        assert_eq!(kept(&peel), 1, "{form:?}");
        let mapped = Mapped::new(&file);
        assert!(whole(&file) == large() && whole(&link) == large() && *mapped.bytes() == large()[..]);
        assert_eq!(file.read_at(&mut [0; 10], 3 * MEBIBYTE + 4321).unwrap(), 0);
        for seen in [file.metadata().unwrap(), fs::metadata(mount.join("link")).unwrap()] {
            assert_eq!((seen.permissions().mode() & 0o7777, seen.uid(), seen.gid()), (0o751, 1234, 4321));
            assert_eq!((seen.len(), seen.nlink()), (3 * MEBIBYTE + 4321, 2));
            assert_eq!(seen.dev(), fs::metadata(mount.join("small")).unwrap().dev());
        }
        assert!(File::options().write(true).open(mount.join("large")).is_err());
        assert!(fs::read(mount.join("small")).unwrap() == noise(3, 100_000).to_vec());
        assert!(fs::read(mount.join("other")).unwrap() == noise(2, 2 * MEBIBYTE).to_vec());
        // What is mapped, nobody knows of: so all that the kernel was given is kept as long as there is the mount.
        drop((file, link));
        assert_eq!(kept(&peel), 2);
        assert!(*mapped.bytes() == large()[..]);
        drop(mapped);
        mount.unmount();
        peel.wait_for_servers_to_end();
        assert_eq!(kept(&peel), 0);
    }
}

#[test]
fn by_itself_it_is_done_for_images_that_are_large_files_for_the_greater_part() {
    require_passthrough!();
    let large = || TestEntry::file("large", noise(1, 16 * MEBIBYTE));
    let small = |number: u64| TestEntry::file(format!("small/{number}"), noise(100 + number, MEBIBYTE));
    for (is_passed_through, options, count) in [
        (1, &[][..], 0),
        (1, &[], 10),
        (0, &[], 20),
        (0, &["--writable"], 0),
        (0, &["--passthrough", "never"], 0),
    ] {
        let peel = Peel::new();
        let layers = [vec![large()], (0..count).map(small).collect()];
        let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, STREAMED);
        peel.succeed(&["pull", &reference]);
        let mount = peel.mount_with(&reference, options);
        let file = File::open(mount.join("large")).unwrap();
        assert_eq!(kept(&peel), is_passed_through, "{options:?} beside {count} others");
        assert!(whole(&file) == noise(1, 16 * MEBIBYTE).to_vec());
        drop(file);
        mount.unmount();
    }
}

#[test]
fn a_file_that_is_open_stays_as_it_was_opened() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, Form::Estargz(CHUNKS));
    let mount = peel.mount_with(&reference, &ALWAYS);
    // Nothing of it is here.
    let (mut early, mut start) = (File::open(mount.join("large")).unwrap(), [0; 1000]);
    early.read_exact(&mut start).unwrap();
    assert!(start[..] == large()[..1000]);
    extracted(&peel, &reference);
    let late = File::open(mount.join("link")).unwrap();
    assert_eq!(kept(&peel), 0, "it is open through the cache");
    let mapped = Mapped::new(&late);
    assert!(whole(&early) == large() && whole(&late) == large() && *mapped.bytes() == large()[..]);
    drop((early, late, mapped));
    // A reader who wants no cache may have buffers that the disk would not take, if he is the first.
    let open_direct = || File::options().read(true).custom_flags(libc::O_DIRECT).open(mount.join("other"));
    let (mut direct, mut bytes) = (open_direct().unwrap(), Vec::new());
    direct.read_to_end(&mut bytes).unwrap();
    assert!(bytes == noise(2, 2 * MEBIBYTE).to_vec());
    assert_eq!(kept(&peel), 0);
    // The close may be told later than the next open.
    peel.wait_for(|| {
        let file = File::open(mount.join("large")).unwrap();
        assert!(whole(&file) == large());
        kept(&peel) == 1
    });
    drop(direct);
    mount.unmount();
}

#[test]
fn what_is_open_and_mapped_outlives_the_server_and_what_is_opened_then_is_read_too() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, STREAMED);
    peel.succeed(&["pull", &reference]);
    let mount = peel.mount_with(&reference, &ALWAYS);
    let file = File::open(mount.join("large")).unwrap();
    let mapped = Mapped::new(&file);
    for round in 0..3 {
        killed(&peel);
        assert_eq!(kept(&peel), 1 + usize::from(round > 0), "the kernel keeps it");
        let again = File::open(mount.join("link")).unwrap();
        let mapped_again = Mapped::new(&again);
        assert!(whole(&again) == large() && *mapped_again.bytes() == large()[..], "{round}");
        assert!(whole(&file) == large() && *mapped.bytes() == large()[..], "{round}");
        // What nobody had open is the successor's to pass through.
        let other = File::open(mount.join("other")).unwrap();
        assert_eq!(kept(&peel), 2);
        assert!(whole(&other) == noise(2, 2 * MEBIBYTE).to_vec());
        assert!(fs::read(mount.join("small")).unwrap() == noise(3, 100_000).to_vec());
    }
    drop(mapped);
    assert!(whole(&file) == large());
    drop(file);
    for _ in 0..2 {
        assert!(fs::read(mount.join("large")).unwrap() == large());
        killed(&peel);
    }
    mount.unmount();
    peel.wait_for_servers_to_end();
    assert_eq!(kept(&peel), 0, "nothing is kept for a mount that is gone");
    crate::survival::nothing_is_left(&peel);
}

#[test]
fn what_is_open_through_the_cache_when_the_server_is_killed_stays_so() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, Form::Estargz(CHUNKS));
    let mount = peel.mount_with(&reference, &ALWAYS);
    let file = File::open(mount.join("large")).unwrap();
    killed(&peel);
    extracted(&peel, &reference);
    killed(&peel);
    let late = File::open(mount.join("link")).unwrap();
    assert_eq!(kept(&peel), 0);
    let mapped = Mapped::new(&late);
    assert!(whole(&file) == large() && whole(&late) == large() && *mapped.bytes() == large()[..]);
    let other = File::open(mount.join("other")).unwrap();
    assert_eq!(kept(&peel), 1, "nobody had it open");
    assert!(whole(&other) == noise(2, 2 * MEBIBYTE).to_vec());
    drop((file, late, mapped, other));
    mount.unmount();
}

/// Opens files, reads and maps them, and closes some later than others.
fn open_and_close_all_the_time(
    mount: &Mount<'_>,
    expected: &[(&str, Vec<u8>)],
    ended: &AtomicBool,
    rounds: &AtomicU64,
    reader: usize,
) {
    let mut held = Vec::new();
    let mut number = reader;
    while !ended.load(Ordering::Relaxed) {
        number += 1;
        let (name, bytes) = &expected[number % expected.len()];
        let file = File::open(mount.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let place = (number * 7919) % (bytes.len() - 5000);
        let mut read = [0; 5000];
        file.read_exact_at(&mut read, place as u64).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(read[..] == bytes[place..place + 5000], "{name} at {place}");
        if number.is_multiple_of(5) {
            let mapped = Mapped::new(&file);
            assert!(mapped.bytes()[place..place + 5000] == bytes[place..place + 5000]);
            held.push((file, mapped));
        }
        // At times nobody has anything open.
        if held.len() > 3 {
            held.clear();
        }
        rounds.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn nobody_who_opens_maps_and_closes_sees_an_error_at_whatever_instant_the_server_is_killed() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, STREAMED);
    peel.succeed(&["pull", &reference]);
    let expected = [("large", large()), ("link", large()), ("other", noise(2, 2 * MEBIBYTE).to_vec())];
    for round in 0..2 {
        let mount = peel.mount_with(&reference, &ALWAYS);
        let (ended, rounds) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4)
                .map(|reader| {
                    let (mount, expected, ended, rounds) = (&mount, &expected, &ended, &rounds);
                    scope.spawn(move || open_and_close_all_the_time(mount, expected, ended, rounds, reader))
                })
                .collect();
            let is_over = || readers.iter().any(|reader| reader.is_finished());
            let goes_on = || {
                let before = rounds.load(Ordering::Relaxed);
                peel.wait_for(|| rounds.load(Ordering::Relaxed) > before + 50 || is_over());
            };
            goes_on();
            for instant in shuffled_instants(Duration::from_millis(60)) {
                std::thread::sleep(instant);
                // In one round while the last one has just begun, too.
                peel.servers().into_iter().for_each(kill_and_wait);
                if round == 0 {
                    goes_on();
                }
            }
            goes_on();
            ended.store(true, Ordering::Relaxed);
            for reader in readers {
                reader.join().unwrap();
            }
        });
        mount.unmount();
        peel.wait_for_servers_to_end();
        assert_eq!(kept(&peel), 0);
    }
}

#[test]
fn another_program_takes_over_a_mount_whose_files_are_passed_through() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, STREAMED);
    peel.succeed(&["pull", &reference]);
    let mount = peel.mount_with(&reference, &ALWAYS);
    let file = File::open(mount.join("large")).unwrap();
    let mapped = Mapped::new(&file);
    assert_eq!(kept(&peel), 1);
    let other = peel.other_program();
    let arguments = ["upgrade", mount.path().to_str().unwrap()];
    let outcome = run_to_end(peel.command_of(&other, &arguments), peel.scratch());
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert_eq!(fs::read_link(format!("/proc/{}/exe", only_server(&peel))).unwrap(), other);
    let again = File::open(mount.join("large")).unwrap();
    assert!(whole(&again) == large() && whole(&file) == large() && *mapped.bytes() == large()[..]);
    let another = File::open(mount.join("other")).unwrap();
    assert_eq!(kept(&peel), 2);
    drop((file, again, another, mapped));
    mount.unmount();
    crate::survival::nothing_is_left(&peel);
}

#[test]
fn nothing_is_evicted_of_what_the_kernel_reads_and_with_a_budget_it_reads_nothing_by_itself() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, Form::Estargz(CHUNKS));
    extracted(&peel, &reference);
    let mount = peel.mount_with(&reference, &ALWAYS);
    let file = File::open(mount.join("large")).unwrap();
    let mapped = Mapped::new(&file);
    assert_eq!(kept(&peel), 1);
    let taken =
        || data_files(&peel).iter().map(|path| fs::metadata(path).unwrap().blocks() * 512).sum::<u64>();
    let before = taken();
    // Mapped, and not open any more, as libraries are: it is read all the same. All that can go, goes.
    drop(file);
    peel.succeed(&["store", "--budget", "1"]);
    let after = taken();
    assert!(after < before && after >= 3 * MEBIBYTE, "{before} {after}");
    assert!(*mapped.bytes() == large()[..]);
    let file = File::open(mount.join("link")).unwrap();
    assert!(whole(&file) == large());
    for _ in 0..2 {
        assert!(fs::read(mount.join("other")).unwrap() == noise(2, 2 * MEBIBYTE).to_vec());
        assert_eq!(kept(&peel), 1, "with a budget no other");
    }
    killed(&peel);
    peel.succeed(&["store", "--budget", "1"]);
    assert!(*mapped.bytes() == large()[..] && whole(&file) == large());
    drop((file, mapped));
    mount.unmount();
    peel.wait_for_servers_to_end();
    peel.succeed(&["store", "--budget", "1"]);
    assert!(taken() < MEBIBYTE, "{}", taken());
    let mount = peel.mount_with(&reference, &ALWAYS);
    assert!(fs::read(mount.join("large")).unwrap() == large());
    assert!(whole(&File::open(mount.join("large")).unwrap()) == large());
    assert_eq!(kept(&peel), 0);
    mount.unmount();
    peel.succeed(&["store", "--budget", "none"]);
    peel.is_clean();
}

#[test]
fn a_layer_that_is_not_proved_is_read_by_us_so_that_one_that_lies_can_be_stopped() {
    require_passthrough!();
    let peel = Peel::new();
    let (encoded, bytes) = estargz_with_toc(&layer(), CHUNKS, &|mut entries| {
        entries.iter_mut().find(|entry| entry["name"] == "small").unwrap()["uid"] = 1000.into();
        toc_json(entries)
    });
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.put(&bytes);
    let manifest = layout.put_image(std::slice::from_ref(&encoded), this_architecture());
    layout.tag("test", &manifest);
    let reference = layout.reference("test");
    let mount = peel.mount_with(&reference, &ALWAYS);
    // All of it is here, but not all of the layer.
    assert!(fs::read(mount.join("large")).unwrap() == large());
    let file = File::open(mount.join("large")).unwrap();
    assert_eq!(kept(&peel), 0);
    for name in ["other", "small"] {
        fs::read(mount.join(name)).unwrap_or_default();
    }
    assert_eq!(peel.json(&["explain", "--prove", "--json", &reference])["layers"][0]["proof"], "poisoned");
    // The serving process tells the kernel after it has learned of the verdict.
    peel.wait_for(|| file.read_at(&mut [0; 5000], MEBIBYTE).is_err());
    let late = File::open(mount.join("large")).unwrap();
    assert_eq!(kept(&peel), 0);
    assert_eq!(late.read_at(&mut [0; 5000], MEBIBYTE).unwrap_err().raw_os_error(), Some(libc::EIO));
    drop((file, late));
    mount.unmount();
}

#[test]
fn where_the_kernel_refuses_files_are_read_as_ever() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, STREAMED);
    // A store on an overlay: the kernel would have to stack too much.
    let disk = crate::support::small_disk::SmallDisk::make(&peel.scratch().join("disk"), 64);
    let overlay = OverlayAt::make(&peel.scratch().join("disk"), peel.store());
    let mount = peel.mount_with(&reference, &ALWAYS);
    for _ in 0..3 {
        let (file, link) =
            (File::open(mount.join("large")).unwrap(), File::open(mount.join("link")).unwrap());
        assert_eq!(kept(&peel), 0);
        assert!(
            whole(&file) == large() && whole(&link) == large() && *Mapped::new(&file).bytes() == large()[..]
        );
    }
    let log = fs::read_dir(peel.store().join("log"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()));
    let log: String = log.map(Result::unwrap).collect();
    assert_eq!(log.matches("refuses to pass files through").count(), 1, "{log}");
    mount.unmount();
    peel.wait_for_servers_to_end();
    drop((overlay, disk));
}

/// An overlay of nothing, unmounted when dropped.
struct OverlayAt(PathBuf);

impl OverlayAt {
    fn make(disk: &Path, at: &Path) -> OverlayAt {
        for name in ["lower", "upper", "work"] {
            fs::create_dir(disk.join(name)).unwrap();
        }
        fs::create_dir_all(at).unwrap();
        let disk = disk.display();
        let options = format!("lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work");
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount(
            "overlay",
            at,
            "overlay",
            rustix::mount::MountFlags::empty(),
            options.as_c_str(),
        )
        .unwrap();
        OverlayAt(at.to_owned())
    }
}

impl Drop for OverlayAt {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Reads and changes what is in a mount with an overlay above, whose server is killed between.
fn is_read_and_changed(peel: &Peel, root: &Path) {
    let file = File::open(root.join("large")).unwrap();
    assert_eq!(kept(peel), 1);
    let mapped = Mapped::new(&file);
    assert!(whole(&file) == large() && *mapped.bytes() == large()[..]);
    killed(peel);
    assert!(whole(&file) == large() && *mapped.bytes() == large()[..]);
    assert!(fs::read(root.join("large")).unwrap() == large());
    // Copied up, which leaves alone what was mapped before.
    File::options().append(true).open(root.join("large")).unwrap().write_all(b"more").unwrap();
    assert!(fs::read(root.join("large")).unwrap() == [&large()[..], b"more"].concat());
    assert!(*mapped.bytes() == large()[..]);
}

#[test]
fn an_overlay_above_reads_through_it() {
    require_passthrough!();
    let peel = Peel::new();
    let reference = image(&peel, STREAMED);
    peel.succeed(&["pull", &reference]);
    let mount = peel.mount_with(&reference, &["--passthrough", "always", "--writable"]);
    is_read_and_changed(&peel, mount.path());
    mount.unmount();
    peel.wait_for_servers_to_end();

    // As containerd lays one over the trees of its containers.
    let mount: Mount<'_> = peel.mount_with(&reference, &ALWAYS);
    let disk = peel.scratch().join("above");
    for name in ["upper", "work", "root"] {
        fs::create_dir_all(disk.join(name)).unwrap();
    }
    let place = disk.display();
    let options = format!("lowerdir={},upperdir={place}/upper,workdir={place}/work", mount.path().display());
    let options = std::ffi::CString::new(options).unwrap();
    let root = disk.join("root");
    rustix::mount::mount("overlay", &root, "overlay", rustix::mount::MountFlags::empty(), options.as_c_str())
        .unwrap();
    let overlay = OverlayAt(root.clone());
    is_read_and_changed(&peel, &root);
    drop(overlay);
    mount.unmount();
}
