//! Tar-split data held against a table of contents, entry by entry: whoever unpacks the layer, and whoever mounts it by its table of
//! contents, must see the same. containers/storage refuses a layer otherwise, and so do we, as soon as both are at hand.

use std::collections::BTreeMap;
use std::slice::Iter;

use super::{Contradiction, Piece, TarSplit};
use crate::layer::entry::{Content, Entry, EntryKind};
use crate::layer::tar::{Limits, SinkError, TarReader, TarSink};

/// Compares the archive that `tar_split` rebuilds with the `entries` of a table of contents. The content of files is not looked at.
///
/// # Errors
/// The first contradiction.
pub fn compare(tar_split: &TarSplit, entries: &[Entry]) -> Result<(), Contradiction> {
    let mut reader = TarReader::new(Limits::default());
    let mut sink = Comparison {
        listed: entries.iter(),
        number: 0,
        last: String::new(),
        expected: None,
        may_have_data: false,
        found: None,
    };
    for piece in tar_split.pieces() {
        let pushed = match piece {
            Piece::Segment(bytes) => reader.push(bytes, &mut sink),
            Piece::File { path, size, .. } => {
                sink.check_file(path, size)?;
                push_zeros(&mut reader, size, &mut sink)
            }
        };
        if let Some(found) = sink.found.take() {
            return Err(found);
        }
        pushed?;
    }
    reader.finish()?;
    match sink.listed.next() {
        Some(entry) => Err(Contradiction::NotArchived { path: escaped(entry) }),
        None => Ok(()),
    }
}

/// In place of a file's content.
fn push_zeros(
    reader: &mut TarReader,
    size: u64,
    sink: &mut Comparison<'_>,
) -> Result<(), crate::layer::tar::TarError> {
    const ZEROS: &[u8] = &[0; 128 << 10];
    sink.may_have_data = true;
    let mut left = size;
    while left > 0 {
        let length = left.min(ZEROS.len() as u64);
        // No longer than the slice.
        reader.push(&ZEROS[..length as usize], sink)?;
        left -= length;
    }
    sink.may_have_data = false;
    Ok(())
}

struct Comparison<'a> {
    listed: Iter<'a, Entry>,
    number: usize,
    /// Name of the last entry of the archive.
    last: String,
    /// Name and size of the file whose data come next.
    expected: Option<(Vec<u8>, u64)>,
    may_have_data: bool,
    /// Our own error: the reader carries only text.
    found: Option<Contradiction>,
}

impl Comparison<'_> {
    /// The file that the archive announced must be the one that comes now.
    fn check_file(&mut self, path: &[u8], size: u64) -> Result<(), Contradiction> {
        match self.expected.take() {
            Some(expected) if expected.0 == path && expected.1 == size => Ok(()),
            _ => Err(self.misfit("a file comes here that the headers do not announce")),
        }
    }

    fn misfit(&self, reason: &'static str) -> Contradiction {
        Contradiction::Piece { path: self.last.clone(), reason }
    }

    fn compare(&mut self, entry: &Entry) -> Option<Contradiction> {
        let Some(listed) = self.listed.next() else {
            return Some(Contradiction::NotListed { path: escaped(entry) });
        };
        let field = difference(listed, entry)?;
        let (number, listed, archived) = (self.number, escaped(listed), escaped(entry));
        Some(Contradiction::Entry { number, listed, archived, field })
    }
}

impl TarSink for Comparison<'_> {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.last = escaped(&entry);
        self.found = self.compare(&entry);
        self.number += 1;
        self.expected = match entry.kind {
            EntryKind::Regular { size, content: Content::Contiguous(_) } if size > 0 => {
                Some((entry.path, size))
            }
            EntryKind::Regular { content: Content::Sparse(_), .. } => {
                self.found = Some(self.misfit("it is a sparse file, which tar-split cannot rebuild"));
                None
            }
            _ => None,
        };
        if self.found.is_some() { Err("contradiction".into()) } else { Ok(()) }
    }

    fn payload(&mut self, _decoded_offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
        if self.may_have_data {
            return Ok(());
        }
        self.found = Some(self.misfit("a segment holds content of a file"));
        Err("contradiction".into())
    }
}

/// What differs between two entries, but for where the content is.
fn difference(listed: &Entry, archived: &Entry) -> Option<&'static str> {
    let xattrs = |entry: &Entry| entry.xattrs.iter().cloned().collect::<BTreeMap<_, _>>();
    let kinds_are_equal = match (&listed.kind, &archived.kind) {
        (EntryKind::Regular { size: one, .. }, EntryKind::Regular { size: two, .. }) => one == two,
        (one, two) => one == two,
    };
    let same = [
        ("name", listed.path == archived.path),
        ("type, size, link target or device numbers", kinds_are_equal),
        ("mode", listed.mode == archived.mode),
        ("user", listed.uid == archived.uid),
        ("group", listed.gid == archived.gid),
        ("time", listed.modified == archived.modified),
        ("extended attributes", xattrs(listed) == xattrs(archived)),
    ];
    same.into_iter().find(|(_, is_same)| !is_same).map(|(field, _)| field)
}

fn escaped(entry: &Entry) -> String {
    entry.path.escape_ascii().to_string()
}
