//! The checksum of tar-split: CRC-64 with the polynomial of ISO 3309, as Go's `hash/crc64` computes it. It protects against mistakes,
//! not against anybody.

/// The polynomial, its bits reversed.
const POLYNOMIAL: u64 = 0xd800_0000_0000_0000;

/// For each byte, its checksum with 0 to 7 bytes of zeros behind it: eight bytes are taken at once, five times as fast as one by one.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        let mut byte = 0;
        while byte < 256 {
            let value = tables[zeros - 1][byte];
            tables[zeros][byte] = (value >> 8) ^ tables[0][(value & 0xff) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}

/// A checksum as it grows.
#[derive(Clone, Debug)]
pub struct Crc64(u64);

impl Default for Crc64 {
    fn default() -> Self {
        Crc64(!0)
    }
}

impl Crc64 {
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let word = (self.0 ^ u64::from_le_bytes(*word)).to_le_bytes();
            self.0 =
                TABLES.iter().rev().zip(word).fold(0, |sum, (table, byte)| sum ^ table[usize::from(byte)]);
        }
        for byte in rest {
            self.0 = (self.0 >> 8) ^ TABLES[0][usize::from(self.0 as u8 ^ byte)];
        }
    }

    /// The checksum of all of them.
    pub fn finish(self) -> u64 {
        !self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn crc64(pieces: &[&[u8]]) -> u64 {
        let mut crc = Crc64::default();
        pieces.iter().for_each(|piece| crc.update(piece));
        crc.finish()
    }

    /// The check value is that of CRC-64/GO-ISO in the catalogue of parametrised CRC algorithms.
    #[test]
    fn checksums_are_those_of_go() {
        assert_eq!(crc64(&[b"123456789"]), 0xb909_56c7_75a4_1001);
        assert_eq!(crc64(&[]), 0);
        let text: &[u8] = b"How can you write a big system without C++?  -Paul Glick";
        for cut in 0..text.len() {
            assert_eq!(crc64(&[&text[..cut], &text[cut..]]), crc64(&[text]), "{cut}");
        }
    }
}
