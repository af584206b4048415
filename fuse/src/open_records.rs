//! What is written down of how inodes are open, for whoever serves the mount when this process was killed at any instant.
//!
//! ```text
//! 8 bytes     magic, generation of the server
//! 8 bytes     of inode 1: a word, and the same with all bits turned        0: nobody has it open
//! …           of inode n, at 8 × n                                        u32::MAX: through the cache
//!                                                                          else the number of its backing file
//! ```
//!
//! A record is true before the kernel is told, and is taken back after the kernel has told of the last close, which is for files that are open
//! through the cache alone:
//!
//! ```text
//! open      backing file registered, if any ──▶ record ──▶ answer
//! release   last one, through the cache ──▶ record taken back ──▶ answer
//! ```
//!
//! So a successor that finds a record knows in which way the inode may be open, and with which backing file, which is registered until the file
//! system is gone. If it finds none, nobody has it open. Only what it does not know is whether anybody has it open through the cache *still*:
//! it leaves such an inode as it is for good. A server that dies before it has written down what it registered leaves a backing file that
//! nobody knows of.
//!
//! Closes may be told twice, to the dead server and to its successor. They say by which server's generation the handle was given, and each
//! counts its own.
//!
//! Records are eight bytes that lie on eight, so one is written whole or not at all. The file is filled when it is made: a disk that is full
//! later takes them all the same. It need not outlast the machine. Only inodes whose size alone lets them be candidates have records
//! (`SMALLEST_PASSTHROUGH` in `adapter`, which is thereby part of the form).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

const MAGIC: u32 = u32::from_le_bytes(*b"pop1");
const RECORD: u64 = 8;
const CACHED: u32 = u32::MAX;
/// What is filled at once.
const PIECE: usize = 1 << 20;

/// The file, open for the server of a mount.
#[derive(Debug)]
pub struct OpenRecords {
    file: File,
    /// The last inode that has room.
    last: u64,
    generation: u32,
    has_passthrough: bool,
}

/// What is known of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    NotOpen,
    Cached,
    /// With that backing file.
    Passthrough(u32),
}

impl OpenRecords {
    /// Empty ones in that file, which is written over, for a new mount of a tree whose inodes go up to `last_inode`: what has a higher
    /// number is never passed through.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(file: File, last_inode: u64) -> io::Result<OpenRecords> {
        file.set_len(0)?;
        let too_many = || io::Error::from(io::ErrorKind::FileTooLarge);
        let length =
            last_inode.checked_add(1).and_then(|all| all.checked_mul(RECORD)).ok_or_else(too_many)?;
        let zeros = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
        let mut written = 0;
        while written < length {
            let piece = &zeros[..zeros.len().min(usize::try_from(length - written).unwrap_or(PIECE))];
            file.write_all_at(piece, written)?;
            written += piece.len() as u64;
        }
        let records = OpenRecords { file, last: last_inode, generation: 1, has_passthrough: false };
        records.write_generation()?;
        Ok(records)
    }

    /// Those of a mount whose server is gone. To be called by its successor alone, as it begins to serve.
    ///
    /// # Errors
    /// If the file cannot be read or written, or is not one of these.
    pub fn take_over(file: File) -> io::Result<OpenRecords> {
        let length = file.metadata()?.len();
        let mut head = [0; RECORD as usize];
        file.read_exact_at(&mut head, 0)?;
        let (magic, generation) = words(head);
        if magic != MAGIC || !length.is_multiple_of(RECORD) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "these are no records of what is open"));
        }
        let mut records = OpenRecords {
            file,
            last: length / RECORD - 1,
            generation: generation.checked_add(1).ok_or(io::ErrorKind::InvalidData)?,
            has_passthrough: false,
        };
        records.write_generation()?;
        records.has_passthrough = records.find_passthrough()?;
        Ok(records)
    }

    fn write_generation(&self) -> io::Result<()> {
        self.file.write_all_at(&bytes(MAGIC, self.generation), 0)
    }

    fn find_passthrough(&self) -> io::Result<bool> {
        let mut buffer = vec![0; PIECE];
        let mut position = RECORD;
        loop {
            let length = self.file.read_at(&mut buffer, position)?;
            let length = length - length % RECORD as usize;
            if length == 0 {
                return Ok(false);
            }
            let (records, _) = buffer[..length].as_chunks::<{ RECORD as usize }>();
            if records.iter().any(|record| matches!(known(*record), Known::Passthrough(_))) {
                return Ok(true);
            }
            position += length as u64;
        }
    }

    /// Tells handles that this server gave from those of the ones before; never 0.
    pub(crate) fn generation(&self) -> u64 {
        self.generation.into()
    }

    /// Whether any file was passed through when this server began.
    pub(crate) fn has_passthrough(&self) -> bool {
        self.has_passthrough
    }

    /// Whether it can be written down how that inode is open.
    pub(crate) fn has_room_for(&self, inode: u64) -> bool {
        (1..=self.last).contains(&inode)
    }

    /// What stands there of an inode for which there is room. What cannot be read is taken for open through the cache.
    pub(crate) fn get(&self, inode: u64) -> Known {
        let mut record = [0; RECORD as usize];
        match self.file.read_exact_at(&mut record, inode * RECORD) {
            Ok(()) => known(record),
            Err(error) => {
                tracing::error!(%error, "cannot read how files are open");
                Known::Cached
            }
        }
    }

    /// Writes down how an inode is open for which there is room.
    pub(crate) fn set(&self, inode: u64, now: Known) -> io::Result<()> {
        let word = match now {
            Known::NotOpen => 0,
            Known::Cached => CACHED,
            Known::Passthrough(backing) => backing,
        };
        self.file.write_all_at(&bytes(word, !word), inode * RECORD)
    }
}

fn words(record: [u8; RECORD as usize]) -> (u32, u32) {
    let word = |at: usize| {
        let mut word = [0; 4];
        word.copy_from_slice(&record[at..at + 4]);
        u32::from_ne_bytes(word)
    };
    (word(0), word(4))
}

fn bytes(first: u32, second: u32) -> [u8; RECORD as usize] {
    let mut record = [0; RECORD as usize];
    record[..4].copy_from_slice(&first.to_ne_bytes());
    record[4..].copy_from_slice(&second.to_ne_bytes());
    record
}

fn known(record: [u8; RECORD as usize]) -> Known {
    match words(record) {
        // As the file was filled.
        (0, 0) => Known::NotOpen,
        (word, turned) if word != !turned => Known::Cached,
        (0, _) => Known::NotOpen,
        (CACHED, _) => Known::Cached,
        (backing, _) => Known::Passthrough(backing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_successor_finds_what_was_written_and_has_a_generation_of_its_own() {
        let file = tempfile::tempfile().unwrap();
        let first = OpenRecords::create(file.try_clone().unwrap(), 200_000).unwrap();
        assert_eq!((first.generation(), first.has_passthrough()), (1, false));
        for (inode, has_room) in [(0, false), (1, true), (200_000, true), (200_001, false), (u64::MAX, false)]
        {
            assert_eq!(first.has_room_for(inode), has_room, "{inode}");
        }
        assert_eq!((first.get(1), first.get(200_000)), (Known::NotOpen, Known::NotOpen));
        first.set(7, Known::Cached).unwrap();
        let second = OpenRecords::take_over(file.try_clone().unwrap()).unwrap();
        assert_eq!((second.generation(), second.has_passthrough()), (2, false));
        second.set(200_000, Known::Passthrough(5)).unwrap();
        second.set(8, Known::Cached).unwrap();
        second.set(8, Known::NotOpen).unwrap();
        let third = OpenRecords::take_over(file).unwrap();
        assert_eq!((third.generation(), third.has_passthrough()), (3, true));
        for (inode, known) in [
            (1, Known::NotOpen),
            (7, Known::Cached),
            (8, Known::NotOpen),
            (199_999, Known::NotOpen),
            (200_000, Known::Passthrough(5)),
        ] {
            assert_eq!(third.get(inode), known, "{inode}");
        }
        assert!(third.has_room_for(200_000) && !third.has_room_for(200_001));
    }

    #[test]
    fn what_is_damaged_is_not_passed_through_and_another_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let records = OpenRecords::create(file.try_clone().unwrap(), 10).unwrap();
        records.set(3, Known::Passthrough(9)).unwrap();
        file.write_all_at(&[1], 3 * RECORD + 5).unwrap();
        assert_eq!(records.get(3), Known::Cached);
        file.write_all_at(&[1], 0).unwrap();
        assert!(OpenRecords::take_over(file).is_err());
        assert!(OpenRecords::take_over(tempfile::tempfile().unwrap()).is_err());
        assert!(OpenRecords::create(tempfile::tempfile().unwrap(), u64::MAX).is_err());
    }
}
