//! The archive that is written, piece by piece, and pieces put together to jobs for threads.

use std::io;
use std::num::NonZeroU64;
use std::ops::Range;

use super::items::Item;
use crate::layer::spool::Spool;

/// Most bytes of headers in one piece. A run of headers of any length is cut, so that it can be worked on in memory.
pub const LONGEST_RUN: u64 = 1 << 20;

/// Uncompressed bytes of a job, at least: handing out a job must cost nothing beside doing it.
const JOB: u64 = 1 << 20;

/// A piece of the archive that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// A part of the headers of an item.
    Headers { item: usize, part: Range<u64> },
    /// Some of an item's data.
    Data { item: usize, offset: u64, length: u64 },
    /// Zeros up to the next block.
    Padding(u64),
}

impl Piece {
    /// Bytes of the archive.
    pub fn length(&self) -> u64 {
        match self {
            Piece::Headers { part, .. } => part.end - part.start,
            Piece::Data { length, .. } | Piece::Padding(length) => *length,
        }
    }

    /// Appends its bytes to `to`.
    ///
    /// # Errors
    /// If the spool cannot be read.
    pub fn append(&self, items: &[Item<'_>], spool: &Spool, to: &mut Vec<u8>) -> io::Result<()> {
        match self {
            Piece::Headers { item, part } => items[*item].append_headers(spool, part, to)?,
            Piece::Data { item, offset, length } => items[*item].append_data(spool, *offset, *length, to)?,
            // Less than a block.
            Piece::Padding(length) => to.resize(to.len() + *length as usize, 0),
        }
        Ok(())
    }
}

/// The archive, piece by piece, but for its end.
pub struct Pieces<'a> {
    items: &'a [Item<'a>],
    data: NonZeroU64,
    item: usize,
    stage: Stage,
}

enum Stage {
    Headers(u64),
    Data(u64),
    Padding,
}

impl<'a> Pieces<'a> {
    /// Those of an archive of `items`. The data of a file are cut at the multiples of `data` bytes.
    pub fn new(items: &'a [Item<'a>], data: NonZeroU64) -> Self {
        Pieces { items, data, item: 0, stage: Stage::Headers(0) }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        loop {
            let number = self.item;
            let item = self.items.get(number)?;
            let piece = match self.stage {
                Stage::Headers(from) => {
                    let length = item.headers_length();
                    let to = length.min(from + LONGEST_RUN);
                    self.stage = if to == length { Stage::Data(0) } else { Stage::Headers(to) };
                    Piece::Headers { item: number, part: from..to }
                }
                Stage::Data(offset) => {
                    let length = self.data.get().min(item.size - offset);
                    let end = offset + length;
                    self.stage = if end == item.size { Stage::Padding } else { Stage::Data(end) };
                    Piece::Data { item: number, offset, length }
                }
                Stage::Padding => {
                    self.item += 1;
                    self.stage = Stage::Headers(0);
                    Piece::Padding(item.padding())
                }
            };
            if piece.length() > 0 {
                return Some(piece);
            }
        }
    }
}

/// Parts of an archive, each of as many bytes as `length` tells, in groups that are worth a job.
pub fn jobs<T: Send>(
    mut parts: impl Iterator<Item = T> + Send,
    length: impl Fn(&T) -> u64 + Send,
) -> impl Iterator<Item = Vec<T>> + Send {
    std::iter::from_fn(move || {
        let mut job = Vec::new();
        let mut bytes = 0;
        while bytes < JOB {
            let Some(part) = parts.next() else { break };
            bytes += length(&part);
            job.push(part);
        }
        (!job.is_empty()).then_some(job)
    })
}
