use super::*;
use crate::cache::DataPart;
use crate::store::record_tables::{CacheRecord, LayerSharing, RecordUse};

fn id(number: u8) -> RecordId {
    RecordId::parse(&format!("{number:02x}").repeat(16)).unwrap()
}

/// A record of ten bytes that was used at a time that is its number.
fn usage(number: u8, parent: Option<u8>) -> Usage {
    let kind = parent.map_or(RecordKind::Base, |parent| RecordKind::Layer { parent: id(parent) });
    let mut record = CacheRecord::new(id(number), kind, 0);
    record.last_used = Some(i64::from(number));
    let parts = vec![DataPart { name: format!("layer {number}"), is_layer: true, bytes: 10 }];
    Usage {
        record,
        uses: RecordUse::default(),
        state: LayerState::Lazy,
        sharing: LayerSharing::default(),
        parts,
    }
}

/// 1 ◀ 2 ◀ 3, 1 ◀ 4, and 5 alone.
fn house() -> Vec<Usage> {
    let mut usages = [(1, None), (2, Some(1)), (3, Some(2)), (4, Some(1)), (5, None)]
        .map(|(one, parent)| usage(one, parent));
    (usages[0].uses.children, usages[1].uses.children) = (2, 1);
    usages.to_vec()
}

fn planned(usages: &[Usage], rules: &[Rule]) -> (Vec<u8>, u64) {
    let of_images = usages.iter().filter(|usage| usage.uses.images > 0);
    let pinned = of_images.map(|usage| usage.record.id.clone()).collect();
    let pruned = plan(usages, rules, &pinned, 100, 1000);
    let numbers = pruned.records.iter().map(|id| u8::from_str_radix(&id.as_str()[..2], 16).unwrap());
    (numbers.collect(), pruned.bytes)
}

#[test]
fn the_least_recently_used_go_first_and_children_before_parents() {
    let all = Rule::default();
    assert_eq!(planned(&house(), std::slice::from_ref(&all)), (vec![3, 2, 4, 1, 5], 50));
    let keep = |bytes| Rule { keep_bytes: Some(bytes), ..Rule::default() };
    assert_eq!(planned(&house(), &[keep(35)]), (vec![3, 2], 20));
    assert_eq!(planned(&house(), &[keep(50)]), (vec![], 0));
    assert_eq!(planned(&house(), &[keep(0)]), (vec![3, 2, 4, 1, 5], 50));
    let free = |bytes| Rule { minimum_free: Some(bytes), ..Rule::default() };
    assert_eq!(planned(&house(), &[free(1015)]), (vec![3, 2], 20));
    assert_eq!(planned(&house(), &[free(1000)]), (vec![], 0));
    let both = Rule { keep_bytes: Some(45), minimum_free: Some(1015), ..Rule::default() };
    assert_eq!(planned(&house(), &[both]), (vec![3, 2], 20));
    assert_eq!(planned(&house(), &[]), (vec![], 0));
}

#[test]
fn a_pair_goes_as_one_and_what_it_was_made_of_after_it() {
    let mut usages = house();
    // The mutable one is a child, too, and not listed.
    usages[2].record.equal_mutable = Some(id(9));
    usages[1].uses.children = 2;
    assert_eq!(planned(&usages, &[Rule::default()]).0, [3, 2, 4, 1, 5]);
}

#[test]
fn what_is_kept_stays_and_so_does_what_it_was_made_of() {
    type Keep = fn(&mut Usage);
    let keeps: [(&str, Keep); 4] = [
        ("ref", |usage| usage.uses.refs = 1),
        ("name", |usage| usage.uses.names = 1),
        ("image", |usage| usage.uses.images = 1),
        ("lease", |usage| usage.uses.leases = 1),
    ];
    for (name, keep) in keeps {
        let mut usages = house();
        keep(&mut usages[2]);
        assert_eq!(planned(&usages, &[Rule::default()]), (vec![4, 5], 20), "{name}");
        keep(&mut usages[0]);
        assert_eq!(planned(&usages, &[Rule::default()]).0, [4, 5], "{name}");
    }
}

#[test]
fn a_rule_is_about_what_its_filter_means() {
    let mut usages = house();
    usages[2].record.record_type = RecordType::CacheMount;
    usages[3].record.record_type = RecordType::Internal;
    usages[4].state = LayerState::Extracted;
    usages[4].record.created_at = 50;
    usages[4].record.description = "five of them".into();
    let rule = |filter| Rule { filter, ..Rule::default() };
    let cases = [
        (Filter { types: vec![RecordType::CacheMount], ..Filter::default() }, vec![3]),
        (Filter { states: vec![LayerState::Extracted], ..Filter::default() }, vec![5]),
        (Filter { made_before: Some(50), ..Filter::default() }, vec![3, 2]),
        (Filter { description: "of".into(), ..Filter::default() }, vec![5]),
        (Filter { id: "0505".into(), ..Filter::default() }, vec![5]),
        (Filter { is_in_use: Some(true), ..Filter::default() }, vec![]),
        (Filter { is_mutable: Some(true), ..Filter::default() }, vec![]),
        (Filter { is_shared: Some(true), ..Filter::default() }, vec![]),
    ];
    for (filter, expected) in cases {
        let told = format!("{filter:?}");
        assert_eq!(planned(&usages, &[rule(filter)]).0, expected, "{told}");
    }
    assert_eq!(planned(&usages, &[Rule::default()]).0, [3, 2, 5], "internal ones only if all is asked for");
    assert_eq!(planned(&usages, &[Rule { all: true, ..Rule::default() }]).0.len(), 5);
    // Last used at 3, 2, 4, 1 and, because it was made then, 50.
    assert_eq!(planned(&usages, &[Rule { keep_for: 97, ..Rule::default() }]).0, [3, 2]);
    assert_eq!(planned(&usages, &[Rule { keep_for: 98, ..Rule::default() }]), (vec![], 0));
    let one_after_another =
        [Rule { keep_for: 60, ..Rule::default() }, rule(Filter { id: "05".into(), ..Filter::default() })];
    assert_eq!(planned(&usages, &one_after_another).0, [3, 2, 5]);
}

#[test]
fn data_that_others_have_are_freed_with_the_last_of_them() {
    let mut usages = vec![usage(1, None), usage(2, None), usage(3, None)];
    for usage in &mut usages[..2] {
        usage.parts[0].name = "same".into();
        usage.sharing.records = true;
    }
    usages[2].sharing.images = true;
    assert_eq!(crate::cache::total_bytes(&usages), 20);
    assert_eq!(planned(&usages, &[Rule { keep_bytes: Some(15), ..Rule::default() }]), (vec![1, 2], 10));
    assert_eq!(planned(&usages, &[Rule::default()]), (vec![1, 2, 3], 10), "an image has the third");
}
