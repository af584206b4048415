//! A process that serves a mount, towards the one that holds it.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, bail};
use peelfs::fetch::ThreadStarter;
use peelfs::mount::Mounted;
use peelfs::mount::handover::{Handover, Keeper, Predecessor};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, Signal, pidfd_send_signal, set_parent_process_death_signal};

use super::background::leave_terminal;
use super::holder::SERVER;
use super::messages::Message;
use super::signals::Held;

/// This process, which serves a mount or is about to.
pub struct Server {
    holder: Option<OwnedFd>,
    /// The process that the mount is known by.
    pid: u32,
    predecessor: Option<Handover>,
    /// Whether that one serves, and is to be ended; and its number when it was.
    place: Place,
    signals: Option<Held>,
    /// What it says is heard by the command.
    has_terminal: bool,
}

/// What is served is the mount of another process.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// It is gone, or there is none.
    Free,
    /// It serves.
    Taken,
    /// It was ended.
    Left(u32),
}

impl Server {
    /// One that nobody holds anything for.
    pub fn alone() -> Server {
        Server {
            holder: None,
            pid: std::process::id(),
            predecessor: None,
            place: Place::Free,
            signals: None,
            has_terminal: true,
        }
    }

    /// One that a holder has started, which hears at `socket`.
    pub fn of_holder(
        socket: OwnedFd,
        holder: Option<Pid>,
        predecessor: Option<Handover>,
        signals: Option<Held>,
    ) -> Server {
        // It may have been killed since.
        let pid = holder.map_or_else(std::process::id, |holder| holder.as_raw_nonzero().get().unsigned_abs());
        let has_terminal = signals.is_none();
        Server { holder: Some(socket), pid, predecessor, place: Place::Free, signals, has_terminal }
    }

    /// One of another program than the one that serves the mount of a holder, which hears at `socket`.
    ///
    /// # Errors
    /// If it says something else than what is to be served.
    pub fn on_trial(socket: OwnedFd) -> anyhow::Result<Server> {
        // The kernel calls it by the number of a descriptor.
        let _ = rustix::thread::set_name(SERVER);
        let Some(Message::Hold(held)) = Message::receive(&socket) else {
            bail!("what the process says that holds the mount is not understood");
        };
        let server =
            Server::of_holder(socket, rustix::process::getppid(), Some(held), Some(Held::inherited()));
        Ok(Server { place: Place::Taken, has_terminal: true, ..server })
    }

    /// The process that the mount is to be known by: its holder, if there is one.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Whether the command hears what this one says on its terminal.
    pub fn has_terminal(&self) -> bool {
        self.has_terminal
    }

    /// The one whose mount this one is to serve; nothing if it is to mount.
    ///
    /// # Errors
    /// If it was of another version.
    pub fn predecessor(&mut self) -> anyhow::Result<Option<Predecessor>> {
        Ok(self.predecessor.take().map(Predecessor::parse).transpose()?)
    }

    /// Whether another program serves the mount meanwhile.
    pub fn is_on_trial(&self) -> bool {
        self.place == Place::Taken
    }

    /// Ends whoever still serves the mount; to be called when nothing else is left to be done before it can be served on. What that one does not
    /// answer any more is asked for again.
    ///
    /// # Errors
    /// If the holder is gone, or does not want it any more: then nothing has changed.
    pub fn take_place(&mut self) -> anyhow::Result<()> {
        let Some(holder) = self.holder.as_ref().filter(|_| self.is_on_trial()) else { return Ok(()) };
        Message::Ready.send(holder).context("the process that holds the mount is gone")?;
        let Some(Message::TakePlace(number, process)) = Message::receive(holder) else {
            bail!("the process that holds the mount is gone");
        };
        // From here on, this one serves if it is killed.
        set_parent_process_death_signal(None)?;
        // One that is gone already is no error.
        let _ = pidfd_send_signal(&process, Signal::KILL);
        retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], None))?;
        self.place = Place::Left(number);
        Ok(())
    }

    /// From now on SIGINT and SIGTERM wait for somebody who waits for them, if they did not before.
    pub fn hold_signals(&mut self) -> Held {
        self.signals.take().unwrap_or_else(Held::new)
    }

    /// Has the mount outlive this process. Where that cannot be, it is served as well.
    pub fn hand_over(&self, mounted: &Mounted) {
        let Some(holder) = &self.holder else { return };
        let held = mounted.handover().and_then(|handover| match handover {
            Some(handover) => Message::Hold(handover).send(holder).map(|()| true),
            None => Ok(false),
        });
        match held {
            Ok(true) => mounted.is_held(),
            Ok(false) => tracing::info!(
                "the mount ends with its serving process: this kernel hands out no request twice (Linux 6.9)"
            ),
            Err(error) => tracing::warn!(%error, "the mount ends with its serving process"),
        }
    }

    /// Says that the directory is usable, and leaves terminal, session and directory of the command.
    ///
    /// # Errors
    /// If they cannot be left.
    pub fn usable(&mut self) -> io::Result<()> {
        let Some(holder) = &self.holder else { return Ok(()) };
        leave_terminal()?;
        self.has_terminal = false;
        // Who was killed need not know.
        let _ = Message::Usable.send(holder);
        Ok(())
    }

    /// Says that it will not be usable.
    pub fn failed(self, code: u8) {
        if let Some(holder) = &self.holder {
            let _ = Message::Failed(code).send(holder);
        }
    }

    /// When the holder is gone, the mount is known by this process.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn watch_holder(&mut self, threads: &ThreadStarter, keeper: Keeper) -> anyhow::Result<()> {
        let Some(holder) = self.holder.take() else { return Ok(()) };
        let predecessor = match self.place {
            Place::Left(number) => Some(number),
            Place::Free | Place::Taken => None,
        };
        let threads = threads.handle()?;
        let _guard = threads.enter();
        let holder = std::os::unix::net::UnixStream::from(holder);
        holder.set_nonblocking(true)?;
        let holder = tokio::net::UnixStream::from_std(holder)?;
        threads.spawn(async move {
            // It never says anything: there is something to read when it is gone.
            if holder.readable().await.is_ok() {
                let recorded = tokio::task::spawn_blocking(move || keeper.serve_alone(predecessor)).await;
                if let Ok(Err(error)) = recorded {
                    tracing::warn!(error = %peelfs::error::chain(&error), "the mount looks dead, as its record names the process that held it");
                }
                tracing::warn!("the process that held the mount is gone: the mount ends with this one");
            }
        });
        Ok(())
    }
}
