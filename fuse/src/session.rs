//! A mount that is being served by this process, and its end.
//!
//! ```text
//!   serve ─> thread "peel-fuse" ─> fuser's threads, one descriptor each ─> last one ends ─> wait() returns
//!                                       └ ENODEV once the file system is gone: unmounted, here or elsewhere
//! ```
//!
//! The threads hold nothing that `wait` or `unmount` need, so any thread may call those at any time.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::adapter::Adapter;
use crate::kernel_mount;
use crate::mount::MountOptions;
use crate::mountinfo::{MountEntry, all_mounts, mount_at};
use crate::tree::Tree;
use crate::unmount::{self, UnmountError};
use crate::users::User;

/// A live mount. Dropping it unmounts; if it is in use, it disappears from the tree of files at once, and is
/// served until its last user is gone or this process ends.
#[derive(Debug)]
pub struct Session {
    unmounter: Unmounter,
}

/// A handle that ends a [`Session`] from anywhere, as from a thread that waits for signals.
#[derive(Clone, Debug)]
pub struct Unmounter {
    service: Arc<Service>,
    mountpoint: PathBuf,
    id: u64,
    device: (u32, u32),
}

/// What the kernel keeps of a mount, to make it ask again. A mount that is gone has nothing to be asked again.
#[derive(Clone, Debug)]
pub struct KernelCache(fuser::Notifier);

/// Why serving ended, other than by unmounting.
#[derive(Clone, Debug, thiserror::Error)]
#[error("serving the mount at {} ended: {message}", mountpoint.display())]
pub struct ServeError {
    /// Where the tree was mounted.
    pub mountpoint: PathBuf,
    /// What went wrong.
    pub message: String,
}

/// The threads' side: whether they are still at work.
pub(crate) struct Service {
    cache: KernelCache,
    outcome: Mutex<Option<Result<(), String>>>,
    ended: Condvar,
}

impl Session {
    /// The session of the mount of this id and device number; `mountpoint` is absolute and without symlinks.
    pub(crate) fn new(service: Arc<Service>, mountpoint: PathBuf, id: u64, device: (u32, u32)) -> Session {
        Session { unmounter: Unmounter { service, mountpoint, id, device } }
    }

    /// The directory at which the tree is mounted, as an absolute path.
    pub fn mountpoint(&self) -> &Path {
        &self.unmounter.mountpoint
    }

    /// Waits until the file system is gone: unmounted by us or by anyone else, and used by nobody any more.
    pub fn wait(&self) -> Result<(), ServeError> {
        let mountpoint = || self.unmounter.mountpoint.clone();
        self.unmounter.service.wait().map_err(|message| ServeError { mountpoint: mountpoint(), message })
    }

    /// Unmounts; success if it is unmounted already. With `lazily` it disappears even while it is in use.
    /// Serving ends when nobody uses it any more, for which [`wait`](Self::wait) waits.
    pub fn unmount(&self, lazily: bool) -> Result<(), UnmountError> {
        self.unmounter.unmount(lazily)
    }

    /// What the kernel keeps of this mount.
    pub fn cache(&self) -> KernelCache {
        self.unmounter.service.cache.clone()
    }

    /// A handle that can unmount from another thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }
}

impl KernelCache {
    /// Makes the kernel forget the attributes and bytes of an inode; what is being read at this moment is waited for. Never to be
    /// called on a thread that has a read to answer. Memory that programs have mapped is asked for anew, too.
    ///
    /// # Errors
    /// What the kernel says, other than that it does not know the inode.
    pub fn forget(&self, inode: u64) -> io::Result<()> {
        self.0.inval_inode(fuser::INodeNo(inode), 0, 0)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let unmounted = self.unmount(false).or_else(|_| self.unmount(true));
        if let Err(error) = unmounted {
            tracing::warn!(%error, "the mount stays behind");
        }
    }
}

impl Unmounter {
    /// See [`Session::unmount`].
    pub fn unmount(&self, lazily: bool) -> Result<(), UnmountError> {
        let broken = |error| UnmountError::Failed { mountpoint: self.mountpoint.clone(), error };
        let mounts = all_mounts().map_err(broken)?;
        let ours =
            |entry: &&MountEntry| entry.id == self.id && entry.device == self.device && entry.is_ours();
        let Some(entry) = mounts.iter().find(ours) else { return Ok(()) };
        // The kernel uses both numbers again, at once, when a file system is gone. Ours is gone when serving
        // it has ended, unless it ended by a failure, which leaves a dead mount: what is alive now is
        // somebody else's.
        if self.service.has_ended() && !entry.is_dead() {
            return Ok(());
        }
        // By its path only the topmost mount can be taken away: never take somebody else's.
        match mount_at(&entry.mountpoint).map_err(broken)? {
            Some(top) if top.id != entry.id => Err(UnmountError::Busy {
                mountpoint: entry.mountpoint.clone(),
                users: vec![User::Mount { mountpoint: top.mountpoint, filesystem_type: top.filesystem_type }],
            }),
            _ => unmount::detach(entry, lazily),
        }
    }
}

impl Service {
    fn wait(&self) -> Result<(), String> {
        let mut outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*outcome {
                Some(outcome) => return outcome.clone(),
                None => outcome = self.ended.wait(outcome).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn has_ended(&self) -> bool {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn end(&self, outcome: Result<(), String>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.ended.notify_all();
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Service").finish_non_exhaustive()
    }
}

/// Answers the kernel's INIT and starts to serve what comes over `device`. The INIT must be there already, or
/// soon be.
pub(crate) fn serve(
    tree: Arc<impl Tree>,
    device: OwnedFd,
    options: &MountOptions,
) -> io::Result<Arc<Service>> {
    let adapter = Adapter::new(tree, options);
    let mut config = fuser::Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = can_open_device();
    // The kernel itself checks who may come in (`allow_other`); fuser's own check would look at the wrong
    // ids.
    let session = fuser::Session::from_fd(adapter, device, fuser::SessionACL::All, config)?;
    let cache = KernelCache(session.notifier());
    let service = Arc::new(Service { cache, outcome: Mutex::new(None), ended: Condvar::new() });
    let serving = Arc::clone(&service);
    std::thread::Builder::new().name("peel-fuse".to_owned()).spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.run()));
        serving.end(match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("a serving thread panicked".to_owned()),
        });
    })?;
    Ok(service)
}

/// A descriptor for each thread spares them a shared lock, but is opened anew, which not everyone may do who
/// was handed the first.
fn can_open_device() -> bool {
    std::fs::File::options().read(true).write(true).open(kernel_mount::DEVICE).is_ok()
}
