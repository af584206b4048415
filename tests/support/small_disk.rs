//! A disk that is soon full.

use std::fs;
use std::path::{Path, PathBuf};

/// A file system of so many MiB in memory, unmounted when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    pub fn make(path: &Path, mebibytes: u64) -> SmallDisk {
        fs::create_dir_all(path).unwrap();
        let options = std::ffi::CString::new(format!("size={mebibytes}M,mode=0700")).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str())
            .unwrap();
        SmallDisk(path.to_owned())
    }

    /// Leaves so many pages of 4 KiB free, until what this gives is dropped.
    pub fn fill_up_to(&self, pages: u64) -> Filler {
        let free = rustix::fs::statvfs(&self.0).unwrap();
        let length = (free.f_bavail * free.f_frsize).saturating_sub(pages * 4096);
        let path = self.0.join("filler");
        let file = fs::File::create(&path).unwrap();
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length).unwrap();
        Filler { file, path }
    }

    pub fn grow(&self, mebibytes: u64) {
        let options = format!("size={mebibytes}M");
        rustix::mount::mount_remount(&self.0, rustix::mount::MountFlags::empty(), options).unwrap();
    }
}

/// What fills a disk.
pub struct Filler {
    file: fs::File,
    path: PathBuf,
}

impl Drop for Filler {
    fn drop(&mut self) {
        // Cut first: a process that another test starts may hold it open for an instant.
        let _ = self.file.set_len(0);
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
