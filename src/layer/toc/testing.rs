//! What the tests of the formats with a TOC share.

use std::ops::Range;

use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{TableOfContents, hex};
use crate::layer::chunk::decode_chunk;
use crate::layer::entry::{Content, Entry, EntryKind};
use crate::layer::testing::pattern;
use crate::table::Codec;

/// As a TOC writes it.
pub(in crate::layer) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(bytes)))
}

/// `length` bytes that differ from those of another seed.
pub(in crate::layer) fn data(length: usize, seed: u8) -> Vec<u8> {
    pattern(length).iter().map(|byte| byte.wrapping_add(seed)).collect()
}

/// Bytes of the decoded space, from the chunks of a blob.
pub(in crate::layer) fn decoded(blob: &[u8], toc: &TableOfContents) -> Vec<u8> {
    let mut decoded = vec![0; toc.decoded_length as usize];
    for chunk in &toc.chunks {
        let range = chunk.blob_offset as usize..(chunk.blob_offset + chunk.blob_length) as usize;
        let bytes = decode_chunk(chunk, &blob[range]).unwrap();
        decoded[chunk.decoded_offset as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    decoded
}

/// Where in the decoded space a file is.
pub(in crate::layer) fn contiguous(entry: &Entry) -> Range<usize> {
    match entry.kind {
        EntryKind::Regular { size, content: Content::Contiguous(at) } => at as usize..(at + size) as usize,
        _ => panic!("a regular file: {entry:?}"),
    }
}

/// What every reader of a table relies on.
pub(in crate::layer) fn check_chunks(toc: &TableOfContents, payload_end: u64) -> Result<(), TestCaseError> {
    let (mut end, mut blob_end) = (0, 0);
    for chunk in &toc.chunks {
        prop_assert!(chunk.decoded_length > 0 && chunk.decoded_offset >= end);
        prop_assert_eq!(chunk.codec == Codec::Zeros, chunk.blob_length == 0);
        end = chunk.decoded_offset + chunk.decoded_length;
        prop_assert!(chunk.blob_offset + chunk.blob_length <= payload_end);
        if chunk.skip == 0 {
            prop_assert!(chunk.blob_offset >= blob_end);
            blob_end = chunk.blob_offset + chunk.blob_length;
        }
    }
    prop_assert!(end <= toc.decoded_length);
    for entry in &toc.entries {
        if let EntryKind::Regular { size, content: Content::Contiguous(at) } = entry.kind {
            let inside = |offset: u64| (at..at + size).contains(&offset);
            let chunks = toc.chunks.iter().filter(|chunk| inside(chunk.decoded_offset));
            prop_assert_eq!(chunks.map(|chunk| chunk.decoded_length).sum::<u64>(), size);
        }
    }
    Ok(())
}

/// A value for any field: a likely number, an unlikely one, nothing, or a word.
pub(in crate::layer) fn field() -> impl Strategy<Value = Value> {
    prop_oneof![
        (0_i64..12_000).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        Just(Value::Null),
        prop::sample::select(&["text", "zeros"][..]).prop_map(Value::from),
    ]
}
