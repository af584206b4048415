//! The header of a gzip member (RFC 1952, section 2.3), whose parts may arrive in pieces of any size.

/// Reads one header.
pub(super) struct HeaderReader {
    part: Part,
    /// Bytes of the current part, if it is one of fixed length.
    collected: [u8; 10],
    filled: usize,
    flags: u8,
    checksum: crc32fast::Hasher,
}

#[derive(Clone, Copy)]
enum Part {
    Fixed,
    ExtraLength,
    Extra { remaining: usize },
    Name,
    Comment,
    Checksum,
    Done,
}

/// What [`HeaderReader::take`] took.
pub(super) struct Taken {
    pub length: usize,
    /// The header ended with these bytes.
    pub is_complete: bool,
}

const HAS_CHECKSUM: u8 = 0x02;
const HAS_EXTRA: u8 = 0x04;
const HAS_NAME: u8 = 0x08;
const HAS_COMMENT: u8 = 0x10;
const RESERVED: u8 = 0xe0;

impl HeaderReader {
    pub fn new() -> Self {
        Self {
            part: Part::Fixed,
            collected: [0; 10],
            filled: 0,
            flags: 0,
            checksum: crc32fast::Hasher::new(),
        }
    }

    /// Takes bytes up to the end of the header, or all of them.
    pub fn take(&mut self, input: &[u8]) -> Result<Taken, &'static str> {
        let mut length = 0;
        while !matches!(self.part, Part::Done) && length < input.len() {
            length += self.take_part(&input[length..])?;
        }
        Ok(Taken { length, is_complete: matches!(self.part, Part::Done) })
    }

    fn take_part(&mut self, input: &[u8]) -> Result<usize, &'static str> {
        match self.part {
            Part::Fixed => self.collect(input, 10, |reader| match reader.collected {
                [0x1f, 0x8b, 8, flags, ..] if flags & RESERVED == 0 => {
                    reader.flags = flags;
                    Ok(Part::ExtraLength)
                }
                [0x1f, 0x8b, 8, ..] => Err("unknown flags in the header"),
                [0x1f, 0x8b, ..] => Err("unknown compression method"),
                _ => Err("not a gzip header"),
            }),
            Part::ExtraLength if self.flags & HAS_EXTRA == 0 => self.next(Part::Name),
            Part::ExtraLength => self.collect(input, 2, |reader| {
                let [low, high, ..] = reader.collected;
                Ok(Part::Extra { remaining: usize::from(u16::from_le_bytes([low, high])) })
            }),
            Part::Extra { remaining: 0 } => self.next(Part::Name),
            Part::Extra { remaining } => {
                let taken = input.len().min(remaining);
                self.checksum.update(&input[..taken]);
                self.part = Part::Extra { remaining: remaining - taken };
                Ok(taken)
            }
            Part::Name if self.flags & HAS_NAME == 0 => self.next(Part::Comment),
            Part::Name => Ok(self.skip_string(input, Part::Comment)),
            Part::Comment if self.flags & HAS_COMMENT == 0 => self.next(Part::Checksum),
            Part::Comment => Ok(self.skip_string(input, Part::Checksum)),
            Part::Checksum if self.flags & HAS_CHECKSUM == 0 => self.next(Part::Done),
            Part::Checksum => {
                // Two bytes of the CRC-32 of all bytes before them.
                let [low, high, ..] = self.checksum.clone().finalize().to_le_bytes();
                self.collect(input, 2, |reader| match reader.collected {
                    [a, b, ..] if [a, b] == [low, high] => Ok(Part::Done),
                    _ => Err("the checksum of the header does not match"),
                })
            }
            Part::Done => Ok(0),
        }
    }

    fn next(&mut self, part: Part) -> Result<usize, &'static str> {
        self.part = part;
        Ok(0)
    }

    fn collect(
        &mut self,
        input: &[u8],
        length: usize,
        then: impl FnOnce(&mut Self) -> Result<Part, &'static str>,
    ) -> Result<usize, &'static str> {
        let taken = input.len().min(length - self.filled);
        self.collected[self.filled..self.filled + taken].copy_from_slice(&input[..taken]);
        self.filled += taken;
        if !matches!(self.part, Part::Checksum) {
            self.checksum.update(&input[..taken]);
        }
        if self.filled == length {
            self.filled = 0;
            self.part = then(self)?;
        }
        Ok(taken)
    }

    fn skip_string(&mut self, input: &[u8], then: Part) -> usize {
        let end = input.iter().position(|byte| *byte == 0);
        let taken = end.map_or(input.len(), |end| end + 1);
        self.checksum.update(&input[..taken]);
        if end.is_some() {
            self.part = then;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header with every field, made by hand after the RFC.
    fn header() -> Vec<u8> {
        let mut bytes = vec![0x1f, 0x8b, 8, 0x1e, 0, 0, 0, 0, 0, 255];
        bytes.extend([3, 0, b'S', b'G', 0]);
        bytes.extend(b"name\0comment\0");
        let checksum = crc32fast::hash(&bytes);
        bytes.extend(&checksum.to_le_bytes()[..2]);
        bytes
    }

    fn read(bytes: &[u8], piece: usize) -> Result<bool, &'static str> {
        let mut reader = HeaderReader::new();
        let mut is_complete = false;
        for piece in bytes.chunks(piece) {
            let taken = reader.take(piece)?;
            assert_eq!(taken.length, piece.len());
            is_complete = taken.is_complete;
        }
        Ok(is_complete)
    }

    #[test]
    fn a_header_with_every_field_ends_where_it_ends() {
        let bytes = header();
        for piece in 1..bytes.len() {
            assert_eq!(read(&bytes, piece), Ok(true));
            assert_eq!(read(&bytes[..bytes.len() - 1], piece), Ok(false));
        }
        let taken = HeaderReader::new().take(&[&bytes[..], b"more"].concat()).unwrap();
        assert_eq!((taken.length, taken.is_complete), (bytes.len(), true));
    }

    #[test]
    fn a_header_without_fields_has_ten_bytes() {
        let taken = HeaderReader::new().take(&[0x1f, 0x8b, 8, 0, 1, 2, 3, 4, 5, 6, 7]).unwrap();
        assert_eq!((taken.length, taken.is_complete), (10, true));
    }

    #[test]
    fn a_changed_header_is_noticed_by_its_checksum() {
        for at in 0..header().len() {
            let mut bytes = header();
            bytes[at] ^= 1;
            // Bit 0 of the flags is a hint without meaning, but covered by the checksum.
            assert_ne!(read(&bytes, 4), Ok(true), "byte {at}");
        }
    }
}
