//! What can go wrong with a stream, said for the person who reads it.

use peelfs_registry::Digest;

use crate::layer::compression::DecodeError;
use crate::layer::tar::{SinkError, TarError};

/// Why a layer could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The bytes did not arrive.
    #[error("the layer did not arrive: {0}")]
    Input(SinkError),
    /// More bytes than the descriptor says.
    #[error("the blob is longer than the {size} bytes of its descriptor")]
    TooLong {
        /// Bytes as the descriptor says.
        size: u64,
    },
    /// Fewer bytes than the descriptor says.
    #[error("the blob ended after {received} of the {size} bytes of its descriptor")]
    TooShort {
        /// Bytes that came.
        received: u64,
        /// Bytes as the descriptor says.
        size: u64,
    },
    /// Other bytes than the descriptor says.
    #[error("the blob does not match its digest: expected {expected}, received {actual}")]
    BlobDigest {
        /// As the descriptor says.
        expected: Digest,
        /// Of what came.
        actual: Digest,
    },
    /// The decoded bytes are not those that the image's configuration says.
    #[error("the decoded layer does not match its diff ID: expected {expected}, is {actual}")]
    DiffId {
        /// As the configuration says.
        expected: Digest,
        /// Of what was decoded.
        actual: Digest,
    },
    /// The bytes do not decode.
    #[error("the layer cannot be decoded: {0}")]
    Decode(#[from] DecodeError),
    /// It decodes to too much.
    #[error("the layer decodes to more than {limit} bytes")]
    TooLarge {
        /// The bound.
        limit: u64,
    },
    /// The archive is malformed.
    #[error("the layer cannot be read: {0}")]
    Tar(TarError),
    /// The sink took no more: a full disk, as a rule.
    #[error("the layer cannot be stored: {0}")]
    Sink(SinkError),
    /// A checkpoint could not be kept.
    #[error("the checkpoints of the layer cannot be stored: {0}")]
    Checkpoint(std::io::Error),
    /// A thread could not be started.
    #[error("no thread for the layer: {0}")]
    Thread(std::io::Error),
}

impl From<TarError> for StreamError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Sink(error) => Self::Sink(error),
            error => Self::Tar(error),
        }
    }
}
