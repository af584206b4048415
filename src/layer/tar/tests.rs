//! Promises of the tar reader. [`gnu_tar`] has archives that GNU tar writes; those here are made by hand.

mod gnu_tar;

use proptest::prelude::*;

use super::*;
use crate::layer::entry::Extent;

/// Keeps what it is given.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub entries: Vec<Entry>,
    /// Payload of each entry: first decoded offset, bytes.
    pub payloads: Vec<Option<(u64, Vec<u8>)>>,
    /// Payload and what lies between.
    all: Vec<u8>,
}

impl TarSink for Kept {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.entries.push(entry);
        self.payloads.push(None);
        Ok(())
    }

    fn payload(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        assert!(!bytes.is_empty());
        let payload = self.payloads.last_mut().expect("an entry comes before its payload");
        let (start, data) = payload.get_or_insert((decoded_offset, Vec::new()));
        assert_eq!(*start + data.len() as u64, decoded_offset, "payload has no gaps");
        data.extend_from_slice(bytes);
        self.framing(decoded_offset, bytes)
    }

    fn framing(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        assert_eq!(decoded_offset, self.all.len() as u64, "every byte comes once, in order");
        self.all.extend_from_slice(bytes);
        Ok(())
    }
}

/// Reads `archive` in pieces of `piece` bytes.
pub(super) fn read(archive: &[u8], piece: usize) -> Result<Kept, TarError> {
    let mut reader = TarReader::new(Limits::default());
    let mut kept = Kept::default();
    for bytes in archive.chunks(piece) {
        reader.push(bytes, &mut kept)?;
    }
    reader.finish()?;
    assert!(kept.all == archive, "payloads and what lies between them are the archive");
    Ok(kept)
}

fn fault(archive: &[u8]) -> TarFault {
    match read(archive, 1000) {
        Err(TarError::Archive { fault, .. }) => fault,
        other => panic!("a fault of the archive: {other:?}"),
    }
}

/// Offset in the block, and bytes.
type Field<'a> = (usize, &'a [u8]);

/// A header block with its checksum; `fields` are offset and bytes.
fn header(kind: u8, name: &[u8], size: u64, fields: &[Field]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut set = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    set(0, name);
    set(100, b"0000644\0");
    set(108, b"0001750\0");
    set(116, b"0000144\0");
    set(124, format!("{size:011o}\0").as_bytes());
    set(136, b"00000000144\0");
    set(148, b"        ");
    set(156, &[kind]);
    set(257, b"ustar\x0000");
    fields.iter().for_each(|(at, bytes)| set(*at, bytes));
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

/// A header of `kind` with its data, padded.
fn member(kind: u8, name: &[u8], data: &[u8]) -> Vec<u8> {
    [header(kind, name, data.len() as u64, &[]), padded(data)].concat()
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let length = (1..).find(|length| body.len() + length.to_string().len() == *length).unwrap();
        data.extend(length.to_string().bytes());
        data.extend(body);
    }
    member(b'x', b"PaxHeaders/x", &data)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [&members.concat()[..], &[0; 2 * BLOCK]].concat()
}

fn only_entry(members: &[Vec<u8>]) -> Entry {
    let [entry] = <[Entry; 1]>::try_from(read(&archive(members), 100).unwrap().entries).unwrap();
    entry
}

const GNU: Field = (257, b"ustar  \0");
const V7: Field = (257, &[0; 8]);

#[test]
fn every_type_has_its_kind() {
    let device: [Field; 2] = [(329, b"0000010\0"), (337, b"0000003\0")];
    let target: [Field; 1] = [(157, b"the/target")];
    let regular = EntryKind::Regular { size: 0, content: Content::Contiguous(512) };
    let to = b"the/target".to_vec();
    let cases: [(u8, &[u8], &[Field], EntryKind); 12] = [
        (b'0', b"file", &[], regular.clone()),
        (0, b"file", &[V7], regular.clone()),
        (b'7', b"contiguous", &[], regular),
        (b'5', b"directory/", &[], EntryKind::Directory),
        (0, b"old-directory/", &[V7], EntryKind::Directory),
        (b'2', b"link", &target, EntryKind::Symlink { target: to.clone() }),
        (b'1', b"hardlink", &target, EntryKind::Hardlink { target: to }),
        (b'3', b"character", &device, EntryKind::CharacterDevice { major: 8, minor: 3 }),
        (b'4', b"block", &device, EntryKind::BlockDevice { major: 8, minor: 3 }),
        (b'3', b"character", &[V7], EntryKind::CharacterDevice { major: 0, minor: 0 }),
        (b'4', b"block", &[GNU, device[0]], EntryKind::BlockDevice { major: 8, minor: 0 }),
        (b'6', b"fifo", &[], EntryKind::Fifo),
    ];
    for (kind, name, fields, expected) in cases {
        let entry = only_entry(&[header(kind, name, 0, fields)]);
        assert_eq!(entry.kind, expected, "{}", name.escape_ascii());
        assert_eq!(entry.path, name);
        assert_eq!((entry.mode, entry.uid, entry.gid), (0o644, 1000, 100));
        assert_eq!(entry.modified, Timestamp { seconds: 100, nanoseconds: 0 });
    }
}

#[test]
fn only_regular_files_have_data() {
    // A size in the header of anything else is not followed by data.
    let members = [header(b'1', b"link", 700, &[]), header(b'5', b"d", 9, &[]), member(b'0', b"f", b"data")];
    let kept = read(&archive(&members), 77).unwrap();
    assert_eq!(kept.entries.len(), 3);
    assert_eq!(kept.payloads, [None, None, Some((3 * 512, b"data".to_vec()))]);
}

#[test]
fn names_come_from_the_place_with_most_authority() {
    let long = "d/".repeat(200).into_bytes();
    let nul = |name: &[u8]| [name, b"\0"].concat();
    let prefix: Field = (345, b"usr/share");
    let cases: [(Vec<Vec<u8>>, &[u8]); 9] = [
        (vec![header(b'0', b"doc/x", 0, &[prefix])], b"usr/share/doc/x"),
        (
            vec![header(b'0', b"doc/x", 0, &[prefix, (508, b"tar\0"), (476, b"00000000144\x00")])],
            b"usr/share/doc/x",
        ),
        (vec![header(b'0', b"x", 0, &[GNU, (345, b"00000000144\x00")])], b"x"),
        (vec![header(b'0', b"doc/x", 0, &[GNU, prefix])], b"usr/share/doc/x"),
        (vec![header(b'0', b"doc/x", 0, &[V7, prefix])], b"doc/x"),
        (vec![pax(&[("path", &long)]), header(b'0', b"doc/x", 0, &[prefix])], &long),
        (vec![member(b'L', b"././@LongLink", &nul(&long)), header(b'0', b"x", 0, &[GNU])], &long),
        (vec![pax(&[("path", b"pax")]), member(b'L', b"L", b"long\0"), header(b'0', b"x", 0, &[])], b"long"),
        (vec![pax(&[("path", b"first")]), pax(&[("path", b"")]), header(b'0', b"x", 0, &[])], b"x"),
    ];
    for (members, expected) in cases {
        assert_eq!(only_entry(&members).path.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }
    let link = [member(b'K', b"K", &nul(&long)), header(b'2', b"x", 0, &[(157, b"short")])];
    assert_eq!(only_entry(&link).kind, EntryKind::Symlink { target: long.clone() });
    let link = [pax(&[("linkpath", &long)]), header(b'1', b"x", 0, &[(157, b"short")])];
    assert_eq!(only_entry(&link).kind, EntryKind::Hardlink { target: long });
}

#[test]
fn records_replace_the_fields_of_the_next_header_only() {
    let records: [(&str, &[u8]); 7] = [
        ("size", b"3"),
        ("uid", b"4294967295"),
        ("gid", b"70000"),
        ("mtime", b"-1.5"),
        ("hdrcharset", b"BINARY"),
        ("comment", b""),
        ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n=\xff"),
    ];
    let members = [pax(&records), header(b'0', b"a", 0, &[]), padded(b"abc"), member(b'0', b"b", b"")];
    let kept = read(&archive(&members), 512).unwrap();
    let [a, b] = &kept.entries[..] else { panic!("two entries: {kept:?}") };
    assert_eq!((a.uid, a.gid), (u32::MAX, 70_000));
    assert_eq!(a.modified, Timestamp { seconds: -2, nanoseconds: 500_000_000 });
    assert_eq!(a.xattrs, [(b"security.capability".to_vec(), b"\x01\0\0\x02\n=\xff".to_vec())]);
    assert_eq!(kept.payloads[0].as_ref().unwrap().1, b"abc");
    assert_eq!((b.uid, b.gid, b.xattrs.len()), (1000, 100, 0));
}

#[test]
fn numbers_beyond_octal_are_read() {
    let fields: [Field; 4] = [
        (108, b"\x80\0\0\0\xff\xff\xff\xfe"),
        (116, b"\x80\0\0\0\0\x1f\xff\xff"),
        (136, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb"),
        (100, b"0104755\0"),
    ];
    let entry = only_entry(&[header(b'0', b"x", 0, &fields)]);
    assert_eq!((entry.uid, entry.gid, entry.mode), (u32::MAX - 1, 0x1f_ffff, 0o4755));
    assert_eq!(entry.modified, Timestamp { seconds: -5, nanoseconds: 0 });
}

#[test]
fn global_records_say_nothing_about_entries() {
    let mut global = pax(&[("path", b"elsewhere"), ("mtime", b"5"), ("comment", b"of git archive")]);
    global[156] = b'g';
    let sum: u32 = global[..BLOCK].iter().map(|byte| u32::from(*byte)).sum::<u32>()
        - global[148..156].iter().map(|byte| u32::from(*byte)).sum::<u32>()
        + 8 * 32;
    global[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let entry = only_entry(&[global.clone(), header(b'0', b"x", 0, &[])]);
    assert_eq!((entry.path, entry.modified.seconds), (b"x".to_vec(), 100));
    assert_eq!(read(&archive(&[global]), 512).unwrap().entries, []);
}

#[test]
fn a_sum_of_signed_bytes_is_a_checksum_too() {
    let mut block = header(b'0', b"\xe9t\xe9", 0, &[]);
    let others = block.iter().enumerate().filter(|(at, _)| !(148..156).contains(at));
    let sum: i64 = others.map(|(_, byte)| i64::from(*byte as i8)).sum::<i64>() + 8 * 32;
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    assert_eq!(only_entry(&[block]).path, b"\xe9t\xe9");
}

#[test]
fn the_archive_may_end_in_several_ways() {
    let file = member(b'0', b"f", b"data");
    let end = [0; 2 * BLOCK];
    for (archive, entries) in [
        (vec![], 0),
        (end.to_vec(), 0),
        (file.clone(), 1),
        (file[..BLOCK + 4].to_vec(), 1),
        ([&file[..], &end[..BLOCK]].concat(), 1),
        ([&file[..], &end, b"anything"].concat(), 1),
        ([&file[..], &end, &file].concat(), 1),
        ([&file[..], &pax(&[("path", b"never comes")]), &end].concat(), 1),
    ] {
        assert_eq!(read(&archive, 100).unwrap().entries.len(), entries);
    }
}

#[test]
fn every_cut_through_an_entry_is_noticed() {
    let whole = [pax(&[("path", b"name")]), member(b'0', b"f", &[7; 600])].concat();
    let data_end = 3 * BLOCK + 600;
    for length in 1..data_end {
        assert_eq!(fault(&whole[..length]), TarFault::Truncated, "{length}");
    }
    assert!(read(&whole[..data_end], 100).is_ok());
}

#[test]
fn archives_that_lie_are_refused() {
    let good = header(b'0', b"f", 0, &[]);
    let mut changed = good.clone();
    changed[0] = b'g';
    let negative: Field = (124, b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    let huge: Field = (124, b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff");
    let long_path = vec![b'x'; Limits::default().path + 1];
    let cases = [
        (vec![changed], "checksum"),
        (vec![vec![0; BLOCK], good.clone()], "zero block"),
        (vec![header(b'0', b"f", 0, &[negative])], "out of range"),
        (vec![header(b'0', b"f", 0, &[huge])], "holds no number"),
        (vec![header(b'0', b"f", 0, &[(108, b"zzzzzzz\0")])], "holds no number"),
        (vec![header(b'0', b"f", 0, &[(108, b"\xff\xff\xff\xff\xff\xff\xff\xff")])], "out of range"),
        (vec![pax(&[("uid", b"4294967296")]), good.clone()], "out of range"),
        (vec![pax(&[("size", b"-1")]), good.clone()], "malformed PAX record size"),
        (vec![member(b'x', b"x", b"garbage"), good.clone()], "malformed PAX record"),
        (vec![header(b'x', b"x", (1 << 20) + 1, &[])], "extended headers"),
        (vec![header(b'L', b"x", 1 << 40, &[])], "extended headers"),
        (vec![pax(&[("path", &long_path)]), good.clone()], "a name of 65537 bytes"),
        (vec![pax(&[("linkpath", &long_path)]), header(b'2', b"f", 0, &[])], "a name of 65537 bytes"),
        (vec![header(b'Z', b"f", 0, &[])], "unknown entry type \"Z\""),
        (vec![header(b'S', b"f", 0, &[])], "unknown entry type \"S\""),
        (
            vec![pax(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")]), good.clone()],
            "sparse encoding",
        ),
        (
            vec![
                pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")]),
                good.clone(),
                vec![b'0'; 512],
            ],
            "sparse map",
        ),
        (vec![pax(&[("GNU.sparse.map", b"0,1,2")]), good.clone()], "sparse map"),
        (
            vec![pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.numblocks", b"2")]), good.clone()],
            "sparse map",
        ),
        (vec![pax(&[("GNU.sparse.numbytes", b"1")]), good], "malformed PAX record"),
    ];
    for (members, expected) in cases {
        let message = fault(&archive(&members)).to_string();
        assert!(message.contains(expected), "{message} should have {expected}");
    }
}

#[test]
fn an_error_names_the_entry_and_its_place() {
    let members =
        [member(b'0', b"first", b"data"), pax(&[("path", b"the/name")]), header(b'Z', b"x", 0, &[])];
    let error = read(&archive(&members), 512).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tar archive, header at byte 2048 (entry \"the/name\"): unknown entry type \"Z\""
    );
}

#[test]
fn a_sink_that_fails_ends_the_reading() {
    struct Full;
    impl TarSink for Full {
        fn entry(&mut self, _: Entry) -> Result<(), SinkError> {
            Ok(())
        }
        fn payload(&mut self, _: u64, _: &[u8]) -> Result<(), SinkError> {
            Err("no space left".into())
        }
    }
    let mut reader = TarReader::new(Limits::default());
    let error = reader.push(&member(b'0', b"f", b"data"), &mut Full).unwrap_err();
    assert_eq!(error.to_string(), "no space left");
}

#[test]
fn old_gnu_sparse_files_need_no_real_size_of_a_multiple() {
    let map = [&b"00000001000\0"[..], b"00000000003\0", b"00000002000\0", b"00000000000\0"].concat();
    let block = header(b'S', b"sparse", 3, &[GNU, (386, &map), (483, b"00000002000\0")]);
    let kept = read(&archive(&[block, padded(b"abc")]), 100).unwrap();
    let extent = Extent { file_offset: 0o1000, length: 3, decoded_offset: 512 };
    let kind = EntryKind::Regular { size: 0o2000, content: Content::Sparse(vec![extent]) };
    assert_eq!(kept.entries[0].kind, kind);
    assert_eq!(kept.payloads[0], Some((512, b"abc".to_vec())));
}

/// An archive with a bit of everything.
fn mixed_archive() -> Vec<u8> {
    let sparse: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"5000"),
    ];
    archive(&[
        member(b'5', b"d/", b""),
        member(b'L', b"L", &[b'n'; 300]),
        member(b'0', b"f", &[1; 700]),
        pax(&sparse),
        member(b'0', b"x", &[padded(b"2\n0\n4\n4000\n4\n"), b"abcdefgh".to_vec()].concat()),
        pax(&[("SCHILY.xattr.user.x", b"\n\0"), ("mtime", b"1.25")]),
        member(b'0', b"last", b"x"),
    ])
}

proptest! {
    #[test]
    fn pieces_of_any_size_give_the_same(piece in 1_usize..3000) {
        let archive = mixed_archive();
        prop_assert_eq!(read(&archive, piece).unwrap(), read(&archive, archive.len()).unwrap());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000), piece in 1_usize..600) {
        let _ = read(&bytes, piece);
    }

    /// Changed bytes in otherwise valid headers reach further: the checksum is made right again.
    #[test]
    fn no_changed_header_makes_it_panic(changes in proptest::collection::vec((0_usize..8000, any::<u8>()), 1..6)) {
        let mut archive = mixed_archive();
        for (at, byte) in changes {
            let at = at % archive.len();
            archive[at] = byte;
            let block = &mut archive[at / BLOCK * BLOCK..][..BLOCK];
            if block[257..262] == *b"ustar" {
                block[148..156].fill(b' ');
                let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
                block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        if let Ok(kept) = read(&archive, 512) {
            for entry in kept.entries {
                if let EntryKind::Regular { size, content: Content::Sparse(extents) } = entry.kind {
                    let mut end = 0;
                    for extent in extents {
                        prop_assert!(extent.length > 0 && extent.file_offset >= end);
                        end = extent.file_offset + extent.length;
                    }
                    prop_assert!(end <= size);
                }
            }
        }
    }
}
