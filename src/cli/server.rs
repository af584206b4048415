//! A process that serves a mount, towards the one that holds it.
//!
//! What is said, a message each, on a socket that the kernel closes with either end: *hold this* with the mount's descriptor and a note, *usable*,
//! or *failed* with an exit code.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use peelfs::fetch::ThreadStarter;
use peelfs::mount::Mounted;
use peelfs::mount::handover::{Handover, Keeper, Predecessor};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, send, sendmsg};
use rustix::process::Pid;

use super::background::leave_terminal;
use super::signals::Held;

/// A note names a path or two.
pub const LONGEST_MESSAGE: usize = 1 << 16;

const HOLD: u8 = 1;
const USABLE: u8 = 2;
const FAILED: u8 = 3;

/// What a server says to its holder.
pub enum Message {
    /// The mount is there, and this is what a successor needs.
    Hold(Handover),
    /// The directory is usable.
    Usable,
    /// It will not be, and the command is to end with this exit code.
    Failed(u8),
}

impl Message {
    /// What was received; nothing if it means nothing.
    pub fn parse(bytes: &[u8], descriptor: Option<OwnedFd>) -> Option<Message> {
        match (bytes.split_first()?, descriptor) {
            ((&HOLD, note), Some(device)) => Some(Message::Hold(Handover { device, note: note.to_vec() })),
            ((&USABLE, []), None) => Some(Message::Usable),
            ((&FAILED, [code]), None) => Some(Message::Failed(*code)),
            _ => None,
        }
    }
}

/// This process, which serves a mount or is about to.
pub struct Server {
    holder: Option<OwnedFd>,
    /// The process that the mount is known by.
    pid: u32,
    predecessor: Option<Handover>,
    signals: Option<Held>,
    /// What it says is heard by the command.
    has_terminal: bool,
}

impl Server {
    /// One that nobody holds anything for.
    pub fn alone() -> Server {
        Server { holder: None, pid: std::process::id(), predecessor: None, signals: None, has_terminal: true }
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
        Server { holder: Some(socket), pid, predecessor, signals, has_terminal }
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

    /// From now on SIGINT and SIGTERM wait for somebody who waits for them, if they did not before.
    pub fn hold_signals(&mut self) -> Held {
        self.signals.take().unwrap_or_else(Held::new)
    }

    /// Has the mount outlive this process. Where that cannot be, it is served as well.
    pub fn hand_over(&self, mounted: &Mounted) {
        let Some(holder) = &self.holder else { return };
        let held = mounted.handover().and_then(|handover| match handover {
            Some(handover) => hold(holder, &handover).map(|()| true),
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
        let _ = send(holder, &[USABLE], SendFlags::NOSIGNAL);
        Ok(())
    }

    /// Says that it will not be usable.
    pub fn failed(self, code: u8) {
        if let Some(holder) = &self.holder {
            let _ = send(holder, &[FAILED, code], SendFlags::NOSIGNAL);
        }
    }

    /// When the holder is gone, the mount is known by this process.
    ///
    /// # Errors
    /// If the system gives no threads.
    pub fn watch_holder(&mut self, threads: &ThreadStarter, keeper: Keeper) -> anyhow::Result<()> {
        let Some(holder) = self.holder.take() else { return Ok(()) };
        let threads = threads.handle()?;
        let _guard = threads.enter();
        let holder = std::os::unix::net::UnixStream::from(holder);
        holder.set_nonblocking(true)?;
        let holder = tokio::net::UnixStream::from_std(holder)?;
        threads.spawn(async move {
            // It never says anything: there is something to read when it is gone.
            if holder.readable().await.is_ok() {
                let recorded = tokio::task::spawn_blocking(move || keeper.serve_alone()).await;
                if let Ok(Err(error)) = recorded {
                    tracing::warn!(error = %peelfs::error::chain(&error), "the mount looks dead, as its record names the process that held it");
                }
                tracing::warn!("the process that held the mount is gone: the mount ends with this one");
            }
        });
        Ok(())
    }
}

fn hold(holder: impl AsFd, handover: &Handover) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let device = [handover.device.as_fd()];
    if handover.note.len() >= LONGEST_MESSAGE || !ancillary.push(SendAncillaryMessage::ScmRights(&device)) {
        return Err(io::Error::other("the note of the mount is too long"));
    }
    let parts = [IoSlice::new(&[HOLD]), IoSlice::new(&handover.note)];
    sendmsg(holder, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}
