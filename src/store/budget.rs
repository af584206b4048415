//! The size that the store is to have at most: one number, for all processes that use it. Those who bring bytes keep to it
//! ([`fetch::room`](crate::fetch)); here is where it is written down.

use std::path::PathBuf;

use super::Store;
use super::content::write_file;
use super::durable::sync_directory;
use super::error::{Context, StoreError};
use super::lock::FileLock;

const FILE: &str = "budget";

impl Store {
    /// How many bytes the store may take on the disk; nothing if as many as there are.
    ///
    /// # Errors
    /// If it cannot be read, or is no number.
    pub fn budget(&self) -> Result<Option<u64>, StoreError> {
        let path = self.budget_file();
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.context("read", &path)?,
        };
        match text.trim_end().parse() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => Err(StoreError::Damaged {
                path,
                reason: format!("{text:?} is no number of bytes; `peel store --budget` writes it anew"),
            }),
        }
    }

    /// Sets or removes the budget, durably. Processes that run learn of it when they next ask.
    pub fn set_budget(&self, bytes: Option<u64>) -> Result<(), StoreError> {
        let path = self.budget_file();
        match bytes {
            Some(bytes) => write_file(self.content.temporaries(), &path, format!("{bytes}\n").as_bytes()),
            None => match std::fs::remove_file(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                removed => {
                    removed.context("remove", &path)?;
                    sync_directory(&self.path)
                }
            },
        }
    }

    /// Held by the process that makes room: one looks and evicts at a time.
    pub fn lock_for_room(&self) -> Result<FileLock, StoreError> {
        FileLock::acquire(&self.locks.join("room"))
    }

    fn budget_file(&self) -> PathBuf {
        self.path.join(FILE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_what_was_set_last() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.budget().unwrap(), None);
        store.set_budget(None).unwrap();
        for bytes in [200_000_000, 0, u64::MAX] {
            store.set_budget(Some(bytes)).unwrap();
            assert_eq!(Store::open(directory.path()).unwrap().budget().unwrap(), Some(bytes));
        }
        store.set_budget(None).unwrap();
        assert_eq!(store.budget().unwrap(), None);
    }

    #[test]
    fn a_budget_that_cannot_be_read_is_an_error_that_says_how_to_mend_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        for text in ["", "12x", "-5", "99999999999999999999999"] {
            std::fs::write(directory.path().join(FILE), text).unwrap();
            let message = crate::error::chain(&store.budget().unwrap_err()).to_string();
            assert!(message.contains("store --budget"), "{text:?}: {message}");
        }
        store.set_budget(Some(7)).unwrap();
        assert_eq!(store.budget().unwrap(), Some(7));
    }
}
