//! How this process began: as a command, or as another program that goes on in its place.
//!
//! ```text
//!   peel mount REF DIR …                      somebody typed it
//!   peel go-on serve 1 7 mount REF DIR …      a successor of a server, on trial; descriptor 7 is the socket to the holder
//!   peel go-on hold 1 8 mount REF DIR …       what became of a holder; in descriptor 8 is what it held
//! ```
//!
//! What follows is the line that was typed: so the other program finds what the first one was told, in the same directory and
//! environment, and nothing of it is written anywhere. The number behind the role is the version of all that those two programs have to
//! agree on. A program that does not know it says so, and leaves, before anything was stopped for its sake.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use anyhow::{Context, bail};
use peelfs::mount::handover::Handover;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use serde::{Deserialize, Serialize};

/// The word that no command has.
const GO_ON: &str = "go-on";
const SERVE: &str = "serve";
const HOLD: &str = "hold";
/// Of [`Message`](super::messages::Message)s and [`Baton`]s.
const VERSION: &str = "1";

/// How this process began.
pub struct Beginning {
    pub role: Role,
    pub line: Line,
}

/// What it is.
pub enum Role {
    /// What somebody typed.
    Command,
    /// It is to serve on, if it can; the holder hears at this socket.
    Successor(OwnedFd),
    /// It holds on.
    Holder(Box<Baton>),
}

/// What was typed, and where.
pub struct Line {
    words: Vec<OsString>,
    /// Nothing if it is not there any more.
    directory: Option<PathBuf>,
}

/// What a holder has, on its way through execve(2).
pub struct Baton {
    pub held: Handover,
    /// The server that has proved that the program serves, and the socket to it.
    pub server: (u32, OwnedFd),
    /// Where it is told what became of the wish to have this program serve.
    pub answer: Option<OwnedFd>,
}

/// A [`Baton`] as it is written.
#[derive(Serialize, Deserialize)]
struct Written {
    device: RawFd,
    note: Vec<u8>,
    server: u32,
    socket: RawFd,
    answer: Option<RawFd>,
}

impl Beginning {
    /// Of this process. To be called once, before anything is opened.
    ///
    /// # Errors
    /// If another program has left what this one does not understand.
    pub fn find() -> anyhow::Result<Beginning> {
        let mut words: Vec<OsString> = std::env::args_os().collect();
        let mut role = Role::Command;
        if words.get(1).is_some_and(|word| word == GO_ON) {
            role = Role::parse(&words)?;
            words.drain(1..5);
        }
        Ok(Beginning { role, line: Line { words, directory: std::env::current_dir().ok() } })
    }
}

impl Role {
    fn parse(words: &[OsString]) -> anyhow::Result<Role> {
        let word = |at: usize| words.get(at).and_then(|word| word.to_str()).unwrap_or_default();
        if word(3) != VERSION {
            bail!("the process that holds the mount speaks version {:?}, and not {VERSION}", word(3));
        }
        let descriptor = inherited(word(4).parse()?)?;
        match word(2) {
            SERVE => Ok(Role::Successor(descriptor)),
            HOLD => Ok(Role::Holder(Box::new(Baton::read(descriptor)?))),
            other => bail!("nothing goes on as {other:?}"),
        }
    }
}

impl Line {
    /// What was typed, from the program's name on.
    pub fn words(&self) -> &[OsString] {
        &self.words
    }

    /// Becomes that program, as a successor that is told all else at that socket. Gives why it did not.
    pub fn serve_by(&self, program: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Error {
        self.execute(program, SERVE, &[socket])
    }

    /// Becomes that program, with what is held. Gives why it did not.
    pub fn hold_by(
        &self,
        program: BorrowedFd<'_>,
        baton: BorrowedFd<'_>,
        of_baton: &[BorrowedFd<'_>],
    ) -> io::Error {
        self.execute(program, HOLD, &[&[baton], of_baton].concat())
    }

    /// The first of the descriptors is told the program, all stay open.
    fn execute(&self, program: BorrowedFd<'_>, role: &str, descriptors: &[BorrowedFd<'_>]) -> io::Error {
        let Some(directory) = &self.directory else {
            return io::Error::other("the directory in which the image was mounted is not there any more");
        };
        let executed = || {
            rustix::process::chdir(directory)?;
            for descriptor in descriptors {
                fcntl_setfd(descriptor, FdFlags::empty())?;
            }
            Ok(execute(program, &self.words_of(role, descriptors[0])?))
        };
        let error: io::Error = executed().unwrap_or_else(|error| error);
        for descriptor in descriptors {
            let _ = fcntl_setfd(descriptor, FdFlags::CLOEXEC);
        }
        // It would be in use.
        let _ = rustix::process::chdir("/");
        error
    }

    fn words_of(&self, role: &str, descriptor: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
        let number = descriptor.as_raw_fd().to_string();
        let (name, rest) = self.words.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let added = [GO_ON, role, VERSION, &number].map(OsString::from);
        let words = std::iter::once(name).chain(&added).chain(rest);
        words.map(|word| Ok(CString::new(word.clone().into_vec())?)).collect()
    }
}

impl Baton {
    /// A file in memory that says which of the open descriptors is what.
    pub fn write(
        held: &Handover,
        server: (u32, BorrowedFd<'_>),
        answer: Option<BorrowedFd<'_>>,
    ) -> io::Result<OwnedFd> {
        let written = Written {
            device: held.device.as_raw_fd(),
            note: held.note.clone(),
            server: server.0,
            socket: server.1.as_raw_fd(),
            answer: answer.map(|answer| answer.as_raw_fd()),
        };
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL;
        let mut file = File::from(memfd_create("peel-held", flags)?);
        file.write_all(&serde_json::to_vec(&written)?)?;
        file.rewind()?;
        Ok(file.into())
    }

    fn read(file: OwnedFd) -> anyhow::Result<Baton> {
        let mut bytes = Vec::new();
        File::from(file).read_to_end(&mut bytes).context("what is held cannot be read")?;
        let written: Written = serde_json::from_slice(&bytes).context("what is held is not understood")?;
        Ok(Baton {
            held: Handover { device: inherited(written.device)?, note: written.note },
            server: (written.server, inherited(written.socket)?),
            answer: written.answer.map(inherited).transpose()?,
        })
    }
}

/// A descriptor that another program has left open for this one.
fn inherited(number: RawFd) -> anyhow::Result<OwnedFd> {
    // SAFETY: only looked at, and by its number.
    let is_open = number > 2 && fcntl_getfd(unsafe { BorrowedFd::borrow_raw(number) }).is_ok();
    if !is_open {
        bail!("descriptor {number} was not inherited");
    }
    // SAFETY: it is open, and nobody here has it: nothing was opened yet, and each is named once by who left them.
    let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl_setfd(&descriptor, FdFlags::CLOEXEC)?;
    Ok(descriptor)
}

/// execve(2) by a descriptor, with the environment as it is. Unlike the library's `Command`, it leaves alone which signals are held back: one that
/// waits is not to end the process.
fn execute(program: BorrowedFd<'_>, words: &[CString]) -> io::Error {
    let Ok(path) = CString::new(format!("/proc/self/fd/{}", program.as_raw_fd())) else {
        return io::ErrorKind::InvalidInput.into();
    };
    let mut pointers: Vec<_> = words.iter().map(|word| word.as_ptr()).collect();
    pointers.push(std::ptr::null());
    // SAFETY: path and words end with a zero each, their list with a null; all live until the call has failed.
    unsafe { libc::execv(path.as_ptr(), pointers.as_ptr()) };
    io::Error::last_os_error()
}
