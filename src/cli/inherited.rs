//! A socket that a service manager has made and keeps (sd_listen_fds(3)): while a daemon is restarted, or after it was killed, those who
//! call wait in its queue instead of being refused.

use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;

use anyhow::{Context, bail};

/// The first descriptor that a service manager hands over.
const FIRST: i32 = 3;

/// The socket to listen at, if the service manager made one.
///
/// # Errors
/// If it hands over something else.
pub fn listener() -> anyhow::Result<Option<UnixListener>> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    if number("LISTEN_PID") != Some(std::process::id()) {
        return Ok(None);
    }
    match number("LISTEN_FDS") {
        None | Some(0) => return Ok(None),
        Some(1) => {}
        Some(count) => bail!("the service manager hands over {count} sockets; one is enough"),
    }
    // SAFETY: the variables are addressed to this process, so the descriptor is open, and nobody here has it: this is called once, before
    // anything else was opened.
    let socket = unsafe { OwnedFd::from_raw_fd(FIRST) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)
        .context("what the service manager hands over is no open descriptor")?;
    if !rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or(false) {
        bail!("what the service manager hands over is no socket at which somebody could listen");
    }
    let listener = UnixListener::from(socket);
    listener.local_addr().context("what the service manager hands over is no unix socket")?;
    listener.set_nonblocking(true)?;
    Ok(Some(listener))
}
