//! What a zTOC says of its layer, held against what the rest of the project relies on.

use std::collections::BTreeMap;

use peelfs::layer::builder::LayerBuilder;
use peelfs::layer::entry::{Content, EntryKind};
use peelfs::layer::gzip::checkpoint::{CheckpointWriter, Checkpoints as Stored};
use peelfs::layer::soci::SociContents;
use peelfs::layer::soci::checkpoints::{Checkpoints, gzip_checkpoints, uncompressed_checkpoints};
use peelfs::layer::soci::headers::{Claims, MAXIMUM_HEADERS, written};
use peelfs::layer::soci::ztoc::Ztoc;
use peelfs::table::{Codec, Table};

use crate::{IDENTITY, file_of};

/// Holds a zTOC against itself: it is the same when it is written anew, and its entries and chunks make a table.
pub fn check(ztoc: Ztoc) {
    assert_eq!(
        Ztoc::read(&ztoc.write()).as_ref().ok(),
        Some(&ztoc),
        "what is written is read as something else"
    );
    if let Ok(checkpoints) = Checkpoints::of(&ztoc.compression) {
        let bytes = match &checkpoints {
            Checkpoints::Gzip { span_size, list } => gzip_checkpoints(*span_size, list.iter().copied()),
            Checkpoints::Uncompressed { span_size, size } => uncompressed_checkpoints(*span_size, *size),
        };
        let mut compression = ztoc.compression.clone();
        compression.checkpoints = bytes;
        assert_eq!(Checkpoints::of(&compression).ok(), Some(checkpoints));
    }
    let size = ztoc.compressed_size;
    if let Ok(contents) = SociContents::of(ztoc, size, &BTreeMap::new()) {
        check_contents(&contents, size);
    }
}

fn check_contents(contents: &SociContents, blob_size: u64) {
    let mut position = 0;
    for chunk in &contents.chunks {
        assert!(chunk.decoded_offset == position && chunk.decoded_length > 0, "a gap between spans");
        position += chunk.decoded_length;
        assert!(
            chunk.blob_length > 0 && chunk.blob_offset + chunk.blob_length <= blob_size,
            "a span beyond the blob"
        );
        assert!(chunk.skip == 0 && matches!(chunk.codec, Codec::SealedGzipSpan | Codec::Raw));
    }
    assert_eq!(position, contents.decoded_length);
    let mut files = contents.entries.iter().filter_map(|entry| match entry.kind {
        EntryKind::Regular { size, content: Content::Contiguous(offset) } if size > 0 => Some(offset),
        _ => None,
    });
    for claim in &contents.claims {
        assert!(claim.headers.end - claim.headers.start <= MAXIMUM_HEADERS);
        assert_eq!(files.next(), Some(claim.headers.end), "a claim of no file");
    }
    assert_eq!(files.next(), None, "a file of which nothing is claimed");
    check_claims(contents);
    check_checkpoints(contents);
    let mut builder = LayerBuilder::new();
    for entry in &contents.entries {
        if builder.add(entry.clone()).is_err() {
            return;
        }
    }
    let bytes = builder.finish(IDENTITY, &contents.chunks).expect("a layer whose entries were all taken");
    let table = Table::from_bytes(bytes).expect("a table that was just written");
    crate::table::check_written(&table, contents.decoded_length);
}

fn check_claims(contents: &SociContents) {
    let claims = Claims::open(file_of(&written(&contents.claims))).expect("what was just written");
    for claim in &contents.claims {
        assert_eq!(claims.get(claim.headers.end).expect("what was just written"), *claim);
    }
}

fn check_checkpoints(contents: &SociContents) {
    let mut file = Vec::new();
    contents.write_checkpoints(CheckpointWriter::new(&mut file)).expect("writing to memory");
    let stored = (!file.is_empty()).then(|| Stored::open(file_of(&file)).expect("what was just written"));
    for chunk in contents.chunks.iter().filter(|chunk| chunk.codec == Codec::SealedGzipSpan) {
        let stored = stored.as_ref().expect("a span has its checkpoint");
        stored.get(chunk.checkpoint).expect("a span has its checkpoint");
    }
}
