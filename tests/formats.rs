//! Promise: layers with a table of contents are mounted by it alone, and what is read of them is the image. Judged by umoci, on
//! images that other tools made.

use crate::support::image::Layout;
use crate::support::peel::Peel;
use crate::support::registry::FakeRegistry;
use crate::support::tools::{Unpacked, real_images};
use crate::support::tree::{Tree, assert_same};

/// Requests for blobs that mounting its three layers takes: config, table of contents of each, and once more the small layer, one of
/// whose names is not UTF-8, so that no table can tell it.
const ANNOTATED: u64 = 1 + 3 + 1;
/// Where tables are at the end of the blobs, the small layer is all there with its table.
const AT_THE_END: u64 = 1 + 3;
/// Where they are in another image, those of the two others are asked for after the end of their blobs.
const EXTERNAL: u64 = 1 + 3 + 2;

/// Mounts the python image in that form from a registry. Of the layers no more than that part is fetched to mount it, in so many
/// requests; then all of it is read, and is what umoci makes of its ordinary form.
#[track_caller]
fn is_mounted_by_its_tables_of_contents(tag: &str, part: f64, requests: u64) {
    let layout = Layout::open(real_images().join("python"));
    let manifest = layout.manifest(tag);
    let layers = manifest["layers"].as_array().expect("an image has layers");
    let size = |blob: &serde_json::Value| blob["size"].as_u64().expect("a size");
    let layer_bytes: u64 = layers.iter().map(size).sum();
    assert!(layer_bytes > 50_000_000, "the image is smaller than it should be");

    let registry = FakeRegistry::start();
    let reference = layout.serve(&registry, "python", tag);
    let toc_tag = format!("{tag}-esgztoc");
    if layout.has_tag(&toc_tag) {
        layout.serve(&registry, "python", &toc_tag);
    }
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    let counters = registry.counters();
    let fetched = (counters.blob_bytes - size(&manifest["config"])) as f64;
    assert!(fetched < part * layer_bytes as f64, "{fetched} of {layer_bytes} bytes were fetched to mount it");
    assert_eq!(counters.blobs, requests, "{:?}", registry.requests());

    let unpacked = Unpacked::by_umoci(&format!("{}:gzip", layout.path().display())).expect("umoci unpacks");
    let expected = Tree::walk(&unpacked.path());
    assert!(expected.nodes.len() > 13_000, "the image is smaller than it should be");
    assert_same(&Tree::walk(mount.path()), &expected, &[]);
    mount.unmount();
}

#[test]
fn zstd_chunked_of_the_stargz_project_is_mounted_by_its_tables_of_contents() {
    is_mounted_by_its_tables_of_contents("zstd-chunked", 0.02, ANNOTATED);
}

/// These forms are made by tools that Debian stable lacks, so `scripts/images` makes them only with `--all`.
#[track_caller]
fn if_it_was_made_is_mounted_by_its_tables_of_contents(tag: &str, requests: u64) {
    if Layout::open(real_images().join("python")).has_tag(tag) {
        is_mounted_by_its_tables_of_contents(tag, 0.02, requests);
    } else {
        eprintln!("skipped: the python image has no form {tag}; scripts/images --all makes it");
    }
}

#[test]
fn zstd_chunked_of_the_podman_family_is_mounted_by_its_tables_of_contents() {
    if_it_was_made_is_mounted_by_its_tables_of_contents("zstd-chunked-podman", ANNOTATED);
}

#[test]
fn estargz_whose_files_share_members_is_mounted_by_its_tables_of_contents() {
    if_it_was_made_is_mounted_by_its_tables_of_contents("estargz-min-chunk", AT_THE_END);
}

#[test]
fn estargz_with_external_tables_of_contents_is_mounted_by_them() {
    if_it_was_made_is_mounted_by_its_tables_of_contents("estargz-external", EXTERNAL);
}
