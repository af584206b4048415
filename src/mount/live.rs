//! The list of mounts: what the records say, held against the processes and the kernel.

use std::io::Read;
use std::path::Path;
use std::time::Duration;

use peelfs_fuse::MountEntry;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::completion::{Files, Progress, Stage, Wish};
use super::counters;
use super::passthrough::{forget_records, records_path};
use crate::meter::Counts;
use crate::store::record_tables::RecordId;
use crate::store::{MountRecord, Store, StoreError};

/// Whether a recorded mount works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Liveness {
    /// Its process serves it.
    Live,
    /// Its process is gone, but the kernel still has the mount: whoever touches it gets an error. `peel unmount` removes it.
    Dead,
}

/// A mount and what is known of it.
#[derive(Clone, Debug)]
pub struct LiveMount {
    /// The record.
    pub record: MountRecord,
    /// Whether it works.
    pub liveness: Liveness,
    /// What its process has counted so far.
    pub counts: Counts,
    /// The record that takes the changes, if it is writable.
    pub snapshot: Option<RecordId>,
}

impl LiveMount {
    /// Where it stands what is wished of its completion, and how far it is.
    pub fn completion(&self) -> Option<Files> {
        self.record.status_path.as_deref().map(Files::beside)
    }

    /// What is wished of its completion, and how far it is; nothing if nothing is.
    pub fn completing(&self) -> Option<(Wish, Progress)> {
        let files = self.completion()?;
        Some((files.wish()?, files.progress().unwrap_or(Stage::Waiting.into())))
    }
}

/// When a process began, in clock ticks since the machine did (proc(5), `/proc/pid/stat`, field 22): tells it from a later one of
/// the same number. Nothing if there is none, or if it has ended and only its parent has not noticed.
pub fn start_time(pid: u32) -> Option<u64> {
    // One read: a line of it has some three hundred bytes, and each read makes it anew.
    let mut line = [0; 4096];
    let length = std::fs::File::open(format!("/proc/{pid}/stat")).ok()?.read(&mut line).ok()?;
    let text = String::from_utf8_lossy(&line[..length]);
    // The second field is the program's name in parentheses, and may hold any character.
    let (_, fields) = text.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// All mounts of this store. Records of mounts that are gone altogether are forgotten.
pub fn live_mounts(store: &Store) -> Result<Vec<LiveMount>, StoreError> {
    // Without this list no mount is known to be gone, so none is forgotten.
    let kernel = peelfs_fuse::mounts().ok();
    let mut mounts = Vec::new();
    for record in store.database().mounts()? {
        let serving = start_time(record.pid) == Some(record.pid_start_time);
        let is_here = |entry: &MountEntry| entry.mountpoint == record.mountpoint;
        let mounted = kernel.as_ref().is_none_or(|entries| entries.iter().any(is_here));
        if !serving && !mounted {
            forget(store, &record)?;
            continue;
        }
        let liveness = if serving { Liveness::Live } else { Liveness::Dead };
        let counts = record.status_path.as_deref().and_then(counters::read).unwrap_or_default();
        let entry = kernel.as_ref().and_then(|entries| entries.iter().find(|entry| is_here(entry)));
        let changes = entry.and_then(|entry| entry.upper.as_deref());
        let snapshot = changes.and_then(|changes| store.snapshots().of_changes(changes));
        mounts.push(LiveMount { record, liveness, counts, snapshot });
    }
    Ok(mounts)
}

/// How long an unmounted process may take to tidy up before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until the process that served the mount at that directory, which is unmounted, has put its house in order. One that
/// still serves users of a lazily unmounted tree is not waited for longer than a few seconds.
pub fn wait_for_end(store: &Store, mountpoint: &Path) -> Result<(), StoreError> {
    let Some(record) = store.database().find_mount(mountpoint)? else { return Ok(()) };
    let Some(pid) = Pid::from_raw(record.pid as i32) else { return Ok(()) };
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else { return Ok(()) };
    if start_time(record.pid) != Some(record.pid_start_time) {
        return Ok(());
    }
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    // A pidfd is readable when its process has ended. An error or the end of patience is no reason to fail: it is unmounted.
    let _ = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience));
    Ok(())
}

/// Forgets the mount at that directory, which is unmounted or was dead, if its process did not live to do so.
pub fn forget_unmounted(store: &Store, mountpoint: &Path) -> Result<(), StoreError> {
    match store.database().find_mount(mountpoint)? {
        Some(record) if start_time(record.pid) != Some(record.pid_start_time) => forget(store, &record),
        _ => Ok(()),
    }
}

fn forget(store: &Store, record: &MountRecord) -> Result<(), StoreError> {
    store.database().forget_mount(&record.mountpoint, record.pid)?;
    if let Some(path) = &record.status_path {
        // It may be gone already, or belong to the next process of that number, which begins with a new one.
        counters::retire(store, path);
        Files::beside(path).remove();
        forget_records(&records_path(path, record.pid, record.pid_start_time));
    }
    Ok(())
}
