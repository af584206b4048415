//! How a holder is asked to have another program serve its mount: by a signal that nobody but the mount's owner and root can send.
//!
//! ```text
//!   asker ── SIGHUP, with the number of its pipe ──▶ holder: /proc/ASKER/exe is the program, /proc/ASKER/fd/NUMBER the pipe
//!     ◀── "heard", then what the program says if it fails, then 0 and an exit code ──┘
//! ```
//!
//! The program is the one that asks: so it is one that runs on this machine, and there is no path that could mean another. Nothing listens,
//! and nothing is left behind by who is killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use peelfs::mount::live::start_time;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fstat, open, openat};
use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::holder::HOLDER;
use super::signals;

/// The first byte of an answer: the rest comes, however long it takes.
const HEARD: u8 = 6;
/// So long a holder may be deaf: it waits a little before it starts a server once more.
const PATIENCE: Duration = Duration::from_secs(20);
/// Signals are not counted: two askers of the same moment are one.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// Bytes that a program may say.
const LONGEST_TEXT: u64 = 16 << 10;

/// What became of the wish.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// This program serves and holds the mount.
    Moved,
    /// It did already.
    IsHere,
}

/// Why a mount stays with the program that serves it.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody holds it.
    #[error(
        "no process holds it, so it ends with the one that serves it: it was mounted with --foreground, or the process that held it was killed. \
         Unmount it, and mount it anew"
    )]
    NotHeld,
    /// It is held by an older program.
    #[error("the program that serves it is too old to be followed by another. Unmount it, and mount it anew")]
    TooOld,
    /// It is somebody else's.
    #[error("it is served for the user {owner}, who alone can ask for that")]
    NotOwner {
        /// The number of the user.
        owner: u32,
    },
    /// The holder does not hear.
    #[error("the process that holds it, {holder}, does not answer")]
    NoAnswer {
        /// Its number.
        holder: u32,
    },
    /// The holder is gone.
    #[error("the process that held it, {holder}, is gone: it was unmounted, or that was killed")]
    Gone {
        /// Its number.
        holder: u32,
    },
    /// What the holder, or the program, said.
    #[error("{text}")]
    Refused {
        /// Its words.
        text: String,
        /// The exit code.
        code: u8,
    },
    /// The system.
    #[error("the process that holds it, {holder}, cannot be asked")]
    System {
        /// Its number.
        holder: u32,
        /// Why.
        #[source]
        error: io::Error,
    },
}

impl AskError {
    /// The exit code of a command that fails with it.
    pub fn code(&self) -> u8 {
        match self {
            AskError::Refused { code, .. } => *code,
            _ => 7,
        }
    }
}

/// Has the mount that a process holds served by the program of this one, from now on. Returns when it is.
///
/// # Errors
/// [`AskError`]. Nobody who uses the mount notices.
pub fn ask(holder: u32, began: u64) -> Result<Answer, AskError> {
    let system = |error: io::Error| AskError::System { holder, error };
    let gone = || AskError::Gone { holder };
    let id = i32::try_from(holder).ok().and_then(Pid::from_raw).ok_or_else(gone)?;
    let process = pidfd_open(id, PidfdFlags::empty()).map_err(|_| gone())?;
    let owner = std::fs::metadata(format!("/proc/{holder}")).map_err(|_| gone())?.uid();
    if start_time(holder) != Some(began) {
        return Err(gone());
    }
    if owner != rustix::process::geteuid().as_raw() {
        return Err(AskError::NotOwner { owner });
    }
    if name_of(holder).map_err(|_| gone())? != HOLDER.to_string_lossy() {
        return Err(AskError::NotHeld);
    }
    let program = |process: &str| {
        let file = std::fs::metadata(format!("/proc/{process}/exe"))?;
        io::Result::Ok((file.dev(), file.ino()))
    };
    if program(&holder.to_string()).map_err(system)? == program("self").map_err(system)? {
        return Ok(Answer::IsHere);
    }
    if !waits_for_wishes(holder) {
        return Err(AskError::TooOld);
    }
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|error| system(error.into()))?;
    let mut heard = false;
    for _ in 0..PATIENCE.as_secs() / ASK_EVERY.as_secs() {
        signals::ask(id, writer.as_raw_fd()).map_err(system)?;
        let patience = Timespec { tv_sec: ASK_EVERY.as_secs() as i64, tv_nsec: 0 };
        let (told, ended) = (PollFd::new(&reader, PollFlags::IN), PollFd::new(&process, PollFlags::IN));
        let mut both = [told, ended];
        retry_on_intr(|| poll(&mut both, Some(&patience))).map_err(|error| system(error.into()))?;
        heard = !both[0].revents().is_empty();
        if heard {
            break;
        }
        if !both[1].revents().is_empty() {
            return Err(gone());
        }
    }
    if !heard {
        return Err(AskError::NoAnswer { holder });
    }
    // From here on the pipe ends with those who answer.
    drop(writer);
    let mut told = Vec::new();
    File::from(reader).take(LONGEST_TEXT).read_to_end(&mut told).map_err(system)?;
    match told.iter().position(|byte| *byte == 0).map(|end| (end, told.get(end + 1))) {
        Some((_, Some(0))) => Ok(Answer::Moved),
        Some((end, Some(code))) => {
            let text = String::from_utf8_lossy(told.get(1..end).unwrap_or_default());
            let text = text.trim().trim_start_matches("peel: ").replace("\n  because: ", ": ");
            let text = text.replace("\npeel: ", "; ").replace('\n', "; ");
            let text = if text.is_empty() { "this program ended without a word".to_owned() } else { text };
            Err(AskError::Refused { text, code: *code })
        }
        _ => Err(gone()),
    }
}

/// What a process calls itself. One that has just become another program is called by the number of a descriptor until it says its name.
fn name_of(process: u32) -> io::Result<String> {
    let begun = Instant::now();
    loop {
        let name = std::fs::read_to_string(format!("/proc/{process}/comm"))?.trim_end().to_owned();
        if name.parse::<u32>().is_err() || begun.elapsed() > PATIENCE {
            return Ok(name);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process has SIGHUP wait (proc(5), `SigBlk`), which would end it else.
fn waits_for_wishes(process: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let blocked = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    let blocked = blocked.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    blocked.is_some_and(|mask| mask & 1 << (libc::SIGHUP - 1) != 0)
}

/// A wish that a holder was told.
pub struct Wish {
    pub asker: u32,
    pub program: OwnedFd,
    pub answer: Told,
}

/// Where the asker waits for an answer.
pub struct Told(File);

impl Wish {
    /// What the process of that number wants; nothing if it is gone, or is somebody else's.
    pub fn of(asker: u32, pipe: i32) -> Option<Wish> {
        // What is found below it is all of one process.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = open(format!("/proc/{asker}"), flags, Mode::empty()).ok()?;
        if fstat(&process).ok()?.st_uid != rustix::process::geteuid().as_raw() {
            return None;
        }
        let program = openat(&process, "exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        // Whoever is slow to read does not hold up the holder.
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let pipe = rustix::fs::statat(&process, format!("fd/{pipe}"), rustix::fs::AtFlags::empty())
            .ok()
            .filter(|file| file.st_mode & libc::S_IFMT == libc::S_IFIFO)
            .and_then(|_| openat(&process, format!("fd/{pipe}"), flags, Mode::empty()).ok())?;
        let mut answer = File::from(pipe);
        answer.write_all(&[HEARD]).ok()?;
        Some(Wish { asker, program, answer: Told(answer) })
    }
}

impl Told {
    /// What another program was given.
    pub fn inherited(pipe: OwnedFd) -> Told {
        Told(pipe.into())
    }

    /// The end: this was wrong; nothing is wrong if there are no words and the code is 0.
    pub fn say(mut self, text: &str, code: u8) {
        // Nobody may wait for it any more.
        let _ = self.0.write_all(&[text.as_bytes(), &[0, code]].concat());
    }

    /// What this process says on its terminal is part of the answer.
    pub fn becomes_terminal(&self) -> io::Result<()> {
        Ok(rustix::stdio::dup2_stderr(&self.0)?)
    }
}

impl AsFd for Told {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
