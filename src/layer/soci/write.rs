//! From the types of a zTOC to its bytes.
//!
//! A flatbuffer is built from its end: what a table points at is written before it, the last entry of the archive first, so that entries
//! lie in the archive's order. The fields of each table are given in one order, and a field of the value 0 is left out, as the
//! reference does: the same values give the same bytes.

use flatbuffers::{FlatBufferBuilder, TableFinishedWIPOffset, WIPOffset};

use super::schema::slot;
use super::ztoc::{CompressionAlgorithm, FileMetadata, Ztoc};
use crate::layer::entry::Timestamp;
use crate::layer::toc;
use crate::layer::write::time::rfc3339;

type Offset = WIPOffset<TableFinishedWIPOffset>;

/// See [`Ztoc::write`].
pub(super) fn write(ztoc: &Ztoc) -> Vec<u8> {
    // An entry with a name of 60 bytes and no records.
    const USUAL_FILE: usize = 250;
    let compression = &ztoc.compression;
    let capacity = compression.checkpoints.len()
        + compression.span_digests.len() * 84
        + ztoc.files.len() * USUAL_FILE
        + (1 << 10);
    let mut builder = FlatBufferBuilder::with_capacity(capacity);
    let version = builder.create_byte_string(&ztoc.version);
    let build_tool = builder.create_byte_string(&ztoc.build_tool);

    let mut files: Vec<Offset> =
        ztoc.files.iter().rev().map(|metadata| file(&mut builder, metadata)).collect();
    files.reverse();
    let files = builder.create_vector(&files);
    let toc = builder.start_table();
    builder.push_slot_always(slot(0), files);
    let toc = builder.end_table(toc);

    let checkpoints = builder.create_vector(&compression.checkpoints);
    let digests: Vec<_> = compression
        .span_digests
        .iter()
        .map(|digest| builder.create_byte_string(format!("sha256:{}", toc::hex(digest)).as_bytes()))
        .collect();
    let digests = builder.create_vector(&digests);
    let information = builder.start_table();
    // Its default is gzip, and readers know it only from there.
    builder.push_slot(slot(0), compression.algorithm as i8, CompressionAlgorithm::default() as i8);
    // Readers have it as a signed number, and no layer has as many.
    builder.push_slot(slot(1), i32::try_from(compression.max_span_id).unwrap_or(i32::MAX), 0);
    builder.push_slot_always(slot(2), digests);
    builder.push_slot_always(slot(3), checkpoints);
    let information = builder.end_table(information);

    let root = builder.start_table();
    builder.push_slot_always(slot(0), version);
    builder.push_slot_always(slot(1), build_tool);
    builder.push_slot(slot(2), signed(ztoc.compressed_size), 0);
    builder.push_slot(slot(3), signed(ztoc.uncompressed_size), 0);
    builder.push_slot_always(slot(4), toc);
    builder.push_slot_always(slot(5), information);
    let root = builder.end_table(root);
    builder.finish_minimal(root);
    builder.finished_data().to_vec()
}

fn file(builder: &mut FlatBufferBuilder<'_>, file: &FileMetadata) -> Offset {
    let name = builder.create_byte_string(&file.name);
    let kind = builder.create_byte_string(file.kind.name().as_bytes());
    let link_name = builder.create_byte_string(&file.link_name);
    let user_name = builder.create_byte_string(&file.user_name);
    let group_name = builder.create_byte_string(&file.group_name);
    let modified = builder.create_byte_string(file.modified.map(time).unwrap_or_default().as_bytes());
    let records: Vec<Offset> = file
        .pax_records
        .iter()
        .map(|(key, value)| {
            let (key, value) = (builder.create_byte_string(key), builder.create_byte_string(value));
            let record = builder.start_table();
            builder.push_slot_always(slot(0), key);
            builder.push_slot_always(slot(1), value);
            builder.end_table(record)
        })
        .collect();
    let records = builder.create_vector(&records);
    let table = builder.start_table();
    builder.push_slot_always(slot(0), name);
    builder.push_slot_always(slot(1), kind);
    builder.push_slot(slot(2), signed(file.uncompressed_offset), 0);
    builder.push_slot(slot(3), signed(file.uncompressed_size), 0);
    builder.push_slot_always(slot(4), link_name);
    builder.push_slot(slot(5), file.mode, 0);
    builder.push_slot(slot(6), file.uid, 0);
    builder.push_slot(slot(7), file.gid, 0);
    builder.push_slot_always(slot(8), user_name);
    builder.push_slot_always(slot(9), group_name);
    builder.push_slot_always(slot(10), modified);
    builder.push_slot(slot(11), file.device_major, 0);
    builder.push_slot(slot(12), file.device_minor, 0);
    builder.push_slot_always(slot(13), records);
    builder.end_table(table)
}

/// Sizes and offsets are signed in the schema; those of a layer are far below.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn time(time: Timestamp) -> String {
    let text = rfc3339(time);
    // In other tables of contents the beginning of 1970 is written as nothing.
    if text.is_empty() { "1970-01-01T00:00:00Z".to_owned() } else { text }
}
