//! SIGINT and SIGTERM are held back while a mount is made and until somebody waits for them: one that comes between must
//! neither be lost nor end the process, which would leave a dead mount. They are for the main thread alone.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

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
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: `before` is what pthread_sigmask(3) gave.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, std::ptr::null_mut()) };
    }
}
