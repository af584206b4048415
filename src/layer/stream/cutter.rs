//! Who watches the decoder of a layer, and decides where the layer is cut.

use std::io;

use crate::layer::compression::{Boundary, Compression, Progress, Stop};

/// Watches one decoder from its beginning to its end, on the decoder's thread.
pub(in crate::layer) trait Cutter: Send {
    /// How the blob is compressed; told before anything is decoded, but for a blob of less than four bytes.
    fn begins(&mut self, _compression: Compression) {}

    /// The next bytes of the blob, in pieces of any size, before they are decoded.
    fn received(&mut self, _piece: &[u8]) {}

    /// At which boundaries the decoder is to stop now.
    fn stop(&self) -> Stop;

    /// Most bytes, at least 1, that the decoder may give before it is asked again where to stop.
    fn room(&self) -> u64;

    /// Takes note of what the decoder did, and of the boundary at which it stopped. True if a new part, with a digest of its own,
    /// begins in the decoded bytes here.
    ///
    /// # Errors
    /// If what belongs to a cut cannot be written.
    fn advanced(&mut self, progress: Progress, boundary: Option<Boundary>) -> io::Result<bool>;
}
