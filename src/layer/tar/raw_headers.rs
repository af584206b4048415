//! What no inode has but a table of contents may: the names of an entry's user and group, its PAX records, all bits of its mode.

use std::collections::BTreeMap;

use tar_core::{EntryType, Header};

use super::{BLOCK, number, padding_of, pax};

/// As the archive has them; empty if it does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnerNames {
    /// Name of the user.
    pub user: Vec<u8>,
    /// Name of the group.
    pub group: Vec<u8>,
}

/// What an entry's headers say beside what an [`Entry`](crate::layer::entry::Entry) keeps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawHeaders {
    /// Names of the owners.
    pub owners: OwnerNames,
    /// The whole field of the header block: more than permission bits, if the writer wrote more.
    pub mode: i64,
    /// Its own PAX records; of one key, the last.
    pub records: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The names in `headers`, which are all those of one entry, and were read by a [`TarReader`](super::TarReader) before.
pub fn owner_names(headers: &[u8]) -> OwnerNames {
    raw_headers(headers).owners
}

/// All that is in `headers`, which are all those of one entry, and were read by a [`TarReader`](super::TarReader) before.
pub fn raw_headers(headers: &[u8]) -> RawHeaders {
    let mut raw = RawHeaders::default();
    let mut rest = headers;
    while let Some((block, after)) = rest.split_first_chunk::<BLOCK>() {
        let header = Header::from_bytes(block);
        let kind = header.entry_type();
        let fields = header.as_ustar();
        if !matches!(
            kind,
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GnuLongName | EntryType::GnuLongLink
        ) {
            raw.owners.user = number::header_string(&fields.uname).to_vec();
            raw.owners.group = number::header_string(&fields.gname).to_vec();
            raw.mode = number::header_number(&fields.mode).unwrap_or(0);
            // What may follow is the map of a sparse file.
            break;
        }
        let length = super::header::size_field(&fields.size).unwrap_or(0);
        let whole = usize::try_from(length.saturating_add(padding_of(length))).unwrap_or(usize::MAX);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if kind == EntryType::XHeader {
            raw.records.clear();
            // The reader has refused malformed records.
            let _ = pax::for_each_record(after.get(..length).unwrap_or_default(), |key, value| {
                raw.records.insert(key.to_vec(), value.to_vec());
                Ok(())
            });
        }
        rest = after.get(whole..).unwrap_or_default();
    }
    for (key, name) in [(&b"uname"[..], &mut raw.owners.user), (b"gname", &mut raw.owners.group)] {
        if let Some(recorded) = raw.records.get(key).filter(|recorded| !recorded.is_empty()) {
            name.clone_from(recorded);
        }
    }
    raw
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ustar(name: &str, kind: tar::EntryType, size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_username("user").unwrap();
        header.set_groupname("group").unwrap();
        header.set_cksum();
        header.as_bytes().to_vec()
    }

    #[test]
    fn records_are_preferred_to_the_header_block() {
        let plain = ustar("name", tar::EntryType::Regular, 0);
        let named = OwnerNames { user: b"user".to_vec(), group: b"group".to_vec() };
        assert_eq!(owner_names(&plain), named);
        let mut records = b"16 uname=longer\n".to_vec();
        records.resize(BLOCK, 0);
        let extended = [ustar("x", tar::EntryType::XHeader, 16), records, plain].concat();
        assert_eq!(owner_names(&extended), OwnerNames { user: b"longer".to_vec(), ..named });
        let raw = raw_headers(&extended);
        assert_eq!(raw.records, BTreeMap::from([(b"uname".to_vec(), b"longer".to_vec())]));
        assert_eq!(owner_names(&[]), OwnerNames::default());
    }
}
