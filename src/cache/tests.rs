use std::path::Path;

use peelfs_registry::Digest;

use super::prune::{Filter, Rule};
use super::*;
use crate::store::record_tables::{LayerBlob, RecordKind, Retention};
use crate::store::{LayerDraft, LayerState, NoteKind, Provenance, Publication, TableSource, Verdict};

mod check;
mod compose;
mod full;
mod kill;
mod model;
mod named;
mod world;
mod writable;

pub(super) struct House {
    directory: tempfile::TempDir,
    pub(super) cache: Cache,
}

impl House {
    pub(super) fn new() -> House {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let cache = open(directory.path());
        House { directory, cache }
    }

    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Another session, as another process would have it.
    pub(super) fn another(&self) -> Cache {
        open(self.path())
    }
}

pub(super) fn open(path: &Path) -> Cache {
    Cache::open(Arc::new(Store::open(path).unwrap())).unwrap()
}

pub(super) fn digest(text: &str) -> Digest {
    Digest::sha256_of(text.as_bytes())
}

impl Cache {
    /// Removes records by these rules, or with `dry_run` only says which would go: as the collector does, but for all that is no record.
    pub(super) fn prune(&self, rules: &[Rule], dry_run: bool) -> Result<prune::Pruned, CacheError> {
        if !dry_run {
            self.tidy()?;
        }
        let usages = self.usage()?;
        let of_images = usages.iter().filter(|usage| usage.uses.images > 0);
        let pinned = of_images.map(|usage| usage.record.id.clone()).collect();
        let free = self.store().space()?.available;
        let planned = prune::plan(&usages, rules, &pinned, now(), free);
        if !dry_run {
            assert_eq!(self.remove_all(&planned.records)?, planned.records);
        }
        Ok(planned)
    }
}

/// A layer of that content in a blob of that compression.
pub(super) fn layer(content: &str, compression: &str) -> LayerDescription {
    LayerDescription {
        blob: digest(&format!("{content} in {compression}")),
        media_type: format!("application/vnd.oci.image.layer.v1.tar+{compression}"),
        size: 100,
        diff_id: digest(content),
        toc_digest: None,
        layer: None,
        image: None,
        description: content.to_owned(),
    }
}

/// A stack of layers of these contents.
pub(super) fn stack(cache: &Cache, contents: &[&str]) -> Vec<ImmutableRef> {
    let mut stack: Vec<ImmutableRef> = Vec::new();
    for content in contents {
        let next = cache.get_by_blob(&layer(content, "gzip"), stack.last(), Purpose::Look).unwrap();
        stack.push(next);
    }
    stack
}

pub(super) fn records(cache: &Cache) -> Vec<RecordId> {
    cache.usage().unwrap().into_iter().map(|usage| usage.record.id).collect()
}

#[test]
fn the_last_release_that_counts_is_the_last_use_once() {
    let house = House::new();
    let one = stack(&house.cache, &["a"]).remove(0);
    let id = one.id().clone();
    let uses = || one.record().unwrap().use_count;
    let (first, other) = (house.cache.get(&id, Purpose::Use).unwrap(), house.another());
    let second = other.get(&id, Purpose::Use).unwrap();
    let clone = first.clone();
    drop(first);
    clone.release().unwrap();
    assert_eq!((uses(), one.record().unwrap().last_used), (0, None), "another process uses it");
    let look = house.cache.get(&id, Purpose::Look).unwrap();
    second.release().unwrap();
    assert_eq!(uses(), 1);
    assert!(one.record().unwrap().last_used.is_some_and(|time| time >= one.record().unwrap().created_at));
    look.release().unwrap();
    assert_eq!(uses(), 1);
}

#[test]
fn what_a_session_held_is_given_up_when_it_ends_and_only_then() {
    let house = House::new();
    let one = stack(&house.cache, &["a"]).remove(0);
    let id = one.id().clone();
    let other = house.another();
    let held = other.get(&id, Purpose::Use).unwrap();
    one.release().unwrap();
    assert!(matches!(house.cache.remove(&id), Err(CacheError::InUse { .. })));
    assert_eq!(
        house.cache.beside(&house.cache.look_up(Key::Id(id.as_str())).unwrap()).unwrap().holders,
        [std::process::id()]
    );
    // Nothing is released, as when a process is killed: only the lock is gone.
    let session = other.session().id.clone();
    std::mem::forget(held);
    std::fs::remove_file(house.path().join(format!("locks/session-{session}"))).unwrap();
    house.cache.remove(&id).unwrap();
    assert_eq!(records(&house.cache), []);
}

#[test]
fn a_record_is_found_by_what_is_unique_and_else_the_candidates_are_told() {
    let house = House::new();
    let cache = &house.cache;
    let chain = stack(cache, &["a", "b"]);
    let mut described = layer("b", "zstd");
    described.toc_digest = Some(digest("toc"));
    let zstd = cache.get_by_blob(&described, Some(&chain[0]), Purpose::Look).unwrap();
    zstd.set_name("the/name:1").unwrap();
    let find = |key| cache.find(key, Purpose::Look).map(|found| found.id().clone());
    let (a, b, toc) = (digest("a"), digest("b"), digest("toc"));
    let (gzip_blob, zstd_blob) = (layer("b", "gzip").blob, described.blob);
    let stack_id = chain_id(Some(a.as_str()), digest("b").as_str());
    let id = zstd.id().as_str();
    let found = [
        (Key::Id(id), &zstd),
        (Key::Id(&id[..20]), &zstd),
        (Key::Any(&id[..20]), &zstd),
        (Key::Name("the/name:1"), &zstd),
        (Key::Any("the/name:1"), &zstd),
        (Key::Blob(zstd_blob.as_str()), &zstd),
        (Key::Blob(gzip_blob.as_str()), &chain[1]),
        (Key::Any(gzip_blob.as_str()), &chain[1]),
        (Key::Toc(toc.as_str()), &zstd),
        (Key::DiffId(a.as_str()), &chain[0]),
        (Key::ChainId(a.as_str()), &chain[0]),
    ];
    for (key, expected) in found {
        assert_eq!(find(key).unwrap(), *expected.id(), "{key:?}");
    }
    let both = [Key::DiffId(b.as_str()), Key::ChainId(&stack_id), Key::Any(b.as_str())];
    for key in both {
        let error = find(key).unwrap_err();
        let CacheError::Ambiguous { count: 2, candidates, .. } = &error else { panic!("{error}") };
        assert!(candidates.contains(zstd.id()) && candidates.contains(chain[1].id()), "{error}");
        assert!(error.to_string().contains(zstd.id().as_str()), "{error}");
    }
    let unknown = [
        Key::Name("other"),
        Key::Id("../x"),
        Key::Id(""),
        Key::Blob("sha256:0"),
        Key::Any("zz"),
        Key::Toc(""),
    ];
    for key in unknown {
        assert!(matches!(find(key), Err(CacheError::Unknown { .. })), "{key:?}");
    }
}

#[test]
fn the_candidates_of_a_short_prefix_are_told_in_part() {
    let house = House::new();
    let cache = &house.cache;
    // More than there are first digits.
    let all: Vec<_> = (0..200).map(|number| stack(cache, &[&format!("{number}")]).remove(0)).collect();
    let prefix = &all[0].id().as_str()[..1];
    let count = all.iter().filter(|one| one.id().as_str().starts_with(prefix)).count();
    match cache.find(Key::Id(prefix), Purpose::Look) {
        Ok(found) => assert_eq!((count, found.id()), (1, all[0].id())),
        Err(CacheError::Ambiguous { count: told, candidates, .. }) => {
            assert_eq!((told, candidates.len()), (count, count.min(10)));
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn the_same_blob_on_the_same_stack_is_the_same_record() {
    let house = House::new();
    let (first, again) = (stack(&house.cache, &["a", "b"]), stack(&house.cache, &["a", "b"]));
    assert_eq!(first[1].id(), again[1].id());
    let elsewhere = stack(&house.cache, &["b"]);
    assert_ne!(elsewhere[0].id(), first[1].id());
    assert_eq!(elsewhere[0].record().unwrap().layer, first[1].record().unwrap().layer, "one blob, one layer");
    let image = LayerDescription { image: Some("docker.io/library/x".into()), ..layer("b", "gzip") };
    let named = house.cache.get_by_blob(&image, None, Purpose::Look).unwrap();
    assert_eq!(
        (named.id(), named.images().unwrap()),
        (elsewhere[0].id(), vec!["docker.io/library/x".to_owned()])
    );
}

#[test]
fn layers_of_one_diff_id_share_data_that_were_proved_to_have_it_and_no_others() {
    let house = House::new();
    let cache = &house.cache;
    // Whoever made this image claims that its layer is "b".
    let claimed = cache.get_by_blob(&layer("b", "gzip"), None, Purpose::Look).unwrap();
    let honest = cache.get_by_blob(&layer("b", "zstd"), None, Purpose::Look).unwrap();
    assert_ne!(honest.record().unwrap().layer, claimed.record().unwrap().layer);
    // What is in it was not held against anything.
    publish(cache, claimed.record().unwrap().layer.as_ref().unwrap());
    let honest_layer = honest.record().unwrap().layer.unwrap();
    publish_streamed(cache, &honest_layer, "b");
    // It was proved to be "b", and not whatever else somebody says of its blob.
    let lie = LayerDescription { diff_id: digest("c"), ..layer("b", "zstd") };
    cache.get_by_blob(&lie, None, Purpose::Look).unwrap();
    let other = cache.get_by_blob(&layer("c", "gzip"), None, Purpose::Look).unwrap();
    assert_ne!(other.record().unwrap().layer.as_ref(), Some(&honest_layer));
    let third = cache.get_by_blob(&layer("b", "plain"), None, Purpose::Look).unwrap();
    let (third_record, honest_record) = (third.record().unwrap(), honest.record().unwrap());
    assert_eq!(third_record.layer, honest_record.layer);
    assert!(third_record.is_proved && third_record.id != honest_record.id);
    assert_eq!(third.variants().unwrap(), [honest_record.blob.unwrap()]);
    assert_eq!(honest.variants().unwrap(), [third_record.blob.unwrap()]);

    poison(cache, &honest_layer);
    assert_eq!(
        (honest.state().unwrap(), third.state().unwrap()),
        (LayerState::Poisoned, LayerState::Poisoned)
    );
    let fourth = cache.get_by_blob(&layer("b", "lz4"), None, Purpose::Look).unwrap();
    assert_ne!(fourth.record().unwrap().layer, Some(honest_layer), "nobody begins to share what is false");
}

#[test]
fn how_much_of_a_layer_is_here_its_directory_says() {
    let house = House::new();
    let cache = &house.cache;
    let one = stack(cache, &["a"]).remove(0);
    let name = one.record().unwrap().layer.unwrap();
    assert_eq!(one.state().unwrap(), LayerState::Lazy, "nothing is there");
    let table = crate::store::test_table_of(3);
    let draft = cache.store().layers().layer(&name).unwrap().create().unwrap();
    let files = draft.publish(&table, Some(3)).unwrap();
    let mut told = vec![one.state().unwrap()];
    for chunk in 0..3 {
        files.chunk_map.as_ref().unwrap().mark(chunk);
        told.push(one.state().unwrap());
    }
    use LayerState::{Extracted, Lazy, Partial};
    assert_eq!(told, [Lazy, Partial, Partial, Extracted]);
    files.chunk_map.as_ref().unwrap().clear(1);
    assert_eq!((one.state().unwrap(), cache.usage().unwrap()[0].state), (Partial, Partial));
    std::fs::remove_file(house.path().join("layers").join(name.replace(':', "/")).join("table")).unwrap();
    assert_eq!(one.state().unwrap(), LayerState::Incomplete);
}

#[test]
fn a_layer_that_an_index_beside_it_made_is_its_images_alone() {
    let house = House::new();
    let own = digest("layer and image").to_string();
    let indexed = LayerDescription { layer: Some(own.clone()), ..layer("a", "gzip") };
    let plain = house.cache.get_by_blob(&layer("a", "gzip"), None, Purpose::Look).unwrap();
    let beside = house.cache.get_by_blob(&indexed, None, Purpose::Look).unwrap();
    assert_ne!(plain.id(), beside.id());
    assert_eq!(beside.record().unwrap().layer, Some(own));
    let again = house.cache.get_by_blob(&indexed, None, Purpose::Look).unwrap();
    assert_eq!(again.id(), beside.id());
}

/// Publishes an empty layer, so that there is something to remove.
pub(super) fn publish(cache: &Cache, name: &str) {
    finish(cache.store().layers().layer(name).unwrap().create().unwrap());
}

/// The same, as if its archive had been read.
fn publish_streamed(cache: &Cache, name: &str, content: &str) {
    let draft = cache.store().layers().layer(name).unwrap().create().unwrap();
    let index = TableSource::Stream { because: "it is a test".to_owned() };
    draft.provenance(&Provenance { format: "tar".to_owned(), index, made_at: 1, landmark: None }).unwrap();
    finish(draft);
    let found = serde_json::json!([{
        "layer": name, "blob": name, "size": 1, "media_type": "", "image": "", "hides_bookkeeping": false,
    }]);
    cache.store().notes().put(NoteKind::Archive, digest(content).as_str(), &found).unwrap();
}

/// Says of a layer that is there that it is false.
pub(super) fn poison(cache: &Cache, name: &str) {
    let files = cache.store().layers().layer(name).unwrap().open().unwrap().unwrap();
    files.record_verdict(Verdict::Poisoned { at: 1, reason: "it is a test".to_owned() }).unwrap();
}

fn finish(draft: LayerDraft) {
    let (_, pending) = draft.finish_unsynced(&crate::store::test_table(), None).unwrap();
    assert_eq!(pending.commit().unwrap(), Publication::Published);
}

#[test]
fn a_layer_goes_with_the_last_record_that_has_its_data_there() {
    let house = House::new();
    let cache = &house.cache;
    let (first, second) = (stack(cache, &["a", "b"]), stack(cache, &["b"]));
    let name = layer("b", "gzip").blob.to_string();
    publish(cache, &name);
    let is_there = || cache.store().layers().layer(&name).unwrap().open().unwrap().is_some();
    assert!(second[0].size().unwrap() > 0);
    let (upper, alone) = (first[1].id().clone(), second[0].id().clone());
    drop((first, second));
    cache.remove(&alone).unwrap();
    assert!(is_there());
    cache.remove(&upper).unwrap();
    assert!(!is_there());
    assert_eq!(std::fs::read_dir(house.path().join("layers/ingest")).unwrap().count(), 0);
}

#[test]
fn what_keeps_a_record_is_told_and_removal_waits_for_it() {
    let house = House::new();
    let cache = &house.cache;
    let mut chain = stack(cache, &["a", "b"]);
    let (top, bottom) = (chain.remove(1), chain.remove(0));
    let (top_id, bottom_id) = (top.id().clone(), bottom.id().clone());
    top.set_name("n").unwrap();
    cache.set_lease("l", None).unwrap();
    top.lease("l").unwrap();
    assert!(matches!(top.lease("other"), Err(CacheError::Unknown { key: "lease", .. })));
    drop((top, bottom));
    let error = cache.remove(&top_id).unwrap_err().to_string();
    assert!(error.contains("1 name, 1 lease") && !error.contains("ref"), "{error}");
    assert!(cache.remove(&bottom_id).unwrap_err().to_string().contains("1 record made of it"));
    assert_eq!(cache.leased("l").unwrap().0, std::slice::from_ref(&top_id));
    cache.set_lease("l", Some(1)).unwrap();
    assert!(cache.remove(&top_id).is_err());
    assert!(cache.remove_name("n").unwrap() && !cache.remove_name("n").unwrap());
    cache.remove(&top_id).unwrap();
    cache.remove(&bottom_id).unwrap();
    assert!(matches!(cache.remove(&bottom_id), Err(CacheError::Unknown { .. })));
    assert_eq!(cache.leases().unwrap().len(), 1);
    cache.prune(&[], false).unwrap();
    assert_eq!(cache.leases().unwrap(), []);
}

#[test]
fn a_name_is_one_records_and_goes_to_the_one_that_got_it_last() {
    let house = House::new();
    let chain = stack(&house.cache, &["a", "b"]);
    chain[0].set_name("n").unwrap();
    chain[1].set_name("n").unwrap();
    assert_eq!(house.cache.names().unwrap(), [("n".to_owned(), chain[1].id().clone())]);
    for wrong in ["", "a\nb", &"x".repeat(2000)] {
        assert!(matches!(chain[0].set_name(wrong), Err(CacheError::InvalidName { .. })), "{wrong:?}");
    }
}

#[test]
fn data_kept_with_a_record_are_read_as_they_were_given_and_go_with_it() {
    let house = House::new();
    let one = stack(&house.cache, &["a"]).remove(0);
    let files = || std::fs::read_dir(house.path().join("items")).map_or(0, |files| files.count());
    for length in [0, 1, 16 << 10, (16 << 10) + 1, 1 << 20, 3] {
        let bytes = vec![length as u8; length];
        one.set_item("toc", &bytes).unwrap();
        assert_eq!(one.item("toc").unwrap(), Some(bytes));
    }
    one.set_item("profile", &vec![7; 100_000]).unwrap();
    assert_eq!(one.item_keys().unwrap(), ["profile", "toc"]);
    assert_eq!(one.item("other").unwrap(), None);
    // What is not visible yet has its directory there.
    assert_eq!(files(), 2);
    // A file that was made, and never recorded.
    std::mem::drop(house.cache.store().items().create(&[1; 20_000]).unwrap());
    assert_eq!(files(), 3);
    let id = one.id().clone();
    one.release().unwrap();
    house.cache.recover().unwrap();
    assert_eq!(files(), 2);
    house.cache.remove(&id).unwrap();
    assert_eq!(files(), 1);
}

#[test]
fn pruning_says_beforehand_what_goes() {
    let house = House::new();
    let cache = &house.cache;
    drop(stack(cache, &["a", "b", "c"]));
    let held = stack(cache, &["a", "x"]);
    let dry = cache.prune(&[Rule::default()], true).unwrap();
    assert_eq!(records(cache).len(), 4);
    let wet = cache.prune(&[Rule::default()], false).unwrap();
    assert_eq!(dry, wet);
    assert_eq!(wet.records.len(), 2);
    assert_eq!(records(cache).len(), 2);
    drop(held);
    let rule = Rule { filter: Filter { id: "no such".into(), ..Filter::default() }, ..Rule::default() };
    assert_eq!(cache.prune(&[rule], false).unwrap().records, []);
    assert_eq!(cache.prune(&[Rule::default()], false).unwrap().records.len(), 2);
}

#[test]
fn of_several_who_ask_for_a_size_at_the_same_time_one_looks_at_the_disk() {
    let house = House::new();
    let record = stack(&house.cache, &["a"]).remove(0);
    let on_disk = record.size().unwrap();
    // As if somebody looked at this moment.
    let looked_for = usage::Measurement::default();
    house.cache.inner.sizes.lock().unwrap().insert(record.id().clone(), looked_for.clone());
    let mut found = looked_for.lock().unwrap();
    std::thread::scope(|scope| {
        let asking: Vec<_> = (0..4).map(|_| scope.spawn(|| record.size().unwrap())).collect();
        let part = DataPart { name: "the layer".to_owned(), is_layer: true, bytes: on_disk + 12_345 };
        *found = Some(vec![part]);
        drop(found);
        for size in asking {
            assert_eq!(size.join().unwrap(), on_disk + 12_345, "it is told what was found");
        }
    });
    house.cache.inner.sizes.lock().unwrap().clear();
    assert_eq!(record.size().unwrap(), on_disk, "who asks later looks anew");
    assert!(house.cache.inner.sizes.lock().unwrap().is_empty(), "nothing of it is kept");
}

#[test]
fn a_cache_and_its_refs_are_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Cache>();
    shared::<ImmutableRef>();
    shared::<MutableRef>();
    let house = House::new();
    let id = stack(&house.cache, &["a"]).remove(0).id().clone();
    let held = house.cache.get(&id, Purpose::Use).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..20 {
                    drop((house.cache.get(&id, Purpose::Look).unwrap(), held.clone()));
                }
            });
        }
    });
    assert_eq!(house.cache.usage().unwrap()[0].uses.refs, 1);
}

#[test]
fn an_images_layers_become_records_that_its_topmost_keeps() {
    use crate::image::{Image, Layer};
    use peelfs_registry::BlobDescriptor;
    let house = House::new();
    let layer = |content: &str| {
        let annotation = ("containerd.io/snapshot/stargz/toc.digest".to_owned(), digest("toc").to_string());
        let descriptor = BlobDescriptor {
            digest: digest(content),
            size: 100,
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(),
            urls: vec![],
            annotations: [annotation].into(),
        };
        Layer { descriptor, diff_id: digest(&format!("{content} unpacked")), lazy_index: None }
    };
    let image = |name: &str, layers| Image {
        manifest_digest: digest(name),
        config: layer("config").descriptor,
        configuration: oci_spec::image::ImageConfiguration::default(),
        layers,
        soci_index: None,
    };
    let top = house
        .cache
        .record_image(&image("one", vec![layer("a"), layer("b")]), "x:1", Purpose::Look)
        .unwrap()
        .unwrap();
    let chain = top.layer_chain().unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1].toc_digest, Some(digest("toc").to_string()));
    assert_eq!(top.images().unwrap(), ["x:1"]);
    let diff_ids = ["a unpacked", "b unpacked"].map(|text| digest(text).to_string());
    assert_eq!(chain[1].chain_id, Some(chain_id(Some(&diff_ids[0]), &diff_ids[1])));
    let again =
        house.cache.record_image(&image("two", vec![layer("a")]), "x:2", Purpose::Look).unwrap().unwrap();
    assert_eq!(*again.id(), chain[0].id);
    assert_eq!(again.images().unwrap(), ["x:1", "x:2"]);
    assert!(house.cache.record_image(&image("three", vec![]), "x:3", Purpose::Look).unwrap().is_none());
}
