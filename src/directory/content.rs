//! The content of one file, from its layer into a file of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc;

use super::error::{At, DirectoryError, shown};
use crate::fetch::{LayerContent, Room};
use crate::table::format::{InodeRecord, inode_flags};

/// What is read at once, in bytes.
const PIECE: u64 = 1 << 20;
/// How often is fetched what was evicted before it could be read.
const FETCHES: u32 = 4;

/// Gives an empty file the content of a regular file of that layer; `path` is for people. Holes stay holes, and blocks are shared where the
/// file system can.
pub(super) fn copy(
    layer: &Arc<LayerContent>,
    inode: &InodeRecord,
    room: &Room,
    file: &File,
    path: &[u8],
) -> Result<(), DirectoryError> {
    let size = inode.size.get();
    rustix::fs::ftruncate(file, size).at("write", path)?;
    if inode.flags.get() & inode_flags::ALL_ZEROS != 0 || size == 0 {
        return Ok(());
    }
    if inode.count.get() == 0 {
        if let Some(whole) = layer.whole_file(inode.content.get(), size)
            && rustix::fs::ioctl_ficlone(file, &*whole).is_ok()
        {
            return Ok(());
        }
        return Part { layer, room, file, path }.copy(0, inode.content.get(), size);
    }
    for extent in layer.table().extents(inode) {
        let (offset, length) = (extent.file_offset.get(), extent.length.get());
        if offset.checked_add(length).is_none_or(|end| end > size) {
            return Err(DirectoryError::Table { path: shown(path) });
        }
        Part { layer, room, file, path }.copy(offset, extent.decoded_offset.get(), length)?;
    }
    Ok(())
}

struct Part<'a> {
    layer: &'a Arc<LayerContent>,
    room: &'a Room,
    file: &'a File,
    path: &'a [u8],
}

impl Part<'_> {
    /// Copies so many bytes of the decoded space to that place in the file.
    fn copy(&self, mut offset: u64, mut decoded: u64, mut left: u64) -> Result<(), DirectoryError> {
        let mut buffer = vec![0; left.min(PIECE) as usize];
        while left > 0 {
            let piece = &mut buffer[..left.min(PIECE) as usize];
            self.read(decoded, piece)?;
            if !self.room.has_room_for(piece.len() as u64) {
                return Err(DirectoryError::NoRoom);
            }
            self.file.write_all_at(piece, offset).at("write", self.path)?;
            let length = piece.len() as u64;
            (offset, decoded, left) = (offset + length, decoded.saturating_add(length), left - length);
        }
        Ok(())
    }

    /// Reads bytes of the decoded space; what was evicted since the layer was extracted is fetched again.
    fn read(&self, decoded: u64, piece: &mut [u8]) -> Result<(), DirectoryError> {
        let path = || shown(self.path);
        for _ in 0..FETCHES {
            if self.layer.read(decoded, piece).at("read", self.path)? {
                return Ok(());
            }
            let (sender, fetched) = mpsc::channel();
            let end = decoded.saturating_add(piece.len() as u64);
            // Who waits no more needs no answer.
            self.layer.fetch(decoded..end, move |result| drop(sender.send(result)));
            match fetched.recv() {
                Ok(result) => result.map_err(|cause| DirectoryError::Content { path: path(), cause })?,
                Err(mpsc::RecvError) => break,
            }
        }
        Err(DirectoryError::Evicted { path: path() })
    }
}
