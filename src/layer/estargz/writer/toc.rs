//! The TOC's JSON (stargz-snapshotter, `estargz/types.go`).

use std::collections::{BTreeMap, HashMap};
use std::slice::Iter;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::layer::entry::EntryKind;
use crate::layer::write::WriteError;
use crate::layer::write::items::Item;
use crate::layer::write::time::rfc3339;

/// Where a chunk was written, and its digest.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkPlace {
    /// Where its member begins in the blob.
    pub offset: u64,
    /// Where it begins in what the member decodes to.
    pub inner_offset: u64,
    pub length: u64,
    pub digest: [u8; 32],
}

pub(super) struct TocJson {
    pub json: Vec<u8>,
    /// Names were changed, as they are not UTF-8.
    pub names_are_lossy: bool,
}

#[derive(Serialize)]
struct Toc {
    version: u32,
    entries: Vec<TocEntry>,
}

/// As Go writes it: what is zero or empty is left out.
#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct TocEntry {
    name: String,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(skip_serializing_if = "is_zero")]
    size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    modtime: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: u64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: u64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    user_name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    inner_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: u64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: u64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    digest: String,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_size: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    chunk_digest: String,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// The JSON for `items`, whose data was written to `places`; `file_digests` are those of the files of several chunks. All three are
/// in the order of the blob.
pub(super) fn json(
    items: &[Item<'_>],
    places: &[ChunkPlace],
    file_digests: &[[u8; 32]],
) -> Result<TocJson, WriteError> {
    let mut builder = Builder {
        places: places.iter(),
        file_digests: file_digests.iter(),
        users: HashMap::new(),
        groups: HashMap::new(),
        entries: Vec::with_capacity(items.len()),
        names_are_lossy: false,
    };
    for item in items {
        builder.add(item);
    }
    let toc = Toc { version: 1, entries: builder.entries };
    let mut json = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    toc.serialize(&mut serde_json::Serializer::with_formatter(&mut json, formatter))
        .map_err(|error| WriteError::Output(error.into()))?;
    Ok(TocJson { json, names_are_lossy: builder.names_are_lossy })
}

struct Builder<'a> {
    places: Iter<'a, ChunkPlace>,
    file_digests: Iter<'a, [u8; 32]>,
    /// The last names of each user and group.
    users: HashMap<u32, &'a [u8]>,
    groups: HashMap<u32, &'a [u8]>,
    entries: Vec<TocEntry>,
    names_are_lossy: bool,
}

impl<'a> Builder<'a> {
    fn add(&mut self, item: &'a Item<'a>) {
        let entry = &item.entry;
        let mut toc_entry = TocEntry {
            name: self.name(&entry.path),
            modtime: rfc3339(entry.modified),
            mode: entry.mode.into(),
            uid: entry.uid.into(),
            gid: entry.gid.into(),
            user_name: if_changed(&mut self.users, entry.uid, &item.names.user),
            group_name: if_changed(&mut self.groups, entry.gid, &item.names.group),
            ..TocEntry::default()
        };
        for (name, value) in &entry.xattrs {
            let name = self.name(name);
            toc_entry.xattrs.insert(name, BASE64.encode(value));
        }
        match &entry.kind {
            EntryKind::Regular { .. } => return self.add_file(toc_entry, item.size),
            EntryKind::Directory => toc_entry.kind = "dir",
            EntryKind::Symlink { target } => {
                toc_entry.kind = "symlink";
                toc_entry.link_name = self.name(target);
            }
            EntryKind::Hardlink { target } => {
                toc_entry.kind = "hardlink";
                toc_entry.link_name = self.name(target);
            }
            EntryKind::CharacterDevice { major, minor } => {
                toc_entry.kind = "char";
                (toc_entry.dev_major, toc_entry.dev_minor) = ((*major).into(), (*minor).into());
            }
            EntryKind::BlockDevice { major, minor } => {
                toc_entry.kind = "block";
                (toc_entry.dev_major, toc_entry.dev_minor) = ((*major).into(), (*minor).into());
            }
            EntryKind::Fifo => toc_entry.kind = "fifo",
        }
        self.entries.push(toc_entry);
    }

    /// The first chunk is the file's own entry; the others name it, and follow it.
    fn add_file(&mut self, mut toc_entry: TocEntry, size: u64) {
        toc_entry.kind = "reg";
        toc_entry.size = size;
        if size == 0 {
            toc_entry.digest = digest_text(&Sha256::digest([]).into());
            self.entries.push(toc_entry);
            return;
        }
        let file = self.entries.len();
        let name = toc_entry.name.clone();
        let mut next = Some(toc_entry);
        let mut filled = 0;
        let mut last = [0; 32];
        while filled < size {
            // As many as the file was cut into.
            let Some(place) = self.places.next() else { break };
            let continued = || TocEntry { name: name.clone(), kind: "chunk", ..TocEntry::default() };
            let mut toc_entry = next.take().unwrap_or_else(continued);
            toc_entry.offset = place.offset;
            toc_entry.inner_offset = place.inner_offset;
            toc_entry.chunk_offset = filled;
            filled += place.length;
            // 0 means up to the end of the file.
            toc_entry.chunk_size = if filled < size { place.length } else { 0 };
            toc_entry.chunk_digest = digest_text(&place.digest);
            last = place.digest;
            self.entries.push(toc_entry);
        }
        let is_split = self.entries.len() > file + 1;
        let digest = if is_split { self.file_digests.next().unwrap_or(&last) } else { &last };
        self.entries[file].digest = digest_text(digest);
    }

    /// JSON holds UTF-8 only. As Go does, U+FFFD stands for each other byte.
    fn name(&mut self, name: &[u8]) -> String {
        let mut text = String::with_capacity(name.len());
        for part in name.utf8_chunks() {
            text.push_str(part.valid());
            for _ in part.invalid() {
                self.names_are_lossy = true;
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        text
    }
}

/// A name, if it is another than the last of that number: readers keep it.
fn if_changed<'a>(known: &mut HashMap<u32, &'a [u8]>, id: u32, name: &'a [u8]) -> String {
    if name.is_empty() || known.insert(id, name) == Some(name) {
        return String::new();
    }
    String::from_utf8_lossy(name).into_owned()
}

fn digest_text(digest: &[u8; 32]) -> String {
    format!("sha256:{}", crate::layer::toc::hex(digest))
}
