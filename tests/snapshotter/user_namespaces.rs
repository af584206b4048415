//! Containers in user namespaces of their own: the kernel maps owners, and nothing of the image is copied.

use std::cell::Cell;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use super::{bytes, layer_bytes, served_python, trees};
use crate::support::blob::Form;
use crate::support::containerd::{Containerd, Daemon};
use crate::support::peel::{Peel, mounts_below};
use crate::support::registry::FakeRegistry;

const LOOK: &str = "\
import os
print(open('/proc/self/uid_map').read().split())
for path in ['/usr/bin/python3', '/etc/shadow', '/']: print(path, os.stat(path).st_uid, os.stat(path).st_gid)
os.mkdir('/made'); os.chown('/made', 5, 6)
open('/etc/motd', 'a').write('more')
print(os.stat('/etc/motd').st_uid)
";

fn mapped<'a>(users: &'a str, groups: &'a str) -> [&'a str; 7] {
    ["--snapshotter", "peel", "--uidmap", users, "--gidmap", groups, "--remap-labels"]
}

#[test]
fn a_container_in_a_user_namespace_sees_its_own_owners_of_the_shared_tree() {
    let (layout, registry, reference) = served_python();
    let peel = Peel::new();
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    containerd.let_others_pass();
    containerd.rpull(&reference);

    for (name, first) in [("one", 100_000), ("two", 300_000)] {
        let (users, groups) = (format!("0:{first}:65536"), format!("0:{}:65536", first + 100_000));
        let options = mapped(&users, &groups);
        let run = [&["run", "--detach"][..], &options, &[&reference, name, "sleep", "600"]].concat();
        containerd.ctr(&run);
        let output = containerd.ctr(&["tasks", "exec", "--exec-id", "x", name, "python3", "-c", LOOK]);
        let mut expected = format!("['0', '{first}', '65536']\n");
        expected += "/usr/bin/python3 0 0\n/etc/shadow 0 42\n/ 0 0\n0\n";
        assert_eq!(output, expected);
    }
    // The image's own tree, and for each container the same with other owners.
    assert_eq!(trees(&peel), 3, "{:?}", mounts_below(peel.store()));
    let fetched = bytes(&registry.counters());
    assert!(fetched * 2 < layer_bytes(&layout, "estargz"), "{fetched}");
    // On the machine, each has written as one of its own users.
    let mut owners = Vec::new();
    for snapshot in std::fs::read_dir(peel.store().join("snapshots")).unwrap() {
        let changes = snapshot.unwrap().path().join("fs");
        if let Ok(made) = changes.join("made").metadata() {
            let motd = changes.join("etc/motd").metadata().unwrap();
            owners.push([made.uid(), made.gid(), motd.uid(), changes.metadata().unwrap().uid()]);
        }
    }
    owners.sort_unstable();
    assert_eq!(owners, [[100_005, 200_006, 100_000, 100_000], [300_005, 400_006, 300_000, 300_000]]);

    for name in ["one", "two"] {
        containerd.ctr(&["tasks", "kill", "--signal", "SIGKILL", name]);
        let removed = containerd.run(&["tasks", "rm", "--force", name]);
        assert!(removed.code == Some(0) || removed.stderr.contains("not found"), "{removed:?}");
        containerd.ctr(&["containers", "rm", name]);
    }
    containerd.ctr(&["images", "rm", "--sync", &reference]);
    assert_eq!(containerd.snapshots().lines().count(), 1, "{}", containerd.snapshots());
    assert_eq!(trees(&peel), 0, "{}", daemon.log());
    daemon.terminate();
    peel.wait_for_servers_to_end();
}

#[test]
fn a_container_that_is_started_again_sees_its_owners_though_the_server_of_its_tree_was_killed() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, _) = super::small_image(&peel, &registry, Form::ESTARGZ, Form::GZIP);
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let options = mapped("0:100000:65536", "0:100000:65536");
    // Nothing in the image can run; its container and snapshot are made all the same.
    let run = [&["run"][..], &options, &[&reference, "killed", "/absent"]].concat();
    assert_ne!(containerd.run(&run).code, Some(0));
    let looks = Cell::new(0);
    // Of the layers that are lazy, and of the one that containerd unpacked.
    let owners = || {
        let snapshots = peel.store().join("snapshots").read_dir().unwrap();
        let mut places: Vec<_> = snapshots
            .filter_map(|snapshot| snapshot.unwrap().path().join("lower").read_dir().ok())
            .flatten()
            .map(|place| place.unwrap().path())
            .collect();
        places.sort();
        // What nobody has looked for the kernel asks the server for.
        let alive = |place: &&PathBuf| {
            let looked_for = place.join(format!("absent{}", looks.replace(looks.get() + 1)));
            looked_for.metadata().is_err_and(|error| error.kind() == ErrorKind::NotFound)
        };
        places.iter().filter(alive).map(|place| place.metadata().unwrap().uid()).collect::<Vec<_>>()
    };
    assert_eq!(owners(), [100_000; 2]);
    assert_eq!(peel.kill_servers_of(&["serve-stack"]), 1);
    assert_eq!(owners(), [100_000], "the tree is dead, the other is not");
    let target = peel.mount_point();
    let mounts = ["snapshots", "--snapshotter", "peel", "mounts", target.to_str().unwrap(), "killed"];
    containerd.ctr(&mounts);
    assert_eq!(owners(), [100_000; 2]);
    containerd.ctr(&["containers", "rm", "killed"]);
    drop(containerd);
    daemon.terminate();
}
