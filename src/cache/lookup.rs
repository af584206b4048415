//! Finding records: by id or the beginning of one, by name, by digests. What is found is unique, or it is an error that lists what
//! there is to choose from.

use super::refs::{ImmutableRef, Purpose, present};
use super::{Attempt, Cache, CacheError, refuse};
use crate::store::record_tables::{CacheRecord, RecordId, RecordKey, RecordTables};

/// What a record is looked for by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// Its id, or the beginning of one.
    Id(&'a str),
    /// Its name, or that of an image that it is.
    Name(&'a str),
    /// Digest of its layer's blob.
    Blob(&'a str),
    /// Digest of its uncompressed layer.
    DiffId(&'a str),
    /// The chain ID of its stack.
    ChainId(&'a str),
    /// Digest of its layer's table of contents.
    Toc(&'a str),
    /// Any of these: a digest if it has a colon and fits, else a name if there is one like that, else the beginning of an id.
    Any(&'a str),
}

/// How many of several records an error lists.
const LISTED: usize = 10;
/// Beyond so many, they are not even counted.
const COUNTED: usize = 1000;

impl Key<'_> {
    fn noun(&self) -> &'static str {
        match self {
            Key::Id(_) => "id",
            Key::Name(_) => "name",
            Key::Blob(_) => "blob digest",
            Key::DiffId(_) => "diff ID",
            Key::ChainId(_) => "chain ID",
            Key::Toc(_) => "TOC digest",
            Key::Any(_) => "name, digest or id",
        }
    }

    fn text(&self) -> &str {
        match self {
            Key::Id(text)
            | Key::Name(text)
            | Key::Blob(text)
            | Key::DiffId(text)
            | Key::ChainId(text)
            | Key::Toc(text)
            | Key::Any(text) => text,
        }
    }

    /// All records that fit.
    fn candidates(&self, tables: &RecordTables<'_>) -> Attempt<Vec<RecordId>> {
        Ok(match self {
            Key::Id(prefix) if RecordId::is_prefix(prefix) => tables.records_with_prefix(prefix, COUNTED)?,
            Key::Id(_) => vec![],
            Key::Name(name) => named(tables, name)?,
            Key::Blob(digest) => tables.records_by(RecordKey::Blob, digest)?,
            Key::DiffId(digest) => tables.records_by(RecordKey::DiffId, digest)?,
            Key::ChainId(digest) => tables.records_by(RecordKey::ChainId, digest)?,
            Key::Toc(digest) => tables.records_by(RecordKey::Toc, digest)?,
            Key::Any(text) => {
                let mut found = Vec::new();
                if text.contains(':') {
                    for key in [RecordKey::Blob, RecordKey::DiffId, RecordKey::ChainId, RecordKey::Toc] {
                        found.extend(tables.records_by(key, text)?);
                    }
                    found.sort();
                    found.dedup();
                }
                if found.is_empty() {
                    found = named(tables, text)?;
                }
                if found.is_empty() && RecordId::is_prefix(text) {
                    found = tables.records_with_prefix(text, COUNTED)?;
                }
                found
            }
        })
    }

    /// The one record that fits.
    pub(super) fn resolve(&self, tables: &RecordTables<'_>) -> Attempt<RecordId> {
        let mut candidates = self.candidates(tables)?;
        let (key, value) = (self.noun(), self.text().chars().take(200).collect());
        match candidates.len() {
            0 => refuse(CacheError::Unknown { key, value }),
            1 => Ok(candidates.swap_remove(0)),
            count => {
                candidates.truncate(LISTED);
                refuse(CacheError::Ambiguous { key, value, count, candidates })
            }
        }
    }
}

fn named(tables: &RecordTables<'_>, name: &str) -> Attempt<Vec<RecordId>> {
    Ok(match tables.named_record(name)? {
        Some(record) => vec![record],
        None => tables.records_of_reference(name)?,
    })
}

impl Cache {
    /// Takes a ref on the immutable record of that id.
    ///
    /// # Errors
    /// [`CacheError::Unknown`]; [`CacheError::Mutable`].
    pub fn get(&self, id: &RecordId, purpose: Purpose) -> Result<ImmutableRef, CacheError> {
        let number = self.write("take a ref", |tables| self.take(tables, id, purpose))?;
        Ok(self.immutable_ref(number, id.clone()))
    }

    /// Takes a ref on the one immutable record that fits.
    ///
    /// # Errors
    /// [`CacheError::Unknown`]; [`CacheError::Ambiguous`]; [`CacheError::Mutable`].
    pub fn find(&self, key: Key<'_>, purpose: Purpose) -> Result<ImmutableRef, CacheError> {
        let (number, id) = self.write("find a record", |tables| {
            let id = key.resolve(tables)?;
            Ok((self.take(tables, &id, purpose)?, id))
        })?;
        Ok(self.immutable_ref(number, id))
    }

    /// The one record that fits, mutable or not, without keeping it.
    ///
    /// # Errors
    /// [`CacheError::Unknown`]; [`CacheError::Ambiguous`].
    pub fn look_up(&self, key: Key<'_>) -> Result<CacheRecord, CacheError> {
        self.read("find a record", |tables| {
            let id = key.resolve(tables)?;
            present(tables, &id)
        })
    }

    /// Writes the row of a ref on an immutable record.
    pub(super) fn take(&self, tables: &RecordTables<'_>, id: &RecordId, purpose: Purpose) -> Attempt<i64> {
        let record = present(tables, id)?;
        if record.is_mutable {
            return refuse(CacheError::Mutable { record: record.id });
        }
        Ok(self.hold(tables, id, false, purpose)?)
    }
}
