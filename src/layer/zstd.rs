//! Zstandard (RFC 8878), decoded as it arrives: any number of frames, skippable ones among them.

use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::compression::{Boundary, Decode, DecodeError, Progress, Stop};

/// Largest window that a frame may ask for, as a power of two: 128 MiB, what `zstd -d` and containerd accept. It bounds the memory.
const WINDOW_LOG_MAX: u32 = 27;

/// Decoder of a whole blob.
pub struct ZstdDecoder {
    decoder: Decoder<'static>,
    /// Between two frames, or after the last.
    frame_is_complete: bool,
    consumed: u64,
}

impl ZstdDecoder {
    /// A decoder at the beginning of a blob.
    ///
    /// # Panics
    /// If there is no memory for it, as any allocation does.
    pub fn new() -> Self {
        let prepare = || {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            std::io::Result::Ok(decoder)
        };
        // The library refuses only for want of memory: the parameter is within its range.
        let decoder = prepare().expect("a zstd decoder can be made");
        Self { decoder, frame_is_complete: false, consumed: 0 }
    }
}

impl Default for ZstdDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decode for ZstdDecoder {
    fn decode_until(
        &mut self,
        stop: Stop,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(Progress, Option<Boundary>), DecodeError> {
        let mut progress = Progress::default();
        loop {
            if stop.is_at_starts() && self.frame_is_complete {
                return Ok((progress, Some(Boundary::START)));
            }
            let (rest, room) = (&input[progress.consumed..], &mut output[progress.produced..]);
            // Between frames the library would ask for the next one, and so forget that the last was whole.
            if room.is_empty() || (self.frame_is_complete && rest.is_empty()) {
                return Ok((progress, None));
            }
            let status = self.decoder.run_on_buffers(rest, room).map_err(|error| DecodeError::Corrupt {
                format: "zstd",
                offset: self.consumed,
                reason: error.to_string(),
            })?;
            self.frame_is_complete = status.remaining == 0;
            self.consumed += status.bytes_read as u64;
            progress.consumed += status.bytes_read;
            progress.produced += status.bytes_written;
            if status.bytes_read == 0 && status.bytes_written == 0 {
                return Ok((progress, None));
            }
        }
    }

    fn finish(&self) -> Result<(), DecodeError> {
        if self.frame_is_complete {
            Ok(())
        } else {
            Err(DecodeError::Truncated { format: "zstd", offset: self.consumed })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::testing::{decoded, pattern};

    fn frame(bytes: &[u8]) -> Vec<u8> {
        zstd::bulk::compress(bytes, 3).unwrap()
    }

    fn skippable(bytes: &[u8]) -> Vec<u8> {
        [&[0x5a, 0x2a, 0x4d, 0x18][..], &(bytes.len() as u32).to_le_bytes(), bytes].concat()
    }

    #[test]
    fn frames_and_skippable_frames_are_read_in_pieces_of_any_size() {
        let (one, two) = (pattern(300_000), pattern(5));
        let blob = [skippable(b"toc"), frame(&one), frame(&[]), skippable(b""), frame(&two), skippable(b"x")]
            .concat();
        for piece in [1, 7, 4096, blob.len()] {
            for room in [1, 1000, 1 << 20] {
                let result = decoded(&mut ZstdDecoder::new(), &blob, piece, room).unwrap();
                assert!(result == [&one[..], &two].concat(), "{piece} {room}");
            }
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let blob = frame(&pattern(3000));
        for length in 0..blob.len() {
            let error = decoded(&mut ZstdDecoder::new(), &blob[..length], 100, 100).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn corruption_garbage_and_huge_windows_are_refused() {
        let blob = frame(&pattern(3000));
        let garbage = [&blob[..], b"garbage"].concat();
        // Window descriptor 0x90: exponent 18, 2^28 bytes; then one raw last block of a byte.
        let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x90, 0x09, 0x00, 0x00, b'x'];
        for blob in [&garbage[..], &window, b"\0\0\0\0\0\0"] {
            let error = decoded(&mut ZstdDecoder::new(), blob, 100, 100).unwrap_err();
            assert!(matches!(error, DecodeError::Corrupt { .. }), "{error}");
        }
        let window = [&window[..5], &[0x80], &window[6..]].concat();
        assert_eq!(decoded(&mut ZstdDecoder::new(), &window, 100, 100).unwrap(), b"x");
    }
}
