//! Promise: to remove a snapshot takes as long for one with many files as for an empty one: its directory is not even looked at, by anybody,
//! before the clean-up, which removes it. Counted by the kernel (inotify(7)), and not timed.

use peelfs::snapshotter::{BoxError, DiskUsage, Labels, LayerRequest, Remote, RemoteStack, Snapshotter};
use peelfs::store::Store;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// No image has lazy layers.
struct Nobody;

impl Remote for Nobody {
    fn bring(&self, _: &LayerRequest, _: &str) -> Result<Option<RemoteStack>, BoxError> {
        Ok(None)
    }

    fn usage(&self, _: &RemoteStack) -> Result<DiskUsage, BoxError> {
        Err("there is no stack".into())
    }

    fn mount(&self, _: &RemoteStack, _: &Path) -> Result<(), BoxError> {
        Err("there is no stack".into())
    }
}

/// What happens in directories: whatever is opened, read, renamed or removed there.
struct Watch(std::os::fd::OwnedFd);

impl Watch {
    fn of(directories: &[PathBuf]) -> Watch {
        let watch = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).unwrap();
        for directory in directories {
            inotify::add_watch(&watch, directory, WatchFlags::ALL_EVENTS).unwrap();
        }
        Watch(watch)
    }

    /// How much has happened since it was asked last, and how much of that were files that went. That a file is closed does not count: a
    /// process that another test is starting has all that is open here until it is another program.
    fn events(&self) -> (usize, usize) {
        let mut room = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut room);
        let (mut all, mut removed) = (0, 0);
        while let Ok(event) = reader.next() {
            all += usize::from(!event.events().intersects(ReadFlags::CLOSE_WRITE | ReadFlags::CLOSE_NOWRITE));
            removed += usize::from(event.events().contains(ReadFlags::DELETE));
        }
        (all, removed)
    }
}

#[test]
fn to_remove_a_snapshot_is_no_work_for_its_files_before_the_clean_up() {
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(directory.path()).unwrap());
    let opened = Snapshotter::open(store, Box::new(Nobody), Duration::from_secs(3600)).unwrap();
    let snapshotter = opened.expect("nobody else has it");
    let snapshots = directory.path().join("snapshots");
    for files in [1, 5000] {
        let mounts = snapshotter.prepare("upper", "", &Labels::new()).unwrap();
        let upper = PathBuf::from(&mounts[0].source);
        assert!(upper.starts_with(&snapshots), "{upper:?}");
        for number in 0..files {
            std::fs::write(upper.join(number.to_string()), "x").unwrap();
        }
        let own = upper.parent().unwrap().to_owned();
        let watch = Watch::of(&[snapshots.clone(), own.clone(), upper.clone()]);
        snapshotter.remove("upper").unwrap();
        assert_eq!(watch.events(), (0, 0), "{files} files");
        assert!(snapshotter.stat("upper").is_err());
        assert_eq!(std::fs::read_dir(&upper).unwrap().count(), files);
        watch.events();
        // Its lock may be held for an instant by a process that another test is starting.
        while own.exists() {
            snapshotter.clean_up().unwrap();
        }
        assert!(watch.events().1 >= files, "{files} files");
    }
}
