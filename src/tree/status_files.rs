//! A tree with one more directory in its root, `.peel`, in which a file for each layer says how much of it is here. For mounts of which that was
//! asked: an image has no such directory, and programs that copy their root would copy it.
//!
//! ```text
//! /.peel/sha256:0123….json      {"digest":"sha256:0123…","size":1234567,"fetchedSize":45678,"fetchedPercent":3.7}
//! ```
//!
//! - It is found by its name, and listed nowhere: so a walk over the tree sees what it always does.
//! - The kernel keeps attributes and content; so files always have the same size, filled up with spaces, and whoever serves has the kernel forget
//!   them when something came ([`StatusTree::inodes`]).
//! - What an image itself has under that name stays what it is; then there are no such files.

use std::fs::File;
use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use peelfs_fuse::{
    Attributes, DataOrHole, Device, DirectoryEntry, Errno, FilesystemStatistics, ROOT_INODE, ReadReply,
    Timestamp, Tree,
};

use super::serve::MergedTree;

/// The directory's name.
const NAME: &[u8] = b".peel";
/// Bytes of each file: two digests and four numbers fit.
const SIZE: usize = 512;
/// The inode of the directory; those of the files follow. No tree has as many, and overlays need the upper bits for themselves.
const DIRECTORY: u64 = 1 << 33;

/// A layer as its image names it.
#[derive(Clone, Debug)]
pub struct NamedLayer {
    /// Digest of its blob.
    pub digest: String,
    /// Bytes of its blob.
    pub size: u64,
}

/// A merged tree with the status of its layers.
pub struct StatusTree {
    tree: Arc<MergedTree>,
    /// The lowest first, as the tree has them.
    layers: Vec<NamedLayer>,
    /// Seconds since 1970.
    since: i64,
}

impl StatusTree {
    /// `layers` are those of the tree, the lowest first. Nothing if the image has something under that name itself.
    pub fn new(tree: Arc<MergedTree>, layers: Vec<NamedLayer>, since: i64) -> Option<StatusTree> {
        let is_free = tree.lookup(ROOT_INODE, NAME) == Err(Errno::NOT_FOUND);
        is_free.then_some(StatusTree { tree, layers, since })
    }

    /// The inodes of the files, for whose content the kernel must ask anew when something came.
    pub fn inodes(&self) -> RangeInclusive<u64> {
        DIRECTORY + 1..=DIRECTORY + self.layers.len() as u64
    }

    /// The number of the layer whose file that is.
    fn layer(&self, inode: u64) -> Option<usize> {
        let number = usize::try_from(inode.checked_sub(DIRECTORY + 1)?).ok()?;
        (number < self.layers.len()).then_some(number)
    }

    fn is_ours(&self, inode: u64) -> bool {
        inode == DIRECTORY || self.layer(inode).is_some()
    }

    fn text(&self, number: usize) -> Vec<u8> {
        let NamedLayer { digest, size } = &self.layers[number];
        let fetched = self.tree.layers().get(number).map_or(0, |layer| layer.blob_bytes_present(*size));
        let percent = if *size == 0 { 100.0 } else { fetched as f64 * 100.0 / *size as f64 };
        let status = serde_json::json!({
            "digest": digest, "size": size, "fetchedSize": fetched, "fetchedPercent": percent,
        });
        let mut text = status.to_string().into_bytes();
        text.resize(SIZE - 1, b' ');
        text.push(b'\n');
        text
    }
}

impl Tree for StatusTree {
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes, Errno> {
        match parent {
            ROOT_INODE if name == NAME => self.attributes(DIRECTORY),
            DIRECTORY => {
                let digest = name.strip_suffix(b".json").ok_or(Errno::NOT_FOUND)?;
                let number = self.layers.iter().position(|layer| layer.digest.as_bytes() == digest);
                self.attributes(DIRECTORY + 1 + number.ok_or(Errno::NOT_FOUND)? as u64)
            }
            parent if self.is_ours(parent) => Err(Errno::NOT_A_DIRECTORY),
            parent => self.tree.lookup(parent, name),
        }
    }

    fn attributes(&self, inode: u64) -> Result<Attributes, Errno> {
        let (mode, size) = match inode {
            DIRECTORY => (libc::S_IFDIR | 0o555, 0),
            inode if self.is_ours(inode) => (libc::S_IFREG | 0o444, SIZE as u64),
            inode => return self.tree.attributes(inode),
        };
        Ok(Attributes {
            inode,
            mode,
            link_count: if inode == DIRECTORY { 2 } else { 1 },
            uid: 0,
            gid: 0,
            size,
            blocks: 0,
            device: Device::default(),
            modified: Timestamp { seconds: self.since, nanoseconds: 0 },
        })
    }

    fn symlink_target(&self, inode: u64) -> Result<&[u8], Errno> {
        if self.is_ours(inode) { Err(Errno::INVALID) } else { self.tree.symlink_target(inode) }
    }

    fn read_directory(
        &self,
        inode: u64,
        start: u64,
        visit: &mut dyn FnMut(DirectoryEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        if inode != DIRECTORY {
            return self.tree.read_directory(inode, start, visit);
        }
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        for (number, layer) in self.layers.iter().enumerate().skip(start) {
            let name = format!("{}.json", layer.digest);
            let (inode, mode) = (DIRECTORY + 1 + number as u64, libc::S_IFREG);
            let entry = DirectoryEntry { name: name.as_bytes(), inode, mode, next: number as u64 + 1 };
            if visit(entry).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn parent(&self, inode: u64) -> Result<u64, Errno> {
        match inode {
            DIRECTORY => Ok(ROOT_INODE),
            inode if self.is_ours(inode) => Err(Errno::NOT_A_DIRECTORY),
            inode => self.tree.parent(inode),
        }
    }

    fn xattr(&self, inode: u64, name: &[u8]) -> Result<&[u8], Errno> {
        if self.is_ours(inode) { Err(Errno::NO_DATA) } else { self.tree.xattr(inode, name) }
    }

    fn xattr_names(&self, inode: u64, visit: &mut dyn FnMut(&[u8])) -> Result<(), Errno> {
        if self.is_ours(inode) { Ok(()) } else { self.tree.xattr_names(inode, visit) }
    }

    fn read(&self, inode: u64, offset: u64, length: u32, reply: ReadReply) {
        let Some(number) = self.layer(inode) else {
            return if inode == DIRECTORY {
                reply.error(Errno::INVALID)
            } else {
                self.tree.read(inode, offset, length, reply)
            };
        };
        let text = self.text(number);
        let wanted = usize::try_from(offset).ok().and_then(|start| text.get(start..start + length as usize));
        match wanted {
            Some(wanted) => reply.data(wanted),
            None => reply.error(Errno::INVALID),
        }
    }

    fn whole_file(&self, inode: u64) -> Option<Arc<File>> {
        if self.is_ours(inode) { None } else { self.tree.whole_file(inode) }
    }

    fn seek(&self, inode: u64, offset: u64, whence: DataOrHole) -> Result<u64, Errno> {
        if !self.is_ours(inode) {
            return self.tree.seek(inode, offset, whence);
        }
        match (inode != DIRECTORY && offset < SIZE as u64, whence) {
            (false, _) => Err(Errno::NO_SUCH_OFFSET),
            (true, DataOrHole::Data) => Ok(offset),
            (true, DataOrHole::Hole) => Ok(SIZE as u64),
        }
    }

    fn statistics(&self) -> FilesystemStatistics {
        self.tree.statistics()
    }
}
