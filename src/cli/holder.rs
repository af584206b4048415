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
//! - Another program takes over when it is asked for ([`asking`](super::asking)): a successor of that one is tried beside the server
//!   ([`trial`](super::trial), [`succession`](super::succession)). When it serves, the holder becomes that program, too, by execve(2): it keeps its number, its descriptors and
//!   its child.
//! - If the holder is killed, its server goes on, without one ([`Server::watch_holder`]). Only if both are, the mount is dead.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use peelfs::mount::handover::Handover;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, waitpid};

use super::asking::Told;
use super::background::{Word, fork, leave_terminal};
use super::beginning::{Baton, Line};
use super::messages::Message;
use super::restarts::{Death, Restarts};
use super::server::Server;
use super::signals::{Held, Waiting, Wishes};
use super::trial::Serving;

/// What the processes that hold mounts are called (prctl(2), `PR_SET_NAME`), so that they can be told from those that serve.
pub const HOLDER: &std::ffi::CStr = c"peel-holder";
pub const SERVER: &std::ffi::CStr = c"peel";

/// A process that holds, or will hold, a mount.
pub struct Holder {
    pub(super) line: Line,
    /// Until the command was told what became of the mount.
    word: Option<Word>,
    pub(super) held: Option<Handover>,
    restarts: Restarts,
    /// Whether servers were started before.
    is_first: bool,
    signals: Held,
    waiting: Waiting,
    /// From when it has left the command's terminal.
    pub(super) wishes: Option<Wishes>,
    /// Who was there when this process became the holder's program.
    server: Option<Serving>,
    /// Who may follow the server.
    pub(super) candidate: Option<Serving>,
}

impl Holder {
    /// This process becomes one.
    pub fn new(word: Word, line: Line) -> io::Result<Holder> {
        let signals = Held::new();
        let waiting = signals.waiting()?;
        let _ = rustix::thread::set_name(HOLDER);
        Ok(Holder {
            line,
            word: Some(word),
            held: None,
            restarts: Restarts::default(),
            is_first: true,
            signals,
            waiting,
            wishes: None,
            server: None,
            candidate: None,
        })
    }

    /// This process is one, and was of another program.
    pub fn again(baton: Baton, line: Line) -> io::Result<Holder> {
        let signals = Held::inherited();
        let (waiting, wishes) = (signals.waiting()?, Some(Wishes::new()?));
        let _ = rustix::thread::set_name(HOLDER);
        leave_terminal()?;
        let Baton { held, server: (process, socket), answer } = baton;
        let process =
            i32::try_from(process).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidData)?;
        if let Some(answer) = answer.map(Told::inherited) {
            answer.say("", 0);
        }
        Ok(Holder {
            line,
            word: None,
            held: Some(held),
            restarts: Restarts::default(),
            is_first: false,
            signals,
            waiting,
            wishes,
            server: Some(Serving::that_serves(process, socket)),
            candidate: None,
        })
    }

    /// Holds until there is nothing to be held any more, which ends the process. Returns in processes that are to serve.
    pub fn run(mut self) -> io::Result<Server> {
        loop {
            let started = match self.server.take() {
                Some(server) => Ok(Started::There(server)),
                None => self.start(),
            };
            let death = match started {
                Ok(Started::Here(socket)) => return Ok(self.into_server(socket)),
                Ok(Started::There(server)) => {
                    self.is_first = false;
                    self.watch(server)
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
            Some(server) => Started::There(Serving::new(server, ours)),
            None => Started::Here(theirs),
        })
    }

    fn into_server(self, socket: OwnedFd) -> Server {
        let _ = rustix::thread::set_name(SERVER);
        // The first one can be ended while it prepares; nobody but it unmounts what a successor has to do with.
        let signals = (!self.is_first).then_some(self.signals);
        Server::of_holder(socket, rustix::process::getppid(), self.held, signals)
    }

    /// Follows a server, and whoever takes its place, to the death of one; nothing if that was in order.
    fn watch(&mut self, mut server: Serving) -> Option<Death> {
        while let Ok(ready) = self.wait(&server) {
            if ready.signal {
                while let Some(signal) = self.waiting.take() {
                    let going = self.candidate.as_ref().filter(|candidate| candidate.is_going());
                    for process in [Some(&server), going].into_iter().flatten() {
                        let _ = kill_process(process.process, signal);
                    }
                }
            }
            if ready.server {
                let message = Message::receive(&server.socket);
                if message.is_none() {
                    match self.candidate.take_if(|candidate| candidate.is_going()) {
                        Some(candidate) => drop(reap(std::mem::replace(&mut server, candidate).process)),
                        None => break,
                    }
                }
                self.hear(&mut server, message);
            } else if ready.candidate {
                self.hear_candidate(server.process);
            }
            if ready.wish {
                self.hear_wish();
            }
            for late in [Some(&server), self.candidate.as_ref()].into_iter().flatten() {
                late.end_if_late();
            }
        }
        let status = reap(server.process);
        if let Some(trial) = server.trial.take() {
            trial.answer.say("it died before it served; the program that served before goes on", 1);
        }
        let status = status?;
        if status.exit_status() == Some(0) {
            return None;
        }
        let is_killed = status.terminating_signal() == Some(Signal::KILL.as_raw());
        Some(server.death(is_killed))
    }

    /// Waits until somebody says something.
    fn wait(&self, server: &Serving) -> io::Result<Ready> {
        let patience = [server.patience(), self.candidate.as_ref().and_then(Serving::patience)];
        let patience = patience.into_iter().flatten().min().map(|patience| Timespec {
            // A deadline is not met a moment early again and again.
            tv_sec: patience.as_secs() as i64 + 1,
            tv_nsec: 0,
        });
        let watched = |descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN);
        // What the candidate says after the server's death must not be seen before that: the kernel looks in this order.
        let candidate = self.candidate.as_ref().map(|candidate| candidate.socket.as_fd());
        let wishes = self.wishes.as_ref().map(AsFd::as_fd);
        let of_server = server.socket.as_fd();
        let all =
            [candidate.unwrap_or(of_server), of_server, self.waiting.as_fd(), wishes.unwrap_or(of_server)];
        let mut all = all.map(watched);
        retry_on_intr(|| poll(&mut all, patience.as_ref()))?;
        let is_ready = |number: usize| !all[number].revents().is_empty();
        Ok(Ready {
            candidate: candidate.is_some() && is_ready(0),
            server: is_ready(1),
            signal: is_ready(2),
            wish: wishes.is_some() && is_ready(3),
        })
    }

    /// What the server says.
    fn hear(&mut self, server: &mut Serving, message: Option<Message>) {
        match message {
            Some(Message::Hold(handover)) => self.held = Some(handover),
            Some(Message::Usable) => {
                server.serving_since = Some(std::time::Instant::now());
                self.is_usable();
                if let Some(trial) = server.trial.take() {
                    self.become_program_of(trial, server);
                }
            }
            Some(Message::Failed(code)) => {
                if let Some(word) = self.word.take() {
                    self.held = None;
                    word.say(code);
                }
                if let Some(trial) = server.trial.take() {
                    trial.answer.say("", code);
                }
            }
            Some(Message::Ready | Message::TakePlace(..)) | None => {}
        }
    }

    /// The command may leave.
    fn is_usable(&mut self) {
        if let Some(word) = self.word.take() {
            // A terminal that is kept is ugly, but no reason not to serve. Without wishes it is served by this program for ever.
            let _ = leave_terminal();
            self.wishes = Wishes::new().ok();
            word.say(0);
        }
    }
}

enum Started {
    /// This is the process that serves.
    Here(OwnedFd),
    There(Serving),
}

/// Who has something to say.
struct Ready {
    candidate: bool,
    server: bool,
    signal: bool,
    wish: bool,
}

/// Waits for the end of a child.
pub(super) fn reap(process: Pid) -> Option<WaitStatus> {
    let ended = retry_on_intr(|| waitpid(Some(process), WaitOptions::empty())).ok().flatten();
    ended.map(|(_, status)| status)
}

/// Whether the mount of a device is gone.
fn is_unmounted(device: &OwnedFd) -> bool {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut device = [PollFd::new(device, PollFlags::empty())];
    let looked = retry_on_intr(|| poll(&mut device, Some(&at_once)));
    looked.is_ok() && device[0].revents().intersects(PollFlags::ERR | PollFlags::HUP)
}
