//! What the store takes and what is left, in bytes, as the file system accounts for it.

use std::collections::HashSet;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Errno;

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

/// What files take on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes.
    pub bytes: u64,
    /// Files, directories and all else, each counted once.
    pub inodes: u64,
}

/// What a directory and all below it take on the disk; holes count nothing, and a file of several names counts once. Links are not
/// followed, and paths may have any length. What disappears while it is counted is left out, and so is what is mounted below.
pub fn allocated_bytes(path: &Path) -> Result<u64, StoreError> {
    Ok(disk_usage(path)?.bytes)
}

/// As [`allocated_bytes`], with the number of inodes.
pub fn disk_usage(path: &Path) -> Result<DiskUsage, StoreError> {
    let mut counter = Counter::default();
    counter.add_tree(path)?;
    Ok(counter.usage)
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Counts what several directories take together: a file that has names in more than one of them once.
#[derive(Default)]
pub(super) struct Counter {
    usage: DiskUsage,
    /// Files of several names that were counted.
    linked: HashSet<(u64, u64)>,
}

impl Counter {
    /// What was counted so far.
    pub(super) fn usage(&self) -> DiskUsage {
        self.usage
    }

    /// Adds a directory and all below it, as [`disk_usage`].
    pub(super) fn add_tree(&mut self, path: &Path) -> Result<(), StoreError> {
        let root = match openat(CWD, path, FLAGS, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            // A file, or a link.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                let found = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).context("look at", path)?;
                self.add(&found);
                return Ok(());
            }
            root => root.context("open", path)?,
        };
        let found = rustix::fs::fstat(&root).context("look at", path)?;
        let device = found.st_dev;
        self.add(&found);
        // From the root down, each is listed.
        let mut levels = vec![Dir::new(root).context("list", path)?];
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.read() else {
                levels.pop();
                continue;
            };
            let entry = entry.context("list", path)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let directory = level.fd().context("list", path)?;
            let found = match statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                // The file system of a process that was killed: mounted there, as the next case.
                Err(Errno::NOTCONN | Errno::CONNABORTED) => continue,
                found => found.context("look at", path)?,
            };
            if found.st_dev != device {
                continue;
            }
            self.add(&found);
            if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                match openat(directory, name, FLAGS, Mode::empty()) {
                    // Gone, or another file by now.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    below => levels.push(Dir::new(below.context("open", path)?).context("list", path)?),
                }
            }
        }
        Ok(())
    }

    fn add(&mut self, found: &Stat) {
        let is_directory = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        if !is_directory && found.st_nlink > 1 && !self.linked.insert((found.st_dev, found.st_ino)) {
            return;
        }
        // st_blocks counts units of 512 bytes, whatever the file system's block size (stat(2)).
        let blocks = u64::try_from(found.st_blocks).unwrap_or(0);
        self.usage.bytes = self.usage.bytes.saturating_add(blocks.saturating_mul(512));
        self.usage.inodes += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_take_no_space() {
        let directory = tempfile::tempdir().unwrap();
        let before = allocated_bytes(directory.path()).unwrap();
        let sparse = std::fs::File::create(directory.path().join("sparse")).unwrap();
        sparse.set_len(1 << 30).unwrap();
        std::fs::create_dir(directory.path().join("below")).unwrap();
        std::fs::write(directory.path().join("below/full"), vec![1; 100_000]).unwrap();
        let taken = allocated_bytes(directory.path()).unwrap() - before;
        assert!((100_000..200_000).contains(&taken), "{taken}");
        assert_eq!(allocated_bytes(&directory.path().join("absent")).unwrap(), 0);
        std::fs::hard_link(directory.path().join("below/full"), directory.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", directory.path().join("link")).unwrap();
        assert_eq!(allocated_bytes(directory.path()).unwrap() - before, taken, "names take no room");
        assert!(allocated_bytes(&directory.path().join("again")).unwrap() >= 100_000);
    }

    #[test]
    fn a_file_system_has_no_more_available_than_in_total() {
        let space = file_system_space(&std::env::temp_dir()).unwrap();
        assert!(space.total > 0 && space.available <= space.total);
        assert!(file_system_space(Path::new("/does/not/exist")).is_err());
    }
}
