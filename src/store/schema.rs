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

/// Applies what is missing, each migration in a transaction of its own.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), MigrationError> {
    loop {
        let transaction = Transaction::new(connection, TransactionBehavior::Immediate)?;
        let applied = version(&transaction)?;
        if applied > current_version() {
            return Err(MigrationError::Newer(applied));
        }
        let Some(migration) = usize::try_from(applied).ok().and_then(|applied| MIGRATIONS.get(applied))
        else {
            return Ok(());
        };
        transaction.execute_batch(migration)?;
        transaction.execute_batch(&format!("PRAGMA user_version = {}", applied + 1))?;
        transaction.commit()?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_applies_and_applying_them_again_changes_nothing() {
        let mut connection = Connection::open_in_memory().unwrap();
        for _ in 0..2 {
            assert!(migrate(&mut connection).is_ok());
            assert_eq!(version(&connection).unwrap(), current_version());
        }
        connection.execute_batch("PRAGMA user_version = -1").unwrap();
        assert!(matches!(migrate(&mut connection), Err(MigrationError::Newer(_))));
    }
}
