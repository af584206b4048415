//! Files with data that are kept with a record and too large for the database: `items/<random>`, each in one piece from the first
//! moment. Which record a file belongs to, the database says; a file that belongs to none is removed.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::digest::is_lower_hex;
use super::durable::{crash_point, names_in, sync_data, sync_directory, write_all};
use super::error::{Context, StoreError};
use super::record_tables::random_hex;
use super::temporary::{Temporaries, Temporary, lock_unused};

/// The files of a store's records.
#[derive(Clone, Debug)]
pub struct Items {
    directory: PathBuf,
    temporaries: Temporaries,
}

/// A file that belongs to no record yet. While this lives, nobody takes it for one that was left behind.
#[derive(Debug)]
pub struct NewItem {
    _temporary: Temporary,
    name: String,
}

impl NewItem {
    /// Its name, for the database.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Items {
    pub(super) fn new(directory: PathBuf) -> Items {
        Items { temporaries: Temporaries::new(directory.join(super::INGEST)), directory }
    }

    /// Stores a file. It is on disk when this returns.
    pub fn create(&self, bytes: &[u8]) -> Result<NewItem, StoreError> {
        self.temporaries.ensure()?;
        let (temporary, name) = (self.temporaries.file()?, random_hex()?);
        write_all(temporary.file(), bytes, temporary.path())?;
        sync_data(temporary.file(), temporary.path())?;
        let path = self.directory.join(&name);
        temporary.publish(&path).context("rename to", &path)?;
        sync_directory(&self.directory)?;
        Ok(NewItem { _temporary: temporary, name })
    }

    /// A file, open for reading; nothing if it is not there.
    pub fn open(&self, name: &str) -> Result<Option<File>, StoreError> {
        let path = self.directory.join(name);
        match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(StoreError::from_io("open", path, error)),
        }
    }

    /// Removes a file. One that is gone is no error.
    pub fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.directory.join(name);
        crash_point();
        match rustix::fs::unlink(&path) {
            Err(Errno::NOENT) => Ok(()),
            result => result.context("remove", path),
        }
    }

    /// Removes a file that seems to belong to no record. `is_recorded` looks again, once nobody can be about to record it.
    pub fn remove_leftover<E: From<StoreError>>(
        &self,
        name: &str,
        is_recorded: impl FnOnce() -> Result<bool, E>,
    ) -> Result<(), E> {
        let path = self.directory.join(name);
        let lock = lock_unused(&path).context("lock", &path)?;
        if lock.is_some() && !is_recorded()? {
            self.remove(name)?;
        }
        Ok(())
    }

    /// Whether nobody is about to record it.
    pub fn is_left_over(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.directory.join(name);
        Ok(lock_unused(&path).context("lock", &path)?.is_some())
    }

    /// The names of all files.
    pub fn list(&self) -> Result<Vec<String>, StoreError> {
        Ok(names_in(&self.directory)?.into_iter().filter(|name| is_lower_hex(name)).collect())
    }

    pub(super) fn sweep(&self) -> Result<u64, StoreError> {
        if self.temporaries.path().is_dir() { self.temporaries.sweep() } else { Ok(0) }
    }
}
