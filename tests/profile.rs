//! Promise: what a mount reads is recorded, in the order in which it is read; it outlives the process and a new tag of the image; a
//! later mount fetches it before anybody reads it, behind those who read; and a converted image has it first.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::peel::{Mount, Peel, is_mount_point};
use crate::support::registry::{FakeRegistry, Fault, Kind, Referrers};
use serde_json::{Value, json};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

const MEBIBYTE: u64 = 1 << 20;
/// More than what lies between two files that are rather fetched together.
const FILE: u64 = 300_000;

const PLAIN: Form =
    Form::Estargz(Estargz { chunk_size: 4 << 20, footer: Footer::Modern, annotated: true, landmark: None });

fn name(number: u64) -> String {
    format!("usr/lib/{number:02}")
}

/// So many files that do not compress, one after the other.
fn files(count: u64, seed: u64) -> Vec<TestEntry> {
    let file = |number| TestEntry::file(name(number), Content::Noise { seed: seed + number, length: FILE });
    (0..count).map(file).collect()
}

fn read(mount: &Mount<'_>, numbers: &[u64], seed: u64) {
    for number in numbers {
        let expected = Content::Noise { seed: seed + number, length: FILE }.to_vec();
        assert!(fs::read(mount.join(&name(*number))).unwrap() == expected, "{number}");
    }
}

fn show(peel: &Peel, reference: &str) -> Value {
    peel.json(&["profile", "show", reference, "--json"])
}

/// The paths of a profile, the most wanted first.
fn paths(profile: &Value) -> Vec<String> {
    let files = profile["files"].as_array().unwrap();
    files.iter().map(|file| file["path"].as_str().unwrap().to_owned()).collect()
}

/// Waits until something is so that takes a while. A test that waits for three minutes hangs.
#[track_caller]
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(180), "in vain: {what}");
        std::thread::yield_now();
    }
}

fn names(numbers: &[u64]) -> Vec<String> {
    numbers.iter().map(|number| name(*number)).collect()
}

/// What stands in the store for the image of that reference.
fn stored(peel: &Peel, reference: &str) -> PathBuf {
    let digest = peel.json(&["show", reference, "--json"])["manifest_digest"].as_str().unwrap().to_owned();
    peel.store().join("profiles").join(digest.replace(':', "/"))
}

#[test]
fn the_order_recorded_is_the_order_read() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let large = Content::Noise { seed: 100, length: 9 * MEBIBYTE };
    let odd = TestEntry::file(b"odd % \xff\n", "x");
    let link = TestEntry::hardlink("zz-link", name(5));
    // No table of contents can tell such a name.
    layout.image("test", &[files(8, 0), vec![TestEntry::file("large", large), odd, link]], Form::GZIP);
    let reference = layout.serve(&registry, "name", "test");
    assert_eq!(peel.run(&["profile", "show", &reference]).code, Some(3), "nothing is known");

    let mount = peel.mount(&reference);
    assert_eq!(peel.run(&["profile", "show", &reference]).code, Some(3), "nothing is recorded");
    read(&mount, &[6, 2, 6], 0);
    let file = File::open(mount.join("large")).unwrap();
    // No readahead of the kernel beyond what is asked for.
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    file.read_exact_at(&mut [0; 10], 5 * MEBIBYTE).unwrap();
    drop(file);
    fs::read(mount.join("zz-link")).unwrap();
    fs::read(mount.path().join(OsStr::from_bytes(b"odd % \xff\n"))).unwrap();
    read(&mount, &[0], 0);
    mount.unmount();

    let profile = show(&peel, &reference);
    let expected = [name(6), name(2), "large".into(), name(5), "odd %25 %FF\n".into(), name(0)];
    assert_eq!(paths(&profile), expected);
    assert_eq!(profile["runs"], 1);
    let parts = &profile["files"][2]["parts"];
    assert_eq!(parts, &json!([[5 * MEBIBYTE, 5 * MEBIBYTE + MEBIBYTE / 4]]));
    let times =
        profile["files"].as_array().unwrap().iter().map(|file| file["milliseconds"].as_u64().unwrap());
    assert!(times.is_sorted());
    let table = peel.succeed(&["profile", "show", &reference]);
    assert!(table.contains("odd %25 %FF\\n") && table.lines().count() == 7, "{table}");

    peel.succeed(&["profile", "rm", &reference]);
    assert_eq!(peel.run(&["profile", "rm", &reference]).code, Some(3));
    let mount = peel.mount_with(&reference, &["--no-profile"]);
    read(&mount, &[1], 0);
    mount.unmount();
    assert_eq!(peel.run(&["profile", "show", &reference]).code, Some(3), "nothing was to be recorded");
}

#[test]
fn runs_come_to_one_order_and_mounts_of_one_image_lose_nothing_of_each_other() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &[files(8, 0)], PLAIN);
    for order in [&[1, 2, 3][..], &[1, 2, 3, 4], &[7, 1, 2, 3]] {
        let mount = peel.mount(&reference);
        read(&mount, order, 0);
        mount.unmount();
    }
    // One that reads nothing is no run.
    peel.mount(&reference).unmount();
    let profile = show(&peel, &reference);
    assert_eq!(paths(&profile), names(&[1, 7, 2, 3, 4]));
    assert_eq!(profile["runs"], 3);
    let runs: Vec<u64> =
        profile["files"].as_array().unwrap().iter().map(|file| file["runs"].as_u64().unwrap()).collect();
    assert_eq!(runs, [3, 1, 3, 3, 1]);

    let (one, other) = (peel.mount(&reference), peel.mount(&reference));
    read(&one, &[5], 0);
    read(&other, &[6], 0);
    one.unmount();
    other.unmount();
    let profile = show(&peel, &reference);
    assert_eq!(profile["runs"], 5);
    assert_eq!(profile["files"].as_array().unwrap().len(), 7);
}

#[test]
fn a_new_tag_of_the_repository_begins_with_what_is_known_of_the_last() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("one", &[files(8, 0)], PLAIN);
    // Without file 7, and another content of the others.
    layout.image("two", &[files(7, 50)], PLAIN);
    let one = layout.serve(&registry, "name", "one");
    let two = layout.serve(&registry, "name", "two");
    let elsewhere = layout.serve(&registry, "other", "two");
    let mount = peel.mount(&one);
    read(&mount, &[3, 7, 1], 0);
    mount.unmount();

    peel.mount(&elsewhere).unmount();
    assert_eq!(
        peel.run(&["profile", "show", &elsewhere]).code,
        Some(3),
        "another repository is another image"
    );
    peel.mount_with(&two, &["--prefetch", "none"]).unmount();
    let profile = show(&peel, &two);
    assert_eq!(paths(&profile), names(&[3, 1]));

    // From now on it has its own.
    let mount = peel.mount(&two);
    read(&mount, &[5], 50);
    mount.unmount();
    assert_eq!(paths(&show(&peel, &two)), names(&[3, 5, 1]));
    assert_eq!(paths(&show(&peel, &one)), names(&[3, 7, 1]));
    assert!(fs::read_to_string(stored(&peel, &two)).unwrap().contains(&two));
}

#[test]
fn what_was_recorded_outlives_a_process_that_is_killed() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &[files(8, 0)], PLAIN);
    let mount = peel.mount(&reference);
    read(&mount, &[3, 1], 0);
    eventually("it is written while the mount is served", || {
        peel.run(&["profile", "show", &reference]).code == Some(0)
    });
    read(&mount, &[2], 0);
    assert_eq!(peel.kill_servers(), 1);
    let known = paths(&show(&peel, &reference));
    assert!(known == names(&[3, 1]) || known == names(&[3, 1, 2]), "{known:?}");
    mount.unmount();
    // SIGTERM unmounts, and all is recorded.
    let mount = peel.mount(&reference);
    read(&mount, &[4], 0);
    for server in peel.servers() {
        let server = rustix::process::Pid::from_raw(server).unwrap();
        rustix::process::kill_process(server, rustix::process::Signal::TERM).unwrap();
    }
    peel.wait_for_servers_to_end();
    assert!(!is_mount_point(mount.path()));
    let profile = show(&peel, &reference);
    assert!(profile["runs"] == 2 && paths(&profile).contains(&name(4)), "{profile}");
}

#[test]
fn a_profile_that_is_damaged_or_hostile_is_dropped_with_a_warning() {
    let peel = Peel::new();
    let reference = Layout::create(peel.scratch().join("layout")).image("test", &[files(8, 0)], PLAIN);
    let mount = peel.mount(&reference);
    read(&mount, &[3], 0);
    mount.unmount();
    let path = stored(&peel, &reference);
    let good = fs::read(&path).unwrap();
    let hostile = String::from_utf8(good.clone()).unwrap().replace("usr/lib/03", "../../etc/shadow");
    let log = peel.scratch().join("log");
    for (number, bad) in
        [&good[..good.len() / 2], hostile.as_bytes(), b"", &[0xff; 100]].into_iter().enumerate()
    {
        fs::write(&path, bad).unwrap();
        let outcome = peel.run(&["profile", "export", &reference]);
        assert_eq!(outcome.code, Some(3), "{number}");
        assert!(outcome.stderr.contains("dropped"), "{}", outcome.stderr);
        let _ = fs::remove_file(&log);
        let mount = peel.mount_with(&reference, &["--log", log.to_str().unwrap()]);
        read(&mount, &[number as u64], 0);
        mount.unmount();
        let log = fs::read_to_string(&log).unwrap();
        assert!(log.contains("WARN") && log.contains("profile of the image is dropped"), "{log}");
        assert_eq!(paths(&show(&peel, &reference)), names(&[number as u64]));
    }
}

#[test]
fn a_converted_image_has_the_files_of_the_profile_first() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("source"));
    let upper = vec![TestEntry::file("opt/app", "app"), TestEntry::file("opt/other", "other")];
    let reference = layout.image("test", &[files(8, 0), upper], Form::GZIP);
    let destination = |name: &str| format!("oci:{}:test", peel.scratch().join(name).display());
    let convert = |name: &str, options: &[&str]| {
        let out = destination(name);
        let fixed = ["convert", &reference, &out, "--format", "estargz", "--json"];
        peel.run(&[&fixed[..], options].concat())
    };
    let refused = convert("none", &["--order-profile"]);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("no mount of") && !peel.scratch().join("none/index.json").exists());

    let mount = peel.mount(&reference);
    read(&mount, &[6], 0);
    fs::read(mount.join("opt/other")).unwrap();
    read(&mount, &[2], 0);
    mount.unmount();
    let exported = peel.scratch().join("exported");
    fs::write(&exported, peel.succeed(&["profile", "export", &reference])).unwrap();
    let list = peel.scratch().join("list");
    fs::write(&list, [name(6), "opt/other".into(), name(2)].join("\n")).unwrap();
    let digest = |name: &str, options: &[&str]| {
        let outcome = convert(name, options);
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(report["missed"], json!([]));
        report["digest"].clone()
    };
    // How a list is followed has tests of its own: these are the same.
    let by_list = digest("by-list", &["--order", list.to_str().unwrap()]);
    assert_ne!(by_list, digest("as-it-was", &[]));
    assert_eq!(by_list, digest("by-profile", &["--order-profile"]));
    assert_eq!(by_list, digest("by-export", &["--order", exported.to_str().unwrap()]));

    let text = fs::read_to_string(&exported).unwrap();
    fs::write(&exported, &text[..text.len() - 5]).unwrap();
    let refused = convert("cut", &["--order", exported.to_str().unwrap()]);
    assert!(refused.code == Some(6) && refused.stderr.contains("cut off"), "{}", refused.stderr);
    let both = convert("both", &["--order-profile", "--order", list.to_str().unwrap()]);
    assert_eq!(both.code, Some(2));
}

/// Which file lies where the ranged requests begin: the files of [`files`] follow on each other.
fn requested(registry: &FakeRegistry) -> Vec<u64> {
    let requests = registry.requests().into_iter().filter(|request| request.kind == Kind::Blob);
    let start = |range: &str| range.strip_prefix("bytes=")?.split('-').next()?.parse::<u64>().ok();
    // Each has some bytes of headers before it.
    requests.map(|request| start(request.header("range").unwrap()).unwrap() / FILE).collect()
}

#[test]
fn a_cold_mount_fetches_the_profile_in_its_order_and_a_reader_first() {
    let registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("one", &[files(16, 0)], PLAIN);
    layout.image("two", &[files(16, 50)], PLAIN);
    let one = layout.serve(&registry, "name", "one");
    let two = layout.serve(&registry, "name", "two");
    let order = [11, 1, 7, 3, 13, 5];
    let mount = peel.mount(&one);
    read(&mount, &order, 0);
    mount.unmount();
    // Its tables come, and the profile; of its content nothing.
    peel.mount_with(&two, &["--prefetch", "none"]).unmount();

    registry.reset_counters();
    registry.set_fault("blobs/", Fault::Stall);
    let mount = peel.mount(&two);
    registry.wait_for_stalled(3);
    let mut first = requested(&registry);
    first.sort_unstable();
    assert_eq!(first, [1, 7, 11]);
    std::thread::scope(|scope| {
        // The last one wanted, and one that no profile knows.
        for reader in [5, 15] {
            let mount = &mount;
            scope.spawn(move || read(mount, &[reader], 50));
        }
        registry.wait_for_stalled(5);
        let mut second = requested(&registry).split_off(3);
        second.sort_unstable();
        assert_eq!(second, [5, 15], "readers do not wait for their turn in the profile");
        registry.clear_faults();
        registry.release();
    });
    // All of the rest comes without a reader.
    eventually("the rest is asked for", || requested(&registry).len() >= 7);
    let mut third = requested(&registry).split_off(5);
    third.sort_unstable();
    assert_eq!(third, [3, 13]);
    read(&mount, &order, 50);
    assert_eq!(requested(&registry).len(), 7, "what was prefetched is not fetched again");
    let status = peel.json(&["status", "--json"]);
    let prefetched = status[0]["prefetched_bytes"].as_u64().unwrap();
    assert!((5 * FILE..6 * FILE).contains(&prefetched), "{status}");
    mount.unmount();
}

#[test]
fn a_prefetch_ends_with_its_mount_and_with_the_network() {
    let mut registry = FakeRegistry::start();
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("one", &[files(16, 0)], PLAIN);
    layout.image("two", &[files(16, 50)], PLAIN);
    let one = layout.serve(&registry, "name", "one");
    let two = layout.serve(&registry, "name", "two");
    let mount = peel.mount(&one);
    read(&mount, &[11, 1, 7, 3, 13, 5], 0);
    mount.unmount();
    peel.mount_with(&two, &["--prefetch", "none"]).unmount();

    registry.reset_counters();
    registry.set_fault("blobs/", Fault::Stall);
    let mount = peel.mount(&two);
    registry.wait_for_stalled(3);
    mount.unmount();
    peel.wait_for_servers_to_end();
    assert_eq!(requested(&registry).len(), 3);
    registry.clear_faults();
    registry.release();

    registry.set_fault("blobs/", Fault::Status(404));
    let log = peel.scratch().join("log");
    let mount = peel.mount_with(&two, &["--log", log.to_str().unwrap()]);
    eventually("it fails", || fs::read_to_string(&log).unwrap().contains("a prefetch failed"));
    registry.clear_faults();
    read(&mount, &[3], 50);
    registry.down();
    mount.unmount();
    peel.wait_for_servers_to_end();
}

#[test]
fn without_a_profile_what_the_author_marked_is_fetched_first() {
    let peel = Peel::new();
    let ordinary = Layout::create(peel.scratch().join("ordinary")).image("test", &[files(16, 0)], Form::GZIP);
    let list = peel.scratch().join("list");
    fs::write(&list, names(&[9, 4]).join("\n")).unwrap();
    let out = peel.scratch().join("estargz");
    let destination = format!("oci:{}:test", out.display());
    peel.succeed(&[
        "convert",
        &ordinary,
        &destination,
        "--format",
        "estargz",
        "--order",
        list.to_str().unwrap(),
    ]);
    let registry = FakeRegistry::start();
    let reference = Layout::open(&out).serve(&registry, "name", "test");

    let mount = peel.mount_with(&reference, &["--prefetch", "profile"]);
    registry.reset_counters();
    mount.unmount();
    // Also when its table is here already.
    let mount = peel.mount(&reference);
    eventually("it is asked for", || !requested(&registry).is_empty());
    read(&mount, &[4, 9], 0);
    assert_eq!(requested(&registry), [0], "both lie at the beginning");
    read(&mount, &[5], 0);
    assert_eq!(requested(&registry).len(), 2);
    mount.unmount();
}

/// Requests for lists of what refers to an image, or their fall-back.
fn looked_for(registry: &FakeRegistry) -> usize {
    let is_list = |target: &str| target.contains("/referrers/") || target.contains("/manifests/sha256-");
    registry.requests().iter().filter(|request| is_list(&request.target)).count()
}

#[test]
fn a_profile_that_was_pushed_is_used_elsewhere_where_the_user_asks_for_it() {
    for lists in [None, Some(Referrers { page: 10, filters: true })] {
        let registry = FakeRegistry::start();
        registry.take_pushes();
        if let Some(lists) = lists {
            registry.list_referrers(lists);
        }
        let (here, elsewhere) = (Peel::new(), Peel::new());
        let mut layout = Layout::create(here.scratch().join("layout"));
        layout.image("test", &[files(16, 0)], PLAIN);
        let reference = layout.serve(&registry, "name", "test");
        assert_eq!(here.run(&["profile", "push", &reference]).code, Some(3), "it is not in the store");
        let mount = here.mount(&reference);
        assert_eq!(here.run(&["profile", "push", &reference]).code, Some(3), "nothing is known");
        read(&mount, &[11, 1, 7], 0);
        mount.unmount();
        assert_eq!(looked_for(&registry), 0, "no request for what nobody asks for");
        let pushed = here.json(&["profile", "push", &reference, "--json"]);
        assert_eq!(here.json(&["profile", "push", &reference, "--json"]), pushed, "the same is the same");

        elsewhere.mount(&reference).unmount();
        assert_eq!(elsewhere.run(&["profile", "show", &reference]).code, Some(3));
        registry.reset_counters();
        let mount = elsewhere.mount_with(&reference, &["--profile-from-registry"]);
        // Where there is no list, the fall-back tag is asked for.
        let asked = if lists.is_some() { 1 } else { 2 };
        eventually("what it says is fetched", || {
            let ranged = registry.requests().into_iter().filter(|request| request.header("range").is_some());
            let blobs = ranged.filter(|request| request.kind == Kind::Blob);
            blobs.map(|request| request.bytes).sum::<u64>() > 3 * FILE
        });
        assert_eq!(looked_for(&registry), asked);
        read(&mount, &[11, 1, 7], 0);
        mount.unmount();
        let profile = show(&elsewhere, &reference);
        assert_eq!((paths(&profile), &profile["runs"]), (names(&[11, 1, 7]), &json!(2)));
        // What is known here is not looked for.
        registry.reset_counters();
        elsewhere.mount_with(&reference, &["--profile-from-registry"]).unmount();
        assert_eq!(looked_for(&registry), 0);
    }
}

#[test]
fn a_profile_in_the_registry_that_cannot_be_used_keeps_nobody_from_mounting() {
    let registry = FakeRegistry::start();
    registry.take_pushes();
    registry.list_referrers(Referrers { page: 10, filters: true });
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    layout.image("test", &[files(8, 0)], PLAIN);
    let reference = layout.serve(&registry, "name", "test");
    let log = peel.scratch().join("log");
    let options = ["--profile-from-registry", "--log", log.to_str().unwrap()];
    let mount = peel.mount_with(&reference, &options);
    read(&mount, &[1], 0);
    mount.unmount();
    peel.succeed(&["profile", "push", &reference]);

    for (path, fault, told) in [
        ("/referrers/", Fault::Status(403), "cannot be listed"),
        ("blobs/", Fault::WrongBytes, "passed over"),
        ("blobs/", Fault::Status(404), "passed over"),
    ] {
        peel.succeed(&["profile", "rm", &reference]);
        let _ = fs::remove_file(&log);
        registry.set_fault(path, fault);
        let mount = peel.mount_with(&reference, &options);
        eventually(told, || fs::read_to_string(&log).is_ok_and(|log| log.contains(told)));
        registry.clear_faults();
        read(&mount, &[1, 5], 0);
        mount.unmount();
    }
}
