//! Promise: a mount moves to a program that was installed since, and back, while it is read and written to; nobody notices. Whoever is killed
//! meanwhile, it is served on; and if the program cannot serve it, it stays with the one that does.

use super::*;
use crate::support::mapped::Mapped;
use crate::support::peel::{Outcome, run_to_end};
use std::path::PathBuf;
use std::process::Stdio;

/// The program that a process is.
fn program(process: i32) -> PathBuf {
    fs::read_link(format!("/proc/{process}/exe")).unwrap()
}

/// Has that program serve what is mounted there.
fn upgrade(peel: &Peel, program: &Path, path: &Path) -> Outcome {
    run_to_end(peel.command_of(program, &["upgrade", path.to_str().unwrap()]), peel.scratch())
}

#[track_caller]
fn upgraded(peel: &Peel, to: &Path, path: &Path) {
    let outcome = upgrade(peel, to, path);
    assert_eq!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stdout.contains(path.to_str().unwrap()), "{outcome:?}");
    is_served_by(peel, to);
}

/// The holder and the server of the only mount are of that program.
#[track_caller]
fn is_served_by(peel: &Peel, expected: &Path) {
    let processes = [peel.holders(), peel.servers()];
    assert!(processes.iter().all(|processes| processes.len() == 1), "{processes:?}");
    assert_eq!(processes.map(|processes| program(processes[0])), [expected, expected]);
}

/// What is sent to the holder is meant for the mount, also after it has become another program.
#[track_caller]
fn is_ended_by_its_holder(peel: &Peel, mount: crate::support::peel::Mount<'_>) {
    kill_process(Pid::from_raw(peel.holders()[0]).unwrap(), Signal::TERM).unwrap();
    peel.wait_for_servers_to_end();
    assert!(!is_mount_point(mount.path()));
    nothing_is_left(peel);
}

fn first_program() -> PathBuf {
    fs::canonicalize(env!("CARGO_BIN_EXE_peel")).unwrap()
}

#[test]
fn a_mount_that_is_read_moves_to_another_program_and_back() {
    let peel = Peel::new();
    let (reference, expected) = image(&peel);
    let mount = peel.mount(&reference);
    let (first, other) = (first_program(), peel.other_program());
    is_served_by(&peel, &first);
    let (before, holders) = (status(&peel), peel.holders());
    let descriptors = open_files(holders[0]);
    let file = File::open(mount.join("files/50")).unwrap();
    let mapped = Mapped::new(&File::open(mount.join("files/51")).unwrap());
    let seen = Seen::default();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_all_the_time(mount.path(), &expected, &seen, 0));
        for program in [&other, &first, &other] {
            upgraded(&peel, program, mount.path());
            let rounds = seen.rounds.load(Ordering::Relaxed);
            peel.wait_for(|| seen.rounds.load(Ordering::Relaxed) > rounds + 1 || reader.is_finished());
        }
        seen.ended.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    println!("the longest wait was {:?}", seen.longest_wait());
    let mut bytes = vec![0; expected[50].len()];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert!(bytes == expected[50] && mapped.bytes() == expected[51]);
    drop((file, mapped));
    let after = status(&peel);
    for same in ["pid", "started_at", "state", "mountpoint", "reference"] {
        assert_eq!(before[same], after[same]);
    }
    assert_eq!((peel.holders(), open_files(holders[0])), (holders, descriptors));
    // That is the program that serves it whatever happens.
    killed(&peel);
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "small");
    is_served_by(&peel, &other);
    let again = upgrade(&peel, &other, mount.path());
    assert!(again.code == Some(0) && again.stdout.contains("already"), "{again:?}");
    is_ended_by_its_holder(&peel, mount);
}

#[test]
fn what_waits_for_the_registry_when_the_mount_moves_arrives_all_the_same() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, expected) = served(&peel, &registry);
    let mount = peel.mount_with(&reference, &["--prefetch", "none"]);
    let (other, before) = (peel.other_program(), status(&peel)["requests"].as_u64().unwrap());
    read_while_stalled(&registry, mount.path(), &expected, || upgraded(&peel, &other, mount.path()));
    peel.wait_for(|| status(&peel)["requests"].as_u64().unwrap() > before);
    mount.unmount();
    nothing_is_left(&peel);
}

#[test]
fn a_writable_mount_moves_with_what_was_written() {
    let peel = Peel::new();
    let (reference, expected) = image(&peel);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    let written = File::options().write(true).open(mount.join("small")).unwrap();
    for (program, round) in [(peel.other_program(), 7), (first_program(), 21)] {
        fs::write(mount.join("new"), format!("new {round}")).unwrap();
        upgraded(&peel, &program, mount.path());
        assert_eq!(fs::read_to_string(mount.join("new")).unwrap(), format!("new {round}"));
        assert!(fs::read(mount.join(&format!("files/{round}"))).unwrap() == expected[round]);
        std::os::unix::fs::FileExt::write_all_at(&written, b"SMALL", 0).unwrap();
    }
    drop(written);
    assert_eq!(status(&peel)["snapshot"], "work");
    is_ended_by_its_holder(&peel, mount);
    let mount = peel.mount_with(&reference, &["--snapshot", "work"]);
    assert_eq!(fs::read_to_string(mount.join("small")).unwrap(), "SMALL");
    mount.unmount();
}

#[test]
fn whoever_is_killed_while_a_mount_moves_it_is_read_on() {
    let peel = Peel::new();
    let (reference, expected) = image(&peel);
    let mount = peel.mount(&reference);
    let programs = [peel.other_program(), first_program()];
    let (holders, seen) = (peel.holders(), Seen::default());
    let descriptors = open_files(holders[0]);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                scope.spawn({
                    let (root, expected, seen) = (mount.path(), &expected, &seen);
                    move || read_all_the_time(root, expected, seen, reader)
                })
            })
            .collect();
        let whole = crate::support::peel::duration_of(|| upgraded(&peel, &programs[0], mount.path()));
        for (number, instant) in shuffled_instants(whole + whole / 4).into_iter().enumerate() {
            let mut command =
                peel.command_of(&programs[(number + 1) % 2], &["upgrade", mount.path().to_str().unwrap()]);
            let mut upgrade = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(instant);
            let command = upgrade.id() as i32;
            // The one that serves, the one that will, both, and who asked for it.
            // The holder has no name for an instant, when it has become another program.
            let is_victim = |server: &i32| *server != command && *server != holders[0];
            let mut victims: Vec<i32> = peel.servers().into_iter().filter(is_victim).collect();
            victims.sort_unstable();
            match number % 4 {
                0 => victims.truncate(1),
                1 => drop(victims.drain(..victims.len().saturating_sub(1))),
                2 => victims.push(command),
                _ => victims = vec![command],
            }
            for victim in victims {
                kill_and_wait(victim);
            }
            upgrade.wait().unwrap();
            assert!(readers.iter().all(|reader| !reader.is_finished()), "a reader ended");
        }
        for program in &programs {
            upgraded(&peel, program, mount.path());
        }
        let before = seen.rounds.load(Ordering::Relaxed);
        peel.wait_for(|| {
            seen.rounds.load(Ordering::Relaxed) > before + 2
                || readers.iter().any(|reader| reader.is_finished())
        });
        seen.ended.store(true, Ordering::Relaxed);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    println!("the longest wait was {:?}", seen.longest_wait());
    assert_eq!((peel.holders(), open_files(holders[0])), (holders, descriptors));
    mount.unmount();
    nothing_is_left(&peel);
}

#[test]
fn a_mount_whose_holder_is_killed_while_it_moves_is_served_on_by_one_or_the_other() {
    let peel = Peel::new();
    let (reference, expected) = image(&peel);
    let other = peel.other_program();
    for instant in shuffled_instants(Duration::from_millis(300)) {
        let mount = peel.mount(&reference);
        let holder = peel.holders()[0];
        let mut command = peel.command_of(&other, &["upgrade", mount.path().to_str().unwrap()]);
        let mut upgrade = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(instant);
        kill_and_wait(holder);
        upgrade.wait().unwrap();
        for number in [3, 33] {
            assert!(fs::read(mount.join(&format!("files/{number}"))).unwrap() == expected[number]);
        }
        // Who was on trial is gone, and the one that serves has it recorded.
        peel.wait_for(|| peel.servers().len() == 1 && status(&peel)["pid"] == peel.servers()[0]);
        assert_eq!(status(&peel)["state"], "live");
        let refused = upgrade_refused(&peel, &other, mount.path());
        assert!(refused.contains("no process holds it"), "{refused}");
        mount.unmount();
        nothing_is_left(&peel);
    }
}

/// What is said when a mount stays as it is.
#[track_caller]
fn upgrade_refused(peel: &Peel, program: &Path, path: &Path) -> String {
    let outcome = upgrade(peel, program, path);
    assert_ne!(outcome.code, Some(0), "{outcome:?}");
    assert!(outcome.stderr.contains("is served as before"), "{outcome:?}");
    outcome.stderr
}

/// Asks the holder as `peel upgrade` does, in the name of another program.
const STRANGER: &str = "
import ctypes, os, sys
reader, writer = os.pipe()
ctypes.CDLL(None).sigqueue(int(sys.argv[1]), 1, ctypes.c_void_p(writer))
told = os.read(reader, 1)
os.close(writer)
while True:
    more = os.read(reader, 4096)
    told += more
    if not more:
        break
print(told[1:-2].decode(), list(told[-2:]))
";

#[test]
fn a_mount_stays_with_the_program_that_serves_it_if_the_other_cannot() {
    let peel = Peel::new();
    let (reference, expected) = image(&peel);
    let other = peel.other_program();
    let mount = peel.mount(&reference);
    let (holder, server) = (peel.holders()[0], only_server(&peel));
    let is_as_before = || {
        assert_eq!((peel.holders(), peel.servers()), (vec![holder], vec![server]));
        assert!(fs::read(mount.join("files/20")).unwrap() == expected[20]);
    };
    // A program that is none of ours.
    let mut stranger = std::process::Command::new("python3");
    stranger.args(["-c", STRANGER, &holder.to_string()]);
    let told = run_to_end(stranger, peel.scratch());
    assert!(told.code == Some(0) && told.stdout.contains("go-on"), "{told:?}");
    assert!(told.stdout.trim_end().ends_with("[0, 1]"), "{told:?}");
    is_as_before();
    // A program that speaks another version with the holder, and one that was left nothing.
    for (version, descriptor, told) in [("2", "9", "speaks version \"2\""), ("1", "900", "was not inherited")]
    {
        let outcome = peel.run(&["go-on", "serve", version, descriptor, "mount", &reference, "/nowhere"]);
        assert!(outcome.code == Some(1) && outcome.stderr.contains(told), "{outcome:?}");
    }
    // A SIGHUP that is no wish.
    kill_process(Pid::from_raw(holder).unwrap(), Signal::HUP).unwrap();
    is_as_before();
    // The image is not there any more.
    let away = peel.scratch().join("away");
    let content = peel.store().join("content");
    for (from, to) in
        [(peel.scratch().join("layout"), peel.scratch().join("gone")), (content.clone(), away.clone())]
    {
        fs::rename(from, to).unwrap();
    }
    let refused = upgrade_refused(&peel, &other, mount.path());
    assert!(refused.contains("layout"), "{refused}");
    is_as_before();
    fs::rename(away, content).unwrap();
    fs::rename(peel.scratch().join("gone"), peel.scratch().join("layout")).unwrap();
    // Who is no mount.
    let outcome = upgrade(&peel, &other, &peel.mount_point());
    assert!(outcome.code == Some(3) && outcome.stderr.contains("no mount of this store"), "{outcome:?}");
    upgraded(&peel, &other, mount.path());
    mount.unmount();
    nothing_is_left(&peel);
    // One that nobody holds.
    let directory = peel.mount_point();
    let mut command = peel.command(&["mount", "--foreground", &reference, directory.to_str().unwrap()]);
    let mut serving = command.stderr(Stdio::null()).spawn().unwrap();
    peel.wait_for(|| is_mount_point(&directory) && status(&peel)["pid"] == serving.id());
    let refused = upgrade_refused(&peel, &other, &directory);
    assert!(refused.contains("--foreground"), "{refused}");
    peel.unmount(&directory);
    serving.wait().unwrap();
}
