//! Promise: many containers and many images cost little each, and what they cost is told. How many: 6, or as many as `PEEL_MANY` says; what
//! is measured is printed.

use std::process::Stdio;
use std::time::Instant;

use super::{chain_ids, trees};
use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::containerd::{Containerd, Daemon};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::metrics::Metrics;
use crate::support::peel::{Peel, wait_or_kill};
use crate::support::registry::FakeRegistry;
use crate::support::tools::real_images;

/// Memory that who serves a tree and who holds it have for themselves when nobody reads: 200 of them share a gigabyte.
const PRIVATE_BYTES: f64 = 5e6;
const THREADS: f64 = 12.0;
const DESCRIPTORS: f64 = 56.0;

fn many() -> usize {
    std::env::var("PEEL_MANY").ok().and_then(|many| many.parse().ok()).unwrap_or(6)
}

fn cost(metrics: &Metrics, what: &str) -> f64 {
    metrics.get(&format!("peel_processes{what}{{role=\"mount\"}}"))
}

#[track_caller]
fn is_little(peel: &Peel, what: &str, ask: impl Fn() -> Metrics) {
    let count = peel.servers().len() as f64 - 1.0;
    // What was read and decoded is given back a moment after the last of it. One that many containers read may have more.
    peel.wait_for(|| cost(&ask(), "_private_bytes") <= PRIVATE_BYTES * count.max(4.0));
    let metrics = ask();
    assert_eq!(cost(&metrics, ""), 2.0 * count, "each is served by one, and held by another");
    let [private, threads, descriptors] =
        ["_private_bytes", "_threads", "_open_fds"].map(|what| cost(&metrics, what));
    let daemon = metrics.get("peel_processes_private_bytes{role=\"daemon\"}");
    println!(
        "{what}: {count} trees: {:.1} MB private, {threads} threads, {descriptors} descriptors; daemon {:.1} MB, {} threads, {} descriptors",
        private / 1e6,
        daemon / 1e6,
        metrics.get("peel_processes_threads{role=\"daemon\"}"),
        metrics.get("peel_processes_open_fds{role=\"daemon\"}"),
    );
    assert!(threads <= THREADS * count && descriptors <= DESCRIPTORS * count, "{threads} {descriptors}");
    assert!(daemon < 100e6, "{daemon}");
}

#[test]
fn many_images_mounted_at_once_take_little_each() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let socket = peel.scratch().join("metrics.sock");
    let daemon = Daemon::start(&peel, &["--metrics-address", socket.to_str().unwrap()]);
    let containerd = Containerd::start(&peel);
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let mut tops = Vec::new();
    for number in 0..many() {
        let name = format!("image{number}");
        let content = Content::Noise { seed: number as u64, length: 300_000 };
        let mut entries = vec![TestEntry::directory("./"), TestEntry::file("content", content)];
        entries.extend((0..100).map(|file| TestEntry::file(format!("file{file}"), name.as_str())));
        let image = layout.put_image(&[layout.put_layer(&entries, Form::ESTARGZ)], this_architecture());
        layout.tag(&name, &image);
        containerd.rpull(&layout.serve(&registry, &name, &name));
        tops.push(chain_ids(&layout, &name).pop().unwrap());
    }
    let views: Vec<_> = tops.iter().map(|top| containerd.view(&peel, top)).collect();
    assert_eq!(trees(&peel), many());
    for (number, view) in views.iter().enumerate() {
        assert_eq!(std::fs::read_to_string(view.path().join("file7")).unwrap(), format!("image{number}"));
        assert_eq!(std::fs::read(view.path().join("content")).unwrap().len(), 300_000);
    }
    is_little(&peel, "images", || Metrics::ask(&socket));
    let status = peel.json(&["status", "--snapshots", "--json"]);
    // containerd's garbage collector takes the rows of views away that nobody leased: what is mounted counts.
    let lines = || status.as_array().unwrap().iter().filter(|line| line["remote"] == true);
    assert!(lines().count() == many() && lines().all(|line| line["tree"] == "used"), "{status}");
    drop(views);
    let told = peel.succeed(&["status", "--snapshots"]);
    assert!(told.contains("idle") && !told.contains("used"), "{told}");
    drop(containerd);
    daemon.terminate();
}

#[test]
fn many_containers_of_one_image_are_started_at_once_on_one_tree() {
    let layout = Layout::open(real_images().join("python"));
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let reference = layout.serve(&registry, "python", "estargz");
    let socket = peel.scratch().join("metrics.sock");
    let daemon = Daemon::start(&peel, &["--metrics-address", socket.to_str().unwrap()]);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let begun = Instant::now();
    let starting: Vec<_> = (0..many())
        .map(|number| {
            let name = format!("container{number}");
            let arguments = ["run", "--detach", "--snapshotter", "peel", &reference, &name, "sleep", "600"];
            let mut command = containerd.ctr_command(&arguments);
            command.stdout(Stdio::null()).spawn().expect("starting ctr")
        })
        .collect();
    for client in starting {
        assert!(wait_or_kill(client, "ctr run").success(), "{}\n{}", containerd.log(), daemon.log());
    }
    println!("containers: {} started in {:.1} s", many(), begun.elapsed().as_secs_f64());
    let running = containerd.ctr(&["tasks", "ls"]);
    assert_eq!(running.matches("RUNNING").count(), many(), "{running}");
    assert_eq!(trees(&peel), 1);
    is_little(&peel, "containers", || Metrics::ask(&socket));
    drop(containerd);
    daemon.terminate();
}
