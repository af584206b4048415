//! Promise: whatever brings, names, mounts or removes an image says so in its cache records, and these say truly how much of each layer is here;
//! what a record, a lease or a mount keeps is removed by nothing, and whoever is killed leaves nothing that is half true.

use crate::support::archive::TestEntry;
use crate::support::blob::{Estargz, Footer, Form, estargz_with_toc, toc_json};
use crate::support::clock::next_second;
use crate::support::content::Content;
use crate::support::image::{Layout, this_architecture};
use crate::support::model::Model;
use crate::support::peel::{Peel, duration_of, instants};
use crate::support::registry::FakeRegistry;
use crate::support::space::disk_usage;
use crate::support::tree::{Tree, assert_same};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Stdio;

const SMALL_CHUNKS: Form =
    Form::Estargz(Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None });

fn layer(seed: u64) -> Vec<TestEntry> {
    let content = |part| Content::Noise { seed: 10 * seed + part, length: 300_000 };
    vec![
        TestEntry::file(format!("{seed}/first"), content(1)),
        TestEntry::file(format!("{seed}/second"), content(2)),
    ]
}

fn layers(seeds: &[u64]) -> Vec<Vec<TestEntry>> {
    seeds.iter().map(|seed| layer(*seed)).collect()
}

/// A store, a registry, and a layout whose images it serves.
struct House {
    peel: Peel,
    registry: FakeRegistry,
    layout: Layout,
    _directory: tempfile::TempDir,
}

impl House {
    fn new() -> House {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::create(directory.path());
        House { peel: Peel::new(), registry: FakeRegistry::start(), layout, _directory: directory }
    }

    /// Serves an image of these layers, and gives its reference.
    fn image(&mut self, tag: &str, seeds: &[u64], form: Form) -> String {
        self.layout.image(tag, &layers(seeds), form);
        self.layout.serve(&self.registry, "some/name", tag)
    }

    /// With two images pulled, whose lowest layer is the same.
    fn with_two_pulled() -> (House, [String; 2]) {
        let mut house = House::new();
        let images =
            [("one", [1, 2]), ("two", [1, 3])].map(|(tag, seeds)| house.image(tag, &seeds, SMALL_CHUNKS));
        for reference in &images {
            house.peel.succeed(&["pull", reference]);
        }
        (house, images)
    }

    fn records(&self) -> Vec<Value> {
        let listed = self.peel.json(&["records", "--json"]);
        listed.as_array().unwrap().clone()
    }

    fn record(&self, key: &str) -> Value {
        self.peel.json(&["records", key, "--json"])
    }

    /// The records of an image's layers, the lowest first.
    fn chain(&self, reference: &str) -> Vec<Value> {
        let by_id: BTreeMap<String, Value> =
            self.records().into_iter().map(|record| (text(&record, "id"), record)).collect();
        let mut chain = vec![self.record(reference)];
        while let Some(parent) = chain[chain.len() - 1]["parents"].get(0) {
            chain.push(by_id[parent.as_str().unwrap()].clone());
        }
        chain.reverse();
        chain
    }

    fn digests(&self, tag: &str) -> Vec<String> {
        let manifest = self.layout.manifest(tag);
        manifest["layers"].as_array().unwrap().iter().map(|layer| text(layer, "digest")).collect()
    }

    #[track_caller]
    fn is_whole(&self, reference: &str, seeds: &[u64]) {
        let mount = self.peel.mount(reference);
        assert_same(&Tree::walk(mount.path()), &Model::of(&layers(seeds)).unwrap().tree(), &[]);
        mount.unmount();
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("{key} of {value:#}")).to_owned()
}

fn column(records: &[Value], key: &str) -> Vec<String> {
    records.iter().map(|record| text(record, key)).collect()
}

fn layers_here(peel: &Peel) -> usize {
    fs::read_dir(peel.store().join("layers/sha256")).map_or(0, |layers| layers.count())
}

#[test]
fn a_pulled_image_is_a_chain_of_records_that_say_what_its_documents_say() {
    for form in [SMALL_CHUNKS, Form::GZIP] {
        let mut house = House::new();
        let reference = house.image("one", &[1, 2, 3], form);
        house.peel.succeed(&["pull", &reference]);
        let chain = house.chain(&reference);
        assert_eq!(column(&chain, "kind"), ["base", "layer", "layer"]);
        assert_eq!(column(&chain, "blob"), house.digests("one"));
        assert_eq!(house.records().len(), 3);
        let sheet = house.peel.json(&["show", &reference, "--json"]);
        let shown = sheet["layers"].as_array().unwrap();
        for ((record, layer), described) in
            chain.iter().zip(shown).zip(house.layout.manifest("one")["layers"].as_array().unwrap())
        {
            assert_eq!(record["diff_id"], layer["diff_id"], "{form:?}");
            assert_eq!(record["blob_bytes"], described["size"]);
            assert_eq!(record["media_type"], described["mediaType"]);
            assert_eq!(record["images"], json!([reference]));
            assert_eq!((&record["in_use"], &record["shared"]), (&json!(false), &json!(true)), "{record:#}");
        }
        assert_eq!(chain[0]["chain_id"], chain[0]["diff_id"], "a chain of one");
        assert_ne!(chain[1]["chain_id"], chain[1]["diff_id"]);
        let toc = described_toc(&house);
        assert_eq!(chain[2]["toc_digest"].as_str().map(str::to_owned), toc);
        assert_eq!(chain[2]["names"], json!([reference]));
        assert_eq!(chain[1]["names"], json!([]));
        // The same again changes nothing.
        house.peel.succeed(&["pull", &reference]);
        house.peel.mount(&reference).unmount();
        assert_eq!(column(&house.chain(&reference), "id"), column(&chain, "id"));
        assert_eq!(house.records().len(), 3);
    }
}

/// The digest of the topmost layer's table of contents, as its descriptor says it.
fn described_toc(house: &House) -> Option<String> {
    let annotations = &house.layout.manifest("one")["layers"][2]["annotations"];
    annotations["containerd.io/snapshot/stargz/toc.digest"].as_str().map(str::to_owned)
}

#[test]
fn the_state_of_a_record_is_that_of_the_disk() {
    let mut house = House::new();
    let reference = house.image("one", &[1, 2], SMALL_CHUNKS);
    let peel = &house.peel;
    peel.succeed(&["pull", &reference]);
    let states = || column(&house.chain(&reference), "state");
    assert_eq!(states(), ["lazy", "lazy"]);
    peel.succeed(&["extract", &reference, "/1/first", "--quiet"]);
    assert_eq!(states(), ["partial", "lazy"]);
    let partial = house.chain(&reference)[0].clone();
    let (present, all) =
        (partial["present_bytes"].as_u64().unwrap(), partial["blob_bytes"].as_u64().unwrap());
    assert!((300_000..all).contains(&present), "{partial:#}");
    peel.succeed(&["extract", &reference, "--quiet"]);
    assert_eq!(states(), ["extracted", "extracted"]);
    let expected: u64 = fs::read_dir(peel.store().join("layers/sha256"))
        .unwrap()
        .map(|layer| disk_usage(&layer.unwrap().path()))
        .sum();
    let told: u64 = house.records().iter().map(|record| record["disk_bytes"].as_u64().unwrap()).sum();
    assert_eq!(told, expected);
    peel.succeed(&["gc", "--keep-bytes", &(expected / 2).to_string()]);
    assert!(states().contains(&"lazy".to_owned()), "what was evicted is not here");
    fs::remove_dir_all(peel.store().join("layers/sha256")).unwrap();
    fs::create_dir(peel.store().join("layers/sha256")).unwrap();
    assert_eq!(states(), ["lazy", "lazy"]);
    house.is_whole(&reference, &[1, 2]);
}

#[test]
fn a_layer_that_lies_is_poisoned_in_its_record() {
    let mut house = House::new();
    let entries = [TestEntry::file("tool", "#!/bin/sh\n").mode(0o4755), TestEntry::file("one", "content")];
    let options = Estargz { chunk_size: 64 << 10, footer: Footer::Modern, annotated: true, landmark: None };
    let (encoded, bytes) = estargz_with_toc(&entries, options, &|mut entries| {
        entries.iter_mut().find(|entry| entry["name"] == "tool").unwrap()["mode"] = 0o755.into();
        toc_json(entries)
    });
    house.layout.put(&bytes);
    let manifest = house.layout.put_image(std::slice::from_ref(&encoded), this_architecture());
    house.layout.tag("test", &manifest);
    let reference = house.layout.reference("test");
    house.peel.succeed(&["pull", &reference]);
    assert_eq!(house.peel.run(&["extract", &reference]).code, Some(6));
    assert_eq!(house.record(&encoded.digest)["state"], "poisoned");
}

#[test]
fn a_record_is_found_by_what_is_unique_and_else_the_candidates_are_told() {
    let mut house = House::new();
    let gzip = house.image("gzip", &[1, 2], Form::GZIP);
    let zstd = house.image("zstd", &[1, 2], Form::ZSTD);
    let estargz = house.image("estargz", &[3], SMALL_CHUNKS);
    for reference in [&gzip, &zstd, &estargz] {
        house.peel.succeed(&["pull", reference]);
    }
    assert_eq!(house.records().len(), 5);
    let top = house.record(&gzip);
    let toc = house.record(&estargz);
    let id = text(&top, "id");
    let (blob, diff_id) = (text(&top, "blob"), text(&top, "diff_id"));
    for (key, by, expected) in [
        (id.as_str(), Some("id"), &top),
        (&id[..16], Some("id"), &top),
        (&id[..16], None, &top),
        (&gzip, Some("name"), &top),
        (&blob, Some("blob"), &top),
        (&blob, None, &top),
        (&text(&toc, "diff_id"), Some("diff-id"), &toc),
        (&text(&toc, "toc_digest"), Some("toc"), &toc),
        (&text(&toc, "toc_digest"), None, &toc),
        (&text(&toc, "chain_id"), Some("chain-id"), &toc),
    ] {
        let by: Vec<&str> = by.into_iter().flat_map(|by| ["--by", by]).collect();
        let found = house.peel.json(&[&["records", key, "--json"], &by[..]].concat());
        assert_eq!(found["id"], expected["id"], "{key} {by:?}");
    }
    // The same archive in two compressions.
    let outcome = house.peel.run(&["records", &diff_id]);
    assert_eq!(outcome.code, Some(2), "{outcome:?}");
    for record in [&top, &house.record(&zstd)] {
        assert!(outcome.stderr.contains(&text(record, "id")), "{outcome:?}");
    }
    for unknown in ["0000000000000000", "localhost/nothing:tag", "sha256:00", ""] {
        assert_eq!(house.peel.run(&["records", unknown]).code, Some(3), "{unknown:?}");
    }
}

#[test]
fn names_and_records_keep_in_step() {
    let (house, [one, two]) = House::with_two_pulled();
    let peel = &house.peel;
    let (of_one, of_two) = (house.chain(&one), house.chain(&two));
    assert_eq!(of_one[0]["id"], of_two[0]["id"], "a layer on nothing is one record, whoever has it");
    assert_eq!(of_one[0]["images"], json!([one, two]));
    peel.succeed(&["tag", &one, "localhost/other:tag"]);
    let mut names = vec![one.clone(), "localhost/other:tag".to_owned()];
    names.sort();
    assert_eq!(house.record(&one)["names"], json!(names));
    peel.succeed(&["rm", &one]);
    assert_eq!(house.record("localhost/other:tag")["id"], of_one[1]["id"]);
    peel.succeed(&["gc"]);
    assert_eq!(house.records().len(), 3, "a name keeps it");
    peel.succeed(&["rm", "localhost/other:tag"]);
    assert_eq!(house.peel.run(&["records", "localhost/other:tag"]).code, Some(3));
    assert_eq!(house.record(of_one[1]["id"].as_str().unwrap())["names"], json!([]));
    // A tag that moves takes its record along.
    peel.succeed(&["tag", &two, "localhost/moving:tag"]);
    assert_eq!(house.record("localhost/moving:tag")["id"], of_two[1]["id"]);

    let dry = peel.json(&["prune", "--dry-run", "--json"]);
    assert_eq!(dry["records"].as_array().unwrap().len(), 1);
    let wet = peel.json(&["prune", "--json"]);
    assert_eq!(dry["records"], wet["records"]);
    assert_eq!(wet["records"][0]["name"], of_one[1]["id"]);
    assert_eq!((house.records().len(), layers_here(peel)), (2, 2));
    peel.succeed(&["rm", "--now", &two, "localhost/moving:tag"]);
    assert_eq!((house.records().len(), layers_here(peel)), (0, 0));
}

#[test]
fn a_mount_holds_its_records_while_it_lives_and_has_used_them_afterwards() {
    let mut house = House::new();
    let reference = house.image("one", &[1, 2], SMALL_CHUNKS);
    let peel = &house.peel;
    let (first, second) = (peel.mount(&reference), peel.mount(&reference));
    let id = text(&house.record(&reference), "id");
    let held: BTreeSet<i64> =
        house.record(&id)["held_by"].as_array().unwrap().iter().map(|pid| pid.as_i64().unwrap()).collect();
    assert_eq!(held, peel.servers().into_iter().map(i64::from).collect());
    assert_eq!((held.len(), &house.record(&id)["in_use"]), (2, &json!(true)));
    peel.succeed(&["rm", "--now", &reference]);
    peel.succeed(&["prune", "--keep-bytes", "0", "--filter", "in-use=true"]);
    assert_eq!((house.records().len(), layers_here(peel)), (2, 2));
    first.unmount();
    peel.wait_for(|| house.record(&id)["held_by"].as_array().unwrap().len() == 1);
    assert_eq!(house.record(&id)["use_count"], 0, "another uses it still");
    second.unmount();
    peel.wait_for_servers_to_end();
    let record = house.record(&id);
    assert_eq!((&record["use_count"], &record["in_use"]), (&json!(1), &json!(false)));
    assert!(record["last_used"].as_i64().unwrap() >= record["created_at"].as_i64().unwrap());
    peel.succeed(&["gc"]);
    assert_eq!((house.records().len(), layers_here(peel)), (0, 0));
}

#[test]
fn what_a_mount_held_whose_process_was_killed_is_given_up() {
    let mut house = House::new();
    let reference = house.image("one", &[1], SMALL_CHUNKS);
    let peel = &house.peel;
    let mount = peel.mount(&reference);
    let id = text(&house.record(&reference), "id");
    assert_eq!(peel.kill_servers(), 1);
    peel.succeed(&["rm", &reference]);
    peel.succeed(&["unmount", "--lazy", mount.path().to_str().unwrap()]);
    peel.succeed(&["gc"]);
    assert_eq!(house.records().len(), 0, "{id}");
    assert_eq!(layers_here(peel), 0);
}

#[test]
fn a_lease_keeps_what_nothing_else_keeps_until_it_ends() {
    let mut house = House::new();
    let one = house.image("one", &[1, 2], SMALL_CHUNKS);
    let two = house.image("two", &[3], SMALL_CHUNKS);
    let peel = &house.peel;
    for reference in [&one, &two] {
        peel.succeed(&["pull", reference]);
    }
    let (top, other) = (text(&house.record(&one), "id"), text(&house.record(&two), "id"));
    assert_eq!(peel.run(&["lease", "create", "a", "localhost/nothing:tag"]).code, Some(3));
    assert_eq!(peel.json(&["lease", "ls", "--json"]), json!([]));
    peel.succeed(&["lease", "create", "a", &one, "--expires", "1h"]);
    peel.succeed(&["lease", "create", "a", &other[..20]]);
    let leases = peel.json(&["lease", "ls", "--json"]);
    let mut expected = vec![top.clone(), other.clone()];
    expected.sort();
    assert_eq!((&leases[0]["name"], &leases[0]["records"]), (&json!("a"), &json!(expected)));
    assert_eq!(leases[0]["content"].as_array().unwrap().len(), 2, "manifest and config of the image");
    assert_eq!(house.record(&top)["leases"], json!(["a"]));
    peel.succeed(&["rm", "--now", &one, &two]);
    peel.succeed(&["gc", "--keep-bytes", "0"]);
    assert_eq!((house.records().len(), layers_here(peel)), (3, 3));
    peel.succeed(&["lease", "rm", "a"]);
    assert_eq!(peel.run(&["lease", "rm", "a"]).code, Some(3));
    peel.succeed(&["gc"]);
    assert_eq!((house.records().len(), layers_here(peel)), (0, 0));

    // One that has expired keeps nothing.
    peel.succeed(&["pull", &two]);
    peel.succeed(&["lease", "create", "b", &two, "--expires", "1"]);
    peel.succeed(&["rm", "--now", &two]);
    next_second();
    next_second();
    peel.succeed(&["gc"]);
    assert_eq!((house.records().len(), peel.json(&["lease", "ls", "--json"])), (0, json!([])));
}

#[test]
fn an_image_that_is_leased_keeps_its_name_whatever_is_asked() {
    let mut house = House::new();
    let one = house.image("one", &[1], SMALL_CHUNKS);
    let two = house.image("two", &[2], SMALL_CHUNKS);
    let peel = &house.peel;
    for reference in [&one, &two] {
        peel.succeed(&["pull", reference]);
    }
    peel.succeed(&["lease", "create", "a", &one]);
    let collected = peel.json(&["gc", "--keep-bytes", "0", "--json"]);
    assert_eq!(
        collected["images"],
        json!([{ "reference": two, "platform": collected["images"][0]["platform"] }])
    );
    house.is_whole(&one, &[1]);
}

#[test]
fn with_filters_only_what_they_mean_goes() {
    let mut house = House::new();
    let one = house.image("one", &[1, 2], SMALL_CHUNKS);
    let two = house.image("two", &[3], SMALL_CHUNKS);
    let peel = &house.peel;
    for reference in [&one, &two] {
        peel.succeed(&["extract", reference, "--quiet"]);
    }
    let top = text(&house.record(&one), "id");
    peel.succeed(&["rm", &one, &two]);
    let other = house.records().into_iter().find(|record| record["blob"] == house.digests("two")[0]).unwrap();
    for nothing in ["type=internal", "state=lazy", "age=1h", "mutable=true", "id=nothing", "in-use=true"] {
        let dry = peel.json(&["prune", "--filter", nothing, "--dry-run", "--json"]);
        assert_eq!((&dry["records"], &dry["layers"]), (&json!([]), &json!([])), "{nothing}");
    }
    assert_eq!(peel.json(&["records", "--filter", "state=extracted", "--json"]).as_array().unwrap().len(), 3);
    let filter = format!("id={}", text(&other, "id"));
    let pruned = peel.json(&["prune", "--filter", &filter, "--json"]);
    assert_eq!(pruned["records"][0]["name"], other["id"]);
    assert_eq!((pruned["layers"].as_array().unwrap().len(), &pruned["documents"]), (1, &json!([])));
    assert_eq!((house.records().len(), layers_here(peel)), (2, 2));
    // What it was made of stays, as it is not meant.
    peel.succeed(&["prune", "--filter", &format!("id={top}")]);
    assert_eq!((house.records().len(), layers_here(peel)), (1, 1));
    assert_eq!(peel.run(&["prune", "--filter", "size=3"]).code, Some(2));
}

#[test]
fn images_that_were_known_before_there_were_records_get_them() {
    let mut house = House::new();
    let reference = house.image("one", &[1, 2], SMALL_CHUNKS);
    let peel = &house.peel;
    peel.succeed(&["pull", &reference]);
    let forget = || {
        let database = rusqlite::Connection::open(peel.store().join("peel.db")).unwrap();
        // As it was in the version before.
        let sql = "PRAGMA foreign_keys = OFF; DROP TABLE image_records; DROP TABLE remote_snapshots; DROP TABLE snapshot_labels;
            DROP TABLE snapshots; DELETE FROM record_images;
            DELETE FROM record_parents; DELETE FROM record_refs; DELETE FROM cache_records; PRAGMA user_version = 2";
        database.execute_batch(sql).unwrap();
    };
    forget();
    assert_eq!(column(&house.chain(&reference), "blob"), house.digests("one"));
    forget();
    house.registry.down();
    let mount = peel.mount(&reference);
    let chain = house.chain(&reference);
    assert_eq!((column(&chain, "blob"), &chain[1]["in_use"]), (house.digests("one"), &json!(true)));
    peel.succeed(&["rm", "--now", &reference]);
    assert_eq!(house.records().len(), 2);
    mount.unmount();
}

#[test]
fn whoever_is_killed_leaves_images_and_records_that_agree() {
    let mut house = House::new();
    let one = house.image("one", &[1, 2], SMALL_CHUNKS);
    let two = house.image("two", &[1, 3], Form::GZIP);
    let (peel, other) = (&house.peel, "localhost/other:tag");
    let directory = peel.mount_point();
    let directory = directory.to_str().unwrap();
    let commands: [&[&str]; 7] = [
        &["pull", &one],
        &["mount", &two, directory, "--foreground"],
        &["tag", &one, other],
        &["lease", "create", "a", &one],
        &["rm", "--now", &one],
        &["lease", "rm", "a"],
        &["gc", "--keep-bytes", "0"],
    ];
    // How long each takes that is not disturbed. A mount goes on for ever.
    let undisturbed = Peel::new();
    let durations = commands.map(|command| {
        duration_of(|| match command[0] {
            "mount" => drop(undisturbed.mount(&two)),
            _ => drop(undisturbed.succeed(command)),
        })
    });
    let all = durations.map(|whole| instants(whole).collect::<Vec<_>>());
    for part in 0..all[0].len() {
        for (command, instants) in commands.iter().zip(&all) {
            peel.killed_after(instants[part], command);
            peel.run(&["unmount", "--lazy", directory]);
            agree(&house);
        }
    }
    for name in [&one, &two, other] {
        peel.run(&["rm", name]);
    }
    peel.run(&["lease", "rm", "a"]);
    peel.succeed(&["gc"]);
    assert_eq!((house.records().len(), layers_here(peel)), (0, 0));
    for directory in ["layers/ingest", "content/blobs/sha256", "locks"] {
        let left = fs::read_dir(peel.store().join(directory)).unwrap().count();
        // The collector's own lock, and that of the database.
        assert!(left <= if directory == "locks" { 3 } else { 0 }, "{directory}: {left}");
    }
    peel.succeed(&["pull", &one]);
    house.is_whole(&one, &[1, 2]);
}

/// Whatever happened: each image is a chain of all its layers, and nobody holds anything.
#[track_caller]
fn agree(house: &House) {
    let peel = &house.peel;
    for image in peel.json(&["ls", "--json"]).as_array().unwrap() {
        let chain = house.chain(&text(image, "reference"));
        assert_eq!(chain.len() as u64, image["layers"].as_u64().unwrap(), "{image:#}");
        assert_eq!(chain[0]["parents"], json!([]));
    }
    let ids: BTreeSet<String> = column(&house.records(), "id").into_iter().collect();
    for record in house.records() {
        assert!(record["parents"].as_array().unwrap().iter().all(|id| ids.contains(id.as_str().unwrap())));
    }
    peel.succeed(&["check"]);
}

#[test]
fn commands_find_an_image_that_is_here_by_its_record_too() {
    let (mut house, [one, two]) = House::with_two_pulled();
    let peel = &house.peel;
    let of_one = house.chain(&one);
    let digest = |record: &Value, key: &str| text(record, key);
    let requests = house.registry.requests().len();
    for key in [
        text(&of_one[1], "id"),
        text(&of_one[1], "id")[..12].to_owned(),
        digest(&of_one[1], "blob"),
        digest(&of_one[1], "diff_id"),
        digest(&of_one[1], "chain_id"),
        digest(&of_one[1], "toc_digest"),
    ] {
        assert_eq!(peel.json(&["records", &key, "--json"])["id"], of_one[1]["id"], "{key}");
        assert_eq!(peel.json(&["changes", &key, "--json"])["upper"], of_one[1]["id"], "{key}");
        let made = peel.json(&["merge", "made", &key, &two, "--json"]);
        assert_eq!(made["layers"], json!([house.digests("one"), house.digests("two")].concat()), "{key}");
        peel.succeed(&["diff", "difference", &key, &two]);
        peel.succeed(&["lease", "create", "kept", &key]);
        assert_eq!(peel.json(&["lease", "ls", "--json"])[0]["records"], json!([of_one[1]["id"]]));
        peel.succeed(&["lease", "rm", "kept"]);
        let extracted = peel.json(&["extract", "--quiet", &key, "/1/first", "--json"]);
        assert_eq!(extracted["reference"], one, "{key}");
    }
    assert!(house.registry.requests().len() > requests, "what is extracted is fetched");

    // A layer that is no image, and one that several images are.
    let outcome = peel.run(&["extract", &text(&of_one[0], "id")]);
    assert!(outcome.code == Some(2) && outcome.stderr.contains(&one), "{outcome:?}");
    let zstd = house.image("zstd", &[1, 2], Form::ZSTD);
    let gzip = house.image("gzip", &[1, 2], Form::GZIP);
    let peel = &house.peel;
    for reference in [&zstd, &gzip] {
        peel.succeed(&["pull", reference]);
    }
    let diff_id = digest(&house.record(&gzip), "diff_id");
    let candidates = [house.record(&zstd), house.record(&gzip)].map(|record| text(&record, "id"));
    for command in [
        &["records", &diff_id][..],
        &["changes", &diff_id],
        &["changes", &one, &diff_id],
        &["extract", &diff_id],
        &["merge", "made", &one, &diff_id],
        &["diff", "made", &diff_id, &one],
        &["lease", "create", "x", &diff_id],
    ] {
        let outcome = peel.run(command);
        assert_eq!(outcome.code, Some(2), "{command:?} {outcome:?}");
        for candidate in &candidates {
            assert!(outcome.stderr.contains(candidate), "{command:?} {outcome:?}");
        }
    }
    assert_eq!(peel.json(&["lease", "ls", "--json"]), json!([]), "no lease is made of what is not found");
}

#[test]
fn a_record_whose_parent_is_gone_is_told_by_check_and_by_whoever_needs_it() {
    let mut house = House::new();
    let one = house.image("one", &[1, 2, 3], SMALL_CHUNKS);
    let peel = &house.peel;
    peel.succeed(&["pull", &one]);
    let chain = house.chain(&one);
    let (bottom, middle, top) = (text(&chain[0], "id"), text(&chain[1], "id"), text(&chain[2], "id"));
    let database = rusqlite::Connection::open(peel.store().join("peel.db")).unwrap();
    let sql = format!("PRAGMA foreign_keys = OFF; DELETE FROM cache_records WHERE id = '{bottom}'");
    database.execute_batch(&sql).unwrap();
    drop(database);
    for command in [&["changes", &middle][..], &["changes", &top], &["changes", "scratch", &one]] {
        let outcome = peel.run(command);
        assert_eq!(outcome.code, Some(8), "{command:?} {outcome:?}");
        for named in [&bottom, &middle, "peel check --repair"] {
            assert!(outcome.stderr.contains(named), "{named} in {outcome:?}");
        }
    }
    let outcome = peel.run(&["check"]);
    assert_ne!(outcome.code, Some(0));
    assert!(outcome.stdout.contains(&middle) || outcome.stderr.contains(&middle), "{outcome:?}");
    peel.run(&["check", "--repair"]);
    peel.succeed(&["check"]);
    house.is_whole(&one, &[1, 2, 3]);
    assert_eq!(column(&house.chain(&one), "blob"), house.digests("one"));
    house.peel.succeed(&["changes", &one]);
}

/// Who mounts is counted by the refs of its process, and where it is mounted by a row: neither is believed once the kernel says otherwise.
#[test]
fn mounts_are_counted_as_the_kernel_has_them() {
    let mut house = House::new();
    let reference = house.image("one", &[1], SMALL_CHUNKS);
    let peel = &house.peel;
    let mounts: Vec<_> = (0..3).map(|_| peel.mount(&reference)).collect();
    let id = text(&house.record(&reference), "id");
    let count = || {
        (
            house.record(&id)["held_by"].as_array().unwrap().len(),
            peel.json(&["status", "--json"]).as_array().unwrap().len(),
        )
    };
    assert_eq!(count(), (3, 3));
    // Unmounted without our command: the process notices, and ends.
    rustix::mount::unmount(mounts[0].path(), rustix::mount::UnmountFlags::empty()).unwrap();
    peel.wait_for(|| count() == (2, 2));
    // Killed: it counts no more, but is told of as long as the kernel has the mount.
    assert_eq!(peel.kill_servers(), 2);
    assert_eq!(count(), (0, 2));
    let states = peel.json(&["status", "--json"]);
    assert!(states.as_array().unwrap().iter().all(|mount| mount["state"] == "dead"), "{states}");
    // And taken away by somebody else: its row goes when it is next looked at.
    rustix::mount::unmount(mounts[1].path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(count(), (0, 1));
    peel.succeed(&["check", "--repair"]);
    assert_eq!(count(), (0, 0), "a dead mount is taken away by repair");
    let database = rusqlite::Connection::open(peel.store().join("peel.db")).unwrap();
    let rows = |table: &str| {
        database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((rows("mounts"), rows("record_refs")), (0, 0), "no row is left of them");
}

#[test]
fn a_layer_that_is_not_whole_is_never_used_and_is_made_again_by_who_needs_it() {
    for (form, missing) in
        [(SMALL_CHUNKS, "data"), (SMALL_CHUNKS, "table"), (Form::GZIP, "data"), (Form::GZIP, "table")]
    {
        let mut house = House::new();
        let reference = house.image("one", &[1, 2], form);
        let peel = &house.peel;
        peel.succeed(&["extract", "--quiet", &reference]);
        let layer = text(&house.record(&reference), "layer");
        let folder = peel.store().join("layers").join(layer.replace(':', "/"));
        fs::remove_file(folder.join(missing)).unwrap();
        // What a process that was killed was making.
        let half = peel.store().join("layers/ingest/half");
        fs::create_dir_all(&half).unwrap();
        fs::write(half.join("table"), "half of a table").unwrap();
        assert_eq!(house.record(&reference)["state"], "incomplete", "{form:?} {missing}");
        let outcome = peel.run(&["changes", &reference]);
        assert_eq!(outcome.code, Some(3), "{outcome:?}");
        house.is_whole(&reference, &[1, 2]);
        assert_ne!(house.record(&reference)["state"], "incomplete");
        peel.succeed(&["gc"]);
        assert_eq!(
            fs::read_dir(peel.store().join("layers/ingest")).unwrap().count(),
            0,
            "{form:?} {missing}"
        );
        peel.succeed(&["check"]);
    }
}

/// Bytes on the disk of folders, as `du` counts them.
fn du(paths: &[std::path::PathBuf]) -> u64 {
    let output = std::process::Command::new("du")
        .args(["--summarize", "--total", "--block-size=1"])
        .args(paths)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().last().unwrap().split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn sizes_of_images_and_records_agree_with_du() {
    let mut house = House::new();
    let one = house.image("one", &[1, 2], SMALL_CHUNKS);
    let two = house.image("two", &[1, 3], SMALL_CHUNKS);
    let gzip = house.image("gzip", &[1, 4], Form::GZIP);
    let peel = &house.peel;
    let images = [&one, &two, &gzip];
    let agree = |what: &str| {
        let records: BTreeMap<String, Value> =
            house.records().into_iter().map(|record| (text(&record, "id"), record)).collect();
        let folder =
            |record: &Value| peel.store().join("layers").join(text(record, "layer").replace(':', "/"));
        for record in records.values() {
            assert_eq!(record["disk_bytes"], du(&[folder(record)]), "{what}: {record:#}");
        }
        for line in peel.json(&["ls", "--json"]).as_array().unwrap() {
            let folders: Vec<_> = house.chain(&text(line, "reference")).iter().map(folder).collect();
            assert_eq!(line["disk_bytes"], du(&folders), "{what}: {line:#}");
        }
        // What several have counts once.
        let told: u64 = records.values().map(|record| record["disk_bytes"].as_u64().unwrap()).sum();
        let all: BTreeSet<_> = records.values().map(folder).collect();
        assert_eq!(told, du(&all.into_iter().collect::<Vec<_>>()), "{what}");
    };
    for reference in images {
        peel.succeed(&["pull", reference]);
    }
    agree("pulled");
    let shared = house.chain(&one)[0].clone();
    assert_eq!((&shared["id"], &shared["shared"]), (&house.chain(&two)[0]["id"], &json!(true)));
    let mount = peel.mount_with(&one, &["--prefetch", "none", "--no-profile"]);
    fs::read(mount.join("1/first")).unwrap();
    mount.unmount();
    peel.wait_for_servers_to_end();
    let after_read = house.record(shared["id"].as_str().unwrap());
    assert!(after_read["disk_bytes"].as_u64() > shared["disk_bytes"].as_u64(), "what is read takes room");
    assert_eq!(after_read["state"], "partial");
    agree("partly read");
    for reference in images {
        peel.succeed(&["extract", "--quiet", reference]);
    }
    agree("extracted");
    // All at once: one looks, and they say the same.
    let children: Vec<_> = (0..6)
        .map(|_| peel.command(&["records", "--json"]).stdout(Stdio::piped()).spawn().unwrap())
        .collect();
    let outputs: BTreeSet<Vec<u8>> =
        children.into_iter().map(|child| child.wait_with_output().unwrap().stdout).collect();
    assert_eq!(outputs.len(), 1);
}
