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

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::{Context, StoreError};
use super::layers::LayerFiles;

const RESTS: &str = "rests";
const MAGIC: u32 = u32::from_le_bytes(*b"rest");

/// Most bytes of one rest: the headers of a thousand entries.
pub const MAXIMUM_REST: usize = 1 << 20;
/// Most bytes of all rests of a layer: those of some 200,000 files. They are gone once the layer is proved.
pub const MAXIMUM_RESTS: u64 = 256 << 20;

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
}

/// The rests of a layer, as they were when this was opened.
#[derive(Debug)]
pub struct Rests {
    file: File,
    places: HashMap<u32, (Head, u64)>,
}

impl std::fmt::Debug for Head {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "chunk {} to {}", self.chunk, self.blob_end)
    }
}

impl LayerFiles {
    /// Opens the file of rests to add to it.
    pub fn rest_writer(&self) -> Result<RestWriter, StoreError> {
        let home = self.data.home();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::APPEND;
        let file = home.open(RESTS, flags).context("make", home.path().join(RESTS))?;
        Ok(RestWriter { file })
    }

    /// The rests that are there.
    pub fn rests(&self) -> Result<Rests, StoreError> {
        let file = self.rest_writer()?.file;
        let path = self.data.home().path().join(RESTS);
        let length = file.metadata().context("look at", &path)?.len();
        let mut places = HashMap::new();
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
        Ok(Rests { file, places })
    }

    /// Removes the rests: nobody needs them any more.
    pub fn remove_rests(&self) -> Result<(), StoreError> {
        let home = self.data.home();
        match rustix::fs::unlinkat(home.directory(), RESTS, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(StoreError::from_io("remove", home.path().join(RESTS), error)),
        }
    }
}

impl RestWriter {
    /// Frees the room that all rests take.
    pub fn give_up(&self) {
        if let Err(error) = self.file.set_len(0) {
            tracing::debug!(%error, "rests stay");
        }
    }

    /// Keeps what follows a chunk; false if it is too much.
    ///
    /// # Errors
    /// Those of the disk; what was kept before is as it was.
    pub fn add(&self, chunk: u32, rest: &Rest) -> std::io::Result<bool> {
        let length = (size_of::<Head>() + rest.bytes.len()) as u64;
        if rest.bytes.len() > MAXIMUM_REST || self.file.metadata()?.len() + length > MAXIMUM_RESTS {
            return Ok(false);
        }
        let head = Head::new(chunk, rest.blob_end, &rest.bytes);
        super::durable::crash_point();
        // One write, so that no other process writes in between.
        std::io::Write::write_all(&mut &self.file, &[head.as_bytes(), &rest.bytes].concat())?;
        Ok(true)
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
        let Some((head, start)) = self.places.get(&chunk) else { return Ok(None) };
        // It lies in the file, so it was written by somebody who kept to the bound.
        let mut bytes = vec![0; (head.length.get() as usize).min(MAXIMUM_REST)];
        self.file.read_exact_at(&mut bytes, *start)?;
        let is_whole = head.sum(&bytes) == head.checksum.get();
        Ok(is_whole.then(|| Rest { bytes, blob_end: head.blob_end.get() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    const DIGEST: &str = "sha256:3333333333333333333333333333333333333333333333333333333333333333";

    fn rest(bytes: &[u8], blob_end: u64) -> Rest {
        Rest { bytes: bytes.to_vec(), blob_end }
    }

    #[test]
    fn rests_are_read_as_they_were_written_up_to_what_is_torn() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let table = crate::layer::builder::LayerBuilder::new().finish([0; 32], &[]).unwrap();
        let layer = store.layers().layer(DIGEST).unwrap();
        let files = layer.create().unwrap().publish(&table, Some(0)).unwrap();
        assert_eq!(files.rests().unwrap().get(0).unwrap(), None);
        let (one, other) =
            (files.rest_writer().unwrap(), layer.open().unwrap().unwrap().rest_writer().unwrap());
        assert!(one.add(5, &rest(b"five", 50)).unwrap());
        assert!(other.add(6, &rest(b"", 60)).unwrap());
        assert!(one.add(5, &rest(b"again", 51)).unwrap());
        assert!(!one.add(7, &rest(&[0; MAXIMUM_REST + 1], 70)).unwrap(), "too long");
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
}
