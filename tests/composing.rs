//! Promise: images can be laid over each other and compared, in metadata: the result is what the layers would give, one unpacked after
//! another, a difference exported as a layer too. Nothing is fetched for it. What is made so is an image like any other, which keeps what it
//! needs.

mod exported;

use self::exported::{export, has_a_link_above_a_marker};
use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form};
use crate::support::content::Content;
use crate::support::image::Layout;
use crate::support::merged::{composed_tree, merged_tree};
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants};
use crate::support::random::stacks;
use crate::support::registry::FakeRegistry;
use crate::support::tools::{Unpacked, real_images};
use crate::support::tree::{Allowed, Aspect, Tree, assert_same, differences};
use peelfs::store::Step;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fs;

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });

/// The layers of these numbers, one on the other.
fn steps(numbers: std::ops::Range<usize>) -> Vec<Step> {
    numbers.map(|number| Step::Layer(number as u16)).collect()
}

fn difference(lower: &[Step], upper: &[Step]) -> Step {
    Step::Difference { lower: lower.to_vec(), upper: upper.to_vec() }
}

#[track_caller]
fn is_same(found: &Tree, expected: &Tree, what: &str) -> Result<(), TestCaseError> {
    let found: Vec<String> = differences(found, expected).iter().map(ToString::to_string).collect();
    prop_assert!(found.is_empty(), "{what}\n{}", found.join("\n"));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_difference_leads_from_one_tree_to_the_other(lower in stacks(), upper in stacks(), other in stacks()) {
        let (Ok(lower_tree), Ok(upper_tree)) = (merged_tree(&lower), merged_tree(&upper)) else { return Ok(()) };
        let Ok(other_tree) = merged_tree(&other) else { return Ok(()) };
        let layers = [lower.clone(), upper.clone(), other.clone()].concat();
        let (below, above) = (lower.len(), lower.len() + upper.len());
        let (lower, upper, other) = (steps(0..below), steps(below..above), steps(above..layers.len()));
        let composed = |steps: &[Step]| composed_tree(&layers, steps).map_err(TestCaseError::fail);

        let led = [lower.clone(), vec![difference(&lower, &upper)]].concat();
        is_same(&composed(&led)?, &upper_tree, "from the lower to the upper")?;
        let back = [led.clone(), vec![difference(&upper, &lower)]].concat();
        is_same(&composed(&back)?, &lower_tree, "and back")?;
        let nothing = [other.clone(), vec![difference(&led, &upper), difference(&lower, &lower)]].concat();
        is_same(&composed(&nothing)?, &other_tree, "between what is the same there is no difference")?;
        let all = [vec![difference(&[], &upper)], vec![difference(&upper, &[])]].concat();
        is_same(&composed(&all[..1])?, &upper_tree, "from nothing")?;
        prop_assert_eq!(composed(&all)?.nodes.len(), 1, "to nothing");
    }

    #[test]
    fn a_difference_does_to_any_tree_what_its_archive_does(lower in stacks(), upper in stacks(), other in stacks()) {
        let [lower, upper, other] = [lower, upper, other].map(Model::with_plain_markers);
        let (Ok(lower_tree), Ok(upper_tree)) = (Model::of(&lower), Model::of(&upper)) else { return Ok(()) };
        let Ok(mut expected) = Model::of(&other) else { return Ok(()) };
        let exported = export(&lower_tree.tree(), &upper_tree.tree());
        // Tools disagree about such, and so may we.
        prop_assume!(!has_a_link_above_a_marker(&expected.tree(), &exported));
        if expected.apply(&exported).is_err() {
            return Ok(());
        }
        let layers = [lower.clone(), upper.clone(), other.clone()].concat();
        let (below, above) = (lower.len(), lower.len() + upper.len());
        let led = difference(&steps(0..below), &steps(below..above));
        let steps = [steps(above..layers.len()), vec![led]].concat();
        // What the model accepts and the merge does not, other tests are about.
        let Ok(found) = composed_tree(&layers, &steps) else { return Ok(()) };
        is_same(&found, &expected.tree(), &format!("{exported:#?}"))?;
    }
}

#[test]
fn what_is_no_composition_is_refused() {
    let layers = [vec![TestEntry::file("a", "x")]];
    let mut deep = vec![Step::Layer(0)];
    for _ in 0..40 {
        deep = vec![difference(&[], &deep)];
    }
    for wrong in
        [vec![Step::Layer(1)], vec![difference(&[], &[Step::Layer(7)])], deep, vec![Step::Layer(0); 5000]]
    {
        assert!(composed_tree(&layers, &wrong).is_err());
    }
    assert_eq!(composed_tree(&layers, &[]).unwrap().nodes.len(), 1);
}

/// A layer with a large file of its own, and names that other layers have.
fn layer(seed: u64) -> Vec<TestEntry> {
    let noise = |part, length| Content::Noise { seed: 10 * seed + part, length };
    vec![
        TestEntry::directory(format!("own/{seed}")).mode(0o700).owner(seed as u32, 1),
        TestEntry::file(format!("own/{seed}/large"), noise(1, 1_500_000)),
        TestEntry::file(format!("own/{seed}/small"), noise(2, 900)),
        TestEntry::hardlink(format!("own/{seed}/link"), format!("own/{seed}/small")),
        TestEntry::file("shared/newest", format!("of {seed}").as_str()),
        TestEntry::whiteout(format!("shared/without-{seed}")),
        TestEntry::file(format!("shared/without-{}", seed + 1), "here"),
    ]
}

fn layers(seeds: &[u64]) -> Vec<Vec<TestEntry>> {
    seeds.iter().map(|seed| layer(*seed)).collect()
}

/// Images, each of these layers, in a registry: each in a repository of its own.
struct Served {
    registry: FakeRegistry,
    references: Vec<String>,
    /// Digests of the layers.
    digests: Vec<Vec<String>>,
    _directory: tempfile::TempDir,
}

fn served(images: &[&[u64]]) -> Served {
    let (registry, directory) = (FakeRegistry::start(), tempfile::tempdir().unwrap());
    let mut layout = Layout::create(directory.path());
    let (mut references, mut digests) = (Vec::new(), Vec::new());
    for (number, seeds) in images.iter().enumerate() {
        let tag = format!("t{number}");
        layout.image(&tag, &layers(seeds), SMALL_CHUNKS);
        references.push(layout.serve(&registry, &format!("some/image{number}"), &tag));
        let manifest = layout.manifest(&tag);
        let digest = |layer: &Value| layer["digest"].as_str().unwrap().to_owned();
        digests.push(manifest["layers"].as_array().unwrap().iter().map(digest).collect());
    }
    Served { registry, references, digests, _directory: directory }
}

impl Served {
    /// How much was asked for since the last time.
    fn requests(&self) -> (u64, u64) {
        let counters = self.registry.counters();
        self.registry.reset_counters();
        (counters.manifests + counters.blobs, counters.blob_bytes)
    }
}

#[track_caller]
fn is_image_of(peel: &Peel, name: &str, seeds: &[u64]) {
    let mount = peel.mount_with(name, &["--pull", "never"]);
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers(seeds)).unwrap().tree(), &[]);
    mount.unmount();
}

#[track_caller]
fn made(peel: &Peel, arguments: &[&str]) -> Value {
    peel.json(&[arguments, &["--json"]].concat())
}

#[test]
fn merged_images_are_their_layers_each_from_its_own_place_and_nothing_is_fetched_to_merge_them() {
    let mut served = served(&[&[1, 2], &[3, 4]]);
    let peel = Peel::new();
    let [one, two] = [&served.references[0], &served.references[1]].map(String::as_str);
    let report = made(&peel, &["merge", "both", one, two]);
    assert_eq!((&report["reference"], &report["differences"]), (&json!("localhost/both:latest"), &json!(0)));
    assert_eq!(report["layers"], json!(served.digests.concat()));
    let (_, bytes) = served.requests();
    assert!(bytes < 400_000, "{bytes} bytes for the tables of layers with 6 MB");

    // The names alone name them, and what they need stays.
    peel.succeed(&["rm", one, two, "--now"]);
    let mount = peel.mount("localhost/both");
    assert_eq!(served.requests(), (0, 0));
    let list = fs::read_dir(mount.join("own")).unwrap().count();
    assert_eq!((list, served.requests()), (4, (0, 0)));
    assert_same(&Tree::walk(mount.path()), &Model::of(&layers(&[1, 2, 3, 4])).unwrap().tree(), &[]);
    assert!(served.requests().1 > 5_000_000);
    mount.unmount();
    served.registry.down();
    is_image_of(&peel, "localhost/both", &[1, 2, 3, 4]);
    assert_eq!(peel.json(&["check", "--json"])["findings"], json!([]));
}

#[test]
fn what_is_the_same_as_something_simpler_is_that() {
    let served = served(&[&[1, 2], &[3], &[1, 2, 5, 6], &[1, 2, 5]]);
    let peel = Peel::new();
    let of = |number: usize| served.references[number].as_str();
    let digest_of = |name: &str| peel.json(&["show", name, "--json"])["manifest_digest"].clone();
    let layers_of = |report: &Value| report["layers"].clone();

    let alone = made(&peel, &["merge", "alone", of(0)]);
    assert_eq!(alone["manifest_digest"], digest_of(of(0)), "a merge of one is that one");
    let all = made(&peel, &["diff", "all", "scratch", of(0)]);
    assert_eq!(all["manifest_digest"], digest_of(of(0)), "from nothing to all");
    is_image_of(&peel, "localhost/all", &[1, 2]);

    let both = made(&peel, &["merge", "both", of(0), of(1)]);
    assert_eq!(made(&peel, &["merge", "again", of(0), of(1)])["manifest_digest"], both["manifest_digest"]);
    let nested = made(&peel, &["merge", "nested", "localhost/both", of(0)]);
    assert_eq!(
        layers_of(&nested),
        json!([&served.digests[0][..], &served.digests[1], &served.digests[0]].concat())
    );
    is_image_of(&peel, "localhost/nested", &[1, 2, 3, 1, 2]);

    let one = made(&peel, &["diff", "one", of(3), of(2)]);
    assert_eq!((layers_of(&one), &one["differences"]), (json!([served.digests[2][3]]), &json!(0)));
    let several = made(&peel, &["diff", "several", of(0), of(2)]);
    assert_eq!(layers_of(&several), json!(served.digests[2][2..]));
    is_image_of(&peel, "localhost/several", &[5, 6]);
    let on_another = made(&peel, &["merge", "on-another", of(1), "localhost/several"]);
    assert_eq!(on_another["differences"], json!(0));
    is_image_of(&peel, "localhost/on-another", &[3, 5, 6]);

    let nothing = made(&peel, &["diff", "nothing", of(0), of(0)]);
    assert_eq!(layers_of(&nothing), json!([]));
    is_image_of(&peel, "localhost/nothing", &[]);
}

#[test]
fn a_difference_of_stacks_apart_is_calculated_and_is_part_of_what_is_made_of_it() {
    let mut served = served(&[&[1, 2], &[1, 3], &[7], &[2]]);
    let peel = Peel::new();
    let of = |number: usize| served.references[number].as_str();
    for number in 0..4 {
        peel.succeed(&["pull", of(number), "--quiet"]);
    }
    served.requests();
    let apart = made(&peel, &["diff", "apart", of(0), of(1)]);
    assert_eq!(apart["differences"], json!(1));
    let merged = made(&peel, &["merge", "merged", of(2), "localhost/apart", of(3)]);
    assert_eq!(merged["differences"], json!(1));
    assert_eq!(served.requests(), (0, 0));

    let tree = |seeds: &[u64]| Model::of(&layers(seeds)).unwrap().tree();
    let exported = export(&tree(&[1, 2]), &tree(&[1, 3]));
    let alone = Model::of(std::slice::from_ref(&exported)).unwrap().tree();
    let expected = Model::of(&[layer(7), exported, layer(2)]).unwrap().tree();
    assert!(alone.nodes.contains_key(&b"own/3/link"[..]) && !alone.nodes.contains_key(&b"own/1"[..]));
    for number in 0..4 {
        peel.succeed(&["rm", of(number)]);
    }
    peel.succeed(&["tag", "localhost/merged", "localhost/other"]);
    peel.succeed(&["gc"]);
    for name in ["localhost/apart", "localhost/other"] {
        peel.mount(name).unmount();
    }
    assert_eq!(served.requests(), (0, 0));
    for (name, expected) in [("localhost/apart", &alone), ("localhost/other", &expected)] {
        let mount = peel.mount(name);
        assert_same(&Tree::walk(mount.path()), expected, &[]);
        assert!(served.requests().1 > 0);
        mount.unmount();
        let listed = peel.succeed(&["tree", name, "--json"]);
        assert_eq!(listed.lines().count(), expected.nodes.len());
    }
    // The layers below the difference are needed for their names alone.
    served.registry.down();
    for (name, expected) in [("localhost/apart", &alone), ("localhost/other", &expected)] {
        let mount = peel.mount(name);
        assert_same(&Tree::walk(mount.path()), expected, &[]);
        mount.unmount();
    }
    let refused =
        peel.run(&["push", "localhost/apart", &format!("oci:{}/pushed:t", peel.scratch().display())]);
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("no layer is made of that"), "{}", refused.stderr);
    assert_eq!(peel.json(&["check", "--json"])["findings"], json!([]));

    // What is changed above it is above it.
    let mount = peel.mount_with("localhost/apart", &["--writable"]);
    fs::write(mount.join("shared/newest"), "changed").unwrap();
    peel.succeed(&["commit", mount.path().to_str().unwrap(), "--tag", "localhost/changed"]);
    mount.unmount();
    let mount = peel.mount("localhost/changed");
    assert_eq!(fs::read_to_string(mount.join("shared/newest")).unwrap(), "changed");
    assert!(mount.join("own/3/large").exists() && !mount.join("own/1").exists());
    mount.unmount();
}

#[test]
fn wrong_words_are_told_from_wrong_images() {
    let served = served(&[&[1]]);
    let peel = Peel::new();
    let of = served.references[0].as_str();
    let missing = of.replace("image0", "missing");
    for (arguments, code, words) in [
        (vec!["diff", "x", "scratch", "scratch"], 2, "nothing leads from scratch to scratch"),
        (vec!["merge", "x"], 2, "REF"),
        (vec!["merge", "oci:x:y", of], 2, "cannot name an image"),
        (vec!["merge", "x", of, &missing], 3, "missing"),
    ] {
        let outcome = peel.run(&arguments);
        assert_eq!(outcome.code, Some(code), "{arguments:?} {}", outcome.stderr);
        assert!(outcome.stderr.contains(words), "{}", outcome.stderr);
    }
    assert_eq!(peel.run(&["show", "localhost/x"]).code, Some(3));
}

#[test]
fn a_merge_killed_at_any_instant_is_made_good_by_the_next() {
    let served = served(&[&[1, 2], &[1, 3], &[7]]);
    let peel = Peel::new();
    let of = |number: usize| served.references[number].as_str();
    for reference in &served.references {
        peel.succeed(&["pull", reference, "--quiet"]);
    }
    let merge = ["merge", "both", of(2), "localhost/apart"];
    made(&peel, &["diff", "apart", of(0), of(1)]);
    let mut undisturbed = Value::Null;
    let whole = duration_of(|| undisturbed = made(&peel, &merge));
    for instant in instants(whole) {
        peel.succeed(&["rm", "localhost/both", "--now"]);
        peel.killed_after(instant, &merge);
        let is_named = peel.run(&["show", "localhost/both"]).code == Some(0);
        if is_named {
            peel.mount("localhost/both").unmount();
        }
        peel.is_clean();
        assert_eq!(made(&peel, &merge)["manifest_digest"], undisturbed["manifest_digest"]);
    }
    peel.mount("localhost/both").unmount();
}

/// An image of the layers of several, one on the other, for another tool to unpack; `PATH:TAG`.
fn stacked(layout: &mut Layout, images: &[(&Layout, &str)]) -> String {
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    let mut config = Value::Null;
    for (from, tag) in images {
        let manifest = from.manifest(tag);
        let digest = manifest["config"]["digest"].as_str().unwrap();
        config = serde_json::from_slice(&fs::read(from.blob_path(digest)).unwrap()).unwrap();
        diff_ids.extend(config["rootfs"]["diff_ids"].as_array().unwrap().clone());
        for layer in manifest["layers"].as_array().unwrap() {
            let digest = layer["digest"].as_str().unwrap();
            fs::copy(from.blob_path(digest), layout.blob_path(digest)).unwrap();
            layers.push(layer.clone());
        }
    }
    let config = json!({
        "architecture": config["architecture"], "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = layout.put_json("application/vnd.oci.image.config.v1+json", &config);
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest = layout.put_json("application/vnd.oci.image.manifest.v1+json", &manifest);
    layout.tag("stacked", &manifest);
    format!("{}:stacked", layout.path().display())
}

/// With the images that `scripts/images --all` makes, python and node; else two forms of python.
#[test]
fn real_images_merged_are_what_umoci_makes_of_their_layers_and_no_layer_is_fetched() {
    let images = real_images();
    let python = Layout::open(images.join("python"));
    let node = images.join("node/index.json").exists().then(|| Layout::open(images.join("node")));
    let (other, tag) = node.as_ref().map_or((&python, "gzip"), |node| (node, "estargz"));
    let registry = FakeRegistry::start();
    let references = [python.serve(&registry, "python", "estargz"), other.serve(&registry, "other", tag)];
    let peel = Peel::new();
    for reference in &references {
        peel.succeed(&["pull", reference, "--quiet"]);
    }
    registry.reset_counters();
    made(&peel, &["merge", "both", &references[0], &references[1]]);
    let mount = peel.mount("localhost/both");
    let counters = registry.counters();
    assert_eq!((counters.manifests, counters.blobs), (0, 0));

    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(directory.path());
    let image = stacked(&mut layout, &[(&python, "estargz"), (other, tag)]);
    let unpacked = Unpacked::by_umoci(&image).expect("umoci unpacks the stacked layers");
    let own_files = Allowed::new("eStargz has files of its own", |difference| {
        let own: [&[u8]; 3] = [b"stargz.index.json", b".no.prefetch.landmark", b".prefetch.landmark"];
        difference.aspect == Aspect::OnlyRight && own.contains(&difference.path.as_slice())
    });
    let tree = Tree::walk(mount.path());
    assert!(tree.nodes.len() > 13_000, "the images are smaller than they should be");
    assert_same(&tree, &Tree::walk(&unpacked.path()), &[own_files]);
    drop(tree);
    mount.unmount();
}
