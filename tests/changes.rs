//! Promise: what is different between any two records is told by their tables alone: names as a plain comparison of the unpacked directories
//! finds them, and bytes; and as an archive, which for a layer on its parent is the one that it came as, to the byte.

use crate::support::archive::{Kind, TestEntry};
use crate::support::blob::{Encoded, Estargz, Footer, Form, sha256};
use crate::support::cases::every_case;
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::Peel;
use crate::support::registry::FakeRegistry;
use crate::support::tools::{Unpacked, real_images};
use crate::support::tree::{Aspect, Node, NodeKind, Tree, assert_same, differences};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });

/// Letter and path.
type Names = BTreeSet<(char, Vec<u8>)>;

/// Directories of all names above a path, the root not among them.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(place, _)| &path[..place])
}

/// All names of what is there.
fn names_of<'a>(tree: &'a Tree, path: &[u8]) -> BTreeSet<&'a [u8]> {
    let Some(node) = tree.nodes.get(path) else { return BTreeSet::new() };
    tree.nodes.iter().filter(|(_, other)| other.inode == node.inode).map(|(path, _)| &path[..]).collect()
}

/// What a comparison of two directories finds, by the rules of `docker diff`. A file that lost one of its names is what it was.
fn plain_comparison(before: &Tree, after: &Tree) -> Names {
    let mut found: BTreeMap<Vec<u8>, char> = BTreeMap::new();
    let is_directory = |tree: &Tree, path: &[u8]| tree.nodes.get(path).is_some_and(Node::is_directory);
    for difference in differences(before, after) {
        let path = difference.path;
        let kind = match difference.aspect {
            Aspect::OnlyRight => 'A',
            Aspect::OnlyLeft => {
                let parent = above(&path).last().unwrap_or_default();
                if !is_directory(after, parent) {
                    continue;
                }
                'D'
            }
            Aspect::LinkCount if is_directory(after, &path) => continue,
            Aspect::LinkCount | Aspect::LinkGroup
                if names_of(after, &path).is_subset(&names_of(before, &path)) =>
            {
                continue;
            }
            _ => 'C',
        };
        for directory in above(&path) {
            if before.nodes.contains_key(directory) && after.nodes.contains_key(directory) {
                found.entry(directory.to_vec()).or_insert('C');
            }
        }
        found.insert(path, kind);
    }
    found.remove(&b""[..]);
    found.into_iter().map(|(path, letter)| (letter, [b"/", &path[..]].concat())).collect()
}

/// Bytes of files and symlinks that are listed as added or changed, each inode once.
fn plain_size(names: &Names, after: &Tree) -> u64 {
    let stated = names.iter().filter(|(letter, _)| *letter != 'D').map(|(_, path)| &after.nodes[&path[1..]]);
    let sized = stated.filter(|node| matches!(node.kind, NodeKind::File(_) | NodeKind::Symlink(_)));
    sized.map(|node| (node.inode, node.size)).collect::<BTreeMap<_, _>>().values().sum()
}

fn listed(peel: &Peel, sides: &[&str]) -> Names {
    let text = peel.succeed(&[&["changes"], sides].concat());
    let names: Vec<(char, Vec<u8>)> =
        text.lines().map(|line| (line.chars().next().unwrap(), line.as_bytes()[2..].to_vec())).collect();
    let mut sorted = names.clone();
    sorted.sort_by(|one, other| one.1.cmp(&other.1));
    assert_eq!(names, sorted, "in the order of the paths");
    names.into_iter().collect()
}

/// The same by JSON, where paths of any bytes can be told.
fn listed_json(peel: &Peel, sides: &[&str]) -> Names {
    let report = peel.json(&[&["changes", "--json"], sides].concat());
    let changes = report["changes"].as_array().unwrap().iter().map(|change| {
        let letter = match change["change"].as_str().unwrap() {
            "added" => 'A',
            "changed" => 'C',
            _ => 'D',
        };
        let path = match change["path_bytes"].as_array() {
            Some(bytes) => bytes.iter().map(|byte| byte.as_u64().unwrap() as u8).collect(),
            None => change["path"].as_str().unwrap().as_bytes().to_vec(),
        };
        (letter, path)
    });
    changes.collect()
}

#[track_caller]
fn assert_names(found: &Names, expected: &Names, what: &str) {
    let shown = |names: BTreeSet<&(char, Vec<u8>)>| {
        names.iter().map(|(letter, path)| format!("{letter} {}", path.escape_ascii())).collect::<Vec<_>>()
    };
    let (missing, unexpected) = (expected.difference(found).collect(), found.difference(expected).collect());
    assert_eq!((shown(missing), shown(unexpected)), (vec![], vec![]), "missing and unexpected, {what}");
}

/// Ids of the records of an image's layers, the lowest first.
fn chain(peel: &Peel, reference: &str) -> Vec<Value> {
    let mut chain = vec![peel.json(&["records", reference, "--json"])];
    while let Some(parent) = chain[chain.len() - 1]["parents"].get(0).cloned() {
        chain.push(peel.json(&["records", parent.as_str().unwrap(), "--json"]));
    }
    chain.reverse();
    chain
}

fn id(record: &Value) -> &str {
    record["id"].as_str().unwrap()
}

/// Files that two images have, have in other ways, or have not, with every kind of change.
fn lower_layers() -> Vec<Vec<TestEntry>> {
    let noise = |seed, length| Content::Noise { seed, length };
    vec![
        vec![
            TestEntry::directory("./"),
            TestEntry::directory("kept").mode(0o700),
            TestEntry::file("kept/large", noise(1, 1_500_000)),
            TestEntry::file("kept/small", "small"),
            TestEntry::directory("gone"),
            TestEntry::file("gone/in it", "x"),
            TestEntry::file("mode", "x"),
            TestEntry::file("time", "x"),
            TestEntry::file("attribute", "x").xattr("user.one", "1"),
            TestEntry::file("content", noise(2, 100_000)),
            TestEntry::symlink("link", "kept/small"),
            TestEntry::file("several", "names"),
            TestEntry::hardlink("names", "several"),
            TestEntry::file("file to directory", "x"),
            TestEntry::directory("directory to file"),
            TestEntry::file("directory to file/x", "x"),
            TestEntry::directory("remade"),
            TestEntry::file("remade/old", "x"),
            TestEntry::directory("nothing in it changed"),
            TestEntry::file("nothing in it changed/x", "x"),
            TestEntry::file("a.b", "sorts before a/b"),
            TestEntry::directory("a"),
        ],
        vec![TestEntry::file("kept/second", noise(3, 5000))],
    ]
}

fn upper_changes() -> Vec<TestEntry> {
    let noise = |seed, length| Content::Noise { seed, length };
    vec![
        TestEntry::whiteout("gone"),
        TestEntry::file("mode", "x").mode(0o4755),
        TestEntry::file("time", "x").modified(1_600_000_001, 0),
        TestEntry::file("attribute", "x").xattr("user.one", "2"),
        TestEntry::file("content", noise(9, 100_000)),
        TestEntry::symlink("link", "kept/large"),
        TestEntry::hardlink("third name", "several"),
        TestEntry::directory("file to directory"),
        TestEntry::file("file to directory/x", noise(4, 70_000)),
        TestEntry::file("directory to file", "x"),
        TestEntry::whiteout("remade"),
        TestEntry::directory("remade").mode(0o711),
        TestEntry::file("remade/new", "y"),
        TestEntry::file("a.c", "new"),
        TestEntry::file("a/b", "new"),
        TestEntry::directory("new"),
        TestEntry::directory("new/deep"),
        TestEntry::directory("new/deep/er").mode(0o750),
        TestEntry::fifo("new/fifo"),
    ]
}

fn stack(parts: &[&[Vec<TestEntry>]]) -> Vec<Vec<TestEntry>> {
    parts.concat()
}

#[test]
fn names_and_bytes_are_those_of_a_plain_comparison_of_the_unpacked_images() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(directory.path());
    let (lower, changed) = (lower_layers(), upper_changes());
    let upper = stack(&[&lower, std::slice::from_ref(&changed)]);
    // The same files, in layers that are none of the others.
    let mut apart = lower.concat();
    apart.extend([TestEntry::file("one more", "x")]);
    for (tag, layers) in [("lower", lower), ("upper", upper), ("apart", vec![apart])] {
        layout.image(tag, &layers, SMALL_CHUNKS);
        // Without the file that eStargz adds.
        layout.image(&format!("plain-{tag}"), &layers, Form::GZIP);
    }
    let image = |tag: &str| layout.serve(&registry, "some/name", tag);
    let [lower, upper, apart] = ["lower", "upper", "apart"].map(image);
    for reference in [&lower, &upper, &apart] {
        peel.succeed(&["pull", reference]);
    }
    let unpacked = ["lower", "upper", "apart"]
        .map(|tag| Unpacked::by_umoci(&format!("{}:plain-{tag}", layout.path().display())).unwrap());
    let trees = unpacked.each_ref().map(|unpacked| Tree::walk(&unpacked.path()));
    let empty = Model::new().tree();
    let fetched = registry.counters().blobs;
    for (sides, before, after) in [
        ([&lower[..], &upper], &trees[0], &trees[1]),
        ([&upper, &lower], &trees[1], &trees[0]),
        ([&lower, &apart], &trees[0], &trees[2]),
        ([&upper, &apart], &trees[1], &trees[2]),
        ([&apart, &upper], &trees[2], &trees[1]),
        ([&lower, &lower], &trees[0], &trees[0]),
        (["scratch", &upper], &empty, &trees[1]),
    ] {
        let expected = plain_comparison(before, after);
        let found = listed(&peel, &sides);
        assert_names(&found, &expected, &format!("{sides:?}"));
        assert_eq!(listed_json(&peel, &sides), found);
        let size = peel.succeed(&["changes", "--size", sides[0], sides[1]]);
        assert_eq!(size.trim(), plain_size(&expected, after).to_string(), "{sides:?}");
        assert_eq!(
            peel.json(&["changes", "--json", "--size", sides[0], sides[1]])["size"],
            size.trim().parse::<u64>().unwrap()
        );
    }
    let expected: Names =
        [&b"/gone"[..], b"/a", b"/a.b", b"/a.c"].iter().map(|path| ('D', path.to_vec())).collect();
    let to_nothing = listed(&peel, &[&upper, "scratch"]);
    assert!(to_nothing.iter().all(|(letter, _)| *letter == 'D'), "{to_nothing:?}");
    assert_eq!(expected.intersection(&to_nothing).count(), 3, "what is not in it cannot be deleted");
    // Of one record: against its parent.
    let of_image = listed(&peel, &[&upper]);
    assert_eq!(of_image, listed(&peel, &[&lower, &upper]));
    let records = chain(&peel, &upper);
    assert_eq!(listed(&peel, &[id(&records[2])]), of_image);
    assert_eq!(listed(&peel, &[records[2]["blob"].as_str().unwrap()]), of_image);
    assert_eq!(listed(&peel, &[id(&records[0])]), listed(&peel, &["scratch", id(&records[0])]));
    peel.succeed(&["diff", "made", &lower, &apart]);
    let made = peel.json(&["records", "localhost/made", "--json"]);
    assert_eq!(
        listed(&peel, &[id(&made)]),
        listed(&peel, &[&lower, &apart]),
        "a diff, against its own lower"
    );
    assert_eq!(registry.counters().blobs, fetched, "nothing was fetched for it");
}

/// In an archive that was streamed, a file that is stated again may be the same, and is listed: nothing is read to find out.
#[test]
fn layers_of_every_case_are_listed_by_what_they_change() {
    let layers = every_case();
    for form in [SMALL_CHUNKS, Form::GZIP] {
        let peel = Peel::new();
        let mut layout = Layout::create(peel.scratch().join("layout"));
        let reference = layout.image("test", &layers, form);
        peel.succeed(&["pull", &reference]);
        let records = chain(&peel, &reference);
        for number in 0..layers.len() {
            // A table of contents has no fractions of seconds, but neither side has them.
            let before = Model::of(&layers[..number]).unwrap().tree();
            let after = Model::of(&layers[..=number]).unwrap().tree();
            let expected = plain_comparison(&before, &after);
            let found = listed_json(&peel, &[id(&records[number])]);
            let extra: Vec<_> = found.difference(&expected).collect();
            assert_eq!(
                expected.difference(&found).collect::<Vec<_>>(),
                Vec::<&(char, Vec<u8>)>::new(),
                "{form:?} {number}"
            );
            for (letter, path) in extra {
                let path = &path[1..];
                let is_stated = layers[number].iter().any(|entry| {
                    let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
                    name == path || name.starts_with(&[path, b"/"].concat())
                });
                assert!(
                    *letter == 'C' && is_stated && form == Form::GZIP,
                    "{form:?} {letter} {}",
                    path.escape_ascii()
                );
            }
        }
    }
}

fn tar(peel: &Peel, sides: &[&str]) -> (Vec<u8>, Value) {
    let file = peel.scratch().join("archive.tar");
    let arguments = [&["changes", "--tar", "--json", "--output", file.to_str().unwrap()], sides].concat();
    let report = peel.json(&arguments)["tar"].clone();
    let bytes = fs::read(&file).unwrap();
    assert_eq!(report["digest"], sha256(&bytes));
    assert_eq!(report["bytes"], bytes.len());
    fs::remove_file(&file).unwrap();
    (bytes, report)
}

/// Asks for the archive of each layer of an image, which is here, without its registry.
#[track_caller]
pub fn archives_are_the_layers_own(peel: &Peel, reference: &str, what: &str) {
    for record in chain(peel, reference) {
        let file = peel.scratch().join("layer.tar");
        let sides = ["changes", "--tar", "--json", "--output", file.to_str().unwrap(), id(&record)];
        let report = peel.json(&sides)["tar"].clone();
        assert_eq!((&report["digest"], &report["original"]), (&record["diff_id"], &json!(true)), "{what}");
        // Judged by who did not write it.
        assert_eq!(json!(sha256(&fs::read(&file).unwrap())), record["diff_id"], "{what}");
        fs::remove_file(&file).unwrap();
    }
}

#[test]
fn the_archive_of_a_layer_is_the_one_that_it_came_as() {
    let layers = every_case();
    for form in [Form::Tar, Form::GZIP, Form::Zstd { frames: 3 }, Form::ESTARGZ, SMALL_CHUNKS] {
        let (peel, mut registry) = (Peel::new(), FakeRegistry::start());
        let mut layout = Layout::create(peel.scratch().join("layout"));
        layout.image("test", &layers, form);
        let reference = layout.serve(&registry, "some/name", "test");
        peel.succeed(&["extract", "--quiet", &reference]);
        registry.down();
        archives_are_the_layers_own(&peel, &reference, &format!("{form:?}"));
        assert_eq!(peel.json(&["check", "--json"])["findings"], json!([]), "{form:?}");
    }
    // Both dialects of zstd:chunked, and an eStargz whose table is elsewhere, as `peel convert` writes them.
    for options in [&["--format", "zstd-chunked"][..], &["--format", "estargz", "--external-toc"]] {
        let peel = Peel::new();
        let mut layout = Layout::create(peel.scratch().join("layout"));
        let source = layout.image("test", &layers, Form::Tar);
        let made = format!("oci:{}:made", peel.scratch().join("made").display());
        peel.succeed(&[&["convert", &source, &made], options].concat());
        peel.succeed(&["extract", "--quiet", &made]);
        fs::rename(peel.scratch().join("made"), peel.scratch().join("away")).unwrap();
        archives_are_the_layers_own(&peel, &made, &format!("{options:?}"));
    }
}

/// Other forms of them are asked where they are extracted anyway.
#[test]
fn archives_of_real_layers_have_their_diff_ids() {
    let layout = Layout::open(real_images().join("python"));
    for tag in ["zstd-chunked-podman"].into_iter().filter(|tag| layout.has_tag(tag)) {
        let peel = Peel::new();
        let reference = layout.reference(tag);
        peel.succeed(&["extract", "--quiet", &reference]);
        archives_are_the_layers_own(&peel, &reference, tag);
    }
}

#[test]
fn an_archive_of_two_images_leads_from_one_to_the_other() {
    let peel = Peel::new();
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let (lower, changed) = (lower_layers(), upper_changes());
    let upper = vec![lower.concat(), changed];
    let apart = vec![
        vec![
            TestEntry::directory("./"),
            TestEntry::directory("a"),
            TestEntry::file("kept", "no directory"),
            TestEntry::directory("time"),
            TestEntry::file("several", "x"),
        ],
        upper_changes(),
    ];
    let mut references = Vec::new();
    for (tag, layers) in [("lower", &lower), ("upper", &upper), ("apart", &apart)] {
        let form = if tag == "apart" { Form::GZIP } else { SMALL_CHUNKS };
        // Without the file that eStargz adds.
        layout.image(&format!("plain-{tag}"), layers, Form::GZIP);
        references.push(layout.image(tag, layers, form));
        peel.succeed(&["extract", "--quiet", &references[references.len() - 1]]);
    }
    let unpacked = |layout: &Layout, tag: &str| {
        Unpacked::by_umoci(&format!("{}:{tag}", layout.path().display())).unwrap()
    };
    for (from, to) in [("lower", "upper"), ("upper", "lower"), ("lower", "apart"), ("apart", "upper")] {
        let sides = [from, to].map(|tag| layout.reference(tag));
        let sides = sides.each_ref().map(String::as_str);
        let (archive, report) = tar(&peel, &sides);
        assert_eq!(report["original"], false);
        assert!(tar(&peel, &sides).0 == archive, "the same again");
        // The lower image, and the archive as a layer above it.
        let digest = layout.put(&archive);
        let below = match from {
            "lower" => &lower,
            "upper" => &upper,
            _ => &apart,
        };
        let mut layers: Vec<Encoded> =
            below.iter().map(|layer| layout.put_layer(layer, Form::GZIP)).collect();
        layers.push(Encoded {
            media_type: Form::Tar.media_type().to_owned(),
            diff_id: digest.clone(),
            size: archive.len() as u64,
            digest,
            annotations: vec![],
        });
        let manifest = layout.put_image(&layers, this_architecture());
        let tag = format!("{from}-{to}");
        layout.tag(&tag, &manifest);
        let (made, expected) = (unpacked(&layout, &tag), unpacked(&layout, &format!("plain-{to}")));
        assert_same(&Tree::walk(&made.path()), &Tree::walk(&expected.path()), &[]);
    }
}

#[test]
fn what_is_missing_is_named_and_nothing_is_fetched_for_it() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let directory = tempfile::tempdir().unwrap();
    let mut layout = Layout::create(directory.path());
    layout.image("lower", &lower_layers(), SMALL_CHUNKS);
    let alone = upper_changes().into_iter().filter(|entry| !matches!(entry.kind, Kind::Hardlink(_)));
    layout.image("upper", &[alone.collect()], SMALL_CHUNKS);
    let [lower, upper] = ["lower", "upper"].map(|tag| layout.serve(&registry, "some/name", tag));
    for reference in [&lower, &upper] {
        peel.succeed(&["pull", reference]);
    }
    let fetched = registry.counters().blobs;
    let file = peel.scratch().join("out.tar");
    for sides in [&[&upper[..]][..], &[&lower, &upper]] {
        let arguments = [&["changes", "--tar", "--output", file.to_str().unwrap()], sides].concat();
        let outcome = peel.run(&arguments);
        assert_eq!(outcome.code, Some(3), "{outcome:?}");
        let layer = layout.manifest("upper")["layers"][0]["digest"].as_str().unwrap().to_owned();
        for named in [&layer[..], "bytes", &format!("peel extract {upper}")] {
            assert!(outcome.stderr.contains(named), "{named} in {outcome:?}");
        }
        let outcome = peel.run(&[&["changes", "--tar"], sides].concat());
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(3), ""));
    }
    assert_eq!(
        fs::read_dir(peel.scratch())
            .unwrap()
            .filter(|entry| { entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("out.tar") })
            .count(),
        0,
        "no file is left of what failed"
    );
    assert_eq!(registry.counters().blobs, fetched);

    // A layer whose folder is gone, and one of which the headers were not kept.
    peel.succeed(&["extract", "--quiet", &upper]);
    let record = peel.json(&["records", &upper, "--json"]);
    let folder = peel.store().join("layers").join(record["layer"].as_str().unwrap().replace(':', "/"));
    fs::write(folder.join("framing"), "of another version").unwrap();
    let outcome = peel.run(&["changes", "--tar", &upper]);
    assert_eq!(outcome.code, Some(8), "{outcome:?}");
    fs::remove_file(folder.join("framing")).unwrap();
    let outcome = peel.run(&["changes", "--tar", &upper]);
    assert!(outcome.code == Some(1) && outcome.stderr.contains("headers"), "{outcome:?}");
    fs::remove_dir_all(&folder).unwrap();
    let outcome = peel.run(&["changes", &upper]);
    assert!(outcome.code == Some(3) && outcome.stderr.contains(&format!("peel pull {upper}")), "{outcome:?}");

    for (arguments, code) in [
        (&["changes", "scratch"][..], 2),
        (&["changes", "scratch", "scratch"], 2),
        (&["changes", "nothing:like-it", &lower], 3),
        (&["changes", "--tar", "--json", &lower], 2),
        (&["changes", "--tar", "--size", &lower], 2),
        (&["changes", "--output", "x", &lower], 2),
        (&["changes"], 2),
    ] {
        assert_eq!(peel.run(arguments).code, Some(code), "{arguments:?}");
    }
}
