//! What goes into each gzip member.
//!
//! ```text
//! │ headers                │ data, padding, headers of what follows │ data … │
//! └ the first              └ begins with a chunk                    └
//! ```
//!
//! A run of headers without data in between, of any length, is cut into members of [`LONGEST_RUN`]: no member is large, so that it
//! can be worked on in memory.

use std::io;
use std::iter::Peekable;
use std::num::NonZeroU64;
use std::ops::Range;

use crate::layer::entry::{Content, Entry, EntryKind, Timestamp};
use crate::layer::spool::{Spool, SpooledEntry};
use crate::layer::tar::{OwnerNames, entry_headers};
use crate::layer::toc::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK};

/// Bytes of a block of a tar.
pub(super) const BLOCK: u64 = 512;
/// Most bytes of headers in one member, about.
const LONGEST_RUN: u64 = 1 << 20;
/// What a landmark holds.
const LANDMARK_CONTENT: u8 = 0x0f;

/// An entry as it is written.
pub(super) struct Item<'a> {
    pub entry: ItemEntry<'a>,
    pub headers: Headers,
    pub names: OwnerNames,
    /// Bytes of data, holes included; 0 for all but regular files.
    pub size: u64,
}

pub(super) enum ItemEntry<'a> {
    Source(&'a Entry),
    Landmark(Entry),
}

/// Where the headers of an entry come from.
pub(super) enum Headers {
    Archive(Range<u64>),
    New(Vec<u8>),
}

impl Item<'_> {
    pub fn entry(&self) -> &Entry {
        match &self.entry {
            ItemEntry::Source(entry) => entry,
            ItemEntry::Landmark(entry) => entry,
        }
    }

    fn is_landmark(&self) -> bool {
        matches!(self.entry, ItemEntry::Landmark(_))
    }

    /// Appends `length` bytes of its data, from `offset` on.
    pub fn append_data(&self, spool: &Spool, offset: u64, length: u64, to: &mut Vec<u8>) -> io::Result<()> {
        match &self.entry {
            ItemEntry::Source(entry) => spool.append_content(entry, offset, length, to),
            ItemEntry::Landmark(_) => {
                to.push(LANDMARK_CONTENT);
                Ok(())
            }
        }
    }

    /// Bytes of all of it, but for padding.
    pub fn length(&self) -> u64 {
        self.headers_length().saturating_add(self.size)
    }

    fn headers_length(&self) -> u64 {
        match &self.headers {
            Headers::Archive(place) => place.end - place.start,
            Headers::New(bytes) => bytes.len() as u64,
        }
    }
}

/// The entries in the order in which they are written, with their landmark.
pub(super) fn items<'a>(spool: &'a Spool, wanted: &[usize], rest: &[usize]) -> io::Result<Vec<Item<'a>>> {
    let item = |at: &usize| item(spool, &spool.entries[*at]);
    let mut items: Vec<Item<'_>> = wanted.iter().map(item).collect::<io::Result<_>>()?;
    let mut entry = format_entry(if wanted.is_empty() { NO_PREFETCH_LANDMARK } else { PREFETCH_LANDMARK });
    entry.kind = EntryKind::Regular { size: 1, content: Content::Contiguous(0) };
    let names = OwnerNames::default();
    let headers = Headers::New(entry_headers(&entry, &names, 1));
    items.push(Item { entry: ItemEntry::Landmark(entry), headers, names, size: 1 });
    for at in rest {
        items.push(item(at)?);
    }
    Ok(items)
}

fn item<'a>(spool: &Spool, spooled: &'a SpooledEntry) -> io::Result<Item<'a>> {
    let names = spool.owner_names(spooled)?;
    let entry = &spooled.entry;
    let size = match entry.kind {
        EntryKind::Regular { size, .. } => size,
        _ => 0,
    };
    let headers = match &entry.kind {
        // Its headers announce a map; here it gets its holes as zeros.
        EntryKind::Regular { content: Content::Sparse(_), .. } => {
            Headers::New(entry_headers(entry, &names, size))
        }
        _ => Headers::Archive(spooled.headers.clone()),
    };
    Ok(Item { entry: ItemEntry::Source(entry), headers, names, size })
}

/// An entry that belongs to the format, as the reference writes it: of nobody, at no time.
pub(super) fn format_entry(name: &[u8]) -> Entry {
    Entry {
        path: name.to_vec(),
        kind: EntryKind::Regular { size: 0, content: Content::Contiguous(0) },
        mode: 0,
        uid: 0,
        gid: 0,
        modified: Timestamp::default(),
        xattrs: Vec::new(),
    }
}

/// A piece of the archive that is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A part of the headers of an item.
    Headers { item: usize, part: Range<u64> },
    /// A chunk of an item's data.
    Chunk { item: usize, offset: u64, length: u64 },
    /// Zeros up to the next block.
    Padding(u64),
}

impl Piece {
    fn length(&self) -> u64 {
        match self {
            Piece::Headers { part, .. } => part.end - part.start,
            Piece::Chunk { length, .. } | Piece::Padding(length) => *length,
        }
    }
}

/// What is compressed together.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Member {
    pub pieces: Vec<Piece>,
    /// Bytes of all pieces.
    pub length: u64,
    /// Bytes of headers since the last chunk.
    run: u64,
}

/// The members of a blob, in order, but for TOC and footer.
pub(super) struct Members<'a> {
    items: &'a [Item<'a>],
    pieces: Peekable<Pieces<'a>>,
    minimum_chunk: u64,
}

impl<'a> Members<'a> {
    pub fn new(items: &'a [Item<'a>], chunk_size: NonZeroU64, minimum_chunk: u64) -> Self {
        let pieces = Pieces { items, chunk_size, item: 0, stage: Stage::Headers(0) };
        Members { items, pieces: pieces.peekable(), minimum_chunk }
    }
}

/// Whether `piece`, which comes next, goes into that member.
fn belongs_to(member: &Member, piece: &Piece, items: &[Item<'_>], minimum_chunk: u64) -> bool {
    let Some(first) = member.pieces.first() else { return true };
    match piece {
        Piece::Chunk { item, .. } => {
            let begins_with_chunk = matches!(first, Piece::Chunk { .. });
            begins_with_chunk && member.length < minimum_chunk && !items[*item].is_landmark()
        }
        Piece::Headers { .. } => member.run < LONGEST_RUN,
        Piece::Padding(_) => true,
    }
}

impl Iterator for Members<'_> {
    type Item = Member;

    fn next(&mut self) -> Option<Member> {
        let mut member = Member::default();
        let (items, minimum_chunk) = (self.items, self.minimum_chunk);
        while let Some(piece) = self.pieces.next_if(|piece| belongs_to(&member, piece, items, minimum_chunk))
        {
            member.length += piece.length();
            match piece {
                Piece::Chunk { .. } => member.run = 0,
                _ => member.run += piece.length(),
            }
            member.pieces.push(piece);
        }
        (!member.pieces.is_empty()).then_some(member)
    }
}

/// The archive, piece by piece.
struct Pieces<'a> {
    items: &'a [Item<'a>],
    chunk_size: NonZeroU64,
    item: usize,
    stage: Stage,
}

enum Stage {
    Headers(u64),
    Data(u64),
    Padding,
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        loop {
            let number = self.item;
            let item = self.items.get(number)?;
            let piece = match self.stage {
                Stage::Headers(from) => {
                    let length = item.headers_length();
                    let to = length.min(from + LONGEST_RUN);
                    self.stage = if to == length { Stage::Data(0) } else { Stage::Headers(to) };
                    Piece::Headers { item: number, part: from..to }
                }
                Stage::Data(offset) => {
                    let length = self.chunk_size.get().min(item.size - offset);
                    let end = offset + length;
                    self.stage = if end == item.size { Stage::Padding } else { Stage::Data(end) };
                    Piece::Chunk { item: number, offset, length }
                }
                Stage::Padding => {
                    self.item += 1;
                    self.stage = Stage::Headers(0);
                    Piece::Padding(item.size.wrapping_neg() % BLOCK)
                }
            };
            if piece.length() > 0 {
                return Some(piece);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(headers: u64, size: u64) -> Item<'static> {
        let headers = Headers::Archive(0..headers);
        let names = OwnerNames::default();
        Item { entry: ItemEntry::Source(Box::leak(Box::new(format_entry(b"file")))), headers, names, size }
    }

    fn landmark() -> Item<'static> {
        let entry = format_entry(PREFETCH_LANDMARK);
        Item { entry: ItemEntry::Landmark(entry), ..file(512, 1) }
    }

    /// Each member as the pieces in it: `h` headers, `c` chunk, `p` padding, with item and length.
    fn shape(items: &[Item<'_>], chunk_size: u64, minimum_chunk: u64) -> Vec<String> {
        let chunk_size = NonZeroU64::new(chunk_size).unwrap();
        let shown = |piece: &Piece| match piece {
            Piece::Headers { item, part } => format!("h{item}:{}", part.end - part.start),
            Piece::Chunk { item, length, .. } => format!("c{item}:{length}"),
            Piece::Padding(length) => format!("p{length}"),
        };
        let member = |member: Member| member.pieces.iter().map(shown).collect::<Vec<_>>().join(" ");
        Members::new(items, chunk_size, minimum_chunk).map(member).collect()
    }

    #[test]
    fn each_chunk_begins_a_member() {
        let items = [file(512, 0), landmark(), file(1024, 10), file(512, 0), file(512, 2048), file(512, 0)];
        assert_eq!(
            shape(&items, 1000, 0),
            [
                "h0:512 h1:512",
                "c1:1 p511 h2:1024",
                "c2:10 p502 h3:512 h4:512",
                "c4:1000",
                "c4:1000",
                "c4:48 h5:512",
            ]
        );
        assert_eq!(shape(&items[..1], 1000, 0), ["h0:512"]);
        assert!(shape(&[], 1000, 0).is_empty());
    }

    #[test]
    fn small_files_share_members_but_landmarks_begin_theirs() {
        let items = [file(512, 10), file(512, 10), landmark(), file(512, 10), file(512, 10), file(512, 3000)];
        assert_eq!(
            shape(&items, 1000, 2000),
            [
                "h0:512",
                "c0:10 p502 h1:512 c1:10 p502 h2:512",
                "c2:1 p511 h3:512 c3:10 p502 h4:512",
                "c4:10 p502 h5:512 c5:1000",
                "c5:1000 c5:1000 p72",
            ]
        );
    }

    #[test]
    fn no_run_of_headers_makes_a_large_member() {
        let items: Vec<Item<'_>> = (0..5000).map(|_| file(512, 0)).chain([file(3 << 20, 1)]).collect();
        let members: Vec<Member> = Members::new(&items, NonZeroU64::MIN, 1 << 40).collect();
        assert!(members.iter().all(|member| member.length <= 2 * LONGEST_RUN));
        let total: u64 = members.iter().map(|member| member.length).sum();
        assert_eq!(total, 5000 * 512 + (3 << 20) + 512);
        // A chunk in the middle of a member of headers would have offsets that readers do not expect.
        let with_chunk =
            |member: &&Member| member.pieces.iter().any(|piece| matches!(piece, Piece::Chunk { .. }));
        let last = members.iter().find(with_chunk).unwrap();
        assert!(matches!(last.pieces[0], Piece::Chunk { .. }));
    }
}
