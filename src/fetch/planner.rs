//! From missing chunks to requests: a pure function, so that it can be tested without a network.
//!
//! Chunks that are neighbours in the blob, or whose gap costs less than another request, are got with one request; a request
//! that would grow too large is split, so that its first bytes can be used while the rest is under way. Where a host gives
//! several ranges at once, what lies apart is got with one request, too, and next to nothing of what is between.
//!
//! Chunks that share a gzip member or a zstd frame are decoded from its beginning, each of them. So who wants one brings its
//! [`companions`] along: they are fetched and decoded once then, and not anew for each of a thousand small files.

use std::ops::Range;

use crate::table::format::{ChunkRecord, Codec};

/// What decides how chunks are joined.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes between two chunks that are rather fetched than skipped.
    pub gap: u64,
    /// Most bytes of one request, unless one chunk alone, or what shares its member, has more.
    pub request: u64,
}

impl Default for Limits {
    /// 64 KiB is what a link of 100 Mbit/s carries in 5 ms, less than most round trips; 4 MiB takes a third of a second
    /// there.
    fn default() -> Limits {
        Limits { gap: 64 << 10, request: 4 << 20 }
    }
}

/// For a layer that is brought as a whole, where nobody waits for the first bytes of a request: what lies between chunks costs less
/// than the round trips, and most of it belongs to the archive.
pub const BACKGROUND: Limits = Limits { gap: 256 << 10, request: 8 << 20 };

/// Bytes between two ranges that are rather fetched than asked for as two: those of a part's head, and of its part of the request.
pub const PART: u64 = 512;
/// Most ranges of one request. A header of 1.5 KB goes through every proxy.
const MOST_RANGES: usize = 64;

/// Ranges of the blob and the chunks that lie in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bytes of the blob, apart and in order; one range that is empty if the chunks need none.
    pub ranges: Vec<Range<u64>>,
    /// Chunk numbers, in the order of the blob.
    pub chunks: Vec<u32>,
}

impl Request {
    /// Bytes of all ranges.
    pub fn length(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).fold(0, u64::saturating_add)
    }

    /// Where the first range begins.
    pub fn start(&self) -> u64 {
        self.ranges.first().map_or(0, |range| range.start)
    }
}

/// The same as [`plan`], but if the host `reads_parts`, several ranges make one request.
pub fn plan_parts(
    chunks: &[ChunkRecord],
    wanted: impl IntoIterator<Item = u32>,
    limits: Limits,
    reads_parts: bool,
) -> Vec<Request> {
    match reads_parts {
        true => gathered(plan(chunks, wanted, Limits { gap: PART, ..limits }), limits.request),
        false => plan(chunks, wanted, limits),
    }
}

/// Makes one request of several, which are in the order of the blob, as long as it has no more bytes than that.
fn gathered(requests: Vec<Request>, most: u64) -> Vec<Request> {
    let mut gathered: Vec<Request> = Vec::new();
    for request in requests {
        match gathered.last_mut() {
            Some(last)
                if last.length().saturating_add(request.length()) <= most
                    && last.ranges.len() + request.ranges.len() <= MOST_RANGES
                    && last.length() > 0
                    && request.length() > 0 =>
            {
                last.ranges.extend(request.ranges);
                last.chunks.extend(request.chunks);
            }
            _ => gathered.push(request),
        }
    }
    gathered
}

/// The requests that bring these chunks, in the order of the blob. Numbers that no chunk has are passed over.
pub fn plan(chunks: &[ChunkRecord], wanted: impl IntoIterator<Item = u32>, limits: Limits) -> Vec<Request> {
    let mut wanted: Vec<(Range<u64>, u32)> = wanted
        .into_iter()
        .filter_map(|number| Some((blob_range(chunks.get(number as usize)?), number)))
        .collect();
    wanted.sort_by_key(|(range, number)| (range.start, range.end, *number));
    let mut requests: Vec<(Range<u64>, Vec<u32>)> = Vec::new();
    for (range, number) in wanted {
        if let Some((last, chunks)) = requests.last_mut() {
            let end = last.end.max(range.end);
            let is_shared = range.start == last.start || end == last.end;
            let joins = range.start <= last.end.saturating_add(limits.gap)
                && (end - last.start <= limits.request || is_shared);
            if joins && last.is_empty() == range.is_empty() {
                last.end = end;
                chunks.push(number);
                continue;
            }
        }
        requests.push((range, vec![number]));
    }
    requests.into_iter().map(|(range, chunks)| Request { ranges: vec![range], chunks }).collect()
}

/// A chunk of more blob bytes than this is not fetched with one request, but in steps.
pub const LONGEST_REQUEST: u64 = 64 << 20;
/// A member or frame of at most so many bytes is fetched whole for any chunk of it.
const WHOLE_MEMBER: u64 = 1 << 20;

/// The chunks that are brought along with that one, itself included: those of the same member or frame, as far as they make its request
/// at most twice as long. Of a long one, where each chunk needs more bytes than the one before, a reader so gets to the end in few steps.
pub fn companions(chunks: &[ChunkRecord], number: usize) -> Range<usize> {
    let Some(chunk) = chunks.get(number) else { return 0..0 };
    let Range { start, end } = blob_range(chunk);
    let length = end - start;
    let most = length.saturating_mul(2).clamp(WHOLE_MEMBER, LONGEST_REQUEST).max(length);
    let is_shared = chunk.codec == Codec::Gzip as u8 || chunk.codec == Codec::Zstd as u8;
    let belongs = |other: &&ChunkRecord| {
        let range = blob_range(other);
        is_shared && other.codec == chunk.codec && range.start == start && range.end - range.start <= most
    };
    let before = chunks[..number].iter().rev().take_while(belongs).count();
    let after = chunks[number + 1..].iter().take_while(belongs).count();
    number - before..number + 1 + after
}

/// The bytes of the blob that a chunk needs.
pub fn blob_range(chunk: &ChunkRecord) -> Range<u64> {
    if chunk.codec == Codec::Zeros as u8 {
        return 0..0;
    }
    let start = chunk.blob_offset.get();
    start..start.saturating_add(chunk.blob_length.get())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::testing::chunk;

    #[test]
    fn neighbours_are_joined_and_what_is_large_is_split() {
        let chunks: Vec<_> = [(0, 10), (10, 10), (25, 5), (100, 40), (140, 40), (500, 300), (100, 40)]
            .map(|(offset, length)| chunk(offset, length, Codec::Gzip))
            .into();
        let limits = Limits { gap: 5, request: 60 };
        let request = |range, chunks: &[u32]| Request { ranges: vec![range], chunks: chunks.to_vec() };
        let cases: [(&[u32], Vec<Request>); 5] = [
            (&[0, 1], vec![request(0..20, &[0, 1])]),
            (&[2, 1, 0], vec![request(0..30, &[0, 1, 2])]),
            (&[0, 2], vec![request(0..10, &[0]), request(25..30, &[2])]),
            (&[3, 4, 6], vec![request(100..140, &[3, 6]), request(140..180, &[4])]),
            (&[5, 99], vec![request(500..800, &[5])]),
        ];
        for (wanted, expected) in cases {
            assert_eq!(plan(&chunks, wanted.iter().copied(), limits), expected, "{wanted:?}");
        }
    }

    #[test]
    fn what_lies_apart_is_one_request_where_the_host_can() {
        let chunks: Vec<_> = [(0, 10), (10 + PART, 10), (5_000, 10), (90_000, 100), (900_000, 10), (0, 0)]
            .map(|(offset, length)| {
                chunk(offset, length, if length == 0 { Codec::Zeros } else { Codec::Gzip })
            })
            .into();
        let limits = Limits { gap: 64 << 10, request: 600 };
        let request = |ranges: &[Range<u64>], chunks: &[u32]| Request {
            ranges: ranges.to_vec(),
            chunks: chunks.to_vec(),
        };
        // Next to nothing of what is between comes, and no request is longer than it may be.
        let (first, nothing) = (0..20 + PART, 0..0);
        let expected = [
            request(std::slice::from_ref(&nothing), &[5]),
            request(&[first.clone(), 5_000..5_010], &[0, 1, 2]),
            request(&[90_000..90_100, 900_000..900_010], &[3, 4]),
        ];
        assert_eq!(plan_parts(&chunks, 0..6, limits, true), expected);
        let apart = [request(std::slice::from_ref(&nothing), &[5]), request(&[first], &[0, 1])];
        assert_eq!(plan_parts(&chunks, [5, 0, 1], limits, true), apart);
        assert_eq!(plan_parts(&chunks, 0..6, limits, false), plan(&chunks, 0..6, limits));
        let many: Vec<_> = (0..150).map(|number| chunk(number * 10_000, 10, Codec::Gzip)).collect();
        let ranges: Vec<_> =
            plan_parts(&many, 0..150, Limits::default(), true).iter().map(|one| one.ranges.len()).collect();
        assert_eq!(ranges, [64, 64, 22]);
    }

    #[test]
    fn the_chunks_of_a_member_come_together_if_that_costs_little() {
        const MEBIBYTE: u64 = 1 << 20;
        let mut chunks = vec![chunk(0, 10, Codec::Gzip)];
        // A small member of 5 chunks, then one of 16 MiB in which each chunk needs 1 MiB more.
        chunks.extend((0..5).map(|number| chunk(10, 50 + number, Codec::Gzip)));
        chunks.extend((1..=16).map(|number| chunk(100, number * MEBIBYTE, Codec::Gzip)));
        for (number, expected) in
            [(0, 0..1), (1, 1..6), (5, 1..6), (6, 6..8), (9, 6..14), (14, 6..22), (21, 6..22), (22, 0..0)]
        {
            assert_eq!(companions(&chunks, number), expected, "{number}");
        }
        // And then they are one request, however long.
        let range = 100..100 + 16 * MEBIBYTE;
        let together = Request { ranges: vec![range], chunks: (6..22).collect() };
        assert_eq!(plan(&chunks, 6..22, Limits::default()), [together]);
        for codec in [Codec::Raw, Codec::Zeros, Codec::GzipSpan] {
            assert_eq!(companions(&[chunk(5, 10, codec), chunk(5, 10, codec)], 1), 1..2);
        }
    }

    #[test]
    fn chunks_of_zeros_need_no_bytes() {
        let chunks = [chunk(7, 0, Codec::Zeros), chunk(0, 10, Codec::Gzip)];
        let requests = plan(&chunks, [0, 1], Limits::default());
        assert_eq!(requests.len(), 2);
        assert!(requests[0].length() == 0 && requests[0].chunks == [0]);
    }
}
