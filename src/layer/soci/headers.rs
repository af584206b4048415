//! What a zTOC claims of each regular file, kept beside the layer until the file is read: then the headers in the archive must say the
//! same, or the zTOC lied.
//!
//! ```text
//! header    magic "peelhead", version u32, incompatible features u32, n u64, CRC-32 of all this u32
//! records   n × { first byte of the content u64, first byte of its headers u64, digest [32], CRC-32 of all this u32 }
//! ```
//!
//! All numbers are little-endian, offsets those of the archive, records sorted by the content's. Files without content have none.
//!
//! The digest covers all that the tree shows of a file, in the one way in which [`fingerprint`] writes it: the author of an image must
//! not find two files for one digest, so it is a whole SHA-256. What it does not show (names of owners) need not agree.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use sha2::{Digest, Sha256};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::layer::entry::{Content, Entry, EntryKind};
use crate::layer::tar::{Limits, SinkError, TarReader, TarSink};

const MAGIC: [u8; 8] = *b"peelhead";
const VERSION: u32 = 1;

/// Most bytes of the headers of one file: more than the tar reader takes.
pub const MAXIMUM_HEADERS: u64 = 2 << 20;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct FileHeader {
    magic: [u8; 8],
    version: U32,
    incompatible: U32,
    count: U64,
    checksum: U32,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    content: U64,
    headers: U64,
    digest: [u8; 32],
    checksum: U32,
}

/// What is claimed of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Where its headers lie in the archive. Its content begins at their end.
    pub headers: Range<u64>,
    /// See [`fingerprint`].
    pub digest: [u8; 32],
}

/// Why a file is not what the zTOC says, or nobody knows.
#[derive(Debug, thiserror::Error)]
pub enum HeadersError {
    /// The archive says otherwise.
    #[error("the headers in the archive are not those that the zTOC states: {0}")]
    Differs(String),
    /// The file of claims is not as it was written.
    #[error(
        "what the zTOC states of it is damaged in the store: {0}; remove the layer, and it is made again"
    )]
    Damaged(&'static str),
    /// The disk.
    #[error("what the zTOC states of it cannot be read from the store")]
    Io(#[from] io::Error),
}

/// Digest of all that the tree shows of a regular file: name, size, mode, owners, time and attributes.
pub fn fingerprint(entry: &Entry) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut number = |value: u64| hasher.update(value.to_le_bytes());
    let size = match entry.kind {
        EntryKind::Regular { size, .. } => size,
        _ => 0,
    };
    number(size);
    [entry.mode, entry.uid, entry.gid, entry.modified.nanoseconds]
        .into_iter()
        .for_each(|field| number(field.into()));
    number(entry.modified.seconds as u64);
    let mut text = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    text(&entry.path);
    // Of one name the last counts; the order is the archive's in one, and sorted in the other.
    let xattrs: BTreeMap<&[u8], &[u8]> =
        entry.xattrs.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    for (name, value) in xattrs {
        text(name);
        text(value);
    }
    hasher.finalize().into()
}

/// Proves a file by the bytes of its headers.
///
/// # Errors
/// [`HeadersError::Differs`].
pub fn prove(claim: &Claim, headers: &[u8]) -> Result<(), HeadersError> {
    let mut reader = TarReader::new(Limits::default());
    let mut found = Found::default();
    reader.push(headers, &mut found).map_err(|error| HeadersError::Differs(error.to_string()))?;
    let Found { entry: Some(entry), others: false } = found else {
        return Err(HeadersError::Differs("they are not those of one entry".to_owned()));
    };
    let content = match &entry.kind {
        EntryKind::Regular { content: Content::Contiguous(offset), .. } => *offset,
        _ => return Err(HeadersError::Differs("they are not those of an ordinary file".to_owned())),
    };
    if content != headers.len() as u64 {
        return Err(HeadersError::Differs("the content begins elsewhere".to_owned()));
    }
    if fingerprint(&entry) != claim.digest {
        let name = entry.path.escape_ascii();
        return Err(HeadersError::Differs(format!(
            "a file \"{name}\" of another name, size, mode, owner, time or attribute"
        )));
    }
    Ok(())
}

/// The entry whose headers were read.
#[derive(Default)]
struct Found {
    entry: Option<Entry>,
    others: bool,
}

impl TarSink for Found {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.others |= self.entry.replace(entry).is_some();
        Ok(())
    }

    fn payload(&mut self, _decoded_offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
        self.others = true;
        Ok(())
    }
}

/// The bytes of a file of claims, which are sorted by the end of their headers.
pub fn written(claims: &[Claim]) -> Vec<u8> {
    let mut header = FileHeader {
        magic: MAGIC,
        version: VERSION.into(),
        incompatible: 0.into(),
        count: (claims.len() as u64).into(),
        checksum: 0.into(),
    };
    header.checksum = header.checksum().into();
    let mut bytes = header.as_bytes().to_vec();
    bytes.reserve(claims.len() * size_of::<Record>());
    for claim in claims {
        let mut record = Record {
            content: claim.headers.end.into(),
            headers: claim.headers.start.into(),
            digest: claim.digest,
            checksum: 0.into(),
        };
        record.checksum = record.checksum().into();
        bytes.extend_from_slice(record.as_bytes());
    }
    bytes
}

impl FileHeader {
    fn checksum(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..size_of::<FileHeader>() - size_of::<U32>()])
    }
}

impl Record {
    fn checksum(&self) -> u32 {
        crc32fast::hash(&self.as_bytes()[..size_of::<Record>() - size_of::<U32>()])
    }
}

/// Claims, read out of their file one by one.
#[derive(Debug)]
pub struct Claims {
    file: File,
    count: u64,
}

impl Claims {
    /// Looks at the head of a file, and at its length.
    ///
    /// # Errors
    /// If it is not whole, or of another version: the layer is to be made again.
    pub fn open(file: File) -> Result<Claims, HeadersError> {
        let length = file.metadata()?.len();
        let mut header = FileHeader::new_zeroed();
        if length < size_of::<FileHeader>() as u64 {
            return Err(HeadersError::Damaged("the file is too short"));
        }
        file.read_exact_at(header.as_mut_bytes(), 0)?;
        let known =
            header.magic == MAGIC && header.version.get() == VERSION && header.incompatible.get() == 0;
        if !known || header.checksum.get() != header.checksum() {
            return Err(HeadersError::Damaged("its header is not one of this version"));
        }
        let count = header.count.get();
        let records = count.checked_mul(size_of::<Record>() as u64);
        if records.and_then(|records| records.checked_add(size_of::<FileHeader>() as u64)) != Some(length) {
            return Err(HeadersError::Damaged("its length is not what its header says"));
        }
        Ok(Claims { file, count })
    }

    /// What is claimed of the file whose content begins at that byte of the archive.
    ///
    /// # Errors
    /// If nothing is, or it is not as it was written.
    pub fn get(&self, content: u64) -> Result<Claim, HeadersError> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            let record = self.record(middle)?;
            match record.content.get().cmp(&content) {
                std::cmp::Ordering::Equal => {
                    let headers = record.headers.get()..content;
                    if headers.end.saturating_sub(headers.start) > MAXIMUM_HEADERS {
                        return Err(HeadersError::Damaged("a record is out of range"));
                    }
                    return Ok(Claim { headers, digest: record.digest });
                }
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        Err(HeadersError::Damaged("a file is missing in it"))
    }

    fn record(&self, number: u64) -> Result<Record, HeadersError> {
        let mut record = Record::new_zeroed();
        let offset = size_of::<FileHeader>() as u64 + number * size_of::<Record>() as u64;
        self.file.read_exact_at(record.as_mut_bytes(), offset)?;
        if record.checksum.get() != record.checksum() {
            return Err(HeadersError::Damaged("the checksum of a record does not match"));
        }
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn claims(count: u64) -> Vec<Claim> {
        (0..count)
            .map(|number| Claim {
                headers: number * 10_000..number * 10_000 + 1024,
                digest: [number as u8; 32],
            })
            .collect()
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    #[test]
    fn each_claim_is_found_by_where_its_content_begins() {
        for count in [0, 1, 2, 7, 100] {
            let claims = claims(count);
            let read = Claims::open(file(&written(&claims))).unwrap();
            for claim in &claims {
                assert_eq!(read.get(claim.headers.end).unwrap(), *claim);
                assert!(read.get(claim.headers.start).is_err());
            }
            assert!(read.get(u64::MAX).is_err());
        }
    }

    #[test]
    fn no_damage_goes_unnoticed() {
        let claims = claims(3);
        let whole = written(&claims);
        for length in 0..whole.len() {
            assert!(Claims::open(file(&whole[..length])).is_err(), "{length} bytes");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            let Ok(read) = Claims::open(file(&bytes)) else { continue };
            let results: Vec<_> = claims.iter().map(|claim| read.get(claim.headers.end)).collect();
            assert!(results.iter().any(Result::is_err), "byte {at}");
            for (result, claim) in results.iter().zip(&claims) {
                assert!(result.as_ref().map_or(true, |read| read == claim), "byte {at}");
            }
        }
    }
}
