//! Opening a store: a few system calls if it is there, the making of its directories if it is not.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode};
use rustix::io::Errno;

use super::durable::{DIRECTORY_MODE, ensure_directory, open_directory, sync_directory};
use super::error::{Context, StoreError};
use super::lock::flock;
use super::{INGEST, Store, digest::DigestName};

const VERSION_FILE: &str = "VERSION";
/// Version of the layout of the whole directory. Each file in it has its own besides.
const VERSION: u64 = 1;
/// First word of the version file, so that no other program's is taken for ours.
const MARKER: &str = "peelfs-store";

/// What a store that was never finished may hold.
const OURS: [&str; 4] = ["content", "layers", "trees", "locks"];

impl Store {
    /// Opens the store in that directory, making it (and the directories above) if it is not there.
    ///
    /// Removes nothing: see [`Store::sweep`].
    ///
    /// # Errors
    /// [`StoreError::Newer`]; [`StoreError::NotAStore`] for a directory with other things in it; [`StoreError::Permission`] if
    /// it belongs to another user; [`StoreError::Full`].
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        // A process that serves changes its working directory.
        let path = std::path::absolute(path).context("find", path)?;
        let store = Store::at(path);
        let path = store.path();
        // The last component may be a link: users put stores on larger disks that way.
        let directory =
            match rustix::fs::open(path, rustix::fs::OFlags::RDONLY | DIRECTORY_FLAGS, Mode::empty()) {
                Ok(directory) => File::from(directory),
                Err(Errno::NOENT) => {
                    make_parents(path)?;
                    ensure_directory(path)?;
                    open_directory(path).context("open", path)?
                }
                Err(error) => return Err(StoreError::from_io("open", path, error)),
            };
        if !check_version(path)? {
            // Two processes may begin at once. The lock is on the directory itself, as there are no lock files yet.
            flock(&directory, FlockOperation::LockExclusive).context("lock", path)?;
            if !check_version(path)? {
                check_owner(&directory, path, || refuse_what_is_not_ours(path))?;
                store.initialise()?;
            }
        }
        check_owner(&directory, path, || Ok(()))?;
        Ok(store)
    }

    /// Makes what is missing; the version file last.
    fn initialise(&self) -> Result<(), StoreError> {
        ensure_directory(&self.locks)?;
        self.content.initialise()?;
        for directory in ["layers", "trees"] {
            let path = self.path.join(directory);
            ensure_directory(&path)?;
            ensure_directory(&path.join(INGEST))?;
            if directory == "layers" {
                for algorithm in DigestName::algorithm_directories() {
                    ensure_directory(&path.join(algorithm))?;
                }
            }
            sync_directory(&path)?;
        }
        sync_directory(&self.path)?;
        self.content.write_file(&self.path.join(VERSION_FILE), format!("{MARKER} {VERSION}\n").as_bytes())
    }
}

const DIRECTORY_FLAGS: rustix::fs::OFlags = rustix::fs::OFlags::DIRECTORY.union(rustix::fs::OFlags::CLOEXEC);

/// True if the store is there and of a version that is known; false if there is none.
pub(super) fn check_version(path: &Path) -> Result<bool, StoreError> {
    let path = path.join(VERSION_FILE);
    let text = match std::fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(StoreError::from_io("read", path, error)),
    };
    let version =
        text.trim_end().strip_prefix(MARKER).and_then(|rest| rest.strip_prefix(' ')?.parse::<u64>().ok());
    match version {
        Some(VERSION) => Ok(true),
        Some(found) if found > VERSION => Err(StoreError::Newer { path, found, known: VERSION }),
        _ => Err(StoreError::Damaged {
            reason: format!("{:?} is not a store's version", text.chars().take(80).collect::<String>()),
            path,
        }),
    }
}

/// Whether all that is in the directory could be a store's that was never finished.
fn refuse_what_is_not_ours(path: &Path) -> Result<(), StoreError> {
    for entry in std::fs::read_dir(path).context("list", path)? {
        let name = entry.context("list", path)?.file_name();
        // "lost+found": a store may be a file system of its own.
        if !OURS.iter().any(|ours| name == *ours) && name != "lost+found" {
            return Err(StoreError::NotAStore {
                path: path.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

/// The directory must be this user's, and nobody else's to look into: a mode that is too wide is tightened, once `may_tighten`.
fn check_owner(
    directory: &File,
    path: &Path,
    may_tighten: impl FnOnce() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let metadata = directory.metadata().context("look at", path)?;
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(StoreError::Permission {
            operation: "use",
            path: path.to_owned(),
            reason: format!("it belongs to user {}, and this is user {user}", metadata.uid()),
        });
    }
    may_tighten()?;
    if metadata.mode() & 0o7777 != DIRECTORY_MODE.as_raw_mode() {
        tracing::warn!(path = %path.display(), mode = format_args!("{:o}", metadata.mode() & 0o7777), "the store's mode is set to 700");
        rustix::fs::fchmod(directory, DIRECTORY_MODE).context("set the mode of", path)?;
    }
    Ok(())
}

fn make_parents(path: &Path) -> Result<(), StoreError> {
    path.parent().map_or(Ok(()), |parent| std::fs::create_dir_all(parent).context("make directory", parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn a_store_is_made_once_and_is_its_owners_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("some/where");
        Store::open(&path).unwrap();
        assert_eq!(mode(&path), 0o700);
        for wide in [0o755, 0o777, 0o1777, 0o750] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(wide)).unwrap();
            Store::open(&path).unwrap();
            assert_eq!(mode(&path), 0o700);
        }
    }

    #[test]
    fn a_newer_store_is_refused_with_a_hint_and_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        Store::open(directory.path()).unwrap();
        std::fs::write(directory.path().join(VERSION_FILE), "peelfs-store 2\n").unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, StoreError::Newer { found: 2, known: 1, .. }), "{error}");
        assert!(error.to_string().contains("newer"), "{error}");
        for damaged in ["", "peelfs-store", "peelfs-store x", "peelfs-store 0", "other 1", "\u{0}\u{0}"] {
            std::fs::write(directory.path().join(VERSION_FILE), damaged).unwrap();
            assert!(matches!(Store::open(directory.path()), Err(StoreError::Damaged { .. })), "{damaged:?}");
        }
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(directory.path().join("thesis.txt"), "").unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(&error, StoreError::NotAStore { found, .. } if found == "thesis.txt"), "{error}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(mode(directory.path()), 0o755);
    }

    #[test]
    fn another_users_store_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return; // Only root can give a directory away.
        }
        let directory = tempfile::tempdir().unwrap();
        Store::open(directory.path()).unwrap();
        std::os::unix::fs::chown(directory.path(), Some(12345), None).unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, StoreError::Permission { .. }), "{error}");
    }

    #[test]
    fn many_may_open_a_new_store_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| Store::open(&path).unwrap());
            }
        });
        assert_eq!(Store::open(&path).unwrap().sweep().unwrap(), 0);
    }

    #[test]
    fn a_store_that_was_never_finished_is_finished() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("content/blobs")).unwrap();
        std::fs::create_dir(directory.path().join("locks")).unwrap();
        Store::open(directory.path()).unwrap();
        assert!(directory.path().join("layers/ingest").is_dir());
    }

    #[test]
    fn a_store_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Store>();
        shared::<super::super::LayerFiles>();
        shared::<super::super::PendingPublish>();
    }
}
