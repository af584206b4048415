//! What a serving process has counted, in a small file that others read without asking it.
//!
//! Written when a request to a registry has ended, and else a second after the first news: so its cost is nothing beside what it counts, and a
//! process that nobody uses wakes nobody. Made when there is something to write, as a mount that asks the network for nothing should not wait for
//! a file to be made.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use peelfs_registry::Statistics;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::memory;
use crate::error::chain;
use crate::meter::{self, Count, Counts};
use crate::store::Store;

/// How long news wait to be written.
const INTERVAL: Duration = Duration::from_secs(1);

/// The counters of this process.
pub struct Counters {
    store: Arc<Store>,
    /// Nothing if it could not be made.
    file: OnceLock<Option<File>>,
    path: PathBuf,
    /// What a mount's own client has counted. Held while the file is written: what is later stays.
    of_client: Mutex<Option<(Statistics, u64)>>,
    /// Whether something was there: of a process of the same number that was killed.
    is_left: bool,
    /// Those who serve this mount still have the file, and write it.
    waits: AtomicBool,
    /// What others have counted of the same mount, whose file this is then.
    before: OnceLock<Counts>,
}

impl Counters {
    /// New ones, which are known by that process: this one, or who holds the mount that it serves.
    pub fn new(store: Arc<Store>, process: u32) -> Counters {
        Counters::made(store, process, false)
    }

    /// Those of a process that will serve what is mounted: they are not written before [`go_on`](Self::go_on).
    pub(super) fn of_successor(store: Arc<Store>, process: u32) -> Counters {
        Counters::made(store, process, true)
    }

    fn made(store: Arc<Store>, process: u32, waits: bool) -> Counters {
        let path = store.counters().of_process(process);
        let is_left = path.exists();
        Counters {
            store,
            file: OnceLock::new(),
            path,
            of_client: Mutex::default(),
            is_left,
            waits: AtomicBool::new(waits),
            before: OnceLock::new(),
        }
    }

    /// Counts from nothing.
    pub fn begin(&self) {
        if self.is_left && self.file.get().is_none() {
            retire(&self.store, &self.path);
        }
    }

    /// Counts on from what those have left who served the mount before, and are gone.
    pub(super) fn go_on(&self) {
        if let Ok(left) = std::fs::read(&self.path) {
            let _ = self.before.set(Counts::decode(&left).unwrap_or_default());
        }
        self.waits.store(false, Ordering::Relaxed);
    }

    /// The mount is gone. What is still under way for it is not counted any more, and must not be waited for.
    pub(super) fn end(&self) {
        self.refresh();
        if self.before.get().is_some() || matches!(self.file.get(), Some(Some(_))) {
            retire(&self.store, &self.path);
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes them, with what the client of a mount has counted, and the bytes of blobs that were prefetched.
    pub(super) fn write(&self, statistics: Statistics, prefetched: u64) {
        let mut of_client = self.of_client.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, known_prefetched) = of_client.unwrap_or_default();
        if statistics == Statistics::default() && known == statistics {
            return;
        }
        // Who comes late may know less.
        let latest = if statistics.requests < known.requests { known } else { statistics };
        *of_client = Some((latest, prefetched.max(known_prefetched)));
        self.write_as(*of_client);
    }

    /// Writes them, if anything was ever counted.
    pub fn refresh(&self) {
        let of_client = self.of_client.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_as(*of_client);
    }

    fn write_as(&self, of_client: Option<(Statistics, u64)>) {
        if self.waits.load(Ordering::Relaxed) {
            return;
        }
        let mut counts = Counts::here();
        if let Some((statistics, prefetched)) = of_client {
            let Statistics { requests, bytes_received, retries } = statistics;
            counts = counts.with(Count::Requests, requests).with(Count::ReceivedBytes, bytes_received);
            counts = counts.with(Count::Retries, retries).with(Count::PrefetchedBytes, prefetched);
        }
        if let Some(before) = self.before.get() {
            counts.merge(before);
        }
        if counts == Counts::default() {
            return;
        }
        let Some(file) = self.file.get_or_init(|| self.make()) else { return };
        if let Err(error) = file.write_all_at(&counts.encode(), 0) {
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

    /// From now on, news are written soon, for as long as these live, and `told` is called after that; and when nothing was decoded for a while after something was, the memory
    /// that it took is given back. To be called once in a process.
    pub fn keep_fresh(self: &Arc<Self>, threads: &Handle, told: impl Fn() + Send + Sync + 'static) {
        let news = Arc::new(Notify::new());
        let listener = news.clone();
        meter::listen(move || listener.notify_one());
        let (counters, told) = (Arc::downgrade(self), Arc::new(told));
        threads.spawn(async move {
            let mut given_back = 0;
            loop {
                news.notified().await;
                loop {
                    let before = decoded();
                    tokio::time::sleep(INTERVAL).await;
                    let Some(counters) = counters.upgrade() else { return };
                    let now = decoded();
                    let is_calm = now == before && now != given_back;
                    if is_calm {
                        given_back = now;
                    }
                    let told = told.clone();
                    // Some milliseconds, in which this thread would not look for answers of registries.
                    let work = move || {
                        counters.refresh();
                        told();
                        if is_calm {
                            memory::give_back();
                        }
                    };
                    if tokio::task::spawn_blocking(work).await.is_err() {
                        return;
                    }
                    if now == before {
                        break;
                    }
                }
            }
        });
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        self.end();
    }
}

/// Bytes that were decoded in this process.
fn decoded() -> u64 {
    meter::value(Count::DecodedBytes)
}

/// Adds what a process that is gone has counted to what all others have that are.
pub(super) fn retire(store: &Store, path: &Path) {
    if let Err(error) = store.counters().retire(path) {
        tracing::debug!(error = %chain(&error), "the counters of a process that is gone stay behind");
    }
}

/// The counters in that file; nothing if it is not there, as nothing was counted yet, or not whole.
pub(super) fn read(path: &Path) -> Option<Counts> {
    Counts::decode(&std::fs::read(path).ok()?)
}
