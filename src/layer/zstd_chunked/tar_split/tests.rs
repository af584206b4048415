//! Promises of tar-split: what was split comes back, and what does not fit is told.

use serde_json::{Value, json};

use super::*;
use crate::layer::entry::{Entry, EntryKind, Timestamp};
use crate::layer::tar::{Limits, TarReader, TarSink};

/// An archive, and what it holds.
fn archive() -> (Vec<u8>, Vec<(&'static str, Vec<u8>)>) {
    let files = vec![("d/one", vec![7; 1000]), ("two", vec![]), ("three", b"three".to_vec())];
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    builder.append_data(&mut header, "d/", &[][..]).unwrap();
    for (name, content) in &files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        builder.append_data(&mut header, name, &content[..]).unwrap();
    }
    (builder.into_inner().unwrap(), files)
}

/// Splits an archive with the writer, by the places that the tar reader tells.
fn split(archive: &[u8]) -> (Vec<Value>, Vec<Entry>) {
    #[derive(Default)]
    struct Places(Vec<(Range<u64>, Entry)>, Range<u64>);
    impl TarSink for Places {
        fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
            self.0.push((self.1.clone(), entry));
            Ok(())
        }
        fn payload(&mut self, _: u64, _: &[u8]) -> Result<(), SinkError> {
            Ok(())
        }
        fn headers(&mut self, place: Range<u64>) -> Result<(), SinkError> {
            self.1 = place;
            Ok(())
        }
    }
    let mut places = Places::default();
    let mut reader = TarReader::new(Limits::default());
    reader.push(archive, &mut places).unwrap();
    let mut writer = TarSplitWriter::default();
    let mut at = 0;
    for (headers, entry) in &places.0 {
        let size = match entry.kind {
            EntryKind::Regular { size, .. } => size as usize,
            _ => 0,
        };
        let data = headers.end as usize;
        writer.bytes(&archive[at..data]);
        let mut crc64 = Crc64::default();
        crc64.update(&archive[data..data + size]);
        writer.entry(std::str::from_utf8(&entry.path).unwrap(), size as u64, crc64.finish());
        at = data + size;
    }
    writer.bytes(&archive[at..]);
    writer.end_segment();
    let lines = String::from_utf8(writer.take()).unwrap();
    let lines = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (lines, places.0.into_iter().map(|(_, entry)| entry).collect())
}

fn lines(values: &[Value]) -> Vec<u8> {
    values.iter().flat_map(|value| format!("{value}\n").into_bytes()).collect()
}

fn rebuilt(split: &TarSplit, files: &[(&str, Vec<u8>)]) -> Result<Vec<u8>, RebuildError> {
    let mut output = Vec::new();
    let mut content_of = |path: &[u8],
                          _: u64,
                          give: &mut dyn FnMut(&[u8]) -> Result<(), SinkError>|
     -> Result<(), SinkError> {
        let (_, content) = files.iter().find(|(name, _)| name.as_bytes() == path).ok_or("no such file")?;
        content.chunks(7).try_for_each(give)
    };
    split.rebuild(&mut content_of, &mut |bytes| {
        output.extend_from_slice(bytes);
        Ok(())
    })?;
    Ok(output)
}

#[test]
fn what_was_split_comes_back() {
    let (archive, files) = archive();
    let (values, entries) = split(&archive);
    let split = TarSplit::parse(&lines(&values)).unwrap();
    assert_eq!(rebuilt(&split, &files).unwrap(), archive);
    assert_eq!(split.archive_length(), archive.len() as u64);
    compare(&split, &entries).unwrap();
    let kinds: Vec<i64> = values.iter().map(|value| value["type"].as_i64().unwrap()).collect();
    assert_eq!(kinds, [2, 1, 2, 1, 2, 1, 2, 1, 2]);
    assert_eq!(values[1], json!({"type": 1, "name": "d/", "payload": null, "position": 1}));
}

#[test]
fn a_file_that_is_another_now_is_told() {
    let (archive, files) = archive();
    let split = TarSplit::parse(&lines(&split(&archive).0)).unwrap();
    let with = |content: &[u8]| {
        let mut files = files.clone();
        files[2].1 = content.to_vec();
        rebuilt(&split, &files).unwrap_err().to_string()
    };
    assert!(with(b"threE").contains("checksums differ"));
    assert!(with(b"three!").contains("but 5 in its archive"));
    assert!(with(b"thre").contains("has 4 bytes"));
    assert!(
        rebuilt(&split, &files[..2]).unwrap_err().to_string().contains("\"three\" of the layer: no such")
    );
}

#[test]
fn names_that_are_not_utf_8_are_read() {
    let line = json!({"type": 1, "name_raw": "/w==", "size": 1, "payload": "AAAAAAAAAAE="});
    let split = TarSplit::parse(&lines(&[line])).unwrap();
    let pieces: Vec<Piece<'_>> = split.pieces().collect();
    assert_eq!(pieces, [Piece::File { path: b"\xff", size: 1, crc64: 1 }]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (line, said) in [
        (json!({"type": 3, "payload": ""}), "type is unknown"),
        (json!({"payload": ""}), "missing field"),
        (json!({"type": 2, "payload": "?"}), "not base 64"),
        (json!({"type": 2, "payload": 1}), "invalid type"),
        (json!({"type": 1, "size": -1, "payload": ""}), "negative"),
        (json!({"type": 1, "size": 1, "payload": ""}), "checksum is malformed"),
        (json!({"type": 1, "size": 1, "payload": "AAAA"}), "checksum is malformed"),
        (json!({"type": 1, "size": 1, "name_raw": "x", "payload": "AAAAAAAAAAE="}), "not base 64"),
        (json!({"type": 1, "size": 1_u64 << 62, "payload": "AAAAAAAAAAE="}), "more than"),
        (json!([1]), "invalid length"),
    ] {
        let error = TarSplit::parse(&lines(&[json!({"type": 2, "payload": "AA=="}), line])).unwrap_err();
        assert!(error.to_string().contains(said), "{said}: {error}");
    }
    assert!(TarSplit::parse(b"{\"type\":2,").is_err());
}

#[test]
fn a_table_that_says_otherwise_than_the_archive_is_told() {
    let (archive, _) = archive();
    let (values, entries) = split(&archive);
    let split_of = |values: &[Value]| TarSplit::parse(&lines(values)).unwrap();
    let changed = |change: &dyn Fn(&mut Vec<Entry>)| {
        let mut entries = entries.clone();
        change(&mut entries);
        compare(&split_of(&values), &entries).unwrap_err().to_string()
    };
    type Change = fn(&mut Vec<Entry>);
    let cases: [(Change, &str); 10] = [
        (|entries| entries[1].path = b"d/other".to_vec(), "in name"),
        (|entries| entries[1].kind = EntryKind::Fifo, "in type"),
        (|entries| entries[1].mode = 0o4644, "in mode"),
        (|entries| entries[1].uid = 1, "in user"),
        (|entries| entries[1].gid = 1, "in group"),
        (|entries| entries[1].modified = Timestamp::default(), "in time"),
        (|entries| entries[1].xattrs = vec![(b"security.capability".to_vec(), vec![])], "in extended"),
        (|entries| drop(entries.pop()), "not in the table"),
        (|entries| entries.push(entries[0].clone()), "not in the archive"),
        (|entries| entries.swap(1, 2), "in name"),
    ];
    for (change, said) in cases {
        let error = changed(&change);
        assert!(error.contains(said), "{said}: {error}");
    }
}

#[test]
fn segments_and_files_that_do_not_fit_together_are_told() {
    let (archive, _) = archive();
    let (values, entries) = split(&archive);
    type Change = fn(&mut Vec<Value>);
    let cases: [(Change, &str); 5] = [
        (|values| values[3]["size"] = json!(999), "do not announce"),
        (|values| values[3]["name"] = json!("other"), "do not announce"),
        (|values| drop(values.remove(3)), "holds content"),
        (|values| values.insert(3, values[3].clone()), "do not announce"),
        (|values| values.truncate(3), "cut off"),
    ];
    for (change, said) in cases {
        let mut values = values.clone();
        change(&mut values);
        let split = TarSplit::parse(&lines(&values)).unwrap();
        let error = compare(&split, &entries).unwrap_err().to_string();
        assert!(error.contains(said), "{said}: {error}");
    }
}
