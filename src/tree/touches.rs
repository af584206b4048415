//! Which files of a tree were read, and in which order: noted when a file is touched first, at a cost that no read feels.
//!
//! ```text
//! read ──▶ small file: its bit ──set──▶ nothing to do
//!      │                  └─not yet──▶ (inode, time) goes to the end of the list
//!      └─▶ large file: which of its parts ──known──▶ nothing to do
//!                                    └─new──▶ their bits are set; its first touch goes to the list, too
//! ```
//!
//! A large file has up to 64 parts of equal length, a power of two and at least [`SMALLEST_PART`]; a file that is not longer than
//! that is small. Only what the kernel asks us for is seen: what it has in its page cache, it does not ask for again.
//!
//! Locks: one over the list and the large files, written at first touches only and else shared; one for [`Touches::wait_for_news`].
//! The list is bounded: a bit for each inode, and 8 bytes for each of [`LONGEST_LIST`] files at most, 40 for large ones.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::inode_set::InodeSet;

/// Bytes of a file that are told apart from others of it, if it has not more than 64 times as many.
pub const SMALLEST_PART: u64 = 64 << 10;
/// Files that are noted; those touched after them are not.
pub const LONGEST_LIST: usize = 1 << 15;

/// The files of a tree that were touched.
pub struct Touches {
    begin: Instant,
    /// Small files, by the kernel's number.
    small: InodeSet,
    state: RwLock<State>,
    /// Something was touched since [`Touches::list`].
    news: AtomicBool,
    is_ended: Mutex<bool>,
    told: Condvar,
}

#[derive(Default)]
struct State {
    list: Vec<First>,
    large: HashMap<u64, Large>,
}

/// A first touch.
#[derive(Clone, Copy)]
struct First {
    inode: u32,
    milliseconds: u32,
}

struct Large {
    size: u64,
    /// A bit for each part; none if all that is known is that it was opened.
    parts: AtomicU64,
}

/// A file that was touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Touched {
    /// The kernel's number of its inode.
    pub inode: u64,
    /// When it was first, in milliseconds since the beginning.
    pub milliseconds: u64,
    /// The parts of it that were touched, in bytes, ascending and apart; none for a small file, and one that was opened as a whole.
    pub parts: Vec<Range<u64>>,
}

impl Touches {
    /// None yet, of a tree with inodes up to `last`; time counts from now.
    pub fn none(last: u64) -> Touches {
        Touches {
            begin: Instant::now(),
            small: InodeSet::none(last),
            state: RwLock::default(),
            news: AtomicBool::new(false),
            is_ended: Mutex::new(false),
            told: Condvar::new(),
        }
    }

    /// Notes a read of that part of a regular file of `size` bytes.
    pub fn read(&self, inode: u64, size: u64, part: Range<u64>) {
        if size > SMALLEST_PART {
            self.touch_large(inode, size, bits(size, part));
        } else if !self.small.contains(inode) && self.small.insert(inode) {
            let mut state = self.write();
            if state.push(inode, self.begin) {
                drop(state);
                self.tell();
            }
        }
    }

    /// Notes that a file of `size` bytes was handed to the kernel, which reads it without asking.
    pub fn handed_over(&self, inode: u64, size: u64) {
        if size > SMALLEST_PART { self.touch_large(inode, size, 0) } else { self.read(inode, size, 0..size) }
    }

    fn touch_large(&self, inode: u64, size: u64, bits: u64) {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(large) = state.large.get(&inode) {
            // Asked before it is set, so that those who read one file do not take its bits from each other's caches.
            let is_new = large.parts.load(Ordering::Relaxed) & bits != bits;
            if is_new && large.parts.fetch_or(bits, Ordering::Relaxed) & bits != bits {
                drop(state);
                self.tell();
            }
            return;
        }
        let is_full = state.list.len() >= LONGEST_LIST;
        drop(state);
        if is_full {
            return;
        }
        let mut state = self.write();
        if let Some(known) = state.large.get(&inode) {
            known.parts.fetch_or(bits, Ordering::Relaxed);
        } else if state.push(inode, self.begin) {
            state.large.insert(inode, Large { size, parts: AtomicU64::new(bits) });
        }
        drop(state);
        self.tell();
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        // Whoever panics while he holds it leaves a list that is whole.
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// All that was touched so far, in the order of the first touches.
    pub fn list(&self) -> Vec<Touched> {
        // Before the list is looked at: what is touched meanwhile is news again.
        self.news.store(false, Ordering::SeqCst);
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let touched = |first: &First| {
            let large = state.large.get(&u64::from(first.inode));
            Touched {
                inode: first.inode.into(),
                milliseconds: first.milliseconds.into(),
                parts: large
                    .map(|large| ranges(large.size, large.parts.load(Ordering::Relaxed)))
                    .unwrap_or_default(),
            }
        };
        state.list.iter().map(touched).collect()
    }

    /// Waits until something was touched that was not before the last [`list`](Self::list). False at the end.
    pub fn wait_for_news(&self) -> bool {
        let is_idle = |is_ended: &mut bool| !*is_ended && !self.news.load(Ordering::SeqCst);
        let is_ended = self.told.wait_while(self.lock(), is_idle);
        !*is_ended.unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits so long. False at the end, which may come before.
    pub fn wait(&self, duration: Duration) -> bool {
        let waited = self.told.wait_timeout_while(self.lock(), duration, |is_ended| !*is_ended);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Ends all waiting, for good.
    pub fn end(&self) {
        *self.lock() = true;
        self.told.notify_all();
    }

    fn tell(&self) {
        if !self.news.swap(true, Ordering::SeqCst) {
            // Who looked before and does not wait yet holds the lock.
            drop(self.lock());
            self.told.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.is_ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// False if the list is full.
    fn push(&mut self, inode: u64, begin: Instant) -> bool {
        // Tables have far fewer inodes.
        let (true, Ok(inode)) = (self.list.len() < LONGEST_LIST, u32::try_from(inode)) else { return false };
        // 49 days.
        let milliseconds = u32::try_from(begin.elapsed().as_millis()).unwrap_or(u32::MAX);
        self.list.push(First { inode, milliseconds });
        true
    }
}

/// Length of the parts of a file, in bytes, of which there are at most 64.
fn part_length(size: u64) -> u64 {
    size.div_ceil(64).checked_next_power_of_two().unwrap_or(1 << 63).max(SMALLEST_PART)
}

/// The bits of the parts in which these bytes are.
fn bits(size: u64, touched: Range<u64>) -> u64 {
    let length = part_length(size);
    let (first, last) = (touched.start / length, touched.end.saturating_sub(1).max(touched.start) / length);
    (u64::MAX << first.min(63)) & (u64::MAX >> (63 - last.min(63)))
}

/// The bytes of the parts whose bits are set.
fn ranges(size: u64, bits: u64) -> Vec<Range<u64>> {
    let length = part_length(size);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for part in (0..64_u64).filter(|part| bits & (1 << part) != 0) {
        let start = part.saturating_mul(length);
        let end = start.saturating_add(length).min(size);
        match ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => ranges.push(start..end),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MEBIBYTE: u64 = 1 << 20;

    fn listed(touches: &Touches) -> Vec<(u64, Vec<Range<u64>>)> {
        touches.list().into_iter().map(|touched| (touched.inode, touched.parts)).collect()
    }

    #[test]
    fn files_are_listed_in_the_order_of_their_first_touches() {
        let touches = Touches::none(100);
        for inode in [7, 3, 7, 100, 3, 1] {
            touches.read(inode, 10, 0..10);
        }
        assert_eq!(listed(&touches), [(7, vec![]), (3, vec![]), (100, vec![]), (1, vec![])]);
        assert!(touches.list().is_sorted_by_key(|touched| touched.milliseconds));
    }

    #[test]
    fn of_large_files_the_parts_are_known_that_were_read() {
        let touches = Touches::none(10);
        touches.read(1, 10 * MEBIBYTE, 5 * MEBIBYTE..5 * MEBIBYTE + 1);
        touches.read(2, SMALLEST_PART * 3 + 1, SMALLEST_PART * 3..SMALLEST_PART * 3 + 1);
        touches.read(2, SMALLEST_PART * 3 + 1, 5..6);
        touches.handed_over(3, MEBIBYTE);
        touches.read(1, 10 * MEBIBYTE, 0..MEBIBYTE / 4 + 1);
        touches.read(1, 10 * MEBIBYTE, 9 * MEBIBYTE + 1..10 * MEBIBYTE);
        let quarter = MEBIBYTE / 4;
        assert_eq!(
            listed(&touches),
            [
                (1, vec![0..2 * quarter, 20 * quarter..21 * quarter, 36 * quarter..40 * quarter]),
                (2, vec![0..SMALLEST_PART, 3 * SMALLEST_PART..3 * SMALLEST_PART + 1]),
                (3, vec![]),
            ]
        );
    }

    #[test]
    fn every_byte_is_in_the_part_that_is_noted_for_it() {
        for size in [SMALLEST_PART + 1, 16 * MEBIBYTE, 16 * MEBIBYTE + 1, 1 << 50, u64::MAX] {
            for place in [0, 1, size / 3, size / 2, size - 1] {
                let noted = ranges(size, bits(size, place..place + 1));
                assert!(noted.len() == 1 && noted[0].contains(&place), "{size} {place} {noted:?}");
            }
            assert_eq!(ranges(size, bits(size, 0..size)).first(), Some(&(0..size)));
        }
    }

    #[test]
    fn the_list_has_an_end() {
        let touches = Touches::none(100_000);
        for inode in 1..60_000 {
            touches.read(inode, if inode % 2 == 0 { 1 } else { MEBIBYTE }, 0..1);
        }
        let listed = listed(&touches);
        assert_eq!((listed.len(), listed.last().unwrap().0), (LONGEST_LIST, LONGEST_LIST as u64));
        assert_eq!(touches.state.read().unwrap().large.len(), LONGEST_LIST / 2);
    }

    #[test]
    fn threads_that_touch_at_once_note_each_file_once() {
        let touches = Touches::none(1000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for inode in 1..=1000 {
                        touches.read(inode, if inode % 3 == 0 { MEBIBYTE } else { 1 }, 0..1);
                    }
                });
            }
        });
        let mut inodes: Vec<u64> = listed(&touches).into_iter().map(|(inode, _)| inode).collect();
        inodes.sort_unstable();
        assert!(inodes == (1..=1000).collect::<Vec<_>>());
    }

    #[test]
    fn who_waits_for_news_is_told_of_each_and_of_the_end() {
        let touches = Arc::new(Touches::none(10));
        let (sender, receiver) = std::sync::mpsc::channel();
        let waiting = touches.clone();
        let thread = std::thread::spawn(move || {
            while waiting.wait_for_news() {
                sender.send(waiting.list().len()).unwrap();
            }
            assert!(!waiting.wait(Duration::MAX));
        });
        for count in 1..=3 {
            touches.read(count, 1, 0..1);
            assert_eq!(receiver.recv(), Ok(count as usize));
        }
        touches.end();
        thread.join().unwrap();
        assert!(receiver.recv().is_err());
    }
}
