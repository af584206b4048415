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

use rustix::process::setsid;

/// Which of the two processes this is.
pub enum Side {
    /// The one that was started; it has nothing to do but to leave with this code.
    Parent(ExitCode),
    /// The one that works.
    Child(Word),
}

/// The child's end of the pipe.
pub struct Word(File);

/// Forks. Must be called before the process has a second thread.
pub fn fork() -> io::Result<Side> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the process has one thread, so the child is a whole copy, with no lock held by a thread that it does not have.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            Ok(Side::Child(Word(File::from(writer))))
        }
        _ => {
            drop(writer);
            Ok(Side::Parent(wait(reader)))
        }
    }
}

fn wait(reader: OwnedFd) -> ExitCode {
    let mut word = [0];
    match File::from(reader).read_exact(&mut word) {
        Ok(()) => ExitCode::from(word[0]),
        Err(_) => {
            eprintln!("peel: the serving process died before the directory was usable");
            ExitCode::FAILURE
        }
    }
}

impl Word {
    /// Tells the parent that the directory is usable, and leaves its terminal, session and directory.
    pub fn usable(self) -> io::Result<()> {
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
    pub fn failed(self, code: u8) {
        self.say(code);
    }

    fn say(mut self, code: u8) {
        // The parent may have been killed; then nobody waits for the word.
        let _ = self.0.write_all(&[code]);
    }
}
