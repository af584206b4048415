//! What the tests of several formats share.

use super::compression::{Decode, DecodeError};

/// `length` bytes that compress, but not to nothing.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * at) >> 7) as u8 ^ (at as u8)).collect()
}

/// What `blob` decodes to when it arrives in pieces of `piece` bytes and there is room for `room` bytes at a time.
pub(super) fn decoded(
    decoder: &mut dyn Decode,
    blob: &[u8],
    piece: usize,
    room: usize,
) -> Result<Vec<u8>, DecodeError> {
    let mut result = Vec::new();
    let mut buffer = vec![0; room];
    for mut piece in blob.chunks(piece) {
        loop {
            let progress = decoder.decode(piece, &mut buffer)?;
            result.extend_from_slice(&buffer[..progress.produced]);
            piece = &piece[progress.consumed..];
            if piece.is_empty() && progress.produced < room {
                break;
            }
        }
    }
    decoder.finish()?;
    Ok(result)
}
