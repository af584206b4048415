//! The one way by which missing chunks arrive.
//!
//! ```text
//! reader ──▶ content: is it here? ──yes──▶ pread, on the reader's thread
//!                 │ no
//!                 ▼
//!            lazy: who already fetches it? ──▶ donors: which other layer has it? ──▶ planner ──▶ source (ranged reads of the blob)
//!                 ▲                                   │ a copy                                   │ piece by piece
//!                 └── wake the readers ◀── mark ◀── write ◀── verify ◀── decode   (delivery)
//! ```
//!
//! Two readers of one missing chunk cause one fetch. What arrives is decoded, verified, written, and then marked in the chunk
//! map, in that order, so that no crash leaves a marked chunk that is not whole.

pub mod archive;
pub mod completion;
pub mod content;
mod delivery;
mod donors;
mod draft_sink;
#[cfg(test)]
mod eviction_tests;
pub mod extract;
mod full_speed;
mod guess;
mod headers;
pub mod index;
mod lazy;
mod link;
pub mod names;
pub mod planner;
pub mod prefetch;
pub mod profile;
pub mod proof;
mod readahead;
mod rebuild;
pub mod referrers;
mod room;
pub mod soci;
pub mod source;
mod span;
mod stored;
#[cfg(test)]
mod testing;
mod threads;
mod toc_image;
pub mod twins;

pub use content::LayerContent;
pub use full_speed::read_together;
pub use lazy::{FetchError, Fetcher};
pub use room::Room;
pub use stored::{image_of_manifest, names_of_same_archives, possible_names};
pub use threads::{NetworkThreads, ThreadStarter};
