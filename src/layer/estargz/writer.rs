//! Writes an eStargz from the entries of a layer, whatever format that had.
//!
//! ```text
//! items, a landmark among them ─▶ members: what goes into each ─▶ blob ─▶ TOC, footer
//! ```
//!
//! Rules (stargz-snapshotter, `docs/estargz.md`):
//! - a member begins at each chunk of a file, unless small ones share members ([`EstargzOptions::minimum_chunk`]), and at each landmark;
//! - the TOC is the last entry, in a member of its own; or, if it is *external*, a blob of its own: then there is a landmark only if some
//!   files come first, and the archive stays what it was wherever it can, and with it the diff ID and the config;
//! - boundaries of members depend on the content alone. (The reference cuts a layer into one part for each core.)
//!
//! What is not said here is as [`write`](crate::layer::write) says.

mod compress;
mod members;
mod toc;

use std::collections::BTreeMap;
use std::io::Write;
use std::num::{NonZeroU64, NonZeroUsize};

use peelfs_registry::Digest;
use sha2::{Digest as _, Sha256};

use self::compress::{Compressor, PackedJob};
use self::members::{Member, Members};
use self::toc::ChunkPlace;
use super::footer::{external_footer_bytes, footer_bytes};
use super::{MAXIMUM_TOC, TOC_DIGEST_ANNOTATION};
use crate::layer::arrange::{Arrangement, arrange};
use crate::layer::chunk::{MAXIMUM_CHUNK, MAXIMUM_SKIP};
use crate::layer::compression::Compression;
use crate::layer::ordered::in_order;
use crate::layer::spool::Spool;
use crate::layer::tar::END_OF_ARCHIVE;
use crate::layer::toc::{NO_PREFETCH_LANDMARK, PREFETCH_LANDMARK, TOC_NAME};
use crate::layer::write::items::{Item, check_length, end_of_archive, whole_format_file};
use crate::layer::write::output::BlobOutput;
use crate::layer::write::pieces::jobs;
use crate::layer::write::{NotLazy, WriteError, WrittenLayer};

/// Bytes of the uncompressed layer, for containers/storage, which must tell them without reading it.
const UNCOMPRESSED_SIZE_ANNOTATION: &str = "io.containers.estargz.uncompressed-size";
/// What a landmark holds.
const LANDMARK_CONTENT: u8 = 0x0f;

/// How an eStargz is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EstargzOptions {
    /// Files longer than this many bytes are split into chunks of that length.
    pub chunk_size: NonZeroU64,
    /// A member takes up further files until it has this many bytes, uncompressed; 0 gives each file its own.
    pub minimum_chunk: u64,
    /// How hard deflate tries, 1 to [`MAXIMUM_LEVEL`].
    pub level: u32,
    /// The TOC becomes [`WrittenLayer::external_toc`], for a TOC image, and is not in the layer.
    pub external_toc: bool,
    /// Threads that compress.
    pub threads: NonZeroUsize,
}

/// Largest [`EstargzOptions::chunk_size`]: readers refuse larger ones.
pub const MAXIMUM_CHUNK_SIZE: u64 = MAXIMUM_CHUNK;
/// Largest [`EstargzOptions::minimum_chunk`].
pub const MAXIMUM_MINIMUM_CHUNK: u64 = MAXIMUM_SKIP / 4;
/// What the reference writer chooses.
pub const DEFAULT_CHUNK_SIZE: NonZeroU64 = NonZeroU64::new(4 << 20).unwrap();
/// Largest [`EstargzOptions::level`].
pub const MAXIMUM_LEVEL: u32 = 9;
/// On Debian with Python the result is as large as the reference's at its level 9, 1 % smaller than with 6, and 1.5 % larger than
/// with 9, which takes four times as long.
pub const DEFAULT_LEVEL: u32 = 7;

/// Writes the layer in `spool` to `output`, the files named in `wanted` first. `progress` is told how many uncompressed bytes have
/// been written so far, of about those of the spool.
///
/// # Errors
/// [`WriteError`]; what was written so far is worthless then.
pub fn write_estargz(
    spool: &Spool,
    wanted: &[Vec<u8>],
    options: &EstargzOptions,
    output: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<WrittenLayer, WriteError> {
    let Arrangement { wanted, rest, missed } = arrange(&spool.entries, wanted)?;
    let items = items(spool, &wanted, &rest, options.external_toc)?;
    check_length(&items)?;
    let mut blob = BlobWriter {
        output: BlobOutput::new(output),
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
    in_order(options.threads, jobs(members, |member: &Member| member.length), worker, |job| {
        blob.add(&job)?;
        progress(blob.output.uncompressed());
        Ok(())
    })?;
    let toc = toc::json(&items, &blob.places, &blob.file_digests)?;
    let length = toc.json.len() as u64;
    if length > MAXIMUM_TOC {
        return Err(WriteError::TocTooLong { length, limit: MAXIMUM_TOC });
    }
    let toc_digest = Digest::sha256_of(&toc.json);
    let toc_archive = toc_archive(&toc.json);
    let (external_toc, (diff_id, uncompressed_size)) = if options.external_toc {
        let end = end_of_archive(spool, &items)?;
        let finished = blob.finish(&end, |_| external_footer_bytes(), options.level)?;
        (Some(Compressor::new(options.level).member(&toc_archive)?), finished)
    } else {
        (None, blob.finish(&toc_archive, footer_bytes, options.level)?)
    };
    let annotations = BTreeMap::from([
        (TOC_DIGEST_ANNOTATION.to_owned(), toc_digest.to_string()),
        (UNCOMPRESSED_SIZE_ANNOTATION.to_owned(), uncompressed_size.to_string()),
    ]);
    Ok(WrittenLayer {
        compression: Compression::Gzip,
        annotations,
        diff_id,
        uncompressed_size,
        toc_digest: Some(toc_digest),
        external_toc,
        missed,
        not_lazy: toc.names_are_lossy.then_some(NotLazy::Names),
    })
}

/// The entries in the order in which they are written, with their landmark.
fn items<'a>(
    spool: &'a Spool,
    wanted: &[usize],
    rest: &[usize],
    has_external_toc: bool,
) -> std::io::Result<Vec<Item<'a>>> {
    let landmark = match wanted {
        [] if has_external_toc => None,
        [] => Some(NO_PREFETCH_LANDMARK),
        _ => Some(PREFETCH_LANDMARK),
    };
    let of_image = |at: &usize| Item::of_image(spool, &spool.entries[*at]);
    let landmark = landmark.map(|name| Ok(Item::of_format(name, vec![LANDMARK_CONTENT])));
    wanted.iter().map(of_image).chain(landmark).chain(rest.iter().map(of_image)).collect()
}

/// The archive of which the TOC is the only entry, or the last.
fn toc_archive(json: &[u8]) -> Vec<u8> {
    let mut archive = whole_format_file(TOC_NAME, json);
    archive.extend_from_slice(&END_OF_ARCHIVE);
    archive
}

/// The blob as it grows.
struct BlobWriter<'a> {
    output: BlobOutput<'a>,
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
                offset: self.output.offset() + chunk.member_offset,
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
        self.output.put(&job.uncompressed, &job.compressed)
    }

    /// Writes the end of the archive, and the footer for the place where that begins; gives diff ID and uncompressed size.
    fn finish<const FOOTER: usize>(
        mut self,
        end: &[u8],
        footer: impl FnOnce(u64) -> [u8; FOOTER],
        level: u32,
    ) -> Result<(Digest, u64), WriteError> {
        let offset = self.output.offset();
        self.output.put(end, &Compressor::new(level).member(end)?)?;
        self.output.put(&[], &footer(offset))?;
        Ok(self.output.finish())
    }
}
