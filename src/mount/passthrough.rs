//! Whether the kernel reads large files of a mount itself, from the store's disk, without asking whoever serves it.
//!
//! What is gained: such a file is read as fast as any on that disk, and is in memory once and not twice, also if several mounts show it. (32 MiB
//! that are in memory take 3.2 ms of processor time, and 8.0 ms through the cache of FUSE; but 7.6 ms as long as the kernel has them in the small
//! pieces in which they were written to the data file, which ends when it has read them from the disk once.)
//! What it costs, for all files of the mount: the kernel asks at each open, where it need not else, and tells each close. To open and close a
//! small file takes 38 µs then and not 5, as on the disk (a loop over 1,000 files; medians on a busy machine 93 and 12). And one overlay can be
//! laid over the mount, not one over the other. So by itself it is chosen for images that are large files for the greater part, of which
//! programs open few files for what they read of them, and not for mounts that are overlays already.
//!
//! A file is passed through when it is opened, if it is wholly here then and its layer proved; where a store has a budget none is, as what
//! the kernel reads cannot be evicted.
//!
//! What whoever serves next must know of open files is in `run/PID-START.opens` of the store: the number and start time of the process that the
//! mount is known by, so that no other mount has the same. It goes with the mount.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use peelfs_fuse::{MountOptions, OpenRecords};

use super::Prepared;

/// Files of this size or more are worth the opens of others: to read one that is here, in memory, takes as long as a hundred opens do.
const LARGE: u64 = 16 << 20;

/// When large files of a mount are passed through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// If large files are half of the image or more, and the mount cannot be written to.
    Auto,
    /// In any image.
    Always,
    /// Not at all.
    Never,
}

impl Passthrough {
    /// Whether it is to be tried for an image of that many bytes, of which so many are in large files.
    fn is_for(self, large_bytes: u64, all_bytes: u64, is_writable: bool) -> bool {
        match self {
            Passthrough::Auto => !is_writable && large_bytes > 0 && large_bytes >= all_bytes / 2,
            Passthrough::Always => true,
            Passthrough::Never => false,
        }
    }
}

/// Where it is written down which files of a mount are open how. `counters` is the file that its counters have, the process the one that it
/// is known by.
pub(super) fn records_path(counters: &Path, process: u32, start_time: u64) -> PathBuf {
    counters.with_file_name(format!("{process}-{start_time}.opens"))
}

/// Removes what a mount has left that is gone. Most have nothing.
pub(super) fn forget_records(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "what was open in a mount that is gone stays noted");
    }
}

impl Prepared {
    /// The same options for a new mount, with what is decided here.
    pub(super) fn with_passthrough(&self, options: &MountOptions, is_writable: bool) -> MountOptions {
        let is_wanted = self.passthrough.is_for(self.large_bytes(), self.content_bytes(), is_writable)
            && rustix::process::geteuid().is_root()
            // Who cannot read it keeps to it all the same.
            && matches!(self.brought.store.budget(), Ok(None));
        let made = is_wanted.then(|| {
            let path = &self.open_records;
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
            OpenRecords::create(file, self.tree.table().inodes().len() as u64)
        });
        let passthrough = made.transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "it cannot be noted which files are open: none are passed through");
            None
        });
        if passthrough.is_some() {
            tracing::debug!(image = %self.brought.reference, "large files that are here are read by the kernel itself");
        }
        MountOptions { passthrough: passthrough.map(Arc::new), ..options.clone() }
    }

    /// The same for one whose server is gone, and which has files passed through.
    pub(super) fn with_records_of_predecessor(&self, options: &MountOptions) -> MountOptions {
        let opened = File::options().read(true).write(true).open(&self.open_records);
        let passthrough = opened.and_then(OpenRecords::take_over).inspect_err(|error| {
            tracing::error!(
                path = %self.open_records.display(), %error,
                "nobody knows which files the kernel reads itself: those that are open so cannot be opened again"
            );
        });
        MountOptions { passthrough: passthrough.ok().map(Arc::new), ..options.clone() }
    }

    fn content_bytes(&self) -> u64 {
        self.tree.table().content_bytes()
    }

    /// Bytes of its layers that are in large files: what an upper layer hides of a lower one counts, too.
    fn large_bytes(&self) -> u64 {
        let records = self.tree.layers().iter().flat_map(|layer| layer.table().large());
        records.map(|record| record.length.get()).filter(|length| *length >= LARGE).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::Passthrough::{Always, Auto, Never};

    #[test]
    fn by_itself_it_is_for_images_that_are_large_files_for_the_greater_part() {
        const GIGABYTE: u64 = 1 << 30;
        for (wished, large, all, is_writable, is_for) in [
            (Auto, GIGABYTE, GIGABYTE + 200, false, true),
            (Auto, GIGABYTE, 2 * GIGABYTE, false, true),
            (Auto, GIGABYTE, 3 * GIGABYTE, false, false),
            (Auto, 2 * GIGABYTE, GIGABYTE, false, true),
            (Auto, 0, 0, false, false),
            (Auto, 0, GIGABYTE, false, false),
            (Auto, GIGABYTE, GIGABYTE, true, false),
            (Always, 0, GIGABYTE, true, true),
            (Never, GIGABYTE, GIGABYTE, false, false),
        ] {
            assert_eq!(wished.is_for(large, all, is_writable), is_for, "{wished:?} {large} {all}");
        }
    }
}
