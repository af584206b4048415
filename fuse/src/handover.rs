//! A live mount that outlives its server: what the next one needs to go on.
//!
//! ```text
//!   server ──Handover (descriptor, note)──▶ whoever holds it ──▶ successor: take_over ──▶ Session
//!      └ killed: who reads waits, as long as anybody has the descriptor
//! ```
//!
//! A tree is immutable and its handles carry no state, so a server of the same tree need know nothing of what another one did. It must be
//! the same tree: its numbers of inodes are in the kernel's memory.
//!
//! But for files that are passed through: which are open so, their [`OpenRecords`] say, which must be the same, too.
//!
//! The note is for processes of one machine and one boot; it begins with its version, which is another where files are passed through: who
//! does not know of that must not serve such a mount.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::handshake::Greeting;
use crate::mount::MountOptions;
use crate::session::{self, Session};
use crate::tree::Tree;

const VERSION: u32 = 1;
const VERSION_WITH_PASSTHROUGH: u32 = 2;
/// Version, id of the mount, device number, length of the greeting.
const FIXED: usize = 4 + 8 + 8 + 4;

/// What is needed to serve a mount that is there. As long as it is kept, those who read wait, also if nobody serves.
#[derive(Debug)]
pub struct Handover {
    /// The device by which it is served.
    pub device: OwnedFd,
    /// The rest.
    pub note: Vec<u8>,
}

impl Handover {
    /// Whether [`take_over`] understands the note: it is of this version.
    pub fn is_known(&self) -> bool {
        Note::parse(&self.note).is_some()
    }

    /// Whether the mount has files passed through, so that its successors need the records of those.
    pub fn passes_through(&self) -> bool {
        Note::parse(&self.note).is_some_and(|note| note.passes_through)
    }
}

/// What a [`Handover`] says of a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) id: u64,
    pub(crate) device: (u32, u32),
    pub(crate) greeting: Greeting,
    pub(crate) passes_through: bool,
    pub(crate) mountpoint: PathBuf,
}

impl Note {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let greeting = self.greeting.as_bytes();
        let mut bytes = Vec::with_capacity(FIXED + greeting.len());
        let version = if self.passes_through { VERSION_WITH_PASSTHROUGH } else { VERSION };
        bytes.extend_from_slice(&version.to_le_bytes());
        bytes.extend_from_slice(&self.id.to_le_bytes());
        bytes.extend_from_slice(&self.device.0.to_le_bytes());
        bytes.extend_from_slice(&self.device.1.to_le_bytes());
        // A greeting that was parsed says its length in as many bits.
        bytes.extend_from_slice(&(greeting.len() as u32).to_le_bytes());
        bytes.extend_from_slice(greeting);
        bytes.extend_from_slice(self.mountpoint.as_os_str().as_bytes());
        bytes
    }

    /// Nothing if it is not one of this version.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Note> {
        let (fixed, rest) = bytes.split_at_checked(FIXED)?;
        let word = |offset: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&fixed[offset..offset + 4]);
            u32::from_le_bytes(word)
        };
        let passes_through = match word(0) {
            VERSION => false,
            VERSION_WITH_PASSTHROUGH => true,
            _ => return None,
        };
        let (greeting, mountpoint) = rest.split_at_checked(usize::try_from(word(20)).ok()?)?;
        Some(Note {
            id: u64::from(word(4)) | u64::from(word(8)) << 32,
            device: (word(12), word(16)),
            greeting: Greeting::parse(greeting)?,
            passes_through,
            mountpoint: PathBuf::from(OsStr::from_bytes(mountpoint)),
        })
    }
}

/// Goes on to serve a mount whose server is gone; what that one left unanswered is answered. Of the options only `threads`,
/// `default_permissions`, `label` and `passthrough` count. The first three must be what they were, and so must the tree; `passthrough` must be
/// what [`OpenRecords::take_over`](crate::OpenRecords::take_over) gives, if the [mount has any](Handover::passes_through). Without them
/// all is served but new opens of what is passed through, which fail. Dropping the session leaves the mount.
///
/// # Errors
/// If the note is not one of this version, or what the system says.
pub fn take_over(tree: Arc<impl Tree>, handover: Handover, options: &MountOptions) -> io::Result<Session> {
    let unknown =
        || io::Error::new(io::ErrorKind::InvalidData, "the note of the mount is of another version");
    let note = Note::parse(&handover.note).ok_or_else(unknown)?;
    let passthrough = options.passthrough.clone().filter(|_| note.passes_through);
    let options = MountOptions { passthrough, ..options.clone() };
    let service = session::go_on(tree, handover.device, &note.greeting, &options)?;
    let session = Session::new(service, note.mountpoint, note.id, note.device);
    session.leave_mounted();
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_says_what_it_was_told_and_one_that_is_cut_or_of_another_version_nothing() {
        let mut greeting = vec![0; 104];
        for (offset, value) in [(0, 104_u32), (4, 26), (40, 7)] {
            greeting[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let note = Note {
            id: 0x1_0000_0002,
            device: (0, 77),
            greeting: Greeting::parse(&greeting).unwrap(),
            passes_through: false,
            mountpoint: PathBuf::from("/mnt/with space"),
        };
        let bytes = note.to_bytes();
        let passing = Note { passes_through: true, ..note.clone() };
        assert_eq!(Note::parse(&passing.to_bytes()), Some(passing));
        assert_eq!(Note::parse(&bytes), Some(note));
        for length in 0..FIXED + greeting.len() {
            assert_eq!(Note::parse(&bytes[..length]), None, "{length}");
        }
        assert_eq!(Note::parse(&[&[9], &bytes[1..]].concat()), None);
    }
}
