//! The chunk map of a layer: a file that says which chunks are in the data files, shared by all processes that use the layer.
//! [`chunk_bits`](super::chunk_bits) holds the rules, [`shared_words`](super::shared_words) the memory.
//!
//! Questions and marks take no lock. Replacing a map that is damaged, starting again after a boot, and checkpoints take the
//! map's lock file, and look again once they have it.
//!
//! A store belongs to one machine: a shared memory map does not work between machines.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::chunk_bits::{self, BootId, ChunkBits};
use super::durable::{sync_data, sync_directory, write_all};
use super::error::{Context, StoreError};
use super::lock::FileLock;
use super::shared_words::SharedWords;
use super::temporary::Temporaries;

/// Which chunks of a layer are present.
#[derive(Debug)]
pub struct ChunkMap {
    bits: ChunkBits<SharedWords>,
    lock: PathBuf,
    eviction_lock: PathBuf,
    path: PathBuf,
}

/// Chunks may be written and marked while it is held: none is evicted meanwhile.
#[derive(Debug)]
pub struct MarkLock {
    _lock: FileLock,
}

/// Where a map lies, its lock, and where a new one is prepared.
#[derive(Debug)]
pub(super) struct MapPlace<'a> {
    /// The file.
    pub path: &'a Path,
    /// Its lock file.
    pub lock: &'a Path,
    /// The lock file that keeps evictions apart from what marks chunks.
    pub eviction_lock: &'a Path,
    /// Same file system as `path`.
    pub temporaries: &'a Temporaries,
}

impl ChunkMap {
    /// Opens the map of a layer of `count` chunks. One that does not match, or is not there, is replaced by an empty one: what
    /// it said is lost, what it vouched for is fetched again.
    pub(super) fn open(place: &MapPlace<'_>, count: u64) -> Result<ChunkMap, StoreError> {
        let boot = boot_id()?;
        if let Found::Map(bits) = look(place.path, count)?
            && bits.holds_for(boot)
        {
            return Ok(ChunkMap::new(bits, place));
        }
        let _lock = FileLock::acquire(place.lock)?;
        // Another process may have been here first.
        let reason = match look(place.path, count)? {
            Found::Map(bits) => {
                if !bits.holds_for(boot) && !bits.adopt(boot) {
                    tracing::warn!(path = %place.path.display(), "the chunk map lost its durable part; all is fetched again");
                }
                return Ok(ChunkMap::new(bits, place));
            }
            Found::Nothing => "it is not there".to_owned(),
            Found::Other(reason) => reason,
        };
        tracing::warn!(path = %place.path.display(), %reason, "the chunk map is replaced by an empty one; all is fetched again");
        let temporary = place.temporaries.file()?;
        let map = ChunkMap::create(temporary.file(), place, count, false)?;
        sync_data(temporary.file(), temporary.path())?;
        temporary.publish(place.path).context("rename to", place.path)?;
        if let Some(directory) = place.path.parent() {
            sync_directory(directory)?;
        }
        Ok(map)
    }

    /// Writes a map into an empty file and opens it. Every byte is written, so that no page lacks a block later.
    ///
    /// If all chunks are said to be present, they are durably so: the map may become visible only after the data were synced.
    pub(super) fn create(
        file: &File,
        place: &MapPlace<'_>,
        count: u64,
        all_present: bool,
    ) -> Result<ChunkMap, StoreError> {
        let words = chunk_bits::new_map(count, boot_id()?, all_present);
        let words = words.ok_or_else(|| too_many(count, place.path))?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        write_all(file, &bytes, place.path)?;
        let words = SharedWords::map(file, words.len()).context("map", place.path)?;
        match ChunkBits::new(words, count) {
            Some(bits) => Ok(ChunkMap::new(bits, place)),
            None => Err(StoreError::Damaged {
                path: place.path.to_owned(),
                reason: "it does not read as it was just written".to_owned(),
            }),
        }
    }

    fn new(bits: ChunkBits<SharedWords>, place: &MapPlace<'_>) -> ChunkMap {
        ChunkMap {
            bits,
            lock: place.lock.to_owned(),
            eviction_lock: place.eviction_lock.to_owned(),
            path: place.path.to_owned(),
        }
    }

    /// Number of chunks of the layer.
    #[allow(clippy::len_without_is_empty, reason = "a count of chunks, not of elements that are held")]
    pub fn len(&self) -> u64 {
        self.bits.len()
    }

    /// Number of chunks that are present.
    pub fn present(&self) -> u64 {
        self.bits.present()
    }

    /// Whether the chunk's bytes are in the data files, verified. False past the end.
    pub fn is_present(&self, chunk: u64) -> bool {
        self.bits.is_present(chunk)
    }

    /// Whether all chunks of the range are present; true for an empty range.
    pub fn all_present(&self, range: Range<u64>) -> bool {
        self.bits.first_missing(range).is_none()
    }

    /// The chunks of the range that are missing, in ascending order, each looked up when it is asked for.
    pub fn missing_in(&self, range: Range<u64>) -> impl Iterator<Item = u64> + '_ {
        let mut rest = range.start..range.end.min(self.len());
        std::iter::from_fn(move || {
            let missing = self.bits.first_missing(rest.clone())?;
            rest.start = missing + 1;
            Some(missing)
        })
    }

    /// Says that the chunk is present: verified, and written to the data files in full (every `pwrite` has returned). True if
    /// it was not present before. A chunk past the end is ignored.
    pub fn mark(&self, chunk: u64) -> bool {
        self.bits.mark(chunk)
    }

    /// Says that the chunk is not present; true if it was. Its bytes may be discarded only after the next
    /// [`checkpoint`](Self::checkpoint) has returned.
    pub fn clear(&self, chunk: u64) -> bool {
        self.bits.clear(chunk)
    }

    /// Waits while chunks are evicted. Held by whoever writes chunks that are missing and then marks them, for as long as both
    /// take: else an eviction could discard bytes that are marked an instant later.
    pub fn lock_for_marking(&self) -> Result<MarkLock, StoreError> {
        Ok(MarkLock { _lock: FileLock::acquire_shared(&self.eviction_lock)? })
    }

    /// Says to all who have the map open that nothing of the layer may be read. The map itself forgets it if it is replaced: the
    /// layer's [verdict](super::Verdict) does not.
    pub(super) fn poison(&self) {
        self.bits.poison();
    }

    /// Whether somebody said that nothing of the layer may be read.
    pub fn is_poisoned(&self) -> bool {
        self.bits.is_poisoned()
    }

    /// Changes whenever chunks were evicted: see [`eviction`](super::eviction) for how a reader uses it.
    pub fn evictions(&self) -> u64 {
        self.bits.evictions()
    }

    /// Waits until nobody marks chunks, and keeps others from it.
    pub(super) fn lock_for_eviction(&self) -> Result<EvictionLock<'_>, StoreError> {
        Ok(EvictionLock { map: self, _lock: FileLock::acquire(&self.eviction_lock)? })
    }

    /// Makes what is present outlast a crash of the machine. `sync` brings all data files of the layer to disk, whoever wrote
    /// them ([`DataFiles::sync`](super::DataFiles::sync)).
    ///
    /// # Errors
    /// What `sync` said, and then the chunks that were not on disk before are missing again; or that the map could not be
    /// written, and then what is durable is unchanged.
    pub fn checkpoint(&self, sync: impl FnOnce() -> io::Result<()>) -> Result<(), StoreError> {
        let _lock = FileLock::acquire(&self.lock)?;
        self.bits.checkpoint(sync).context("sync the chunks of", &self.path)
    }
}

/// The right to evict, until it is dropped.
#[derive(Debug)]
pub(super) struct EvictionLock<'a> {
    map: &'a ChunkMap,
    _lock: FileLock,
}

impl EvictionLock<'_> {
    /// Clears these chunks, durably, so that their bytes may go; gives those that were present.
    ///
    /// # Errors
    /// As for [`ChunkMap::checkpoint`]; then no byte may go.
    pub(super) fn clear(
        &self,
        chunks: impl IntoIterator<Item = u64>,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> Result<Vec<u64>, StoreError> {
        let cleared: Vec<u64> = chunks.into_iter().filter(|chunk| self.map.clear(*chunk)).collect();
        if !cleared.is_empty() {
            self.map.bits.count_eviction();
            self.map.checkpoint(sync)?;
        }
        Ok(cleared)
    }

    /// Those of these chunks that are not present, durably, so that whatever is there of their bytes may go.
    ///
    /// # Errors
    /// As for [`clear`](Self::clear).
    pub(super) fn missing(
        &self,
        chunks: impl IntoIterator<Item = u64>,
        sync: impl FnOnce() -> io::Result<()>,
    ) -> Result<Vec<u64>, StoreError> {
        let missing: Vec<u64> = chunks.into_iter().filter(|chunk| !self.map.is_present(*chunk)).collect();
        if !missing.is_empty() {
            self.map.bits.count_eviction();
            self.map.checkpoint(sync)?;
        }
        Ok(missing)
    }
}

enum Found {
    Map(ChunkBits<SharedWords>),
    Nothing,
    Other(String),
}

fn look(path: &Path, count: u64) -> Result<Found, StoreError> {
    let file = match rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
    {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(error) => return Err(StoreError::from_io("open", path, error)),
    };
    match SharedWords::map(&file, words_for(count, path)?) {
        Ok(words) => Ok(ChunkBits::new(words, count)
            .map_or_else(|| Found::Other("its header does not match the layer".to_owned()), Found::Map)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Found::Other(error.to_string())),
        Err(error) => Err(StoreError::from_io("map", path, error)),
    }
}

fn words_for(count: u64, path: &Path) -> Result<usize, StoreError> {
    chunk_bits::words_for(count).ok_or_else(|| too_many(count, path))
}

fn too_many(count: u64, path: &Path) -> StoreError {
    let reason = format!("{count} chunks are more than a layer can have");
    StoreError::Damaged { path: path.to_owned(), reason }
}

/// The kernel's name for its present run: `random(4)`, `/proc/sys/kernel/random/boot_id`.
pub(super) fn boot_id() -> Result<BootId, StoreError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    static BOOT: OnceLock<BootId> = OnceLock::new();
    if let Some(boot) = BOOT.get() {
        return Ok(*boot);
    }
    let text = std::fs::read_to_string(PATH).context("read", PATH)?;
    let digits: String = text.trim().chars().filter(|character| *character != '-').collect();
    let half = |range: Range<usize>| {
        digits.get(range).and_then(|half| u64::from_str_radix(half, 16).ok()).ok_or_else(|| {
            StoreError::Damaged { path: PATH.into(), reason: format!("{text:?} is not a boot id") }
        })
    };
    let boot = [half(0..16)?, half(16..32)?];
    Ok(*BOOT.get_or_init(|| boot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    struct Fixture {
        directory: tempfile::TempDir,
        temporaries: Temporaries,
        path: PathBuf,
        lock: PathBuf,
        eviction_lock: PathBuf,
    }

    impl Fixture {
        fn new() -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let temporaries = Temporaries::new(directory.path().join("ingest"));
            std::fs::create_dir(temporaries.path()).unwrap();
            let (path, lock) = (directory.path().join("chunks"), directory.path().join("lock"));
            let eviction_lock = directory.path().join("eviction");
            Fixture { directory, temporaries, path, lock, eviction_lock }
        }

        fn place(&self) -> MapPlace<'_> {
            MapPlace {
                path: &self.path,
                lock: &self.lock,
                eviction_lock: &self.eviction_lock,
                temporaries: &self.temporaries,
            }
        }

        fn open(&self, count: u64) -> ChunkMap {
            ChunkMap::open(&self.place(), count).unwrap()
        }

        fn pretend_another_boot(&self) {
            let file = File::options().write(true).open(&self.path).unwrap();
            file.write_all_at(&[7; 16], 24).unwrap();
        }
    }

    #[test]
    fn what_one_opener_marks_the_other_sees() {
        let fixture = Fixture::new();
        let (one, other) = (fixture.open(130), fixture.open(130));
        assert!(one.mark(129));
        assert!(!other.mark(129));
        assert!(other.is_present(129) && !other.is_present(128) && !other.is_present(130));
        assert!(other.clear(129) && !one.is_present(129));
    }

    #[test]
    fn after_a_boot_only_what_was_checkpointed_is_present() {
        let fixture = Fixture::new();
        let map = fixture.open(200);
        for chunk in [0, 63, 64, 199] {
            map.mark(chunk);
        }
        map.checkpoint(|| Ok(())).unwrap();
        map.mark(100);
        drop(map);
        assert!(fixture.open(200).is_present(100), "a process that ends loses nothing");
        fixture.pretend_another_boot();
        let map = fixture.open(200);
        assert_eq!((0..200).filter(|chunk| map.is_present(*chunk)).collect::<Vec<_>>(), [0, 63, 64, 199]);
    }

    #[test]
    fn a_failed_sync_makes_nothing_durable_and_trusts_nothing_that_was_not() {
        let fixture = Fixture::new();
        let map = fixture.open(10);
        map.mark(1);
        map.checkpoint(|| Ok(())).unwrap();
        map.mark(2);
        let error = map.checkpoint(|| Err(io::Error::from_raw_os_error(28))).unwrap_err();
        assert!(error.is_full(), "{error}");
        assert!(map.is_present(1) && !map.is_present(2));
        fixture.pretend_another_boot();
        assert_eq!(fixture.open(10).present(), 1);
    }

    #[test]
    fn a_map_that_does_not_match_is_replaced_by_an_empty_one() {
        type Damage = fn(&File);
        let cases: [(&str, Damage); 6] = [
            ("empty file", |file| file.set_len(0).unwrap()),
            ("too short", |file| file.set_len(file.metadata().unwrap().len() - 8).unwrap()),
            ("too long", |file| file.set_len(file.metadata().unwrap().len() + 8).unwrap()),
            ("magic", |file| file.write_all_at(b"x", 0).unwrap()),
            ("version or checksum", |file| file.write_all_at(b"x", 9).unwrap()),
            ("count", |file| file.write_all_at(&[101], 16).unwrap()),
        ];
        for (name, damage) in cases {
            let fixture = Fixture::new();
            fixture.open(100).mark(5);
            damage(&File::options().write(true).open(&fixture.path).unwrap());
            let map = fixture.open(100);
            assert_eq!((map.len(), map.present()), (100, 0), "{name}");
            assert!(map.mark(5), "{name}");
            assert!(fixture.open(100).is_present(5), "{name}: openers share the new map");
            assert_eq!(std::fs::read_dir(fixture.temporaries.path()).unwrap().count(), 0, "{name}");
        }
        let fixture = Fixture::new();
        fixture.open(100).mark(5);
        assert_eq!(fixture.open(90).present(), 0, "a map of another layer");
        drop(fixture.directory);
    }

    #[test]
    fn a_damaged_durable_part_falls_back_to_what_it_held_before() {
        let fixture = Fixture::new();
        let map = fixture.open(10);
        map.mark(1);
        map.checkpoint(|| Ok(())).unwrap(); // Slot 1: slot 0 is written at the start.
        map.mark(2);
        map.checkpoint(|| Ok(())).unwrap(); // Slot 0.
        drop(map);
        // The header and one word of live bits go before; the slot's bits follow two words.
        let file = File::options().write(true).open(&fixture.path).unwrap();
        file.write_all_at(&[0xff], (8 + 1 + 2) * 8).unwrap();
        fixture.pretend_another_boot();
        let map = fixture.open(10);
        assert!(map.is_present(1) && map.present() == 1);
    }

    #[test]
    fn questions_about_ranges_agree_with_single_bits() {
        let fixture = Fixture::new();
        let map = fixture.open(300);
        // All present but every seventh from 100 on.
        let is_marked = |chunk: u64| chunk < 100 || !chunk.is_multiple_of(7);
        (0..300).filter(|chunk| is_marked(*chunk)).for_each(|chunk| {
            map.mark(chunk);
        });
        for start in 0..=300 {
            for end in [start, start + 1, start + 63, start + 64, start + 65, 300, 301, u64::MAX] {
                let missing: Vec<u64> = (start..end.min(300)).filter(|chunk| !is_marked(*chunk)).collect();
                assert_eq!(map.missing_in(start..end).collect::<Vec<_>>(), missing, "{start}..{end}");
                let all = missing.is_empty() && (end <= 300 || start >= end);
                assert_eq!(map.all_present(start..end), all, "{start}..{end}");
            }
        }
        assert_eq!(map.present(), (0..300).filter(|chunk| is_marked(*chunk)).count() as u64);
        assert!(fixture.open(300).all_present(5..5));
    }
}
