//! Tables of contents: wrapped as the formats have them, without compressing anything, so that their bytes stay those of the input;
//! and what they say, held against what the rest of the project relies on.

use peelfs::layer::builder::LayerBuilder;
use peelfs::layer::chunk::{MAXIMUM_CHUNK, MAXIMUM_SKIP, decode_chunk};
use peelfs::layer::entry::{Content, EntryKind};
use peelfs::layer::toc::TableOfContents;
use peelfs::table::{Codec, Table};

use crate::support::archive::special_entry;
use crate::{IDENTITY, sha256};

/// Chunks that take more than this are not decoded here: how much work they are is bounded elsewhere.
const DECODED: u64 = 1 << 20;

/// The tar of an eStargz TOC in a gzip member of stored blocks (RFC 1951, section 3.2.4).
pub fn estargz_member(json: &[u8]) -> Vec<u8> {
    let mut tar = special_entry(b'0', b"stargz.index.json", json);
    tar.resize(tar.len() + 1024, 0);
    let mut member = b"\x1f\x8b\x08\0\0\0\0\0\0\xff".to_vec();
    let count = tar.len().div_ceil(0xffff);
    for (number, block) in tar.chunks(0xffff).enumerate() {
        member.push(u8::from(number + 1 == count));
        member.extend_from_slice(&(block.len() as u16).to_le_bytes());
        member.extend_from_slice(&(!(block.len() as u16)).to_le_bytes());
        member.extend_from_slice(block);
    }
    member.extend_from_slice(&crc32fast::hash(&tar).to_le_bytes());
    member.extend_from_slice(&(tar.len() as u32).to_le_bytes());
    member
}

/// These bytes in a zstd frame of raw blocks (RFC 8878, section 3.1.1).
pub fn zstd_frame(bytes: &[u8]) -> Vec<u8> {
    // One segment, and its length in 4 bytes.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
    let blocks: Vec<&[u8]> = if bytes.is_empty() { vec![&[]] } else { bytes.chunks(1 << 16).collect() };
    for (number, block) in blocks.iter().enumerate() {
        let header = u32::from(number + 1 == blocks.len()) | (block.len() as u32) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

/// Holds a TOC against its blob, whose payloads end at `payload_end`: its chunks are within bounds and cover its files, they and its
/// entries make a table, and those that are in the blob decode to what they say or not at all.
pub fn check(toc: &TableOfContents, blob: &[u8], payload_end: u64) {
    let mut position = 0;
    for chunk in &toc.chunks {
        assert!(chunk.decoded_offset >= position && chunk.decoded_length > 0, "chunks overlap");
        position = chunk.decoded_offset.checked_add(chunk.decoded_length).expect("beyond the numbers");
        assert!(position <= toc.decoded_length);
        if chunk.codec == Codec::Zeros {
            assert!(chunk.blob_length == 0 && chunk.skip == 0 && chunk.digest == [0; 32]);
            continue;
        }
        assert!(chunk.decoded_length <= MAXIMUM_CHUNK && chunk.skip <= MAXIMUM_SKIP);
        let end = chunk.blob_offset.checked_add(chunk.blob_length).expect("beyond the numbers");
        assert!(end <= payload_end, "a chunk beyond the payloads");
        if chunk.skip + chunk.decoded_length <= DECODED
            && let Some(bytes) = blob.get(chunk.blob_offset as usize..end as usize)
            && let Ok(decoded) = decode_chunk(chunk, bytes)
        {
            assert!(decoded.len() as u64 == chunk.decoded_length && sha256(&decoded) == chunk.digest);
        }
    }
    for entry in &toc.entries {
        if let EntryKind::Regular { size, content: Content::Contiguous(start) } = entry.kind {
            check_covered(toc, start, start.checked_add(size).expect("beyond the numbers"));
        }
    }
    let mut builder = LayerBuilder::new();
    for entry in &toc.entries {
        if builder.add(entry.clone()).is_err() {
            return;
        }
    }
    let bytes = builder.finish(IDENTITY, &toc.chunks).expect("a layer whose entries were all taken");
    let table = Table::from_bytes(bytes).expect("a table that was just written");
    crate::table::check_written(&table, toc.decoded_length);
    assert_eq!(table.chunks().len(), toc.chunks.len());
}

/// Whether chunks cover these bytes of the decoded space without a gap.
fn check_covered(toc: &TableOfContents, start: u64, end: u64) {
    let first = toc.chunks.partition_point(|chunk| chunk.decoded_offset + chunk.decoded_length <= start);
    let mut position = start;
    for chunk in &toc.chunks[first..] {
        if position >= end {
            break;
        }
        assert_eq!(chunk.decoded_offset, position, "a file that its chunks do not cover");
        position += chunk.decoded_length;
    }
    assert!(start == end || position == end, "chunks that are not those of one file");
}
