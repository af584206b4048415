//! The buffers that go round between decoder and reader.

use std::sync::mpsc::{Receiver, SyncSender};

use super::{Cutter, StreamError};
use crate::layer::compression::Decode;

/// Bytes of a buffer, and how many go round. Larger ones leave the processor's cache.
pub(super) const BUFFER: usize = 256 << 10;
pub(super) const BUFFERS: usize = 6;

/// A buffer for the reader.
pub(super) struct Decoded {
    pub bytes: Vec<u8>,
    /// Where in it a part of the layer begins that has a digest of its own, in ascending order.
    pub cuts: Vec<usize>,
}

/// The decoder's end of the two channels.
pub(super) struct Buffers {
    full: SyncSender<Decoded>,
    empty: Receiver<Vec<u8>>,
    /// The buffer that is being filled; `current.len()` is always [`BUFFER`] while there is one.
    current: Option<Vec<u8>>,
    filled: usize,
    cuts: Vec<usize>,
    decoded: u64,
    /// The reader hung up.
    pub is_abandoned: bool,
}

impl Buffers {
    pub fn new(full: SyncSender<Decoded>, empty: Receiver<Vec<u8>>) -> Self {
        Self { full, empty, current: None, filled: 0, cuts: Vec::new(), decoded: 0, is_abandoned: false }
    }

    /// Decodes all of `input` into buffers, and sends those that are full. `cutter` watches.
    pub fn decode(
        &mut self,
        decoder: &mut dyn Decode,
        cutter: &mut impl Cutter,
        mut input: &[u8],
        limit: u64,
    ) -> Result<(), StreamError> {
        loop {
            let Some(buffer) = self.room() else { return Ok(()) };
            let room = usize::try_from(cutter.room()).map_or(buffer.len(), |room| room.min(buffer.len()));
            let stop = cutter.stop();
            let (progress, boundary) = decoder.decode_until(stop, input, &mut buffer[..room])?;
            let has_stopped = boundary.is_some();
            input = &input[progress.consumed..];
            self.filled += progress.produced;
            self.decoded = self.decoded.saturating_add(progress.produced as u64);
            if self.decoded > limit {
                return Err(StreamError::TooLarge { limit });
            }
            if cutter.advanced(progress, boundary).map_err(StreamError::Checkpoint)? {
                self.cuts.push(self.filled);
            }
            if input.is_empty() && progress.produced < room && !has_stopped {
                return Ok(());
            }
        }
    }

    /// The free part of the current buffer, never empty; `None` if the reader hung up.
    fn room(&mut self) -> Option<&mut [u8]> {
        if self.filled == BUFFER {
            self.flush();
        }
        if self.current.is_none() && !self.is_abandoned {
            match self.empty.recv() {
                Ok(mut buffer) => {
                    buffer.resize(BUFFER, 0);
                    self.current = Some(buffer);
                }
                Err(_) => self.is_abandoned = true,
            }
        }
        self.current.as_mut().map(|buffer| &mut buffer[self.filled..])
    }

    /// Sends what is in the current buffer.
    pub fn flush(&mut self) {
        if let Some(mut buffer) = self.current.take() {
            buffer.truncate(self.filled);
            self.filled = 0;
            let decoded = Decoded { bytes: buffer, cuts: std::mem::take(&mut self.cuts) };
            self.is_abandoned |= self.full.send(decoded).is_err();
        }
    }
}
