//! `peel mount` returns when the directory is usable, and what it mounted is served on: the process forks before it has threads, and its
//! child once more.
//!
//! ```text
//! command ──fork──▶ holder ──fork──▶ server: prepare, mount, hand over the mount's descriptor, say that it is usable, serve
//!    │                │  ◀──socket──────┘         any error: told on the terminal, its exit code through the socket
//!    └─ read the pipe ◀─ 0, or the exit code       end of file without a word: the server died
//! ```
//!
//! What the holder does when the server dies, [`holder`](super::holder) says.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::Context;
use rustix::process::{Pid, setsid};

use super::beginning::{Beginning, Role};
use super::failure;
use super::holder::Holder;
use super::server::Server;

/// Serves in a process of its own, and in another one whenever that is killed: all of them call `serve`, which is to tell what it was given
/// when the directory is usable. The command leaves then. An error before is told on the terminal, and its exit code is that of the command.
/// Must be called before the process has a second thread, and before it has written anything that may not have left it yet.
///
/// A process that goes on where one of another program was has no command: it holds, or serves on.
pub fn run(
    beginning: Beginning,
    serve: impl FnOnce(&mut Server) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let cannot_start = "cannot start the serving process";
    let Beginning { role, line } = beginning;
    let mut server = match role {
        Role::Command => {
            let word = fork_with_word().context(cannot_start)?;
            Holder::new(word, line).and_then(Holder::run).context(cannot_start)?
        }
        Role::Holder(baton) => Holder::again(*baton, line).and_then(Holder::run).context(cannot_start)?,
        Role::Successor(socket) => Server::on_trial(socket)?,
    };
    let Err(error) = serve(&mut server) else { return Ok(ExitCode::SUCCESS) };
    if !server.has_terminal() {
        tracing::error!(error = %peelfs::error::chain(error.as_ref()), "the serving process ends");
    }
    let code = failure::report(&error);
    server.failed(failure::code(&error));
    Ok(code)
}

/// Forks; gives the child's number in the parent. Must be called while the process has one thread.
pub fn fork() -> io::Result<Option<Pid>> {
    // SAFETY: the process has one thread, so the child is a whole copy, with no lock held by a thread that it does not have.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(Pid::from_raw(child)),
    }
}

/// The holder's end of the pipe to the command.
pub struct Word(File);

/// Forks, and returns in the child alone.
fn fork_with_word() -> io::Result<Word> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    if fork()?.is_none() {
        return Ok(Word(File::from(writer)));
    }
    drop(writer);
    let code = wait(reader);
    // SAFETY: ends the process without a look back: there is nothing to write and no other thread. What the usual end tidies up
    // are pages that the child still shares, each of which would be copied first.
    unsafe { libc::_exit(code.into()) }
}

/// The exit code that the child tells.
fn wait(reader: OwnedFd) -> u8 {
    let mut word = [0];
    match File::from(reader).read_exact(&mut word) {
        Ok(()) => word[0],
        Err(_) => {
            eprintln!("peel: the serving process died before the directory was usable");
            1
        }
    }
}

impl Word {
    /// Tells the command to leave with this code.
    pub fn say(mut self, code: u8) {
        // It may have been killed; then nobody waits for the word.
        let _ = self.0.write_all(&[code]);
    }
}

/// Leaves the command's terminal, session and directory.
pub fn leave_terminal() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    // Who leads a session has left already.
    let _ = setsid();
    rustix::process::chdir("/")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}
