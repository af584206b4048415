//! From the bytes of a zTOC to its types: each field there, and in the range of its type.

use flatbuffers::{InvalidFlatbuffer, Vector};

use super::fault::{FileFault, SociError};
use super::schema::{self, File};
use super::ztoc::{CompressionAlgorithm, CompressionInfo, FileMetadata, FileType, MAXIMUM_ZTOC, Ztoc};
use crate::layer::toc::{self, parse_rfc3339};

/// Bytes that an entry with a name of its own takes at the least. What states more entries than fit has them share one name.
const SMALLEST_FILE: usize = 32;

/// See [`Ztoc::read`].
pub(super) fn read(bytes: &[u8]) -> Result<Ztoc, SociError> {
    if bytes.len() as u64 > MAXIMUM_ZTOC {
        return Err(SociError::TooLarge { length: bytes.len() as u64, limit: MAXIMUM_ZTOC });
    }
    let root = schema::root(bytes).map_err(not_a_flatbuffer)?;
    let compression = root.compression().ok_or(SociError::Missing { field: "compression_info" })?;
    let files = root.toc().and_then(|toc| toc.metadata()).ok_or(SociError::Missing { field: "toc" })?;
    if files.len() > bytes.len() / SMALLEST_FILE {
        return Err(SociError::Flatbuffer { reason: "more entries than fit into its length".to_owned() });
    }
    let algorithm = match compression.algorithm() {
        None | Some(1) => CompressionAlgorithm::Gzip,
        Some(2) => CompressionAlgorithm::Uncompressed,
        Some(number) => return Err(SociError::Algorithm { number }),
    };
    let digest = |text: Vector<u8>| {
        let text = std::str::from_utf8(text.bytes()).ok();
        text.and_then(toc::sha256).ok_or(SociError::SpanDigest)
    };
    Ok(Ztoc {
        version: owned(root.version()),
        build_tool: owned(root.build_tool()),
        compressed_size: unsigned("compressed_archive_size", root.compressed_size())?,
        uncompressed_size: unsigned("uncompressed_archive_size", root.uncompressed_size())?,
        files: files.iter().map(|file| metadata(&file)).collect::<Result<_, _>>()?,
        compression: CompressionInfo {
            algorithm,
            max_span_id: unsigned("max_span_id", compression.max_span_id())?,
            span_digests: compression
                .span_digests()
                .map(|digests| digests.iter().map(digest).collect())
                .transpose()?
                .unwrap_or_default(),
            checkpoints: owned(compression.checkpoints()),
        },
    })
}

fn metadata(file: &File<'_>) -> Result<FileMetadata, SociError> {
    let name = owned(file.name());
    let fault = |fault| SociError::File { name: name.escape_ascii().to_string(), fault };
    let kind = owned(file.kind());
    let kind = FileType::from_name(&kind)
        .ok_or_else(|| fault(FileFault::Type(kind[..kind.len().min(20)].escape_ascii().to_string())))?;
    let offset = |field, value: Option<i64>| {
        let value = value.unwrap_or(0);
        u64::try_from(value).map_err(|_| fault(FileFault::OutOfRange { field, value }))
    };
    let modified = file.modified().and_then(|text| parse_rfc3339(std::str::from_utf8(text.bytes()).ok()?));
    let records = file
        .records()
        .map(|records| records.iter().map(|record| (owned(record.key()), owned(record.value()))).collect());
    Ok(FileMetadata {
        kind,
        uncompressed_offset: offset("uncompressed_offset", file.uncompressed_offset())?,
        uncompressed_size: offset("uncompressed_size", file.uncompressed_size())?,
        link_name: owned(file.link_name()),
        mode: file.mode().unwrap_or(0),
        uid: file.uid().unwrap_or(0),
        gid: file.gid().unwrap_or(0),
        user_name: owned(file.user_name()),
        group_name: owned(file.group_name()),
        modified,
        device_major: file.device_major().unwrap_or(0),
        device_minor: file.device_minor().unwrap_or(0),
        pax_records: records.unwrap_or_default(),
        name,
    })
}

fn owned(bytes: Option<Vector<'_, u8>>) -> Vec<u8> {
    bytes.map(|bytes| bytes.bytes().to_vec()).unwrap_or_default()
}

/// A number that is not negative; 0 where nothing is said.
fn unsigned<Stored: Into<i64>, T: TryFrom<i64>>(
    field: &'static str,
    value: Option<Stored>,
) -> Result<T, SociError> {
    let value = value.map_or(0, Into::into);
    if value < 0 {
        return Err(SociError::OutOfRange { field, value });
    }
    T::try_from(value).map_err(|_| SociError::OutOfRange { field, value })
}

/// The library says more than one line, of which the first tells what is wrong.
fn not_a_flatbuffer(error: InvalidFlatbuffer) -> SociError {
    let text = error.to_string();
    let reason = text.lines().next().unwrap_or_default().trim_end_matches('.').to_owned();
    SociError::Flatbuffer { reason }
}
