//! `Content-Range` (RFC 9110, section 14.4): which bytes a 206 really holds.

use std::ops::Range;

/// `bytes 0-99/1234` as the range `0..100` and the whole size, if the host tells it.
pub(crate) fn parsed(header: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, size) = header.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let end = last.checked_add(1)?;
    let size = match size {
        "*" => None,
        size => Some(number(size)?),
    };
    (first < end && size.is_none_or(|size| end <= size)).then_some((first..end, size))
}

/// Digits only: `u64::from_str` alone would take a sign.
fn number(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_exact_range_is_read() {
        assert_eq!(parsed("bytes 0-99/1234"), Some((0..100, Some(1234))));
        assert_eq!(parsed("bytes 5-5/*"), Some((5..6, None)));
        for header in [
            "",
            "bytes",
            "bytes */1234",
            "bytes 0-99",
            "bytes 99-0/1234",
            "bytes 0-1234/1234",
            "bytes +0-99/1234",
            "bytes 0-18446744073709551615/*",
            "items 0-99/1234",
            "bytes 0-99/-1",
        ] {
            assert_eq!(parsed(header), None, "{header:?}");
        }
    }
}
