//! The connection to the records database, `peel.db`: opened when it is first needed, made if it is not there, set aside if it
//! is damaged. [`records`](super::records) says what is in it.
//!
//! Rules
//! - WAL, so that readers do not wait for a writer. `synchronous=NORMAL`: a power cut never damages the database, but may take
//!   back the last transactions. Most of what is recorded can be found again: images by resolving them, layers from their
//!   directories, and neither a mount nor a ref outlives the machine. What cannot (writable snapshots, names, leases, and that
//!   something is to be deleted) is written with FULL, for that one transaction ([`Access::WriteDurably`]). The log is one file: to
//!   sync it is to sync all that was written before, too, so after a power cut no transaction is there without those before it.
//!   A small transaction takes 0.2 ms, and with FULL 9 ms (ext4 on a virtual disk, much else going on). To set it takes no time, so no
//!   second connection is kept, which could not write while the first does anyway.
//! - What writes begins with `BEGIN IMMEDIATE`, so it waits for its turn at the start, and never fails half-way for having read
//!   what another has changed since.
//! - A damaged database is renamed under the lock file and a new one begun, with what can be found again ([`restore`](super::restore)). Before each use the file is compared with the one
//!   that is open, so no process goes on with one that another has set aside.
//! - Closing does not move the WAL into the database: a short-lived command would pay two syncs for it. Who has time does
//!   ([`Database::shorten_log`]), because whoever opens the database when nobody else has it open reads all of the WAL.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};

use super::durable::{crash_point, rename};
use super::error::{Context, StoreError};
use super::lock::FileLock;
use super::notes::Notes;
use super::restore::restore;
use super::schema::{self, MigrationError};

/// How long an operation waits for other processes.
const PATIENCE: Duration = Duration::from_secs(10);
/// A WAL of this many bytes, some thirty pages, is read in about a tenth of a millisecond.
const LONG_LOG: u64 = 128 << 10;
/// Pause where SQLite reports "busy" without having waited itself.
const PAUSE: Duration = Duration::from_millis(1);

/// The records of a store.
#[derive(Debug)]
pub struct Database {
    path: PathBuf,
    lock: PathBuf,
    notes: Notes,
    open: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    connection: Connection,
    file: FileIdentity,
}

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only to read: it sees one state of all tables.
    Read,
    /// To write what can be found again.
    Write,
    /// To write what must outlast a power cut once the transaction is done. Waits for the disk.
    WriteDurably,
}

/// Why a transaction is undone.
#[derive(Debug)]
pub enum Stop<E> {
    /// The database says so.
    Database(rusqlite::Error),
    /// Whoever asked for it does not want it.
    Refused(E),
}

impl<E> From<rusqlite::Error> for Stop<E> {
    fn from(error: rusqlite::Error) -> Stop<E> {
        Stop::Database(error)
    }
}

/// Device and inode.
type FileIdentity = (u64, u64);

impl Database {
    pub(super) fn new(path: PathBuf, lock: PathBuf, notes: Notes) -> Database {
        Database { path, lock, notes, open: Mutex::new(None) }
    }

    /// Whether there are no records yet, not even an empty database. Making one takes several waits for the disk.
    pub fn is_missing(&self) -> Result<bool, StoreError> {
        Ok(identity(&self.path)?.is_none())
    }

    /// Makes the database if it is missing.
    pub fn make(&self) -> Result<(), StoreError> {
        self.read("make the database", |_| Ok(()))
    }

    /// Moves the WAL into the database if it has grown long, unless others use it at this moment. Waits for the disk.
    pub fn shorten_log(&self) -> Result<(), StoreError> {
        let log = with_suffix(&self.path, "-wal");
        if std::fs::metadata(&log).map_or(0, |metadata| metadata.len()) < LONG_LOG {
            return Ok(());
        }
        let failed = |source| StoreError::Database {
            operation: "shorten the log of the records",
            path: self.path.clone(),
            source,
        };
        let connection = self.connect()?.connection;
        connection.busy_timeout(Duration::ZERO).map_err(failed)?;
        match connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
            // Somebody else's turn comes, or ours again.
            Err(error) if is_busy(&error) => Ok(()),
            result => result.map_err(failed),
        }
    }

    /// What SQLite finds wrong with the database, a line each; nothing if it is whole. One that cannot be read at all is set aside by
    /// this like by any other use, and then there is a new one, in which nothing is wrong.
    pub fn faults(&self) -> Result<Vec<String>, StoreError> {
        self.read("check the records", |transaction| {
            let mut faults = Vec::new();
            let mut integrity = transaction.prepare("PRAGMA integrity_check(10)")?;
            for line in integrity.query_map([], |row| row.get::<_, String>(0))? {
                faults.extend(Some(line?).filter(|line| line != "ok"));
            }
            let mut foreign_keys = transaction.prepare("PRAGMA foreign_key_check")?;
            for table in foreign_keys.query_map([], |row| row.get::<_, String>(0))? {
                let table = table?;
                // What cache records were made of is looked at with them, and mended one by one.
                if !matches!(table.as_str(), "record_parents" | "cache_records") {
                    faults.push(format!("a record of {table} names one that is not there"));
                }
            }
            Ok(faults)
        })
    }

    /// Sets the database aside, as a damaged one is, and begins a new one.
    pub fn begin_anew(&self) -> Result<(), StoreError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let current = match open.take() {
            Some(current) if identity(&self.path)? == Some(current.file) => current,
            _ => self.connect()?,
        };
        self.set_aside(current, &"they contradict each other")?;
        *open = Some(self.connect()?);
        Ok(())
    }

    /// Runs SQL that no code of ours would: what a damaged database may hold.
    #[cfg(test)]
    pub(crate) fn run_unchecked(&self, sql: &str) -> rusqlite::Result<()> {
        let connection = Connection::open(&self.path)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false)?;
        connection.execute_batch(sql)
    }

    /// Runs `work` in a transaction that only reads: it sees one state of all tables.
    pub(super) fn read<T>(
        &self,
        operation: &'static str,
        mut work: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.run(operation, Access::Read, |transaction| work(transaction).map_err(Stop::Database))
    }

    /// Runs `work` in a transaction that writes: all of it happens, or nothing. `work` may be run again.
    pub(super) fn write<T>(
        &self,
        operation: &'static str,
        mut work: impl FnMut(&Transaction<'_>) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        self.run(operation, Access::Write, |transaction| work(transaction).map_err(Stop::Database))
    }

    /// Runs `work` in a transaction: all of it happens, or nothing. `work` may be run again.
    ///
    /// # Errors
    /// What `work` refuses with, or [`StoreError::Database`].
    pub(super) fn run<T, E: From<StoreError>>(
        &self,
        operation: &'static str,
        access: Access,
        mut work: impl FnMut(&Transaction<'_>) -> Result<T, Stop<E>>,
    ) -> Result<T, E> {
        let started = Instant::now();
        // If a thread panicked in a transaction, dropping it rolled it back.
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut was_set_aside = false;
        loop {
            let mut current = match open.take() {
                Some(current) if identity(&self.path)? == Some(current.file) => current,
                _ => self.connect()?,
            };
            let error = match transact(&mut current.connection, access, &mut work) {
                Ok(value) => {
                    *open = Some(current);
                    return Ok(value);
                }
                Err(Stop::Refused(error)) => {
                    *open = Some(current);
                    return Err(error);
                }
                Err(Stop::Database(error)) => error,
            };
            if is_damage(&error) && !was_set_aside {
                was_set_aside = true;
                self.set_aside(current, &error)?;
                continue;
            }
            *open = Some(current);
            if !is_busy(&error) || started.elapsed() >= PATIENCE {
                return Err(StoreError::Database { operation, path: self.path.clone(), source: error }.into());
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Opens the database; makes it, migrates it or sets it aside as needed.
    fn connect(&self) -> Result<Open, StoreError> {
        if identity(&self.path)?.is_some() {
            match self.connect_once(OpenFlags::empty()) {
                Ok(open) if is_current(&open.connection) => return Ok(open),
                // All else is looked at again under the lock.
                _ => {}
            }
        }
        let started = Instant::now();
        loop {
            let lock = FileLock::acquire(&self.lock)?;
            let error = match self.connect_once(OpenFlags::SQLITE_OPEN_CREATE) {
                Ok(mut open) => match self.prepare(&mut open.connection) {
                    Ok(()) => return Ok(open),
                    Err(MigrationError::Sqlite(error)) if is_damage(&error) => {
                        drop(lock);
                        self.set_aside(open, &error)?;
                        continue;
                    }
                    Err(MigrationError::Sqlite(error)) if is_busy(&error) && started.elapsed() < PATIENCE => {
                        std::thread::sleep(PAUSE);
                        continue;
                    }
                    Err(error) => error,
                },
                Err(error) => error.into(),
            };
            return Err(error.at(&self.path));
        }
    }

    fn connect_once(&self, create: OpenFlags) -> rusqlite::Result<Open> {
        loop {
            let before = identity(&self.path).ok().flatten();
            // The mutex of `Database` is the only one needed.
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(PATIENCE)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, true)?;
            let after = identity(&self.path).ok().flatten();
            // Otherwise another process has put a new one there in between. A new file appears at the first open.
            if let Some(file) = after
                && (before == after || (before.is_none() && create.contains(OpenFlags::SQLITE_OPEN_CREATE)))
            {
                return Ok(Open { connection, file });
            }
        }
    }

    /// Makes the database what it should be. Under the lock.
    fn prepare(&self, connection: &mut Connection) -> Result<(), MigrationError> {
        let found = schema::version(connection)?;
        if found > schema::current_version() {
            return Err(MigrationError::Newer(found));
        }
        connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
        set_durability(connection)?;
        let mark = self.salvage_mark();
        let aside = std::fs::read_to_string(&mark).ok();
        let aside = aside.and_then(|name| Some(self.path.parent()?.join(name)));
        schema::migrate(connection, |transaction| restore(transaction, &self.notes, aside.as_deref()))?;
        if aside.is_some() {
            // One that stays is of no consequence, as long as this database is there.
            let _ = std::fs::remove_file(&mark);
        }
        Ok(())
    }

    /// Names the database that was set aside, until there is a new one with what could be read of it.
    fn salvage_mark(&self) -> PathBuf {
        with_suffix(&self.path, ".salvage")
    }

    /// Renames a damaged database, unless another process has done so. The WAL goes first: a new database must never find one
    /// that is not its own.
    fn set_aside(&self, damaged: Open, error: &dyn std::fmt::Display) -> Result<(), StoreError> {
        let _lock = FileLock::acquire(&self.lock)?;
        drop(damaged.connection);
        if identity(&self.path)? != Some(damaged.file) {
            return Ok(());
        }
        let aside = self.unused_aside();
        tracing::error!(
            path = %self.path.display(), aside = %aside.display(), %error,
            "the records are damaged: set aside, and begun anew with what can be read of them and what is noted of images"
        );
        if let Some(name) = aside.file_name() {
            let mark = self.salvage_mark();
            // On a full disk nothing is read of it.
            if let Err(error) = std::fs::write(&mark, name.as_encoded_bytes()) {
                tracing::warn!(path = %mark.display(), %error, "what could be read of the records is not looked at");
            }
        }
        for suffix in ["-wal", "-shm", ""] {
            let (from, to) = (with_suffix(&self.path, suffix), with_suffix(&aside, suffix));
            match rename(&from, &to) {
                Err(rustix::io::Errno::NOENT) => {}
                result => result.context("set aside", &from)?,
            }
        }
        Ok(())
    }

    fn unused_aside(&self) -> PathBuf {
        let base = with_suffix(&self.path, &format!(".damaged-{}", super::seconds_since_1970()));
        let numbered = (1_u32..).map(|number| with_suffix(&base, &format!(".{number}")));
        std::iter::once(base.clone()).chain(numbered).find(|path| !path.exists()).unwrap_or(base)
    }
}

/// One attempt at a transaction.
fn transact<T, E>(
    connection: &mut Connection,
    access: Access,
    work: &mut impl FnMut(&Transaction<'_>) -> Result<T, Stop<E>>,
) -> Result<T, Stop<E>> {
    let behavior = match access {
        Access::Read => TransactionBehavior::Deferred,
        Access::Write | Access::WriteDurably => TransactionBehavior::Immediate,
    };
    if access == Access::WriteDurably {
        connection.execute_batch("PRAGMA synchronous = FULL")?;
    }
    let result = (|| {
        let transaction = Transaction::new(connection, behavior)?;
        let value = work(&transaction)?;
        if access != Access::Read {
            crash_point();
        }
        transaction.commit()?;
        if access != Access::Read {
            crash_point();
        }
        Ok(value)
    })();
    if access == Access::WriteDurably {
        // If it stays FULL, later transactions only wait longer.
        let _ = set_durability(connection);
    }
    result
}

fn set_durability(connection: &Connection) -> rusqlite::Result<()> {
    let mode: String = connection.query_row("PRAGMA journal_mode", [], |row| row.get(0))?;
    // Without WAL (a file system without shared memory maps) a power cut may damage a database that is not FULL.
    let synchronous = if mode.eq_ignore_ascii_case("wal") { "NORMAL" } else { "FULL" };
    connection.execute_batch(&format!("PRAGMA synchronous = {synchronous}"))
}

/// Whether a connection can be used as it is.
fn is_current(connection: &Connection) -> bool {
    schema::version(connection).ok() == Some(schema::current_version()) && set_durability(connection).is_ok()
}

fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

fn identity(path: &Path) -> Result<Option<FileIdentity>, StoreError> {
    match std::fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some((metadata.dev(), metadata.ino()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::from_io("look at", path, error)),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
#[path = "database_tests.rs"]
mod tests;
