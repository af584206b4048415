//! What goes into each gzip member.
//!
//! ```text
//! │ headers                │ data, padding, headers of what follows │ data … │
//! └ the first              └ begins with a chunk                    └
//! ```
//!
//! A run of headers without data in between, of any length, is cut into members of about [`LONGEST_RUN`]: no member is large, so that it
//! can be worked on in memory.

use std::iter::Peekable;
use std::num::NonZeroU64;

use crate::layer::write::items::Item;
use crate::layer::write::pieces::{LONGEST_RUN, Piece, Pieces};

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
        Members { items, pieces: Pieces::new(items, chunk_size).peekable(), minimum_chunk }
    }
}

/// Whether `piece`, which comes next, goes into that member.
fn belongs_to(member: &Member, piece: &Piece, items: &[Item<'_>], minimum_chunk: u64) -> bool {
    let Some(first) = member.pieces.first() else { return true };
    match piece {
        Piece::Data { item, .. } => {
            let begins_with_chunk = matches!(first, Piece::Data { .. });
            begins_with_chunk && member.length < minimum_chunk && !items[*item].is_of_format()
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
                Piece::Data { .. } => member.run = 0,
                _ => member.run += piece.length(),
            }
            member.pieces.push(piece);
        }
        (!member.pieces.is_empty()).then_some(member)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::toc::PREFETCH_LANDMARK;
    use crate::layer::write::items::testing::file;

    fn landmark() -> Item<'static> {
        Item::of_format(PREFETCH_LANDMARK, vec![1])
    }

    /// Each member as the pieces in it: `h` headers, `c` chunk, `p` padding, with item and length.
    fn shape(items: &[Item<'_>], chunk_size: u64, minimum_chunk: u64) -> Vec<String> {
        let chunk_size = NonZeroU64::new(chunk_size).unwrap();
        let shown = |piece: &Piece| match piece {
            Piece::Headers { item, part } => format!("h{item}:{}", part.end - part.start),
            Piece::Data { item, length, .. } => format!("c{item}:{length}"),
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
            |member: &&Member| member.pieces.iter().any(|piece| matches!(piece, Piece::Data { .. }));
        let last = members.iter().find(with_chunk).unwrap();
        assert!(matches!(last.pieces[0], Piece::Data { .. }));
    }
}
