//! Which chunks of a layer were read of late, told to all processes that use it: what an eviction asks when it looks for cold ones.
//!
//! ```text
//! word 0   the hand: the chunk at which the next eviction begins to look
//!      1…  one bit per chunk: it was brought or read since the hand went over it
//! ```
//!
//! The hand goes round; a chunk with its bit set loses the bit and stays, one without goes (the *clock*, or second chance). Any content of
//! the file is a true one as far as safety goes: it is never synced, needs no checksum, and a file that cannot be had only makes
//! eviction less clever. Reads that the kernel answers from its page cache are not seen.

use std::os::unix::fs::FileExt;
use std::sync::OnceLock;

use rustix::fs::OFlags;

use super::chunk_bits::Words;
use super::data_files::Home;
use super::layers::LayerFiles;
use super::shared_words::SharedWords;

const FILE: &str = "touched";
const HEADER_WORDS: usize = 1;

/// The words, once somebody needed them; nothing within if they cannot be had.
pub(super) type Kept = OnceLock<Option<Touched>>;

/// Which chunks were read of late.
#[derive(Debug)]
pub struct Touched {
    words: SharedWords,
    count: u64,
}

impl LayerFiles {
    /// Which of its chunks were read of late; nothing for a layer without chunks, or if it cannot be known.
    pub fn touched(&self) -> Option<&Touched> {
        let count = self.chunk_map.as_ref()?.len();
        self.touched.get_or_init(|| Touched::open(self.data.home(), count)).as_ref()
    }
}

impl Touched {
    fn open(home: &Home, count: u64) -> Option<Touched> {
        let words = HEADER_WORDS + usize::try_from(count.div_ceil(64)).ok()?;
        let length = (words * size_of::<u64>()) as u64;
        let file = home.open(FILE, OFlags::RDWR | OFlags::CREATE).ok()?;
        let found = file.metadata().ok()?.len();
        if found < length {
            // In full, so that no page lacks a block later. Two that do so at once lose bits at most.
            file.write_all_at(&vec![0; (length - found) as usize], found).ok()?;
        }
        Some(Touched { words: SharedWords::map(&file, words).ok()?, count })
    }

    /// Says that these chunks were read or brought.
    pub fn touch(&self, chunks: std::ops::Range<u64>) {
        let end = chunks.end.min(self.count);
        let mut chunk = chunks.start;
        while chunk < end {
            let word_end = (chunk - chunk % 64 + 64).min(end);
            let bits = (u64::MAX << (chunk % 64)) & (u64::MAX >> (63 - (word_end - 1) % 64));
            let word = word_of(chunk);
            // Most were touched before: then no other processor's copy of the word is lost.
            if self.words.load(word) & bits != bits {
                self.words.fetch_or(word, bits);
            }
            chunk = word_end;
        }
    }

    /// Whether the chunk was touched since this was last asked of it.
    pub fn take(&self, chunk: u64) -> bool {
        let bit = 1 << (chunk % 64);
        chunk < self.count && self.words.fetch_and(word_of(chunk), !bit) & bit != 0
    }

    /// Where the next eviction begins to look.
    pub fn hand(&self) -> u64 {
        self.words.load(0).checked_rem(self.count).unwrap_or(0)
    }

    /// Where the one after that does.
    pub fn set_hand(&self, chunk: u64) {
        self.words.store(0, chunk);
    }
}

fn word_of(chunk: u64) -> usize {
    // Below the count, whose words were mapped.
    HEADER_WORDS + (chunk / 64) as usize
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::draft::tests::table;

    const LAYER: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn a_chunk_is_found_touched_once_by_whoever_has_the_layer_open() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = store.layers().layer(LAYER).unwrap();
        let one = layer.create().unwrap().publish(&table(200, b""), Some(200)).unwrap();
        let other = layer.open().unwrap().unwrap();
        let (one, other) = (one.touched().unwrap(), other.touched().unwrap());
        let to_the_end: Vec<u64> = (190..200).collect();
        let cases = [
            (3..3, vec![]),
            (0..1, vec![0]),
            (62..65, vec![62, 63, 64]),
            (64..128, (64..128).collect()),
            (190..900, to_the_end),
        ];
        for (range, expected) in cases {
            one.touch(range.clone());
            let taken: Vec<u64> = (0..260).filter(|chunk| other.take(*chunk)).collect();
            assert_eq!(taken, expected, "{range:?}");
            assert!((0..260).all(|chunk| !one.take(chunk)), "{range:?}: taken by the other");
        }
        one.set_hand(199);
        assert_eq!(other.hand(), 199);
        one.set_hand(200);
        assert_eq!(other.hand(), 0, "the first chunk follows the last");
    }
}
