//! What processes of a store have counted, where others find it.
//!
//! ```text
//! run/PID.counters    of a process that serves; written by it alone      ──its end──▶ added to run/ended, removed
//! run/ended           of all that have ended, together
//! ```
//!
//! - The sum of all never grows less: whoever adds a file to the sum and removes it is alone meanwhile, and nobody looks.
//! - Nothing is synced: what a crash of the machine takes away begins at nothing again, as counters may.
//! - Whoever is killed leaves his file. It goes on to count, until somebody who knows that he is gone adds it, or a process of the same
//!   number begins.

use std::path::{Path, PathBuf};

use super::durable::names_in;
use super::error::{Context, StoreError};
use super::lock::FileLock;
use crate::meter::Counts;

const SUFFIX: &str = ".counters";
const ENDED: &str = "ended";

/// The counters of a store's processes.
#[derive(Debug)]
pub struct CounterFiles {
    directory: PathBuf,
    lock: PathBuf,
}

impl CounterFiles {
    pub(super) fn new(directory: PathBuf, locks: &Path) -> CounterFiles {
        CounterFiles { directory, lock: locks.join("counters") }
    }

    /// The file of a process, whether or not it is there.
    pub fn of_process(&self, pid: u32) -> PathBuf {
        self.directory.join(format!("{pid}{SUFFIX}"))
    }

    /// Adds the file of a process that is gone to those of all that have ended, and removes it. Nothing if it is not there.
    ///
    /// # Errors
    /// If the system cannot read, write or remove.
    pub fn retire(&self, path: &Path) -> Result<(), StoreError> {
        if !path.exists() {
            return Ok(());
        }
        let _alone = FileLock::acquire(&self.lock)?;
        // Somebody else may have been quicker.
        if let Some(counted) = read(path)? {
            let ended = self.directory.join(ENDED);
            let mut all = read(&ended)?.unwrap_or_default();
            all.merge(&counted);
            // Whole, or as it was: not on disk yet.
            let new = self.directory.join("ended.new");
            std::fs::write(&new, all.encode()).context("write", &new)?;
            std::fs::rename(&new, &ended).context("rename to", &ended)?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.context("remove", path),
        }
    }

    /// Adds the files of processes that are gone. Those of whom `is_alive` says that there is such a process are left.
    ///
    /// # Errors
    /// As for [`retire`](Self::retire).
    pub fn retire_gone(&self, is_alive: impl Fn(u32) -> bool) -> Result<(), StoreError> {
        for name in names_in(&self.directory)? {
            let pid = name.strip_suffix(SUFFIX).and_then(|pid| pid.parse().ok());
            if pid.is_some_and(|pid| !is_alive(pid)) {
                self.retire(&self.directory.join(name))?;
            }
        }
        Ok(())
    }

    /// What all processes have counted, those that have ended included.
    ///
    /// # Errors
    /// If the system cannot read.
    pub fn all(&self) -> Result<Counts, StoreError> {
        let _nobody_ends = FileLock::acquire_shared(&self.lock)?;
        let mut all = Counts::default();
        for name in names_in(&self.directory)? {
            if name == ENDED || name.ends_with(SUFFIX) {
                read(&self.directory.join(name))?.into_iter().for_each(|counted| all.merge(&counted));
            }
        }
        Ok(all)
    }
}

/// What stands in a file; nothing if it is not there, or has not enough in it.
fn read(path: &Path) -> Result<Option<Counts>, StoreError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => Ok(Counts::decode(&bytes.context("read", path)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;
    use crate::meter::Count;

    #[test]
    fn the_sum_of_all_is_the_same_before_and_after_a_process_ends() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let files = store.counters();
        assert_eq!(files.all().unwrap(), Counts::default());
        std::fs::create_dir_all(directory.path().join("run")).unwrap();
        for pid in [1, 2, 3] {
            let counted = Counts::default().with(Count::ReadBytes, u64::from(pid) * 100);
            std::fs::write(files.of_process(pid), counted.encode()).unwrap();
        }
        // Of an earlier version, and of one who was killed while it was made.
        std::fs::write(files.of_process(4), [9; 32]).unwrap();
        std::fs::write(files.of_process(5), [9; 8]).unwrap();
        let read = || files.all().unwrap();
        let before = read();
        assert_eq!(before.get(Count::ReadBytes), 600);
        files.retire(&files.of_process(2)).unwrap();
        files.retire(&files.of_process(2)).unwrap();
        assert!(!files.of_process(2).exists());
        assert_eq!(read(), before);
        files.retire_gone(|pid| pid == 1).unwrap();
        assert_eq!(read(), before);
        assert!(files.of_process(1).exists() && !files.of_process(5).exists());
        // Readers and those who end, all at once.
        std::thread::scope(|scope| {
            for pid in 10..30 {
                std::fs::write(files.of_process(pid), Counts::default().with(Count::ReadBytes, 1).encode())
                    .unwrap();
            }
            for pid in 10..30 {
                scope.spawn(move || files.retire(&files.of_process(pid)).unwrap());
            }
            scope.spawn(|| (0..100).for_each(|_| assert_eq!(read().get(Count::ReadBytes), 620)));
        });
        assert_eq!(read().get(Count::ReadBytes), 620);
    }
}
