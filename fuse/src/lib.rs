//! The kernel's side of peelfs: serves an immutable [`Tree`] over FUSE. Knows no image and no network.
//!
//! ```text
//!   processes ── VFS ── /dev/fuse ── session (threads) ── adapter ── Tree
//!                 │                                        │
//!                 │ page cache, dentries, symlinks         ├ attr       attributes in the kernel's terms
//!                 │ and directories: kept for ever,        ├ directory  ".", "..", cookies
//!                 │ because the tree never changes         └ opens      cached or passed through, per inode
//! ```
//!
//! - [`Tree`] is what a caller implements; it is plain Rust and is tested without a kernel
//!   ([`ReadReply::channel`]).
//! - [`mount()`] makes the file system appear, complete: when it returns, the directory can be used. [`mount_writable`] lays an overlay
//!   above it, whose changes go to a directory.
//! - [`take_over`] goes on to serve a mount whose server was killed, while somebody held its [`Handover`].
//! - [`mount_mapped`] shows a directory at another place with other owners.
//! - [`unmount()`] takes it away, whoever serves it, alive or dead; [`mounts`] lists what is there.
//!
//! Rules that hold in this crate: only it names a `fuser` type; no operation on metadata waits; handles carry
//! no state (but see `opens`), so that another process could go on serving the same mount; nothing can be written to a tree.

mod adapter;
mod attr;
mod claim;
mod directory;
mod errno;
mod fusermount;
mod handover;
mod handshake;
mod in_use;
mod kernel_mount;
mod label;
mod mapped;
mod mount;
mod mount_error;
mod mountinfo;
mod open_records;
mod opens;
mod overlay;
mod read_reply;
mod session;
mod tree;
mod unmount;
mod users;

pub use errno::Errno;
pub use handover::{Handover, take_over};
pub use in_use::InUse;
pub use label::{Label, LabelError};
pub use mapped::{IdMap, IdRange, MapError, mount_mapped, outside};
pub use mount::{MountOptions, mount, mount_writable};
pub use mount_error::MountError;
pub use mountinfo::{FILESYSTEM_TYPE, MountEntry, is_mountpoint, mount_at, mounts};
pub use open_records::OpenRecords;
pub use overlay::{OverlayAttributes, Upper, may_mount_writable};
pub use read_reply::{ReadAnswer, ReadReply};
pub use session::{KernelCache, ServeError, Session, Unmounter};
pub use tree::{
    Attributes, DataOrHole, Device, DirectoryEntry, FilesystemStatistics, ROOT_INODE, Timestamp, Tree,
};
pub use unmount::{UnmountError, unmount};
pub use users::User;
