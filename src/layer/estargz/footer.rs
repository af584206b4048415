//! The footer: an empty gzip member at the end of the blob whose header says where the TOC is.
//!
//! ```text
//!  0  1f 8b 08 04 · time · flags · system        10 bytes, FLG = extra field
//! 10  26 | 22 | 21                                length of the extra field
//! 12  'S' 'G' 22 | 17                             subfield; missing in the legacy form
//!     16 hexadecimal digits, "STARGZ"             offset of the TOC
//!     | "STARGZEXTERNALTOC"                       or it is in another image
//!     01 00 00 ff ff · 8 × 00                     an empty stored block, CRC and length
//! ```

/// Longest footer in bytes: with less of a blob's end, [`Footer::parse`] may miss it.
pub const MAXIMUM_FOOTER: usize = 51;

const LEGACY_FOOTER: usize = 47;
const EXTERNAL_FOOTER: usize = 46;

/// Where the TOC is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footer {
    /// In the blob itself.
    Internal {
        /// First byte of the TOC in the blob.
        toc_offset: u64,
        /// Its length in bytes, up to the footer.
        toc_length: u64,
    },
    /// In another blob, a layer of the TOC image.
    External {
        /// Bytes of this blob before the footer; no payload reaches beyond them.
        payload_end: u64,
    },
}

/// The footer, in its modern form, of a blob whose TOC begins at `toc_offset`.
pub(super) fn footer_bytes(toc_offset: u64) -> [u8; MAXIMUM_FOOTER] {
    let mut footer = [0; MAXIMUM_FOOTER];
    footer[..16].copy_from_slice(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
    footer[16..38].copy_from_slice(format!("{toc_offset:016x}STARGZ").as_bytes());
    footer[38..43].copy_from_slice(b"\x01\0\0\xff\xff");
    footer
}

/// The footer of a blob whose TOC is in another image.
pub(super) fn external_footer_bytes() -> [u8; EXTERNAL_FOOTER] {
    let mut footer = [0; EXTERNAL_FOOTER];
    footer[..16].copy_from_slice(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0");
    footer[16..33].copy_from_slice(b"STARGZEXTERNALTOC");
    footer[33..38].copy_from_slice(b"\x01\0\0\xff\xff");
    footer
}

impl Footer {
    /// The footer of a blob of `blob_size` bytes, whose last bytes, at least [`MAXIMUM_FOOTER`] if it has them, are `tail`.
    /// `None` if it has none, or one whose place of the TOC is outside the blob: then it is no eStargz.
    pub fn parse(tail: &[u8], blob_size: u64) -> Option<Self> {
        Self::internal(tail, MAXIMUM_FOOTER, &[26, 0, b'S', b'G', 22, 0], blob_size)
            .or_else(|| Self::internal(tail, LEGACY_FOOTER, &[22, 0], blob_size))
            .or_else(|| Self::external(tail, blob_size))
    }

    fn internal(tail: &[u8], length: usize, extra_header: &[u8], blob_size: u64) -> Option<Self> {
        let digits = extra_field(tail, length)?.strip_prefix(extra_header)?.strip_suffix(b"STARGZ")?;
        let toc_offset = hexadecimal(digits)?;
        // The TOC comes after at least the end of a tar, so it is never first.
        let toc_end = blob_size.checked_sub(length as u64)?;
        (0 < toc_offset && toc_offset < toc_end)
            .then(|| Self::Internal { toc_offset, toc_length: toc_end - toc_offset })
    }

    fn external(tail: &[u8], blob_size: u64) -> Option<Self> {
        let field = extra_field(tail, EXTERNAL_FOOTER)?;
        let payload_end = blob_size.checked_sub(EXTERNAL_FOOTER as u64)?;
        (field == b"\x15\0SG\x11\0STARGZEXTERNALTOC").then_some(Self::External { payload_end })
    }
}

/// The extra field, with its length, of an empty gzip member of `length` bytes at the end of `tail`.
fn extra_field(tail: &[u8], length: usize) -> Option<&[u8]> {
    const EMPTY_STREAM: [u8; 13] = [1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0];
    let footer = &tail[tail.len().checked_sub(length)?..];
    let (header, rest) = footer.split_at_checked(10)?;
    header.starts_with(&[0x1f, 0x8b, 8, 4]).then(|| rest.strip_suffix(&EMPTY_STREAM))?
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if digits.len() != 16 {
        return None;
    }
    digits
        .iter()
        .try_fold(0_u64, |value, digit| Some(value << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::gzip::GzipDecoder;

    fn footer(extra_header: &[u8], digits: &str) -> Vec<u8> {
        let mut bytes = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 255];
        bytes.extend(extra_header);
        bytes.extend(digits.bytes());
        bytes.extend(b"STARGZ\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        bytes
    }

    #[test]
    fn both_forms_are_found_at_the_end_of_the_blob() {
        let modern = footer(b"\x1a\0SG\x16\0", "00000000000003e8");
        let legacy = footer(b"\x16\0", "00000000000003E8");
        assert_eq!((modern.len(), legacy.len()), (MAXIMUM_FOOTER, LEGACY_FOOTER));
        for (footer, toc_length) in [(modern, 949), (legacy, 953)] {
            let expected = Some(Footer::Internal { toc_offset: 1000, toc_length });
            assert_eq!(Footer::parse(&footer, 2000), expected);
            assert_eq!(Footer::parse(&[&[7; 500][..], &footer].concat(), 2000), expected);
        }
    }

    /// The last bytes of a layer that the reference tool wrote: `ctr-remote images convert --estargz-external-toc`.
    const EXTERNAL: &[u8; EXTERNAL_FOOTER] =
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";

    #[test]
    fn a_footer_may_say_that_the_table_is_elsewhere() {
        let expected = Some(Footer::External { payload_end: 1954 });
        assert_eq!(Footer::parse(EXTERNAL, 2000), expected);
        assert_eq!(Footer::parse(&[&[7; 500][..], EXTERNAL].concat(), 2000), expected);
        assert_eq!(Footer::parse(EXTERNAL, 45), None);
        for at in (0..4).chain(10..EXTERNAL_FOOTER) {
            let mut footer = *EXTERNAL;
            footer[at] ^= 0x80;
            assert_eq!(Footer::parse(&footer, 2000), None, "byte {at}");
        }
    }

    #[test]
    fn what_is_written_is_found() {
        let written = footer_bytes(1000);
        assert_eq!(written[..], footer(b"\x1a\0SG\x16\0", "00000000000003e8"));
        assert_eq!(&external_footer_bytes(), EXTERNAL);
        for footer in [&written[..], EXTERNAL] {
            let decoded = crate::layer::testing::decoded(&mut GzipDecoder::new(), footer, 7, 7);
            assert!(decoded.unwrap().is_empty());
        }
    }

    #[test]
    fn a_footer_that_points_outside_the_blob_is_none() {
        for (digits, blob_size) in [
            ("0000000000000000", 2000),
            ("000000000000079d", 2000),
            ("ffffffffffffffff", 2000),
            ("ffffffffffffffff", u64::MAX),
            ("00000000000003e8", 50),
            ("00000000000003e8", 0),
            ("+0000000000003e8", 2000),
            ("00000000000003eg", 2000),
        ] {
            assert_eq!(Footer::parse(&footer(b"\x1a\0SG\x16\0", digits), blob_size), None, "{digits}");
        }
    }

    #[test]
    fn no_changed_or_shortened_footer_is_found() {
        let footer = footer(b"\x1a\0SG\x16\0", "00000000000003e8");
        for length in 0..footer.len() {
            assert_eq!(Footer::parse(&footer[..length], 2000), None);
            assert_eq!(Footer::parse(&footer[footer.len() - length..], 2000), None);
        }
        // Time, flags and system of the header, and the digits, may be anything.
        for at in (0..4).chain(10..16).chain(32..51) {
            let mut footer = footer.clone();
            footer[at] ^= 0x80;
            assert_eq!(Footer::parse(&footer, 2000), None, "byte {at}");
        }
    }
}
