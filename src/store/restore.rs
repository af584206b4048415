//! What a new database begins with: what is known from elsewhere of the one that was there before.
//!
//! ```text
//! notes/images/   what each name of an image stands for, with its layers    written after the database was, and checked by the collector
//! the database    rows, table by table, as far as they can be read          of one that was set aside a moment ago
//! ```
//!
//! Notes come first: they are whole. What is read from a damaged database must fit to what is there already: a record whose parents are gone
//! goes, with its names and all that was made of it. What comes back wrong all the same does no harm: digests are checked where
//! they are used, and refs count only while their session lives.

use std::path::Path;

use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, Transaction, params_from_iter};
use serde::{Deserialize, Serialize};

use super::Store;
use super::error::StoreError;
use super::notes::{NoteKind, Notes};
use super::record_tables::RecordId;
use super::records::{ImageRecord, LayerRecord, put_image};

/// An image's name and what it stands for, as it is noted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NamedImage {
    image: ImageRecord,
    layers: Vec<LayerRecord>,
}

/// What is read from a damaged database, what others refer to first.
const TABLES: [&str; 15] = [
    "layers",
    "images",
    "image_layers",
    "mounts",
    "sessions",
    "cache_records",
    "record_parents",
    "record_variants",
    "record_images",
    "record_items",
    "record_names",
    "record_refs",
    "leases",
    "lease_records",
    "lease_content",
];

/// Removes what refers to what is not there.
const REMOVE_DANGLING: &str = "
    DELETE FROM image_layers WHERE layer_digest NOT IN (SELECT digest FROM layers);
    DELETE FROM image_layers WHERE manifest_digest NOT IN (SELECT manifest_digest FROM images);
    DELETE FROM record_parents WHERE record NOT IN (SELECT id FROM cache_records);
    DELETE FROM record_variants WHERE record NOT IN (SELECT id FROM cache_records);
    DELETE FROM record_images WHERE record NOT IN (SELECT id FROM cache_records);
    DELETE FROM record_items WHERE record NOT IN (SELECT id FROM cache_records);
    DELETE FROM image_records WHERE record NOT IN (SELECT id FROM cache_records);
    DELETE FROM record_names WHERE record NOT IN (SELECT id FROM cache_records);
    DELETE FROM record_refs WHERE record NOT IN (SELECT id FROM cache_records)
        OR session NOT IN (SELECT id FROM sessions);
    DELETE FROM lease_records WHERE record NOT IN (SELECT id FROM cache_records)
        OR lease NOT IN (SELECT id FROM leases);
    DELETE FROM lease_content WHERE lease NOT IN (SELECT id FROM leases);
    ";

/// The records whose parents are not all there, or whose data are in a snapshot of a record that is not.
const BROKEN: &str = "
    SELECT id FROM cache_records WHERE
        id IN (SELECT record FROM record_parents WHERE parent NOT IN (SELECT id FROM cache_records))
        OR equal_mutable NOT IN (SELECT id FROM cache_records)
        OR (SELECT count(*) FROM record_parents WHERE record = id) NOT BETWEEN
            CASE kind WHEN 'base' THEN 0 WHEN 'merge' THEN 2 ELSE 1 END AND
            CASE kind WHEN 'base' THEN 0 WHEN 'layer' THEN 1 WHEN 'diff' THEN 2 ELSE 65536 END
    ";

/// Fills a new database, in the transaction that makes it. What cannot be had is told of, and is not there.
pub(super) fn restore(
    transaction: &Transaction<'_>,
    notes: &Notes,
    aside: Option<&Path>,
) -> rusqlite::Result<()> {
    let named = notes.list::<NamedImage>(NoteKind::Image).unwrap_or_else(|error| {
        tracing::warn!(%error, "the names of images cannot be read from their notes");
        Vec::new()
    });
    for NamedImage { image, layers } in &named {
        transaction.execute_batch("SAVEPOINT image")?;
        if let Err(error) = put_image(transaction, image, layers) {
            tracing::warn!(image = image.reference, %error, "the image is not restored");
            transaction.execute_batch("ROLLBACK TO image")?;
        }
        transaction.execute_batch("RELEASE image")?;
    }
    if let Some(aside) = aside {
        // What is referred to may come later.
        transaction.execute_batch("PRAGMA defer_foreign_keys = ON")?;
        match salvage(transaction, aside) {
            Ok(rows) => tracing::info!(rows, images = named.len(), "records are restored"),
            Err(error) => tracing::warn!(%error, "nothing can be read from the damaged database"),
        }
        remove_broken(transaction)?;
    }
    Ok(())
}

/// Copies what can be read, and gives the number of rows.
fn salvage(transaction: &Transaction<'_>, aside: &Path) -> rusqlite::Result<u64> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let damaged = Connection::open_with_flags(aside, flags)?;
    let mut rows = 0;
    for table in TABLES {
        // One of an earlier version has not all of them.
        if let Err(error) = copy(transaction, &damaged, table, &mut rows) {
            tracing::debug!(table, %error, "not all of it can be read");
        }
    }
    Ok(rows)
}

fn copy(
    transaction: &Transaction<'_>,
    damaged: &Connection,
    table: &str,
    copied: &mut u64,
) -> rusqlite::Result<()> {
    let mut select = damaged.prepare(&format!("SELECT * FROM {table}"))?;
    let places = vec!["?"; select.column_count()].join(", ");
    // A name that was noted stays as it was noted; a row that is against the rules of the table is none.
    let mut insert = transaction.prepare(&format!("INSERT OR IGNORE INTO {table} VALUES ({places})"))?;
    let columns = select.column_count();
    let mut rows = select.query([])?;
    while let Some(row) = rows.next()? {
        let values: Vec<Value> = (0..columns).map(|column| row.get(column)).collect::<Result<_, _>>()?;
        *copied += insert.execute(params_from_iter(values)).unwrap_or(0) as u64;
    }
    Ok(())
}

/// Removes what refers to what is not there, until nothing does.
pub(super) fn remove_broken(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction.execute_batch("PRAGMA defer_foreign_keys = ON")?;
    loop {
        transaction.execute_batch(REMOVE_DANGLING)?;
        let broken = broken_records(transaction)?;
        if broken.is_empty() {
            return Ok(());
        }
        for id in &broken {
            tracing::warn!(record = %id, "what it was made of is lost, and so is the record");
            transaction.execute("DELETE FROM cache_records WHERE id = ?1", [id])?;
        }
    }
}

/// The records that were made of what is not there.
pub(super) fn broken_records(transaction: &Transaction<'_>) -> rusqlite::Result<Vec<RecordId>> {
    transaction.prepare_cached(BROKEN)?.query_map([], |row| row.get(0))?.collect()
}

impl Store {
    /// Notes what names of images stand for, those that are not noted yet or stand for others now, and drops the notes of names that are no
    /// more. To be done after names were changed; what is missed is noted by the next who does it.
    pub fn note_images(&self) -> Result<(), StoreError> {
        let images = self.database().images()?;
        for image in &images {
            let about = about(image);
            let layers = self.database().layers_of(&image.manifest_digest)?;
            let named = NamedImage { image: image.clone(), layers };
            let noted = self.notes().get::<NamedImage>(NoteKind::Image, &about)?;
            if noted.is_none_or(|noted| noted.image.manifest_digest != image.manifest_digest) {
                self.notes().put(NoteKind::Image, &about, &named)?;
            }
        }
        let named: Vec<String> = images.iter().map(about).collect();
        self.notes().keep_only(NoteKind::Image, &named).map(drop)
    }
}

fn about(image: &ImageRecord) -> String {
    format!("{} {}", image.reference, image.platform)
}
