//! What else is fetched with what a reader wants: its neighbours in the blob, which lie in the same directories as a rule, as long as
//! such guesses do not cost more than they save.
//!
//! ```text
//! what is wanted ──▶ credit ◀── a guess that is read: its bytes were wanted
//!                      │                    ▲
//!                      ▼                    │
//!    neighbours of what is missing, on both sides: guessed, and not read yet
//! ```
//!
//! - A layer is written directory by directory, so a program that starts and reads a file here will read some beside it. A request costs a
//!   round trip, in which the link carries a good many of them: an eighth as many bytes are added to a request, and twice as many for each
//!   that was missing nearby before. So a single file of a directory brings little with it, and a directory that is read soon comes as a
//!   whole. A long file is none of those that are read by the way, and ends the search on its side.
//! - Guesses that nobody has read never have more than 15/16 of the bytes that readers have wanted before; what is read ahead of those who
//!   read on and on is counted with them. So the first read of a process guesses nothing. What lies between guesses and is here already comes once more,
//!   as one request brings them all; it counts as a guess that nobody reads. With that, less than twice as much is fetched as is read.
//! - What a program needs to start is guessed, too, and a little of it beyond that bound: see [`Ledger::allows_soon`].
//! - Who knows better, guesses nothing: see [`Ledger::pause`].
//!
//! Bits, one for each chunk, say which were guessed; who reads one clears it. No locks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::planner::{blob_range, companions};
use crate::table::format::ChunkRecord;

/// Part of what the link carries in a round trip that is guessed with a request at first, as a divisor. This and the next two were calculated
/// from what programs read (python that imports much, pip, apt, node; over 20 ms and 200 Mbit/s): twice or half as much of each makes a
/// tenth more requests or bytes at most; to guess half a round trip at first and four times as much in the end, for one that is
/// missing within that, makes more of both.
const PART: u64 = 8;
/// How often that is doubled at most.
const DOUBLINGS: u32 = 4;
/// What was missing is nearby if it is within so many times what is guessed at first.
const NEARBY: u64 = 16;
/// Places that were missing which are remembered.
const REMEMBERED: usize = 64;
/// Most bytes of the blob of a chunk, with what comes along with it, that is guessed. Of 30, 60 and all, in KB, 60 were best there.
const LONGEST: u64 = 64 << 10;

/// Bytes of the libraries of programs that were looked at, beyond what else is guessed: those of one program, as a rule.
const SOON: i64 = 2 << 20;

/// What all layers of a process have guessed. Bytes of blobs.
#[derive(Debug, Default)]
pub struct Ledger {
    /// [What may be guessed](may_be_guessed) for what was wanted, without what is guessed and not read.
    credit: AtomicI64,
    paused: AtomicUsize,
}

impl Ledger {
    /// Readers wanted so many bytes that were missing.
    pub fn wanted(&self, bytes: u64) {
        self.credit.fetch_add(signed(may_be_guessed(bytes)), Ordering::Relaxed);
    }

    /// So many bytes come that nobody wants, as they are between those that are guessed.
    pub fn wasted(&self, bytes: u64) {
        self.guessed(bytes);
    }

    /// Until the guard is dropped, nothing is guessed.
    pub fn pause(self: &Arc<Self>) -> Paused {
        self.paused.fetch_add(1, Ordering::Relaxed);
        Paused(self.clone())
    }

    /// How many of these bytes may be guessed.
    pub fn allowed(&self, bytes: u64) -> u64 {
        if self.paused.load(Ordering::Relaxed) > 0 {
            return 0;
        }
        u64::try_from(self.credit.load(Ordering::Relaxed)).unwrap_or(0).min(bytes)
    }

    /// Whether so many bytes may be guessed that somebody will want very soon, if he wants any: of those, some may be unread beyond the credit.
    pub fn allows_soon(&self, bytes: u64) -> bool {
        let left = self.credit.load(Ordering::Relaxed).saturating_add(SOON);
        self.paused.load(Ordering::Relaxed) == 0 && left >= signed(bytes)
    }

    fn guessed(&self, bytes: u64) {
        self.credit.fetch_sub(signed(bytes), Ordering::Relaxed);
    }

    /// It was wanted, and was not before.
    fn found(&self, bytes: u64) {
        self.credit.fetch_add(signed(bytes.saturating_add(may_be_guessed(bytes))), Ordering::Relaxed);
    }
}

/// Where in the blob something was missing, of late.
#[derive(Debug, Default)]
pub struct Misses(VecDeque<u64>);

impl Misses {
    /// Learns of a miss at that byte of the blob, over a link that carries so many bytes in a round trip; gives how many bytes to guess.
    pub fn missed(&mut self, offset: u64, round_trip: u64) -> u64 {
        let first = round_trip / PART;
        let is_nearby = |other: &&u64| other.abs_diff(offset) < first.saturating_mul(NEARBY);
        // There are at most as many as are remembered.
        let nearby = self.0.iter().filter(is_nearby).count() as u32;
        if self.0.len() == REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back(offset);
        first.saturating_mul(1 << nearby.min(DOUBLINGS))
    }
}

/// How many bytes may be guessed for so many that were wanted. As many would make twice as much to be fetched as is read, with nothing left for
/// what else comes with a request.
fn may_be_guessed(wanted: u64) -> u64 {
    wanted - wanted / 16
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// See [`Ledger::pause`].
pub struct Paused(Arc<Ledger>);

impl Drop for Paused {
    fn drop(&mut self) {
        self.0.paused.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The chunks of a layer that were guessed and not read yet.
#[derive(Debug, Default)]
pub struct Guesses(OnceLock<Box<[AtomicU64]>>);

impl Guesses {
    /// Notes that these chunks, which take so many bytes, are guessed; the layer has `all` chunks.
    pub fn add(&self, chunks: impl Iterator<Item = usize>, bytes: u64, all: usize, ledger: &Ledger) {
        let words = self.0.get_or_init(|| (0..all.div_ceil(64)).map(|_| AtomicU64::new(0)).collect());
        for number in chunks {
            if let Some(word) = words.get(number / 64) {
                word.fetch_or(1 << (number % 64), Ordering::Relaxed);
            }
        }
        ledger.guessed(bytes);
    }

    /// Notes that these chunks are read.
    pub fn read(&self, read: Range<usize>, chunks: &[ChunkRecord], ledger: &Ledger) {
        let Some(words) = self.0.get() else { return };
        for number in read {
            if take(words, number) {
                // What comes with a chunk is not guessed twice.
                let group = companions(chunks, number);
                for other in group.clone() {
                    take(words, other);
                }
                ledger.found(blob_bytes(chunks, group));
            }
        }
    }
}

fn take(words: &[AtomicU64], number: usize) -> bool {
    let (Some(word), bit) = (words.get(number / 64), 1 << (number % 64)) else { return false };
    // Asked first, so that those who read do not take the words from each other's caches.
    word.load(Ordering::Relaxed) & bit != 0 && word.fetch_and(!bit, Ordering::Relaxed) & bit != 0
}

/// Bytes of the blob that these chunks need, what they share counted once.
pub fn blob_bytes(chunks: &[ChunkRecord], numbers: impl IntoIterator<Item = usize>) -> u64 {
    let mut covered = 0;
    let ranges = numbers.into_iter().filter_map(|number| chunks.get(number)).map(blob_range);
    ranges
        .map(|range| {
            let length = range.end.saturating_sub(range.start.max(covered));
            covered = covered.max(range.end);
            length
        })
        .sum()
}

/// A neighbour that is guessed: the chunks that come together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    pub chunks: Range<usize>,
    /// Those of the blob that they need.
    pub bytes: u64,
    /// Those between them and what is fetched with them.
    pub between: u64,
}

/// The neighbours of these chunks that are missing and take at most so many bytes, with what lies between them: the nearest first and on both
/// sides in turn. They end where more than `gap` bytes would be between.
pub fn neighbours(
    chunks: &[ChunkRecord],
    wanted: Range<usize>,
    most: u64,
    gap: u64,
    is_missing: impl Fn(usize) -> bool,
) -> Vec<Neighbour> {
    let wanted_bytes = bounds(chunks, wanted.clone());
    // The next chunk on each side, and where in the blob what is fetched ends there.
    let mut before = Some((wanted.start, wanted_bytes.start));
    let mut after = Some((wanted.end, wanted_bytes.end));
    let (mut left, mut found) = (most, Vec::new());
    let mut is_turn_of_after = true;
    while left > 0 && (before.is_some() || after.is_some()) {
        let side = if is_turn_of_after { &mut after } else { &mut before };
        *side = side.and_then(|(next, edge)| {
            let number = if is_turn_of_after { next } else { next.checked_sub(1)? };
            let group = Some(companions(chunks, number)).filter(|group| !group.is_empty())?;
            let next = if is_turn_of_after { group.end } else { group.start };
            if !group.clone().any(&is_missing) {
                return Some((next, edge));
            }
            let range = bounds(chunks, group.clone());
            let (between, edge) = match (range.is_empty(), is_turn_of_after) {
                // It needs nothing.
                (true, _) => return Some((next, edge)),
                (_, true) => (range.start.saturating_sub(edge), range.end.max(edge)),
                (_, false) => (edge.saturating_sub(range.end), range.start.min(edge)),
            };
            let bytes = blob_bytes(chunks, group.clone());
            // What is too long ends the search on that side.
            left = left
                .checked_sub(bytes.saturating_add(between))
                .filter(|_| bytes <= LONGEST && between <= gap)?;
            found.push(Neighbour { chunks: group, bytes, between });
            Some((next, edge))
        });
        is_turn_of_after = !is_turn_of_after;
    }
    found
}

/// The bytes of the blob from the first to the last that these chunks need.
fn bounds(chunks: &[ChunkRecord], numbers: Range<usize>) -> Range<u64> {
    let ranges = chunks.get(numbers).unwrap_or_default().iter().map(blob_range);
    let needed = ranges.filter(|range| !range.is_empty());
    needed.reduce(|all, range| all.start.min(range.start)..all.end.max(range.end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Codec;

    /// Chunks of these lengths, one behind the other in the blob.
    fn chunks(lengths: &[u64]) -> Vec<ChunkRecord> {
        let mut offset = 0;
        let chunk = |length: &u64| {
            let start = offset;
            offset += length;
            ChunkRecord {
                blob_offset: start.into(),
                blob_length: (*length).into(),
                decoded_offset: start.into(),
                decoded_length: (*length).into(),
                skip: 0.into(),
                codec: if *length == 0 { Codec::Zeros } else { Codec::Gzip } as u8,
                reserved: [0; 3],
                checkpoint: 0.into(),
                digest: [0; 32],
            }
        };
        lengths.iter().map(chunk).collect()
    }

    #[test]
    fn neighbours_come_from_both_sides_as_far_as_they_may() {
        let all = chunks(&[5, 10, 20, 30, 10, 0, 40, 5]);
        for (wanted, most, here, expected) in [
            (3..4, 0, &[][..], &[][..]),
            (3..4, 9, &[], &[]),
            (3..4, 10, &[], &[4]),
            (3..4, 30, &[], &[4, 2]),
            (3..4, 40, &[], &[4, 2, 1]),
            (3..4, 1000, &[], &[4, 2, 1, 6, 0, 7]),
            // What is here and between them comes once more.
            (3..4, 30, &[4, 2], &[1]),
            (3..4, 80, &[4, 2], &[1, 6]),
            (3..4, 85, &[4, 2], &[1, 6, 0]),
            (0..8, 1000, &[], &[]),
        ] {
            let found = neighbours(&all, wanted.clone(), most, 20, |number| !here.contains(&number));
            let numbers: Vec<usize> = found.iter().map(|neighbour| neighbour.chunks.start).collect();
            assert_eq!(numbers, expected, "{wanted:?} {most} {here:?}");
            let cost: u64 = found.iter().map(|neighbour| neighbour.bytes + neighbour.between).sum();
            assert!(cost <= most);
            // And all that, with what was wanted, is one stretch of the blob.
            let numbers = numbers.iter().copied().chain(wanted.clone());
            let (first, last) =
                numbers.fold((8, 0), |(first, last), number| (first.min(number), last.max(number)));
            if !found.is_empty() {
                assert_eq!(
                    cost,
                    bounds(&all, first..last + 1).end - bounds(&all, first..last + 1).start - 30
                );
            }
        }
    }

    #[test]
    fn a_long_chunk_or_much_that_is_here_ends_the_search_on_its_side() {
        let all = chunks(&[10, LONGEST, 10, 10, 10, LONGEST + 1, 10]);
        let found = neighbours(&all, 3..4, 1 << 30, 100, |_| true);
        let numbers: Vec<usize> = found.iter().map(|neighbour| neighbour.chunks.start).collect();
        assert_eq!(numbers, [4, 2, 1, 0]);
        let all = chunks(&[10, 60, 10, 10, 10, 50, 10]);
        let found = neighbours(&all, 3..4, 1 << 30, 50, |number| ![1, 5].contains(&number));
        let numbers: Vec<usize> = found.iter().map(|neighbour| neighbour.chunks.start).collect();
        assert_eq!(numbers, [4, 2, 6]);
    }

    #[test]
    fn more_is_guessed_where_more_was_missing() {
        const LINK: u64 = 1_000;
        let mut misses = Misses::default();
        for (offset, expected) in [
            (10_000, 125),
            (11_999, 250),
            (14_000, 125),
            (11_000, 500),
            (11_000, 1_000),
            (11_000, 2_000),
            (11_000, 2_000),
            (100_000, 125),
        ] {
            assert_eq!(misses.missed(offset, LINK), expected, "{offset}");
        }
        // What was long ago is forgotten.
        for number in 0..100 {
            misses.missed(1_000_000 + number * 10_000, LINK);
        }
        assert_eq!(misses.missed(11_000, LINK), 125);
    }

    #[test]
    fn what_is_guessed_and_not_read_never_has_more_bytes_than_were_wanted() {
        let (ledger, guesses, all) = (Arc::new(Ledger::default()), Guesses::default(), chunks(&[100; 50]));
        assert_eq!(ledger.allowed(1_000), 0, "nobody has wanted anything");
        ledger.wanted(160);
        assert_eq!(ledger.allowed(1_000), 150);
        guesses.add([3].into_iter(), 100, all.len(), &ledger);
        assert_eq!(ledger.allowed(1_000), 50);
        // It is read: its bytes were wanted, and are no guess any more. Once.
        for _ in 0..2 {
            guesses.read(2..5, &all, &ledger);
            assert_eq!(ledger.allowed(1_000), 50 + 100 + 94);
        }
        // What comes again by the way is never read.
        ledger.wasted(50);
        assert_eq!(ledger.allowed(1_000), 194);
        ledger.wanted(10_000);
        assert_eq!(ledger.allowed(1_000), 1_000);
        let paused = ledger.pause();
        assert_eq!(ledger.allowed(1_000), 0);
        assert!(!ledger.allows_soon(1));
        drop(paused);
        assert_eq!(ledger.allowed(1_000), 1_000);
    }

    #[test]
    fn what_a_program_needs_is_guessed_a_little_beyond_that() {
        let (ledger, guesses, all) = (Ledger::default(), Guesses::default(), chunks(&[100; 50]));
        let soon = SOON as u64;
        assert!(ledger.allows_soon(soon) && !ledger.allows_soon(soon + 1));
        guesses.add(0..10, soon - 1_000, all.len(), &ledger);
        assert!(ledger.allows_soon(1_000) && !ledger.allows_soon(1_001));
        // It is paid for before anything else is guessed.
        ledger.wanted(soon);
        assert_eq!(ledger.allowed(1_000), 0);
        ledger.wanted(160_000);
        assert_eq!(ledger.allowed(100_000), 150_000 + 1_000 - soon / 16);
    }
}
