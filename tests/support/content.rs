//! The bytes of test files, described rather than held: a file of several GiB costs nothing until somebody reads it.

use std::io::{self, Write};
use std::sync::Arc;

/// Bytes that can be written in order and read at any place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These.
    Bytes(Arc<[u8]>),
    /// Incompressible bytes that depend on nothing but the seed and their place.
    Noise { seed: u64, length: u64 },
    /// Zeros.
    Zeros(u64),
    /// Pieces that hold data, ascending and apart, in a file of zeros.
    Sparse { pieces: Vec<(u64, Content)>, length: u64 },
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Content::Bytes(text.as_bytes().into())
    }
}

impl Content {
    pub fn empty() -> Content {
        Content::Zeros(0)
    }

    pub fn length(&self) -> u64 {
        match self {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Noise { length, .. } | Content::Zeros(length) | Content::Sparse { length, .. } => {
                *length
            }
        }
    }

    /// Fills `buffer` with the bytes from `offset` on; what lies behind the end is left alone. Returns how many bytes were filled.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let available = self.length().saturating_sub(offset).min(buffer.len() as u64) as usize;
        let buffer = &mut buffer[..available];
        match self {
            Content::Bytes(bytes) => {
                let start = (offset as usize).min(bytes.len());
                buffer.copy_from_slice(&bytes[start..start + available]);
            }
            Content::Zeros(_) => buffer.fill(0),
            Content::Noise { seed, .. } => {
                for (index, byte) in buffer.iter_mut().enumerate() {
                    *byte = noise(*seed, offset + index as u64);
                }
            }
            Content::Sparse { pieces, .. } => {
                buffer.fill(0);
                let end = offset + available as u64;
                for (place, piece) in pieces {
                    let (from, to) = ((*place).max(offset), (place + piece.length()).min(end));
                    if from < to {
                        let part = &mut buffer[(from - offset) as usize..(to - offset) as usize];
                        assert_eq!(piece.read_at(from - place, part), part.len());
                    }
                }
            }
        }
        available
    }

    pub fn write_to(&self, out: &mut dyn Write) -> io::Result<()> {
        let mut buffer = vec![0; 256 << 10];
        let mut offset = 0;
        while offset < self.length() {
            let count = self.read_at(offset, &mut buffer);
            out.write_all(&buffer[..count])?;
            offset += count as u64;
        }
        Ok(())
    }

    /// All bytes; for small content only.
    pub fn to_vec(&self) -> Vec<u8> {
        assert!(self.length() < 256 << 20, "too large to hold");
        let mut bytes = vec![0; self.length() as usize];
        self.read_at(0, &mut bytes);
        bytes
    }
}

/// One byte of a splitmix64 stream: random access, and no two seeds alike.
fn noise(seed: u64, place: u64) -> u8 {
    let mut word = seed
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add((place >> 3).wrapping_mul(0xd1b5_4a32_d192_ed03));
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((word ^ (word >> 31)) >> ((place & 7) * 8)) as u8
}
