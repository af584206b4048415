//! Digests of streams.

use sha2::{Digest as _, Sha256, Sha512};

/// The digest of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamDigest {
    /// SHA-256.
    Sha256([u8; 32]),
    /// SHA-512.
    Sha512([u8; 64]),
}

impl std::fmt::Display for StreamDigest {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (algorithm, bytes): (_, &[u8]) = match self {
            Self::Sha256(bytes) => ("sha256", bytes),
            Self::Sha512(bytes) => ("sha512", bytes),
        };
        write!(formatter, "{algorithm}:")?;
        bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// Computes a digest.
pub(super) enum Hasher {
    Sha256(Box<Sha256>),
    Sha512(Box<Sha512>),
}

impl Hasher {
    /// A hasher for the algorithm of that digest.
    pub fn like(digest: Option<StreamDigest>) -> Self {
        match digest {
            None | Some(StreamDigest::Sha256(_)) => Self::Sha256(Box::default()),
            Some(StreamDigest::Sha512(_)) => Self::Sha512(Box::default()),
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> StreamDigest {
        match self {
            Self::Sha256(hasher) => StreamDigest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => StreamDigest::Sha512(hasher.finalize().into()),
        }
    }
}
