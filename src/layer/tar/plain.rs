//! What Go's `archive/tar` sees in the headers of an entry, and our reader does not keep: containers/storage holds its table of contents
//! against it, field by field.

use std::collections::BTreeSet;

use tar_core::{EntryType, Header, USTAR_MAGIC};

use super::{BLOCK, TarFault, header, number, padding_of, pax};
use crate::layer::entry::Timestamp;

/// Fields of headers that an [`Entry`](crate::layer::entry::Entry) does not have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderFields {
    /// The mode as written: with the type of the file, if the writer put it there.
    pub mode: u64,
    /// Time of the last access, if the headers have one.
    pub accessed: Option<Timestamp>,
    /// Time of the last change of the inode, if the headers have one.
    pub changed: Option<Timestamp>,
    /// Device numbers, whatever the type is.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
}

/// The fields in `headers`, which are all those of one entry and were read by a [`TarReader`](super::TarReader) before. `None` if they
/// are unusual: if Go might see more or less in them than our reader did, or refuse them.
pub fn plain_fields(headers: &[u8]) -> Option<HeaderFields> {
    let mut fields = HeaderFields::default();
    let mut seen = BTreeSet::new();
    let mut has_size_record = false;
    let mut rest = headers;
    loop {
        let (block, after) = rest.split_first_chunk::<BLOCK>()?;
        let header = Header::from_bytes(block);
        let kind = header.entry_type();
        match kind {
            EntryType::XHeader | EntryType::GnuLongName | EntryType::GnuLongLink => {
                if !seen.insert(kind.to_byte()) {
                    return None;
                }
                let length = header::size_field(&header.as_ustar().size).ok()?;
                let whole = usize::try_from(length.checked_add(padding_of(length))?).ok()?;
                let (content, next) = after.split_at_checked(whole)?;
                if kind == EntryType::XHeader {
                    // No longer than what was split off.
                    take_records(&content[..length as usize], &mut fields, &mut has_size_record)?;
                }
                rest = next;
            }
            // What follows would be the map of a sparse file.
            _ if !after.is_empty() => return None,
            _ => return take_block(header, has_size_record, &mut fields).map(|()| fields),
        }
    }
}

fn take_records(bytes: &[u8], fields: &mut HeaderFields, has_size: &mut bool) -> Option<()> {
    let taken = pax::for_each_record(bytes, |key, value| {
        let unusual = || TarFault::PaxRecord(pax::excerpt(key));
        let time = || number::pax_time(value).map(Some).ok_or_else(unusual);
        match key {
            b"atime" => fields.accessed = time()?,
            b"ctime" => fields.changed = time()?,
            b"size" => *has_size = true,
            b"path" | b"linkpath" | b"uid" | b"gid" | b"mtime" if value.is_empty() => return Err(unusual()),
            _ if key.starts_with(b"LIBARCHIVE.xattr.") || key.starts_with(b"GNU.sparse.") => {
                return Err(unusual());
            }
            _ => {}
        }
        Ok(())
    });
    taken.ok()
}

fn take_block(header: &Header, has_size_record: bool, fields: &mut HeaderFields) -> Option<()> {
    let block = header.as_ustar();
    let is_gnu = header::is_gnu(header);
    let is_posix = block.magic == *USTAR_MAGIC && block.version == *b"00";
    // star, and GNU with times or, by old Go, a prefix in their place.
    let has_other_fields = header.as_bytes().ends_with(b"tar\0")
        || (is_gnu && header.as_bytes()[345..].iter().any(|byte| *byte != 0));
    if !(is_gnu || is_posix) || has_other_fields {
        return None;
    }
    let unsigned = |field: &[u8]| u64::try_from(number::header_number(field)?).ok();
    let has_size = has_size_record || unsigned(&block.size)? > 0;
    let has_link = !number::header_string(&block.linkname).is_empty();
    let is_plain = match header.entry_type() {
        EntryType::Regular => !has_link,
        EntryType::Link | EntryType::Symlink => !has_size,
        EntryType::Directory | EntryType::Char | EntryType::Block | EntryType::Fifo => !has_size && !has_link,
        _ => false,
    };
    fields.mode = unsigned(&block.mode)?;
    fields.major = unsigned(&block.dev_major)?;
    fields.minor = unsigned(&block.dev_minor)?;
    is_plain.then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kind: tar::EntryType, change: impl Fn(&mut tar::Header)) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path("name").unwrap();
        header.set_entry_type(kind);
        header.set_mode(0o100_644);
        header.set_size(0);
        change(&mut header);
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    fn records(records: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        builder.append_pax_extensions(records.iter().copied()).unwrap();
        let mut bytes = builder.into_inner().unwrap();
        bytes.truncate(bytes.len() - 1024);
        bytes
    }

    #[test]
    fn plain_headers_have_fields_that_no_entry_has() {
        let regular = block(tar::EntryType::Regular, |_| ());
        let expected = HeaderFields { mode: 0o100_644, ..HeaderFields::default() };
        assert_eq!(plain_fields(&regular), Some(expected.clone()));
        let times = records(&[("atime", b"5.5"), ("SCHILY.xattr.user.x", b""), ("comment", b"")]);
        let accessed = Some(Timestamp { seconds: 5, nanoseconds: 500_000_000 });
        assert_eq!(
            plain_fields(&[times, regular].concat()),
            Some(HeaderFields { accessed, ..expected.clone() })
        );
        let device = block(tar::EntryType::Char, |header| header.set_device_major(7).unwrap());
        assert_eq!(plain_fields(&device), Some(HeaderFields { major: 7, ..expected }));
    }

    #[test]
    fn what_go_might_read_otherwise_is_not_plain() {
        let regular = || block(tar::EntryType::Regular, |_| ());
        let long_name = || block(tar::EntryType::GNULongName, |_| ());
        for (what, headers) in [
            ("nothing", vec![]),
            ("a part", regular()[..511].to_vec()),
            ("a global header", [block(tar::EntryType::XGlobalHeader, |_| ()), regular()].concat()),
            ("two names", [long_name(), long_name(), regular()].concat()),
            ("contiguous", block(tar::EntryType::Continuous, |_| ())),
            ("sparse", block(tar::EntryType::GNUSparse, |_| ())),
            ("a map behind", [regular(), vec![0; 512]].concat()),
            ("a directory with a size", block(tar::EntryType::Directory, |header| header.set_size(1))),
            (
                "a file with a target",
                block(tar::EntryType::Regular, |header| header.set_link_name("x").unwrap()),
            ),
            ("v7", block(tar::EntryType::Regular, |header| header.as_ustar_mut().unwrap().magic = [0; 6])),
            (
                "star",
                block(tar::EntryType::Regular, |header| {
                    header.as_mut_bytes()[508..].copy_from_slice(b"tar\0")
                }),
            ),
            ("libarchive", [records(&[("LIBARCHIVE.xattr.user.x", b"eA")]), regular()].concat()),
            ("sparse records", [records(&[("GNU.sparse.major", b"1")]), regular()].concat()),
            ("an empty path", [records(&[("path", b"")]), regular()].concat()),
        ] {
            assert_eq!(plain_fields(&headers), None, "{what}");
        }
    }
}
