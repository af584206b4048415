use super::super::{LayerState, Store};
use super::*;

type Attempt<T> = Result<T, Stop<StoreError>>;

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

fn id(number: u8) -> RecordId {
    RecordId::parse(&format!("{number:02x}").repeat(16)).unwrap()
}

fn record(number: u8, kind: RecordKind) -> CacheRecord {
    CacheRecord::new(id(number), kind, i64::from(number))
}

fn write<T>(store: &Store, work: impl FnMut(&RecordTables<'_>) -> Attempt<T>) -> T {
    store.database().with_records("write", Access::Write, work).unwrap()
}

#[test]
fn a_record_of_each_kind_is_read_as_it_was_written() {
    let (_directory, store) = store();
    let full = CacheRecord {
        description: "all fields".into(),
        record_type: RecordType::GitCheckout,
        retention: Retention::Retain,
        last_used: Some(-5),
        use_count: 7,
        chain_id: Some("c".into()),
        blob_chain_id: Some("bc".into()),
        diff_id: Some("d".into()),
        is_proved: true,
        blob: Some(LayerBlob { digest: "b".into(), media_type: "m".into(), size: 1 << 40 }),
        toc_digest: Some("t".into()),
        layer: Some("l".into()),
        snapshot: Some(id(9)),
        size: Some(123),
        state: LayerState::Poisoned,
        is_mutable: true,
        is_volatile: true,
        is_deleted: true,
        equal_mutable: Some(id(1)),
        boot: Some("boot".into()),
        ..record(2, RecordKind::Layer { parent: id(1) })
    };
    let records = [
        record(1, RecordKind::Base),
        full,
        record(3, RecordKind::Merge { parents: vec![id(2), id(1), id(2)] }),
        record(4, RecordKind::Diff { lower: None, upper: Some(id(1)) }),
        record(5, RecordKind::Diff { lower: Some(id(1)), upper: None }),
        record(6, RecordKind::Diff { lower: Some(id(1)), upper: Some(id(3)) }),
    ];
    write(&store, |tables| Ok(records.iter().try_for_each(|record| tables.insert_record(record))?));
    write(&store, |tables| {
        assert_eq!(tables.records()?, records);
        let mut changed = tables.record(&id(2))?.unwrap();
        changed = CacheRecord {
            created_at: changed.created_at,
            ..CacheRecord { kind: changed.kind, ..record(2, RecordKind::Base) }
        };
        tables.update_record(&changed)?;
        assert_eq!(tables.record(&id(2))?.unwrap(), changed);
        for record in &records[2..] {
            assert_eq!(tables.record_of_kind(&record.kind)?, Some(record.id.clone()));
        }
        assert_eq!(tables.record_of_kind(&RecordKind::Merge { parents: vec![id(2), id(1)] })?, None);
        Ok(())
    });
}

#[test]
fn what_a_record_is_made_of_or_what_holds_it_cannot_be_removed_before() {
    let (_directory, store) = store();
    let session = SessionRow { id: "s".into(), pid: 1, began_at: 0 };
    write(&store, |tables| {
        tables.insert_record(&record(1, RecordKind::Base))?;
        tables.insert_record(&record(2, RecordKind::Layer { parent: id(1) }))?;
        tables.insert_record(&record(3, RecordKind::Base))?;
        tables.set_name("name", &id(2))?;
        tables.ensure_session(&session)?;
        let held =
            RefRow { id: 0, session: "s".into(), record: id(3), is_mutable: false, is_use: true, since: 0 };
        tables.add_ref(&held)?;
        Ok(())
    });
    let remove = |number| {
        let result: Result<(), StoreError> =
            store
                .database()
                .with_records("remove", Access::Write, |tables| Ok(tables.remove_record(&id(number))?));
        result.is_ok()
    };
    assert!(![1, 2, 3].into_iter().any(remove));
    let uses = |number| write(&store, |tables| Ok(tables.uses(&id(number), 0)?));
    assert_eq!(uses(1), RecordUse { children: 1, ..RecordUse::default() });
    assert_eq!(uses(2), RecordUse { names: 1, ..RecordUse::default() });
    assert_eq!(uses(3), RecordUse { refs: 1, ..RecordUse::default() });
    write(&store, |tables| {
        tables.remove_session("s")?;
        assert!(tables.remove_name("name")? && !tables.remove_name("name")?);
        Ok(())
    });
    assert!([3, 2, 1].into_iter().all(remove));
}

#[test]
fn what_is_kept_with_a_record_goes_with_it() {
    let (_directory, store) = store();
    let blob = LayerBlob { digest: "v".into(), media_type: "m".into(), size: 3 };
    write(&store, |tables| {
        tables.insert_record(&record(1, RecordKind::Base))?;
        tables.add_variant(&id(1), &blob)?;
        tables.add_variant(&id(1), &blob)?;
        tables.add_image(&id(1), "one")?;
        let bytes = RecordItem { key: "toc".into(), place: ItemPlace::Bytes(vec![1, 2]) };
        let file = RecordItem { key: "toc".into(), place: ItemPlace::File("f".into()) };
        assert_eq!(tables.set_item(&id(1), &bytes)?, None);
        assert_eq!(tables.set_item(&id(1), &file)?, Some(bytes));
        tables.set_lease(&LeaseRow { id: "l".into(), created_at: 0, expires_at: Some(10) })?;
        tables.lease_record("l", &id(1))?;
        tables.lease_content("l", "sha256:x")?;
        Ok(())
    });
    write(&store, |tables| {
        assert_eq!(tables.variants(&id(1))?, std::slice::from_ref(&blob));
        assert_eq!(tables.images_of(&id(1))?, ["one"]);
        assert!(tables.has_item_file("f")?);
        assert_eq!((tables.uses(&id(1), 9)?.leases, tables.uses(&id(1), 10)?.leases), (1, 0));
        tables.remove_record(&id(1))?;
        assert!(!tables.has_item_file("f")? && tables.variants(&id(1))?.is_empty());
        assert_eq!(tables.leased("l")?, (vec![], vec!["sha256:x".to_owned()]));
        assert_eq!((tables.remove_expired_leases(9)?, tables.remove_expired_leases(10)?), (0, 1));
        Ok(())
    });
}

#[test]
fn a_transaction_that_is_refused_changes_nothing() {
    let (_directory, store) = store();
    let result: Result<(), StoreError> =
        store.database().with_records("refuse", Access::WriteDurably, |tables| {
            tables.insert_record(&record(1, RecordKind::Base))?;
            Err(Stop::Refused(StoreError::InvalidDigest { digest: "x".into(), reason: "as an example" }))
        });
    assert!(matches!(result, Err(StoreError::InvalidDigest { .. })));
    assert_eq!(write(&store, |tables| Ok(tables.records()?)), []);
}

#[test]
fn nothing_but_digits_is_an_id() {
    for wrong in
        ["", "0", &"0".repeat(31), &"A".repeat(32), &"g".repeat(32), "../../../../../../../../../../xx"]
    {
        assert_eq!(RecordId::parse(wrong), None, "{wrong:?}");
    }
    assert_ne!(RecordId::random().unwrap(), RecordId::random().unwrap());
    for (name, count) in [("base", 1), ("layer", 0), ("layer", 2), ("diff", 3), ("other", 0)] {
        let parents = (0..count).map(|position| (position, id(1))).collect();
        assert_eq!(RecordKind::from_parts(name, parents), None, "{name} of {count}");
    }
}

/// How long a small transaction takes, with and without waiting for the disk: printed, for the header of `database`.
#[test]
#[ignore = "measures"]
fn the_price_of_durability() {
    let directory =
        tempfile::tempdir_in(std::env::var_os("PEEL_TEST_DISK").unwrap_or("/var/tmp".into())).unwrap();
    let store = Store::open(directory.path()).unwrap();
    write(&store, |tables| Ok(tables.insert_record(&record(1, RecordKind::Base))?));
    for access in [Access::Write, Access::WriteDurably, Access::Write, Access::WriteDurably] {
        let started = std::time::Instant::now();
        for number in 0..200 {
            let result: Result<(), StoreError> = store
                .database()
                .with_records("name", access, |tables| Ok(tables.set_name(&format!("{number}"), &id(1))?));
            result.unwrap();
        }
        eprintln!("{access:?}: {:?} each", started.elapsed() / 200);
    }
}
