//! Processes that are killed, processes that get in each other's way, and disks that are full.
//!
//! The tests start this test binary again with one of [`ROLES`], which does one thing to the store named in its environment and
//! is killed on the way: at its n-th durable step, for every n until it gets through, or from outside.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::data_files::DataFile;
use super::draft::tests::table;
use super::durable::test_hook::die_after;
use crate::table::placement::Piece;

use super::{LayerState, NamedDescriptor, NoteKind, Publication, Store, StoreError};

const STORE: &str = "PEELFS_TEST_STORE";
const ROLE: &str = "PEELFS_TEST_ROLE";
const STEPS: &str = "PEELFS_TEST_STEPS";

const LAYER: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const CHUNKS: u64 = 40;
const CHUNK: usize = 4096;

type Role = fn(&Store);
const ROLES: [(&str, Role); 10] = [
    ("open", |_| ()),
    ("put", put),
    ("name", name),
    ("publish", publish),
    ("replace", replace),
    ("fill", fill),
    ("mend the map", mend_the_map),
    ("evict", evict),
    ("collect", collect),
    ("tree", |store| store.trees().put(&"ab".repeat(32), &[7; 100_000]).unwrap()),
];

fn blob_bytes() -> Vec<u8> {
    (0..100_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn blob_digest() -> String {
    use sha2::Digest;
    let hex: String = sha2::Sha256::digest(blob_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

fn put(store: &Store) {
    store.content().put(&blob_digest(), &blob_bytes()).unwrap();
}

fn name(store: &Store) {
    for name in ["a", "b"] {
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        store.content().add_to_index(&NamedDescriptor { media_type, digest: LAYER, size: 1, name }).unwrap();
    }
    store.content().remove_from_index("a").unwrap();
}

/// The bytes of a chunk say which it is.
fn chunk_bytes(chunk: u64) -> Vec<u8> {
    vec![chunk as u8 + 1; CHUNK]
}

/// Even chunks are packed, odd ones in a large file.
fn place(chunk: u64) -> (DataFile, u64) {
    let file = if chunk.is_multiple_of(2) { DataFile::Packed } else { DataFile::Large(chunk as u32 % 3) };
    (file, chunk * CHUNK as u64)
}

fn whole_draft(store: &Store) -> super::LayerDraft {
    let draft = store.layers().layer(LAYER).unwrap().create().unwrap();
    for number in 0..3 {
        draft.large_file(number, CHUNKS * CHUNK as u64).unwrap();
    }
    for chunk in 0..CHUNKS {
        let (file, offset) = place(chunk);
        draft.write(file, offset, &chunk_bytes(chunk)).unwrap();
    }
    draft
}

fn publish(store: &Store) {
    whole_draft(store).publish(&table(0, b"table"), None).unwrap();
}

fn replace(store: &Store) {
    whole_draft(store).replace(&table(0, b"table"), None).unwrap();
}

/// Makes the layer as a lazy one if need be, then writes and marks chunks, with checkpoints between.
fn fill(store: &Store) {
    let layer = store.layers().layer(LAYER).unwrap();
    let files = match layer.open().unwrap() {
        Some(files) => files,
        None => layer.create().unwrap().publish(&table(CHUNKS, b"table"), Some(CHUNKS)).unwrap(),
    };
    let map = files.chunk_map.unwrap();
    for chunk in map.missing_in(0..CHUNKS) {
        let (file, offset) = place(chunk);
        files.data.write_at(file, offset, &chunk_bytes(chunk)).unwrap();
        super::durable::crash_point();
        map.mark(chunk);
        if chunk % 8 == 7 {
            map.checkpoint(|| files.data.sync()).unwrap();
        }
    }
}

/// Makes the layer as one that is whole but may be fetched again, then discards some of its chunks.
fn evict(store: &Store) {
    let layer = store.layers().layer(LAYER).unwrap();
    let files = match layer.open().unwrap() {
        Some(files) => files,
        None => {
            let draft = whole_draft(store);
            draft.checkpoints().unwrap();
            let (files, pending) =
                draft.finish_whole_unsynced(&table(CHUNKS, b"table"), CHUNKS, &[]).unwrap();
            pending.commit().unwrap();
            files
        }
    };
    for first in [0, 3, 30] {
        let places: Vec<_> = (first..first + 9)
            .map(|chunk| {
                let (file, file_offset) = place(chunk);
                let pieces = vec![Piece { file, file_offset, length: CHUNK as u64 }];
                super::ChunkPlace { chunk, pieces }
            })
            .collect();
        files.evict(&places).unwrap();
    }
    assert_eq!(files.chunk_map.unwrap().present(), CHUNKS - 21);
}

/// Makes what a collector takes away, and takes it away.
fn collect(store: &Store) {
    publish(store);
    put(store);
    store.notes().put(NoteKind::Origin, "a name", &"a place").unwrap();
    let layer = store.layers().layer(LAYER).unwrap();
    assert_eq!(store.layers().list().unwrap(), [LAYER]);
    // A child of another test has it open for an instant.
    eventually("it is set aside", || layer.set_aside().unwrap());
    assert!(store.content().remove(&blob_digest()).unwrap());
    assert_eq!(store.notes().keep_only(NoteKind::Origin, &[]).unwrap(), 1);
    assert!(store.layers().list().unwrap().is_empty() && layer.open().unwrap().is_none());
}

/// Opens a lazy layer whose map was destroyed.
fn mend_the_map(store: &Store) {
    let layer = store.layers().layer(LAYER).unwrap();
    if layer.open().unwrap().is_none() {
        layer.create().unwrap().publish(&table(CHUNKS, b"table"), Some(CHUNKS)).unwrap();
    }
    std::fs::write(layer_path(store).join("chunks"), b"damaged").unwrap();
    layer.open().unwrap();
}

fn layer_path(store: &Store) -> std::path::PathBuf {
    store.path().join("layers/sha256").join(&LAYER[7..])
}

/// What the started processes run. Does nothing as an ordinary test.
#[test]
fn role() {
    let (Some(path), Ok(role)) = (std::env::var_os(STORE), std::env::var(ROLE)) else { return };
    if let Some(steps) = std::env::var(STEPS).ok().and_then(|steps| steps.parse().ok()) {
        die_after(steps);
    }
    let store = Store::open(Path::new(&path)).unwrap();
    if let Some((_, run)) = ROLES.iter().find(|(name, _)| *name == role) {
        return run(&store);
    }
    match role.as_str() {
        "hold a draft" => {
            let _draft = whole_draft(&store);
            announce_and_wait();
        }
        "hold a lock" => {
            let _lock = store.layers().layer(LAYER).unwrap().lock().unwrap();
            announce_and_wait();
        }
        "publish at once" => {
            announce_and_wait();
            let (files, pending) = whole_draft(&store).finish_unsynced(&table(0, b"table"), None).unwrap();
            let publication = pending.commit().unwrap();
            check_bytes(&files, |_| true);
            // The parent counts those who won.
            std::process::exit(if publication == Publication::Published { 10 } else { 11 });
        }
        "write records" => {
            announce_and_wait_for_nobody();
            for number in 0.. {
                store.database().remember_mount(&mount(number)).unwrap();
                store.database().set_layer_state(LAYER, LayerState::Lazy).unwrap();
            }
        }
        other => panic!("no role {other:?}"),
    }
}

fn mount(number: u32) -> super::MountRecord {
    super::MountRecord {
        mountpoint: format!("/{}", number % 50).into(),
        pid: number,
        pid_start_time: 1,
        reference: "r".repeat(1000),
        manifest_digest: "m".into(),
        tree: "t".into(),
        started_at: i64::from(number),
        status_path: None,
    }
}

/// Tells the parent, then waits until it closes standard input.
fn announce_and_wait() {
    announce_and_wait_for_nobody();
    let _ = std::io::stdin().read(&mut [0]);
}

/// On standard error, which the test harness does not capture when it is written to like this.
fn announce_and_wait_for_nobody() {
    rustix::io::write(rustix::stdio::stderr(), b"!").unwrap();
}

fn start(path: &Path, role: &str, steps: Option<u32>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "store::crash_tests::role", "--test-threads", "1"]);
    command
        .env(STORE, path)
        .env(ROLE, role)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    match steps {
        Some(steps) => command.env(STEPS, steps.to_string()),
        None => command.env_remove(STEPS),
    };
    command.spawn().unwrap()
}

fn wait_for_announcement(child: &mut Child) {
    let mut byte = [0];
    child.stderr.as_mut().unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"!");
}

/// Asks again until it is so. Locks need it: a process that any test starts has ours too between its fork and its exec.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !is_so() {
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{what}: not so");
        std::thread::yield_now();
    }
}

/// Every byte that the layer vouches for is what was written there.
fn check_bytes(files: &super::LayerFiles, is_present: impl Fn(u64) -> bool) {
    let mut bytes = vec![0; CHUNK];
    for chunk in (0..CHUNKS).filter(|chunk| is_present(*chunk)) {
        let (file, offset) = place(chunk);
        files.data.read_at(file, offset, &mut bytes).unwrap();
        assert!(bytes == chunk_bytes(chunk), "chunk {chunk}");
    }
}

/// Everything that can be seen is whole; after a sweep nothing else is there.
fn check(path: &Path) {
    let store = Store::open(path).unwrap();
    eventually("nothing is left behind", || {
        store.sweep().unwrap();
        let left = |directory| std::fs::read_dir(path.join(directory)).unwrap().count();
        ["content/ingest", "layers/ingest", "trees/ingest", "locks"].map(left) == [0; 4]
    });
    if store.content().has(&blob_digest()).unwrap() {
        assert!(store.content().get(&blob_digest()).unwrap().is_some());
    }
    let index = std::fs::read(path.join("content/index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    assert!(index["manifests"].is_array());
    if let Some(files) = store.layers().layer(LAYER).unwrap().open().unwrap() {
        let map = files.chunk_map.clone();
        assert!(files.table.metadata().unwrap().len() as usize == table(0, b"table").len());
        check_bytes(&files, |chunk| map.as_ref().is_none_or(|map| map.is_present(chunk)));
    }
    if let Some(tree) = store.trees().open(&"ab".repeat(32)).unwrap() {
        assert_eq!(tree.metadata().unwrap().len(), 100_000);
    }
}

#[test]
fn a_process_killed_at_any_step_leaves_nothing_in_part_and_nothing_behind() {
    for (role, run) in ROLES {
        let mut steps = 0;
        loop {
            // In memory if possible: what a killed process leaves does not depend on the disk, and syncs cost nothing there.
            let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
            let path = directory.path().join("store");
            if role != "open" {
                Store::open(&path).unwrap();
            }
            let mut child = start(&path, role, Some(steps));
            let mut said = String::new();
            child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            let status = child.wait().unwrap();
            check(&path);
            // The next one goes on from there.
            run(&Store::open(&path).unwrap());
            check(&path);
            if status.signal() != Some(9) {
                assert!(status.success(), "{role}, step {steps}: {status} {said}");
                break;
            }
            steps += 1;
        }
        assert!(steps > 5, "{role} was killed at {steps} steps only");
    }
}

#[test]
fn what_a_living_process_uses_outlives_a_sweep_and_what_a_killed_one_used_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    let mut draft = start(directory.path(), "hold a draft", None);
    wait_for_announcement(&mut draft);
    let mut lock = start(directory.path(), "hold a lock", None);
    wait_for_announcement(&mut lock);
    assert_eq!(store.sweep().unwrap(), 0);
    assert!(store.layers().layer(LAYER).unwrap().try_lock().unwrap().is_none());
    for child in [&mut draft, &mut lock] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    eventually("the lock is free", || store.layers().layer(LAYER).unwrap().try_lock().unwrap().is_some());
    assert_eq!(store.sweep().unwrap(), 1);
    check(directory.path());
}

#[test]
fn of_several_processes_that_publish_one_layer_at_once_one_wins() {
    let directory = tempfile::tempdir().unwrap();
    Store::open(directory.path()).unwrap();
    let mut children: Vec<Child> = (0..4).map(|_| start(directory.path(), "publish at once", None)).collect();
    children.iter_mut().for_each(wait_for_announcement);
    children.iter_mut().for_each(|child| drop(child.stdin.take()));
    let mut codes: Vec<_> = children.iter_mut().map(|child| child.wait().unwrap().code()).collect();
    codes.sort();
    assert_eq!(codes, [Some(10), Some(11), Some(11), Some(11)]);
    check(directory.path());
}

#[test]
fn a_process_killed_while_it_writes_records_leaves_a_database_that_others_use() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path()).unwrap();
    for _ in 0..5 {
        let mut child = start(directory.path(), "write records", None);
        wait_for_announcement(&mut child);
        // It writes at the same time as we do.
        for number in 100..140 {
            store.database().remember_mount(&mount(number)).unwrap();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(store.database().mounts().unwrap().iter().all(|mount| mount.reference.len() == 1000));
    }
    let names = std::fs::read_dir(directory.path()).unwrap();
    assert!(
        names.map(|name| name.unwrap().file_name()).all(|name| !name.to_string_lossy().contains("damaged"))
    );
}

/// A file system of 2 MiB, unmounted when it is dropped.
pub(crate) struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// `None` if this process may not mount.
    pub(crate) fn new() -> Option<SmallDisk> {
        use rustix::mount::{MountFlags, mount};
        let directory = tempfile::tempdir().unwrap();
        let options = c"size=2m,mode=0700";
        match mount("tmpfs", directory.path(), "tmpfs", MountFlags::NODEV | MountFlags::NOSUID, options) {
            Ok(()) => Some(SmallDisk(directory)),
            Err(rustix::io::Errno::PERM) => None,
            Err(error) => panic!("cannot mount a tmpfs: {error}"),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing_behind() {
    let Some(disk) = SmallDisk::new() else { return };
    let store = Store::open(disk.path()).unwrap();
    store.database().images().unwrap();
    let ballast = disk.path().join("content/ballast");
    let fill_up = || {
        use std::io::Write;
        let mut file = std::fs::File::create(&ballast).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    };
    let large = vec![5; 3 << 20];
    let layer = store.layers().layer(LAYER).unwrap();

    let full = |result: Result<(), StoreError>, what: &str| {
        let error = result.expect_err(what);
        assert!(error.is_full(), "{what}: {error}");
        assert!(error.to_string().contains("space") || error.to_string().contains("full"), "{what}: {error}");
    };
    let draft = layer.create().unwrap();
    full(draft.write(DataFile::Packed, 0, &large), "write to a draft");
    drop(draft);
    let (lazy, pending) =
        layer.create().unwrap().finish_unsynced(&table(CHUNKS, b"table"), Some(CHUNKS)).unwrap();
    pending.commit().unwrap();
    full(lazy.data.write_at(DataFile::Packed, 0, &large), "write fetched bytes");

    let (room, held) = (store.space().unwrap().available, layer.create().unwrap());
    assert!(room < 2 << 20);
    drop(lazy);
    fill_up();
    full(held.finish_unsynced(&table(0, &[1; 10_000]), None).map(drop), "finish a draft");
    full(store.content().put(&blob_digest(), &blob_bytes()), "put a blob");
    full(store.trees().put(&"ab".repeat(32), &large), "put a tree");
    // What is there is read, and marked, all the same: a map lacks no block.
    let lazy = layer.open().unwrap().unwrap();
    assert!(lazy.chunk_map.as_ref().unwrap().mark(1));
    drop(lazy);
    assert!(store.database().images().unwrap().is_empty());
    full((0..1000).try_for_each(|number| store.database().remember_mount(&mount(number))), "write records");

    // Cut first: a process that another test starts may hold it open for an instant.
    std::fs::File::options().write(true).open(&ballast).unwrap().set_len(0).unwrap();
    std::fs::remove_file(&ballast).unwrap();
    assert!(layer.remove().unwrap());
    eventually("the layer's bytes are free", || {
        store.sweep().unwrap();
        store.space().unwrap().available > 1 << 20
    });
    store.database().remember_mount(&mount(0)).unwrap();
    store.content().put(&blob_digest(), &blob_bytes()).unwrap();
    check(disk.path());
}

#[test]
fn a_process_that_may_not_write_large_files_gets_the_error_of_a_full_disk() {
    let error = StoreError::from_io("write", "/x", rustix::io::Errno::FBIG);
    assert!(
        error.is_full() && error.to_string().contains("/x") && error.to_string().contains("--store"),
        "{error}"
    );
    let denied = StoreError::from_io("write", "/x", rustix::io::Errno::ACCESS);
    assert!(matches!(denied, StoreError::Permission { .. }));
}
