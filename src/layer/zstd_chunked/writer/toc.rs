//! The TOC's JSON (containers/storage, `pkg/chunked/internal/minimal/compression.go`).

use std::collections::BTreeMap;
use std::ops::Range;
use std::slice::Iter;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;

use crate::layer::entry::{Entry, EntryKind, Timestamp};
use crate::layer::tar::HeaderFields;
use crate::layer::toc::hex;
use crate::layer::write::items::Item;
use crate::layer::write::time::rfc3339;
use crate::layer::write::{NotLazy, WriteError};

/// First second of the year 0, and the last of the year 9999: what Go's `time` reads from JSON.
const TIMES: Range<i64> = -62_167_219_200..253_402_300_800;

/// Where a chunk was written.
#[derive(Clone, Debug)]
pub(super) struct ChunkPlace {
    /// Its frame in the blob.
    pub blob: Range<u64>,
    pub length: u64,
    pub is_zeros: bool,
    pub digest: [u8; 32],
}

/// A file that has data.
#[derive(Clone, Debug)]
pub(super) struct FilePlace {
    pub digest: [u8; 32],
    /// Where its last frame ends in the blob.
    pub end: u64,
}

/// Of all files that have data, in the order of the blob.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub chunks: Vec<ChunkPlace>,
    pub files: Vec<FilePlace>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Toc<'a> {
    version: u32,
    entries: Vec<TocEntry<'a>>,
    tar_split_digest: &'a str,
}

/// As Go writes it: what is zero or empty is left out.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    link_name: &'a str,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    modtime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accesstime: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changetime: Option<String>,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<&'a str, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
    #[serde(skip_serializing_if = "str::is_empty")]
    chunk_type: &'static str,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// What the headers that we write for `entry` say beside it.
pub(super) fn fields_of(entry: &Entry) -> HeaderFields {
    let (major, minor) = match entry.kind {
        EntryKind::CharacterDevice { major, minor } | EntryKind::BlockDevice { major, minor } => {
            (major.into(), minor.into())
        }
        _ => (0, 0),
    };
    HeaderFields { mode: entry.mode.into(), accessed: None, changed: None, major, minor }
}

/// Why a TOC cannot have that entry.
pub(super) fn not_lazy(item: &Item<'_>, fields: &HeaderFields) -> Option<NotLazy> {
    let entry = &item.entry;
    let target = link_target(entry);
    let names = [&entry.path[..], target].into_iter().chain(entry.xattrs.iter().map(|(name, _)| &name[..]));
    if names.into_iter().any(|name| std::str::from_utf8(name).is_err()) {
        return Some(NotLazy::Names);
    }
    let times = [Some(entry.modified), fields.accessed, fields.changed];
    let is_outside = |time: Timestamp| !TIMES.contains(&time.seconds);
    times.into_iter().flatten().any(is_outside).then_some(NotLazy::Times)
}

/// Text for which [`not_lazy`] found no reason.
pub(super) fn text(name: &[u8]) -> &str {
    std::str::from_utf8(name).unwrap_or_default()
}

fn link_target(entry: &Entry) -> &[u8] {
    match &entry.kind {
        EntryKind::Symlink { target } | EntryKind::Hardlink { target } => target,
        _ => &[],
    }
}

/// The JSON for `items`, all of which a TOC can have.
pub(super) fn json(
    items: &[Item<'_>],
    fields: &[HeaderFields],
    places: &Places,
    tar_split_digest: &str,
) -> Result<Vec<u8>, WriteError> {
    let mut entries = Vec::with_capacity(items.len());
    let (mut chunks, mut files) = (places.chunks.iter(), places.files.iter());
    for (item, fields) in items.iter().zip(fields) {
        let entry = entry(item, fields);
        match files.as_slice().first() {
            Some(file) if item.size > 0 => {
                files.next();
                add_file(entry, file, &mut chunks, &mut entries);
            }
            _ => entries.push(entry),
        }
    }
    let toc = Toc { version: 1, entries, tar_split_digest };
    serde_json::to_vec(&toc).map_err(|error| WriteError::Output(error.into()))
}

fn entry<'a>(item: &'a Item<'_>, fields: &HeaderFields) -> TocEntry<'a> {
    let entry = &item.entry;
    TocEntry {
        kind: match entry.kind {
            EntryKind::Regular { .. } => "reg",
            EntryKind::Directory => "dir",
            EntryKind::Symlink { .. } => "symlink",
            EntryKind::Hardlink { .. } => "hardlink",
            EntryKind::CharacterDevice { .. } => "char",
            EntryKind::BlockDevice { .. } => "block",
            EntryKind::Fifo => "fifo",
        },
        name: text(&entry.path),
        link_name: text(link_target(entry)),
        mode: fields.mode,
        size: item.size,
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        modtime: Some(time(entry.modified)),
        accesstime: fields.accessed.map(time),
        changetime: fields.changed.map(time),
        dev_major: fields.major,
        dev_minor: fields.minor,
        xattrs: entry.xattrs.iter().map(|(name, value)| (text(name), BASE64.encode(value))).collect(),
        ..TocEntry::default()
    }
}

/// A file and its chunks: fields of chunks count only where there are several. Offset and end are those of the file; a chunk ends
/// where the next begins.
fn add_file<'a>(
    mut file: TocEntry<'a>,
    place: &FilePlace,
    chunks: &mut Iter<'_, ChunkPlace>,
    entries: &mut Vec<TocEntry<'a>>,
) {
    let (name, size) = (file.name, file.size);
    file.digest = digest_text(&place.digest);
    file.end_offset = place.end;
    let mut next = Some(file);
    let mut filled = 0;
    while filled < size {
        // As many as the file was cut into.
        let Some(chunk) = chunks.next() else { break };
        let mut entry =
            next.take().unwrap_or_else(|| TocEntry { kind: "chunk", name, ..TocEntry::default() });
        entry.offset = chunk.blob.start;
        if chunk.length < size {
            entry.chunk_offset = filled;
            entry.chunk_size = chunk.length;
            entry.chunk_digest = digest_text(&chunk.digest);
            entry.chunk_type = if chunk.is_zeros { "zeros" } else { "" };
        }
        filled += chunk.length;
        entries.push(entry);
    }
}

/// The beginning of 1970 is said, as the reference does.
fn time(time: Timestamp) -> String {
    let text = rfc3339(time);
    if text.is_empty() { "1970-01-01T00:00:00Z".to_owned() } else { text }
}

fn digest_text(digest: &[u8; 32]) -> String {
    format!("sha256:{}", hex(digest))
}
