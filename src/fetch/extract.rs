//! From lazy to extracted: all of a layer is brought, or those parts of it that are asked for.
//!
//! ```text
//! the layer's turn ─▶ what is missing? ─▶ large requests, in the order of the blob ─▶ on disk ─▶ proved ─▶ recorded
//!       │                    ▲                                │
//!       │ another process    └─────── something was evicted ──┘
//!       └ has it: wait, and tell how far it got
//! ```
//!
//! The work is done once, however many processes ask for it: whoever has the layer's turn does it, the others find it done. What was
//! fetched stays, whatever ends this: a cancelled extraction goes on where it stopped.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::oneshot;

use super::content::LayerContent;
use super::index::blocking;
use super::lazy::{FetchError, Lazy, Purpose};
use super::planner::{self, Limits};
use super::proof::{ProofError, Standing};
use super::span;
use crate::store::{FileLock, StoreError, Verdict};

/// Requests of one layer under way at once.
const REQUESTS: usize = 3;
/// How often is looked again for what was evicted meanwhile.
const ROUNDS: u32 = 4;
/// All of the decoded space, however long it is.
pub(super) const EVERYTHING: &[Range<u64>] = std::slice::from_ref(&(0..u64::MAX));
/// Pause between two words about the progress.
const TELL: Duration = Duration::from_millis(250);

/// Why a layer is not extracted. What was fetched stays.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// Something did not come, or is not what was promised.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is here, but its archive could not be put together.
    #[error("all of it is here, but it could not be proved")]
    Proof(#[from] ProofError),
    /// Its archive is another than its table of contents says.
    #[error("it is false, so nothing of it is read: {reason}")]
    Poisoned {
        /// What is wrong, naming an entry if it is one.
        reason: String,
    },
    /// The store has no room for it beside what others read.
    #[error("what was fetched was evicted again and again; give the store more room")]
    Evicted,
}

/// What happens to a layer, for a progress bar. Bytes are those of its content, decoded.
#[derive(Clone, Debug)]
pub enum Event {
    /// So many bytes are missing, and begin to come; another process may bring them.
    Started(Arc<str>, u64),
    /// So many of them have come.
    Fetched(Arc<str>, u64),
    /// All of it is here, and is held against its archive.
    Proving(Arc<str>),
    /// It is extracted, or what was asked for of it is here.
    Done(Arc<str>),
}

/// Who is told of [`Event`]s.
pub type Progress = Arc<dyn Fn(Event) + Send + Sync>;

impl LayerContent {
    /// Brings all of the layer, proves it, and records that. Gives how it stands, which is never poisoned.
    ///
    /// # Errors
    /// [`ExtractError`].
    pub async fn extract(self: &Arc<Self>, progress: &Progress) -> Result<Standing, ExtractError> {
        if self.files().chunk_map.is_none() {
            progress(Event::Done(self.layer().clone()));
            return Ok(Standing::Streamed);
        }
        let _turn = self.turn(EVERYTHING, progress).await?;
        self.bring(EVERYTHING, Purpose::Extraction, progress).await?;
        progress(Event::Proving(self.layer().clone()));
        let content = self.clone();
        let standing = blocking(move || {
            content.checkpoint()?;
            let standing = content.prove()?;
            if let (Standing::Streamed | Standing::Judged(Verdict::Proved { .. }), Some(prover)) =
                (&standing, content.prover())
            {
                prover.record_extracted()?;
            }
            Ok::<_, ExtractError>(standing)
        });
        match standing.await? {
            Standing::Judged(Verdict::Poisoned { reason, .. }) => Err(ExtractError::Poisoned { reason }),
            Standing::Incomplete | Standing::Unproved => Err(ExtractError::Evicted),
            standing => {
                progress(Event::Done(self.layer().clone()));
                Ok(standing)
            }
        }
    }

    /// Brings these parts of the decoded space. It is proved only if all of the layer is here then.
    ///
    /// # Errors
    /// [`ExtractError`].
    pub async fn extract_parts(
        self: &Arc<Self>,
        parts: &[Range<u64>],
        progress: &Progress,
    ) -> Result<(), ExtractError> {
        if self.missing(parts).is_empty() {
            return Ok(());
        }
        let _turn = self.turn(parts, progress).await?;
        self.bring(parts, Purpose::Background, progress).await?;
        let content = self.clone();
        blocking(move || content.checkpoint()).await?;
        progress(Event::Done(self.layer().clone()));
        Ok(())
    }

    /// Waits for the right to bring the layer, and tells meanwhile what another process brings of these parts.
    async fn turn(
        self: &Arc<Self>,
        parts: &[Range<u64>],
        progress: &Progress,
    ) -> Result<Option<FileLock>, ExtractError> {
        let Some(prover) = self.prover() else { return Ok(None) };
        let place = prover.place()?;
        let turn = blocking(move || place.lock_for_extraction());
        Ok(Some(self.while_telling(self.missing(parts), progress, turn).await?))
    }

    async fn bring(
        self: &Arc<Self>,
        parts: &[Range<u64>],
        purpose: Purpose,
        progress: &Progress,
    ) -> Result<(), ExtractError> {
        for _ in 0..ROUNDS {
            if self.is_poisoned() {
                let reason = self.poison().unwrap_or_default().to_owned();
                return Err(ExtractError::Poisoned { reason });
            }
            let missing = self.missing(parts);
            if missing.is_empty() {
                return Ok(());
            }
            let lazy = self.lazy().ok_or_else(|| FetchError::NoSource { layer: self.layer().clone() })?;
            let work = self.bring_chunks(lazy, &missing, purpose);
            self.while_telling(missing.clone(), progress, work).await?;
        }
        Err(ExtractError::Evicted)
    }

    async fn bring_chunks(
        self: &Arc<Self>,
        lazy: &Lazy,
        missing: &[u32],
        purpose: Purpose,
    ) -> Result<(), FetchError> {
        let portions = self.portions(missing, planner::BACKGROUND).into_iter();
        let work = portions.map(|portion| async move { self.bring_portion(lazy, &portion, purpose).await });
        futures_util::stream::iter(work).buffer_unordered(REQUESTS).try_collect().await
    }

    /// Brings what is missing of one portion.
    pub(super) async fn bring_portion(
        self: &Arc<Self>,
        lazy: &Lazy,
        portion: &[u32],
        purpose: Purpose,
    ) -> Result<(), FetchError> {
        let (sender, receiver) = oneshot::channel();
        // Nobody listens to an extraction that was cancelled.
        let done = Box::new(move |result| drop(sender.send(result)));
        lazy.request_for_nobody(self, portion, purpose, done);
        receiver.await.unwrap_or_else(|_| {
            let cause = Arc::new(std::io::Error::other("the thread that fetched it died"));
            Err(FetchError::Threads { layer: self.layer().clone(), cause })
        })
    }

    /// What is asked for at once, in the order of the blob: the chunks of one request, or those of a span that is long.
    pub(super) fn portions(&self, missing: &[u32], limits: Limits) -> Vec<Vec<u32>> {
        let chunks = self.table().chunks();
        let (mut portions, mut others) = (Vec::new(), Vec::new());
        let mut long = 0..0;
        for number in missing.iter().copied() {
            if !long.contains(&(number as usize)) {
                match span::long_span(chunks, number as usize) {
                    Some(range) => {
                        long = range;
                        portions.push(Vec::new());
                    }
                    None => {
                        others.push(number);
                        continue;
                    }
                }
            }
            if let Some(portion) = portions.last_mut() {
                portion.push(number);
            }
        }
        let requests = planner::plan(chunks, others, limits);
        portions.extend(requests.into_iter().map(|request| request.chunks));
        portions.sort_by_key(|portion| {
            let first = portion.first().and_then(|number| chunks.get(*number as usize));
            first.map(planner::blob_range).unwrap_or_default().start
        });
        portions
    }

    /// The chunks of these parts that are not here, each once, in ascending order.
    pub(super) fn missing(&self, parts: &[Range<u64>]) -> Vec<u32> {
        let numbers = parts.iter().flat_map(|part| self.table().chunks_of(part.clone()));
        let mut missing: Vec<u32> =
            numbers.filter(|number| !self.has_chunk(*number)).map(|number| number as u32).collect();
        missing.sort_unstable();
        missing.dedup();
        missing
    }

    /// Decoded bytes of those of the chunks that are not here.
    pub(super) fn bytes_missing(&self, chunks: &[u32]) -> u64 {
        let missing = chunks.iter().map(|number| *number as usize).filter(|number| !self.has_chunk(*number));
        missing
            .filter_map(|number| self.table().chunks().get(number))
            .map(|chunk| chunk.decoded_length.get())
            .fold(0, u64::saturating_add)
    }

    /// Waits for `work`, and tells meanwhile how many of these chunks have come, whoever brings them.
    async fn while_telling<T>(
        &self,
        chunks: Vec<u32>,
        progress: &Progress,
        work: impl Future<Output = T>,
    ) -> T {
        let all = self.bytes_missing(&chunks);
        let mut work = std::pin::pin!(work);
        if all == 0 {
            return work.await;
        }
        progress(Event::Started(self.layer().clone(), all));
        loop {
            match tokio::time::timeout(TELL, &mut work).await {
                Ok(done) => return done,
                Err(_) => {
                    let fetched = all.saturating_sub(self.bytes_missing(&chunks));
                    progress(Event::Fetched(self.layer().clone(), fetched));
                }
            }
        }
    }
}
