//! Images and mounts, written in the transaction that writes their records: so neither is ever there without the other.

use std::path::Path;

use rusqlite::{OptionalExtension, params};

use super::super::records::{ImageRecord, LayerRecord, MountRecord, put_image, put_mount, remove_mount};
use super::record::RecordId;
use super::{RecordTables, TableResult};

/// Which record an image is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    /// Digest of its manifest.
    pub manifest_digest: String,
    /// What the tree of the layers is kept by that the record was made for; empty if not all of them were here.
    pub tree: String,
    /// The record of its topmost layer.
    pub record: RecordId,
}

impl RecordTables<'_> {
    /// As [`Database::remember_image`](crate::store::Database::remember_image).
    pub fn remember_image(&self, image: &ImageRecord, layers: &[LayerRecord]) -> TableResult<()> {
        put_image(self.transaction, image, layers)
    }

    /// As [`Database::remember_mount`](crate::store::Database::remember_mount).
    pub fn remember_mount(&self, mount: &MountRecord) -> TableResult<()> {
        put_mount(self.transaction, mount)
    }

    /// As [`Database::forget_mount`](crate::store::Database::forget_mount).
    pub fn forget_mount(&self, mountpoint: &Path, pid: u32) -> TableResult<()> {
        remove_mount(self.transaction, mountpoint, pid).map(drop)
    }

    /// The record, not deleted, that the image with that manifest is.
    pub fn record_of_image(&self, manifest_digest: &str) -> TableResult<Option<ImageRow>> {
        self.transaction
            .prepare_cached(
                "SELECT tree, record FROM image_records JOIN cache_records ON id = record
                 WHERE manifest_digest = ?1 AND NOT is_deleted",
            )?
            .query_row([manifest_digest], |row| {
                let manifest_digest = manifest_digest.to_owned();
                Ok(ImageRow { manifest_digest, tree: row.get(0)?, record: row.get(1)? })
            })
            .optional()
    }

    /// The manifests of the images that a record is, sorted.
    pub fn manifests_of_record(&self, record: &RecordId) -> TableResult<Vec<String>> {
        self.transaction
            .prepare_cached(
                "SELECT manifest_digest FROM image_records WHERE record = ?1 ORDER BY manifest_digest",
            )?
            .query_map([record], |row| row.get(0))?
            .collect()
    }

    /// Says which record an image is, in the place of what was said before.
    pub fn set_record_of_image(&self, image: &ImageRow) -> TableResult<()> {
        self.transaction
            .prepare_cached("INSERT OR REPLACE INTO image_records VALUES (?1, ?2, ?3)")?
            .execute(params![image.manifest_digest, image.tree, image.record])?;
        Ok(())
    }

    /// Names of images, and the records that they are, by name; those on several platforms once for each record.
    pub fn image_names(&self) -> TableResult<Vec<(String, RecordId)>> {
        self.transaction
            .prepare_cached(
                "SELECT DISTINCT reference, record FROM images JOIN image_records USING (manifest_digest)
                 ORDER BY reference, record",
            )?
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    }

    /// The records, not deleted, that images of that name are: on each platform another, as a rule.
    pub fn records_of_reference(&self, reference: &str) -> TableResult<Vec<RecordId>> {
        self.transaction
            .prepare_cached(
                "SELECT DISTINCT record FROM images JOIN image_records USING (manifest_digest)
                 JOIN cache_records ON id = record WHERE reference = ?1 AND NOT is_deleted ORDER BY record",
            )?
            .query_map([reference], |row| row.get(0))?
            .collect()
    }
}
