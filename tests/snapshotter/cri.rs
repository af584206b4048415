//! Promise: a kubelet that is pointed at `peel serve` for its images has them lazily from registries that demand credentials: those that came with
//! the pull, kept in memory, shown to nobody else and to no file. All by real containerd with its CRI plugin.

use super::{IMPORTS, bytes, layer_bytes, trees};
use crate::support::containerd::{Containerd, Daemon, version};
use crate::support::cri::{Auth, Client, password};
use crate::support::image::{CONFIG, Layout, MANIFEST};
use crate::support::peel::{Peel, run_to_end};
use crate::support::registry::{Authentication, FakeRegistry};
use crate::support::tools::real_images;
use std::path::Path;
use tonic::Code;

const SECRET: &str = "a-secret-word";
/// `user:a-secret-word`, from the `base64` tool.
const ENCODED: &str = "dXNlcjphLXNlY3JldC13b3Jk";

/// Registry, containerd with CRI, and `peel serve` in front of it.
struct Node {
    registry: FakeRegistry,
    layout: Layout,
    peel: Peel,
    daemon: Option<Daemon>,
    containerd: Containerd,
}

impl Node {
    fn start(authentication: Authentication) -> Node {
        let layout = Layout::open(real_images().join("python"));
        let registry = FakeRegistry::start();
        layout.serve(&registry, "python", "estargz");
        let peel = Peel::new();
        let pause = pause(&registry, &layout);
        let containerd = Containerd::configured(&peel, &[], &cri_configuration(&pause));
        registry.require(authentication);
        let mut node = Node { registry, layout, peel, daemon: None, containerd };
        node.restart_daemon();
        node
    }

    fn python(&self) -> String {
        format!("{}/python:estargz", self.registry.url_host())
    }

    fn pause(&self) -> String {
        format!("{}/pause:test", self.registry.url_host())
    }

    fn restart_daemon(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.terminate();
        }
        let (address, containerd) = (self.peel.scratch().join("peel.sock"), self.containerd.address());
        let mut command = self.peel.command(&["serve", "--address", address.to_str().unwrap()]);
        // Whatever is said of anything: no secret may be among it.
        command.arg("--containerd-address").arg(containerd).env("PEEL_LOG", "trace");
        self.daemon = Some(Daemon::start_by(command, &self.peel));
        self.containerd.wait_for_snapshotter();
    }

    /// As a kubelet speaks to its image service.
    fn images(&self) -> Client {
        Client::connect(&self.peel.scratch().join("peel.sock"))
    }

    /// As a kubelet speaks to its container runtime.
    fn runtime(&self) -> Client {
        Client::connect(&self.containerd.address())
    }

    fn fetched(&self) -> u64 {
        bytes(&self.registry.counters())
    }

    /// No file of the store, and no log, has a secret in it.
    #[track_caller]
    fn keeps_no_secret(&self) {
        let secrets = [SECRET, ENCODED].map(str::as_bytes);
        let (mut left, mut files) = (vec![self.peel.scratch().to_owned()], 0);
        while let Some(path) = left.pop() {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            // What is mounted is an image's own.
            if metadata.is_dir() && !path.to_string_lossy().contains("/snapshots/") {
                left.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
            } else if metadata.is_file() && metadata.len() < 64 << 20 {
                let content = std::fs::read(&path).unwrap_or_default();
                let has = |secret: &&[u8]| content.windows(secret.len()).any(|window| window == *secret);
                assert!(!secrets.iter().any(has), "{}", path.display());
                files += 1;
            }
        }
        assert!(files > 10, "{files} files were looked at");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let told = self.daemon.as_ref().map(Daemon::log).unwrap_or_default();
            let ours: Vec<&str> = told.lines().filter(|line| line.contains(" peelfs")).collect();
            eprintln!("{}\n{}\n{}", self.containerd.log(), ours.join("\n"), logs(self.peel.store()));
        }
    }
}

/// An image that does nothing, as a pod's first container needs one: python's, with another command.
fn pause(registry: &FakeRegistry, layout: &Layout) -> String {
    let mut manifest = layout.manifest("estargz");
    let digest = manifest["config"]["digest"].as_str().unwrap();
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(layout.blob_path(digest)).unwrap()).unwrap();
    config["config"]["Entrypoint"] = serde_json::json!(["sleep", "infinity"]);
    config["config"]["Cmd"] = serde_json::Value::Null;
    manifest["config"] = registry.descriptor(CONFIG, &registry.put_blob(config.to_string()));
    registry.put_manifest("pause", "test", MANIFEST, manifest.to_string().as_bytes());
    format!("{}/pause:test", registry.url_host())
}

/// Pods on the host's network, by peel. What CRI is told besides depends on the machine: no network plugins, no right to change scores.
fn cri_configuration(pause: &str) -> String {
    if version() >= (2, 0) {
        format!(
            "[plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"peel\"\ndisable_snapshot_annotations = false\n\
             [plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{pause}\"\n\
             [plugins.\"io.containerd.cri.v1.runtime\"]\nrestrict_oom_score_adj = true\ndisable_apparmor = true\n\
             [plugins.\"io.containerd.cri.v1.runtime\".cni]\nconf_dir = \"DIRECTORY/cni\"\n"
        )
    } else {
        format!(
            "[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{pause}\"\nrestrict_oom_score_adj = true\n\
             disable_apparmor = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"peel\"\n\
             disable_snapshot_annotations = false\n\
             [plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"DIRECTORY/cni\"\n"
        )
    }
}

fn basic() -> Authentication {
    Authentication::Basic(format!("user:{SECRET}"))
}

/// Tokens that are worn out soon, so that credentials are needed again and again.
fn token() -> Authentication {
    Authentication::Token {
        login: Some(format!("user:{SECRET}")),
        identity_token: None,
        uses: 20,
        realm: None,
    }
}

fn encoded() -> Option<Auth> {
    Some(Auth { auth: ENCODED.to_owned(), ..Auth::default() })
}

#[test]
fn a_pod_runs_lazily_by_the_credentials_of_its_pulls() {
    for (authentication, auth) in [(basic(), encoded()), (token(), password("user", SECRET))] {
        let mut node = Node::start(authentication);
        let all = layer_bytes(&node.layout, "estargz");
        let (images, runtime) = (node.images(), node.runtime());
        for wrong in [None, password("user", "wrong")] {
            let refused = images.pull(&node.python(), wrong).unwrap_err();
            assert!(refused.message().contains("401") || refused.message().contains("uthoriz"), "{refused}");
        }
        images.pull(&node.pause(), auth.clone()).unwrap();
        let id = images.pull(&node.python(), auth.clone()).unwrap();
        assert!(node.fetched() * 20 < all, "{} of {all}", node.fetched());
        let known = images.images().unwrap();
        let known = known.iter().find(|image| image.id == id).unwrap();
        assert_eq!(known.repo_tags, [node.python()]);

        let (sandbox, container) = runtime.run_pod("one", &node.python()).unwrap();
        let (output, code) = runtime.exec(&container, &["python3", "-c", IMPORTS]).unwrap();
        assert!(output.starts_with("imported") && code == 0, "{output}");
        assert!(node.fetched() * 2 < all, "{} of {all}", node.fetched());
        // Another program serves from now on, and asks for credentials before it needs them.
        let upgrade = node.peel.command_of(&node.peel.other_program(), &["upgrade", "--all"]);
        let outcome = run_to_end(upgrade, node.peel.scratch());
        assert_eq!(outcome.code, Some(0), "{outcome:?}");
        assert!(outcome.stdout.contains("served by this program now"), "{outcome:?}");
        // The daemon forgets, and the container reads on: who serves its tree remembers.
        node.restart_daemon();
        let before = node.fetched();
        let more = "import decimal, csv, email, html, unittest; print(1)";
        assert_eq!(runtime.exec(&container, &["python3", "-c", more]).unwrap(), ("1\n".to_owned(), 0));
        assert!(node.fetched() > before, "it was not here");

        runtime.remove_pod(&sandbox).unwrap();
        let images = node.images();
        for image in [node.python(), node.pause()] {
            images.remove_image(&image).unwrap();
        }
        assert!(images.images().unwrap().iter().all(|image| image.id != id));
        node.keeps_no_secret();
        let (peel, daemon) = (&node.peel, node.daemon.take());
        peel.wait_for(|| trees(peel) == 0);
        daemon.unwrap().terminate();
    }
}

#[test]
fn without_credentials_reading_is_an_error_until_the_image_is_pulled_again() {
    let mut node = Node::start(token());
    let (images, runtime) = (node.images(), node.runtime());
    images.pull(&node.pause(), encoded()).unwrap();
    images.pull(&node.python(), encoded()).unwrap();
    // A daemon that was restarted knows nothing, and no process serves the tree yet.
    node.restart_daemon();
    let failed = runtime.run_pod("two", &node.python()).unwrap_err();
    assert!(!failed.message().contains(SECRET), "{failed}");
    let logs = logs(node.peel.store());
    assert!(logs.contains("pull the image again") && logs.contains("kept in memory only"), "{logs}");
    let images = node.images();
    images.pull(&node.pause(), encoded()).unwrap();
    images.pull(&node.python(), encoded()).unwrap();
    let (sandbox, container) = runtime.run_pod("three", &node.python()).unwrap();
    let (output, _) = runtime.exec(&container, &["python3", "-c", IMPORTS]).unwrap();
    assert!(output.starts_with("imported"), "{output}");
    runtime.remove_pod(&sandbox).unwrap();
    node.keeps_no_secret();
    node.daemon.take().unwrap().terminate();
}

/// What those said that serve trees.
fn logs(store: &Path) -> String {
    let entries = store
        .join("log")
        .read_dir()
        .map(|entries| entries.flatten().collect())
        .unwrap_or_else(|_| Vec::new());
    entries.iter().map(|entry| std::fs::read_to_string(entry.path()).unwrap_or_default()).collect()
}

#[test]
fn calls_are_passed_on_and_one_that_cannot_be_says_why() {
    let peel = Peel::new();
    let containerd = Containerd::configured(&peel, &[], &cri_configuration("pause"));
    let address = peel.scratch().join("peel.sock");
    let serve = |containerd: &Path| {
        let mut command = peel.command(&["serve", "--address", address.to_str().unwrap()]);
        command.arg("--containerd-address").arg(containerd);
        Daemon::start_by(command, &peel)
    };
    let nowhere = peel.scratch().join("nowhere");
    let daemon = serve(&nowhere);
    let client = Client::connect(&address);
    for refused in [client.images().err(), client.pull("a", None).err(), client.remove_image("a").err()] {
        let refused = refused.unwrap();
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains(nowhere.to_str().unwrap()), "{refused}");
        assert!(refused.message().contains("No such file"), "{refused}");
    }
    daemon.terminate();
    let daemon = serve(&containerd.address());
    let client = Client::connect(&address);
    assert_eq!(client.images().unwrap(), []);
    // What we do not know is answered by who might.
    let unknown = client.call_what_is_not_there(10).unwrap_err();
    assert_eq!(unknown.code(), Code::Unimplemented, "{unknown}");
    assert!(unknown.message().contains("NoSuchMethod"), "{unknown}");
    client.remove_image("nothing.example/of:that-name").unwrap();
    // A message that nobody would hold.
    let long = client.pull(&"x".repeat(17 << 20), None).unwrap_err();
    assert_eq!(long.code(), Code::ResourceExhausted, "{long}");
    assert_eq!(client.images().unwrap(), [], "it goes on");
    // containerd is restarted: the next call finds it again.
    let mut containerd = containerd;
    containerd.restart();
    assert_eq!(client.images().unwrap(), []);
    let itself = peel.run(&["serve", "--address", "/run/x", "--containerd-address", "/run/x"]);
    assert!(itself.code == Some(2) && itself.stderr.contains("its own"), "{itself:?}");
    daemon.terminate();
}

#[test]
fn what_a_registry_has_is_had_from_the_hosts_that_stand_for_it() {
    let layout = Layout::open(real_images().join("python"));
    let (away, mirror) = (FakeRegistry::start(), FakeRegistry::start());
    layout.serve(&mirror, "python", "estargz");
    mirror.require(basic());
    let peel = Peel::new();
    let hosts = peel.scratch().join("hosts");
    std::fs::create_dir_all(hosts.join("registry.invalid_5000_")).unwrap();
    let gone = away.url_host();
    drop(away);
    let file = format!("[host.'http://{gone}']\n[host.'http://{}']\n", mirror.url_host());
    std::fs::write(hosts.join("registry.invalid_5000_/hosts.toml"), file).unwrap();
    let config_path = match version() >= (2, 0) {
        true => "[plugins.\"io.containerd.cri.v1.images\".registry]\nconfig_path = \"HOSTS\"\n",
        false => "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"HOSTS\"\n",
    };
    let config_path = config_path.replace("HOSTS", hosts.to_str().unwrap());
    let containerd = Containerd::configured(&peel, &[], &(cri_configuration("pause") + &config_path));
    let address = peel.scratch().join("peel.sock");
    let mut command = peel.command(&["serve", "--address", address.to_str().unwrap()]);
    command.arg("--containerd-address").arg(containerd.address()).arg("--hosts-dir").arg(&hosts);
    let daemon = Daemon::start_by(command, &peel);
    let image = "registry.invalid:5000/python:estargz";
    Client::connect(&address)
        .pull(image, encoded())
        .unwrap_or_else(|error| panic!("{error}\n{}", daemon.log()));
    let all = layer_bytes(&layout, "estargz");
    assert!(bytes(&mirror.counters()) * 20 < all, "{:?} of {all}", mirror.counters());
    // With what CRI pulled, `ctr` runs a container.
    let run = ["run", "--rm", "--snapshotter", "peel", image, "of-a-mirror", "python3", "-c", IMPORTS];
    let ran = containerd.run_in_kubernetes(&run);
    assert!(ran.stdout.starts_with("imported"), "{ran:?}");
    drop(containerd);
    daemon.terminate();
}
