//! What was changed in writable mounts, as records with a name: what becomes of it, and of whoever is killed between any two steps.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;
use crate::store::record_tables::{ImageRow, LayerBlob};
use crate::store::{ImageRecord, RootAttributes, SnapshotName, SnapshotOrigin, die_after};

const STORE: &str = "PEELFS_TEST_NAMED";
const SCENARIO: &str = "PEELFS_TEST_SCENARIO";
const STEPS: &str = "PEELFS_TEST_STEPS";

fn name(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn note(text: &str, generation: u32) -> SnapshotOrigin {
    let root = RootAttributes {
        mode: 0o755,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        modified_seconds: 1,
        modified_nanoseconds: 2,
        xattrs: vec![],
    };
    let manifest_digest = digest("manifest").to_string();
    let (reference, platform) = ("host/name:tag".to_owned(), "linux/amd64".to_owned());
    SnapshotOrigin { name: name(text), generation, reference, platform, manifest_digest, created_at: 1, root }
}

fn begin(cache: &Cache, text: &str) -> MutableRef {
    let parent = stack(cache, &["a"]).remove(0);
    cache.new_writable(Some(&parent), note(text, 0), None).unwrap()
}

fn write(mutable: &MutableRef, text: &str) {
    std::fs::write(mutable.fs().join("file"), text).unwrap();
}

fn read(cache: &Cache, text: &str) -> Option<String> {
    let found = cache.named_snapshot(&name(text)).unwrap()?;
    std::fs::read_to_string(found.snapshot.changes().join("file")).ok()
}

fn blob() -> LayerBlob {
    LayerBlob { digest: digest("blob").to_string(), media_type: "m".into(), size: 1 }
}

/// Commits what has that name, as far as that is not done.
fn commit(cache: &Cache) -> ImmutableRef {
    let found = cache.named_snapshot(&name("work")).unwrap().unwrap();
    let committed = match cache.get_mutable(&found.record.id) {
        Ok(mutable) => mutable.commit().unwrap(),
        Err(CacheError::Immutable { record }) => cache.get(&record, Purpose::Use).unwrap(),
        Err(error) => panic!("{error}"),
    };
    committed.finalize().unwrap();
    committed.set_layer(&blob(), &digest("content"), Some(digest("blob").as_str())).unwrap();
    committed
}

/// Has an image be that record.
fn give_image(cache: &Cache, record: &RecordId) {
    let manifest_digest = digest("made").to_string();
    let image = ImageRecord {
        reference: "localhost/work:latest".into(),
        platform: "linux/amd64".into(),
        manifest_digest: manifest_digest.clone(),
        index_digest: None,
        config_digest: digest("config").to_string(),
        resolved_at: 1,
        last_used: 1,
    };
    cache
        .write("make an image", |tables| {
            tables.remember_image(&image, &[])?;
            let row = ImageRow {
                manifest_digest: manifest_digest.clone(),
                tree: String::new(),
                record: record.clone(),
            };
            Ok(tables.set_record_of_image(&row)?)
        })
        .unwrap();
}

/// As earlier versions kept it.
fn lay_out_as_before(cache: &Cache) {
    let directory = cache.store().path().join("writable/work");
    std::fs::create_dir_all(directory.join("fs")).unwrap();
    std::fs::create_dir_all(directory.join("work/work")).unwrap();
    std::fs::create_dir_all(cache.store().path().join("writable/ingest")).unwrap();
    std::fs::write(directory.join("fs/file"), "precious").unwrap();
    let note = serde_json::json!({
        "version": 1, "reference": "host/name:tag", "platform": "linux/amd64",
        "manifest_digest": digest("manifest").as_str(), "created_at": 1, "attributes": "trusted",
        "root": {"mode": 0o755, "uid": 0, "gid": 0, "modified_seconds": 1, "modified_nanoseconds": 2, "xattrs": []},
    });
    std::fs::write(directory.join("snapshot.json"), note.to_string()).unwrap();
}

/// What is prepared, what is done until a process is killed, and what must be there whenever that was; the same is done again and must be
/// done then.
struct Scenario {
    name: &'static str,
    prepare: fn(&Cache),
    act: fn(&Cache),
    holds: fn(&Cache, bool),
}

fn prepare_changes(cache: &Cache) {
    write(&begin(cache, "work"), "precious");
}

fn prepare_image(cache: &Cache) {
    prepare_changes(cache);
    give_image(cache, commit(cache).id());
}

fn remove(cache: &Cache) {
    if cache.named_snapshot(&name("work")).unwrap().is_some() {
        assert_eq!(cache.remove_named(&name("work")).unwrap(), Some(Unnamed::Removed));
    }
}

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "begin",
        prepare: |_| {},
        act: |cache| {
            if cache.named_snapshot(&name("work")).unwrap().is_none() {
                drop(begin(cache, "work"));
            }
        },
        holds: |cache, is_done| {
            let found = cache.named_snapshots().unwrap();
            assert!(found.len() <= 1 && (!is_done || found.len() == 1));
        },
    },
    Scenario {
        name: "commit",
        prepare: prepare_changes,
        act: |cache| drop(commit(cache)),
        holds: |cache, is_done| {
            assert_eq!(read(cache, "work").as_deref(), Some("precious"));
            let record = cache.named_snapshot(&name("work")).unwrap().unwrap().record;
            assert!(!is_done || (!record.is_mutable && record.blob == Some(blob())), "{record:?}");
        },
    },
    Scenario {
        name: "above",
        prepare: |cache| {
            prepare_changes(cache);
            drop(commit(cache));
        },
        act: |cache| {
            let found = cache.named_snapshot(&name("work")).unwrap().unwrap();
            if !found.record.is_mutable {
                let below = cache.get(&found.record.id, Purpose::Use).unwrap();
                drop(cache.new_writable(Some(&below), note("work", 1), Some(below.id())).unwrap());
            }
        },
        holds: |cache, is_done| {
            let record = cache.named_snapshot(&name("work")).unwrap().unwrap().record;
            let below = match &record.kind {
                _ if !record.is_mutable => record.id.clone(),
                RecordKind::Layer { parent } => parent.clone(),
                kind => panic!("{kind:?}"),
            };
            let file = cache.store().snapshots().fs(&below).join("file");
            assert_eq!(std::fs::read_to_string(file).unwrap(), "precious");
            assert!(!is_done || record.is_mutable);
        },
    },
    Scenario {
        name: "remove",
        prepare: prepare_changes,
        act: remove,
        holds: |cache, is_done| {
            let is_there = read(cache, "work").is_some();
            assert_eq!(cache.named_snapshots().unwrap().is_empty(), !is_there);
            assert!(!(is_done && is_there));
        },
    },
    Scenario {
        name: "remove what an image is",
        prepare: prepare_image,
        act: remove,
        holds: |cache, is_done| {
            let record = cache.look_up(Key::Name("localhost/work:latest")).unwrap();
            assert_eq!(record.blob, Some(blob()), "the image has its layer");
            assert_eq!(record.snapshot.is_some(), cache.store().snapshots().has(&record.id).unwrap());
            assert!(!is_done || record.snapshot.is_none());
        },
    },
    Scenario {
        name: "bring over",
        prepare: lay_out_as_before,
        act: |cache| assert!(cache.bring_over(|_| false).unwrap() < 2),
        holds: |cache, _| {
            cache.bring_over(|_| false).unwrap();
            assert_eq!(read(cache, "work").as_deref(), Some("precious"));
            assert!(!cache.store().earlier_snapshots().is_there());
        },
    },
];

/// What the started processes run. Does nothing as an ordinary test.
#[test]
fn role() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let wanted = std::env::var(SCENARIO).unwrap();
    let scenario = SCENARIOS.iter().find(|scenario| scenario.name == wanted).unwrap();
    let cache = open(Path::new(&path));
    die_after(std::env::var(STEPS).unwrap().parse().unwrap());
    (scenario.act)(&cache);
    die_after(i64::MAX);
}

#[test]
fn a_process_killed_between_any_two_steps_loses_nothing_and_the_next_goes_on() {
    for Scenario { name, prepare, act, holds } in &SCENARIOS {
        let mut steps = 0;
        loop {
            let house = House::new();
            prepare(&house.cache);
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "cache::tests::named::role", "--test-threads", "1"]);
            command.env(STORE, house.path()).env(SCENARIO, name).env(STEPS, steps.to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let status = command.status().unwrap();
            eprintln!("{name}, killed at step {steps}: {status}");
            let cache = house.another();
            holds(&cache, false);
            check(&cache);
            act(&cache);
            holds(&cache, true);
            check(&cache);
            if status.signal() != Some(9) {
                assert!(status.success());
                break;
            }
            steps += 1;
        }
        assert!(steps > 3, "{name}: {steps} steps only");
    }
}

/// Nothing is wrong, and nothing is left over.
fn check(cache: &Cache) {
    cache.recover().unwrap();
    assert_eq!(cache.check(false).unwrap().findings, []);
    cache.store().sweep().unwrap();
    let left = std::fs::read_dir(cache.store().path().join("snapshots/ingest"));
    assert_eq!(left.map_or(0, |left| left.count()), 0);
    let recorded = cache.usage().unwrap();
    for id in cache.store().snapshots().list().unwrap() {
        let has_it = |record: &crate::store::record_tables::CacheRecord| record.data_snapshot() == Some(&id);
        assert!(recorded.iter().any(|usage| has_it(&usage.record)), "{id} is nobody's");
    }
}

#[test]
fn a_name_is_one_snapshots_and_keeps_it_from_every_collection() {
    let house = House::new();
    let cache = &house.cache;
    let mutable = begin(cache, "work");
    write(&mutable, "precious");
    let id = mutable.id().clone();
    assert_eq!(mutable.record().unwrap().description, "what was changed in host/name:tag");
    let again = cache.new_writable(None, note("work", 0), None).unwrap_err();
    assert!(matches!(&again, CacheError::NameTaken { record, .. } if *record == id), "{again}");
    let error = cache.remove_named(&name("work")).unwrap_err();
    assert!(matches!(error, CacheError::InUse { .. }), "{error}");
    drop(mutable);
    cache.prune(&[Rule { all: true, ..Rule::default() }], false).unwrap();
    let error = cache.remove(&id).unwrap_err().to_string();
    assert!(error.contains("1 name"), "{error}");
    assert_eq!(read(cache, "work").as_deref(), Some("precious"));
    // Of a pair, too.
    let committed = cache.get_mutable(&id).unwrap().commit().unwrap();
    let pair = committed.id().clone();
    drop(committed);
    cache.prune(&[Rule { all: true, ..Rule::default() }], false).unwrap();
    assert!(cache.remove(&pair).is_err());
    assert_eq!(read(cache, "work").as_deref(), Some("precious"));
    assert_eq!(*cache.get_mutable(&pair).unwrap().id(), id);
    assert_eq!(cache.remove_named(&name("work")).unwrap(), Some(Unnamed::Removed));
    assert_eq!(cache.remove_named(&name("work")).unwrap(), None);
    // What was to have a name that is taken goes when the cache is next looked at.
    cache.recover().unwrap();
    assert!(cache.store().snapshots().list().unwrap().is_empty());
}

#[test]
fn what_was_committed_goes_with_its_name_unless_something_else_keeps_it() {
    let house = House::new();
    let cache = &house.cache;
    prepare_changes(cache);
    let committed = commit(cache);
    let id = committed.id().clone();
    cache.set_lease("l", None).unwrap();
    committed.lease("l").unwrap();
    drop(committed);
    match cache.remove_named(&name("work")).unwrap() {
        Some(Unnamed::Kept { record, by }) => {
            assert_eq!((record, by), (id.clone(), vec!["1 lease".to_owned()]))
        }
        other => panic!("{other:?}"),
    }
    assert!(cache.store().snapshots().has(&id).unwrap());
    cache.remove_lease("l").unwrap();
    cache.prune(&[Rule::default()], false).unwrap();
    assert!(!cache.store().snapshots().has(&id).unwrap());

    prepare_image(cache);
    let record = cache.look_up(Key::Name("work")).unwrap();
    assert_eq!(cache.manifests_of(&record.id).unwrap(), [digest("made").to_string()]);
    remove(cache);
    let record = cache.look_up(Key::Name("localhost/work:latest")).unwrap();
    assert_eq!((record.snapshot, record.layer), (None, Some(digest("blob").to_string())));
}

#[test]
fn without_the_database_names_come_back_and_of_two_the_later_one_keeps_its_own() {
    let house = House::new();
    prepare_changes(&house.cache);
    let below = commit(&house.cache);
    let above = house.cache.new_writable(Some(&below), note("work", 1), Some(below.id())).unwrap();
    write(&above, "later");
    let (below, above) = (below.id().clone(), above.id().clone());
    for file in ["peel.db", "peel.db-wal", "peel.db-shm"] {
        let _ = std::fs::remove_file(house.path().join(file));
    }
    let cache = house.another();
    assert_eq!(read(&cache, "work").as_deref(), Some("later"));
    let other = name("work").with(&below);
    assert_eq!(read(&cache, other.as_str()).as_deref(), Some("precious"));
    assert_eq!(cache.named_snapshot(&other).unwrap().unwrap().snapshot.note.origin.name, other);
    assert_eq!(cache.look_up(Key::Name("work")).unwrap().id, above);
    check(&cache);
}
