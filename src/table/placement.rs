//! Which data file holds which part of a layer's decoded space.
//!
//! A regular file of [`LARGE_FILE`](super::format::LARGE_FILE) bytes or more has a data file of its own that starts at its
//! byte 0, holes included, so that it can be handed to the kernel once it is whole. All else lies in the packed data file, at
//! the same offset as in the decoded space.

use super::format::LargeRecord;

/// One of a layer's data files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DataFile {
    /// The file that small files share.
    Packed,
    /// The data file of one large file, by its number.
    Large(u32),
}

/// A part of one data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Which data file.
    pub file: DataFile,
    /// First byte in it.
    pub file_offset: u64,
    /// Length in bytes, at least 1.
    pub length: u64,
}

/// A part of the decoded space that is a large file's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LargePart {
    /// First byte in the decoded space.
    pub decoded_offset: u64,
    /// Length in bytes.
    pub length: u64,
    /// Number of the data file.
    pub file: u32,
    /// First byte in the data file.
    pub file_offset: u64,
}

impl From<&LargeRecord> for LargePart {
    fn from(record: &LargeRecord) -> LargePart {
        LargePart {
            decoded_offset: record.decoded_offset.get(),
            length: record.length.get(),
            file: record.file.get(),
            file_offset: record.file_offset.get(),
        }
    }
}

/// A sorted list of [`LargePart`]s that can be asked for its `n`th: a vector while a layer is read, a mapped table later.
pub trait LargeParts {
    /// How many there are.
    fn count(&self) -> usize;
    /// The part of that number, which is below [`count`](Self::count).
    fn part(&self, number: usize) -> LargePart;
}

impl LargeParts for [LargePart] {
    fn count(&self) -> usize {
        self.len()
    }
    fn part(&self, number: usize) -> LargePart {
        self[number]
    }
}

impl LargeParts for [LargeRecord] {
    fn count(&self) -> usize {
        self.len()
    }
    fn part(&self, number: usize) -> LargePart {
        LargePart::from(&self[number])
    }
}

/// The pieces of data files that hold `length` bytes of the decoded space from `decoded_offset`, in order.
///
/// Parts that do not ascend or that overlap (a damaged table) give pieces that are wrong, never ones that do not end.
pub fn pieces<P: LargeParts + ?Sized>(parts: &P, decoded_offset: u64, length: u64) -> Pieces<'_, P> {
    let end = decoded_offset.saturating_add(length);
    let next =
        partition_point(parts, |part| part.decoded_offset.saturating_add(part.length) <= decoded_offset);
    Pieces { parts, next, position: decoded_offset, end }
}

fn partition_point<P: LargeParts + ?Sized>(parts: &P, before: impl Fn(LargePart) -> bool) -> usize {
    let (mut low, mut high) = (0, parts.count());
    while low < high {
        let middle = low + (high - low) / 2;
        if before(parts.part(middle)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

/// See [`pieces`].
pub struct Pieces<'a, P: ?Sized> {
    parts: &'a P,
    next: usize,
    position: u64,
    end: u64,
}

impl<P: LargeParts + ?Sized> Iterator for Pieces<'_, P> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.position >= self.end {
            return None;
        }
        let start = self.position;
        if self.next < self.parts.count() {
            let part = self.parts.part(self.next);
            let part_end = part.decoded_offset.saturating_add(part.length);
            if part.decoded_offset <= start && start < part_end {
                self.next += 1;
                self.position = part_end.min(self.end);
                return Some(Piece {
                    file: DataFile::Large(part.file),
                    file_offset: part.file_offset.saturating_add(start - part.decoded_offset),
                    length: self.position - start,
                });
            }
            if part.decoded_offset > start {
                self.position = part.decoded_offset.min(self.end);
                return Some(Piece {
                    file: DataFile::Packed,
                    file_offset: start,
                    length: self.position - start,
                });
            }
        }
        self.position = self.end;
        Some(Piece { file: DataFile::Packed, file_offset: start, length: self.end - start })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_cut_where_large_files_begin_and_end() {
        let parts = [
            LargePart { decoded_offset: 100, length: 50, file: 0, file_offset: 0 },
            LargePart { decoded_offset: 150, length: 10, file: 1, file_offset: 7 },
            LargePart { decoded_offset: 200, length: 10, file: 1, file_offset: 100 },
        ];
        let piece = |file, file_offset, length| Piece { file, file_offset, length };
        let cases: [(u64, u64, Vec<Piece>); 6] = [
            (0, 100, vec![piece(DataFile::Packed, 0, 100)]),
            (90, 20, vec![piece(DataFile::Packed, 90, 10), piece(DataFile::Large(0), 0, 10)]),
            (
                120,
                100,
                vec![
                    piece(DataFile::Large(0), 20, 30),
                    piece(DataFile::Large(1), 7, 10),
                    piece(DataFile::Packed, 160, 40),
                    piece(DataFile::Large(1), 100, 10),
                    piece(DataFile::Packed, 210, 10),
                ],
            ),
            (155, 2, vec![piece(DataFile::Large(1), 12, 2)]),
            (300, 5, vec![piece(DataFile::Packed, 300, 5)]),
            (10, 0, vec![]),
        ];
        for (offset, length, expected) in cases {
            assert_eq!(pieces(&parts[..], offset, length).collect::<Vec<_>>(), expected, "{offset}+{length}");
        }
    }
}
