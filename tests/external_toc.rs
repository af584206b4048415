//! Promise: an eStargz whose tables of contents are in another image is mounted by them, and trusted no more than any other: a
//! missing or foreign table costs laziness, a false one the mount. And what we write in that form is so, and leaves the image what it was.
//! (Real images of that form, written by others, are mounted in `formats`.)

use crate::support::archive::TestEntry;
use crate::support::blob::{
    Encoded, Estargz, Footer, Form, estargz_with_toc, external_toc, sha256, toc_json,
};
use crate::support::content::Content;
use crate::support::image::{CONFIG, INDEX, Layout, MANIFEST, manifest_document, this_architecture};
use crate::support::peel::{Peel, is_mount_point};
use crate::support::registry::{FakeRegistry, Fault};
use serde_json::{Value, json};
use std::cell::RefCell;
use std::fs;

const EXTERNAL: Estargz =
    Estargz { chunk_size: 256 << 10, footer: Footer::External, annotated: true, landmark: None };
const TOC_TAG: &str = "test-esgztoc";

fn large(seed: u64) -> Content {
    Content::Noise { seed, length: 2 << 20 }
}

/// Two large layers and one that is fetched with the first read.
fn layers() -> [Vec<TestEntry>; 3] {
    [
        vec![TestEntry::file("zero", large(0)), TestEntry::file("removed", "x")],
        vec![TestEntry::file("one", large(1)), TestEntry::file(".wh.removed", "")],
        vec![TestEntry::file("small", "small")],
    ]
}

/// An image in a registry that has no TOC image yet.
struct Image {
    registry: FakeRegistry,
    layout: Layout,
    layers: Vec<(Encoded, Vec<u8>)>,
    _directory: tempfile::TempDir,
}

impl Image {
    fn new() -> Image {
        let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
        let mut layout = Layout::create(directory.path());
        let layers: Vec<(Encoded, Vec<u8>)> = layers()
            .iter()
            .map(|entries| {
                let json = RefCell::default();
                let (encoded, blob) = estargz_with_toc(entries, EXTERNAL, &|toc| {
                    json.replace(toc_json(toc));
                    json.borrow().clone()
                });
                layout.put(&blob);
                (encoded, json.take())
            })
            .collect();
        let encoded: Vec<Encoded> = layers.iter().map(|(encoded, _)| encoded.clone()).collect();
        let manifest = layout.put_image(&encoded, this_architecture());
        layout.tag("test", &manifest);
        layout.serve(&registry, "name", "test");
        Image { registry, layout, layers, _directory: directory }
    }

    fn reference(&self) -> String {
        self.registry.reference("name", "test").to_string()
    }

    /// A TOC image with these tables, by the layer that each says it is of.
    fn toc_image(&self, tables: &[(&str, Vec<u8>)]) -> Value {
        let descriptors: Vec<Value> = tables
            .iter()
            .map(|(layer, blob)| {
                self.registry.put_blob(blob.clone());
                json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": self.layout.put(blob),
                    "size": blob.len(),
                    "annotations": { "containerd.io/snapshot/stargz/layer.digest": layer },
                })
            })
            .collect();
        self.registry.put_blob(b"{}".as_slice());
        let mut manifest = manifest_document(&self.layout.put_json(CONFIG, &json!({})), &[]);
        manifest["layers"] = descriptors.into();
        manifest
    }

    fn true_toc_image(&self) -> Value {
        let tables: Vec<(&str, Vec<u8>)> =
            self.layers.iter().map(|(layer, json)| (layer.digest.as_str(), external_toc(json))).collect();
        self.toc_image(&tables)
    }

    fn put_toc_image(&self, manifest: &Value) {
        self.registry.put_manifest("name", TOC_TAG, MANIFEST, manifest.to_string().as_bytes());
    }

    fn layer_bytes(&self) -> u64 {
        self.layers.iter().map(|(layer, _)| layer.size).sum()
    }

    #[track_caller]
    fn mounts(&self, peel: &Peel, reference: &str) {
        let mount = peel.mount(reference);
        for (name, seed) in [("zero", 0), ("one", 1)] {
            assert!(fs::read(mount.join(name)).unwrap() == large(seed).to_vec(), "{name}");
        }
        assert_eq!(fs::read(mount.join("small")).unwrap(), b"small");
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3);
        mount.unmount();
    }

    /// All of it is right, but each large layer was read from its beginning to its end when it was mounted.
    #[track_caller]
    fn is_streamed(&self, peel: &Peel, reference: &str) {
        let mount = peel.mount(reference);
        assert!(self.registry.counters().blob_bytes >= self.layer_bytes(), "nothing was streamed");
        mount.unmount();
        self.mounts(peel, reference);
    }
}

#[test]
fn mounting_by_external_tables_asks_for_one_manifest_more_and_for_each_table_once() {
    let image = Image::new();
    image.put_toc_image(&image.true_toc_image());
    let peel = Peel::new();
    let mount = peel.mount(&image.reference());
    let counters = image.registry.counters();
    assert_eq!(counters.manifests, 2, "{:?}", image.registry.requests());
    // The config, the end of each layer, and the tables of the two that were not here by then.
    assert_eq!(counters.blobs, 1 + 3 + 2, "{:?}", image.registry.requests());
    assert!(counters.blob_bytes < image.layer_bytes() / 10, "{counters:?}");
    mount.unmount();
    image.mounts(&peel, &image.reference());
}

#[test]
fn mounting_by_external_tables_works_from_a_layout_and_by_tag_and_digest() {
    let mut image = Image::new();
    let toc_image = image.layout.put_json(MANIFEST, &image.true_toc_image());
    image.layout.tag(TOC_TAG, &toc_image);
    let layout = image.layout.reference("test");
    image.mounts(&Peel::new(), &layout);
    assert!(image.registry.requests().is_empty());

    image.put_toc_image(&image.true_toc_image());
    let digest = image.layout.descriptor("test")["digest"].as_str().unwrap().to_owned();
    let peel = Peel::new();
    let mount = peel.mount(&format!("{}@{digest}", image.reference()));
    assert!(image.registry.counters().blob_bytes < image.layer_bytes() / 10);
    mount.unmount();
    image.registry.reset_counters();
    // Only the tag leads to the tables.
    image.is_streamed(&Peel::new(), &format!("{}/name@{digest}", image.registry.url_host()));
}

#[test]
fn mounting_without_a_usable_toc_image_streams_the_layers() {
    type Put = dyn Fn(&Image);
    let cases: [(&str, &Put); 5] = [
        ("there is none", &|_| {}),
        ("it has tables of other layers", &|image| {
            let table = external_toc(&image.layers[0].1);
            let tables = [(&*sha256(b"another layer"), table.clone()), ("no digest", table)];
            image.put_toc_image(&image.toc_image(&tables));
        }),
        ("it has no layers", &|image| image.put_toc_image(&image.toc_image(&[]))),
        ("it is an index", &|image| {
            let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }).to_string();
            image.registry.put_manifest("name", TOC_TAG, INDEX, index.as_bytes());
        }),
        ("it is something else", &|image| {
            image.registry.put_raw_manifest("name", TOC_TAG, MANIFEST, b"not JSON");
        }),
    ];
    for (what, put) in cases {
        let image = Image::new();
        put(&image);
        println!("{what}");
        image.is_streamed(&Peel::new(), &image.reference());
        // Asked for once, whatever was found.
        let asked = image.registry.requests();
        assert_eq!(asked.iter().filter(|request| request.target.ends_with(TOC_TAG)).count(), 1, "{what}");
    }
    // A table that is named and not there is one that is not there.
    let image = Image::new();
    image.put_toc_image(&image.true_toc_image());
    image.registry.set_fault(&sha256(&external_toc(&image.layers[0].1)), Fault::Status(404));
    image.mounts(&Peel::new(), &image.reference());
}

#[test]
fn mounting_by_external_tables_that_the_manifest_does_not_vouch_for_is_refused() {
    let image = Image::new();
    let layer = image.layers[0].0.digest.as_str();
    // Of the other layer, and vouched for there.
    let swapped = external_toc(&image.layers[1].1);
    let no_archive = image.layers[0].1.clone();
    let cut = external_toc(&image.layers[0].1)[..100].to_vec();
    for table in [swapped, no_archive, cut, Vec::new()] {
        image.put_toc_image(&image.toc_image(&[(layer, table)]));
        let peel = Peel::new();
        let point = peel.mount_point();
        let outcome = peel.run(&["mount", &image.reference(), point.to_str().unwrap()]);
        assert_eq!(outcome.code, Some(6), "{outcome:?}");
        for named in [layer, &image.reference()] {
            assert!(outcome.stderr.contains(named), "{outcome:?}");
        }
        assert!(!is_mount_point(&point));
    }
}

/// The table is no part of the blob: whoever names it must not decide what another image of the same layer shows.
#[test]
fn mounting_an_image_shows_nothing_of_the_tables_that_another_image_names_for_its_layers() {
    let mut image = Image::new();
    image.put_toc_image(&image.true_toc_image());
    let (layer, json) = image.layers[0].clone();
    let false_json = String::from_utf8(json).unwrap().replace("\"zero\"", "\"evil\"").into_bytes();
    let mut lying = layer.clone();
    for (key, value) in &mut lying.annotations {
        if key == "containerd.io/snapshot/stargz/toc.digest" {
            *value = sha256(&false_json);
        }
    }
    let manifest = image.layout.put_image(&[lying], this_architecture());
    image.layout.tag("liar", &manifest);
    let liar = image.layout.serve(&image.registry, "liar", "liar");
    let tables = image.toc_image(&[(layer.digest.as_str(), external_toc(&false_json))]);
    image.registry.put_manifest("liar", "liar-esgztoc", MANIFEST, tables.to_string().as_bytes());

    let peel = Peel::new();
    for _ in 0..2 {
        let mount = peel.mount(&liar);
        assert!(mount.join("evil").exists() && !mount.join("zero").exists());
        mount.unmount();
        image.mounts(&peel, &image.reference());
    }
}

/// An ordinary image of [`layers`] in a registry that takes pushes.
fn ordinary() -> (FakeRegistry, Layout, String, tempfile::TempDir) {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let mut layout = Layout::create(directory.path());
    layout.image("test", &layers(), Form::GZIP);
    let reference = layout.serve(&registry, "ordinary", "test");
    registry.take_pushes();
    (registry, layout, reference, directory)
}

fn convert(peel: &Peel, source: &str, destination: &str, options: &[&str]) -> Value {
    let arguments = ["convert", source, destination, "--format", "estargz", "--external-toc", "--quiet"];
    peel.json(&[&arguments[..], &["--json"], options].concat())
}

fn manifest(registry: &FakeRegistry, repository: &str, tag: &str) -> Value {
    serde_json::from_slice(&registry.manifest(repository, tag).unwrap()).unwrap()
}

#[test]
fn a_converted_image_keeps_config_and_diff_ids_and_is_mounted_by_the_tables_beside_it() {
    let (registry, layout, source, _blobs) = ordinary();
    let peel = Peel::new();
    let destination = registry.reference("converted", "tag").to_string();
    let report = convert(&peel, &source, &destination, &[]);
    let (before, after) = (layout.manifest("test"), manifest(&registry, "converted", "tag"));
    assert_eq!(after["config"]["digest"], before["config"]["digest"]);

    // As the reference writes it: no config to speak of, one table for each layer, no more annotations than that.
    let tables = manifest(&registry, "converted", "tag-esgztoc");
    assert_eq!(report["toc_image"]["reference"], format!("{destination}-esgztoc"));
    assert_eq!(tables["mediaType"], MANIFEST);
    assert_eq!(tables["config"], json!({ "mediaType": CONFIG, "digest": sha256(b"{}"), "size": 2 }));
    let described: Vec<Value> =
        tables["layers"].as_array().unwrap().iter().map(|table| table["annotations"].clone()).collect();
    let mut expected: Vec<&str> =
        after["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].as_str().unwrap()).collect();
    expected.sort_unstable();
    let expected: Vec<Value> = expected
        .into_iter()
        .map(|digest| json!({ "containerd.io/snapshot/stargz/layer.digest": digest }))
        .collect();
    assert_eq!(described, expected);

    let layer_bytes: u64 =
        after["layers"].as_array().unwrap().iter().map(|layer| layer["size"].as_u64().unwrap()).sum();
    registry.reset_counters();
    let mount = peel.mount(&destination);
    let counters = registry.counters();
    assert_eq!((counters.manifests, counters.blobs), (2, 1 + 3 + 2), "{:?}", registry.requests());
    assert!(counters.blob_bytes < layer_bytes / 10, "{counters:?}");
    for (name, seed) in [("zero", 0), ("one", 1)] {
        assert!(fs::read(mount.join(name)).unwrap() == large(seed).to_vec(), "{name}");
    }
    mount.unmount();
}

#[test]
fn listed_files_have_their_landmark_and_make_it_another_archive() {
    let (registry, layout, source, directory) = ordinary();
    let peel = Peel::new();
    let list = directory.path().join("list");
    fs::write(&list, "one\n").unwrap();
    let destination = registry.reference("converted", "tag").to_string();
    let report = convert(&peel, &source, &destination, &["--order", list.to_str().unwrap()]);
    let config: Value = serde_json::from_slice(
        &fs::read(layout.blob_path(layout.manifest("test")["config"]["digest"].as_str().unwrap())).unwrap(),
    )
    .unwrap();
    let layers = report["images"][0]["layers"].as_array().unwrap();
    let is_as_before = |layer: usize| layers[layer]["diff_id"] == config["rootfs"]["diff_ids"][layer];
    assert_eq!([0, 1, 2].map(is_as_before), [true, false, true]);
    let mount = peel.mount(&destination);
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3, "landmarks are not shown");
    mount.unmount();
}

#[test]
fn all_platforms_have_one_image_with_the_tables_of_all() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("source"));
    let shared = layout.put_layer(&[TestEntry::file("shared", "shared")], Form::GZIP);
    let images = ["amd64", "arm64"].map(|architecture| {
        let own = layout.put_layer(&[TestEntry::file("of", architecture)], Form::Tar);
        layout.put_image(&[shared.clone(), own], architecture)
    });
    let index = layout.put_index(&images);
    layout.tag("test", &index);
    let out = peel.scratch().join("out");
    let destination = format!("oci:{}:all", out.display());
    convert(&peel, &layout.reference("test"), &destination, &["--all-platforms"]);
    assert_eq!(Layout::open(&out).manifest("all-esgztoc")["layers"].as_array().unwrap().len(), 3);
    let mount = peel.mount_with(&destination, &["--platform", "linux/arm64"]);
    assert_eq!(fs::read(mount.join("of")).unwrap(), b"arm64");
    mount.unmount();
}

#[test]
fn an_image_that_needs_tables_is_not_named_before_they_are() {
    let (registry, _layout, source, directory) = ordinary();
    let peel = Peel::new();
    let destination = registry.reference("converted", "tag").to_string();
    registry.set_fault("manifests/tag-esgztoc", Fault::Status(403));
    let arguments = ["convert", &source, &destination, "--format", "estargz", "--external-toc"];
    assert_eq!(peel.run(&arguments).code, Some(4));
    assert!(registry.manifest("converted", "tag").is_none());
    // Where there is no name for such an image, nothing is read.
    registry.reset_counters();
    let long = format!("{}:{}", destination.strip_suffix(":tag").unwrap(), "t".repeat(124));
    let unnamed = format!("oci:{}", directory.path().join("unnamed").display());
    for destination in [long, unnamed] {
        let arguments = ["convert", &source, &destination, "--format", "estargz", "--external-toc"];
        let outcome = peel.run(&arguments);
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains("-esgztoc"), "{}", outcome.stderr);
    }
    assert!(registry.requests().is_empty());
}
