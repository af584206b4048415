//! What those say to each other who hold a mount and who serve it, a message each, on a socket that the kernel closes with either end.
//!
//! ```text
//!   server ──▶ holder   hold this (with the mount's descriptor, and a note), usable, failed (an exit code)
//!   holder ──▶ successor of another program   hold this;  ◀── ready;   take the place of (with a descriptor of that process)
//! ```
//!
//! The two ends may be of different versions of this program: see [`beginning`](super::beginning).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use peelfs::mount::handover::Handover;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// A note names a path or two.
const LONGEST: usize = 1 << 16;

const HOLD: u8 = 1;
const USABLE: u8 = 2;
const FAILED: u8 = 3;
const READY: u8 = 4;
const TAKE_PLACE: u8 = 5;

/// What is said.
pub enum Message {
    /// The mount is there, and this is what a successor needs.
    Hold(Handover),
    /// The directory is usable.
    Usable,
    /// It will not be, and the command is to end with this exit code.
    Failed(u8),
    /// All is there that is needed to take the place of the one that serves.
    Ready,
    /// That is to be done: its number, and a descriptor of the process (pidfd_open(2)).
    TakePlace(u32, OwnedFd),
}

impl Message {
    /// Says it.
    ///
    /// # Errors
    /// What the system says, as that nobody hears.
    pub fn send(&self, socket: impl AsFd) -> io::Result<()> {
        let number;
        let code;
        let (kind, text, descriptor): (u8, &[u8], Option<BorrowedFd<'_>>) = match self {
            Message::Hold(handover) => (HOLD, &handover.note, Some(handover.device.as_fd())),
            Message::Usable => (USABLE, &[], None),
            Message::Failed(failed) => {
                code = [*failed];
                (FAILED, &code, None)
            }
            Message::Ready => (READY, &[], None),
            Message::TakePlace(process, descriptor) => {
                number = process.to_le_bytes();
                (TAKE_PLACE, &number, Some(descriptor.as_fd()))
            }
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let is_held = descriptor
            .as_ref()
            .is_none_or(|one| ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(one))));
        if text.len() >= LONGEST || !is_held {
            return Err(io::Error::other("the note of the mount is too long"));
        }
        let parts = [IoSlice::new(std::slice::from_ref(&kind)), IoSlice::new(text)];
        sendmsg(socket, &parts, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Hears the next; nothing if the other end is gone, or says what cannot be understood.
    pub fn receive(socket: impl AsFd) -> Option<Message> {
        let mut bytes = vec![0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut parts = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&socket, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => continue,
                received => break received.ok()?,
            }
        };
        let descriptor = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        if received.flags.contains(ReturnFlags::TRUNC) {
            return None;
        }
        Message::parse(&bytes[..received.bytes], descriptor)
    }

    fn parse(bytes: &[u8], descriptor: Option<OwnedFd>) -> Option<Message> {
        match (bytes.split_first()?, descriptor) {
            ((&HOLD, note), Some(device)) => Some(Message::Hold(Handover { device, note: note.to_vec() })),
            ((&USABLE, []), None) => Some(Message::Usable),
            ((&FAILED, [code]), None) => Some(Message::Failed(*code)),
            ((&READY, []), None) => Some(Message::Ready),
            ((&TAKE_PLACE, number), Some(process)) => {
                Some(Message::TakePlace(u32::from_le_bytes(number.try_into().ok()?), process))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn what_is_heard_is_what_was_said() {
        let device = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        Message::Hold(Handover { device: device(), note: b"note".to_vec() }).send(&ours).unwrap();
        assert!(matches!(Message::receive(&theirs), Some(Message::Hold(held)) if held.note == b"note"));
        Message::Usable.send(&ours).unwrap();
        assert!(matches!(Message::receive(&theirs), Some(Message::Usable)));
        Message::Failed(7).send(&ours).unwrap();
        assert!(matches!(Message::receive(&theirs), Some(Message::Failed(7))));
        Message::Ready.send(&ours).unwrap();
        assert!(matches!(Message::receive(&theirs), Some(Message::Ready)));
        Message::TakePlace(1 << 20, device()).send(&ours).unwrap();
        assert!(matches!(Message::receive(&theirs), Some(Message::TakePlace(0x10_0000, _))));
        let long = Message::Hold(Handover { device: device(), note: vec![0; LONGEST] });
        assert!(long.send(&ours).is_err());
        drop(ours);
        assert!(Message::receive(&theirs).is_none());
    }
}
