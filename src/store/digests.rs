//! The digests of a layer's chunks, sorted: so that a layer which lacks a chunk finds those that have it.
//!
//! ```text
//! digests   magic u64 │ number of records u32 │ CRC-32 of the records u32 │ record │ record │ …      sorted, little-endian
//! record    first 8 bytes of a chunk's SHA-256 │ number of the chunk u32
//! ```
//!
//! - Nothing here is trusted, and nothing depends on it: what is found by it is held against all of its digest. A file that is missing,
//!   damaged or of another version is made again from the table by whoever wants it, so it is neither synced nor repaired.
//! - Digests are as if drawn by chance, so the first records are a fair sample of all: two layers of which these have nothing in common
//!   have little in common.

use std::fs::File;
use std::io::Read;
use std::time::SystemTime;

use rustix::fs::OFlags;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::chunk_bits;
use super::digest::DigestName;
use super::durable::{open_directory, write_all};
use super::error::{Context, StoreError};
use super::layers::{CHUNKS, COMPLETE, LayerDirectory, LayerStore, TABLE};

const DIGESTS: &str = "digests";
const MAGIC: u64 = u64::from_le_bytes(*b"peeldgs1");
/// Records of a [sample](LayerDirectory::digest_sample): four pages of the file.
const SAMPLE: usize = (4 * 4096 - size_of::<Head>()) / size_of::<DigestRecord>();
/// Longest chunk map that is looked at for a sample, in bytes: that of half a million chunks.
const LONGEST_MAP: u64 = 256 << 10;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: U64,
    count: U32,
    checksum: U32,
}

/// Which chunks of a layer seem to be here: see [`LayerDirectory::seen`].
pub struct Seen {
    is_complete: bool,
    words: Vec<u64>,
}

impl Seen {
    /// Whether any chunk is.
    pub fn has_any(&self) -> bool {
        self.is_complete || chunk_bits::seems_present_at_all(&self.words)
    }

    /// Whether that one is.
    pub fn has(&self, chunk: u32) -> bool {
        self.is_complete || chunk_bits::seems_present(&self.words, chunk.into())
    }
}

/// A chunk and the beginning of its digest. In the order of the digests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DigestRecord {
    /// Its first 8 bytes, as a number.
    pub prefix: U64,
    /// The number of the chunk.
    pub chunk: U32,
}

impl DigestRecord {
    /// Of the chunk of that number.
    pub fn new(digest: &[u8; 32], chunk: u32) -> DigestRecord {
        let (prefix, _) = U64::read_from_prefix(digest).unwrap_or_default();
        DigestRecord { prefix, chunk: chunk.into() }
    }
}

impl LayerStore {
    /// Something that is another thing after a layer was published or removed.
    pub fn generation(&self) -> Vec<Option<SystemTime>> {
        let modified = |algorithm: &str| self.directory().join(algorithm).metadata().ok()?.modified().ok();
        DigestName::algorithm_directories().map(modified).collect()
    }
}

impl LayerDirectory {
    /// The records of its list, if that is there and whole.
    pub fn digests(&self) -> Option<Vec<DigestRecord>> {
        let mut bytes = Vec::new();
        self.open_digests()?.read_to_end(&mut bytes).ok()?;
        let (head, records) = Head::read_from_prefix(&bytes).ok()?;
        let is_whole = head.magic.get() == MAGIC && head.checksum.get() == crc32fast::hash(records);
        let records = <[DigestRecord]>::ref_from_bytes(records).ok().filter(|_| is_whole)?;
        (records.len() == head.count.get() as usize).then(|| records.to_vec())
    }

    /// Its first records, of which it is not known whether they are whole; nothing if there is no list.
    pub fn digest_sample(&self) -> Option<Vec<DigestRecord>> {
        let mut bytes = Vec::new();
        let most = size_of::<Head>() + SAMPLE * size_of::<DigestRecord>();
        self.open_digests()?.take(most as u64).read_to_end(&mut bytes).ok()?;
        let (head, records) =
            Head::read_from_prefix(&bytes).ok().filter(|(head, _)| head.magic.get() == MAGIC)?;
        let whole = records.len() / size_of::<DigestRecord>() * size_of::<DigestRecord>();
        let records = <[DigestRecord]>::ref_from_bytes(&records[..whole]).ok()?;
        Some(records.get(..(head.count.get() as usize).min(SAMPLE)).unwrap_or(records).to_vec())
    }

    /// Keeps a list, which is sorted, for the next one who wants it.
    ///
    /// # Errors
    /// Those of the disk; if the layer is not in its place.
    pub fn keep_digests(&self, records: &[DigestRecord]) -> Result<(), StoreError> {
        let records = records.as_bytes();
        let count = (records.len() / size_of::<DigestRecord>()) as u32;
        let head =
            Head { magic: MAGIC.into(), count: count.into(), checksum: crc32fast::hash(records).into() };
        let temporary = self.temporaries().file()?;
        write_all(temporary.file(), &[head.as_bytes(), records].concat(), temporary.path())?;
        let path = self.path().join(DIGESTS);
        temporary.publish(&path).context("rename to", path)
    }

    /// When it was put in its place.
    pub fn published_at(&self) -> Option<SystemTime> {
        self.path().join(TABLE).metadata().ok()?.modified().ok()
    }

    /// Its inode table alone, which stays what it is if the layer is removed.
    pub fn open_table(&self) -> Option<File> {
        self.open_file(TABLE)
    }

    /// Which of its chunks seem to be here: without the locks and checks of one who [opens](Self::open) it, so only good for an estimate.
    pub fn seen(&self) -> Seen {
        let is_complete = self.path().join(COMPLETE).exists();
        let words = if is_complete { Vec::new() } else { self.chunk_map_words().unwrap_or_default() };
        Seen { is_complete, words }
    }

    fn chunk_map_words(&self) -> Option<Vec<u64>> {
        let mut bytes = Vec::new();
        File::open(self.path().join(CHUNKS)).ok()?.take(LONGEST_MAP).read_to_end(&mut bytes).ok()?;
        let (words, _) = bytes.as_chunks();
        Some(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
    }

    fn open_digests(&self) -> Option<File> {
        self.open_file(DIGESTS)
    }

    fn open_file(&self, name: &str) -> Option<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |directory| rustix::fs::openat(directory, name, flags, rustix::fs::Mode::empty());
        open_directory(self.path()).and_then(open).ok().map(File::from)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::super::draft::tests::table;
    use super::*;

    const LAYER: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// Sorted, as if by chance.
    fn records(count: u32) -> Vec<DigestRecord> {
        let spread = |number: u32| u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let record = |number: u32| DigestRecord { prefix: spread(number).into(), chunk: number.into() };
        let mut records: Vec<_> = (0..count).map(record).collect();
        records.sort_unstable_by_key(|record| (record.prefix.get(), record.chunk.get()));
        records
    }

    #[test]
    fn a_list_is_read_as_it_was_kept_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = store.layers().layer(LAYER).unwrap();
        assert!(layer.keep_digests(&records(1)).is_err(), "there is no layer");
        layer.create().unwrap().publish(&table(3, b""), Some(3)).unwrap();
        assert!(layer.digests().is_none() && layer.digest_sample().is_none());
        for count in [0, 3, SAMPLE as u32, SAMPLE as u32 + 1000] {
            let all = records(count);
            layer.keep_digests(&all).unwrap();
            assert_eq!(layer.digests().as_ref(), Some(&all), "{count}");
            assert_eq!(layer.digest_sample().unwrap(), all[..all.len().min(SAMPLE)], "{count}");
        }
        layer.keep_digests(&records(3)).unwrap();
        let path = layer.path().join(DIGESTS);
        let good = std::fs::read(&path).unwrap();
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 1;
            std::fs::write(&path, bad).unwrap();
            assert!(layer.digests().is_none(), "changed at {place}");
            std::fs::write(&path, &good[..place]).unwrap();
            assert!(layer.digests().is_none(), "cut to {place}");
            // Whatever it gives, it gives no more than there is.
            assert!(layer.digest_sample().unwrap_or_default().len() <= 3, "cut to {place}");
        }
        assert_eq!(store.sweep().unwrap(), 0);
    }

    #[test]
    fn what_seems_to_be_here_is_what_was_marked() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let layer = store.layers().layer(LAYER).unwrap();
        assert!(!layer.seen().has_any());
        let files = layer.create().unwrap().publish(&table(100, b""), Some(100)).unwrap();
        assert!(!layer.seen().has_any());
        files.chunk_map.as_ref().unwrap().mark(70);
        let seen = layer.seen();
        assert!(seen.has_any());
        assert_eq!((0..200).filter(|chunk| seen.has(*chunk)).collect::<Vec<_>>(), [70]);
    }
}
