//! Layers described entry by entry, and their tar bytes. The headers are written here by hand, from the formats' definitions
//! (POSIX pax, GNU tar manual "Basic Tar Format" and "Storing Sparse Files"), so that no reader under test judges itself.

use super::content::Content;
use std::fmt;
use std::io::{self, Write};

const BLOCK: u64 = 512;
/// Largest number that eight octal digits with their NUL can hold.
const SEVEN_OCTAL_DIGITS: u64 = 0o7777777;
const ELEVEN_OCTAL_DIGITS: u64 = 0o77777777777;

/// One entry of a layer.
#[derive(Clone, PartialEq, Eq)]
pub struct TestEntry {
    /// As written into the archive.
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970, negative before, and nanoseconds within that second.
    pub modified: (i64, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub dialect: Dialect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    File(Content),
    /// A file whose content is [`Content::Sparse`].
    SparseFile(Content, SparseEncoding),
    Directory,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// How what does not fit the classic header is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Dialect {
    /// PAX records.
    #[default]
    Pax,
    /// GNU: 'L' and 'K' entries, numbers in base 256; PAX records only for what GNU cannot say (xattrs, nanoseconds).
    Gnu,
}

/// How a sparse file's map is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SparseEncoding {
    /// Type 'S', the map in the header and in continuation headers.
    OldGnu,
    Pax00,
    Pax01,
    Pax10,
}

/// One line, so that a failing case can be read.
impl fmt::Debug for TestEntry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.escape_ascii();
        match &self.kind {
            Kind::File(content) => write!(formatter, "{path} file of {}", content.length())?,
            Kind::SparseFile(content, encoding) => {
                write!(formatter, "{path} {encoding:?} sparse file of {}", content.length())?;
            }
            Kind::Directory => write!(formatter, "{path}/")?,
            Kind::Symlink(target) => write!(formatter, "{path} -> {}", target.escape_ascii())?,
            Kind::Hardlink(target) => write!(formatter, "{path} = {}", target.escape_ascii())?,
            kind => write!(formatter, "{path} {kind:?}")?,
        }
        write!(formatter, " ({:o} {}:{} {:?}", self.mode, self.uid, self.gid, self.modified)?;
        for (name, value) in &self.xattrs {
            write!(formatter, " {}={}", name.escape_ascii(), value.escape_ascii())?;
        }
        write!(formatter, ")")
    }
}

impl TestEntry {
    fn new(path: impl AsRef<[u8]>, kind: Kind, mode: u32) -> TestEntry {
        TestEntry {
            path: path.as_ref().to_vec(),
            kind,
            mode,
            uid: 0,
            gid: 0,
            modified: (1_600_000_000, 0),
            xattrs: Vec::new(),
            dialect: Dialect::Pax,
        }
    }
    pub fn file(path: impl AsRef<[u8]>, content: impl Into<Content>) -> TestEntry {
        TestEntry::new(path, Kind::File(content.into()), 0o644)
    }
    pub fn sparse(path: impl AsRef<[u8]>, content: Content, encoding: SparseEncoding) -> TestEntry {
        assert!(matches!(content, Content::Sparse { .. }));
        TestEntry::new(path, Kind::SparseFile(content, encoding), 0o644)
    }
    pub fn directory(path: impl AsRef<[u8]>) -> TestEntry {
        TestEntry::new(path, Kind::Directory, 0o755)
    }
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> TestEntry {
        TestEntry::new(path, Kind::Symlink(target.as_ref().to_vec()), 0o777)
    }
    pub fn hardlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> TestEntry {
        TestEntry::new(path, Kind::Hardlink(target.as_ref().to_vec()), 0o644)
    }
    pub fn fifo(path: impl AsRef<[u8]>) -> TestEntry {
        TestEntry::new(path, Kind::Fifo, 0o644)
    }
    pub fn character_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> TestEntry {
        TestEntry::new(path, Kind::CharacterDevice(major, minor), 0o600)
    }
    pub fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> TestEntry {
        TestEntry::new(path, Kind::BlockDevice(major, minor), 0o660)
    }
    /// The marker that hides `path` of lower layers.
    pub fn whiteout(path: impl AsRef<[u8]>) -> TestEntry {
        let path = path.as_ref();
        let split = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        TestEntry::file([&path[..split], b".wh.", &path[split..]].concat(), Content::empty())
    }
    /// The marker that hides all that lower layers have in `directory` (`""` is the root).
    pub fn opaque(directory: impl AsRef<[u8]>) -> TestEntry {
        let mut path = directory.as_ref().to_vec();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(b".wh..wh..opq");
        TestEntry::file(path, Content::empty())
    }
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }
    pub fn modified(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.modified = (seconds, nanoseconds);
        self
    }
    pub fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.as_bytes().to_vec(), value.as_ref().to_vec()));
        self
    }
    pub fn gnu(mut self) -> Self {
        self.dialect = Dialect::Gnu;
        self
    }

    pub fn content(&self) -> Option<&Content> {
        match &self.kind {
            Kind::File(content) | Kind::SparseFile(content, _) => Some(content),
            _ => None,
        }
    }
}

/// Writes a whole archive, end marker included.
pub fn write_tar(entries: &[TestEntry], out: &mut dyn Write) -> io::Result<()> {
    for entry in entries {
        write_entry(entry, out)?;
    }
    out.write_all(&[0; 1024])
}

/// The bytes of a whole archive.
pub fn tar_bytes(entries: &[TestEntry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_tar(entries, &mut bytes).expect("writing to memory");
    bytes
}

fn write_entry(entry: &TestEntry, out: &mut dyn Write) -> io::Result<()> {
    out.write_all(&entry_headers(entry))?;
    write_stored(entry, out)
}

/// What stands in the archive before an entry's stored bytes, a sparse map of PAX 1.0 excepted.
pub fn entry_headers(entry: &TestEntry) -> Vec<u8> {
    let mut header = Header::new(entry);
    let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    let mut before = Vec::new();
    let mut after = Vec::new();

    if entry.modified.1 != 0 || (entry.modified.0 < 0 && entry.dialect == Dialect::Pax) {
        records.push((b"mtime".to_vec(), decimal_time(entry.modified).into_bytes()));
    }
    for (name, value) in &entry.xattrs {
        records.push(([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone()));
    }
    let mut stored_name = entry.path.clone();
    if let Kind::Directory = entry.kind
        && !stored_name.ends_with(b"/")
    {
        stored_name.push(b'/');
    }
    if let Kind::SparseFile(content, encoding) = &entry.kind {
        let map = sparse_map(content);
        let text = |number: u64| number.to_string().into_bytes();
        let mut record = |name: &str, value: Vec<u8>| records.push((name.as_bytes().to_vec(), value));
        match encoding {
            SparseEncoding::OldGnu => after = header.old_gnu_sparse(content.length(), &map),
            SparseEncoding::Pax00 => {
                record("GNU.sparse.size", text(content.length()));
                record("GNU.sparse.numblocks", text(map.len() as u64));
                for (offset, length) in &map {
                    record("GNU.sparse.offset", text(*offset));
                    record("GNU.sparse.numbytes", text(*length));
                }
            }
            SparseEncoding::Pax01 => {
                record("GNU.sparse.size", text(content.length()));
                record("GNU.sparse.numblocks", text(map.len() as u64));
                let list: Vec<String> =
                    map.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
                record("GNU.sparse.map", list.join(",").into_bytes());
                record("GNU.sparse.name", stored_name.clone());
            }
            SparseEncoding::Pax10 => {
                record("GNU.sparse.major", text(1));
                record("GNU.sparse.minor", text(0));
                record("GNU.sparse.name", stored_name.clone());
                record("GNU.sparse.realsize", text(content.length()));
            }
        }
        if matches!(encoding, SparseEncoding::Pax01 | SparseEncoding::Pax10) {
            stored_name = b"GNUSparseFile.0/placeholder".to_vec();
        }
    }
    let target = match &entry.kind {
        Kind::Symlink(target) | Kind::Hardlink(target) => target.as_slice(),
        _ => b"",
    };
    for (field, value, gnu_type, record) in
        [(0, stored_name.as_slice(), b'L', "path"), (157, target, b'K', "linkpath")]
    {
        header.bytes[field..field + value.len().min(100)].copy_from_slice(&value[..value.len().min(100)]);
        if value.len() > 100 || (entry.dialect == Dialect::Pax && !value.is_ascii()) {
            match entry.dialect {
                Dialect::Pax => records.push((record.as_bytes().to_vec(), value.to_vec())),
                Dialect::Gnu => before.extend_from_slice(&gnu_long(gnu_type, value)),
            }
        }
    }
    for (record, number, limit) in [
        ("uid", u64::from(entry.uid), SEVEN_OCTAL_DIGITS),
        ("gid", u64::from(entry.gid), SEVEN_OCTAL_DIGITS),
        ("size", stored_length(entry), ELEVEN_OCTAL_DIGITS),
    ] {
        if number > limit && entry.dialect == Dialect::Pax {
            records.push((record.as_bytes().to_vec(), number.to_string().into_bytes()));
        }
    }
    let mut bytes = if records.is_empty() { Vec::new() } else { pax_entry(&records) };
    bytes.extend_from_slice(&before);
    bytes.extend_from_slice(&header.finish());
    bytes.extend_from_slice(&after);
    bytes
}

/// The bytes behind the header and their padding.
fn write_stored(entry: &TestEntry, out: &mut dyn Write) -> io::Result<()> {
    match &entry.kind {
        Kind::File(content) => content.write_to(out)?,
        Kind::SparseFile(content, encoding) => {
            if *encoding == SparseEncoding::Pax10 {
                out.write_all(&pax10_map(content))?;
            }
            for (_, piece) in pieces(content) {
                piece.write_to(out)?;
            }
        }
        _ => {}
    }
    out.write_all(&vec![0; padding(stored_length(entry))])
}

/// Zeros that follow this many bytes up to the next block.
pub fn padding(length: u64) -> usize {
    ((BLOCK - length % BLOCK) % BLOCK) as usize
}

fn stored_length(entry: &TestEntry) -> u64 {
    match &entry.kind {
        Kind::File(content) => content.length(),
        Kind::SparseFile(content, encoding) => {
            let data: u64 = pieces(content).iter().map(|(_, piece)| piece.length()).sum();
            data + if *encoding == SparseEncoding::Pax10 { pax10_map(content).len() as u64 } else { 0 }
        }
        _ => 0,
    }
}

fn pieces(content: &Content) -> &[(u64, Content)] {
    match content {
        Content::Sparse { pieces, .. } => pieces,
        _ => panic!("not a sparse content"),
    }
}

/// The pieces, and as GNU tar does an empty one at the end, when the file ends in a hole.
fn sparse_map(content: &Content) -> Vec<(u64, u64)> {
    let mut map: Vec<(u64, u64)> =
        pieces(content).iter().map(|(place, piece)| (*place, piece.length())).collect();
    if map.last().is_none_or(|(offset, length)| offset + length < content.length()) {
        map.push((content.length(), 0));
    }
    map
}

fn pax10_map(content: &Content) -> Vec<u8> {
    let map = sparse_map(content);
    let mut text = format!("{}\n", map.len());
    for (offset, length) in map {
        text.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len() + padding(bytes.len() as u64), 0);
    bytes
}

/// A PAX extended header with its records, padded.
pub fn pax_entry(records: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in records {
        // The length counts its own digits.
        let rest = name.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        body.extend_from_slice(format!("{length} ").as_bytes());
        body.extend_from_slice(name);
        body.push(b'=');
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    special_entry(b'x', b"PaxHeaders/entry", &body)
}

fn gnu_long(kind: u8, value: &[u8]) -> Vec<u8> {
    special_entry(kind, b"././@LongLink", &[value, b"\0"].concat())
}

/// A header of any type with a body, padded: what describes the entry after it.
pub fn special_entry(kind: u8, name: &[u8], body: &[u8]) -> Vec<u8> {
    let mut header = Header { bytes: [0; 512] };
    header.bytes[..name.len()].copy_from_slice(name);
    header.octal(100, 8, 0o644);
    header.octal(108, 8, 0);
    header.octal(116, 8, 0);
    header.octal(124, 12, body.len() as u64);
    header.octal(136, 12, 0);
    header.bytes[156] = kind;
    header.bytes[257..265].copy_from_slice(if kind == b'x' { b"ustar\x0000" } else { b"ustar  \0" });
    let mut bytes = header.finish().to_vec();
    bytes.extend_from_slice(body);
    bytes.resize(bytes.len() + padding(body.len() as u64), 0);
    bytes
}

/// `[-]seconds.fraction`: what stands before the point is cut towards zero, so half a second before 1970 is `-0.5`.
fn decimal_time((seconds, nanoseconds): (i64, u32)) -> String {
    let total = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let (sign, positive) = if total < 0 { ("-", -total) } else { ("", total) };
    let text = format!("{sign}{}.{:09}", positive / 1_000_000_000, positive % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

struct Header {
    bytes: [u8; 512],
}

impl Header {
    fn new(entry: &TestEntry) -> Header {
        let mut header = Header { bytes: [0; 512] };
        let gnu = entry.dialect == Dialect::Gnu
            || matches!(entry.kind, Kind::SparseFile(_, SparseEncoding::OldGnu));
        header.octal(100, 8, u64::from(entry.mode));
        header.number(108, 8, i128::from(entry.uid), gnu);
        header.number(116, 8, i128::from(entry.gid), gnu);
        header.number(124, 12, i128::from(stored_length(entry)), gnu);
        header.number(136, 12, i128::from(entry.modified.0), gnu);
        header.bytes[156] = match &entry.kind {
            Kind::File(_) => b'0',
            Kind::SparseFile(_, SparseEncoding::OldGnu) => b'S',
            Kind::SparseFile(..) => b'0',
            Kind::Hardlink(_) => b'1',
            Kind::Symlink(_) => b'2',
            Kind::CharacterDevice(..) => b'3',
            Kind::BlockDevice(..) => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        header.bytes[257..265].copy_from_slice(if gnu { b"ustar  \0" } else { b"ustar\x0000" });
        if let Kind::CharacterDevice(major, minor) | Kind::BlockDevice(major, minor) = entry.kind {
            header.number(329, 8, i128::from(major), gnu);
            header.number(337, 8, i128::from(minor), gnu);
        }
        header
    }

    fn octal(&mut self, at: usize, width: usize, value: u64) {
        let text = format!("{value:0digits$o}\0", digits = width - 1);
        assert_eq!(text.len(), width, "{value} does not fit {width} octal digits");
        self.bytes[at..at + width].copy_from_slice(text.as_bytes());
    }

    /// Octal where it fits; else base 256 for GNU, and 0 for PAX, whose record says the truth.
    fn number(&mut self, at: usize, width: usize, value: i128, gnu: bool) {
        let limit = 1_i128 << (3 * (width - 1));
        if (0..limit).contains(&value) {
            self.octal(at, width, value as u64);
        } else if gnu {
            let bytes = value.to_be_bytes();
            self.bytes[at..at + width].copy_from_slice(&bytes[16 - width..]);
            self.bytes[at] |= 0x80;
        } else {
            self.octal(at, width, 0);
        }
    }

    /// Fills in the map's first four pieces; returns the continuation headers with the rest, 21 each.
    fn old_gnu_sparse(&mut self, real_size: u64, map: &[(u64, u64)]) -> Vec<u8> {
        self.number(483, 12, i128::from(real_size), true);
        let (first, rest) = map.split_at(map.len().min(4));
        for (index, (offset, length)) in first.iter().enumerate() {
            self.number(386 + 24 * index, 12, i128::from(*offset), true);
            self.number(398 + 24 * index, 12, i128::from(*length), true);
        }
        self.bytes[482] = u8::from(!rest.is_empty());
        let mut continuation = Vec::new();
        let groups = rest.chunks(21).count();
        for (number, group) in rest.chunks(21).enumerate() {
            let mut block = Header { bytes: [0; 512] };
            for (index, (offset, length)) in group.iter().enumerate() {
                block.number(24 * index, 12, i128::from(*offset), true);
                block.number(24 * index + 12, 12, i128::from(*length), true);
            }
            block.bytes[504] = u8::from(number + 1 < groups);
            continuation.extend_from_slice(&block.bytes);
        }
        continuation
    }

    fn finish(mut self) -> [u8; 512] {
        self.bytes[148..156].fill(b' ');
        let sum: u32 = self.bytes.iter().map(|byte| u32::from(*byte)).sum();
        self.bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes
    }
}
