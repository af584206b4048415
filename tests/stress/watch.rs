//! Who does what and since when, and how much of everything there is.
//!
//! Two things are growth without bound: a measure above its bound, which no honest run comes near; and, in a run of forty measurements or more, one
//! that rises: its median over the last quarter is above that over the second quarter by more than a quarter and what its row in [`BOUNDS`] lets it.
//! The first quarter is not looked at, as caches fill. What grows steadily from nothing would be more than twice as much.

use super::{BUDGET, Fate, Stress};
use crate::support::peel::mounts_below;
use crate::support::space::{disk_usage, where_it_is};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Nothing takes as long: reads end after a minute, and all that stalls goes on after two seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What each measure may be, and by how much more than a quarter it may rise. Kilobytes are KiB.
const BOUNDS: &[(&str, u64, u64)] = &[
    ("threads of a server", 64, 16),
    ("descriptors of a server", 256, 32),
    ("private KB of a server", 160_000, 20_000),
    ("threads of a holder", 1, 0),
    ("descriptors of a holder", 24, 0),
    ("private KB of a holder", 8_000, 200),
    // Of those that serve from the beginning to the end.
    ("threads of a steady server", 64, 8),
    ("descriptors of a steady server", 256, 8),
    ("private KB of a steady server", 160_000, 8_000),
    ("processes", 160, 12),
    ("mounts", 64, 0),
    // What eight processes may overrun it by (docs/limits.md), and what is no content.
    ("KB of the store", (BUDGET + BUDGET / 4 + (8 << 20)) >> 10, 2_000),
    ("files of the store", 4_000, 400),
    ("KB of the database", 16_000, 1_000),
    ("KB of logs", 16_000, 1_000),
];

/// What each thread does now.
#[derive(Default)]
pub struct Watch(Mutex<BTreeMap<u64, Doing>>);

struct Doing {
    who: String,
    thread: i32,
    what: Option<(String, Instant)>,
}

/// One of those who are watched.
pub struct Worker<'a> {
    watch: &'a Watch,
    number: u64,
}

impl Watch {
    pub fn worker(&self, who: &str) -> Worker<'_> {
        let mut all = self.0.lock().unwrap();
        let number = all.len() as u64;
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        all.insert(number, Doing { who: who.to_owned(), thread, what: None });
        Worker { watch: self, number }
    }

    /// If somebody waits for too long: says who, for what, and where all wait; lets everybody go; and fails.
    pub fn fails_if_something_hangs(&self, stress: &Stress<'_>) {
        let mut report = String::new();
        for doing in self.0.lock().unwrap().values() {
            let Some((what, since)) = &doing.what else { continue };
            if since.elapsed() > PATIENCE {
                writeln!(report, "HANG: {}: {what}, for {:?}", doing.who, since.elapsed()).unwrap();
                writeln!(report, "{}", where_it_waits(&format!("/proc/self/task/{}", doing.thread))).unwrap();
            }
        }
        if report.is_empty() {
            return;
        }
        for process in stress.peel.holders().into_iter().chain(stress.peel.servers()) {
            let arguments = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            writeln!(report, "process {process}: {}", String::from_utf8_lossy(&arguments).replace('\0', " "))
                .unwrap();
            for thread in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten() {
                writeln!(report, "  {}", where_it_waits(&thread.path().to_string_lossy())).unwrap();
            }
        }
        eprintln!("{report}");
        // Whoever waits for an answer gets an error now.
        stress.peel.kill_servers();
        panic!("something hangs, see above");
    }
}

/// A thread's name, state, and where it is in the kernel.
fn where_it_waits(thread: &str) -> String {
    let file = |name: &str| fs::read_to_string(format!("{thread}/{name}")).unwrap_or_default();
    let status = file("status");
    let state = status.lines().find(|line| line.starts_with("State:")).unwrap_or_default();
    let (stack, number) = (file("stack").replace('\n', " "), thread.rsplit('/').next().unwrap_or_default());
    format!(
        "{number} {} {state} wchan {} syscall {} stack {stack}",
        file("comm").trim(),
        file("wchan"),
        file("syscall").trim()
    )
}

impl Worker<'_> {
    /// Does something, and is watched meanwhile.
    pub fn does<R>(&self, what: &str, work: impl FnOnce() -> R) -> R {
        let set =
            |what| self.watch.0.lock().unwrap().get_mut(&self.number).expect("it was put there").what = what;
        set(Some((what.to_owned(), Instant::now())));
        let result = work();
        set(None);
        result
    }
}

/// What was measured, in order.
#[derive(Default)]
pub struct Measured(BTreeMap<&'static str, Vec<u64>>);

/// Measures until the end, each period; fails if something hangs or is above its bound.
pub fn watch(stress: &Stress<'_>, end: Instant, period: Duration, measured: &mut Measured) {
    let (begun, mut last) = (Instant::now(), Instant::now());
    while stress.goes_on() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        if last.elapsed() < period {
            continue;
        }
        last = Instant::now();
        stress.watch.fails_if_something_hangs(stress);
        let measures = measure(stress);
        println!("{:>5} s: {measures:?}; {}", begun.elapsed().as_secs(), stress.counts());
        for (what, bound, _) in BOUNDS {
            let Some(found) = measures.get(what) else { continue };
            let places = || where_it_is(stress.peel.store());
            assert!(found <= bound, "{what}: {found}, more than {bound}\n{}", places());
            measured.0.entry(what).or_default().push(*found);
        }
    }
}

fn measure(stress: &Stress<'_>) -> BTreeMap<&'static str, u64> {
    let (peel, store) = (stress.peel, stress.peel.store());
    let (holders, servers) = (peel.holders(), peel.servers());
    let steady: Vec<i32> = (stress.slots.iter().filter(|slot| slot.fate == Fate::Steady))
        .flat_map(|slot| peel.servers_of(slot.name()))
        .collect();
    let database = ["peel.db", "peel.db-wal", "peel.db-shm"].map(|name| disk_usage(&store.join(name)));
    let mut measures = BTreeMap::from([
        ("processes", (holders.len() + servers.len()) as u64),
        ("mounts", mounts_below(peel.scratch()).len() as u64),
        ("KB of the store", disk_usage(store) >> 10),
        ("files of the store", files(store)),
        ("KB of the database", database.iter().sum::<u64>() >> 10),
        ("KB of logs", disk_usage(&store.join("log")) >> 10),
    ]);
    let groups = [
        (&holders, ["threads of a holder", "descriptors of a holder", "private KB of a holder"]),
        (&servers, ["threads of a server", "descriptors of a server", "private KB of a server"]),
        (
            &steady,
            ["threads of a steady server", "descriptors of a steady server", "private KB of a steady server"],
        ),
    ];
    for (processes, names) in groups {
        for process in processes {
            for (name, found) in names.into_iter().zip(of_process(*process)) {
                let largest = measures.entry(name).or_default();
                *largest = found.max(*largest);
            }
        }
    }
    measures
}

/// Threads, descriptors, private kilobytes: nothing of a process that has ended.
fn of_process(process: i32) -> [u64; 3] {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let field = |name: &str| -> u64 {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).map_or(0, |entries| entries.count() as u64);
    [field("Threads:"), descriptors, field("RssAnon:")]
}

fn files(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| 1 + if entry.path().is_dir() { files(&entry.path()) } else { 0 }).sum()
}

impl Measured {
    /// Says what came of each measure, and fails if one rises.
    pub fn judge(&self) {
        let mut rising = Vec::new();
        for (what, bound, more) in BOUNDS {
            let Some(values) = self.0.get(what) else { continue };
            let quarter = values.len() / 4;
            let (second, last) =
                (median(&values[quarter..2 * quarter]), median(&values[values.len() - quarter..]));
            let most = values.iter().max().copied().unwrap_or(0);
            println!(
                "{what}: at most {most} (of {bound}); in the second quarter {second}, in the last {last}"
            );
            if values.len() >= 40 && last > second + second / 4 + more {
                rising.push(*what);
            }
        }
        assert!(rising.is_empty(), "growth without bound: {rising:?}");
    }
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
