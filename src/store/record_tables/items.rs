//! What is kept with a record: its layer's other blobs, the images it came from, and named data.

use rusqlite::{OptionalExtension, Row, params};

use super::super::records::{Unsigned, to_integer};
use super::record::{LayerBlob, RecordId};
use super::{RecordTables, TableResult};

/// Named data of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordItem {
    /// The name, one of its kind for each record.
    pub key: String,
    /// Where the data are.
    pub place: ItemPlace,
}

/// Where named data are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ItemPlace {
    /// Here.
    Bytes(Vec<u8>),
    /// In the file of that name ([`Items`](crate::store::Items)).
    File(String),
}

impl RecordTables<'_> {
    /// Adds another blob of the record's layer, unless it is known.
    pub fn add_variant(&self, record: &RecordId, blob: &LayerBlob) -> TableResult<()> {
        self.transaction
            .prepare_cached("INSERT OR IGNORE INTO record_variants VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![record, blob.digest, blob.media_type, to_integer(blob.size)?])?;
        Ok(())
    }

    /// The other blobs of a record's layer, by digest.
    pub fn variants(&self, record: &RecordId) -> TableResult<Vec<LayerBlob>> {
        self.transaction
            .prepare_cached("SELECT * FROM record_variants WHERE record = ?1 ORDER BY blob_digest")?
            .query_map([record], |row| {
                Ok(LayerBlob {
                    digest: row.get("blob_digest")?,
                    media_type: row.get("media_type")?,
                    size: row.get::<_, Unsigned>("blob_size")?.0,
                })
            })?
            .collect()
    }

    /// Says that a record came from an image of that reference.
    pub fn add_image(&self, record: &RecordId, reference: &str) -> TableResult<()> {
        self.transaction
            .prepare_cached("INSERT OR IGNORE INTO record_images VALUES (?1, ?2)")?
            .execute(params![record, reference])?;
        Ok(())
    }

    /// The references of the images that a record came from.
    pub fn images_of(&self, record: &RecordId) -> TableResult<Vec<String>> {
        self.transaction
            .prepare_cached("SELECT reference FROM record_images WHERE record = ?1 ORDER BY reference")?
            .query_map([record], |row| row.get(0))?
            .collect()
    }

    /// Keeps data with a record, and gives what had that key before.
    pub fn set_item(&self, record: &RecordId, item: &RecordItem) -> TableResult<Option<RecordItem>> {
        let before = self.item(record, &item.key)?;
        let (bytes, file) = match &item.place {
            ItemPlace::Bytes(bytes) => (Some(bytes), None),
            ItemPlace::File(file) => (None, Some(file)),
        };
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO record_items VALUES (?1, ?2, ?3, ?4)")?
            .execute(params![record, item.key, bytes, file])?;
        Ok(before)
    }

    /// Has a record have data no more; false if it had none.
    pub fn remove_item(&self, record: &RecordId, key: &str) -> TableResult<bool> {
        let removed = self
            .transaction
            .prepare_cached("DELETE FROM record_items WHERE record = ?1 AND key = ?2")?
            .execute(params![record, key])?;
        Ok(removed > 0)
    }

    /// Data of a record.
    pub fn item(&self, record: &RecordId, key: &str) -> TableResult<Option<RecordItem>> {
        self.transaction
            .prepare_cached("SELECT * FROM record_items WHERE record = ?1 AND key = ?2")?
            .query_row(params![record, key], item_from)
            .optional()
    }

    /// All data of a record, by key.
    pub fn items(&self, record: &RecordId) -> TableResult<Vec<RecordItem>> {
        self.transaction
            .prepare_cached("SELECT * FROM record_items WHERE record = ?1 ORDER BY key")?
            .query_map([record], item_from)?
            .collect()
    }

    /// Whether a file belongs to some record.
    pub fn has_item_file(&self, file: &str) -> TableResult<bool> {
        self.transaction.prepare_cached("SELECT 1 FROM record_items WHERE file = ?1")?.exists([file])
    }
}

fn item_from(row: &Row<'_>) -> TableResult<RecordItem> {
    let place = match row.get("bytes")? {
        Some(bytes) => ItemPlace::Bytes(bytes),
        None => ItemPlace::File(row.get("file")?),
    };
    Ok(RecordItem { key: row.get("key")?, place })
}
