//! Headers for entries that no source has in the form in which they are written: landmarks, tables of contents, sparse files
//! made whole, what is said in a way that a format cannot repeat.
//!
//! An entry that a plain ustar header block can say gets one. What does not fit (long or unusual names, large numbers, fractions of
//! seconds, extended attributes) is said in PAX records in front of it, which win over the block (POSIX.1-2001 pax).

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use tar_core::{EntryType, Header};

use super::{BLOCK, OwnerNames, padding_of, pax};
use crate::layer::entry::{Entry, EntryKind};

/// What ends an archive: two blocks of zeros.
pub const END_OF_ARCHIVE: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// The headers of `entry`. As a regular file it has `size` bytes, which follow them.
pub fn entry_headers(entry: &Entry, names: &OwnerNames, size: u64) -> Vec<u8> {
    let mut records = Records::default();
    let mut block = Header::new_ustar();
    let fields = block.as_ustar_mut();
    let (kind, target, (major, minor)) = match &entry.kind {
        EntryKind::Regular { .. } => (EntryType::Regular, &[][..], (0, 0)),
        EntryKind::Directory => (EntryType::Directory, &[][..], (0, 0)),
        EntryKind::Symlink { target } => (EntryType::Symlink, &target[..], (0, 0)),
        EntryKind::Hardlink { target } => (EntryType::Link, &target[..], (0, 0)),
        EntryKind::CharacterDevice { major, minor } => (EntryType::Char, &[][..], (*major, *minor)),
        EntryKind::BlockDevice { major, minor } => (EntryType::Block, &[][..], (*major, *minor)),
        EntryKind::Fifo => (EntryType::Fifo, &[][..], (0, 0)),
    };
    let size = if kind == EntryType::Regular { size } else { 0 };
    fields.typeflag = [kind.to_byte()];
    records.text("path", &entry.path, &mut fields.name);
    records.text("linkpath", target, &mut fields.linkname);
    records.text("uname", &names.user, &mut fields.uname);
    records.text("gname", &names.group, &mut fields.gname);
    octal(&mut fields.mode, u64::from(entry.mode));
    records.number("uid", u64::from(entry.uid), &mut fields.uid);
    records.number("gid", u64::from(entry.gid), &mut fields.gid);
    records.number("size", size, &mut fields.size);
    device_number(&mut fields.dev_major, major);
    device_number(&mut fields.dev_minor, minor);
    let modified = entry.modified;
    let fits = modified.nanoseconds == 0
        && u64::try_from(modified.seconds).is_ok_and(|seconds| octal(&mut fields.mtime, seconds));
    if !fits {
        octal(&mut fields.mtime, 0);
        records.push(b"mtime", decimal_time(modified.seconds, modified.nanoseconds).as_bytes());
    }
    for (name, value) in &entry.xattrs {
        // A key ends with its first `=`. libarchive's form has it encoded; writers of layers know no such names.
        match name.contains(&b'=') {
            false => records.push(&[b"SCHILY.xattr.", &name[..]].concat(), value),
            true => records.push(&pax::libarchive_key(name), BASE64.encode(value).as_bytes()),
        }
    }
    set_checksum(&mut block);
    let mut headers = Vec::new();
    if !records.0.is_empty() {
        let length = records.0.len() as u64;
        let mut extended = Header::new_ustar();
        let fields = extended.as_ustar_mut();
        fields.typeflag = [EntryType::XHeader.to_byte()];
        fields.name[..10].copy_from_slice(b"PaxHeaders");
        octal(&mut fields.mode, 0o644);
        for field in [&mut fields.uid[..], &mut fields.gid, &mut fields.mtime] {
            octal(field, 0);
        }
        octal(&mut fields.size, length);
        set_checksum(&mut extended);
        headers.extend_from_slice(extended.as_bytes());
        headers.append(&mut records.0);
        headers.resize(headers.len() + padding_of(length) as usize, 0);
    }
    headers.extend_from_slice(block.as_bytes());
    headers
}

#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// Into the field if it fits with its NUL and every reader takes it for the same text, else into a record.
    fn text(&mut self, key: &str, value: &[u8], field: &mut [u8]) {
        let length = value.len().min(field.len());
        field[..length].copy_from_slice(&value[..length]);
        if value.len() >= field.len() || !value.is_ascii() {
            self.push(key.as_bytes(), value);
        }
    }

    fn number(&mut self, key: &str, value: u64, field: &mut [u8]) {
        if !octal(field, value) {
            octal(field, 0);
            self.push(key.as_bytes(), value.to_string().as_bytes());
        }
    }

    /// The length in front counts its own digits.
    fn push(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(format!("{length} ").as_bytes());
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }
}

/// Writes octal digits with a NUL behind them; false, with nothing written, if there is no room.
fn octal(field: &mut [u8], value: u64) -> bool {
    let digits = format!("{value:0width$o}\0", width = field.len() - 1);
    let fits = digits.len() == field.len();
    if fits {
        field.copy_from_slice(digits.as_bytes());
    }
    fits
}

/// Octal, or where that has no room base 256 (GNU, and as POSIX has no record for it all others too).
fn device_number(field: &mut [u8; 8], value: u32) {
    if !octal(field, u64::from(value)) {
        *field = u64::from(value).to_be_bytes();
        field[0] = 0x80;
    }
}

/// Seconds since 1970 with a fraction, as in PAX records: -0.25 is 1969-12-31T23:59:59.75.
fn decimal_time(seconds: i64, nanoseconds: u32) -> String {
    let (sign, whole, fraction) = match (seconds < 0, nanoseconds) {
        (true, 1..) => ("-", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds),
        (true, 0) => ("-", seconds.unsigned_abs(), 0),
        (false, _) => ("", seconds.unsigned_abs(), nanoseconds),
    };
    let text = format!("{sign}{whole}.{fraction:09}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn set_checksum(header: &mut Header) {
    header.as_ustar_mut().cksum = *b"        ";
    let sum: u32 = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum();
    // At most 512 × 255: six digits.
    let digits = format!("{sum:06o}\0 ");
    header.as_ustar_mut().cksum.copy_from_slice(digits.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::{Content, EntryKind, Timestamp};
    use crate::layer::tar::{Limits, SinkError, TarReader, TarSink, owner_names};

    #[derive(Default)]
    struct Collected(Vec<Entry>);

    impl TarSink for Collected {
        fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
            self.0.push(entry);
            Ok(())
        }
        fn payload(&mut self, _decoded_offset: u64, _bytes: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }
    }

    fn read(archive: &[u8]) -> Entry {
        let mut reader = TarReader::new(Limits::default());
        let mut sink = Collected::default();
        reader.push(archive, &mut sink).unwrap();
        reader.finish().unwrap();
        sink.0.pop().unwrap()
    }

    #[test]
    fn what_is_written_is_read_again() {
        let plain = Entry {
            path: b"usr/bin/file".to_vec(),
            kind: EntryKind::Regular { size: 3, content: Content::Contiguous(0) },
            mode: 0o4755,
            uid: 5,
            gid: 6,
            modified: Timestamp { seconds: 1_700_000_000, nanoseconds: 0 },
            xattrs: vec![],
        };
        let names = OwnerNames { user: b"root".to_vec(), group: "größe".into() };
        let cases = [
            plain.clone(),
            Entry { path: vec![b'x'; 100], ..plain.clone() },
            Entry { path: vec![b'y'; 3000], ..plain.clone() },
            Entry { path: b"latin\xe9\n=".to_vec(), ..plain.clone() },
            Entry { uid: u32::MAX, gid: 2_097_152, ..plain.clone() },
            Entry { modified: Timestamp { seconds: -1, nanoseconds: 750_000_000 }, ..plain.clone() },
            Entry { modified: Timestamp { seconds: -2, nanoseconds: 0 }, ..plain.clone() },
            Entry { modified: Timestamp { seconds: 10, nanoseconds: 1 }, ..plain.clone() },
            Entry { modified: Timestamp { seconds: i64::MIN, nanoseconds: 0 }, ..plain.clone() },
            Entry { xattrs: vec![(b"user.x=%3D\xff\n".to_vec(), b"\0\n=".to_vec())], ..plain.clone() },
            Entry { xattrs: vec![(b"user.x".to_vec(), b"\0\n=".to_vec())], ..plain.clone() },
            Entry { kind: EntryKind::Directory, path: b"usr/".to_vec(), ..plain.clone() },
            Entry { kind: EntryKind::Fifo, ..plain.clone() },
            Entry { kind: EntryKind::Symlink { target: b"../x".to_vec() }, ..plain.clone() },
            Entry { kind: EntryKind::Hardlink { target: vec![b't'; 200] }, ..plain.clone() },
            Entry { kind: EntryKind::CharacterDevice { major: 1, minor: 3 }, ..plain.clone() },
            Entry { kind: EntryKind::BlockDevice { major: 4095, minor: 0x00ff_ffff }, ..plain },
        ];
        for expected in cases {
            let headers = entry_headers(&expected, &names, 3);
            assert_eq!(headers.len() % BLOCK, 0);
            let mut archive = headers.clone();
            archive.extend([b"abc".to_vec(), vec![0; BLOCK - 3], END_OF_ARCHIVE.to_vec()].concat());
            let mut expected = expected;
            if let EntryKind::Regular { content, .. } = &mut expected.kind {
                *content = Content::Contiguous(headers.len() as u64);
            } else {
                archive.truncate(headers.len());
            }
            assert_eq!(read(&archive), expected);
            assert_eq!(owner_names(&headers), names);
        }
    }
}
