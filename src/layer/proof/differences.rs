//! Two tables of one layer held against each other, name by name.
//!
//! The only thing that may differ: a table of contents whose times are seconds (the stargz project's writer rounds) against an archive
//! whose times have fractions.

use std::fmt;

use super::{CompareError, MOST_DIFFERENCES, digest_of_zeros, is_hole};
use crate::layer::entry::Timestamp;
use crate::table::Table;
use crate::table::format::{EntryRecord, InodeRecord, NONE, inode_flags};

/// What a table of contents says otherwise than the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path in the image, without a slash in front.
    pub path: Vec<u8>,
    /// Which of its attributes.
    pub field: &'static str,
    /// What the table of contents says.
    pub believed: String,
    /// What the archive says.
    pub archive: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Difference { path, field, believed, archive } = self;
        let path = path.escape_ascii();
        write!(
            formatter,
            "\"/{path}\": {field} is {believed} by its table of contents, {archive} in its archive"
        )
    }
}

/// What is said of a directory that only the other side, or nobody, mentions.
const FLAGS: [(u16, &str); 5] = [
    (inode_flags::IMPLICIT, "only implied"),
    (inode_flags::OPAQUE, "opaque"),
    (inode_flags::LINK_TO_LOWER, "a link to a lower layer"),
    (inode_flags::REMADE, "made anew"),
    (inode_flags::MARKERS_ONLY, "implied by whiteouts"),
];

struct Comparison<'a, A, B> {
    believed: &'a Table,
    archive: &'a Table,
    of_archive: A,
    of_believed: B,
    /// For each inode of the one table that of the other, if they were met under one name.
    partners: [Vec<u32>; 2],
    found: Vec<Difference>,
}

/// See [`ArchiveSink::differences`](super::ArchiveSink::differences). `of_archive` has no digest only for a file that is not in the archive.
pub(super) fn differences(
    believed: &Table,
    archive: &Table,
    of_archive: impl Fn(&InodeRecord) -> Option<[u8; 32]>,
    of_believed: impl FnMut(&InodeRecord) -> Result<[u8; 32], CompareError>,
) -> Result<Vec<Difference>, CompareError> {
    let partners = [believed, archive].map(|table| vec![NONE; table.inodes().len()]);
    let mut comparison =
        Comparison { believed, archive, of_archive, of_believed, partners, found: Vec::new() };
    // The root is there in each table.
    comparison.inodes(&[], 0, 0)?;
    let mut directories = vec![(Vec::new(), 0, 0)];
    while let Some((path, one, other)) = directories.pop() {
        comparison.directory(&path, (one, other), &mut directories)?;
        if comparison.found.len() >= MOST_DIFFERENCES {
            break;
        }
    }
    comparison.found.truncate(MOST_DIFFERENCES);
    Ok(comparison.found)
}

/// A pair of directories whose entries are still to be compared.
type Pair = (Vec<u8>, u32, u32);

impl<A, B> Comparison<'_, A, B>
where
    A: Fn(&InodeRecord) -> Option<[u8; 32]>,
    B: FnMut(&InodeRecord) -> Result<[u8; 32], CompareError>,
{
    fn differs(&mut self, path: &[u8], field: &'static str, believed: String, archive: String) {
        if believed != archive {
            self.found.push(Difference { path: path.to_vec(), field, believed, archive });
        }
    }

    /// Compares the entries of two directories, and puts the pairs of directories among them on top of `directories`, the last name
    /// first, so that differences come in the order of the names.
    fn directory(
        &mut self,
        path: &[u8],
        (one, other): (u32, u32),
        directories: &mut Vec<Pair>,
    ) -> Result<(), CompareError> {
        let (believed, archive) = (self.believed, self.archive);
        let ones = believed.inode(one).map(|inode| believed.directory(inode)).unwrap_or_default();
        let others = archive.inode(other).map(|inode| archive.directory(inode)).unwrap_or_default();
        let (mut ones, mut others) = (ones.iter().peekable(), others.iter().peekable());
        let first = directories.len();
        while self.found.len() < MOST_DIFFERENCES {
            let order = match (ones.peek(), others.peek()) {
                (None, None) => break,
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, Some(_)) => std::cmp::Ordering::Greater,
                (Some(one), Some(other)) => believed.name(one).cmp(archive.name(other)),
            };
            let one = if order.is_le() { ones.next() } else { None };
            let other = if order.is_ge() { others.next() } else { None };
            let name = one.map(|entry| believed.name(entry)).or(other.map(|entry| archive.name(entry)));
            let path = joined(path, name.unwrap_or_default());
            match (one, other) {
                (Some(one), Some(other)) if kind(one) == kind(other) => {
                    let is_directory = u32::from(one.kind.get()) == libc::S_IFDIR >> 12;
                    let is_whiteout = one.kind.get() == 0;
                    if !is_whiteout {
                        self.inodes(&path, one.inode.get(), other.inode.get())?;
                    }
                    if is_directory {
                        directories.push((path, one.inode.get(), other.inode.get()));
                    }
                }
                (one, other) => {
                    let said = |entry: Option<&EntryRecord>| entry.map_or("missing", kind).to_owned();
                    self.differs(&path, "it", said(one), said(other));
                }
            }
        }
        directories[first..].reverse();
        Ok(())
    }

    /// Compares two inodes that have one name and are of one type.
    fn inodes(&mut self, path: &[u8], one: u32, other: u32) -> Result<(), CompareError> {
        let (Some(believed), Some(archive)) = (self.believed.inode(one), self.archive.inode(other)) else {
            return Ok(());
        };
        let (known_one, known_other) = (self.partners[0][one as usize], self.partners[1][other as usize]);
        if (known_one, known_other) == (other, one) {
            // Another name of what was compared.
            return Ok(());
        }
        if (known_one, known_other) != (NONE, NONE) {
            let said = |known: u32| if known == NONE { "a file of its own" } else { "a hardlink" }.to_owned();
            let (mut one, other) = (said(known_one), said(known_other));
            if one == other {
                one = "a hardlink to another file".to_owned();
            }
            self.differs(path, "it", one, other);
            return Ok(());
        }
        self.partners[0][one as usize] = other;
        self.partners[1][other as usize] = one;
        self.attributes(path, believed, archive);
        if believed.mode.get() & libc::S_IFMT == libc::S_IFREG {
            self.content(path, believed, archive)?;
        }
        Ok(())
    }

    fn attributes(&mut self, path: &[u8], believed: &InodeRecord, archive: &InodeRecord) {
        for (flag, word) in FLAGS {
            let said = |inode: &InodeRecord| {
                let is = inode.flags.get() & flag != 0;
                if is { word.to_owned() } else { format!("not {word}") }
            };
            self.differs(path, "it", said(believed), said(archive));
        }
        let target =
            |table: &Table, inode: &InodeRecord| format!("\"{}\"", table.target(inode).escape_ascii());
        if believed.flags.get() & archive.flags.get() & inode_flags::LINK_TO_LOWER != 0 {
            // What it links to has the attributes.
            let (one, other) = (target(self.believed, believed), target(self.archive, archive));
            return self.differs(path, "the target", one, other);
        }
        let mode = |inode: &InodeRecord| format!("{:o}", inode.mode.get() & 0o7777);
        self.differs(path, "the mode", mode(believed), mode(archive));
        self.differs(path, "the owner", believed.uid.get().to_string(), archive.uid.get().to_string());
        self.differs(path, "the group", believed.gid.get().to_string(), archive.gid.get().to_string());
        let (one, other) = (modified(believed), modified(archive));
        if !is_rounded(one, other) {
            let said = |time: Timestamp| format!("{}.{:09}", time.seconds, time.nanoseconds);
            self.differs(path, "the time", said(one), said(other));
        }
        let xattrs = |table: &Table, inode: &InodeRecord| {
            let pairs = table
                .xattrs(inode)
                .map(|(name, value)| format!("{}={}", name.escape_ascii(), value.escape_ascii()));
            shortened(format!("{{{}}}", pairs.collect::<Vec<_>>().join(", ")))
        };
        if self.believed.xattr_set(believed) != self.archive.xattr_set(archive) {
            let (mut one, other) = (xattrs(self.believed, believed), xattrs(self.archive, archive));
            if one == other {
                one = "something else".to_owned();
            }
            self.differs(path, "the set of extended attributes", one, other);
        }
        match believed.mode.get() & libc::S_IFMT {
            libc::S_IFLNK => {
                let (one, other) = (target(self.believed, believed), target(self.archive, archive));
                self.differs(path, "the target", one, other);
            }
            libc::S_IFCHR | libc::S_IFBLK => {
                let device = |inode: &InodeRecord| {
                    let number = inode.content.get();
                    format!("{}:{}", number >> 32, number & u64::from(u32::MAX))
                };
                self.differs(path, "the device", device(believed), device(archive));
            }
            _ => {}
        }
    }

    fn content(
        &mut self,
        path: &[u8],
        believed: &InodeRecord,
        archive: &InodeRecord,
    ) -> Result<(), CompareError> {
        if (believed.flags.get() | archive.flags.get()) & inode_flags::LINK_TO_LOWER != 0 {
            return Ok(());
        }
        let (size, other) = (believed.size.get(), archive.size.get());
        if size != other {
            self.differs(path, "the size", size.to_string(), other.to_string());
            return Ok(());
        }
        if size == 0 || is_hole(believed) && is_hole(archive) {
            return Ok(());
        }
        let one = if is_hole(believed) { digest_of_zeros(size) } else { (self.of_believed)(believed)? };
        let other = if is_hole(archive) { Some(digest_of_zeros(size)) } else { (self.of_archive)(archive) };
        let said = |digest: [u8; 32]| format!("sha256:{}", crate::layer::toc::hex(&digest));
        self.differs(path, "the content", said(one), other.map_or_else(|| "missing".to_owned(), said));
        Ok(())
    }
}

fn joined(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}

/// What an entry stands for.
fn kind(entry: &EntryRecord) -> &'static str {
    match u32::from(entry.kind.get()) << 12 {
        0 => "a whiteout",
        libc::S_IFREG => "a file",
        libc::S_IFDIR => "a directory",
        libc::S_IFLNK => "a symlink",
        libc::S_IFCHR => "a character device",
        libc::S_IFBLK => "a block device",
        libc::S_IFIFO => "a named pipe",
        _ => "something unknown",
    }
}

fn modified(inode: &InodeRecord) -> Timestamp {
    Timestamp { seconds: inode.modified_seconds.get(), nanoseconds: inode.modified_nanoseconds.get() }
}

/// Whether `believed` is `archive`, or that rounded to seconds, half ones up: what estargz's `formatModtime` makes of it.
fn is_rounded(believed: Timestamp, archive: Timestamp) -> bool {
    let up = i64::from(archive.nanoseconds >= 500_000_000);
    believed == archive
        || believed == Timestamp { seconds: archive.seconds.saturating_add(up), nanoseconds: 0 }
}

/// No more than a person reads.
fn shortened(mut text: String) -> String {
    const LONGEST: usize = 200;
    if text.len() > LONGEST {
        // Escaped text is ASCII.
        text.truncate(LONGEST);
        text.push('…');
    }
    text
}
