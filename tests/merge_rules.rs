//! Promise: layers make one tree by the rules of the OCI image specification and, where implementations differ, by those that
//! this project decided. Judged by the reference model, by other tools where they agree, and by tables of cases.

use crate::support::archive::{TestEntry, tar_bytes};
use crate::support::blob::Form;
use crate::support::cases::{
    EVERY_ENCODING, deep_path, every_case_of_archives, every_case_of_umoci, many_layers, sparse_files,
};
use crate::support::image::Layout;
use crate::support::merged::merged_tree;
use crate::support::model::Model;
use crate::support::peel::{Peel, run_to_end};
use crate::support::random::stacks;
use crate::support::tools::Unpacked;
use crate::support::tree::{Allowed, Aspect, Tree, assert_same, differences};
use proptest::prelude::*;

/// The merge and the model agree on these layers: in the tree, or in refusing them.
#[track_caller]
fn check(layers: &[Vec<TestEntry>]) {
    match (Model::of(layers), merged_tree(layers)) {
        (Ok(model), Ok(tree)) => assert_same(&tree, &model.tree(), &[]),
        (Err(_), Err(_)) => {}
        (Ok(_), Err(error)) => panic!("refused, though the model accepts it: {error}"),
        (Err(refusal), Ok(_)) => panic!("accepted, though the model refuses it: {}", refusal.0),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_merge_as_the_model_says(layers in stacks().prop_map(Model::with_plain_markers)) {
        match (Model::of(&layers), merged_tree(&layers)) {
            (Ok(model), Ok(tree)) => {
                let found: Vec<String> = differences(&tree, &model.tree()).iter().map(ToString::to_string).collect();
                prop_assert!(found.is_empty(), "{}", found.join("\n"));
            }
            (Err(_), Err(_)) => {}
            (Ok(_), Err(error)) => prop_assert!(false, "refused: {error}"),
            // A broken hardlink that a later entry replaced: no rule says that anybody must look at it.
            (Err(_), Ok(_)) => {}
        }
    }
}
proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_layers_are_mounted_as_the_model_says(
        layers in stacks().prop_map(Model::with_plain_markers),
        form in forms(),
    ) {
        let peel = Peel::new();
        let reference = Layout::create(peel.scratch().join("layout")).image("test", &layers, form);
        // What the model refuses others may accept; see above.
        let Ok(model) = Model::of(&layers) else { return Ok(()) };
        let mount = peel.mount(&reference);
        let found: Vec<String> =
            differences(&Tree::walk(mount.path()), &model.tree()).iter().map(ToString::to_string).collect();
        prop_assert!(found.is_empty(), "{form:?}\n{}", found.join("\n"));
        mount.unmount();
    }
}

#[test]
fn a_hardlink_may_name_a_symlink_that_lies_on_its_own_way() {
    let file = |path: &str| TestEntry::file(path, "x");
    let link = |path: &str, target: &str| TestEntry::symlink(path, target);
    let hardlink = |path: &str, target: &str| TestEntry::hardlink(path, target);
    let below = vec![file("real/x"), link("link", "real")];
    check(&[below.clone(), vec![hardlink("link/second", "link")]]);
    check(&[below.clone(), vec![file("link/y"), hardlink("second", "link")]]);
    check(&[below, vec![TestEntry::directory("link"), hardlink("second", "link")]]);
    check(&[
        vec![link("a", "c/b"), TestEntry::directory("a/b/a")],
        vec![link("a/a", "../c")],
        vec![hardlink("a/a/a/a", "a/a")],
    ]);
}

#[test]
fn a_circle_of_links_that_a_layer_removes_does_no_harm() {
    let below = vec![TestEntry::symlink("c", "/a/x"), TestEntry::symlink("a", "a")];
    let removes = |marker: TestEntry| vec![marker, TestEntry::file("c/y", "x"), TestEntry::directory("a")];
    check(&[below.clone(), removes(TestEntry::whiteout("a"))]);
    check(&[below, vec![TestEntry::file("c/y", "x")]]);
}

#[test]
fn markers_make_no_directories_and_spare_the_entries_of_their_own_layer() {
    let (file, whiteout, opaque) =
        (|path: &str| TestEntry::file(path, "x"), TestEntry::whiteout, TestEntry::opaque);
    let link = |path: &str, target: &str| TestEntry::symlink(path, target);
    // Below a directory that no layer has.
    check(&[vec![whiteout("missing/x")]]);
    check(&[vec![opaque("missing")]]);
    check(&[vec![file("a")], vec![whiteout("missing/deeper/x"), opaque("missing")]]);
    // Below a file, of the layers below or of their own.
    check(&[vec![file("a")], vec![whiteout("a/x")]]);
    check(&[vec![file("a")], vec![opaque("a")]]);
    check(&[vec![file("a"), whiteout("a/x")]]);
    check(&[vec![file("d/x")], vec![file("d"), opaque("d")]]);
    // Below a link of the layers below.
    check(&[vec![link("l", "d"), file("d/lower")], vec![file("d/own"), opaque("l")]]);
    check(&[vec![link("l", "d"), file("d/own")], vec![file("d/own"), whiteout("l/own")]]);
    check(&[vec![link("l", "nowhere")], vec![whiteout("l/x")]]);
    check(&[vec![link("l", "d"), file("d/lower"), file("d/kept")], vec![whiteout("l/lower")]]);
}

fn forms() -> impl Strategy<Value = Form> {
    prop_oneof![
        Just(Form::Tar),
        Just(Form::Gzip { members: 3 }),
        Just(Form::Zstd { frames: 3 }),
        Just(Form::ESTARGZ)
    ]
}

#[test]
fn every_generated_case_merges_as_the_model_says() {
    check(&every_case_of_archives());
    check(&many_layers(60));
    check(&[deep_path(600)]);
}

/// Not about the project: that the archives, which other tests rely on, say what they describe.
#[test]
fn umoci_reads_the_generated_archives_as_the_model_does() {
    for form in [Form::Tar, Form::Gzip { members: 7 }] {
        let layers = every_case_of_umoci();
        let directory = tempfile::tempdir().expect("making a directory");
        Layout::create(directory.path()).image("test", &layers, form);
        let unpacked = Unpacked::by_umoci(&format!("{}:test", directory.path().display())).unwrap();
        let model = Model::of(&layers).unwrap();
        assert_same(&Tree::walk(&unpacked.path()), &model.tree(), &umoci_differs());
    }
}

/// Nor is this: GNU tar judges the sparse encodings, all of which it knows.
#[test]
fn gnu_tar_reads_the_generated_sparse_files_as_the_model_does() {
    let entries = sparse_files(&EVERY_ENCODING);
    let directory = tempfile::tempdir().expect("making a directory");
    let (archive, root) = (directory.path().join("archive"), directory.path().join("root"));
    std::fs::write(&archive, tar_bytes(&entries)).expect("writing an archive");
    std::fs::create_dir(&root).expect("making a directory");
    let mut command = std::process::Command::new("tar");
    command.args([
        "--extract",
        "--numeric-owner",
        "--same-permissions",
        "--xattrs",
        "--xattrs-include=*",
        "--file",
    ]);
    let outcome = run_to_end(
        {
            command.arg(&archive).arg("--directory").arg(&root);
            command
        },
        directory.path(),
    );
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let implied = Allowed::new("parents that no entry describes", |difference| {
        difference.aspect == Aspect::Modified && matches!(difference.path.as_slice(), b"" | b"sparse")
    });
    assert_same(&Tree::walk(&root), &Model::of(&[entries]).unwrap().tree(), &[implied]);
}

/// Whether a whiteout hides a name below which an entry before it lies.
fn hides_what_it_entered(layer: &[TestEntry]) -> bool {
    layer.iter().enumerate().any(|(place, marker)| {
        let below = [&*String::from_utf8_lossy(&marker.path).replace(".wh.", ""), "/"].concat();
        let is_marker = marker.path.windows(4).any(|part| part == b".wh.");
        is_marker && layer[..place].iter().any(|entry| entry.path.starts_with(below.as_bytes()))
    })
}

/// How umoci differs where the specification is silent.
pub fn umoci_differs() -> Vec<Allowed> {
    vec![
        Allowed::new(
            "missing parents: umoci makes them, and what holds them, as new as the unpacking",
            |difference| {
                let seconds = difference.left.split('+').next().and_then(|text| text.parse::<i64>().ok());
                difference.aspect == Aspect::Modified
                    && seconds.is_some_and(|seconds| (1_700_000_001..4_000_000_000).contains(&seconds))
            },
        ),
        Allowed::new("times beyond 2262: umoci counts nanoseconds in 64 bits", |difference| {
            difference.aspect == Aspect::Modified && difference.path == b"times/2300-gnu"
        }),
        Allowed::new("empty values of extended attributes: Go's archive reader loses them", |difference| {
            difference.aspect == Aspect::Xattrs && difference.path == b"xattrs/empty"
        }),
        Allowed::new("overlay's private attributes: umoci keeps those of users", |difference| {
            difference.aspect == Aspect::Xattrs && difference.path == b"xattrs/overlay"
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Not about the project at all: that the model itself tells the truth.
    #[test]
    fn the_model_agrees_with_umoci(layers in stacks()) {
        let Ok(model) = Model::of(&layers) else { return Ok(()) };
        // umoci follows a link that a later whiteout of the same layer hides; for us the whiteout's place does not matter.
        prop_assume!(!layers.iter().any(|layer| hides_what_it_entered(layer)));
        let directory = tempfile::tempdir().expect("making a directory");
        let mut layout = Layout::create(directory.path());
        layout.image("test", &layers, Form::GZIP);
        // It stops at what others accept (an entry below a file), and this is no test of umoci.
        if let Ok(unpacked) = Unpacked::by_umoci(&format!("{}:test", directory.path().display())) {
            let mut found = differences(&Tree::walk(&unpacked.path()), &model.tree());
            found.retain(|difference| !umoci_differs().iter().any(|allowed| (allowed.covers)(difference)));
            let found: Vec<String> = found.iter().map(ToString::to_string).collect();
            prop_assert!(found.is_empty(), "{}", found.join("\n"));
        }
    }
}
