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
    /// What was there: of a process of the same number that was killed, or of who served this mount before.
    left: Option<Vec<u8>>,
    /// What others have counted of the same mount, whose file this is then.
    before: OnceLock<(Statistics, u64)>,
}

impl Counters {
    /// New ones, of the mount that is known by that process.
    pub(super) fn new(store: &Store, process: u32) -> Counters {
        let path = store.path().join("run").join(format!("{process}.counters"));
        let left = std::fs::read(&path).ok();
        Counters { file: OnceLock::new(), path, left, before: OnceLock::new() }
    }

    /// Counts from nothing.
    pub(super) fn begin(&self) {
        if self.left.is_some() && self.file.get().is_none() {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    /// Counts on from what those have left who served the mount before.
    pub(super) fn go_on(&self) {
        if let Some(left) = &self.left {
            let _ = self.before.set(parse(left).unwrap_or_default());
        }
    }

    /// The mount is gone. What is still under way for it is not counted any more, and must not be waited for.
    pub(super) fn end(&self) {
        let is_there = self.before.get().is_some() || matches!(self.file.get(), Some(Some(_)));
        if is_there
            && let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::debug!(%error, "the counters stay behind");
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
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
        // All of it is written at once, and what is there is not to be lost before.
        let make = || File::options().write(true).create(true).truncate(false).open(&self.path);
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
        self.end();
    }
}

/// The counters in that file, and the prefetched bytes; nothing if it is not there, as nothing was counted yet, or not whole.
pub(super) fn read(path: &Path) -> Option<(Statistics, u64)> {
    parse(&std::fs::read(path).ok()?)
}

fn parse(bytes: &[u8]) -> Option<(Statistics, u64)> {
    let mut numbers =
        bytes.chunks_exact(8).filter_map(|number| Some(u64::from_le_bytes(number.try_into().ok()?)));
    let [requests, bytes_received, retries] = [numbers.next()?, numbers.next()?, numbers.next()?];
    Some((Statistics { requests, bytes_received, retries }, numbers.next().unwrap_or_default()))
}
