//! The last bytes of a zstd:chunked blob: a skippable frame that says where the TOC is.
//!
//! ```text
//! 50 2a 4d 18 · length                                skippable frame (RFC 8878, section 3.1.2)
//!     TOC: offset, compressed, decoded length, type    40 bytes of data: the stargz project
//!     tar-split: offset, compressed, decoded length    64 bytes of data: containers/storage; 0 if there is none
//!     "GnUlInUx" or "GNUlInUx"
//! ```
//!
//! All numbers are 64-bit and little-endian. In real files both lengths were seen with the first magic; containers/storage defines
//! the second for its own.

use super::claims::TYPE_CRFS;
use super::{Place, Positions, SKIPPABLE_MAGIC};

/// Longest footer in bytes, its header included: with less of a blob's end, [`parse_footer`] may miss it.
pub const MAXIMUM_FOOTER: usize = 8 + 64;

const MAGICS: [&[u8; 8]; 2] = [b"GnUlInUx", b"GNUlInUx"];

/// Where TOC and tar-split data are, by the footer of a blob whose last bytes, at least [`MAXIMUM_FOOTER`] if it has them, are `tail`.
/// `None` if it has no footer: then it is not zstd:chunked. Whether the places are in the blob is not looked at.
pub fn parse_footer(tail: &[u8]) -> Option<Positions> {
    parse_form::<7>(tail).or_else(|| parse_form::<4>(tail))
}

/// The footer, as containers/storage writes it, of a blob with TOC and tar-split data at these places.
pub(super) fn footer_frame(positions: &Positions) -> [u8; MAXIMUM_FOOTER] {
    let numbers = |place: Place| [place.offset, place.compressed_length, place.decoded_length];
    let none = Place { offset: 0, compressed_length: 0, decoded_length: 0 };
    let toc = numbers(positions.toc);
    let tar_split = numbers(positions.tar_split.unwrap_or(none));
    let mut frame = [0; MAXIMUM_FOOTER];
    frame[..4].copy_from_slice(&SKIPPABLE_MAGIC);
    frame[4..8].copy_from_slice(&64_u32.to_le_bytes());
    let all = toc.into_iter().chain([TYPE_CRFS]).chain(tar_split);
    for (field, number) in frame[8..64].as_chunks_mut::<8>().0.iter_mut().zip(all) {
        *field = number.to_le_bytes();
    }
    frame[64..].copy_from_slice(MAGICS[1]);
    frame
}

fn parse_form<const NUMBERS: usize>(tail: &[u8]) -> Option<Positions> {
    let length = 8 * NUMBERS + 8;
    let frame = &tail[tail.len().checked_sub(8 + length)?..];
    let data = frame.strip_prefix(&SKIPPABLE_MAGIC)?.strip_prefix(&(length as u32).to_le_bytes())?;
    let data = MAGICS.iter().find_map(|magic| data.strip_suffix(&magic[..]))?;
    let mut numbers = [0_u64; NUMBERS];
    for (number, bytes) in numbers.iter_mut().zip(data.as_chunks().0) {
        *number = u64::from_le_bytes(*bytes);
    }
    let place = |numbers: &[u64]| match numbers {
        [offset, compressed_length, decoded_length, ..] => Some(Place {
            offset: *offset,
            compressed_length: *compressed_length,
            decoded_length: *decoded_length,
        }),
        _ => None,
    };
    let tar_split = numbers.get(4..).and_then(place).filter(|place| place.offset > 0);
    (numbers[3] == TYPE_CRFS).then_some(Positions { toc: place(&numbers)?, tar_split })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn footer(numbers: &[u64], magic: &[u8]) -> Vec<u8> {
        let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let length = (data.len() + magic.len()) as u32;
        [&[0x50, 0x2a, 0x4d, 0x18][..], &length.to_le_bytes(), &data, magic].concat()
    }

    fn place(offset: u64, compressed_length: u64, decoded_length: u64) -> Place {
        Place { offset, compressed_length, decoded_length }
    }

    #[test]
    fn both_forms_are_found_at_the_end_of_the_blob() {
        for magic in MAGICS {
            for (numbers, tar_split) in [
                (&[1000, 20, 300, 1][..], None),
                (&[1000, 20, 300, 1, 0, 0, 0], None),
                (&[1000, 20, 300, 1, 1028, 5, 600], Some(place(1028, 5, 600))),
            ] {
                let footer = footer(numbers, magic);
                let expected = Some(Positions { toc: place(1000, 20, 300), tar_split });
                assert_eq!(parse_footer(&footer), expected);
                assert_eq!(parse_footer(&[&[7; 500][..], &footer].concat()), expected);
            }
        }
    }

    #[test]
    fn what_is_written_is_found() {
        for tar_split in [None, Some(place(1028, 5, 600))] {
            let positions = Positions { toc: place(1000, 20, 300), tar_split };
            assert_eq!(parse_footer(&footer_frame(&positions)), Some(positions));
        }
    }

    #[test]
    fn no_changed_or_shortened_footer_is_found() {
        for numbers in [&[1000, 20, 300, 1][..], &[1000, 20, 300, 1, 1028, 5, 600]] {
            let footer = footer(numbers, MAGICS[0]);
            assert!(footer.len() <= MAXIMUM_FOOTER);
            for length in 0..footer.len() {
                assert_eq!(parse_footer(&footer[..length]), None);
                assert_eq!(parse_footer(&footer[footer.len() - length..]), None);
            }
            // Header, type of the TOC, and magic; the places may be anything.
            for at in (0..8).chain(32..40).chain(footer.len() - 8..footer.len()) {
                let mut footer = footer.clone();
                footer[at] ^= 0x80;
                assert_eq!(parse_footer(&footer), None, "byte {at}");
            }
        }
        assert_eq!(parse_footer(&footer(&[1, 2, 3, 1, 4], MAGICS[0])), None);
    }
}
