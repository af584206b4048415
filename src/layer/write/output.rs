//! The blob as it grows.

use std::io::Write;

use peelfs_registry::digest::Algorithm;
use peelfs_registry::{Digest, Digester};

use super::WriteError;

/// Takes a blob in order, and knows what it is uncompressed.
pub struct BlobOutput<'a> {
    output: &'a mut dyn Write,
    offset: u64,
    uncompressed: u64,
    diff_id: Digester,
}

impl<'a> BlobOutput<'a> {
    /// A blob of which nothing has been written.
    pub fn new(output: &'a mut dyn Write) -> Self {
        BlobOutput { output, offset: 0, uncompressed: 0, diff_id: Digester::new(Algorithm::Sha256) }
    }

    /// Bytes of the blob so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// What they decode to, in bytes.
    pub fn uncompressed(&self) -> u64 {
        self.uncompressed
    }

    /// Writes the next bytes, and what they decode to.
    ///
    /// # Errors
    /// If they cannot be stored.
    pub fn put(&mut self, uncompressed: &[u8], compressed: &[u8]) -> Result<(), WriteError> {
        self.diff_id.update(uncompressed);
        self.uncompressed += uncompressed.len() as u64;
        self.offset += compressed.len() as u64;
        self.output.write_all(compressed).map_err(|error| WriteError::Output(error.into()))
    }

    /// Diff ID and uncompressed size.
    pub fn finish(self) -> (Digest, u64) {
        (self.diff_id.finish(), self.uncompressed)
    }
}
