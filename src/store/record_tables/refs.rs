//! Sessions and the refs that they hold.
//!
//! A session is an open cache: one process may have several. It lives while its lock file is held, so the kernel says when it is
//! over, however it ended, and across pid namespaces, where numbers of processes say nothing.

use rusqlite::{OptionalExtension, Row, params};

use super::record::RecordId;
use super::{RecordTables, TableResult};

/// A session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRow {
    /// Its name.
    pub id: String,
    /// Its process, for people.
    pub pid: u32,
    /// When it began, in seconds since 1970.
    pub began_at: i64,
}

/// A ref.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefRow {
    /// Its number; given when it is added.
    pub id: i64,
    /// Who holds it.
    pub session: String,
    /// What it keeps.
    pub record: RecordId,
    /// Whether the record may be changed by it.
    pub is_mutable: bool,
    /// Whether it counts as a use of the record.
    pub is_use: bool,
    /// When it was taken, in seconds since 1970.
    pub since: i64,
}

impl RecordTables<'_> {
    /// Adds a session, unless it is there.
    pub fn ensure_session(&self, session: &SessionRow) -> TableResult<()> {
        self.transaction
            .prepare_cached("INSERT OR IGNORE INTO sessions VALUES (?1, ?2, ?3)")?
            .execute(params![session.id, session.pid, session.began_at])?;
        Ok(())
    }

    /// All sessions, by id.
    pub fn sessions(&self) -> TableResult<Vec<SessionRow>> {
        self.transaction
            .prepare_cached("SELECT * FROM sessions ORDER BY id")?
            .query_map([], |row| {
                Ok(SessionRow { id: row.get("id")?, pid: row.get("pid")?, began_at: row.get("began_at")? })
            })?
            .collect()
    }

    /// Removes a session and its refs.
    pub fn remove_session(&self, id: &str) -> TableResult<()> {
        self.transaction.prepare_cached("DELETE FROM sessions WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// Removes a session that holds no refs.
    pub fn remove_idle_session(&self, id: &str) -> TableResult<()> {
        self.transaction
            .prepare_cached(
                "DELETE FROM sessions WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM record_refs WHERE session = ?1)",
            )?
            .execute([id])?;
        Ok(())
    }

    /// Adds a ref, whatever its number says, and gives its number.
    pub fn add_ref(&self, held: &RefRow) -> TableResult<i64> {
        self.transaction
            .prepare_cached(
                "INSERT INTO record_refs (session, record, is_mutable, is_use, since) VALUES (?1, ?2, ?3, ?4, ?5)",
            )?
            .insert(params![held.session, held.record, held.is_mutable, held.is_use, held.since])
    }

    /// Has a ref keep another record, as an immutable one.
    pub fn turn_ref(&self, id: i64, session: &str, record: &RecordId, to: &RecordId) -> TableResult<bool> {
        let turned = self
            .transaction
            .prepare_cached(
                "UPDATE record_refs SET record = ?4, is_mutable = 0 WHERE id = ?1 AND session = ?2 AND record = ?3",
            )?
            .execute(params![id, session, record, to])?;
        Ok(turned > 0)
    }

    /// Removes a ref of that session on that record and gives it, if it was there. In a database that was begun anew, another may
    /// have its number.
    pub fn remove_ref(&self, id: i64, session: &str, record: &RecordId) -> TableResult<Option<RefRow>> {
        self.transaction
            .prepare_cached(
                "DELETE FROM record_refs WHERE id = ?1 AND session = ?2 AND record = ?3 RETURNING *",
            )?
            .query_row(params![id, session, record], ref_from)
            .optional()
    }

    /// The refs on a record.
    pub fn refs_of_record(&self, record: &RecordId) -> TableResult<Vec<RefRow>> {
        self.transaction
            .prepare_cached("SELECT * FROM record_refs WHERE record = ?1 ORDER BY id")?
            .query_map([record], ref_from)?
            .collect()
    }

    /// The refs that a session holds.
    pub fn refs_of_session(&self, session: &str) -> TableResult<Vec<RefRow>> {
        self.transaction
            .prepare_cached("SELECT * FROM record_refs WHERE session = ?1 ORDER BY id")?
            .query_map([session], ref_from)?
            .collect()
    }
}

fn ref_from(row: &Row<'_>) -> TableResult<RefRow> {
    Ok(RefRow {
        id: row.get("id")?,
        session: row.get("session")?,
        record: row.get("record")?,
        is_mutable: row.get("is_mutable")?,
        is_use: row.get("is_use")?,
        since: row.get("since")?,
    })
}
