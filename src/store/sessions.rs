//! Who lives: a session holds the lock `locks/session-<id>` from before its row in the database is written until it ends.
//!
//! The kernel frees the lock however a process ends. So what a session held is given up without a count that could be wrong, a number of
//! a process that another has got since, or a look into another pid namespace, for one descriptor a session.

use std::path::{Path, PathBuf};

use super::error::StoreError;
use super::lock::{FileLock, remove_if_free};
use super::record_tables::random_hex;

/// The right to hold refs; ends when it is dropped.
#[derive(Debug)]
pub struct Session {
    id: String,
    path: PathBuf,
    lock: Option<FileLock>,
}

impl Session {
    pub(super) fn begin(locks: &Path) -> Result<Session, StoreError> {
        let id = random_hex()?;
        let path = lock_file(locks, &id);
        let lock = Some(FileLock::acquire(&path)?);
        Ok(Session { id, path, lock })
    }

    /// Its name.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.lock = None;
        // A lock file that stays is swept.
        let _ = remove_if_free(&self.path);
    }
}

/// Whether a session is over for certain.
pub(super) fn is_over(locks: &Path, id: &str) -> Result<bool, StoreError> {
    remove_if_free(&lock_file(locks, id))
}

fn lock_file(locks: &Path, id: &str) -> PathBuf {
    locks.join(format!("session-{id}"))
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::crash_tests::eventually;

    #[test]
    fn a_session_is_over_when_it_is_dropped_and_a_sweep_does_not_end_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let session = store.begin_session().unwrap();
        let id = session.id().to_owned();
        store.sweep().unwrap();
        assert!(!store.session_is_over(&id).unwrap());
        drop(session);
        eventually("the session is over", || store.session_is_over(&id).unwrap());
        assert_eq!(std::fs::read_dir(directory.path().join("locks")).unwrap().count(), 0);
    }
}
