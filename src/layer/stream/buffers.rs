//! The buffers that go round between decoder and reader.

use std::sync::mpsc::{Receiver, SyncSender};

use super::StreamError;
use crate::layer::compression::Decode;

/// Bytes of a buffer, and how many go round. Larger ones leave the processor's cache.
pub(super) const BUFFER: usize = 256 << 10;
pub(super) const BUFFERS: usize = 6;

/// The decoder's end of the two channels.
pub(super) struct Buffers {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    /// The buffer that is being filled; `current.len()` is always [`BUFFER`] while there is one.
    current: Option<Vec<u8>>,
    filled: usize,
    decoded: u64,
    /// The reader hung up.
    pub is_abandoned: bool,
}

impl Buffers {
    pub fn new(full: SyncSender<Vec<u8>>, empty: Receiver<Vec<u8>>) -> Self {
        Self { full, empty, current: None, filled: 0, decoded: 0, is_abandoned: false }
    }

    /// Decodes all of `input` into buffers, and sends those that are full.
    pub fn decode(
        &mut self,
        decoder: &mut dyn Decode,
        mut input: &[u8],
        limit: u64,
    ) -> Result<(), StreamError> {
        loop {
            let Some(buffer) = self.room() else { return Ok(()) };
            let room = buffer.len();
            let progress = decoder.decode(input, buffer)?;
            input = &input[progress.consumed..];
            self.filled += progress.produced;
            self.decoded = self.decoded.saturating_add(progress.produced as u64);
            if self.decoded > limit {
                return Err(StreamError::TooLarge { limit });
            }
            if input.is_empty() && progress.produced < room {
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
            self.is_abandoned |= self.full.send(buffer).is_err();
        }
    }
}
