//! Writable snapshots: what was changed in a mounted image, kept apart from it.
//!
//! ```text
//! writable/NAME/
//!   fs/             the changes, as the kernel's overlay writes them: new and changed files whole, whiteouts, opaque directories
//!   work/           the kernel's own, on the same file system
//!   lower/          empty; where an older kernel attaches the image for a moment
//!   snapshot.json   of which image, and all that must be known to mount it again
//! ```
//!
//! Rules
//! - A snapshot appears by a rename, with all that belongs to it. Only `fs/` and `work/` change afterwards, and the kernel alone
//!   changes them.
//! - Whoever mounts a snapshot holds its lock ([`WritableSnapshots::lock`]) as long as the mount lives: two overlays over one directory would
//!   each see half of what the other does.
//! - Whoever reads or mounts one holds a shared lock on its directory. One that is discarded is renamed at once, and removed when nobody
//!   holds that lock any more.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FlockOperation, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::durable::{
    FILE_MODE, ensure_directory, open_directory, rename, still_names, sync_data, sync_directory, write_all,
};
use super::error::{Context, StoreError};
use super::lock::{FileLock, flock};
use super::space::allocated_bytes;
use super::temporary::{Temporaries, remove_unused};

const CHANGES: &str = "fs";
const WORK: &str = "work";
const LOWER: &str = "lower";
const RECORD: &str = "snapshot.json";
/// Of [`SnapshotRecord`].
const VERSION: u32 = 1;
/// Longest [`SnapshotName`] in bytes.
const LONGEST_NAME: usize = 64;

/// The name of a snapshot: up to 64 of `a-z A-Z 0-9 _ . -`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotName(String);

/// A text that names no snapshot.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no name of a snapshot: up to {LONGEST_NAME} of a-z A-Z 0-9 _ . -, beginning with a letter or digit"
)]
pub struct SnapshotNameError(String);

impl SnapshotName {
    /// A name that nobody has given yet: 48 random bits.
    pub fn new() -> SnapshotName {
        use std::hash::{BuildHasher, RandomState};
        // Seeded by the kernel for each process.
        SnapshotName(format!("{:012x}", RandomState::new().hash_one(std::process::id()) >> 16))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for SnapshotName {
    fn default() -> Self {
        SnapshotName::new()
    }
}

impl FromStr for SnapshotName {
    type Err = SnapshotNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let begins = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
        match begins && text.len() <= LONGEST_NAME && text.bytes().all(is_allowed) && text != super::INGEST {
            true => Ok(SnapshotName(text.to_owned())),
            false => Err(SnapshotNameError(text.chars().take(100).collect())),
        }
    }
}

impl std::fmt::Display for SnapshotName {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// What is known of a snapshot beside its changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Of this file's form.
    version: u32,
    /// The image below, as it was named.
    pub reference: String,
    /// Its platform.
    pub platform: String,
    /// Digest of its manifest: the reference may come to mean another.
    pub manifest_digest: String,
    /// Seconds since 1970.
    pub created_at: i64,
    /// How the kernel marks whiteouts and opaque directories.
    pub attributes: AttributeSpace,
    /// What its root was like when it was made.
    pub root: RootAttributes,
}

/// The extended attributes in which the kernel's overlay says what a file system cannot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AttributeSpace {
    /// `trusted.overlay.*`.
    Trusted,
    /// `user.overlay.*`, in a user namespace.
    User,
}

/// Attributes of the root of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootAttributes {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Numeric owner.
    pub uid: u32,
    /// Numeric group.
    pub gid: u32,
    /// Seconds of the modification time, since 1970.
    pub modified_seconds: i64,
    /// Nanoseconds of it, to 999,999,999.
    pub modified_nanoseconds: u32,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Which image a new snapshot is of.
#[derive(Clone, Debug)]
pub struct NewWritableSnapshot {
    /// The image, as it was named.
    pub reference: String,
    /// Its platform.
    pub platform: String,
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// Seconds since 1970.
    pub created_at: i64,
    /// Those of its root.
    pub root: RootAttributes,
}

/// A snapshot that is not removed while this lives.
#[derive(Debug)]
pub struct Snapshot {
    /// Its name.
    pub name: SnapshotName,
    /// What is known of it.
    pub record: SnapshotRecord,
    path: PathBuf,
    /// Holds the shared lock.
    _directory: File,
}

impl Snapshot {
    /// The directory that takes the changes.
    pub fn changes(&self) -> PathBuf {
        self.path.join(CHANGES)
    }

    /// The kernel's own directory.
    pub fn work(&self) -> PathBuf {
        self.path.join(WORK)
    }

    /// The directory at which a kernel may need the image to be attached for a moment.
    pub fn lower(&self) -> PathBuf {
        self.path.join(LOWER)
    }

    /// Bytes that the changes take on the disk; holes count nothing.
    pub fn changed_bytes(&self) -> Result<u64, StoreError> {
        allocated_bytes(&self.changes())
    }
}

/// The writable snapshots of a store.
#[derive(Clone, Debug)]
pub struct WritableSnapshots {
    directory: PathBuf,
    locks: PathBuf,
    temporaries: Temporaries,
}

impl WritableSnapshots {
    pub(super) fn new(directory: PathBuf, locks: PathBuf) -> WritableSnapshots {
        WritableSnapshots { temporaries: Temporaries::new(directory.join(super::INGEST)), directory, locks }
    }

    /// Makes a snapshot without changes, on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError::Io`] with `EEXIST` if there is one of that name; [`StoreError::Full`]; what a file system says that has no
    /// extended attributes.
    pub fn create(&self, name: &SnapshotName, new: NewWritableSnapshot) -> Result<Snapshot, StoreError> {
        // Stores of earlier versions have none.
        ensure_directory(&self.directory)?;
        ensure_directory(self.temporaries.path())?;
        let draft = self.temporaries.directory()?;
        let changes = draft.path().join(CHANGES);
        for directory in [CHANGES, WORK, LOWER] {
            ensure_directory(&draft.path().join(directory))?;
        }
        let NewWritableSnapshot { reference, platform, manifest_digest, created_at, root } = new;
        let attributes = attribute_space(&draft.path().join(WORK))?;
        // Others are to look into the mount as into the image; the store keeps them out of the directory.
        set_root_attributes(&changes, &root)?;
        let record = SnapshotRecord {
            version: VERSION,
            reference,
            platform,
            manifest_digest,
            created_at,
            attributes,
            root,
        };
        write_record(&draft.path().join(RECORD), &record)?;
        sync_directory(draft.path())?;
        let path = self.path(name);
        draft.publish(&path).context("make the snapshot", &path)?;
        sync_directory(&self.directory)?;
        let directory = draft.file().try_clone().context("open", &path)?;
        Ok(Snapshot { name: name.clone(), record, path, _directory: directory })
    }

    /// Opens the snapshot of that name, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if its record cannot be read, [`StoreError::Newer`] if a later version wrote it.
    pub fn open(&self, name: &SnapshotName) -> Result<Option<Snapshot>, StoreError> {
        let path = self.path(name);
        let directory = match open_directory(&path) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(StoreError::from_io("open", &path, error)),
        };
        flock(&directory, FlockOperation::LockShared).context("lock", &path)?;
        // It may have been discarded before the lock.
        if !still_names(&path, &directory).context("look at", &path)? {
            return Ok(None);
        }
        let record = read_record(&path.join(RECORD))?;
        Ok(Some(Snapshot { name: name.clone(), record, path, _directory: directory }))
    }

    /// The names of all snapshots, sorted.
    pub fn names(&self) -> Result<Vec<SnapshotName>, StoreError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.context("list", &self.directory)?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.context("list", &self.directory)?.file_name();
            names.extend(name.to_str().and_then(|name| name.parse::<SnapshotName>().ok()));
        }
        names.sort();
        Ok(names)
    }

    /// Which snapshot's changes that directory holds, as the kernel names it; nothing if it is none of this store.
    pub fn of_changes(&self, changes: &Path) -> Option<SnapshotName> {
        let directory =
            changes.parent().filter(|_| changes.file_name().is_some_and(|name| name == CHANGES))?;
        let name = directory.file_name()?.to_str()?.parse().ok()?;
        let identity = |path: &Path| std::fs::symlink_metadata(path).map(|found| (found.dev(), found.ino()));
        // The store may be reached by another path than when it was mounted.
        let ours = identity(&self.path(&name)).ok()?;
        (identity(directory).ok()? == ours).then_some(name)
    }

    /// The exclusive right to mount a snapshot; nothing if somebody has it.
    pub fn lock(&self, name: &SnapshotName) -> Result<Option<FileLock>, StoreError> {
        FileLock::try_acquire(&self.locks.join(format!("snapshot-{name}")))
    }

    /// Discards a snapshot and its changes; false if there is none. The caller holds its lock.
    pub fn remove(&self, name: &SnapshotName, _lock: &FileLock) -> Result<bool, StoreError> {
        let (path, aside) = (self.path(name), self.temporaries.unused_name());
        match rename(&path, &aside) {
            Err(Errno::NOENT) => return Ok(false),
            result => result.context("discard", &path)?,
        }
        sync_directory(&self.directory)?;
        // What somebody reads at this moment is left to a later sweep.
        remove_unused(&aside).context("remove", &aside)?;
        Ok(true)
    }

    /// Removes what processes that are gone have left behind.
    pub(super) fn sweep(&self) -> Result<u64, StoreError> {
        if self.temporaries.path().exists() { self.temporaries.sweep() } else { Ok(0) }
    }

    fn path(&self, name: &SnapshotName) -> PathBuf {
        self.directory.join(&name.0)
    }
}

/// What this user may set on files of this file system.
fn attribute_space(directory: &Path) -> Result<AttributeSpace, StoreError> {
    let probe = |name| {
        rustix::fs::setxattr(directory, name, b"y", XattrFlags::empty())?;
        rustix::fs::removexattr(directory, name)
    };
    match probe("trusted.peel") {
        Ok(()) => Ok(AttributeSpace::Trusted),
        Err(Errno::PERM) => {
            probe("user.peel").context("set extended attributes of", directory)?;
            Ok(AttributeSpace::User)
        }
        result => {
            result.context("set extended attributes of", directory)?;
            Ok(AttributeSpace::Trusted)
        }
    }
}

/// The root of a mount shows what the directory of its changes has.
fn set_root_attributes(directory: &Path, root: &RootAttributes) -> Result<(), StoreError> {
    let handle = open_directory(directory).context("open", directory)?;
    for (name, value) in &root.xattrs {
        match rustix::fs::fsetxattr(&handle, name.as_slice(), value, XattrFlags::empty()) {
            // Not for this user, or not on this file system: the root lacks it then.
            Err(Errno::PERM | Errno::NOTSUP | Errno::INVAL) => {
                tracing::warn!(attribute = %name.escape_ascii(), "the root of the writable mount lacks an extended attribute");
            }
            result => result.context("set extended attributes of", directory)?,
        }
    }
    std::os::unix::fs::fchown(&handle, Some(root.uid), Some(root.gid))
        .context("set the owner of", directory)?;
    rustix::fs::fchmod(&handle, Mode::from_raw_mode(root.mode & 0o7777))
        .context("set the mode of", directory)?;
    let modified = Timespec { tv_sec: root.modified_seconds, tv_nsec: i64::from(root.modified_nanoseconds) };
    rustix::fs::futimens(&handle, &Timestamps { last_access: modified, last_modification: modified })
        .context("set the times of", directory)
}

fn write_record(path: &Path, record: &SnapshotRecord) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(record).map_err(std::io::Error::from).context("write", path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, FILE_MODE).context("make", path)?);
    write_all(&file, &bytes, path)?;
    sync_data(&file, path)
}

fn read_record(path: &Path) -> Result<SnapshotRecord, StoreError> {
    let damaged = |reason: String| StoreError::Damaged { path: path.to_owned(), reason };
    let bytes = std::fs::read(path).context("read", path)?;
    let value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    match value["version"].as_u64() {
        Some(found) if found > u64::from(VERSION) => {
            Err(StoreError::Newer { path: path.to_owned(), found, known: VERSION.into() })
        }
        _ => serde_json::from_value(value).map_err(|error| damaged(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Store, eventually};
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn new_snapshot() -> NewWritableSnapshot {
        let user = rustix::process::geteuid().as_raw();
        NewWritableSnapshot {
            reference: "docker.io/library/python:3.12".to_owned(),
            platform: "linux/amd64".to_owned(),
            manifest_digest: format!("sha256:{}", "1".repeat(64)),
            created_at: 7,
            root: RootAttributes {
                mode: 0o1751,
                uid: user,
                gid: rustix::process::getegid().as_raw(),
                modified_seconds: -3,
                modified_nanoseconds: 250_000_000,
                xattrs: Vec::new(),
            },
        }
    }

    fn name(text: &str) -> SnapshotName {
        text.parse().unwrap()
    }

    #[test]
    fn a_snapshot_is_there_with_the_roots_attributes_until_it_is_discarded() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let snapshots = store.writable_snapshots();
        assert_eq!(snapshots.names().unwrap(), []);
        assert!(snapshots.open(&name("one")).unwrap().is_none());
        let made = snapshots.create(&name("one"), new_snapshot()).unwrap();
        assert!(snapshots.create(&name("one"), new_snapshot()).is_err(), "a name stands for one");
        let found = std::fs::metadata(made.changes()).unwrap();
        assert_eq!(found.permissions().mode() & 0o7777, 0o1751);
        assert_eq!((found.mtime(), found.mtime_nsec()), (-3, 250_000_000));
        assert_eq!(snapshots.of_changes(&made.changes()), Some(name("one")));
        assert_eq!(snapshots.of_changes(&made.work()), None);
        assert_eq!(snapshots.of_changes(Path::new("/one/fs")), None);

        let opened = snapshots.open(&name("one")).unwrap().unwrap();
        assert_eq!(opened.record, made.record);
        assert_eq!(snapshots.names().unwrap(), [name("one")]);
        let lock = snapshots.lock(&name("one")).unwrap().unwrap();
        assert!(snapshots.lock(&name("one")).unwrap().is_none(), "one mount at a time");
        std::fs::write(made.changes().join("file"), b"x").unwrap();

        assert!(snapshots.remove(&name("one"), &lock).unwrap());
        assert!(!snapshots.remove(&name("one"), &lock).unwrap());
        assert_eq!(snapshots.names().unwrap(), []);
        // Who reads it goes on.
        let aside = directory.path().join("writable/ingest");
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 1);
        drop((made, opened, lock));
        eventually("it is swept", || store.sweep().unwrap() == 1);
        assert_eq!(std::fs::read_dir(&aside).unwrap().count(), 0);
    }

    #[test]
    fn names_lead_nowhere_else() {
        for text in ["a", "0", "a.b_C-9", &"x".repeat(64)] {
            assert!(text.parse::<SnapshotName>().is_ok(), "{text}");
        }
        for text in ["", ".", "..", ".hidden", "-x", "a/b", "a\0", "ä", "a b", "ingest", &"x".repeat(65)] {
            assert!(text.parse::<SnapshotName>().is_err(), "{text}");
        }
        assert_ne!(SnapshotName::new(), SnapshotName::new());
        assert!(SnapshotName::new().as_str().parse::<SnapshotName>().is_ok());
    }

    #[test]
    fn a_record_that_cannot_be_read_is_an_error_that_says_so() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        drop(store.writable_snapshots().create(&name("one"), new_snapshot()).unwrap());
        let record = directory.path().join("writable/one/snapshot.json");
        for (text, is_newer) in [("", false), ("{}", false), (r#"{"version":2}"#, true)] {
            std::fs::write(&record, text).unwrap();
            let error = store.writable_snapshots().open(&name("one")).unwrap_err();
            assert_eq!(matches!(error, StoreError::Newer { .. }), is_newer, "{error}");
        }
    }
}
