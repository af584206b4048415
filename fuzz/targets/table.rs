//! Inode tables (`table/reader.rs`): a table with any bytes behind right checksums answers all questions, and merges or is refused.
#![no_main]

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use peelfs::fetch::planner::{Limits, plan};
use peelfs::table::{Table, TableError};
use peelfs::tree::merge::merge;
use peelfs_fuzz::table::ask_everything;
use peelfs_fuzz::{IDENTITY, file_of, repair, seeds};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    repair::mutate(data, size, max_size, seed, repair::table)
});

fuzz_target!(init: seeds::plant(seeds::tables), |bytes: &[u8]| {
    let opened = Table::from_bytes(bytes.to_vec());
    let mapped = Table::open(&file_of(bytes), &IDENTITY);
    match (&opened, &mapped) {
        (Ok(_), Ok(_) | Err(TableError::OtherIdentity)) | (Err(_), Err(_)) => {}
        _ => panic!("mapped and read, it is not the same table"),
    }
    let Ok(table) = opened else { return };
    ask_everything(&table);
    let requests = plan(table.chunks(), 0..(table.chunks().len() as u32).min(1000), Limits::default());
    assert!(requests.iter().all(|request| request.range.start <= request.range.end));
    if let Ok(merged) = merge(&[&table, &table], IDENTITY) {
        ask_everything(&Table::from_bytes(merged).expect("a table that was just written"));
    }
});
