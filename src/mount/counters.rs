//! What a serving process has got over the network, in a small file that others read without asking it.
//!
//! Three little-endian 64-bit numbers: requests, bytes received, retries. Written at each request, so its cost is nothing beside
//! what it counts.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use peelfs_registry::Statistics;

use crate::store::{Store, StoreError};

/// The counters of one mount.
pub(super) struct Counters {
    file: File,
    path: PathBuf,
}

impl Counters {
    /// New ones, of this process.
    pub(super) fn create(store: &Store) -> Result<Counters, StoreError> {
        let directory = store.path().join("run");
        if let Err(error) = std::fs::create_dir(&directory)
            && error.kind() != std::io::ErrorKind::AlreadyExists
        {
            return Err(StoreError::from_io("make", &directory, error));
        }
        let path = directory.join(format!("{}.counters", std::process::id()));
        let file = File::options().write(true).create(true).truncate(true).open(&path);
        Ok(Counters { file: file.map_err(|error| StoreError::from_io("make", &path, error))?, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn write(&self, statistics: Statistics) {
        let mut bytes = [0; 24];
        let numbers = [statistics.requests, statistics.bytes_received, statistics.retries];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        if let Err(error) = self.file.write_all_at(&bytes, 0) {
            tracing::debug!(%error, "the counters are not up to date");
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, "the counters stay behind");
        }
    }
}

/// The counters in that file; nothing if it is not there or not whole.
pub(super) fn read(path: &Path) -> Option<Statistics> {
    let bytes = std::fs::read(path).ok()?;
    let mut numbers =
        bytes.chunks_exact(8).filter_map(|number| Some(u64::from_le_bytes(number.try_into().ok()?)));
    Some(Statistics { requests: numbers.next()?, bytes_received: numbers.next()?, retries: numbers.next()? })
}
