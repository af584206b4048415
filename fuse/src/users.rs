//! Who might be using a mount that is busy: an answer for people, from `/proc`, as far as this process may
//! look.
//!
//! Processes in other mount namespaces, and the kernel's own users (a loop device, an overlay) are not found.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::mountinfo::{MountEntry, all_mounts};

/// More would help nobody.
const MOST_USERS: usize = 8;

/// Something that keeps a mount busy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum User {
    /// A process.
    Process {
        /// Its id.
        pid: u32,
        /// Its name (`/proc/PID/comm`).
        name: String,
        /// What it has there: `working directory`, `root`, `program`, `open file`.
        uses: &'static str,
    },
    /// Another mount, in or upon the mount.
    Mount {
        /// Where it is.
        mountpoint: PathBuf,
        /// Its type.
        filesystem_type: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            User::Process { pid, name, uses } => write!(formatter, "{name} (process {pid}: {uses})"),
            User::Mount { mountpoint, filesystem_type } => {
                write!(formatter, "a mount of type {filesystem_type} at {}", mountpoint.display())
            }
        }
    }
}

/// `" by A, B"`, or nothing when nobody was found.
pub(crate) fn describe(users: &[User]) -> String {
    if users.is_empty() {
        return String::new();
    }
    let users: Vec<String> = users.iter().map(User::to_string).collect();
    format!(" by {}", users.join(", "))
}

/// Who uses `mount`: the mounts in it, then processes.
pub(crate) fn users_of(mount: &MountEntry) -> Vec<User> {
    let inner = all_mounts().unwrap_or_default().into_iter().filter(|inner| inner.parent == mount.id);
    let mounts = inner
        .map(|inner| User::Mount { mountpoint: inner.mountpoint, filesystem_type: inner.filesystem_type });
    mounts.chain(processes_in(&mount.mountpoint)).take(MOST_USERS).collect()
}

fn processes_in(mountpoint: &Path) -> impl Iterator<Item = User> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(move |entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let uses = what_it_uses(&entry.path(), mountpoint)?;
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default().trim().to_owned();
        Some(User::Process { pid, name, uses })
    })
}

fn what_it_uses(process: &Path, mountpoint: &Path) -> Option<&'static str> {
    // Links are only read, never followed: that would ask the file system, which may be dead.
    let is_inside = |link: &Path| fs::read_link(link).is_ok_and(|target| target.starts_with(mountpoint));
    for (link, uses) in [("cwd", "working directory"), ("root", "root"), ("exe", "program")] {
        if is_inside(&process.join(link)) {
            return Some(uses);
        }
    }
    let mut files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.any(|file| is_inside(&file.path())).then_some("open file")
}
