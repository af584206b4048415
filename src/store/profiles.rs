//! Access profiles: what mounts of an image read, in a file for each image manifest. `profiles/<algorithm>/<hex>`.
//!
//! Nothing depends on them, so one that is damaged is as good as none; whether it is, is the reader's to judge. The directories are
//! made with the first profile: a store of an earlier version has none.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::content::write_file;
use super::digest::DigestName;
use super::durable::{ensure_directory, sync_directory};
use super::error::{Context, StoreError};
use super::lock::FileLock;
use super::temporary::Temporaries;

/// Longest profile that is kept, in bytes.
pub const MAXIMUM_PROFILE: u64 = 32 << 20;

/// The access profiles of a store.
#[derive(Clone, Debug)]
pub struct Profiles {
    directory: PathBuf,
    locks: PathBuf,
    temporaries: Temporaries,
}

impl Profiles {
    pub(super) fn new(directory: PathBuf, locks: PathBuf) -> Profiles {
        Profiles { temporaries: Temporaries::new(directory.join(super::INGEST)), directory, locks }
    }

    /// The profile of the image with that manifest, as it was put.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] if it is longer than [`MAXIMUM_PROFILE`].
    pub fn get(&self, manifest: &str) -> Result<Option<Vec<u8>>, StoreError> {
        read(&DigestName::parse(manifest)?.path_in(&self.directory))
    }

    /// Whether there is one.
    pub fn has(&self, manifest: &str) -> Result<bool, StoreError> {
        let path = DigestName::parse(manifest)?.path_in(&self.directory);
        path.try_exists().context("look at", path)
    }

    /// Puts what `change` makes of the profile, alone with it among all processes; on disk when this returns. Nothing that can be read is
    /// given to it as nothing, and if it gives nothing, all stays as it is.
    ///
    /// # Errors
    /// Those of the disk; a new profile that is too long.
    pub fn update(
        &self,
        manifest: &str,
        change: impl FnOnce(Option<Vec<u8>>) -> Option<Vec<u8>>,
    ) -> Result<(), StoreError> {
        let name = DigestName::parse(manifest)?;
        let path = name.path_in(&self.directory);
        let _lock = FileLock::acquire(&self.locks.join(format!("profile-{}", name.flat())))?;
        let before = match read(&path) {
            Err(StoreError::Damaged { path, reason }) => {
                tracing::warn!(path = %path.display(), reason, "an access profile is dropped");
                None
            }
            other => other?,
        };
        let Some(after) = change(before) else { return Ok(()) };
        if after.len() as u64 > MAXIMUM_PROFILE {
            return Err(StoreError::Damaged { path, reason: too_long() });
        }
        self.make_directories(&path)?;
        write_file(&self.temporaries, &path, &after)
    }

    /// Removes a profile; false if there was none.
    pub fn remove(&self, manifest: &str) -> Result<bool, StoreError> {
        let path = DigestName::parse(manifest)?.path_in(&self.directory);
        match rustix::fs::unlink(&path) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            result => result.map(|()| true).context("remove", path),
        }
    }

    fn make_directories(&self, path: &Path) -> Result<(), StoreError> {
        let Some(parent) = path.parent().filter(|parent| !parent.is_dir()) else { return Ok(()) };
        ensure_directory(&self.directory)?;
        ensure_directory(self.temporaries.path())?;
        ensure_directory(parent)?;
        sync_directory(&self.directory)?;
        self.directory.parent().map_or(Ok(()), sync_directory)
    }

    /// Removes what killed processes left behind, and says how many files.
    pub(super) fn sweep(&self) -> Result<u64, StoreError> {
        if self.temporaries.path().is_dir() { self.temporaries.sweep() } else { Ok(0) }
    }
}

fn too_long() -> String {
    format!("an access profile has at most {MAXIMUM_PROFILE} bytes")
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(StoreError::from_io("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(MAXIMUM_PROFILE + 1).read_to_end(&mut bytes).context("read", path)?;
    if bytes.len() as u64 > MAXIMUM_PROFILE {
        return Err(StoreError::Damaged { path: path.to_owned(), reason: too_long() });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn a_profile_is_as_the_last_change_left_it() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (profiles, manifest) = (store.profiles(), format!("sha256:{}", "0a".repeat(32)));
        assert_eq!(profiles.get(&manifest).unwrap(), None);
        assert!(!profiles.remove(&manifest).unwrap());
        assert_eq!(store.sweep().unwrap(), 0);
        profiles.update(&manifest, |_| None).unwrap();
        assert_eq!(profiles.get(&manifest).unwrap(), None);
        for (before, after) in [(None, "first"), (Some("first"), "second")] {
            let change = |found: Option<Vec<u8>>| {
                assert_eq!(found.as_deref(), before.map(str::as_bytes));
                Some(after.into())
            };
            profiles.update(&manifest, change).unwrap();
            assert_eq!(profiles.get(&manifest).unwrap().as_deref(), Some(after.as_bytes()));
        }
        assert!(profiles.remove(&manifest).unwrap());
        assert_eq!(profiles.get(&manifest).unwrap(), None);
        assert!(profiles.update("../x", |_| Some(vec![])).is_err());
    }

    #[test]
    fn no_change_is_lost_between_those_who_make_one_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let manifest = format!("sha256:{}", "0a".repeat(32));
        let add = |before: Option<Vec<u8>>| Some([before.unwrap_or_default(), vec![b'x']].concat());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..10).for_each(|_| store.profiles().update(&manifest, add).unwrap()));
            }
            scope.spawn(|| (0..10).for_each(|_| assert!(store.sweep().unwrap() < 100)));
        });
        assert_eq!(store.profiles().get(&manifest).unwrap().unwrap().len(), 40);
    }

    #[test]
    fn one_that_is_too_long_is_damaged_and_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let (profiles, manifest) = (store.profiles(), format!("sha256:{}", "0a".repeat(32)));
        profiles.update(&manifest, |_| Some(vec![])).unwrap();
        let path = directory.path().join("profiles/sha256").join("0a".repeat(32));
        File::options().write(true).open(path).unwrap().set_len(MAXIMUM_PROFILE + 1).unwrap();
        assert!(matches!(profiles.get(&manifest), Err(StoreError::Damaged { .. })));
        let change = |found: Option<Vec<u8>>| {
            assert!(found.is_none());
            Some(b"new".to_vec())
        };
        profiles.update(&manifest, change).unwrap();
        assert_eq!(profiles.get(&manifest).unwrap().as_deref(), Some(&b"new"[..]));
    }
}
