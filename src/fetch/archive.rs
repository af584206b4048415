//! The archive of a layer that is wholly here, written again to the byte: what `diff` of a layer store gives.
//!
//! ```text
//! streamed, zTOC       the data files are the archive
//! table of contents    the framing, and in it pieces of the data files
//! ```
//!
//! What is written is hashed on the way: unless it has the layer's diff ID, it is an error, and worth nothing.

use std::io::{self, Write};
use std::ops::Range;
use std::sync::Arc;

use peelfs_registry::Digest;
use peelfs_registry::digest::Digester;

use super::content::LayerContent;
use crate::layer::framing::{FramingError, Part, parts};
use crate::layer::stream::MAXIMUM_DECODED;
use crate::store::{StoreError, Verdict};

/// Bytes that are read at once.
const STEP: u64 = 1 << 20;

/// Why an archive cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// It is not all here.
    #[error("layer {layer} is not wholly here: {missing} bytes of its content are missing")]
    Missing {
        /// The layer's name.
        layer: Arc<str>,
        /// Bytes of its content that are not here.
        missing: u64,
    },
    /// Nobody has held it against its archive.
    #[error(
        "layer {layer} is here, but was not held against its archive yet, and so nothing is known of its headers"
    )]
    Unproved {
        /// The layer's name.
        layer: Arc<str>,
    },
    /// It is false.
    #[error("layer {layer} is false: {reason}")]
    Poisoned {
        /// The layer's name.
        layer: Arc<str>,
        /// What is wrong with it.
        reason: String,
    },
    /// It was proved by an earlier version, or its headers took too much room.
    #[error(
        "of layer {layer} only the files are here: the headers of its archive were not kept when it was proved"
    )]
    WithoutFraming {
        /// The layer's name.
        layer: Arc<str>,
    },
    /// The framing.
    #[error("what is kept of the headers of layer {layer} cannot be used")]
    Framing {
        /// The layer's name.
        layer: Arc<str>,
        /// Why not.
        #[source]
        cause: FramingError,
    },
    /// A part was discarded while it was read.
    #[error("a part of layer {layer} was discarded meanwhile; try again")]
    Evicted {
        /// The layer's name.
        layer: Arc<str>,
    },
    /// What came out is something else.
    #[error(
        "what was written of layer {layer} has the digest {actual}, not its diff ID {expected}; `peel check` finds what is damaged"
    )]
    DiffId {
        /// The layer's name.
        layer: Arc<str>,
        /// What it should be.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The data files.
    #[error("cannot read the content of layer {layer}")]
    Read {
        /// The layer's name.
        layer: Arc<str>,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// Where it goes.
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

impl LayerContent {
    /// Bytes of its decoded space that are not here.
    pub fn missing_bytes(&self) -> u64 {
        if self.files().chunk_map.is_none() {
            return 0;
        }
        let missing = self.table().chunks().iter().enumerate().filter(|(number, _)| !self.has_chunk(*number));
        missing.fold(0, |sum, (_, chunk)| sum.saturating_add(chunk.decoded_length.get()))
    }

    /// Writes the layer's archive, which has that diff ID. Gives its length. What was written is worth nothing if this fails.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing was written of a layer that is not here.
    pub fn write_archive(&self, diff_id: &Digest, output: &mut dyn Write) -> Result<u64, ArchiveError> {
        let layer = || self.layer().clone();
        if self.is_poisoned() {
            let reason = self.poison().unwrap_or_default().to_owned();
            return Err(ArchiveError::Poisoned { layer: layer(), reason });
        }
        if !self.is_complete() {
            return Err(ArchiveError::Missing { layer: layer(), missing: self.missing_bytes() });
        }
        let mut archive = Archive { content: self, hasher: diff_id.digester(), length: 0, output };
        if self.is_the_archive() {
            archive.content(0..self.decoded_length())?;
        } else {
            let framing = match (self.files().framing()?, self.files().verdict()?) {
                (_, None) if self.provenance()?.is_some() => {
                    return Err(ArchiveError::Unproved { layer: layer() });
                }
                (Some(framing), Some(Verdict::Proved { .. })) => framing,
                _ => return Err(ArchiveError::WithoutFraming { layer: layer() }),
            };
            let shown = parts(framing, |part| match part {
                Part::Raw(bytes) => archive.push(bytes).map_err(Stop::Archive),
                Part::Content { decoded_offset, length } => archive
                    .content(decoded_offset..decoded_offset.saturating_add(length))
                    .map_err(Stop::Archive),
            });
            shown.map_err(|stop| match stop {
                Stop::Framing(cause) => ArchiveError::Framing { layer: layer(), cause },
                Stop::Archive(error) => error,
            })?;
        }
        archive.finish(diff_id)
    }
}

enum Stop {
    Framing(FramingError),
    Archive(ArchiveError),
}

impl From<FramingError> for Stop {
    fn from(error: FramingError) -> Stop {
        Stop::Framing(error)
    }
}

struct Archive<'a> {
    content: &'a LayerContent,
    hasher: Digester,
    length: u64,
    output: &'a mut dyn Write,
}

impl Archive<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        self.hasher.update(bytes);
        self.length = self.length.saturating_add(bytes.len() as u64);
        self.output.write_all(bytes).map_err(ArchiveError::Write)
    }

    fn content(&mut self, range: Range<u64>) -> Result<(), ArchiveError> {
        let layer = || self.content.layer().clone();
        if range.end > MAXIMUM_DECODED {
            let cause = FramingError::Damaged("it leads out of the layer");
            return Err(ArchiveError::Framing { layer: layer(), cause });
        }
        let mut buffer = vec![0; (range.end - range.start).min(STEP) as usize];
        let mut position = range.start;
        while position < range.end {
            let part = (range.end - position).min(STEP) as usize;
            match self.content.read(position, &mut buffer[..part]) {
                Ok(true) => self.push(&buffer[..part])?,
                Ok(false) => return Err(ArchiveError::Evicted { layer: layer() }),
                Err(cause) => return Err(ArchiveError::Read { layer: layer(), cause }),
            }
            position += part as u64;
        }
        Ok(())
    }

    fn finish(self, expected: &Digest) -> Result<u64, ArchiveError> {
        let actual = self.hasher.finish();
        if actual != *expected {
            let layer = self.content.layer().clone();
            return Err(ArchiveError::DiffId { layer, expected: expected.clone(), actual });
        }
        self.output.flush().map_err(ArchiveError::Write)?;
        Ok(self.length)
    }
}
