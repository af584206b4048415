//! `fusermount3`: the setuid helper of libfuse that mounts for a user who may not.
//!
//! ```text
//!   we ── start, one end of a socket as its standard input, _FUSE_COMMFD=0 ──> fusermount3 ── mount(2)
//!      <──────────── the device's descriptor, over the socket (SCM_RIGHTS) ────────┘
//! ```

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg,
    socketpair,
};

use crate::kernel_mount::SUBTYPE;
use crate::mount::MountOptions;

const PROGRAM: &str = "fusermount3";

/// Why the helper did not do it.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It is not installed, or not for this user.
    Absent,
    /// It did not, and said why.
    Refused(String),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            // Or a directory of PATH that may not be searched, which hides the same answer.
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Failure::Absent,
            _ => Failure::Refused(error.to_string()),
        }
    }
}

/// Mounts, and gives the device by which the mount is served.
pub(crate) fn mount(options: &MountOptions) -> Result<OwnedFd, Failure> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(io::Error::from)?;
    let helper = Command::new(PROGRAM)
        .arg("-o")
        .arg(mount_options(options))
        .arg("--")
        .arg(&options.mountpoint)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    // Its end of the socket is closed with it, so this ends at the latest when it does.
    let device = receive_descriptor(ours);
    let output = helper.wait_with_output()?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) if output.status.success() => Err(Failure::Refused(error.to_string())),
        _ => Err(Failure::Refused(said(&output))),
    }
}

/// Unmounts a mount of this user's.
pub(crate) fn unmount(mountpoint: &Path, lazily: bool) -> Result<(), Failure> {
    let mut command = Command::new(PROGRAM);
    command.arg("-u");
    if lazily {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).stdin(Stdio::null()).output()?;
    if output.status.success() { Ok(()) } else { Err(Failure::Refused(said(&output))) }
}

fn said(output: &std::process::Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("fusermount3: ");
    if said.is_empty() { output.status.to_string() } else { said.to_owned() }
}

fn mount_options(options: &MountOptions) -> String {
    // A comma would end the option, and a backslash escapes (libfuse, fusermount.c).
    let source = options.source_name.replace('\\', "\\\\").replace(',', "\\,");
    let mut list = format!("ro,subtype={SUBTYPE},fsname={source}");
    for (wanted, option) in [
        (options.nosuid, "nosuid"),
        (options.nodev, "nodev"),
        (options.default_permissions, "default_permissions"),
        (options.allow_other, "allow_other"),
    ] {
        if wanted {
            list.push(',');
            list.push_str(option);
        }
    }
    list
}

/// The descriptor that comes over `socket`; `None` if the other end closes without sending one.
fn receive_descriptor(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    loop {
        match recvmsg(&socket, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(_) => break,
        }
    }
    Ok(ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_name_cannot_add_an_option() {
        let mut options = MountOptions::new("/mnt", "evil,allow_other\\,dev");
        options.nodev = false;
        assert_eq!(
            mount_options(&options),
            "ro,subtype=peel,fsname=evil\\,allow_other\\\\\\,dev,nosuid,default_permissions"
        );
    }
}
