//! Promise: what is wrong with an image, a registry or a directory is told in an error that names the image, the layer and the
//! host; nothing is mounted, nothing is lost, nothing hangs, and the next command works. And however a table of contents lies,
//! nobody reads bytes that the image does not hold.

mod archives;
mod documents;
mod foreign_urls;
mod registries;
mod stalling;
mod tables;
mod this_machine;

use crate::support::archive::{TestEntry, pax_entry, special_entry, tar_bytes};
use crate::support::blob::{
    Encoded, Estargz, Footer, Form, TOC_DIGEST, encode_to_vec, estargz_with_toc, gzip_member, sha256,
    toc_json,
};
use crate::support::content::Content;
use crate::support::image::{
    CONFIG, INDEX, Layout, MANIFEST, config_document, manifest_document, this_architecture,
};
use crate::support::peel::{Outcome, Peel, is_mount_point, run_to_end};
use crate::support::registry::{Authentication, FakeRegistry, Fault};
use crate::support::tree::Tree;
use serde_json::{Value, json};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::process::Command;

/// Exit codes, as `peel mount --help` and the handbook give them.
const NOT_FOUND: i32 = 3;
const UNAUTHORIZED: i32 = 4;
const UNREACHABLE: i32 = 5;
const WRONG_CONTENT: i32 = 6;
const THIS_MACHINE: i32 = 7;
const STORE: i32 = 8;

/// Mounting fails with this code; the error names the image and all of `named`; nothing is mounted.
#[track_caller]
fn refused(peel: &Peel, reference: &str, code: i32, named: &[&str]) -> Outcome {
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", reference, point.to_str().unwrap()]);
    is_an_error(&outcome, code, reference, named);
    assert!(!is_mount_point(&point), "something is mounted after {outcome:?}");
    assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
    outcome
}

#[track_caller]
fn is_an_error(outcome: &Outcome, code: i32, reference: &str, named: &[&str]) {
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
    assert_eq!(outcome.code, Some(code), "{reference}: {outcome:?}");
    for name in named.iter().chain([&reference]) {
        assert!(outcome.stderr.contains(name), "{name:?} is not named: {}", outcome.stderr);
    }
}

/// The store is as good as new: an image can be mounted and read, and it is the only one.
#[track_caller]
fn still_works(peel: &Peel) {
    peel.wait_for_servers_to_end();
    assert_eq!(peel.json(&["ls", "--json"]), json!([]));
    let directory = tempfile::tempdir().unwrap();
    let reference =
        Layout::create(directory.path()).image("good", &[vec![TestEntry::file("file", "good")]], Form::GZIP);
    let mount = peel.mount(&reference);
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"good");
    mount.unmount();
}

fn noise(length: u64) -> Content {
    Content::Noise { seed: length, length }
}

fn layer() -> Vec<TestEntry> {
    vec![
        TestEntry::file("large", noise(3 << 20)),
        TestEntry::file("small", "small"),
        TestEntry::directory("directory"),
    ]
}

const SMALL_CHUNKS: Estargz =
    Estargz { chunk_size: 256 << 10, footer: Footer::Modern, annotated: true, landmark: None };

/// A registry with an image in it; the layout is the image's truth.
struct Served {
    registry: FakeRegistry,
    layout: Layout,
    reference: String,
    _directory: tempfile::TempDir,
}

impl Served {
    fn image(form: Form) -> Served {
        let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
        let mut layout = Layout::create(directory.path());
        layout.image("test", &[layer()], form);
        let reference = layout.serve(&registry, "some/name", "test");
        Served { registry, layout, reference, _directory: directory }
    }

    fn layer_digest(&self) -> String {
        self.layout.manifest("test")["layers"][0]["digest"].as_str().unwrap().to_owned()
    }

    fn config_digest(&self) -> String {
        self.layout.manifest("test")["config"]["digest"].as_str().unwrap().to_owned()
    }
}

/// A layout with one image whose single layer is these bytes.
fn image_of_blob(peel: &Peel, name: &str, layer: &Encoded, bytes: &[u8]) -> String {
    let mut layout = Layout::create(peel.scratch().join(name));
    layout.put(bytes);
    let manifest = layout.put_image(std::slice::from_ref(layer), this_architecture());
    layout.tag("test", &manifest);
    layout.reference("test")
}

/// A blob that is what its descriptor says, and makes no sense.
fn blob(form: Form, bytes: &[u8]) -> (Encoded, Vec<u8>) {
    let encoded = Encoded {
        media_type: form.media_type().to_owned(),
        digest: sha256(bytes),
        size: bytes.len() as u64,
        diff_id: sha256(b"whatever"),
        annotations: Vec::new(),
    };
    (encoded, bytes.to_vec())
}

/// `peel mount` with no more than this much private memory.
fn mount_within(peel: &Peel, reference: &str, point: &std::path::Path, mebibytes: u64) -> Outcome {
    let inner = peel.command(&["mount", reference, point.to_str().unwrap()]);
    let mut command = Command::new("prlimit");
    command
        .arg(format!("--data={}", mebibytes << 20))
        .arg("--")
        .arg(inner.get_program())
        .args(inner.get_args());
    command.env_clear().envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    run_to_end(command, peel.scratch())
}
