//! The answer to a read, which may be given later and from any thread.
//!
//! A short answer would be taken by the kernel as the new end of the file: a fetch that went wrong would cut
//! the file silently. So an answer that is not exactly as long as asked becomes `EIO`, and so does none at
//! all.

use std::sync::mpsc;

use crate::errno::Errno;

/// The promise to answer one read. Dropped unanswered, it answers `EIO`.
#[derive(Debug)]
pub struct ReadReply {
    length: u32,
    destination: Destination,
}

#[derive(Debug)]
enum Destination {
    /// fuser answers `EIO` itself when this is dropped.
    Kernel(fuser::ReplyData),
    Channel(mpsc::SyncSender<Result<Vec<u8>, Errno>>),
}

/// The other end of a [`ReadReply::channel`].
#[derive(Debug)]
pub struct ReadAnswer(mpsc::Receiver<Result<Vec<u8>, Errno>>);

impl ReadReply {
    pub(crate) fn to_kernel(reply: fuser::ReplyData, length: u32) -> ReadReply {
        ReadReply { length, destination: Destination::Kernel(reply) }
    }

    /// A reply that no kernel waits for, and the end at which its answer arrives: to read a tree in-process.
    /// `length` is the number of bytes that will be asked of the tree.
    pub fn channel(length: u32) -> (ReadReply, ReadAnswer) {
        let (sender, receiver) = mpsc::sync_channel(1);
        (ReadReply { length, destination: Destination::Channel(sender) }, ReadAnswer(receiver))
    }

    /// The number of bytes that [`data`](Self::data) must be given.
    pub fn length(&self) -> u32 {
        self.length
    }

    /// Answers with the bytes that were asked for: exactly [`length`](Self::length) of them, or it is `EIO`.
    pub fn data(self, bytes: &[u8]) {
        if bytes.len() as u64 != u64::from(self.length) {
            tracing::error!(
                expected = self.length,
                given = bytes.len(),
                "a read was answered with a wrong number of bytes; it fails with an I/O error"
            );
            return self.error(Errno::IO);
        }
        match self.destination {
            Destination::Kernel(reply) => reply.data(bytes),
            // Nobody waits any more if this fails, as when a reader was killed.
            Destination::Channel(sender) => drop(sender.send(Ok(bytes.to_vec()))),
        }
    }

    /// Answers with an error.
    pub fn error(self, errno: Errno) {
        match self.destination {
            Destination::Kernel(reply) => reply.error(errno.into()),
            Destination::Channel(sender) => drop(sender.send(Err(errno))),
        }
    }
}

impl ReadAnswer {
    /// Waits for the answer; a reply that was dropped unanswered is `EIO`.
    pub fn wait(self) -> Result<Vec<u8>, Errno> {
        self.0.recv().unwrap_or(Err(Errno::IO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_arrives_as_given_from_another_thread() {
        let (reply, answer) = ReadReply::channel(3);
        std::thread::spawn(move || reply.data(b"abc"));
        assert_eq!(answer.wait(), Ok(b"abc".to_vec()));

        let (reply, answer) = ReadReply::channel(3);
        reply.error(Errno::TIMED_OUT);
        assert_eq!(answer.wait(), Err(Errno::TIMED_OUT));
    }

    #[test]
    fn an_answer_of_the_wrong_length_and_no_answer_are_io_errors() {
        for bytes in [&b"ab"[..], b"", b"abcd"] {
            let (reply, answer) = ReadReply::channel(3);
            reply.data(bytes);
            assert_eq!(answer.wait(), Err(Errno::IO), "{bytes:?}");
        }
        let (reply, answer) = ReadReply::channel(3);
        drop(reply);
        assert_eq!(answer.wait(), Err(Errno::IO));
    }
}
