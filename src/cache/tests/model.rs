//! The oracle: records as plain values in a map, and random operations whose results are known beforehand.
//!
//! Everything is written anew here, by recursion and exhaustive search where the cache has queries: the two agree only if both are right.
//! A model can be written down and read again, so a process that is to be killed tells after each step what it knows.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// A small generator of pseudo-random numbers (SplitMix64).
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    pub(super) fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        (!from.is_empty()).then(|| from[self.below(from.len())].clone())
    }
}

/// What a record is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) kind: String,
    /// Of a diff: lower and upper.
    pub(super) parents: Vec<Option<String>>,
    pub(super) is_mutable: bool,
    pub(super) is_retained: bool,
    /// The mutable one of the pair.
    pub(super) pair: Option<String>,
    /// What is in its snapshot.
    pub(super) text: Option<String>,
    /// Content and compression.
    pub(super) blob: Option<(String, String)>,
    pub(super) uses: u64,
    /// Lengths by key.
    pub(super) items: BTreeMap<String, usize>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Holding {
    pub(super) record: String,
    pub(super) is_mutable: bool,
    pub(super) is_use: bool,
}

/// What there is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Model {
    pub(super) records: BTreeMap<String, Known>,
    pub(super) names: BTreeMap<String, String>,
    pub(super) leases: BTreeMap<String, BTreeSet<String>>,
    pub(super) held: Vec<Holding>,
}

/// What is done next. Numbers are those of what is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Step {
    New { parent: Option<usize>, retain: bool },
    Write { at: usize, text: String },
    Commit { at: usize },
    Finalize { at: usize },
    GetMutable { record: String },
    Get { record: String, is_use: bool },
    Blob { content: String, compression: String, parent: Option<usize> },
    Merge { of: Vec<usize> },
    Diff { lower: Option<usize>, upper: Option<usize> },
    Name { at: usize, name: String },
    Unname { name: String },
    Lease { at: usize, lease: String },
    EndLease { lease: String },
    Item { at: usize, key: String, length: usize },
    Release { at: usize },
    Remove { record: String },
    Prune,
    Recover,
}

/// One step of what a record stands for, as the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Applied {
    Own(String),
    Diff(Vec<Applied>, Vec<Applied>),
}

impl Model {
    pub(super) fn holders(&self, id: &str) -> usize {
        self.held.iter().filter(|held| held.record == id).count()
    }

    pub(super) fn has_children(&self, id: &str) -> bool {
        self.records.values().any(|known| known.parents.iter().flatten().any(|parent| parent == id))
    }

    pub(super) fn is_kept(&self, id: &str) -> bool {
        self.holders(id) > 0
            || self.has_children(id)
            || self.names.values().any(|named| named == id)
            || self.leases.values().any(|leased| leased.contains(id))
    }

    /// The record, and the other of its pair.
    pub(super) fn pair(&self, id: &str) -> Vec<String> {
        let other = self.records[id].pair.clone();
        let peer = self.records.iter().find(|(_, known)| known.pair.as_deref() == Some(id));
        std::iter::once(id.to_owned()).chain(other).chain(peer.map(|(peer, _)| peer.clone())).collect()
    }

    pub(super) fn drop_record(&mut self, id: &str) {
        self.records.remove(id);
        for leased in self.leases.values_mut() {
            leased.remove(id);
        }
    }

    /// What follows when a mutable record is no longer held.
    pub(super) fn drop_if_abandoned(&mut self, id: &str) {
        let Some(known) = self.records.get(id) else { return };
        if known.is_mutable && !known.is_retained && self.pair(id).len() == 1 && !self.is_kept(id) {
            self.drop_record(id);
        }
    }

    pub(super) fn finalize(&mut self, id: &str) {
        let Some(mutable) = self.records.get_mut(id).and_then(|known| known.pair.take()) else { return };
        for leased in self.leases.values_mut().filter(|leased| leased.contains(&mutable)) {
            leased.insert(id.to_owned());
        }
        self.drop_record(&mutable);
    }

    pub(super) fn release(&mut self, at: usize) {
        let gone = self.held.swap_remove(at);
        if gone.is_use && !self.held.iter().any(|held| held.is_use && held.record == gone.record) {
            self.records.get_mut(&gone.record).unwrap().uses += 1;
        }
        self.drop_if_abandoned(&gone.record);
    }

    /// What is left once the process is gone.
    pub(super) fn after_death(mut self) -> Model {
        while !self.held.is_empty() {
            self.release(self.held.len() - 1);
        }
        self
    }

    /// What is left once all is removed that nothing keeps.
    pub(super) fn prune(&mut self) {
        loop {
            let free = |id: &&String| self.pair(id).iter().all(|id| !self.is_kept(id));
            let Some(id) = self.records.keys().find(free).cloned() else { return };
            self.pair(&id).iter().for_each(|id| self.drop_record(id));
        }
    }

    pub(super) fn applied(&self, id: &str) -> Vec<Applied> {
        let known = &self.records[id];
        let of = |parent: &Option<String>| parent.as_ref().map_or(vec![], |parent| self.applied(parent));
        match known.kind.as_str() {
            "diff" => {
                let (lower, upper) = (&known.parents[0], &known.parents[1]);
                let Some(below) = lower else { return of(upper) };
                match upper {
                    Some(upper) if upper == below => vec![],
                    Some(upper) if self.stack_above(below, upper).len() == 1 => {
                        vec![Applied::Own(upper.clone())]
                    }
                    _ => vec![Applied::Diff(of(lower), of(upper))],
                }
            }
            "merge" => known.parents.iter().flat_map(of).collect(),
            _ => known.parents.iter().flat_map(of).chain([Applied::Own(id.to_owned())]).collect(),
        }
    }

    /// Layers from above the lower to the upper, if the one is in the stack of the other.
    pub(super) fn stack_above(&self, lower: &str, upper: &str) -> Vec<String> {
        let mut stack = vec![];
        let mut here = upper;
        while here != lower {
            stack.insert(0, here.to_owned());
            match &self.records[here] {
                Known { kind, parents, .. } if kind == "layer" => here = parents[0].as_deref().unwrap(),
                _ => return vec![],
            }
        }
        stack
    }

    /// Contents and compressions, if all of them are known.
    pub(super) fn blobs(&self, id: &str) -> Option<Vec<(String, String)>> {
        let of = |applied: Applied| match applied {
            Applied::Own(id) => self.records[&id].blob.clone(),
            Applied::Diff(..) => None,
        };
        let blobs: Vec<_> = self.applied(id).into_iter().map(of).collect::<Option<_>>()?;
        (!blobs.is_empty()).then_some(blobs)
    }

    pub(super) fn of_kind(&self, kind: &str, parents: &[Option<String>]) -> Option<String> {
        let is_it = |known: &&Known| !known.is_mutable && known.kind == kind && known.parents == parents;
        self.records.iter().find(|(_, known)| is_it(known)).map(|(id, _)| id.clone())
    }

    pub(super) fn hold(&mut self, record: &str, is_mutable: bool, is_use: bool) {
        self.held.push(Holding { record: record.to_owned(), is_mutable, is_use });
    }

    /// The records that a step that is cut off may have removed, or finalized.
    pub(super) fn in_danger(&self, step: &Step) -> BTreeSet<String> {
        let finalized = match step {
            Step::New { parent, .. } | Step::Blob { parent, .. } => parent.iter().copied().collect(),
            Step::Finalize { at } | Step::Name { at, .. } | Step::Lease { at, .. } => vec![*at],
            Step::Merge { of } => of.clone(),
            Step::Diff { lower, upper } => lower.iter().chain(upper).copied().collect(),
            _ => vec![],
        };
        let mut all: BTreeSet<String> =
            finalized.into_iter().flat_map(|at| self.pair(&self.held[at].record)).collect();
        match step {
            Step::GetMutable { record } | Step::Remove { record } => all.extend(self.pair(record)),
            Step::Prune | Step::Recover | Step::EndLease { .. } => {
                let mut pruned = self.clone();
                // What was mutable, and leased alone but for a ref of the one who died, is nobody's now.
                if let Step::EndLease { lease } = step {
                    pruned.leases.remove(lease);
                    pruned = pruned.after_death();
                }
                pruned.prune();
                all.extend(self.records.keys().filter(|id| !pruned.records.contains_key(*id)).cloned());
            }
            _ => {}
        }
        all
    }
}
