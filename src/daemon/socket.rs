//! The socket at which a daemon is found: one daemon at a time, and nobody's but its user's.
//!
//! Whoever serves at a path holds the lock of `PATH.lock`, which the kernel frees however he ends. So a socket whose lock is free was
//! left behind, and is replaced; unless another program answers there, which knows nothing of the lock.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 64;

/// Why nobody can be served at a socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody serves there.
    #[error("{} is served already; stop who does, or choose another socket with --address", path.display())]
    Served {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has that name.
    #[error("{} is there, and is no socket; choose another name with --address", path.display())]
    NoSocket {
        /// What is there.
        path: PathBuf,
    },
    /// The system.
    #[error("cannot {operation} {}: {error}", path.display())]
    Failed {
        /// What was attempted, as a verb.
        operation: &'static str,
        /// The file concerned.
        path: PathBuf,
        /// The system's answer.
        error: io::Error,
    },
}

/// A socket that is listened at. Its name goes when this is dropped.
#[derive(Debug)]
pub struct Socket {
    path: PathBuf,
    _lock: File,
}

impl Socket {
    /// Listens at a path; directories above it are made, for this user alone.
    ///
    /// # Errors
    /// [`SocketError`].
    pub fn listen(path: &Path) -> Result<(Socket, UnixListener), SocketError> {
        let failed = |operation, path: &Path| {
            let path = path.to_owned();
            move |error: io::Error| SocketError::Failed { operation, path, error }
        };
        // A daemon leaves the directory in which it was started.
        let path = &std::path::absolute(path).map_err(failed("find", path))?;
        if let Some(directory) = path.parent() {
            use std::os::unix::fs::DirBuilderExt;
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(failed("make directory", directory))?;
        }
        let lock = lock(path)?;
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("look at", path)(error)),
            Ok(found) if !found.file_type().is_socket() => {
                return Err(SocketError::NoSocket { path: path.clone() });
            }
            Ok(_) if UnixStream::connect(path).is_ok() => {
                return Err(SocketError::Served { path: path.clone() });
            }
            Ok(_) => std::fs::remove_file(path).map_err(failed("remove", path))?,
        }
        let listener = bound(path).map_err(|errno| failed("listen at", path)(errno.into()))?;
        Ok((Socket { path: path.clone(), _lock: lock }, listener))
    }

    /// Its path, absolute.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // One that stays is replaced.
        let _ = std::fs::remove_file(&self.path);
    }
}

fn lock(socket: &Path) -> Result<File, SocketError> {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let failed =
        |errno: Errno| SocketError::Failed { operation: "lock", path: path.clone(), error: errno.into() };
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR).map_err(failed)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(File::from(file)),
        Err(Errno::WOULDBLOCK) => Err(SocketError::Served { path: socket.to_owned() }),
        Err(errno) => Err(failed(errno)),
    }
}

/// The socket has its mode before it has its name.
fn bound(path: &Path) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    fchmod(socket.as_fd(), Mode::RUSR | Mode::WUSR)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_is_its_users_alone_and_served_once() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b/socket");
        let (socket, _listener) = Socket::listen(&path).unwrap();
        assert_eq!(socket.path(), path);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(matches!(Socket::listen(&path), Err(SocketError::Served { .. })));
        drop(socket);
        assert!(!path.exists());
        drop(Socket::listen(&path).unwrap());
    }

    #[test]
    fn what_was_left_behind_is_replaced_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Socket::listen(&path).unwrap());
        let others = UnixListener::bind(&path).unwrap();
        assert!(matches!(Socket::listen(&path), Err(SocketError::Served { .. })));
        drop(others);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "mine").unwrap();
        assert!(matches!(Socket::listen(&path), Err(SocketError::NoSocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
