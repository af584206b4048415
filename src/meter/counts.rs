//! Numbers that were taken: of this process, of another, or of several together. And how they are written down.
//!
//! ```text
//! little-endian words of 64 bits:  counts │ waits of reads │ for each host: its name, requests by kind and outcome, durations by kind
//!                                  │ a mark │ later counts
//! ```
//!
//! What was first counted by a later version comes last, where earlier ones see less than a host.
//! Whoever reads a file while it is written may see some numbers later than others. One that is short, as a later version may write it or
//! an earlier one did, lacks what it lacks.

use std::sync::atomic::{AtomicU64, Ordering};

use peelfs_registry::{RequestKind, RequestOutcome};

use super::{
    BOUNDS, COUNTS, Count, FIRST_COUNTS, HOSTS, Host, IS_NEWS, LONGEST_HOST, MOST_HOSTS, NUMBERS,
    OTHER_HOSTS, READ_WAITS, Timing,
};

const KINDS: usize = RequestKind::ALL.len();
const OUTCOMES: usize = RequestOutcome::ALL.len();
const TIMING_WORDS: usize = BOUNDS.len() + 2;
const NAME_WORDS: usize = LONGEST_HOST / 8;
/// Comes before the counts of later versions; no host's name begins so.
const LATER: u64 = u64::from_le_bytes(*b"\0counts\n");
/// The name is filled up with NUL, which no host has.
const HOST_WORDS: usize = NAME_WORDS + KINDS * OUTCOMES + KINDS * TIMING_WORDS;

/// Durations, sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TimingCounts {
    /// How many lay in each part: up to each of [`BOUNDS`], and beyond.
    pub parts: [u64; BOUNDS.len() + 1],
    /// All of them together.
    pub nanoseconds: u64,
}

impl TimingCounts {
    /// One more.
    pub fn add(&mut self, took: std::time::Duration) {
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.parts[BOUNDS.partition_point(|bound| *bound < microseconds)] += 1;
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds = self.nanoseconds.saturating_add(nanoseconds);
    }

    fn of(timing: &Timing) -> TimingCounts {
        TimingCounts { parts: timing.parts.each_ref().map(load), nanoseconds: load(&timing.nanoseconds) }
    }

    fn merge(&mut self, other: &TimingCounts) {
        for (one, other) in self.parts.iter_mut().zip(other.parts) {
            *one = one.saturating_add(other);
        }
        self.nanoseconds = self.nanoseconds.saturating_add(other.nanoseconds);
    }

    fn words(&self) -> impl Iterator<Item = u64> + '_ {
        self.parts.iter().copied().chain([self.nanoseconds])
    }

    fn read(words: &mut impl Iterator<Item = u64>) -> TimingCounts {
        let mut next = || words.next().unwrap_or_default();
        TimingCounts { parts: std::array::from_fn(|_| next()), nanoseconds: next() }
    }
}

/// What was asked of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostCounts {
    /// Its name, with a port if it is not the usual one.
    pub name: String,
    /// Requests, by the places of their kind and outcome in [`RequestKind::ALL`] and [`RequestOutcome::ALL`].
    pub requests: [[u64; OUTCOMES]; KINDS],
    /// How long answers took to begin, by kind.
    pub answers: [TimingCounts; KINDS],
}

impl HostCounts {
    fn of(host: &Host) -> Option<HostCounts> {
        Some(HostCounts {
            name: host.name.get()?.to_string(),
            requests: host.requests.each_ref().map(|kind| kind.each_ref().map(load)),
            answers: host.answers.each_ref().map(TimingCounts::of),
        })
    }

    fn merge(&mut self, other: &HostCounts) {
        for (one, other) in self.requests.as_flattened_mut().iter_mut().zip(other.requests.as_flattened()) {
            *one = one.saturating_add(*other);
        }
        self.answers.iter_mut().zip(&other.answers).for_each(|(one, other)| one.merge(other));
    }

    fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let mut name = [0; LONGEST_HOST];
        name.iter_mut().zip(self.name.bytes()).for_each(|(place, byte)| *place = byte);
        let name = std::array::from_fn::<u64, NAME_WORDS, _>(|word| {
            u64::from_le_bytes(std::array::from_fn(|byte| name[word * 8 + byte]))
        });
        let requests = self.requests.as_flattened().iter().copied();
        name.into_iter().chain(requests).chain(self.answers.iter().flat_map(TimingCounts::words))
    }

    /// Nothing if there is no name, or what was none.
    fn read(words: &[u64]) -> Option<HostCounts> {
        let (name, numbers) = words.split_at_checked(NAME_WORDS)?;
        let name: Vec<u8> =
            name.iter().flat_map(|word| word.to_le_bytes()).take_while(|byte| *byte != 0).collect();
        let name = String::from_utf8(name).ok().filter(|name| !name.is_empty())?;
        let mut numbers = numbers.iter().copied();
        let mut next = || numbers.next().unwrap_or_default();
        let requests = std::array::from_fn(|_| std::array::from_fn(|_| next()));
        let answers = std::array::from_fn(|_| TimingCounts::read(&mut numbers));
        Some(HostCounts { name, requests, answers })
    }
}

/// All numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    counts: [u64; COUNTS],
    /// How long reads waited for the network, of those that were answered.
    pub read_waits: TimingCounts,
    /// Hosts that were asked for something, [`MOST_HOSTS`] and one at most.
    pub hosts: Vec<HostCounts>,
}

impl Counts {
    /// Those of this process, now.
    pub fn here() -> Counts {
        // What is counted from now on is news, even if it is taken here already.
        IS_NEWS.store(false, Ordering::SeqCst);
        Counts {
            counts: NUMBERS.each_ref().map(load),
            read_waits: TimingCounts::of(&READ_WAITS),
            hosts: HOSTS.iter().filter_map(HostCounts::of).collect(),
        }
    }

    /// One of them.
    pub fn get(&self, what: Count) -> u64 {
        self.counts[what as usize]
    }

    /// The same numbers, of which one is another.
    #[must_use]
    pub fn with(mut self, what: Count, value: u64) -> Counts {
        self.counts[what as usize] = value;
        self
    }

    /// Adds those of another process.
    pub fn merge(&mut self, other: &Counts) {
        for (one, other) in self.counts.iter_mut().zip(other.counts) {
            *one = one.saturating_add(other);
        }
        self.read_waits.merge(&other.read_waits);
        for other in &other.hosts {
            let is_full = self.hosts.iter().filter(|host| host.name != OTHER_HOSTS).count() >= MOST_HOSTS;
            let is_known = self.hosts.iter().any(|host| host.name == other.name);
            let name = if is_known || !is_full { &other.name } else { OTHER_HOSTS };
            match self.hosts.iter_mut().find(|host| host.name == name) {
                Some(host) => host.merge(other),
                None => self.hosts.push(HostCounts { name: name.to_owned(), ..other.clone() }),
            }
        }
    }

    /// As they are written down.
    pub fn encode(&self) -> Vec<u8> {
        let hosts = self.hosts.iter().flat_map(HostCounts::words);
        let (first, later) = self.counts.split_at(FIRST_COUNTS);
        let words = first.iter().copied().chain(self.read_waits.words()).chain(hosts);
        let words = words.chain([LATER]).chain(later.iter().copied());
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// What was written down; nothing if not even the first four numbers were.
    pub fn decode(bytes: &[u8]) -> Option<Counts> {
        let words = bytes
            .chunks_exact(8)
            .map(|word| word.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)));
        let most = FIRST_COUNTS + TIMING_WORDS + (MOST_HOSTS + 2) * HOST_WORDS;
        let words: Vec<u64> = words.take(most).collect();
        if words.len() < 4 {
            return None;
        }
        let mut left = words.iter().copied();
        let mut counts = [0; COUNTS];
        counts[..FIRST_COUNTS].fill_with(|| left.next().unwrap_or_default());
        let read_waits = TimingCounts::read(&mut left);
        let hosts = words.get(FIRST_COUNTS + TIMING_WORDS..).unwrap_or_default().chunks_exact(HOST_WORDS);
        if let [LATER, later @ ..] = hosts.remainder() {
            counts[FIRST_COUNTS..].iter_mut().zip(later).for_each(|(count, word)| *count = *word);
        }
        let hosts = hosts.take(MOST_HOSTS + 1).filter_map(HostCounts::read).collect();
        Some(Counts { counts, read_waits, hosts })
    }
}

fn load(number: &AtomicU64) -> u64 {
    number.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn host(name: &str, requests: u64) -> HostCounts {
        let mut host =
            HostCounts { name: name.to_owned(), requests: Default::default(), answers: Default::default() };
        host.requests[1][2] = requests;
        host.answers[1].add(Duration::from_millis(requests));
        host
    }

    #[test]
    fn what_is_written_is_read_and_what_is_cut_lacks_its_end() {
        let mut counts = Counts::default().with(Count::Requests, 7).with(Count::ErrorsOther, u64::MAX);
        counts.read_waits.add(Duration::from_millis(3));
        counts.hosts = vec![host("registry.example:5000", 4), host(&"h".repeat(LONGEST_HOST), 5)];
        let bytes = counts.encode();
        assert_eq!(Counts::decode(&bytes), Some(counts.clone()));
        for length in 0..bytes.len() {
            let read = Counts::decode(&bytes[..length]);
            assert_eq!(read.is_some(), length >= 32, "{length}");
            assert!(read.is_none_or(|read| read.get(Count::Requests) == 7 && read.hosts.len() <= 2));
        }
        // So wrote a version that did not know the later counts, and so reads it what is written now.
        let first = counts.clone().with(Count::CopiedBytes, 9);
        let bytes_of_first = bytes.len() - 8 * (1 + COUNTS - FIRST_COUNTS);
        assert_eq!(Counts::decode(&first.encode()[..bytes_of_first]), Some(counts.clone()));
        assert_eq!(Counts::decode(&first.encode()), Some(first));
        // A later version writes more hosts than there can be.
        let many = bytes.iter().copied().chain(std::iter::repeat_n(b'x', 1 << 20)).collect::<Vec<u8>>();
        assert!(Counts::decode(&many).is_some_and(|read| read.hosts.len() <= MOST_HOSTS + 1));
    }

    #[test]
    fn several_together_are_their_sum_and_hosts_stay_bounded() {
        let mut all = Counts::default().with(Count::ReadBytes, 5);
        for number in 0..100 {
            let mut one = Counts::default().with(Count::ReadBytes, u64::MAX / 2);
            one.hosts = vec![host(&format!("host{number}"), 2), host("host0", 1)];
            one.read_waits.add(Duration::from_secs(3600));
            all.merge(&one);
        }
        assert_eq!(all.get(Count::ReadBytes), u64::MAX);
        assert_eq!(all.read_waits.parts[BOUNDS.len()], 100);
        assert_eq!(all.hosts.len(), MOST_HOSTS + 1);
        let of = |name: &str| all.hosts.iter().find(|host| host.name == name).unwrap().requests[1][2];
        assert_eq!((of("host0"), of("host1"), of(OTHER_HOSTS)), (102, 2, 200 - 2 * MOST_HOSTS as u64));
    }

    #[test]
    fn durations_are_sorted_by_the_ends_of_the_parts() {
        let mut timing = TimingCounts::default();
        for (microseconds, part) in [(0, 0), (1000, 0), (1001, 1), (60_000_000, 11), (60_000_001, 12)] {
            let before = timing.parts[part];
            timing.add(Duration::from_micros(microseconds));
            assert_eq!(timing.parts[part], before + 1, "{microseconds}");
        }
    }
}
