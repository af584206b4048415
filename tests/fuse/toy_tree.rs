//! A tree in memory that counts what it is asked, with files that misbehave in each way a real one could.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use peelfs_fuse::{
    Attributes, DataOrHole, Device, DirectoryEntry, Errno, FilesystemStatistics, ROOT_INODE, ReadReply,
    Timestamp, Tree,
};

pub const STATISTICS: FilesystemStatistics = FilesystemStatistics {
    blocks: 123_456,
    blocks_available: 0,
    files: 789,
    block_size: 4096,
    name_length: 255,
};

/// What a file holds, and how it answers reads.
pub enum Content {
    Bytes(Vec<u8>),
    /// Pieces of data, in order; the rest is holes.
    Sparse(Vec<(u64, Vec<u8>)>),
    /// `generated` bytes, answered at once.
    Generated,
    /// `generated` bytes, answered by a thread of its own.
    Later,
    /// The same bytes, which are also a local file.
    Whole(Arc<File>),
    /// Drops the reply.
    Silent,
    /// Answers with one byte less than asked.
    Short,
    /// Panics.
    Broken,
    /// `generated` bytes, but not before a gate opens.
    Held {
        arrivals: Sender<()>,
        gate: Arc<Mutex<Receiver<()>>>,
    },
}

impl Content {
    /// Content whose reads are told to the receiver, and answered when the sender is dropped.
    pub fn held() -> (Content, Receiver<()>, Sender<()>) {
        let (arrivals, arrived) = channel();
        let (opener, gate) = channel();
        (Content::Held { arrivals, gate: Arc::new(Mutex::new(gate)) }, arrived, opener)
    }
}

enum Kind {
    Directory(Vec<(Vec<u8>, u64)>),
    File(Content),
    Symlink(Vec<u8>),
    Special,
}

struct Node {
    attributes: Attributes,
    parent: u64,
    kind: Kind,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// How often the kernel has asked.
#[derive(Default)]
pub struct Counts {
    pub lookups: Mutex<BTreeMap<Vec<u8>, u64>>,
    pub attributes: AtomicU64,
    pub listings: AtomicU64,
    pub symlinks: AtomicU64,
    pub reads: AtomicU64,
}

#[derive(Default)]
pub struct ToyTree {
    nodes: BTreeMap<u64, Node>,
    pub counts: Counts,
}

impl ToyTree {
    pub fn new() -> ToyTree {
        let mut tree = ToyTree::default();
        tree.insert(ROOT_INODE, Kind::Directory(Vec::new()), libc::S_IFDIR | 0o755, 0);
        tree
    }

    fn insert(&mut self, parent: u64, kind: Kind, mode: u32, size: u64) -> u64 {
        let inode = self.nodes.len() as u64 + 1;
        let attributes = Attributes {
            inode,
            mode,
            link_count: 1,
            uid: 0,
            gid: 0,
            size,
            blocks: size.div_ceil(512),
            device: Device::default(),
            modified: Timestamp { seconds: 1_000_000_000, nanoseconds: 0 },
        };
        self.nodes.insert(inode, Node { attributes, parent, kind, xattrs: BTreeMap::new() });
        inode
    }

    fn add(&mut self, parent: u64, name: &[u8], kind: Kind, mode: u32, size: u64) -> u64 {
        let inode = self.insert(parent, kind, mode, size);
        self.link(parent, name, inode);
        inode
    }

    /// One more name for an inode.
    pub fn link(&mut self, parent: u64, name: &[u8], inode: u64) {
        let Kind::Directory(names) = &mut self.node_mut(parent).kind else {
            panic!("{parent} is no directory")
        };
        names.push((name.to_vec(), inode));
    }

    pub fn directory(&mut self, parent: u64, name: &[u8]) -> u64 {
        self.add(parent, name, Kind::Directory(Vec::new()), libc::S_IFDIR | 0o755, 4096)
    }

    pub fn file(&mut self, parent: u64, name: &[u8], bytes: &[u8]) -> u64 {
        self.content(parent, name, bytes.len() as u64, Content::Bytes(bytes.to_vec()))
    }

    pub fn content(&mut self, parent: u64, name: &[u8], size: u64, content: Content) -> u64 {
        self.add(parent, name, Kind::File(content), libc::S_IFREG | 0o644, size)
    }

    pub fn symlink(&mut self, parent: u64, name: &[u8], target: &[u8]) -> u64 {
        self.add(parent, name, Kind::Symlink(target.to_vec()), libc::S_IFLNK | 0o777, target.len() as u64)
    }

    /// A device, fifo or socket, as `mode` says.
    pub fn special(&mut self, parent: u64, name: &[u8], mode: u32, device: Device) -> u64 {
        let inode = self.add(parent, name, Kind::Special, mode, 0);
        self.attributes_mut(inode).device = device;
        inode
    }

    pub fn attributes_mut(&mut self, inode: u64) -> &mut Attributes {
        &mut self.node_mut(inode).attributes
    }

    pub fn set_xattr(&mut self, inode: u64, name: &str, value: &[u8]) {
        self.node_mut(inode).xattrs.insert(name.as_bytes().to_vec(), value.to_vec());
    }

    fn node_mut(&mut self, inode: u64) -> &mut Node {
        self.nodes.get_mut(&inode).expect("an inode of this tree")
    }

    fn node(&self, inode: u64) -> Result<&Node, Errno> {
        self.nodes.get(&inode).ok_or(Errno::STALE)
    }

    pub fn lookups_of(&self, name: &str) -> u64 {
        self.counts.lookups.lock().expect("no test panics in it").get(name.as_bytes()).copied().unwrap_or(0)
    }

    pub fn reads(&self) -> u64 {
        self.counts.reads.load(Ordering::SeqCst)
    }
}

/// The byte at an offset of a generated file: differs from page to page and within one.
pub fn generated_byte(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8
}

pub fn generated(offset: u64, length: usize) -> Vec<u8> {
    (offset..).take(length).map(generated_byte).collect()
}

fn sparse(pieces: &[(u64, Vec<u8>)], offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    for (start, piece) in pieces {
        for (at, byte) in (*start..).zip(piece) {
            if (offset..offset + u64::from(length)).contains(&at) {
                bytes[(at - offset) as usize] = *byte;
            }
        }
    }
    bytes
}

impl Tree for ToyTree {
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes, Errno> {
        *self.counts.lookups.lock().expect("no panic").entry(name.to_vec()).or_insert(0) += 1;
        let Kind::Directory(names) = &self.node(parent)?.kind else { return Err(Errno::NOT_A_DIRECTORY) };
        let (_, inode) = names.iter().find(|(known, _)| known == name).ok_or(Errno::NOT_FOUND)?;
        Ok(self.node(*inode)?.attributes)
    }

    fn attributes(&self, inode: u64) -> Result<Attributes, Errno> {
        self.counts.attributes.fetch_add(1, Ordering::SeqCst);
        Ok(self.node(inode)?.attributes)
    }

    fn symlink_target(&self, inode: u64) -> Result<&[u8], Errno> {
        self.counts.symlinks.fetch_add(1, Ordering::SeqCst);
        let Kind::Symlink(target) = &self.node(inode)?.kind else { return Err(Errno::INVALID) };
        Ok(target)
    }

    fn read_directory(
        &self,
        inode: u64,
        start: u64,
        visit: &mut dyn FnMut(DirectoryEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        self.counts.listings.fetch_add(1, Ordering::SeqCst);
        let Kind::Directory(names) = &self.node(inode)?.kind else { return Err(Errno::NOT_A_DIRECTORY) };
        for (index, (name, inode)) in (0u64..).zip(names).skip(start as usize) {
            let mode = self.node(*inode)?.attributes.mode;
            if visit(DirectoryEntry { name, inode: *inode, mode, next: index + 1 }).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn parent(&self, inode: u64) -> Result<u64, Errno> {
        Ok(self.node(inode)?.parent)
    }

    fn xattr(&self, inode: u64, name: &[u8]) -> Result<&[u8], Errno> {
        Ok(self.node(inode)?.xattrs.get(name).ok_or(Errno::NO_DATA)?)
    }

    fn xattr_names(&self, inode: u64, visit: &mut dyn FnMut(&[u8])) -> Result<(), Errno> {
        self.node(inode)?.xattrs.keys().for_each(|name| visit(name));
        Ok(())
    }

    fn read(&self, inode: u64, offset: u64, length: u32, reply: ReadReply) {
        self.counts.reads.fetch_add(1, Ordering::SeqCst);
        let content = match self.node(inode).map(|node| &node.kind) {
            Ok(Kind::File(content)) => content,
            _ => return reply.error(Errno::INVALID),
        };
        match content {
            Content::Bytes(bytes) => reply.data(&bytes[offset as usize..][..length as usize]),
            Content::Sparse(pieces) => reply.data(&sparse(pieces, offset, length)),
            Content::Generated | Content::Whole(_) => reply.data(&generated(offset, length as usize)),
            Content::Later => {
                std::thread::spawn(move || reply.data(&generated(offset, length as usize)));
            }
            Content::Held { arrivals, gate } => {
                // The test may have ended by now.
                let _ = arrivals.send(());
                let gate = Arc::clone(gate);
                std::thread::spawn(move || {
                    let _opened = gate.lock().expect("no panic").recv();
                    reply.data(&generated(offset, length as usize));
                });
            }
            Content::Silent => drop(reply),
            Content::Short => reply.data(&vec![0; length as usize - 1]),
            Content::Broken => panic!("this file is meant to break"),
        }
    }

    fn whole_file(&self, inode: u64) -> Option<Arc<File>> {
        match &self.node(inode).ok()?.kind {
            Kind::File(Content::Whole(file)) => Some(Arc::clone(file)),
            _ => None,
        }
    }

    fn seek(&self, inode: u64, offset: u64, whence: DataOrHole) -> Result<u64, Errno> {
        let node = self.node(inode)?;
        let size = node.attributes.size;
        if offset >= size {
            return Err(Errno::NO_SUCH_OFFSET);
        }
        let pieces: Vec<(u64, u64)> = match &node.kind {
            Kind::File(Content::Sparse(pieces)) => {
                pieces.iter().map(|(start, piece)| (*start, start + piece.len() as u64)).collect()
            }
            _ => vec![(0, size)],
        };
        let inside = pieces.iter().find(|(start, end)| (*start..*end).contains(&offset));
        match (whence, inside) {
            (DataOrHole::Data, Some(_)) | (DataOrHole::Hole, None) => Ok(offset),
            (DataOrHole::Hole, Some((_, end))) => Ok(*end),
            (DataOrHole::Data, None) => {
                let later = pieces.iter().map(|(start, _)| *start).find(|start| *start > offset);
                later.ok_or(Errno::NO_SUCH_OFFSET)
            }
        }
    }

    fn statistics(&self) -> FilesystemStatistics {
        STATISTICS
    }
}
