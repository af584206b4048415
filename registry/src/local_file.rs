//! Files of this machine that must be regular: one that is a fifo, or a device, would make us wait for ever.

use std::fs::File;
use std::io::{Error, ErrorKind, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Opens a regular file, and says how many bytes it has. Never waits.
///
/// # Errors
/// If it cannot be opened; [`ErrorKind::InvalidInput`] if it is something else.
pub(crate) fn open_regular(path: &Path) -> Result<(File, u64), Error> {
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = File::options().read(true).custom_flags(nonblocking).open(path)?;
    let metadata = file.metadata()?;
    match metadata.is_file() {
        true => Ok((file, metadata.len())),
        false => Err(Error::new(ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// All of a regular file.
///
/// # Errors
/// As [`open_regular`]; [`ErrorKind::FileTooLarge`] if it has more than `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, Error> {
    let (file, size) = open_regular(path)?;
    let mut bytes = Vec::new();
    if size <= limit {
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    }
    match size.max(bytes.len() as u64) > limit {
        true => Err(Error::new(ErrorKind::FileTooLarge, format!("it is larger than {limit} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn what_is_no_regular_file_is_refused_at_once_and_what_is_too_large_before_it_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        std::fs::write(at("three"), "123").unwrap();
        std::os::unix::fs::symlink("three", at("link")).unwrap();
        let kind = |name: &str, limit| read_bounded(&at(name), limit).unwrap_err().kind();
        assert_eq!(kind("fifo", 9), ErrorKind::InvalidInput);
        assert_eq!(kind(".", 9), ErrorKind::InvalidInput);
        assert_eq!(kind("missing", 9), ErrorKind::NotFound);
        assert_eq!(kind("three", 2), ErrorKind::FileTooLarge);
        assert_eq!(
            read_bounded(Path::new("/proc/self/stat"), 2).unwrap_err().kind(),
            ErrorKind::FileTooLarge
        );
        assert_eq!(read_bounded(&at("link"), 3).unwrap(), b"123");
    }
}
