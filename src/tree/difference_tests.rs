//! What counts as the same content, of files in different layers with the same attributes.

use super::difference::difference;
use super::merge::{Applied, merge_applied};
use crate::layer::builder::LayerBuilder;
use crate::layer::entry::{Chunk, Content, Entry, EntryKind, Extent, Timestamp};
use crate::table::{Codec, Table};

const IDENTITY: [u8; 32] = [7; 32];

/// A layer with `file` of eight bytes at 100, and another file behind it.
fn layer(content: Content, chunks: &[Chunk]) -> Table {
    let entry = |path: &str, content| Entry {
        path: path.into(),
        kind: EntryKind::Regular { size: 8, content },
        mode: 0o644,
        uid: 0,
        gid: 0,
        modified: Timestamp::default(),
        xattrs: vec![],
    };
    let mut builder = LayerBuilder::new();
    builder.add(entry("file", content)).unwrap();
    builder.add(entry("other", Content::Contiguous(108))).unwrap();
    Table::from_bytes(builder.finish(IDENTITY, chunks).unwrap()).unwrap()
}

fn chunk(decoded_offset: u64, decoded_length: u64, digest: u8, codec: Codec) -> Chunk {
    let (blob_offset, blob_length) = (decoded_offset, decoded_length);
    let (skip, checkpoint, digest) = (0, 0, [digest; 32]);
    Chunk { blob_offset, blob_length, decoded_offset, decoded_length, skip, codec, checkpoint, digest }
}

/// Whether `file` of one layer is that of the other.
fn is_same(lower: &Table, upper: &Table) -> bool {
    let tree = |table, layer| {
        let applied = [Applied { table, layer: Some(layer) }];
        Table::from_bytes(merge_applied(&applied, 2, IDENTITY).unwrap()).unwrap()
    };
    let made = difference(&tree(lower, 0), &tree(upper, 1), &[lower, upper], IDENTITY).unwrap();
    let made = Table::from_bytes(made).unwrap();
    made.find(&made.inodes()[0], b"file").is_none()
}

#[test]
fn content_is_the_same_if_chunks_that_begin_and_end_with_it_say_so() {
    let whole = Content::Contiguous(100);
    let extent = |file_offset, decoded_offset| Extent { file_offset, length: 4, decoded_offset };
    let gzip = |offset, length, digest| chunk(offset, length, digest, Codec::Gzip);
    let lower = layer(whole.clone(), &[gzip(100, 8, 1)]);
    for (what, content, chunks, expected) in [
        ("the same digest", &whole, vec![gzip(100, 8, 1)], true),
        ("in another codec", &whole, vec![chunk(100, 8, 1, Codec::Zstd)], true),
        ("another digest", &whole, vec![gzip(100, 8, 2)], false),
        ("cut otherwise", &whole, vec![gzip(100, 4, 1), gzip(104, 4, 1)], false),
        ("a chunk that begins before", &whole, vec![gzip(90, 18, 1)], false),
        ("a chunk that ends after", &whole, vec![gzip(100, 16, 1)], false),
        ("a gap", &whole, vec![gzip(100, 4, 1), gzip(106, 2, 1)], false),
        ("a digest of what was compressed", &whole, vec![chunk(100, 8, 1, Codec::SealedGzipSpan)], false),
        ("nothing known", &whole, vec![], false),
        ("a file with a hole", &Content::Sparse(vec![extent(0, 100)]), vec![gzip(100, 4, 1)], false),
    ] {
        assert_eq!(is_same(&lower, &layer(content.clone(), &chunks)), expected, "{what}");
    }
    let parts = [gzip(100, 4, 1), gzip(104, 4, 2)];
    assert!(is_same(&layer(whole.clone(), &parts), &layer(whole, &parts)));
    let sparse = |file_offset| layer(Content::Sparse(vec![extent(file_offset, 100)]), &[gzip(100, 4, 1)]);
    assert!(is_same(&sparse(2), &sparse(2)));
    assert!(!is_same(&sparse(2), &sparse(3)));
    let hole = layer(Content::Sparse(vec![]), &[]);
    assert!(is_same(&hole, &hole) && !is_same(&hole, &lower));
}
