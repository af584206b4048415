//! What is served: an immutable tree of inodes.
//!
//! The rules for whoever implements [`Tree`]:
//! - The answer to a question never changes while the tree lives: the kernel keeps every answer for ever.
//! - Inode numbers are the tree's own; the root is [`ROOT_INODE`], and 0 is no inode. Hard links share one.
//! - Nothing but [`Tree::read`] may wait for the network: a task that waits in a lookup cannot be killed.
//! - A panic in a question is answered as `EIO` and logged; it ends neither the mount nor a serving thread.

use std::fs::File;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::errno::Errno;
use crate::read_reply::ReadReply;

/// The inode number of the root directory (`FUSE_ROOT_ID`).
pub const ROOT_INODE: u64 = 1;

/// A moment since 1970-01-01T00:00:00Z; `seconds` is negative before it, `nanoseconds` always counts forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    /// Whole seconds, rounded down.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

/// The number of a character or block device; 0:0 for every other inode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// At most 4095 (12 bits), or the inode's attributes are answered with `EOVERFLOW`.
    pub major: u32,
    /// At most 1,048,575 (20 bits), or the inode's attributes are answered with `EOVERFLOW`.
    pub minor: u32,
}

/// What `stat(2)` shows of an inode. Access and change time are the modification time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// The inode number.
    pub inode: u64,
    /// `st_mode`: the type bits (`S_IFMT`), setuid, setgid, sticky and permissions.
    pub mode: u32,
    /// The number of names that lead here.
    pub link_count: u32,
    /// The owner's numeric id.
    pub uid: u32,
    /// The group's numeric id.
    pub gid: u32,
    /// Bytes of content; for a symlink the length of its target. At most `i64::MAX`.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// The device that a device node stands for.
    pub device: Device,
    /// The modification time.
    pub modified: Timestamp,
}

/// One name in a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryEntry<'a> {
    /// 1 to 255 bytes without `/` and NUL; any other name is not shown.
    pub name: &'a [u8],
    /// The inode that it leads to.
    pub inode: u64,
    /// That inode's `st_mode`; only the type bits matter.
    pub mode: u32,
    /// The cookie that resumes the directory after this entry: never 0, at most `i64::MAX - 2`.
    pub next: u64,
}

/// What `statvfs(3)` shows. The tree is read-only: nothing is free unless the tree says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilesystemStatistics {
    /// The size of the file system, in blocks.
    pub blocks: u64,
    /// Blocks that could still be written; 0 for an image.
    pub blocks_available: u64,
    /// The number of inodes.
    pub files: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// The longest name, in bytes.
    pub name_length: u32,
}

/// What `lseek(2)` looks for in a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOrHole {
    /// `SEEK_DATA`.
    Data,
    /// `SEEK_HOLE`; the end of a file is a hole.
    Hole,
}

/// An immutable file tree. See the head of this module for the rules.
pub trait Tree: Send + Sync + 'static {
    /// The attributes of the inode that `name` leads to in the directory `parent`. `name` is neither `.` nor
    /// `..`. [`Errno::NOT_FOUND`] is remembered by the kernel for ever, like any other answer.
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes, Errno>;

    /// The attributes of an inode; [`Errno::STALE`] if there is none of that number.
    fn attributes(&self, inode: u64) -> Result<Attributes, Errno>;

    /// A symlink's target, at most 4095 bytes; [`Errno::INVALID`] if the inode is none.
    fn symlink_target(&self, inode: u64) -> Result<&[u8], Errno>;

    /// Shows the entries of a directory to `visit`, without `.` and `..`, until it breaks. `start` is 0 for
    /// the first entry, or else the `next` of the entry after which to go on. Must show them in the same
    /// order each time.
    fn read_directory(
        &self,
        inode: u64,
        start: u64,
        visit: &mut dyn FnMut(DirectoryEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno>;

    /// The directory that holds this one; the root's is the root itself.
    fn parent(&self, inode: u64) -> Result<u64, Errno>;

    /// The value of an extended attribute, which may be empty; [`Errno::NO_DATA`] if there is none of that
    /// name.
    fn xattr(&self, inode: u64, name: &[u8]) -> Result<&[u8], Errno>;

    /// Shows the names of an inode's extended attributes to `visit`.
    fn xattr_names(&self, inode: u64, visit: &mut dyn FnMut(&[u8])) -> Result<(), Errno>;

    /// Reads a regular file and answers on `reply`, now or later, from this thread or another. `offset +
    /// length` never reaches beyond the file's size, `length` is at least 1, and exactly `length` bytes are
    /// wanted.
    fn read(&self, inode: u64, offset: u64, length: u32, reply: ReadReply);

    /// A local file that holds exactly this inode's bytes from offset 0 on, verified and never to change, so
    /// that the kernel may read it without asking us. What locks it has (`flock(2)`) stay until the file system is
    /// gone, since the kernel may read it so long. Asked only with [`passthrough`](crate::MountOptions::passthrough).
    fn whole_file(&self, inode: u64) -> Option<Arc<File>> {
        let _ = inode;
        None
    }

    /// The first data or hole at or after `offset` of a regular file; [`Errno::NO_SUCH_OFFSET`] if there is
    /// none, and if `offset` is not inside the file.
    fn seek(&self, inode: u64, offset: u64, whence: DataOrHole) -> Result<u64, Errno>;

    /// What `statfs` shows.
    fn statistics(&self) -> FilesystemStatistics;
}
