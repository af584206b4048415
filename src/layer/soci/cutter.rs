//! Cuts a layer into the spans of a zTOC while it is streamed.
//!
//! ```text
//! blob     │ header │ ▪ block │ block │ block ▪ block │ …          ▪ a checkpoint: the first block that begins after more than
//! decoded           0 ──── more than a span ──▶ …                     a span's bytes since the last one
//! digest            └── of the bytes up to the next checkpoint ──┘    with the byte that both share
//! ```
//!
//! The reference cuts the same way, and where it cuts depends on the blob and the size of a span alone: not on the pieces in which the
//! blob arrives. Two things keep it so. A decoder stops at blocks only from a decoded offset on that it was stopped at; and a block that
//! begins right there does not count. An uncompressed layer is cut at multiples of the size.
//!
//! A checkpoint counts once something is decoded after it: so no span is empty, and what ends a member is in its last span.

use std::io;
use std::mem;

use sha2::{Digest as _, Sha256};

use super::checkpoints::{GzipCheckpoint, gzip_checkpoints, uncompressed_checkpoints};
use super::ztoc::{CompressionAlgorithm, CompressionInfo, MAXIMUM_ZTOC};
use crate::layer::compression::{Boundary, Compression, Progress, Stop};
use crate::layer::gzip::checkpoint::WINDOW;
use crate::layer::stream::Cutter;

/// Bytes of the blob that are kept after they were decoded: a checkpoint lies up to 63 bits before them, and in the byte before that.
const TAIL: u64 = 16;
/// Most checkpoints; more would make a zTOC longer than any that is read.
const MOST_CHECKPOINTS: usize = MAXIMUM_ZTOC as usize / (WINDOW + 32);

struct Cut {
    blob_offset: u64,
    decoded_offset: u64,
    bits: u8,
    window: Vec<u8>,
}

impl Cut {
    fn checkpoint(&self) -> GzipCheckpoint<'_> {
        GzipCheckpoint {
            compressed_offset: self.blob_offset,
            uncompressed_offset: self.decoded_offset,
            bits: self.bits,
            window: &self.window,
        }
    }
}

/// A checkpoint after which nothing is decoded yet.
struct Pending {
    cut: Cut,
    /// Digest of the span that ends with it.
    ended: [u8; 32],
    /// Of the span that begins with it.
    begun: Sha256,
}

/// Watches the decoder of one layer.
pub(super) struct SpanCutter {
    span_size: u64,
    compression: Compression,
    consumed: u64,
    decoded: u64,
    /// The first is there once the header was read.
    cuts: Vec<Cut>,
    pending: Option<Pending>,
    /// Of the spans that have ended.
    digests: Vec<[u8; 32]>,
    /// Of the span that goes on.
    hasher: Sha256,
    /// Bytes of the blob that are in no digest yet, and where they begin.
    recent: Vec<u8>,
    hashed: u64,
    is_full: bool,
}

impl SpanCutter {
    /// At the beginning of a layer that is cut after `span_size` decoded bytes, at least 1.
    pub fn new(span_size: u64) -> SpanCutter {
        SpanCutter {
            span_size: span_size.max(1),
            compression: Compression::None,
            consumed: 0,
            decoded: 0,
            cuts: Vec::new(),
            pending: None,
            digests: Vec::new(),
            hasher: Sha256::new(),
            recent: Vec::new(),
            hashed: 0,
            is_full: false,
        }
    }

    /// Where the span begins to which the next decoded byte belongs.
    fn last_cut(&self) -> Option<u64> {
        let pending = self.pending.as_ref().map(|pending| &pending.cut);
        pending.or(self.cuts.last()).map(|cut| cut.decoded_offset)
    }

    /// Decoded bytes since then.
    fn span_length(&self) -> u64 {
        self.decoded - self.last_cut().unwrap_or(0)
    }

    /// Gives the bytes of the blob before `end` to the digests of the spans that they are in.
    fn hash_until(&mut self, end: u64) {
        let count = usize::try_from(end.saturating_sub(self.hashed)).unwrap_or(usize::MAX);
        let count = count.min(self.recent.len());
        // What is before the first checkpoint is a header, and in no span.
        if !self.cuts.is_empty() {
            self.hasher.update(&self.recent[..count]);
            if let Some(pending) = &mut self.pending {
                pending.begun.update(&self.recent[..count]);
            }
        }
        self.recent.drain(..count);
        self.hashed += count as u64;
    }

    /// The blob offset of the byte after the one in which a boundary lies, and how many of that one's bits come after it.
    fn place(&self, unused_bits: usize) -> (u64, u8) {
        // Both are less than 64.
        (self.consumed - (unused_bits / 8) as u64, (unused_bits % 8) as u8)
    }

    fn propose(&mut self, unused_bits: usize, window: Vec<u8>) {
        let (blob_offset, bits) = self.place(unused_bits);
        let mut begun = Sha256::new();
        if bits != 0 {
            let shared = (blob_offset - 1).checked_sub(self.hashed).and_then(|at| usize::try_from(at).ok());
            // A span has more than one byte, so the byte is one of the tail.
            begun.update(shared.and_then(|at| self.recent.get(at..=at)).unwrap_or_default());
        }
        self.hash_until(blob_offset);
        let cut = Cut { blob_offset, decoded_offset: self.decoded, bits, window };
        if self.cuts.is_empty() {
            self.cuts.push(cut);
            return;
        }
        let ended = self.hasher.clone().finalize().into();
        self.pending = Some(Pending { cut, ended, begun });
    }

    fn settle(&mut self) {
        let Some(Pending { cut, ended, begun }) = self.pending.take() else { return };
        if self.cuts.len() == MOST_CHECKPOINTS {
            self.is_full = true;
            return;
        }
        self.hasher = begun;
        self.digests.push(ended);
        self.cuts.push(cut);
    }

    /// How the layer of so many bytes is read from within; nothing if nothing was decoded, or it has more checkpoints than a zTOC holds.
    pub fn finish(mut self, blob_size: u64) -> Option<CompressionInfo> {
        self.hash_until(u64::MAX);
        if self.is_full || self.decoded == 0 || self.cuts.is_empty() {
            return None;
        }
        let mut span_digests = mem::take(&mut self.digests);
        span_digests.push(self.hasher.finalize().into());
        let (algorithm, checkpoints) = match self.compression {
            Compression::Gzip => {
                let bytes = gzip_checkpoints(self.span_size, self.cuts.iter().map(Cut::checkpoint));
                (CompressionAlgorithm::Gzip, bytes)
            }
            Compression::None => {
                let bytes = uncompressed_checkpoints(self.span_size, blob_size);
                (CompressionAlgorithm::Uncompressed, bytes)
            }
            Compression::Zstd => return None,
        };
        // No more than `MOST_CHECKPOINTS`.
        let max_span_id = (self.cuts.len() - 1) as u32;
        Some(CompressionInfo { algorithm, max_span_id, span_digests, checkpoints })
    }
}

impl Cutter for SpanCutter {
    fn begins(&mut self, compression: Compression) {
        self.compression = compression;
        if compression == Compression::None {
            self.propose(0, Vec::new());
        }
    }

    fn received(&mut self, piece: &[u8]) {
        self.hash_until(self.consumed.saturating_sub(TAIL));
        self.recent.extend_from_slice(piece);
    }

    fn stop(&self) -> Stop {
        let is_due = self.pending.is_none() && self.span_length() >= self.span_size;
        match self.compression {
            Compression::Gzip if self.cuts.is_empty() || is_due => Stop::InMembers,
            _ => Stop::Nowhere,
        }
    }

    fn room(&self) -> u64 {
        match self.span_size.saturating_sub(self.span_length()) {
            0 => u64::MAX,
            left => left,
        }
    }

    fn advanced(&mut self, progress: Progress, boundary: Option<Boundary>) -> io::Result<bool> {
        if progress.produced > 0 {
            self.settle();
        }
        self.consumed += progress.consumed as u64;
        self.decoded += progress.produced as u64;
        if self.is_full {
            return Ok(false);
        }
        let is_open = self.pending.is_none() && !self.cuts.is_empty();
        match (self.compression, boundary) {
            (Compression::Gzip, Some(Boundary { unused_bits, checkpoint: Some(checkpoint) }))
                if self.cuts.is_empty() || (is_open && self.span_length() > self.span_size) =>
            {
                self.propose(unused_bits, checkpoint.window);
            }
            (Compression::None, _) if is_open && self.span_length() == self.span_size => {
                self.propose(0, Vec::new());
            }
            _ => {}
        }
        Ok(false)
    }
}
