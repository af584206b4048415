//! Open data files of large files, shared by all layers of a store and bounded in number: an image may have thousands.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

/// How many descriptors are kept open when nobody else holds them.
const CAPACITY: NonZeroUsize = NonZeroUsize::new(64).expect("64 is not 0");

/// A layer as it is open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Owner(u64);

impl Owner {
    /// One that was never given before in this process.
    pub(super) fn unique() -> Owner {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Owner(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The most recently used descriptors.
#[derive(Debug)]
pub(super) struct Descriptors {
    files: Mutex<LruCache<(Owner, u32), Arc<File>>>,
}

impl Descriptors {
    pub(super) fn new() -> Descriptors {
        Descriptors { files: Mutex::new(LruCache::new(CAPACITY)) }
    }

    /// The file of that number, if it is open.
    pub(super) fn get(&self, owner: Owner, number: u32) -> Option<Arc<File>> {
        self.files().get(&(owner, number)).cloned()
    }

    /// Keeps a file open. If another thread was quicker, that one's is given back instead, so that all share it.
    pub(super) fn keep(&self, owner: Owner, number: u32, file: File) -> Arc<File> {
        Arc::clone(self.files().get_or_insert((owner, number), || Arc::new(file)))
    }

    /// Closes what that layer has open, except what others still hold.
    pub(super) fn close(&self, owner: Owner) {
        let mut files = self.files();
        let numbers: Vec<_> = files.iter().map(|(key, _)| *key).filter(|(of, _)| *of == owner).collect();
        for key in numbers {
            files.pop(&key);
        }
    }

    fn files(&self) -> MutexGuard<'_, LruCache<(Owner, u32), Arc<File>>> {
        // Nothing panics while it is locked; and if it did, the cache would be whole.
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_open_descriptors_is_bounded_and_an_owner_closes_its_own() {
        let descriptors = Descriptors::new();
        let (one, other) = (Owner::unique(), Owner::unique());
        let held: Vec<_> =
            (0..100).map(|n| descriptors.keep(one, n, tempfile::tempfile().unwrap())).collect();
        let open = |owner| (0..100).filter(|n| descriptors.get(owner, *n).is_some()).count();
        assert_eq!(open(one), CAPACITY.get());
        assert!(held.iter().all(|file| file.metadata().is_ok()), "what is held stays open");
        descriptors.keep(other, 0, tempfile::tempfile().unwrap());
        descriptors.close(one);
        assert_eq!((open(one), open(other)), (0, 1));
    }
}
