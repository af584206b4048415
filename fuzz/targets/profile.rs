//! The text of an access profile (`fetch/profile/`), which people keep and give away: of any bytes, what is read is written and read
//! again as the same, and what it comes to names each file once.
#![no_main]

use std::collections::HashSet;

use libfuzzer_sys::fuzz_target;
use peelfs::fetch::profile::format::{claims_to_be_a_profile, read, write};
use peelfs::fetch::profile::{MAXIMUM_PARTS, MAXIMUM_RUNS, Profile, Run, TouchedFile, record};
use peelfs_fuzz::seeds;

fuzz_target!(init: seeds::plant(profiles), |bytes: &[u8]| {
    let Ok(profile) = read(bytes) else { return };
    assert!(claims_to_be_a_profile(bytes));
    assert_eq!(read(&write(&profile)).ok().as_ref(), Some(&profile));
    let paths: HashSet<&[u8]> =
        profile.runs.iter().flat_map(|run| &run.files).map(|file| &file.path[..]).collect();
    let typical = profile.typical();
    assert_eq!(typical.len(), paths.len());
    for file in &typical {
        assert!(file.file.parts.len() <= MAXIMUM_PARTS && paths.contains(&file.file.path[..]));
    }
    let another = Run { name: "another".to_owned(), files: Vec::new() };
    let recorded = record(Some(bytes), "image", "manifest", &another).ok().and_then(|text| read(&text).ok());
    assert!(recorded.is_some_and(|profile| (1..=MAXIMUM_RUNS).contains(&profile.runs.len())));
});

/// One of every kind of line.
fn profiles() -> Vec<Vec<u8>> {
    let file = |path: &[u8], parts| TouchedFile { path: path.to_vec(), milliseconds: 7, parts };
    let files = vec![file(b"usr/bin/a", vec![0..10, 20..30]), file(b"100% \xff", vec![])];
    let run = |name: &str| Run { name: name.to_owned(), files: files.clone() };
    let profile = |runs| Profile { image: "name:tag".to_owned(), manifest: "sha256:0a".to_owned(), runs };
    [profile(vec![]), profile(vec![run("one")]), profile(vec![run("one"), run("two")])]
        .iter()
        .map(write)
        .collect()
}
