//! A full disk.

use super::world::as_it_is;
use super::writable::new;
use super::*;
use crate::store::SmallDisk;

type Operation = fn(&Cache, &ImmutableRef, usize) -> Result<(), CacheError>;

/// Each is done again and again on a full disk until it fails: what the log of the database has left is used up first.
const OPERATIONS: [(&str, Operation); 8] = [
    ("get", |cache, one, _| {
        // What is held needs room, what is let go none.
        std::mem::forget(cache.get(one.id(), Purpose::Use)?);
        Ok(())
    }),
    ("new", |cache, one, _| cache.new_mutable(Some(one), &NewMutable::default()).map(std::mem::forget)),
    ("blob", |cache, one, number| {
        cache.get_by_blob(&layer(&number.to_string(), "gzip"), Some(one), Purpose::Look).map(drop)
    }),
    ("merge", |cache, one, number| {
        cache.merge(&vec![one.clone(); number % 500 + 2], Purpose::Look).map(drop)
    }),
    ("name", |_, one, number| one.set_name(&format!("{number}{}", "n".repeat(500)))),
    ("lease", |cache, one, number| {
        cache.set_lease(&number.to_string(), None)?;
        one.lease(&number.to_string())
    }),
    ("short data", |_, one, number| one.set_item(&number.to_string(), &[1; 1000])),
    ("long data", |_, one, number| one.set_item(&number.to_string(), &[1; 100_000])),
];

#[test]
fn a_full_disk_is_an_error_that_loses_nothing_and_space_makes_it_work() {
    for (name, operation) in OPERATIONS {
        let Some(disk) = SmallDisk::new() else { return };
        let cache = open(disk.path());
        let mutable = new(&cache, None);
        std::fs::write(mutable.fs().join("file"), name).unwrap();
        let one = stack(&cache, &["a"]).remove(0);
        one.set_name("kept").unwrap();
        let ballast = disk.path().join("content/ballast");
        let fill_up = || {
            use std::io::Write;
            let mut file = std::fs::File::create(&ballast).unwrap();
            while file.write_all(&[1; 4096]).is_ok() {}
        };
        fill_up();
        let error = (0..100_000).find_map(|number| operation(&cache, &one, number).err()).unwrap();
        assert!(error.is_full(), "{name}: {error}");
        let failed = mutable.commit().map_err(|failed| failed.cause.is_full().then_some(failed.mutable));
        let mutable = failed.map(|_| panic!("{name}: committed")).unwrap_err().unwrap();

        // Cut first: a process that another test starts may hold it open for an instant.
        std::fs::File::options().write(true).open(&ballast).unwrap().set_len(0).unwrap();
        std::fs::remove_file(&ballast).unwrap();
        operation(&cache, &one, 100_001).unwrap();
        let committed = mutable.commit().unwrap();
        committed.finalize().unwrap();
        let text = std::fs::read_to_string(committed.fs().unwrap().unwrap().join("file")).unwrap();
        assert_eq!(text, name);
        assert!(as_it_is(&cache, "").names.contains_key("kept"));
    }
}
