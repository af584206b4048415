//! How a layer blob is compressed, and which media types name layers that can be read.
//!
//! As in containerd, the first bytes of the blob decide how it is decoded; the media type only says whether it is a layer at all.

use super::gzip::GzipDecoder;
use super::gzip::checkpoint::Checkpoint;
use super::tar::SinkError;
use super::zstd::ZstdDecoder;

/// Compression of a layer blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// The blob is the tar.
    None,
    /// Gzip, any number of members.
    Gzip,
    /// Zstandard, any number of frames.
    Zstd,
}

impl Compression {
    /// As many first bytes of a blob as [`Compression::sniff`] wants to see, if the blob has them.
    pub const MAGIC_LENGTH: usize = 4;

    /// The compression that the first bytes of a blob announce; what is unknown is taken for a tar.
    pub fn sniff(first_bytes: &[u8]) -> Self {
        match first_bytes {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            // A frame, or a skippable frame (RFC 8878, sections 3.1.1 and 3.1.2).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// A decoder for the whole blob.
    pub fn decoder(self) -> Box<dyn Decode + Send> {
        match self {
            Self::None => Box::new(Identity),
            Self::Gzip => Box::new(GzipDecoder::new()),
            Self::Zstd => Box::new(ZstdDecoder::new()),
        }
    }
}

/// How far one call of [`Decode::decode`] came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes taken from the beginning of the input.
    pub consumed: usize,
    /// Bytes written to the beginning of the output.
    pub produced: usize,
}

/// At which boundaries a decoder is to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At none.
    Nowhere,
    /// Where a new decoder can begin with nothing: before a gzip member, before a zstd frame, anywhere in what is not encoded.
    AtStarts,
    /// There, and between the deflate blocks of a gzip member, where a new decoder needs a checkpoint.
    AtBlocks,
    /// Where a gzip decoder needs a checkpoint: before the first deflate block of a member, which its header precedes, and between
    /// two. Where a member begins is none of them.
    InMembers,
}

impl Stop {
    /// Whether decoding stops where a new decoder can begin with nothing.
    pub fn is_at_starts(self) -> bool {
        matches!(self, Stop::AtStarts | Stop::AtBlocks)
    }

    /// Whether it stops between deflate blocks.
    pub fn is_at_blocks(self) -> bool {
        matches!(self, Stop::AtBlocks | Stop::InMembers)
    }
}

/// A place in a blob where decoding can begin anew: after all that was consumed so far, less some bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boundary {
    /// Bits that were consumed already, but belong to what begins here.
    pub unused_bits: usize,
    /// What a decoder needs to begin here; `None` if a new one does.
    pub checkpoint: Option<Checkpoint>,
}

impl Boundary {
    /// Where a new decoder begins.
    pub const START: Boundary = Boundary { unused_bits: 0, checkpoint: None };
}

/// A streaming decoder without buffers of its own.
pub trait Decode {
    /// Decodes from `input` into `output` until one of them is exhausted. All input that is available was decoded once a call
    /// consumed it whole and left room in the output; until then there may be more, even for an empty input.
    ///
    /// # Errors
    /// If the input is corrupt. The decoder is of no use then.
    fn decode(&mut self, input: &[u8], output: &mut [u8]) -> Result<Progress, DecodeError> {
        Ok(self.decode_until(Stop::Nowhere, input, output)?.0)
    }

    /// The same, but returns as soon as it is at such a boundary, which may be at once; it is given then. The next call goes on
    /// from there if it is not to stop at that kind of boundary.
    ///
    /// # Errors
    /// As for [`decode`](Self::decode).
    fn decode_until(
        &mut self,
        stop: Stop,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(Progress, Option<Boundary>), DecodeError>;

    /// Whether the input may end here.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] if it must go on.
    fn finish(&self) -> Result<(), DecodeError>;

    /// Decodes all of `input` and gives what comes out of it to `output`, in pieces.
    ///
    /// # Errors
    /// If the input is corrupt, or with the error of `output`.
    fn push(
        &mut self,
        mut input: &[u8],
        output: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>,
    ) -> Result<(), PushError> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let Progress { consumed, produced } = self.decode(input, &mut buffer)?;
            input = &input[consumed..];
            output(&buffer[..produced]).map_err(PushError::Output)?;
            if input.is_empty() && produced < buffer.len() {
                return Ok(());
            }
        }
    }
}

/// Why a blob could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The data contradict their format.
    #[error("corrupt {format} data near byte {offset}: {reason}")]
    Corrupt {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Bytes of input before the fault, about.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
    /// The data end too early.
    #[error("the {format} data are cut off after {offset} bytes")]
    Truncated {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Bytes of input.
        offset: u64,
    },
}

/// Why [`Decode::push`] failed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// The input is corrupt.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The output took no more.
    #[error(transparent)]
    Output(SinkError),
}

/// Decoder of what is not encoded.
struct Identity;

impl Decode for Identity {
    fn decode_until(
        &mut self,
        stop: Stop,
        input: &[u8],
        output: &mut [u8],
    ) -> Result<(Progress, Option<Boundary>), DecodeError> {
        if stop.is_at_starts() {
            return Ok((Progress::default(), Some(Boundary::START)));
        }
        let length = input.len().min(output.len());
        output[..length].copy_from_slice(&input[..length]);
        Ok((Progress { consumed: length, produced: length }, None))
    }

    fn finish(&self) -> Result<(), DecodeError> {
        Ok(())
    }
}

/// Why a descriptor's media type names no layer that can be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaTypeError {
    /// The blob is encrypted (ocicrypt).
    #[error("the layer is encrypted ({media_type}): encrypted layers cannot be mounted")]
    Encrypted {
        /// As the descriptor has it.
        media_type: String,
    },
    /// Anything else.
    #[error(
        "not the media type of a layer: {media_type}; is this an artifact rather than a container image?"
    )]
    Unknown {
        /// As the descriptor has it.
        media_type: String,
    },
}

/// Checks that a descriptor of this media type is a layer that can be read: the layer types of the OCI image specification
/// ("image layer filesystem changeset", deprecated non-distributable ones included) and of Docker's schema 2, foreign ones included.
///
/// # Errors
/// If it is not.
pub fn check_media_type(media_type: &str) -> Result<(), MediaTypeError> {
    const TYPES: [(&str, &[&str]); 4] = [
        ("application/vnd.oci.image.layer.v1.tar", &["", "+gzip", "+zstd"]),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", &["", "+gzip", "+zstd"]),
        ("application/vnd.docker.image.rootfs.diff.tar", &["", ".gzip", ".zstd"]),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar", &["", ".gzip", ".zstd"]),
    ];
    let known = |(base, suffixes): &(&str, &[&str])| {
        media_type.strip_prefix(base).is_some_and(|suffix| suffixes.contains(&suffix))
    };
    if TYPES.iter().any(known) {
        return Ok(());
    }
    let media_type = media_type.to_owned();
    Err(if media_type.ends_with("+encrypted") {
        MediaTypeError::Encrypted { media_type }
    } else {
        MediaTypeError::Unknown { media_type }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_compression() {
        let cases: [(&[u8], Compression); 8] = [
            (b"\x1f\x8b\x08\x00", Compression::Gzip),
            (b"\x1f\x8b\x07\x00", Compression::None),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x50\x2a\x4d\x18", Compression::Zstd),
            (b"\x5f\x2a\x4d\x18", Compression::Zstd),
            (b"\x60\x2a\x4d\x18", Compression::None),
            (b"etc/", Compression::None),
            (b"", Compression::None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Compression::sniff(bytes), expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn layers_are_told_from_other_blobs_by_media_type() {
        for media_type in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ] {
            assert_eq!(check_media_type(media_type), Ok(()), "{media_type}");
        }
        let encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted";
        assert!(matches!(check_media_type(encrypted), Err(MediaTypeError::Encrypted { .. })));
        for media_type in
            ["application/vnd.in-toto+json", "application/vnd.oci.image.layer.v1.tar+gzip2", "", "text/plain"]
        {
            assert!(
                matches!(check_media_type(media_type), Err(MediaTypeError::Unknown { .. })),
                "{media_type}"
            );
        }
    }
}
