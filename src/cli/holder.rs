//! The holder of a mount: a process that has its descriptor and does nothing else, so that the mount outlives whoever serves it.
//!
//! ```text
//!            ┌──────────────────── fork ◀── wait a little, if need be ◀───────────┐
//!            ▼                                                                    │ killed, crashed, failed
//!   server: prepare ── mount, or go on ──"hold this", "usable"──▶ served ─────────┤
//!                                                                                 │ ended in order, or the mount is gone
//!                                                                                 └───────▶ the holder ends
//! ```
//!
//! - It has one thread, allocates next to nothing, opens no store and knows nobody's credentials: a successor is forked as the first server
//!   was, so it finds the same arguments, environment and program, even if another was installed since.
//! - Readers notice nothing of a server's death: as long as the descriptor is open, the kernel has them wait.
//! - SIGINT and SIGTERM are passed on to the server, which unmounts; so the holder's number stands for the mount.
//! - If the holder is killed, its server goes on, without one ([`Server::watch_holder`]). Only if both are, the mount is dead.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use peelfs::mount::handover::Handover;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SocketFlags,
    SocketType, recvmsg, socketpair,
};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::background::{Word, fork, leave_terminal};
use super::restarts::{Death, Restarts};
use super::server::{LONGEST_MESSAGE, Message, Server};
use super::signals::{Held, Waiting};

/// What the processes that hold mounts are called (prctl(2), `PR_SET_NAME`), so that they can be told from those that serve.
const HOLDER: &std::ffi::CStr = c"peel-holder";
const SERVER: &std::ffi::CStr = c"peel";

/// A process that holds, or will hold, a mount.
pub struct Holder {
    /// Until the command was told what became of the mount.
    word: Option<Word>,
    held: Option<Handover>,
    restarts: Restarts,
    /// Whether servers were started before.
    is_first: bool,
    signals: Held,
    waiting: Waiting,
}

impl Holder {
    /// This process becomes one.
    pub fn new(word: Word) -> io::Result<Holder> {
        let signals = Held::new();
        let waiting = signals.waiting()?;
        let _ = rustix::thread::set_name(HOLDER);
        Ok(Holder {
            word: Some(word),
            held: None,
            restarts: Restarts::default(),
            is_first: true,
            signals,
            waiting,
        })
    }

    /// Holds until there is nothing to be held any more, which ends the process. Returns in processes that are to serve.
    pub fn run(mut self) -> io::Result<Server> {
        loop {
            let death = match self.start() {
                Ok(Started::Here(socket)) => return Ok(self.into_server(socket)),
                Ok(Started::There(server, socket)) => {
                    self.is_first = false;
                    self.watch(server, &socket)
                }
                Err(error) if self.is_first => return Err(error),
                Err(_) => Some(Death { lasted: Duration::ZERO, served: None, is_killed: false }),
            };
            let is_mounted = self.held.as_ref().is_some_and(|held| !is_unmounted(&held.device));
            match death.filter(|_| is_mounted).and_then(|death| self.restarts.after(death)) {
                Some(delay) => std::thread::sleep(delay),
                // SAFETY: ends the process, which has nothing to tidy up but what the kernel does.
                None => unsafe { libc::_exit(0) },
            }
        }
    }

    fn start(&self) -> io::Result<Started> {
        let kind = SocketType::SEQPACKET;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        Ok(match fork()? {
            Some(server) => Started::There(server, ours),
            None => Started::Here(theirs),
        })
    }

    fn into_server(self, socket: OwnedFd) -> Server {
        let _ = rustix::thread::set_name(SERVER);
        // The first one can be ended while it prepares; nobody but it unmounts what a successor has to do with.
        let signals = (!self.is_first).then_some(self.signals);
        Server::of_holder(socket, rustix::process::getppid(), self.held, signals)
    }

    /// Follows a server to its death; nothing if that was in order.
    fn watch(&mut self, server: Pid, socket: &OwnedFd) -> Option<Death> {
        let (started, mut serving_since) = (Instant::now(), None);
        loop {
            let (mut told, mut signalled) =
                (PollFd::new(socket, PollFlags::IN), PollFd::new(&self.waiting, PollFlags::IN));
            let mut both = [told.clone(), signalled.clone()];
            if retry_on_intr(|| poll(&mut both, None)).is_err() {
                break;
            }
            [told, signalled] = both;
            if !signalled.revents().is_empty() {
                while let Some(signal) = self.waiting.take() {
                    let _ = kill_process(server, signal);
                }
            }
            if told.revents().is_empty() {
                continue;
            }
            match receive(socket) {
                Some(Message::Hold(handover)) => self.held = Some(handover),
                Some(Message::Usable) => {
                    serving_since = Some(Instant::now());
                    self.is_usable();
                }
                Some(Message::Failed(code)) => {
                    if let Some(word) = self.word.take() {
                        self.held = None;
                        word.say(code);
                    }
                }
                None => break,
            }
        }
        let status = retry_on_intr(|| waitpid(Some(server), WaitOptions::empty())).ok().flatten();
        let status = status.map(|(_, status)| status)?;
        if status.exit_status() == Some(0) {
            return None;
        }
        let is_killed = status.terminating_signal() == Some(Signal::KILL.as_raw());
        let served = serving_since.map(|since: Instant| since.elapsed());
        Some(Death { lasted: started.elapsed(), served, is_killed })
    }

    /// The command may leave.
    fn is_usable(&mut self) {
        if let Some(word) = self.word.take() {
            // A terminal that is kept is ugly, but no reason not to serve.
            let _ = leave_terminal();
            word.say(0);
        }
    }
}

enum Started {
    /// This is the process that serves.
    Here(OwnedFd),
    There(Pid, OwnedFd),
}

/// Whether the mount of a device is gone.
fn is_unmounted(device: &OwnedFd) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut device = [PollFd::new(device, PollFlags::empty())];
    let looked = retry_on_intr(|| poll(&mut device, Some(&at_once)));
    looked.is_ok() && device[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}

/// What a server says; nothing if it is gone, or says what cannot be understood.
fn receive(socket: impl AsFd) -> Option<Message> {
    let mut bytes = vec![0; LONGEST_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            received => break received.ok()?,
        }
    };
    let descriptor = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    if received.flags.contains(ReturnFlags::TRUNC) {
        return None;
    }
    Message::parse(&bytes[..received.bytes], descriptor)
}
