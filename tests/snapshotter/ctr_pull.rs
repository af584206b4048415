//! Promise: `peel ctr-pull` pulls an image into containerd by containerd's own API, so that no other tool is needed to have it lazily;
//! containerd keeps what the image needs and nothing else, whatever ends the pull.

use super::{
    IMPORTS, bytes, layer_bytes, pulled, served_python, shows_what_the_layers_say, small_image, trees,
};
use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::containerd::{Containerd, Daemon};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::peel::{Peel, kill_and_wait};
use crate::support::registry::{FakeRegistry, Fault};
use std::process::Stdio;

/// How many snapshots containerd knows.
fn snapshots(containerd: &Containerd) -> usize {
    containerd.snapshots().lines().count() - 1
}

#[test]
fn an_image_is_pulled_lazily_without_any_other_tool_kept_and_run() {
    let (layout, registry, reference) = served_python();
    let all = layer_bytes(&layout, "estargz");
    let layers = layout.manifest("estargz")["layers"].as_array().unwrap().len();
    let peel = Peel::new();
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);

    assert_eq!(containerd.ctr_pulled(&peel, &reference, &[]), vec!["lazy"; layers]);
    let counters = registry.counters();
    assert!(bytes(&counters) * 30 < all, "{counters:?} of {all}");
    // Nothing but the image's name keeps it: the lease is gone, and garbage is collected.
    assert_eq!(containerd.leases(), Vec::<String>::new());
    containerd.collect_garbage();
    assert_eq!((snapshots(&containerd), trees(&peel)), (layers, 0));
    let manifest = layout.manifest("estargz");
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap();
        assert!(!containerd.content().iter().any(|have| have == digest), "{digest} was pulled");
    }

    // Once more: what is here is seen, by asking what the name means.
    let before = registry.counters();
    assert_eq!(containerd.ctr_pulled(&peel, &reference, &[]), vec!["known"; layers]);
    let after = registry.counters();
    assert_eq!((after.manifests - before.manifests, after.blobs - before.blobs), (1, 0));

    // All containerds of a machine share the directory of runc: the name is of this test alone.
    let output = containerd.run_container(&reference, "pulled", &["python3", "-c", IMPORTS]);
    assert!(output.starts_with("imported"), "{output}");
    assert!(bytes(&registry.counters()) * 2 < all, "{:?} of {all}", registry.counters());
    containerd.ctr(&["images", "rm", "--sync", &reference]);
    assert_eq!((snapshots(&containerd), containerd.content().len()), (0, 0));
    drop(containerd);
    daemon.terminate();
}

#[test]
fn of_a_pull_each_document_and_each_table_crosses_the_network_once() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, layers) = small_image(&peel, &registry, Form::ESTARGZ, Form::ESTARGZ);
    let containerd = Containerd::start(&peel);
    let address = containerd.address();
    let daemon = Daemon::start(&peel, &["--containerd-address", address.to_str().unwrap()]);
    assert_eq!(containerd.ctr_pulled(&peel, &reference, &[]), ["lazy"; 3]);
    let counters = registry.counters();
    assert_eq!(
        (counters.manifests, counters.blobs),
        (1, 1 + 3),
        "{:?}\n{}",
        registry.requests(),
        daemon.log()
    );
    shows_what_the_layers_say(&peel, &containerd, &layers);
    drop(containerd);
    daemon.terminate();
}

#[test]
fn what_cannot_be_lazy_is_unpacked_by_containerd() {
    const ESTARGZ: Form = Form::ESTARGZ;
    for (lower, upper, options, states) in [
        (ESTARGZ, ESTARGZ, &[][..], ["lazy"; 3]),
        (Form::GZIP, Form::ZSTD, &[], ["unpacked"; 3]),
        (ESTARGZ, Form::GZIP, &[], ["lazy", "lazy", "unpacked"]),
        (Form::GZIP, Form::GZIP, &["--snapshotter", "overlayfs"], ["unpacked"; 3]),
    ] {
        let (peel, registry) = (Peel::new(), FakeRegistry::start());
        let (reference, layers) = small_image(&peel, &registry, lower, upper);
        let daemon = Daemon::start(&peel, &[]);
        let containerd = Containerd::start(&peel);
        assert_eq!(containerd.ctr_pulled(&peel, &reference, options), states, "{lower:?} {upper:?}");
        assert_eq!(containerd.ctr_pulled(&peel, &reference, options), ["known"; 3]);
        // The end of a lease has garbage collected later, which would take a view that nothing keeps: let that be over.
        containerd.collect_garbage();
        assert_eq!(pulled(&peel, &containerd), states.map(|state| state == "unpacked"));
        if options.is_empty() {
            shows_what_the_layers_say(&peel, &containerd, &layers);
            // A pull by containerd's own client finds all of it.
            containerd.ctr(&["images", "pull", "--plain-http", "--snapshotter", "peel", &reference]);
        }
        containerd.ctr(&["images", "rm", "--sync", &reference]);
        assert_eq!((snapshots(&containerd), containerd.content().len()), (0, 0));
        drop(containerd);
        daemon.terminate();
    }
}

#[test]
fn of_an_index_the_image_of_the_platform_is_kept() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let layer = layout.put_layer(&[TestEntry::file("file", "1")], Form::GZIP);
    let image = layout.put_image(std::slice::from_ref(&layer), this_architecture());
    let mut other = layout.put_image(&[], "s390x");
    other["platform"]["architecture"] = "s390x".into();
    let index = layout.put_index(&[other, image.clone()]);
    layout.tag("test", &index);
    let reference = layout.serve(&registry, "many", "test");
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    assert_eq!(containerd.ctr_pulled(&peel, &reference, &[]), ["unpacked"]);
    containerd.collect_garbage();
    let content = containerd.content();
    assert_eq!(content.len(), 4, "index, manifest, config and layer: {content:?}");
    for digest in [&index["digest"], &image["digest"]] {
        assert!(content.iter().any(|have| have == digest.as_str().unwrap()));
    }
    let listed = containerd.ctr(&["images", "ls"]);
    assert!(listed.contains(index["digest"].as_str().unwrap()), "{listed}");
    drop(containerd);
    daemon.terminate();
}

#[test]
fn what_is_wrong_is_told_and_nothing_stays() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let (reference, _) = small_image(&peel, &registry, Form::GZIP, Form::GZIP);
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    let missing = format!("{}/small:missing", registry.url_host());
    let layout = format!("oci:{}:test", peel.scratch().join("layout").display());
    for (reference, options, code, told) in [
        (missing.as_str(), &[][..], 3, "manifest missing"),
        (&layout, &[], 2, "only an image of a registry"),
        (&reference, &["--snapshotter", "none"], 7, "--print-containerd-config"),
        (
            &reference,
            &["--address", "/nonexistent/socket"],
            7,
            "cannot connect to containerd at /nonexistent",
        ),
        (&reference, &["--namespace", ""], 2, "no name of a namespace"),
        (&reference, &["--namespace", "a b"], 7, "refuses"),
    ] {
        let outcome = containerd.ctr_pull(&peel, reference, options);
        assert_eq!(outcome.code, Some(code), "{reference} {options:?}: {outcome:?}");
        assert!(outcome.stderr.contains(told), "{reference} {options:?}: {outcome:?}");
    }
    // A registry that sends something else as a layer, and one that does not send it at all.
    let layout = Layout::open(peel.scratch().join("layout"));
    let digest = layout.manifest("test")["layers"][1]["digest"].as_str().unwrap().to_owned();
    for (fault, code, told) in [(Fault::WrongBytes, 6, "has another digest"), (Fault::Status(404), 3, "404")]
    {
        registry.set_fault(&digest, fault);
        let outcome = containerd.ctr_pull(&peel, &reference, &[]);
        assert_eq!(outcome.code, Some(code), "{outcome:?}");
        assert!(outcome.stderr.contains(told) && outcome.stderr.contains(&digest), "{outcome:?}");
        registry.clear_faults();
    }
    assert_eq!(containerd.leases(), Vec::<String>::new());
    containerd.collect_garbage();
    assert_eq!((snapshots(&containerd), containerd.content().len()), (0, 0));
    assert_eq!(containerd.ctr_pulled(&peel, &reference, &[]), ["unpacked"; 3]);
    drop(containerd);
    daemon.terminate();
}

#[test]
fn a_pull_that_is_killed_leaves_what_the_next_uses_or_its_lease_ends() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let large = Content::Noise { seed: 1, length: 4 << 20 };
    let layers = [TestEntry::file("small", "1"), TestEntry::file("large", large)];
    let layers = layers.map(|entry| layout.put_layer(&[entry], Form::GZIP));
    let image = layout.put_image(&layers, this_architecture());
    layout.tag("test", &image);
    let reference = layout.serve(&registry, "small", "test");
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    for uses_it in [false, true] {
        registry.set_fault_times(&layers[1].digest, Fault::StallAfter(3 << 20), 1);
        let mut command = containerd.ctr_pull_command(&peel, &reference, &[]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Documents, the first layer, a part of the second, and a snapshot for it.
        peel.wait_for(|| containerd.ctr(&["content", "active"]).contains("MB"));
        peel.wait_for(|| containerd.snapshots().contains("extract-"));
        kill_and_wait(child.id() as i32);
        crate::support::peel::wait_or_kill(child, "ctr-pull");
        registry.release();
        let leases = containerd.leases();
        assert!(leases.len() == 1 && leases[0].contains("containerd.io/gc.expire"), "{leases:?}");
        // What nobody has finished stays while the lease lasts, and an image it is not.
        containerd.collect_garbage();
        assert_eq!(snapshots(&containerd), 2, "{}", containerd.snapshots());
        assert_eq!(containerd.ctr(&["images", "ls", "--quiet"]), "");
        if uses_it {
            let before = registry.counters().blob_bytes;
            assert_eq!(containerd.ctr_pulled(&peel, &reference, &[]), ["known", "unpacked"]);
            assert!(
                registry.counters().blob_bytes - before < 3 << 20,
                "it goes on where that one was cut off"
            );
        }
        // As its expiry does.
        let lease = leases[0].split_whitespace().next().unwrap();
        containerd.ctr(&["leases", "delete", "--sync", lease]);
        assert_eq!(containerd.ctr(&["content", "active"]).lines().count(), 1);
        let expected = if uses_it { (2, 4) } else { (0, 0) };
        assert_eq!((snapshots(&containerd), containerd.content().len()), expected);
    }
    drop(containerd);
    daemon.terminate();
}
