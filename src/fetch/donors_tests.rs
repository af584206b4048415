use std::time::Instant;

use super::*;
use crate::fetch::index::{Draft, draft_of};
use crate::layer::entry::Chunk;
use crate::store::TableSource;

/// The digest of what has that number.
fn digest(content: u64) -> [u8; 32] {
    Sha256::digest(content.to_le_bytes()).into()
}

/// A layer whose chunks have these contents, of which those are here of which it is said so.
fn publish(store: &Store, contents: &[u64], is_here: impl Fn(u64) -> bool) -> Digest {
    let name =
        Digest::sha256_of(&contents.iter().flat_map(|content| content.to_le_bytes()).collect::<Vec<_>>());
    let chunk = |(number, content): (u64, &u64)| Chunk {
        blob_offset: number,
        blob_length: 1,
        decoded_offset: number,
        decoded_length: 1,
        skip: 0,
        codec: Codec::Raw,
        checkpoint: 0,
        digest: digest(*content),
    };
    let draft = Draft {
        entries: vec![],
        chunks: (0..).zip(contents).map(chunk).collect(),
        decoded_length: contents.len() as u64,
        format: "test",
        source: TableSource::Toc,
        landmark: None,
    };
    let (files, pending) = draft_of(store, &name, draft, |_| Ok(())).unwrap();
    let map = files.chunk_map.as_ref().unwrap();
    for (number, _) in (0..).zip(contents).filter(|(_, content)| is_here(**content)) {
        map.mark(number);
    }
    pending.commit_replacing().unwrap();
    name
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
    let store = Store::open(directory.path()).unwrap();
    (directory, store)
}

fn records(contents: &[u64]) -> Vec<DigestRecord> {
    let mut records: Vec<_> =
        (0..).zip(contents).map(|(number, content)| DigestRecord::new(&digest(*content), number)).collect();
    records.sort_unstable_by_key(|record| (record.prefix.get(), record.chunk.get()));
    records
}

/// What layers of that store offer to one of these contents, which is kept by that name: contents, with the numbers of the chunks there.
fn offered(store: &Store, name: &Digest, contents: &[u64]) -> Vec<(u64, Digest, u32)> {
    let own = records(contents);
    let mut search = Search::new(name, &own);
    search.collect(store).unwrap();
    search.choose();
    let (names, offers) = search.offers();
    let named = |offer: &Offer| {
        (contents[offer.chunk as usize], names[offer.donor as usize].clone(), offer.chunk_there)
    };
    offers.iter().map(named).collect()
}

#[test]
fn what_others_have_is_offered_and_what_the_layer_has_twice() {
    let (_directory, store) = store();
    let contents = [1, 2, 3, 2];
    let own = publish(&store, &contents, |content| content == 2);
    let other = publish(&store, &[9, 3, 2], |content| content == 3);
    let empty = publish(&store, &[1, 2, 3], |_| false);
    for _ in 0..2 {
        // The second time by the lists that were made.
        let mut offers = offered(&store, &own, &contents);
        offers.sort();
        let mut expected = [
            (2, own.clone(), 3),
            (2, own.clone(), 1),
            (2, other.clone(), 2),
            (2, other.clone(), 2),
            (3, other.clone(), 1),
        ];
        expected.sort();
        assert_eq!(offers, expected, "nothing of {empty}");
    }
    assert!(offered(&store, &own, &[100, 101]).is_empty());
}

#[test]
fn of_many_layers_those_count_that_have_most_of_it_here() {
    let (_directory, store) = store();
    let contents: Vec<u64> = (0..300).collect();
    for layer in 1..=100 {
        let others: Vec<u64> = (0..300).map(|number| number + 1000 * layer).collect();
        publish(&store, &others, |_| true);
    }
    let half: Vec<u64> = (0..150).chain(500_000..500_150).collect();
    let half_name = publish(&store, &half, |_| true);
    let all_but_absent: Vec<u64> = (0..299).collect();
    publish(&store, &all_but_absent, |content| content > 250);
    let own = publish(&store, &contents, |_| false);
    // Lists are made as they are needed.
    let offers = (0..3).map(|_| offered(&store, &own, &contents)).find(|offers| offers.len() > 400);
    let offers = offers.expect("the layers that have some are among those that are looked through");
    assert!(
        (0..150)
            .all(|content| offers.iter().any(|(offered, name, _)| *offered == content && *name == half_name))
    );
    assert!((0..299).all(|content| offers.iter().any(|(offered, ..)| *offered == content)));
}

/// For whoever wants to know how long it takes: `cargo test --release --lib a_thousand_layers -- --ignored --nocapture`.
#[test]
#[ignore = "it measures, and takes 1 GB and a minute"]
fn a_thousand_layers_are_looked_through() {
    const CHUNKS: u64 = 10_000;
    let (_directory, store) = store();
    let contents: Vec<u64> = (0..CHUNKS).collect();
    let own = records(&contents);
    for layer in 1..=1000 {
        // A tenth of each is in all of them, and in the one that looks.
        let others = layer * CHUNKS..layer * CHUNKS + CHUNKS * 9 / 10;
        publish(&store, &(0..CHUNKS / 10).chain(others).collect::<Vec<_>>(), |_| true);
    }
    let name = Digest::sha256_of(b"own");
    // In the first rounds, lists are made.
    for round in 0..20 {
        let begun = Instant::now();
        let mut search = Search::new(&name, &own);
        search.collect(&store).unwrap();
        let collected = begun.elapsed();
        search.choose();
        let chosen = begun.elapsed();
        let (names, offers) = search.offers();
        let all = begun.elapsed();
        println!(
            "{round}: layers listed after {collected:?}, chosen after {chosen:?}, joined after {all:?}: {} donors, {} offers",
            names.len(),
            offers.len()
        );
    }
}
