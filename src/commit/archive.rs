//! The changes as an archive, written into a file: what a layer is before it is compressed.
//!
//! Rules
//! - Owners are numbers, times have their nanoseconds, and nothing else is said of a file than an image can hold.
//! - Of the names of one file, the first holds its content, and the others are links to it. That is so among the changes alone: a name of
//!   the image below that was a link to a file that was changed since is none any more, as in the mount.
//! - Holes are zeros in the archive, which every tool reads; in this file they stay holes, and take no room.
//! - A file that changes while it is read is written again, over what was written of it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, SeekFrom, major, minor, seek};
use rustix::io::Errno;

use super::error::{CommitError, shown};
use super::upper::{ATTEMPTS, Attributes, Changes, Node, cannot_read};
use crate::layer::entry::{Content, Entry, EntryKind, Timestamp};
use crate::layer::spool::{Spool, SpooledEntry};
use crate::layer::stream::MAXIMUM_DECODED;
use crate::layer::tar::{END_OF_ARCHIVE, OwnerNames, entry_headers};
use crate::store::StoreError;

/// Bytes of a block of a tar.
const BLOCK: u64 = 512;
/// Bytes that are copied at once.
const PIECE: usize = 1 << 20;

/// The archive as it grows.
pub(super) struct Archive {
    file: File,
    length: u64,
    entries: Vec<SpooledEntry>,
    /// The first name of each file that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    left_out: Vec<Vec<u8>>,
    buffer: Vec<u8>,
}

impl Archive {
    /// An archive in that file, which is empty.
    pub fn new(file: File) -> Archive {
        let (links, buffer) = (HashMap::new(), vec![0; PIECE]);
        Archive { file, length: 0, entries: Vec::new(), links, left_out: Vec::new(), buffer }
    }

    /// Whether it holds nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.entries.len() <= 1
    }

    /// Ends it, and gives what it could not hold.
    pub fn finish(mut self) -> Result<(Spool, Vec<Vec<u8>>), CommitError> {
        self.append(&END_OF_ARCHIVE)?;
        Ok((Spool::new(self.file, self.entries), self.left_out))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), CommitError> {
        self.file.write_all_at(bytes, self.length).map_err(cannot_write)?;
        self.length += bytes.len() as u64;
        Ok(())
    }

    fn headers(&mut self, entry: Entry, size: u64) -> Result<(), CommitError> {
        let start = self.length;
        self.append(&entry_headers(&entry, &OwnerNames::default(), size))?;
        let mut entry = entry;
        if let EntryKind::Regular { content, .. } = &mut entry.kind {
            *content = Content::Contiguous(self.length);
        }
        self.entries.push(SpooledEntry { entry, headers: start..self.length });
        Ok(())
    }

    /// An empty file that says something by its name.
    fn marker(&mut self, path: Vec<u8>) -> Result<(), CommitError> {
        let entry = Entry {
            path,
            kind: EntryKind::Regular { size: 0, content: Content::Contiguous(0) },
            mode: 0,
            uid: 0,
            gid: 0,
            modified: Timestamp::default(),
            xattrs: Vec::new(),
        };
        self.headers(entry, 0)
    }

    /// Writes a file until it is unchanged after that.
    fn regular(
        &mut self,
        path: &[u8],
        mut node: Node,
        is_unchanged: impl Fn(&Node) -> rustix::io::Result<bool>,
    ) -> Result<(), CommitError> {
        for attempt in 1..=ATTEMPTS {
            let (start, entries) = (self.length, self.entries.len());
            let size = node.attributes.size;
            let length = start.saturating_add(size);
            if length > MAXIMUM_DECODED {
                return Err(CommitError::TooLarge { path: shown(path), length, limit: MAXIMUM_DECODED });
            }
            let kind = EntryKind::Regular { size, content: Content::Contiguous(0) };
            self.headers(entry(path, kind, &node.attributes), size)?;
            let is_whole = self.content(path, &node, size)?;
            if is_whole && is_unchanged(&node).map_err(|errno| cannot_read(path, errno))? {
                return Ok(());
            }
            tracing::debug!(path = %shown(path), attempt, "it changed while it was read");
            // What was written of it must not show through the holes of the next attempt.
            self.file.set_len(start).map_err(cannot_write)?;
            self.length = start;
            self.entries.truncate(entries);
            node.look_again(path)?;
        }
        Err(CommitError::Changing { path: shown(path), attempts: ATTEMPTS })
    }

    /// Appends `size` bytes of a file, and what fills the last block. False if it has less.
    fn content(&mut self, path: &[u8], node: &Node, size: u64) -> Result<bool, CommitError> {
        let failed = |error: std::io::Error| cannot_read(path, error);
        let base = self.length;
        let mut offset = 0;
        if size > 0 {
            let file = node.open().map_err(|errno| cannot_read(path, errno))?;
            while let Some((start, end)) =
                data(&file, offset, size).map_err(|errno| cannot_read(path, errno))?
            {
                offset = start;
                while offset < end {
                    let wanted = self.buffer.len().min(usize::try_from(end - offset).unwrap_or(PIECE));
                    let read = file.read_at(&mut self.buffer[..wanted], offset).map_err(failed)?;
                    if read == 0 {
                        return Ok(false);
                    }
                    self.file.write_all_at(&self.buffer[..read], base + offset).map_err(cannot_write)?;
                    offset += read as u64;
                }
            }
        }
        self.length = (base + size).next_multiple_of(BLOCK);
        self.file.set_len(self.length).map_err(cannot_write)?;
        Ok(true)
    }
}

/// The next bytes of a file that are no hole, from `offset` on and before `size`.
fn data(file: &File, offset: u64, size: u64) -> rustix::io::Result<Option<(u64, u64)>> {
    if offset >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(offset)) {
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::NOTSUP) => return Ok(Some((offset, size))),
        start => start?,
    };
    if start >= size {
        return Ok(None);
    }
    let end = match seek(file, SeekFrom::Hole(start)) {
        // Cut off meanwhile, which reading it will show.
        Err(Errno::NXIO) => size,
        end => end?,
    };
    Ok(Some((start, end.min(size))))
}

fn cannot_write(error: std::io::Error) -> CommitError {
    StoreError::from_io("write", "the uncompressed layer", error).into()
}

fn entry(path: &[u8], kind: EntryKind, attributes: &Attributes) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: attributes.mode,
        uid: attributes.uid,
        gid: attributes.gid,
        modified: attributes.modified,
        xattrs: attributes.xattrs.clone(),
    }
}

impl Changes for Archive {
    fn whiteout(&mut self, path: &[u8]) -> Result<(), CommitError> {
        let name = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        self.marker([&path[..name], b".wh.", &path[name..]].concat())
    }

    fn opaque(&mut self, directory: &[u8]) -> Result<(), CommitError> {
        self.marker([directory, b"/.wh..wh..opq"].concat())
    }

    fn node(&mut self, path: &[u8], node: Node) -> Result<(), CommitError> {
        let attributes = &node.attributes;
        if attributes.kind == FileType::Directory {
            let name = if path.is_empty() { b"./".to_vec() } else { [path, b"/"].concat() };
            return self.headers(entry(&name, EntryKind::Directory, attributes), 0);
        }
        if attributes.kind == FileType::Socket {
            self.left_out.push(path.to_vec());
            return Ok(());
        }
        if attributes.links > 1 {
            if let Some(target) = self.links.get(&attributes.identity) {
                let kind = EntryKind::Hardlink { target: target.clone() };
                // It has its attributes from the first.
                let link = Entry { xattrs: Vec::new(), ..entry(path, kind, attributes) };
                return self.headers(link, 0);
            }
            self.links.insert(attributes.identity, path.to_vec());
        }
        let (major, minor) = (major(attributes.device), minor(attributes.device));
        let kind = match attributes.kind {
            FileType::RegularFile => return self.regular(path, node, Node::is_unchanged),
            FileType::Symlink => {
                let target = node.target().map_err(|errno| cannot_read(path, errno))?;
                EntryKind::Symlink { target }
            }
            FileType::CharacterDevice => EntryKind::CharacterDevice { major, minor },
            FileType::BlockDevice => EntryKind::BlockDevice { major, minor },
            _ => EntryKind::Fifo,
        };
        self.headers(entry(path, kind, attributes), 0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::path::Path;

    use super::*;
    use crate::commit::upper::walk;
    use crate::store::AttributeSpace;

    /// Takes the one file that there is.
    #[derive(Default)]
    struct OneFile(Option<Node>);

    impl Changes for OneFile {
        fn whiteout(&mut self, _path: &[u8]) -> Result<(), CommitError> {
            Ok(())
        }
        fn opaque(&mut self, _directory: &[u8]) -> Result<(), CommitError> {
            Ok(())
        }
        fn node(&mut self, _path: &[u8], node: Node) -> Result<(), CommitError> {
            self.0 = Some(node);
            Ok(())
        }
    }

    fn node_of(directory: &Path) -> Node {
        let mut file = OneFile::default();
        walk(directory, AttributeSpace::Trusted, &mut file).unwrap();
        file.0.unwrap()
    }

    fn archive() -> Archive {
        Archive::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn a_file_that_changed_since_it_was_looked_at_is_read_again_and_nothing_of_before_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, vec![b'x'; 9000]).unwrap();
        for change in ["longer", "shorter", "replaced by a hole"] {
            let node = node_of(directory.path());
            let mut file = File::options().write(true).open(&path).unwrap();
            match change {
                "longer" => file.write_all(&[b'y'; 20_000]).unwrap(),
                "shorter" => file.set_len(700).unwrap(),
                _ => {
                    file.set_len(0).unwrap();
                    file.set_len(9000).unwrap();
                }
            }
            let mut archive = archive();
            archive.regular(b"file", node, Node::is_unchanged).unwrap();
            let (spool, _) = archive.finish().unwrap();
            let [entry] = &spool.entries[..] else { panic!("one entry") };
            let expected = std::fs::read(&path).unwrap();
            let mut content = Vec::new();
            spool.append_content(&entry.entry, 0, expected.len() as u64, &mut content).unwrap();
            assert!(content == expected, "{change}");
            let headers = entry.headers.end - entry.headers.start;
            let length = headers + (expected.len() as u64).next_multiple_of(BLOCK) + 2 * BLOCK;
            assert_eq!(spool.length().unwrap(), length, "{change}");
        }
    }

    #[test]
    fn a_file_that_never_comes_to_rest_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "content").unwrap();
        let mut archive = archive();
        let refused = archive.regular(b"busy", node_of(directory.path()), |_| Ok(false)).unwrap_err();
        assert!(
            matches!(&refused, CommitError::Changing { path, attempts: 10 } if path == "busy"),
            "{refused}"
        );
    }

    #[test]
    fn holes_stay_holes_until_the_archive_is_compressed() {
        use std::os::unix::fs::MetadataExt;
        let directory = tempfile::tempdir().unwrap();
        let file = File::create(directory.path().join("file")).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"data", 500 << 20).unwrap();
        let mut archive = archive();
        archive.regular(b"file", node_of(directory.path()), Node::is_unchanged).unwrap();
        assert!(archive.file.metadata().unwrap().blocks() * 512 < 1 << 20);
        let (spool, _) = archive.finish().unwrap();
        let mut content = Vec::new();
        spool.append_content(&spool.entries[0].entry, (500 << 20) - 2, 8, &mut content).unwrap();
        assert_eq!(content, b"\0\0data\0\0");
    }
}
