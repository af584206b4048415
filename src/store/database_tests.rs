use std::sync::Barrier;

use super::super::{ImageRecord, LayerRecord, LayerState, MountRecord, Store, StoreError};
use super::*;

fn image(reference: &str, manifest: &str) -> ImageRecord {
    ImageRecord {
        reference: reference.into(),
        platform: "linux/amd64".into(),
        manifest_digest: manifest.into(),
        index_digest: None,
        config_digest: "sha256:c".into(),
        resolved_at: 10,
        last_used: 10,
    }
}

fn layer(digest: &str) -> LayerRecord {
    LayerRecord {
        digest: digest.into(),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
        size: 1000,
        diff_id: None,
        toc_digest: Some("sha256:t".into()),
        format: "estargz".into(),
        state: LayerState::Lazy,
        chunk_count: Some(3),
        decoded_bytes: None,
        created_at: 5,
        last_used: 5,
    }
}

fn mount(mountpoint: &str, pid: u32) -> MountRecord {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = mountpoint.as_bytes().to_vec();
    bytes.push(0xff); // Paths need not be UTF-8.
    MountRecord {
        mountpoint: std::ffi::OsString::from_vec(bytes).into(),
        pid,
        pid_start_time: u64::from(pid) << 32,
        reference: "r".into(),
        manifest_digest: "sha256:m".into(),
        tree: "00".into(),
        started_at: -1,
        status_path: Some("/run/x".into()),
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

#[test]
fn an_image_and_its_layers_are_found_as_they_were_remembered() {
    let (_directory, store) = store();
    let database = store.database();
    let layers = [layer("a"), layer("b"), layer("a")];
    database.remember_image(&image("r", "m"), &layers).unwrap();
    assert_eq!(database.find_image("r", "linux/amd64").unwrap(), Some(image("r", "m")));
    assert_eq!(database.find_image("r", "linux/arm64").unwrap(), None);
    assert_eq!(database.layers_of("m").unwrap(), layers);
    assert_eq!(database.layers().unwrap(), [layer("a"), layer("b")]);
    assert_eq!(database.images().unwrap(), [image("r", "m")]);
    assert!(database.use_image("r", "linux/amd64", 99).unwrap());
    assert_eq!(database.find_layer("b").unwrap().unwrap().last_used, 99);
    assert!(!database.use_image("other", "linux/amd64", 99).unwrap());
}

#[test]
fn remembering_an_image_again_does_not_undo_what_was_done_with_its_layers() {
    let (_directory, store) = store();
    let database = store.database();
    database.remember_image(&image("r", "m"), &[layer("a")]).unwrap();
    assert!(database.set_layer_state("a", LayerState::Extracted).unwrap());
    let again = LayerRecord { diff_id: Some("sha256:d".into()), ..layer("a") };
    database.remember_image(&image("r", "m2"), &[again]).unwrap();
    let found = database.find_layer("a").unwrap().unwrap();
    assert_eq!((found.state, found.diff_id.as_deref()), (LayerState::Extracted, Some("sha256:d")));
    assert_eq!(database.layers_of("m").unwrap(), [], "no reference stands for it any more");
    assert_eq!(database.layers_of("m2").unwrap().len(), 1);

    let whole =
        LayerRecord { state: LayerState::Poisoned, decoded_bytes: Some(7), created_at: 77, ..layer("a") };
    database.remember_layer(&whole).unwrap();
    assert_eq!(database.find_layer("a").unwrap(), Some(LayerRecord { created_at: 5, ..whole }));
    assert!(!database.set_layer_state("unknown", LayerState::Lazy).unwrap());
}

#[test]
fn a_manifests_layers_are_known_while_some_reference_stands_for_it() {
    let (_directory, store) = store();
    let database = store.database();
    database.remember_image(&image("r", "m"), &[layer("a")]).unwrap();
    database.remember_image(&image("s", "m"), &[layer("a")]).unwrap();
    assert!(database.forget_image("r", "linux/amd64").unwrap());
    assert_eq!(database.layers_of("m").unwrap().len(), 1);
    assert!(database.forget_image("s", "linux/amd64").unwrap());
    assert!(!database.forget_image("s", "linux/amd64").unwrap());
    assert_eq!(database.layers_of("m").unwrap(), []);
    assert_eq!(database.layers().unwrap().len(), 1);
}

#[test]
fn only_its_own_process_forgets_a_mount() {
    let (_directory, store) = store();
    let database = store.database();
    let (first, second) = (mount("/m", 1), mount("/m", 2));
    database.remember_mount(&first).unwrap();
    assert_eq!(database.mounts().unwrap(), std::slice::from_ref(&first));
    database.remember_mount(&second).unwrap();
    assert!(!database.forget_mount(&first.mountpoint, 1).unwrap());
    assert_eq!(database.find_mount(&first.mountpoint).unwrap(), Some(second));
    assert!(database.forget_mount(&first.mountpoint, 2).unwrap());
    assert_eq!(database.mounts().unwrap(), []);
}

#[test]
fn a_transaction_that_fails_changes_nothing() {
    let (_directory, store) = store();
    let database = store.database();
    // The second layer cannot be stored, so neither the first nor the image is.
    let error = database
        .remember_image(&image("r", "m"), &[layer("a"), LayerRecord { size: u64::MAX, ..layer("b") }])
        .unwrap_err();
    assert!(error.to_string().contains("record an image"), "{error}");
    assert_eq!(database.images().unwrap(), []);
    assert_eq!(database.layers().unwrap(), []);
}

#[test]
fn a_newer_schema_is_refused_with_a_hint() {
    let (directory, store) = store();
    store.database().images().unwrap();
    let connection = Connection::open(directory.path().join("peel.db")).unwrap();
    connection.execute_batch("PRAGMA user_version = 1000").unwrap();
    drop(connection);
    let error = Store::open(directory.path()).unwrap().database().images().unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 1000, .. }), "{error}");
    assert!(error.to_string().contains("newer"), "{error}");
    assert!(aside(&directory).is_empty());
}

/// Names of what was set aside.
fn aside(directory: &tempfile::TempDir) -> Vec<String> {
    let names = std::fs::read_dir(directory.path()).unwrap();
    names
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("damaged"))
        .collect()
}

#[test]
fn a_damaged_database_is_kept_aside_and_a_new_one_begun() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 3] = [
        ("not a database", |path| std::fs::write(path, vec![b'x'; 8192]).unwrap()),
        ("first page zero", |path| {
            use std::os::unix::fs::FileExt;
            File::options().write(true).open(path).unwrap().write_all_at(&[0; 4096], 0).unwrap();
        }),
        ("pages after the first overwritten", |path| {
            use std::os::unix::fs::FileExt;
            let file = File::options().write(true).open(path).unwrap();
            let length = file.metadata().unwrap().len() as usize;
            file.write_all_at(&vec![0x5a; length - 4096], 4096).unwrap();
        }),
    ];
    use std::fs::File;
    for (name, damage) in damages {
        let (directory, store) = store();
        let path = directory.path().join("peel.db");
        store.database().remember_image(&image("r", "m"), &[layer("a")]).unwrap();
        drop(store);
        // Everything into the database itself, so that the damage is not mended from the WAL.
        let connection = Connection::open(&path).unwrap();
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
        drop(connection);
        damage(&path);

        let store = Store::open(directory.path()).unwrap();
        assert_eq!(store.database().images().unwrap(), [], "{name}");
        store.database().remember_image(&image("r", "m"), &[layer("a")]).unwrap();
        assert_eq!(store.database().images().unwrap().len(), 1, "{name}");
        assert!(
            aside(&directory).iter().any(|name| !name.ends_with("-wal") && !name.ends_with("-shm")),
            "{name}"
        );
    }
}

#[test]
fn a_process_goes_on_with_the_new_database_when_another_set_the_old_one_aside() {
    let (directory, store) = store();
    let path = directory.path().join("peel.db");
    store.database().remember_image(&image("r", "m"), &[]).unwrap();
    std::fs::rename(&path, directory.path().join("peel.db.damaged-0")).unwrap();
    let _ = std::fs::remove_file(directory.path().join("peel.db-wal"));
    let _ = std::fs::remove_file(directory.path().join("peel.db-shm"));
    assert_eq!(store.database().images().unwrap(), []);
    assert!(path.exists());
}

#[test]
fn many_connections_begin_a_database_and_write_at_once() {
    let (directory, _store) = store();
    const WRITERS: usize = 8;
    let barrier = Barrier::new(WRITERS);
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let (directory, barrier) = (&directory, &barrier);
            scope.spawn(move || {
                let store = Store::open(directory.path()).unwrap();
                barrier.wait();
                for number in 0..20 {
                    let reference = format!("{writer}-{number}");
                    store.database().remember_image(&image(&reference, &reference), &[layer("a")]).unwrap();
                }
            });
        }
    });
    let store = Store::open(directory.path()).unwrap();
    assert_eq!(store.database().images().unwrap().len(), WRITERS * 20);
    assert!(aside(&directory).is_empty());
}
