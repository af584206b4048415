//! The order of steps against a disk that keeps what was synced, and of the rest any part it likes.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use proptest::prelude::*;

use super::*;

const BOOT: BootId = [1, 2];
const NEXT_BOOT: BootId = [3, 4];

/// A disk behind a page cache. Every step is counted; after the last one that is allowed, nothing happens any more.
#[derive(Default)]
struct Machine {
    steps_left: Cell<u32>,
    /// For each word all values since the last flush; the first is on disk for certain, any of them may be.
    words: RefCell<Vec<Vec<u64>>>,
    /// What each chunk's bytes are in the cache, and what they may be on disk.
    chunks: RefCell<Vec<Chunk>>,
}

#[derive(Clone, Default)]
struct Chunk {
    written: bool,
    /// As for words.
    maybe_on_disk: Vec<bool>,
}

impl Machine {
    fn new(words: Vec<u64>, chunks: u64, steps: u32) -> Machine {
        Machine {
            steps_left: Cell::new(steps),
            words: RefCell::new(words.into_iter().map(|word| vec![word]).collect()),
            chunks: RefCell::new(vec![Chunk { written: false, maybe_on_disk: vec![false] }; chunks as usize]),
        }
    }

    /// Whether the machine is still running for this step.
    fn step(&self) -> bool {
        let left = self.steps_left.get();
        self.steps_left.set(left.saturating_sub(1));
        left > 0
    }

    fn set_bytes(&self, chunk: u64, written: bool) {
        if self.step() {
            let chunk = &mut self.chunks.borrow_mut()[chunk as usize];
            chunk.written = written;
            chunk.maybe_on_disk.push(written);
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        // File by file: the power may go between two.
        for chunk in self.chunks.borrow_mut().iter_mut() {
            if self.step() {
                chunk.maybe_on_disk = vec![chunk.written];
            }
        }
        Ok(())
    }

    /// What is on the disk after the power went: of each thing one of its possible values, by `choose`.
    fn cut(&self, mut choose: impl FnMut(usize) -> usize) -> (Vec<u64>, Vec<bool>) {
        let words = self.words.borrow().iter().map(|values| values[choose(values.len())]).collect();
        let chunks =
            self.chunks.borrow().iter().map(|c| c.maybe_on_disk[choose(c.maybe_on_disk.len())]).collect();
        (words, chunks)
    }
}

impl Words for Rc<Machine> {
    fn load(&self, word: usize) -> u64 {
        *self.words.borrow()[word].last().unwrap()
    }

    fn store(&self, word: usize, value: u64) {
        if self.step() {
            self.words.borrow_mut()[word].push(value);
        }
    }

    fn fetch_or(&self, word: usize, value: u64) -> u64 {
        let before = self.load(word);
        self.store(word, before | value);
        before
    }

    fn fetch_and(&self, word: usize, value: u64) -> u64 {
        let before = self.load(word);
        self.store(word, before & value);
        before
    }

    fn flush(&self, words: Range<usize>) -> io::Result<()> {
        for word in words {
            if self.step() {
                let values = &mut self.words.borrow_mut()[word];
                *values = vec![*values.last().unwrap()];
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Operation {
    Fill(u64),
    Checkpoint,
    /// Another thread fills a chunk when the data files have just been synced.
    CheckpointWhileFilling(u64),
    FailedCheckpoint,
    Discard(u64),
}

fn fresh_map(count: u64) -> Vec<u64> {
    new_map(count, BOOT, false).unwrap()
}

/// Runs the operations until the power goes; gives the chunks that a finished checkpoint vouched for.
fn run(machine: &Rc<Machine>, count: u64, operations: &[Operation]) -> Vec<bool> {
    let bits = ChunkBits::new(Rc::clone(machine), count).unwrap();
    let mut vouched = vec![false; count as usize];
    for operation in operations {
        match operation {
            Operation::Fill(chunk) => {
                machine.set_bytes(*chunk, true);
                bits.mark(*chunk);
            }
            Operation::Checkpoint => {
                bits.checkpoint(|| machine.sync_data()).unwrap();
                if machine.steps_left.get() > 0 {
                    vouched = (0..count).map(|chunk| bits.is_present(chunk)).collect();
                }
            }
            Operation::CheckpointWhileFilling(chunk) => {
                let fill_after_sync = || {
                    machine.sync_data()?;
                    machine.set_bytes(*chunk, true);
                    bits.mark(*chunk);
                    Ok(())
                };
                bits.checkpoint(fill_after_sync).unwrap();
            }
            Operation::FailedCheckpoint => {
                let result = bits.checkpoint(|| {
                    // The kernel drops what it could not write.
                    for chunk in machine.chunks.borrow_mut().iter_mut() {
                        if chunk.maybe_on_disk.contains(&false) {
                            *chunk = Chunk { written: false, maybe_on_disk: vec![false] };
                        }
                    }
                    Err(io::ErrorKind::Other.into())
                });
                assert!(result.is_err());
            }
            Operation::Discard(chunk) => {
                vouched[*chunk as usize] = false;
                bits.clear(*chunk);
                bits.checkpoint(|| machine.sync_data()).unwrap();
                machine.set_bytes(*chunk, false);
            }
        }
        // Rule 1, at any time: what is marked is there.
        if machine.steps_left.get() > 0 {
            for chunk in 0..count {
                assert!(
                    !bits.is_present(chunk) || machine.chunks.borrow()[chunk as usize].written,
                    "{operation:?}"
                );
            }
        }
    }
    vouched
}

const COUNT: u64 = 130;

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    // Few chunks, in three words, so that they meet often.
    let chunk = prop::sample::select(vec![0, 1, 63, 64, 129]);
    let operation = prop_oneof![
        4 => chunk.clone().prop_map(Operation::Fill),
        2 => Just(Operation::Checkpoint),
        2 => chunk.clone().prop_map(Operation::CheckpointWhileFilling),
        1 => Just(Operation::FailedCheckpoint),
        1 => chunk.prop_map(Operation::Discard),
    ];
    prop::collection::vec(operation, 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// The power goes after each possible step; the disk keeps any mixture of what was not synced.
    #[test]
    fn no_power_cut_leaves_a_chunk_marked_whose_bytes_are_not_on_disk(
        operations in operations(),
        seed in any::<u64>(),
    ) {
        let everything = Rc::new(Machine::new(fresh_map(COUNT), COUNT, u32::MAX));
        run(&everything, COUNT, &operations);
        let steps = u32::MAX - everything.steps_left.get();
        let mut random = seed | 1;
        for limit in 0..=steps + 1 {
            let machine = Rc::new(Machine::new(fresh_map(COUNT), COUNT, limit));
            let vouched = run(&machine, COUNT, &operations);
            for strategy in 0..4 {
                let (words, on_disk) = machine.cut(|values| match strategy {
                    0 => 0,
                    1 => values - 1,
                    _ => {
                        random ^= random << 13;
                        random ^= random >> 7;
                        random ^= random << 17;
                        (random % values as u64) as usize
                    }
                });
                let after = Rc::new(Machine::new(words, COUNT, u32::MAX));
                let bits = ChunkBits::new(after, COUNT).unwrap();
                prop_assert!(!bits.holds_for(NEXT_BOOT));
                prop_assert!(bits.adopt(NEXT_BOOT), "a slot is always whole, step {}", limit);
                prop_assert!(bits.holds_for(NEXT_BOOT));
                for chunk in 0..COUNT {
                    let index = chunk as usize;
                    prop_assert!(!bits.is_present(chunk) || on_disk[index], "chunk {} is not there, step {}", chunk, limit);
                    prop_assert!(!vouched[index] || bits.is_present(chunk), "chunk {} was lost, step {}", chunk, limit);
                }
            }
        }
    }
}

#[test]
fn a_discarded_chunk_does_not_come_back_from_the_slot_before() {
    let machine = Rc::new(Machine::new(fresh_map(COUNT), COUNT, u32::MAX));
    run(&machine, COUNT, &[Operation::Fill(5), Operation::Checkpoint, Operation::Discard(5)]);
    let bits = ChunkBits::new(Rc::clone(&machine), COUNT).unwrap();
    // The disk loses the newest slot by itself.
    let newest = bits.newest_slot().unwrap();
    machine.store(bits.slot_bits(newest), u64::MAX);
    bits.adopt(NEXT_BOOT);
    assert_eq!(bits.present(), 0);
}

#[test]
fn too_many_chunks_have_no_map() {
    assert!(words_for(MAXIMUM_CHUNKS).is_some());
    assert!(words_for(MAXIMUM_CHUNKS + 1).is_none() && words_for(u64::MAX).is_none());
    assert_eq!(words_for(0), Some(HEADER_WORDS + 2 * SLOT_HEADER_WORDS));
}
