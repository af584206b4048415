//! The data files of a layer: decoded bytes, sparse until they are filled.
//!
//! ```text
//! data        what small files share
//! files/<n>   one large file each, from its first byte on; made when it is first written
//! ```
//!
//! All are opened relative to the layer's directory, so they are found whether it lies in `ingest/` still, in its place, or
//! was replaced meanwhile. While any [`DataFiles`] of it exists the directory is not removed (see [`temporary`](super::temporary)).

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

pub use crate::table::placement::DataFile;

use super::descriptors::{Descriptors, Owner};
use super::durable::{DIRECTORY_MODE, FILE_MODE, crash_point};
use super::error::{Context, StoreError};
use super::lock::try_flock;
use super::temporary::Temporary;

pub(super) const PACKED: &str = "data";
pub(super) const LARGE: &str = "files";

/// Block size of the usual file systems.
const BLOCK: u64 = 4096;

/// Above this number of files one `syncfs` is cheaper than `fdatasync` of each (measured on ext4: 200 files of 4 KiB take 4 ms
/// instead of 37; for a few files the latter is as quick, and waits for nobody else's bytes).
const SYNC_EACH: usize = 16;

/// A layer's directory, open and locked against removal.
#[derive(Debug)]
pub(super) enum Home {
    /// Not published, or published by this process.
    Made(Temporary),
    /// Found in its place.
    Found { directory: File, path: PathBuf },
}

impl Home {
    pub(super) fn directory(&self) -> &File {
        match self {
            Home::Made(temporary) => temporary.file(),
            Home::Found { directory, .. } => directory,
        }
    }

    /// Where it was opened; for messages only.
    pub(super) fn path(&self) -> &Path {
        match self {
            Home::Made(temporary) => temporary.path(),
            Home::Found { path, .. } => path,
        }
    }

    pub(super) fn open(&self, name: &str, flags: OFlags) -> rustix::io::Result<File> {
        rustix::fs::openat(self.directory(), name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, FILE_MODE)
            .map(File::from)
    }
}

/// The data files of one layer.
#[derive(Debug)]
pub struct DataFiles {
    home: Arc<Home>,
    packed: File,
    /// How files are opened: to read and write, or to read.
    access: OFlags,
    owner: Owner,
    descriptors: Arc<Descriptors>,
}

impl DataFiles {
    /// Opens them; with `OFlags::CREATE` the packed one is made.
    pub(super) fn open(
        home: Arc<Home>,
        descriptors: Arc<Descriptors>,
        create: OFlags,
    ) -> rustix::io::Result<DataFiles> {
        let (access, owner) = (OFlags::RDWR, Owner::unique());
        let packed = home.open(PACKED, access | create)?;
        Ok(DataFiles { home, packed, access, owner, descriptors })
    }

    /// Opens those of a layer to which nothing is written.
    pub(super) fn open_to_read(
        home: Arc<Home>,
        descriptors: Arc<Descriptors>,
    ) -> rustix::io::Result<DataFiles> {
        let (access, owner) = (OFlags::RDONLY, Owner::unique());
        let packed = home.open(PACKED, access)?;
        Ok(DataFiles { home, packed, access, owner, descriptors })
    }

    /// The file that small files share.
    pub fn packed(&self) -> &File {
        &self.packed
    }

    /// The data file of a large file, open for reading and writing.
    ///
    /// # Errors
    /// `NotFound` if nothing of it was ever written.
    pub fn large(&self, number: u32) -> io::Result<Arc<File>> {
        self.open_large(number, OFlags::empty())
    }

    fn open_large(&self, number: u32, create: OFlags) -> io::Result<Arc<File>> {
        if let Some(file) = self.descriptors.get(self.owner, number) {
            return Ok(file);
        }
        let name = format!("{LARGE}/{number}");
        let file = match self.home.open(&name, self.access | create) {
            Err(Errno::NOENT) if create.contains(OFlags::CREATE) => {
                match rustix::fs::mkdirat(self.home.directory(), LARGE, DIRECTORY_MODE) {
                    Ok(()) | Err(Errno::EXIST) => self.home.open(&name, self.access | create)?,
                    Err(error) => return Err(error.into()),
                }
            }
            result => result?,
        };
        Ok(self.descriptors.keep(self.owner, number, file))
    }

    /// The data file of a large file, open for one who reads it without asking the chunk map each time, as the kernel does: as
    /// long as it is open nothing of it is evicted. To be asked for before the chunk map is. `None` if it is being evicted.
    ///
    /// # Errors
    /// As for [`large`](Self::large).
    pub fn large_kept(&self, number: u32) -> io::Result<Option<Arc<File>>> {
        let file = self.home.open(&format!("{LARGE}/{number}"), OFlags::RDONLY)?;
        let is_kept = try_flock(&file, FlockOperation::NonBlockingLockShared)?;
        Ok(is_kept.then(|| Arc::new(file)))
    }

    /// Keeps others from [`large_kept`](Self::large_kept) while the result is open. `None` if somebody has the file open so;
    /// a file that is not there is nobody's.
    pub(super) fn large_discardable(&self, number: u32) -> io::Result<Option<Option<File>>> {
        let file = match self.home.open(&format!("{LARGE}/{number}"), OFlags::RDONLY) {
            Err(Errno::NOENT) => return Ok(Some(None)),
            opened => opened?,
        };
        let is_free = try_flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(is_free.then_some(Some(file)))
    }

    /// Gives the blocks that lie wholly in this part of a file back to the file system: it reads as zeros then.
    pub(super) fn discard(&self, file: DataFile, start: u64, end: u64) -> Result<(), StoreError> {
        // Of a block that is not discarded as a whole nothing would be gained.
        let (start, end) = (start.next_multiple_of(BLOCK), end - end % BLOCK);
        if start >= end {
            return Ok(());
        }
        crash_point();
        let punch = |open: &File| {
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            Ok(rustix::fs::fallocate(open, flags, start, end - start)?)
        };
        let result = match file {
            DataFile::Packed => punch(&self.packed),
            DataFile::Large(number) => match self.large(number) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                large => large.and_then(|large| punch(&large)),
            },
        };
        result.context("free the blocks of", self.path(file))
    }

    /// Fills `bytes` from the file's bytes at `offset`. What was never written reads as zeros: ask the chunk map first.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; `NotFound` as for [`large`](Self::large).
    pub fn read_at(&self, file: DataFile, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        match file {
            DataFile::Packed => self.packed.read_exact_at(bytes, offset),
            DataFile::Large(number) => self.large(number)?.read_exact_at(bytes, offset),
        }
    }

    /// Writes verified bytes at `offset`; they may be marked in the chunk map once this has returned.
    pub fn write_at(&self, file: DataFile, offset: u64, bytes: &[u8]) -> Result<(), StoreError> {
        crash_point();
        let result = match file {
            DataFile::Packed => self.packed.write_all_at(bytes, offset),
            DataFile::Large(number) => {
                self.open_large(number, OFlags::CREATE).and_then(|large| large.write_all_at(bytes, offset))
            }
        };
        result.context("write", self.path(file))
    }

    /// Gives a file its final length, with a hole at its end if it is shorter. `length` must be the same whoever says it, and
    /// nobody writes past it: then two processes may do this at once while others write.
    pub fn set_length(&self, file: DataFile, length: u64) -> Result<(), StoreError> {
        let grow = |file: &File| {
            if file.metadata()?.len() < length { file.set_len(length) } else { Ok(()) }
        };
        let result = match file {
            DataFile::Packed => grow(&self.packed),
            DataFile::Large(number) => self.open_large(number, OFlags::CREATE).and_then(|large| grow(&large)),
        };
        result.context("extend", self.path(file))
    }

    /// Brings all data files of the layer to disk, whichever process wrote them. For [`ChunkMap::checkpoint`](super::ChunkMap).
    pub fn sync(&self) -> io::Result<()> {
        crash_point();
        let numbers = self.large_numbers()?;
        if numbers.len() > SYNC_EACH {
            return Ok(rustix::fs::syncfs(self.home.directory())?);
        }
        rustix::fs::fdatasync(&self.packed)?;
        for number in &numbers {
            crash_point();
            rustix::fs::fdatasync(self.large(*number)?.as_fd())?;
        }
        if !numbers.is_empty() {
            rustix::fs::fsync(self.home.open(LARGE, OFlags::RDONLY | OFlags::DIRECTORY)?)?;
            rustix::fs::fsync(self.home.directory())?;
        }
        Ok(())
    }

    /// What the data files take on the disk, in bytes: holes count nothing.
    pub fn allocated_bytes(&self) -> io::Result<u64> {
        let mut blocks = self.packed.metadata()?.blocks();
        for number in self.large_numbers()? {
            let name = format!("{LARGE}/{number}");
            let stat =
                rustix::fs::statat(self.home.directory(), &name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
            blocks = blocks.saturating_add(u64::try_from(stat.st_blocks).unwrap_or(0));
        }
        // st_blocks counts units of 512 bytes, whatever the file system's block size (stat(2)).
        Ok(blocks.saturating_mul(512))
    }

    fn large_numbers(&self) -> io::Result<Vec<u32>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = match rustix::fs::openat(self.home.directory(), LARGE, flags, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let mut numbers = Vec::new();
        for entry in rustix::fs::Dir::new(directory)? {
            // Names that are no numbers are nothing of ours ("." and "..").
            numbers.extend(entry?.file_name().to_str().ok().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(numbers)
    }

    pub(super) fn home(&self) -> &Arc<Home> {
        &self.home
    }

    fn path(&self, file: DataFile) -> PathBuf {
        match file {
            DataFile::Packed => self.home.path().join(PACKED),
            DataFile::Large(number) => self.home.path().join(LARGE).join(number.to_string()),
        }
    }
}

impl Drop for DataFiles {
    fn drop(&mut self) {
        self.descriptors.close(self.owner);
    }
}
