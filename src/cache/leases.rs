//! Names and leases: what keeps records while nobody holds a ref. Both are on disk when they are given.

use super::refs::{ImmutableRef, MutableRef, mark_if_abandoned, present};
use super::{Attempt, Cache, CacheError, now, refuse};
use crate::store::record_tables::{LeaseRow, RecordId, RecordTables};

/// Longest name of a record, or of a lease, in bytes.
pub(super) const MAXIMUM_NAME: usize = 1024;

pub(super) fn check_name(what: &'static str, name: &str) -> Result<(), CacheError> {
    let reason = match name {
        "" => "it is empty",
        long if long.len() > MAXIMUM_NAME => "it is too long",
        strange if strange.chars().any(char::is_control) => "it holds control characters",
        _ => return Ok(()),
    };
    Err(CacheError::InvalidName { what, name: name.chars().take(100).collect(), reason })
}

impl ImmutableRef {
    /// Gives the record a name, as images have; another that had it loses it.
    pub fn set_name(&self, name: &str) -> Result<(), CacheError> {
        check_name("name of a record", name)?;
        self.finalize()?;
        self.cache().write_durably("name a record", |tables| {
            present(tables, self.id())?;
            Ok(tables.set_name(name, self.id())?)
        })
    }

    /// Has a lease keep the record.
    ///
    /// # Errors
    /// [`CacheError::Unknown`] if there is no such lease.
    pub fn lease(&self, lease: &str) -> Result<(), CacheError> {
        self.finalize()?;
        self.cache().lease_record(lease, self.id())
    }
}

impl MutableRef {
    /// Has a lease keep the record; what becomes of it by a commit is kept once it is finalized.
    ///
    /// # Errors
    /// [`CacheError::Unknown`] if there is no such lease.
    pub fn lease(&self, lease: &str) -> Result<(), CacheError> {
        self.cache().lease_record(lease, self.id())
    }
}

fn known_lease(tables: &RecordTables<'_>, lease: &str) -> Attempt<()> {
    if tables.has_lease(lease)? {
        return Ok(());
    }
    refuse(CacheError::Unknown { key: "lease", value: lease.to_owned() })
}

impl Cache {
    /// Takes a name away; false if there is no such.
    pub fn remove_name(&self, name: &str) -> Result<bool, CacheError> {
        self.write_durably("take a name away", |tables| Ok(tables.remove_name(name)?))
    }

    /// All names and their records, by name.
    pub fn names(&self) -> Result<Vec<(String, RecordId)>, CacheError> {
        self.read("list the names", |tables| Ok(tables.names()?))
    }

    /// Makes a lease, or changes the expiry of one: from then on (in seconds since 1970) it keeps nothing. Without one it never
    /// expires.
    pub fn set_lease(&self, lease: &str, expires_at: Option<i64>) -> Result<(), CacheError> {
        check_name("name of a lease", lease)?;
        let row = LeaseRow { id: lease.to_owned(), created_at: now(), expires_at };
        self.write_durably("make a lease", |tables| Ok(tables.set_lease(&row)?))
    }

    /// Ends a lease; false if there is no such. Mutable records that nothing else keeps are removed, as when a ref is released.
    pub fn remove_lease(&self, lease: &str) -> Result<bool, CacheError> {
        let now = now();
        let marked = self.write_durably("end a lease", |tables| {
            let (leased, _) = tables.leased(lease)?;
            if !tables.remove_lease(lease)? {
                return Ok(None);
            }
            let mut marked = Vec::new();
            for id in leased {
                if let Some(record) = tables.record(&id)?
                    && mark_if_abandoned(tables, &record, now)?
                {
                    marked.push(id);
                }
            }
            Ok(Some(marked))
        })?;
        for id in marked.iter().flatten() {
            self.finish_removal(id)?;
        }
        Ok(marked.is_some())
    }

    /// All leases, by name; those that have expired, too, until records are next pruned. What they kept is looked for then, and by
    /// [`Cache::recover`].
    pub fn leases(&self) -> Result<Vec<LeaseRow>, CacheError> {
        self.read("list the leases", |tables| Ok(tables.leases()?))
    }

    /// Has a lease keep a blob of [`Store::content`](crate::store::Store::content).
    ///
    /// # Errors
    /// [`CacheError::Unknown`] if there is no such lease.
    pub fn lease_content(&self, lease: &str, digest: &str) -> Result<(), CacheError> {
        self.write_durably("lease a blob", |tables| {
            known_lease(tables, lease)?;
            Ok(tables.lease_content(lease, digest)?)
        })
    }

    /// What a lease keeps: records, and digests of blobs.
    ///
    /// # Errors
    /// [`CacheError::Unknown`] if there is no such lease.
    pub fn leased(&self, lease: &str) -> Result<(Vec<RecordId>, Vec<String>), CacheError> {
        self.read("look at a lease", |tables| {
            known_lease(tables, lease)?;
            Ok(tables.leased(lease)?)
        })
    }

    /// The blobs that leases which have not expired keep.
    pub fn leased_content(&self) -> Result<Vec<String>, CacheError> {
        let now = now();
        self.read("list the blobs that leases keep", |tables| Ok(tables.leased_content(now)?))
    }

    fn lease_record(&self, lease: &str, record: &RecordId) -> Result<(), CacheError> {
        self.write_durably("lease a record", |tables| {
            known_lease(tables, lease)?;
            present(tables, record)?;
            Ok(tables.lease_record(lease, record)?)
        })
    }
}
