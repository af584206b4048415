//! The formats in which layers are written. What a format is beyond its name is in its folder in `layer/`.

use std::io::Write;
use std::num::NonZeroUsize;

use crate::layer::compression::Compression;
use crate::layer::estargz::TOC_IMAGE_SUFFIX;
use crate::layer::estargz::writer::{EstargzOptions, write_estargz};
use crate::layer::spool::Spool;
use crate::layer::write::plain::write_plain;
use crate::layer::write::{WriteError, WrittenLayer};
use crate::layer::zstd_chunked::writer::{ZstdChunkedOptions, write_zstd_chunked};

/// A format, and how it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// A tar.gz with a table of contents.
    Estargz(EstargzOptions),
    /// A tar.zst with a table of contents, of podman's dialect.
    ZstdChunked(ZstdChunkedOptions),
    /// The archive as it is, compressed so.
    Plain(Compression),
}

impl Format {
    /// What the tag of the image with the layers' tables of contents has after that of the image itself, if they go into one.
    pub(super) fn toc_image_suffix(&self) -> Option<&'static str> {
        match self {
            Format::Estargz(options) => options.external_toc.then_some(TOC_IMAGE_SUFFIX),
            Format::ZstdChunked(_) | Format::Plain(_) => None,
        }
    }

    /// Writes the layer in `spool` to `output`, the files named in `wanted` first. `progress` is told how many uncompressed bytes
    /// have been written so far, of about those of the spool.
    ///
    /// # Errors
    /// [`WriteError`]; what was written so far is worthless then.
    pub(super) fn write(
        &self,
        spool: &Spool,
        wanted: &[Vec<u8>],
        output: &mut dyn Write,
        progress: &dyn Fn(u64),
    ) -> Result<WrittenLayer, WriteError> {
        match self {
            Format::Estargz(options) => write_estargz(spool, wanted, options, output, progress),
            Format::ZstdChunked(options) => write_zstd_chunked(spool, wanted, options, output, progress),
            Format::Plain(compression) => {
                let threads = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
                write_plain(spool, *compression, threads, output, progress)
            }
        }
    }
}
