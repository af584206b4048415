//! Reading tar archives of every kind, pushed in pieces of any size.
//!
//! ```text
//!            zero block        zero block
//!   Header ────────────▶ Header ────────▶ End        (all that follows the end is ignored)
//!     │ ▲
//!     │ └── Padding ◀── Metadata          x, g, L, K: about the next entry
//!     ├──▶ SparseBlock ⟲ ──┐              S: continuation blocks of the map
//!     ├──▶ SparseMap ⟲ ────┤              PAX 1.0: blocks of the map in front of the data
//!     └────────────────────┴──▶ entry() ──▶ Payload ──▶ Padding ──▶ Header
//! ```
//!
//! The decoded space of a tar is the archive itself: decoded offset = offset in the uncompressed archive.
//!
//! Rules, after Go's `archive/tar`, so that a layer means here what it means to containerd and umoci: what follows from each
//! header is worked out in the order header block, PAX records, GNU long names, sparse name; links, directories, devices and fifos
//! have no payload whatever their size says; the archive ends at two zero blocks, or where the bytes end after a whole entry;
//! an unknown type is an error, as it is to them. Read beyond what they do: contiguous files, every sparse encoding, and
//! attributes in libarchive's encoding. Global PAX headers are checked and ignored ([`pax::check_global`]).
//!
//! Only the layout of a header block is taken from `tar-core`: its parser (0.1) cuts off fractions of times, refuses times before
//! 1970, and stops silently at a record without a length.

mod fault;
mod header;
mod number;
mod pax;
mod plain;
mod raw_headers;
mod sparse;
mod write;

#[cfg(test)]
mod tests;

use std::ops::Range;

use tar_core::{
    EntryType, GNU_MAGIC, GNU_VERSION, GnuExtSparseHeader, GnuSparseHeader, HEADER_SIZE, Header, USTAR_MAGIC,
};
use zerocopy::FromBytes;

pub use self::fault::{TarError, TarFault};
use self::pax::Records;
pub use self::plain::{HeaderFields, plain_fields};
pub use self::raw_headers::{OwnerNames, RawHeaders, owner_names, raw_headers};
use self::sparse::{MapReader, PaxMap};
pub use self::write::{END_OF_ARCHIVE, entry_headers};
use super::entry::{Content, Entry, EntryKind, Timestamp};

/// Bytes of a block, of which an archive is made.
const BLOCK: usize = HEADER_SIZE;

/// What a [`TarSink`] fails with: passed on as it is.
pub type SinkError = Box<dyn std::error::Error + Send + Sync>;

/// Who takes what an archive holds.
pub trait TarSink {
    /// The next entry, in the order of the archive. If it is a regular file, the payload that follows is its data.
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError>;

    /// Data of the last entry, in pieces of any size, in order and without gaps. `decoded_offset` is that of the first byte.
    fn payload(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError>;

    /// What lies between payloads: headers, padding, the end of the archive and what follows it. With the payloads, that is every byte of the
    /// archive, in order.
    fn framing(&mut self, _decoded_offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }

    /// Where all headers of the entry that comes next lie in the archive, extended and global ones and sparse maps included: from
    /// the end of the entry before, padding included, to the data.
    fn headers(&mut self, _place: Range<u64>) -> Result<(), SinkError> {
        Ok(())
    }

    /// The archive itself, in pieces, each before what is in it.
    fn archive(&mut self, _bytes: &[u8]) -> Result<(), SinkError> {
        Ok(())
    }
}

/// Bounds on what one entry may claim, so that no archive fills the memory.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest name or link target in bytes.
    pub path: usize,
    /// Most bytes of all headers in front of one entry (PAX, GNU long names). Go allows as much for each of them.
    pub metadata: u64,
    /// Longest value of an extended attribute in bytes; Linux knows none longer than the default (`XATTR_SIZE_MAX`).
    pub xattr_value: usize,
    /// Most pieces of a sparse file.
    pub sparse_pieces: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { path: 64 << 10, metadata: 1 << 20, xattr_value: 64 << 10, sparse_pieces: 1_000_000 }
    }
}

impl Limits {
    fn check_sparse_numbers(&self, numbers: usize) -> Result<(), TarFault> {
        if numbers / 2 > self.sparse_pieces {
            return Err(TarFault::SparsePieces { limit: self.sparse_pieces });
        }
        Ok(())
    }
}

/// What PAX records say that were kept apart from their archive, as other indexes of it keep them.
#[derive(Debug)]
pub struct RecordedAttributes {
    /// Extended attributes; a later pair of one name wins.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether the entry is stored as a sparse file.
    pub is_sparse: bool,
}

impl RecordedAttributes {
    /// Of the records of one entry, keys and values.
    ///
    /// # Errors
    /// If a reader of the archive would refuse one of them.
    pub fn of(records: &[(Vec<u8>, Vec<u8>)], limits: &Limits) -> Result<RecordedAttributes, TarFault> {
        let mut read = Records::default();
        let mut is_sparse = false;
        for (key, value) in records {
            read.take(key, value, limits)?;
            is_sparse |= key.starts_with(b"GNU.sparse.");
        }
        Ok(RecordedAttributes { xattrs: read.take_xattrs(), is_sparse })
    }
}

/// Reads one archive. See the module for its states.
#[derive(Debug)]
pub struct TarReader {
    limits: Limits,
    /// Bytes taken so far.
    offset: u64,
    /// Where the header that is being worked on began, and the name of its entry.
    header_offset: u64,
    name: Vec<u8>,
    /// Where the last entry ended, and the headers of the next begin.
    entry_end: u64,
    state: State,
    /// The part of a block that was there at the end of a piece.
    block: [u8; BLOCK],
    filled: usize,
    /// What the headers before the next entry said.
    pending: Pending,
}

#[derive(Debug)]
enum State {
    Header { after_zero_block: bool },
    Metadata { kind: Metadata, bytes: Vec<u8>, remaining: u64, padding: u64 },
    SparseBlock { draft: Box<Draft>, map: Vec<u64> },
    SparseMap { draft: Box<Draft>, reader: MapReader },
    Payload { remaining: u64, padding: u64 },
    Padding { remaining: u64 },
    End,
}

const NEXT_HEADER: State = State::Header { after_zero_block: false };

#[derive(Clone, Copy, Debug)]
enum Metadata {
    Pax,
    GlobalPax,
    LongName,
    LongLink,
}

#[derive(Debug, Default)]
struct Pending {
    records: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    /// Bytes of all of them so far.
    bytes: u64,
}

/// A regular file whose data lies in `stored` bytes of the archive, not yet read; its extents are still unknown.
#[derive(Debug)]
struct Draft {
    entry: Entry,
    size: u64,
    stored: u64,
    padding: u64,
}

impl TarReader {
    /// A reader at the beginning of an archive.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            offset: 0,
            header_offset: 0,
            name: Vec::new(),
            entry_end: 0,
            state: NEXT_HEADER,
            block: [0; BLOCK],
            filled: 0,
            pending: Pending::default(),
        }
    }

    /// Takes the next bytes of the archive, any number of them.
    ///
    /// # Errors
    /// If the archive is malformed or beyond the limits, or the sink fails. The reader is of no use then.
    pub fn push(&mut self, mut bytes: &[u8], sink: &mut dyn TarSink) -> Result<(), TarError> {
        sink.archive(bytes).map_err(TarError::Sink)?;
        while !bytes.is_empty() {
            let taken = self.step(bytes, sink)?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Ends the archive.
    ///
    /// # Errors
    /// If the bytes ended in the middle of an entry. Missing padding and missing zero blocks are no error.
    pub fn finish(self) -> Result<(), TarError> {
        let announced = self.pending.bytes > 0;
        match self.state {
            State::Header { .. } if self.filled == 0 && !announced => Ok(()),
            State::Padding { .. } if !announced => Ok(()),
            // Headers that announce an entry which never comes mean nothing if the archive says that it is over.
            State::End => Ok(()),
            _ => Err(self.fault(TarFault::Truncated)),
        }
    }

    /// Works on the beginning of `bytes`, which are not empty, and says how many it took: at least one.
    fn step(&mut self, bytes: &[u8], sink: &mut dyn TarSink) -> Result<usize, TarError> {
        let available = bytes.len() as u64;
        match &mut self.state {
            State::End => {
                sink.framing(self.offset, bytes).map_err(TarError::Sink)?;
                self.took(bytes.len())
            }
            State::Payload { remaining, padding } => {
                // No more than the slice has, so it fits.
                let taken = available.min(*remaining) as usize;
                sink.payload(self.offset, &bytes[..taken]).map_err(TarError::Sink)?;
                *remaining -= taken as u64;
                if *remaining == 0 {
                    self.state = after_data(*padding);
                }
                self.took(taken)
            }
            State::Padding { remaining } => {
                let taken = available.min(*remaining) as usize;
                sink.framing(self.offset, &bytes[..taken]).map_err(TarError::Sink)?;
                *remaining -= taken as u64;
                if *remaining == 0 {
                    self.state = NEXT_HEADER;
                }
                self.took(taken)
            }
            State::Metadata { kind, bytes: collected, remaining, padding } => {
                let taken = available.min(*remaining) as usize;
                sink.framing(self.offset, &bytes[..taken]).map_err(TarError::Sink)?;
                collected.extend_from_slice(&bytes[..taken]);
                *remaining -= taken as u64;
                if *remaining == 0 {
                    let (kind, collected, padding) = (*kind, std::mem::take(collected), *padding);
                    self.metadata(kind, &collected).map_err(|fault| self.fault(fault))?;
                    self.state = after_data(padding);
                }
                self.took(taken)
            }
            State::Header { .. } | State::SparseBlock { .. } | State::SparseMap { .. } => {
                let taken = bytes.len().min(BLOCK - self.filled);
                sink.framing(self.offset, &bytes[..taken]).map_err(TarError::Sink)?;
                self.block[self.filled..self.filled + taken].copy_from_slice(&bytes[..taken]);
                self.filled += taken;
                self.took(taken)?;
                if self.filled == BLOCK {
                    self.filled = 0;
                    let entry = self.block().map_err(|fault| self.fault(fault))?;
                    if let Some(entry) = entry {
                        sink.headers(self.entry_end..self.offset).map_err(TarError::Sink)?;
                        let data = match &self.state {
                            State::Payload { remaining, padding } => remaining.saturating_add(*padding),
                            _ => 0,
                        };
                        self.entry_end = self.offset.saturating_add(data);
                        sink.entry(entry).map_err(TarError::Sink)?;
                    }
                }
                Ok(taken)
            }
        }
    }

    fn took(&mut self, count: usize) -> Result<usize, TarError> {
        self.offset = self.offset.checked_add(count as u64).ok_or_else(|| self.fault(TarFault::Size))?;
        Ok(count)
    }

    fn fault(&self, fault: TarFault) -> TarError {
        TarError::Archive { offset: self.header_offset, name: pax::excerpt(&self.name), fault }
    }

    /// Works on a whole block; gives an entry if that completes one.
    fn block(&mut self) -> Result<Option<Entry>, TarFault> {
        let block = self.block;
        match std::mem::replace(&mut self.state, NEXT_HEADER) {
            State::Header { after_zero_block } => {
                let is_zero = block.iter().all(|byte| *byte == 0);
                match (after_zero_block, is_zero) {
                    (true, true) => self.state = State::End,
                    (false, true) => self.state = State::Header { after_zero_block: true },
                    (true, false) => return Err(TarFault::LoneZeroBlock),
                    (false, false) => {
                        self.header_offset = self.offset - BLOCK as u64;
                        self.name.clear();
                        return self.header(Header::from_bytes(&block));
                    }
                }
                Ok(None)
            }
            State::SparseBlock { draft, mut map } => {
                let continuation =
                    GnuExtSparseHeader::ref_from_bytes(&block).map_err(|_| TarFault::Checksum)?;
                sparse::append_old_gnu(&continuation.sparse, &mut map, &self.limits)?;
                if continuation.isextended[0] != 0 {
                    self.state = State::SparseBlock { draft, map };
                    return Ok(None);
                }
                self.sparse_entry(*draft, &map).map(Some)
            }
            State::SparseMap { mut draft, mut reader } => {
                draft.stored = draft
                    .stored
                    .checked_sub(BLOCK as u64)
                    .ok_or(TarFault::Sparse("the map is longer than the stored data"))?;
                match reader.block(&block, &self.limits)? {
                    Some(map) => self.sparse_entry(*draft, &map).map(Some),
                    None => {
                        self.state = State::SparseMap { draft, reader };
                        Ok(None)
                    }
                }
            }
            // `step` collects blocks in the three states above only.
            state => {
                self.state = state;
                Ok(None)
            }
        }
    }

    fn header(&mut self, header: &Header) -> Result<Option<Entry>, TarFault> {
        header::check_sum(header)?;
        let fields = header.as_ustar();
        let stored = header::size_field(&fields.size)?;
        let metadata = match header.entry_type() {
            EntryType::XHeader => Metadata::Pax,
            EntryType::XGlobalHeader => Metadata::GlobalPax,
            EntryType::GnuLongName => Metadata::LongName,
            EntryType::GnuLongLink => Metadata::LongLink,
            _ => return self.entry_header(header, stored),
        };
        let limit = self.limits.metadata;
        let bytes = self.pending.bytes.checked_add(stored).filter(|bytes| *bytes <= limit);
        let bytes = bytes.ok_or(TarFault::Metadata { limit })?;
        if !matches!(metadata, Metadata::GlobalPax) {
            // An empty header counts too: it still announces an entry.
            self.pending.bytes = bytes.max(1);
        }
        if stored == 0 {
            self.metadata(metadata, &[])?;
            self.state = NEXT_HEADER;
        } else {
            let padding = padding_of(stored);
            self.state = State::Metadata { kind: metadata, bytes: Vec::new(), remaining: stored, padding };
        }
        Ok(None)
    }

    fn metadata(&mut self, kind: Metadata, bytes: &[u8]) -> Result<(), TarFault> {
        match kind {
            Metadata::Pax => self.pending.records = Some(Records::parse(bytes, &self.limits)?),
            Metadata::GlobalPax => pax::check_global(bytes)?,
            Metadata::LongName => self.pending.long_name = Some(number::header_string(bytes).to_vec()),
            Metadata::LongLink => self.pending.long_link = Some(number::header_string(bytes).to_vec()),
        }
        Ok(())
    }

    /// The header block of an entry: all that was said before it comes together here.
    fn entry_header(&mut self, header: &Header, stored: u64) -> Result<Option<Entry>, TarFault> {
        let pending = std::mem::take(&mut self.pending);
        let mut records = pending.records.unwrap_or_default();
        let fields = header.as_ustar();
        let named = |name: Option<Vec<u8>>| name.filter(|name| !name.is_empty());
        let path = named(pending.long_name).or(records.path.take()).unwrap_or_else(|| header::path(header));
        self.name.clone_from(&path);
        let target = named(pending.long_link)
            .or(records.link_path.take())
            .unwrap_or_else(|| number::header_string(&fields.linkname).to_vec());
        let modified = match records.modified {
            Some(modified) => modified,
            None => Timestamp { seconds: header::numeric_field("mtime", &fields.mtime)?, nanoseconds: 0 },
        };
        // Only the permission bits are the mode's; some writers put the file type there, too.
        let mode = (header::numeric_field("mode", &fields.mode)? & 0o7777) as u32;
        let mut entry = Entry {
            path,
            kind: EntryKind::Directory,
            mode,
            uid: header::owner("uid", records.uid, &fields.uid)?,
            gid: header::owner("gid", records.gid, &fields.gid)?,
            modified,
            xattrs: records.take_xattrs(),
        };
        let stored = records.size.unwrap_or(stored);
        let old_directory = fields.typeflag[0] == 0 && entry.path.ends_with(b"/");
        entry.kind = match header.entry_type() {
            EntryType::Regular if !old_directory => return self.regular(entry, stored, records, None),
            EntryType::Continuous => return self.regular(entry, stored, records, None),
            EntryType::GnuSparse => return self.regular(entry, stored, records, Some(header)),
            EntryType::Regular | EntryType::Directory => EntryKind::Directory,
            EntryType::Link => EntryKind::Hardlink { target },
            EntryType::Symlink => EntryKind::Symlink { target },
            EntryType::Char => {
                let (major, minor) = header::device_numbers(header)?;
                EntryKind::CharacterDevice { major, minor }
            }
            EntryType::Block => {
                let (major, minor) = header::device_numbers(header)?;
                EntryKind::BlockDevice { major, minor }
            }
            EntryType::Fifo => EntryKind::Fifo,
            other => return Err(TarFault::Type(other.to_byte())),
        };
        self.checked(entry).map(Some)
    }

    fn regular(
        &mut self,
        mut entry: Entry,
        stored: u64,
        mut records: Records,
        old_gnu: Option<&Header>,
    ) -> Result<Option<Entry>, TarFault> {
        let padding = padding_of(stored);
        let pax_map = sparse::announced(&mut records.sparse)?;
        let draft = |entry, size| Box::new(Draft { entry, size, stored, padding });
        if let Some(pax_map) = pax_map {
            if let Some(name) = records.sparse.name {
                self.name.clone_from(&name);
                entry.path = name;
            }
            let draft = draft(entry, records.sparse.real_size.unwrap_or(stored));
            return match pax_map {
                PaxMap::Records(map) => self.sparse_entry(*draft, &map).map(Some),
                PaxMap::Data => {
                    self.state = State::SparseMap { draft, reader: MapReader::default() };
                    Ok(None)
                }
            };
        }
        let Some(header) = old_gnu else {
            entry.kind = EntryKind::Regular { size: stored, content: Content::Contiguous(self.offset) };
            self.state = data(stored, padding);
            return self.checked(entry).map(Some);
        };
        if !header::is_gnu(header) {
            return Err(TarFault::Type(b'S'));
        }
        let fields = header.as_gnu();
        let draft = draft(entry, header::size_field(&fields.realsize)?);
        let mut map = Vec::new();
        sparse::append_old_gnu(&fields.sparse, &mut map, &self.limits)?;
        if fields.isextended[0] == 0 {
            return self.sparse_entry(*draft, &map).map(Some);
        }
        self.state = State::SparseBlock { draft, map };
        Ok(None)
    }

    /// A sparse file whose map is known and whose data comes next.
    fn sparse_entry(&mut self, draft: Draft, map: &[u64]) -> Result<Entry, TarFault> {
        let Draft { mut entry, size, stored, padding } = draft;
        entry.kind = EntryKind::Regular { size, content: sparse::content(map, size, stored, self.offset)? };
        self.state = data(stored, padding);
        self.checked(entry)
    }

    fn checked(&self, entry: Entry) -> Result<Entry, TarFault> {
        let target = match &entry.kind {
            EntryKind::Symlink { target } | EntryKind::Hardlink { target } => target.len(),
            _ => 0,
        };
        let (length, limit) = (entry.path.len().max(target), self.limits.path);
        if length > limit { Err(TarFault::PathTooLong { length, limit }) } else { Ok(entry) }
    }
}

fn data(stored: u64, padding: u64) -> State {
    if stored == 0 { NEXT_HEADER } else { State::Payload { remaining: stored, padding } }
}

fn after_data(padding: u64) -> State {
    if padding == 0 { NEXT_HEADER } else { State::Padding { remaining: padding } }
}

fn padding_of(stored: u64) -> u64 {
    stored.wrapping_neg() % BLOCK as u64
}
