//! What a process has done since it began, counted: how much was read, fetched and decoded, how long that took, and what failed. For those who
//! operate a machine, not for the program itself.
//!
//! ```text
//! whoever does it ── count, network ──▶ numbers of this process ── Counts::here ──▶ Counts ── encode ──▶ a file, for others
//!                                                     └── the first news since it was asked last: whoever wants to know is told
//! ```
//!
//! - To count is an atomic addition: no lock, no allocation but for the first request to a host.
//! - Numbers never grow less while the process lives.
//! - Whatever comes from outside has bounds: of hosts the first [`MOST_HOSTS`] are told apart, the others are one.
//! - The numbers are a process's own, whichever thread counts: so there is one set of them.

mod counts;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use peelfs_registry::{NetworkEvent, RequestDone, RequestKind, RequestOutcome};

pub use counts::{Counts, HostCounts, TimingCounts};

/// Hosts that are told apart.
pub const MOST_HOSTS: usize = 15;
/// What stands for all other hosts, and for those whose names are too long.
pub const OTHER_HOSTS: &str = "other";
/// Longest name of a host that is kept, with its port, in bytes.
pub const LONGEST_HOST: usize = 128;

/// Upper ends of the parts into which durations are sorted, in microseconds; one more has those that are longer.
pub const BOUNDS: [u64; 12] = [
    1_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 10_000_000,
    60_000_000,
];

/// What is counted. The order is that of the file: what is new comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Count {
    /// HTTP requests.
    Requests,
    /// Bytes of bodies that they brought.
    ReceivedBytes,
    /// Attempts made again after a failure.
    Retries,
    /// Bytes of blobs that were fetched before anybody wanted them.
    PrefetchedBytes,
    /// Reads of the kernel that were answered from the disk.
    ReadsHere,
    /// Reads that waited for the network.
    ReadsFetched,
    /// Bytes that reads were answered with.
    ReadBytes,
    /// Chunks that were here when somebody read them.
    ChunksHere,
    /// Chunks that were asked for because somebody read them.
    ChunksMissing,
    /// Bytes of blobs that were fetched by ranges.
    FetchedBytes,
    /// Bytes that were decoded, verified and written.
    DecodedBytes,
    /// Reads that failed: the registry or layout.
    ErrorsSource,
    /// Reads that failed: what came is not what was promised.
    ErrorsContent,
    /// Reads that failed: the store.
    ErrorsStore,
    /// Reads that failed: it took too long.
    ErrorsDeadline,
    /// Reads that failed: the layer is poisoned, or the file is not what the layer's index says.
    ErrorsTrust,
    /// Reads that failed: this machine gave no threads, or else.
    ErrorsOther,
    /// Bytes that were copied from other layers, instead of being fetched.
    CopiedBytes,
}

/// How many there were when this was first written down.
const FIRST_COUNTS: usize = Count::ErrorsOther as usize + 1;
/// How many there are.
const COUNTS: usize = Count::CopiedBytes as usize + 1;

impl Count {
    /// Why reads fail, with the words for it.
    pub const ERRORS: [(Count, &str); 6] = [
        (Count::ErrorsSource, "source"),
        (Count::ErrorsContent, "content"),
        (Count::ErrorsStore, "store"),
        (Count::ErrorsDeadline, "deadline"),
        (Count::ErrorsTrust, "trust"),
        (Count::ErrorsOther, "other"),
    ];
}

/// Durations.
struct Timing {
    parts: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Timing {
    const fn new() -> Timing {
        Timing { parts: [const { AtomicU64::new(0) }; BOUNDS.len() + 1], nanoseconds: AtomicU64::new(0) }
    }

    fn add(&self, took: Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let part = BOUNDS.partition_point(|bound| *bound < microseconds);
        add(&self.parts[part], 1);
        add(&self.nanoseconds, u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

struct Host {
    name: OnceLock<Box<str>>,
    requests: [[AtomicU64; RequestOutcome::ALL.len()]; RequestKind::ALL.len()],
    answers: [Timing; RequestKind::ALL.len()],
}

impl Host {
    const fn new() -> Host {
        Host {
            name: OnceLock::new(),
            requests: [const { [const { AtomicU64::new(0) }; RequestOutcome::ALL.len()] };
                RequestKind::ALL.len()],
            answers: [const { Timing::new() }; RequestKind::ALL.len()],
        }
    }
}

static NUMBERS: [AtomicU64; COUNTS] = [const { AtomicU64::new(0) }; COUNTS];
static READ_WAITS: Timing = Timing::new();
static HOSTS: [Host; MOST_HOSTS + 1] = [const { Host::new() }; MOST_HOSTS + 1];

/// Whether something was counted since the numbers were taken last.
static IS_NEWS: AtomicBool = AtomicBool::new(false);
static LISTENER: OnceLock<Box<dyn Fn() + Send + Sync>> = OnceLock::new();

fn add(number: &AtomicU64, by: u64) {
    number.fetch_add(by, Ordering::Relaxed);
}

fn tell() {
    if !IS_NEWS.load(Ordering::Relaxed)
        && !IS_NEWS.swap(true, Ordering::Relaxed)
        && let Some(listener) = LISTENER.get()
    {
        listener();
    }
}

/// Counts so many more of that.
pub fn count(what: Count, by: u64) {
    add(&NUMBERS[what as usize], by);
    tell();
}

/// How many of that were counted so far.
pub fn value(what: Count) -> u64 {
    NUMBERS[what as usize].load(Ordering::Relaxed)
}

/// A read waited so long for the network, and was answered.
pub fn read_waited(took: Duration) {
    READ_WAITS.add(took);
    count(Count::ReadsFetched, 1);
}

/// What crosses the network, as [`NetworkObserver`](peelfs_registry::NetworkObserver) tells it.
pub fn network(event: &NetworkEvent<'_>) {
    match event {
        NetworkEvent::Request(done) => request(done),
        NetworkEvent::Received(bytes) => count(Count::ReceivedBytes, *bytes as u64),
        NetworkEvent::Retry => count(Count::Retries, 1),
    }
}

fn request(done: &RequestDone<'_>) {
    count(Count::Requests, 1);
    let host = host(done.host);
    let kind = done.kind as usize;
    add(&host.requests[kind][done.outcome as usize], 1);
    if done.outcome != RequestOutcome::NoAnswer {
        host.answers[kind].add(done.until_answer);
    }
}

fn host(name: &str) -> &'static Host {
    let (others, known) = (&HOSTS[MOST_HOSTS], &HOSTS[..MOST_HOSTS]);
    let fits = name.len() <= LONGEST_HOST && !name.is_empty() && name != OTHER_HOSTS;
    // Whoever comes first to a place has it for ever.
    let found = known.iter().find(|host| fits && **host.name.get_or_init(|| name.into()) == *name);
    found.unwrap_or_else(|| {
        others.name.get_or_init(|| OTHER_HOSTS.into());
        others
    })
}

/// From now on, `listener` is called with the first thing that is counted after the numbers were taken. To be called once in a process.
pub fn listen(listener: impl Fn() + Send + Sync + 'static) {
    if LISTENER.set(Box::new(listener)).is_ok() && IS_NEWS.load(Ordering::Relaxed) {
        LISTENER.get().into_iter().for_each(|listener| listener());
    }
}
