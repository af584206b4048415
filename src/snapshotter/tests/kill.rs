//! A process that is killed at the n-th rename, sync or database commit, with SIGKILL, for every n there is. Whatever it was doing was done,
//! or was not; and nothing is left over once it is cleaned up.

use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use super::*;
use crate::store::die_after;

const STORE: &str = "PEELFS_TEST_SNAPSHOTTER";
const STEPS: &str = "PEELFS_TEST_SNAPSHOTTER_STEPS";

type Operation = fn(&Snapshotter);

/// One after another.
const OPERATIONS: [Operation; 11] = [
    |all| drop(all.prepare("a", "", &labels(&[("l", "1")])).unwrap()),
    |all| all.commit("one", "a", "", &labels(&[("l", "2")])).unwrap(),
    |all| drop(all.prepare("b", "one", &Labels::new()).unwrap()),
    |all| drop(all.update("b", &labels(&[("l", "3")]), &[]).unwrap()),
    |all| drop(all.view("v", "one", &Labels::new()).unwrap()),
    |all| drop(all.prepare("extract", "", &of_layer("one", "lazy")).unwrap_err()),
    |all| drop(all.prepare("c", digest("one").as_str(), &Labels::new()).unwrap()),
    |all| all.remove("v").unwrap(),
    |all| all.clean_up().unwrap(),
    |all| all.remove("c").unwrap(),
    |all| all.clean_up().unwrap(),
];

/// All that containerd could ask about, without what depends on the clock.
fn told(all: &Snapshotter) -> Vec<(String, String, SnapshotKind, Labels)> {
    let infos = all.list(&[]).unwrap().into_iter();
    infos.map(|info| (info.name, info.parent, info.kind, info.labels)).collect()
}

/// What the started processes run. Does nothing as an ordinary test.
#[test]
fn role() {
    let Some(path) = std::env::var_os(STORE) else { return };
    let steps = std::env::var(STEPS).unwrap().parse().unwrap();
    let store = Arc::new(Store::open(Path::new(&path)).unwrap());
    store.database().make().unwrap();
    let snapshotter =
        Snapshotter::open(store, Box::new(world()), Duration::from_secs(3600)).unwrap().unwrap();
    die_after(steps);
    for operation in OPERATIONS {
        operation(&snapshotter);
        rustix::io::write(rustix::stdio::stderr(), b".").unwrap();
    }
}

/// Runs the operations, killed after so many steps. Gives the number of those that were done, and whether it was killed.
fn run(path: &Path, steps: u64) -> (usize, bool) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "snapshotter::tests::kill::role", "--test-threads", "1", "--nocapture"]);
    command.env(STORE, path).env(STEPS, steps.to_string());
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(status.success() || status.signal() == Some(9), "{status}: {said}");
    (said.matches('.').count(), !status.success())
}

#[test]
fn a_process_killed_at_any_step_has_done_what_it_did_or_not_and_leaves_nothing_over() {
    let house = House::new();
    let mut states = vec![told(&house.snapshotter)];
    for operation in OPERATIONS {
        operation(&house.snapshotter);
        states.push(told(&house.snapshotter));
    }
    for steps in 0.. {
        let directory = tempfile::tempdir().unwrap();
        let (done, was_killed) = run(directory.path(), steps);
        let house = House::at(directory);
        let found = told(&house.snapshotter);
        let may_be = if was_killed { &states[done..=done + 1] } else { &states[done..=done] };
        assert!(may_be.contains(&found), "killed at step {steps}, after {done} operations: {found:#?}");
        for (name, _, kind, _) in &found {
            assert_eq!(house.snapshotter.mounts(name).is_ok(), *kind != SnapshotKind::Committed, "{name}");
            house.snapshotter.usage(name).unwrap();
        }
        let read = |tables: &SnapshotTables<'_>| Ok(tables.all()?);
        let rows = house.snapshotter.read("look", read).unwrap().into_iter();
        let rows: BTreeSet<i64> = rows.filter(|row| row.remote.is_none()).map(|row| row.id).collect();
        let store = &house.snapshotter.store;
        eventually("what has no row is gone", || {
            house.snapshotter.clean_up().unwrap();
            store.container_snapshots().list().unwrap().into_iter().collect::<BTreeSet<i64>>() == rows
        });
        eventually("what was removed is gone", || {
            store.sweep().unwrap();
            let left = std::fs::read_dir(store.path().join("snapshots/ingest"));
            left.map_or(0, |entries| entries.count()) == 0
        });
        if !was_killed {
            assert!(steps > 30, "{steps}: hardly anything was ever killed");
            break;
        }
    }
}
