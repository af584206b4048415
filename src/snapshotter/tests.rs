//! The rules of snapshots, with images that are made up.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use peelfs_registry::Digest;

use super::*;
use crate::store::eventually;

mod kill;

/// Images that hold the layers whose digest is that of `lazy`; their trees are never really mounted.
#[derive(Default)]
struct World {
    brought: AtomicUsize,
    mounted: Mutex<Vec<String>>,
    /// What mounting fails with.
    fault: Mutex<Option<&'static str>>,
    /// What is said of the layers: it decides the tree.
    said: Mutex<String>,
    /// Layers of the stack whose chain ID is asked for.
    layers: Mutex<BTreeMap<Digest, u32>>,
}

impl Remote for Arc<World> {
    fn bring(&self, request: &LayerRequest, _: &str) -> Result<Option<RemoteStack>, BoxError> {
        self.brought.fetch_add(1, Ordering::Relaxed);
        if request.layer != digest("lazy") {
            return Ok(None);
        }
        let Some(layers) = self.layers.lock().unwrap().get(&request.target).copied() else {
            return Err("the registry is gone".into());
        };
        let said = self.said.lock().unwrap().clone();
        Ok(Some(RemoteStack {
            reference: request.reference.to_string(),
            platform: "linux/amd64".to_owned(),
            manifest_digest: digest("manifest").to_string(),
            layers,
            tree: Digest::sha256_of(format!("{} {said}", request.target).as_bytes()).as_str()[7..].to_owned(),
        }))
    }

    fn usage(&self, _: &RemoteStack) -> Result<DiskUsage, BoxError> {
        Ok(DiskUsage { bytes: 4096, inodes: 3 })
    }

    fn mount(&self, stack: &RemoteStack, _: &Path) -> Result<(), BoxError> {
        match *self.fault.lock().unwrap() {
            Some(fault) => Err(fault.into()),
            None => {
                self.mounted.lock().unwrap().push(stack.tree.clone());
                Ok(())
            }
        }
    }
}

fn digest(text: &str) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

fn world() -> Arc<World> {
    let world = Arc::new(World::default());
    for (chain, layers) in [("one", 1), ("two", 2)] {
        world.layers.lock().unwrap().insert(digest(chain), layers);
    }
    world
}

struct House {
    snapshotter: Snapshotter,
    world: Arc<World>,
    directory: tempfile::TempDir,
}

impl House {
    fn new() -> House {
        House::at(tempfile::tempdir().unwrap())
    }

    fn at(directory: tempfile::TempDir) -> House {
        House::with_idle(directory, Duration::from_secs(3600))
    }

    /// Whose trees are idle after so long.
    fn with_idle(directory: tempfile::TempDir, idle_after: Duration) -> House {
        let store = Arc::new(Store::open(directory.path()).unwrap());
        let world = world();
        let mut snapshotter = None;
        eventually("nobody else serves it", || {
            snapshotter = Snapshotter::open(store.clone(), Box::new(world.clone()), idle_after).unwrap();
            snapshotter.is_some()
        });
        House { snapshotter: snapshotter.unwrap(), world, directory }
    }

    /// The same store, served by a later process.
    fn again(self) -> House {
        let House { snapshotter, directory, .. } = self;
        drop(snapshotter);
        House::at(directory)
    }

    fn path(&self, below: &str) -> String {
        self.directory.path().join("snapshots").join(below).to_str().unwrap().to_owned()
    }

    fn committed(&self, name: &str, parent: &str) {
        let key = format!("{name} key");
        self.snapshotter.prepare(&key, parent, &Labels::new()).unwrap();
        self.snapshotter.commit(name, &key, "", &Labels::new()).unwrap();
    }

    fn names(&self, filters: &[&str]) -> Vec<String> {
        let filters: Vec<String> = filters.iter().map(|filter| (*filter).to_owned()).collect();
        self.snapshotter.list(&filters).unwrap().into_iter().map(|info| info.name).collect()
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// What containerd sends for the layer of a stack.
fn of_layer(chain: &str, layer: &str) -> Labels {
    labels(&[
        ("containerd.io/snapshot.ref", digest(chain).as_str()),
        ("containerd.io/snapshot/cri.image-ref", "host:5000/image:1"),
        ("containerd.io/snapshot/cri.layer-digest", digest(layer).as_str()),
    ])
}

fn options(mounts: &[Mount]) -> String {
    let [Mount { kind, source, options }] = mounts else { panic!("{mounts:?}") };
    let kept: Vec<&str> = options
        .iter()
        .map(String::as_str)
        .filter(|option| !matches!(*option, "index=off" | "userxattr"))
        .collect();
    format!("{kind} {source} {}", kept.join(","))
}

#[test]
fn mounts_are_those_of_an_overlay() {
    let house = House::new();
    let snapshots = &house.snapshotter;
    let none = Labels::new();
    let at = |below: &str| house.path(below);
    assert_eq!(options(&snapshots.prepare("a", "", &none).unwrap()), format!("bind {} rw,rbind", at("1/fs")));
    assert_eq!(options(&snapshots.view("v", "", &none).unwrap()), format!("bind {} ro,rbind", at("2/fs")));
    assert!(!Path::new(&at("2/work")).exists());
    snapshots.commit("one", "a", "", &none).unwrap();
    assert_eq!(options(&snapshots.view("w", "one", &none).unwrap()), format!("bind {} ro,rbind", at("1/fs")));
    let over = |number: u32, lower: &str| {
        format!(
            "overlay overlay workdir={0}/work,upperdir={0}/fs,lowerdir={1}",
            at(&number.to_string()),
            lower
        )
    };
    assert_eq!(options(&snapshots.prepare("b", "one", &none).unwrap()), over(4, &at("1/fs")));
    assert_eq!(options(&snapshots.mounts("b").unwrap()), over(4, &at("1/fs")));
    snapshots.commit("two", "b", "one", &none).unwrap();
    let lower = format!("{}:{}", at("4/fs"), at("1/fs"));
    assert_eq!(
        options(&snapshots.view("x", "two", &none).unwrap()),
        format!("overlay overlay lowerdir={lower}")
    );
    assert_eq!(options(&snapshots.prepare("c", "two", &none).unwrap()), over(6, &lower));
}

#[test]
fn the_options_of_two_hundred_layers_fit_into_a_page() {
    let house = House::new();
    house.snapshotter.prepare("a", "", &Labels::new()).unwrap();
    let row = house.snapshotter.read("look", |tables| found(tables, "a")).unwrap();
    let directories = house.snapshotter.store.container_snapshots();
    let mut lower: Vec<PathBuf> = (1000..1200).map(|id| directories.fs(id)).collect();
    lower.push(directories.mount_point_path(&"a".repeat(64)));
    let [Mount { options, .. }] = house.snapshotter.mounts_of(&row, &lower).try_into().unwrap();
    // containerd goes to the directory that all have in common, and leaves that out.
    let common = format!("{}/", house.path("").trim_end_matches('/'));
    let options =
        options.join(",").replace("lowerdir=", "").replacen(&common, "lowerdir=", 1).replace(&common, "");
    assert!(options.contains("1199/fs:remote-"), "{options}");
    assert!(options.len() < 4096, "{}", options.len());
}

#[test]
fn refusals_have_the_kind_that_containerd_expects() {
    use SnapshotterError::*;
    let house = House::new();
    let (snapshots, none) = (&house.snapshotter, Labels::new());
    house.committed("one", "");
    snapshots.prepare("active", "one", &none).unwrap();
    snapshots.view("view", "one", &none).unwrap();
    let long = labels(&[("key", &"v".repeat(5000))]);
    assert!(matches!(snapshots.prepare("active", "one", &none), Err(AlreadyExists { .. })));
    assert!(matches!(snapshots.view("active", "one", &none), Err(AlreadyExists { .. })));
    assert!(matches!(snapshots.prepare("x", "gone", &none), Err(NotFound { .. })));
    assert!(matches!(snapshots.prepare("x", "active", &none), Err(InvalidArgument { .. })));
    assert!(matches!(snapshots.prepare("", "one", &none), Err(InvalidArgument { .. })));
    assert!(matches!(snapshots.prepare("x", "one", &long), Err(InvalidArgument { .. })));
    assert!(matches!(snapshots.mounts("one"), Err(FailedPrecondition { .. })));
    assert!(matches!(snapshots.mounts("gone"), Err(NotFound { .. })));
    assert!(matches!(snapshots.commit("one", "active", "", &none), Err(AlreadyExists { .. })));
    assert!(matches!(snapshots.commit("x", "gone", "", &none), Err(NotFound { .. })));
    assert!(matches!(snapshots.commit("x", "view", "", &none), Err(FailedPrecondition { .. })));
    assert!(matches!(snapshots.commit("x", "one", "", &none), Err(FailedPrecondition { .. })));
    assert!(matches!(snapshots.commit("", "active", "", &none), Err(InvalidArgument { .. })));
    assert!(matches!(snapshots.remove("one"), Err(FailedPrecondition { .. })));
    assert!(matches!(snapshots.remove("gone"), Err(NotFound { .. })));
    assert!(matches!(snapshots.stat("gone"), Err(NotFound { .. })));
    assert!(matches!(snapshots.usage("gone"), Err(NotFound { .. })));
    assert!(matches!(snapshots.update("gone", &none, &[]), Err(NotFound { .. })));
    for path in ["name", "parent", "kind", "created", "labelsx"] {
        let refused = snapshots.update("one", &none, &[path.to_owned()]);
        assert!(matches!(refused, Err(InvalidArgument { .. })), "{path}");
    }
    assert!(matches!(snapshots.list(&["name=".to_owned()]), Err(Filter(_))));
    // Nothing came of any of it.
    assert_eq!(house.names(&[]), ["active", "one", "view"]);
}

#[test]
fn labels_change_as_the_field_mask_says() {
    let house = House::new();
    let (snapshots, first) =
        (&house.snapshotter, labels(&[("l1", "v1"), ("l2", "v2"), ("a.b/c", "x"), ("e", "")]));
    snapshots.prepare("a", "", &first).unwrap();
    let before = snapshots.stat("a").unwrap();
    assert_eq!(before.labels, labels(&[("l1", "v1"), ("l2", "v2"), ("a.b/c", "x")]));
    assert_eq!(before.created_at, before.updated_at);
    let update = |new: &[(&str, &str)], paths: &[&str]| {
        let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
        snapshots.update("a", &labels(new), &paths).unwrap()
    };
    let one = update(&[("l1", "new"), ("l9", "no")], &["labels.l1", "labels.l2", "labels.a.b/c"]);
    assert_eq!(one.labels, labels(&[("l1", "new")]));
    assert!(one.updated_at >= before.updated_at && one.created_at == before.created_at);
    assert_eq!(update(&[("x", "y"), ("e", "")], &["labels"]).labels, labels(&[("x", "y")]));
    assert_eq!(update(&[("z", "1")], &[]).labels, labels(&[("z", "1")]));
    assert_eq!(snapshots.stat("a").unwrap().labels, labels(&[("z", "1")]));
    snapshots.commit("c", "a", "", &labels(&[("only", "this")])).unwrap();
    let committed = snapshots.stat("c").unwrap();
    assert_eq!((committed.labels, committed.kind), (labels(&[("only", "this")]), SnapshotKind::Committed));
}

#[test]
fn a_removed_snapshot_leaves_nothing_once_it_is_cleaned_up() {
    let house = House::new();
    let snapshots = &house.snapshotter;
    house.committed("one", "");
    house.committed("two", "one");
    snapshots.prepare("a", "two", &Labels::new()).unwrap();
    std::fs::create_dir(house.path("3/work/work")).unwrap();
    std::fs::write(house.path("3/fs/file"), "x").unwrap();
    assert!(snapshots.remove("two").is_err());
    snapshots.remove("a").unwrap();
    snapshots.remove("two").unwrap();
    assert_eq!(house.names(&[]), ["one"]);
    assert!(Path::new(&house.path("3/fs/file")).exists(), "that is for later");
    let left = |house: &House| {
        let entries = std::fs::read_dir(house.directory.path().join("snapshots")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    // A directory's lock may be held for an instant by a process that another test is starting.
    let cleaned_up = |house: &House, expected: &[&str]| {
        eventually("it is cleaned up", || {
            house.snapshotter.clean_up().unwrap();
            left(house) == expected
        });
    };
    cleaned_up(&house, &["1", "ingest"]);
    // What a process that was killed was making.
    std::fs::create_dir_all(house.path("9/fs")).unwrap();
    let house = house.again();
    house.committed("later", "one");
    cleaned_up(&house, &["1", "2", "ingest"]);
    assert_eq!(house.names(&["parent==one"]), ["later"]);
}

#[test]
fn usage_is_what_is_on_the_disk() {
    let house = House::new();
    let snapshots = &house.snapshotter;
    snapshots.prepare("a", "", &Labels::new()).unwrap();
    let empty = snapshots.usage("a").unwrap();
    std::fs::write(house.path("1/fs/file"), vec![1; 1 << 20]).unwrap();
    std::fs::hard_link(house.path("1/fs/file"), house.path("1/fs/again")).unwrap();
    let active = snapshots.usage("a").unwrap();
    assert_eq!(active.inodes, empty.inodes + 1);
    assert!(active.bytes - empty.bytes >= 1 << 20 && active.bytes - empty.bytes < 2 << 20);
    snapshots.commit("c", "a", "", &Labels::new()).unwrap();
    assert_eq!(snapshots.usage("c").unwrap(), active);
    snapshots.view("v", "c", &Labels::new()).unwrap();
    assert_eq!(snapshots.usage("v").unwrap(), DiskUsage::default());
    assert!(snapshots.prepare("x", "", &of_layer("one", "lazy")).is_err());
    assert_eq!(snapshots.usage(digest("one").as_str()).unwrap(), DiskUsage { bytes: 4096, inodes: 3 });
}

#[test]
fn a_lazy_layer_is_there_before_it_is_unpacked_and_containerd_finds_it() {
    let house = House::new();
    let snapshots = &house.snapshotter;
    let (one, two) = (digest("one").to_string(), digest("two").to_string());
    let prepared = snapshots.prepare("extract 1", "", &of_layer("one", "lazy"));
    assert!(matches!(prepared, Err(SnapshotterError::AlreadyExists { name }) if name == one));
    let filter = format!("labels.\"containerd.io/snapshot.ref\"=={one},parent==\"\"");
    assert_eq!(house.names(&[&filter]), [one.as_str()]);
    let info = snapshots.stat(&one).unwrap();
    assert_eq!(info.kind, SnapshotKind::Committed);
    assert_eq!(info.labels["containerd.io/snapshot/remote"], "remote snapshot");
    // Once more: nobody is asked.
    assert!(matches!(
        snapshots.prepare("extract 2", "", &of_layer("one", "lazy")),
        Err(SnapshotterError::AlreadyExists { .. })
    ));
    assert_eq!(house.world.brought.load(Ordering::Relaxed), 1);
    assert!(
        matches!(snapshots.prepare("extract 3", &one, &of_layer("two", "lazy")), Err(SnapshotterError::AlreadyExists { name }) if name == two)
    );
    assert_eq!(house.names(&["kind==active"]), Vec::<String>::new());

    let mounts = snapshots.prepare("container", &two, &Labels::new()).unwrap();
    let lower = house
        .snapshotter
        .store
        .container_snapshots()
        .mount_point_path(&house.world.mounted.lock().unwrap()[0]);
    assert!(
        options(&mounts).ends_with(&format!("lowerdir={}", lower.display())),
        "one tree for both layers: {mounts:?}"
    );
    let view = snapshots.view("view", &two, &Labels::new()).unwrap();
    assert_eq!(options(&view), format!("bind {} ro,rbind", lower.display()));
    snapshots.commit("changed", "container", "", &Labels::new()).unwrap();
    let above = snapshots.prepare("above", "changed", &Labels::new()).unwrap();
    let changes = snapshots.store.container_snapshots().fs(3);
    assert!(
        options(&above).ends_with(&format!("lowerdir={}:{}", changes.display(), lower.display())),
        "{above:?}"
    );
}

#[test]
fn what_cannot_be_lazy_is_left_to_containerd() {
    let house = House::new();
    let snapshots = &house.snapshotter;
    house.committed("ordinary", "");
    for (key, parent, labels) in [
        ("not lazy", "", of_layer("one", "other")),
        ("registry gone", "", of_layer("unknown", "lazy")),
        ("on an ordinary one", "ordinary", of_layer("two", "lazy")),
        ("on too little", "", of_layer("two", "lazy")),
    ] {
        snapshots.prepare(key, parent, &labels).unwrap_or_else(|error| panic!("{key}: {error}"));
    }
    assert!(house.names(&["labels.\"containerd.io/snapshot/remote\""]).is_empty());
}

#[test]
fn an_image_that_says_something_else_of_a_layer_does_not_get_the_one_that_is_there() {
    let house = House::new();
    let snapshots = &house.snapshotter;
    assert!(snapshots.prepare("a", "", &of_layer("one", "lazy")).is_err());
    let mut other = of_layer("one", "lazy");
    other.insert("containerd.io/snapshot/cri.image-ref".to_owned(), "host:5000/other:1".to_owned());
    // The same is said of it: it is the same layer.
    assert!(matches!(snapshots.prepare("b", "", &other), Err(SnapshotterError::AlreadyExists { .. })));
    *house.world.said.lock().unwrap() = "another table of contents".to_owned();
    snapshots.prepare("c", "", &other).expect("containerd unpacks it");
    assert_eq!(house.names(&["kind==committed"]).len(), 1);
}

#[test]
fn a_tree_that_cannot_be_mounted_is_an_error_that_says_why_and_leaves_no_snapshot() {
    let house = House::new();
    let snapshots = &house.snapshotter;
    let one = digest("one").to_string();
    assert!(snapshots.prepare("x", "", &of_layer("one", "lazy")).is_err());
    *house.world.fault.lock().unwrap() = Some("the registry is gone");
    let refused = snapshots.prepare("container", &one, &Labels::new()).unwrap_err();
    assert!(matches!(refused, SnapshotterError::Unavailable { .. }));
    assert!(
        refused.to_string().contains("host:5000/image:1")
            && refused.to_string().contains("the registry is gone")
    );
    assert_eq!(house.names(&[]), [one.as_str()]);
    *house.world.fault.lock().unwrap() = None;
    snapshots.prepare("container", &one, &Labels::new()).unwrap();
    *house.world.fault.lock().unwrap() = Some("the registry is gone");
    assert!(matches!(snapshots.mounts("container"), Err(SnapshotterError::Unavailable { .. })));
}

#[test]
fn a_tree_that_is_idle_goes_and_comes_back_and_goes_at_once_with_the_last_snapshot_of_it() {
    let house = House::new();
    let one = digest("one").to_string();
    assert!(house.snapshotter.prepare("x", "", &of_layer("one", "lazy")).is_err());
    for key in ["a", "b"] {
        house.snapshotter.prepare(key, &one, &Labels::new()).unwrap();
    }
    let mounted = |house: &House| house.world.mounted.lock().unwrap().len();
    let mount_point = house
        .snapshotter
        .store
        .container_snapshots()
        .mount_point_path(&house.world.mounted.lock().unwrap()[0]);
    for key in ["a", "b"] {
        house.snapshotter.clean_up().unwrap();
        assert!(mount_point.exists(), "it was used of late");
        house.snapshotter.remove(key).unwrap();
    }
    house.snapshotter.prepare("c", &one, &Labels::new()).unwrap();
    let told = house.snapshotter.unmount_idle().unwrap();
    assert_eq!(told, MountedTrees { used: 0, idle: 1, unmounted: 0 });

    // Nothing was ever mounted on it, so it is idle from the first, if that is long enough.
    let House { snapshotter, directory, .. } = house;
    drop(snapshotter);
    let house = House::with_idle(directory, Duration::ZERO);
    let told = house.snapshotter.unmount_idle().unwrap();
    assert_eq!(told, MountedTrees { used: 0, idle: 0, unmounted: 1 });
    assert!(!mount_point.exists());
    assert_eq!(house.snapshotter.unmount_idle().unwrap(), MountedTrees::default());
    // It comes back.
    house.snapshotter.mounts("c").unwrap();
    assert!(mount_point.exists());
    assert_eq!(mounted(&house), 1);

    let house = house.again();
    house.snapshotter.remove("c").unwrap();
    house.snapshotter.clean_up().unwrap();
    assert!(mount_point.exists());
    house.snapshotter.remove(&one).unwrap();
    house.snapshotter.clean_up().unwrap();
    assert!(!mount_point.exists());
}

#[test]
fn two_who_prepare_one_layer_at_once_commit_it_once() {
    let house = House::new();
    std::thread::scope(|scope| {
        for number in 0..8 {
            let snapshots = &house.snapshotter;
            scope.spawn(move || {
                let prepared = snapshots.prepare(&format!("extract {number}"), "", &of_layer("one", "lazy"));
                assert!(matches!(prepared, Err(SnapshotterError::AlreadyExists { .. })));
            });
        }
    });
    assert_eq!(house.names(&[]), [digest("one").to_string()]);
}

#[test]
fn one_process_serves_a_store() {
    let house = House::new();
    let store = Arc::new(Store::open(house.directory.path()).unwrap());
    assert!(Snapshotter::open(store, Box::new(house.world.clone()), Duration::ZERO).unwrap().is_none());
}

#[test]
fn snapshots_are_there_again_after_a_restart() {
    let house = House::new();
    house.committed("one", "");
    house.snapshotter.prepare("a", "one", &labels(&[("l", "1")])).unwrap();
    let before = house.snapshotter.list(&[]).unwrap();
    let mounts = house.snapshotter.mounts("a").unwrap();
    let house = house.again();
    assert_eq!(house.snapshotter.list(&[]).unwrap(), before);
    assert_eq!(house.snapshotter.mounts("a").unwrap(), mounts);
}

/// Takes the mounts away that a test has left, whatever happened to it.
struct Unmounting(PathBuf);

impl Unmounting {
    fn mounts(&self) -> Vec<PathBuf> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(&self.0)).collect()
    }
}

impl Drop for Unmounting {
    fn drop(&mut self) {
        for mount in self.mounts() {
            let _ = rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

#[test]
fn what_lies_below_a_container_of_a_user_namespace_is_mapped_and_outlives_it() {
    use std::os::unix::fs::{MetadataExt, chown};
    let house = House::new();
    let unmounting = Unmounting(house.directory.path().to_owned());
    for (name, parent) in [("lower", ""), ("upper", "lower")] {
        house.committed(name, parent);
    }
    for (id, uid) in [("1", 0), ("2", 7)] {
        std::fs::write(house.path(&format!("{id}/fs/file{id}")), id).unwrap();
        chown(house.path(&format!("{id}/fs/file{id}")), Some(uid), Some(uid)).unwrap();
    }
    chown(house.path("2/fs"), Some(9), Some(0)).unwrap();
    let mapping = |users: &str| {
        labels(&[
            ("containerd.io/snapshot/uidmapping", users),
            ("containerd.io/snapshot/gidmapping", "0:200000:65536"),
        ])
    };
    let mounts = house.snapshotter.prepare("container", "upper", &mapping("0:100000:65536")).unwrap();
    let lower = format!("{}:{}", house.path("3/lower/0"), house.path("3/lower/1"));
    assert!(options(&mounts).ends_with(&format!("lowerdir={lower}")), "{mounts:?}");
    let owner = |path: &str| std::fs::metadata(house.path(path)).map(|found| (found.uid(), found.gid())).ok();
    let shown = [Some((100_007, 200_007)), Some((100_000, 200_000)), Some((100_009, 200_000))];
    let looks = || [owner("3/lower/0/file2"), owner("3/lower/1/file1"), owner("3/fs")];
    assert_eq!(looks(), shown);
    // As after a restart of the machine, and as it is.
    rustix::mount::unmount(house.path("3/lower/1"), rustix::mount::UnmountFlags::DETACH).unwrap();
    for _ in 0..2 {
        assert_eq!(house.snapshotter.mounts("container").unwrap(), mounts);
        assert_eq!(looks(), shown);
        assert_eq!(unmounting.mounts().len(), 2);
    }
    let view = house.snapshotter.view("view", "lower", &mapping("0:5:1")).unwrap();
    assert_eq!(options(&view), format!("bind {} ro,rbind", house.path("4/lower/0")));
    assert_eq!(owner("4/lower/0/file1"), Some((5, 200_000)));

    for wrong in ["0:1", "0:100000:65536,0:100000:65536"] {
        assert!(house.snapshotter.prepare("wrong", "upper", &mapping(wrong)).is_err());
        assert!(matches!(house.snapshotter.stat("wrong"), Err(SnapshotterError::NotFound { .. })));
    }
    for name in ["container", "view"] {
        house.snapshotter.remove(name).unwrap();
    }
    eventually("it is removed", || {
        house.snapshotter.clean_up().unwrap();
        house.snapshotter.store.container_snapshots().list().unwrap().len() == 2
    });
    assert!(unmounting.mounts().is_empty());
    assert_eq!([owner("1/fs/file1"), owner("2/fs/file2")], [Some((0, 0)), Some((7, 7))]);
}
