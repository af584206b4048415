//! Mounts that a test makes, and their end on every path out of the test.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// A new empty directory to mount at. Whatever is mounted there when this is dropped is unmounted, lazily.
pub struct Mountpoint {
    directory: TempDir,
}

impl Mountpoint {
    pub fn new() -> Mountpoint {
        Mountpoint {
            directory: tempfile::Builder::new().prefix("peel-mount-").tempdir().expect("a directory"),
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

impl Drop for Mountpoint {
    fn drop(&mut self) {
        // Several may lie upon each other; the directory itself goes away after.
        while peelfs_fuse::unmount(self.path(), true).is_ok() {}
    }
}

/// Whether FUSE can be tested here. Without `/dev/fuse` the test fails, unless `PEEL_TESTS_MAY_SKIP_FUSE` is
/// set.
pub fn fuse_is_here(test: &str) -> bool {
    if Path::new("/dev/fuse").exists() {
        return true;
    }
    assert!(
        std::env::var_os("PEEL_TESTS_MAY_SKIP_FUSE").is_some(),
        "/dev/fuse is missing; set PEEL_TESTS_MAY_SKIP_FUSE=1 to go on without these tests"
    );
    eprintln!("{test}: skipped, because /dev/fuse is missing");
    false
}
