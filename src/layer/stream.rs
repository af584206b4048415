//! A layer without a table of contents: its blob is streamed once, and in that pass decoded, hashed twice, and read.
//!
//! ```text
//!            input thread                     buffers                 caller's thread
//!   pieces ─▶ blob hash ─▶ decoder ─▶ full ══════════════▶ diff hash, chunk digests ─▶ tar reader ─▶ sink
//!                             ▲                                  │
//!                    │        └──────────── empty ◀══════════════┘
//!                    └─▶ spans, checkpoints
//! ```
//!
//! The buffers are made once and go round; their number bounds the memory, and lets either side wait for the other. Whichever side
//! fails hangs up, and the other stops at its next buffer. What follows the end of the tar counts for both hashes.
//!
//! In the same pass the blob is cut into spans ([`spans`]), so that any part of the layer can be got again by ranges once its
//! decoded bytes were dropped.
//!
//! The sink is given bytes before the digests are known to match: nothing that it keeps may be used unless
//! [`unpack_stream`] succeeds.

mod buffers;
mod cutter;
mod fault;
pub mod spans;

#[cfg(test)]
mod span_tests;
#[cfg(test)]
mod tests;

use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use sha2::{Digest as _, Sha256};

use self::buffers::{BUFFERS, Buffers, Decoded};
pub(in crate::layer) use self::cutter::Cutter;
pub use self::fault::StreamError;
use self::spans::SpanCutter;
use peelfs_registry::digest::Algorithm;
use peelfs_registry::{Digest, Digester};

use super::compression::{Compression, Decode};
use super::entry::Chunk;
use super::gzip::checkpoint::CheckpointWriter;
use super::tar::{Limits, SinkError, TarReader, TarSink};

/// Most bytes that a layer may decode to, unless the caller knows better: what a bomb may fill of the disk.
pub const MAXIMUM_DECODED: u64 = 128 << 30;

/// What takes the entries of a layer and their data.
pub use super::tar::TarSink as LayerSink;

/// What is known of a layer before it arrives.
#[derive(Clone, Debug)]
pub struct StreamExpectation {
    /// Digest of the blob, as its descriptor says.
    pub blob_digest: Digest,
    /// Bytes of the blob, as its descriptor says.
    pub blob_size: u64,
    /// Digest of the decoded blob, as the image's configuration says. Without it, SHA-256 is computed.
    pub diff_id: Option<Digest>,
    /// Most bytes that it may decode to.
    pub maximum_decoded: u64,
}

/// What a layer proved to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Streamed {
    /// Digest of the decoded blob.
    pub diff_id: Digest,
    /// Bytes of the decoded blob.
    pub decoded_length: u64,
    /// How it was compressed.
    pub compression: Compression,
    /// How its parts are got again, in the decoded space that is the archive itself: they cover it without a gap.
    pub chunks: Vec<Chunk>,
}

/// Unpacks a layer whose blob arrives as `input`, in pieces of any size, into `sink`. `checkpoints` gets the checkpoints that its
/// chunks need, in the format of [`checkpoint`](super::gzip::checkpoint), or nothing if they need none. `progress` is told how many
/// bytes of the blob have arrived so far.
///
/// `input` is asked for pieces on a thread of its own. That thread is joined, so a piece that never comes holds up the return even
/// after a failure of the sink: give `input` a deadline.
///
/// # Errors
/// If the blob, or what it decodes to, is not what was expected, or cannot be read or stored. What the sink was given is worthless then.
pub fn unpack_stream<I, B, E>(
    input: I,
    expected: &StreamExpectation,
    sink: &mut dyn TarSink,
    checkpoints: &mut (dyn Write + Send),
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Streamed, StreamError>
where
    I: Iterator<Item = Result<B, E>> + Send,
    B: AsRef<[u8]>,
    E: Into<SinkError>,
{
    let cutter = SpanCutter::new(CheckpointWriter::new(checkpoints));
    let (read, cutter, compression) = unpack_cut(input, expected, cutter, sink, progress)?;
    let cuts = cutter.finish(compression).map_err(StreamError::Checkpoint)?;
    let chunks = cuts.chunks(&read.parts);
    Ok(Streamed { diff_id: read.diff_id, decoded_length: read.decoded_length, compression, chunks })
}

/// Unpacks a layer like [`unpack_stream`], cut by any `cutter`, which is given back with what was found.
///
/// # Errors
/// As there.
pub(in crate::layer) fn unpack_cut<I, B, E, C>(
    input: I,
    expected: &StreamExpectation,
    cutter: C,
    sink: &mut dyn TarSink,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<(Whole, C, Compression), StreamError>
where
    I: Iterator<Item = Result<B, E>> + Send,
    B: AsRef<[u8]>,
    E: Into<SinkError>,
    C: Cutter,
{
    let (full_sender, full) = sync_channel(BUFFERS);
    let (empty_sender, empty) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        // The channel has room for all of them, and its receiver is right here.
        let _ = empty_sender.send(Vec::new());
    }
    thread::scope(|scope| {
        let decoding = thread::Builder::new()
            .name("layer-decode".into())
            .spawn_scoped(scope, || {
                decode_input(input, expected, cutter, progress, Buffers::new(full_sender, empty))
            })
            .map_err(StreamError::Thread)?;
        let read = read_decoded(full, empty_sender, expected, sink);
        let decoded = match decoding.join() {
            Ok(decoded) => decoded,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        // A reader that failed hung up on the decoder, which then has nothing to say.
        let read = read?;
        // Only a reader that failed hangs up.
        let (cutter, compression) =
            decoded?.ok_or_else(|| StreamError::Sink("the reader of the layer is gone".into()))?;
        Ok((read.finish(expected.diff_id.as_ref())?, cutter, compression))
    })
}

/// The decoder's side: hashes, decodes and cuts what arrives. Nothing comes of it if the reader hung up.
fn decode_input<I, B, E, C>(
    input: I,
    expected: &StreamExpectation,
    mut cutter: C,
    progress: &(dyn Fn(u64) + Sync),
    mut buffers: Buffers,
) -> Result<Option<(C, Compression)>, StreamError>
where
    I: Iterator<Item = Result<B, E>>,
    B: AsRef<[u8]>,
    E: Into<SinkError>,
    C: Cutter,
{
    let size = expected.blob_size;
    let mut hasher = expected.blob_digest.digester();
    let mut received = 0_u64;
    // The first bytes, until there are enough to tell the compression.
    let mut first = Vec::new();
    let mut decoder: Option<(Compression, Box<dyn Decode + Send>)> = None;
    for piece in input {
        let piece = piece.map_err(|error| StreamError::Input(error.into()))?;
        let piece = piece.as_ref();
        received = received.saturating_add(piece.len() as u64);
        if received > size {
            return Err(StreamError::TooLong { size });
        }
        hasher.update(piece);
        cutter.received(piece);
        progress(received);
        match &mut decoder {
            Some((_, decoder)) => {
                buffers.decode(decoder.as_mut(), &mut cutter, piece, expected.maximum_decoded)?;
            }
            None => {
                first.extend_from_slice(piece);
                if first.len() >= Compression::MAGIC_LENGTH {
                    let compression = Compression::sniff(&first);
                    cutter.begins(compression);
                    let (_, decoder) = decoder.insert((compression, compression.decoder()));
                    buffers.decode(decoder.as_mut(), &mut cutter, &first, expected.maximum_decoded)?;
                    first = Vec::new();
                }
            }
        }
        if buffers.is_abandoned {
            break;
        }
    }
    let (compression, mut decoder) =
        decoder.unwrap_or_else(|| (Compression::None, Compression::None.decoder()));
    if buffers.is_abandoned {
        return Ok(None);
    }
    if received < size {
        return Err(StreamError::TooShort { received, size });
    }
    let actual = hasher.finish();
    if actual != expected.blob_digest {
        return Err(StreamError::BlobDigest { expected: expected.blob_digest.clone(), actual });
    }
    buffers.decode(decoder.as_mut(), &mut cutter, &first, expected.maximum_decoded)?;
    decoder.finish()?;
    buffers.flush();
    Ok(Some((cutter, compression)))
}

/// What the reader knows when the last buffer was read.
struct Read {
    reader: TarReader,
    hasher: Digester,
    parts: PartDigests,
    decoded_length: u64,
}

/// Digests of the parts of the layer, one after the other.
#[derive(Default)]
struct PartDigests {
    hasher: Sha256,
    digests: Vec<[u8; 32]>,
}

impl PartDigests {
    fn update(&mut self, decoded: &Decoded) {
        let mut start = 0;
        for cut in &decoded.cuts {
            self.hasher.update(&decoded.bytes[start..*cut]);
            self.digests.push(self.hasher.finalize_reset().into());
            start = *cut;
        }
        self.hasher.update(&decoded.bytes[start..]);
    }

    fn finish(mut self) -> Vec<[u8; 32]> {
        self.digests.push(self.hasher.finalize().into());
        self.digests
    }
}

/// The reader's side: hashes and reads what was decoded, until the decoder hangs up.
fn read_decoded(
    full: Receiver<Decoded>,
    empty: SyncSender<Vec<u8>>,
    expected: &StreamExpectation,
    sink: &mut dyn TarSink,
) -> Result<Read, StreamError> {
    let mut reader = TarReader::new(Limits::default());
    let mut hasher =
        expected.diff_id.as_ref().map_or_else(|| Digester::new(Algorithm::Sha256), Digest::digester);
    let mut parts = PartDigests::default();
    let mut decoded_length = 0_u64;
    for decoded in full {
        hasher.update(&decoded.bytes);
        parts.update(&decoded);
        decoded_length += decoded.bytes.len() as u64;
        reader.push(&decoded.bytes, sink)?;
        // A decoder that is done needs no more buffers.
        let _ = empty.send(decoded.bytes);
    }
    Ok(Read { reader, hasher, parts, decoded_length })
}

/// What is known of a layer when all of it was read.
pub(in crate::layer) struct Whole {
    pub diff_id: Digest,
    pub decoded_length: u64,
    /// SHA-256 of each decoded part, as the cutter cut it.
    parts: Vec<[u8; 32]>,
}

impl Read {
    fn finish(self, diff_id: Option<&Digest>) -> Result<Whole, StreamError> {
        let actual = self.hasher.finish();
        if let Some(expected) = diff_id.filter(|expected| **expected != actual) {
            return Err(StreamError::DiffId { expected: expected.clone(), actual });
        }
        self.reader.finish()?;
        Ok(Whole { diff_id: actual, decoded_length: self.decoded_length, parts: self.parts.finish() })
    }
}
