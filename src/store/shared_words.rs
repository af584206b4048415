//! A file mapped into memory as 64-bit words that several threads and processes change at once. The only unsafe file of the
//! store.
//!
//! What could go wrong, and why it does not:
//! - *Data races.* All access is through `AtomicU64`. Other processes map the same file with the same code, and a lock-free
//!   64-bit atomic works between processes as between threads.
//! - *Access past the end of the file* raises SIGBUS. The length is checked when the file is mapped; the store gives a map its
//!   final length before it becomes visible (by rename) and never changes it afterwards. A file of another length is replaced
//!   by a new one, not cut. The store's directory is its owner's alone, so only the owner can cut the file under a running
//!   process, and then the process ends with SIGBUS: no wrong byte is served, and the next start replaces the map.
//! - *A full disk* raises SIGBUS when a page without a block is dirtied. The file is written in full, zeros included, when it
//!   is made. (On a copy-on-write file system this does not reserve the rewrite; there the process may end as above.)

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use super::chunk_bits::Words;

/// The words of a mapped file.
#[derive(Debug)]
pub(super) struct SharedWords {
    map: MmapRaw,
    count: usize,
}

impl SharedWords {
    /// Maps the first `count` words of a file.
    ///
    /// # Errors
    /// `InvalidData` if the file has any other length; what the system says if it cannot be mapped.
    pub(super) fn map(file: &File, count: usize) -> io::Result<SharedWords> {
        let length = count.checked_mul(size_of::<u64>()).ok_or(io::ErrorKind::InvalidInput)?;
        let found = file.metadata()?.len();
        if count == 0 || found != length as u64 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{found} bytes instead of {length}"),
            ));
        }
        let map = MmapOptions::new().len(length).map_raw(file)?;
        Ok(SharedWords { map, count })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `count * 8` bytes long, page-aligned, readable and writable, and lives as long as `self`.
        // Nobody ever makes a plain reference to its bytes; see the head of this file for other processes and for SIGBUS.
        unsafe { std::slice::from_raw_parts(self.map.as_ptr().cast::<AtomicU64>(), self.count) }
    }
}

impl Words for SharedWords {
    fn load(&self, word: usize) -> u64 {
        self.words()[word].load(Ordering::Acquire)
    }

    fn store(&self, word: usize, value: u64) {
        self.words()[word].store(value, Ordering::Release);
    }

    fn fetch_or(&self, word: usize, value: u64) -> u64 {
        self.words()[word].fetch_or(value, Ordering::AcqRel)
    }

    fn fetch_and(&self, word: usize, value: u64) -> u64 {
        self.words()[word].fetch_and(value, Ordering::AcqRel)
    }

    fn flush(&self, words: Range<usize>) -> io::Result<()> {
        super::durable::crash_point();
        self.map.flush_range(words.start * size_of::<u64>(), words.len() * size_of::<u64>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_of_one_file_see_each_others_bits_and_a_file_of_another_length_is_not_mapped() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(24).unwrap();
        let (one, other) = (SharedWords::map(&file, 3).unwrap(), SharedWords::map(&file, 3).unwrap());
        one.fetch_or(2, 5);
        assert_eq!(other.fetch_and(2, !1), 5);
        assert_eq!(one.load(2), 4);
        for count in [0, 2, 4, usize::MAX] {
            assert!(SharedWords::map(&file, count).is_err(), "{count} words");
        }
    }
}
