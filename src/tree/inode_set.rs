//! A set of a tree's inodes that only grows: a bit for each, set and asked without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Inodes, by the kernel's number.
pub(super) struct InodeSet(Box<[AtomicU64]>);

impl InodeSet {
    /// None yet, of numbers up to `last`.
    pub fn none(last: u64) -> InodeSet {
        InodeSet((0..=last / 64).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether that one is in it.
    pub fn contains(&self, inode: u64) -> bool {
        // Nothing else is published by the bit: whoever acts on it makes sure of the rest by himself.
        self.word(inode).is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (inode % 64)) != 0)
    }

    /// Puts that one into it; true if it was not there. Of several who do so at once, one is told that.
    pub fn insert(&self, inode: u64) -> bool {
        let bit = 1 << (inode % 64);
        self.word(inode).is_some_and(|word| word.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    fn word(&self, inode: u64) -> Option<&AtomicU64> {
        self.0.get(usize::try_from(inode / 64).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_inode_is_remembered_by_itself() {
        let set = InodeSet::none(200);
        for inode in [1, 63, 64, 200] {
            assert!(set.insert(inode) && !set.insert(inode));
        }
        let remembered: Vec<u64> = (0..300).filter(|inode| set.contains(*inode)).collect();
        assert_eq!(remembered, [1, 63, 64, 200]);
        assert!(!set.insert(u64::MAX) && !set.contains(u64::MAX));
    }
}
