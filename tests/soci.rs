//! Promise: an ordinary image that names a SOCI index is mounted by it, as the image that it is: nothing of its layers is fetched but what
//! is read, span by span, each verified; and however a zTOC lies, nobody reads bytes under a name, size or mode that the
//! archive does not give them.

use crate::support::archive::TestEntry;
use crate::support::cases::every_case_of_archives;
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::model::Model;
use crate::support::peel::{Mount, Outcome, Peel, is_mount_point};
use crate::support::registry::{FakeRegistry, Fault, Request};
use crate::support::soci::{self, SociIndex, SociLayer, gzip_layer, tar_layer};
use crate::support::tools::{Unpacked, real_images};
use crate::support::tree::{Tree, assert_same};
use peelfs::layer::soci::ztoc::{FileType, Ztoc};
use serde_json::Value;
use std::fs;
use std::path::Path;

const SPAN: usize = 64 << 10;

/// An image of these layers in a registry.
struct Served {
    registry: FakeRegistry,
    layers: Vec<SociLayer>,
    index: SociIndex,
    reference: String,
    _directory: tempfile::TempDir,
}

impl Served {
    fn image(layers: Vec<SociLayer>) -> Served {
        let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
        let mut layout = Layout::create(directory.path());
        let index = soci::put_image(&mut layout, "test", &layers);
        let reference = soci::serve(&layout, &registry, "some/name", "test", &index);
        Served { registry, layers, index, reference, _directory: directory }
    }

    /// One whose zTOC was changed.
    fn lying(change: impl FnOnce(&mut Ztoc)) -> Served {
        let mut layer = gzip_layer(&layer(), SPAN, 100);
        change(layer.ztoc.as_mut().unwrap());
        Served::image(vec![layer])
    }

    fn blob_requests(&self, digest: &str) -> usize {
        let path = format!("/v2/some/name/blobs/{digest}");
        self.registry.requests().iter().filter(|request| request.target == path).count()
    }

    fn is_refused(&self, peel: &Peel, named: &[&str]) -> Outcome {
        let point = peel.mount_point();
        let outcome = peel.run(&["mount", &self.reference, point.to_str().unwrap()]);
        assert!(!is_mount_point(&point), "something is mounted after {outcome:?}");
        assert_ne!(outcome.code, Some(0));
        assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
        for name in named {
            assert!(outcome.stderr.contains(name), "{name:?} is not named: {}", outcome.stderr);
        }
        outcome
    }

    /// Mounts it and finds the true image, got in one stream.
    fn is_streamed(&self) {
        let peel = Peel::new();
        let mount = peel.mount(&self.reference);
        assert_same(&Tree::walk(mount.path()), &model(&[layer()]), &[]);
        assert_eq!(self.blob_requests(&self.layers[0].encoded.digest), 1);
        mount.unmount();
    }
}

fn noise(length: u64) -> Content {
    Content::Noise { seed: length, length }
}

fn layer() -> Vec<TestEntry> {
    vec![
        TestEntry::directory("directory"),
        TestEntry::file("directory/small", "small").mode(0o600).owner(7, 8).xattr("user.name", b"\0\xff"),
        TestEntry::file("large", noise(3 << 20)).modified(1_700_000_000, 123_456_789),
        TestEntry::symlink("link", "large"),
        TestEntry::hardlink("hardlink", "large"),
        TestEntry::file("middle", noise(200_000)),
        TestEntry::file("last", "the last one"),
    ]
}

fn model(layers: &[Vec<TestEntry>]) -> Tree {
    Model::of(layers).unwrap_or_else(|refusal| panic!("{}", refusal.0)).tree()
}

#[track_caller]
fn mount_is_the_model(layers: &[Vec<TestEntry>], make: impl Fn(&[TestEntry]) -> SociLayer) {
    let served = Served::image(layers.iter().map(|entries| make(entries)).collect());
    let peel = Peel::new();
    let mount = peel.mount(&served.reference);
    assert_same(&Tree::walk(mount.path()), &model(layers), &[]);
    mount.unmount();
}

#[test]
fn an_image_mounted_by_its_soci_index_is_the_image() {
    let cases = every_case_of_archives();
    mount_is_the_model(&cases, |entries| gzip_layer(entries, SPAN, usize::MAX));
    mount_is_the_model(&cases, |entries| gzip_layer(entries, 1000, 3));
    mount_is_the_model(&cases, |entries| tar_layer(entries, SPAN));
    mount_is_the_model(&cases, |entries| tar_layer(entries, 777));
}

/// The real image with what Debian's soci makes of it, named as version 2 would.
#[test]
fn debian_python_by_the_reference_s_ztocs_is_what_umoci_unpacks() {
    let images = real_images();
    let Some((layout, index, _directory)) = python_named_by_its_manifest(&images.join("python-soci")) else {
        println!("{} has no python-soci: scripts/images --all makes it", images.display());
        return;
    };
    let unpacked = Unpacked::by_umoci(&format!("{}:gzip", images.join("python").display())).unwrap();
    let registry = FakeRegistry::start();
    let reference = soci::serve(&layout, &registry, "python", "v2", &index);
    let peel = Peel::new();
    let mount = peel.mount(&reference);
    // Manifest, config, index, and a zTOC for each layer.
    assert_eq!(registry.requests().len(), 3 + index.ztocs.len());
    assert_same(&Tree::walk(mount.path()), &Tree::walk(&unpacked.path()), &[]);
    mount.unmount();
    let fresh = Peel::new();
    let from_layout = fresh.mount(&layout.reference("v2"));
    assert!(fs::read_to_string(from_layout.join("etc/os-release")).unwrap().contains("Debian"));
    from_layout.unmount();
}

/// A layout with the blobs of that one, whose manifest names an index of the same zTOCs.
fn python_named_by_its_manifest(directory: &Path) -> Option<(Layout, SociIndex, tempfile::TempDir)> {
    if !directory.exists() {
        return None;
    }
    let made = Layout::open(directory);
    let scratch = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(scratch.path());
    for blob in fs::read_dir(directory.join("blobs/sha256")).unwrap().map(Result::unwrap) {
        std::os::unix::fs::symlink(
            blob.path().canonicalize().unwrap(),
            scratch.path().join("blobs/sha256").join(blob.file_name()),
        )
        .unwrap();
    }
    let ztocs: Vec<Value> = made.manifest("soci-v1")["layers"].as_array().unwrap().clone();
    assert_eq!(ztocs.len(), made.manifest("gzip")["layers"].as_array().unwrap().len());
    let index = soci::put_index(&layout, ztocs);
    soci::name_index(&mut layout, "v2", made.manifest("gzip"), &index.digest);
    Some((layout, index, scratch))
}

#[test]
fn mounting_fetches_the_ztocs_and_reading_the_spans_that_are_read() {
    let served = Served::image(vec![gzip_layer(&layer(), SPAN, 100)]);
    let peel = Peel::new();
    let mount = peel.mount(&served.reference);
    let (_, ztoc) = &served.index.ztocs[0];
    assert_eq!((served.registry.requests().len(), served.blob_requests(ztoc)), (4, 1));
    let layer = &served.layers[0];
    assert_eq!(served.blob_requests(&layer.encoded.digest), 0);
    let fetched = |from: usize| -> Vec<u64> {
        let all = served.registry.requests();
        all[from..].iter().map(|request| request.bytes).collect()
    };
    // Both its headers and its content lie in the first span.
    assert_eq!(fs::read(mount.join("directory/small")).unwrap(), b"small");
    assert_eq!(fetched(4), [layer.spans[0].len() as u64]);
    // Another name of it, or another read, proves and fetches nothing again.
    assert_eq!(fs::read(mount.join("directory/small")).unwrap(), b"small");
    assert_eq!(fetched(4).len(), 1);
    // The headers lie in the first span, too; what is read, in another.
    let mut bytes = [0; 100];
    use std::os::unix::fs::FileExt;
    fs::File::open(mount.join("hardlink")).unwrap().read_exact_at(&mut bytes, 2 << 20).unwrap();
    let mut expected = [0; 100];
    noise(3 << 20).read_at(2 << 20, &mut expected);
    assert_eq!(bytes, expected);
    assert!(fetched(4).iter().sum::<u64>() < layer.blob.len() as u64 / 2, "{:?}", fetched(4));
    mount.unmount();

    // Mounted again, nothing is asked for, and what was not read yet is still proved.
    let before = served.registry.requests().len();
    let again = peel.mount(&served.reference);
    assert_eq!(served.registry.requests().len(), before);
    assert_same(&Tree::walk(again.path()), &model(&[self::layer()]), &[]);
    again.unmount();
}

#[test]
fn a_layer_without_ztoc_is_streamed_and_one_with_is_not() {
    let mut layers =
        vec![gzip_layer(&layer(), SPAN, 100), gzip_layer(&[TestEntry::file("upper", "upper")], SPAN, 1)];
    layers[1].ztoc = None;
    let served = Served::image(layers);
    let peel = Peel::new();
    let mount = peel.mount(&served.reference);
    assert_eq!(fs::read(mount.join("upper")).unwrap(), b"upper");
    let requests: Vec<usize> =
        served.layers.iter().map(|layer| served.blob_requests(&layer.encoded.digest)).collect();
    assert_eq!(requests, [0, 1]);
    mount.unmount();
}

#[test]
fn an_index_or_ztoc_that_is_gone_or_does_not_tell_enough_lets_layers_be_streamed() {
    let whole = || Served::image(vec![gzip_layer(&layer(), SPAN, 100)]);
    let served = whole();
    let index = format!("/v2/some/name/manifests/{}", served.index.digest);
    served.registry.set_fault(&index, Fault::Status(404));
    served.is_streamed();
    let served = whole();
    let ztoc = format!("/v2/some/name/blobs/{}", served.index.ztocs[0].1);
    served.registry.set_fault(&ztoc, Fault::Status(404));
    served.is_streamed();

    Served::lying(|ztoc| ztoc.files[2].modified = None).is_streamed();
    Served::lying(|ztoc| {
        ztoc.files[2].pax_records.push((b"GNU.sparse.major".to_vec(), b"1".to_vec()));
    })
    .is_streamed();
    // Entries in another order are the same layer.
    let served = Served::lying(|ztoc| ztoc.files.reverse());
    let peel = Peel::new();
    let mount = peel.mount(&served.reference);
    assert_same(&Tree::walk(mount.path()), &model(&[layer()]), &[]);
    mount.unmount();
}

/// It is known before the mount appears: else nothing of it could be read.
#[test]
fn a_layer_whose_host_does_not_read_by_ranges_is_streamed() {
    // Of two layers: what was learnt at one need not be asked again.
    let cases = [
        ("ignored", Fault::IgnoreRange),
        ("a whole blob apart", Fault::RefuseRange(416)),
        ("refused", Fault::RefuseRange(400)),
        ("not implemented", Fault::RefuseRange(501)),
    ];
    for (what, fault) in cases {
        let served = Served::image(vec![gzip_layer(&layer(), SPAN, 100)]);
        served.registry.set_fault("blobs/", fault);
        let peel = Peel::new();
        let mount = peel.mount(&served.reference);
        served.registry.set_fault("blobs/", Fault::Status(404));
        assert_same(&Tree::walk(mount.path()), &model(&[layer()]), &[]);
        let explained = peel.json(&["explain", "--json", &served.reference])["layers"][0].clone();
        assert_eq!(
            explained["streamed_because"], "its host does not read by ranges",
            "{what}: {explained:#}"
        );
        assert!(log(&peel).contains("does not read by ranges"), "{what}: {}", log(&peel));
        let asked = served.blob_requests(&served.layers[0].encoded.digest);
        assert!(asked <= 3, "{what}: {:?}", served.registry.requests());
        mount.unmount();
    }
}

/// A host may send all of a blob to whoever asks for the range that is all of it. That costs one request more, and no laziness.
#[test]
fn a_layer_whose_host_only_ignores_ranges_that_are_whole_blobs_is_lazy() {
    let served = Served::image(vec![gzip_layer(&layer(), SPAN, 100)]);
    served.registry.set_fault("blobs/", Fault::IgnoreWholeRange);
    let peel = Peel::new();
    let mount = peel.mount(&served.reference);
    let layer = &served.layers[0];
    let of_layer = |request: &&Request| request.target.ends_with(&layer.encoded.digest);
    let requests = served.registry.requests();
    assert_eq!(requests.iter().filter(of_layer).map(|request| request.bytes).collect::<Vec<_>>(), [1]);
    assert_eq!(fs::read(mount.join("directory/small")).unwrap(), b"small");
    assert_eq!(peel.json(&["explain", "--json", &served.reference])["layers"][0]["index"], "soci-named");
    mount.unmount();
}

#[test]
fn an_index_or_ztoc_that_is_another_is_refused() {
    let served = Served::image(vec![gzip_layer(&layer(), SPAN, 100)]);
    let ztoc = served.index.ztocs[0].1.parse().unwrap();
    let mut bytes = served.layers[0].ztoc.as_ref().unwrap().write();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    served.registry.put_blob_as(&ztoc, bytes);
    served.is_refused(&Peel::new(), &["digest", ztoc.as_str()]);

    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(directory.path());
    let index = soci::put_image(&mut layout, "test", &[gzip_layer(&layer(), SPAN, 100)]);
    fs::write(layout.blob_path(&index.digest), "{}").unwrap();
    let peel = Peel::new();
    let point = peel.mount_point();
    let outcome = peel.run(&["mount", &layout.reference("test"), point.to_str().unwrap()]);
    assert!(outcome.code != Some(0) && outcome.stderr.contains(&index.digest), "{outcome:?}");
}

/// What the error or the file is called, and how the zTOC lies.
type Lie = (&'static str, fn(&mut Ztoc));

#[test]
fn a_ztoc_that_cannot_be_is_refused() {
    let cases: [Lie; 10] = [
        ("bytes", |ztoc| ztoc.compressed_size += 1),
        ("archive", |ztoc| ztoc.uncompressed_size = 1 << 50),
        ("spans", |ztoc| ztoc.compression.max_span_id += 1),
        ("spans", |ztoc| ztoc.compression.span_digests.truncate(3)),
        ("checkpoints", |ztoc| ztoc.compression.checkpoints.truncate(1000)),
        // The second checkpoint goes back: first in the blob, then in the archive.
        ("span", |ztoc| ztoc.compression.checkpoints[12 + 32_785..][..8].fill(0)),
        ("span", |ztoc| ztoc.compression.checkpoints[12 + 32_785 + 8..][..8].fill(0)),
        ("large", |ztoc| ztoc.files[2].uncompressed_size = 1 << 40),
        ("large", |ztoc| ztoc.files[2].uncompressed_offset += 1),
        ("last", |ztoc| ztoc.files[6].uncompressed_offset = u64::MAX >> 1),
    ];
    for (named, change) in cases {
        let served = Served::lying(change);
        served.is_refused(&Peel::new(), &[named]);
    }
}

/// Whatever is claimed of a file, its first read finds out.
#[test]
fn a_file_that_its_archive_does_not_have_so_cannot_be_read() {
    let cases: [Lie; 11] = [
        ("large", |ztoc| ztoc.files[2].uncompressed_offset -= 512),
        ("passwd", |ztoc| ztoc.files[5].name = b"../../passwd".to_vec()),
        ("other", |ztoc| ztoc.files[5].name = b"other".to_vec()),
        ("middle", |ztoc| ztoc.files[5].mode = 0o4755),
        ("middle", |ztoc| ztoc.files[5].uid = 1),
        ("middle", |ztoc| ztoc.files[5].gid = 1),
        ("middle", |ztoc| ztoc.files[5].modified.as_mut().unwrap().nanoseconds = 1),
        ("middle", |ztoc| ztoc.files[5].uncompressed_size -= 1),
        ("middle", |ztoc| ztoc.files[5].pax_records.push((b"SCHILY.xattr.user.x".to_vec(), b"1".to_vec()))),
        // Another file's bytes under this name; and the bytes of what is none.
        ("middle", |ztoc| {
            ztoc.files.remove(6);
            ztoc.files[5].uncompressed_offset += 512;
        }),
        ("link", |ztoc| {
            ztoc.files[3].kind = FileType::Regular;
            ztoc.files.remove(4);
            ztoc.files[3].uncompressed_size = 5;
        }),
    ];
    for (number, (name, change)) in cases.into_iter().enumerate() {
        let served = Served::lying(change);
        let peel = Peel::new();
        let mount = peel.mount(&served.reference);
        for _ in 0..2 {
            cannot_be_read(&mount, name, number);
        }
        // What it does not lie about can.
        assert_eq!(fs::read(mount.join("directory/small")).unwrap(), b"small", "{number}");
        let log = log(&peel);
        assert!(log.contains("zTOC"), "{number}: {log}");
        mount.unmount();
    }
}

#[track_caller]
fn cannot_be_read(mount: &Mount<'_>, name: &str, case: usize) {
    let error = fs::read(mount.join(name)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{case}");
}

/// What the serving processes of a store have written.
fn log(peel: &Peel) -> String {
    let logs = fs::read_dir(peel.store().join("log")).unwrap().map(|entry| entry.unwrap().path());
    logs.map(|path| fs::read_to_string(path).unwrap()).collect()
}

/// Two images of one layer: what the index of one says of it is not what the other shows.
#[test]
fn an_index_counts_for_the_images_that_name_it_only() {
    let honest = gzip_layer(&layer(), SPAN, 100);
    let mut lying = honest.clone();
    let files = &mut lying.ztoc.as_mut().unwrap().files;
    files[3].link_name = b"elsewhere".to_vec();
    let mut without = honest.clone();
    without.ztoc = None;
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(directory.path());
    soci::put_image(&mut layout, "lying", &[lying]);
    soci::put_image(&mut layout, "honest", &[honest]);
    soci::put_image(&mut layout, "without", &[without]);
    let peel = Peel::new();
    let link_of = |tag: &str| {
        let mount = peel.mount(&layout.reference(tag));
        let target = fs::read_link(mount.join("link")).unwrap();
        mount.unmount();
        target.to_str().unwrap().to_owned()
    };
    // A link is proved by nobody; it is only the liar's own image that shows it.
    for round in 0..2 {
        assert_eq!(link_of("lying"), if round == 0 { "elsewhere" } else { "large" });
        assert_eq!(link_of("honest"), "large");
        // From here on the layer is one that was made from its archive, which is as good for all.
        assert_eq!(link_of("without"), "large");
    }
}

#[test]
fn a_known_image_is_mounted_without_its_registry() {
    let mut served = Served::image(vec![gzip_layer(&layer(), SPAN, 100)]);
    let peel = Peel::new();
    let mount = peel.mount(&served.reference);
    assert_same(&Tree::walk(mount.path()), &model(&[layer()]), &[]);
    mount.unmount();
    served.registry.down();
    let again = peel.mount(&served.reference);
    assert_same(&Tree::walk(again.path()), &model(&[layer()]), &[]);
    again.unmount();
}

#[test]
fn a_span_that_is_another_is_never_read() {
    let served = Served::image(vec![gzip_layer(&layer(), SPAN, 100)]);
    let peel = Peel::new();
    let mount = peel.mount(&served.reference);
    let layer = &served.layers[0];
    // Of a span that holds nothing but noise: a byte that deflate would take as it is.
    let mut blob = layer.blob.clone();
    blob[layer.spans[20].start + layer.spans[20].len() / 2] ^= 1;
    served.registry.put_blob_as(&layer.encoded.digest.parse().unwrap(), blob);
    assert_eq!(fs::read(mount.join("directory/small")).unwrap(), b"small");
    assert_eq!(fs::read(mount.join("large")).unwrap_err().raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::read(mount.join("last")).unwrap(), b"the last one");
    mount.unmount();
}
