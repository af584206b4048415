//! The tables of containerd's snapshots, as one transaction sees them. What they mean, and the rules by which they change, is the
//! business of the `snapshotter` room; here are rows and queries.
//!
//! ```text
//! snapshots ──┐ parent: a snapshot cannot go before its children, the database refuses it
//!    │  ▲─────┘
//!    ├──< snapshot_labels        go with their snapshot
//!    └─── remote_snapshots       likewise: of those whose tree is layers of an image
//! ```

use std::collections::BTreeMap;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::database::{Access, Database, Stop};
use super::error::StoreError;
use super::record_tables::TableResult;
use super::space::DiskUsage;

/// What may be done with a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// It is mounted, and read.
    View,
    /// It is mounted and written to, until it is committed or removed.
    Active,
    /// It never changes, and may have children.
    Committed,
}

impl SnapshotKind {
    /// The word for it, in the database and for containerd's filters.
    pub fn name(self) -> &'static str {
        match self {
            SnapshotKind::View => "view",
            SnapshotKind::Active => "active",
            SnapshotKind::Committed => "committed",
        }
    }
}

impl ToSql for SnapshotKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for SnapshotKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<SnapshotKind> {
        let name = value.as_str()?;
        let all = [SnapshotKind::View, SnapshotKind::Active, SnapshotKind::Committed];
        all.into_iter().find(|kind| kind.name() == name).ok_or(FromSqlError::InvalidType)
    }
}

/// The lowest layers of an image, which are a snapshot's tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteStack {
    /// Canonical text of the reference by which the image was asked for.
    pub reference: String,
    /// Its platform.
    pub platform: String,
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// How many layers, at least 1.
    pub layers: u32,
    /// Key of their merged tree.
    pub tree: String,
}

/// A snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRow {
    /// Its number, which its directory has, too.
    pub id: i64,
    /// By what containerd asks for it.
    pub name: String,
    /// What it is.
    pub kind: SnapshotKind,
    /// The snapshot below it.
    pub parent: Option<i64>,
    /// Nanoseconds since 1970.
    pub created_at: i64,
    /// Nanoseconds since 1970.
    pub updated_at: i64,
    /// What a committed one takes on disk, unless it is remote.
    pub usage: Option<DiskUsage>,
    /// Its tree, if it is remote.
    pub remote: Option<RemoteStack>,
}

/// Labels of a snapshot.
pub type Labels = BTreeMap<String, String>;

const COLUMNS: &str = "SELECT snapshots.*, reference, platform, manifest_digest, layers, tree
    FROM snapshots LEFT JOIN remote_snapshots ON remote_snapshots.snapshot = snapshots.id";

/// The tables, within one transaction.
#[derive(Debug)]
pub struct SnapshotTables<'a> {
    transaction: &'a Transaction<'a>,
}

impl Database {
    /// Runs `work` on the tables of containerd's snapshots: all of what it writes happens, or nothing. `work` may be run again.
    ///
    /// # Errors
    /// What `work` refuses with; [`StoreError::Database`].
    pub fn with_snapshots<T, E: From<StoreError>>(
        &self,
        operation: &'static str,
        access: Access,
        mut work: impl FnMut(&SnapshotTables<'_>) -> Result<T, Stop<E>>,
    ) -> Result<T, E> {
        self.run(operation, access, |transaction| work(&SnapshotTables { transaction }))
    }

    /// The images of which layers are snapshots, and their merged trees.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub fn remote_stacks(&self) -> Result<Vec<RemoteStack>, StoreError> {
        self.read("list remote snapshots", |transaction| {
            transaction
                .prepare_cached("SELECT DISTINCT reference, platform, manifest_digest, layers, tree FROM remote_snapshots")?
                .query_map([], read_stack)?
                .collect()
        })
    }
}

fn read_stack(row: &Row<'_>) -> rusqlite::Result<RemoteStack> {
    Ok(RemoteStack {
        reference: row.get("reference")?,
        platform: row.get("platform")?,
        manifest_digest: row.get("manifest_digest")?,
        layers: row.get("layers")?,
        tree: row.get("tree")?,
    })
}

fn read_row(row: &Row<'_>) -> rusqlite::Result<SnapshotRow> {
    let usage = match (row.get::<_, Option<i64>>("bytes")?, row.get::<_, Option<i64>>("inodes")?) {
        // Only what was no less than nothing was ever written.
        (Some(bytes), Some(inodes)) => {
            Some(DiskUsage { bytes: bytes.unsigned_abs(), inodes: inodes.unsigned_abs() })
        }
        _ => None,
    };
    let is_remote = row.get::<_, Option<String>>("tree")?.is_some();
    Ok(SnapshotRow {
        id: row.get("id")?,
        name: row.get("name")?,
        kind: row.get("kind")?,
        parent: row.get("parent")?,
        created_at: row.get("created_at")?,
        updated_at: row.get("updated_at")?,
        usage,
        remote: if is_remote { Some(read_stack(row)?) } else { None },
    })
}

/// Bytes and inodes. SQLite's numbers are signed, and no disk has as much.
fn usage_columns(row: &SnapshotRow) -> (Option<i64>, Option<i64>) {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    row.usage.map(|usage| (number(usage.bytes), number(usage.inodes))).unzip()
}

impl SnapshotTables<'_> {
    /// The snapshot of that name.
    pub fn find(&self, name: &str) -> TableResult<Option<SnapshotRow>> {
        let query = format!("{COLUMNS} WHERE name = ?1");
        self.transaction.prepare_cached(&query)?.query_row([name], read_row).optional()
    }

    /// The snapshot of that number.
    pub fn get(&self, id: i64) -> TableResult<Option<SnapshotRow>> {
        let query = format!("{COLUMNS} WHERE id = ?1");
        self.transaction.prepare_cached(&query)?.query_row([id], read_row).optional()
    }

    /// All snapshots, by name.
    pub fn all(&self) -> TableResult<Vec<SnapshotRow>> {
        let query = format!("{COLUMNS} ORDER BY name");
        self.transaction.prepare_cached(&query)?.query_map([], read_row)?.collect()
    }

    /// A snapshot and those below it, the highest first.
    pub fn chain(&self, id: i64) -> TableResult<Vec<SnapshotRow>> {
        let mut chain = Vec::new();
        let mut next = Some(id);
        while let Some(row) = next.map(|id| self.get(id)).transpose()?.flatten() {
            next = row.parent;
            chain.push(row);
        }
        Ok(chain)
    }

    /// The largest number of a snapshot; 0 if there is none.
    pub fn largest_id(&self) -> TableResult<i64> {
        self.transaction
            .prepare_cached("SELECT COALESCE(MAX(id), 0) FROM snapshots")?
            .query_row([], |row| row.get(0))
    }

    /// Whether a snapshot has that number.
    pub fn has(&self, id: i64) -> TableResult<bool> {
        self.transaction.prepare_cached("SELECT 1 FROM snapshots WHERE id = ?1")?.exists([id])
    }

    /// Whether snapshots lie on that one.
    pub fn has_children(&self, id: i64) -> TableResult<bool> {
        self.transaction.prepare_cached("SELECT 1 FROM snapshots WHERE parent = ?1")?.exists([id])
    }

    /// Adds a snapshot with its labels.
    pub fn insert(&self, row: &SnapshotRow, labels: &Labels) -> TableResult<()> {
        let usage = usage_columns(row);
        self.transaction
            .prepare_cached("INSERT INTO snapshots VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
            .execute(params![
                row.id,
                row.name,
                row.kind,
                row.parent,
                row.created_at,
                row.updated_at,
                usage.0,
                usage.1
            ])?;
        if let Some(stack) = &row.remote {
            self.transaction
                .prepare_cached("INSERT INTO remote_snapshots VALUES (?1, ?2, ?3, ?4, ?5, ?6)")?
                .execute(params![
                    row.id,
                    stack.reference,
                    stack.platform,
                    stack.manifest_digest,
                    stack.layers,
                    stack.tree
                ])?;
        }
        self.set_labels(row.id, labels)
    }

    /// Writes what of a snapshot may change: name, kind, times and usage.
    pub fn update(&self, row: &SnapshotRow) -> TableResult<()> {
        let usage = usage_columns(row);
        self.transaction
            .prepare_cached(
                "UPDATE snapshots SET name = ?2, kind = ?3, created_at = ?4, updated_at = ?5, bytes = ?6, inodes = ?7
                 WHERE id = ?1",
            )?
            .execute(params![row.id, row.name, row.kind, row.created_at, row.updated_at, usage.0, usage.1])?;
        Ok(())
    }

    /// Removes a snapshot, on which no other lies, with its labels.
    pub fn remove(&self, id: i64) -> TableResult<()> {
        self.transaction.prepare_cached("DELETE FROM snapshots WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// The labels of a snapshot.
    pub fn labels(&self, id: i64) -> TableResult<Labels> {
        self.transaction
            .prepare_cached("SELECT key, value FROM snapshot_labels WHERE snapshot = ?1")?
            .query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    }

    /// The labels of all snapshots, by their numbers.
    pub fn all_labels(&self) -> TableResult<BTreeMap<i64, Labels>> {
        let mut all: BTreeMap<i64, Labels> = BTreeMap::new();
        let mut query =
            self.transaction.prepare_cached("SELECT snapshot, key, value FROM snapshot_labels")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            all.entry(row.get(0)?).or_default().insert(row.get(1)?, row.get(2)?);
        }
        Ok(all)
    }

    /// Gives a snapshot these labels, and no others.
    pub fn set_labels(&self, id: i64, labels: &Labels) -> TableResult<()> {
        self.transaction.prepare_cached("DELETE FROM snapshot_labels WHERE snapshot = ?1")?.execute([id])?;
        let mut insert =
            self.transaction.prepare_cached("INSERT INTO snapshot_labels VALUES (?1, ?2, ?3)")?;
        for (key, value) in labels {
            insert.execute(params![id, key, value])?;
        }
        Ok(())
    }

    /// The names of the remote snapshots with that label on that parent.
    pub fn remote_with_label(
        &self,
        key: &str,
        value: &str,
        parent: Option<i64>,
    ) -> TableResult<Vec<SnapshotRow>> {
        let query = format!(
            "{COLUMNS} JOIN snapshot_labels ON snapshot_labels.snapshot = snapshots.id
             WHERE tree IS NOT NULL AND key = ?1 AND value = ?2 AND parent IS ?3 ORDER BY id"
        );
        self.transaction.prepare_cached(&query)?.query_map(params![key, value, parent], read_row)?.collect()
    }
}
