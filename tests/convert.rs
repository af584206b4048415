//! Promise: a converted image is the same image, in a form that other tools read, mount lazily and verify; and the same input gives
//! the same digests. Judged by umoci, skopeo, the stargz project's library, a real registry and the reference model; zstd:chunked,
//! beside this, in `zstd_chunked.rs`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::support::archive::{SparseEncoding, TestEntry};
use crate::support::blob::{Form, sha256};
use crate::support::cases::{every_case, every_case_of_archives, many_files};
use crate::support::content::Content;
use crate::support::docker_registry::{DockerRegistry, Options};
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Peel, run_to_end};
use crate::support::tools::{Unpacked, docker_registry, real_images};
use crate::support::tree::{Allowed, Tree, assert_same};

const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
const TOC_NAME: &str = "stargz.index.json";

/// What the format adds to a layer, where that layer is read as an ordinary archive.
fn additions() -> [Allowed; 1] {
    let names = [TOC_NAME, ".prefetch.landmark", ".no.prefetch.landmark"];
    [Allowed::new("files of the format", move |difference| {
        names.iter().any(|name| difference.path == name.as_bytes())
    })]
}

const ESTARGZ: &str = "estargz";
const ZSTD_CHUNKED: &str = "zstd-chunked";
/// The formats that write layers anew, and how they are asked for.
const FORMS: [(&str, &[&str]); 3] = [(ESTARGZ, &[]), (ESTARGZ, &["--external-toc"]), (ZSTD_CHUNKED, &[])];

fn convert(peel: &Peel, source: &str, destination: &str, options: &[&str]) -> Value {
    convert_as(ESTARGZ, peel, source, destination, options)
}

fn convert_as(format: &str, peel: &Peel, source: &str, destination: &str, options: &[&str]) -> Value {
    let arguments = ["convert", source, destination, "--format", format, "--quiet", "--json"];
    peel.json(&[&arguments, options].concat())
}

/// Every layer of the first image in a report: blob and digest of its TOC.
fn layers<'a>(report: &'a Value, layout: &'a Layout) -> impl Iterator<Item = (Vec<u8>, &'a Value)> {
    let layers = report["images"][0]["layers"].as_array().unwrap().iter();
    layers.map(|layer| (fs::read(layout.blob_path(layer["digest"].as_str().unwrap())).unwrap(), layer))
}

/// The TOC of a blob, found and decoded by the definition of the format, and proved by its digest.
fn toc(blob: &[u8], digest: &Value) -> Value {
    let footer = &blob[blob.len() - 51..];
    assert_eq!(&footer[10..16], b"\x1a\0SG\x16\0");
    let offset = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&blob[offset..]));
    let mut entry = archive.entries().unwrap().next().unwrap().unwrap();
    assert_eq!(entry.path().unwrap().to_str(), Some(TOC_NAME));
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
    assert_eq!(digest, &json!(sha256(&bytes)));
    serde_json::from_slice(&bytes).unwrap()
}

fn entries(toc: &Value) -> &[Value] {
    toc["entries"].as_array().unwrap()
}

#[test]
fn a_converted_debian_python_is_what_it_was() {
    let peel = Peel::new();
    let images = real_images().join("python");
    let source = format!("oci:{}:gzip", images.display());
    let expected = Unpacked::by_umoci(&format!("{}:gzip", images.display())).unwrap();
    let expected = Tree::walk(&expected.path());
    for (format, options) in FORMS {
        let out = peel.scratch().join([&[format], options].concat().join("-"));
        let destination = format!("oci:{}:converted", out.display());
        let report = convert_as(format, &peel, &source, &destination, options);

        // umoci knows no zstd. As a copy of it in gzip the image must be the same.
        let copy = out.with_added_extension("copied");
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["copy", "--quiet", "--dest-compress-format", "gzip", &destination]);
        skopeo.arg(format!("oci:{}:converted", copy.display()));
        let outcome = run_to_end(skopeo, peel.scratch());
        assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
        let unpacked = Unpacked::by_umoci(&format!("{}:converted", copy.display())).unwrap();
        assert_same(&Tree::walk(&unpacked.path()), &expected, &additions());

        let mount = peel.mount(&destination);
        // One has a name that JSON cannot hold, and is known to others once it is on disk, for which no mount waits; the others are not
        // here before somebody reads them.
        peel.wait_for(|| {
            let images = peel.json(&["ls", "--json"]);
            let images = images.as_array().unwrap();
            let listed = images.iter().find(|image| image["reference"] == json!(destination)).unwrap();
            assert_eq!(listed["layers"], 3, "{format}");
            listed["lazy_layers"] == 2
        });
        assert_same(&Tree::walk(mount.path()), &expected, &additions());
        mount.unmount();

        let layout = Layout::open(&out);
        for (_, layer) in layers(&report, &layout).filter(|_| format == ESTARGZ) {
            let tables = layout.has_tag("converted-esgztoc").then(|| layout.manifest("converted-esgztoc"));
            stargz_library_verifies(&layout, layer, tables, peel.scratch());
        }
    }
}

/// Skipped, with a word, where Go or the library is not installed.
fn stargz_library_verifies(layout: &Layout, layer: &Value, tables: Option<Value>, scratch: &Path) {
    let blob = layout.blob_path(layer["digest"].as_str().unwrap());
    let mut command = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/verify-estargz"));
    command.arg(&blob).arg(layer["toc_digest"].as_str().unwrap());
    if let Some(tables) = tables {
        let is_of_layer = |table: &&Value| {
            table["annotations"]["containerd.io/snapshot/stargz/layer.digest"] == layer["digest"]
        };
        let table = tables["layers"].as_array().unwrap().iter().find(is_of_layer).unwrap();
        command.arg(layout.blob_path(table["digest"].as_str().unwrap()));
    }
    let outcome = run_to_end(command, scratch);
    match outcome.code {
        Some(77) => eprintln!("skipped: {}", outcome.stderr.trim()),
        code => assert_eq!(code, Some(0), "{}: {}", blob.display(), outcome.stderr),
    }
}

#[test]
fn every_case_is_what_the_model_says_after_conversion() {
    for (cases, format, options) in [
        (every_case(), ESTARGZ, &["--chunk-size", "100000"][..]),
        (every_case(), ESTARGZ, &["--min-chunk", "50000", "--level", "1"]),
        (every_case_of_archives(), ESTARGZ, &["--min-chunk", "1000"]),
        (every_case(), ESTARGZ, &["--external-toc", "--chunk-size", "100000"]),
        (every_case_of_archives(), ESTARGZ, &["--external-toc", "--min-chunk", "50000"]),
        (vec![vec![]], ESTARGZ, &["--external-toc"]),
        (every_case(), ZSTD_CHUNKED, &[]),
        (every_case(), ZSTD_CHUNKED, &["--chunk-size", "100000", "--level", "1"]),
        (every_case_of_archives(), ZSTD_CHUNKED, &[]),
    ] {
        let peel = Peel::new();
        let source = Layout::create(peel.scratch().join("source")).image("test", &cases, Form::ZSTD);
        let destination = format!("oci:{}:test", peel.scratch().join("converted").display());
        convert_as(format, &peel, &source, &destination, options);
        let model = Model::of(&cases).unwrap_or_else(|refusal| panic!("{}", refusal.0)).tree();
        let mount = peel.mount(&destination);
        assert_same(&Tree::walk(mount.path()), &model, &additions());
        mount.unmount();
    }
}

#[test]
fn digests_depend_on_content_and_options_alone() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("source"));
    let files =
        [many_files(3000), vec![TestEntry::file("large", Content::Noise { seed: 1, length: 9 << 20 })]]
            .concat();
    let gzip = layout.image("gzip", std::slice::from_ref(&files), Form::GZIP);
    let zstd = layout.image("zstd", &[files], Form::ZSTD);
    for (form, (format, form_options)) in FORMS.into_iter().enumerate() {
        let out = |name: &str| peel.scratch().join(format!("{form}-{name}"));
        let convert_to = |name: &str, source: &str, options: &[&str]| {
            let destination = format!("oci:{}:{name}", out(name).display());
            let options = [form_options, options].concat();
            let report = convert_as(format, &peel, source, &destination, &options);
            [&report["digest"], &report["toc_image"]["digest"]].map(Value::clone)
        };
        let first = convert_to("one", &gzip, &["--threads", "1"]);
        assert_eq!(convert_to("seven", &gzip, &["--threads", "7"]), first);
        assert_eq!(convert_to("from-zstd", &zstd, &["--threads", "2"]), first);
        // What was made is made again from itself: all that the format adds is left behind.
        let made = format!("oci:{}:one", out("one").display());
        assert_eq!(convert_to("again", &made, &[]), first);
        assert_ne!(convert_to("other", &gzip, &["--level", "1"]), first);
    }
}

#[test]
fn listed_files_come_first_with_what_they_need() {
    let peel = Peel::new();
    let lower = vec![
        TestEntry::directory("usr"),
        TestEntry::file("usr/first", "1"),
        TestEntry::directory("etc"),
        TestEntry::file("etc/wanted", "wanted"),
        TestEntry::file("target", "target"),
        TestEntry::hardlink("usr/link", "target"),
    ];
    let upper = vec![TestEntry::file("nothing-listed", "x")];
    let mut layout = Layout::create(peel.scratch().join("source"));
    let source = layout.image("test", &[lower, upper], Form::GZIP);
    let list = peel.scratch().join("list");
    fs::write(&list, "/usr/link\netc/wanted\n\nmissing\n").unwrap();
    let out = peel.scratch().join("converted");
    let destination = format!("oci:{}:test", out.display());
    let report = convert(&peel, &source, &destination, &["--order", list.to_str().unwrap()]);
    assert_eq!(report["missed"], json!(["missing"]));
    let layout = Layout::open(&out);
    let tocs: Vec<Value> =
        layers(&report, &layout).map(|(blob, layer)| toc(&blob, &layer["toc_digest"])).collect();
    let names = |toc: &Value| -> Vec<String> {
        entries(toc)
            .iter()
            .map(|entry| entry["name"].as_str().unwrap().trim_end_matches('/').to_owned())
            .collect()
    };
    assert_eq!(
        names(&tocs[0]),
        ["usr", "target", "usr/link", "etc", "etc/wanted", ".prefetch.landmark", "usr/first"]
    );
    assert_eq!(names(&tocs[1]), [".no.prefetch.landmark", "nothing-listed"]);
    let offsets: Vec<u64> = entries(&tocs[0]).iter().filter_map(|entry| entry["offset"].as_u64()).collect();
    assert!(offsets.is_sorted() && offsets.len() == 4, "{offsets:?}");
}

#[test]
fn small_files_share_members_when_asked() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("source"));
    let source = layout.image("test", &[many_files(1000)], Form::GZIP);
    let blob_and_toc = |name: &str, options: &[&str]| {
        let out = peel.scratch().join(name);
        let report = convert(&peel, &source, &format!("oci:{}:test", out.display()), options);
        let layout = Layout::open(&out);
        let (blob, layer) = layers(&report, &layout).next().unwrap();
        (blob.len(), toc(&blob, &layer["toc_digest"]))
    };
    let (separate_size, separate) = blob_and_toc("separate", &[]);
    let (shared_size, shared) = blob_and_toc("shared", &["--min-chunk", "65536"]);
    assert!(entries(&separate).iter().all(|entry| entry.get("innerOffset").is_none()));
    let inner: Vec<u64> = entries(&shared).iter().filter_map(|entry| entry["innerOffset"].as_u64()).collect();
    assert!(inner.len() > 900 && inner.iter().all(|inner| *inner < 65_536), "{}", inner.len());
    assert!(shared_size < separate_size, "{shared_size} {separate_size}");
}

#[test]
fn all_platforms_are_converted_and_what_is_no_image_is_left_out() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("source"));
    let shared = layout.put_layer(&[TestEntry::file("shared", "shared")], Form::GZIP);
    let own = |architecture: &str| layout.put_layer(&[TestEntry::file("of", architecture)], Form::Tar);
    let images = ["amd64", "arm64"].map(|architecture| {
        let own = own(architecture);
        layout.put_image(&[shared.clone(), own], architecture)
    });
    let mut attestation = layout.put_image(&[], "amd64");
    attestation["platform"] = json!({ "os": "unknown", "architecture": "unknown" });
    let left_out = attestation["digest"].clone();
    let index = layout.put_index(&[images[0].clone(), attestation, images[1].clone()]);
    layout.tag("test", &index);
    let source = layout.reference("test");
    let out = peel.scratch().join("converted");
    let destination = |tag: &str| format!("oci:{}:{tag}", out.display());
    let report = convert(&peel, &source, &destination("all"), &["--all-platforms"]);
    assert_eq!(report["left_out"], json!([left_out]));
    let platforms = |report: &Value| -> Vec<Value> {
        report["images"].as_array().unwrap().iter().map(|image| image["platform"].clone()).collect()
    };
    assert_eq!(platforms(&report), [json!("linux/amd64"), json!("linux/arm64")]);
    let one = convert(&peel, &source, &destination("one"), &["--platform", "linux/arm64"]);
    assert_eq!(platforms(&one), [json!("linux/arm64")]);
    assert_eq!(one["digest"], report["images"][1]["digest"]);

    let mount = peel.mount_with(&destination("all"), &["--platform", "linux/arm64"]);
    assert_eq!(fs::read(mount.join("of")).unwrap(), b"arm64");
    assert_eq!(fs::read(mount.join("shared")).unwrap(), b"shared");
    mount.unmount();
    // Of the image as it was nothing is said any more.
    let manifest = Layout::open(&out).manifest("one");
    assert!(manifest["layers"][0]["annotations"][TOC_DIGEST].is_string());
    assert_eq!(manifest["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
}

#[test]
fn an_image_goes_from_registry_to_registry() {
    let peel = Peel::new();
    let cases = vec![many_files(500), vec![TestEntry::file("last", "last")]];
    let source = Layout::create(peel.scratch().join("source")).image("test", &cases, Form::GZIP);
    let registry = docker_registry();
    let reference = |name: &str| format!("{}/some/{name}:tag", registry.url_host());
    let first = convert(&peel, &source, &reference("first"), &[]);
    let again = convert(&peel, &reference("first"), &reference("second"), &[]);
    assert_eq!(first["digest"], again["digest"]);
    // All blobs are there already.
    convert(&peel, &reference("first"), &reference("second"), &[]);
    let model = Model::of(&cases).unwrap_or_else(|refusal| panic!("{}", refusal.0)).tree();
    let mount = peel.mount(&reference("second"));
    assert_same(&Tree::walk(mount.path()), &model, &[]);
    mount.unmount();
}

#[test]
fn a_registry_that_wants_a_password_gets_it() {
    let registry = DockerRegistry::start(Options { password: true, ..Options::default() }).unwrap();
    let peel = Peel::new();
    let layers = [vec![TestEntry::file("file", "content")]];
    let source = Layout::create(peel.scratch().join("source")).image("test", &layers, Form::GZIP);
    let destination = format!("{}/name:tag", registry.url_host());
    let arguments = ["convert", &source, &destination, "--format", "estargz"];
    let refused = peel.run(&arguments);
    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    assert!(refused.stderr.contains("cannot put blob"), "{}", refused.stderr);
    fs::create_dir_all(peel.home().join(".docker")).unwrap();
    let auths = json!({ "auths": { registry.url_host(): { "auth": "cGVlbDpzZWNyZXQ=" } } });
    fs::write(peel.home().join(".docker/config.json"), auths.to_string()).unwrap();
    peel.succeed(&arguments);
}

#[test]
fn what_cannot_be_converted_is_refused_and_nothing_is_named() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("source"));
    let layer = layout.put_layer(&[TestEntry::file("file", "content")], Form::GZIP);
    let mut lying = layer.clone();
    lying.diff_id = format!("sha256:{:064}", 0);
    let image = layout.put_image(&[lying], this_architecture());
    layout.tag("lying", &image);
    let replaced =
        [vec![TestEntry::file("a", "1"), TestEntry::hardlink("b", "a"), TestEntry::file("a", "2")]];
    layout.image("replaced", &replaced, Form::GZIP);
    let hole = Content::Sparse { pieces: vec![], length: 1 << 50 };
    layout.image("hole", &[vec![TestEntry::sparse("hole", hole, SparseEncoding::Pax10)]], Form::GZIP);
    let out = peel.scratch().join("converted");
    for (tag, said) in [("lying", "diff ID"), ("replaced", "hardlink to \"a\""), ("hole", "more than")] {
        for format in [ESTARGZ, ZSTD_CHUNKED] {
            let destination = format!("oci:{}:{tag}", out.display());
            let outcome = peel.run(&["convert", &layout.reference(tag), &destination, "--format", format]);
            assert_eq!(outcome.code, Some(6), "{tag}: {}", outcome.stderr);
            assert!(outcome.stderr.contains(said), "{}", outcome.stderr);
            assert!(!out.join("index.json").exists());
        }
    }
    for (format, option) in [
        (ZSTD_CHUNKED, &["--min-chunk", "1000"][..]),
        (ESTARGZ, &["--level", "10"]),
        (ZSTD_CHUNKED, &["--external-toc"]),
        ("soci", &["--external-toc"]),
    ] {
        let destination = format!("oci:{}:options", out.display());
        let arguments = ["convert", &layout.reference("lying"), &destination, "--format", format];
        let outcome = peel.run(&[&arguments, option].concat());
        assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(option[0]), "{}", outcome.stderr);
    }
    let pinned = format!("oci:{}@sha256:{:064}", out.display(), 0);
    let outcome = peel.run(&["convert", &layout.reference("lying"), &pinned, "--format", "estargz"]);
    assert_eq!(outcome.code, Some(2), "{}", outcome.stderr);
}
