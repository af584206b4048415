//! What is missing of a layer, fetched while nobody else needs the link, and slowly if that is wished.
//!
//! ```text
//! is it quiet? ──▶ is there room? ──▶ one request ──▶ wait as long as the rate says ──▶ is it quiet? … ──▶ nothing is missing ──▶ proved
//!      └── a reader came: wait until none has waited for QUIET ◀──────────────────────────┘
//! ```
//!
//! One request of at most [`REQUEST`] is under way at once, so that is all that a reader may find before him. Nothing is evicted for it: where
//! the store's budget or its disk has no room, it ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::content::LayerContent;
use super::extract::{EVERYTHING, ExtractError, Progress};
use super::guess::blob_bytes;
use super::index::blocking;
use super::lazy::{FetchError, Purpose, Waiting};
use super::planner::Limits;

/// Nobody has waited for the network for so long: it is quiet.
pub const QUIET: Duration = Duration::from_secs(1);
/// Bytes of the blob that are asked for at once, unless one chunk has more.
const REQUEST: u64 = 1 << 20;
/// After so many requests it is looked again whether there is room.
const LOOK: usize = 32;

/// Why a layer does not become complete for now.
#[derive(Debug, thiserror::Error)]
pub enum CompletionError {
    /// Something did not come, or is not what was promised.
    #[error(transparent)]
    Extract(#[from] ExtractError),
    /// The store's budget, or its disk.
    #[error(
        "{layer}: neither the store's disk nor its budget (`peel store --budget`) may be filled with {bytes} bytes more"
    )]
    NoRoom {
        /// The layer's digest.
        layer: Arc<str>,
        /// What is missing, decoded.
        bytes: u64,
    },
}

impl CompletionError {
    /// Whether it can never come to anything.
    pub fn is_final(&self) -> bool {
        matches!(self, CompletionError::Extract(ExtractError::Poisoned { .. }))
    }
}

/// Who sees to it that nobody is disturbed.
pub struct Courtesy {
    /// Bytes per second at most.
    rate: Option<u64>,
    /// Counts what readers elsewhere missed.
    elsewhere: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Told whether it is quiet, so that something is fetched.
    tell: Box<dyn Fn(bool) + Send + Sync>,
    seen: Option<(u64, u64)>,
}

impl Courtesy {
    /// At most so many bytes per second of blobs. `elsewhere` counts what readers of others missed on this machine; `tell` is told whether
    /// something is fetched now.
    pub fn new(
        rate: Option<u64>,
        elsewhere: Arc<dyn Fn() -> u64 + Send + Sync>,
        tell: impl Fn(bool) + Send + Sync + 'static,
    ) -> Courtesy {
        Courtesy { rate, elsewhere, tell: Box::new(tell), seen: None }
    }

    /// Waits until nobody waits for the network, and nobody has for a while.
    async fn turn(&mut self, readers: &mut watch::Receiver<Waiting>) {
        loop {
            let elsewhere = self.elsewhere.clone();
            let missed = blocking(move || elsewhere()).await;
            let waiting = *readers.borrow_and_update();
            let seen = (waiting.served, missed);
            if waiting.now == 0 && self.seen == Some(seen) {
                break;
            }
            self.seen = Some(seen);
            (self.tell)(false);
            tokio::time::sleep(QUIET).await;
        }
        (self.tell)(true);
    }

    /// Waits until so many bytes, which were begun to be fetched then, are no more than the rate allows.
    async fn keep_to_rate(&self, bytes: u64, begun: Instant) {
        if let Some(rate) = self.rate {
            tokio::time::sleep_until(begun + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64))
                .await;
        }
    }
}

impl LayerContent {
    /// Brings all that is missing, behind everybody else, and has the layer proved. If it is dropped, what is under way comes still.
    ///
    /// # Errors
    /// [`CompletionError`]; what came stays.
    pub async fn complete(self: &Arc<Self>, courtesy: &mut Courtesy) -> Result<(), CompletionError> {
        let limits = Limits { request: REQUEST, ..Limits::default() };
        loop {
            let missing = self.missing(EVERYTHING);
            if missing.is_empty() {
                break;
            }
            self.has_room(&missing).await?;
            let lazy = self
                .lazy()
                .ok_or_else(|| ExtractError::from(FetchError::NoSource { layer: self.layer().clone() }))?;
            let mut readers = lazy.fetcher().waiting();
            for portion in self.portions(&missing, limits).into_iter().take(LOOK) {
                courtesy.turn(&mut readers).await;
                if self.is_poisoned() {
                    let reason = self.poison().unwrap_or_default().to_owned();
                    return Err(ExtractError::Poisoned { reason }.into());
                }
                let begun = Instant::now();
                let bytes = self.blob_bytes_missing(&portion);
                let brought = self.bring_portion(lazy, &portion, Purpose::Completion).await;
                brought.map_err(ExtractError::from)?;
                courtesy.keep_to_rate(bytes, begun).await;
            }
        }
        let nobody: Progress = Arc::new(|_| {});
        self.extract(&nobody).await?;
        Ok(())
    }

    async fn has_room(&self, missing: &[u32]) -> Result<(), CompletionError> {
        let Some(room) = self.lazy().and_then(|lazy| lazy.fetcher().room().cloned()) else { return Ok(()) };
        let bytes = self.bytes_missing(missing);
        if blocking(move || room.has_space_beside_all(bytes)).await {
            return Ok(());
        }
        Err(CompletionError::NoRoom { layer: self.layer().clone(), bytes })
    }

    /// Bytes of the blob that those of these chunks need that are not here.
    fn blob_bytes_missing(&self, numbers: &[u32]) -> u64 {
        let missing = numbers.iter().map(|number| *number as usize).filter(|number| !self.has_chunk(*number));
        blob_bytes(self.table().chunks(), missing)
    }
}
