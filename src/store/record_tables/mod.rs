//! The tables of cache records, as one transaction sees them. What they mean, and the rules by which they change, is the business
//! of the `cache` room; here are rows and queries.
//!
//! ```text
//! cache_records ──< record_parents         a parent cannot go before its children: the database refuses it
//!       │──< record_variants, record_images, record_items          go with their record
//!       │──< record_names                                          keep it
//!       │──< record_refs >── sessions      keep it while the session lives: who ends, however, holds nothing
//!       │──< image_records                 keeps it as long as a name in `images` stands for that manifest
//!       └──< lease_records >── leases ──< lease_content            keep it until the lease expires
//! ```

mod images;
mod items;
mod leases;
mod record;
mod records;
mod refs;

use rusqlite::Transaction;

use super::database::{Access, Database, Stop};
use super::error::StoreError;

pub use images::ImageRow;
pub use items::{ItemPlace, RecordItem};
pub use leases::LeaseRow;
pub(super) use record::random_hex;
pub use record::{CacheRecord, LayerBlob, RecordId, RecordKind, RecordType, Retention};
pub use records::{LayerSharing, RecordKey, RecordUse};
pub use refs::{RefRow, SessionRow};

/// What a query gives; its errors end the transaction.
pub type TableResult<T> = rusqlite::Result<T>;

/// The tables, within one transaction.
#[derive(Debug)]
pub struct RecordTables<'a> {
    transaction: &'a Transaction<'a>,
}

impl Database {
    /// Runs `work` on the tables of cache records: all of what it writes happens, or nothing. `work` may be run again, so what
    /// it does besides must bear that.
    ///
    /// # Errors
    /// What `work` refuses with; [`StoreError::Database`].
    pub fn with_records<T, E: From<StoreError>>(
        &self,
        operation: &'static str,
        access: Access,
        mut work: impl FnMut(&RecordTables<'_>) -> Result<T, Stop<E>>,
    ) -> Result<T, E> {
        self.run(operation, access, |transaction| work(&RecordTables { transaction }))
    }
}

#[cfg(test)]
mod tests;
