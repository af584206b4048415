//! Numbers and times as tar headers and PAX records write them.

use crate::layer::entry::Timestamp;

/// A numeric field of a header block: octal digits between spaces and NULs, or (first bit set) big-endian two's complement
/// ("base-256", as GNU tar, star and Go write what does not fit). Blank is 0. `None` if it is neither, or beyond 64 bits.
pub(super) fn header_number(field: &[u8]) -> Option<i64> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

fn base_256(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    // Bit 7 says "base-256", bit 6 is the sign. The widest field has 12 bytes, 95 bits: i128 cannot overflow.
    let top = i128::from(first & 0x7f) - if first & 0x40 != 0 { 0x80 } else { 0 };
    let value = rest.iter().take(15).fold(top, |value, byte| (value << 8) | i128::from(*byte));
    i64::try_from(value).ok()
}

fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Some(0) };
    let field = &field[start..];
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    field[..end].trim_ascii_end().iter().try_fold(0_i64, |value, byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(byte - b'0')),
        _ => None,
    })
}

/// A string field of a header block: up to its first NUL.
pub(super) fn header_string(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    &field[..end]
}

/// A decimal number without sign, below 2⁶³.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    digits(text).filter(|value| *value <= i64::MAX as u64)
}

fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// A PAX time: decimal seconds with sign and fraction (POSIX pax, "pax Extended Header File Times"). What is finer than a
/// nanosecond is cut off.
pub(super) fn pax_time(text: &[u8]) -> Option<Timestamp> {
    let (negative, unsigned) = match text.split_first()? {
        (b'-', rest) => (true, rest),
        _ => (false, text),
    };
    let mut parts = unsigned.splitn(2, |byte| *byte == b'.');
    let whole = digits(parts.next()?)?;
    // Negative ones reach one further: base-256 fields hold that, too.
    let seconds = if negative { 0_i64.checked_sub_unsigned(whole) } else { i64::try_from(whole).ok() }?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let padded = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = padded.fold(0_u32, |value, digit| value * 10 + u32::from(digit - b'0'));
    Some(match (negative, nanoseconds) {
        (false, _) | (true, 0) => Timestamp { seconds, nanoseconds },
        (true, _) => Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_numbers_are_octal_or_base_256() {
        let cases: [(&[u8], Option<i64>); 17] = [
            (b"0000644\0", Some(0o644)),
            (b"000644 \0", Some(0o644)),
            (b"   644  ", Some(0o644)),
            (b"\0\0 17\0\0\0", Some(0o17)),
            (b"77777777", Some(0o77_777_777)),
            (b"        ", Some(0)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"17\099999", Some(0o17)),
            (b"0000648\0", None),
            (b"-0000001", None),
            (b"12 34\0", None),
            (b"\x80\0\0\0\0\x1f\xff\xff", Some(0x1f_ffff)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xbf\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ];
        for (field, expected) in cases {
            assert_eq!(header_number(field), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn times_before_1970_are_floored() {
        let cases: [(&str, Option<(i64, u32)>); 18] = [
            ("0", Some((0, 0))),
            ("1700000000.123456789", Some((1_700_000_000, 123_456_789))),
            ("1.5", Some((1, 500_000_000))),
            ("1.", Some((1, 0))),
            ("1.0000000019", Some((1, 1))),
            ("-1", Some((-1, 0))),
            ("-1.5", Some((-2, 500_000_000))),
            ("-0.25", Some((-1, 750_000_000))),
            ("-0", Some((0, 0))),
            ("9223372036854775807", Some((i64::MAX, 0))),
            ("9223372036854775808", None),
            ("-9223372036854775808", Some((i64::MIN, 0))),
            ("-9223372036854775808.5", None),
            ("-9223372036854775809", None),
            ("", None),
            (".5", None),
            ("1.5e3", None),
            ("--1", None),
        ];
        for (text, expected) in cases {
            let time = pax_time(text.as_bytes()).map(|time| (time.seconds, time.nanoseconds));
            assert_eq!(time, expected, "{text}");
        }
    }
}
