//! Other programs that tests ask: umoci unpacks images, docker-registry serves them, skopeo puts them there. All are Debian
//! packages that `scripts/setup` installs.

use super::docker_registry::{DockerRegistry, Options};
use super::peel::run_to_end;
use std::path::{Path, PathBuf};
use std::process::Command;
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

/// Copies an image from a layout to a registry, bytes unchanged; returns the reference.
pub fn push(layout: &Path, tag: &str, registry: &DockerRegistry, name: &str) -> String {
    let reference = format!("{}/{name}:{tag}", registry.url_host());
    let scratch = tempfile::tempdir().expect("making a directory");
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--all", "--preserve-digests", "--dest-tls-verify=false"]);
    command.arg(format!("oci:{}:{tag}", layout.display())).arg(format!("docker://{reference}"));
    let outcome = run_to_end(command, scratch.path());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    reference
}

/// A real, empty registry.
pub fn docker_registry() -> DockerRegistry {
    DockerRegistry::start(Options::default())
        .expect("the Debian package docker-registry is installed (scripts/setup)")
}
