//! Counters of what crossed the network, for `status` and for tests.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::observer::{NetworkEvent, NetworkObserver};

/// What a client has done since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// HTTP requests sent, redirect hops and token requests included.
    pub requests: u64,
    /// Bytes of response bodies received, those that had to be thrown away included.
    pub bytes_received: u64,
    /// Attempts made again after a failure.
    pub retries: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    requests: AtomicU64,
    bytes_received: AtomicU64,
    retries: AtomicU64,
    observer: NetworkObserver,
}

impl Counters {
    pub(crate) fn new(observer: NetworkObserver) -> Counters {
        Counters { observer, ..Counters::default() }
    }

    pub(crate) fn request_sent(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn bytes_received(&self, count: usize) {
        self.bytes_received.fetch_add(count as u64, Ordering::Relaxed);
        self.observer.tell(&NetworkEvent::Received(count));
    }

    pub(crate) fn retried(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        self.observer.tell(&NetworkEvent::Retry);
    }

    pub(crate) fn snapshot(&self) -> Statistics {
        Statistics {
            requests: self.requests.load(Ordering::Relaxed),
            bytes_received: self.bytes_received.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }
}
