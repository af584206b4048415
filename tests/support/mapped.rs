//! Files in memory, as programs have them that map them.

use std::fs::File;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A file that is mapped into memory.
pub struct Mapped {
    address: *mut std::ffi::c_void,
    length: usize,
}

impl Mapped {
    pub fn new(file: &File) -> Mapped {
        let length = file.metadata().unwrap().len() as usize;
        // SAFETY: a new mapping, wherever there is room.
        let mapped =
            unsafe { mmap(std::ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) };
        Mapped { address: mapped.unwrap(), length }
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: it is mapped as long as this lives; nobody changes the file.
        unsafe { std::slice::from_raw_parts(self.address.cast(), self.length) }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: what was mapped, and nobody has it any more.
        unsafe { munmap(self.address, self.length).unwrap() };
    }
}
