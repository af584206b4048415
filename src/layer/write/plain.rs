//! An archive as it is, compressed: what every tool reads.
//!
//! It is cut into pieces of one length, each a gzip member or a zstd frame of its own: so all cores compress it, the result is the same on any
//! number of them, and whoever reads it lazily can begin at each.

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::ops::Range;

use flate2::GzBuilder;

use super::output::BlobOutput;
use super::{WriteError, WrittenLayer};
use crate::layer::compression::Compression;
use crate::layer::ordered::in_order;
use crate::layer::spool::Spool;

/// Uncompressed bytes of a piece. Members of 4 MiB are less than 0.1 % larger in all than one member would be.
const PIECE: u64 = 4 << 20;
/// How hard deflate tries: what other tools choose.
const GZIP_LEVEL: u32 = 6;
/// How hard zstd tries: what other tools choose.
const ZSTD_LEVEL: i32 = 3;

/// Writes the archive in `spool` to `output`, to the byte. `progress` is told how many uncompressed bytes have been written so far.
///
/// # Errors
/// [`WriteError`]; what was written so far is worthless then.
pub fn write_plain(
    spool: &Spool,
    compression: Compression,
    threads: NonZeroUsize,
    output: &mut dyn Write,
    progress: &dyn Fn(u64),
) -> Result<WrittenLayer, WriteError> {
    let length = spool.length()?;
    let mut blob = BlobOutput::new(output);
    let pieces = (0..length.div_ceil(PIECE)).map(|number| {
        let start = number * PIECE;
        start..length.min(start + PIECE)
    });
    let worker = || {
        |piece: Range<u64>| {
            let mut uncompressed = Vec::new();
            spool.append(piece, &mut uncompressed)?;
            let compressed = compress(&uncompressed, compression)?;
            Ok((uncompressed, compressed))
        }
    };
    in_order(threads, pieces, worker, |(uncompressed, compressed): (Vec<u8>, Option<Vec<u8>>)| {
        blob.put(&uncompressed, compressed.as_deref().unwrap_or(&uncompressed))?;
        progress(blob.uncompressed());
        Ok::<_, WriteError>(())
    })?;
    let (diff_id, uncompressed_size) = blob.finish();
    Ok(WrittenLayer {
        compression,
        annotations: BTreeMap::new(),
        diff_id,
        uncompressed_size,
        toc_digest: None,
        external_toc: None,
        missed: Vec::new(),
        not_lazy: None,
    })
}

/// A piece compressed; nothing if it stays as it is.
fn compress(bytes: &[u8], compression: Compression) -> Result<Option<Vec<u8>>, WriteError> {
    let compressed = match compression {
        Compression::None => return Ok(None),
        Compression::Gzip => {
            let mut member = GzBuilder::new().write(Vec::new(), flate2::Compression::new(GZIP_LEVEL));
            member.write_all(bytes).and_then(|()| member.finish())
        }
        Compression::Zstd => zstd::bulk::compress(bytes, ZSTD_LEVEL),
    };
    compressed.map(Some).map_err(|error| WriteError::Compress(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use peelfs_registry::Digest;
    use std::io::Read;

    #[test]
    fn what_is_written_decodes_to_the_archive_and_is_the_same_on_any_number_of_threads() {
        let archive: Vec<u8> =
            (0..9_000_001_u32).map(|number| (number / 7).wrapping_mul(number) as u8).collect();
        for (compression, length) in [
            (Compression::Gzip, archive.len()),
            (Compression::Zstd, 4 << 20),
            (Compression::Gzip, 1),
            (Compression::None, 5 << 20),
        ] {
            let archive = &archive[..length];
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(archive).unwrap();
            let spool = Spool::new(file, Vec::new());
            let write = |threads| {
                let mut blob = Vec::new();
                let written =
                    write_plain(&spool, compression, NonZeroUsize::new(threads).unwrap(), &mut blob, &|_| {})
                        .unwrap();
                (blob, written)
            };
            let (blob, written) = write(1);
            assert_eq!(write(3), (blob.clone(), written.clone()));
            let mut decoded = Vec::new();
            match compression {
                Compression::None => Read::read_to_end(&mut &*blob, &mut decoded).unwrap(),
                Compression::Gzip => {
                    flate2::read::MultiGzDecoder::new(&*blob).read_to_end(&mut decoded).unwrap()
                }
                Compression::Zstd => zstd::Decoder::new(&*blob).unwrap().read_to_end(&mut decoded).unwrap(),
            };
            assert!(decoded == archive);
            assert_eq!(written.diff_id, Digest::sha256_of(archive));
            assert_eq!(written.uncompressed_size, length as u64);
        }
    }
}
