//! Plain directories of records: the whole tree of one, as files that need nobody to serve them.
//!
//! ```text
//! directories/<record id>/
//!   fs/       the tree
//!   table     its inode table, if it was there: says which file is of which layer
//!   made-of   what the tree and its layers are known by
//!
//! ingest/<n>/ ──filled, synced──▶ directories/<record id>/ ──rename──▶ ingest/<n> ──▶ removed
//! ```
//!
//! Rules
//! - The directory of a record is there, whole, or it is not: no row says so. One without a record belongs to nobody and is removed, as
//!   it can be made again.
//! - Files of several directories may be one inode. Who makes a directory of others' files holds these, so that they stay until it is done.
//! - What is mounted in a directory, or of it, keeps it from being removed; and no removal goes into what is mounted.

use std::fs::File;
use std::path::PathBuf;
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::durable::{
    crash_point, ensure_directory, open_directory, rename, still_names, sync_directory, write_all,
};
use super::error::{Context, StoreError};
use super::lock::{FileLock, try_flock};
use super::record_tables::RecordId;
use super::space::Counter;
use super::temporary::{Temporaries, Temporary, lock_unused};
use super::unmounted::remove_unused_tree;

const FS: &str = "fs";
const TABLE: &str = "table";
const MADE_OF: &str = "made-of";
/// Longest description that is read, in bytes: of as many layers as there may be.
const LONGEST: u64 = 1 << 20;

/// What a directory was made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MadeOf {
    /// What its tree is kept by, or was: see [`Trees`](super::Trees).
    pub tree: String,
    /// What the tables of its layers are known by, the lowest first, in hexadecimal digits.
    pub layers: Vec<String>,
}

/// The plain directories of a store.
#[derive(Clone, Debug)]
pub struct Directories {
    directory: PathBuf,
    locks: PathBuf,
    temporaries: Temporaries,
}

/// A directory that is being made.
#[derive(Debug)]
pub struct NewDirectory {
    temporary: Temporary,
}

/// A directory that is there, and stays as long as this lives.
#[derive(Debug)]
pub struct KnownDirectory {
    /// Whose it is.
    pub record: RecordId,
    /// What it was made of.
    pub made_of: MadeOf,
    /// Its inode table, if it has one.
    pub table: Option<File>,
    path: PathBuf,
    // Holds the directory's lock.
    _guard: File,
}

impl KnownDirectory {
    /// The tree.
    pub fn fs(&self) -> PathBuf {
        self.path.join(FS)
    }
}

impl NewDirectory {
    /// Where the tree is to be put: an empty directory.
    pub fn fs(&self) -> PathBuf {
        self.temporary.path().join(FS)
    }
}

impl Directories {
    pub(super) fn new(directory: PathBuf, locks: PathBuf) -> Directories {
        Directories { temporaries: Temporaries::new(directory.join(super::INGEST)), directory, locks }
    }

    /// The right to make the directory of a record: waits while another has it.
    pub fn lock(&self, record: &RecordId) -> Result<FileLock, StoreError> {
        FileLock::acquire(&self.locks.join(format!("directory-{record}")))
    }

    /// The tree of a record, whether it is there or not.
    pub fn fs(&self, record: &RecordId) -> PathBuf {
        self.path(record).join(FS)
    }

    /// Whether the record has a directory.
    pub fn has(&self, record: &RecordId) -> Result<bool, StoreError> {
        let path = self.path(record);
        path.try_exists().context("look at", path)
    }

    /// An empty directory that nobody sees yet; dropped, it is gone.
    pub fn begin(&self) -> Result<NewDirectory, StoreError> {
        self.temporaries.ensure()?;
        let temporary = self.temporaries.directory()?;
        ensure_directory(&temporary.path().join(FS))?;
        Ok(NewDirectory { temporary })
    }

    /// Brings a directory to disk and makes it that of a record, which the caller holds, and whose [`lock`](Self::lock) he has. `table` is
    /// its inode table.
    pub fn publish(
        &self,
        new: NewDirectory,
        record: &RecordId,
        made_of: &MadeOf,
        table: Option<File>,
    ) -> Result<(), StoreError> {
        let inside = |name| new.temporary.path().join(name);
        let make = |name| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            rustix::fs::open(inside(name), flags, Mode::RUSR).map(File::from).context("make", inside(name))
        };
        if let Some(mut table) = table {
            crash_point();
            std::io::copy(&mut table, &mut make(TABLE)?).context("write", inside(TABLE))?;
        }
        let description = serde_json::to_vec(made_of).map_err(std::io::Error::from);
        write_all(&make(MADE_OF)?, &description.context("write", inside(MADE_OF))?, new.temporary.path())?;
        crash_point();
        // A sync of each file of many would take as long as writing them.
        rustix::fs::syncfs(new.temporary.file()).context("sync", new.temporary.path())?;
        let path = self.path(record);
        new.temporary.publish(&path).context("rename to", &path)?;
        sync_directory(&self.directory)
    }

    /// The directory of a record, kept from being removed; nothing if there is none, or it is being removed.
    pub fn open(&self, record: &RecordId) -> Result<Option<KnownDirectory>, StoreError> {
        let path = self.path(record);
        let guard = match open_directory(&path) {
            Ok(guard) => guard,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(StoreError::from_io("open", path, error)),
        };
        if !try_flock(&guard, FlockOperation::NonBlockingLockShared).context("lock", &path)?
            || !still_names(&path, &guard).context("look at", &path)?
        {
            return Ok(None);
        }
        let read = |name| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::openat(&guard, name, flags, Mode::empty()) {
                Ok(file) => Ok(Some(File::from(file))),
                Err(Errno::NOENT) => Ok(None),
                Err(error) => Err(StoreError::from_io("open", path.join(name), error)),
            }
        };
        let Some(description) = read(MADE_OF)? else { return Ok(None) };
        let made_of = match serde_json::from_reader(std::io::Read::take(description, LONGEST)) {
            Ok(made_of) => made_of,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what a directory was made of cannot be read; nothing is taken from it");
                return Ok(None);
            }
        };
        let table = read(TABLE)?;
        Ok(Some(KnownDirectory { record: record.clone(), made_of, table, path, _guard: guard }))
    }

    /// The records that have a directory, the one that was made first before the others.
    pub fn list(&self) -> Result<Vec<RecordId>, StoreError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            Err(error) => return Err(StoreError::from_io("list", &self.directory, error)),
        };
        let mut found = Vec::new();
        for entry in entries {
            let name = entry.context("list", &self.directory)?.file_name();
            let Some(record) = name.to_str().and_then(RecordId::parse) else { continue };
            let made = std::fs::metadata(self.path(&record).join(MADE_OF)).and_then(|found| found.modified());
            found.push((made.unwrap_or(SystemTime::UNIX_EPOCH), record));
        }
        found.sort();
        Ok(found.into_iter().map(|(_, record)| record).collect())
    }

    /// What directories take on the disk, in bytes, in their order: what several have counts for the first of them. One that is not there
    /// takes nothing.
    pub fn disk_bytes<'a>(
        &self,
        records: impl IntoIterator<Item = &'a RecordId>,
    ) -> Result<Vec<u64>, StoreError> {
        let (mut counter, mut before, mut bytes) = (Counter::default(), 0, Vec::new());
        for record in records {
            counter.add_tree(&self.path(record))?;
            bytes.push(counter.usage().bytes - before);
            before = counter.usage().bytes;
        }
        Ok(bytes)
    }

    /// Whether something is mounted in the directory of a record, or it is mounted somewhere, as far as this process sees.
    pub fn is_mounted(&self, record: &RecordId) -> Result<bool, StoreError> {
        const MOUNTS: &str = "/proc/self/mountinfo";
        let mounts = std::fs::read(MOUNTS).context("read", MOUNTS)?;
        // Nothing else is called so. Be it a mount point, the root of a bind mount, or a layer of an overlay.
        Ok(String::from_utf8_lossy(&mounts).contains(record.as_str()))
    }

    /// Removes the directory of a record. Its name is gone at once; what is in it, after a while.
    pub fn remove(&self, record: &RecordId) -> Result<Removal, StoreError> {
        if !self.has(record)? {
            return Ok(Removal::Absent);
        }
        if self.is_mounted(record)? {
            return Ok(Removal::Mounted);
        }
        let (path, removed) = (self.path(record), self.temporaries.unused_name());
        match rename(&path, &removed) {
            Ok(()) => {}
            Err(Errno::NOENT) => return Ok(Removal::Absent),
            Err(error) => return Err(StoreError::from_io("remove", path, error)),
        }
        sync_directory(&self.directory)?;
        remove_unused_tree(&removed)?;
        Ok(Removal::Removed)
    }

    /// Removes a directory that seems to have no record. `is_recorded` looks again, once nobody can be making it.
    pub fn remove_leftover<E: From<StoreError>>(
        &self,
        record: &RecordId,
        is_recorded: impl FnOnce() -> Result<bool, E>,
    ) -> Result<(), E> {
        let path = self.path(record);
        if lock_unused(&path).context("lock", &path)?.is_some() && !is_recorded()? {
            self.remove(record)?;
        }
        Ok(())
    }

    /// Removes what nobody uses of what is not visible, and gives the number.
    pub(super) fn sweep(&self) -> Result<u64, StoreError> {
        let directory = self.temporaries.path();
        let entries = match std::fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
            Err(error) => return Err(StoreError::from_io("list", directory, error)),
        };
        let mut removed = 0;
        for entry in entries {
            removed += u64::from(remove_unused_tree(&entry.context("list", directory)?.path())?);
        }
        Ok(removed)
    }

    fn path(&self, record: &RecordId) -> PathBuf {
        self.directory.join(record.as_str())
    }
}

/// What became of a directory that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It is gone.
    Removed,
    /// There was none.
    Absent,
    /// It is there: something is mounted in it, or it is mounted itself.
    Mounted,
}
