//! How far to read ahead of a reader that goes through a layer in the order of its blob.
//!
//! Reads that follow on each other's chunks double the window, from nothing to [`LARGEST`]; a read elsewhere closes it. So a
//! program that starts, and touches files here and there, fetches little more than it reads, and one that reads everything
//! soon fetches in large steps.

/// The window never grows beyond this many bytes of the blob.
pub const LARGEST: u64 = 8 << 20;
/// The first window after two reads in a row.
const SMALLEST: u64 = 64 << 10;
/// A read that begins at most this many chunks after the last one's end is taken to follow on it.
const SKIP: usize = 4;

/// What the last reads told.
#[derive(Debug, Default)]
pub struct Readahead {
    expected: usize,
    window: u64,
}

impl Readahead {
    /// Learns of a read that missed, which wants these chunks, and gives the number of blob bytes to fetch beyond them.
    pub fn missed(&mut self, chunks: std::ops::Range<usize>) -> u64 {
        let follows =
            chunks.start >= self.expected && chunks.start - self.expected <= SKIP && self.expected > 0;
        self.window = if follows { (self.window * 2).clamp(SMALLEST, LARGEST) } else { 0 };
        self.expected = chunks.end;
        self.window
    }

    /// Learns that all up to this chunk was asked for beyond what was wanted, so that the next miss is expected there.
    pub fn extended(&mut self, end: usize) {
        self.expected = self.expected.max(end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_a_row_open_the_window_and_a_jump_closes_it() {
        let mut readahead = Readahead::default();
        assert_eq!(readahead.missed(0..1), 0);
        assert_eq!(readahead.missed(1..3), SMALLEST);
        assert_eq!(readahead.missed(4..5), 2 * SMALLEST);
        readahead.extended(20);
        assert_eq!(readahead.missed(20..21), 4 * SMALLEST);
        assert_eq!(readahead.missed(100..101), 0);
        assert_eq!(readahead.missed(50..51), 0);
        for chunk in 51..80 {
            readahead.missed(chunk..chunk + 1);
        }
        assert_eq!(readahead.missed(80..81), LARGEST);
    }
}
