//! SOCI (soci-snapshotter, `docs/`): an index of an ordinary layer that lies beside it, so that it is read lazily as it is.
//!
//! ```text
//! image manifest ──annotation──▶ SOCI index manifest ──a descriptor for each layer──▶ zTOC      index, ztoc
//!
//! blob    │ gzip header │ span 0 │ span 1 │ … │ span n │    a span begins at a checkpoint of the zTOC, between two deflate blocks; spans
//! decoded               │ tar:  header, content, header, …│ overlap by one byte of the blob where a block begins within a byte
//! ```
//!
//! The zTOC is a flatbuffer ([`read`], [`write`]): the headers of the tar and where each content begins in it, the checkpoints
//! ([`checkpoints`]), and a digest of each span's bytes in the blob. Uncompressed layers are cut into spans of one length ([`spans`]).
//!
//! A zTOC becomes the entries and chunks of its layer ([`SociContents`]). It may lie about the archive: so what it says of a file is held
//! against the file's headers when that is first read ([`headers`]).

pub mod checkpoints;
mod contents;
mod fault;
pub mod headers;
pub mod index;
mod read;
mod schema;
pub mod spans;
mod write;
pub mod ztoc;

#[cfg(test)]
mod tests;

pub use self::contents::SociContents;
pub use self::fault::{CheckpointFault, FileFault, Shortfall, SociError, SpanFault};
