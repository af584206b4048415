//! Promise: containerd 2.x pulls lazily by itself: its transfer service names the layers to a snapshotter whose section says that it wants to
//! know them, as `peel serve --print-containerd-config` has it. With containerd 1.x there is no such thing, and nothing is tried.

use super::{
    IMPORTS, bytes, chain_ids, has_documents_only, layer_bytes, pulled, served_python,
    shows_what_the_layers_say, small_image, trees,
};
use crate::support::blob::Form;
use crate::support::containerd::{Containerd, Daemon, version};
use crate::support::peel::Peel;
use crate::support::registry::FakeRegistry;

fn pull(containerd: &Containerd, reference: &str) {
    containerd.ctr(&["images", "pull", "--plain-http", "--snapshotter", "peel", reference]);
}

#[test]
fn an_image_is_pulled_lazily_by_containerd_alone_and_lives_as_any_other() {
    if version() < (2, 0) {
        return;
    }
    let (layout, registry, reference) = served_python();
    let all = layer_bytes(&layout, "estargz");
    let peel = Peel::new();
    let daemon = Daemon::start(&peel, &[]);
    let mut containerd = Containerd::start(&peel);
    pull(&containerd, &reference);
    assert!(bytes(&registry.counters()) * 30 < all, "{:?} of {all}", registry.counters());
    has_documents_only(&containerd, &layout, "estargz");
    // Nothing but the image's name keeps it.
    containerd.collect_garbage();
    let output = containerd.run_container(&reference, "one", &["python3", "-c", IMPORTS]);
    assert!(output.starts_with("imported"), "{output}");
    assert!(bytes(&registry.counters()) * 2 < all, "{:?} of {all}", registry.counters());

    containerd.ctr(&["run", "--detach", "--snapshotter", "peel", &reference, "two", "sleep", "600"]);
    containerd.ctr(&["tasks", "exec", "--exec-id", "x", "two", "sh", "-c", "echo new >/etc/motd"]);
    daemon.kill();
    let daemon = Daemon::start(&peel, &[]);
    containerd.restart();
    containerd.wait_for_snapshotter();
    let output = containerd.ctr(&["tasks", "exec", "--exec-id", "y", "two", "cat", "/etc/motd"]);
    assert_eq!(output, "new\n");
    containerd.ctr(&["tasks", "rm", "--force", "two"]);
    containerd.ctr(&["snapshots", "--snapshotter", "peel", "commit", "changed", "two"]);
    let top = chain_ids(&layout, "estargz").pop().unwrap();
    let info = containerd.ctr(&["snapshots", "--snapshotter", "peel", "info", "changed"]);
    assert!(info.contains(&top), "{info}");
    containerd.ctr(&["containers", "rm", "two"]);
    containerd.ctr(&["snapshots", "--snapshotter", "peel", "rm", "changed"]);
    containerd.ctr(&["images", "rm", "--sync", &reference]);
    assert_eq!(containerd.snapshots().lines().count(), 1, "{}", containerd.snapshots());
    assert_eq!((containerd.content().len(), trees(&peel)), (0, 0), "{}", daemon.log());
    daemon.terminate();
    peel.wait_for_servers_to_end();
}

#[test]
fn what_it_pulls_is_shown_as_the_layers_say_whatever_can_be_lazy() {
    if version() < (2, 0) {
        return;
    }
    for (lower, upper, expected) in [
        (Form::ESTARGZ, Form::ESTARGZ, [false; 3]),
        (Form::ESTARGZ, Form::GZIP, [false, false, true]),
        (Form::GZIP, Form::ESTARGZ, [true; 3]),
    ] {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let (reference, layers) = small_image(&peel, &registry, lower, upper);
        let daemon = Daemon::start(&peel, &[]);
        let containerd = Containerd::start(&peel);
        pull(&containerd, &reference);
        assert_eq!(pulled(&peel, &containerd), expected, "{lower:?} {upper:?}\n{}", daemon.log());
        shows_what_the_layers_say(&peel, &containerd, &layers);
        // The snapshotter that everybody else uses is still there.
        containerd.ctr(&["images", "pull", "--plain-http", "--snapshotter", "overlayfs", &reference]);
        assert_eq!(pulled(&peel, &containerd), [true; 3]);
        drop(containerd);
        daemon.terminate();
    }
}
