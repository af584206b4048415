//! Promise: whatever happens at once and for however long (many readers, evictions, prefetching and completion, registries that misbehave,
//! remounts, kills, upgrades, collections), nobody sees a wrong byte, nothing hangs, and nothing grows without bound.
//!
//! ```text
//! readers ───▶ slots: mounts of six images ◀─── remounts, kills, upgrades
//!                       │
//!               one store, small budget   ◀─── gc, rm, pull, extract, complete, check
//!                       │
//!               two registries            ◀─── weather: storms of faults, and calm between them
//! ```
//!
//! An ordinary run takes seconds. `PEEL_STRESS_SECONDS` has it go on for so long, with more mounts and readers; `scripts/stress` does that.
//! `PEEL_STRESS_SEED` repeats the choices of an earlier run, though not how they fall together.
//!
//! What must hold: metadata never fails. A read gives the bytes that the reference model has, or EIO, and that only if a registry misbehaved
//! meanwhile: in calm it may fail twice, as by what was under way, and no third time. A command does what it should, or ends with the exit
//! code of a registry that misbehaved while it ran, or was killed here. In the end all is as if nothing had happened.

mod choices;
mod disturbances;
mod images;
mod readers;
mod watch;

use crate::support::model::Model;
use crate::support::peel::{Peel, mounts_below};
use crate::support::registry::FakeRegistry;
use crate::support::tree::{Tree, assert_same};
use choices::Choices;
use images::Image;
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};
use watch::Watch;

/// A third of what the images have in them.
const BUDGET: u64 = 12 << 20;

/// What may happen to a mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    /// Nothing: its server is the one that would show what grows.
    Steady,
    /// Its server is killed, or becomes another program; its holder stays.
    Killed,
    /// All of it.
    Remounted,
}

/// A directory at which an image is mounted, most of the time.
struct Slot {
    image: usize,
    fate: Fate,
    path: PathBuf,
    /// Whether it is mounted. Who uses the mount holds this for reading, who mounts and unmounts for writing.
    gate: RwLock<bool>,
}

impl Slot {
    fn name(&self) -> &str {
        self.path.to_str().expect("temporary names are UTF-8")
    }
}

/// How long, and how much of it.
struct Scale {
    duration: Duration,
    fates: &'static [Fate],
    readers: usize,
    remounters: usize,
    operators: usize,
    /// Between two measurements.
    period: Duration,
}

impl Scale {
    fn chosen() -> Scale {
        let seconds: Option<u64> = std::env::var("PEEL_STRESS_SECONDS")
            .ok()
            .map(|seconds| seconds.parse().expect("PEEL_STRESS_SECONDS is a number"));
        match seconds {
            None => Scale {
                duration: Duration::from_secs(4),
                fates: &[Fate::Remounted],
                readers: 3,
                remounters: 1,
                operators: 1,
                period: Duration::from_secs(1),
            },
            Some(seconds) => Scale {
                duration: Duration::from_secs(seconds),
                fates: &[Fate::Steady, Fate::Killed, Fate::Remounted, Fate::Remounted],
                readers: 10,
                remounters: 2,
                operators: 2,
                period: Duration::from_secs((seconds / 120).clamp(2, 20)),
            },
        }
    }
}

/// All that the threads share.
struct Stress<'a> {
    peel: &'a Peel,
    registries: &'a [FakeRegistry; 2],
    images: Vec<Image>,
    slots: Vec<Slot>,
    seed: u64,
    ended: AtomicBool,
    /// Odd in a storm, even in calm; raised at each change.
    weather: AtomicU64,
    kills: AtomicU64,
    watch: Watch,
    counted: Mutex<BTreeMap<&'static str, u64>>,
}

impl Stress<'_> {
    fn goes_on(&self) -> bool {
        !self.ended.load(Ordering::SeqCst)
    }

    fn count(&self, what: &'static str, number: u64) {
        *self.counted.lock().unwrap().entry(what).or_default() += number;
    }

    fn weather(&self) -> u64 {
        self.weather.load(Ordering::SeqCst)
    }

    /// Whether it was calm since then.
    fn was_calm_since(&self, then: u64) -> bool {
        then.is_multiple_of(2) && self.weather() == then
    }

    fn counts(&self) -> String {
        let counted = self.counted.lock().unwrap();
        counted.iter().map(|(what, number)| format!("{number} {what}")).collect::<Vec<_>>().join(", ")
    }
}

/// Has all others end when its thread panics.
struct EndOnPanic<'a>(&'a AtomicBool);

impl Drop for EndOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

/// What the serving processes had to say last, for who looks for the reason of a failure.
struct LogsOnPanic<'a>(&'a Peel);

impl Drop for LogsOnPanic<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for entry in fs::read_dir(self.0.store().join("log")).into_iter().flatten().flatten() {
            let log = fs::read_to_string(entry.path()).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(30)..];
            eprintln!("{}:\n{}", entry.path().display(), last.join("\n"));
        }
    }
}

#[test]
fn nothing_that_happens_at_once_makes_a_wrong_byte_a_hang_or_growth_without_bound() {
    let scale = Scale::chosen();
    let (peel, registries) = (Peel::new(), images::registries());
    let images = images::images(peel.scratch(), &registries);
    let slots = scale.fates.iter().flat_map(|fate| (0..images.len()).map(move |image| (image, *fate)));
    let slots: Vec<_> = slots
        // Of the last image nothing is mounted all the time, so that it is removed and evicted as a whole.
        .filter(|(image, fate)| *image + 1 != images.len() || *fate == Fate::Remounted)
        .map(|(image, fate)| Slot { image, fate, path: peel.mount_point(), gate: RwLock::new(false) })
        .collect();
    let seed = choices::seed();
    println!(
        "PEEL_STRESS_SEED={seed}: {} mounts, {} readers, {:?}",
        slots.len(),
        scale.readers,
        scale.duration
    );
    peel.succeed(&["store", "--budget", &BUDGET.to_string()]);
    let stress = Stress {
        peel: &peel,
        registries: &registries,
        images,
        slots,
        seed,
        ended: AtomicBool::new(false),
        weather: AtomicU64::new(0),
        kills: AtomicU64::new(0),
        watch: Watch::default(),
        counted: Mutex::default(),
    };
    let mut measured = watch::Measured::default();
    let _logs = LogsOnPanic(&peel);
    std::thread::scope(|scope| {
        let mut number = 0;
        let mut start = |name: &str, work: fn(&Stress<'_>, &mut Choices, &watch::Worker)| {
            number += 1;
            let (stress, name, number) = (&stress, format!("{name} {number}"), number);
            let thread = move || {
                let _guard = EndOnPanic(&stress.ended);
                let worker = stress.watch.worker(&name);
                work(stress, &mut Choices::new(stress.seed, number), &worker);
            };
            std::thread::Builder::new().spawn_scoped(scope, thread).expect("starting a thread")
        };
        for slot in &stress.slots {
            *slot.gate.write().unwrap() = true;
            peel.succeed(&["mount", &stress.images[slot.image].reference, slot.name(), "--quiet"]);
        }
        let begun = Instant::now();
        let mut threads = vec![start("weather", disturbances::weather), start("killer", disturbances::kill)];
        threads.extend((0..scale.readers).map(|_| start("reader", readers::read)));
        threads.extend((0..scale.remounters).map(|_| start("remounter", disturbances::remount)));
        threads.extend((0..scale.operators).map(|_| start("operator", disturbances::operate)));
        let _guard = EndOnPanic(&stress.ended);
        watch::watch(&stress, begun + scale.duration, scale.period, &mut measured);
        stress.ended.store(true, Ordering::SeqCst);
        // Somebody may wait for a long time yet; he is watched, too.
        while threads.iter().any(|thread| !thread.is_finished()) {
            stress.watch.fails_if_something_hangs(&stress);
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    println!("{}", stress.counts());
    measured.judge();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (_guard, stress) = (EndOnPanic(&done), &stress);
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                stress.watch.fails_if_something_hangs(stress);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        all_is_as_if_nothing_had_happened(stress, &stress.watch.worker("the end"));
        done.store(true, Ordering::SeqCst);
    });
}

/// Each image is whole at each place, all can be unmounted, and then nothing is left.
fn all_is_as_if_nothing_had_happened(stress: &Stress<'_>, worker: &watch::Worker<'_>) {
    let (peel, begun) = (stress.peel, Instant::now());
    for slot in &stress.slots {
        let image = &stress.images[slot.image];
        if !*slot.gate.read().unwrap() {
            peel.succeed(&["mount", &image.reference, slot.name(), "--quiet"]);
        }
        worker.does(&format!("walking {}", slot.name()), || {
            assert_same(&Tree::walk(&slot.path), &Model::of(&image.layers).unwrap().tree(), &[]);
        });
    }
    println!("all was looked at in {:?}", begun.elapsed());
    assert_eq!(peel.holders().len(), stress.slots.len(), "mounts that were taken away lazily have ended");
    for slot in &stress.slots {
        peel.unmount(&slot.path);
    }
    println!("and unmounted, {:?}", begun.elapsed());
    assert_eq!(mounts_below(peel.scratch()), Vec::<PathBuf>::new());
    crate::survival::nothing_is_left(peel);
    assert_eq!(peel.json(&["lease", "ls", "--json"]), serde_json::json!([]));
}
