//! The cache and the model side by side: what is done to both, and what both must say of it afterwards.

use std::collections::BTreeMap;

use super::model::{Applied, Known, Model, Random, Step};
use super::*;
use crate::store::record_tables::{CacheRecord, ItemPlace};

/// The cache and the model of it.
pub(super) struct World {
    caches: Vec<Cache>,
    /// What others do not use.
    tag: String,
    /// Whether nobody else uses the store.
    is_alone: bool,
    pub(super) model: Model,
    held: Vec<Holder>,
    random: Random,
}

enum Holder {
    Immutable(ImmutableRef),
    Mutable(MutableRef),
}

impl Holder {
    fn immutable(&self) -> &ImmutableRef {
        match self {
            Holder::Immutable(one) => one,
            Holder::Mutable(_) => panic!("not an immutable ref"),
        }
    }
}

fn kind_and_parents(record: &CacheRecord) -> (String, Vec<Option<String>>) {
    let text = |id: &RecordId| id.to_string();
    let parents = match &record.kind {
        RecordKind::Diff { lower, upper } => vec![lower.as_ref().map(text), upper.as_ref().map(text)],
        kind => kind.parents().map(|id| Some(id.to_string())).collect(),
    };
    (record.kind.name().to_owned(), parents)
}

impl World {
    pub(super) fn new(caches: Vec<Cache>, tag: &str, is_alone: bool, seed: u64) -> World {
        World {
            caches,
            tag: tag.to_owned(),
            is_alone,
            model: Model::default(),
            held: vec![],
            random: Random(seed),
        }
    }

    /// Something to do.
    pub(super) fn choose(&mut self) -> Step {
        loop {
            if let Some(step) = self.propose() {
                return step;
            }
        }
    }

    fn propose(&mut self) -> Option<Step> {
        let of_kind = |is_mutable: bool| -> Vec<usize> {
            let held = self.model.held.iter().enumerate();
            held.filter(|(_, held)| held.is_mutable == is_mutable).map(|(at, _)| at).collect()
        };
        let (immutable, mutable) = (of_kind(false), of_kind(true));
        let records: Vec<String> = self.model.records.keys().cloned().collect();
        let tag = self.tag.clone();
        let random = &mut self.random;
        let maybe = |random: &mut Random| if random.below(3) > 0 { random.pick(&immutable) } else { None };
        Some(match random.below(25) {
            0 | 1 => Step::New { parent: maybe(random), retain: random.below(3) == 0 },
            2 | 3 => Step::Write { at: random.pick(&mutable)?, text: format!("{:x}", random.next()) },
            4 | 5 => Step::Commit { at: random.pick(&mutable)? },
            6 | 7 => Step::Finalize { at: random.pick(&immutable)? },
            8 => Step::GetMutable { record: random.pick(&records)? },
            9 | 10 => Step::Get { record: random.pick(&records)?, is_use: random.below(2) == 0 },
            11 | 12 => Step::Blob {
                content: format!("{tag}{}", random.below(3)),
                compression: ["gzip", "zstd"][random.below(2)].to_owned(),
                parent: maybe(random),
            },
            13 | 14 => {
                let of: Vec<usize> =
                    (0..1 + random.below(3)).filter_map(|_| random.pick(&immutable)).collect();
                let layers = of.iter().map(|at| self.model.applied(&self.model.held[*at].record).len());
                if layers.sum::<usize>() > 60 {
                    return None;
                }
                Step::Merge { of }
            }
            15 | 16 => Step::Diff { lower: maybe(random), upper: maybe(random) },
            17 => Step::Name { at: random.pick(&immutable)?, name: format!("{tag}{}", random.below(2)) },
            18 => Step::Unname { name: format!("{tag}{}", random.below(2)) },
            19 => Step::Lease {
                at: random.below(self.model.held.len().checked_sub(1)? + 1),
                lease: format!("{tag}{}", random.below(2)),
            },
            20 => Step::EndLease { lease: format!("{tag}{}", random.below(2)) },
            21 => Step::Item {
                at: random.pick(&immutable)?,
                key: ["toc", "profile"][random.below(2)].to_owned(),
                length: [3, 20_000][random.below(2)],
            },
            22 => Step::Release { at: random.below(self.model.held.len().checked_sub(1)? + 1) },
            23 => Step::Remove { record: random.pick(&records)? },
            _ if self.is_alone && random.below(2) == 0 => Step::Prune,
            _ => Step::Recover,
        })
    }

    /// Does it, and compares what comes of it with what the model says.
    pub(super) fn run(&mut self, step: &Step) {
        let at = self.random.below(self.caches.len());
        let cache = self.caches[at].clone();
        let id_of = |world: &World, at: usize| world.model.held[at].record.clone();
        match step.clone() {
            Step::New { parent, retain } => {
                let parent_id = parent.map(|at| id_of(self, at));
                let retention = if retain { Retention::Retain } else { Retention::Default };
                let new = NewMutable { retention, ..NewMutable::default() };
                let parent = parent.map(|at| self.held[at].immutable());
                let mutable = cache.new_mutable(parent, &new).unwrap();
                parent_id.iter().for_each(|id| self.model.finalize(id));
                self.learn(&mutable.record().unwrap());
                let known = &self.model.records[mutable.id().as_str()];
                assert_eq!(
                    (&known.parents, known.is_retained),
                    (&parent_id.iter().cloned().map(Some).collect(), retain)
                );
                self.model.hold(mutable.id().as_str(), true, true);
                self.held.push(Holder::Mutable(mutable));
            }
            Step::Write { at, text } => {
                let Holder::Mutable(mutable) = &self.held[at] else { panic!() };
                std::fs::write(mutable.fs().join("file"), &text).unwrap();
                self.model.records.get_mut(mutable.id().as_str()).unwrap().text = Some(text);
            }
            Step::Commit { at } => {
                let holding = self.model.held.swap_remove(at);
                let Holder::Mutable(mutable) = self.held.swap_remove(at) else { panic!() };
                let committed = mutable.commit().unwrap();
                self.learn(&committed.record().unwrap());
                let known = self.model.records[committed.id().as_str()].clone();
                let old = &self.model.records[&holding.record];
                assert_eq!((&known.kind, &known.parents), (&old.kind, &old.parents));
                assert_eq!((known.pair.as_ref(), known.is_mutable), (Some(&holding.record), false));
                let text = old.text.clone();
                self.model.records.get_mut(committed.id().as_str()).unwrap().text = text;
                self.model.hold(committed.id().as_str(), false, holding.is_use);
                self.held.push(Holder::Immutable(committed));
            }
            Step::Finalize { at } => {
                self.held[at].immutable().finalize().unwrap();
                self.model.finalize(&id_of(self, at));
            }
            Step::GetMutable { record } => self.get_mutable(&cache, &record),
            Step::Get { record, is_use } => {
                let purpose = if is_use { Purpose::Use } else { Purpose::Look };
                match cache.get(&RecordId::parse(&record).unwrap(), purpose) {
                    Ok(held) => {
                        assert!(!self.model.records[&record].is_mutable);
                        self.model.hold(&record, false, is_use);
                        self.held.push(Holder::Immutable(held));
                    }
                    Err(CacheError::Mutable { .. }) => assert!(self.model.records[&record].is_mutable),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Blob { content, compression, parent } => self.blob(&cache, content, compression, parent),
            Step::Merge { of } => self.merge(&cache, &of),
            Step::Diff { lower, upper } => self.diff(&cache, lower, upper),
            Step::Name { at, name } => {
                self.held[at].immutable().set_name(&name).unwrap();
                self.model.finalize(&id_of(self, at));
                self.model.names.insert(name, id_of(self, at));
            }
            Step::Unname { name } => {
                assert_eq!(cache.remove_name(&name).unwrap(), self.model.names.remove(&name).is_some());
            }
            Step::Lease { at, lease } => {
                cache.set_lease(&lease, None).unwrap();
                match &self.held[at] {
                    Holder::Immutable(one) => {
                        one.lease(&lease).unwrap();
                        self.model.finalize(&id_of(self, at));
                    }
                    Holder::Mutable(one) => one.lease(&lease).unwrap(),
                }
                let id = id_of(self, at);
                self.model.leases.entry(lease).or_default().insert(id);
            }
            Step::EndLease { lease } => {
                let leased = self.model.leases.remove(&lease);
                assert_eq!(cache.remove_lease(&lease).unwrap(), leased.is_some());
                leased.iter().flatten().for_each(|id| self.model.drop_if_abandoned(id));
            }
            Step::Item { at, key, length } => {
                let one = self.held[at].immutable();
                one.set_item(&key, &vec![length as u8; length]).unwrap();
                self.model.records.get_mut(one.id().as_str()).unwrap().items.insert(key, length);
            }
            Step::Release { at } => {
                match self.held.swap_remove(at) {
                    Holder::Immutable(one) => one.release().unwrap(),
                    Holder::Mutable(one) => one.release().unwrap(),
                }
                self.model.release(at);
            }
            Step::Remove { record } => {
                let pair = self.model.pair(&record);
                let is_kept = pair.iter().any(|id| self.model.is_kept(id));
                match cache.remove(&RecordId::parse(&record).unwrap()) {
                    Ok(()) => {
                        assert!(!is_kept, "{record} was kept");
                        pair.iter().for_each(|id| self.model.drop_record(id));
                    }
                    Err(CacheError::InUse { .. }) => assert!(is_kept, "nothing kept {record}"),
                    Err(error) => panic!("{error}"),
                }
            }
            Step::Prune => {
                cache.prune(&[prune::Rule { all: true, ..prune::Rule::default() }], false).unwrap();
                self.model.prune();
            }
            Step::Recover => {
                let recovered = cache.recover().unwrap();
                assert!(!self.is_alone || recovered == Recovered::default(), "{recovered:?}");
            }
        }
    }

    fn get_mutable(&mut self, cache: &Cache, record: &str) {
        let pair = self.model.pair(record);
        let mutable = pair.iter().find(|id| self.model.records[*id].is_mutable).cloned();
        let immutable = pair.iter().find(|id| !self.model.records[*id].is_mutable).cloned();
        let is_held = pair.iter().any(|id| self.model.holders(id) > 0);
        match cache.get_mutable(&RecordId::parse(record).unwrap()) {
            Ok(held) => {
                assert!(!is_held && mutable.as_deref() == Some(held.id().as_str()));
                immutable.iter().for_each(|id| self.model.drop_record(id));
                self.model.hold(held.id().as_str(), true, true);
                self.held.push(Holder::Mutable(held));
            }
            Err(CacheError::Immutable { .. }) => assert!(mutable.is_none()),
            Err(CacheError::InUse { .. }) => assert!(is_held || self.model.is_kept(record)),
            Err(error) => panic!("{error}"),
        }
    }

    fn blob(&mut self, cache: &Cache, content: String, compression: String, parent: Option<usize>) {
        let parent_id = parent.map(|at| self.model.held[at].record.clone());
        let result = cache.get_by_blob(
            &layer(&content, &compression),
            parent.map(|at| self.held[at].immutable()),
            Purpose::Look,
        );
        parent_id.iter().for_each(|id| self.model.finalize(id));
        let below = parent_id.as_ref().map(|id| self.model.blobs(id));
        let one = match (result, &below) {
            (Ok(one), None | Some(Some(_))) => one,
            (Err(CacheError::WithoutChainId { .. }), Some(None)) => return,
            (result, _) => panic!("{result:?} on {below:?}"),
        };
        let mut blobs = below.flatten().unwrap_or_default();
        blobs.push((content, compression));
        let same = |id: &&String| {
            let known = &self.model.records[*id];
            known.blob.is_some() && self.model.blobs(id).as_ref() == Some(&blobs)
        };
        match self.model.records.keys().find(same).cloned() {
            Some(expected) => assert_eq!(one.id().as_str(), expected),
            None => {
                self.learn(&one.record().unwrap());
                let known = self.model.records.get_mut(one.id().as_str()).unwrap();
                assert_eq!(known.parents, parent_id.into_iter().map(Some).collect::<Vec<_>>());
                known.blob = blobs.pop();
            }
        }
        self.model.hold(one.id().as_str(), false, false);
        self.held.push(Holder::Immutable(one));
    }

    fn merge(&mut self, cache: &Cache, of: &[usize]) {
        let inputs: Vec<ImmutableRef> = of.iter().map(|at| self.held[*at].immutable().clone()).collect();
        let result = cache.merge(&inputs, Purpose::Use);
        let ids: Vec<String> = inputs.iter().map(|one| one.id().to_string()).collect();
        ids.iter().for_each(|id| self.model.finalize(id));
        let merged = match (result, ids.len()) {
            (Err(CacheError::Nothing(_)), 0) => return,
            (result, _) => result.unwrap(),
        };
        let flat: Vec<Option<String>> = ids
            .iter()
            .flat_map(|id| match &self.model.records[id] {
                Known { kind, parents, .. } if kind == "merge" => parents.clone(),
                _ => vec![Some(id.clone())],
            })
            .collect();
        let expected = if ids.len() == 1 { Some(ids[0].clone()) } else { self.model.of_kind("merge", &flat) };
        self.found_or_made(merged, expected, "merge", &flat);
    }

    fn diff(&mut self, cache: &Cache, lower: Option<usize>, upper: Option<usize>) {
        let side = |at: Option<usize>| at.map(|at| self.held[at].immutable().clone());
        let (lower, upper) = (side(lower), side(upper));
        let result = cache.diff(lower.as_ref(), upper.as_ref(), Purpose::Use);
        let id = |side: &Option<ImmutableRef>| side.as_ref().map(|one| one.id().to_string());
        let (lower, upper) = (id(&lower), id(&upper));
        lower.iter().chain(&upper).for_each(|id| self.model.finalize(id));
        let (lower, upper) = match (lower, upper) {
            (None, None) => return assert!(matches!(result, Err(CacheError::Nothing(_)))),
            (None, Some(upper)) => return self.found_or_made(result.unwrap(), Some(upper), "", &[]),
            (Some(lower), upper) => (lower, upper),
        };
        let result = result.unwrap();
        let stack = upper.as_ref().map_or(vec![], |upper| self.model.stack_above(&lower, upper));
        if stack.len() < 2 {
            let parents = [Some(lower), upper];
            let expected = self.model.of_kind("diff", &parents);
            return self.found_or_made(result, expected, "diff", &parents);
        }
        let made = result.record().unwrap();
        let singles: Vec<RecordId> = made.kind.parents().cloned().collect();
        assert_eq!(singles.len(), stack.len());
        let mut below = lower;
        for (single, layer) in singles.iter().zip(stack) {
            let parents = [Some(below), Some(layer.clone())];
            match self.model.of_kind("diff", &parents) {
                Some(expected) => assert_eq!(single.as_str(), expected),
                None => {
                    self.learn(&cache.look_up(Key::Id(single.as_str())).unwrap());
                    let known = &self.model.records[single.as_str()];
                    assert_eq!((known.kind.as_str(), known.parents.as_slice()), ("diff", &parents[..]));
                }
            }
            below = layer;
        }
        let singles: Vec<Option<String>> = singles.iter().map(|id| Some(id.to_string())).collect();
        let expected = self.model.of_kind("merge", &singles);
        self.found_or_made(result, expected, "merge", &singles);
    }

    /// A record that was there before, or that was made of these.
    fn found_or_made(
        &mut self,
        one: ImmutableRef,
        expected: Option<String>,
        kind: &str,
        parents: &[Option<String>],
    ) {
        match expected {
            Some(expected) => assert_eq!(one.id().as_str(), expected),
            None => {
                self.learn(&one.record().unwrap());
                let known = &self.model.records[one.id().as_str()];
                assert_eq!((known.kind.as_str(), known.parents.as_slice()), (kind, parents));
            }
        }
        let applied = applied_ids(&one.applications().unwrap());
        assert_eq!(applied, self.model.applied(one.id().as_str()));
        self.model.hold(one.id().as_str(), false, true);
        self.held.push(Holder::Immutable(one));
    }

    fn learn(&mut self, record: &CacheRecord) {
        let known = known(record);
        assert_eq!(self.model.records.insert(record.id.to_string(), known), None, "{} was there", record.id);
    }

    /// Compares all that there is.
    pub(super) fn check(&self) {
        assert_eq!(as_it_is(&self.caches[0], &self.tag), Model { held: vec![], ..self.model.clone() });
    }
}

fn applied_ids(applications: &[Application]) -> Vec<Applied> {
    let one = |application: &Application| match application {
        Application::Layer(layer) => Applied::Own(layer.record.to_string()),
        Application::Diff { lower, upper, .. } => Applied::Diff(applied_ids(lower), applied_ids(upper)),
    };
    applications.iter().map(one).collect()
}

/// A record without what lies beside it.
fn known(record: &CacheRecord) -> Known {
    let (kind, parents) = kind_and_parents(record);
    Known {
        kind,
        parents,
        is_mutable: record.is_mutable,
        is_retained: record.retention == Retention::Retain,
        pair: record.equal_mutable.as_ref().map(RecordId::to_string),
        text: None,
        blob: None,
        uses: record.use_count,
        items: BTreeMap::new(),
    }
}

/// What the store has, of all but what belongs to another tag; refs are left out.
pub(super) fn as_it_is(cache: &Cache, tag: &str) -> Model {
    let mut model = Model::default();
    let all = cache.read("read all", |tables| {
        let records = tables.records()?.into_iter().map(|record| {
            let items = tables.items(&record.id)?;
            Ok((record, items))
        });
        let leases = tables.leases()?.into_iter().map(|lease| {
            let leased = tables.leased(&lease.id)?.0.iter().map(RecordId::to_string).collect();
            Ok((lease.id, leased))
        });
        Ok((records.collect::<Attempt<Vec<_>>>()?, leases.collect::<Attempt<Vec<_>>>()?, tables.names()?))
    });
    let (records, leases, names) = all.unwrap();
    model.leases.extend(leases);
    model.names.extend(names.into_iter().map(|(name, id)| (name, id.to_string())));
    for (record, items) in records {
        assert!(!record.is_deleted, "{} is still marked", record.id);
        let mut known = known(&record);
        if let Some(snapshot) = record.data_snapshot() {
            let path = cache.store().snapshots().fs(snapshot);
            assert!(path.is_dir() && cache.store().snapshots().work(snapshot).is_dir(), "{}", record.id);
            known.text = std::fs::read_to_string(path.join("file")).ok();
        }
        known.blob = record.blob.as_ref().map(|blob| {
            let compression = blob.media_type.rsplit('+').next().unwrap();
            (record.description.clone(), compression.to_owned())
        });
        for item in items {
            let length = match item.place {
                ItemPlace::Bytes(bytes) => bytes.len(),
                ItemPlace::File(name) => {
                    cache.store().items().open(&name).unwrap().unwrap().metadata().unwrap().len() as usize
                }
            };
            known.items.insert(item.key, length);
        }
        model.records.insert(record.id.to_string(), known);
    }
    if !tag.is_empty() {
        model.names.retain(|name, _| name.starts_with(tag));
        model.leases.retain(|lease, _| lease.starts_with(tag));
    }
    model
}

#[test]
fn random_operations_do_what_a_plain_model_does() {
    let sequences = super::kill::sequences(60);
    for seed in 0..sequences {
        let house = House::new();
        let caches = vec![house.cache.clone(), house.another()];
        let mut world = World::new(caches, "", true, seed);
        for _ in 0..60 {
            let step = world.choose();
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                world.run(&step);
                world.check();
            }));
            if let Err(panic) = result {
                eprintln!("seed {seed}, at {step:?}\nof {:#?}", world.model);
                std::panic::resume_unwind(panic);
            }
        }
    }
}
