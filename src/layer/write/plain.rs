//! A layer compressed as a whole, as every tool writes it: the archive stays what it was, to the byte.

use std::collections::BTreeMap;
use std::io::Write;

use peelfs_registry::Digester;
use peelfs_registry::digest::Algorithm;

use super::{WriteError, WrittenLayer};
use crate::layer::compression::Compression;
use crate::layer::spool::Spool;

/// Bytes of the archive that are read at once.
const STEP: u64 = 1 << 20;

/// How hard to compress if nobody says: what the usual tools take.
pub const GZIP_LEVEL: u32 = 6;
/// The same for zstd.
pub const ZSTD_LEVEL: i32 = 3;

/// Writes the layer in `spool` to `output`, compressed so. None of the files in it comes first. `progress` is told how many
/// uncompressed bytes have been written so far.
///
/// # Errors
/// [`WriteError`]; what was written so far is worthless then.
pub fn write_plain(
    spool: &Spool,
    compression: Compression,
    output: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<WrittenLayer, WriteError> {
    let failed = |error: std::io::Error| WriteError::Output(error.into());
    let mut hasher = Digester::new(Algorithm::Sha256);
    let uncompressed_size = match compression {
        Compression::None => copy(spool, output, &mut hasher, progress)?,
        Compression::Gzip => {
            // Without a time and a system, so that the same layer gives the same blob everywhere.
            let level = flate2::Compression::new(GZIP_LEVEL);
            let mut encoder = flate2::GzBuilder::new().operating_system(255).write(output, level);
            let size = copy(spool, &mut encoder, &mut hasher, progress)?;
            encoder.finish().map_err(failed)?;
            size
        }
        Compression::Zstd => {
            let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL).map_err(failed)?;
            encoder.include_checksum(true).map_err(failed)?;
            let size = copy(spool, &mut encoder, &mut hasher, progress)?;
            encoder.finish().map_err(failed)?;
            size
        }
    };
    Ok(WrittenLayer {
        compression,
        annotations: BTreeMap::new(),
        diff_id: hasher.finish(),
        uncompressed_size,
        toc_digest: None,
        external_toc: None,
        missed: Vec::new(),
        not_lazy: None,
    })
}

fn copy(
    spool: &Spool,
    output: &mut dyn Write,
    hasher: &mut Digester,
    progress: &dyn Fn(u64),
) -> Result<u64, WriteError> {
    let length = spool.length()?;
    let (mut position, mut buffer) = (0, Vec::new());
    while position < length {
        let end = length.min(position + STEP);
        buffer.clear();
        spool.append(position..end, &mut buffer)?;
        hasher.update(&buffer);
        output.write_all(&buffer).map_err(|error| WriteError::Output(error.into()))?;
        position = end;
        progress(position);
    }
    Ok(length)
}
