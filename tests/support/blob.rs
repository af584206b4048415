//! Layer blobs: a described layer as tar, gzip, zstd or eStargz bytes. The eStargz writer is a small one of our own, from the
//! format's definition: an archive of gzip members in which every payload chunk begins one, a table of contents as the last
//! entry, and a footer that says where it is.

use super::archive::{Kind, TestEntry, entry_headers, padding, special_entry, write_tar};
use super::content::Content;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{self, Write};

/// How a layer is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Tar,
    /// That many members, cut anywhere.
    Gzip {
        members: u64,
    },
    /// That many frames, cut anywhere.
    Zstd {
        frames: u64,
    },
    Estargz(Estargz),
}

/// What may vary in an eStargz blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estargz {
    pub chunk_size: u64,
    pub footer: Footer,
    /// Whether the descriptor carries the TOC's digest; without it the layer is an ordinary tar.gz.
    pub annotated: bool,
    pub landmark: Option<Landmark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Footer {
    /// 51 bytes, with the subfield `SG`.
    Modern,
    /// 47 bytes.
    Legacy,
    /// 46 bytes: the table of contents is in another image.
    External,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Landmark {
    Prefetch,
    NoPrefetch,
}

impl Form {
    pub const GZIP: Form = Form::Gzip { members: 1 };
    pub const ZSTD: Form = Form::Zstd { frames: 1 };
    pub const ESTARGZ: Form = Form::Estargz(Estargz {
        chunk_size: 4 << 20,
        footer: Footer::Modern,
        annotated: true,
        landmark: Some(Landmark::NoPrefetch),
    });

    pub fn media_type(&self) -> &'static str {
        match self {
            Form::Tar => "application/vnd.oci.image.layer.v1.tar",
            Form::Gzip { .. } | Form::Estargz(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Form::Zstd { .. } => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// What is known of a blob once it is written.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub media_type: String,
    /// `sha256:…` of the blob.
    pub digest: String,
    pub size: u64,
    /// `sha256:…` of the archive.
    pub diff_id: String,
    pub annotations: Vec<(String, String)>,
}

/// Writes the blob of a layer.
pub fn encode(entries: &[TestEntry], form: Form, out: &mut dyn Write) -> io::Result<Encoded> {
    let mut blob = Hashing::new(out);
    let mut annotations = Vec::new();
    let diff_id = match form {
        Form::Tar => {
            write_tar(entries, &mut blob)?;
            blob.digest()
        }
        Form::Gzip { members } => {
            let mut archive = Hashing::new(Pieces::new(entries, members, Gzip(&mut blob))?);
            write_tar(entries, &mut archive)?;
            archive.inner.finish()?;
            archive.digest()
        }
        Form::Zstd { frames } => {
            let mut archive = Hashing::new(Pieces::new(entries, frames, Zstd(&mut blob))?);
            write_tar(entries, &mut archive)?;
            archive.inner.finish()?;
            archive.digest()
        }
        Form::Estargz(options) => {
            let (toc_digest, diff_id) = write_estargz(entries, options, &toc_json, &mut blob)?;
            if options.annotated {
                annotations.push((TOC_DIGEST.to_owned(), toc_digest));
            }
            diff_id
        }
    };
    Ok(Encoded {
        media_type: form.media_type().to_owned(),
        digest: blob.digest(),
        size: blob.count,
        diff_id,
        annotations,
    })
}

/// The blob of a layer, in memory.
pub fn encode_to_vec(entries: &[TestEntry], form: Form) -> (Encoded, Vec<u8>) {
    let mut bytes = Vec::new();
    let encoded = encode(entries, form, &mut bytes).expect("writing to memory");
    (encoded, bytes)
}

/// `sha256:…` of these bytes.
pub fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hexadecimal(&Sha256::digest(bytes)))
}

pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One gzip member.
pub fn gzip_member(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("writing to memory");
    encoder.finish().expect("writing to memory")
}

/// Counts and hashes what passes.
pub struct Hashing<W> {
    inner: W,
    hash: Sha256,
    pub count: u64,
}

impl<W> Hashing<W> {
    pub fn new(inner: W) -> Self {
        Hashing { inner, hash: Sha256::new(), count: 0 }
    }
    pub fn digest(&self) -> String {
        format!("sha256:{}", hexadecimal(&self.hash.clone().finalize()))
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.inner.write_all(bytes)?;
        self.hash.update(bytes);
        self.count += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A compression whose pieces may follow each other.
trait Compression {
    fn compress(&mut self, piece: &[u8]) -> io::Result<()>;
}

struct Gzip<'a>(&'a mut dyn Write);

impl Compression for Gzip<'_> {
    fn compress(&mut self, piece: &[u8]) -> io::Result<()> {
        self.0.write_all(&gzip_member(piece))
    }
}

struct Zstd<'a>(&'a mut dyn Write);

impl Compression for Zstd<'_> {
    fn compress(&mut self, piece: &[u8]) -> io::Result<()> {
        self.0.write_all(&zstd::bulk::compress(piece, 1)?)
    }
}

/// Cuts an archive into pieces of equal length, each compressed by itself. A piece is held in memory.
struct Pieces<C> {
    piece: Vec<u8>,
    length: usize,
    compression: C,
}

impl<C: Compression> Pieces<C> {
    fn new(entries: &[TestEntry], pieces: u64, compression: C) -> io::Result<Self> {
        let total: u64 = {
            let mut measure = Counting(0);
            write_tar(entries, &mut measure)?;
            measure.0
        };
        Ok(Pieces { piece: Vec::new(), length: total.div_ceil(pieces.max(1)) as usize, compression })
    }
    fn finish(&mut self) -> io::Result<()> {
        if self.piece.is_empty() {
            Ok(())
        } else {
            self.compression.compress(&std::mem::take(&mut self.piece))
        }
    }
}

impl<C: Compression> Write for Pieces<C> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.length - self.piece.len());
        self.piece.extend_from_slice(&bytes[..count]);
        if self.piece.len() == self.length {
            self.finish()?;
        }
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// An eStargz blob whose table of contents was made by somebody else, and is vouched for all the same.
pub fn estargz_with_toc(
    entries: &[TestEntry],
    options: Estargz,
    make_toc: &dyn Fn(Vec<Value>) -> Vec<u8>,
) -> (Encoded, Vec<u8>) {
    let mut bytes = Vec::new();
    let mut blob = Hashing::new(&mut bytes as &mut dyn Write);
    let (toc_digest, diff_id) =
        write_estargz(entries, options, make_toc, &mut blob).expect("writing to memory");
    let encoded = Encoded {
        media_type: Form::Estargz(options).media_type().to_owned(),
        digest: blob.digest(),
        size: blob.count,
        diff_id,
        annotations: vec![(TOC_DIGEST.to_owned(), toc_digest)],
    };
    (encoded, bytes)
}

/// Name of the annotation with the digest of the table of contents.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Writes an eStargz blob; returns the TOC's digest and the archive's.
fn write_estargz(
    entries: &[TestEntry],
    options: Estargz,
    make_toc: &dyn Fn(Vec<Value>) -> Vec<u8>,
    blob: &mut Hashing<&mut dyn Write>,
) -> io::Result<(String, String)> {
    let mut members = Members { blob, archive: Sha256::new(), open: Vec::new(), zeros: HashMap::new() };
    let mut toc = Vec::new();
    let landmark = options.landmark.map(|landmark| match landmark {
        Landmark::Prefetch => ".prefetch.landmark",
        Landmark::NoPrefetch => ".no.prefetch.landmark",
    });
    let landmark = landmark.map(|name| TestEntry::file(name, Content::Bytes([0x0f].as_slice().into())));
    for entry in landmark.iter().chain(entries) {
        members.append(&entry_headers(entry));
        append_entry(entry, options.chunk_size, &mut members, &mut toc)?;
    }
    members.finish_member()?;
    let toc_offset = members.blob.count;
    let json = make_toc(toc);
    if options.footer != Footer::External {
        members.append(&special_entry(b'0', b"stargz.index.json", &json));
    }
    members.append(&[0; 1024]);
    members.finish_member()?;
    let diff_id = format!("sha256:{}", hexadecimal(&members.archive.finalize()));
    blob.write_all(&footer(toc_offset, options.footer))?;
    Ok((sha256(&json), diff_id))
}

/// A table of contents with these entries.
pub fn toc_json(entries: Vec<Value>) -> Vec<u8> {
    serde_json::to_vec_pretty(&json!({ "version": 1, "entries": entries })).expect("plain JSON")
}

/// The blob of a TOC image's layer.
pub fn external_toc(json: &[u8]) -> Vec<u8> {
    gzip_member(&[special_entry(b'0', b"stargz.index.json", json), vec![0; 1024]].concat())
}

/// An empty gzip member whose extra field says where the TOC begins, if it is in this blob.
pub fn footer(toc_offset: u64, footer: Footer) -> Vec<u8> {
    let payload = format!("{toc_offset:016x}STARGZ");
    let extra = match footer {
        Footer::Modern => [b"SG\x16\x00", payload.as_bytes()].concat(),
        Footer::Legacy => payload.into_bytes(),
        Footer::External => b"SG\x11\x00STARGZEXTERNALTOC".to_vec(),
    };
    let mut bytes = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff];
    bytes.extend_from_slice(&(extra.len() as u16).to_le_bytes());
    bytes.extend_from_slice(&extra);
    bytes.extend_from_slice(&[1, 0, 0, 0xff, 0xff]);
    bytes.extend_from_slice(&[0; 8]);
    let length = match footer {
        Footer::Modern => 51,
        Footer::Legacy => 47,
        Footer::External => 46,
    };
    assert_eq!(bytes.len(), length);
    bytes
}

/// Concatenated gzip members, of which the last is still open.
struct Members<'a, 'b> {
    blob: &'a mut Hashing<&'b mut dyn Write>,
    archive: Sha256,
    open: Vec<u8>,
    /// A whole chunk of zeros, compressed, by its length: so that a file of many GiB is soon written.
    zeros: HashMap<u64, Vec<u8>>,
}

impl Members<'_, '_> {
    fn append(&mut self, bytes: &[u8]) {
        self.archive.update(bytes);
        self.open.extend_from_slice(bytes);
    }
    fn finish_member(&mut self) -> io::Result<()> {
        if !self.open.is_empty() {
            let member = gzip_member(&std::mem::take(&mut self.open));
            self.blob.write_all(&member)?;
        }
        Ok(())
    }
}

/// Writes an entry's payload, a member for each chunk, and notes the entry in the table of contents.
fn append_entry(
    entry: &TestEntry,
    chunk_size: u64,
    members: &mut Members<'_, '_>,
    toc: &mut Vec<Value>,
) -> io::Result<()> {
    let mut object = toc_entry(entry);
    let content = match &entry.kind {
        Kind::File(content) => content,
        Kind::SparseFile(..) => panic!("an eStargz layer has no sparse entries"),
        _ => {
            toc.push(Value::Object(object));
            return Ok(());
        }
    };
    let first = toc.len();
    let mut whole = Sha256::new();
    let mut offset = 0;
    while offset < content.length() {
        let length = chunk_size.min(content.length() - offset);
        let last = offset + length == content.length();
        members.finish_member()?;
        let member = members.blob.count;
        let mut chunk = vec![0; length as usize];
        assert_eq!(content.read_at(offset, &mut chunk), chunk.len());
        whole.update(&chunk);
        if matches!(content, Content::Zeros(_)) && !last {
            members.archive.update(&chunk);
            let compressed = members.zeros.entry(length).or_insert_with(|| gzip_member(&chunk));
            members.blob.write_all(compressed)?;
        } else {
            members.append(&chunk);
        }
        object.insert("offset".into(), member.into());
        object.insert("chunkDigest".into(), sha256(&chunk).into());
        if offset > 0 {
            object.insert("chunkOffset".into(), offset.into());
        }
        if !last {
            object.insert("chunkSize".into(), length.into());
        }
        toc.push(Value::Object(std::mem::take(&mut object)));
        object.insert("name".into(), text(&entry.path));
        object.insert("type".into(), "chunk".into());
        offset += length;
    }
    if offset == 0 {
        toc.push(Value::Object(object));
    }
    toc[first]["digest"] = format!("sha256:{}", hexadecimal(&whole.finalize())).into();
    members.append(&vec![0; padding(content.length())]);
    Ok(())
}

fn text(bytes: &[u8]) -> Value {
    std::str::from_utf8(bytes).expect("a table of contents holds UTF-8 names only").into()
}

fn toc_entry(entry: &TestEntry) -> Map<String, Value> {
    let mut object = Map::new();
    let kind = match &entry.kind {
        Kind::File(_) | Kind::SparseFile(..) => "reg",
        Kind::Directory => "dir",
        Kind::Symlink(_) => "symlink",
        Kind::Hardlink(_) => "hardlink",
        Kind::CharacterDevice(..) => "char",
        Kind::BlockDevice(..) => "block",
        Kind::Fifo => "fifo",
    };
    let mut name = entry.path.clone();
    if matches!(entry.kind, Kind::Directory) && !name.ends_with(b"/") {
        name.push(b'/');
    }
    object.insert("name".into(), text(&name));
    object.insert("type".into(), kind.into());
    object.insert("mode".into(), entry.mode.into());
    object.insert("modtime".into(), rfc3339(entry.modified).into());
    for (key, number) in [("uid", entry.uid), ("gid", entry.gid)] {
        if number != 0 {
            object.insert(key.into(), number.into());
        }
    }
    match &entry.kind {
        Kind::File(content) if content.length() > 0 => {
            object.insert("size".into(), content.length().into());
        }
        Kind::Symlink(target) | Kind::Hardlink(target) => {
            object.insert("linkName".into(), text(target));
        }
        Kind::CharacterDevice(major, minor) | Kind::BlockDevice(major, minor) => {
            object.insert("devMajor".into(), (*major).into());
            object.insert("devMinor".into(), (*minor).into());
        }
        _ => {}
    }
    if !entry.xattrs.is_empty() {
        let pairs = entry.xattrs.iter().map(|(name, value)| {
            (std::str::from_utf8(name).expect("UTF-8").to_owned(), Value::from(base64(value)))
        });
        object.insert("xattrs".into(), Value::Object(pairs.collect()));
    }
    object
}

/// `2020-09-13T12:26:40Z`, with a fraction where there is one.
fn rfc3339((seconds, nanoseconds): (i64, u32)) -> String {
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Howard Hinnant's civil_from_days: years counted from March, so that the leap day is a year's last.
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let fraction = if nanoseconds == 0 {
        String::new()
    } else {
        format!(".{nanoseconds:09}").trim_end_matches('0').to_owned()
    };
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}{fraction}Z")
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let word = group
            .iter()
            .enumerate()
            .fold(0_u32, |word, (place, byte)| word | u32::from(*byte) << (16 - 8 * place));
        for place in 0..4 {
            if place <= group.len() {
                text.push(char::from(ALPHABET[(word >> (18 - 6 * place)) as usize & 63]));
            } else {
                text.push('=');
            }
        }
    }
    text
}
