//! Small disks that can be full.

use std::fs;
use std::path::Path;

/// A file system of so many MiB in memory, unmounted when dropped.
pub struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    pub fn make(path: &'a Path, mebibytes: u64) -> SmallDisk<'a> {
        fs::create_dir_all(path).unwrap();
        let options = std::ffi::CString::new(format!("size={mebibytes}M,mode=0700")).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", rustix::mount::MountFlags::empty(), options.as_c_str())
            .unwrap();
        SmallDisk(path)
    }

    pub fn grow(&self, mebibytes: u64) {
        let options = format!("size={mebibytes}M");
        rustix::mount::mount_remount(self.0, rustix::mount::MountFlags::empty(), options).unwrap();
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}
