//! How a server comes to serve a connection: the first one, which the kernel greets, and each that goes on where another has ended.
//!
//! ```text
//!            first: INIT from the kernel ┐                   ┌ first: to the kernel
//!                                        ├──▶ fuser ──answer─┤
//!    successor: the INIT of the first one┘   (a socket)      └ successor: to nobody, the kernel has it
//!
//!    then a message for each thread: all wait at the gate ──▶ the device takes the socket's place ──▶ the gate opens
//! ```
//!
//! fuser begins with an INIT, and the kernel greets once. So it always reads from a socket first, which gives it the greeting that was
//! kept. When its threads have had a request each, the device is put in the socket's place (`dup3(2)`).
//!
//! That each thread has had one is not for order alone: the kernel fails a request (EIO) that it cannot copy to a reader who was killed
//! and whose memory is not there yet. What a thread has been given once is there.
//!
//! What a dead server had taken and not answered the kernel hands out once more when it is told to (`FUSE_NOTIFY_RESEND`, Linux 6.9); the
//! numbers of such requests have their highest bit set, which the answer repeats.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Condvar, Mutex, PoisonError};

use rustix::io::{read, retry_on_intr, write};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair};

/// Length of the header of each request (`struct fuse_in_header`), whose fields begin with length and operation.
const HEADER: usize = 40;
const FORGET: u32 = 2;
const INIT: u32 = 26;
/// The protocol that there has always been.
const MAJOR: u32 = 7;
/// In the first flags of an INIT: that there are second ones.
const INIT_EXT: u32 = 1 << 30;
/// In the second flags: the kernel hands out again what was not answered (bit 39 of both).
const HAS_RESEND: u32 = 1 << 7;
/// The code of the notification that asks for that (`FUSE_NOTIFY_RESEND`).
const NOTIFY_RESEND: i32 = 7;
/// The kernel refuses to be read with less room than the largest request that it might have; before the handshake that is 8 KiB.
const ROOM: usize = 1 << 16;
/// No inode has this number.
pub(crate) const NOBODY: u64 = 0;

/// The greeting of the kernel, as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Greeting(Vec<u8>);

impl Greeting {
    /// Takes it from the device of a new mount. It must be there already, or soon be.
    pub(crate) fn receive(device: impl AsFd) -> io::Result<Greeting> {
        let mut room = vec![0; ROOM];
        let length = retry_on_intr(|| read(&device, &mut room))?;
        room.truncate(length);
        Greeting::parse(&room).ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "the kernel's first request is no INIT of FUSE 7")
        })
    }

    /// A greeting that was kept; nothing if it is none.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Greeting> {
        let is_init = field(bytes, 0) == u32::try_from(bytes.len()).ok() && field(bytes, 4) == Some(INIT);
        (is_init && field(bytes, HEADER) == Some(MAJOR)).then(|| Greeting(bytes.to_vec()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether what a server leaves unanswered comes again.
    pub(crate) fn promises_to_resend(&self) -> bool {
        let flags = |number: usize| field(&self.0, HEADER + 12 + 4 * number).unwrap_or_default();
        flags(0) & INIT_EXT != 0 && flags(1) & HAS_RESEND != 0
    }
}

fn field(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset + 4)?;
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}

/// The kernel's part, played to fuser until the device takes over.
#[derive(Debug)]
pub(crate) struct Prompter(OwnedFd);

impl Prompter {
    /// A prompter, and what fuser is to read from. It finds the greeting there.
    pub(crate) fn new(greeting: &Greeting) -> io::Result<(Prompter, OwnedFd)> {
        let (prompter, fuser) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        send(&prompter, greeting.as_bytes(), SendFlags::NOSIGNAL)?;
        Ok((Prompter(prompter), fuser))
    }

    /// What fuser answered to the greeting.
    pub(crate) fn answer(&self) -> io::Result<Vec<u8>> {
        let mut room = vec![0; ROOM];
        let length = retry_on_intr(|| read(&self.0, &mut room))?;
        room.truncate(length);
        Ok(room)
    }

    /// Has so many threads each come to the gate: with a request that nobody answers, about an inode that is none.
    pub(crate) fn call(&self, threads: usize) -> io::Result<()> {
        let mut forget = [0; HEADER + 8];
        forget[..4].copy_from_slice(&(HEADER as u32 + 8).to_ne_bytes());
        forget[4..8].copy_from_slice(&FORGET.to_ne_bytes());
        for _ in 0..threads {
            send(&self.0, &forget, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }
}

/// Puts `device` in the place of the open descriptor `place`, of whoever has it.
pub(crate) fn put_in_place(device: BorrowedFd<'_>, place: RawFd) -> io::Result<()> {
    // SAFETY: `place` is open, and its owner goes on to own it: only what it leads to is another. Nobody reads from it at this moment.
    match unsafe { libc::dup3(device.as_raw_fd(), place, libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Tells the kernel the answer to its greeting.
pub(crate) fn answer(device: impl AsFd, answer: &[u8]) -> io::Result<()> {
    retry_on_intr(|| write(&device, answer)).map(drop).map_err(io::Error::from)
}

/// Has the kernel hand out again what other servers have taken and not answered.
pub(crate) fn ask_again(device: impl AsFd) -> io::Result<()> {
    let mut notification = [0; 16];
    notification[..4].copy_from_slice(&16_u32.to_ne_bytes());
    notification[4..8].copy_from_slice(&NOTIFY_RESEND.to_ne_bytes());
    answer(device, &notification)
}

/// Where the threads wait until they read from the device.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct GateState {
    waiting: usize,
    is_open: bool,
}

impl Gate {
    /// Waits until the gate is open.
    pub(crate) fn pass(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.waiting += 1;
        self.changed.notify_all();
        while !state.is_open {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until so many wait there. False if it was opened before.
    pub(crate) fn is_reached_by(&self, threads: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.waiting < threads && !state.is_open {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        !state.is_open
    }

    /// Lets all pass, for ever.
    pub(crate) fn open(&self) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).is_open = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An INIT with these flags, as Linux 6.18 sends it.
    fn init(flags: [u32; 2]) -> Vec<u8> {
        let mut bytes = vec![0; 104];
        for (offset, value) in [(0, 104), (4, INIT), (40, 7), (44, 45), (52, flags[0]), (56, flags[1])] {
            bytes[offset..offset + 4].copy_from_slice(&u32::to_ne_bytes(value));
        }
        bytes
    }

    #[test]
    fn a_greeting_is_an_init_of_the_protocol_that_is_known() {
        let good = init([INIT_EXT, HAS_RESEND]);
        assert!(Greeting::parse(&good).is_some());
        for (offset, value) in [(0, 103), (4, 27), (40, 8)] {
            let mut bad = good.clone();
            bad[offset..offset + 4].copy_from_slice(&u32::to_ne_bytes(value));
            assert_eq!(Greeting::parse(&bad), None, "{offset}");
        }
        for length in 0..good.len() {
            assert_eq!(Greeting::parse(&good[..length]), None, "{length}");
        }
    }

    #[test]
    fn second_flags_count_if_the_first_say_that_they_are_there() {
        for (flags, promised) in [
            ([INIT_EXT, HAS_RESEND], true),
            ([INIT_EXT | 1, HAS_RESEND | 1], true),
            ([0, HAS_RESEND], false),
            ([INIT_EXT, 0], false),
        ] {
            let greeting = Greeting::parse(&init(flags)).unwrap();
            assert_eq!(greeting.promises_to_resend(), promised, "{flags:?}");
        }
    }

    #[test]
    fn nobody_passes_the_gate_before_it_opens_and_whoever_waits_for_them_is_told_if_it_opened() {
        let gate = Gate::default();
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(|| gate.pass())).collect();
            assert!(gate.is_reached_by(3));
            assert!(threads.iter().all(|thread| !thread.is_finished()));
            gate.open();
        });
        gate.pass();
        assert!(!gate.is_reached_by(100));
    }
}
