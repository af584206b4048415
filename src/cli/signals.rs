//! SIGINT and SIGTERM are held back while a mount is made and until somebody waits for them: one that comes between must
//! neither be lost nor end the process, which would leave a dead mount. They are for the main thread alone.
//!
//! SIGHUP, with a number, is a wish that a process has (sigqueue(3)): see [`asking`](super::asking).

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

/// From now on SIGINT and SIGTERM wait, as far as this thread and those that it starts are concerned. Gives what was held before.
pub fn hold() -> libc::sigset_t {
    let (mut held, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: sigemptyset(3) makes the sets that the others read and write. None of them fails for numbers that are signals.
    unsafe {
        libc::sigemptyset(held.as_mut_ptr());
        libc::sigaddset(held.as_mut_ptr(), libc::SIGINT);
        libc::sigaddset(held.as_mut_ptr(), libc::SIGTERM);
        libc::sigemptyset(before.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_BLOCK, held.as_ptr(), before.as_mut_ptr());
        before.assume_init()
    }
}

/// They are held until this is dropped. It belongs to its thread.
pub struct Held {
    before: libc::sigset_t,
    _of_this_thread: PhantomData<*const ()>,
}

impl Held {
    /// From now on.
    pub fn new() -> Held {
        Held { before: hold(), _of_this_thread: PhantomData }
    }

    /// They are held by who was this process before execve(2), and will not be when this is dropped.
    pub fn inherited() -> Held {
        let mut before = hold();
        // SAFETY: the set is one that pthread_sigmask(3) gave; neither call fails for numbers that are signals.
        unsafe {
            libc::sigdelset(&raw mut before, libc::SIGINT);
            libc::sigdelset(&raw mut before, libc::SIGTERM);
        }
        Held { before, _of_this_thread: PhantomData }
    }

    /// Where those that wait can be read.
    pub fn waiting(&self) -> io::Result<Waiting> {
        let mut both = MaybeUninit::uninit();
        // SAFETY: sigemptyset(3) makes the set that the others read and write; the descriptor that signalfd(2) gives is nobody else's.
        unsafe {
            libc::sigemptyset(both.as_mut_ptr());
            libc::sigaddset(both.as_mut_ptr(), libc::SIGINT);
            libc::sigaddset(both.as_mut_ptr(), libc::SIGTERM);
            match libc::signalfd(-1, both.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(Waiting(OwnedFd::from_raw_fd(descriptor))),
            }
        }
    }
}

/// SIGINT and SIGTERM that wait (signalfd(2)).
pub struct Waiting(OwnedFd);

impl Waiting {
    /// Takes one; nothing if there is none.
    pub fn take(&self) -> Option<rustix::process::Signal> {
        // struct signalfd_siginfo, which begins with the number.
        let mut information = [0; 128];
        let length = rustix::io::read(&self.0, &mut information).ok()?;
        let number = information[..length].first_chunk().map(|number| u32::from_ne_bytes(*number))?;
        match i32::try_from(number).ok()? {
            libc::SIGINT => Some(rustix::process::Signal::INT),
            libc::SIGTERM => Some(rustix::process::Signal::TERM),
            _ => None,
        }
    }
}

/// Wishes that wait: from when this is made SIGHUP ends nobody.
pub struct Wishes(OwnedFd);

impl Wishes {
    /// From now on, also for the processes that this one starts and becomes.
    pub fn new() -> io::Result<Wishes> {
        let mut set = MaybeUninit::uninit();
        // SAFETY: as in `hold` and `Held::waiting`.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGHUP);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            match libc::signalfd(-1, set.as_ptr(), libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
                -1 => Err(io::Error::last_os_error()),
                descriptor => Ok(Wishes(OwnedFd::from_raw_fd(descriptor))),
            }
        }
    }

    /// Takes one: which process asks, and its number. Nothing if there is none, or if it was a SIGHUP without a number.
    pub fn take(&self) -> Option<(u32, i32)> {
        // struct signalfd_siginfo.
        let mut information = [0; 128];
        let length = rustix::io::read(&self.0, &mut information).ok()?;
        let information = &information[..length];
        let word = |offset: usize| Some(u32::from_ne_bytes(*information.get(offset..)?.first_chunk()?));
        let is_wish = word(8)? == libc::SI_QUEUE.cast_unsigned();
        // The value is an address, which here is a number.
        let number = u64::from_ne_bytes(*information.get(48..)?.first_chunk()?);
        Some((word(12)?, i32::try_from(number).ok()?)).filter(|_| is_wish)
    }
}

impl AsFd for Wishes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Tells a process a wish. It must be one that has them wait.
pub fn ask(process: rustix::process::Pid, number: i32) -> io::Result<()> {
    let value = libc::sigval { sival_ptr: std::ptr::without_provenance_mut(number.cast_unsigned() as usize) };
    // SAFETY: the value is a number, which nobody takes for an address.
    match unsafe { libc::sigqueue(process.as_raw_nonzero().get(), libc::SIGHUP, value) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl AsFd for Waiting {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: `before` is what pthread_sigmask(3) gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
