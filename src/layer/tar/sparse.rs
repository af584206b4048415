//! Sparse files: where the pieces that hold data lie, in each of GNU tar's four encodings.
//!
//! | encoding | the map is in |
//! | --- | --- |
//! | old GNU, type `S` | the header block (4 pieces) and continuation blocks behind it (21 each) |
//! | PAX 0.0 | `GNU.sparse.offset` and `GNU.sparse.numbytes` records, a pair for each piece |
//! | PAX 0.1 | one `GNU.sparse.map` record |
//! | PAX 1.0 | whole blocks in front of the data: count, then offset and length of each piece, a decimal number per line |
//!
//! All of them become one flat list, offset, length, offset, length …; [`content`] checks it.

use super::pax::SparseRecords;
use super::{BLOCK, GnuSparseHeader, Limits, TarFault, number};
use crate::layer::entry::{Content, Extent};

/// Where the map of a sparse file that PAX records announce is to be found.
pub(super) enum PaxMap {
    /// In the records: 0.0 and 0.1.
    Records(Vec<u64>),
    /// In front of the data: 1.0.
    Data,
}

/// The sparse encoding that these records announce, if any.
pub(super) fn announced(records: &mut SparseRecords) -> Result<Option<PaxMap>, TarFault> {
    match (records.major, records.minor) {
        (Some(1), Some(0)) => return Ok(Some(PaxMap::Data)),
        // 0.0 and 0.1 need not say their version.
        (None, None) if records.map.is_none() && records.block_count.is_none() => return Ok(None),
        (None, None) | (Some(0), Some(0 | 1)) => {}
        (major, minor) => return Err(TarFault::SparseVersion { major, minor }),
    }
    let map = records.map.take().unwrap_or_default();
    if records.block_count.is_some_and(|count| count.checked_mul(2) != Some(map.len() as u64)) {
        return Err(TarFault::Sparse("the number of pieces is not the one announced"));
    }
    Ok(Some(PaxMap::Records(map)))
}

/// Appends the pieces that one block's descriptors name. The first blank descriptor ends them, as in GNU tar.
pub(super) fn append_old_gnu(
    descriptors: &[GnuSparseHeader],
    map: &mut Vec<u64>,
    limits: &Limits,
) -> Result<(), TarFault> {
    for descriptor in descriptors.iter().take_while(|descriptor| descriptor.offset[0] != 0) {
        for field in [&descriptor.offset, &descriptor.numbytes] {
            let value = number::header_number(field).and_then(|value| u64::try_from(value).ok());
            map.push(value.ok_or(TarFault::Sparse("a descriptor holds no number"))?);
        }
        limits.check_sparse_numbers(map.len())?;
    }
    Ok(())
}

/// Reads the map of PAX 1.0, block by block.
#[derive(Debug, Default)]
pub(super) struct MapReader {
    count: Option<u64>,
    map: Vec<u64>,
    /// Digits of the line that is not over yet.
    line: Vec<u8>,
}

impl MapReader {
    /// Takes the next block; gives the map once it is whole. The data starts at the next block then.
    pub fn block(&mut self, block: &[u8; BLOCK], limits: &Limits) -> Result<Option<Vec<u64>>, TarFault> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                // 20 digits are beyond any number; a file of digits must not fill the memory.
                if self.line.len() > 20 {
                    return Err(TarFault::Sparse("a line of the map holds no number"));
                }
                continue;
            }
            let number =
                number::decimal(&self.line).ok_or(TarFault::Sparse("a line of the map holds no number"))?;
            self.line.clear();
            match self.count {
                None => {
                    self.count = Some(number);
                    limits.check_sparse_numbers(
                        usize::try_from(number.saturating_mul(2)).unwrap_or(usize::MAX),
                    )?;
                }
                Some(_) => self.map.push(number),
            }
            // The check above bounds the count, so doubling it cannot overflow.
            if self.count.is_some_and(|count| count * 2 == self.map.len() as u64) {
                return Ok(Some(std::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}

/// Where the bytes of a sparse file of `size` bytes lie, whose `stored` data bytes start at `decoded_offset`. The pieces must be
/// in order, apart from each other, within the size, and take up exactly the stored bytes.
pub(super) fn content(map: &[u64], size: u64, stored: u64, decoded_offset: u64) -> Result<Content, TarFault> {
    let mut extents: Vec<Extent> = Vec::new();
    let (mut file_end, mut used) = (0_u64, 0_u64);
    for piece in map.chunks(2) {
        let [offset, length] = *piece else { return Err(TarFault::Sparse("a piece has no length")) };
        if offset < file_end {
            return Err(TarFault::Sparse("pieces overlap or are out of order"));
        }
        let adjoins = offset == file_end;
        file_end = offset.checked_add(length).ok_or(TarFault::Sparse("a piece ends beyond any file"))?;
        if file_end > size {
            return Err(TarFault::Sparse("a piece ends beyond the file"));
        }
        let decoded = decoded_offset.checked_add(used).ok_or(TarFault::Size)?;
        used = used.checked_add(length).ok_or(TarFault::Size)?;
        match extents.last_mut() {
            _ if length == 0 => {}
            Some(last) if adjoins => last.length += length,
            _ => extents.push(Extent { file_offset: offset, length, decoded_offset: decoded }),
        }
    }
    if used != stored {
        return Err(TarFault::Sparse("the pieces do not add up to the stored data"));
    }
    match extents[..] {
        [Extent { file_offset: 0, length, decoded_offset }] if length == size => {
            Ok(Content::Contiguous(decoded_offset))
        }
        [] if size == 0 => Ok(Content::Contiguous(decoded_offset)),
        _ => Ok(Content::Sparse(extents)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(file_offset: u64, length: u64, decoded_offset: u64) -> Extent {
        Extent { file_offset, length, decoded_offset }
    }

    #[test]
    fn pieces_become_extents() {
        let cases: [(&[u64], u64, u64, Content); 6] = [
            (&[], 0, 0, Content::Contiguous(512)),
            (&[], 10, 0, Content::Sparse(vec![])),
            (&[0, 10], 10, 10, Content::Contiguous(512)),
            (&[0, 4, 4, 6], 10, 10, Content::Contiguous(512)),
            (
                &[2, 3, 9, 0, 20, 5, 30, 0],
                30,
                8,
                Content::Sparse(vec![extent(2, 3, 512), extent(20, 5, 515)]),
            ),
            (&[0, 3], 30, 3, Content::Sparse(vec![extent(0, 3, 512)])),
        ];
        for (map, size, stored, expected) in cases {
            assert_eq!(content(map, size, stored, 512).unwrap(), expected, "{map:?}");
        }
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let cases: [(&[u64], u64, u64); 7] = [
            (&[0], 10, 0),
            (&[0, 11], 10, 11),
            (&[5, 2, 4, 2], 10, 4),
            (&[5, 2, 6, 2], 10, 4),
            (&[0, 4], 10, 5),
            (&[0, 4], 10, 3),
            (&[u64::MAX, 2], u64::MAX, 2),
        ];
        for (map, size, stored) in cases {
            assert!(content(map, size, stored, 512).is_err(), "{map:?}");
        }
    }

    #[test]
    fn a_map_in_front_of_the_data_ends_with_its_block() {
        let mut text = b"200\n".to_vec();
        (0..400).for_each(|number| text.extend(format!("{number}\n").bytes()));
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        let mut reader = MapReader::default();
        let blocks: Vec<_> = text.chunks(BLOCK).map(|block| block.try_into().unwrap()).collect();
        let (last, first) = blocks.split_last().unwrap();
        for block in first {
            assert!(reader.block(block, &Limits::default()).unwrap().is_none());
        }
        let map = reader.block(last, &Limits::default()).unwrap().unwrap();
        assert_eq!(map, (0..400).collect::<Vec<_>>());
    }

    #[test]
    fn a_map_in_front_of_the_data_that_lies_is_refused() {
        for text in ["x\n", "-1\n", "\n", "99999999999\n", "1\n1x\n", &"9".repeat(30)] {
            let mut block = [b'\n'; BLOCK];
            block[..text.len()].copy_from_slice(text.as_bytes());
            assert!(MapReader::default().block(&block, &Limits::default()).is_err(), "{text}");
        }
    }
}
