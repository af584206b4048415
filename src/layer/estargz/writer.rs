//! Writes an eStargz from the entries of a layer, whatever format that had.
//!
//! ```text
//!            in order                  on all cores                 in order
//! spool ─▶ members: what goes ─▶ read, hash chunks, compress ─▶ diff ID, digests of files ─▶ blob
//!          into each                                            offsets for the TOC  └─▶ TOC, footer
//! ```
//!
//! Rules (stargz-snapshotter, `docs/estargz.md`):
//! - a member begins at each chunk of a file, unless small ones share members ([`EstargzOptions::minimum_chunk`]), and at each landmark;
//! - headers of entries stay as they are, byte for byte; the TOC is the last entry, in a member of its own;
//! - boundaries of members depend on the content alone, and a member is compressed as a whole: the same layer gives the same blob on
//!   any number of threads. (The reference cuts a layer into one part for each core.)

mod compress;
mod members;
mod time;
mod toc;

use std::io;
use std::num::{NonZeroU64, NonZeroUsize};

use peelfs_registry::digest::Algorithm;
use peelfs_registry::{Digest, Digester};
use sha2::{Digest as _, Sha256};

use self::compress::{Compressor, PackedJob};
use self::members::{Item, Members};
pub(in crate::layer) use self::time::rfc3339;
use self::toc::ChunkPlace;
use super::MAXIMUM_TOC;
use super::footer::footer_bytes;
use crate::layer::arrange::{ArrangeError, Arrangement, arrange};
use crate::layer::chunk::{MAXIMUM_CHUNK, MAXIMUM_SKIP};
use crate::layer::ordered::in_order;
use crate::layer::spool::Spool;
use crate::layer::stream::MAXIMUM_DECODED;
use crate::layer::tar::{END_OF_ARCHIVE, OwnerNames, SinkError, entry_headers};
use crate::layer::toc::TOC_NAME;

/// How an eStargz is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EstargzOptions {
    /// Files longer than this many bytes are split into chunks of that length.
    pub chunk_size: NonZeroU64,
    /// A member takes up further files until it has this many bytes, uncompressed; 0 gives each file its own.
    pub minimum_chunk: u64,
    /// How hard deflate tries, 1 to 9.
    pub level: u32,
    /// Threads that compress.
    pub threads: NonZeroUsize,
}

/// Largest [`EstargzOptions::chunk_size`]: readers refuse larger ones.
pub const MAXIMUM_CHUNK_SIZE: u64 = MAXIMUM_CHUNK;
/// Largest [`EstargzOptions::minimum_chunk`].
pub const MAXIMUM_MINIMUM_CHUNK: u64 = MAXIMUM_SKIP / 4;
/// What the reference writer chooses.
pub const DEFAULT_CHUNK_SIZE: NonZeroU64 = NonZeroU64::new(4 << 20).unwrap();
/// On Debian with Python the result is as large as the reference's at its level 9, 1 % smaller than with 6, and 1.5 % larger than
/// with 9, which takes four times as long.
pub const DEFAULT_LEVEL: u32 = 7;

/// What was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenEstargz {
    /// Digest of the uncompressed blob.
    pub diff_id: Digest,
    /// Bytes of the uncompressed blob.
    pub uncompressed_size: u64,
    /// Digest of the TOC's JSON.
    pub toc_digest: Digest,
    /// Positions, in the list of wanted files, of those that the layer does not have.
    pub missed: Vec<usize>,
    /// Some names are not UTF-8, and so are not true in the TOC: the layer can be unpacked, but not be mounted lazily.
    pub names_are_lossy: bool,
}

/// Why no eStargz could be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The unpacked layer cannot be read.
    #[error("the unpacked layer cannot be read: {0}")]
    Spool(#[from] io::Error),
    /// The blob cannot be stored.
    #[error("the blob cannot be written: {0}")]
    Output(SinkError),
    /// The entries cannot be listed.
    #[error(transparent)]
    Arrange(#[from] ArrangeError),
    /// The compressor failed.
    #[error("the layer cannot be compressed: {0}")]
    Compress(String),
    /// Holes of sparse files, which this format has as zeros, make it too large.
    #[error("the layer would have {length} bytes uncompressed, more than {limit}")]
    TooLarge {
        /// Bytes.
        length: u64,
        /// The bound.
        limit: u64,
    },
    /// Too many entries.
    #[error("the table of contents would have {length} bytes, more than the {limit} that are read")]
    TocTooLong {
        /// Its length.
        length: u64,
        /// The bound.
        limit: u64,
    },
}

/// Writes the layer in `spool` to `output`, the files named in `wanted` first. `progress` is told how many uncompressed bytes have
/// been written so far, of about those of the spool.
///
/// # Errors
/// [`WriteError`]; what was written so far is worthless then.
pub fn write_estargz(
    spool: &Spool,
    wanted: &[Vec<u8>],
    options: &EstargzOptions,
    output: &mut dyn io::Write,
    progress: &dyn Fn(u64),
) -> Result<WrittenEstargz, WriteError> {
    let Arrangement { wanted, rest, missed } = arrange(&spool.entries, wanted)?;
    let items = members::items(spool, &wanted, &rest)?;
    let length = items.iter().map(Item::length).fold(0, u64::saturating_add);
    if length > MAXIMUM_DECODED {
        return Err(WriteError::TooLarge { length, limit: MAXIMUM_DECODED });
    }
    let mut blob = BlobWriter {
        output,
        offset: 0,
        uncompressed: 0,
        diff_id: Digester::new(Algorithm::Sha256),
        items: &items,
        places: Vec::new(),
        file_digests: Vec::new(),
        file: Sha256::new(),
    };
    let members = Members::new(&items, options.chunk_size, options.minimum_chunk);
    let worker = || {
        let mut compressor = Compressor::new(options.level);
        let items = &items;
        move |job| compressor.pack(job, items, spool)
    };
    in_order(options.threads, compress::jobs(members), worker, |job| {
        blob.add(&job)?;
        progress(blob.uncompressed);
        Ok(())
    })?;
    let toc = toc::json(&items, &blob.places, &blob.file_digests)?;
    let length = toc.json.len() as u64;
    if length > MAXIMUM_TOC {
        return Err(WriteError::TocTooLong { length, limit: MAXIMUM_TOC });
    }
    let (diff_id, uncompressed_size) = blob.finish(&toc.json, options.level)?;
    Ok(WrittenEstargz {
        diff_id,
        uncompressed_size,
        toc_digest: Digest::sha256_of(&toc.json),
        missed,
        names_are_lossy: toc.names_are_lossy,
    })
}

/// The blob as it grows.
struct BlobWriter<'a> {
    output: &'a mut dyn io::Write,
    offset: u64,
    uncompressed: u64,
    diff_id: Digester,
    items: &'a [Item<'a>],
    /// Of all chunks so far.
    places: Vec<ChunkPlace>,
    /// Of all files of several chunks so far.
    file_digests: Vec<[u8; 32]>,
    /// Of the file of several chunks that is being written.
    file: Sha256,
}

impl BlobWriter<'_> {
    fn add(&mut self, job: &PackedJob) -> Result<(), WriteError> {
        for chunk in &job.chunks {
            let place = ChunkPlace {
                offset: self.offset + chunk.member_offset,
                inner_offset: chunk.inner_offset,
                length: chunk.bytes.len() as u64,
                digest: chunk.digest,
            };
            self.places.push(place);
            let size = self.items[chunk.item].size;
            if place.length < size {
                self.file.update(&job.uncompressed[chunk.bytes.clone()]);
                if chunk.file_offset + place.length == size {
                    self.file_digests.push(self.file.finalize_reset().into());
                }
            }
        }
        self.put(&job.uncompressed, &job.compressed)
    }

    fn put(&mut self, uncompressed: &[u8], compressed: &[u8]) -> Result<(), WriteError> {
        self.diff_id.update(uncompressed);
        self.uncompressed += uncompressed.len() as u64;
        self.offset += compressed.len() as u64;
        self.output.write_all(compressed).map_err(|error| WriteError::Output(error.into()))
    }

    /// Writes TOC and footer; gives diff ID and uncompressed size.
    fn finish(mut self, json: &[u8], level: u32) -> Result<(Digest, u64), WriteError> {
        let entry = members::format_entry(TOC_NAME);
        let mut member = entry_headers(&entry, &OwnerNames::default(), json.len() as u64);
        member.extend_from_slice(json);
        member.resize(member.len().next_multiple_of(members::BLOCK as usize), 0);
        member.extend_from_slice(&END_OF_ARCHIVE);
        let mut compressed = Vec::new();
        Compressor::new(level).append_member(&member, &mut compressed)?;
        let toc_offset = self.offset;
        self.put(&member, &compressed)?;
        let footer = footer_bytes(toc_offset);
        self.put(&[], &footer)?;
        Ok((self.diff_id.finish(), self.uncompressed))
    }
}
