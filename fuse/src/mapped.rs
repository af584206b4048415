//! A directory seen at another place with other owners: an idmapped mount (mount_setattr(2), Linux 5.12; of FUSE, Linux 6.12). Nothing is
//! copied and nothing changes owner: the kernel translates.
//!
//! ```text
//!   DIR, owned by 0 ── open_tree(clone) ── mount_setattr(idmap of a user namespace) ── move_mount ──> PLACE, owned by 100000
//!                                                            ▲
//!               a child in a namespace of its own, which lives until its map is taken ──┘
//! ```
//!
//! The mount is read-only, and holds what it shows even when that is unmounted elsewhere.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::kernel_mount::attach;

/// Numbers of users, or of groups, that have other numbers inside a user namespace (user_namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// The first one inside.
    pub inside: u32,
    /// What that is outside.
    pub outside: u32,
    /// How many follow each other, itself included.
    pub length: u32,
}

/// What users and groups of a directory are at another place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Of users.
    pub users: Vec<IdRange>,
    /// Of groups.
    pub groups: Vec<IdRange>,
}

/// What the number of a user or group is outside, if the ranges have it.
pub fn outside(ranges: &[IdRange], inside: u32) -> Option<u32> {
    ranges.iter().find_map(|range| {
        let distance = inside.checked_sub(range.inside).filter(|distance| *distance < range.length)?;
        range.outside.checked_add(distance)
    })
}

/// Why a directory cannot be shown with other owners.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// The kernel, or the file system, cannot do it.
    #[error(
        "the owners of {} cannot be mapped: its file system, or this kernel, has no idmapped mounts (of FUSE, since Linux 6.12)",
        directory.display()
    )]
    Unsupported {
        /// What was to be mounted.
        directory: PathBuf,
    },
    /// A step went wrong.
    #[error("the owners of {} cannot be mapped: {step}: {error}", directory.display())]
    Failed {
        /// What was to be mounted.
        directory: PathBuf,
        /// What was done.
        step: &'static str,
        /// The cause.
        error: io::Error,
    },
}

/// Mounts `directory` at `place`, an empty directory, read-only: who owns a file by the number `inside` owns it there by `outside`. What
/// has no number there belongs to nobody.
///
/// # Errors
/// [`MapError`]. Then nothing is mounted.
pub fn mount_mapped(directory: &Path, place: &Path, map: &IdMap) -> Result<(), MapError> {
    let failed = |step: &'static str| {
        move |error: io::Error| MapError::Failed { directory: directory.to_owned(), step, error }
    };
    let namespace = namespace(map).map_err(failed("user namespace"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, directory, flags).map_err(|error| failed("open_tree")(error.into()))?;
    set_map(tree.as_fd(), namespace.as_fd()).map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
            MapError::Unsupported { directory: directory.to_owned() }
        }
        _ => failed("mount_setattr")(error),
    })?;
    let place = File::open(place).map_err(failed("open"))?;
    attach(tree.as_fd(), place.as_fd()).map_err(failed("move_mount"))
}

/// A user namespace of these numbers.
fn namespace(map: &IdMap) -> io::Result<OwnedFd> {
    let child = Child::in_user_namespace()?;
    let process = PathBuf::from(format!("/proc/{}", child.id.as_raw_nonzero()));
    for (file, ranges) in [("uid_map", &map.users), ("gid_map", &map.groups)] {
        let lines =
            ranges.iter().map(|range| format!("{} {} {}\n", range.inside, range.outside, range.length));
        // In one write (user_namespaces(7)).
        std::fs::write(process.join(file), lines.collect::<String>())?;
    }
    Ok(File::open(process.join("ns/user"))?.into())
}

/// A process that does nothing, and ends with this.
struct Child {
    id: Pid,
    handle: OwnedFd,
}

impl Child {
    fn in_user_namespace() -> io::Result<Child> {
        let parent = rustix::process::getpid();
        let mut handle: libc::c_int = -1;
        // SAFETY: a record of plain numbers, of which zero is the default each (clone(2)).
        let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
        arguments.flags = libc::CLONE_NEWUSER as u64 | libc::CLONE_PIDFD as u64;
        arguments.pidfd = &raw mut handle as u64;
        arguments.exit_signal = libc::SIGCHLD as u64;
        // SAFETY: without CLONE_VM this is a fork: the child has its own copy of memory and stack. The arguments live until it returns.
        let id =
            unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) };
        match id {
            -1 => Err(io::Error::last_os_error()),
            0 => wait_to_be_killed(parent),
            id => {
                let id = i32::try_from(id).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
                // SAFETY: the kernel has just made it, for us alone.
                Ok(Child { id, handle: unsafe { OwnedFd::from_raw_fd(handle) } })
            }
        }
    }
}

/// What the child does. Others threads of the parent may have held locks when it was copied, so there is nothing but system calls.
fn wait_to_be_killed(parent: Pid) -> ! {
    // SAFETY: system calls without memory.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // It died before that.
        if libc::getppid() != parent.as_raw_nonzero().get() {
            libc::_exit(0);
        }
        loop {
            libc::pause();
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        let _ = waitid(WaitId::PidFd(self.handle.as_fd()), WaitIdOptions::EXITED);
    }
}

/// Has a mount without a place show owners as that namespace maps them, and be read-only.
fn set_map(tree: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        userns_fd: namespace.as_raw_fd() as u64,
    };
    // SAFETY: the path is empty and the record is what the kernel expects, of its size; both live until the call returns.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, chown};

    #[test]
    fn owners_are_others_at_the_other_place_and_nobodys_numbers_are_nobodys() {
        let directory = tempfile::tempdir().unwrap();
        let (source, place) = (directory.path().join("source"), directory.path().join("place"));
        for path in [&source, &place] {
            std::fs::create_dir(path).unwrap();
        }
        for (name, uid, gid) in [("root", 0, 0), ("daemon", 33, 44), ("beyond", 70_000, 0)] {
            std::fs::write(source.join(name), name).unwrap();
            chown(source.join(name), Some(uid), Some(gid)).unwrap();
        }
        let range = |inside, outside, length| IdRange { inside, outside, length };
        let map = IdMap {
            users: vec![range(0, 100_000, 33), range(33, 7, 1), range(34, 300_000, 60_000)],
            groups: vec![range(0, 200_000, 65_536)],
        };
        mount_mapped(&source, &place, &map).unwrap();
        let owner = |name: &str| {
            let found = std::fs::metadata(place.join(name)).unwrap();
            (found.uid(), found.gid())
        };
        let owners = ["root", "daemon", "beyond"].map(owner);
        let written = std::fs::write(place.join("new"), "");
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!(owners, [(100_000, 200_000), (7, 200_044), (65_534, 200_000)]);
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(
            [0, 32, 33, 34, 60_033, 60_034].map(|id| outside(&map.users, id)),
            [Some(100_000), Some(100_032), Some(7), Some(300_000), Some(359_999), None]
        );
    }

    #[test]
    fn what_cannot_be_mapped_is_said_and_nothing_stays_mounted() {
        let directory = tempfile::tempdir().unwrap();
        let whole = IdMap {
            users: vec![IdRange { inside: 0, outside: 1, length: 10 }],
            groups: vec![IdRange { inside: 0, outside: 1, length: 10 }],
        };
        let error = mount_mapped(Path::new("/proc"), directory.path(), &whole).unwrap_err();
        assert!(matches!(error, MapError::Unsupported { .. }), "{error}");
        let twice = IdRange { inside: 0, outside: 1, length: 10 };
        let map = IdMap { users: vec![twice, twice], ..whole };
        let error = mount_mapped(directory.path(), directory.path(), &map).unwrap_err();
        assert!(matches!(error, MapError::Failed { step: "user namespace", .. }), "{error}");
        assert!(!crate::is_mountpoint(directory.path()).unwrap());
    }
}
