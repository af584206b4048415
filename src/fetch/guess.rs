//! What else is fetched with what a reader wants: its neighbours in the blob, which lie in the same directories as a rule, as long as
//! such guesses do not cost more than they save.
//!
//! ```text
//! half of what is wanted ──▶ credit ◀── a guess that is read: its bytes were wanted
//!                             │                           ▲
//!                             ▼                           │
//!    neighbours of what is missing, on both sides: guessed, and not read yet
//! ```
//!
//! - A layer is written directory by directory, so a program that starts and reads a file here will read some beside it. A request costs a
//!   round trip, in which the link carries a good many of them: half as many bytes are added to a request, and twice as many for each that
//!   was missing nearby before. A long file is none of those that are read by the way, and ends the search on its side.
//! - Guesses that nobody has read never have more than half of the bytes that readers have wanted before; what is read ahead of those who
//!   read on and on is counted with them. So the first read of a process guesses nothing. What lies between guesses and is here already
//!   comes once more where a request is one with it rather than two; with that, less than twice as much is fetched as is read.
//! - Who knows better, guesses nothing: see [`Ledger::pause`].
//!
//! Bits, one for each chunk, say which were guessed; who reads one clears it. No locks.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::planner::{blob_range, companions};
use crate::table::format::ChunkRecord;

/// Part of what the link carries in a round trip that is guessed with a request at first, as a divisor. Calculated for a program that imports
/// much, over 20 ms and 200 Mbit/s: half, up to twice as much, makes fewest requests; a quarter or all make a tenth more.
const PART: u64 = 2;
/// How often that is doubled at most.
const DOUBLINGS: u32 = 2;
/// What was missing is nearby if it is within so many times what is guessed at first.
const NEARBY: u64 = 4;
/// Places that were missing which are remembered.
const REMEMBERED: usize = 64;
/// Most bytes of the blob of a chunk, with what comes along with it, that is guessed. Of 30, 60 and all, in KB, 60 were best there.
const LONGEST: u64 = 64 << 10;

/// What all layers of a process have guessed. Bytes of blobs.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Half of what was wanted, without what is guessed and not read.
    credit: AtomicI64,
    paused: AtomicUsize,
}

impl Ledger {
    /// Readers wanted so many bytes that were missing.
    pub fn wanted(&self, bytes: u64) {
        self.credit.fetch_add(signed(bytes / 2), Ordering::Relaxed);
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

    fn guessed(&self, bytes: u64) {
        self.credit.fetch_sub(signed(bytes), Ordering::Relaxed);
    }

    /// It was wanted, and was not before.
    fn found(&self, bytes: u64) {
        self.credit.fetch_add(signed(bytes.saturating_add(bytes / 2)), Ordering::Relaxed);
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

/// The neighbours of these chunks that are missing and take at most so many bytes, the nearest first and on both sides in turn: each with
/// what comes along with it, and the bytes of both.
pub fn neighbours(
    chunks: &[ChunkRecord],
    wanted: Range<usize>,
    most: u64,
    is_missing: impl Fn(usize) -> bool,
) -> Vec<(Range<usize>, u64)> {
    let (mut before, mut after) = (Some(wanted.start), Some(wanted.end));
    let (mut left, mut found) = (most, Vec::new());
    let mut is_turn_of_after = true;
    while left > 0 && (before.is_some() || after.is_some()) {
        let side = if is_turn_of_after { &mut after } else { &mut before };
        let next = match *side {
            Some(end) if is_turn_of_after => Some(end),
            Some(start) => start.checked_sub(1),
            None => None,
        };
        let group = next.filter(|next| *next < chunks.len()).map(|next| companions(chunks, next));
        *side = group.and_then(|group| {
            let missing = group.clone().any(&is_missing);
            let bytes = if missing { blob_bytes(chunks, group.clone()) } else { 0 };
            // What is too long ends the search on that side.
            left = left.checked_sub(bytes).filter(|_| bytes <= LONGEST)?;
            let next = if is_turn_of_after { group.end } else { group.start };
            if bytes > 0 {
                found.push((group, bytes));
            }
            Some(next)
        });
        is_turn_of_after = !is_turn_of_after;
    }
    found
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
            // What is here costs nothing, and is passed over.
            (3..4, 30, &[4, 2], &[1, 0]),
            (3..4, 55, &[4, 2], &[1, 6, 0]),
            (0..8, 1000, &[], &[]),
        ] {
            let found = neighbours(&all, wanted.clone(), most, |number| !here.contains(&number));
            let numbers: Vec<usize> = found.iter().map(|(group, _)| group.start).collect();
            assert_eq!(numbers, expected, "{wanted:?} {most} {here:?}");
            assert!(found.iter().map(|(_, bytes)| bytes).sum::<u64>() <= most);
        }
    }

    #[test]
    fn a_long_chunk_ends_the_search_on_its_side() {
        let all = chunks(&[10, LONGEST, 10, 10, 10, LONGEST + 1, 10]);
        let found = neighbours(&all, 3..4, 1 << 30, |_| true);
        let numbers: Vec<usize> = found.iter().map(|(group, _)| group.start).collect();
        assert_eq!(numbers, [4, 2, 1, 0]);
    }

    #[test]
    fn more_is_guessed_where_more_was_missing() {
        const LINK: u64 = 1_000;
        let mut misses = Misses::default();
        for (offset, expected) in
            [(10_000, 500), (11_999, 1_000), (14_000, 500), (11_000, 2_000), (11_000, 2_000), (100_000, 500)]
        {
            assert_eq!(misses.missed(offset, LINK), expected, "{offset}");
        }
        // What was long ago is forgotten.
        for number in 0..100 {
            misses.missed(1_000_000 + number * 10_000, LINK);
        }
        assert_eq!(misses.missed(11_000, LINK), 500);
    }

    #[test]
    fn what_is_guessed_and_not_read_is_never_more_than_half_of_what_was_wanted() {
        let (ledger, guesses, all) = (Arc::new(Ledger::default()), Guesses::default(), chunks(&[100; 50]));
        assert_eq!(ledger.allowed(1_000), 0, "nobody has wanted anything");
        ledger.wanted(300);
        assert_eq!(ledger.allowed(1_000), 150);
        guesses.add([3].into_iter(), 100, all.len(), &ledger);
        assert_eq!(ledger.allowed(1_000), 50);
        // It is read: its bytes were wanted, and are no guess any more. Once.
        for _ in 0..2 {
            guesses.read(2..5, &all, &ledger);
            assert_eq!(ledger.allowed(1_000), 200);
        }
        ledger.wanted(10_000);
        assert_eq!(ledger.allowed(1_000), 1_000);
        let paused = ledger.pause();
        assert_eq!(ledger.allowed(1_000), 0);
        drop(paused);
        assert_eq!(ledger.allowed(1_000), 1_000);
    }
}
