//! `peel mount` returns when the directory is usable, and goes on serving: the process forks before it has threads, the child
//! works and serves, the parent waits for its word.
//!
//! ```text
//! parent ──fork──▶ child: prepare, mount, tell 0 through the pipe, leave the terminal, serve
//!   │                     any error: told on the terminal, its exit code through the pipe
//!   └─ read the pipe ◀────┘          end of file without a word: the child died
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use anyhow::Context;
use rustix::process::setsid;

use super::failure;

/// Serves in a child, which calls what `serve` is given once the directory is usable: the parent leaves then. An error is told on the
/// terminal, and its exit code is that of both. Must be called before the process has a second thread, and before it has written
/// anything that may not have left it yet.
pub fn run(
    serve: impl FnOnce(&mut dyn FnMut() -> anyhow::Result<()>) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let mut word = Some(fork().context("cannot start the serving process")?);
    let served = serve(&mut || match word.take() {
        Some(word) => Ok(word.usable()?),
        None => Ok(()),
    });
    let Err(error) = served else { return Ok(ExitCode::SUCCESS) };
    let code = failure::report(&error);
    if let Some(word) = word {
        word.failed(failure::code(&error));
    }
    Ok(code)
}

/// The child's end of the pipe.
struct Word(File);

/// Forks, and returns in the child alone.
fn fork() -> io::Result<Word> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the process has one thread, so the child is a whole copy, with no lock held by a thread that it does not have.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            Ok(Word(File::from(writer)))
        }
        _ => {
            drop(writer);
            let code = wait(reader);
            // SAFETY: ends the process without a look back: there is nothing to write and no other thread. What the usual end tidies up
            // are pages that the child still shares, each of which would be copied first.
            unsafe { libc::_exit(code.into()) }
        }
    }
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
    /// Tells the parent that the directory is usable, and leaves its terminal, session and directory.
    fn usable(self) -> io::Result<()> {
        let null = File::options().read(true).write(true).open("/dev/null")?;
        // The parent may have been killed; then nobody waits for the word.
        let _ = setsid();
        rustix::process::chdir("/")?;
        rustix::stdio::dup2_stdin(&null)?;
        rustix::stdio::dup2_stdout(&null)?;
        rustix::stdio::dup2_stderr(&null)?;
        self.say(0);
        Ok(())
    }

    /// Tells the parent to leave with this code.
    fn failed(self, code: u8) {
        self.say(code);
    }

    fn say(mut self, code: u8) {
        // The parent may have been killed; then nobody waits for the word.
        let _ = self.0.write_all(&[code]);
    }
}
