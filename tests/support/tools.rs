//! Other programs that tests ask: umoci unpacks images, docker-registry serves them, skopeo puts them there. All are Debian
//! packages that `scripts/setup` installs.

use super::image::Layout;
use super::peel::{run_to_end, wait_or_kill};
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// The folder of real images, as `scripts/images` makes it.
pub fn real_images() -> PathBuf {
    let directory = std::env::var_os("PEEL_TEST_IMAGES")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/images"), PathBuf::from);
    assert!(
        directory.join("python/index.json").exists(),
        "no images in {}: run scripts/images first, or name their folder in PEEL_TEST_IMAGES",
        directory.display()
    );
    directory
}

/// An image unpacked by umoci, the OCI project's reference tool.
pub struct Unpacked {
    bundle: TempDir,
}

impl Unpacked {
    /// `image` is `PATH:TAG`.
    pub fn by_umoci(image: &str) -> Result<Unpacked, String> {
        let bundle = tempfile::Builder::new().prefix("peel-umoci-").tempdir().expect("making a directory");
        let mut command = Command::new("umoci");
        command.args(["--log", "error", "unpack", "--image", image]).arg(bundle.path().join("bundle"));
        let outcome = run_to_end(command, bundle.path());
        if outcome.code == Some(0) { Ok(Unpacked { bundle }) } else { Err(outcome.stderr) }
    }

    pub fn path(&self) -> PathBuf {
        self.bundle.path().join("bundle/rootfs")
    }
}

/// A real registry on a free port of this machine, with nothing in it.
pub struct Registry {
    process: Option<Child>,
    port: u16,
    directory: TempDir,
}

impl Registry {
    pub fn start() -> Registry {
        let directory =
            tempfile::Builder::new().prefix("peel-registry-").tempdir().expect("making a directory");
        // A port that was free a moment ago; whoever else takes it makes the registry exit, and then another one is tried.
        for _ in 0..20 {
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .expect("binding a free port")
                .port();
            if let Some(process) = serve(directory.path(), port) {
                return Registry { process: Some(process), port, directory };
            }
        }
        panic!("docker-registry does not start; is the package docker-registry installed?");
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Copies an image from a layout, bytes unchanged; returns the reference.
    pub fn push(&self, layout: &Path, tag: &str, name: &str) -> String {
        let reference = format!("{}/{name}:{tag}", self.host());
        let mut command = Command::new("skopeo");
        command.args(["copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"]);
        command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{reference}"));
        let outcome = run_to_end(command, self.directory.path());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        reference
    }

    pub fn push_layout(&self, layout: &Layout, tag: &str, name: &str) -> String {
        self.push(layout.path(), tag, name)
    }

    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killing the registry");
            wait_or_kill(process, "docker-registry");
        }
    }

    /// Starts again on the same port with the same data.
    pub fn restart(&mut self) {
        self.stop();
        self.process = Some(serve(self.directory.path(), self.port).expect("the port is still free"));
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Starts a registry and waits until it says that it listens; [`None`] if it cannot.
fn serve(directory: &Path, port: u16) -> Option<Child> {
    let data = directory.join("data");
    let configuration = format!(
        "version: 0.1\nlog:\n  level: info\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
         http:\n  addr: 127.0.0.1:{port}\n",
        data.display()
    );
    let file = directory.join("registry.yml");
    fs::write(&file, configuration).expect("writing the registry's configuration");
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process = command.spawn().ok()?;
    let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
    let listens = lines.by_ref().map_while(Result::ok).any(|line| line.contains("listening on"));
    if !listens {
        let _ = process.wait();
        return None;
    }
    // Its log goes on; somebody has to read it, or it would block.
    std::thread::spawn(move || lines.for_each(drop));
    Some(process)
}
