//! Tar archives (`layer/tar.rs`): the pieces in which one arrives decide nothing; what is accepted makes a table; an entry that is
//! written anew is read as it was; and the headers of a file prove what was read of it.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use peelfs::layer::entry::{Content, Entry, EntryKind};
use peelfs::layer::soci::headers::{Claim, fingerprint, prove};
use peelfs::layer::tar::{END_OF_ARCHIVE, entry_headers, owner_names};
use peelfs_fuzz::tar::{check_told, table_of, told};
use peelfs_fuzz::{repair, seeds};

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    repair::mutate(data, size, max_size, seed, repair::tar)
});

fuzz_target!(init: seeds::plant(seeds::archives), |archive: &[u8]| {
    let whole = told(archive, usize::MAX);
    check_told(&whole, archive);
    let smallest = if archive.len() <= 3000 { 1 } else { 100 };
    for piece in [smallest, 511, 700] {
        assert_eq!(told(archive, piece), whole, "in pieces of {piece}");
    }
    for (entry, headers, _) in &whole.entries {
        let bytes = &archive[headers.start as usize..headers.end as usize];
        let names = owner_names(bytes);
        if let EntryKind::Regular { content: Content::Contiguous(_), .. } = entry.kind {
            let claim = Claim { headers: headers.clone(), digest: fingerprint(entry) };
            prove(&claim, bytes).expect("what the archive says of a file is proved by its headers");
            check_written_anew(entry, &entry_headers(entry, &names, 0));
        }
    }
    // The content of the last entry of an archive that is cut off is not all there.
    let decoded_length = if whole.error.is_none() { archive.len() as u64 } else { u64::MAX };
    table_of(whole.entries.iter().map(|(entry, ..)| entry), decoded_length);
});

/// The reader takes what the writer makes of an entry for the same one, without content.
fn check_written_anew(entry: &Entry, headers: &[u8]) {
    let read = told(&[headers, &END_OF_ARCHIVE].concat(), usize::MAX);
    // One whose headers fill the bound may not fit once its size stands in them, too.
    if read.error.as_ref().is_some_and(|error| error.contains("bytes of extended headers")) {
        return;
    }
    assert_eq!(read.error, None);
    let [(read, ..)] = &read.entries[..] else { panic!("{} entries", read.entries.len()) };
    let kind = EntryKind::Regular { size: 0, content: Content::Contiguous(headers.len() as u64) };
    // Of attributes only the last of each name counts.
    let xattrs = |entry: &Entry| entry.xattrs.iter().cloned().collect::<BTreeMap<_, _>>();
    assert_eq!(xattrs(read), xattrs(entry));
    assert_eq!(Entry { xattrs: vec![], ..read.clone() }, Entry { kind, xattrs: vec![], ..entry.clone() });
}
