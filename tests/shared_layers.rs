//! Promise: images that say the same of a layer share it; and what an image says of a layer that others have, too, decides nothing for
//! those: not which files they show, and not whether the layer counts as false.

use std::fs;
use std::path::Path;

use peelfs::layer::entry::Chunk;
use peelfs::layer::zstd_chunked::{Claims, read_toc};
use serde_json::{Value, json};

use crate::support::archive::TestEntry;
use crate::support::blob::{Encoded, Estargz, Footer, Form, TOC_DIGEST, encode_to_vec, sha256};
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::peel::{Peel, run_to_end};
use crate::support::registry::FakeRegistry;

const ESTARGZ: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });

fn honest() -> Content {
    Content::Noise { seed: 1, length: 200_000 }
}

fn other() -> Content {
    Content::Noise { seed: 2, length: 200_000 }
}

/// The zstd:chunked layer that `peel convert` makes of these entries, and its chunks.
fn zstd_chunked(peel: &Peel, name: &str, entries: &[TestEntry]) -> (Encoded, Vec<u8>, Vec<Chunk>) {
    let mut layout = Layout::create(peel.scratch().join(name));
    let source = layout.image("test", &[entries.to_vec()], Form::GZIP);
    let converted = peel.scratch().join(format!("{name}-converted"));
    let destination = format!("oci:{}:test", converted.display());
    let options = ["--format", "zstd-chunked", "--chunk-size", "1048576", "--quiet"];
    peel.succeed(&[&["convert", &source, &destination][..], &options].concat());
    let converted = Layout::open(converted);
    let manifest = converted.manifest("test");
    let (layer, config) = (&manifest["layers"][0], manifest["config"]["digest"].as_str().unwrap());
    let config: Value = serde_json::from_slice(&fs::read(converted.blob_path(config)).unwrap()).unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let annotations = layer["annotations"].as_object().unwrap();
    let encoded = Encoded {
        media_type: text(&layer["mediaType"]),
        digest: text(&layer["digest"]),
        size: layer["size"].as_u64().unwrap(),
        diff_id: text(&config["rootfs"]["diff_ids"][0]),
        annotations: annotations.iter().map(|(key, value)| (key.clone(), text(value))).collect(),
    };
    let blob = fs::read(converted.blob_path(&encoded.digest)).unwrap();
    let claims = Claims::from_annotations(&encoded.annotations.iter().cloned().collect()).unwrap();
    let positions = claims.positions.unwrap();
    let range = positions.toc_range(encoded.size).unwrap();
    let toc = &blob[range.start as usize..range.end as usize];
    let chunks = read_toc(toc, &positions, &claims, encoded.size).unwrap().contents.chunks;
    (encoded, blob, chunks)
}

/// Tags an image of these layers, whose blobs are put, too.
fn put_image(layout: &mut Layout, tag: &str, layers: &[(&Encoded, &[u8])]) -> String {
    for (_, blob) in layers {
        layout.put(blob);
    }
    let encoded: Vec<Encoded> = layers.iter().map(|(layer, _)| (*layer).clone()).collect();
    let manifest = layout.put_image(&encoded, this_architecture());
    layout.tag(tag, &manifest);
    layout.reference(tag)
}

/// The names that a command of the store lists for the image.
fn listed(peel: &Peel, reference: &str) -> String {
    peel.succeed(&["tree", "--json", reference])
}

type Annotations = Vec<(String, String)>;

/// A layer with a file that is a table of contents, and what an image says that finds it there: in each dialect.
fn layer_with_a_table_inside(peel: &Peel) -> (Encoded, Vec<u8>, Vec<Annotations>) {
    let table = |chunks: Option<[Chunk; 2]>, is_podman: bool| {
        let entry = |number: usize| {
            let (name, content) = [("evil", honest()), ("remote", other())][number].clone();
            let chunk = chunks.map(|chunks| chunks[number]);
            let (offset, end) =
                chunk.map_or((0, 0), |chunk| (chunk.blob_offset, chunk.blob_offset + chunk.blob_length));
            let digest = sha256(&content.to_vec());
            let mut entry = json!({
                "type": "reg", "name": name, "size": content.length(), "mode": 0o644,
                "modtime": "2020-01-01T00:00:00Z", "digest": digest, "chunkDigest": digest,
                "offset": offset,
            });
            if is_podman {
                entry["endOffset"] = end.into();
            }
            entry
        };
        serde_json::to_string(&json!({ "version": 1, "entries": [entry(0), entry(1)] })).unwrap()
    };
    let entries = |chunks: Option<[Chunk; 2]>| {
        vec![
            TestEntry::file("honest", honest()),
            TestEntry::file("other", other()),
            // Nobody guesses that it will be read: so the layer is not whole, and proved, before all of it is.
            TestEntry::file("large", Content::Noise { seed: 9, length: 400_000 }),
            TestEntry::file("podman.json", table(chunks, true).as_str()),
            TestEntry::file("stargz.json", table(chunks, false).as_str()),
        ]
    };
    let (_, _, chunks) = zstd_chunked(peel, "before", &entries(None));
    let before = [chunks[0], chunks[1]];
    let (layer, blob, chunks) = zstd_chunked(peel, "layer", &entries(Some(before)));
    assert_eq!(chunks[..2], before, "what comes before the tables does not depend on them");
    let place =
        |chunk: &Chunk| format!("{}:{}:{}:1", chunk.blob_offset, chunk.blob_length, chunk.decoded_length);
    let frame = |chunk: &Chunk| {
        sha256(&blob[chunk.blob_offset as usize..(chunk.blob_offset + chunk.blob_length) as usize])
    };
    let [.., podman, stargz] = chunks.as_slice() else { panic!("five files: {chunks:?}") };
    let podman_prefix = "io.github.containers.zstd-chunked.";
    let claims = vec![
        vec![
            (format!("{podman_prefix}manifest-checksum"), frame(podman)),
            (format!("{podman_prefix}manifest-position"), place(podman)),
        ],
        vec![
            ("io.containers.zstd-chunked.manifest-checksum".to_owned(), frame(stargz)),
            ("io.containers.zstd-chunked.manifest-position".to_owned(), place(stargz)),
            (TOC_DIGEST.to_owned(), sha256(table(Some(before), false).as_bytes())),
        ],
    ];
    (layer, blob, claims)
}

#[test]
fn an_image_shows_nothing_of_a_table_that_another_one_finds_elsewhere_in_the_same_layer() {
    let maker = Peel::new();
    let (layer, blob, claims) = layer_with_a_table_inside(&maker);
    for (number, annotations) in claims.into_iter().enumerate() {
        let mut layout = Layout::create(maker.scratch().join(format!("images{number}")));
        let lying = Encoded { annotations, ..layer.clone() };
        let victim = put_image(&mut layout, "victim", &[(&layer, &blob)]);
        let liar = put_image(&mut layout, "liar", &[(&lying, &blob)]);
        for order in [[&liar, &victim], [&victim, &liar]] {
            let peel = Peel::new();
            for reference in [order, order].concat() {
                let mount = peel.mount(reference);
                let (shown, hidden) =
                    if *reference == liar { ("evil", "honest") } else { ("honest", "evil") };
                assert!(!mount.join(hidden).exists(), "{number}: {reference} shows {hidden}");
                assert!(fs::read(mount.join(shown)).unwrap() == honest().to_vec());
                let listed = listed(&peel, reference);
                assert!(listed.contains(&format!("/{shown}\"")) && !listed.contains(&format!("/{hidden}\"")));
                if *reference == victim {
                    fs::read(mount.join("other")).unwrap();
                }
                mount.unmount();
            }
            // Each command looks at the layer of its own image, of which another part is here.
            let lines = peel.json(&["ls", "--json"]);
            let here = |reference: &str| {
                let lines = lines.as_array().unwrap();
                let line = lines.iter().find(|line| line["reference"] == reference).unwrap();
                line["present_bytes"].as_u64().unwrap()
            };
            assert!(0 < here(&liar) && here(&liar) < here(&victim), "{lines:#}");
            assert_eq!(peel.json(&["show", "--json", &liar])["layers"][0]["present_bytes"], here(&liar));
            let mount = peel.mount(&liar);
            assert_eq!(peel.json(&["status", "--json"])[0]["present_bytes"], here(&liar));
            // The liar's layer is found to be false, and the victim's to be true.
            let proof = |reference: &str| {
                peel.json(&["explain", "--prove", "--json", reference])["layers"][0]["proof"].clone()
            };
            assert_eq!(proof(&liar), "incomplete");
            // It may be found out before this is over.
            let _ = fs::read(mount.join("remote"));
            assert_eq!(proof(&liar), "poisoned");
            mount.unmount();
            let mount = peel.mount(&victim);
            assert_eq!(read_all(&peel, mount.path()), 5);
            assert_eq!(proof(&victim), "proved");
            mount.unmount();
        }
    }
}

/// Reads all of all files; returns how many there are.
#[track_caller]
fn read_all(peel: &Peel, directory: &Path) -> usize {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "find \"$1\" -xdev -type f -exec cat {} + | wc -c", "sh"]).arg(directory);
    let outcome = run_to_end(command, peel.scratch());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""));
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn a_false_diff_id_poisons_the_layer_for_the_image_that_states_it_alone() {
    let peel = Peel::new();
    let (layer, blob) = encode_to_vec(&[TestEntry::file("honest", honest())], ESTARGZ);
    let lying = Encoded { diff_id: sha256(b"another archive"), ..layer.clone() };
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let liar = put_image(&mut layout, "liar", &[(&lying, &blob)]);
    let victim = put_image(&mut layout, "victim", &[(&layer, &blob)]);
    for (reference, proof) in [(&liar, "poisoned"), (&victim, "proved")] {
        let mount = peel.mount(reference);
        // Poison may be found before all was read.
        let _ = fs::read(mount.join("honest"));
        let layers = peel.json(&["explain", "--prove", "--json", reference])["layers"].clone();
        assert_eq!(layers[0]["proof"], proof, "{layers:#}");
        mount.unmount();
    }
    let mount = peel.mount(&victim);
    assert!(fs::read(mount.join("honest")).unwrap() == honest().to_vec());
}

#[test]
fn images_that_say_the_same_of_a_layer_share_it() {
    let (peel, registry) = (Peel::new(), FakeRegistry::start());
    let estargz = encode_to_vec(&[TestEntry::file("honest", honest())], ESTARGZ);
    let chunked = zstd_chunked(&peel, "chunked", &[TestEntry::file("other", other())]);
    let (own, own_blob) = encode_to_vec(&[TestEntry::file("own", "own")], Form::GZIP);
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let shared = [(&estargz.0, estargz.1.as_slice()), (&chunked.0, chunked.1.as_slice())];
    put_image(&mut layout, "one", &shared);
    put_image(&mut layout, "two", &[shared[1], (&own, &own_blob), shared[0]]);
    let one = layout.serve(&registry, "one", "one");
    let two = layout.serve(&registry, "two", "two");
    let mount = peel.mount(&one);
    for file in ["honest", "other"] {
        fs::read(mount.join(file)).unwrap();
    }
    // What the proof asks for is not what this is about.
    for layer in peel.json(&["explain", "--prove", "--json", &one])["layers"].as_array().unwrap() {
        assert_eq!(layer["proof"], "proved");
    }
    mount.unmount();
    registry.reset_counters();
    let mount = peel.mount(&two);
    assert!(fs::read(mount.join("honest")).unwrap() == honest().to_vec());
    assert!(fs::read(mount.join("other")).unwrap() == other().to_vec());
    let of_shared =
        |digest: &str| registry.requests().iter().filter(|request| request.target.contains(digest)).count();
    assert_eq!((of_shared(&estargz.0.digest), of_shared(&chunked.0.digest)), (0, 0));
    mount.unmount();
}

/// What a layer's writer added to its archive is hidden where the descriptor says that it has such a table, and nowhere else.
#[test]
fn an_image_hides_no_file_of_another_one_with_the_same_layer() {
    let peel = Peel::new();
    let entries = [TestEntry::file("stargz.index.json", "mine"), TestEntry::file("file", "file")];
    let (plain, blob) = encode_to_vec(&entries, Form::GZIP);
    let annotations = vec![(TOC_DIGEST.to_owned(), sha256(b"no table"))];
    let annotated = Encoded { annotations, ..plain.clone() };
    let mut layout = Layout::create(peel.scratch().join("layout"));
    let hiding = put_image(&mut layout, "hiding", &[(&annotated, &blob)]);
    let showing = put_image(&mut layout, "showing", &[(&plain, &blob)]);
    for order in [[&hiding, &showing], [&showing, &hiding]] {
        let peel = Peel::new();
        for reference in order {
            let mount = peel.mount(reference);
            assert_eq!(fs::read(mount.join("file")).unwrap(), b"file");
            assert_eq!(mount.join("stargz.index.json").exists(), *reference == showing, "{reference}");
            mount.unmount();
        }
    }
}
