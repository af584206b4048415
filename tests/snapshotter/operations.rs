//! Promise: whoever operates a machine sees what `peel serve` does, and it looks after itself: numbers are the truth, trees that nobody uses
//! go away and come back, and a registry that goes silent ends no wait but its own.

use std::net::TcpStream;
use std::process::{Child, Command, Stdio};

use super::{chain_ids, shows_what_the_layers_say, small_image, trees};
use crate::support::archive::TestEntry;
use crate::support::blob::Form;
use crate::support::containerd::{Containerd, Daemon, version};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::metrics::{Metrics, http};
use crate::support::peel::{Peel, run_to_end, wait_or_kill};
use crate::support::registry::{FakeRegistry, Fault};

const ESTARGZ: Form = Form::ESTARGZ;

/// An image of one layer with a file that is not fetched with the table of contents; its reference and the digest of the layer.
fn image_with_content(
    peel: &Peel,
    registry: &FakeRegistry,
    name: &str,
    content: &Content,
) -> (String, String) {
    let mut layout = Layout::create(peel.scratch().join(name));
    let entries = [
        TestEntry::directory("./"),
        TestEntry::file(name, "little"),
        TestEntry::file("content", content.clone()),
    ];
    let layers = [layout.put_layer(&entries, ESTARGZ)];
    let image = layout.put_image(&layers, this_architecture());
    layout.tag("test", &image);
    (layout.serve(registry, name, "test"), layers[0].digest.to_string())
}

fn top(peel: &Peel, layout: &str) -> String {
    chain_ids(&Layout::open(peel.scratch().join(layout)), "test").pop().unwrap()
}

#[test]
fn numbers_tell_what_happened_and_outlast_whoever_counted_them() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let content = Content::Noise { seed: 3, length: 600_000 };
    let (reference, layer) = image_with_content(&peel, &registry, "one", &content);
    let socket = peel.scratch().join("metrics.sock");
    let options = ["--metrics-address", socket.to_str().unwrap()];
    let daemon = Daemon::start(&peel, &options);
    let containerd = Containerd::start(&peel);
    let ask = || Metrics::ask(&socket);
    let fresh = ask();
    assert_eq!(fresh.get("peel_processes{role=\"daemon\"}"), 1.0);
    assert!(fresh.get("peel_processes_private_bytes{role=\"daemon\"}") > 100_000.0);
    assert_eq!(fresh.sum(&["peel_registry_requests_total"]), 0.0);

    containerd.rpull(&reference);
    let pulled = ask();
    pulled.has_not_fallen_behind(&fresh);
    let host = format!("host=\"{}\"", registry.url_host());
    let calls = "peel_snapshotter_calls_total{method=\"Prepare\",code=\"AlreadyExists\"}";
    assert_eq!(pulled.get(calls), 1.0);
    assert_eq!(pulled.get("peel_snapshots{kind=\"committed\",content=\"remote\"}"), 1.0);
    assert_eq!(pulled.sum(&["peel_registry_requests_total", &host, "kind=\"manifest\"", "2xx"]), 1.0);
    let by_layer = |metrics: &Metrics| {
        metrics.sum(&["peel_registry_requests_total", &host, "kind=\"blob\"", "status=\"2xx\""])
    };

    // While a view is read, nobody but us asks the registry: its own count is the oracle.
    registry.reset_counters();
    registry.set_fault_times(&layer, Fault::Status(503), 1);
    let view = containerd.view(&peel, &top(&peel, "one"));
    assert_eq!(std::fs::read(view.path().join("content")).unwrap(), content.to_vec());
    let asked = registry.counters();
    peel.wait_for(|| ask().get("peel_read_bytes_total") >= 600_000.0);
    let read = ask();
    read.has_not_fallen_behind(&pulled);
    assert_eq!(read.sum(&["peel_registry_requests_total", &host, "status=\"5xx\""]), 1.0);
    assert_eq!(read.get("peel_registry_retries_total"), 1.0);
    assert_eq!(by_layer(&read) - by_layer(&pulled) + 1.0, asked.blobs as f64);
    let received = |metrics: &Metrics| metrics.get("peel_registry_received_bytes_total");
    assert_eq!(received(&read) - received(&pulled), asked.blob_bytes as f64);
    assert!(read.get("peel_decoded_bytes_total") >= 600_000.0);
    assert!(read.get("peel_reads_total{answer=\"fetched\"}") >= 1.0);
    assert_eq!(read.sum(&["peel_read_errors_total"]), 0.0);
    assert_eq!(read.get("peel_mounts{state=\"live\"}"), 1.0);
    assert_eq!(read.get("peel_processes{role=\"mount\"}"), 2.0, "who serves it, and who holds it");
    assert!(read.get("peel_processes_threads{role=\"mount\"}") >= 2.0);

    // Whoever is killed, and whoever ends, leaves what he counted.
    drop(view);
    let counted = |metrics: &Metrics| {
        let all = ["peel_read_bytes_total", "peel_decoded_bytes_total", "peel_registry_received_bytes_total"];
        all.map(|name| metrics.get(name))
    };
    assert_eq!(peel.kill_servers(), 2, "the daemon, and who serves the tree");
    daemon.kill();
    let daemon = Daemon::start(&peel, &options);
    let after = ask();
    assert_eq!(counted(&after), counted(&read));
    assert_eq!(after.get(calls), 0.0, "what a daemon has answered is its own");
    containerd.wait_for_snapshotter();
    drop(containerd);
    daemon.terminate();
    let daemon = Daemon::start(&peel, &options);
    assert_eq!(counted(&ask()), counted(&read));
    daemon.terminate();
    assert!(!socket.exists());
}

#[test]
fn numbers_are_told_on_this_machine_alone_and_nothing_else_is() {
    let peel = Peel::new();
    for address in ["0.0.0.0:0", "192.0.2.1:9000", "somewhere"] {
        let refused = peel.run(&["serve", "--metrics-address", address]);
        assert!(refused.code == Some(2) && refused.stderr.contains("loopback"), "{refused:?}");
    }
    let daemon = Daemon::start(&peel, &["--metrics-address", "127.0.0.1:0"]);
    peel.wait_for(|| daemon.log().contains("telling numbers"));
    let log = daemon.log();
    let port = log
        .split("127.0.0.1:")
        .nth(1)
        .and_then(|rest| rest.split(|letter: char| !letter.is_ascii_digit()).next());
    let port: u16 = port.unwrap_or_else(|| panic!("{log}")).parse().unwrap();
    let ask = |request: &str| http(TcpStream::connect(("127.0.0.1", port)).unwrap(), request);
    for (request, status) in
        [("GET /metrics", "200"), ("GET /", "404"), ("GET /metrics/x", "404"), ("POST /metrics", "405")]
    {
        let (head, _) = ask(request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {head}");
    }
    let (head, body) = ask("HEAD /metrics");
    assert!(head.starts_with("HTTP/1.1 200 ") && body.is_empty(), "{head}");
    daemon.terminate();
}

#[test]
fn a_tree_that_nobody_uses_goes_away_and_comes_back() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let contents = [Content::Noise { seed: 1, length: 300_000 }, Content::Noise { seed: 2, length: 300_000 }];
    let socket = peel.scratch().join("metrics.sock");
    let options = ["--idle-timeout", "1", "--metrics-address", socket.to_str().unwrap()];
    let daemon = Daemon::start(&peel, &options);
    let containerd = Containerd::start(&peel);
    let names = ["used", "idle"];
    for (name, content) in names.iter().zip(&contents) {
        let (reference, _) = image_with_content(&peel, &registry, name, content);
        containerd.rpull(&reference);
    }
    let snapshots =
        |arguments: &[&str]| containerd.ctr(&[&["snapshots", "--snapshotter", "peel"], arguments].concat());
    // One is mounted as an overlay, as a container's is; of the other somebody only asked for the mounts.
    let point = peel.mount_point();
    let commands =
        snapshots(&["prepare", "--target", point.to_str().unwrap(), "a container", &top(&peel, "used")]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &commands]);
    assert_eq!(run_to_end(shell, peel.scratch()).code, Some(0), "{commands}");
    snapshots(&["prepare", "never started", &top(&peel, "idle")]);
    peel.wait_for(|| trees(&peel) == 1);
    assert_eq!(std::fs::read(point.join("content")).unwrap(), contents[0].to_vec());
    let unmounted = || Metrics::ask(&socket).get("peel_trees_idle_unmounted_total");
    peel.wait_for(|| unmounted() == 1.0);

    // It comes back when its mounts are asked for, and goes again; the other stays meanwhile.
    for round in [2.0, 3.0] {
        let told = snapshots(&["mounts", peel.mount_point().to_str().unwrap(), "never started"]);
        assert!(told.contains("remote-"), "{told}");
        peel.wait_for(|| unmounted() == round);
        assert_eq!(std::fs::read(point.join("used")).unwrap(), b"little");
        assert_eq!(trees(&peel), 1);
    }

    // Its container ends, and starts again.
    rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty()).unwrap();
    peel.wait_for(|| trees(&peel) == 0);
    let commands = snapshots(&["mounts", point.to_str().unwrap(), "a container"]);
    let mut shell = Command::new("sh");
    shell.args(["-c", &commands]);
    assert_eq!(run_to_end(shell, peel.scratch()).code, Some(0), "{commands}");
    assert_eq!(std::fs::read(point.join("content")).unwrap(), contents[0].to_vec());
    assert_eq!(trees(&peel), 1);
    rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty()).unwrap();
    peel.wait_for(|| trees(&peel) == 0);
    drop(containerd);
    daemon.terminate();
    peel.wait_for_servers_to_end();
}

#[test]
fn a_registry_that_goes_silent_ends_no_wait_but_its_own() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let content = Content::Noise { seed: 5, length: 300_000 };
    let (reference, layer) = image_with_content(&peel, &registry, "one", &content);
    let (second, second_layer) =
        image_with_content(&peel, &registry, "two", &Content::Noise { seed: 6, length: 300_000 });
    let options = ["--network-timeout", "1", "--read-timeout", "1"];
    let daemon = Daemon::start(&peel, &options);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let speaks_again = || {
        registry.clear_faults();
        registry.release();
    };

    // In Prepare: the layer is left to containerd, which gets it by itself.
    registry.set_fault(&second_layer, Fault::Stall);
    let client = start(containerd.rpull_command(&second));
    peel.wait_for(|| daemon.log().contains("the layer cannot be read lazily; containerd unpacks it"));
    speaks_again();
    assert!(wait_or_kill(client, "rpull").success(), "{}", daemon.log());

    // In a read: an error, and the next read is none.
    let view = containerd.view(&peel, &top(&peel, "one"));
    registry.set_fault(&layer, Fault::Stall);
    let error = std::fs::read(view.path().join("content")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    speaks_again();
    assert_eq!(std::fs::read(view.path().join("content")).unwrap(), content.to_vec());
    drop(view);

    // In Mounts: what is damaged has to come from the registry. Not available, and why; nothing is left of it, and the next time it is.
    daemon.kill();
    peel.kill_servers();
    let layers = std::fs::read_dir(peel.store().join("layers/sha256")).unwrap();
    for path in layers.map(|entry| entry.unwrap().path().join("table")).filter(|table| table.exists()) {
        std::fs::write(path, "damaged").unwrap();
    }
    for tree in std::fs::read_dir(peel.store().join("trees")).unwrap().map(|entry| entry.unwrap().path()) {
        assert!(tree.is_dir() || std::fs::remove_file(tree).is_ok());
    }
    registry.set_fault(&layer, Fault::Stall);
    let daemon = Daemon::start(&peel, &options);
    containerd.wait_for_snapshotter();
    let before = containerd.snapshots();
    let prepare = ["snapshots", "--snapshotter", "peel", "prepare", "container", &top(&peel, "one")];
    let refused = containerd.run(&prepare);
    assert_ne!(refused.code, Some(0), "{refused:?}");
    // Newer clients tell the code no more.
    let code = if version() < (2, 0) { "unavailable" } else { "" };
    for words in ["is not available", code, &layer, &registry.url_host()] {
        assert!(refused.stderr.contains(words), "{words}: {refused:?}\n{}", daemon.log());
    }
    assert_eq!(containerd.snapshots(), before);
    speaks_again();
    containerd.ctr(&prepare);
    drop(containerd);
    daemon.terminate();
}

#[test]
fn a_containerd_that_is_killed_while_it_pulls_goes_on_when_it_is_there_again() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    // The lowest is lazy, containerd pulls what lies above.
    let (reference, layers) = small_image(&peel, &registry, ESTARGZ, Form::GZIP);
    let manifest = Layout::open(peel.scratch().join("layout")).manifest("test");
    let layer = |number: usize| manifest["layers"][number]["digest"].as_str().unwrap().to_owned();
    let daemon = Daemon::start(&peel, &[]);
    let mut containerd = Containerd::start(&peel);
    // While Prepare waits for us, and while the layer above comes.
    for number in [0, 2] {
        registry.set_fault(&layer(number), Fault::Stall);
        let client = start(containerd.rpull_command(&reference));
        registry.wait_for_stalled(1);
        containerd.kill_and_start();
        registry.clear_faults();
        registry.release();
        assert!(!wait_or_kill(client, "rpull").success());
    }
    containerd.rpull(&reference);
    shows_what_the_layers_say(&peel, &containerd, &layers);
    // Nothing stays of what was broken off.
    containerd.ctr(&["images", "rm", "--sync", &reference]);
    for lease in containerd.leases() {
        containerd.ctr(&["leases", "delete", "--sync", lease.split_whitespace().next().unwrap()]);
    }
    containerd.collect_garbage();
    assert_eq!(containerd.snapshots().lines().count(), 1, "{}", containerd.snapshots());
    drop(containerd);
    daemon.terminate();
    let left = std::fs::read_dir(peel.store().join("snapshots")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).filter(|name| name != "ingest").collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn usage_of_lazy_layers_is_what_lies_on_the_disk() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let content = Content::Noise { seed: 8, length: 3_000_000 };
    let (reference, _) = image_with_content(&peel, &registry, "one", &content);
    let daemon = Daemon::start(&peel, &[]);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let told = || {
        let line = containerd.ctr(&["snapshots", "--snapshotter", "peel", "usage", "-b", &top(&peel, "one")]);
        let numbers: Vec<u64> =
            line.lines().nth(1).unwrap().split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[1])
    };
    let on_disk = || {
        let mut du = Command::new("du");
        du.args(["--summarize", "--block-size=1", "--total"]).arg(peel.store().join("layers/sha256"));
        let bytes = run_to_end(du, peel.scratch()).stdout;
        let mut find = Command::new("find");
        find.arg(peel.store().join("layers/sha256")).args(["-printf", "%b\\n"]);
        let found = run_to_end(find, peel.scratch()).stdout;
        // Without the directory that holds the layer's.
        let mut blocks = found.lines().map(|blocks| blocks.parse::<u64>().unwrap());
        let above = blocks.next().unwrap() * 512;
        let total: u64 = bytes.split_whitespace().next().unwrap().parse().unwrap();
        (total - above, blocks.count() as u64)
    };
    let pulled = told();
    assert_eq!(pulled, on_disk());
    assert!(pulled.0 < 300_000, "{pulled:?}");
    let view = containerd.view(&peel, &top(&peel, "one"));
    assert_eq!(std::fs::read(view.path().join("content")).unwrap(), content.to_vec());
    // The layer is proved now, which may leave something for good: once that is done, both say the same.
    peel.wait_for(|| told() == on_disk() && told().0 > 3_000_000);
    // What a kubelet asks: the file system that `exports.root` names.
    let configuration = peel.succeed(&["serve", "--print-containerd-config"]);
    assert!(configuration.contains(&format!("root = \"{}\"", peel.store().display())), "{configuration}");
    drop(view);
    // What was evicted is not told any more.
    containerd.ctr(&["images", "rm", "--sync", &reference]);
    // Who served the tree has it open until he has ended.
    peel.wait_for(|| peel.servers().len() == 1);
    peel.succeed(&["gc"]);
    let left = std::fs::read_dir(peel.store().join("layers/sha256")).unwrap().count();
    assert_eq!(left, 0);
    drop(containerd);
    daemon.terminate();
}

#[test]
fn the_status_of_layers_is_shown_where_it_was_asked_for_and_listed_nowhere() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let content = Content::Noise { seed: 9, length: 500_000 };
    let (reference, layer) = image_with_content(&peel, &registry, "one", &content);
    let size = registry.descriptor("", &layer.parse().unwrap())["size"].as_u64().unwrap();
    let daemon = Daemon::start(&peel, &["--status-files"]);
    let containerd = Containerd::start(&peel);
    containerd.rpull(&reference);
    let view = containerd.view(&peel, &top(&peel, "one"));
    let status = |root: &std::path::Path| -> serde_json::Value {
        let text = std::fs::read(root.join(format!(".peel/{layer}.json"))).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let told = status(view.path());
    assert_eq!((&told["digest"], &told["size"]), (&layer.as_str().into(), &size.into()));
    assert!(told["fetchedSize"].as_u64().unwrap() < size / 2, "{told}");
    assert_eq!(std::fs::read(view.path().join("content")).unwrap(), content.to_vec());
    // The kernel forgets what it was told.
    peel.wait_for(|| status(view.path())["fetchedSize"].as_u64().unwrap() > size * 9 / 10);
    assert!(status(view.path())["fetchedPercent"].as_f64().unwrap() <= 100.0);
    let names = |path: &std::path::Path| -> Vec<String> {
        let entries = std::fs::read_dir(path).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    };
    assert!(!names(view.path()).contains(&".peel".to_owned()));
    assert_eq!(names(&view.path().join(".peel")), [format!("{layer}.json")]);
    for refused in [".peel/other.json", ".peel/sha256:0.json"] {
        let error = std::fs::read(view.path().join(refused)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{refused}");
    }
    assert!(std::fs::write(view.path().join(format!(".peel/{layer}.json")), "").is_err());
    drop(view);
    drop(containerd);
    daemon.terminate();

    // By itself, too; and not where nobody asked.
    let mount = peel.mount_with(&reference, &["--status-files"]);
    assert_eq!(status(mount.path())["digest"], layer);
    mount.unmount();
    let mount = peel.mount(&reference);
    assert!(!mount.join(".peel").exists());
    mount.unmount();
}

fn start(mut command: Command) -> Child {
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starting a client")
}
