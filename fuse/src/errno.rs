//! The error numbers that a tree answers with.
//!
//! The kernel gives two values a meaning of its own, and neither may leave this crate by accident: `ENOSYS`
//! makes it stop asking for ever, and a number that it does not accept makes it drop the whole answer, so
//! that the caller hangs. Hence the checked constructor.

use std::fmt;
use std::io;

/// An error number of Linux (`errno(3)`), between 1 and 511, and never `ENOSYS`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// `ENOENT`: no such name. As the answer to a lookup it is cached for ever.
    pub const NOT_FOUND: Errno = Errno(libc::ENOENT);
    /// `EIO`: the bytes cannot be had, or cannot be trusted.
    pub const IO: Errno = Errno(libc::EIO);
    /// `ESTALE`: no such inode.
    pub const STALE: Errno = Errno(libc::ESTALE);
    /// `ENOTDIR`: the inode is no directory.
    pub const NOT_A_DIRECTORY: Errno = Errno(libc::ENOTDIR);
    /// `EISDIR`: the inode is a directory.
    pub const IS_A_DIRECTORY: Errno = Errno(libc::EISDIR);
    /// `EINVAL`: the question makes no sense for this inode.
    pub const INVALID: Errno = Errno(libc::EINVAL);
    /// `ENODATA`: no extended attribute of that name.
    pub const NO_DATA: Errno = Errno(libc::ENODATA);
    /// `ENXIO`: no data, or no hole, at or after that offset.
    pub const NO_SUCH_OFFSET: Errno = Errno(libc::ENXIO);
    /// `EROFS`: nothing can be written.
    pub const READ_ONLY: Errno = Errno(libc::EROFS);
    /// `ERANGE`: the value is larger than the caller's buffer.
    pub const RANGE: Errno = Errno(libc::ERANGE);
    /// `E2BIG`: the value is larger than any buffer may be.
    pub const TOO_BIG: Errno = Errno(libc::E2BIG);
    /// `ENAMETOOLONG`: a name or a symlink's target is longer than the kernel takes.
    pub const NAME_TOO_LONG: Errno = Errno(libc::ENAMETOOLONG);
    /// `EOVERFLOW`: a number does not fit the field that the kernel has for it.
    pub const OVERFLOW: Errno = Errno(libc::EOVERFLOW);
    /// `ETIMEDOUT`: a deadline has passed.
    pub const TIMED_OUT: Errno = Errno(libc::ETIMEDOUT);
    /// `EOPNOTSUPP`: not supported by this tree.
    pub const NOT_SUPPORTED: Errno = Errno(libc::EOPNOTSUPP);

    /// The error of this number; what the kernel would not accept or would misunderstand becomes `EIO`.
    pub const fn from_raw(number: i32) -> Errno {
        // ERESTARTSYS and its relatives begin at 512 and are the kernel's own.
        if number < 1 || number > 511 || number == libc::ENOSYS { Errno::IO } else { Errno(number) }
    }

    /// The number, between 1 and 511.
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Errno {
        error.raw_os_error().map_or(Errno::IO, Errno::from_raw)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> io::Error {
        io::Error::from_raw_os_error(errno.0)
    }
}

impl From<Errno> for fuser::Errno {
    fn from(errno: Errno) -> fuser::Errno {
        fuser::Errno::from_i32(errno.0)
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Errno({})", io::Error::from(*self))
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from(*self).fmt(formatter)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_would_misunderstand_becomes_an_io_error() {
        for number in [i32::MIN, -5, 0, libc::ENOSYS, 512, i32::MAX] {
            assert_eq!(Errno::from_raw(number), Errno::IO, "{number}");
        }
        for number in [1, libc::ENOENT, libc::ESTALE, 511] {
            assert_eq!(Errno::from_raw(number).raw(), number);
        }
    }

    #[test]
    fn an_error_without_a_number_is_an_io_error() {
        assert_eq!(Errno::from(io::Error::other("cut")), Errno::IO);
        assert_eq!(Errno::from(io::Error::from_raw_os_error(libc::ENOSPC)).raw(), libc::ENOSPC);
    }
}
