//! Several ranges of a blob in one body: `multipart/byteranges` (RFC 9110, section 14.6; RFC 2046, section 5.1.1).
//!
//! ```text
//! --BOUNDARY ␍␊ Content-Type: … ␍␊ Content-Range: bytes 5-9/100 ␍␊ ␍␊ 5 bytes ␍␊ --BOUNDARY ␍␊ … 7 bytes ␍␊ --BOUNDARY-- ␍␊
//! └──────────────────────── head ─────────────────────────────┘ └ content      └─────── head ───┘           └ passed over
//! ```
//!
//! A host may reorder or join parts. Ours are apart and in order, so one that does so gains nothing, and is taken for one that does
//! not know how: only exactly the parts that were asked for, in that order, are taken. How long a part is, its head says, so
//! nothing in a content can be taken for a boundary. No more than a head and what came last is in memory.

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Buf as _, Bytes, BytesMut};

use crate::content_range;

/// Most bytes of a head, the end of the part before included. Those of real hosts have some 200.
pub(crate) const MOST_HEAD: usize = 4 << 10;
/// Most bytes of a boundary (RFC 2046).
const MOST_BOUNDARY: usize = 70;
const LINE_END: &[u8] = b"\r\n";

/// What came is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAsAsked(pub(crate) &'static str);

/// What the head of a part says: its range, the size of the blob if that is told; and the head's length.
type Head = (Range<u64>, Option<u64>, usize);

/// A body with several parts, as it arrives.
#[derive(Debug)]
pub(crate) struct Multipart {
    /// The two hyphens, and the boundary.
    delimiter: Vec<u8>,
    /// Of the whole blob.
    size: u64,
    /// The parts that have not begun.
    left: VecDeque<Range<u64>>,
    /// Bytes left of the content of the one that has.
    content: u64,
    is_first: bool,
    buffer: BytesMut,
}

impl Multipart {
    /// A body of that `Content-Type`, in which these parts of a blob of that size are to be; nothing if it is of another type.
    pub(crate) fn new(content_type: &str, size: u64, ranges: VecDeque<Range<u64>>) -> Option<Multipart> {
        let delimiter = [b"--", boundary(content_type)?.as_bytes()].concat();
        let buffer = BytesMut::new();
        Some(Multipart { delimiter, size, left: ranges, content: 0, is_first: true, buffer })
    }

    /// Takes in what came. To be called once [`next`](Self::next) has nothing more.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next bytes of contents; nothing if more of the body is needed for that, or all contents were given.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, NotAsAsked> {
        loop {
            if self.content > 0 {
                let length = self.content.min(self.buffer.len() as u64);
                self.content -= length;
                // It is at most as long as the buffer.
                return Ok(
                    Some(self.buffer.split_to(length as usize).freeze()).filter(|bytes| !bytes.is_empty())
                );
            }
            let Some(expected) = self.left.front() else {
                self.buffer.clear();
                return Ok(None);
            };
            let Some((range, whole, length)) = self.head()? else { return Ok(None) };
            if range != *expected || whole.is_some_and(|whole| whole != self.size) {
                return Err(NotAsAsked("a part of it is not the one that was asked for next"));
            }
            self.content = range.end - range.start;
            self.left.pop_front();
            self.is_first = false;
            self.buffer.advance(length);
        }
    }

    /// Whether all contents were given.
    pub(crate) fn is_over(&self) -> bool {
        self.left.is_empty() && self.content == 0
    }

    /// Whether it says that it ends here, in front of a part that was asked for.
    pub(crate) fn is_closed(&self) -> bool {
        let last = [&self.delimiter, &b"--"[..]].concat();
        let rest = self.buffer.strip_prefix(LINE_END).unwrap_or(&self.buffer);
        self.content == 0 && !self.left.is_empty() && rest.starts_with(&last)
    }

    /// The head that comes next; nothing if not all of it is here.
    fn head(&self) -> Result<Option<Head>, NotAsAsked> {
        let found = self.buffer.windows(4).take(MOST_HEAD).position(|bytes| bytes == b"\r\n\r\n");
        let Some(end) = found else {
            return match self.is_closed() {
                true => Err(NotAsAsked("a part that was asked for is missing")),
                false if self.buffer.len() > MOST_HEAD => Err(NotAsAsked("the head of a part is too long")),
                false => Ok(None),
            };
        };
        let malformed = || NotAsAsked("the head of a part is malformed");
        let mut head = self.buffer.get(..end).unwrap_or_default();
        match head.strip_prefix(LINE_END) {
            Some(rest) => head = rest,
            None if self.is_first => {}
            None => return Err(malformed()),
        }
        let head = head.strip_prefix(self.delimiter.as_slice()).ok_or_else(malformed)?;
        let head = std::str::from_utf8(head).map_err(|_| malformed())?;
        // What follows the boundary on its line may be blanks.
        let (rest_of_line, fields) = head.split_once("\r\n").ok_or_else(malformed)?;
        if !rest_of_line.trim_matches([' ', '\t']).is_empty() {
            return Err(malformed());
        }
        let mut found = None;
        for field in fields.split("\r\n") {
            let (name, value) = field.split_once(':').ok_or_else(malformed)?;
            if name.eq_ignore_ascii_case("content-range") {
                let range = content_range::parsed(value).ok_or_else(malformed)?;
                if found.replace(range).is_some() {
                    return Err(malformed());
                }
            }
        }
        let (range, whole) = found.ok_or_else(malformed)?;
        Ok(Some((range, whole, end + 4)))
    }
}

/// The boundary of a `multipart/byteranges`.
fn boundary(content_type: &str) -> Option<&str> {
    let (kind, parameters) = content_type.split_once(';')?;
    if !kind.trim().eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    let value = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then_some(value.trim())
    })?;
    let value = value.strip_prefix('"').map_or(Some(value), |value| value.strip_suffix('"'))?;
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&byte);
    let is_boundary = (1..=MOST_BOUNDARY).contains(&value.len()) && value.bytes().all(is_allowed);
    (is_boundary && !value.ends_with(' ')).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/byteranges; boundary=B";
    const BLOB: &[u8] = b"0123456789--B\r\nabcdefghij";

    fn part(range: Range<usize>, said: &str) -> Vec<u8> {
        let head = format!("\r\n--B\r\nContent-Type: x\r\ncontent-range: bytes {said}\r\n\r\n");
        [head.as_bytes(), &BLOB[range]].concat()
    }

    /// What comes of a body that arrives in pieces of that length.
    fn parsed(ranges: &[Range<u64>], body: &[u8], length: usize) -> Result<(Vec<u8>, bool), NotAsAsked> {
        let mut multipart = Multipart::new(TYPE, 25, ranges.iter().cloned().collect()).unwrap();
        let mut found = Vec::new();
        for piece in body.chunks(length) {
            multipart.push(piece);
            while let Some(bytes) = multipart.next()? {
                found.extend_from_slice(&bytes);
            }
        }
        Ok((found, multipart.is_over()))
    }

    #[test]
    fn the_contents_come_one_after_the_other_however_the_body_is_cut() {
        // The content of one looks like a boundary.
        let mut body = [part(2..5, "2-4/25"), part(9..16, "9-15/*"), part(20..25, "20-24/25")].concat();
        body.extend_from_slice(b"\r\n--B--\r\nwhat follows");
        let expected = [&BLOB[2..5], &BLOB[9..16], &BLOB[20..25]].concat();
        for length in 1..body.len() {
            for body in [&body[..], &body[2..]] {
                let found = parsed(&[2..5, 9..16, 20..25], body, length);
                assert_eq!(found, Ok((expected.clone(), true)), "{length}");
            }
        }
        let cut = parsed(&[2..5, 9..16, 20..25], &body[..body.len() - 30], 7).unwrap();
        assert!(!cut.1 && expected.starts_with(&cut.0));
    }

    #[test]
    fn other_parts_than_those_that_were_asked_for_are_not_taken() {
        let (one, other) = (part(2..5, "2-4/25"), part(9..16, "9-15/25"));
        let cases: [(&str, Vec<u8>); 12] = [
            ("another order", [other.clone(), one.clone()].concat()),
            ("one twice", [one.clone(), one.clone()].concat()),
            ("one missing", [&one[..], b"\r\n--B--\r\n"].concat()),
            ("joined", part(2..16, "2-15/25")),
            ("overlapping", [one.clone(), part(4..16, "4-15/25")].concat()),
            ("another size", part(2..5, "2-4/26")),
            ("no range", b"--B\r\nContent-Type: x\r\n\r\n234".to_vec()),
            (
                "two ranges",
                b"--B\r\nContent-Range: bytes 2-4/25\r\nContent-Range: bytes 2-4/25\r\n\r\n234".to_vec(),
            ),
            ("another boundary", b"--C\r\nContent-Range: bytes 2-4/25\r\n\r\n234".to_vec()),
            ("a longer boundary", b"--BB\r\nContent-Range: bytes 2-4/25\r\n\r\n234".to_vec()),
            ("a longer part", [&one[..], b"5", &other].concat()),
            ("an endless head", [b"--B\r\nX: ".to_vec(), vec![b'x'; 2 * MOST_HEAD]].concat()),
        ];
        for (name, body) in cases {
            for length in [1, 10, 1000] {
                assert!(parsed(&[2..5, 9..16], &body, length).is_err(), "{name} {length}");
            }
        }
    }

    #[test]
    fn boundaries_are_read_as_they_are_defined() {
        for (header, expected) in [
            ("multipart/byteranges; boundary=abc", Some("abc")),
            ("Multipart/ByteRanges;x=y; BOUNDARY=\"a b:c\"", Some("a b:c")),
            ("multipart/byteranges", None),
            ("multipart/byteranges; boundary=", None),
            ("multipart/byteranges; boundary=\"abc", None),
            ("multipart/byteranges; boundary=\"abc \"", None),
            ("multipart/byteranges; boundary=a\"b", None),
            ("multipart/mixed; boundary=abc", None),
            ("application/octet-stream", None),
        ] {
            assert_eq!(boundary(header), expected, "{header}");
        }
        let long = |length| format!("multipart/byteranges; boundary={}", "x".repeat(length));
        assert!(boundary(&long(70)).is_some() && boundary(&long(71)).is_none());
    }
}
