//! What can go wrong with records, said so that the person who reads it knows what to do.

use crate::store::StoreError;
use crate::store::record_tables::RecordId;

use super::apply::MAXIMUM_APPLICATIONS;

/// An operation on records that failed.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no such record.
    #[error("no record has the {key} {value:?}")]
    Unknown {
        /// What was looked for, as a noun.
        key: &'static str,
        /// As given.
        value: String,
    },
    /// Something that a record was made of is gone, as in a database that was damaged.
    #[error(
        "record {record} was made of record {parent}, which is gone; `peel check --repair` removes what cannot be used any more, and what it \
         was made of is brought again when it is pulled or mounted"
    )]
    ParentGone {
        /// The record.
        record: RecordId,
        /// What is gone.
        parent: RecordId,
    },
    /// Several records fit.
    #[error(
        "{count} records have the {key} {value:?}: {}{}; name one of them by its id",
        join(candidates), if *count > candidates.len() { " …" } else { "" }
    )]
    Ambiguous {
        /// What was looked for, as a noun.
        key: &'static str,
        /// As given.
        value: String,
        /// How many there are.
        count: usize,
        /// The first of them.
        candidates: Vec<RecordId>,
    },
    /// Something keeps the record.
    #[error("record {record} is in use by {}", by.join(", "))]
    InUse {
        /// The record.
        record: RecordId,
        /// What keeps it.
        by: Vec<String>,
    },
    /// A name that another record has.
    #[error("{name:?} is the name of record {record}; choose another")]
    NameTaken {
        /// The name.
        name: String,
        /// The record that has it.
        record: RecordId,
    },
    /// It may still change.
    #[error("record {record} is mutable; commit it first")]
    Mutable {
        /// The record.
        record: RecordId,
    },
    /// It can change no more.
    #[error("record {record} is immutable; make a mutable one on top of it")]
    Immutable {
        /// The record.
        record: RecordId,
    },
    /// A layer can be found again only on layers that can be.
    #[error(
        "record {record} has no chain ID, so no layer can be put on top of it by its blob; its layers' diff IDs must be known first"
    )]
    WithoutChainId {
        /// The record that was to be the parent.
        record: RecordId,
    },
    /// Neither side of a diff, or no part of a merge.
    #[error("there is nothing to {0}: name a record at least")]
    Nothing(&'static str),
    /// More than can be merged into a tree.
    #[error(
        "record {record} would be made of more than {MAXIMUM_APPLICATIONS} layers, or of diffs that are nested too deeply"
    )]
    TooManyLayers {
        /// The record, or the first that goes into it.
        record: RecordId,
    },
    /// Its data are gone, or were never there.
    #[error("record {record} has no data: {reason}; remove it and make it again")]
    WithoutData {
        /// The record.
        record: RecordId,
        /// What is missing.
        reason: &'static str,
    },
    /// What a name must be.
    #[error("{name:?} cannot be the {what}: {reason}")]
    InvalidName {
        /// What it was to name.
        what: &'static str,
        /// As given.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Data too large to be kept with a record.
    #[error("{key:?} has {size} bytes, too many to be kept with a record; at most {most} are")]
    ItemTooLarge {
        /// The data's name.
        key: String,
        /// Their length.
        size: u64,
        /// The most.
        most: u64,
    },
}

fn join(ids: &[RecordId]) -> String {
    ids.iter().map(RecordId::as_str).collect::<Vec<_>>().join(", ")
}

impl CacheError {
    /// Whether it is for want of space.
    pub fn is_full(&self) -> bool {
        matches!(self, CacheError::Store(error) if error.is_full())
    }

    /// There is no record of that id.
    pub(super) fn unknown(id: &RecordId) -> CacheError {
        CacheError::Unknown { key: "id", value: id.to_string() }
    }
}
