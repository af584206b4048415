//! Mutable records, pairs, volatile records, and what is lost with the machine.

use super::*;
use crate::store::record_tables::CacheRecord;

pub(super) fn new(cache: &Cache, parent: Option<&ImmutableRef>) -> MutableRef {
    cache.new_mutable(parent, &NewMutable::default()).unwrap()
}

fn write(mutable: &MutableRef, text: &str) {
    std::fs::write(mutable.fs().join("file"), text).unwrap();
}

fn read(one: &ImmutableRef) -> Option<String> {
    let record = one.record().unwrap();
    std::fs::read_to_string(one.cache().store().snapshots().fs(record.data_snapshot()?).join("file")).ok()
}

fn snapshots(cache: &Cache) -> usize {
    cache.store().snapshots().list().unwrap().len()
}

/// As after a crash of the machine in which all transactions were kept.
fn in_another_boot(cache: &Cache) {
    cache
        .write("change the boot", |tables| {
            for record in tables.records()? {
                let boot = record.boot.as_ref().map(|_| "another".to_owned());
                tables.update_record(&CacheRecord { boot, ..record })?;
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn what_was_written_is_there_after_commit_and_after_finalize() {
    let house = House::new();
    let cache = &house.cache;
    let mutable = new(cache, None);
    let old = mutable.id().clone();
    write(&mutable, "x");
    assert!(mutable.work().is_dir());
    let committed = mutable.commit().unwrap();
    assert_eq!(read(&committed).as_deref(), Some("x"));
    assert_eq!(committed.record().unwrap().equal_mutable.as_ref(), Some(&old));
    assert_eq!(records(cache), [committed.id().clone()], "the pair counts once");
    committed.finalize().unwrap();
    committed.finalize().unwrap();
    assert_eq!(read(&committed).as_deref(), Some("x"));
    let record = committed.record().unwrap();
    assert_eq!(
        (record.equal_mutable, record.snapshot.as_ref(), record.boot),
        (None, Some(committed.id()), None)
    );
    assert!(matches!(cache.get_mutable(&old), Err(CacheError::Unknown { .. })));
    assert!(matches!(cache.get_mutable(committed.id()), Err(CacheError::Immutable { .. })));
    assert_eq!(snapshots(cache), 1);
    let id = committed.id().clone();
    drop(committed);
    cache.remove(&id).unwrap();
    assert_eq!((snapshots(cache), records(cache)), (0, vec![]));
}

#[test]
fn a_mutable_record_is_one_users_and_goes_with_its_ref_unless_it_is_retained() {
    let house = House::new();
    let (cache, other) = (&house.cache, house.another());
    let mutable = new(cache, None);
    let id = mutable.id().clone();
    for cache in [cache, &other] {
        assert!(matches!(cache.get_mutable(&id), Err(CacheError::InUse { .. })));
        assert!(matches!(cache.get(&id, Purpose::Look), Err(CacheError::Mutable { .. })));
    }
    write(&mutable, "x");
    mutable.release().unwrap();
    assert_eq!((snapshots(cache), records(cache)), (0, vec![]));

    let options = NewMutable { retention: Retention::Retain, ..NewMutable::default() };
    let mutable = cache.new_mutable(None, &options).unwrap();
    let id = mutable.id().clone();
    write(&mutable, "kept");
    drop(mutable);
    let again = other.get_mutable(&id).unwrap();
    assert_eq!(std::fs::read_to_string(again.fs().join("file")).unwrap(), "kept");
    drop(again);
    cache.remove(&id).unwrap();
    assert_eq!(snapshots(cache), 0);

    let leased = new(cache, None);
    let id = leased.id().clone();
    cache.set_lease("l", None).unwrap();
    leased.lease("l").unwrap();
    drop(leased);
    cache.set_lease("m", None).unwrap();
    let again = cache.get_mutable(&id).unwrap();
    again.lease("m").unwrap();
    drop(again);
    assert!(cache.remove_lease("l").unwrap() && !cache.remove_lease("l").unwrap());
    assert_eq!(snapshots(cache), 1);
    cache.set_lease("m", Some(1)).unwrap();
    cache.recover().unwrap();
    assert_eq!(snapshots(cache), 0, "nothing keeps it any more");
}

#[test]
fn a_pair_that_nobody_holds_can_be_written_to_again_and_one_that_is_held_cannot() {
    let house = House::new();
    let cache = &house.cache;
    let mutable = new(cache, None);
    let old = mutable.id().clone();
    write(&mutable, "one");
    let committed = mutable.commit().unwrap();
    let id = committed.id().clone();
    for name in [&old, &id] {
        assert!(matches!(cache.get_mutable(name), Err(CacheError::InUse { .. })));
    }
    committed.set_item("large", &[1; 100_000]).unwrap();
    drop(committed);
    let mutable = cache.get_mutable(&id).unwrap();
    assert_eq!(*mutable.id(), old);
    assert!(matches!(cache.get(&id, Purpose::Look), Err(CacheError::Unknown { .. })));
    assert_eq!(cache.store().items().list().unwrap(), [] as [String; 0]);
    write(&mutable, "two");
    let committed = mutable.commit().unwrap();
    assert_ne!(*committed.id(), id);
    assert_eq!(read(&committed).as_deref(), Some("two"));
}

#[test]
fn what_is_to_last_finalizes() {
    let house = House::new();
    let cache = &house.cache;
    type Step = fn(&ImmutableRef);
    let steps: [(&str, Step); 6] = [
        ("child", |one| drop(new(one.cache(), Some(one)))),
        ("name", |one| one.set_name("n").unwrap()),
        ("lease", |one| one.lease("l").unwrap()),
        ("merge", |one| drop(one.cache().merge(&[one.clone(), one.clone()], Purpose::Look).unwrap())),
        ("diff", |one| drop(one.cache().diff(Some(one), None, Purpose::Look).unwrap())),
        ("layer", |one| {
            let blob = LayerBlob { digest: digest("b").to_string(), media_type: "m".into(), size: 1 };
            one.set_layer(&blob, &digest("d"), None).unwrap();
        }),
    ];
    cache.set_lease("l", None).unwrap();
    for (name, step) in steps {
        let mutable = new(cache, None);
        write(&mutable, name);
        let committed = mutable.commit().unwrap();
        assert!(committed.record().unwrap().equal_mutable.is_some());
        step(&committed);
        let record = committed.record().unwrap();
        assert!(record.equal_mutable.is_none() && record.boot.is_none(), "{name}");
        assert_eq!(read(&committed).as_deref(), Some(name));
    }
}

#[test]
fn a_snapshot_that_became_a_layer_is_found_by_it() {
    let house = House::new();
    let base = stack(&house.cache, &["a"]).remove(0);
    let mutable = new(&house.cache, Some(&base));
    write(&mutable, "takes space");
    let committed = mutable.commit().unwrap();
    assert!(matches!(
        house.cache.get_by_blob(&layer("c", "gzip"), Some(&committed), Purpose::Look),
        Err(CacheError::WithoutChainId { .. })
    ));
    let description = layer("b", "gzip");
    let blob = LayerBlob { digest: description.blob.to_string(), media_type: "m".into(), size: 1 };
    committed.set_layer(&blob, &description.diff_id, Some(description.blob.as_str())).unwrap();
    let found = house.cache.get_by_blob(&description, Some(&base), Purpose::Look).unwrap();
    assert_eq!(found.id(), committed.id());
    assert!(matches!(committed.set_layer(&blob, &digest("other"), None), Err(CacheError::Immutable { .. })));
    // Of the record's two parts, a twin shares the layer.
    let twin = house.cache.get_by_blob(&layer("b", "plain"), None, Purpose::Look).unwrap();
    publish(&house.cache, description.blob.as_str());
    let (own, shared) = (committed.size().unwrap(), twin.size().unwrap());
    assert!(own > shared && shared > 0);
    let usages = house.cache.usage().unwrap();
    assert_eq!(total_bytes(&usages), own + base.size().unwrap());
    let zstd = LayerBlob { digest: layer("b", "zstd").blob.to_string(), ..blob };
    committed.set_layer(&zstd, &description.diff_id, None).unwrap();
    assert!(committed.variants().unwrap().contains(&zstd));
    house.cache.get_by_blob(&layer("c", "gzip"), Some(&committed), Purpose::Look).unwrap();
}

#[test]
fn when_the_machine_goes_down_what_was_not_brought_to_disk_is_lost_and_nothing_else() {
    let house = House::new();
    let cache = &house.cache;
    let finalized = new(cache, None).commit().unwrap();
    finalized.finalize().unwrap();
    let pair = new(cache, Some(&finalized)).commit().unwrap();
    let retain = NewMutable { retention: Retention::Retain, ..NewMutable::default() };
    let retained = cache.new_mutable(Some(&finalized), &retain).unwrap();
    write(&retained, "stays");
    let mutable_of_pair = retained.id().clone();
    let retained_pair = retained.commit().unwrap();
    let volatile =
        cache.new_mutable(None, &NewMutable { is_volatile: true, ..NewMutable::default() }).unwrap();
    let volatile = volatile.commit().unwrap();
    volatile.finalize().unwrap();
    volatile.set_name("volatile").unwrap();
    let child = new(cache, Some(&volatile)).commit().unwrap();
    child.finalize().unwrap();
    let merged = cache.merge(&[finalized.clone(), child.clone()], Purpose::Look).unwrap();
    assert!(child.record().unwrap().is_volatile && merged.record().unwrap().is_volatile);
    let lasting = finalized.id().clone();
    drop((finalized, pair, retained_pair, volatile, child, merged));
    assert_eq!(records(cache).len(), 6);
    in_another_boot(cache);
    assert_eq!(cache.recover().unwrap().lost, 5);
    let mut left = vec![lasting, mutable_of_pair.clone()];
    left.sort();
    assert_eq!(records(cache), left);
    assert_eq!(snapshots(cache), 2);
    let retained = cache.get_mutable(&mutable_of_pair).unwrap();
    assert_eq!(std::fs::read_to_string(retained.fs().join("file")).unwrap(), "stays");
}

#[test]
fn a_finalization_that_the_machine_cut_off_after_the_rename_is_ended_and_its_leases_hold() {
    let house = House::new();
    let cache = &house.cache;
    let mutable = new(cache, None);
    write(&mutable, "on disk");
    cache.set_lease("l", None).unwrap();
    mutable.lease("l").unwrap();
    let old = mutable.id().clone();
    let committed = mutable.commit().unwrap();
    let id = committed.id().clone();
    cache.store().snapshots().bring_to_disk(&old).unwrap();
    assert!(cache.store().snapshots().rename(&old, &id).unwrap());
    drop(committed);
    in_another_boot(cache);
    let recovered = cache.recover().unwrap();
    assert_eq!((recovered.finalized, recovered.lost), (1, 0));
    assert_eq!(cache.leased("l").unwrap().0, std::slice::from_ref(&id));
    let again = cache.get(&id, Purpose::Look).unwrap();
    assert_eq!(read(&again).as_deref(), Some("on disk"));
    assert_eq!((records(cache), snapshots(cache)), (vec![id], 1));
}

#[test]
fn snapshots_whose_records_were_lost_get_new_ones_and_empty_ones_go() {
    let house = House::new();
    let filled = new(&house.cache, None);
    write(&filled, "precious");
    let (id, empty) = (filled.id().clone(), new(&house.cache, None));
    let committed = filled.commit().unwrap();
    std::mem::forget((committed, empty));
    for name in ["peel.db", "peel.db-wal", "peel.db-shm"] {
        let _ = std::fs::remove_file(house.path().join(name));
    }
    let cache = house.another();
    assert_eq!((snapshots(&cache), records(&cache)), (1, vec![id.clone()]));
    let again = cache.get_mutable(&id).unwrap();
    assert_eq!(std::fs::read_to_string(again.fs().join("file")).unwrap(), "precious");
    // The first session goes on with the new database.
    assert!(matches!(house.cache.get_mutable(&id), Err(CacheError::InUse { .. })));
    drop(again);
    drop(house.cache.get_mutable(&id).unwrap());
}

#[test]
fn a_record_whose_snapshot_is_gone_says_so() {
    let house = House::new();
    let mutable = new(&house.cache, None);
    std::fs::remove_dir_all(mutable.fs().parent().unwrap()).unwrap();
    let committed = mutable.commit().unwrap();
    assert!(committed.finalize().is_err());
    let id = committed.id().clone();
    drop(committed);
    house.cache.remove(&id).unwrap();
    assert_eq!(records(&house.cache), []);
}
