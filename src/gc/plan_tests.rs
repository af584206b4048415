use super::*;
use crate::cache::DataPart;
use crate::store::LayerState;
use crate::store::record_tables::{CacheRecord, LayerSharing, RecordKind, RecordUse};

fn needs(layers: &[&str]) -> Needs {
    let names = |prefix: &str| layers.iter().map(|layer| format!("{prefix}{layer}")).collect();
    Needs { layers: names(""), trees: BTreeSet::from([layers.concat()]), documents: names("of ") }
}

fn image(name: &str, last_used: i64, layers: &[&str]) -> ImageUse {
    let needs = needs(layers);
    ImageUse {
        reference: name.to_owned(),
        platform: "linux/amd64".to_owned(),
        last_used,
        is_in_use: false,
        needs,
        record: None,
    }
}

/// Three images, of which two share a layer; each layer takes 100 bytes, 90 of them content. One layer is nobody's.
fn inventory() -> Inventory {
    let layer = LayerUse { bytes: 100, content_bytes: 90, is_in_use: false };
    let layers = ["a", "b", "c", "d", "lost"];
    Inventory {
        store_bytes: 1000,
        free_bytes: 50,
        images: vec![image("old", 10, &["a", "b"]), image("new", 30, &["b", "c"]), image("mid", 20, &["d"])],
        mounted: Needs::default(),
        mounted_records: BTreeSet::new(),
        records: Vec::new(),
        layers: layers.map(|name| (name.to_owned(), layer)).into(),
        trees: BTreeMap::from([("ab".to_owned(), 5), ("bc".to_owned(), 5), ("gone".to_owned(), 5)]),
        documents: BTreeMap::from([("of a".to_owned(), 1), ("of z".to_owned(), 1)]),
    }
}

fn names(list: &[(String, u64)]) -> Vec<&str> {
    list.iter().map(|(name, _)| name.as_str()).collect()
}

fn images(plan: &Plan) -> Vec<&str> {
    plan.images.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn what_nobody_needs_goes_and_nothing_else() {
    let plan = Plan::make(&inventory(), &Policy::default(), 100);
    assert_eq!((names(&plan.layers), names(&plan.trees)), (vec!["lost"], vec!["gone"]));
    assert_eq!(names(&plan.documents), ["of z"]);
    assert!(plan.images.is_empty() && plan.evicted.is_empty());
    assert_eq!(plan.bytes(), 106);

    let mut inventory = inventory();
    inventory.mounted = needs(&["lost"]);
    inventory.mounted.trees.insert("gone".to_owned());
    inventory.layers.insert("open".to_owned(), LayerUse { is_in_use: true, ..LayerUse::default() });
    let plan = Plan::make(&inventory, &Policy::default(), 100);
    assert!(plan.layers.is_empty() && plan.trees.is_empty());
}

#[test]
fn cold_content_goes_before_images_and_old_images_before_new_ones() {
    let most = |bytes| Policy { keep_bytes: Some(bytes), ..Policy::default() };
    for (policy, evicted, forgotten) in [
        (most(894), vec![], vec![]),
        (most(893), vec!["a"], vec![]),
        (most(700), vec!["a", "d", "b"], vec![]),
        (most(534), vec!["a", "d", "b", "c"], vec![]),
        (most(533), vec!["d", "b", "c"], vec!["old"]),
        (most(510), vec!["b", "c"], vec!["old", "mid"]),
        (most(0), vec![], vec!["old", "mid", "new"]),
        (Policy { minimum_free: Some(200), ..Policy::default() }, vec!["a"], vec![]),
        (Policy { keep_seconds: Some(75), ..Policy::default() }, vec![], vec!["old", "mid"]),
        (
            Policy { keep_bytes: Some(0), keep_seconds: Some(75), ..Policy::default() },
            vec![],
            vec!["old", "mid"],
        ),
    ] {
        let plan = Plan::make(&inventory(), &policy, 100);
        assert_eq!((names(&plan.evicted), images(&plan)), (evicted, forgotten), "{policy:?}");
    }
}

#[test]
fn what_is_mounted_or_open_stays() {
    let mut inventory = inventory();
    inventory.images[0].is_in_use = true;
    inventory.mounted = inventory.images[0].needs.clone();
    inventory.layers.get_mut("d").unwrap().is_in_use = true;
    let plan = Plan::make(&inventory, &Policy { keep_bytes: Some(0), ..Policy::default() }, 100);
    assert_eq!(images(&plan), ["mid", "new"]);
    assert_eq!(names(&plan.layers), ["c", "lost"]);
    assert!(plan.evicted.is_empty());
}

fn id(number: u8) -> RecordId {
    RecordId::parse(&format!("{number:02x}").repeat(16)).unwrap()
}

/// A record of that layer, with 7 bytes of a snapshot if it has none.
fn record(number: u8, parent: Option<u8>, layer: Option<&str>) -> Usage {
    let kind = parent.map_or(RecordKind::Base, |parent| RecordKind::Layer { parent: id(parent) });
    let mut record = CacheRecord::new(id(number), kind, i64::from(number));
    record.layer = layer.map(str::to_owned);
    let name = layer.map_or(format!("snapshot {number}"), str::to_owned);
    let parts =
        vec![DataPart { name, is_layer: layer.is_some(), bytes: if layer.is_some() { 100 } else { 7 } }];
    let (uses, sharing) = (RecordUse::default(), LayerSharing::default());
    Usage { record, uses, state: LayerState::Lazy, sharing, parts }
}

/// The same with records: the image "old" is 2, on 1; 3 lies on 1, with nothing that keeps it; 4, of the layer that is nobody's else, is
/// alone; 5 is mutable, and retained.
fn with_records() -> Inventory {
    let mut inventory = inventory();
    inventory.images[0].record = Some(id(2));
    inventory.records = vec![
        record(1, None, Some("a")),
        record(2, Some(1), Some("b")),
        record(3, Some(1), None),
        record(4, None, Some("lost")),
        record(5, None, None),
    ];
    inventory.records[0].uses.children = 2;
    inventory.records[4].record.is_mutable = true;
    inventory
}

fn gone(plan: &Plan) -> Vec<u8> {
    let number = |id: &RecordId| u8::from_str_radix(&id.as_str()[..2], 16).unwrap();
    plan.records.iter().map(|(id, _)| number(id)).collect()
}

#[test]
fn a_record_keeps_its_layers_and_goes_with_the_last_that_keeps_it() {
    let made = |change: fn(&mut Inventory)| {
        let mut inventory = with_records();
        change(&mut inventory);
        let plan = Plan::make(&inventory, &Policy::default(), 100);
        (gone(&plan), names(&plan.layers).join(" "))
    };
    let lost = || "lost".to_owned();
    assert_eq!(made(|_| {}), (vec![3, 4], lost()));
    assert_eq!(made(|house| house.records[3].uses.refs = 1), (vec![3], String::new()));
    assert_eq!(made(|house| house.records[3].uses.leases = 1), (vec![3], String::new()));
    assert_eq!(made(|house| house.records[3].uses.names = 1), (vec![3], String::new()));
    assert_eq!(made(|house| house.mounted_records = BTreeSet::from([id(4)])), (vec![3], String::new()));
    let open = |house: &mut Inventory| house.layers.get_mut("lost").unwrap().is_in_use = true;
    assert_eq!(made(open), (vec![3], String::new()), "somebody has it open");
    assert_eq!(made(|house| house.images[0].record = None), (vec![2, 3, 1, 4], lost()));
    // The image has no name any more, but a lease.
    let leased = |house: &mut Inventory| {
        house.images.remove(0);
        house.records[1].uses.leases = 1;
    };
    assert_eq!(made(leased), (vec![3, 4], lost()));
    assert_eq!(
        made(|house| drop(house.images.remove(0))),
        (vec![2, 3, 1, 4], "a lost".to_owned()),
        "the other image has b"
    );
    let plan = Plan::make(&with_records(), &Policy::default(), 100);
    assert_eq!(plan.bytes(), 106 + 7, "what a record has beside layers");
}

#[test]
fn images_go_with_their_records_and_what_is_retained_goes_last() {
    let most = |bytes| Policy { keep_bytes: Some(bytes), ..Policy::default() };
    let (all, held) = (with_records(), |number: usize| {
        let mut inventory = with_records();
        inventory.records[number].uses.refs = 1;
        inventory
    });
    let plan = Plan::make(&all, &most(505), 100);
    assert_eq!((gone(&plan), images(&plan)), (vec![2, 3, 1, 4], vec!["old", "mid"]));
    let plan = Plan::make(&all, &most(0), 100);
    assert_eq!((gone(&plan), images(&plan).len()), (vec![2, 3, 1, 4, 5], 3));
    let keeping = Policy { keep_seconds: Some(1000), ..most(0) };
    assert_eq!(gone(&Plan::make(&all, &keeping, 100)), Vec::<u8>::new(), "all was used within that time");
    // What is held is warm; what is leased is not.
    let plan = Plan::make(&held(1), &most(0), 100);
    assert!(!names(&plan.evicted).contains(&"a") && !names(&plan.layers).contains(&"b"));
    let mut leased = with_records();
    leased.records[3].uses.leases = 1;
    assert_eq!(names(&Plan::make(&leased, &most(0), 100).evicted), ["lost"]);
}

#[test]
fn with_a_filter_nothing_goes_but_records_that_are_meant_and_what_they_alone_had() {
    let filtered = |inventory: &Inventory, filter: Filter, keep_bytes| {
        let policy = Policy { filter: Some(filter), keep_bytes, ..Policy::default() };
        let plan = Plan::make(inventory, &policy, 100);
        assert!(plan.images.is_empty() && plan.evicted.is_empty());
        assert!(plan.trees.is_empty() && plan.documents.is_empty());
        (gone(&plan), names(&plan.layers).join(" "))
    };
    let of_id = |number| Filter { id: id(number).to_string(), ..Filter::default() };
    let mutable = Filter { is_mutable: Some(true), ..Filter::default() };
    let mut inventory = with_records();
    let nothing = (vec![], String::new());
    assert_eq!(filtered(&inventory, of_id(2), None), nothing, "an image is it");
    assert_eq!(filtered(&inventory, of_id(1), None), nothing, "others are made of it");
    assert_eq!(filtered(&inventory, of_id(4), None), (vec![4], "lost".to_owned()));
    assert_eq!(filtered(&inventory, mutable, None), (vec![5], String::new()));
    assert_eq!(filtered(&inventory, Filter::default(), None), (vec![3, 4, 5], "lost".to_owned()));
    assert_eq!(filtered(&inventory, Filter::default(), Some(995)), (vec![3], String::new()));
    assert_eq!(filtered(&inventory, Filter::default(), Some(1000)), nothing);
    // A layer of no record at all is none's that goes.
    inventory.records.remove(3);
    assert_eq!(filtered(&inventory, Filter::default(), None), (vec![3, 5], String::new()));
}
