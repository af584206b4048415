//! The table of contents that eStargz and zstd:chunked share: JSON that lists all files of a layer and where their bytes are.
//!
//! Two schemas of one family: the stargz project's ("JTOC", stargz-snapshotter `docs/estargz.md`) and that of the podman family
//! (containers/storage, `pkg/chunked/internal/minimal/compression.go`), which differ in how the end of a payload is told:
//!
//! ```text
//! JTOC      {"type":"reg","offset":…,"innerOffset":…}    a payload ends where the next one begins
//! podman    {"type":"reg","offset":…,"endOffset":…}      a file's end is stated; its chunks end where the next chunk begins
//! ```
//!
//! Decoded space: each regular file begins at a multiple of [`ALIGNMENT`], in the order of the TOC, its chunks one after the other.

mod fault;
mod json;
mod layout;
mod time;

pub use self::fault::{EntryFault, TocError};
pub(super) use self::layout::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK};
pub(super) use self::time::parse as parse_rfc3339;
use super::entry::{Chunk, Entry};
use crate::table::Codec;

/// Where files may begin in the decoded space: at the multiples of a page.
pub const ALIGNMENT: u64 = 4096;

/// Name of the tar entry that holds an eStargz TOC.
pub(super) const TOC_NAME: &[u8] = b"stargz.index.json";

/// What a TOC says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableOfContents {
    /// In the order of the TOC. The landmarks and the TOC of eStargz are not among them.
    pub entries: Vec<Entry>,
    /// Of all files, sorted by decoded offset, without overlaps.
    pub chunks: Vec<Chunk>,
    /// Length of the decoded space in bytes.
    pub decoded_length: u64,
    /// What the layer's author wants to have fetched first, if he says.
    pub prefetch: Option<Landmark>,
    /// A name or link target holds U+FFFD. JSON has no other bytes than UTF-8, and the reference writers put that character in place
    /// of what is none: the archive's own names are most probably others. Only streaming the layer tells them.
    pub names_are_lossy: bool,
}

/// A landmark file at the root of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landmark {
    /// `.prefetch.landmark`: all of the blob before `blob_length` is wanted first.
    Prefetch {
        /// Bytes from the beginning of the blob.
        blob_length: u64,
    },
    /// `.no.prefetch.landmark`: nothing is.
    None,
}

/// What a format says of payloads that its TOC does not.
#[derive(Clone, Copy, Debug)]
pub(super) struct PayloadRules {
    /// No payload reaches beyond this byte of the blob.
    pub end: u64,
    /// How they are compressed.
    pub codec: Codec,
    /// How their ends are told; `None` if the TOC itself shows it.
    pub ends: Option<Ends>,
}

/// How the end of a payload is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ends {
    /// By the beginning of the next: JTOC.
    Implied,
    /// By `endOffset`: podman's schema. Only here can a chunk say that it is all zeros, and no file is a landmark.
    Stated,
}

/// A TOC, and what it says beside the files.
#[derive(Debug)]
pub(super) struct Parsed {
    pub contents: TableOfContents,
    /// Digest of the compressed tar-split data.
    pub tar_split_digest: Option<[u8; 32]>,
}

/// Reads the JSON of a TOC.
///
/// # Errors
/// If it does not make sense. Memory is bounded by a multiple of the JSON's length.
pub(super) fn parse(json: &[u8], rules: PayloadRules) -> Result<Parsed, TocError> {
    json::parse(json, rules)
}

/// Whether an entry of that name is a landmark or the TOC of a layer that the stargz project's tools made: no part of the image.
pub(super) fn is_bookkeeping(path: &[u8]) -> bool {
    layout::is_bookkeeping(path)
}

/// The bytes of a digest, written `sha256:…`; `None` if it is malformed or of another algorithm.
pub(super) fn sha256(text: &str) -> Option<[u8; 32]> {
    let digits = text.strip_prefix("sha256:").filter(|digits| digits.len() == 64)?.as_bytes();
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut digest = [0; 32];
    for (byte, pair) in digest.iter_mut().zip(digits.chunks(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(digest)
}

/// Bytes as hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
