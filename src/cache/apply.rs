//! What a record stands for: the layers that are applied, one after another, to get its tree.
//!
//! ```text
//! base   own                         merge  those of each parent, the lowest first
//! layer  those of the parent, own    diff   from nothing: those of the upper
//!                                           one layer above the lower: that layer
//!                                           else: the difference of two trees, to be calculated
//! ```

use super::refs::{present, present_parent};
use super::truth::together;
use super::{Attempt, Cache, CacheError, ImmutableRef, refuse};
use crate::store::LayerState;
use crate::store::record_tables::{CacheRecord, RecordId, RecordKind, RecordTables};
use crate::tree::merge::MAXIMUM_LAYERS;

/// Most layers that a record may stand for, those inside diffs included: as many as can be merged into a tree.
pub const MAXIMUM_APPLICATIONS: usize = MAXIMUM_LAYERS;
/// How deep diffs of diffs may be.
const MAXIMUM_DEPTH: usize = 32;

/// One step on the way to a record's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Application {
    /// A layer, applied by the rules of the OCI image specification (layer.md, "Applying Changesets").
    Layer(AppliedLayer),
    /// What has to be done to get from one tree to the other.
    Diff {
        /// The diff itself.
        record: RecordId,
        /// What is there before: its layers, the lowest first.
        lower: Vec<Application>,
        /// What is there after.
        upper: Vec<Application>,
    },
}

/// A layer that is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppliedLayer {
    /// The record whose layer it is.
    pub record: RecordId,
    /// Where its content is.
    pub source: LayerSource,
    /// Digest of the uncompressed layer, if known.
    pub diff_id: Option<String>,
    /// Digest of its blob, if it has one.
    pub blob: Option<String>,
    /// How much of it is here.
    pub state: LayerState,
}

/// Where a layer's content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerSource {
    /// The layer of that name in [`Store::layers`](crate::store::Store::layers), which may have to be indexed yet.
    Layer(String),
    /// The snapshot of that name, in the form of an overlay's upper directory. It has no layer yet, and gets one, of its archive, when an image
    /// is made of the record: to be mounted, merged, compared or pushed.
    Snapshot(RecordId),
}

impl CacheRecord {
    /// The snapshot that has the record's data at present, which for a pair is the mutable one's.
    pub(super) fn data_snapshot(&self) -> Option<&RecordId> {
        self.snapshot.as_ref().or(self.equal_mutable.as_ref())
    }
}

fn applied(record: CacheRecord) -> Attempt<Application> {
    let source = match (record.layer.clone(), record.data_snapshot()) {
        (Some(layer), _) => LayerSource::Layer(layer),
        (None, Some(snapshot)) => LayerSource::Snapshot(snapshot.clone()),
        (None, None) => {
            let reason = "it has neither layer nor snapshot";
            return refuse(CacheError::WithoutData { record: record.id, reason });
        }
    };
    let blob = record.blob.map(|blob| blob.digest);
    Ok(Application::Layer(AppliedLayer {
        record: record.id,
        source,
        diff_id: record.diff_id,
        blob,
        state: record.state,
    }))
}

enum Step {
    /// All that a record stands for, of which another was made, unless it is where this began.
    All { record: RecordId, of: Option<RecordId> },
    /// A record's own layer.
    Own(Box<CacheRecord>),
}

/// What records stand for, applied one after another.
pub(super) fn applications(
    tables: &RecordTables<'_>,
    records: impl DoubleEndedIterator<Item = RecordId>,
) -> Attempt<Vec<Application>> {
    collect(tables, records, MAXIMUM_DEPTH, &mut Budget { layers: MAXIMUM_APPLICATIONS, steps: 1 << 16 })
}

/// What may still be looked at. Merges of merges through layers between them double with each floor.
struct Budget {
    layers: usize,
    steps: usize,
}

impl Budget {
    fn spend(&mut self, is_layer: bool, record: &RecordId) -> Attempt<()> {
        let layers = if is_layer { self.layers.checked_sub(1) } else { Some(self.layers) };
        match (layers, self.steps.checked_sub(1)) {
            (Some(layers), Some(steps)) => *self = Budget { layers, steps },
            _ => return refuse(CacheError::TooManyLayers { record: record.clone() }),
        }
        Ok(())
    }
}

fn collect(
    tables: &RecordTables<'_>,
    records: impl DoubleEndedIterator<Item = RecordId>,
    depth: usize,
    budget: &mut Budget,
) -> Attempt<Vec<Application>> {
    // The last is next.
    let mut left: Vec<Step> = records.rev().map(|record| Step::All { record, of: None }).collect();
    let mut applications = Vec::new();
    while let Some(step) = left.pop() {
        let record = match step {
            Step::Own(record) => {
                budget.spend(true, &record.id)?;
                applications.push(applied(*record)?);
                continue;
            }
            Step::All { record, of: None } => present(tables, &record)?,
            Step::All { record, of: Some(of) } => present_parent(tables, &of, &record)?,
        };
        let below = |parent: RecordId| Step::All { record: parent, of: Some(record.id.clone()) };
        budget.spend(false, &record.id)?;
        match record.kind.clone() {
            RecordKind::Base => left.push(Step::Own(record.into())),
            RecordKind::Layer { parent } => {
                let parent = below(parent);
                left.extend([Step::Own(record.into()), parent]);
            }
            RecordKind::Merge { parents } => left.extend(parents.into_iter().rev().map(below)),
            RecordKind::Diff { lower: None, upper: None } => {}
            RecordKind::Diff { lower: None, upper: Some(upper) } => left.push(below(upper)),
            RecordKind::Diff { lower: Some(lower), upper: Some(upper) } if lower == upper => {}
            RecordKind::Diff { lower: Some(lower), upper } => {
                let upper = upper.map(|upper| present_parent(tables, &record.id, &upper)).transpose()?;
                match upper {
                    Some(upper) if matches!(&upper.kind, RecordKind::Layer { parent } if *parent == lower) => {
                        left.push(Step::Own(upper.into()));
                    }
                    upper => {
                        let Some(depth) = depth.checked_sub(1) else {
                            return refuse(CacheError::TooManyLayers { record: record.id });
                        };
                        let upper = upper.map(|upper| upper.id).into_iter();
                        present_parent(tables, &record.id, &lower)?;
                        applications.push(Application::Diff {
                            record: record.id,
                            lower: collect(tables, [lower].into_iter(), depth, budget)?,
                            upper: collect(tables, upper, depth, budget)?,
                        });
                    }
                }
            }
        }
    }
    Ok(applications)
}

/// All layers of these applications, those inside diffs included.
pub fn leaves(applications: &[Application]) -> Vec<&AppliedLayer> {
    let mut left: Vec<&Application> = applications.iter().rev().collect();
    let mut layers = Vec::new();
    while let Some(application) = left.pop() {
        match application {
            Application::Layer(layer) => layers.push(layer),
            Application::Diff { lower, upper, .. } => {
                left.extend(upper.iter().rev().chain(lower.iter().rev()))
            }
        }
    }
    layers
}

impl ImmutableRef {
    /// What the record stands for, in the order of application. Of a merge, a layer may come several times.
    pub fn applications(&self) -> Result<Vec<Application>, CacheError> {
        let applications = self.cache().read("list what a record stands for", |tables| {
            applications(tables, [self.id().clone()].into_iter())
        })?;
        self.cache().with_states(applications)
    }

    /// How much of all that the record stands for is here.
    pub fn state(&self) -> Result<LayerState, CacheError> {
        let applications = self.applications()?;
        Ok(together(leaves(&applications).into_iter().map(|layer| layer.state)))
    }
}

impl Cache {
    /// What records would stand for if they were merged, without making a record of it.
    pub fn applications_of(&self, records: &[ImmutableRef]) -> Result<Vec<Application>, CacheError> {
        let ids = || records.iter().map(|record| record.id().clone());
        let applications = self.read("list what records stand for", |tables| applications(tables, ids()))?;
        self.with_states(applications)
    }
}
