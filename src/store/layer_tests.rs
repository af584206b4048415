use std::os::unix::fs::MetadataExt;

use zerocopy::{FromZeros, IntoBytes};

use super::super::Store;
use super::super::crash_tests::eventually;
use super::*;
use crate::table::format::{self, ChunkRecord, Header, Section};

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// As much of a table as the store looks at.
pub(in crate::store) fn table(chunks: u64, tail: &[u8]) -> Vec<u8> {
    let mut header = Header::new_zeroed();
    header.magic = format::MAGIC;
    header.version = format::VERSION.into();
    header.sections[Section::Chunks as usize].length = (chunks * size_of::<ChunkRecord>() as u64).into();
    [header.as_bytes(), tail].concat()
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

fn table_of(files: &LayerFiles) -> Vec<u8> {
    let mut bytes = vec![0; files.table.metadata().unwrap().len() as usize];
    files.table.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn names(path: &std::path::Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn sweep_until_empty(store: &Store) {
    eventually("nothing is left behind", || {
        store.sweep().unwrap();
        names(&store.path().join("layers/ingest")).is_empty()
    });
}

#[test]
fn an_extracted_layer_is_read_as_it_was_written_and_its_zeros_are_holes() {
    let (directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    assert!(layer.open().unwrap().is_none());
    let draft = layer.create().unwrap();
    draft.write(DataFile::Packed, 100, b"small").unwrap();
    // 1 MiB of zeros but for one byte, at an unaligned place.
    let mut bytes = vec![0; 1 << 20];
    bytes[500_000] = 7;
    draft.write(DataFile::Packed, 10_000, &bytes).unwrap();
    draft.large_file(3, 5 << 20).unwrap();
    draft.write(DataFile::Large(3), 4096, &[9; 4096]).unwrap();
    assert!(layer.open().unwrap().is_none(), "a draft is not seen");
    let table = table(0, b"rest of the table");
    drop(draft.publish(&table, None).unwrap());

    let files = layer.open().unwrap().unwrap();
    assert_eq!(table_of(&files), table);
    assert!(files.chunk_map.is_none());
    let mut read = vec![1; 1 << 20];
    files.data.read_at(DataFile::Packed, 10_000, &mut read).unwrap();
    assert!(read == bytes, "the trailing hole is there too");
    files.data.read_at(DataFile::Packed, 0, &mut read[..200]).unwrap();
    assert_eq!(
        (&read[..100], &read[100..105], &read[105..200]),
        (&[0; 100][..], &b"small"[..], &[0; 95][..])
    );
    files.data.read_at(DataFile::Large(3), 0, &mut read[..12288]).unwrap();
    assert!(read[..4096].iter().all(|b| *b == 0) && read[4096..8192].iter().all(|b| *b == 9));
    assert_eq!(files.data.large(3).unwrap().metadata().unwrap().len(), 5 << 20);
    let allocated = files.data.allocated_bytes().unwrap();
    assert!((12_288..100_000).contains(&allocated), "{allocated} bytes");
    assert_eq!(files.data.large(4).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    let past_the_end = files.data.read_at(DataFile::Packed, 1 << 20, &mut read);
    assert_eq!(past_the_end.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
    assert_eq!(names(&directory.path().join("layers/ingest")), [""; 0]);
}

#[test]
fn blocks_of_zeros_are_found_wherever_the_bytes_begin() {
    type Runs = &'static [(usize, usize)];
    let cases: [(u64, &[u8], Runs); 7] = [
        (0, &[], &[]),
        (0, &[0; BLOCK], &[]),
        (0, &[0; BLOCK - 1], &[(0, BLOCK - 1)]), // no whole block
        (1, &[0; BLOCK], &[(0, BLOCK)]),         // parts of two blocks
        (1, &[0; 2 * BLOCK], &[(0, BLOCK - 1), (2 * BLOCK - 1, 2 * BLOCK)]),
        (0, &[1; 2 * BLOCK], &[(0, 2 * BLOCK)]),
        (BLOCK as u64, &[0; 3 * BLOCK + 1], &[(3 * BLOCK, 3 * BLOCK + 1)]),
    ];
    for (offset, bytes, expected) in cases {
        let runs: Vec<_> = data_runs(offset, bytes).map(|run| (run.start, run.end)).collect();
        assert_eq!(runs, expected, "{} at {offset}", bytes.len());
    }
}

#[test]
fn a_lazy_layer_starts_empty_and_is_shared_by_all_who_open_it() {
    let (_directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    let (files, pending) = layer.create().unwrap().finish_unsynced(&table(70, b""), Some(70)).unwrap();
    // Usable before it is published, and the same afterwards.
    let map = files.chunk_map.as_ref().unwrap();
    files.data.write_at(DataFile::Large(0), 8192, b"chunk").unwrap();
    assert!(map.mark(69));
    assert!(layer.open().unwrap().is_none());
    assert_eq!(pending.commit().unwrap(), Publication::Published);

    let other_store = Store::open(store.path()).unwrap();
    let other = other_store.layers().layer(DIGEST).unwrap().open().unwrap().unwrap();
    let other_map = other.chunk_map.as_ref().unwrap();
    assert_eq!((other_map.len(), other_map.present()), (70, 1));
    let mut bytes = [0; 5];
    other.data.read_at(DataFile::Large(0), 8192, &mut bytes).unwrap();
    assert_eq!(&bytes, b"chunk");
    other.data.write_at(DataFile::Packed, 0, b"more").unwrap();
    other_map.mark(0);
    assert!(map.is_present(0));
    map.checkpoint(|| files.data.sync()).unwrap();
    files.data.set_length(DataFile::Large(0), 20_000).unwrap();
    files.data.set_length(DataFile::Large(0), 10).unwrap();
    assert_eq!(other.data.large(0).unwrap().metadata().unwrap().len(), 20_000, "never shorter");
}

#[test]
fn a_lazy_layer_whose_map_is_gone_has_nothing_rather_than_everything() {
    let (directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    let files = layer.create().unwrap().publish(&table(3, b""), Some(3)).unwrap();
    files.chunk_map.as_ref().unwrap().mark(1);
    drop(files);
    std::fs::remove_file(directory.path().join("layers/sha256").join(&DIGEST[7..]).join("chunks")).unwrap();
    let map = layer.open().unwrap().unwrap().chunk_map.unwrap();
    assert_eq!((map.len(), map.present()), (3, 0));
}

#[test]
fn a_layer_that_lacks_a_file_or_has_another_table_is_damaged_and_can_be_replaced() {
    for damaged in ["table", "data", "contents of the table"] {
        let (directory, store) = store();
        let layer = store.layers().layer(DIGEST).unwrap();
        drop(layer.create().unwrap().publish(&table(3, b""), Some(3)).unwrap());
        let path = directory.path().join("layers/sha256").join(&DIGEST[7..]);
        match damaged {
            "contents of the table" => std::fs::write(path.join("table"), b"peel").unwrap(),
            name => std::fs::remove_file(path.join(name)).unwrap(),
        }
        assert!(matches!(layer.open(), Err(StoreError::Damaged { .. })), "{damaged}");
        drop(layer.create().unwrap().replace(&table(4, b""), Some(4)).unwrap());
        assert_eq!(layer.open().unwrap().unwrap().chunk_map.unwrap().len(), 4, "{damaged}");
        sweep_until_empty(&store);
    }
}

#[test]
fn a_table_with_another_number_of_chunks_is_not_published() {
    let (directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    assert!(layer.create().unwrap().publish(&table(3, b""), Some(4)).is_err());
    assert!(layer.create().unwrap().publish(b"", Some(0)).is_err());
    assert!(layer.open().unwrap().is_none());
    assert_eq!(names(&directory.path().join("layers/ingest")), [""; 0]);
}

#[test]
fn the_first_to_publish_wins_and_the_others_files_stay_usable() {
    let (directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    let (loser, loser_pending) = {
        let draft = layer.create().unwrap();
        draft.large_file(0, 10).unwrap();
        draft.write(DataFile::Large(0), 0, b"loser").unwrap();
        draft.finish_unsynced(&table(0, b"loser"), None).unwrap()
    };
    let winner = layer.create().unwrap().publish(&table(0, b"winner"), None).unwrap();
    assert_eq!(loser_pending.commit().unwrap(), Publication::AlreadyThere);
    assert_eq!(table_of(&layer.open().unwrap().unwrap()), table_of(&winner));
    let third = layer.create().unwrap().publish(&table(0, b"third"), None).unwrap();
    assert_eq!(table_of(&third), table_of(&winner), "publish gives the layer that is there");

    assert_eq!(store.sweep().unwrap(), 0);
    let mut bytes = [0; 5];
    loser.data.read_at(DataFile::Large(0), 0, &mut bytes).unwrap();
    assert_eq!(&bytes, b"loser");
    drop(loser);
    assert_eq!(names(&directory.path().join("layers/ingest")), [""; 0]);
}

#[test]
fn a_replaced_or_removed_layer_stays_for_those_who_have_it_open() {
    let (_directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    let draft = layer.create().unwrap();
    for number in 0..3 {
        draft.large_file(number, 4).unwrap();
        draft.write(DataFile::Large(number), 0, b"old!").unwrap();
    }
    drop(draft.publish(&table(0, b"old"), None).unwrap());
    let old = layer.open().unwrap().unwrap();
    let new = layer.create().unwrap().replace(&table(0, b"new"), None).unwrap();
    assert_eq!(table_of(&layer.open().unwrap().unwrap()), table_of(&new));
    assert!(layer.remove().unwrap() && !layer.remove().unwrap());
    assert!(layer.open().unwrap().is_none());
    assert_eq!(store.sweep().unwrap(), 0);
    let mut bytes = [0; 4];
    old.data.read_at(DataFile::Large(2), 0, &mut bytes).unwrap(); // Opened only now.
    assert_eq!(&bytes, b"old!");
    drop((old, new));
    sweep_until_empty(&store);
}

#[test]
fn a_dropped_draft_leaves_nothing() {
    let (directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    let draft = layer.create().unwrap();
    draft.large_file(0, 1 << 30).unwrap();
    drop(draft);
    let (files, pending) = layer.create().unwrap().finish_unsynced(&table(1, b""), Some(1)).unwrap();
    drop((files, pending));
    assert!(layer.open().unwrap().is_none());
    assert_eq!(names(&directory.path().join("layers/ingest")), [""; 0]);
}

#[test]
fn many_large_files_use_few_descriptors_and_are_synced_at_once() {
    let (_directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    let draft = layer.create().unwrap();
    for number in 0..200_u32 {
        draft.large_file(number, 8).unwrap();
        draft.write(DataFile::Large(number), 0, &u64::from(number).to_le_bytes()).unwrap();
    }
    let files = draft.publish(&table(0, b""), None).unwrap();
    for number in (0..200_u32).rev() {
        let mut bytes = [0; 8];
        files.data.read_at(DataFile::Large(number), 0, &mut bytes).unwrap();
        assert_eq!(u64::from_le_bytes(bytes), u64::from(number));
    }
    assert!(files.data.packed().metadata().unwrap().blocks() == 0);
}

#[test]
fn a_layers_lock_is_exclusive() {
    let (_directory, store) = store();
    let layer = store.layers().layer(DIGEST).unwrap();
    let held = layer.lock().unwrap();
    assert!(layer.try_lock().unwrap().is_none());
    drop(held);
    eventually("the lock is free", || layer.try_lock().unwrap().is_some());
    assert!(store.layers().layer("sha256:../../x").is_err());
}
