//! Promise: `peel serve`, and whoever serves a tree for it, may be killed at any instant: containers that read wait a moment and see no
//! error, containers that start meanwhile start or say why not, and nothing is left of any of it.

use super::{served_python, trees};
use crate::support::containerd::{Containerd, Daemon};
use crate::support::peel::{Peel, kill_and_wait, mounts_below, shuffled_instants};
use std::time::Duration;

/// Reads all files below two directories again and again, from the server and not from the page cache, until a file says that it is enough,
/// and once more then. Each file must be the same each time. Tells how long it waited at most for one, and the digest of all.
pub const READER: &str = r#"
import hashlib, os, sys, time
stop, seen, longest, rounds, last = sys.argv[1], {}, 0.0, 0, False
while True:
    for top in ('/usr/lib/python3', '/usr/share'):
        for directory, _, names in os.walk(top):
            for name in names:
                path = os.path.join(directory, name)
                if os.path.islink(path):
                    continue
                begun = time.monotonic()
                with open(path, 'rb') as file:
                    content = file.read()
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                longest = max(longest, time.monotonic() - begun)
                digest = hashlib.sha256(content).digest()
                if seen.setdefault(path, digest) != digest:
                    sys.exit('wrong bytes of ' + path)
            if not last and rounds > 0 and os.path.exists(stop):
                break
    rounds += 1
    if last:
        break
    last = os.path.exists(stop)
together = hashlib.sha256()
for path in sorted(seen):
    together.update(path.encode('utf-8', 'surrogateescape') + seen[path])
print(f'{longest:.3f} {rounds} {len(seen)} {together.hexdigest()}')
"#;

/// What nobody uses is unmounted soon.
const IDLE: [&str; 2] = ["--idle-timeout", "1"];

#[test]
fn containers_that_read_notice_nothing_when_whoever_serves_is_killed() {
    let (_layout, _registry, reference) = served_python();
    let peel = Peel::new();
    let mut daemon = Some(Daemon::start(&peel, &IDLE));
    let containerd = Containerd::start(&peel);
    assert!(containerd.ctr_pulled(&peel, &reference, &[]).iter().all(|state| state == "lazy"));
    let snapshots = containerd.snapshots();
    let run = ["run", "--detach", "--snapshotter", "peel", &reference, "killed-tree", "sleep", "3600"];
    containerd.ctr(&run);
    let holders = peel.holders();
    assert_eq!((holders.len(), trees(&peel)), (1, 1));
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", holders[0])).unwrap().count();
    let before = descriptors();

    let digests: Vec<String> = std::thread::scope(|scope| {
        let readers: Vec<_> = ["r1", "r2"]
            .map(|name| {
                let exec =
                    ["tasks", "exec", "--exec-id", name, "killed-tree", "python3", "-c", READER, "/stop"];
                let containerd = &containerd;
                scope.spawn(move || containerd.ctr(&exec))
            })
            .into();
        for (number, instant) in shuffled_instants(Duration::from_millis(600)).into_iter().enumerate() {
            std::thread::sleep(instant);
            for server in peel.servers_of("serve-stack") {
                kill_and_wait(server);
            }
            // Every other time the daemon, too; and a container starts or does not, but says so.
            if number % 2 == 1 {
                let name = format!("started-{number}");
                let starting = scope.spawn({
                    let (containerd, reference) = (&containerd, &reference);
                    move || {
                        containerd.run(&["run", "--rm", "--snapshotter", "peel", reference, &name, "true"])
                    }
                });
                std::thread::sleep(instant / 4);
                daemon.take().expect("it runs").kill();
                daemon = Some(Daemon::start(&peel, &IDLE));
                let outcome = starting.join().unwrap();
                assert!(outcome.code.is_some(), "{outcome:?}");
                assert!(outcome.code == Some(0) || !outcome.stderr.is_empty(), "{outcome:?}");
            }
            assert!(readers.iter().all(|reader| !reader.is_finished()), "a reader ended");
        }
        containerd.ctr(&["tasks", "exec", "--exec-id", "stop", "killed-tree", "touch", "/stop"]);
        let told: Vec<String> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
        for line in &told {
            println!("the longest wait, rounds, files, digest: {}", line.trim_end());
        }
        told.iter().map(|line| line.split_whitespace().last().unwrap().to_owned()).collect()
    });
    assert_eq!(digests[0], digests[1]);
    assert_eq!((peel.holders(), descriptors()), (holders.clone(), before));

    // All of it goes, and nothing else was left behind.
    containerd.wait_for_snapshotter();
    containerd.ctr(&["tasks", "rm", "--force", "killed-tree"]);
    containerd.ctr(&["containers", "rm", "killed-tree"]);
    for line in containerd.ctr(&["containers", "ls", "--quiet"]).lines() {
        let _ = containerd.run(&["tasks", "rm", "--force", line]);
        containerd.ctr(&["containers", "rm", line]);
    }
    for name in active(&containerd.snapshots()) {
        let _ = containerd.run(&["snapshots", "--snapshotter", "peel", "rm", &name]);
    }
    for lease in containerd.leases() {
        containerd.ctr(&["leases", "rm", lease.split_whitespace().next().unwrap()]);
    }
    containerd.collect_garbage();
    assert_eq!(containerd.snapshots(), snapshots);
    assert_eq!(containerd.leases(), Vec::<String>::new());
    peel.wait_for(|| mounts_below(peel.store()).is_empty());
    peel.wait_for(|| peel.servers_of("serve-stack").is_empty() && peel.holders().is_empty());
    drop(containerd);
    daemon.expect("it runs").terminate();
    peel.is_clean();
}

/// The names of snapshots that are not committed.
fn active(listed: &str) -> Vec<String> {
    let lines = listed.lines().skip(1).filter(|line| !line.trim_end().ends_with("Committed"));
    lines.filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}
