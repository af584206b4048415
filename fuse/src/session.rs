//! A mount that is being served by this process, and its end.
//!
//! ```text
//!   serve ─> thread "peel-fuse" ─> fuser's threads, all on one descriptor ─> last one ends ─> wait() returns
//!                                       └ ENODEV once the file system is gone: unmounted, here or elsewhere
//! ```
//!
//! The threads hold nothing that `wait` or `unmount` need, so any thread may call those at any time.
//!
//! They share one descriptor, the one that another process may hold, too: what was read from a descriptor of a server's own would be
//! answered with an error when that is killed.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::adapter::Adapter;
use crate::handover::{Handover, Note};
use crate::handshake::{self, Gate, Greeting, Prompter};
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
    /// Dropping it leaves the mount.
    stays: AtomicBool,
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
    greeting: Greeting,
    passes_through: bool,
    /// Until serving has ended. Nothing if another process could not go on with it.
    device: Mutex<Option<OwnedFd>>,
}

impl Session {
    /// The session of the mount of this id and device number; `mountpoint` is absolute and without symlinks.
    pub(crate) fn new(service: Arc<Service>, mountpoint: PathBuf, id: u64, device: (u32, u32)) -> Session {
        Session { unmounter: Unmounter { service, mountpoint, id, device }, stays: AtomicBool::new(false) }
    }

    /// What another process needs to go on if this one is killed. Nothing if none could: the kernel must hand out again what is not
    /// answered (Linux 6.9).
    ///
    /// # Errors
    /// If this process has no descriptor left.
    pub fn handover(&self) -> io::Result<Option<Handover>> {
        let Unmounter { service, mountpoint, id, device } = &self.unmounter;
        let note = Note {
            id: *id,
            device: *device,
            greeting: service.greeting.clone(),
            passes_through: service.passes_through,
            mountpoint: mountpoint.clone(),
        };
        let device = service.device.lock().unwrap_or_else(PoisonError::into_inner);
        let device = device.as_ref().map(OwnedFd::try_clone).transpose()?;
        Ok(device.map(|device| Handover { device, note: note.to_bytes() }))
    }

    /// From now on the mount outlives this session: another process goes on with it.
    pub fn leave_mounted(&self) {
        self.stays.store(true, Ordering::Relaxed);
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
        if self.stays.load(Ordering::Relaxed) {
            return;
        }
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
        drop(self.device.lock().unwrap_or_else(PoisonError::into_inner).take());
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
        self.ended.notify_all();
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Service").finish_non_exhaustive()
    }
}

/// Answers the kernel's greeting and starts to serve what comes over `device`. The greeting must be there already, or
/// soon be.
pub(crate) fn serve(
    tree: Arc<impl Tree>,
    device: OwnedFd,
    options: &MountOptions,
) -> io::Result<Arc<Service>> {
    let greeting = Greeting::receive(&device)?;
    start(tree, device, &greeting, options, |device, answer| handshake::answer(device, answer))
}

/// Starts to serve what comes over `device`, whose server has ended, with what it left unanswered first.
pub(crate) fn go_on(
    tree: Arc<impl Tree>,
    device: OwnedFd,
    greeting: &Greeting,
    options: &MountOptions,
) -> io::Result<Arc<Service>> {
    start(tree, device, greeting, options, |device, _| handshake::ask_again(device))
}

/// Starts the threads; `begin` tells the kernel what it must hear before the first of them reads from the device.
fn start(
    tree: Arc<impl Tree>,
    device: OwnedFd,
    greeting: &Greeting,
    options: &MountOptions,
    begin: impl FnOnce(&OwnedFd, &[u8]) -> io::Result<()>,
) -> io::Result<Arc<Service>> {
    let threads = options.threads.max(1);
    let gate = Arc::new(Gate::default());
    let adapter = Adapter::new(tree, options, gate.clone());
    let mut config = fuser::Config::default();
    config.n_threads = Some(threads);
    let (prompter, prompted) = Prompter::new(greeting)?;
    // The kernel itself checks who may come in (`allow_other`); fuser's own check would look at the wrong
    // ids.
    let session = fuser::Session::from_fd(adapter, prompted, fuser::SessionACL::All, config)?;
    let answer = prompter.answer()?;
    prompter.call(threads)?;
    let place = session.as_fd().as_raw_fd();
    let cache = KernelCache(session.notifier());
    let service = Arc::new(Service {
        cache,
        outcome: Mutex::new(None),
        ended: Condvar::new(),
        greeting: greeting.clone(),
        passes_through: options.passthrough.is_some(),
        device: Mutex::new(None),
    });
    let (serving, opened) = (Arc::clone(&service), gate.clone());
    std::thread::Builder::new().name("peel-fuse".to_owned()).spawn(move || {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| session.run()));
        serving.end(match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err("a serving thread panicked".to_owned()),
        });
        opened.open();
    })?;
    let begun = match gate.is_reached_by(threads) {
        true => handshake::put_in_place(device.as_fd(), place).and_then(|()| begin(&device, &answer)),
        // Only serving that has ended opens the gate.
        false => Err(io::Error::other(service.wait().err().unwrap_or_default())),
    };
    if begun.is_ok() && greeting.promises_to_resend() {
        *service.device.lock().unwrap_or_else(PoisonError::into_inner) = Some(device);
    }
    gate.open();
    begun.map(|()| service)
}
