//! Which inodes are open, and how: through the page cache, or passed through to a local file.
//!
//! ```text
//!                first open: choose                      last close
//!   (not open) ─────────────────────> cached, n opens ──────────────> (not open)
//!              └────────────────────> passed through, n opens ──────┘  backing file released
//! ```
//!
//! The kernel refuses to open an inode both ways at once (the second open would fail with `EIO`), and wants
//! the same backing file for each open of it. So the choice is made at the first open and kept until the last
//! close. The kernel forgets a close before it tells us, so that we may keep a choice a little longer than it
//! does, never shorter.
//!
//! Lock: one mutex over the table. It is held while the choice is made, which must not wait for the network.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How an inode is open; `B` stands for the backing file that is registered with the kernel.
#[derive(Debug)]
pub(crate) enum Mode<B> {
    Cached,
    Passthrough(Arc<B>),
}

impl<B> Clone for Mode<B> {
    fn clone(&self) -> Self {
        match self {
            Mode::Cached => Mode::Cached,
            Mode::Passthrough(backing) => Mode::Passthrough(Arc::clone(backing)),
        }
    }
}

#[derive(Debug)]
struct Open<B> {
    mode: Mode<B>,
    /// How many handles there are; an inode without any has no entry.
    count: u64,
}

/// The inodes that are open.
#[derive(Debug)]
pub(crate) struct Opens<B> {
    by_inode: Mutex<HashMap<u64, Open<B>>>,
}

impl<B> Opens<B> {
    pub(crate) fn new() -> Self {
        Opens { by_inode: Mutex::new(HashMap::new()) }
    }

    /// Counts one more handle of `inode`. Gives the way in which it is open, which `choose` decides for the
    /// first.
    pub(crate) fn open(&self, inode: u64, choose: impl FnOnce() -> Mode<B>) -> Mode<B> {
        let mut by_inode = self.lock();
        let open = by_inode.entry(inode).or_insert_with(|| Open { mode: choose(), count: 0 });
        open.count += 1;
        open.mode.clone()
    }

    /// Counts one handle less; the last one releases the backing file. An inode that is not counted is left
    /// alone.
    pub(crate) fn release(&self, inode: u64) {
        let mut by_inode = self.lock();
        let Some(open) = by_inode.get_mut(&inode) else { return };
        open.count -= 1;
        if open.count == 0 {
            let last = by_inode.remove(&inode);
            // Releasing is a system call; other opens need not wait for it.
            drop(by_inode);
            drop(last);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Open<B>>> {
        // A panic in `choose` leaves no half-made entry behind.
        self.by_inode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passthrough(backing: &Arc<String>) -> Mode<String> {
        Mode::Passthrough(Arc::clone(backing))
    }

    #[test]
    fn the_first_open_chooses_and_the_last_close_releases() {
        let backing = Arc::new("whole file".to_owned());
        let opens = Opens::new();
        assert!(matches!(opens.open(7, || passthrough(&backing)), Mode::Passthrough(_)));
        // A second open may not choose again, not even when the choice would now be another.
        let second = opens.open(7, || panic!("already chosen"));
        assert!(matches!(&second, Mode::Passthrough(same) if Arc::ptr_eq(same, &backing)));
        drop(second);

        opens.release(7);
        assert_eq!(Arc::strong_count(&backing), 2, "still open once");
        opens.release(7);
        assert_eq!(Arc::strong_count(&backing), 1, "released");

        assert!(matches!(opens.open(7, || Mode::Cached), Mode::Cached), "chosen anew");
    }

    #[test]
    fn an_inode_opened_through_the_cache_stays_so_until_it_is_closed() {
        let backing = Arc::new("whole file".to_owned());
        let opens = Opens::new();
        opens.open(7, || Mode::Cached);
        assert!(matches!(opens.open(7, || passthrough(&backing)), Mode::Cached));
        opens.release(7);
        assert!(matches!(opens.open(7, || passthrough(&backing)), Mode::Cached));
        assert!(
            matches!(opens.open(8, || passthrough(&backing)), Mode::Passthrough(_)),
            "another inode is free"
        );
    }

    #[test]
    fn closing_what_was_never_counted_does_nothing() {
        Opens::<()>::new().release(7);
    }

    #[test]
    fn a_choice_that_panics_leaves_the_table_usable() {
        let opens = Opens::<()>::new();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| opens.open(7, || panic!("choice"))));
        assert!(panicked.is_err());
        assert!(matches!(opens.open(7, || Mode::Cached), Mode::Cached));
    }
}
