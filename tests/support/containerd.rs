//! A containerd of a test's own, which uses `peel serve`: Debian's, with root, state and socket in a temporary folder. Another one, with its
//! clients, is taken from the directory that `PEEL_TEST_CONTAINERD` names (scripts/verify-containerd).

use super::peel::{Outcome, Peel, is_mount_point, mounts_below, run_to_end, wait_or_kill};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::Duration;
use tempfile::TempDir;

/// The namespace that CRI uses.
const KUBERNETES: &str = "k8s.io";
const LIST: [&str; 4] = ["snapshots", "--snapshotter", "peel", "ls"];
/// Nothing that starts takes as long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where containerd, its clients and its shim are looked for.
static PROGRAMS: LazyLock<String> = LazyLock::new(|| {
    let path = std::env::var("PATH").expect("there is a PATH");
    let other = std::env::var("PEEL_TEST_CONTAINERD").ok();
    other.into_iter().chain([path]).collect::<Vec<_>>().join(":")
});

/// One of these programs.
fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", PROGRAMS.as_str());
    command
}

/// The version of the containerd that the tests use, such as `1.6` or `2.1`.
pub fn version() -> (u32, u32) {
    static VERSION: LazyLock<(u32, u32)> = LazyLock::new(|| {
        let output = program("containerd").arg("--version").output().expect("containerd is installed");
        let text = String::from_utf8(output.stdout).expect("a version is text");
        let version = text.split(' ').nth(2).expect("it is the third word").trim_start_matches('v');
        let numbers: Vec<u32> = version.split('.').map_while(|number| number.parse().ok()).collect();
        (numbers[0], numbers[1])
    });
    *VERSION
}

/// A process that serves until it is told to end.
struct Server {
    child: Option<Child>,
    log: PathBuf,
}

impl Server {
    /// Starts it, and waits until it says that it is ready (sd_notify(3)).
    fn start(mut command: Command, directory: &Path, name: &str) -> Server {
        let (log, notify) = (directory.join(format!("{name}.log")), directory.join(format!("{name}.ready")));
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).expect("a socket to be told at");
        socket.set_read_timeout(Some(PATIENCE)).expect("a deadline");
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        command.env("NOTIFY_SOCKET", &notify).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let server = Server { child: Some(child), log };
        let mut told = [0; 4096];
        let length =
            socket.recv(&mut told).unwrap_or_else(|error| panic!("{name}: {error}\n{}", server.log()));
        assert!(told[..length].windows(7).any(|word| word == b"READY=1"), "{}", server.log());
        server
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().expect("it runs");
        kill_process(Pid::from_child(child), signal).expect("a signal");
    }

    /// Tells it to end, and waits for that.
    fn end(&mut self, signal: Signal) {
        self.signal(signal);
        let child = self.child.take().expect("it runs");
        wait_or_kill(child, &self.log.display().to_string());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// `peel serve`.
pub struct Daemon {
    server: Server,
    address: PathBuf,
}

impl Daemon {
    pub fn start(peel: &Peel, options: &[&str]) -> Daemon {
        let address = peel.scratch().join("peel.sock");
        let mut command = peel.command(&["serve", "--address", address.to_str().unwrap()]);
        command.args(options).env("PEEL_LOG", "peelfs=debug");
        Daemon::start_by(command, peel)
    }

    /// Starts what [`command`](Self::command) gives.
    pub fn start_by(command: Command, peel: &Peel) -> Daemon {
        let address = peel.scratch().join("peel.sock");
        Daemon { server: Server::start(command, peel.scratch(), "serve"), address }
    }

    pub fn address(&self) -> &Path {
        &self.address
    }

    pub fn log(&self) -> String {
        self.server.log()
    }

    pub fn terminate(mut self) {
        self.server.end(Signal::TERM);
    }

    pub fn kill(mut self) {
        self.server.end(Signal::KILL);
    }
}

/// containerd, and its clients. Whatever it has mounted is unmounted when it is dropped, and what it runs is killed.
pub struct Containerd {
    server: Option<Server>,
    directory: TempDir,
}

impl Containerd {
    pub fn start(peel: &Peel) -> Containerd {
        // Nobody in these tests is a kubelet.
        Containerd::configured(
            peel,
            &["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"],
            "",
        )
    }

    /// Without these plugins, and with this at the end of its configuration, in which `DIRECTORY` is its own directory.
    pub fn configured(peel: &Peel, without: &[&str], more: &str) -> Containerd {
        // Short: the names of its sockets are below it.
        let directory =
            tempfile::Builder::new().prefix("ctd-").tempdir_in("/tmp").expect("making a directory");
        let path = directory.path().display();
        let address = peel.scratch().join("peel.sock");
        let proxy =
            peel.succeed(&["serve", "--print-containerd-config", "--address", address.to_str().unwrap()]);
        let nobodys = [
            "io.containerd.internal.v1.opt",
            "io.containerd.snapshotter.v1.aufs",
            "io.containerd.snapshotter.v1.btrfs",
            "io.containerd.snapshotter.v1.devmapper",
            "io.containerd.snapshotter.v1.zfs",
        ];
        let without: Vec<&str> = nobodys.iter().chain(without).copied().collect();
        let configuration_version = if version() >= (2, 0) { 3 } else { 2 };
        let more = more.replace("DIRECTORY", &path.to_string());
        let configuration = format!(
            "version = {configuration_version}\nroot = \"{path}/root\"\nstate = \"{path}/state\"\n\
             disabled_plugins = {without:?}\n\
             [grpc]\naddress = \"{path}/socket\"\n[ttrpc]\naddress = \"{path}/socket.ttrpc\"\n{proxy}{more}"
        );
        fs::write(directory.path().join("config.toml"), configuration).expect("the configuration");
        let mut containerd = Containerd { server: None, directory };
        containerd.start_server();
        containerd
    }

    fn start_server(&mut self) {
        let mut command = program("containerd");
        command.arg("--config").arg(self.directory.path().join("config.toml"));
        self.server = Some(Server::start(command, self.directory.path(), "containerd"));
    }

    /// Lets users who are not root come to the containers' directories, as those of user namespaces must.
    pub fn let_others_pass(&self) {
        use std::os::unix::fs::PermissionsExt;
        let mode = fs::Permissions::from_mode(0o711);
        fs::set_permissions(self.directory.path(), mode).expect("setting the mode of a directory");
    }

    /// Ends it and starts it again; containers run on.
    pub fn restart(&mut self) {
        self.server.take().expect("it runs").end(Signal::TERM);
        self.start_server();
    }

    /// Kills it, and starts it again.
    pub fn kill_and_start(&mut self) {
        self.server.take().expect("it runs").end(Signal::KILL);
        self.start_server();
    }

    pub fn log(&self) -> String {
        self.server.as_ref().map(Server::log).unwrap_or_default()
    }

    /// One of its own: runc keeps the containers of all the machine's containerds together, by namespace and name.
    fn namespace(&self) -> &str {
        self.directory.path().file_name().and_then(|name| name.to_str()).expect("we named it")
    }

    /// Its socket.
    pub fn address(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn client(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = program(name);
        command.arg("--address").arg(self.directory.path().join("socket"));
        command.args(["--namespace", self.namespace()]);
        command.args(arguments).stdin(Stdio::null());
        command
    }

    /// A client, to be started by the caller.
    pub fn ctr_command(&self, arguments: &[&str]) -> Command {
        self.client("ctr", arguments)
    }

    pub fn run(&self, arguments: &[&str]) -> Outcome {
        run_to_end(self.ctr_command(arguments), self.directory.path())
    }

    /// `ctr`, which must succeed; gives its output.
    #[track_caller]
    pub fn ctr(&self, arguments: &[&str]) -> String {
        let outcome = self.run(arguments);
        assert_eq!(
            outcome.code,
            Some(0),
            "ctr {arguments:?}\n{}{}\n{}",
            outcome.stdout,
            outcome.stderr,
            self.log()
        );
        outcome.stdout
    }

    /// `ctr` in the namespace of Kubernetes.
    pub fn run_in_kubernetes(&self, arguments: &[&str]) -> Outcome {
        let mut command = program("ctr");
        command.arg("--address").arg(self.address()).args(["--namespace", KUBERNETES]);
        command.args(arguments).stdin(Stdio::null());
        run_to_end(command, self.directory.path())
    }

    /// `ctr-remote images rpull`, which must succeed: it adds the labels by which layers are found.
    #[track_caller]
    pub fn rpull(&self, reference: &str) {
        let outcome = run_to_end(self.rpull_command(reference), self.directory.path());
        assert_eq!(outcome.code, Some(0), "{}{}\n{}", outcome.stdout, outcome.stderr, self.log());
    }

    /// The same, to be started by the caller.
    pub fn rpull_command(&self, reference: &str) -> Command {
        let arguments = ["images", "rpull", "--plain-http", "--snapshotter", "peel", reference];
        self.client("ctr-remote", &arguments)
    }

    /// `peel ctr-pull`, to be started by the caller; without a snapshotter among the options it is `peel`.
    pub fn ctr_pull_command(&self, peel: &Peel, reference: &str, options: &[&str]) -> Command {
        let mut command = peel.command(&["ctr-pull", reference]);
        command.args(options).env("CONTAINERD_NAMESPACE", self.namespace());
        command.env("CONTAINERD_ADDRESS", self.directory.path().join("socket"));
        command
    }

    pub fn ctr_pull(&self, peel: &Peel, reference: &str, options: &[&str]) -> Outcome {
        run_to_end(self.ctr_pull_command(peel, reference, options), self.directory.path())
    }

    /// The same, which must succeed; gives what became of each layer.
    #[track_caller]
    pub fn ctr_pulled(&self, peel: &Peel, reference: &str, options: &[&str]) -> Vec<String> {
        let outcome = self.ctr_pull(peel, reference, &[options, &["--json"]].concat());
        assert_eq!(outcome.code, Some(0), "{}{}\n{}", outcome.stdout, outcome.stderr, self.log());
        let report: serde_json::Value = serde_json::from_str(&outcome.stdout).expect("a report is JSON");
        let layers = report["layers"].as_array().expect("it has layers").iter();
        layers.map(|layer| layer["state"].as_str().expect("a state").to_owned()).collect()
    }

    /// Has containerd collect all that nothing keeps.
    #[track_caller]
    pub fn collect_garbage(&self) {
        self.ctr(&["leases", "create", "--id", "collect"]);
        self.ctr(&["leases", "delete", "--sync", "collect"]);
    }

    /// The leases that there are, with their labels, one a line.
    pub fn leases(&self) -> Vec<String> {
        self.ctr(&["leases", "ls"]).lines().skip(1).map(str::to_owned).collect()
    }

    /// Runs a container of an image to its end; gives what it wrote.
    #[track_caller]
    pub fn run_container(&self, reference: &str, id: &str, command: &[&str]) -> String {
        let mut arguments = vec!["run", "--rm", "--snapshotter", "peel", reference, id];
        arguments.extend(command);
        self.ctr(&arguments)
    }

    /// The names of the snapshots that containerd knows, one a line.
    pub fn snapshots(&self) -> String {
        self.ctr(&["snapshots", "--snapshotter", "peel", "ls"])
    }

    /// Waits until containerd has found the snapshotter again, which was away: it tries in growing intervals of a few seconds at most.
    #[track_caller]
    pub fn wait_for_snapshotter(&self) {
        let mut outcome = None;
        for _ in 0..1000 {
            let tried = self.run(&LIST);
            // It asks for nothing where it knows of none.
            let tried = if tried.code == Some(0) { self.run_in_kubernetes(&LIST) } else { tried };
            if tried.code == Some(0) {
                return;
            }
            outcome = Some(tried);
        }
        panic!("{outcome:?}\n{}", self.log());
    }

    /// A committed snapshot, to look at.
    #[track_caller]
    pub fn view<'a>(&'a self, peel: &Peel, name: &str) -> View<'a> {
        let view = View { containerd: self, key: format!("view of {name}"), path: peel.mount_point() };
        // What it prints is to be run. Nothing keeps the view from containerd's garbage collector, but what is mounted stays.
        let path = view.path.to_str().unwrap();
        let mount =
            self.ctr(&["snapshots", "--snapshotter", "peel", "view", "--target", path, &view.key, name]);
        let mut shell = Command::new("sh");
        shell.args(["-c", &mount]);
        let outcome = run_to_end(shell, self.directory.path());
        assert_eq!(outcome.code, Some(0), "{mount}: {}", outcome.stderr);
        view
    }

    /// Digests of what is in containerd's content store.
    pub fn content(&self) -> Vec<String> {
        self.ctr(&["content", "ls", "--quiet"]).lines().map(str::to_owned).collect()
    }
}

/// A mounted view, which goes when it is dropped.
pub struct View<'a> {
    containerd: &'a Containerd,
    key: String,
    path: PathBuf,
}

impl View<'_> {
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for View<'_> {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
        let _ = self.containerd.run(&["snapshots", "--snapshotter", "peel", "rm", &self.key]);
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Shims outlive containerd: they are asked to go while it is there.
        if self.server.is_some() {
            let end_all = |run: &dyn Fn(&[&str]) -> Outcome| {
                for task in run(&["tasks", "ls", "--quiet"]).stdout.lines() {
                    run(&["tasks", "rm", "--force", task]);
                }
            };
            end_all(&|arguments| self.run(arguments));
            end_all(&|arguments| self.run_in_kubernetes(arguments));
        }
        drop(self.server.take());
        for mount in mounts_below(self.directory.path()) {
            let _ = unmount(&mount, UnmountFlags::DETACH);
        }
        // A directory in which something stays mounted is left alone by its removal, which stops at it.
        if mounts_below(self.directory.path()).iter().any(|mount| is_mount_point(mount)) {
            eprintln!("something stays mounted below {}", self.directory.path().display());
        }
    }
}
