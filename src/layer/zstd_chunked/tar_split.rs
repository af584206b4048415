//! tar-split (`vbatts/tar-split`, package `tar/storage`): a tar without the content of its files, from which and from these files the
//! very bytes of the tar come back.
//!
//! ```text
//! archive   │ headers │ data of a │ padding, headers, headers │ data of b │ padding, end │
//! tar-split   segment   file a      segment, file, segment      file b      segment        one line of JSON each
//! ```
//!
//! A segment has its bytes, a file its name, size and checksum. Files without data are listed, too, and mean nothing.
//! What comes back is proved by the diff ID, not by these checksums: they tell which file it was, if it does not match.

mod compare;
mod crc64;
mod fault;
mod write;

use std::ops::Range;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

pub use self::compare::compare;
pub use self::crc64::Crc64;
pub use self::fault::{Contradiction, RebuildError, TarSplitError};
pub(super) use self::write::TarSplitWriter;
use crate::layer::stream::MAXIMUM_DECODED;
use crate::layer::tar::SinkError;

/// Longest tar-split data that are read, in bytes of JSON: those of 500,000 entries or more.
pub const MAXIMUM_TAR_SPLIT: u64 = 512 << 20;

/// Most segments and files together: two for each inode that a layer may have, and some.
const MAXIMUM_PIECES: usize = 2 * (8 << 20) + 1024;

const FILE: i64 = 1;
const SEGMENT: i64 = 2;

/// The pieces of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TarSplit {
    /// Of all segments and names.
    bytes: Vec<u8>,
    pieces: Vec<Stored>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stored {
    Segment(Range<usize>),
    File { path: Range<usize>, size: u64, crc64: u64 },
}

/// A piece of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// These bytes.
    Segment(&'a [u8]),
    /// The content of a file.
    File {
        /// Its name, as the archive has it.
        path: &'a [u8],
        /// Its bytes, at least 1.
        size: u64,
        /// Their checksum.
        crc64: u64,
    },
}

/// Gives the content of a file of that name and size, in pieces, to the function.
pub type ContentOf<'a> =
    dyn FnMut(&[u8], u64, &mut dyn FnMut(&[u8]) -> Result<(), SinkError>) -> Result<(), SinkError> + 'a;

/// A line of the JSON; what is unknown is ignored, and so is the position, as the reference does.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: i64,
    name: Option<String>,
    name_raw: Option<String>,
    size: Option<i64>,
    payload: Option<String>,
}

impl TarSplit {
    /// Reads the JSON, uncompressed.
    ///
    /// # Errors
    /// If it does not make sense, or is beyond the bounds. Memory is bounded by its length, and by 56 bytes for each line.
    pub fn parse(json: &[u8]) -> Result<Self, TarSplitError> {
        let length = json.len() as u64;
        if length > MAXIMUM_TAR_SPLIT {
            return Err(TarSplitError::TooMuch { length, unit: "bytes", limit: MAXIMUM_TAR_SPLIT });
        }
        let mut split = TarSplit { bytes: Vec::new(), pieces: Vec::new() };
        let mut total: u64 = 0;
        for (number, line) in serde_json::Deserializer::from_slice(json).into_iter::<Line>().enumerate() {
            if number >= MAXIMUM_PIECES {
                let (length, limit) = (number as u64 + 1, MAXIMUM_PIECES as u64);
                return Err(TarSplitError::TooMuch { length, unit: "entries", limit });
            }
            let line = line.map_err(|source| TarSplitError::Json { after: number, source })?;
            total = split
                .add(&line)
                .map(|added| total.saturating_add(added))
                .map_err(|reason| TarSplitError::Entry { number, reason })?;
            if total > MAXIMUM_DECODED {
                let limit = MAXIMUM_DECODED;
                return Err(TarSplitError::TooMuch { length: total, unit: "bytes of an archive", limit });
            }
        }
        Ok(split)
    }

    /// Adds a piece; gives its bytes in the archive.
    fn add(&mut self, line: &Line) -> Result<u64, &'static str> {
        let payload = line.payload.as_deref().unwrap_or_default();
        let size = u64::try_from(line.size.unwrap_or(0)).map_err(|_| "its size is negative")?;
        match line.kind {
            SEGMENT => {
                let bytes = self.append_base64(payload)?;
                let length = bytes.len() as u64;
                self.pieces.push(Stored::Segment(bytes));
                Ok(length)
            }
            FILE if size == 0 => Ok(0),
            FILE => {
                let path = match line.name_raw.as_deref() {
                    None | Some("") => self.append(line.name.as_deref().unwrap_or_default().as_bytes()),
                    Some(raw) => self.append_base64(raw)?,
                };
                let crc64 = BASE64.decode(payload).ok().and_then(|bytes| bytes.try_into().ok());
                let crc64 = crc64.ok_or("its checksum is malformed")?;
                self.pieces.push(Stored::File { path, size, crc64: u64::from_be_bytes(crc64) });
                Ok(size)
            }
            _ => Err("its type is unknown"),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Range<usize> {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len()
    }

    fn append_base64(&mut self, text: &str) -> Result<Range<usize>, &'static str> {
        let start = self.bytes.len();
        BASE64.decode_vec(text, &mut self.bytes).map_err(|_| "its bytes are not base 64")?;
        Ok(start..self.bytes.len())
    }

    /// All pieces that have bytes or content, in the order of the archive.
    pub fn pieces(&self) -> impl Iterator<Item = Piece<'_>> {
        self.pieces.iter().map(|piece| match piece {
            Stored::Segment(bytes) => Piece::Segment(&self.bytes[bytes.clone()]),
            Stored::File { path, size, crc64 } => {
                Piece::File { path: &self.bytes[path.clone()], size: *size, crc64: *crc64 }
            }
        })
    }

    /// Bytes of the archive.
    pub fn archive_length(&self) -> u64 {
        // Bounded when it was read.
        self.pieces()
            .map(|piece| match piece {
                Piece::Segment(bytes) => bytes.len() as u64,
                Piece::File { size, .. } => size,
            })
            .sum()
    }

    /// Gives the archive, in pieces and in order, to `output`; `content_of` is asked for the content of each file once, in the order of
    /// the archive.
    ///
    /// # Errors
    /// If a content is not what it was, or `content_of` or `output` fail; what was given so far is no archive then.
    pub fn rebuild(
        &self,
        content_of: &mut ContentOf<'_>,
        output: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
    ) -> Result<(), RebuildError> {
        for piece in self.pieces() {
            let (path, size, expected) = match piece {
                Piece::Segment(bytes) => {
                    output(bytes).map_err(RebuildError::Output)?;
                    continue;
                }
                Piece::File { path, size, crc64 } => (path, size, crc64),
            };
            let name = || path.escape_ascii().to_string();
            let (mut actual, mut crc64) = (0_u64, Crc64::default());
            let given = content_of(path, size, &mut |bytes| {
                actual = actual.saturating_add(bytes.len() as u64);
                if actual > size {
                    return Err("it is longer than it was".into());
                }
                crc64.update(bytes);
                output(bytes)
            });
            match given {
                Ok(()) if actual == size => {}
                Err(source) if actual <= size => return Err(RebuildError::Content { path: name(), source }),
                _ => return Err(RebuildError::Length { path: name(), expected: size, actual }),
            }
            if crc64.finish() != expected {
                return Err(RebuildError::Checksum { path: name() });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
