//! The TOC's JSON, read entry by entry into a [`Layout`]: no tree of values is built.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::layout::{Layout, Payload};
use super::{EntryFault, Parsed, PayloadRules, TocError, sha256, time};
use crate::layer::entry::{Content, Entry, EntryKind};
use crate::layer::tar::Limits;

/// An entry as the JSON has it. Names of users and groups are of no use here; what is unknown is ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TocEntry<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(rename = "type", borrow)]
    kind: Text<'a>,
    size: Option<i64>,
    #[serde(borrow)]
    modtime: Text<'a>,
    #[serde(borrow)]
    link_name: Text<'a>,
    mode: Option<i64>,
    uid: Option<i64>,
    gid: Option<i64>,
    offset: Option<i64>,
    inner_offset: Option<i64>,
    dev_major: Option<i64>,
    dev_minor: Option<i64>,
    xattrs: Option<BTreeMap<String, Option<String>>>,
    #[serde(borrow)]
    digest: Text<'a>,
    chunk_offset: Option<i64>,
    chunk_size: Option<i64>,
    #[serde(borrow)]
    chunk_digest: Text<'a>,
    end_offset: Option<i64>,
    #[serde(borrow)]
    chunk_type: Text<'a>,
}

/// A string as it stands in the JSON, copied only if it has escapes there; empty if it is missing or `null`. A layer has tens of
/// thousands of them.
#[derive(Debug, Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = Text<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'de>, E> {
        Ok(Text(Cow::Owned(text.to_owned())))
    }

    fn visit_unit<E>(self) -> Result<Text<'de>, E> {
        Ok(Text::default())
    }
}

/// See [`super::parse`].
pub(super) fn parse(json: &[u8], rules: PayloadRules) -> Result<Parsed, TocError> {
    let mut reader = Reader {
        layout: Layout::new(rules),
        version: None,
        tar_split_digest: None,
        last: String::new(),
        error: None,
    };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let parsed = reader.deserialize(&mut deserializer).and_then(|()| deserializer.end());
    if let Some(error) = reader.error {
        return Err(error);
    }
    parsed.map_err(|source| TocError::Json { after: reader.last, source })?;
    if reader.version != Some(1) {
        return Err(TocError::Version { version: reader.version.unwrap_or(0) });
    }
    let tar_split_digest = match reader.tar_split_digest.as_deref() {
        None | Some("") => None,
        Some(text) => Some(sha256(text).ok_or(TocError::Digest { field: "tarSplitDigest" })?),
    };
    Ok(Parsed { contents: reader.layout.finish()?, tar_split_digest })
}

struct Reader {
    layout: Layout,
    version: Option<i64>,
    tar_split_digest: Option<String>,
    /// Name of the last entry.
    last: String,
    /// Our own error: serde can carry only text.
    error: Option<TocError>,
}

impl Reader {
    fn deserialize<'de, D: Deserializer<'de>>(&mut self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(TocVisitor(self))
    }

    fn take(&mut self, entry: TocEntry<'_>) -> Result<(), TocError> {
        self.last.clear();
        self.last.push_str(&entry.name.0);
        self.add(entry).map_err(|fault| TocError::Entry { name: self.last.clone(), fault })
    }

    fn add(&mut self, toc_entry: TocEntry<'_>) -> Result<(), EntryFault> {
        let kind = &*toc_entry.kind.0;
        let regular = match kind {
            "chunk" => return self.layout.chunk(&self.last, &payload(&toc_entry)?),
            "reg" => Some(payload(&toc_entry)?),
            _ => None,
        };
        let mut entry = Entry {
            path: toc_entry.name.0.as_bytes().to_vec(),
            kind: EntryKind::Directory,
            // The mode of the tar header: some writers leave the type in it.
            mode: (number("mode", toc_entry.mode)? & 0o7777) as u32,
            uid: number_32("uid", toc_entry.uid)?,
            gid: number_32("gid", toc_entry.gid)?,
            modified: match &*toc_entry.modtime.0 {
                "" => Default::default(),
                text => time::parse(text).ok_or_else(|| EntryFault::Time(text.to_owned()))?,
            },
            xattrs: xattrs(&toc_entry)?,
        };
        let target = toc_entry.link_name.0.as_bytes().to_vec();
        let longest = entry.path.len().max(target.len());
        if longest > Limits::default().path {
            return Err(EntryFault::PathTooLong(longest));
        }
        let device =
            || Ok((number_32("devMajor", toc_entry.dev_major)?, number_32("devMinor", toc_entry.dev_minor)?));
        entry.kind = match (kind, regular) {
            (_, Some(payload)) => {
                let size = payload.size;
                entry.kind = EntryKind::Regular { size, content: Content::Contiguous(0) };
                return self.layout.regular(entry, &payload);
            }
            ("dir", _) => EntryKind::Directory,
            ("symlink", _) => EntryKind::Symlink { target },
            ("hardlink", _) => EntryKind::Hardlink { target },
            ("char", _) => device().map(|(major, minor)| EntryKind::CharacterDevice { major, minor })?,
            ("block", _) => device().map(|(major, minor)| EntryKind::BlockDevice { major, minor })?,
            ("fifo", _) => EntryKind::Fifo,
            (unknown, _) => return Err(EntryFault::Type(unknown.to_owned())),
        };
        self.layout.other(entry)
    }
}

fn number(field: &'static str, value: Option<i64>) -> Result<u64, EntryFault> {
    let value = value.unwrap_or(0);
    u64::try_from(value).map_err(|_| EntryFault::OutOfRange { field, value })
}

fn number_32(field: &'static str, value: Option<i64>) -> Result<u32, EntryFault> {
    let value = value.unwrap_or(0);
    u32::try_from(value).map_err(|_| EntryFault::OutOfRange { field, value })
}

fn payload<'a>(entry: &'a TocEntry<'_>) -> Result<Payload<'a>, EntryFault> {
    Ok(Payload {
        size: number("size", entry.size)?,
        offset: number("offset", entry.offset)?,
        inner_offset: number("innerOffset", entry.inner_offset)?,
        chunk_offset: number("chunkOffset", entry.chunk_offset)?,
        chunk_size: number("chunkSize", entry.chunk_size)?,
        digest: digest("digest", &entry.digest.0)?,
        chunk_digest: digest("chunkDigest", &entry.chunk_digest.0)?,
        end_offset: number("endOffset", entry.end_offset)?,
        chunk_type: &entry.chunk_type.0,
    })
}

/// A digest, if one is there; one of another algorithm is as good as a malformed one.
fn digest(field: &'static str, text: &str) -> Result<Option<[u8; 32]>, EntryFault> {
    if text.is_empty() {
        return Ok(None);
    }
    sha256(text).map(Some).ok_or(EntryFault::Digest { field })
}

type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

fn xattrs(entry: &TocEntry<'_>) -> Result<Xattrs, EntryFault> {
    let Some(xattrs) = &entry.xattrs else { return Ok(Vec::new()) };
    let one = |(name, value): (&String, &Option<String>)| {
        let malformed = || EntryFault::Xattr(name.clone());
        let value = BASE64.decode(value.as_deref().unwrap_or_default()).map_err(|_| malformed())?;
        let name_is_valid = (1..=255).contains(&name.len()) && !name.contains('\0');
        if !name_is_valid || value.len() > Limits::default().xattr_value {
            return Err(malformed());
        }
        Ok((name.clone().into_bytes(), value))
    };
    xattrs.iter().map(one).collect()
}

struct TocVisitor<'a>(&'a mut Reader);

impl<'de> Visitor<'de> for TocVisitor<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a table of contents")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut has_entries = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" if self.0.version.is_some() => {
                    return Err(serde::de::Error::duplicate_field("version"));
                }
                "version" => self.0.version = Some(map.next_value()?),
                "tarSplitDigest" if self.0.tar_split_digest.is_some() => {
                    return Err(serde::de::Error::duplicate_field("tarSplitDigest"));
                }
                "tarSplitDigest" => self.0.tar_split_digest = map.next_value()?,
                "entries" if has_entries => return Err(serde::de::Error::duplicate_field("entries")),
                "entries" => {
                    map.next_value_seed(EntriesSeed(self.0))?;
                    has_entries = true;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

struct EntriesSeed<'a>(&'a mut Reader);

impl<'de> DeserializeSeed<'de> for EntriesSeed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for EntriesSeed<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of entries")
    }

    /// Go writes an empty list as `null`.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(entry) = entries.next_element::<TocEntry<'_>>()? {
            if let Err(error) = self.0.take(entry) {
                self.0.error = Some(error);
                return Err(serde::de::Error::custom("malformed entry"));
            }
        }
        Ok(())
    }
}
