//! SIGINT and SIGTERM are held back while a mount is made and until somebody waits for them: one that comes between must
//! neither be lost nor end the process, which would leave a dead mount. They are for the main thread alone.

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
