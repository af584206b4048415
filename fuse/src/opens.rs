//! Which inodes are open, and how: through the page cache, or passed through to a local file.
//!
//! ```text
//!                first open: choose                      last close
//!   (not open) ─────────────────────> cached, n opens ──────────────> (not open)
//!              └────────────────────> passed through                  until the file system is gone
//! ```
//!
//! - The kernel refuses to open an inode both ways at once (the second open would fail with `EIO`), and wants the same backing file for each
//!   open of it. So the choice is made at the first open and kept until the last close. The kernel forgets a close before it tells us, so
//!   that we may keep a choice a little longer than it does, never shorter.
//! - What is passed through stays so. The kernel tells of the close when the last descriptor is closed, and a program may have mapped the file
//!   still: a mapping of a backing file has no part in the FUSE file. So nobody knows when it is not read any more.
//! - The kernel keeps the very open file that was registered as a backing file, and with it the lock (`flock(2)`) that came along, which
//!   keeps others from changing what is mapped. It belongs to the connection, and not to the process that registered it.
//! - What is chosen is [written down](crate::open_records), and a successor goes on with it. It is no way out for one to answer `OPEN` with
//!   `ENOSYS`, so that the kernel opens by itself: that holds what is passed through to its way all the same (Linux 6.18).
//!
//! Lock: one mutex over the table. It is held while the choice is made and written down, which must not wait for the network.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::open_records::{Known, OpenRecords};

/// How an inode is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Cached,
    /// With the backing file of that number.
    Passthrough(u32),
}

#[derive(Debug)]
struct Open {
    mode: Mode,
    /// How many handles there are; an inode without any has no entry. Nothing if nobody knows: it stays.
    count: Option<u64>,
}

/// The inodes that are open.
#[derive(Debug)]
pub(crate) struct Opens {
    by_inode: Mutex<HashMap<u64, Open>>,
    records: Arc<OpenRecords>,
    has_passthrough: AtomicBool,
}

impl Opens {
    /// What these records say, and nothing else.
    pub(crate) fn new(records: Arc<OpenRecords>) -> Self {
        let has_passthrough = AtomicBool::new(records.has_passthrough());
        Opens { by_inode: Mutex::default(), records, has_passthrough }
    }

    /// The number of all handles that are counted here: others have another, or 0.
    pub(crate) fn handle(&self) -> u64 {
        self.records.generation()
    }

    /// Whether an inode of that number can be opened here. One that cannot is always open through the cache.
    pub(crate) fn has_room_for(&self, inode: u64) -> bool {
        self.records.has_room_for(inode)
    }

    /// Whether anything was ever passed through.
    pub(crate) fn has_passthrough(&self) -> bool {
        self.has_passthrough.load(Ordering::Relaxed)
    }

    /// Counts one more handle of `inode`, for which there is room. Gives the way in which it is open, which `choose` decides for the
    /// first.
    pub(crate) fn open(&self, inode: u64, choose: impl FnOnce() -> Mode) -> Mode {
        let mut by_inode = self.lock();
        let open = by_inode.entry(inode).or_insert_with(|| match self.records.get(inode) {
            Known::NotOpen => match self.written(inode, choose()) {
                Mode::Cached => Open { mode: Mode::Cached, count: Some(0) },
                passthrough => Open { mode: passthrough, count: None },
            },
            // By a server before this one, which counted.
            Known::Cached => Open { mode: Mode::Cached, count: None },
            Known::Passthrough(number) => Open { mode: Mode::Passthrough(number), count: None },
        });
        if let Some(count) = &mut open.count {
            *count += 1;
        }
        open.mode
    }

    /// The mode, once it is written down; through the cache if that cannot be done.
    fn written(&self, inode: u64, mode: Mode) -> Mode {
        if let Mode::Passthrough(number) = mode {
            match self.records.set(inode, Known::Passthrough(number)) {
                Ok(()) => {
                    self.has_passthrough.store(true, Ordering::Relaxed);
                    return mode;
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot write down that a file is passed through: it is not")
                }
            }
        }
        if let Err(error) = self.records.set(inode, Known::Cached) {
            tracing::error!(%error, "cannot write down how files are open");
        }
        Mode::Cached
    }

    /// Counts one handle less, if this server gave it and it is counted.
    pub(crate) fn release(&self, inode: u64, handle: u64) {
        if handle != self.handle() {
            return;
        }
        let mut by_inode = self.lock();
        let Some(open) = by_inode.get_mut(&inode) else { return };
        let Some(count) = &mut open.count else { return };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return;
        }
        match self.records.set(inode, Known::NotOpen) {
            Ok(()) => drop(by_inode.remove(&inode)),
            Err(error) => {
                tracing::warn!(%error, "cannot write down that a file is closed: it stays as it was opened");
                open.count = None;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Open>> {
        // A panic in `choose` leaves no half-made entry behind.
        self.by_inode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn first() -> (File, Opens) {
        let file = tempfile::tempfile().unwrap();
        let records = OpenRecords::create(file.try_clone().unwrap(), 10).unwrap();
        (file, Opens::new(Arc::new(records)))
    }

    fn next(file: &File) -> Opens {
        Opens::new(Arc::new(OpenRecords::take_over(file.try_clone().unwrap()).unwrap()))
    }

    fn not_again() -> Mode {
        panic!("already chosen")
    }

    #[test]
    fn what_is_passed_through_stays_so_with_the_same_backing_file() {
        let (_, opens) = first();
        assert!(!opens.has_passthrough());
        assert_eq!(opens.open(7, || Mode::Passthrough(3)), Mode::Passthrough(3));
        assert!(opens.has_passthrough());
        // A second open may not choose again, not even when the choice would now be another.
        assert_eq!(opens.open(7, not_again), Mode::Passthrough(3));
        for _ in 0..2 {
            opens.release(7, opens.handle());
        }
        assert_eq!(opens.open(7, not_again), Mode::Passthrough(3), "it may be mapped still");
    }

    #[test]
    fn an_inode_opened_through_the_cache_stays_so_until_it_is_closed() {
        let (_, opens) = first();
        for _ in 0..2 {
            assert_eq!(opens.open(7, || Mode::Cached), Mode::Cached);
            assert_eq!(opens.open(7, not_again), Mode::Cached);
            opens.release(7, opens.handle());
            assert_eq!(opens.open(8, || Mode::Passthrough(1)), Mode::Passthrough(1), "another inode");
            assert_eq!(opens.open(7, not_again), Mode::Cached, "it is open still");
            for _ in 0..2 {
                opens.release(7, opens.handle());
            }
        }
        assert_eq!(opens.open(7, || Mode::Passthrough(2)), Mode::Passthrough(2), "chosen anew");
    }

    #[test]
    fn a_successor_goes_on_with_what_may_be_open_and_chooses_for_all_else() {
        let (file, opens) = first();
        opens.open(1, || Mode::Passthrough(3));
        opens.open(2, || Mode::Cached);
        opens.open(3, || Mode::Cached);
        opens.release(3, opens.handle());
        let first_handle = opens.handle();
        drop(opens);

        let opens = next(&file);
        assert!(opens.has_passthrough());
        for _ in 0..2 {
            assert_eq!(opens.open(1, not_again), Mode::Passthrough(3));
            // Nobody knows how often the one before has opened it.
            assert_eq!(opens.open(2, not_again), Mode::Cached);
            opens.release(2, opens.handle());
        }
        assert_eq!(opens.open(3, || Mode::Cached), Mode::Cached);
        // A close that was told to the one before, and is told again.
        opens.release(3, first_handle);
        opens.release(3, 0);
        assert_eq!(opens.open(3, not_again), Mode::Cached);
        assert_eq!(opens.open(4, || Mode::Passthrough(5)), Mode::Passthrough(5));
    }

    #[test]
    fn closing_what_was_never_counted_does_nothing() {
        let (_, opens) = first();
        opens.release(7, opens.handle());
        assert_eq!(opens.open(7, || Mode::Cached), Mode::Cached);
    }

    #[test]
    fn a_choice_that_panics_leaves_the_table_usable() {
        let (_, opens) = first();
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| opens.open(7, || panic!("choice"))));
        assert!(panicked.is_err());
        assert_eq!(opens.open(7, || Mode::Cached), Mode::Cached);
    }
}
