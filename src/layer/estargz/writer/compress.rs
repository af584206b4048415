//! Members are filled, hashed and compressed, some of them together as one job.

use std::ops::Range;

use flate2::{Compress, Compression, FlushCompress, Status};
use sha2::{Digest, Sha256};

use super::members::Member;
use crate::layer::spool::Spool;
use crate::layer::write::WriteError;
use crate::layer::write::items::Item;
use crate::layer::write::pieces::Piece;

/// A gzip header (RFC 1952) that says nothing but that one: no time, unknown system.
const MEMBER_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// Members, ready to be written.
pub(super) struct PackedJob {
    pub uncompressed: Vec<u8>,
    pub compressed: Vec<u8>,
    /// All chunks in it, in order.
    pub chunks: Vec<PackedChunk>,
}

pub(super) struct PackedChunk {
    pub item: usize,
    /// Where it begins in its file.
    pub file_offset: u64,
    /// Its bytes, of the job's uncompressed ones.
    pub bytes: Range<usize>,
    /// Where its member begins, in the job's compressed bytes.
    pub member_offset: u64,
    /// Where it begins, in the uncompressed bytes of its member.
    pub inner_offset: u64,
    pub digest: [u8; 32],
}

/// Makes gzip members.
pub(super) struct Compressor {
    deflate: Compress,
}

impl Compressor {
    pub fn new(level: u32) -> Compressor {
        Compressor { deflate: Compress::new(Compression::new(level), false) }
    }

    pub fn pack(
        &mut self,
        job: Vec<Member>,
        items: &[Item<'_>],
        spool: &Spool,
    ) -> Result<PackedJob, WriteError> {
        let mut packed = PackedJob { uncompressed: Vec::new(), compressed: Vec::new(), chunks: Vec::new() };
        let length: u64 = job.iter().map(|member| member.length).sum();
        packed.uncompressed.reserve_exact(usize::try_from(length).unwrap_or(0));
        packed.compressed.reserve(usize::try_from(length / 2).unwrap_or(0));
        for member in job {
            let begin = packed.uncompressed.len();
            let member_offset = packed.compressed.len() as u64;
            for piece in member.pieces {
                let at = packed.uncompressed.len();
                piece.append(items, spool, &mut packed.uncompressed)?;
                if let Piece::Data { item, offset, .. } = piece {
                    let bytes = at..packed.uncompressed.len();
                    packed.chunks.push(PackedChunk {
                        item,
                        file_offset: offset,
                        digest: Sha256::digest(&packed.uncompressed[bytes.clone()]).into(),
                        bytes,
                        member_offset,
                        inner_offset: (at - begin) as u64,
                    });
                }
            }
            self.append_member(&packed.uncompressed[begin..], &mut packed.compressed)?;
        }
        Ok(packed)
    }

    /// A member that decodes to `content`.
    pub fn member(&mut self, content: &[u8]) -> Result<Vec<u8>, WriteError> {
        let mut member = Vec::new();
        self.append_member(content, &mut member)?;
        Ok(member)
    }

    /// Appends such a member.
    pub fn append_member(&mut self, content: &[u8], output: &mut Vec<u8>) -> Result<(), WriteError> {
        output.extend_from_slice(&MEMBER_HEADER);
        self.deflate.reset();
        loop {
            // No more than the content has, so it fits.
            let rest = &content[self.deflate.total_in() as usize..];
            output.reserve(rest.len() / 2 + 256);
            let status = self.deflate.compress_vec(rest, output, FlushCompress::Finish);
            match status.map_err(|error| WriteError::Compress(error.to_string()))? {
                Status::StreamEnd => break,
                Status::Ok | Status::BufError => {}
            }
        }
        output.extend_from_slice(&crc32fast::hash(content).to_le_bytes());
        // The field holds the length modulo 2³².
        output.extend_from_slice(&(content.len() as u32).to_le_bytes());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::gzip::GzipDecoder;
    use crate::layer::testing::{decoded, pattern};

    #[test]
    fn members_decode_to_what_went_in() {
        let contents = [vec![], pattern(1), pattern(3_000_000), vec![0; 5_000_000]];
        for level in 1..=9 {
            let mut compressor = Compressor::new(level);
            let mut blob = Vec::new();
            for content in &contents {
                compressor.append_member(content, &mut blob).unwrap();
            }
            let result = decoded(&mut GzipDecoder::new(), &blob, blob.len(), 1 << 20).unwrap();
            assert!(result == contents.concat(), "level {level}");
        }
    }

    /// What a compressor did before, and what room there is, must not show: a blob's digest would depend on them.
    #[test]
    fn a_member_depends_on_its_content_alone() {
        let content: Vec<u8> = pattern(700_000).into_iter().chain(vec![7; 100_000]).collect();
        let mut fresh = Vec::new();
        Compressor::new(6).append_member(&content, &mut fresh).unwrap();
        let mut used = Compressor::new(6);
        used.append_member(&pattern(1_000_000), &mut Vec::new()).unwrap();
        let mut roomy = Vec::with_capacity(4_000_000);
        used.append_member(&content, &mut roomy).unwrap();
        assert!(fresh == roomy);
    }
}
