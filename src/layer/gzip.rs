//! Gzip (RFC 1952), decoded as it arrives: any number of members.
//!
//! ```text
//!   Header ──▶ Deflate ──▶ Trailer ──▶ BetweenMembers ──▶ Header …
//!     ▲           ▲                        └── a zero ──▶ Zeros     (padding up to the end)
//!   new        resume: SharedByte, Deflate
//! ```
//!
//! Checked are magic, method, reserved flags, header checksum, CRC-32 and length. What follows the last member is an error, as in
//! Go (and so in containerd and umoci), unless it is zeros, which tape blocking leaves and gzip(1) ignores.
//!
//! A decoder can also start within a member, between two deflate blocks, with a [`Checkpoint`]. A block may begin within a byte:
//! that byte is the first of its input then. CRC-32 and length of that first member cannot be checked.

pub mod checkpoint;
mod header;
mod inflate;

use self::checkpoint::Checkpoint;
use self::header::HeaderReader;
use self::inflate::Inflate;
use super::compression::{Boundary, Decode, DecodeError, Progress, Stop};

/// Decoder of a blob from its beginning, or from a place within.
pub struct GzipDecoder {
    inflate: Inflate,
    state: State,
    /// Of what the member decoded to; `None` if its beginning was not seen.
    sums: Option<Sums>,
    consumed: u64,
}

enum State {
    Header(HeaderReader),
    /// So many topmost bits of the next byte belong to the first block.
    SharedByte {
        bits: u8,
    },
    Deflate,
    Trailer {
        bytes: [u8; 8],
        filled: usize,
    },
    BetweenMembers,
    Zeros,
}

/// What a member's trailer is checked against.
#[derive(Default)]
struct Sums {
    checksum: crc32fast::Hasher,
    length: u64,
}

impl GzipDecoder {
    /// A decoder at the beginning of a member.
    pub fn new() -> Self {
        Self { inflate: Inflate::new(), state: State::Header(HeaderReader::new()), sums: None, consumed: 0 }
    }

    /// A decoder at a checkpoint, whose first byte comes next.
    pub fn resume(checkpoint: &Checkpoint) -> Self {
        let mut inflate = Inflate::new();
        inflate.set_window(&checkpoint.window);
        let state = match checkpoint.bits {
            0 => State::Deflate,
            bits => State::SharedByte { bits },
        };
        Self { inflate, state, sums: None, consumed: 0 }
    }

    /// The checkpoint of the deflate block at which [`Decode::decode_until`] has just stopped.
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let unused = self.blocks_are_between()?;
        Some(Checkpoint { bits: (unused % 8) as u8, window: self.inflate.window() })
    }

    /// Between two blocks: how many bits of the next one were consumed.
    fn blocks_are_between(&self) -> Option<usize> {
        matches!(self.state, State::Deflate).then(|| self.inflate.between_blocks()).flatten()
    }

    fn corrupt(&self, reason: impl Into<String>) -> DecodeError {
        DecodeError::Corrupt { format: "gzip", offset: self.consumed, reason: reason.into() }
    }

    fn step(&mut self, input: &[u8], output: &mut [u8], stop: Stop) -> Result<Progress, DecodeError> {
        match &mut self.state {
            State::Header(reader) => {
                let taken = reader.take(input).map_err(|reason| self.corrupt(reason))?;
                if taken.is_complete {
                    self.inflate.reset();
                    self.sums = Some(Sums::default());
                    self.state = State::Deflate;
                }
                Ok(Progress { consumed: taken.length, produced: 0 })
            }
            State::SharedByte { bits } => {
                let Some(byte) = input.first() else { return Ok(Progress::default()) };
                self.inflate.prime(*bits, *byte);
                self.state = State::Deflate;
                Ok(Progress { consumed: 1, produced: 0 })
            }
            State::Deflate => self.inflate(input, output, stop.is_at_blocks()),
            State::Trailer { bytes, filled } => {
                let taken = input.len().min(bytes.len() - *filled);
                bytes[*filled..*filled + taken].copy_from_slice(&input[..taken]);
                *filled += taken;
                if *filled == bytes.len() {
                    let [a, b, c, d, e, f, g, h] = *bytes;
                    self.check(u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))?;
                    self.state = State::BetweenMembers;
                }
                Ok(Progress { consumed: taken, produced: 0 })
            }
            State::BetweenMembers => {
                self.state = match input.first() {
                    Some(0) => State::Zeros,
                    Some(0x1f) => State::Header(HeaderReader::new()),
                    Some(_) => return Err(self.corrupt("garbage after the last member")),
                    None => State::BetweenMembers,
                };
                Ok(Progress::default())
            }
            State::Zeros if input.iter().any(|byte| *byte != 0) => {
                Err(self.corrupt("garbage after the last member"))
            }
            State::Zeros => Ok(Progress { consumed: input.len(), produced: 0 }),
        }
    }

    fn inflate(
        &mut self,
        input: &[u8],
        output: &mut [u8],
        stops_at_blocks: bool,
    ) -> Result<Progress, DecodeError> {
        let step = self.inflate.run(input, output, stops_at_blocks);
        let step = step.map_err(|reason| self.corrupt(reason))?;
        if let Some(sums) = &mut self.sums {
            sums.checksum.update(&output[..step.produced]);
            sums.length += step.produced as u64;
        }
        if step.is_end {
            self.state = State::Trailer { bytes: [0; 8], filled: 0 };
        }
        Ok(Progress { consumed: step.consumed, produced: step.produced })
    }

    fn check(&self, checksum: u32, length: u32) -> Result<(), DecodeError> {
        let Some(sums) = &self.sums else { return Ok(()) };
        if sums.checksum.clone().finalize() != checksum {
            return Err(self.corrupt("the CRC of the member does not match"));
        }
        // The field holds the length modulo 2³².
        if sums.length as u32 != length {
            return Err(self.corrupt("the length of the member does not match"));
        }
        Ok(())
    }
}

impl Default for GzipDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decode for GzipDecoder {
    fn decode_until(
        &mut self,
        stop: Stop,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(Progress, Option<Boundary>), DecodeError> {
        let mut progress = Progress::default();
        loop {
            if stop.is_at_starts() && matches!(self.state, State::BetweenMembers) {
                return Ok((progress, Some(Boundary::START)));
            }
            let (rest, room) = (&input[progress.consumed..], &mut output[progress.produced..]);
            let inflating = matches!(self.state, State::Deflate);
            let in_header = matches!(self.state, State::Header(_));
            // An inflater may hold back output for want of room; everything else lives on input alone.
            if (inflating && room.is_empty()) || (!inflating && rest.is_empty()) {
                return Ok((progress, None));
            }
            let step = self.step(rest, room, stop)?;
            self.consumed += step.consumed as u64;
            progress.consumed += step.consumed;
            progress.produced += step.produced;
            if stop == Stop::InMembers && in_header && matches!(self.state, State::Deflate) {
                let checkpoint = Checkpoint { bits: 0, window: Vec::new() };
                return Ok((progress, Some(Boundary { unused_bits: 0, checkpoint: Some(checkpoint) })));
            }
            if stop.is_at_blocks()
                && inflating
                && let Some(bits) = self.blocks_are_between()
            {
                return Ok((progress, Some(Boundary { unused_bits: bits, checkpoint: self.checkpoint() })));
            }
            if step == Progress::default() && inflating && matches!(self.state, State::Deflate) {
                return Ok((progress, None));
            }
        }
    }

    fn finish(&self) -> Result<(), DecodeError> {
        match self.state {
            State::BetweenMembers | State::Zeros => Ok(()),
            _ => Err(DecodeError::Truncated { format: "gzip", offset: self.consumed }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::write::GzEncoder;
    use flate2::{Compression, GzBuilder};

    use super::*;
    use crate::layer::testing::{decoded, pattern};

    fn member(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn members_are_read_in_pieces_of_any_size() {
        let (one, two) = (pattern(300_000), pattern(5));
        let blob = [member(&one), member(&[]), member(&two), vec![0; 1000]].concat();
        for piece in [1, 7, 4096, blob.len()] {
            for room in [1, 1000, 1 << 20] {
                let result = decoded(&mut GzipDecoder::new(), &blob, piece, room).unwrap();
                assert!(result == [&one[..], &two].concat(), "{piece} {room}");
            }
        }
    }

    #[test]
    fn every_field_of_a_header_is_passed_over() {
        let builder =
            GzBuilder::new().extra(vec![7; 300]).filename("layer.tar").comment("x".repeat(2000)).mtime(9);
        let mut encoder = builder.write(Vec::new(), Compression::default());
        encoder.write_all(b"content").unwrap();
        let blob = encoder.finish().unwrap();
        for piece in [1, 3, blob.len()] {
            assert_eq!(decoded(&mut GzipDecoder::new(), &blob, piece, 100).unwrap(), b"content");
        }
    }

    #[test]
    fn every_truncation_is_noticed() {
        let blob = member(&pattern(3000));
        for length in 0..blob.len() {
            let error = decoded(&mut GzipDecoder::new(), &blob[..length], 100, 100).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated { .. }), "{length}: {error}");
        }
    }

    #[test]
    fn corruption_and_garbage_are_refused() {
        let blob = member(&pattern(3000));
        let changed = |at: usize| {
            let mut blob = blob.clone();
            blob[at] ^= 0x40;
            blob
        };
        let end = blob.len();
        let cases = [
            changed(0),
            changed(1),
            changed(2),
            changed(3),
            changed(end / 2),
            changed(end - 8),
            changed(end - 1),
            [&blob[..], b"garbage"].concat(),
            [&blob[..], b"\0\0\0x"].concat(),
            [&blob[..], b"\x1f\x8b\x09\0\0\0\0\0\0\0"].concat(),
        ];
        for (case, blob) in cases.iter().enumerate() {
            let error = decoded(&mut GzipDecoder::new(), blob, 100, 100).unwrap_err();
            assert!(matches!(error, DecodeError::Corrupt { .. }), "{case}: {error}");
        }
    }
}
