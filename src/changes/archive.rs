//! A difference as an archive: the same bytes for the same two records, whoever writes it and whenever.
//!
//! It is what `peel commit` would write of such changes: directories before what is in them, names sorted, numeric owners, times with their
//! fractions, whiteouts as `.wh.` files, opaque directories with their marker; of the names of one file the first holds its content, and the
//! others are links to it.

use std::collections::HashMap;
use std::io::{self, Write};

use peelfs_registry::Digest;
use peelfs_registry::digest::Digester;

use super::list::{Stated, visit};
use crate::fetch::FetchError;
use crate::layer::entry::{Content, Entry, EntryKind, Timestamp};
use crate::layer::tar::{END_OF_ARCHIVE, OwnerNames, entry_headers};
use crate::table::Table;
use crate::table::format::{InodeRecord, inode_flags};
use crate::tree::serve::{MergedTree, Segment};

/// Bytes of a block of a tar.
const BLOCK: u64 = 512;
/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Bytes.
    pub bytes: u64,
    /// Their digest: of a layer's own archive, its diff ID.
    pub digest: Digest,
    /// Whether it is a layer's own archive.
    pub is_original: bool,
}

/// Why an archive was not written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Where it goes.
    #[error("cannot write the archive")]
    Output(#[source] io::Error),
    /// Where it comes from.
    #[error("cannot read the content of \"{path}\"")]
    Content {
        /// The file, escaped.
        path: String,
        /// Why not.
        #[source]
        cause: io::Error,
    },
    /// What an index beside its layer says of a file is not what the layer's archive says.
    #[error("\"{path}\" is not what the index of its layer says")]
    Headers {
        /// The file, escaped.
        path: String,
        /// What is wrong.
        #[source]
        cause: FetchError,
    },
    /// Discarded since it was looked for.
    #[error("the content of \"{path}\" was discarded meanwhile; try again")]
    Evicted {
        /// The file, escaped.
        path: String,
    },
}

fn is_regular(inode: &InodeRecord) -> bool {
    inode.mode.get() & libc::S_IFMT == libc::S_IFREG
}

/// How many bytes of each layer are missing to write it.
pub(super) fn missing(difference: &MergedTree) -> Vec<u64> {
    let mut missing: Vec<u64> = vec![0; difference.layers().len()];
    for inode in difference.table().inodes().iter().filter(|inode| is_regular(inode)) {
        let (Some(layer), Some(sum)) =
            (difference.layer(inode), missing.get_mut(usize::from(inode.layer.get())))
        else {
            continue;
        };
        let mut ranges = difference.decoded_ranges(inode);
        if layer.must_be_proved() && !ranges.is_empty() {
            // What is wrong with them is told when the file is written.
            ranges.extend(layer.headers_of(inode.content.get()).ok().flatten());
        }
        for range in ranges {
            *sum = sum.saturating_add((range.end - range.start).saturating_sub(layer.present_bytes(range)));
        }
    }
    missing
}

/// Writes it.
///
/// # Errors
/// [`WriteError`].
pub(super) fn write(difference: &MergedTree, output: &mut dyn Write) -> Result<Written, WriteError> {
    // The algorithm of all digests that are made here.
    let hasher = Digest::sha256_of(&[]).digester();
    let mut archive = Archive { tree: difference, hasher, length: 0, output, links: HashMap::new() };
    let table = difference.table();
    visit(table, |stated| match stated {
        // A root of which nothing is said.
        Stated::Inode { path: b"", inode, .. } if inode.flags.get() & inode_flags::IMPLICIT != 0 => Ok(()),
        Stated::Inode { path, number, inode } => archive.inode(path, number, inode),
        Stated::Whiteout { path } => {
            let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
            archive.marker([&path[..name], b".wh.", &path[name..]].concat())
        }
    })?;
    archive.push(&END_OF_ARCHIVE)?;
    let Archive { hasher, length, output, .. } = archive;
    output.flush().map_err(WriteError::Output)?;
    Ok(Written { bytes: length, digest: hasher.finish(), is_original: false })
}

struct Archive<'a> {
    tree: &'a MergedTree,
    hasher: Digester,
    length: u64,
    output: &'a mut dyn Write,
    /// The first name of each file that has several.
    links: HashMap<u32, Vec<u8>>,
}

fn entry(table: &Table, path: Vec<u8>, kind: EntryKind, inode: &InodeRecord) -> Entry {
    Entry {
        path,
        kind,
        mode: inode.mode.get() & 0o7777,
        uid: inode.uid.get(),
        gid: inode.gid.get(),
        modified: Timestamp {
            seconds: inode.modified_seconds.get(),
            nanoseconds: inode.modified_nanoseconds.get(),
        },
        xattrs: table.xattrs(inode).map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
    }
}

impl Archive<'_> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.output.write_all(bytes).map_err(WriteError::Output)
    }

    fn zeros(&mut self, mut length: u64) -> Result<(), WriteError> {
        while length > 0 {
            let part = length.min(ZEROS.len() as u64);
            self.push(&ZEROS[..part as usize])?;
            length -= part;
        }
        Ok(())
    }

    fn headers(&mut self, entry: &Entry, size: u64) -> Result<(), WriteError> {
        self.push(&entry_headers(entry, &OwnerNames::default(), size))
    }

    /// An empty file that says something by its name.
    fn marker(&mut self, path: Vec<u8>) -> Result<(), WriteError> {
        let kind = EntryKind::Regular { size: 0, content: Content::Contiguous(0) };
        let (mode, uid, gid, modified) = (0, 0, 0, Timestamp::default());
        self.headers(&Entry { path, kind, mode, uid, gid, modified, xattrs: Vec::new() }, 0)
    }

    fn inode(&mut self, path: &[u8], number: u32, inode: &InodeRecord) -> Result<(), WriteError> {
        let table = self.tree.table();
        let kind = inode.mode.get() & libc::S_IFMT;
        if kind == libc::S_IFDIR {
            let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
            self.headers(&entry(table, name, EntryKind::Directory, inode), 0)?;
            let is_opaque = inode.flags.get() & inode_flags::OPAQUE != 0;
            return if is_opaque { self.marker([path, b"/.wh..wh..opq"].concat()) } else { Ok(()) };
        }
        if inode.link_count.get() > 1 {
            if let Some(target) = self.links.get(&number) {
                let kind = EntryKind::Hardlink { target: target.clone() };
                // It has its attributes from the first.
                let link = Entry { xattrs: Vec::new(), ..entry(table, path.to_vec(), kind, inode) };
                return self.headers(&link, 0);
            }
            self.links.insert(number, path.to_vec());
        }
        let device = inode.content.get();
        let (major, minor) = ((device >> 32) as u32, device as u32);
        let kind = match kind {
            libc::S_IFREG => return self.regular(path, inode),
            libc::S_IFLNK => EntryKind::Symlink { target: table.target(inode).to_vec() },
            libc::S_IFCHR => EntryKind::CharacterDevice { major, minor },
            libc::S_IFBLK => EntryKind::BlockDevice { major, minor },
            _ => EntryKind::Fifo,
        };
        self.headers(&entry(table, path.to_vec(), kind, inode), 0)
    }

    fn regular(&mut self, path: &[u8], inode: &InodeRecord) -> Result<(), WriteError> {
        let shown = || path.escape_ascii().to_string();
        let size = inode.size.get();
        let kind = EntryKind::Regular { size, content: Content::Contiguous(0) };
        self.headers(&entry(self.tree.table(), path.to_vec(), kind, inode), size)?;
        let Some(layer) = self.tree.layer(inode).filter(|_| size > 0) else { return Ok(()) };
        match layer.prove_now(inode.content.get()) {
            Ok(true) => {}
            Ok(false) => return Err(WriteError::Evicted { path: shown() }),
            Err(cause) => return Err(WriteError::Headers { path: shown(), cause }),
        }
        let mut buffer = vec![0; size.min(PIECE) as usize];
        for segment in self.tree.segments(inode) {
            let (mut position, length) = match segment {
                Segment::Hole { length } => {
                    self.zeros(length)?;
                    continue;
                }
                Segment::Data { decoded_offset, length } => (decoded_offset, length),
            };
            let end = position.saturating_add(length);
            while position < end {
                let part = (end - position).min(PIECE) as usize;
                match layer.read(position, &mut buffer[..part]) {
                    Ok(true) => self.push(&buffer[..part])?,
                    Ok(false) => return Err(WriteError::Evicted { path: shown() }),
                    Err(cause) => return Err(WriteError::Content { path: shown(), cause }),
                }
                position += part as u64;
            }
        }
        self.zeros(size.next_multiple_of(BLOCK) - size)
    }
}
