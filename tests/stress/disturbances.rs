//! What goes on beside the readers: the weather at the registries, kills, remounts, and commands of all kinds.

use super::choices::Choices;
use super::readers::{arrives, whole};
use super::watch::Worker;
use super::{Fate, Slot, Stress};
use crate::support::peel::{Outcome, is_mount_point, kill_and_wait, run_to_end};
use crate::support::registry::{Fault, WrongParts};
use rustix::fs::{Advice, fadvise};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Waits, but not beyond the end.
fn pause(stress: &Stress<'_>, milliseconds: u64) {
    for _ in 0..milliseconds.div_ceil(20) {
        if stress.goes_on() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A storm of a few faults, and calm; again and again.
pub fn weather(stress: &Stress<'_>, choices: &mut Choices, _: &Worker<'_>) {
    while stress.goes_on() {
        let calm = 500 + choices.below(2000);
        pause(stress, calm);
        stress.weather.fetch_add(1, Ordering::SeqCst);
        for registry in stress.registries {
            for _ in 0..choices.below(4) {
                let path = *choices.one(&["GET ", "blobs/", "blobs/", "storage/", "manifests/", "/token"]);
                let times = 1 + choices.below(4) as usize;
                registry.set_fault_times(path, fault(choices), times);
            }
            if choices.once_in(3) {
                registry.revoke_tokens();
                registry.expire_signatures();
            }
        }
        let storm = 200 + choices.below(1500);
        pause(stress, storm);
        for registry in stress.registries {
            registry.clear_faults();
            registry.release();
            // What is not looked at need not be remembered.
            registry.reset_counters();
        }
        stress.weather.fetch_add(1, Ordering::SeqCst);
        stress.count("storms", 1);
    }
}

fn fault(choices: &mut Choices) -> Fault {
    let bytes = choices.below(400_000);
    match choices.below(22) {
        0 => Fault::Stall,
        1 => Fault::StallWhole,
        2 => Fault::StallAfter(bytes),
        3 | 4 => Fault::CutAfter(bytes),
        5 => Fault::ShortBody(bytes),
        6 => Fault::LongBody(100),
        7 => Fault::WrongLength(100),
        8 => Fault::Close,
        9 => Fault::Status(*choices.one(&[500, 502, 503, 504, 404, 403])),
        10 => Fault::RetryAfter(503, "1".to_owned()),
        11 => Fault::RetryAfter(429, "1".to_owned()),
        12 => Fault::IgnoreRange,
        13 => Fault::IgnoreParts,
        14 => Fault::RefuseParts(*choices.one(&[400, 416, 501])),
        15 => Fault::RefuseRange(*choices.one(&[400, 416, 501])),
        16 => Fault::WrongParts(*choices.one(&[
            WrongParts::Reversed,
            WrongParts::Joined,
            WrongParts::WithoutLast,
            WrongParts::OnlyFirst,
        ])),
        17 => Fault::WrongContentRange,
        18 => Fault::NoContentRange,
        19 => Fault::ContentEncoding,
        _ => Fault::WrongBytes,
    }
}

/// kill -9 to those who serve.
pub fn kill(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>) {
    while stress.goes_on() {
        let wait = 50 + choices.below(900);
        pause(stress, wait);
        let slot = choices.one(&stress.slots);
        let Ok(mounted) = slot.gate.read() else { return };
        if !*mounted || slot.fate == Fate::Steady {
            continue;
        }
        stress.kills.fetch_add(1, Ordering::SeqCst);
        worker.does(&format!("killing the server of {}", slot.name()), || {
            let servers = stress.peel.servers_of(slot.name());
            // Not the holder, which has another name for an instant while it becomes another program; nor a command.
            for server in servers.into_iter().filter(|server| is_started_by_a_holder(*server)) {
                kill_and_wait(server);
                stress.count("servers killed", 1);
            }
        });
        stress.kills.fetch_add(1, Ordering::SeqCst);
    }
}

/// Whether its parent is another process of the program under test.
fn is_started_by_a_holder(process: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap_or_default().trim();
    let program = std::fs::read_link(format!("/proc/{parent}/exe")).unwrap_or_default();
    let name = program.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("peel")
}

/// Takes mounts away, in order, lazily or with violence, and makes them again.
pub fn remount(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>) {
    while stress.goes_on() {
        let wait = choices.below(400);
        pause(stress, wait);
        let slot = choices.one(&stress.slots);
        if slot.fate != Fate::Remounted {
            continue;
        }
        let Ok(mut mounted) = slot.gate.write() else { return };
        if !*mounted {
            *mounted = mount(stress, choices, worker, slot);
            continue;
        }
        match choices.below(4) {
            0 => {
                lazily(stress, choices, worker, slot);
                *mounted = false;
            }
            1 => {
                worker.does(&format!("killing all of {}", slot.name()), || {
                    for holder in stress.peel.holders_of(slot.name()) {
                        kill_and_wait(holder);
                    }
                    for server in stress.peel.servers_of(slot.name()) {
                        kill_and_wait(server);
                    }
                });
                stress.count("mounts killed", 1);
                // It is dead: either it is cleaned up, or the next mount does that.
                *mounted = false;
                if choices.once_in(2) {
                    worker.does(&format!("unmounting {}", slot.name()), || stress.peel.unmount(&slot.path));
                }
            }
            _ => {
                worker.does(&format!("unmounting {}", slot.name()), || stress.peel.unmount(&slot.path));
                stress.count("unmounted", 1);
                *mounted = false;
            }
        }
        if !*mounted && choices.below(3) > 0 {
            *mounted = mount(stress, choices, worker, slot);
        }
    }
}

/// Somebody has a file open, and reads it when the mount is not seen any more. Until he is done, who unmounts waits.
fn lazily(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>, slot: &Slot) {
    let image = &stress.images[slot.image];
    let (path, expected) = image.file(choices.below(image.files.len() as u64) as usize);
    let file = worker.does("opening a file", || File::open(slot.path.join(path)).unwrap());
    let arguments = ["unmount", "--lazy", slot.name()];
    std::thread::scope(|scope| {
        let unmounting = scope.spawn(|| stress.peel.run(&arguments));
        worker.does(&format!("waiting for the end of {}", slot.name()), || {
            stress.peel.wait_for(|| unmounting.is_finished() || !is_mount_point(&slot.path));
        });
        let what = format!("reading {path} of {}, which is not mounted any more", slot.name());
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        arrives(stress, worker, &what, || whole(&file, expected, &what));
        drop(file);
        let outcome =
            worker.does(&format!("unmounting {} lazily", slot.name()), || unmounting.join().unwrap());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
    });
    stress.count("unmounted lazily", 1);
}

/// Mounts an image in one of many ways; false if a registry misbehaved.
fn mount(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>, slot: &Slot) -> bool {
    let reference = &stress.images[slot.image].reference;
    let mut arguments = vec!["mount", reference, slot.name(), "--quiet", "--network-timeout", "5"];
    let more: &[&[&str]] = &[
        &[],
        &[],
        &["--prefetch", "none"],
        &["--prefetch", "profile"],
        &["--complete"],
        &["--complete=2M"],
        &["--status-files"],
        &["--pull", "always"],
        &["--read-timeout", "3"],
        &["--no-profile", "--profile-from-registry"],
    ];
    arguments.extend(*choices.one(more));
    let succeeded = comes(stress, worker, &arguments);
    stress.count(if succeeded { "mounted" } else { "not mounted in a storm" }, 1);
    succeeded
}

fn command(stress: &Stress<'_>, worker: &Worker<'_>, arguments: &[&str]) -> Outcome {
    stress.count("commands", 1);
    worker.does(&format!("peel {}", arguments.join(" ")), || stress.peel.run(arguments))
}

/// Runs a command that asks the registry. Whether it succeeded; it may fail in a storm, with the exit code that says so.
fn comes(stress: &Stress<'_>, worker: &Worker<'_>, arguments: &[&str]) -> bool {
    let mut failed_in_calm = 0;
    loop {
        let weather = stress.weather();
        let outcome = command(stress, worker, arguments);
        match outcome.code {
            Some(0) => return true,
            // Absent, refused, unreachable, wrong: each is what some fault looks like.
            Some(3..=6) if !stress.was_calm_since(weather) => return false,
            Some(3..=6) => failed_in_calm += 1,
            _ => panic!("peel {arguments:?}: {outcome:?}"),
        }
        assert!(failed_in_calm < 3, "peel {arguments:?} in calm: {outcome:?}");
    }
}

/// Commands that those give who use a store, one after the other.
pub fn operate(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>) {
    let other = stress.peel.other_program();
    while stress.goes_on() {
        let wait = choices.below(500);
        pause(stress, wait);
        let slot = choices.one(&stress.slots);
        let reference = stress.images[slot.image].reference.as_str();
        let does = |arguments: &[&str], codes: &[i32]| {
            let outcome = command(stress, worker, arguments);
            assert!(
                outcome.code.is_some_and(|code| codes.contains(&code)),
                "peel {arguments:?}: {outcome:?}"
            );
        };
        match choices.below(18) {
            0 => does(&["gc"], &[0]),
            1 => does(&["gc", "--keep-bytes", "6MiB"], &[0]),
            2 => is_clean(stress, worker),
            3 => drop(comes(stress, worker, &["pull", reference, "--quiet", "--network-timeout", "5"])),
            4 => extract(stress, worker, reference),
            // There is none if it was removed.
            5 => does(&["rm", reference], &[0, 3]),
            6 => does(&["rm", "--now", reference], &[0, 3]),
            7..=9 => {
                // What is wished of a mount that ends at that very moment would be left behind.
                let Ok(mounted) = slot.gate.read() else { return };
                let mut arguments = vec!["complete", slot.name()];
                let wishes: &[&[&str]] = &[&[], &["--pause"], &["--resume", "--rate", "4M"]];
                arguments.extend(*choices.one(wishes));
                if *mounted {
                    does(&arguments, &[0, 3]);
                }
            }
            10 => does(&["status", "--json"], &[0]),
            11 => does(&["ls", "--json"], &[0]),
            12 => does(&["records", "--json"], &[0]),
            13 => does(&["store", "--budget", &super::BUDGET.to_string()], &[0]),
            14..=16 => upgrade(stress, choices, worker, slot, &other),
            _ => {
                let commands: &[&[&str]] = &[
                    &["gc"],
                    &["gc", "--keep-bytes", "2MiB"],
                    &["pull", reference],
                    &["extract", reference],
                    &["rm", "--now", reference],
                    &["store", "--budget", "12582912"],
                    &["check"],
                ];
                let (command, after) = (*choices.one(commands), Duration::from_millis(choices.below(300)));
                let what = format!("peel {} killed after {after:?}", command.join(" "));
                worker.does(&what, || stress.peel.killed_after(after, command));
                stress.count("commands killed", 1);
            }
        }
    }
}

/// Fetches a part of an image. There may be no room for it: others evict what it brings.
fn extract(stress: &Stress<'_>, worker: &Worker<'_>, reference: &str) {
    let arguments = ["extract", reference, "large", "--quiet", "--network-timeout", "5"];
    let weather = stress.weather();
    let outcome = command(stress, worker, &arguments);
    match outcome.code {
        Some(0) => {}
        Some(8) if outcome.stderr.contains("evicted again and again") => {
            stress.count("extractions without room", 1);
        }
        Some(3..=6) if !stress.was_calm_since(weather) => {}
        Some(3..=6) => drop(comes(stress, worker, &["pull", reference, "--quiet"])),
        _ => panic!("peel {arguments:?}: {outcome:?}"),
    }
}

/// All that the store holds is what it should be, whatever is going on.
fn is_clean(stress: &Stress<'_>, worker: &Worker<'_>) {
    let outcome = command(stress, worker, &["check", "--json"]);
    let report: serde_json::Value =
        serde_json::from_str(&outcome.stdout).unwrap_or_else(|error| panic!("{error}: {outcome:?}"));
    assert_eq!(report["findings"], serde_json::json!([]), "{outcome:?}");
    stress.count("checks", 1);
}

/// Has the mount served by one of two programs.
fn upgrade(stress: &Stress<'_>, choices: &mut Choices, worker: &Worker<'_>, slot: &Slot, other: &Path) {
    let Ok(mounted) = slot.gate.read() else { return };
    if !*mounted || slot.fate == Fate::Steady {
        return;
    }
    let first = Path::new(env!("CARGO_BIN_EXE_peel"));
    let program = *choices.one(&[first, other]);
    let kills = stress.kills.load(Ordering::SeqCst);
    let what = format!("upgrading {}", slot.name());
    let command = stress.peel.command_of(program, &["upgrade", slot.name()]);
    let outcome = worker.does(&what, || run_to_end(command, stress.peel.scratch()));
    let kills_since = stress.kills.load(Ordering::SeqCst) - kills;
    match outcome.code {
        Some(0) => stress.count("upgrades", 1),
        // Even: nobody was being killed when it began.
        _ if kills_since == 0 && kills.is_multiple_of(2) => panic!("{what}: {outcome:?}"),
        _ => stress.count("upgrades in which somebody was killed", 1),
    }
}
