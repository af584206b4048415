//! Names of records, and leases.

use rusqlite::{OptionalExtension, params};

use super::record::RecordId;
use super::{RecordTables, TableResult};

/// A lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// Its name, as its owner chose it.
    pub id: String,
    /// When it was made, in seconds since 1970.
    pub created_at: i64,
    /// From when on it keeps nothing; nothing if it never expires.
    pub expires_at: Option<i64>,
}

impl RecordTables<'_> {
    /// The record of that name, deleted or not.
    pub fn named_record(&self, name: &str) -> TableResult<Option<RecordId>> {
        self.transaction
            .prepare_cached("SELECT record FROM record_names WHERE name = ?1")?
            .query_row([name], |row| row.get(0))
            .optional()
    }

    /// Gives a record a name, which the record that had it loses.
    pub fn set_name(&self, name: &str, record: &RecordId) -> TableResult<()> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO record_names VALUES (?1, ?2)")?
            .execute(params![name, record])?;
        Ok(())
    }

    /// Removes a name; false if there is no such.
    pub fn remove_name(&self, name: &str) -> TableResult<bool> {
        let removed =
            self.transaction.prepare_cached("DELETE FROM record_names WHERE name = ?1")?.execute([name])?;
        Ok(removed > 0)
    }

    /// Removes all names of a record.
    pub fn remove_names_of(&self, record: &RecordId) -> TableResult<()> {
        self.transaction.prepare_cached("DELETE FROM record_names WHERE record = ?1")?.execute([record])?;
        Ok(())
    }

    /// Gives the names of one record to another.
    pub fn move_names(&self, from: &RecordId, to: &RecordId) -> TableResult<()> {
        self.transaction
            .prepare_cached("UPDATE record_names SET record = ?2 WHERE record = ?1")?
            .execute([from, to])?;
        Ok(())
    }

    /// All names with their records, by name.
    pub fn names(&self) -> TableResult<Vec<(String, RecordId)>> {
        self.transaction
            .prepare_cached("SELECT name, record FROM record_names ORDER BY name")?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    }

    /// Adds a lease, or gives one that is there another expiry.
    pub fn set_lease(&self, lease: &LeaseRow) -> TableResult<()> {
        self.transaction
            .prepare_cached(
                "INSERT INTO leases VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at",
            )?
            .execute(params![lease.id, lease.created_at, lease.expires_at])?;
        Ok(())
    }

    /// All leases, by id.
    pub fn leases(&self) -> TableResult<Vec<LeaseRow>> {
        self.transaction
            .prepare_cached("SELECT * FROM leases ORDER BY id")?
            .query_map([], |row| {
                Ok(LeaseRow {
                    id: row.get("id")?,
                    created_at: row.get("created_at")?,
                    expires_at: row.get("expires_at")?,
                })
            })?
            .collect()
    }

    /// Whether there is such a lease.
    pub fn has_lease(&self, id: &str) -> TableResult<bool> {
        self.transaction.prepare_cached("SELECT 1 FROM leases WHERE id = ?1")?.exists([id])
    }

    /// Removes a lease; false if there is no such.
    pub fn remove_lease(&self, id: &str) -> TableResult<bool> {
        let removed = self.transaction.prepare_cached("DELETE FROM leases WHERE id = ?1")?.execute([id])?;
        Ok(removed > 0)
    }

    /// Removes the leases that have expired, and gives their number.
    pub fn remove_expired_leases(&self, now: i64) -> TableResult<u64> {
        let removed =
            self.transaction.prepare_cached("DELETE FROM leases WHERE expires_at <= ?1")?.execute([now])?;
        Ok(removed as u64)
    }

    /// Has a lease keep a record.
    pub fn lease_record(&self, lease: &str, record: &RecordId) -> TableResult<()> {
        self.transaction
            .prepare_cached("INSERT OR IGNORE INTO lease_records VALUES (?1, ?2)")?
            .execute(params![lease, record])?;
        Ok(())
    }

    /// Has the leases on one record keep another instead.
    pub fn move_leases(&self, from: &RecordId, to: &RecordId) -> TableResult<()> {
        self.transaction
            .prepare_cached("UPDATE OR IGNORE lease_records SET record = ?2 WHERE record = ?1")?
            .execute([from, to])?;
        Ok(())
    }

    /// Has a lease keep a blob.
    pub fn lease_content(&self, lease: &str, digest: &str) -> TableResult<()> {
        self.transaction
            .prepare_cached("INSERT OR IGNORE INTO lease_content VALUES (?1, ?2)")?
            .execute(params![lease, digest])?;
        Ok(())
    }

    /// What a lease keeps: records, then blobs.
    pub fn leased(&self, lease: &str) -> TableResult<(Vec<RecordId>, Vec<String>)> {
        let records = self
            .transaction
            .prepare_cached("SELECT record FROM lease_records WHERE lease = ?1 ORDER BY record")?
            .query_map([lease], |row| row.get(0))?
            .collect::<TableResult<_>>()?;
        let blobs = self
            .transaction
            .prepare_cached("SELECT digest FROM lease_content WHERE lease = ?1 ORDER BY digest")?
            .query_map([lease], |row| row.get(0))?
            .collect::<TableResult<_>>()?;
        Ok((records, blobs))
    }

    /// The blobs that leases keep at that time, each once.
    pub fn leased_content(&self, now: i64) -> TableResult<Vec<String>> {
        self.transaction
            .prepare_cached(
                "SELECT DISTINCT digest FROM lease_content JOIN leases ON lease = id
                 WHERE expires_at IS NULL OR expires_at > ?1 ORDER BY digest",
            )?
            .query_map([now], |row| row.get(0))?
            .collect()
    }

    /// The leases that keep a record at that time, by id.
    pub fn leases_of(&self, record: &RecordId, now: i64) -> TableResult<Vec<String>> {
        self.transaction
            .prepare_cached(
                "SELECT lease FROM lease_records JOIN leases ON lease = id
                 WHERE record = ?1 AND (expires_at IS NULL OR expires_at > ?2) ORDER BY lease",
            )?
            .query_map(params![record, now], |row| row.get(0))?
            .collect()
    }
}
