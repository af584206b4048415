//! What the store takes and what is left, in bytes, as the file system accounts for it.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::error::{Context, StoreError};

/// Room on the file system of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// What this user may still write; less than what is free, where some is reserved for root.
    pub available: u64,
}

/// Room on the file system that holds `path` (statvfs(3)).
pub fn file_system_space(path: &Path) -> Result<Space, StoreError> {
    let stat = rustix::fs::statvfs(path).context("ask for the free space of", path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space { total: bytes(stat.f_blocks), available: bytes(stat.f_bavail) })
}

/// What a directory and all below it take on the disk; holes count nothing, a file with several names
/// once. Links are not followed. What disappears while it is
/// counted is left out.
pub fn allocated_bytes(path: &Path) -> Result<u64, StoreError> {
    let mut total = 0_u64;
    let mut pending = vec![path.to_owned()];
    let mut linked = std::collections::HashSet::new();
    while let Some(path) = pending.pop() {
        let metadata = match std::fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            result => result.context("look at", &path)?,
        };
        let has_other_names = metadata.nlink() > 1 && !metadata.is_dir();
        if has_other_names && !linked.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        // st_blocks counts units of 512 bytes, whatever the file system's block size (stat(2)).
        total = total.saturating_add(metadata.blocks().saturating_mul(512));
        if metadata.is_dir() {
            let entries = match std::fs::read_dir(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                result => result.context("list", &path)?,
            };
            for entry in entries {
                pending.push(entry.context("list", &path)?.path());
            }
        }
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_and_other_names_take_no_space() {
        let directory = tempfile::tempdir().unwrap();
        let before = allocated_bytes(directory.path()).unwrap();
        let sparse = std::fs::File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::fs::create_dir(directory.path().join("below")).unwrap();
        std::fs::write(directory.path().join("below/full"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(directory.path().join("below/full"), directory.path().join("again")).unwrap();
        let taken = allocated_bytes(directory.path()).unwrap() - before;
        assert!((100_000..200_000).contains(&taken), "{taken}");
        assert_eq!(allocated_bytes(&directory.path().join("absent")).unwrap(), 0);
    }

    #[test]
    fn a_file_system_has_no_more_available_than_in_total() {
        let space = file_system_space(&std::env::temp_dir()).unwrap();
        assert!(space.total > 0 && space.available <= space.total);
        assert!(file_system_space(Path::new("/does/not/exist")).is_err());
    }
}
