//! Where a file is cut into chunks, so that two versions of it have most of their chunks in common.
//!
//! ```text
//! file      │ data │ data      │ zeros, 1 KiB or more │ data │ data
//!                  ▲ cut where the rolling sum says    ▲ cut where zeros begin and end
//! ```
//!
//! The cuts are those that the podman family makes (containers/storage, `pkg/chunked/compressor`): so a chunk of a layer that we
//! wrote is found again in one that podman wrote, and the other way round. The rolling sum is bup's: it depends on the last 64 bytes.
//!
//! A file is worked on in spans, each by itself and on any core. A cut depends on no more than [`BEFORE`] bytes before it and
//! [`AFTER`] behind it; so both spans beside a border find the same first cut behind it, and that is where the one ends and the
//! other begins. Where there is none within [`OVERHANG`], which only repetitive data and zeros come to, they cut there.

use std::ops::Range;

/// Bytes of a span, which bounds what is in memory and, with [`OVERHANG`], the length of a chunk.
pub(super) const SPAN: u64 = 4 << 20;
/// Fewest zeros that become a chunk of zeros.
const ZEROS: usize = 1 << 10;
/// Bytes before a span that its first cut depends on: as many zeros make the next one a part of them.
const BEFORE: u64 = ZEROS as u64;
/// Bytes behind a cut that it depends on: zeros begin here if as many follow.
const AFTER: u64 = ZEROS as u64;
/// How far behind a border the first cut is looked for: 16 times the length of a usual chunk.
const OVERHANG: u64 = 1 << 20;

/// Bits of the rolling sum that are all set at a cut: chunks have 64 KiB on average.
const CUT: u32 = (1 << 16) - 1;
/// Bytes that the sum depends on.
const WINDOW: usize = 64;
/// What is added to each byte, so that zeros count.
const OFFSET: u32 = 31;

/// A part of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChunkRange {
    /// Bytes of the file.
    pub bytes: Range<u64>,
    /// All of them are zeros by the rule above.
    pub is_zeros: bool,
}

/// The bytes of a file of `size` bytes that must be looked at for the chunks of a span.
pub(super) fn view(span: &Range<u64>, size: u64) -> Range<u64> {
    span.start.saturating_sub(BEFORE)..span.end.saturating_add(OVERHANG + AFTER).min(size)
}

/// The chunks that begin in or, by [`OVERHANG`], shortly behind `span`, a part of a file of `size` bytes; `bytes` are those of
/// [`view`]. Chunks of all spans that follow each other follow each other, and are the whole file.
pub(super) fn chunks(bytes: &[u8], span: &Range<u64>, size: u64) -> Vec<ChunkRange> {
    let view = view(span, size);
    let cuts = Cuts::of(bytes, view.end == size);
    let absolute = |at: usize| view.start + at as u64;
    // Where the span that begins at a border really begins.
    let begin = |border: u64| {
        let latest = border.saturating_add(OVERHANG).min(size);
        let first = cuts.at.partition_point(|at| absolute(*at) < border);
        match cuts.at.get(first) {
            _ if border == 0 || border == size => border,
            Some(at) if absolute(*at) <= latest => absolute(*at),
            _ => latest,
        }
    };
    let (from, to) = (begin(span.start), begin(span.end));
    let inner = cuts.at.iter().map(|at| absolute(*at)).filter(|at| from < *at && *at < to);
    let mut start = from;
    let mut chunks = Vec::new();
    for end in inner.chain([to]).filter(|end| *end > from) {
        let is_zeros =
            cuts.zeros.iter().any(|zeros| absolute(zeros.start) <= start && end <= absolute(zeros.end));
        chunks.push(ChunkRange { bytes: start..end, is_zeros });
        start = end;
    }
    chunks
}

/// What is found in some bytes.
struct Cuts {
    /// Ascending, each once; neither 0 nor the end of what ends in the middle.
    at: Vec<usize>,
    /// Ranges of zeros.
    zeros: Vec<Range<usize>>,
}

impl Cuts {
    fn of(bytes: &[u8], is_end: bool) -> Cuts {
        let mut cuts = Cuts { at: Vec::new(), zeros: Vec::new() };
        let mut start = 0;
        while start < bytes.len() {
            let zeros = next_zeros(bytes, start).unwrap_or(bytes.len()..bytes.len());
            roll(&bytes[start..zeros.start], |at| cuts.add(start + at));
            if !zeros.is_empty() {
                cuts.add(zeros.start);
                if zeros.end < bytes.len() || is_end {
                    cuts.add(zeros.end);
                }
            }
            start = zeros.end;
            if !zeros.is_empty() {
                cuts.zeros.push(zeros);
            }
        }
        cuts
    }

    fn add(&mut self, at: usize) {
        if at > 0 && self.at.last() != Some(&at) {
            self.at.push(at);
        }
    }
}

/// The next range of [`ZEROS`] zeros or more, from `start` on.
fn next_zeros(bytes: &[u8], start: usize) -> Option<Range<usize>> {
    // Every such range holds one of these places.
    let mut probe = start + ZEROS - 1;
    while probe < bytes.len() {
        if bytes[probe] == 0 {
            let before = bytes[start..probe].iter().rev().take_while(|byte| **byte == 0).count();
            let behind = bytes[probe..].iter().take_while(|byte| **byte == 0).count();
            if before + behind >= ZEROS {
                return Some(probe - before..probe + behind);
            }
            // What is zero here was too short, and the next byte is not.
            probe += behind;
        }
        probe += ZEROS;
    }
    None
}

/// Calls `cut` with each place behind which the rolling sum of `bytes` cuts. Before them there are zeros, or nothing, which is the same.
fn roll(bytes: &[u8], mut cut: impl FnMut(usize)) {
    const WINDOW_SUM: u32 = WINDOW as u32;
    let mut first = WINDOW_SUM * OFFSET;
    let mut second = WINDOW_SUM * (WINDOW_SUM - 1) * OFFSET;
    for (at, byte) in bytes.iter().enumerate() {
        let dropped = at.checked_sub(WINDOW).map_or(0, |at| u32::from(bytes[at]));
        first = first.wrapping_add(u32::from(*byte)).wrapping_sub(dropped);
        second = second.wrapping_add(first).wrapping_sub(WINDOW_SUM * (dropped + OFFSET));
        if second & CUT == CUT {
            cut(at + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rule, byte by byte over the whole file, with nothing cut where no rule says so.
    fn by_definition(file: &[u8]) -> Vec<ChunkRange> {
        let mut chunks = Vec::new();
        let (mut start, mut first, mut second) = (0, 64 * 31_u32, 64 * 63 * 31_u32);
        let mut window = [0_u8; 64];
        let mut push = |start: &mut usize, end: usize, is_zeros| {
            if *start < end {
                chunks.push(ChunkRange { bytes: *start as u64..end as u64, is_zeros });
                *start = end;
            }
        };
        let mut at = 0;
        while at < file.len() {
            let zeros = file[at..].iter().take_while(|byte| **byte == 0).count();
            let is_first_zero = at == 0 || file[at - 1] != 0;
            let is_hole = zeros >= 1024 && is_first_zero;
            if is_hole {
                push(&mut start, at, false);
            }
            for _ in 0..if is_hole { zeros } else { 1 } {
                let dropped = u32::from(std::mem::replace(&mut window[at % 64], file[at]));
                first = first.wrapping_add(u32::from(file[at])).wrapping_sub(dropped);
                second = second.wrapping_add(first).wrapping_sub(64 * (dropped + 31));
                at += 1;
            }
            if is_hole {
                push(&mut start, at, true);
            } else if second & 0xffff == 0xffff {
                push(&mut start, at, false);
            }
        }
        push(&mut start, file.len(), false);
        chunks
    }

    fn in_spans(file: &[u8], span: u64) -> Vec<ChunkRange> {
        let size = file.len() as u64;
        let starts = (0..size).step_by(span as usize);
        let spans = starts.map(|start| start..(start + span).min(size));
        spans
            .flat_map(|span| {
                let view = view(&span, size);
                chunks(&file[view.start as usize..view.end as usize], &span, size)
            })
            .collect()
    }

    fn noise(length: usize, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let next = |_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        };
        (0..length).map(next).collect()
    }

    #[test]
    fn chunks_do_not_depend_on_spans() {
        let zeros = |length| vec![0; length];
        let files = [
            noise(1, 1),
            noise(700_000, 2),
            zeros(500),
            zeros(1023),
            zeros(1024),
            zeros(100_000),
            [noise(100, 3), zeros(1024), noise(1023, 4)].concat(),
            [zeros(1023), noise(70_000, 5), zeros(5000), noise(3, 6), zeros(1100), noise(200_000, 7)]
                .concat(),
            [noise(65_536, 8), zeros(131_072), noise(65_536, 9), zeros(3000)].concat(),
        ];
        for file in &files {
            let expected = by_definition(file);
            assert_eq!(expected.last().map(|chunk| chunk.bytes.end), Some(file.len() as u64));
            for span in [500, 1023, 1024, 4096, 65_536, 100_000, SPAN] {
                // Where a span ends within zeros, these are cut, too.
                let mut joined: Vec<ChunkRange> = Vec::new();
                for chunk in in_spans(file, span) {
                    match joined.last_mut() {
                        Some(last) if last.is_zeros && chunk.is_zeros => last.bytes.end = chunk.bytes.end,
                        _ => joined.push(chunk),
                    }
                }
                assert_eq!(joined, expected, "{} {span}", file.len());
            }
        }
    }

    #[test]
    fn what_is_never_cut_by_the_rule_is_cut_by_the_span() {
        for byte in [0, 1] {
            let file = vec![byte; 3 * SPAN as usize + 5];
            let chunks = in_spans(&file, SPAN);
            assert!(chunks.windows(2).all(|pair| pair[0].bytes.end == pair[1].bytes.start));
            assert_eq!((chunks[0].bytes.start, chunks.last().unwrap().bytes.end), (0, file.len() as u64));
            assert!(chunks.iter().all(|chunk| chunk.is_zeros == (byte == 0)));
            let longest = chunks.iter().map(|chunk| chunk.bytes.end - chunk.bytes.start).max().unwrap();
            assert!(longest <= SPAN + OVERHANG, "{longest}");
        }
    }

    #[test]
    fn two_versions_of_a_file_have_most_chunks_in_common() {
        let one = noise(3 << 20, 1);
        let two = [&one[..1_000_000], b"something new", &one[1_000_000..]].concat();
        let contents = |file: &[u8]| -> std::collections::BTreeSet<Vec<u8>> {
            let bytes =
                |chunk: ChunkRange| file[chunk.bytes.start as usize..chunk.bytes.end as usize].to_vec();
            in_spans(file, SPAN).into_iter().map(bytes).collect()
        };
        let (one, two) = (contents(&one), contents(&two));
        assert!(one.len() > 20, "{}", one.len());
        assert!(two.difference(&one).count() <= 2);
    }
}
