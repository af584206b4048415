//! What is noted of a snapshot beside what was written to it, so that it can be mounted again: `snapshots/<id>/snapshot.json`.
//!
//! It lies with what was written, is there before the snapshot can be seen, and moves along with it. So if the records are lost, the names and
//! all that was written come back with what they need. Which of several snapshots of one name is meant the records say; without them, the
//! one of the latest generation.

use std::fs::File;
use std::path::Path;
use std::str::FromStr;

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::durable::{FILE_MODE, crash_point, rename, sync_data, sync_directory, write_all};
use super::error::{Context, StoreError};
use super::record_tables::RecordId;

/// The name of the note in the snapshot's directory.
pub(super) const NOTE: &str = "snapshot.json";
/// Where a note is written that replaces another.
const NEW_NOTE: &str = "snapshot.json.new";
/// Of [`SnapshotNote`]. The first had no name: its directory had it.
const VERSION: u32 = 2;
/// Longest [`SnapshotName`] in bytes.
const LONGEST_NAME: usize = 64;

/// The name of a snapshot: up to 64 of `a-z A-Z 0-9 _ . -`, beginning with a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
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

    /// Another, for a snapshot that has this one while it stands for another: with the beginning of its own id.
    pub fn with(&self, id: &RecordId) -> SnapshotName {
        const DIGITS: usize = 8;
        // All of it is ASCII.
        let kept = &self.0[..self.0.len().min(LONGEST_NAME - DIGITS - 1)];
        SnapshotName(format!("{kept}-{}", &id.as_str()[..DIGITS]))
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = SnapshotNameError;

    fn try_from(text: String) -> Result<SnapshotName, SnapshotNameError> {
        text.parse()
    }
}

impl From<SnapshotName> for String {
    fn from(name: SnapshotName) -> String {
        name.0
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

/// What is known of a snapshot beside what was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotNote {
    /// Of this file's form.
    version: u32,
    /// What it was made as.
    #[serde(flatten)]
    pub origin: SnapshotOrigin,
    /// How the kernel marks whiteouts and opaque directories.
    pub attributes: AttributeSpace,
}

/// What a snapshot is called, and of which image it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotOrigin {
    /// The snapshot's name.
    pub name: SnapshotName,
    /// How often what had this name was committed before.
    pub generation: u32,
    /// The image below, as it was named.
    pub reference: String,
    /// Its platform.
    pub platform: String,
    /// Digest of its manifest: the reference may come to mean another.
    pub manifest_digest: String,
    /// Seconds since 1970.
    pub created_at: i64,
    /// What its root was like when the snapshot was made.
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

impl SnapshotNote {
    /// The same of another name.
    pub fn renamed(self, name: SnapshotName) -> SnapshotNote {
        SnapshotNote { origin: SnapshotOrigin { name, ..self.origin }, ..self }
    }

    pub(super) fn new(origin: SnapshotOrigin, attributes: AttributeSpace) -> SnapshotNote {
        SnapshotNote { version: VERSION, origin, attributes }
    }
}

/// Writes the first note of a snapshot that nobody sees yet.
pub(super) fn write(directory: &Path, note: &SnapshotNote) -> Result<(), StoreError> {
    write_to(&directory.join(NOTE), OFlags::EXCL, note)
}

/// Replaces the note of a snapshot, on disk when this returns.
pub(super) fn replace(directory: &Path, note: &SnapshotNote) -> Result<(), StoreError> {
    let (new, path) = (directory.join(NEW_NOTE), directory.join(NOTE));
    write_to(&new, OFlags::TRUNC, note)?;
    rename(&new, &path).context("rename to", &path)?;
    sync_directory(directory)
}

fn write_to(path: &Path, more: OFlags, note: &SnapshotNote) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec_pretty(note).map_err(std::io::Error::from).context("write", path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW | more;
    crash_point();
    let file = File::from(rustix::fs::open(path, flags, FILE_MODE).context("make", path)?);
    write_all(&file, &bytes, path)?;
    sync_data(&file, path)
}

/// Reads the note of a snapshot; nothing if there is none. One of the first form gets the name that is given, if it is.
///
/// # Errors
/// [`StoreError::Damaged`] if it cannot be read, [`StoreError::Newer`] if a later version wrote it.
pub(super) fn read(
    directory: &Path,
    earlier: Option<&SnapshotName>,
) -> Result<Option<SnapshotNote>, StoreError> {
    let path = directory.join(NOTE);
    let damaged = |reason: String| StoreError::Damaged { path: path.clone(), reason };
    let bytes = match std::fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.context("read", &path)?,
    };
    let mut value: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
    let version = value["version"].as_u64();
    if let Some(found) = version.filter(|found| *found > u64::from(VERSION)) {
        return Err(StoreError::Newer { path, found, known: VERSION.into() });
    }
    if let (Some(name), Some(1)) = (earlier, version) {
        value["version"] = VERSION.into();
        value["name"] = name.as_str().into();
        value["generation"] = 0.into();
    }
    serde_json::from_value(value).map(Some).map_err(|error| damaged(error.to_string()))
}

/// Removes what is noted of a snapshot. What is gone is no error.
pub(super) fn remove(directory: &Path) -> Result<(), StoreError> {
    for name in [NOTE, NEW_NOTE] {
        let path = directory.join(name);
        crash_point();
        match rustix::fs::unlink(&path) {
            Err(Errno::NOENT) => {}
            result => result.context("remove", &path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn another_name_is_one_too_and_begins_alike() {
        let id = RecordId::parse(&"0123456789abcdef".repeat(2)).unwrap();
        for (text, other) in
            [("work".to_owned(), "work-01234567".to_owned()), ("x".repeat(64), "x".repeat(55) + "-01234567")]
        {
            let name = text.parse::<SnapshotName>().unwrap().with(&id);
            assert_eq!((name.as_str(), name.as_str().parse().as_ref()), (other.as_str(), Ok(&name)));
        }
    }
}
