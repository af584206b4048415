//! Merge and diff: records of records. Nothing is fetched, copied or looked at but rows; what they stand for, [`apply`](super::apply)
//! says.
//!
//! What is the same as something simpler becomes that: nested merges are flattened, a merge of one is that one, a diff from nothing
//! is its upper, and a diff over several layers of one stack is the merge of these layers. The same question gives the same record.

use super::apply::{Application, applications};
use super::refs::{ImmutableRef, Purpose, present};
use super::{Attempt, Cache, CacheError, chain_id, link, now, refuse};
use crate::store::record_tables::{CacheRecord, RecordId, RecordKind, RecordTables};

impl Cache {
    /// These records laid over each other, the lowest first.
    ///
    /// # Errors
    /// [`CacheError::Nothing`]; [`CacheError::TooManyLayers`].
    pub fn merge(&self, records: &[ImmutableRef], purpose: Purpose) -> Result<ImmutableRef, CacheError> {
        for record in records {
            record.finalize()?;
        }
        let id = RecordId::random()?;
        let (number, id) = self.write("merge records", |tables| {
            let id = match records {
                [] => return refuse(CacheError::Nothing("merge")),
                [one] => present(tables, one.id())?.id,
                _ => self.ensure_merge(tables, &id, records.iter().map(ImmutableRef::id))?,
            };
            Ok((self.take(tables, &id, purpose)?, id))
        })?;
        Ok(self.immutable_ref(number, id))
    }

    /// What has to be done to `lower` to get `upper`; an absent one is the empty tree.
    ///
    /// # Errors
    /// [`CacheError::Nothing`] if both are absent; [`CacheError::TooManyLayers`].
    pub fn diff(
        &self,
        lower: Option<&ImmutableRef>,
        upper: Option<&ImmutableRef>,
        purpose: Purpose,
    ) -> Result<ImmutableRef, CacheError> {
        for record in lower.into_iter().chain(upper) {
            record.finalize()?;
        }
        let fresh = RecordId::random()?;
        let (number, id) = self.write("compare records", |tables| {
            let id = match (lower.map(ImmutableRef::id), upper.map(ImmutableRef::id)) {
                (None, None) => return refuse(CacheError::Nothing("compare")),
                (None, Some(upper)) => upper.clone(),
                (lower, upper) => self.ensure_diff(tables, &fresh, lower, upper)?,
            };
            Ok((self.take(tables, &id, purpose)?, id))
        })?;
        Ok(self.immutable_ref(number, id))
    }

    /// The record of what leads from one to the other, one of which is there; one of that id is made if there is none.
    pub(super) fn ensure_diff(
        &self,
        tables: &RecordTables<'_>,
        id: &RecordId,
        lower: Option<&RecordId>,
        upper: Option<&RecordId>,
    ) -> Attempt<RecordId> {
        let between = match (lower, upper) {
            (Some(lower), Some(upper)) => layers_between(tables, lower, upper)?,
            _ => vec![],
        };
        if between.len() < 2 {
            return self.ensure(
                tables,
                id,
                RecordKind::Diff { lower: lower.cloned(), upper: upper.cloned() },
            );
        }
        let mut parents = Vec::with_capacity(between.len());
        let mut below = lower.cloned();
        for layer in between {
            let single = RecordKind::Diff { lower: below, upper: Some(layer.clone()) };
            parents.push(self.ensure(tables, &super::or_refuse(RecordId::random())?, single)?);
            below = Some(layer);
        }
        self.ensure(tables, id, RecordKind::Merge { parents })
    }

    /// The record of these laid over each other, of which there are several; one of that id is made if there is none.
    pub(super) fn ensure_merge<'a>(
        &self,
        tables: &RecordTables<'_>,
        id: &RecordId,
        records: impl Iterator<Item = &'a RecordId>,
    ) -> Attempt<RecordId> {
        let parents = flatten(tables, records)?;
        self.ensure(tables, id, RecordKind::Merge { parents })
    }

    /// The record of that kind; one of that id is made if there is none.
    fn ensure(&self, tables: &RecordTables<'_>, id: &RecordId, kind: RecordKind) -> Attempt<RecordId> {
        if let Some(known) = tables.record_of_kind(&kind)? {
            return Ok(known);
        }
        let mut record = CacheRecord::new(id.clone(), kind, now());
        for parent in record.kind.parents() {
            record.is_volatile |= present(tables, parent)?.is_volatile;
        }
        record.boot = record.is_volatile.then(|| self.boot().to_owned());
        tables.insert_record(&record)?;
        // What cannot be mounted is not made: refused, the row is not there.
        let applications = applications(tables, [id.clone()].into_iter())?;
        (record.chain_id, record.blob_chain_id) = chain_ids(&applications);
        tables.update_record(&record)?;
        Ok(id.clone())
    }
}

/// The records that are merged: of a merge, its parents in its place. They are no merges, as merges are made by this.
fn flatten<'a>(
    tables: &RecordTables<'_>,
    records: impl Iterator<Item = &'a RecordId>,
) -> Attempt<Vec<RecordId>> {
    let mut flat = Vec::new();
    for id in records {
        match present(tables, id)?.kind {
            RecordKind::Merge { parents } => flat.extend(parents),
            _ => flat.push(id.clone()),
        }
    }
    Ok(flat)
}

/// The layers of the upper's stack that are above the lower, the lowest first; none if the lower is not in the stack.
fn layers_between(tables: &RecordTables<'_>, lower: &RecordId, upper: &RecordId) -> Attempt<Vec<RecordId>> {
    let mut layers = Vec::new();
    let mut here = upper.clone();
    // Parents are older than their children, so this ends.
    while here != *lower {
        let RecordKind::Layer { parent } = present(tables, &here)?.kind else { return Ok(vec![]) };
        layers.push(std::mem::replace(&mut here, parent));
    }
    layers.reverse();
    Ok(layers)
}

/// Chain ID and blob chain ID of a stack, as far as all of its layers have what they are made of.
pub(super) fn chain_ids(applications: &[Application]) -> (Option<String>, Option<String>) {
    let layers: Option<Vec<_>> = applications
        .iter()
        .map(|application| match application {
            Application::Layer(layer) => Some(layer),
            Application::Diff { .. } => None,
        })
        .collect();
    let Some(layers) = layers else { return (None, None) };
    let chain = |links: Option<Vec<String>>| {
        links?.into_iter().fold(None, |below: Option<String>, link| Some(chain_id(below.as_deref(), &link)))
    };
    let diff_ids = layers.iter().map(|layer| layer.diff_id.clone()).collect();
    let blob_links = layers.iter().map(|layer| Some(link(layer.blob.as_ref()?, layer.diff_id.as_ref()?)));
    (chain(diff_ids), chain(blob_links.collect()))
}
