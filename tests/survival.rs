//! Promise: whoever serves a mount may be killed at any instant: those who read wait a moment, and read what is there. Only who kills the
//! process that holds the mount, too, has a dead one.

mod upgrading;

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form, Landmark};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Peel, is_mount_point, kill_and_wait, shuffled_instants};
use crate::support::registry::{FakeRegistry, Fault};
use rustix::fs::{Advice, fadvise};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const SMALL_CHUNKS: Form = Form::Estargz(Estargz {
    chunk_size: 64 << 10,
    footer: Footer::Modern,
    annotated: true,
    landmark: Some(Landmark::NoPrefetch),
});
const FILES: u64 = 60;

fn layers() -> Vec<Vec<TestEntry>> {
    let file = |number: u64| {
        let content = Content::Noise { seed: number, length: 1000 + number * 7001 };
        TestEntry::file(format!("files/{number}"), content)
    };
    let (lower, upper) = ((0..FILES / 2).map(file), (FILES / 2..FILES).map(file));
    vec![
        lower.chain([TestEntry::symlink("link", "files/1")]).collect(),
        upper.chain([TestEntry::file("small", "small")]).collect(),
    ]
}

/// The files that the layers have, by number.
fn expected(layers: &[Vec<TestEntry>]) -> Vec<Vec<u8>> {
    let model = Model::of(layers).unwrap().tree();
    (0..FILES).map(|number| model.read(&format!("files/{number}"))).collect()
}

/// What readers have seen.
#[derive(Default)]
struct Seen {
    ended: AtomicBool,
    rounds: AtomicU64,
    /// Microseconds that somebody waited longest.
    longest_wait: AtomicU64,
}

impl Seen {
    fn timed<R>(&self, work: impl FnOnce() -> R) -> R {
        let begun = Instant::now();
        let result = work();
        self.longest_wait.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        result
    }

    fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.longest_wait.load(Ordering::Relaxed))
    }
}

/// Reads all files again and again until told to end, each from the server and not from the page cache; and asks what no cache answers.
fn read_all_the_time(root: &Path, expected: &[Vec<u8>], seen: &Seen, reader: usize) {
    let mut number = 0_u64;
    while !seen.ended.load(Ordering::Relaxed) {
        for file in 0..FILES {
            // Each in an order of its own.
            let chosen = (file * 7 + reader as u64 * 13) % FILES;
            let name = format!("files/{chosen}");
            let mut bytes = Vec::new();
            let mut file =
                seen.timed(|| File::open(root.join(&name))).unwrap_or_else(|error| panic!("{name}: {error}"));
            seen.timed(|| file.read_to_end(&mut bytes)).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(bytes == expected[chosen as usize], "wrong bytes of {name}");
            fadvise(&file, 0, None, Advice::DontNeed).unwrap();
            number += 1;
            let absent = root.join(format!("absent-{reader}-{number}"));
            let error = seen.timed(|| absent.symlink_metadata()).unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            seen.timed(|| rustix::fs::statfs(root)).unwrap();
        }
        seen.rounds.fetch_add(1, Ordering::Relaxed);
    }
}

/// Has the mount read while its server is killed at many instants; gives how long a reader waited at most.
fn is_read_while_servers_are_killed(peel: &Peel, root: &Path, expected: &[Vec<u8>]) -> Duration {
    let (holders, seen) = (peel.holders(), Seen::default());
    let open_before: Vec<_> = holders.iter().map(|holder| open_files(*holder)).collect();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|reader| {
                scope.spawn({
                    let seen = &seen;
                    move || read_all_the_time(root, expected, seen, reader)
                })
            })
            .collect();
        for instant in shuffled_instants(Duration::from_millis(400)) {
            std::thread::sleep(instant);
            for server in peel.servers() {
                kill_and_wait(server);
            }
            if readers.iter().any(|reader| reader.is_finished()) {
                break;
            }
        }
        // What was cut off is answered, and all goes on.
        let before = seen.rounds.load(Ordering::Relaxed);
        peel.wait_for(|| {
            seen.rounds.load(Ordering::Relaxed) > before + 3
                || readers.iter().any(|reader| reader.is_finished())
        });
        seen.ended.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let open_after: Vec<_> = holders.iter().map(|holder| open_files(*holder)).collect();
    assert_eq!(open_before, open_after, "descriptors of the holders");
    assert_eq!(peel.holders(), holders);
    println!("the longest wait was {:?}", seen.longest_wait());
    seen.longest_wait()
}

/// The image in a layout, and what its files have in them.
fn image(peel: &Peel) -> (String, Vec<Vec<u8>>) {
    let layers = layers();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, SMALL_CHUNKS);
    (reference, expected(&layers))
}

/// The image in a registry, and its files.
fn served(peel: &Peel, registry: &FakeRegistry) -> (String, Vec<Vec<u8>>) {
    let layers = layers();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &layers, SMALL_CHUNKS);
    (layout.serve(registry, "survival", "test"), expected(&layers))
}

/// Two files of the image that is mounted there are read while the registry sends nothing, and arrive after `meanwhile`, when it sends again.
fn read_while_stalled(registry: &FakeRegistry, root: &Path, expected: &[Vec<u8>], meanwhile: impl FnOnce()) {
    registry.set_fault("blobs/", Fault::Stall);
    std::thread::scope(|scope| {
        let readers: Vec<_> = [40, 10]
            .map(|number| {
                let (path, expected) = (root.join(format!("files/{number}")), &expected[number]);
                scope.spawn(move || assert!(fs::read(path).unwrap() == *expected, "{number}"))
            })
            .into();
        registry.wait_for_stalled(1);
        meanwhile();
        registry.clear_faults();
        registry.release();
        for reader in readers {
            reader.join().unwrap();
        }
    });
}

fn open_files(process: i32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).unwrap().count()
}

/// Nothing is left of a mount that was unmounted.
#[track_caller]
pub fn nothing_is_left(peel: &Peel) {
    peel.wait_for_servers_to_end();
    assert_eq!(peel.json(&["status", "--json"]), serde_json::json!([]));
    // What all have counted who are gone is in one file.
    let counters = fs::read_dir(peel.store().join("run")).into_iter().flatten();
    let left: Vec<_> =
        counters.map(|entry| entry.unwrap().file_name()).filter(|name| name != "ended").collect();
    assert!(left.is_empty(), "{left:?}");
    // Who was killed has left a session behind, which the next one ends that looks for what is not needed.
    peel.succeed(&["gc"]);
    let report = peel.json(&["check", "--json"]);
    assert_eq!(
        (&report["findings"], &report["dead_mounts"], &report["stale_sessions"]),
        (&serde_json::json!([]), &serde_json::json!([]), &serde_json::json!(0)),
        "{report:#}"
    );
}

#[track_caller]
fn only_server(peel: &Peel) -> i32 {
    let servers = peel.servers();
    assert_eq!(servers.len(), 1, "{servers:?}");
    servers[0]
}

fn killed(peel: &Peel) {
    kill_and_wait(only_server(peel));
    peel.wait_for(|| peel.servers().len() == 1);
}

fn status(peel: &Peel) -> serde_json::Value {
    peel.json(&["status", "--json"])[0].clone()
}

#[test]
fn readers_of_a_mount_whose_server_is_killed_again_and_again_wait_and_see_no_error() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, expected) = served(&peel, &registry);
    let mount = peel.mount(&reference);
    let first = status(&peel);
    let waited = is_read_while_servers_are_killed(&peel, mount.path(), &expected);
    assert!(waited < Duration::from_secs(30), "{waited:?}");
    let last = status(&peel);
    for same in ["pid", "started_at", "state", "mountpoint"] {
        assert_eq!(first[same], last[same]);
    }
    mount.unmount();
    nothing_is_left(&peel);
}

#[test]
fn what_waits_for_the_registry_when_the_server_is_killed_arrives_all_the_same() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, expected) = served(&peel, &registry);
    let mount = peel.mount_with(&reference, &["--prefetch", "none"]);
    read_while_stalled(&registry, mount.path(), &expected, || killed(&peel));
    // What came before it was killed counts, too.
    assert!(status(&peel)["requests"].as_u64().unwrap() >= 3, "{}", status(&peel));
    mount.unmount();
    nothing_is_left(&peel);
}

#[test]
fn what_is_open_or_mapped_stays_so() {
    let peel = Peel::new();
    let (reference, expected) = image(&peel);
    let mount = peel.mount(&reference);
    let expected = &expected[50];
    let file = File::open(mount.join("files/50")).unwrap();
    let directory =
        rustix::fs::open(mount.join("files"), rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty());
    let mut entries = rustix::fs::Dir::new(directory.unwrap()).unwrap();
    let mut listed = 1;
    entries.read().unwrap().unwrap();
    killed(&peel);
    let mut bytes = vec![0; expected.len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert!(bytes == *expected);
    while let Some(entry) = entries.read() {
        entry.unwrap();
        listed += 1;
    }
    assert_eq!(listed, FILES + 2);
    assert_eq!(fs::read_link(mount.join("link")).unwrap(), Path::new("files/1"));
    drop((file, entries));
    mount.unmount();
    nothing_is_left(&peel);
}

#[test]
fn a_writable_mount_outlives_its_server_with_what_was_written() {
    let peel = Peel::new();
    let (reference, expected) = image(&peel);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    fs::write(mount.join("new"), "new").unwrap();
    let written = File::options().write(true).open(mount.join("small")).unwrap();
    for round in [7, 21, 50] {
        killed(&peel);
        assert_eq!(fs::read_to_string(mount.join("new")).unwrap(), "new");
        assert!(fs::read(mount.join(&format!("files/{round}"))).unwrap() == expected[round]);
        std::os::unix::fs::FileExt::write_all_at(&written, b"SMALL", 0).unwrap();
    }
    drop(written);
    // It is this mount's alone, whoever serves.
    let elsewhere = peel.mount_point();
    let outcome = peel.run(&["mount", &reference, elsewhere.to_str().unwrap(), "--snapshot", "work"]);
    assert!(outcome.stderr.contains("is mounted"), "{outcome:?}");
    assert_eq!(status(&peel)["snapshot"], "work");
    mount.unmount();
    nothing_is_left(&peel);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "SMALL");
    mount.unmount();
}

#[test]
fn the_holder_stands_for_the_mount() {
    let peel = Peel::new();
    let (reference, _) = image(&peel);
    let holder = |peel: &Peel| {
        assert_eq!(peel.holders().len(), 1);
        assert_eq!(status(peel)["pid"], peel.holders()[0]);
        Pid::from_raw(peel.holders()[0]).unwrap()
    };
    // What is sent to it is meant for the mount.
    for is_killed_before in [false, true] {
        let mount = peel.mount(&reference);
        if is_killed_before {
            killed(&peel);
            assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "small");
        }
        kill_process(holder(&peel), Signal::TERM).unwrap();
        peel.wait_for_servers_to_end();
        assert!(!is_mount_point(mount.path()));
        nothing_is_left(&peel);
    }
    // Unmounted while nobody serves.
    let mount = peel.mount(&reference);
    kill_process(holder(&peel), Signal::STOP).unwrap();
    kill_and_wait(only_server(&peel));
    rustix::mount::unmount(mount.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    kill_process(Pid::from_raw(peel.holders()[0]).unwrap(), Signal::CONT).unwrap();
    nothing_is_left(&peel);
}

#[test]
fn a_server_goes_on_without_its_holder_and_the_mount_ends_with_it() {
    let peel = Peel::new();
    let (reference, _) = image(&peel);
    let mount = peel.mount(&reference);
    let server = only_server(&peel);
    kill_and_wait(peel.holders()[0]);
    peel.wait_for(|| status(&peel)["pid"] == server);
    assert_eq!(status(&peel)["state"], "live");
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "small");
    mount.unmount();
    nothing_is_left(&peel);

    let mount = peel.mount(&reference);
    let server = only_server(&peel);
    kill_and_wait(peel.holders()[0]);
    peel.wait_for(|| status(&peel)["pid"] == server);
    kill_and_wait(server);
    assert_eq!(status(&peel)["state"], "dead");
    peel.succeed(&["mount", &reference, mount.path().to_str().unwrap()]);
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "small");
    mount.unmount();
    // Nor of the dead mount, in whose place another was made.
    nothing_is_left(&peel);
}

#[test]
fn whatever_the_name_means_by_now_the_image_that_is_mounted_stays_and_so_does_what_it_needs() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &layers(), SMALL_CHUNKS);
    let reference = layout.serve(&registry, "moving", "test");
    let mount = peel.mount(&reference);
    let mut other = Layout::create(peel.scratch().join("other"));
    other.image("test", &[vec![TestEntry::file("small", "other")]], SMALL_CHUNKS);
    assert_eq!(other.serve(&registry, "moving", "test"), reference);
    peel.succeed(&["pull", &reference]);
    for number in [59, 58] {
        peel.succeed(&["gc"]);
        killed(&peel);
        assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "small");
        let bytes = fs::read(mount.join(&format!("files/{number}"))).unwrap();
        assert_eq!(bytes.len(), 1000 + number * 7001);
    }
    let another = peel.mount(&reference);
    assert_eq!(fs::read_to_string(another.join("small")).unwrap(), "other");
    another.unmount();
    mount.unmount();
    nothing_is_left(&peel);
}
