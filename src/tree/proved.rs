//! Which inodes of a tree were proved since it was opened: a bit for each, set and asked without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Proved inodes, by the kernel's number.
pub(super) struct Proved(Box<[AtomicU64]>);

impl Proved {
    /// None yet, of numbers up to `last`.
    pub fn none(last: u64) -> Proved {
        Proved((0..=last / 64).map(|_| AtomicU64::new(0)).collect())
    }

    /// Whether that one was.
    pub fn contains(&self, inode: u64) -> bool {
        // Nothing else is published by the bit: bytes are read after their own check.
        self.word(inode).is_some_and(|word| word.load(Ordering::Relaxed) & (1 << (inode % 64)) != 0)
    }

    /// That one was.
    pub fn insert(&self, inode: u64) {
        if let Some(word) = self.word(inode) {
            word.fetch_or(1 << (inode % 64), Ordering::Relaxed);
        }
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
        let proved = Proved::none(200);
        for inode in [1, 63, 64, 200] {
            proved.insert(inode);
        }
        let remembered: Vec<u64> = (0..300).filter(|inode| proved.contains(*inode)).collect();
        assert_eq!(remembered, [1, 63, 64, 200]);
        proved.insert(u64::MAX);
        assert!(!proved.contains(u64::MAX));
    }
}
