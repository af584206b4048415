//! Promise: an image in Docker's own terms, schema 2 manifests and manifest lists, is mounted like one of the OCI's, from a real
//! registry. Judged by umoci for a real image, and by the reference model for generated ones.

use crate::support::archive::TestEntry;
use crate::support::blob::{Encoded, Form, encode_to_vec};
use crate::support::docker_registry::DockerRegistry;
use crate::support::image::config_document;
use crate::support::model::Model;
use crate::support::peel::{Peel, run_to_end};
use crate::support::tools::{Unpacked, docker_registry, real_images};
use crate::support::tree::{Tree, assert_same};
use serde_json::{Value, json};
use std::process::Command;

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// What the registry has under that reference, as skopeo sees it.
fn raw_manifest(peel: &Peel, reference: &str) -> Value {
    let mut command = Command::new("skopeo");
    command.args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{reference}")]);
    let outcome = run_to_end(command, peel.scratch());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    serde_json::from_str(&outcome.stdout).expect("a manifest is JSON")
}

#[test]
fn debian_python_in_docker_schema_2_is_what_umoci_unpacks() {
    let layout = real_images().join("python");
    let (registry, peel) = (docker_registry(), Peel::new());
    let reference = format!("{}/python:docker", registry.url_host());
    let mut command = Command::new("skopeo");
    command.args(["copy", "--quiet", "--format", "v2s2", "--dest-tls-verify=false"]);
    command.arg(format!("oci:{}:gzip", layout.display())).arg(format!("docker://{reference}"));
    let outcome = run_to_end(command, peel.scratch());
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let manifest = raw_manifest(&peel, &reference);
    assert_eq!(manifest["mediaType"], MANIFEST);
    assert_eq!(manifest["config"]["mediaType"], CONFIG);
    assert_eq!(manifest["layers"][0]["mediaType"], LAYER);

    let unpacked = Unpacked::by_umoci(&format!("{}:gzip", layout.display())).expect("umoci unpacks");
    let mount = peel.mount(&reference);
    assert_same(&Tree::walk(mount.path()), &Tree::walk(&unpacked.path()), &[]);
    mount.unmount();
}

/// Pushes an image of one layer in Docker's terms; returns its entry in a manifest list.
fn push_image(registry: &DockerRegistry, layer: &[TestEntry], platform: Value) -> Value {
    let (encoded, blob) = encode_to_vec(layer, Form::GZIP);
    let encoded = Encoded { media_type: LAYER.to_owned(), ..encoded };
    let architecture = platform["architecture"].as_str().expect("a platform has an architecture");
    let mut config = config_document(std::slice::from_ref(&encoded), architecture);
    if let Some(variant) = platform.get("variant") {
        config["variant"] = variant.clone();
    }
    let config = config.to_string();
    registry.push_blob("name", &blob);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": CONFIG, "digest": registry.push_blob("name", config.as_bytes()).as_str(), "size": config.len(),
        },
        "layers": [{ "mediaType": LAYER, "digest": encoded.digest, "size": encoded.size }],
    });
    let manifest = manifest.to_string();
    let tag = format!("only-{architecture}{}", platform["variant"].as_str().unwrap_or_default());
    let digest = registry.push_manifest("name", &tag, MANIFEST, manifest.as_bytes());
    json!({ "mediaType": MANIFEST, "digest": digest.as_str(), "size": manifest.len(), "platform": platform })
}

#[test]
fn each_platform_of_a_docker_manifest_list_is_its_own_image() {
    let registry = docker_registry();
    let layer = |name: &str| {
        vec![
            TestEntry::directory("directory"),
            TestEntry::file(format!("directory/{name}"), name),
            TestEntry::symlink("link", format!("directory/{name}")),
        ]
    };
    let images = [
        ("linux/amd64", json!({ "os": "linux", "architecture": "amd64" }), layer("amd64")),
        ("linux/arm/v6", json!({ "os": "linux", "architecture": "arm", "variant": "v6" }), layer("arm-6")),
        ("linux/arm/v7", json!({ "os": "linux", "architecture": "arm", "variant": "v7" }), layer("arm-7")),
    ];
    let manifests: Vec<Value> =
        images.iter().map(|(_, platform, layer)| push_image(&registry, layer, platform.clone())).collect();
    let list = json!({ "schemaVersion": 2, "mediaType": LIST, "manifests": manifests }).to_string();
    registry.push_manifest("name", "list", LIST, list.as_bytes());
    let reference = format!("{}/name:list", registry.url_host());
    let peel = Peel::new();
    for (platform, _, layer) in &images {
        let model = Model::of(std::slice::from_ref(layer)).unwrap_or_else(|refusal| panic!("{}", refusal.0));
        let mount = peel.mount_with(&reference, &["--platform", platform]);
        assert_same(&Tree::walk(mount.path()), &model.tree(), &[]);
        mount.unmount();
    }
}
