//! The tables of the records database, as numbered migrations. `user_version` holds the number of those that were applied.
//!
//! A migration that was released is never changed: a new one follows it.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::error::StoreError;

/// Times are seconds since 1970, UTC. Paths are blobs: they need not be UTF-8.
const MIGRATIONS: &[&str] = &[
    // 1: images, their layers, mounts
    "
    CREATE TABLE images (
        reference       TEXT NOT NULL,      -- canonical
        platform        TEXT NOT NULL,
        manifest_digest TEXT NOT NULL,
        index_digest    TEXT,               -- NULL: the reference names a manifest, not an index
        config_digest   TEXT NOT NULL,
        resolved_at     INTEGER NOT NULL,
        last_used       INTEGER NOT NULL,
        PRIMARY KEY (reference, platform)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX images_by_manifest ON images (manifest_digest);

    CREATE TABLE layers (
        digest        TEXT PRIMARY KEY NOT NULL,
        media_type    TEXT NOT NULL,
        size          INTEGER NOT NULL,     -- of the blob
        diff_id       TEXT,
        toc_digest    TEXT,
        format        TEXT NOT NULL,
        state         TEXT NOT NULL CHECK (state IN ('lazy', 'partial', 'extracted', 'incomplete', 'poisoned')),
        chunk_count   INTEGER,              -- NULL: not indexed yet, or not lazy
        decoded_bytes INTEGER,              -- NULL: not indexed yet
        created_at    INTEGER NOT NULL,
        last_used     INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE image_layers (
        manifest_digest TEXT NOT NULL,
        position        INTEGER NOT NULL,   -- 0 is the lowest layer
        layer_digest    TEXT NOT NULL REFERENCES layers (digest),
        PRIMARY KEY (manifest_digest, position)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX image_layers_by_layer ON image_layers (layer_digest);

    CREATE TABLE mounts (
        mountpoint      BLOB PRIMARY KEY NOT NULL,
        pid             INTEGER NOT NULL,
        pid_start_time  INTEGER NOT NULL,   -- /proc/<pid>/stat, field 22
        reference       TEXT NOT NULL,
        manifest_digest TEXT NOT NULL,
        tree            TEXT NOT NULL,
        started_at      INTEGER NOT NULL,
        status_path     BLOB
    ) STRICT, WITHOUT ROWID;
    ",
    // 2: cache records, their refs, names and leases
    "
    CREATE TABLE sessions (
        id       TEXT PRIMARY KEY NOT NULL,     -- it lives while somebody holds locks/session-<id>
        pid      INTEGER NOT NULL,              -- for people
        began_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE cache_records (
        id            TEXT PRIMARY KEY NOT NULL,
        kind          TEXT NOT NULL CHECK (kind IN ('base', 'layer', 'merge', 'diff')),
        description   TEXT NOT NULL,
        record_type   TEXT NOT NULL,
        retention     TEXT NOT NULL CHECK (retention IN ('default', 'retain')),
        created_at    INTEGER NOT NULL,
        last_used     INTEGER,                  -- NULL: never
        use_count     INTEGER NOT NULL,
        chain_id      TEXT,
        blob_chain_id TEXT,
        diff_id       TEXT,
        is_proved     INTEGER NOT NULL CHECK (is_proved IN (0, 1)), -- its data have that diff ID
        blob_digest   TEXT,
        media_type    TEXT,
        blob_size     INTEGER,
        toc_digest    TEXT,
        layer         TEXT,                     -- directory in layers/ with its data; several records may share one
        snapshot      TEXT,                     -- directory in snapshots/ with its data
        size          INTEGER,                  -- bytes on disk; NULL: not known
        state         TEXT NOT NULL CHECK (state IN ('lazy', 'partial', 'extracted', 'incomplete', 'poisoned')),
        is_mutable    INTEGER NOT NULL CHECK (is_mutable IN (0, 1)),
        is_volatile   INTEGER NOT NULL CHECK (is_volatile IN (0, 1)),
        is_deleted    INTEGER NOT NULL CHECK (is_deleted IN (0, 1)),
        equal_mutable TEXT REFERENCES cache_records (id), -- whose snapshot has the data until this one is finalized
        boot          TEXT,                     -- its data are sure to be whole in this boot of the machine only
        CHECK ((blob_digest IS NULL) = (media_type IS NULL) AND (blob_digest IS NULL) = (blob_size IS NULL))
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX cache_records_by_chain_id ON cache_records (chain_id) WHERE chain_id IS NOT NULL;
    CREATE INDEX cache_records_by_blob_chain_id ON cache_records (blob_chain_id) WHERE blob_chain_id IS NOT NULL;
    CREATE INDEX cache_records_by_diff_id ON cache_records (diff_id) WHERE diff_id IS NOT NULL;
    CREATE INDEX cache_records_by_blob ON cache_records (blob_digest) WHERE blob_digest IS NOT NULL;
    CREATE INDEX cache_records_by_toc ON cache_records (toc_digest) WHERE toc_digest IS NOT NULL;
    CREATE INDEX cache_records_by_layer ON cache_records (layer) WHERE layer IS NOT NULL;
    CREATE UNIQUE INDEX cache_records_by_mutable ON cache_records (equal_mutable) WHERE equal_mutable IS NOT NULL;
    CREATE INDEX cache_records_deleted ON cache_records (is_deleted) WHERE is_deleted;

    CREATE TABLE record_parents (
        record   TEXT NOT NULL REFERENCES cache_records (id) ON DELETE CASCADE,
        position INTEGER NOT NULL,              -- of a merge: 0 is the lowest; of a diff: 0 lower, 1 upper
        parent   TEXT NOT NULL REFERENCES cache_records (id),
        PRIMARY KEY (record, position)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX record_parents_by_parent ON record_parents (parent);

    CREATE TABLE record_variants (
        record      TEXT NOT NULL REFERENCES cache_records (id) ON DELETE CASCADE,
        blob_digest TEXT NOT NULL,
        media_type  TEXT NOT NULL,
        blob_size   INTEGER NOT NULL,
        PRIMARY KEY (record, blob_digest)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE record_images (
        record    TEXT NOT NULL REFERENCES cache_records (id) ON DELETE CASCADE,
        reference TEXT NOT NULL,                -- canonical
        PRIMARY KEY (record, reference)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE record_items (
        record TEXT NOT NULL REFERENCES cache_records (id) ON DELETE CASCADE,
        key    TEXT NOT NULL,
        bytes  BLOB,                            -- one of the two
        file   TEXT,                            -- name in items/
        PRIMARY KEY (record, key),
        CHECK ((bytes IS NULL) <> (file IS NULL))
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX record_items_by_file ON record_items (file) WHERE file IS NOT NULL;

    CREATE TABLE record_names (
        name   TEXT PRIMARY KEY NOT NULL,
        record TEXT NOT NULL REFERENCES cache_records (id)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX record_names_by_record ON record_names (record);

    CREATE TABLE record_refs (
        id         INTEGER PRIMARY KEY,
        session    TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
        record     TEXT NOT NULL REFERENCES cache_records (id),
        is_mutable INTEGER NOT NULL CHECK (is_mutable IN (0, 1)),
        is_use     INTEGER NOT NULL CHECK (is_use IN (0, 1)),
        since      INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX record_refs_by_record ON record_refs (record);
    CREATE INDEX record_refs_by_session ON record_refs (session);

    CREATE TABLE leases (
        id         TEXT PRIMARY KEY NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER                      -- NULL: never
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE lease_records (
        lease  TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
        record TEXT NOT NULL REFERENCES cache_records (id) ON DELETE CASCADE,
        PRIMARY KEY (lease, record)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX lease_records_by_record ON lease_records (record);

    CREATE TABLE lease_content (
        lease  TEXT NOT NULL REFERENCES leases (id) ON DELETE CASCADE,
        digest TEXT NOT NULL,                   -- of a blob in content/
        PRIMARY KEY (lease, digest)
    ) STRICT, WITHOUT ROWID;
    ",
    // 3: which records images are
    "
    CREATE TABLE image_records (
        manifest_digest TEXT PRIMARY KEY NOT NULL,
        tree            TEXT NOT NULL,          -- of the layers that it was made for; '': not all of them were here
        record          TEXT NOT NULL REFERENCES cache_records (id) ON DELETE CASCADE -- of the topmost layer
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX image_records_by_record ON image_records (record);
    ",
];

/// The version that this program reads and writes.
pub(super) fn current_version() -> u64 {
    MIGRATIONS.len() as u64
}

/// How many migrations a database has had.
pub(super) fn version(connection: &Connection) -> rusqlite::Result<u64> {
    // SQLite's user_version is signed; a negative one was never written by us and counts as newer than all.
    connection
        .query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))
        .map(|version| u64::try_from(version).unwrap_or(u64::MAX))
}

/// What stands in the way of using a database.
pub(super) enum MigrationError {
    Newer(u64),
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for MigrationError {
    fn from(error: rusqlite::Error) -> MigrationError {
        MigrationError::Sqlite(error)
    }
}

impl MigrationError {
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            MigrationError::Newer(found) => {
                StoreError::Newer { path: path.to_owned(), found, known: current_version() }
            }
            MigrationError::Sqlite(source) => {
                StoreError::Database { operation: "open the records", path: path.to_owned(), source }
            }
        }
    }
}

/// Applies what is missing, all of it or nothing. A new database is filled by `fill`, in the same transaction.
pub(super) fn migrate(
    connection: &mut Connection,
    fill: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<()>,
) -> Result<(), MigrationError> {
    let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
    let applied = version(&transaction)?;
    if applied > current_version() {
        return Err(MigrationError::Newer(applied));
    }
    let missing = usize::try_from(applied).ok().and_then(|applied| MIGRATIONS.get(applied..));
    let missing = missing.unwrap_or_default();
    if missing.is_empty() {
        return Ok(());
    }
    for migration in missing {
        transaction.execute_batch(migration)?;
    }
    if applied == 0 {
        fill(&transaction)?;
    }
    transaction.execute_batch(&format!("PRAGMA user_version = {}", current_version()))?;
    Ok(transaction.commit()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_applies_and_applying_them_again_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        for _ in 0..2 {
            assert!(migrate(&mut connection, |_| Ok(())).is_ok());
            assert_eq!(version(&connection).unwrap(), current_version());
        }
        connection.execute_batch("PRAGMA user_version = -1").unwrap();
        assert!(matches!(migrate(&mut connection, |_| Ok(())), Err(MigrationError::Newer(_))));
    }
}
