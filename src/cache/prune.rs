//! Which records go for want of space, by rules: a pure calculation. Whoever removes them then ([`Cache::remove_all`]) looks again
//! whether each may go.
//!
//! A rule says which records it is about, how long they are kept whatever happens, and when it stops: once records take no more than
//! so many bytes, and so many are free. Rules are applied one after another. Records go one at a time, the least recently used first,
//! children before what they were made of.

use std::collections::{BTreeSet, HashMap};

use super::{Cache, CacheError, Usage, now};
use crate::store::LayerState;
use crate::store::record_tables::{LeaseRow, RecordId, RecordKind, RecordType};

/// Which records are meant. What is empty or absent means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of these types.
    pub types: Vec<RecordType>,
    /// In these states.
    pub states: Vec<LayerState>,
    /// Made before, in seconds since 1970.
    pub made_before: Option<i64>,
    /// Whose data others have too, or have not.
    pub is_shared: Option<bool>,
    /// Held by somebody, or not.
    pub is_in_use: Option<bool>,
    /// Mutable, or not.
    pub is_mutable: Option<bool>,
    /// Whose ids begin like this.
    pub id: String,
    /// Whose descriptions hold this.
    pub description: String,
}

impl Filter {
    /// Whether a record is meant.
    pub fn matches(&self, usage: &Usage) -> bool {
        let record = &usage.record;
        (self.types.is_empty() || self.types.contains(&record.record_type))
            && (self.states.is_empty() || self.states.contains(&usage.state))
            && self.made_before.is_none_or(|time| record.created_at < time)
            && self.is_shared.is_none_or(|wanted| wanted == usage.is_shared())
            && self.is_in_use.is_none_or(|wanted| wanted == usage.is_in_use())
            && self.is_mutable.is_none_or(|wanted| wanted == record.is_mutable)
            && record.id.as_str().starts_with(&self.id)
            && record.description.contains(&self.description)
    }
}

/// A rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Which records it is about.
    pub filter: Filter,
    /// Seconds for which a record is kept after its last use.
    pub keep_for: u64,
    /// Bytes that all records may take together. If nothing is said by this nor by `minimum_free`, all that is meant goes.
    pub keep_bytes: Option<u64>,
    /// Bytes that are to be free on the store's file system.
    pub minimum_free: Option<u64>,
    /// Whether it is about records of the types `internal` and `frontend` too.
    pub all: bool,
}

/// What goes, or went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// The records, in order.
    pub records: Vec<RecordId>,
    /// Bytes that this frees.
    pub bytes: u64,
}

/// What goes by these rules at that time, with so many bytes free. `pinned` stay: those that images are which stay, whatever the database
/// says of images, and others that the caller knows to be used.
pub fn plan(usages: &[Usage], rules: &[Rule], pinned: &BTreeSet<RecordId>, now: i64, free: u64) -> Pruned {
    let mut house = House::new(usages, pinned, free);
    let mut pruned = Pruned::default();
    for rule in rules {
        house.apply(rule, now, &mut pruned);
    }
    pruned
}

/// What there still is.
struct House<'a> {
    usages: HashMap<&'a RecordId, &'a Usage>,
    children: HashMap<&'a RecordId, u64>,
    /// How many records have the same data, by their name.
    sharers: HashMap<&'a str, u64>,
    pinned: &'a BTreeSet<RecordId>,
    used: u64,
    free: u64,
}

impl<'a> House<'a> {
    fn new(usages: &'a [Usage], pinned: &'a BTreeSet<RecordId>, free: u64) -> House<'a> {
        let mut sharers: HashMap<&str, u64> = HashMap::new();
        for part in usages.iter().flat_map(|usage| &usage.parts) {
            *sharers.entry(&part.name).or_default() += 1;
        }
        House {
            usages: usages.iter().map(|usage| (&usage.record.id, usage)).collect(),
            children: usages.iter().map(|usage| (&usage.record.id, usage.uses.children)).collect(),
            sharers,
            pinned,
            used: super::total_bytes(usages),
            free,
        }
    }

    fn apply(&mut self, rule: &Rule, now: i64, pruned: &mut Pruned) {
        let keep_for = i64::try_from(rule.keep_for).unwrap_or(i64::MAX);
        let is_meant = |usage: &Usage| {
            let is_old = now.saturating_sub(last_time(usage)) >= keep_for;
            let is_special = matches!(usage.record.record_type, RecordType::Internal | RecordType::Frontend);
            is_old && (rule.all || !is_special) && rule.filter.matches(usage)
        };
        let mut queue: BTreeSet<(i64, u64, &RecordId)> = self
            .usages
            .values()
            .filter(|usage| self.may_go(usage) && is_meant(usage))
            .map(|usage| rank(usage))
            .collect();
        while !self.is_enough_for(rule) {
            let Some((_, _, id)) = queue.pop_first() else { return };
            let Some(usage) = self.remove(id, pruned) else { continue };
            for parent in parents(&usage.record.kind) {
                let usage = self.usages.get(parent).copied();
                queue.extend(usage.filter(|usage| self.may_go(usage) && is_meant(usage)).map(rank));
            }
        }
    }

    fn is_enough_for(&self, rule: &Rule) -> bool {
        let has_goal = rule.keep_bytes.is_some() || rule.minimum_free.is_some();
        let is_small = rule.keep_bytes.is_none_or(|most| self.used <= most);
        has_goal && is_small && rule.minimum_free.is_none_or(|least| self.free >= least)
    }

    /// Whether nothing keeps it but what is gone by the plan.
    fn may_go(&self, usage: &Usage) -> bool {
        let uses = &usage.uses;
        uses.refs + uses.names + uses.leases == 0
            && !self.pinned.contains(&usage.record.id)
            && self.children.get(&usage.record.id) == Some(&0)
    }

    fn remove(&mut self, id: &RecordId, pruned: &mut Pruned) -> Option<&'a Usage> {
        let usage = self.usages.remove(id)?;
        // Both of a pair are made of the same.
        let rows = 1 + u64::from(usage.record.equal_mutable.is_some());
        for parent in parents(&usage.record.kind) {
            if let Some(children) = self.children.get_mut(parent) {
                *children = children.saturating_sub(rows);
            }
        }
        for part in &usage.parts {
            let sharers = self.sharers.get_mut(part.name.as_str());
            let left = sharers.map_or(0, |sharers| {
                *sharers -= 1;
                *sharers
            });
            if left == 0 && !(part.is_layer && usage.sharing.images) {
                self.used = self.used.saturating_sub(part.bytes);
                self.free = self.free.saturating_add(part.bytes);
                pruned.bytes = pruned.bytes.saturating_add(part.bytes);
            }
        }
        pruned.records.push(id.clone());
        Some(usage)
    }
}

/// The records that it was made of, each once.
fn parents(kind: &RecordKind) -> BTreeSet<&RecordId> {
    kind.parents().collect()
}

/// When a record was last used, or made, in seconds since 1970.
pub fn last_time(usage: &Usage) -> i64 {
    usage.record.last_used.unwrap_or(usage.record.created_at).max(usage.record.created_at)
}

/// What goes first is the least.
fn rank(usage: &Usage) -> (i64, u64, &RecordId) {
    (last_time(usage), usage.record.use_count, &usage.record.id)
}

impl Cache {
    /// Ends what nobody is left to end: sessions that are over, leases that have expired, and what they kept of mutable records.
    pub fn tidy(&self) -> Result<(), CacheError> {
        let now = now();
        self.end_dead_sessions()?;
        let has_expired = |lease: &LeaseRow| lease.expires_at.is_some_and(|expires_at| expires_at <= now);
        if self.leases()?.iter().any(has_expired) {
            self.write_durably("remove leases that have expired", |tables| {
                Ok(tables.remove_expired_leases(now)?)
            })?;
        }
        self.mark_abandoned()?;
        self.finish_removals().map(drop)
    }
}

#[cfg(test)]
#[path = "prune_tests.rs"]
mod tests;
