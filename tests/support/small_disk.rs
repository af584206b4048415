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

    pub fn grow(&self, mebibytes: u64) {
        let options = format!("size={mebibytes}M");
        rustix::mount::mount_remount(&self.0, rustix::mount::MountFlags::empty(), options).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
