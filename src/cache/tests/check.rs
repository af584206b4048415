use super::*;
use crate::store::FindingKind;

fn kinds(cache: &Cache, repairs: bool) -> Vec<(FindingKind, bool)> {
    let findings = cache.check(repairs).unwrap().findings;
    findings.into_iter().map(|finding| (finding.kind, finding.is_repaired)).collect()
}

/// A record with something written to it, that can be found by that name.
fn written(cache: &Cache, parent: Option<&ImmutableRef>, name: &str) -> ImmutableRef {
    let mutable = cache.new_mutable(parent, &NewMutable::default()).unwrap();
    std::fs::write(mutable.fs().join("file"), name).unwrap();
    let one = mutable.commit().unwrap();
    one.set_name(name).unwrap();
    one
}

#[test]
fn what_has_no_data_is_found_and_removed_with_what_was_made_of_it() {
    use FindingKind::RecordWithoutData;
    let house = House::new();
    let cache = &house.cache;
    let lower = written(cache, None, "lower");
    let upper = written(cache, Some(&lower), "upper");
    let other = written(cache, None, "other");
    let merged = cache.merge(&[upper.clone(), other.clone()], Purpose::Look).unwrap();
    merged.set_name("merged").unwrap();
    other.set_item("toc", &[7; 100_000]).unwrap();
    assert_eq!(kinds(cache, false), []);
    assert_eq!(cache.check(false).unwrap().records, 4);

    std::fs::remove_dir_all(lower.fs().unwrap().unwrap().parent().unwrap()).unwrap();
    let items = house.path().join("items");
    let item =
        std::fs::read_dir(&items).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.is_file());
    std::fs::remove_file(item.unwrap()).unwrap();
    let mut found = kinds(cache, false);
    assert_eq!(found, [(RecordWithoutData, false); 2]);
    // What somebody holds is left alone.
    found = kinds(cache, true);
    found.sort_by_key(|(_, is_repaired)| *is_repaired);
    assert_eq!(found, [(RecordWithoutData, false), (RecordWithoutData, true)]);
    drop((lower, upper, merged));
    assert_eq!(kinds(cache, true), [(RecordWithoutData, true)]);
    assert_eq!(records(cache), [other.id().clone()]);
    assert_eq!(other.item_keys().unwrap(), Vec::<String>::new());
    assert_eq!(kinds(cache, false), []);
}

#[test]
fn data_of_no_record_are_found_and_recorded_again_if_there_are_any() {
    let house = House::new();
    let cache = &house.cache;
    let snapshots = house.path().join("snapshots");
    for (digit, is_filled) in [("a", true), ("b", false)] {
        let fs = snapshots.join(digit.repeat(32)).join("fs");
        std::fs::create_dir_all(&fs).unwrap();
        if is_filled {
            std::fs::write(fs.join("file"), "").unwrap();
        }
    }
    std::mem::drop(cache.store().items().create(&[1; 20_000]).unwrap());
    assert_eq!(kinds(cache, false), [(FindingKind::DataWithoutRecord, false); 3]);
    assert_eq!(kinds(cache, true), [(FindingKind::DataWithoutRecord, true); 3]);
    assert_eq!(kinds(cache, false), []);
    assert_eq!(records(cache), [RecordId::parse(&"a".repeat(32)).unwrap()]);
}

#[test]
fn records_whose_parents_are_gone_are_found_and_removed() {
    let house = House::new();
    let cache = &house.cache;
    let (stack, other) = (stack(cache, &["a", "b", "c"]), stack(cache, &["x"]));
    let merged = cache.merge(&[stack[2].clone(), other[0].clone()], Purpose::Look).unwrap();
    merged.set_name("merged").unwrap();
    let (bottom, above) = (stack[0].id().clone(), stack[1].id().clone());
    drop((stack, merged));
    let store = Store::open(house.path()).unwrap();
    store.database().run_unchecked(&format!("DELETE FROM cache_records WHERE id = '{bottom}'")).unwrap();
    assert_eq!(kinds(cache, false), [(FindingKind::DanglingParent, false)]);
    let told = &cache.check(false).unwrap().findings[0].what;
    assert!(told.contains(above.as_str()), "{told}");
    assert_eq!(kinds(cache, true), [(FindingKind::DanglingParent, true)]);
    assert_eq!((kinds(cache, false), records(cache)), (vec![], vec![other[0].id().clone()]));
    assert!(cache.names().unwrap().is_empty() && store.database().faults().unwrap().is_empty());
}

#[test]
fn leases_that_have_expired_and_sessions_that_are_over_are_told() {
    let house = House::new();
    let cache = &house.cache;
    cache.set_lease("old", Some(1)).unwrap();
    cache.set_lease("new", None).unwrap();
    let one = stack(cache, &["a"]).remove(0);
    let other = house.another();
    let session = other.session().id.clone();
    std::mem::forget(other.get(one.id(), Purpose::Use).unwrap());
    std::fs::remove_file(house.path().join(format!("locks/session-{session}"))).unwrap();
    let report = cache.check(false).unwrap();
    assert_eq!((report.stale_leases, report.stale_sessions), (vec!["old".to_owned()], 1));
    assert_eq!(cache.check(true).unwrap().findings, []);
    let report = cache.check(false).unwrap();
    assert_eq!((report.stale_leases.len(), report.stale_sessions), (0, 0));
    assert_eq!(cache.leases().unwrap().len(), 1);
}
