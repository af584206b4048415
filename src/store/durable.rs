//! The few steps by which anything becomes visible: write, sync, rename, sync the directory. All of the store's files come by
//! these, so that a test can kill the process between any two of them.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags};

use super::error::{Context, StoreError};

/// Files of the store are their owner's alone.
pub(super) const FILE_MODE: Mode = Mode::from_raw_mode(0o600);
/// Directories of the store are their owner's alone.
pub(super) const DIRECTORY_MODE: Mode = Mode::from_raw_mode(0o700);

/// Writes all of `bytes` at the file's position.
pub(super) fn write_all(mut file: &File, bytes: &[u8], path: &Path) -> Result<(), StoreError> {
    crash_point();
    file.write_all(bytes).context("write", path)
}

/// The file's bytes are on disk when this returns.
pub(super) fn sync_data(file: impl AsFd, path: &Path) -> Result<(), StoreError> {
    crash_point();
    rustix::fs::fdatasync(file).context("sync", path)
}

/// The directory's entries are on disk when this returns.
pub(super) fn sync_directory(path: &Path) -> Result<(), StoreError> {
    crash_point();
    let directory = open_directory(path).context("open directory", path)?;
    rustix::fs::fsync(directory).context("sync directory", path)
}

/// Gives `from` the name `to`, replacing a file of that name. On disk only after [`sync_directory`].
pub(super) fn rename(from: &Path, to: &Path) -> rustix::io::Result<()> {
    crash_point();
    rustix::fs::rename(from, to)
}

/// Opens a directory itself, never what a link in its place points at.
pub(super) fn open_directory(path: &Path) -> rustix::io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map(File::from)
}

/// Makes a directory if it is not there.
pub(super) fn ensure_directory(path: &Path) -> Result<(), StoreError> {
    crash_point();
    match rustix::fs::mkdir(path, DIRECTORY_MODE) {
        Err(rustix::io::Errno::EXIST) => Ok(()),
        result => result.context("make directory", path),
    }
}

/// Whether `path` (a link is not followed) still names the file that is open as `file`.
pub(super) fn still_names(path: &Path, file: impl AsFd) -> rustix::io::Result<bool> {
    let open = rustix::fs::fstat(file)?;
    match rustix::fs::statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) => Ok((named.st_dev, named.st_ino) == (open.st_dev, open.st_ino)),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The names in a directory, sorted, as far as they are UTF-8, as all of ours are; none if it is not there.
pub(super) fn names_in(directory: &Path) -> Result<Vec<String>, StoreError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.context("list", directory)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        names.extend(entry.context("list", directory)?.file_name().into_string().ok());
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(not(test))]
#[inline(always)]
pub(super) fn crash_point() {}

#[cfg(test)]
pub(super) use test_hook::crash_point;

/// Tests end the process at the n-th step, as if it were killed from outside.
#[cfg(test)]
pub(crate) mod test_hook {
    use std::sync::atomic::{AtomicI64, Ordering};

    static STEPS_LEFT: AtomicI64 = AtomicI64::new(i64::MAX);

    /// From now on the process survives this many steps.
    pub(crate) fn die_after(steps: i64) {
        STEPS_LEFT.store(steps, Ordering::SeqCst);
    }

    pub(crate) fn crash_point() {
        if STEPS_LEFT.fetch_sub(1, Ordering::SeqCst) <= 0 {
            // SIGKILL: no destructor runs, no buffer is flushed.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
