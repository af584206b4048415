//! What is to go: a pure function of what is there and what is asked for, so that it is tested without a disk.
//!
//! ```text
//! what nobody needs ─▶ cold content of layers that can be fetched again ─▶ images, the one unused for longest first, ─▶ what was made, and
//!      always                 as long as there is too much                  and what they needed, as long as it is        retained, likewise
//! ```
//!
//! One notion of use: a layer is needed by images that stay, by mounts, and by cache records that stay; a record by its refs, leases,
//! names, by images that stay and are it, by mounts, and by what was made of it. With a filter, only records that it means go, and
//! layers that they alone had: no image is forgotten, and no content discarded.

use std::collections::{BTreeMap, BTreeSet};

use crate::cache::Usage;
use crate::cache::prune::{self, Filter, Rule};
use crate::store::record_tables::RecordId;

/// What may stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    /// The store takes no more bytes than these.
    pub keep_bytes: Option<u64>,
    /// So many bytes of the file system are free.
    pub minimum_free: Option<u64>,
    /// What was used in the last so many seconds stays, whatever the others say: images with their content, and records.
    pub keep_seconds: Option<u64>,
    /// Which records are meant; of the rest nothing goes then.
    pub filter: Option<Filter>,
    /// Whether records of the types `internal` and `frontend` are meant, too.
    pub all: bool,
}

impl Policy {
    fn has_limit(&self) -> bool {
        self.keep_bytes.is_some() || self.minimum_free.is_some()
    }

    /// The rule by which records that this filter means go; `goal` says whether they do only as long as there is too much.
    fn rule(&self, filter: Filter, inventory: &Inventory, freed: u64, goal: bool) -> Rule {
        let records = crate::cache::total_bytes(&inventory.records);
        // What is no record is not freed by removing some.
        let others = inventory.store_bytes.saturating_sub(freed).saturating_sub(records);
        Rule {
            filter,
            keep_for: self.keep_seconds.unwrap_or(0),
            keep_bytes: self.keep_bytes.filter(|_| goal).map(|most| most.saturating_sub(others)),
            minimum_free: self.minimum_free.filter(|_| goal),
            all: self.all,
        }
    }

    fn is_met(&self, inventory: &Inventory, freed: u64) -> bool {
        let is_small = |most: u64| inventory.store_bytes.saturating_sub(freed) <= most;
        let is_free = |least: u64| inventory.free_bytes.saturating_add(freed) >= least;
        match (self.keep_bytes, self.minimum_free) {
            // An age alone: what is older goes.
            (None, None) => self.keep_seconds.is_none(),
            (most, least) => most.is_none_or(is_small) && least.is_none_or(is_free),
        }
    }

    fn keeps(&self, last_used: i64, now: i64) -> bool {
        self.keep_seconds.is_some_and(|seconds| {
            last_used.saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX)) >= now
        })
    }
}

/// What is in a store.
#[derive(Clone, Debug, Default)]
pub struct Inventory {
    /// What all of it takes.
    pub store_bytes: u64,
    /// What may still be written on its file system.
    pub free_bytes: u64,
    /// Named images.
    pub images: Vec<ImageUse>,
    /// What mounts need, whether it is named or not.
    pub mounted: Needs,
    /// The records that mounts are of, and snapshots of writable ones, as far as they are known.
    pub mounted_records: BTreeSet<RecordId>,
    /// Cache records.
    pub records: Vec<Usage>,
    /// By name.
    pub layers: BTreeMap<String, LayerUse>,
    /// Bytes by key.
    pub trees: BTreeMap<String, u64>,
    /// Bytes by digest.
    pub documents: BTreeMap<String, u64>,
}

/// What an image, or a mount, needs to stay what it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Names of layers.
    pub layers: BTreeSet<String>,
    /// Keys of merged trees.
    pub trees: BTreeSet<String>,
    /// Digests of manifests, indexes and configs.
    pub documents: BTreeSet<String>,
}

impl Needs {
    /// Adds those of another.
    pub fn extend(&mut self, other: &Needs) {
        self.layers.extend(other.layers.iter().cloned());
        self.trees.extend(other.trees.iter().cloned());
        self.documents.extend(other.documents.iter().cloned());
    }
}

/// A named image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUse {
    /// Its name.
    pub reference: String,
    /// Its platform.
    pub platform: String,
    /// When it was used, in seconds since 1970.
    pub last_used: i64,
    /// Whether it is mounted now, or its record is held or leased: its name stays.
    pub is_in_use: bool,
    /// What it needs.
    pub needs: Needs,
    /// The record that it is, if it is recorded.
    pub record: Option<RecordId>,
}

/// A layer that is here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerUse {
    /// What it takes.
    pub bytes: u64,
    /// How much of that is content that can be fetched again.
    pub content_bytes: u64,
    /// Whether a process has it open.
    pub is_in_use: bool,
}

/// What is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Images whose names are forgotten: reference and platform.
    pub images: Vec<(String, String)>,
    /// Cache records, what was made of others before these, and the bytes that they have beside layers.
    pub records: Vec<(RecordId, u64)>,
    /// Layers whose content is discarded, and how many bytes of it.
    pub evicted: Vec<(String, u64)>,
    /// Layers that are removed, and their bytes.
    pub layers: Vec<(String, u64)>,
    /// Merged trees, likewise.
    pub trees: Vec<(String, u64)>,
    /// Documents, likewise.
    pub documents: Vec<(String, u64)>,
}

impl Plan {
    /// Decides what goes by `policy`, at the time `now`.
    pub fn make(inventory: &Inventory, policy: &Policy, now: i64) -> Plan {
        let mut kept: Vec<&ImageUse> = inventory.images.iter().collect();
        kept.sort_by_key(|image| std::cmp::Reverse(image.last_used));
        let mut plan = Plan::default();
        if let Some(filter) = &policy.filter {
            let rule = policy.rule(filter.clone(), inventory, 0, policy.has_limit());
            let before = needed_layers(inventory, &kept, &BTreeSet::new());
            plan.prune(inventory, &kept, &[rule], now);
            plan.remove_layers(inventory, &kept, |layer| before.contains(layer));
            return plan;
        }
        plan.remove_unneeded(inventory, policy, &kept, now);
        plan.evict(inventory, policy, &kept, now);
        // The last of them is the one that was unused for longest.
        while !policy.is_met(inventory, plan.bytes()) {
            let goes = |image: &&ImageUse| !image.is_in_use && !policy.keeps(image.last_used, now);
            let Some(position) = kept.iter().rposition(goes) else { break };
            let image = kept.remove(position);
            plan.images.push((image.reference.clone(), image.platform.clone()));
            plan.remove_unneeded(inventory, policy, &kept, now);
        }
        if !policy.is_met(inventory, plan.bytes()) {
            plan.remove_retained(inventory, policy, &kept, now);
        }
        plan
    }

    /// Only what goes always, because nobody needs it.
    pub fn unneeded(inventory: &Inventory, policy: &Policy, now: i64) -> Plan {
        let mut plan = Plan::default();
        plan.remove_unneeded(inventory, policy, &inventory.images.iter().collect::<Vec<_>>(), now);
        plan
    }

    /// Bytes that it frees.
    pub fn bytes(&self) -> u64 {
        let all = [&self.evicted, &self.layers, &self.trees, &self.documents];
        let records = self.records.iter().map(|(_, bytes)| *bytes);
        all.into_iter().flatten().map(|(_, bytes)| *bytes).chain(records).fold(0, u64::saturating_add)
    }

    fn remove_unneeded(&mut self, inventory: &Inventory, policy: &Policy, kept: &[&ImageUse], now: i64) {
        // What is retained goes for want of space only.
        let filter = Filter { is_mutable: Some(false), ..Filter::default() };
        self.prune(inventory, kept, &[policy.rule(filter, inventory, 0, false)], now);
        self.remove_layers(inventory, kept, |_| true);
        let mut needed = inventory.mounted.clone();
        for image in kept {
            needed.extend(&image.needs);
        }
        let unneeded = |all: &BTreeMap<String, u64>, needed: &BTreeSet<String>| {
            all.iter()
                .filter(|(name, _)| !needed.contains(*name))
                .map(|(name, bytes)| (name.clone(), *bytes))
                .collect()
        };
        self.trees = unneeded(&inventory.trees, &needed.trees);
        self.documents = unneeded(&inventory.documents, &needed.documents);
    }

    /// Removes mutable records that nobody holds, the one unused for longest first.
    fn remove_retained(&mut self, inventory: &Inventory, policy: &Policy, kept: &[&ImageUse], now: i64) {
        let immutable = Filter { is_mutable: Some(false), ..Filter::default() };
        let unneeded = policy.rule(immutable, inventory, 0, false);
        // What else is freed counts as freed; what was freed of records, the rules count themselves.
        let freed = self.bytes().saturating_sub(self.record_bytes(inventory));
        let retained = policy.rule(Filter::default(), inventory, freed, policy.has_limit());
        self.prune(inventory, kept, &[unneeded, retained], now);
        self.remove_layers(inventory, kept, |_| true);
    }

    /// What the records that go free of all that records have.
    fn record_bytes(&self, inventory: &Inventory) -> u64 {
        let gone: BTreeSet<&RecordId> = self.records.iter().map(|(id, _)| id).collect();
        let left: Vec<Usage> =
            inventory.records.iter().filter(|usage| !gone.contains(&usage.record.id)).cloned().collect();
        crate::cache::total_bytes(&inventory.records).saturating_sub(crate::cache::total_bytes(&left))
    }

    /// Has records go by these rules.
    fn prune(&mut self, inventory: &Inventory, kept: &[&ImageUse], rules: &[Rule], now: i64) {
        let mut pinned = inventory.mounted_records.clone();
        pinned.extend(kept.iter().filter_map(|image| image.record.clone()));
        let is_open = |name: &String| inventory.layers.get(name).is_some_and(|layer| layer.is_in_use);
        let open = inventory.records.iter().filter(|usage| usage.record.layer.as_ref().is_some_and(is_open));
        pinned.extend(open.map(|usage| usage.record.id.clone()));
        let gone = prune::plan(&inventory.records, rules, &pinned, now, inventory.free_bytes).records;
        let by_id: BTreeMap<&RecordId, &Usage> =
            inventory.records.iter().map(|usage| (&usage.record.id, usage)).collect();
        let own_bytes = |id: &RecordId| {
            let parts = by_id.get(id).map_or(&[][..], |usage| &usage.parts);
            parts.iter().filter(|part| !part.is_layer).map(|part| part.bytes).fold(0, u64::saturating_add)
        };
        self.records = gone.into_iter().map(|id| (id.clone(), own_bytes(&id))).collect();
    }

    /// Has layers go that nothing needs, of those that are meant.
    fn remove_layers(&mut self, inventory: &Inventory, kept: &[&ImageUse], is_meant: impl Fn(&str) -> bool) {
        let gone = self.records.iter().map(|(id, _)| id).collect();
        let needed = needed_layers(inventory, kept, &gone);
        let goes =
            |name: &str, layer: &LayerUse| !needed.contains(name) && !layer.is_in_use && is_meant(name);
        self.layers = (inventory.layers.iter())
            .filter(|(name, layer)| goes(name, layer))
            .map(|(name, layer)| (name.clone(), layer.bytes))
            .collect();
        // What goes altogether is not discarded before.
        let removed: BTreeSet<&String> = self.layers.iter().map(|(name, _)| name).collect();
        self.evicted.retain(|(name, _)| !removed.contains(name));
    }

    /// Discards content, of the layers that were unused for longest first. An age alone is about images.
    fn evict(&mut self, inventory: &Inventory, policy: &Policy, kept: &[&ImageUse], now: i64) {
        if !policy.has_limit() {
            return;
        }
        // A layer is as warm as the warmest image that has it, or else the warmest record.
        let mut last_used: BTreeMap<&str, i64> = BTreeMap::new();
        let mut note = |layer, time: i64| {
            let used = last_used.entry(layer).or_insert(time);
            *used = (*used).max(time);
        };
        let of_images: BTreeSet<&str> =
            kept.iter().flat_map(|image| &image.needs.layers).map(String::as_str).collect();
        for image in kept {
            image.needs.layers.iter().for_each(|layer| note(layer, image.last_used));
        }
        for usage in &inventory.records {
            let layer = usage.record.layer.as_deref().filter(|layer| !of_images.contains(layer));
            layer.into_iter().for_each(|layer| note(layer, prune::last_time(usage)));
        }
        let held = held_layers(inventory);
        let mut cold: Vec<(i64, &str)> =
            last_used.into_iter().map(|(layer, last_used)| (last_used, layer)).collect();
        cold.sort_unstable();
        let going: BTreeSet<String> = self.layers.iter().map(|(name, _)| name.clone()).collect();
        for (last_used, name) in cold {
            if policy.is_met(inventory, self.bytes()) {
                return;
            }
            let Some(layer) = inventory.layers.get(name).filter(|_| !going.contains(name)) else { continue };
            let is_warm = held.contains(name) || policy.keeps(last_used, now);
            if !is_warm && !layer.is_in_use && layer.content_bytes > 0 {
                self.evicted.push((name.to_owned(), layer.content_bytes));
            }
        }
    }
}

/// The layers that images which stay, mounts, and all records but those that are gone need.
fn needed_layers<'a>(
    inventory: &'a Inventory,
    kept: &[&'a ImageUse],
    gone: &BTreeSet<&RecordId>,
) -> BTreeSet<&'a str> {
    let of_records = inventory.records.iter().filter(|usage| !gone.contains(&usage.record.id));
    let of_records = of_records.filter_map(|usage| usage.record.layer.as_deref());
    let of_images = kept.iter().flat_map(|image| &image.needs.layers).chain(&inventory.mounted.layers);
    of_images.map(String::as_str).chain(of_records).collect()
}

/// The layers that somebody uses at this moment: those of mounts, and of records that are held and what these were made of.
fn held_layers(inventory: &Inventory) -> BTreeSet<&str> {
    let by_id: BTreeMap<&RecordId, &Usage> =
        inventory.records.iter().map(|usage| (&usage.record.id, usage)).collect();
    let held = inventory
        .records
        .iter()
        .filter(|usage| usage.is_in_use() || inventory.mounted_records.contains(&usage.record.id));
    let mut left: Vec<&Usage> = held.collect();
    let (mut met, mut layers) = (BTreeSet::new(), BTreeSet::new());
    while let Some(usage) = left.pop() {
        if met.insert(&usage.record.id) {
            layers.extend(usage.record.layer.as_deref());
            left.extend(usage.record.kind.parents().filter_map(|id| by_id.get(id)));
        }
    }
    layers.extend(inventory.mounted.layers.iter().map(String::as_str));
    layers
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
