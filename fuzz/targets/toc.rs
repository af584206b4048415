//! Tables of contents described entry by entry (`layer/toc/layout.rs`), in both schemas and every confusion of them: a layout that is
//! accepted holds together.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary, Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use peelfs::layer::estargz;
use peelfs::layer::zstd_chunked::{self, Claims, Place, Positions};
use peelfs_fuzz::sha256;
use peelfs_fuzz::toc::{check, estargz_member, zstd_frame};
use serde_json::{Map, Value, json};

/// Where payloads end.
const END: u64 = 1 << 40;

#[derive(Arbitrary, Debug)]
struct Entry {
    kind: u8,
    name: Name,
    target: Name,
    size: Number,
    offset: Number,
    inner_offset: Number,
    end_offset: Number,
    chunk_offset: Number,
    chunk_size: Number,
    chunk_type: u8,
    digests: u8,
    attributes: u8,
}

/// A field, relative to what would be right.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Missing,
    Right,
    Small(u8),
    Medium(u16),
    Chunk,
    Any(i64),
}

#[derive(Debug)]
struct Name(String);

impl<'a> Arbitrary<'a> for Name {
    fn arbitrary(bytes: &mut Unstructured<'a>) -> Result<Name> {
        let mut names = Vec::new();
        for _ in 0..bytes.int_in_range(1..=3)? {
            names.push(*bytes.choose(&[
                "a",
                "b",
                "..",
                ".",
                "",
                ".wh.a",
                ".wh..wh..opq",
                ".prefetch.landmark",
                ".no.prefetch.landmark",
                "stargz.index.json",
                "\u{fffd}",
                "\0",
            ])?);
        }
        Ok(Name(names.join("/")))
    }
}

/// What an honest writer would say next.
#[derive(Default)]
struct Honest {
    blob_offset: u64,
    size: u64,
    filled: u64,
}

impl Number {
    fn value(self, right: u64) -> Option<i64> {
        match self {
            Number::Missing => None,
            Number::Right => Some(right as i64),
            Number::Small(number) => Some(number.into()),
            Number::Medium(number) => Some(number.into()),
            Number::Chunk => Some(4 << 20),
            Number::Any(number) => Some(number),
        }
    }
}

impl Entry {
    fn json(&self, honest: &mut Honest) -> Value {
        let mut entry = Map::new();
        let mut put = |name: &str, value: Option<i64>| {
            if let Some(value) = value {
                entry.insert(name.to_owned(), value.into());
            }
        };
        let kind = [
            "reg", "reg", "reg", "chunk", "chunk", "dir", "symlink", "hardlink", "char", "block", "fifo", "",
        ];
        let kind = kind[usize::from(self.kind) % kind.len()];
        let positive = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).unwrap_or(0);
        if kind == "reg" || kind == "chunk" {
            let size = if kind == "reg" { self.size.value(5000) } else { None };
            if kind == "reg" {
                (honest.size, honest.filled) = (positive(size), 0);
            }
            let offset = self.offset.value(honest.blob_offset + 10);
            let rest = honest.size.saturating_sub(honest.filled);
            let chunk_size = self.chunk_size.value(rest);
            put("size", size);
            put("offset", offset);
            put("innerOffset", self.inner_offset.value(0));
            put("endOffset", self.end_offset.value(positive(offset).saturating_add(5000)));
            put("chunkOffset", self.chunk_offset.value(honest.filled));
            put("chunkSize", chunk_size);
            let length = if positive(chunk_size) == 0 { rest } else { positive(chunk_size) };
            honest.filled = honest.filled.saturating_add(length);
            honest.blob_offset = positive(offset).min(END);
        }
        put("mode", Some(i64::from(self.attributes) << 4));
        put("uid", (self.attributes & 1 != 0).then(|| self.chunk_size.value(7)).flatten());
        put("devMajor", (self.attributes & 2 != 0).then(|| self.size.value(7)).flatten());
        let digest = |byte: u8| json!(format!("sha256:{}", format!("{byte:02x}").repeat(32)));
        if self.digests & 1 == 0 {
            entry.insert("chunkDigest".to_owned(), digest(1));
        }
        if self.digests & 2 == 0 {
            entry.insert("digest".to_owned(), digest(1 + (self.digests >> 7)));
        }
        if self.digests & 0x30 == 0x30 {
            entry.insert(
                "chunkType".to_owned(),
                json!(["zeros", "", "other"][usize::from(self.chunk_type) % 3]),
            );
        }
        if self.attributes & 4 != 0 {
            entry.insert("xattrs".to_owned(), json!({ "user.a": "AAAA", "trusted.overlay.b": "" }));
        }
        if self.attributes & 8 != 0 {
            entry.insert("modtime".to_owned(), json!("2020-02-29T12:26:40.5+01:00"));
        }
        entry.insert("name".to_owned(), json!(self.name.0));
        entry.insert("type".to_owned(), json!(kind));
        entry.insert("linkName".to_owned(), json!(self.target.0));
        Value::Object(entry)
    }
}

fuzz_target!(|entries: Vec<Entry>| {
    let mut honest = Honest::default();
    let entries: Vec<Value> = entries.iter().take(40).map(|entry| entry.json(&mut honest)).collect();
    let json = serde_json::to_vec(&json!({ "version": 1, "entries": entries })).expect("plain JSON");

    let member = estargz_member(&json);
    if let Ok(toc) = estargz::read_toc(&member, sha256(&json), END + member.len() as u64, END) {
        check(&toc, &[], END);
    }
    let frame = zstd_frame(&json);
    let toc =
        Place { offset: END + 8, compressed_length: frame.len() as u64, decoded_length: json.len() as u64 };
    let claims = Claims {
        positions: None,
        compressed_digest: Some(sha256(&frame)),
        json_digest: None,
        tar_split_digest: None,
    };
    let positions = Positions { toc, tar_split: None };
    let size = END + 8 + frame.len() as u64;
    if let Ok(layer) = zstd_chunked::read_toc(&frame, &positions, &claims, size) {
        check(&layer.contents, &[], END);
    }
});
