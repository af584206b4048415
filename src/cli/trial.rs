//! A successor of another program, on trial: the mount is served as before until it has all that it needs.
//!
//! ```text
//!   wish ──▶ fork, execve: preparing ──"ready"──▶ going: ends the old server, takes its place ──"usable"──▶ the holder becomes its program
//!                │ failed, killed: nothing has happened     │ failed, killed, too slow: followed by one of the old program
//! ```
//!
//! It ends with the holder as long as it prepares. From when it is told to go on, nobody but it ends the old server: so there is always
//! one who serves, whoever is killed.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use peelfs::mount::handover::Handover;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, kill_process, pidfd_open, set_parent_process_death_signal,
};

use super::asking::{Told, Wish};
use super::background::fork;
use super::beginning::Line;
use super::messages::Message;
use super::restarts::Death;

/// All is prepared, so this is long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A process that serves, or will.
pub struct Serving {
    pub process: Pid,
    pub socket: OwnedFd,
    pub started: Instant,
    pub serving_since: Option<Instant>,
    /// If it is of another program than the holder.
    pub trial: Option<Trial>,
}

/// What is to be done when a program has proved that it serves.
pub struct Trial {
    /// Who asked for it.
    pub asker: u32,
    pub program: OwnedFd,
    pub answer: Told,
    /// When it has to serve; nothing while it prepares.
    deadline: Option<Instant>,
}

impl Serving {
    /// One that was started now, as is said at that socket.
    pub fn new(process: Pid, socket: OwnedFd) -> Serving {
        Serving { process, socket, started: Instant::now(), serving_since: None, trial: None }
    }

    /// One that serves already, as who held the mount before has heard.
    pub fn that_serves(process: Pid, socket: OwnedFd) -> Serving {
        Serving { serving_since: Some(Instant::now()), ..Serving::new(process, socket) }
    }

    /// What its end means for the next one.
    pub fn death(&self, is_killed: bool) -> Death {
        let served = self.serving_since.map(|since| since.elapsed());
        Death { lasted: self.started.elapsed(), served, is_killed }
    }

    /// Whether it has been told to take the place of the one that serves.
    pub fn is_going(&self) -> bool {
        self.trial.as_ref().is_some_and(|trial| trial.deadline.is_some())
    }

    /// How long it may still take until it serves; nothing if it may take as long as it likes.
    pub fn patience(&self) -> Option<Duration> {
        let deadline = self.trial.as_ref()?.deadline.filter(|_| self.serving_since.is_none())?;
        Some(deadline.saturating_duration_since(Instant::now()))
    }

    /// Ends one that has had its time.
    pub fn end_if_late(&self) {
        if self.patience().is_some_and(|patience| patience.is_zero()) {
            self.end();
        }
    }

    /// Kills it. That it is gone is seen at its socket.
    pub fn end(&self) {
        let _ = kill_process(self.process, Signal::KILL);
    }

    /// Has it take the place of that process.
    pub fn go(&mut self, server: Pid) {
        let told = pidfd_open(server, PidfdFlags::empty()).map_err(io::Error::from).and_then(|descriptor| {
            let number = server.as_raw_nonzero().get().cast_unsigned();
            Message::TakePlace(number, descriptor).send(&self.socket)
        });
        match (told, &mut self.trial) {
            (Ok(()), Some(trial)) => trial.deadline = Some(Instant::now() + PATIENCE),
            _ => self.end(),
        }
    }

    /// Starts the program of a wish with the words of this one.
    ///
    /// # Errors
    /// What the system says, with where to answer.
    pub fn on_trial(wish: Wish, line: &Line, held: &Handover) -> Result<Serving, (Told, io::Error)> {
        let started = || {
            let kind = SocketType::SEQPACKET;
            let (ours, theirs) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
            let held = Handover { device: held.device.try_clone()?, note: held.note.clone() };
            Message::Hold(held).send(&ours)?;
            let holder = getpid();
            match fork()? {
                Some(process) => Ok((process, ours)),
                None => become_successor(holder, &wish, line, theirs),
            }
        };
        let (process, socket) = match started() {
            Ok(started) => started,
            Err(error) => return Err((wish.answer, error)),
        };
        let Wish { asker, program, answer } = wish;
        let trial = Some(Trial { asker, program, answer, deadline: None });
        Ok(Serving { trial, ..Serving::new(process, socket) })
    }
}

/// What the child does.
fn become_successor(holder: Pid, wish: &Wish, line: &Line, socket: OwnedFd) -> ! {
    let prepared = || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(holder) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        wish.answer.becomes_terminal()
    };
    let error = prepared().err().unwrap_or_else(|| line.serve_by(wish.program.as_fd(), socket.as_fd()));
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!("peel: the program cannot be started: {error}\n").as_bytes(),
    );
    // SAFETY: ends the process, which is a copy of another that goes on: there is nothing to tidy up.
    unsafe { libc::_exit(1) }
}

#[cfg(test)]
mod tests {
    use super::super::restarts::Restarts;
    use super::*;

    #[test]
    fn one_that_serves_when_its_holder_becomes_another_program_is_followed_whenever_it_is_killed() {
        let socket = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
        let mut server = Serving::that_serves(getpid(), socket.unwrap().0);
        let ago = Duration::from_secs(120);
        server.started -= ago;
        server.serving_since = server.serving_since.map(|since| since - ago);
        assert_eq!(Restarts::default().after(server.death(true)), Some(Duration::ZERO));
    }
}
