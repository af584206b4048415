//! Writes a zstd:chunked blob as the podman family does, so that podman pulls it in parts and peel mounts it lazily.
//!
//! ```text
//! items ─▶ frames: headers; each chunk of a file; padding and headers; … ─▶ TOC, tar-split, footer in skippable frames
//! ```
//!
//! Rules (containers/storage, `pkg/chunked`), beyond those of [`write`](crate::layer::write):
//! - a frame holds a chunk of a file and nothing else, or no content of files at all;
//! - the archive gets nothing that the image does not have: where all headers stay as they are and no entry moves, its diff ID stays,
//!   and with it the config and what other tools take for the image's ID;
//! - readers of the dialect refuse a layer whose TOC and tar-split data do not say the same, field by field. So headers in which Go's
//!   `archive/tar` might see anything else than we do are written anew; and where the TOC cannot say what the archive says (JSON
//!   has no names that are not UTF-8), or would be longer than readers take, there is none at all: the blob is an ordinary tar.zst
//!   then, which everybody can still pull.
//!   (podman's own writer makes layers of such archives that podman's own reader refuses.)
//! - the annotation that the stargz project's tools want is not there: podman refuses layers that have both.

mod chunking;
mod frames;
#[cfg(test)]
mod tests;
mod toc;

use std::collections::BTreeMap;
use std::io::Write;
use std::num::{NonZeroU64, NonZeroUsize};

use peelfs_registry::Digest;
use sha2::{Digest as _, Sha256};

use self::frames::{Compressor, PackedJob, PackedPart, SPAN};
use self::toc::{FilePlace, Places};
use super::footer::footer_frame;
use super::tar_split::{Crc64, MAXIMUM_TAR_SPLIT, TarSplitWriter};
use super::{MAXIMUM_TOC, Place, Positions, SKIPPABLE_HEADER, SKIPPABLE_MAGIC, claims};
use crate::layer::arrange::{Arrangement, arrange};
use crate::layer::chunk::MAXIMUM_CHUNK;
use crate::layer::compression::Compression;
use crate::layer::ordered::in_order;
use crate::layer::spool::Spool;
use crate::layer::tar::{END_OF_ARCHIVE, HeaderFields};
use crate::layer::write::items::{Headers, Item, check_length, end_of_archive};
use crate::layer::write::output::BlobOutput;
use crate::layer::write::pieces::{Piece, Pieces, jobs};
use crate::layer::write::{NotLazy, WriteError, WrittenLayer};

/// How a zstd:chunked blob is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZstdChunkedOptions {
    /// Files longer than this many bytes are split into chunks of that length; without it, where their content says so.
    pub chunk_size: Option<NonZeroU64>,
    /// How hard zstd tries, 1 to [`MAXIMUM_LEVEL`].
    pub level: u32,
    /// Threads that compress.
    pub threads: NonZeroUsize,
}

/// Largest [`ZstdChunkedOptions::chunk_size`]: readers refuse larger ones.
pub const MAXIMUM_CHUNK_SIZE: u64 = MAXIMUM_CHUNK;
/// Largest [`ZstdChunkedOptions::level`]: what is above wants more memory from readers than they have to give.
pub const MAXIMUM_LEVEL: u32 = 19;
/// On Debian with Python the result is 1 % smaller than the reference's at its default.
pub const DEFAULT_LEVEL: u32 = 9;

/// Longest data about a layer that readers take, in bytes of JSON.
struct Longest {
    toc: u64,
    tar_split: u64,
}

/// What our reader takes; of the TOC podman takes no more either.
const LONGEST: Longest = Longest { toc: MAXIMUM_TOC, tar_split: MAXIMUM_TAR_SPLIT };

/// Writes the layer in `spool` to `output`, the files named in `wanted` first. `progress` is told how many uncompressed bytes have
/// been written so far, of about those of the spool.
///
/// # Errors
/// [`WriteError`]; what was written so far is worthless then.
pub fn write_zstd_chunked(
    spool: &Spool,
    wanted: &[Vec<u8>],
    options: &ZstdChunkedOptions,
    output: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<WrittenLayer, WriteError> {
    write_within(&LONGEST, spool, wanted, options, output, progress)
}

fn write_within(
    longest: &Longest,
    spool: &Spool,
    wanted: &[Vec<u8>],
    options: &ZstdChunkedOptions,
    output: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<WrittenLayer, WriteError> {
    let Arrangement { wanted, rest, missed } = arrange(&spool.entries, wanted)?;
    let (items, fields) = items(spool, wanted.iter().chain(&rest))?;
    check_length(&items)?;
    let end = end_of_archive(spool, &items)?;
    let not_lazy = items.iter().zip(&fields).find_map(|(item, fields)| toc::not_lazy(item, fields));
    let mut blob = BlobWriter {
        output: BlobOutput::new(output),
        items: &items,
        places: Places::default(),
        tar_split: match not_lazy {
            Some(_) => None,
            None => Some(TarSplitFrames::new(options.level)?),
        },
        longest,
        not_lazy,
        file: OpenFile::default(),
    };
    let pieces = Pieces::new(&items, options.chunk_size.unwrap_or(SPAN));
    let is_content_defined = options.chunk_size.is_none();
    let worker = || {
        let mut compressor = None;
        let items = &items;
        move |job| {
            let compressor = match &mut compressor {
                Some(compressor) => compressor,
                none => none.insert(Compressor::new(options.level, is_content_defined)?),
            };
            compressor.pack(job, items, spool)
        }
    };
    in_order(options.threads, jobs(pieces, Piece::length), worker, |job| {
        blob.add(&job)?;
        progress(blob.output.uncompressed());
        Ok(())
    })?;
    let mut compressor = Compressor::new(options.level, is_content_defined)?;
    blob.end(&end, &mut compressor)?;
    let tar_split = blob.tar_split.take().map(TarSplitFrames::finish).transpose()?;
    let described = match tar_split {
        None => None,
        Some(tar_split) => blob.describe(&fields, &tar_split, &mut compressor)?,
    };
    let BlobWriter { output, not_lazy, .. } = blob;
    let (diff_id, uncompressed_size) = output.finish();
    let (toc_digest, annotations) = match described {
        None => (None, BTreeMap::new()),
        Some(Described { toc_digest, annotations }) => (Some(toc_digest), annotations),
    };
    Ok(WrittenLayer {
        compression: Compression::Zstd,
        annotations,
        diff_id,
        uncompressed_size,
        toc_digest,
        external_toc: None,
        missed,
        not_lazy,
    })
}

/// The entries in the order in which they are written, and what a TOC must say of them beside.
fn items<'a, 'o>(
    spool: &'a Spool,
    order: impl Iterator<Item = &'o usize>,
) -> Result<(Vec<Item<'a>>, Vec<HeaderFields>), WriteError> {
    let mut items = Vec::new();
    let mut all_fields = Vec::new();
    for at in order {
        let spooled = &spool.entries[*at];
        let mut item = Item::of_image(spool, spooled)?;
        let plain = match item.headers {
            Headers::Archive(_) => spool.header_fields(spooled)?,
            Headers::New(_) => None,
        };
        all_fields.push(match plain {
            Some(fields) => fields,
            None => {
                item.write_headers();
                toc::fields_of(&item.entry)
            }
        });
        items.push(item);
    }
    Ok((items, all_fields))
}

/// The blob as it grows.
struct BlobWriter<'a> {
    output: BlobOutput<'a>,
    items: &'a [Item<'a>],
    places: Places,
    /// `None` if the layer gets no TOC.
    tar_split: Option<TarSplitFrames>,
    longest: &'a Longest,
    /// Why the layer gets no TOC.
    not_lazy: Option<NotLazy>,
    file: OpenFile,
}

/// A layer with a TOC.
struct Described {
    toc_digest: Digest,
    /// What its descriptor must say.
    annotations: BTreeMap<String, String>,
}

/// The file whose data are being written, if they do not come all at once.
#[derive(Default)]
struct OpenFile {
    digest: Sha256,
    crc64: Crc64,
    filled: u64,
}

impl BlobWriter<'_> {
    fn add(&mut self, job: &PackedJob) -> Result<(), WriteError> {
        for part in &job.parts {
            self.add_part(part, job);
        }
        self.output.put(&job.uncompressed, &job.compressed)?;
        self.flush_tar_split()
    }

    /// Compresses what there is of tar-split data, or gives them up if they become too long.
    fn flush_tar_split(&mut self) -> Result<(), WriteError> {
        let Some(tar_split) = &mut self.tar_split else { return Ok(()) };
        tar_split.flush()?;
        let length = tar_split.length;
        if length > self.longest.tar_split {
            self.give_up(length, self.longest.tar_split);
        }
        Ok(())
    }

    /// What describes the layer would be too long: it gets no TOC.
    fn give_up(&mut self, length: u64, limit: u64) {
        self.not_lazy = Some(NotLazy::TooLong { length, limit });
        self.tar_split = None;
        self.places = Places::default();
    }

    fn add_part(&mut self, part: &PackedPart, job: &PackedJob) {
        let Some(TarSplitFrames { writer, .. }) = &mut self.tar_split else { return };
        match part {
            PackedPart::Headers { item, bytes, are_last } => {
                writer.bytes(&job.uncompressed[bytes.clone()]);
                if *are_last && self.items[*item].size == 0 {
                    writer.entry(toc::text(&self.items[*item].entry.path), 0, 0);
                }
            }
            PackedPart::Padding(bytes) => writer.bytes(&job.uncompressed[bytes.clone()]),
            PackedPart::Data { item, bytes, chunks, whole } => {
                let item = &self.items[*item];
                let offset = self.output.offset();
                self.places.chunks.extend(chunks.iter().map(|chunk| chunk.at(offset)));
                let (digest, crc64) = match whole {
                    Some(whole) => *whole,
                    None => {
                        let data = &job.uncompressed[bytes.clone()];
                        self.file.digest.update(data);
                        self.file.crc64.update(data);
                        self.file.filled += data.len() as u64;
                        if self.file.filled < item.size {
                            return;
                        }
                        let OpenFile { digest, crc64, .. } = std::mem::take(&mut self.file);
                        (digest.finalize().into(), crc64.finish())
                    }
                };
                let end = self.places.chunks.last().map_or(0, |chunk| chunk.blob.end);
                self.places.files.push(FilePlace { digest, end });
                writer.entry(toc::text(&item.entry.path), item.size, crc64);
            }
        }
    }

    /// Writes the end of the archive.
    fn end(&mut self, end: &[u8], compressor: &mut Compressor) -> Result<(), WriteError> {
        let frame = compressor.frame(end)?;
        self.output.put(end, &frame)?;
        let Some(tar_split) = &mut self.tar_split else { return Ok(()) };
        // As the reference splits it: padding and two blocks, then all else.
        let (first, rest) = end.split_at(END_OF_ARCHIVE.len().min(end.len()));
        tar_split.writer.bytes(first);
        tar_split.writer.end_segment();
        tar_split.writer.bytes(rest);
        tar_split.writer.end_segment();
        self.flush_tar_split()
    }

    /// Writes TOC, tar-split data and footer; nothing of them if the TOC is too long.
    fn describe(
        &mut self,
        fields: &[HeaderFields],
        tar_split: &CompressedTarSplit,
        compressor: &mut Compressor,
    ) -> Result<Option<Described>, WriteError> {
        let tar_split_digest = Digest::sha256_of(&tar_split.frame);
        let json = toc::json(self.items, fields, &self.places, tar_split_digest.as_str())?;
        let decoded_length = json.len() as u64;
        let compressed = compressor.frame(&json)?;
        let length = decoded_length.max(compressed.len() as u64);
        if length > self.longest.toc {
            self.give_up(length, self.longest.toc);
            return Ok(None);
        }
        let toc_digest = Digest::sha256_of(&compressed);
        let positions = Positions {
            toc: self.put_skippable(&compressed, decoded_length)?,
            tar_split: Some(self.put_skippable(&tar_split.frame, tar_split.decoded_length)?),
        };
        self.output.put(&[], &footer_frame(&positions))?;
        let annotations = claims::annotations(&toc_digest, &positions);
        Ok(Some(Described { toc_digest, annotations }))
    }

    fn put_skippable(&mut self, data: &[u8], decoded_length: u64) -> Result<Place, WriteError> {
        let length = u32::try_from(data.len()).map_err(|error| WriteError::Compress(error.to_string()))?;
        let offset = self.output.offset() + SKIPPABLE_HEADER;
        self.output.put(&[], &[&SKIPPABLE_MAGIC[..], &length.to_le_bytes(), data].concat())?;
        Ok(Place { offset, compressed_length: u64::from(length), decoded_length })
    }
}

/// tar-split data that are compressed as they are made: they have the length of all headers, and a third more.
struct TarSplitFrames {
    writer: TarSplitWriter,
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    length: u64,
}

struct CompressedTarSplit {
    frame: Vec<u8>,
    decoded_length: u64,
}

impl TarSplitFrames {
    fn new(level: u32) -> Result<Self, WriteError> {
        let encoder = zstd::stream::write::Encoder::new(Vec::new(), zstd_level(level)).map_err(failed)?;
        Ok(TarSplitFrames { writer: TarSplitWriter::default(), encoder, length: 0 })
    }

    fn flush(&mut self) -> Result<(), WriteError> {
        let json = self.writer.take();
        self.length += json.len() as u64;
        self.encoder.write_all(&json).map_err(failed)
    }

    fn finish(self) -> Result<CompressedTarSplit, WriteError> {
        let frame = self.encoder.finish().map_err(failed)?;
        Ok(CompressedTarSplit { frame, decoded_length: self.length })
    }
}

/// Zstd's levels are signed; ours are not beyond [`MAXIMUM_LEVEL`].
fn zstd_level(level: u32) -> i32 {
    level.min(MAXIMUM_LEVEL) as i32
}

fn failed(error: std::io::Error) -> WriteError {
    WriteError::Compress(error.to_string())
}
