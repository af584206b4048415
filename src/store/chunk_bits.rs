//! Which chunks are there: the bits of a chunk map, and the order of steps that keeps them true over a power cut. No I/O of its
//! own: the words come from [`Words`], a mapped file in the program and a model of a disk in the tests.
//!
//! ```text
//! word 0    magic
//!      1    version << 32 | CRC-32 of magic, version and count
//!      2    number of chunks
//!      3,4  boot id for which the live bits hold
//!      5    evictions: how often chunks were cleared since the map was made
//!      6    1 if nothing of the layer may be read
//!      7    zero
//!      8…   live bits      one per chunk: its bytes were written (they may still be in the page cache only)
//!      …    slot 0         generation, checksum, durable bits
//!      …    slot 1         generation, checksum, durable bits
//! ```
//!
//! Words are in the byte order of the machine: a map never leaves it, and the magic shows if it did.
//!
//! Rules
//! 1. A live bit is set after the chunk's bytes were written. If a process is killed, the page cache has both.
//! 2. If the machine goes down, the disk has any mixture of both. So live bits hold only for the boot that is named, and at the
//!    next boot they start again from the durable ones.
//! 3. Durable bits are a copy of the live bits, taken *before* the data files are synced and stored after. They are written to
//!    the older slot, so a power cut in the middle (the checksum shows it) leaves the newer one.
//! 4. A chunk that is to be discarded loses its live bit, then the map is checkpointed, then its bytes may go: when a
//!    checkpoint returns, no slot has the bit any more. Readers take no lock: see [`eviction`](super::eviction).

use std::io;
use std::ops::Range;

use sha2::{Digest, Sha256};

/// Words that others change at the same time, and that reach the disk in any order, but before `flush` returns.
pub(super) trait Words {
    /// The word now; what was stored before it is seen as well (acquire).
    fn load(&self, word: usize) -> u64;
    /// Sets a word, after all that went before (release).
    fn store(&self, word: usize, value: u64);
    /// Sets the bits of `value`; gives the word as it was.
    fn fetch_or(&self, word: usize, value: u64) -> u64;
    /// Clears all but the bits of `value`; gives the word as it was.
    fn fetch_and(&self, word: usize, value: u64) -> u64;
    /// The words are on disk when this returns.
    fn flush(&self, words: Range<usize>) -> io::Result<()>;
}

/// Names one run of the kernel.
pub(super) type BootId = [u64; 2];

const MAGIC: u64 = u64::from_ne_bytes(*b"peelchnk");
const VERSION: u32 = 1;
const HEADER_WORDS: usize = 8;
const BOOT_WORD: usize = 3;
const EVICTIONS_WORD: usize = 5;
const POISON_WORD: usize = 6;
/// Generation and checksum before a slot's bits.
const SLOT_HEADER_WORDS: usize = 2;
/// As many as a table can have; it bounds what a damaged count can ask for.
const MAXIMUM_CHUNKS: u64 = u32::MAX as u64;

/// Bits of a chunk map over any [`Words`].
#[derive(Debug)]
pub(super) struct ChunkBits<W> {
    words: W,
    count: u64,
}

/// Words that hold one bit for each of `count` chunks.
fn bit_words(count: u64) -> usize {
    // No more than MAXIMUM_CHUNKS / 64: see `words_for`.
    count.div_ceil(64) as usize
}

/// The words of a map whose live bits hold for `boot`, with none or all of the chunks present; `None` if there are too many. The
/// first slot is written from the start, so that one is always whole. It has the same bits: by rule 3 a map with all of them may
/// become visible only after the data files were synced.
pub(super) fn new_map(count: u64, boot: BootId, all_present: bool) -> Option<Vec<u64>> {
    let mut words = vec![0; words_for(count)?];
    words[..HEADER_WORDS].copy_from_slice(&[MAGIC, header_check(count), count, boot[0], boot[1], 0, 0, 0]);
    let bits = bit_words(count);
    let slot = HEADER_WORDS + bits;
    let generation = 1;
    words[slot] = generation;
    if all_present {
        for chunk in 0..count {
            let word = (chunk / 64) as usize;
            words[HEADER_WORDS + word] |= bit(chunk);
            words[slot + SLOT_HEADER_WORDS + word] |= bit(chunk);
        }
    }
    let durable = words[slot + SLOT_HEADER_WORDS..][..bits].iter().copied();
    words[slot + 1] = checksum(count, generation, durable);
    Some(words)
}

fn header_check(count: u64) -> u64 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&MAGIC.to_ne_bytes());
    hasher.update(&VERSION.to_ne_bytes());
    hasher.update(&count.to_ne_bytes());
    u64::from(VERSION) << 32 | u64::from(hasher.finalize())
}

/// Length in words of the map of that many chunks; `None` if there are too many.
pub(super) fn words_for(count: u64) -> Option<usize> {
    (count <= MAXIMUM_CHUNKS)
        .then(|| HEADER_WORDS + bit_words(count) + 2 * (SLOT_HEADER_WORDS + bit_words(count)))
}

/// Whether the words of a map, which nobody changes meanwhile, say durably that all of `count` chunks are there and may be read.
pub(super) fn is_durably_whole(words: &[u64], count: u64) -> bool {
    let header = [MAGIC, header_check(count), count];
    if words_for(count) != Some(words.len()) || words[..header.len()] != header || words[POISON_WORD] != 0 {
        return false;
    }
    let bits = bit_words(count);
    let slots = (0..2).map(|slot| &words[HEADER_WORDS + bits + slot * (SLOT_HEADER_WORDS + bits)..]);
    let whole = slots.map(|slot| &slot[..SLOT_HEADER_WORDS + bits]).filter(|slot| {
        let durable = slot[SLOT_HEADER_WORDS..].iter().copied();
        slot[0] != 0 && slot[0] != u64::MAX && slot[1] == checksum(count, slot[0], durable)
    });
    let newest = whole.max_by_key(|slot| slot[0]);
    newest.is_some_and(|slot| {
        let present: u64 = slot[SLOT_HEADER_WORDS..].iter().map(|word| u64::from(word.count_ones())).sum();
        present == count
    })
}

/// Whether the words of a map, which others may change meanwhile and may be those of something else, say that this chunk is there.
pub(super) fn seems_present(words: &[u64], chunk: u64) -> bool {
    let is_in_map = words.get(2).is_some_and(|count| chunk < *count);
    let word = HEADER_WORDS as u64 + chunk / 64;
    is_in_map && words.get(word as usize).is_some_and(|word| word & bit(chunk) != 0)
}

/// The same of any chunk.
pub(super) fn seems_present_at_all(words: &[u64]) -> bool {
    let count = words.get(2).copied().unwrap_or_default();
    let live = words.iter().skip(HEADER_WORDS).take(count.div_ceil(64) as usize);
    live.into_iter().any(|word| *word != 0)
}

impl<W: Words> ChunkBits<W> {
    /// Takes [`words_for`]`(count)` words as a map; `None` if they are none, or one of another version or number of chunks.
    pub(super) fn new(words: W, count: u64) -> Option<ChunkBits<W>> {
        let matches =
            [MAGIC, header_check(count), count].into_iter().enumerate().all(|(i, v)| words.load(i) == v);
        matches.then_some(ChunkBits { words, count })
    }

    pub(super) fn len(&self) -> u64 {
        self.count
    }

    /// Whether the live bits hold for this run of the kernel.
    pub(super) fn holds_for(&self, boot: BootId) -> bool {
        [self.words.load(BOOT_WORD), self.words.load(BOOT_WORD + 1)] == boot
    }

    /// Starts the live bits again from the durable ones. Under the map's lock, if [`holds_for`](Self::holds_for) says no.
    /// False if neither slot is whole, which no crash brings about: then the map is empty.
    ///
    /// Nothing need be flushed: what this writes matters to this boot only.
    pub(super) fn adopt(&self, boot: BootId) -> bool {
        let newest = self.newest_slot();
        for word in 0..bit_words(self.count) {
            let bits = newest.map_or(0, |slot| self.words.load(self.slot_bits(slot) + word));
            self.words.store(HEADER_WORDS + word, bits);
        }
        // Last: whoever sees the boot id sees the bits.
        self.words.store(BOOT_WORD, boot[0]);
        self.words.store(BOOT_WORD + 1, boot[1]);
        newest.is_some()
    }

    pub(super) fn is_present(&self, chunk: u64) -> bool {
        chunk < self.count && self.words.load(live_word(chunk)) & bit(chunk) != 0
    }

    /// The first chunk of the range that is not there; those past the end never are.
    pub(super) fn first_missing(&self, range: Range<u64>) -> Option<u64> {
        let mut chunk = range.start;
        while chunk < range.end {
            if chunk >= self.count {
                return Some(chunk);
            }
            let missing = !self.words.load(live_word(chunk)) & (u64::MAX << (chunk % 64));
            let word_start = chunk - chunk % 64;
            if missing != 0 {
                let found = word_start + u64::from(missing.trailing_zeros());
                return (found < range.end).then_some(found);
            }
            chunk = word_start + 64;
        }
        None
    }

    /// Rule 1: only after the chunk's bytes were written. True if the bit was not set before.
    pub(super) fn mark(&self, chunk: u64) -> bool {
        debug_assert!(chunk < self.count, "chunk {chunk} of {}", self.count);
        chunk < self.count && self.words.fetch_or(live_word(chunk), bit(chunk)) & bit(chunk) == 0
    }

    /// True if the bit was set before. See rule 4 for what must happen before the chunk's bytes are discarded.
    pub(super) fn clear(&self, chunk: u64) -> bool {
        chunk < self.count && self.words.fetch_and(live_word(chunk), !bit(chunk)) & bit(chunk) != 0
    }

    /// Changes whenever chunks were cleared whose bytes will go.
    pub(super) fn evictions(&self) -> u64 {
        self.words.load(EVICTIONS_WORD)
    }

    /// After chunks were cleared, and before their bytes go; one process at a time.
    pub(super) fn count_eviction(&self) {
        self.words.store(EVICTIONS_WORD, self.words.load(EVICTIONS_WORD).wrapping_add(1));
    }

    /// For ever, as far as this map goes.
    pub(super) fn poison(&self) {
        self.words.fetch_or(POISON_WORD, 1);
    }

    pub(super) fn is_poisoned(&self) -> bool {
        self.words.load(POISON_WORD) != 0
    }

    pub(super) fn present(&self) -> u64 {
        self.live().map(|bits| u64::from(bits.count_ones())).sum()
    }

    /// Rule 3, under the map's lock. `sync` brings the data files to disk. If it fails, nothing is known of the bytes that were
    /// not on disk before (the kernel may drop pages that it could not write), so their bits are cleared.
    pub(super) fn checkpoint(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let snapshot: Vec<u64> = self.live().collect();
        let newest = self.newest_slot();
        if let Err(error) = sync() {
            for (word, live) in snapshot.iter().enumerate() {
                let durable = newest.map_or(0, |slot| self.words.load(self.slot_bits(slot) + word));
                self.words.fetch_and(HEADER_WORDS + word, !(live & !durable));
            }
            return Err(error);
        }

        let older = newest.map_or(0, |slot| 1 - slot);
        let generation = newest.map_or(0, |slot| self.words.load(self.slot(slot))) + 1;
        for (word, bits) in snapshot.iter().enumerate() {
            self.words.store(self.slot_bits(older) + word, *bits);
        }
        self.words.store(self.slot(older) + 1, checksum(self.count, generation, snapshot.iter().copied()));
        self.words.store(self.slot(older), generation);
        self.words.flush(self.slot(older)..self.slot_bits(older) + bit_words(self.count))?;

        // Rule 4: the slot before must not bring a cleared bit back, should the new one ever be unreadable.
        if let Some(stale) = newest
            && snapshot
                .iter()
                .enumerate()
                .any(|(word, bits)| self.words.load(self.slot_bits(stale) + word) & !bits != 0)
        {
            self.words.store(self.slot(stale), 0);
            self.words.flush(self.slot(stale)..self.slot(stale) + 1)?;
        }
        Ok(())
    }

    fn live(&self) -> impl Iterator<Item = u64> {
        (0..bit_words(self.count)).map(|word| self.words.load(HEADER_WORDS + word))
    }

    fn slot(&self, slot: usize) -> usize {
        HEADER_WORDS + bit_words(self.count) + slot * (SLOT_HEADER_WORDS + bit_words(self.count))
    }

    fn slot_bits(&self, slot: usize) -> usize {
        self.slot(slot) + SLOT_HEADER_WORDS
    }

    /// The slot that is whole and, if both are, the later.
    fn newest_slot(&self) -> Option<usize> {
        (0..2).filter(|slot| self.slot_is_whole(*slot)).max_by_key(|slot| self.words.load(self.slot(*slot)))
    }

    fn slot_is_whole(&self, slot: usize) -> bool {
        let generation = self.words.load(self.slot(slot));
        let bits = (0..bit_words(self.count)).map(|word| self.words.load(self.slot_bits(slot) + word));
        // The largest generation is not taken either, so that adding one is always possible.
        generation != 0
            && generation != u64::MAX
            && self.words.load(self.slot(slot) + 1) == checksum(self.count, generation, bits)
    }
}

fn live_word(chunk: u64) -> usize {
    // The chunk is below the count, which fits.
    HEADER_WORDS + (chunk / 64) as usize
}

fn bit(chunk: u64) -> u64 {
    1 << (chunk % 64)
}

/// The first 64 bits of a SHA-256: a slot torn by a power cut must never pass for a whole one.
fn checksum(count: u64, generation: u64, bits: impl Iterator<Item = u64>) -> u64 {
    let mut hasher = Sha256::new();
    hasher.update(count.to_ne_bytes());
    hasher.update(generation.to_ne_bytes());
    for word in bits {
        hasher.update(word.to_ne_bytes());
    }
    let digest = hasher.finalize();
    digest.iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

#[cfg(test)]
#[path = "chunk_bits_tests.rs"]
mod tests;
