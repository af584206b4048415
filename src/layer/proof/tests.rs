//! Each lie that a table of contents can tell is found, and told by its name; what is no lie is passed over.

use super::*;
use crate::layer::entry::Timestamp;

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry {
        path: path.into(),
        kind,
        mode: 0o644,
        uid: 1,
        gid: 2,
        modified: Timestamp { seconds: 1000, nanoseconds: 0 },
        xattrs: vec![(b"user.a".to_vec(), b"1".to_vec())],
    }
}

/// A file of these bytes, its payload at a place of its own.
fn file(path: &str, place: u64, content: &'static str) -> (Entry, &'static str) {
    let size = content.len() as u64;
    (entry(path, EntryKind::Regular { size, content: Content::Contiguous(place) }), content)
}

fn other(path: &str, kind: EntryKind) -> (Entry, &'static str) {
    (entry(path, kind), "")
}

type Entries = Vec<(Entry, &'static str)>;

/// One of each type.
fn layer() -> Entries {
    vec![
        other("d/", EntryKind::Directory),
        file("d/file", 512, "content"),
        file("d/empty", 0, ""),
        other("d/hard", EntryKind::Hardlink { target: b"d/file".to_vec() }),
        other("d/link", EntryKind::Symlink { target: b"file".to_vec() }),
        other("null", EntryKind::CharacterDevice { major: 1, minor: 3 }),
        other("disk", EntryKind::BlockDevice { major: 8, minor: 0 }),
        other("pipe", EntryKind::Fifo),
        other(".wh.gone", EntryKind::Fifo),
        file("implied/file", 1024, "x"),
        file("last", 2048, "the end"),
    ]
}

/// What differs between the table of `believed` and the archive of `archive`.
fn differences(believed: &Entries, archive: &Entries) -> Vec<Difference> {
    let mut builder = LayerBuilder::new();
    let mut contents = BTreeMap::new();
    for (entry, content) in believed {
        if let EntryKind::Regular { content: Content::Contiguous(place), .. } = &entry.kind {
            contents.insert(*place, *content);
        }
        builder.add(entry.clone()).unwrap();
    }
    let table = Table::from_bytes(builder.finish([1; 32], &[]).unwrap()).unwrap();
    let annotation = crate::layer::estargz::TOC_DIGEST_ANNOTATION.to_owned();
    let mut sink = ArchiveSink::new([(annotation, String::new())].into());
    for (entry, content) in archive {
        let place = match &entry.kind {
            EntryKind::Regular { content: Content::Contiguous(place), .. } => *place,
            _ => 0,
        };
        sink.entry(entry.clone()).unwrap();
        // In two pieces.
        let (one, two) = content.as_bytes().split_at(content.len() / 2);
        sink.payload(place, one).unwrap();
        sink.payload(place + one.len() as u64, two).unwrap();
    }
    let digest = |inode: &InodeRecord| Ok(Sha256::digest(contents[&inode.content.get()]).into());
    sink.differences(&table, digest).unwrap()
}

#[test]
fn a_table_that_says_what_the_archive_says_has_no_differences() {
    assert_eq!(differences(&layer(), &layer()), []);
    // Where the bytes lie does not matter, nor the landmarks and the table itself, nor what was replaced.
    let mut archive = layer();
    for (number, (entry, _)) in archive.iter_mut().enumerate() {
        if let EntryKind::Regular { content: Content::Contiguous(place), .. } = &mut entry.kind {
            *place = 1_000_000 + number as u64 * 1000;
        }
    }
    archive.insert(0, file("last", 5, "replaced"));
    archive.insert(0, file(".no.prefetch.landmark", 3, "\u{f}"));
    archive.push(file("stargz.index.json", 9_000_000, "{}"));
    assert_eq!(differences(&layer(), &archive), []);
}

#[test]
fn each_lie_is_told_by_path_and_field() {
    type Edit = fn(&mut Entries);
    let cases: [(&str, &str, Edit); 22] = [
        ("d", "the mode", |entries| entries[0].0.mode = 0o4755),
        ("d/file", "the mode", |entries| entries[1].0.mode = 0o4644),
        ("d/file", "the owner", |entries| entries[1].0.uid = 0),
        ("d/file", "the group", |entries| entries[1].0.gid = 0),
        ("d/file", "the time", |entries| entries[1].0.modified.seconds += 1),
        ("d/file", "the set of extended attributes", |entries| entries[1].0.xattrs[0].1 = b"2".to_vec()),
        ("d/file", "the set of extended attributes", |entries| entries[1].0.xattrs.clear()),
        ("d/file", "the content", |entries| entries[1].1 = "CONTENT"),
        ("d/file", "the size", |entries| entries[1] = file("d/file", 512, "contents")),
        ("d/empty", "the size", |entries| entries[2] = file("d/empty", 4096, "x")),
        ("d/hard", "it", |entries| entries[3] = file("d/hard", 4096, "content")),
        ("d/link", "the target", |entries| {
            entries[4].0.kind = EntryKind::Symlink { target: b"hard".to_vec() }
        }),
        ("d/link", "it", |entries| entries[4].0.kind = EntryKind::Fifo),
        ("null", "the device", |entries| {
            entries[5].0.kind = EntryKind::CharacterDevice { major: 1, minor: 5 }
        }),
        ("disk", "it", |entries| entries[6].0.kind = EntryKind::CharacterDevice { major: 8, minor: 0 }),
        ("disk", "the device", |entries| entries[6].0.kind = EntryKind::BlockDevice { major: 9, minor: 0 }),
        ("gone", "it", |entries| drop(entries.remove(8))),
        ("gone", "it", |entries| entries[8] = file("gone", 4096, "x")),
        ("d", "it", |entries| entries.push(other("d/.wh..wh..opq", EntryKind::Fifo))),
        ("implied", "it", |entries| entries.push(other("implied", EntryKind::Directory))),
        ("last", "it", |entries| drop(entries.pop())),
        ("more", "it", |entries| entries.push(file("more", 4096, "x"))),
    ];
    for (path, field, edit) in cases {
        let mut lie = layer();
        edit(&mut lie);
        // Either side may be the one that is short.
        for found in [differences(&lie, &layer()), differences(&layer(), &lie)] {
            let is_told = |difference: &Difference| {
                (&difference.path[..], difference.field) == (path.as_bytes(), field)
            };
            assert!(found.iter().any(is_told), "{path}, {field}: {found:?}");
        }
    }
}

#[test]
fn hardlinks_that_group_other_names_are_told() {
    let named = |first: &str, second: &str| {
        let hard = |name: &str, target: &str| other(name, EntryKind::Hardlink { target: target.into() });
        vec![file("a", 512, "x"), file("b", 1024, "x"), hard("c", first), hard("d", second)]
    };
    assert_eq!(differences(&named("a", "b"), &named("a", "b")), []);
    for (one, two) in [(("a", "b"), ("b", "a")), (("a", "a"), ("a", "b")), (("a", "b"), ("b", "b"))] {
        let found = differences(&named(one.0, one.1), &named(two.0, two.1));
        assert!(found.iter().all(|difference| difference.field == "it") && !found.is_empty(), "{found:?}");
    }
    // A link to a file of a lower layer.
    let lower = |target: &str| vec![other("link", EntryKind::Hardlink { target: target.into() })];
    assert_eq!(differences(&lower("x"), &lower("x")), []);
    assert_eq!(differences(&lower("x"), &lower("y"))[0].field, "the target");
}

#[test]
fn times_may_be_rounded_to_seconds_in_the_table_alone() {
    let at = |seconds, nanoseconds| {
        let mut entries = vec![file("f", 512, "x")];
        entries[0].0.modified = Timestamp { seconds, nanoseconds };
        entries
    };
    for (believed, archive, is_true) in [
        ((5, 0), (5, 0), true),
        ((5, 123), (5, 123), true),
        ((5, 0), (5, 499_999_999), true),
        ((6, 0), (5, 500_000_000), true),
        ((-5, 0), (-6, 500_000_000), true),
        ((5, 0), (5, 500_000_000), false),
        ((6, 0), (5, 499_999_999), false),
        ((5, 1), (5, 0), false),
        ((5, 1), (5, 2), false),
        ((6, 0), (5, 0), false),
    ] {
        let found = differences(&at(believed.0, believed.1), &at(archive.0, archive.1));
        assert_eq!(found.is_empty(), is_true, "{believed:?} {archive:?}: {found:?}");
    }
}

#[test]
fn sparse_files_are_compared_with_their_holes() {
    let sparse = |pieces: &[(u64, u64, u64)], size| {
        let extent = |(file_offset, length, decoded_offset): &(u64, u64, u64)| Extent {
            file_offset: *file_offset,
            length: *length,
            decoded_offset: *decoded_offset,
        };
        let content = Content::Sparse(pieces.iter().map(extent).collect());
        entry("f", EntryKind::Regular { size, content })
    };
    let digest_of = |entry: Entry, stored: &[u8]| {
        let mut sink = ArchiveSink::new(BTreeMap::new());
        sink.entry(entry).unwrap();
        stored.iter().for_each(|byte| sink.payload(0, &[*byte]).unwrap());
        sink.digests
    };
    let expected: [u8; 32] = Sha256::digest(b"\0\0ab\0c\0\0").into();
    assert_eq!(digest_of(sparse(&[(2, 2, 512), (5, 1, 514)], 8), b"abc"), [(512, expected)]);
    assert_eq!(digest_of(sparse(&[], 8), b""), []);
    // More holes than anybody has time for.
    let mut sink = ArchiveSink::new(BTreeMap::new());
    sink.entry(sparse(&[(1 << 60, 1, 512)], 1 << 61)).unwrap();
    assert!(sink.payload(512, b"x").is_err());
}

#[test]
fn of_many_differences_the_first_are_told() {
    let many: Entries = (0..100).map(|number| other(&format!("{number:03}"), EntryKind::Fifo)).collect();
    let found = differences(&many, &Vec::new());
    assert_eq!(found.len(), MOST_DIFFERENCES);
    assert_eq!(found[0].path, b"000");
    assert_eq!(
        found[0].to_string(),
        "\"/000\": it is a named pipe by its table of contents, missing in its archive"
    );
}
