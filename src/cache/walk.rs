//! Walks over what a record was made of. None of them recurses, and each is bounded.

use std::collections::{HashSet, VecDeque};

use super::refs::{present, present_parent};
use super::{CacheError, ImmutableRef, leaves, refuse};
use crate::store::record_tables::CacheRecord;

/// Most records that a walk meets.
const MAXIMUM_WALK: usize = 1 << 16;

/// The digests of one layer of a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerDigests {
    /// Of the uncompressed layer, if known.
    pub diff_id: Option<String>,
    /// Of its blob, if it has one.
    pub blob: Option<String>,
}

impl ImmutableRef {
    /// Calls `visit` for the record and all that it was made of, directly or not: each once, a record before what it was made of.
    ///
    /// # Errors
    /// [`CacheError::TooManyLayers`] beyond 65,536 records.
    pub fn walk_ancestors(&self, mut visit: impl FnMut(&CacheRecord)) -> Result<(), CacheError> {
        let records = self.cache().read("walk over a record's ancestors", |tables| {
            let (mut records, mut met) = (Vec::new(), HashSet::from([self.id().clone()]));
            let mut left = VecDeque::from([(self.id().clone(), None)]);
            while let Some((id, child)) = left.pop_front() {
                let record = match &child {
                    None => present(tables, &id)?,
                    Some(child) => present_parent(tables, child, &id)?,
                };
                let parents = record.kind.parents().filter(|parent| met.insert((*parent).clone()));
                left.extend(parents.map(|parent| (parent.clone(), Some(record.id.clone()))));
                records.push(record);
                if met.len() > MAXIMUM_WALK {
                    return refuse(CacheError::TooManyLayers { record: self.id().clone() });
                }
            }
            Ok(records)
        })?;
        records.iter().for_each(&mut visit);
        Ok(())
    }

    /// The records whose own layers make up the tree, the lowest first; those inside diffs included.
    pub fn layer_chain(&self) -> Result<Vec<CacheRecord>, CacheError> {
        let applications = self.applications()?;
        self.cache().read("list a record's layers", |tables| {
            leaves(&applications).into_iter().map(|layer| present(tables, &layer.record)).collect()
        })
    }

    /// Their digests.
    pub fn digest_chain(&self) -> Result<Vec<LayerDigests>, CacheError> {
        let applications = self.applications()?;
        let digests = leaves(&applications).into_iter();
        Ok(digests
            .map(|layer| LayerDigests { diff_id: layer.diff_id.clone(), blob: layer.blob.clone() })
            .collect())
    }
}
