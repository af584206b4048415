//! Promise: layers with a table of contents are mounted by it alone, and what is read of them is the image. Judged by umoci, on
//! images that other tools made.

use crate::support::image::Layout;
use crate::support::peel::Peel;
use crate::support::registry::FakeRegistry;
use crate::support::tools::{Unpacked, real_images};
use crate::support::tree::{Tree, assert_same};

/// Mounts the python image in that form from a registry. Of the layers no more than that part is fetched to mount it, in one request
/// for each layer; then all of it is read, and is what umoci makes of its ordinary form.
#[track_caller]
fn is_mounted_by_its_tables_of_contents(tag: &str, part: f64) {
    let layout = Layout::open(real_images().join("python"));
    let manifest = layout.manifest(tag);
    let layers = manifest["layers"].as_array().expect("an image has layers");
    let size = |blob: &serde_json::Value| blob["size"].as_u64().expect("a size");
    let layer_bytes: u64 = layers.iter().map(size).sum();
    assert!(layer_bytes > 50_000_000, "the image is smaller than it should be");

    let registry = FakeRegistry::start();
    let reference = layout.serve(&registry, "python", tag);
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    let counters = registry.counters();
    let fetched = (counters.blob_bytes - size(&manifest["config"])) as f64;
    assert!(fetched < part * layer_bytes as f64, "{fetched} of {layer_bytes} bytes were fetched to mount it");
    // The config; a table of contents for each layer; and the small layer with a name that is not UTF-8, which no table can tell.
    assert_eq!(counters.blobs, 1 + layers.len() as u64 + 1, "{:?}", registry.requests());

    let unpacked = Unpacked::by_umoci(&format!("{}:gzip", layout.path().display())).expect("umoci unpacks");
    let expected = Tree::walk(&unpacked.path());
    assert!(expected.nodes.len() > 13_000, "the image is smaller than it should be");
    assert_same(&Tree::walk(mount.path()), &expected, &[]);
    mount.unmount();
}

#[test]
fn zstd_chunked_of_the_stargz_project_is_mounted_by_its_tables_of_contents() {
    is_mounted_by_its_tables_of_contents("zstd-chunked", 0.02);
}

/// This form is made by a tool that Debian stable lacks, so `scripts/images` makes it only with `--all`.
#[test]
fn zstd_chunked_of_the_podman_family_is_mounted_by_its_tables_of_contents() {
    let tag = "zstd-chunked-podman";
    let index = std::fs::read_to_string(real_images().join("python/index.json")).expect("reading a layout");
    if index.contains(&format!("\"{tag}\"")) {
        is_mounted_by_its_tables_of_contents(tag, 0.02);
    } else {
        eprintln!("skipped: the python image has no form {tag}; scripts/images --all makes it");
    }
}
