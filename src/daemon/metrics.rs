//! Numbers for those who operate the machine: gathered when somebody asks for them.
//!
//! | about | from |
//! | --- | --- |
//! | calls of containerd | this process, since it began |
//! | requests, reads, chunks, bytes | all processes of the store, those that have ended included: so they outlast a restart |
//! | snapshots, mounts | the database, the kernel |
//! | layers, room on the disk | the store: looked at once in a while, as that takes a while |
//! | memory, descriptors, threads | the kernel, of this process and of those that serve trees |
//!
//! Labels have few values, all of them known beforehand but the names of hosts, which are bounded ([`crate::meter`]).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peelfs_registry::{RequestKind, RequestOutcome};

use super::exposition::{Exposition, Kind};
use super::processes::{self, Spent};
use crate::cache::layer_states;
use crate::meter::{Count, Counts, TimingCounts};
use crate::mount::counters::Counters;
use crate::mount::live::{Liveness, live_mounts};
use crate::snapshotter::{MountedTrees, SnapshotCount, Snapshotter, SnapshotterError};
use crate::store::{LayerState, Store, StoreError};

/// How long what takes a while to look at is told as it was.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(30);

/// What is counted, and where the rest is looked for.
pub struct Metrics {
    store: Arc<Store>,
    counters: Arc<Counters>,
    calls: Mutex<Calls>,
    trees: Mutex<MountedTrees>,
    looked: Mutex<Option<(Instant, Looked)>>,
}

#[derive(Default)]
struct Calls {
    /// By method and code.
    answers: BTreeMap<(&'static str, &'static str), u64>,
    durations: BTreeMap<&'static str, TimingCounts>,
    /// Trees that were unmounted as nobody used them.
    unmounted: u64,
}

/// What takes a while.
#[derive(Clone, Default)]
struct Looked {
    layers: BTreeMap<&'static str, u64>,
    store_bytes: u64,
}

impl Metrics {
    /// None yet. `counters` are those of this process.
    pub fn new(store: Arc<Store>, counters: Arc<Counters>) -> Metrics {
        let (calls, trees, looked) = Default::default();
        Metrics { store, counters, calls, trees, looked }
    }

    /// A call was answered.
    pub fn called(&self, method: &'static str, code: &'static str, took: Duration) {
        let mut calls = lock(&self.calls);
        *calls.answers.entry((method, code)).or_default() += 1;
        calls.durations.entry(method).or_default().add(took);
    }

    /// The trees were looked after.
    pub fn trees_are(&self, trees: MountedTrees) {
        *lock(&self.trees) = trees;
        lock(&self.calls).unmounted += trees.unmounted;
    }

    /// All numbers, as text. Takes a while now and then: not for a thread that others wait for.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn text(&self, snapshotter: &Snapshotter) -> Result<String, SnapshotterError> {
        let mut text = Exposition::default();
        text.family("peel_build_info", Kind::Gauge, "The version that runs.")
            .number(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.write_calls(&mut text);
        write_snapshots(&mut text, &snapshotter.counts()?);
        let serving = self.write_mounts(&mut text)?;
        self.counters.refresh();
        let counts = self.store.counters().all()?;
        write_requests(&mut text, &counts);
        write_reads(&mut text, &counts);
        self.write_store(&mut text)?;
        write_processes(&mut text, &serving);
        Ok(text.into_text())
    }

    fn write_calls(&self, text: &mut Exposition) {
        let calls = lock(&self.calls);
        let mut answers = text.family(
            "peel_snapshotter_calls_total",
            Kind::Counter,
            "Calls of containerd that were answered, by method and code of gRPC.",
        );
        for ((method, code), count) in &calls.answers {
            answers.number(&[("method", method), ("code", code)], count);
        }
        let help = "How long calls of containerd took.";
        let mut durations = text.family("peel_snapshotter_call_seconds", Kind::Histogram, help);
        for (method, took) in &calls.durations {
            durations.durations(&[("method", method)], took);
        }
        let help = "Trees that were unmounted as nobody used them.";
        text.family("peel_trees_idle_unmounted_total", Kind::Counter, help).number(&[], calls.unmounted);
    }

    /// Gives the processes that serve trees.
    fn write_mounts(&self, text: &mut Exposition) -> Result<Vec<u32>, StoreError> {
        let mounts = live_mounts(&self.store)?;
        let of = |state| mounts.iter().filter(|mount| mount.liveness == state).count();
        text.family(
            "peel_mounts",
            Kind::Gauge,
            "Mounts of the store's images, those of containers' trees included.",
        )
        .number(&[("state", "live")], of(Liveness::Live))
        .number(&[("state", "dead")], of(Liveness::Dead));
        let trees = *lock(&self.trees);
        text.family(
            "peel_trees",
            Kind::Gauge,
            "Trees that are mounted for containers, when they were last looked after.",
        )
        .number(&[("use", "used")], trees.used)
        .number(&[("use", "idle")], trees.idle);
        let serving = mounts.iter().filter(|mount| mount.liveness == Liveness::Live);
        Ok(serving.map(|mount| mount.record.pid).collect())
    }

    fn write_store(&self, text: &mut Exposition) -> Result<(), StoreError> {
        let looked = self.look()?;
        let mut layers =
            text.family("peel_layers", Kind::Gauge, "Layers in the store, by how much of them is here.");
        for state in LayerState::ALL {
            let count = looked.layers.get(state.name()).copied().unwrap_or_default();
            layers.number(&[("state", state.name())], count);
        }
        text.family("peel_store_bytes", Kind::Gauge, "What the store takes on the disk.")
            .number(&[], looked.store_bytes);
        if let Some(budget) = self.store.budget()? {
            let help = "What the store may take on the disk.";
            text.family("peel_store_budget_bytes", Kind::Gauge, help).number(&[], budget);
        }
        let help = "Room on the store's file system.";
        text.family("peel_store_available_bytes", Kind::Gauge, help)
            .number(&[], self.store.space()?.available);
        Ok(())
    }

    fn look(&self) -> Result<Looked, StoreError> {
        // Whoever asks meanwhile waits, and is told the same.
        let mut last = lock(&self.looked);
        if let Some((at, looked)) = &*last
            && at.elapsed() < LOOKED_AT_EVERY
        {
            return Ok(looked.clone());
        }
        let layers = layer_states(&self.store)?.into_iter().map(|(state, count)| (state.name(), count));
        let looked = Looked { layers: layers.collect(), store_bytes: self.store.allocated()? };
        *last = Some((Instant::now(), looked.clone()));
        Ok(looked)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_snapshots(text: &mut Exposition, counts: &[SnapshotCount]) {
    let help =
        "Snapshots, by containerd's kind, and whether their content is a directory or layers of an image.";
    let mut family = text.family("peel_snapshots", Kind::Gauge, help);
    for count in counts {
        let content = if count.is_remote { "remote" } else { "ordinary" };
        family.number(&[("kind", count.kind.name()), ("content", content)], count.snapshots);
    }
}

fn write_requests(text: &mut Exposition, counts: &Counts) {
    let help = "Requests to registries and to whom they redirect, by host, what was asked for, and status.";
    let mut requests = text.family("peel_registry_requests_total", Kind::Counter, help);
    for host in &counts.hosts {
        for (kind, outcomes) in RequestKind::ALL.iter().zip(&host.requests) {
            for (outcome, count) in RequestOutcome::ALL.iter().zip(outcomes).filter(|(_, count)| **count > 0)
            {
                let labels =
                    [("host", host.name.as_str()), ("kind", kind.name()), ("status", outcome.name())];
                requests.number(&labels, count);
            }
        }
    }
    let help = "How long answers took to begin.";
    let mut answers = text.family("peel_registry_answer_seconds", Kind::Histogram, help);
    for host in &counts.hosts {
        let asked = RequestKind::ALL.iter().zip(&host.answers);
        for (kind, durations) in asked.filter(|(_, durations)| durations.parts.iter().any(|part| *part > 0)) {
            answers.durations(&[("host", host.name.as_str()), ("kind", kind.name())], durations);
        }
    }
    for (name, what, help) in [
        (
            "peel_registry_received_bytes_total",
            Count::ReceivedBytes,
            "Bytes of bodies that came over the network.",
        ),
        ("peel_registry_retries_total", Count::Retries, "Attempts made again after a failure."),
    ] {
        text.family(name, Kind::Counter, help).number(&[], counts.get(what));
    }
}

fn write_reads(text: &mut Exposition, counts: &Counts) {
    for (name, what, help) in [
        ("peel_fetched_bytes_total", Count::FetchedBytes, "Bytes of layers that were fetched by ranges."),
        (
            "peel_prefetched_bytes_total",
            Count::PrefetchedBytes,
            "Bytes of layers that were fetched before anybody wanted them.",
        ),
        ("peel_decoded_bytes_total", Count::DecodedBytes, "Bytes that were decoded and verified."),
        (
            "peel_copied_bytes_total",
            Count::CopiedBytes,
            "Bytes that were copied from other layers, instead of being fetched.",
        ),
        ("peel_read_bytes_total", Count::ReadBytes, "Bytes that the kernel was given."),
    ] {
        text.family(name, Kind::Counter, help).number(&[], counts.get(what));
    }
    text.family(
        "peel_reads_total",
        Kind::Counter,
        "Reads of the kernel that were answered, from the disk or after waiting for the network.",
    )
    .number(&[("answer", "local")], counts.get(Count::ReadsHere))
    .number(&[("answer", "fetched")], counts.get(Count::ReadsFetched));
    let mut errors = text.family("peel_read_errors_total", Kind::Counter, "Reads that failed, by cause.");
    for (what, cause) in Count::ERRORS {
        errors.number(&[("cause", cause)], counts.get(what));
    }
    text.family("peel_read_wait_seconds", Kind::Histogram, "How long reads waited for the network.")
        .durations(&[], &counts.read_waits);
    text.family(
        "peel_chunks_total",
        Kind::Counter,
        "Chunks that were read, and chunks that were missing when somebody wanted to read them.",
    )
    .number(&[("result", "hit")], counts.get(Count::ChunksHere))
    .number(&[("result", "miss")], counts.get(Count::ChunksMissing));
}

fn write_processes(text: &mut Exposition, serving: &[u32]) {
    let (mut daemon, mut trees) = (Spent::default(), Spent::default());
    daemon.add(std::process::id());
    // A mount's record names who holds it; who serves it is a child of that one.
    serving.iter().for_each(|pid| {
        trees.add(*pid);
        processes::children(*pid).into_iter().for_each(|child| trees.add(child));
    });
    for (name, help, of) in [
        (
            "peel_processes",
            "Processes: the daemon, and those that serve mounts.",
            (|spent| spent.processes) as fn(&Spent) -> u64,
        ),
        ("peel_processes_resident_bytes", "Their memory, what they share counted for each.", |spent| {
            spent.resident
        }),
        ("peel_processes_private_bytes", "Memory that each has for itself.", |spent| spent.private),
        ("peel_processes_open_fds", "Their open files.", |spent| spent.descriptors),
        ("peel_processes_threads", "Their threads.", |spent| spent.threads),
    ] {
        text.family(name, Kind::Gauge, help)
            .number(&[("role", "daemon")], of(&daemon))
            .number(&[("role", "mount")], of(&trees));
    }
}
