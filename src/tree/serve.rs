//! A merged tree as the kernel's side wants it.
//!
//! Metadata is answered from the mapped table alone. A read goes to the layer that holds the file: present bytes are read and
//! answered on the caller's thread; for missing ones the fetcher is asked, and answers when they are there. Inode numbers are
//! the table's, counted from 1, so they are a pure function of the image.
//!
//! The kernel keeps what it was told, so most pages of the table are looked at once. After some ten thousand inodes all are let go of:
//! a walk over a million files leaves this process no larger than one over a thousand.

use std::cell::RefCell;
use std::fs::File;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use peelfs_fuse::{
    Attributes, DataOrHole, Device, DirectoryEntry, Errno, FilesystemStatistics, ReadReply, Timestamp, Tree,
};

use super::inode_set::InodeSet;
use super::program::is_program;
use super::touches::Touches;
use crate::error::chain;
use crate::fetch::{FetchError, LayerContent};
use crate::meter::{self, Count};
use crate::table::Table;
use crate::table::format::{InodeRecord, NONE, inode_flags};

/// A merged tree and the layers that it was merged from.
pub struct MergedTree {
    name: String,
    table: Table,
    layers: Vec<Arc<LayerContent>>,
    /// Inodes that were shown since the table's pages were last let go of.
    shown: AtomicU64,
    /// Files that were proved since the tree was opened, if any layer has files that must be.
    proved: Option<Arc<InodeSet>>,
    /// If what is read is noted.
    touches: Option<Touches>,
    programs: OnceLock<Arc<Programs>>,
}

/// Tells of each program, once, that its beginning is read.
struct Programs {
    told: InodeSet,
    tell: Box<dyn Fn(u64) + Send + Sync>,
}

impl Programs {
    fn begun(&self, inode: u64) {
        if !self.told.contains(inode) && self.told.insert(inode) {
            (self.tell)(inode);
        }
    }
}

/// How many inodes are shown before the table's pages are let go of; they fill some 6 MB of it. To map as much again takes less than
/// half a millisecond, to list as many inodes many times as long.
const RELEASE_AFTER: u64 = 1 << 16;

/// Some bytes of a file: a hole, or a part of its layer's decoded space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Zeros, of which nothing is stored.
    Hole {
        /// How many.
        length: u64,
    },
    /// Bytes of the layer that holds the file's content.
    Data {
        /// The first, in the layer's decoded space.
        decoded_offset: u64,
        /// How many.
        length: u64,
    },
}

thread_local! {
    /// Where a serving thread reads into: a read has at most 1 MiB, and a fresh buffer would have to be zeroed each time.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl MergedTree {
    /// The tree of that table over these layers, the lowest first, as when it was merged; `name` is the image's, for the log.
    pub fn new(name: String, table: Table, layers: Vec<Arc<LayerContent>>) -> MergedTree {
        let must_be_proved = layers.iter().any(|layer| layer.must_be_proved());
        // Inode numbers are counted from 1.
        let proved = must_be_proved.then(|| Arc::new(InodeSet::none(table.inodes().len() as u64)));
        let (shown, programs) = (AtomicU64::new(0), OnceLock::new());
        MergedTree { name, table, layers, shown, proved, touches: None, programs }
    }

    /// From now on, `tell` is called with the kernel's number of each file whose beginning is read and which may be a program, on a thread that
    /// must not be held up. To be called once.
    pub fn tell_of_programs(&self, tell: impl Fn(u64) + Send + Sync + 'static) {
        let told = InodeSet::none(self.table.inodes().len() as u64);
        let _ = self.programs.set(Arc::new(Programs { told, tell: Box::new(tell) }));
    }

    /// These bytes of a regular file, which lie within it, if they are all here. They do not count as read.
    pub fn read_here(&self, record: &InodeRecord, part: Range<u64>) -> Option<Vec<u8>> {
        let layer = self.layer(record)?;
        let mut bytes = vec![0; usize::try_from(part.end.checked_sub(part.start)?).ok()?];
        let (mut rest, mut all_here) = (&mut bytes[..], true);
        segments(layer, record, part, |segment| {
            let (Segment::Hole { length } | Segment::Data { length, .. }) = segment;
            let taken = std::mem::take(&mut rest);
            let Some((piece, after)) = taken.split_at_mut_checked(length as usize) else {
                all_here = false;
                return;
            };
            if let Segment::Data { decoded_offset, .. } = segment {
                all_here &= matches!(layer.peek(decoded_offset, piece), Ok(true));
            }
            rest = after;
        });
        all_here.then_some(bytes)
    }

    /// The same tree; from now on it is noted which of its files are read.
    pub fn noting_touches(self) -> MergedTree {
        let touches = Some(Touches::none(self.table.inodes().len() as u64));
        MergedTree { touches, ..self }
    }

    /// The files that were read, if that is noted.
    pub fn touches(&self) -> Option<&Touches> {
        self.touches.as_ref()
    }

    /// The merged inode table.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The layers, the lowest first.
    pub fn layers(&self) -> &[Arc<LayerContent>] {
        &self.layers
    }

    /// Counts inodes that were shown to the kernel.
    fn count_shown(&self, inodes: u64) {
        if self.shown.fetch_add(inodes, Ordering::Relaxed) >= RELEASE_AFTER {
            self.shown.store(0, Ordering::Relaxed);
            self.table.release();
        }
    }

    fn inode(&self, inode: u64) -> Result<&InodeRecord, Errno> {
        let number = inode.checked_sub(1).and_then(|number| u32::try_from(number).ok());
        number.and_then(|number| self.table.inode(number)).ok_or(Errno::STALE)
    }

    fn directory(&self, inode: u64) -> Result<&InodeRecord, Errno> {
        let record = self.inode(inode)?;
        if kind(record) == libc::S_IFDIR { Ok(record) } else { Err(Errno::NOT_A_DIRECTORY) }
    }

    fn attributes_of(&self, inode: u64, record: &InodeRecord) -> Attributes {
        let device = match kind(record) {
            libc::S_IFCHR | libc::S_IFBLK => {
                Device { major: (record.content.get() >> 32) as u32, minor: record.content.get() as u32 }
            }
            _ => Device::default(),
        };
        Attributes {
            inode,
            mode: record.mode.get(),
            link_count: record.link_count.get(),
            uid: record.uid.get(),
            gid: record.gid.get(),
            size: record.size.get(),
            blocks: self.data_bytes(record).div_ceil(512),
            device,
            modified: Timestamp {
                seconds: record.modified_seconds.get(),
                nanoseconds: record.modified_nanoseconds.get(),
            },
        }
    }

    /// Bytes of a regular file that are not holes.
    fn data_bytes(&self, record: &InodeRecord) -> u64 {
        if kind(record) != libc::S_IFREG || record.flags.get() & inode_flags::ALL_ZEROS != 0 {
            return 0;
        }
        match self.layer(record) {
            Some(layer) if record.count.get() > 0 => {
                layer.table().extents(record).iter().map(|extent| extent.length.get()).sum()
            }
            _ => record.size.get(),
        }
    }

    /// The layer that holds an inode's content, and in whose table its extents are.
    pub fn layer(&self, record: &InodeRecord) -> Option<&Arc<LayerContent>> {
        self.layers.get(usize::from(record.layer.get()))
    }

    /// The parts of the decoded space of its layer where a regular file's bytes lie.
    pub fn decoded_ranges(&self, record: &InodeRecord) -> Vec<Range<u64>> {
        self.decoded_ranges_of(record, 0..record.size.get())
    }

    /// The same of some of its bytes, which are within its size.
    pub fn decoded_ranges_of(&self, record: &InodeRecord, part: Range<u64>) -> Vec<Range<u64>> {
        let mut ranges = Vec::new();
        if let Some(layer) = self.layer(record) {
            segments(layer, record, part, |segment| {
                if let Segment::Data { decoded_offset, length } = segment {
                    ranges.push(decoded_offset..decoded_offset.saturating_add(length));
                }
            });
        }
        ranges
    }

    /// All of a regular file, from its first byte to its last.
    pub fn segments(&self, record: &InodeRecord) -> Vec<Segment> {
        let mut found = Vec::new();
        if let Some(layer) = self.layer(record) {
            segments(layer, record, 0..record.size.get(), |segment| found.push(segment));
        }
        found
    }

    /// Where it is noted that a file was proved, if it must be and was not yet.
    fn unproved(&self, layer: &LayerContent, inode: u64, record: &InodeRecord) -> Option<&Arc<InodeSet>> {
        let proved = self.proved.as_ref()?;
        let must_be = layer.must_be_proved() && record.size.get() > 0 && !proved.contains(inode);
        must_be.then_some(proved)
    }

    /// Answers if all is here, and gives the reply back if not. Of a file's beginning, `begins` is told if it is that of a program.
    fn read_segments(
        layer: &LayerContent,
        segments: &[Segment],
        begins: Option<(&Programs, u64)>,
        reply: ReadReply,
    ) -> Option<ReadReply> {
        BUFFER.with_borrow_mut(|buffer| {
            let length = reply.length() as usize;
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let mut rest = &mut buffer[..length];
            for segment in segments {
                let (Segment::Hole { length } | Segment::Data { length, .. }) = *segment;
                let Some((part, after)) = rest.split_at_mut_checked(length as usize) else {
                    reply.error(Errno::IO);
                    return None;
                };
                match segment {
                    Segment::Hole { .. } => part.fill(0),
                    Segment::Data { decoded_offset, .. } => match layer.read(*decoded_offset, part) {
                        Ok(true) => {}
                        Ok(false) => return Some(reply),
                        Err(error) => {
                            tracing::error!(layer = %layer.layer(), %error, "cannot read a data file of the store");
                            meter::count(Count::ErrorsStore, 1);
                            reply.error(Errno::IO);
                            return None;
                        }
                    },
                }
                rest = after;
            }
            if let Some((programs, inode)) = begins.filter(|_| is_program(&buffer[..length])) {
                programs.begun(inode);
            }
            meter::count(Count::ReadBytes, length as u64);
            reply.data(&buffer[..length]);
            None
        })
    }
}

/// A read of which something is missing.
struct Read {
    image: String,
    inode: u64,
    offset: u64,
    length: u32,
    segments: Vec<Segment>,
    /// If it is of the file's beginning.
    programs: Option<Arc<Programs>>,
    begun: Instant,
}

/// How often one read fetches what it needs: what was fetched may be evicted before it could be read.
const FETCHES: u32 = 4;

impl Read {
    /// Answers when the file, whose content begins at that byte of the decoded space, is proved and all is here.
    fn prove(self, layer: &Arc<LayerContent>, file: u64, proved: Arc<InodeSet>, reply: ReadReply) {
        // On its way while the headers are, if they are not in the same chunk.
        layer.fetch(self.bounds(), |_| {});
        let content = layer.clone();
        layer.prove_file(file, move |result| match result {
            Ok(()) => {
                proved.insert(self.inode);
                match MergedTree::read_segments(&content, &self.segments, self.begins(), reply) {
                    Some(reply) => self.fetch(&content, reply, FETCHES),
                    None => meter::read_waited(self.begun.elapsed()),
                }
            }
            Err(error) => self.failed(&content, &error, reply),
        });
    }

    fn begins(&self) -> Option<(&Programs, u64)> {
        self.programs.as_deref().map(|programs| (programs, self.inode))
    }

    fn failed(&self, layer: &LayerContent, error: &FetchError, reply: ReadReply) {
        meter::count(error.count(), 1);
        self.answer_failure(layer, &chain(error), reply);
    }

    fn answer_failure(&self, layer: &LayerContent, error: &str, reply: ReadReply) {
        let Read { image, inode, offset, length, .. } = self;
        tracing::error!(%image, layer = %layer.layer(), inode, offset, length, error, "a read failed");
        reply.error(Errno::IO)
    }

    /// The part of the decoded space that holds all pieces of it.
    fn bounds(&self) -> Range<u64> {
        let data = self.segments.iter().filter_map(|segment| match segment {
            Segment::Data { decoded_offset, length } => {
                Some(*decoded_offset..decoded_offset.saturating_add(*length))
            }
            Segment::Hole { .. } => None,
        });
        // The pieces of one read lie close together; what is between them in the decoded space is this file's too.
        data.reduce(|all, one| all.start.min(one.start)..all.end.max(one.end)).unwrap_or_default()
    }

    /// Answers when all is here; after `fetches` attempts, with an error.
    fn fetch(self, layer: &Arc<LayerContent>, reply: ReadReply, fetches: u32) {
        let content = layer.clone();
        layer.fetch(self.bounds(), move |result| match result {
            Ok(()) => match MergedTree::read_segments(&content, &self.segments, self.begins(), reply) {
                None => meter::read_waited(self.begun.elapsed()),
                Some(reply) if fetches > 1 => self.fetch(&content, reply, fetches - 1),
                Some(reply) => {
                    meter::count(Count::ErrorsOther, 1);
                    self.answer_failure(&content, "it was evicted again and again", reply);
                }
            },
            Err(error) => self.failed(&content, &error, reply),
        });
    }
}

fn kind(record: &InodeRecord) -> u32 {
    record.mode.get() & libc::S_IFMT
}

/// Shows the segments of `wanted`, a range within a regular file's size, in order.
fn segments(layer: &LayerContent, record: &InodeRecord, wanted: Range<u64>, mut visit: impl FnMut(Segment)) {
    if wanted.is_empty() {
        return;
    }
    if record.flags.get() & inode_flags::ALL_ZEROS != 0 {
        return visit(Segment::Hole { length: wanted.end - wanted.start });
    }
    if record.count.get() == 0 {
        let decoded_offset = record.content.get().saturating_add(wanted.start);
        return visit(Segment::Data { decoded_offset, length: wanted.end - wanted.start });
    }
    let extents = layer.table().extents(record);
    let first = extents.partition_point(|extent| {
        extent.file_offset.get().saturating_add(extent.length.get()) <= wanted.start
    });
    let mut position = wanted.start;
    for extent in &extents[first..] {
        let start = extent.file_offset.get().max(position);
        let end = extent.file_offset.get().saturating_add(extent.length.get()).min(wanted.end);
        if start >= wanted.end {
            break;
        }
        if start > position {
            visit(Segment::Hole { length: start - position });
        }
        let decoded_offset = extent.decoded_offset.get().saturating_add(start - extent.file_offset.get());
        visit(Segment::Data { decoded_offset, length: end.saturating_sub(start) });
        position = end.max(start);
    }
    if position < wanted.end {
        visit(Segment::Hole { length: wanted.end - position });
    }
}

impl Tree for MergedTree {
    fn lookup(&self, parent: u64, name: &[u8]) -> Result<Attributes, Errno> {
        self.count_shown(1);
        let entry = self.table.find(self.directory(parent)?, name).ok_or(Errno::NOT_FOUND)?;
        self.attributes(u64::from(entry.inode.get()) + 1)
    }

    fn attributes(&self, inode: u64) -> Result<Attributes, Errno> {
        Ok(self.attributes_of(inode, self.inode(inode)?))
    }

    fn symlink_target(&self, inode: u64) -> Result<&[u8], Errno> {
        let record = self.inode(inode)?;
        if kind(record) == libc::S_IFLNK { Ok(self.table.target(record)) } else { Err(Errno::INVALID) }
    }

    fn read_directory(
        &self,
        inode: u64,
        start: u64,
        visit: &mut dyn FnMut(DirectoryEntry<'_>) -> ControlFlow<()>,
    ) -> Result<(), Errno> {
        let entries = self.table.directory(self.directory(inode)?);
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let mut shown_here = 0;
        for (place, entry) in entries.iter().enumerate().skip(start) {
            let shown = DirectoryEntry {
                name: self.table.name(entry),
                inode: u64::from(entry.inode.get()) + 1,
                mode: u32::from(entry.kind.get()) << 12,
                next: place as u64 + 1,
            };
            if visit(shown).is_break() {
                break;
            }
            shown_here += 1;
        }
        self.count_shown(shown_here);
        Ok(())
    }

    fn parent(&self, inode: u64) -> Result<u64, Errno> {
        match self.directory(inode)?.parent.get() {
            NONE => Err(Errno::IO),
            parent => Ok(u64::from(parent) + 1),
        }
    }

    fn xattr(&self, inode: u64, name: &[u8]) -> Result<&[u8], Errno> {
        let mut pairs = self.table.xattrs(self.inode(inode)?);
        pairs.find(|(known, _)| *known == name).map(|(_, value)| value).ok_or(Errno::NO_DATA)
    }

    fn xattr_names(&self, inode: u64, visit: &mut dyn FnMut(&[u8])) -> Result<(), Errno> {
        self.table.xattrs(self.inode(inode)?).for_each(|(name, _)| visit(name));
        Ok(())
    }

    fn read(&self, inode: u64, offset: u64, length: u32, reply: ReadReply) {
        let record = match self.inode(inode) {
            Ok(record) if kind(record) == libc::S_IFREG => record,
            Ok(_) => return reply.error(Errno::INVALID),
            Err(errno) => return reply.error(errno),
        };
        let Some(layer) = self.layer(record) else { return reply.error(Errno::IO) };
        let end = offset.saturating_add(length.into());
        if end > record.size.get() {
            return reply.error(Errno::INVALID);
        }
        if let Some(touches) = &self.touches {
            touches.read(inode, record.size.get(), offset..end);
        }
        let mut wanted = Vec::with_capacity(1);
        segments(layer, record, offset..end, |segment| wanted.push(segment));
        let programs = self.programs.get().filter(|_| offset == 0);
        let read = |segments| {
            let (image, programs) = (self.name.clone(), programs.cloned());
            Read { image, inode, offset, length, segments, programs, begun: Instant::now() }
        };
        if let Some(proved) = self.unproved(layer, inode, record) {
            return read(wanted).prove(layer, record.content.get(), proved.clone(), reply);
        }
        let begins = programs.map(|programs| (&**programs, inode));
        let Some(reply) = Self::read_segments(layer, &wanted, begins, reply) else {
            return meter::count(Count::ReadsHere, 1);
        };
        read(wanted).fetch(layer, reply, FETCHES);
    }

    fn whole_file(&self, inode: u64) -> Option<Arc<File>> {
        let record = self.inode(inode).ok()?;
        let contiguous = kind(record) == libc::S_IFREG
            && record.count.get() == 0
            && record.flags.get() & inode_flags::ALL_ZEROS == 0;
        if !contiguous {
            return None;
        }
        let layer = self.layer(record)?;
        if let Some(proved) = self.unproved(layer, inode, record) {
            match layer.prove_now(record.content.get()) {
                Ok(true) => {
                    proved.insert(inode);
                }
                // Its first read proves it, or says why it cannot.
                Ok(false) | Err(_) => return None,
            }
        }
        let file = layer.whole_file_to_pass_through(record.content.get(), record.size.get())?;
        if let Some(programs) = self.programs.get() {
            // Its beginning will not be seen.
            programs.begun(inode);
        }
        if let Some(touches) = &self.touches {
            touches.handed_over(inode, record.size.get());
        }
        Some(file)
    }

    fn seek(&self, inode: u64, offset: u64, whence: DataOrHole) -> Result<u64, Errno> {
        let record = self.inode(inode)?;
        let size = record.size.get();
        if kind(record) != libc::S_IFREG || offset >= size {
            return Err(Errno::NO_SUCH_OFFSET);
        }
        let layer = self.layer(record).ok_or(Errno::IO)?;
        let (mut position, mut found) = (offset, None);
        segments(layer, record, offset..size, |segment| {
            let (length, is_data) = match segment {
                Segment::Hole { length } => (length, false),
                Segment::Data { length, .. } => (length, true),
            };
            if found.is_none() && is_data == (whence == DataOrHole::Data) {
                found = Some(position);
            }
            position += length;
        });
        match whence {
            DataOrHole::Data => found.ok_or(Errno::NO_SUCH_OFFSET),
            DataOrHole::Hole => Ok(found.unwrap_or(size)),
        }
    }

    fn statistics(&self) -> FilesystemStatistics {
        let block_size = 4096;
        FilesystemStatistics {
            blocks: self.table.content_bytes().div_ceil(block_size),
            blocks_available: 0,
            files: self.table.inodes().len() as u64,
            block_size: block_size as u32,
            name_length: 255,
        }
    }
}
