//! The table of records and that of their parents.

use rusqlite::{OptionalExtension, Row, params};

use super::super::records::{Unsigned, to_integer};
use super::super::restore::{broken_records, remove_broken};
use super::record::{CacheRecord, LayerBlob, RecordId, RecordKind};
use super::{RecordTables, TableResult};

/// What records can be looked up by, besides their ids and names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKey {
    /// Digest of the layer's blob.
    Blob,
    /// Digest of the uncompressed layer.
    DiffId,
    /// Names the stack.
    ChainId,
    /// Names the stack and its compression.
    BlobChainId,
    /// Digest of the layer's table of contents.
    Toc,
}

impl RecordKey {
    fn column(self) -> &'static str {
        match self {
            RecordKey::Blob => "blob_digest",
            RecordKey::DiffId => "diff_id",
            RecordKey::ChainId => "chain_id",
            RecordKey::BlobChainId => "blob_chain_id",
            RecordKey::Toc => "toc_digest",
        }
    }
}

/// What keeps a record from being removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecordUse {
    /// Refs on it, of sessions that live or are not known to be over.
    pub refs: u64,
    /// Records made of it, but for those that are being removed.
    pub children: u64,
    /// Its names.
    pub names: u64,
    /// Names of images that it is.
    pub images: u64,
    /// Leases on it that have not expired.
    pub leases: u64,
}

/// Who else has data in a layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerSharing {
    /// Whether other records have, even such as are being removed.
    pub records: bool,
    /// Whether known images have.
    pub images: bool,
}

impl RecordUse {
    /// Whether nothing does.
    pub fn is_none(&self) -> bool {
        *self == RecordUse::default()
    }
}

impl RecordTables<'_> {
    /// Adds a record.
    pub fn insert_record(&self, record: &CacheRecord) -> TableResult<()> {
        self.write_record(
            "INSERT INTO cache_records VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16,
                ?17, ?18, ?19, ?20, ?21, ?22, ?23, ?24, ?25)",
            record,
        )?;
        let mut insert = self.transaction.prepare_cached("INSERT INTO record_parents VALUES (?1, ?2, ?3)")?;
        for (position, parent) in record.kind.positions() {
            insert.execute(params![record.id, position, parent])?;
        }
        Ok(())
    }

    /// Writes a record as it is given; what it was made of and when stays.
    pub fn update_record(&self, record: &CacheRecord) -> TableResult<()> {
        self.write_record(
            "UPDATE cache_records SET description = ?3, record_type = ?4, retention = ?5, last_used = ?7, use_count = ?8,
                chain_id = ?9, blob_chain_id = ?10, diff_id = ?11, is_proved = ?12, blob_digest = ?13, media_type = ?14,
                blob_size = ?15, toc_digest = ?16, layer = ?17, snapshot = ?18, size = ?19, state = ?20,
                is_mutable = ?21, is_volatile = ?22, is_deleted = ?23, equal_mutable = ?24, boot = ?25
             WHERE id = ?1",
            record,
        )
    }

    /// Runs a statement whose parameters are the columns, in their order; it need not use all.
    fn write_record(&self, statement: &str, record: &CacheRecord) -> TableResult<()> {
        self.transaction.prepare_cached(statement)?.execute(params![
            record.id,
            record.kind.name(),
            record.description,
            record.record_type,
            record.retention,
            record.created_at,
            record.last_used,
            to_integer(record.use_count)?,
            record.chain_id,
            record.blob_chain_id,
            record.diff_id,
            record.is_proved,
            record.blob.as_ref().map(|blob| &blob.digest),
            record.blob.as_ref().map(|blob| &blob.media_type),
            record.blob.as_ref().map(|blob| to_integer(blob.size)).transpose()?,
            record.toc_digest,
            record.layer,
            record.snapshot,
            record.size.map(to_integer).transpose()?,
            record.state,
            record.is_mutable,
            record.is_volatile,
            record.is_deleted,
            record.equal_mutable,
            record.boot
        ])?;
        Ok(())
    }

    /// The record of that id, deleted or not.
    pub fn record(&self, id: &RecordId) -> TableResult<Option<CacheRecord>> {
        self.transaction
            .prepare_cached("SELECT * FROM cache_records WHERE id = ?1")?
            .query_row([id], |row| self.record_from(row))
            .optional()
    }

    /// All records, deleted or not, by id.
    pub fn records(&self) -> TableResult<Vec<CacheRecord>> {
        self.transaction
            .prepare_cached("SELECT * FROM cache_records ORDER BY id")?
            .query_map([], |row| self.record_from(row))?
            .collect()
    }

    /// The records that are being removed, those of pairs that are immutable first.
    pub fn marked_records(&self) -> TableResult<Vec<RecordId>> {
        self.transaction
            .prepare_cached(
                "SELECT id FROM cache_records WHERE is_deleted ORDER BY equal_mutable IS NULL, id",
            )?
            .query_map([], |row| row.get(0))?
            .collect()
    }

    /// Removes a record and what goes with it. Fails if something keeps it.
    pub fn remove_record(&self, id: &RecordId) -> TableResult<()> {
        self.transaction.prepare_cached("DELETE FROM cache_records WHERE id = ?1")?.execute([id])?;
        Ok(())
    }

    /// Records whose parents are not all there, or whose data are a record's that is not: none, unless the database was damaged.
    pub fn broken_records(&self) -> TableResult<Vec<RecordId>> {
        broken_records(self.transaction)
    }

    /// Removes such records, all that was made of them, and what refers to what is not there.
    pub fn remove_broken(&self) -> TableResult<()> {
        remove_broken(self.transaction)
    }

    /// The records that are made of it, deleted or not.
    pub fn children(&self, id: &RecordId) -> TableResult<Vec<RecordId>> {
        self.transaction
            .prepare_cached("SELECT DISTINCT record FROM record_parents WHERE parent = ?1 ORDER BY record")?
            .query_map([id], |row| row.get(0))?
            .collect()
    }

    /// The records, not deleted, whose ids begin like this; at most so many.
    pub fn records_with_prefix(&self, prefix: &str, most: usize) -> TableResult<Vec<RecordId>> {
        // All digits sort before "g".
        self.transaction
            .prepare_cached(
                "SELECT id FROM cache_records WHERE id >= ?1 AND id < ?1 || 'g' AND NOT is_deleted ORDER BY id LIMIT ?2",
            )?
            .query_map(params![prefix, to_integer(most as u64)?], |row| row.get(0))?
            .collect()
    }

    /// The immutable records, not deleted, that have that key, the oldest first.
    pub fn records_by(&self, key: RecordKey, value: &str) -> TableResult<Vec<RecordId>> {
        self.transaction
            .prepare_cached(&format!(
                "SELECT id FROM cache_records WHERE {} = ?1 AND NOT is_deleted AND NOT is_mutable ORDER BY created_at, id",
                key.column()
            ))?
            .query_map([value], |row| row.get(0))?
            .collect()
    }

    /// The oldest immutable record, not deleted, that is exactly of this kind with these parents; of kinds with parents only.
    pub fn record_of_kind(&self, kind: &RecordKind) -> TableResult<Option<RecordId>> {
        let positions = kind.positions();
        let Some((position, parent)) = positions.first() else { return Ok(None) };
        let candidates: Vec<RecordId> = self
            .transaction
            .prepare_cached(
                "SELECT id FROM cache_records JOIN record_parents ON record = id
                 WHERE position = ?1 AND parent = ?2 AND kind = ?3 AND NOT is_deleted AND NOT is_mutable
                 ORDER BY created_at, id",
            )?
            .query_map(params![position, parent, kind.name()], |row| row.get(0))?
            .collect::<TableResult<_>>()?;
        for id in candidates {
            if self.kind_of(&id, kind.name())? == *kind {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// The immutable record whose data are in that mutable record's snapshot, deleted or not.
    pub fn equal_immutable(&self, mutable: &RecordId) -> TableResult<Option<RecordId>> {
        self.transaction
            .prepare_cached("SELECT id FROM cache_records WHERE equal_mutable = ?1")?
            .query_row([mutable], |row| row.get(0))
            .optional()
    }

    /// Who else has data in that layer but that record.
    pub fn layer_sharing(&self, layer: &str, than: &RecordId) -> TableResult<LayerSharing> {
        self.transaction
            .prepare_cached(
                // An index beside an image's layer makes one of another name.
                "SELECT EXISTS (SELECT 1 FROM cache_records WHERE layer = ?1 AND id <> ?2),
                        EXISTS (SELECT 1 FROM image_layers WHERE layer_digest = ?1)
                        OR EXISTS (SELECT 1 FROM image_layers JOIN cache_records ON blob_digest = layer_digest WHERE id = ?2)",
            )?
            .query_row(params![layer, than], |row| Ok(LayerSharing { records: row.get(0)?, images: row.get(1)? }))
    }

    /// What keeps a record, at that time.
    pub fn uses(&self, id: &RecordId, now: i64) -> TableResult<RecordUse> {
        self.transaction
            .prepare_cached(
                "SELECT (SELECT count(*) FROM record_refs WHERE record = ?1),
                        (SELECT count(DISTINCT record) FROM record_parents JOIN cache_records ON id = record
                         WHERE parent = ?1 AND NOT is_deleted),
                        (SELECT count(*) FROM record_names WHERE record = ?1),
                        (SELECT count(*) FROM image_records JOIN images USING (manifest_digest) WHERE record = ?1),
                        (SELECT count(*) FROM lease_records JOIN leases ON lease = id
                         WHERE record = ?1 AND (expires_at IS NULL OR expires_at > ?2))",
            )?
            .query_row(params![id, now], |row| {
                let count = |column| row.get::<_, Unsigned>(column).map(|count| count.0);
                let (refs, children, names) = (count(0)?, count(1)?, count(2)?);
                Ok(RecordUse { refs, children, names, images: count(3)?, leases: count(4)? })
            })
    }

    fn kind_of(&self, id: &RecordId, name: &str) -> TableResult<RecordKind> {
        let parents = self
            .transaction
            .prepare_cached(
                "SELECT position, parent FROM record_parents WHERE record = ?1 ORDER BY position",
            )?
            .query_map([id], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<TableResult<_>>()?;
        // No transaction of ours leaves such a row.
        RecordKind::from_parts(name, parents).ok_or(rusqlite::Error::InvalidQuery)
    }

    fn record_from(&self, row: &Row<'_>) -> TableResult<CacheRecord> {
        let id: RecordId = row.get("id")?;
        let kind: String = row.get("kind")?;
        let optional =
            |column| row.get::<_, Option<Unsigned>>(column).map(|value| value.map(|value| value.0));
        let blob = match row.get::<_, Option<String>>("blob_digest")? {
            Some(digest) => Some(LayerBlob {
                digest,
                media_type: row.get("media_type")?,
                size: row.get::<_, Unsigned>("blob_size")?.0,
            }),
            None => None,
        };
        Ok(CacheRecord {
            kind: self.kind_of(&id, &kind)?,
            id,
            description: row.get("description")?,
            record_type: row.get("record_type")?,
            retention: row.get("retention")?,
            created_at: row.get("created_at")?,
            last_used: row.get("last_used")?,
            use_count: row.get::<_, Unsigned>("use_count")?.0,
            chain_id: row.get("chain_id")?,
            blob_chain_id: row.get("blob_chain_id")?,
            diff_id: row.get("diff_id")?,
            is_proved: row.get("is_proved")?,
            blob,
            toc_digest: row.get("toc_digest")?,
            layer: row.get("layer")?,
            snapshot: row.get("snapshot")?,
            size: optional("size")?,
            state: row.get("state")?,
            is_mutable: row.get("is_mutable")?,
            is_volatile: row.get("is_volatile")?,
            is_deleted: row.get("is_deleted")?,
            equal_mutable: row.get("equal_mutable")?,
            boot: row.get("boot")?,
        })
    }
}
