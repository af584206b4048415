//! Promise: an archive that is here is fetched and kept once, in whatever compression images name it; and nobody gets his own content into
//! another's image by claiming its diff ID.

use crate::support::archive::TestEntry;
use crate::support::blob::{Encoded, Form, encode_to_vec};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Peel, kill_and_wait};
use crate::support::registry::FakeRegistry;
use crate::support::tree::{Tree, assert_same};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn layers() -> Vec<Vec<TestEntry>> {
    let noise = |seed, length| Content::Noise { seed, length };
    vec![
        vec![
            TestEntry::file("large", noise(1, 1_500_000)),
            TestEntry::file("small", noise(2, 900)).mode(0o4755),
        ],
        vec![
            TestEntry::hardlink("again", "small"),
            TestEntry::whiteout("large"),
            TestEntry::file("more", noise(3, 300_000)),
        ],
    ]
}

/// An image of the same layers in each form, in a registry.
struct Served {
    registry: FakeRegistry,
    layout: Layout,
    references: Vec<String>,
    directory: tempfile::TempDir,
}

fn served(forms: &[Form]) -> Served {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let mut layout = Layout::create(directory.path().join("layout"));
    let mut references = Vec::new();
    for (number, form) in forms.iter().enumerate() {
        let tag = format!("t{number}");
        layout.image(&tag, &layers(), *form);
        references.push(layout.serve(&registry, &format!("some/image{number}"), &tag));
    }
    Served { registry, layout, references, directory }
}

fn digests(manifest: &Value) -> Vec<String> {
    manifest["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["digest"].as_str().unwrap().to_owned())
        .collect()
}

impl Served {
    /// How often a layer of that tag was asked for since the last time.
    fn layer_requests(&self, layout: &Layout, tag: &str) -> usize {
        let layers = digests(&layout.manifest(tag));
        let requests = self.registry.requests();
        self.registry.reset_counters();
        requests
            .iter()
            .filter(|request| layers.iter().any(|layer| request.target.contains(layer.as_str())))
            .count()
    }
}

/// Blocks of all that is below a directory.
fn blocks(path: &Path) -> u64 {
    let mut bytes = std::os::unix::fs::MetadataExt::blocks(&fs::symlink_metadata(path).unwrap()) * 512;
    if path.is_dir() {
        bytes += fs::read_dir(path).unwrap().map(|entry| blocks(&entry.unwrap().path())).sum::<u64>();
    }
    bytes
}

fn layers_of(peel: &Peel) -> u64 {
    blocks(&peel.store().join("layers"))
}

#[track_caller]
fn is_image(peel: &Peel, reference: &str) {
    let mount = peel.mount(reference);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers()).unwrap().tree(), &[]);
    mount.unmount();
}

#[test]
fn an_archive_that_was_streamed_is_not_fetched_in_another_compression() {
    let mut served = served(&[Form::GZIP, Form::ZSTD, Form::Tar]);
    let peel = Peel::new();
    let references = served.references.clone();
    peel.succeed(&["pull", &references[0], "--quiet"]);
    assert!(served.layer_requests(&served.layout, "t0") >= 2);
    let before = layers_of(&peel);
    for (tag, reference) in [("t1", &references[1]), ("t2", &references[2])] {
        let report = peel.json(&["pull", reference, "--quiet", "--json"]);
        assert_eq!(served.layer_requests(&served.layout, tag), 0, "{tag}");
        assert_eq!(layers_of(&peel), before, "{tag}");
        assert!(report["layers"].as_array().unwrap().iter().all(|layer| layer["state"] == "extracted"));
    }
    served.registry.down();
    references.iter().for_each(|reference| is_image(&peel, reference));

    // Records of their own, which know each other's blobs, on the same data.
    let records = peel.json(&["records", "--json"]);
    let records = records.as_array().unwrap();
    assert_eq!(records.len(), 6);
    let names: std::collections::BTreeSet<_> =
        records.iter().map(|one| one["layer"].as_str().unwrap()).collect();
    assert_eq!(
        names.into_iter().map(str::to_owned).collect::<std::collections::BTreeSet<_>>(),
        digests(&served.layout.manifest("t0")).into_iter().collect()
    );
    assert!(
        records
            .iter()
            .all(|one| one["shared"] == json!(true) && !one["variants"].as_array().unwrap().is_empty())
    );

    // The data stay as long as any of them needs them.
    peel.succeed(&["rm", &references[0], "--now"]);
    assert_eq!(layers_of(&peel), before);
    is_image(&peel, &references[1]);
    assert_eq!(peel.json(&["check", "--json"])["findings"], json!([]));
    peel.succeed(&["rm", &references[1], &references[2], "--now"]);
    assert_eq!(fs::read_dir(peel.store().join("notes/archives")).unwrap().count(), 0);
    assert!(layers_of(&peel) < before / 10);
}

#[test]
fn what_is_discarded_comes_again_whichever_image_is_read() {
    let served = served(&[Form::GZIP, Form::ZSTD]);
    let peel = Peel::new();
    for reference in &served.references {
        peel.succeed(&["pull", reference, "--quiet"]);
    }
    // A mount reads what the other's blob was made into, and goes there for what is discarded meanwhile.
    let mount = peel.mount(&served.references[1]);
    served.registry.reset_counters();
    peel.succeed(&["store", "--budget", "1MiB"]);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers()).unwrap().tree(), &[]);
    mount.unmount();
    assert_eq!(served.layer_requests(&served.layout, "t1"), 0, "its ranges fit another blob");
    peel.succeed(&["store", "--budget", "none"]);
    // What is not whole is shared by nobody new: its own blob is brought.
    peel.succeed(&["gc", "--keep-bytes", "100KiB"]);
    for reference in &served.references {
        peel.succeed(&["pull", reference, "--quiet"]);
        is_image(&peel, reference);
    }
    assert_eq!(peel.json(&["check", "--json"])["findings"], json!([]));
}

/// Whoever serves it next must show the same tree, and with it the same numbers of inodes, though the image would be brought differently now.
#[test]
fn who_goes_on_with_a_mount_reads_the_data_that_it_was_mounted_on() {
    let served = served(&[Form::GZIP, Form::ZSTD]);
    let peel = Peel::new();
    for reference in &served.references {
        peel.succeed(&["pull", reference, "--quiet"]);
    }
    let [gzip, zstd] = [&served.references[0], &served.references[1]];
    let mount = peel.mount(zstd);
    let inode = || fs::metadata(mount.join("more")).unwrap().ino();
    let before = inode();
    // What it reads is not whole any more, so who mounts the image next has its own blob.
    peel.succeed(&["store", "--budget", "1MiB"]);
    served.registry.reset_counters();
    let another = peel.mount(zstd);
    assert!(served.layer_requests(&served.layout, "t1") > 0, "what is not whole is not shared");
    peel.succeed(&["rm", gzip, "--now"]);
    for server in peel.servers() {
        kill_and_wait(server);
        peel.succeed(&["gc"]);
    }
    for mount in [&mount, &another] {
        assert_same(&Tree::walk(mount.path()), &Model::of(&layers()).unwrap().tree(), &[]);
    }
    assert_eq!(inode(), before);
    another.unmount();
    mount.unmount();
    peel.wait_for_servers_to_end();
    assert_eq!(peel.json(&["check", "--json"])["findings"], json!([]));
}

#[test]
fn a_layer_with_a_table_is_shared_once_it_is_proved_and_shares_what_was_streamed() {
    let served = served(&[Form::GZIP]);
    let maker = Peel::new();
    let converted = served.directory.path().join("converted");
    let destination = format!("oci:{}:chunked", converted.display());
    maker.succeed(&["convert", &served.references[0], &destination, "--format", "zstd-chunked", "--quiet"]);
    let converted = Layout::open(converted);
    let chunked = converted.serve(&served.registry, "some/chunked", "chunked");
    let gzip = &served.references[0];
    let of_gzip = || served.layer_requests(&served.layout, "t0");
    let of_chunked = || served.layer_requests(&converted, "chunked");

    // Lazy, it may say what it likes.
    let peel = Peel::new();
    peel.succeed(&["pull", &chunked, "--quiet"]);
    of_gzip();
    peel.succeed(&["pull", gzip, "--quiet"]);
    assert!(of_gzip() >= 2);
    is_image(&peel, gzip);

    let peel = Peel::new();
    peel.succeed(&["extract", &chunked, "--quiet"]);
    of_gzip();
    peel.succeed(&["pull", gzip, "--quiet"]);
    assert_eq!(of_gzip(), 0);
    is_image(&peel, gzip);

    let peel = Peel::new();
    peel.succeed(&["pull", gzip, "--quiet"]);
    of_chunked();
    peel.succeed(&["pull", &chunked, "--quiet"]);
    assert_eq!(of_chunked(), 0);
    is_image(&peel, &chunked);
}

/// Tags an image of one layer, whose blob is put, too; with the diff ID that it claims.
fn claiming(layout: &mut Layout, tag: &str, (layer, blob): &(Encoded, Vec<u8>), diff_id: &str) -> String {
    layout.put(blob);
    let layer = Encoded { diff_id: diff_id.to_owned(), ..layer.clone() };
    let manifest = layout.put_image(&[layer], this_architecture());
    layout.tag(tag, &manifest);
    layout.reference(tag)
}

#[test]
fn a_claimed_diff_id_puts_nothing_into_anothers_image() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let file = |text: &str| vec![TestEntry::file("file", text)];
    let (honest, forged) =
        (encode_to_vec(&file("honest"), Form::ZSTD), encode_to_vec(&file("forged"), Form::GZIP));
    // First as what it is, so that it is here and proved; then as the other's.
    let first = claiming(&mut layout, "first", &forged, &forged.0.diff_id);
    let lie = claiming(&mut layout, "lie", &forged, &honest.0.diff_id);
    let victim = claiming(&mut layout, "victim", &honest, &honest.0.diff_id);
    for reference in [&first, &lie, &victim] {
        peel.run(&["pull", reference, "--quiet"]);
    }
    let read = |reference: &str| {
        let mount = peel.mount(reference);
        let text = fs::read_to_string(mount.join("file")).unwrap();
        mount.unmount();
        text
    };
    assert_eq!((read(&first), read(&victim)), ("forged".to_owned(), "honest".to_owned()));

    // Where the honest one is here first, who claims its archive is shown it, and not what he brought.
    let peel = Peel::new();
    peel.succeed(&["pull", &victim, "--quiet"]);
    let late = encode_to_vec(&file("late"), Form::GZIP);
    let lie = claiming(&mut layout, "late", &late, &honest.0.diff_id);
    peel.succeed(&["pull", &lie, "--quiet"]);
    let mount = peel.mount(&lie);
    assert_eq!(fs::read_to_string(mount.join("file")).unwrap(), "honest");
    mount.unmount();
    // What nobody could unpack is not had by a claim either.
    let sealed = Encoded { media_type: format!("{}+encrypted", late.0.media_type), ..late.0.clone() };
    let sealed = claiming(&mut layout, "sealed", &(sealed, late.1.clone()), &honest.0.diff_id);
    assert_eq!(peel.run(&["pull", &sealed, "--quiet"]).code, Some(6));
}
