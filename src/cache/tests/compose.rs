//! Merges, diffs, and what they stand for.

use super::writable::new;
use super::*;

/// The contents that a record stands for, lowest first; a diff that is to be calculated as `[lower>upper]`.
fn stands_for(one: &ImmutableRef) -> String {
    fn tell(applications: &[Application], names: &dyn Fn(&RecordId) -> String) -> String {
        let told = applications.iter().map(|application| match application {
            Application::Layer(layer) => names(&layer.record),
            Application::Diff { lower, upper, .. } => {
                format!("[{}>{}]", tell(lower, names), tell(upper, names))
            }
        });
        told.collect::<Vec<_>>().join(" ")
    }
    let cache = one.cache();
    let names = |id: &RecordId| cache.look_up(Key::Id(id.as_str())).unwrap().description;
    tell(&one.applications().unwrap(), &names)
}

fn merge(records: &[&ImmutableRef]) -> ImmutableRef {
    let owned: Vec<_> = records.iter().map(|one| (*one).clone()).collect();
    records[0].cache().merge(&owned, Purpose::Look).unwrap()
}

fn diff(cache: &Cache, lower: Option<&ImmutableRef>, upper: Option<&ImmutableRef>) -> ImmutableRef {
    cache.diff(lower, upper, Purpose::Look).unwrap()
}

#[test]
fn merges_and_diffs_are_as_simple_as_can_be() {
    let house = House::new();
    let cache = &house.cache;
    let a = stack(cache, &["1", "2", "3", "4"]);
    let b = stack(cache, &["1", "x"]);
    let kind = |one: &ImmutableRef| one.record().unwrap().kind;
    let ab = merge(&[&a[1], &b[1]]);

    assert_eq!(merge(&[&a[1]]).id(), a[1].id(), "a merge of one is that one");
    assert_eq!(merge(&[&ab]).id(), ab.id());
    assert_eq!(merge(&[&a[1], &b[1]]).id(), ab.id(), "the same question, the same answer");
    assert_ne!(merge(&[&b[1], &a[1]]).id(), ab.id());
    let nested = merge(&[&ab, &a[0], &ab]);
    let flat = [&a[1], &b[1], &a[0], &a[1], &b[1]].map(|one| one.id().clone());
    assert_eq!(kind(&nested), RecordKind::Merge { parents: flat.to_vec() });
    assert_eq!(nested.id(), merge(&[&a[1], &b[1], &a[0], &a[1], &b[1]]).id());

    assert_eq!(diff(cache, None, Some(&a[2])).id(), a[2].id(), "from nothing to all");
    let single = diff(cache, Some(&a[1]), Some(&a[2]));
    assert_eq!(stands_for(&single), "3", "one layer above is that layer");
    let several = diff(cache, Some(&a[0]), Some(&a[3]));
    assert_eq!(stands_for(&several), "2 3 4");
    let RecordKind::Merge { parents } = kind(&several) else { panic!("{several:?}") };
    assert_eq!((parents.len(), &parents[1]), (3, single.id()));
    assert_eq!(diff(cache, Some(&a[0]), Some(&a[3])).id(), several.id());

    let cases = [
        (diff(cache, Some(&a[3]), Some(&a[3])), ""),
        (diff(cache, Some(&a[3]), Some(&a[1])), "[1 2 3 4>1 2]"),
        (diff(cache, Some(&a[1]), None), "[1 2>]"),
        (diff(cache, Some(&b[1]), Some(&ab)), "[1 x>1 2 1 x]"),
        (merge(&[&b[1], &several]), "1 x 2 3 4"),
        (merge(&[&b[1], &diff(cache, Some(&a[1]), Some(&b[1]))]), "1 x [1 2>1 x]"),
        (ab, "1 2 1 x"),
    ];
    for (record, expected) in cases {
        assert_eq!(stands_for(&record), expected);
    }
    assert!(matches!(cache.diff(None, None, Purpose::Look), Err(CacheError::Nothing("compare"))));
    assert!(matches!(cache.merge(&[], Purpose::Look), Err(CacheError::Nothing("merge"))));
}

#[test]
fn a_layer_on_a_merge_stands_for_both_and_a_diff_of_it_is_that_layer() {
    let house = House::new();
    let cache = &house.cache;
    let (a, b) = (stack(cache, &["1", "2"]), stack(cache, &["x"]));
    let merged = merge(&[&a[1], &b[0]]);
    let described = NewMutable { description: "w".into(), ..NewMutable::default() };
    let written = cache.new_mutable(Some(&merged), &described).unwrap().commit().unwrap();
    assert_eq!(stands_for(&written), "1 2 x w");
    assert_eq!(stands_for(&diff(cache, Some(&merged), Some(&written))), "w");
    let again = merge(&[&written, &a[0]]);
    assert_eq!(stands_for(&again), "1 2 x w 1");
    assert_eq!(stands_for(&diff(cache, Some(&merged), Some(&again))), "[1 2 x>1 2 x w 1]");
    let layer_on_merge = cache.get_by_blob(&layer("3", "gzip"), Some(&merged), Purpose::Look).unwrap();
    assert_eq!(stands_for(&layer_on_merge), "1 2 x 3");
    let chain = ["1", "2", "x", "3"].map(|text| digest(text).to_string());
    let stacked = chain.iter().fold(None, |below: Option<String>, id| Some(chain_id(below.as_deref(), id)));
    assert_eq!(layer_on_merge.record().unwrap().chain_id, stacked);
    let stacked = stack(cache, &["1", "2", "x", "3"]);
    assert_eq!(stacked[3].record().unwrap().chain_id, layer_on_merge.record().unwrap().chain_id);
    let chain_of_blobs = |one: &ImmutableRef| one.record().unwrap().blob_chain_id;
    assert_eq!(chain_of_blobs(&stacked[3]), chain_of_blobs(&layer_on_merge));
}

#[test]
fn nothing_is_merged_or_compared_that_could_not_be_mounted() {
    let house = House::new();
    let cache = &house.cache;
    let a = stack(cache, &["1", "2"]);
    let mut record = a[1].clone();
    // Doubles each time, with a layer between so that it is not flattened: 3, 7, 15 … layers.
    let refused = (0..20).find_map(|_| {
        let merged = match cache.merge(&[record.clone(), record.clone()], Purpose::Look) {
            Ok(merged) => merged,
            Err(error) => return Some(error),
        };
        record = new(cache, Some(&merged)).commit().unwrap();
        None
    });
    assert!(matches!(refused, Some(CacheError::TooManyLayers { .. })), "{refused:?}");
    let count = records(cache).len();
    assert!(cache.merge(&vec![a[0].clone(); 1025], Purpose::Look).is_err());
    let mut nested = diff(cache, Some(&a[1]), Some(&a[0]));
    let refused = (0..100).find_map(|_| match cache.diff(Some(&nested), Some(&a[0]), Purpose::Look) {
        Ok(next) => {
            nested = next;
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(refused, Some(CacheError::TooManyLayers { .. })), "{refused:?}");
    assert_eq!(records(cache).len(), count + 32, "what was refused left no record");
}

#[test]
fn a_walk_meets_each_ancestor_once_and_chains_are_in_order() {
    let house = House::new();
    let cache = &house.cache;
    let a = stack(cache, &["1", "2", "3"]);
    let b = cache.get_by_blob(&layer("x", "gzip"), Some(&a[0]), Purpose::Look).unwrap();
    let merged = merge(&[&a[2], &b, &a[1]]);
    let mut met = Vec::new();
    merged.walk_ancestors(|record| met.push(record.id.clone())).unwrap();
    assert_eq!(met[0], *merged.id());
    let mut expected: Vec<_> = a.iter().chain([&b, &merged]).map(|one| one.id().clone()).collect();
    let mut sorted = met.clone();
    expected.sort();
    sorted.sort();
    assert_eq!(sorted, expected);
    let chain: Vec<_> = merged.layer_chain().unwrap().into_iter().map(|record| record.description).collect();
    assert_eq!(chain, ["1", "2", "3", "1", "x", "1", "2"]);
    let digests = merged.digest_chain().unwrap();
    assert_eq!(digests[4].diff_id.as_deref(), Some(digest("x").as_str()));
    assert_eq!(digests[4].blob.as_deref(), Some(layer("x", "gzip").blob.as_str()));

    // A long chain, which a walk that recursed would not survive.
    let mut top = a[2].clone();
    for _ in 0..900 {
        top = new(cache, Some(&top)).commit().unwrap();
    }
    let mut count = 0;
    top.walk_ancestors(|_| count += 1).unwrap();
    assert_eq!((count, top.layer_chain().unwrap().len()), (903, 903));
}

#[test]
fn the_state_of_a_merge_is_that_of_its_layers() {
    let house = House::new();
    let (a, b) = (stack(&house.cache, &["1", "2"]), stack(&house.cache, &["x"]));
    let merged = merge(&[&a[1], &b[0]]);
    let state = || merged.state().unwrap();
    assert_eq!(state(), LayerState::Lazy);
    let name = |one: &ImmutableRef| one.record().unwrap().layer.unwrap();
    publish(&house.cache, &name(&a[0]));
    assert_eq!(state(), LayerState::Partial);
    publish(&house.cache, &name(&a[1]));
    publish(&house.cache, &name(&b[0]));
    assert_eq!(state(), LayerState::Extracted);
    let listed = house.cache.usage().unwrap().into_iter().find(|usage| usage.record.id == *merged.id());
    assert_eq!(listed.unwrap().state, LayerState::Extracted);
    poison(&house.cache, &name(&a[0]));
    assert_eq!(state(), LayerState::Poisoned);
}
