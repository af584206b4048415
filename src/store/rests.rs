//! What came with the chunks of a layer and is no part of any file: the padding and headers of its archive. Kept until the layer is
//! proved, so that its archive can be put together again without fetching its blob a second time.
//!
//! ```text
//! rests    record │ record │ …             appended by all processes, each with one write
//! record   magic u32 │ chunk u32 │ blob end u64 │ length u32 │ CRC-32 of all but itself │ bytes        little-endian
//! ```
//!
//! None of it is verified, and none of it is needed: what is missing, torn or wrong is fetched again. A record says what follows a
//! chunk in the archive up to the next chunk, and where in the blob that ends. Of two of one chunk the last counts.
//!
//! A chunk that was copied from another layer has none. That there are such is said by an empty file, `copied`, which is there before the
//! first of them is.
//!
//! As nobody needs them, they never stand in the way of what somebody does. They are
//! - *given up* for good, and one byte is left that says so, when they would take more than their share of the layer
//!   ([`maximum_rests`]), cannot be written, or take the room that a chunk needs: half of them would be worth next to nothing;
//! - removed with the verdict, by whoever sees it first if who made it was killed; and when chunks are evicted, which is for want of room.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::{Context, StoreError};
use super::layers::{LayerFiles, optional};

const RESTS: &str = "rests";
const COPIED: &str = "copied";
const MAGIC: u32 = u32::from_le_bytes(*b"rest");

/// Most bytes of one rest: the headers of a thousand entries.
pub const MAXIMUM_REST: usize = 1 << 20;
/// Most bytes of all rests of any layer: those of some 200,000 files.
const MAXIMUM_RESTS: u64 = 256 << 20;
/// Rests that are no more than this are never too many.
const FEW_RESTS: u64 = 64 << 10;

/// Length of the file of rests that were given up.
const GIVEN_UP: u64 = 1;

/// Most bytes of all rests of a layer whose files take so many: a quarter. Those of a Debian system with Python take a twenty-fifth; headers of
/// 512 bytes stay below for the smallest files, which take 4 KiB each.
pub fn maximum_rests(decoded: u64) -> u64 {
    (decoded / 4).clamp(FEW_RESTS, MAXIMUM_RESTS)
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: U32,
    chunk: U32,
    blob_end: U64,
    length: U32,
    checksum: U32,
}

impl Head {
    fn new(chunk: u32, blob_end: u64, bytes: &[u8]) -> Head {
        // The caller has bounded it.
        let length = bytes.len() as u32;
        let mut head = Head {
            magic: MAGIC.into(),
            chunk: chunk.into(),
            blob_end: blob_end.into(),
            length: length.into(),
            checksum: 0.into(),
        };
        head.checksum.set(head.sum(bytes));
        head
    }

    fn sum(mut self, bytes: &[u8]) -> u32 {
        self.checksum.set(0);
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.as_bytes());
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// What follows one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Bytes of the archive between this chunk and the next.
    pub bytes: Vec<u8>,
    /// Where in the blob they end.
    pub blob_end: u64,
}

/// Takes the rests of a layer.
#[derive(Debug)]
pub struct RestWriter {
    file: File,
    maximum: u64,
    /// Length of the file when it was last looked at: if it is shorter now, another process has given the rests up.
    length: AtomicU64,
}

/// The rests of a layer, as they were when this was opened.
#[derive(Debug)]
pub struct Rests {
    file: Option<File>,
    places: HashMap<u32, (Head, u64)>,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "chunk {} to {}", self.chunk, self.blob_end)
    }
}

impl LayerFiles {
    /// Opens the file of rests to add to it, which are never to take more than `maximum` bytes. Nothing if they were given up.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn rest_writer(&self, maximum: u64) -> Result<Option<RestWriter>, StoreError> {
        let home = self.data.home();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND;
        let path = home.path().join(RESTS);
        let file = home.open(RESTS, flags).context("make", &path)?;
        let length = file.metadata().context("look at", &path)?.len();
        Ok((length != GIVEN_UP).then_some(RestWriter { file, maximum, length: AtomicU64::new(length) }))
    }

    /// Says that chunks were copied from other layers.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn note_copies(&self) -> Result<(), StoreError> {
        let home = self.data.home();
        super::durable::crash_point();
        home.open(COPIED, OFlags::WRONLY | OFlags::CREATE).context("make", home.path().join(COPIED)).map(drop)
    }

    /// Whether that was said.
    pub fn has_copies(&self) -> bool {
        self.data.home().open(COPIED, OFlags::RDONLY).is_ok()
    }

    /// The rests that are there.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn rests(&self) -> Result<Rests, StoreError> {
        let home = self.data.home();
        let path = home.path().join(RESTS);
        let mut places = HashMap::new();
        let file = optional(home.open(RESTS, OFlags::RDONLY)).context("open", &path)?;
        let Some(file) = file else { return Ok(Rests { file, places }) };
        let length = file.metadata().context("look at", &path)?.len();
        let mut reader = BufReader::new(&file);
        let mut head = Head::new(0, 0, &[]);
        let mut offset = 0;
        while reader.read_exact(head.as_mut_bytes()).is_ok() {
            let start = offset + size_of::<Head>() as u64;
            offset = start + u64::from(head.length.get());
            // What was torn, when the disk was full, hides all that follows.
            if head.magic.get() != MAGIC
                || offset > length
                || reader.seek_relative(head.length.get().into()).is_err()
            {
                break;
            }
            places.insert(head.chunk.get(), (head, start));
        }
        Ok(Rests { file: Some(file), places })
    }

    /// Removes the rests: nobody needs them any more.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn remove_rests(&self) -> Result<(), StoreError> {
        let home = self.data.home();
        match rustix::fs::unlinkat(home.directory(), RESTS, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(StoreError::from_io("remove", home.path().join(RESTS), error)),
        }
    }
}

impl RestWriter {
    /// Gives all rests up, and frees the room that they take; whether they took any.
    pub fn give_up(&self) -> bool {
        let takes_room = self.file.metadata().is_ok_and(|file| file.len() > GIVEN_UP);
        match self.file.set_len(GIVEN_UP) {
            Ok(()) => takes_room,
            Err(error) => {
                tracing::debug!(%error, "rests stay");
                false
            }
        }
    }

    /// Keeps what follows a chunk.
    ///
    /// # Errors
    /// Those of the disk; if the rests are too many then, or were given up or removed by another process. To be
    /// [given up](Self::give_up) then.
    pub fn add(&self, chunk: u32, rest: &Rest) -> std::io::Result<()> {
        let refused = |why: &'static str| Err(std::io::Error::new(std::io::ErrorKind::QuotaExceeded, why));
        if rest.bytes.len() > MAXIMUM_REST {
            return refused("it is too long");
        }
        // In this order: another thread may add between the two, and then what it read is less than what is there.
        let known = self.length.load(Ordering::Acquire);
        let metadata = self.file.metadata()?;
        let is_shorter = metadata.len() < known;
        if metadata.len() == GIVEN_UP || is_shorter || metadata.nlink() == 0 {
            return refused("another process has given them up");
        }
        let length = metadata.len() + (size_of::<Head>() + rest.bytes.len()) as u64;
        if length > self.maximum {
            return refused("they are too many");
        }
        let head = Head::new(chunk, rest.blob_end, &rest.bytes);
        super::durable::crash_point();
        // One write, so that no other process writes in between.
        std::io::Write::write_all(&mut &self.file, &[head.as_bytes(), &rest.bytes].concat())?;
        self.length.fetch_max(length, Ordering::Release);
        Ok(())
    }
}

impl Rests {
    /// Where what follows that chunk ends in the blob, if it is there.
    pub fn blob_end(&self, chunk: u32) -> Option<u64> {
        Some(self.places.get(&chunk)?.0.blob_end.get())
    }

    /// What follows that chunk; nothing if it is not there or damaged.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn get(&self, chunk: u32) -> std::io::Result<Option<Rest>> {
        let (Some((head, start)), Some(file)) = (self.places.get(&chunk), &self.file) else {
            return Ok(None);
        };
        // It lies in the file, so it was written by somebody who kept to the bound.
        let mut bytes = vec![0; (head.length.get() as usize).min(MAXIMUM_REST)];
        file.read_exact_at(&mut bytes, *start)?;
        let is_whole = head.sum(&bytes) == head.checksum.get();
        Ok(is_whole.then(|| Rest { bytes, blob_end: head.blob_end.get() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::Chunk;
    use crate::store::layers::LayerDirectory;
    use crate::store::{ChunkPlace, Store};
    use crate::table::Codec;

    const DIGEST: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";

    fn rest(bytes: &[u8], blob_end: u64) -> Rest {
        Rest { bytes: bytes.to_vec(), blob_end }
    }

    /// A layer of one chunk, which is not there.
    fn layer(directory: &tempfile::TempDir) -> (LayerDirectory, LayerFiles) {
        let store = Store::open(directory.path()).unwrap();
        let chunk = Chunk {
            blob_offset: 0,
            blob_length: 4096,
            decoded_offset: 0,
            decoded_length: 4096,
            skip: 0,
            codec: Codec::Raw,
            checkpoint: 0,
            digest: [0; 32],
        };
        let table = crate::layer::builder::LayerBuilder::new().finish([0; 32], &[chunk]).unwrap();
        let layer = store.layers().layer(DIGEST).unwrap();
        let files = layer.create().unwrap().publish(&table, Some(1)).unwrap();
        (layer, files)
    }

    #[test]
    fn rests_are_read_as_they_were_written_up_to_what_is_torn() {
        let directory = tempfile::tempdir().unwrap();
        let (layer, files) = layer(&directory);
        assert_eq!(files.rests().unwrap().get(0).unwrap(), None);
        let open = |files: &LayerFiles| files.rest_writer(MAXIMUM_RESTS).unwrap().unwrap();
        let (one, other) = (open(&files), open(&layer.open().unwrap().unwrap()));
        one.add(5, &rest(b"five", 50)).unwrap();
        other.add(6, &rest(b"", 60)).unwrap();
        one.add(5, &rest(b"again", 51)).unwrap();
        one.add(7, &rest(&[0; MAXIMUM_REST + 1], 70)).expect_err("too long");
        let rests = files.rests().unwrap();
        assert_eq!(rests.get(5).unwrap(), Some(rest(b"again", 51)));
        assert_eq!((rests.get(6).unwrap(), rests.blob_end(6)), (Some(rest(b"", 60)), Some(60)));
        assert_eq!(rests.get(7).unwrap(), None);

        let path = layer.path().join(RESTS);
        let whole = std::fs::read(&path).unwrap();
        let (first, last) = (size_of::<Head>() + 4, whole.len());
        for cut in 0..last {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let rests = files.rests().unwrap();
            assert_eq!(rests.get(5).unwrap().is_some(), cut >= first, "cut to {cut}");
        }
        for place in 0..last {
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let found = files.rests().unwrap().get(5).unwrap();
            let known = [None, Some(rest(b"five", 50)), Some(rest(b"again", 51))];
            assert!(known.contains(&found), "changed at {place}: {found:?}");
        }
        files.remove_rests().unwrap();
        files.remove_rests().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn rests_that_are_given_up_stay_so_for_all() {
        let directory = tempfile::tempdir().unwrap();
        let (layer, files) = layer(&directory);
        let path = layer.path().join(RESTS);
        let length = || std::fs::metadata(&path).unwrap().len();
        let open = || files.rest_writer(1000).unwrap();
        let (one, other) = (open().unwrap(), open().unwrap());
        one.add(1, &rest(&[1; 400], 1)).unwrap();
        other.add(2, &rest(&[2; 400], 2)).unwrap();
        let full = length();
        assert!(full <= 1000);
        one.add(3, &rest(&[3; 400], 3)).expect_err("they would be more than they may");
        assert_eq!(length(), full, "what does not fit changes nothing");
        assert!(one.give_up());
        assert!(!other.give_up(), "they are gone");
        for writer in [&one, &other] {
            writer.add(4, &rest(b"", 4)).expect_err("they were given up");
        }
        assert!(open().is_none());
        assert_eq!((length(), files.rests().unwrap().blob_end(1)), (GIVEN_UP, None));
    }

    #[test]
    fn threads_that_add_at_once_do_not_take_each_other_for_one_that_gave_up() {
        let directory = tempfile::tempdir().unwrap();
        let (_, files) = layer(&directory);
        let writer = files.rest_writer(MAXIMUM_RESTS).unwrap().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let writer = &writer;
                scope.spawn(move || {
                    (0..2000)
                        .for_each(|number| writer.add(thread * 2000 + number, &rest(b"some", 1)).unwrap());
                });
            }
        });
        let rests = files.rests().unwrap();
        assert!((0..8000).all(|chunk| rests.blob_end(chunk).is_some()));
    }

    #[test]
    fn nobody_adds_to_rests_that_were_removed() {
        let directory = tempfile::tempdir().unwrap();
        let (_, files) = layer(&directory);
        let writer = files.rest_writer(1000).unwrap().unwrap();
        writer.add(1, &rest(b"one", 1)).unwrap();
        files.remove_rests().unwrap();
        writer.add(2, &rest(b"two", 2)).expect_err("nobody would find it");
        // What comes after starts anew.
        files.rest_writer(1000).unwrap().unwrap().add(3, &rest(b"three", 3)).unwrap();
        assert_eq!(files.rests().unwrap().blob_end(3), Some(3));
    }

    #[test]
    fn rests_go_with_the_first_chunk_that_is_evicted() {
        let directory = tempfile::tempdir().unwrap();
        let (layer, files) = layer(&directory);
        let path = layer.path().join(RESTS);
        files.rest_writer(1000).unwrap().unwrap().add(0, &rest(b"rest", 1)).unwrap();
        let place = ChunkPlace { chunk: 0, pieces: Vec::new() };
        assert_eq!(files.evict(std::slice::from_ref(&place)).unwrap(), 0);
        assert!(path.exists(), "nothing was evicted");
        files.chunk_map.as_ref().unwrap().mark(0);
        assert_eq!(files.evict(&[place]).unwrap(), 1);
        assert!(!path.exists());
    }

    #[test]
    fn rests_take_no_more_than_a_quarter_of_what_their_layer_takes() {
        for (decoded, most) in [
            (0, FEW_RESTS),
            (1 << 20, 256 << 10),
            (200 << 20, 50 << 20),
            (1 << 40, MAXIMUM_RESTS),
            (u64::MAX, MAXIMUM_RESTS),
        ] {
            assert_eq!(maximum_rests(decoded), most, "{decoded}");
        }
    }
}
