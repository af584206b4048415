//! A lock for each of many things, made when it is wanted.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

/// Locks by what they are for.
#[derive(Debug)]
pub(super) struct Locks<K>(Mutex<HashMap<K, Arc<Mutex<()>>>>);

impl<K> Default for Locks<K> {
    fn default() -> Locks<K> {
        Locks(Mutex::default())
    }
}

impl<K: Eq + Hash> Locks<K> {
    /// Runs `work` while nobody else runs some for the same.
    pub fn alone<T>(&self, what: K, work: impl FnOnce() -> T) -> T {
        let lock = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds are made again.
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            all.entry(what).or_default().clone()
        };
        let _alone = lock.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }
}
