//! What a serving process has got over the network, in a small file that others read without asking it.
//!
//! Four little-endian 64-bit numbers: requests, bytes received, retries, bytes of blobs that were prefetched. Written at each request, so its cost is nothing beside
//! what it counts; made at the first, as a mount that asks the network for nothing should not wait for a file to be made.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use peelfs_registry::Statistics;

use crate::store::Store;

/// The counters of one mount.
pub(super) struct Counters {
    /// Nothing if it could not be made.
    file: OnceLock<Option<File>>,
    path: PathBuf,
    /// What others have counted of the same mount.
    before: OnceLock<(Statistics, u64)>,
}

impl Counters {
    /// New ones, of this process.
    pub(super) fn new(store: &Store) -> Counters {
        let path = path_of(store, std::process::id());
        // A process of the same number may have been killed.
        let _ = std::fs::remove_file(&path);
        Counters { file: OnceLock::new(), path, before: OnceLock::new() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Counts on from what a process has left that is gone.
    pub(super) fn go_on_from(&self, store: &Store, process: u32) {
        let left = path_of(store, process);
        if let Some(before) = read(&left) {
            let _ = self.before.set(before);
            self.write(Statistics::default(), 0);
            let _ = std::fs::remove_file(left);
        }
    }

    pub(super) fn write(&self, statistics: Statistics, prefetched: u64) {
        let (before, ahead) = self.before.get().copied().unwrap_or_default();
        let statistics = Statistics {
            requests: statistics.requests + before.requests,
            bytes_received: statistics.bytes_received + before.bytes_received,
            retries: statistics.retries + before.retries,
        };
        let prefetched = prefetched + ahead;
        if statistics == Statistics::default() {
            return;
        }
        let Some(file) = self.file.get_or_init(|| self.make()) else { return };
        let mut bytes = [0; 32];
        let numbers = [statistics.requests, statistics.bytes_received, statistics.retries, prefetched];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        if let Err(error) = file.write_all_at(&bytes, 0) {
            tracing::debug!(%error, "the counters are not up to date");
        }
    }

    fn make(&self) -> Option<File> {
        let make = || File::options().write(true).create(true).truncate(true).open(&self.path);
        let made = make().or_else(|_| {
            self.path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            make()
        });
        made.inspect_err(|error| tracing::warn!(path = %self.path.display(), %error, "what crosses the network is not counted"))
            .ok()
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        if let Some(Some(_)) = self.file.get()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(%error, "the counters stay behind");
        }
    }
}

fn path_of(store: &Store, process: u32) -> PathBuf {
    store.path().join("run").join(format!("{process}.counters"))
}

/// The counters in that file, and the prefetched bytes; nothing if it is not there, as nothing was counted yet, or not whole.
pub(super) fn read(path: &Path) -> Option<(Statistics, u64)> {
    let bytes = std::fs::read(path).ok()?;
    let mut numbers =
        bytes.chunks_exact(8).filter_map(|number| Some(u64::from_le_bytes(number.try_into().ok()?)));
    let [requests, bytes_received, retries] = [numbers.next()?, numbers.next()?, numbers.next()?];
    Some((Statistics { requests, bytes_received, retries }, numbers.next().unwrap_or_default()))
}
