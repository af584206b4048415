//! PAX extended headers (POSIX.1-2001 pax, "pax Extended Header"): records `LENGTH KEY=VALUE\n`, values of any bytes.
//!
//! The rules are those of Go's `archive/tar`, on which every container tool that unpacks layers is built: an empty value of
//! `path`, `linkpath`, `size`, `uid`, `gid` or `mtime` means the header block's; a NUL in a name is an error; the last record of a
//! key wins. Unlike there, an empty extended attribute is kept. `hdrcharset` is ignored: names are bytes.
//! Keys of attributes are taken as they are: GNU tar would write `%` and `=` in them as `%25` and `%3D`, Go would not.

use base64::Engine;

use super::{Limits, TarFault, number};
use crate::layer::entry::Timestamp;

/// What the records before one entry say about it.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub path: Option<Vec<u8>>,
    pub link_path: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub modified: Option<Timestamp>,
    pub sparse: SparseRecords,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    libarchive_xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The `GNU.sparse.*` records, all versions (GNU tar manual, "Storing Sparse Files").
#[derive(Debug, Default)]
pub(super) struct SparseRecords {
    pub major: Option<u64>,
    pub minor: Option<u64>,
    pub name: Option<Vec<u8>>,
    /// `GNU.sparse.size` (0.0, 0.1) or `GNU.sparse.realsize` (1.0).
    pub real_size: Option<u64>,
    pub block_count: Option<u64>,
    /// Offset, length, offset, length …, of 0.0 (a record each) or 0.1 (one record).
    pub map: Option<Vec<u64>>,
}

impl Records {
    /// The records of one extended header.
    pub fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, TarFault> {
        let mut records = Self::default();
        for_each_record(bytes, |key, value| records.take(key, value, limits))?;
        Ok(records)
    }

    /// All extended attributes. Those that libarchive encodes come first, so that the plain form of the same name wins.
    pub fn take_xattrs(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut xattrs = std::mem::take(&mut self.libarchive_xattrs);
        xattrs.append(&mut self.xattrs);
        xattrs
    }

    /// Takes up one record.
    pub fn take(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), TarFault> {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
            self.xattrs.push(xattr(name.to_vec(), value.to_vec(), limits)?);
            return Ok(());
        }
        if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
            let value = LENIENT_BASE64.decode(value).map_err(|_| invalid(key, value))?;
            self.libarchive_xattrs.push(xattr(percent_decoded(name), value, limits)?);
            return Ok(());
        }
        if let Some(key_of_sparse) = key.strip_prefix(b"GNU.sparse.") {
            return self.sparse.take(key_of_sparse, key, value, limits);
        }
        if value.is_empty() {
            return Ok(());
        }
        let number = || number::decimal(value).ok_or_else(|| invalid(key, value));
        match key {
            b"path" => self.path = Some(name(key, value)?),
            b"linkpath" => self.link_path = Some(name(key, value)?),
            b"size" => self.size = Some(number()?),
            b"uid" => self.uid = Some(number()?),
            b"gid" => self.gid = Some(number()?),
            b"mtime" => self.modified = Some(number::pax_time(value).ok_or_else(|| invalid(key, value))?),
            _ => {}
        }
        Ok(())
    }
}

impl SparseRecords {
    fn take(&mut self, field: &[u8], key: &[u8], value: &[u8], limits: &Limits) -> Result<(), TarFault> {
        let number = || number::decimal(value).ok_or_else(|| invalid(key, value));
        match field {
            b"major" => self.major = Some(number()?),
            b"minor" => self.minor = Some(number()?),
            b"name" if value.is_empty() => {}
            b"name" => self.name = Some(name(key, value)?),
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"numblocks" => self.block_count = Some(number()?),
            b"offset" | b"numbytes" => {
                let map = self.map.get_or_insert_default();
                if map.len().is_multiple_of(2) != (field == b"offset") {
                    return Err(invalid(key, value));
                }
                map.push(number()?);
                limits.check_sparse_numbers(map.len())?;
            }
            b"map" => {
                let mut map = Vec::new();
                for text in value.split(|byte| *byte == b',').filter(|_| !value.is_empty()) {
                    map.push(number::decimal(text).ok_or_else(|| invalid(key, value))?);
                    limits.check_sparse_numbers(map.len())?;
                }
                self.map = Some(map);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Checks that a global header is well-formed. It says nothing about any entry here: containerd, Docker and podman ignore
/// its records (umoci refuses the layer), and a layer must show the same files here as there.
pub(super) fn check_global(bytes: &[u8]) -> Result<(), TarFault> {
    for_each_record(bytes, |_, _| Ok(()))
}

pub(super) fn for_each_record(
    mut bytes: &[u8],
    mut record: impl FnMut(&[u8], &[u8]) -> Result<(), TarFault>,
) -> Result<(), TarFault> {
    while !bytes.is_empty() {
        let (key, value, rest) = split_record(bytes).ok_or_else(|| TarFault::PaxRecord(excerpt(bytes)))?;
        record(key, value)?;
        bytes = rest;
    }
    Ok(())
}

/// Key, value and what follows the first record.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number::decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let pair = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = pair.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&pair[..equals], &pair[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, rest))
}

fn name(key: &[u8], value: &[u8]) -> Result<Vec<u8>, TarFault> {
    if value.contains(&0) { Err(invalid(key, value)) } else { Ok(value.to_vec()) }
}

fn xattr(name: Vec<u8>, value: Vec<u8>, limits: &Limits) -> Result<(Vec<u8>, Vec<u8>), TarFault> {
    if name.is_empty() || name.len() > XATTR_NAME_MAX || name.contains(&0) {
        return Err(TarFault::XattrName(excerpt(&name)));
    }
    if value.len() > limits.xattr_value {
        return Err(TarFault::XattrTooLong {
            name: excerpt(&name),
            length: value.len(),
            limit: limits.xattr_value,
        });
    }
    Ok((name, value))
}

/// Longest name of an extended attribute that Linux knows (`XATTR_NAME_MAX`).
const XATTR_NAME_MAX: usize = 255;

fn invalid(key: &[u8], value: &[u8]) -> TarFault {
    TarFault::PaxValue { key: excerpt(key), value: excerpt(value) }
}

/// The beginning of `bytes`, fit for an error message.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const LONGEST: usize = 80;
    let cut = if bytes.len() > LONGEST { "…" } else { "" };
    format!("{}{cut}", bytes[..bytes.len().min(LONGEST)].escape_ascii())
}

/// libarchive writes no padding; others that imitate it do.
const LENIENT_BASE64: base64::engine::GeneralPurpose = base64::engine::GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    base64::engine::GeneralPurposeConfig::new()
        .with_decode_padding_mode(base64::engine::DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The key under which libarchive keeps an attribute of that name, whatever it holds.
pub(super) fn libarchive_key(name: &[u8]) -> Vec<u8> {
    let encoded = name.iter().flat_map(|byte| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => vec![*byte],
        _ => format!("%{byte:02X}").into_bytes(),
    });
    b"LIBARCHIVE.xattr.".iter().copied().chain(encoded).collect()
}

fn percent_decoded(name: &[u8]) -> Vec<u8> {
    let digit = |byte: Option<&u8>| byte.and_then(|byte| char::from(*byte).to_digit(16));
    let mut decoded = Vec::with_capacity(name.len());
    let mut at = 0;
    while let Some(&byte) = name.get(at) {
        match (byte, digit(name.get(at + 1)), digit(name.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                decoded.push(byte);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let mut length = body.len() + 1;
        while length.to_string().len() + body.len() != length {
            length = length.to_string().len() + body.len();
        }
        [length.to_string().as_bytes(), &body].concat()
    }

    #[test]
    fn values_may_hold_any_byte() {
        let bytes = [record("path", b"a\nb=c \xff"), record("SCHILY.xattr.user.x", b"\0\n=\xff")].concat();
        let mut records = Records::parse(&bytes, &Limits::default()).unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"a\nb=c \xff"[..]));
        assert_eq!(records.take_xattrs(), [(b"user.x".to_vec(), b"\0\n=\xff".to_vec())]);
    }

    #[test]
    fn an_empty_attribute_is_kept_and_an_empty_path_is_none() {
        let bytes = [record("path", b""), record("SCHILY.xattr.user.x", b"")].concat();
        let mut records = Records::parse(&bytes, &Limits::default()).unwrap();
        assert_eq!(records.path, None);
        assert_eq!(records.take_xattrs(), [(b"user.x".to_vec(), Vec::new())]);
    }

    #[test]
    fn of_one_attribute_in_both_forms_the_plain_one_is_last() {
        let bytes =
            [record("SCHILY.xattr.user.%", b"plain"), record("LIBARCHIVE.xattr.user.%25", b"cGxhaW4")]
                .concat();
        let xattrs = Records::parse(&bytes, &Limits::default()).unwrap().take_xattrs();
        assert_eq!(xattrs, vec![(b"user.%".to_vec(), b"plain".to_vec()); 2]);
    }

    #[test]
    fn records_that_lie_are_refused() {
        let cases: [&[u8]; 14] = [
            b"15 pathfoobar\n",
            b"100 path=foo\n",
            b"0 path=foo\n",
            b"3 path=foo\n",
            b"path=foo\n",
            b"12 path=fooo ",
            b"6 =foo\n",
            b"99999999999999999999 path=foo\n",
            b"-5 path=foo\n",
            b"\0\0\0\0",
            b"13 size=-12 \n",
            b"11 mtime=x\n",
            b"13 path=a\0bc\n",
            b"31 LIBARCHIVE.xattr.user.x=\xff\xff\n",
        ];
        for bytes in cases {
            assert!(Records::parse(bytes, &Limits::default()).is_err(), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn attributes_beyond_what_linux_holds_are_refused() {
        let limits = Limits::default();
        let long_value = record("SCHILY.xattr.user.x", &vec![0; limits.xattr_value + 1]);
        let long_name = record(&format!("SCHILY.xattr.user.{}", "x".repeat(251)), b"");
        for bytes in [long_value, long_name, record("SCHILY.xattr.", b"")] {
            assert!(Records::parse(&bytes, &limits).is_err());
        }
    }
}
