//! What the store knows: images, their layers, mounts. Each function is one transaction.
//!
//! Times are seconds since 1970. Records can be found again from what is on disk and in the registry, so none of them is proof
//! that a layer's files are there: [`LayerDirectory::open`](super::LayerDirectory::open) says that.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use super::database::Database;
use super::error::StoreError;

/// What a reference stands for, on one platform.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// Canonical text of the reference.
    pub reference: String,
    /// `os/architecture[/variant]`.
    pub platform: String,
    /// Digest of the image manifest.
    pub manifest_digest: String,
    /// Digest of the image index through which it was found, if any.
    pub index_digest: Option<String>,
    /// Digest of the image configuration.
    pub config_digest: String,
    /// When the registry was last asked.
    pub resolved_at: i64,
    /// When it was last mounted or otherwise used.
    pub last_used: i64,
}

/// How much of a layer is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LayerState {
    /// Indexed; nothing fetched, or not known how much.
    Lazy,
    /// Some chunks are present.
    Partial,
    /// All bytes are present and the layer is proved against its diff ID.
    Extracted,
    /// Being made, or its making was cut off.
    Incomplete,
    /// Its table of contents does not describe its tar: reads fail.
    Poisoned,
}

impl LayerState {
    /// All of them.
    pub const ALL: [LayerState; 5] = [
        LayerState::Lazy,
        LayerState::Partial,
        LayerState::Extracted,
        LayerState::Incomplete,
        LayerState::Poisoned,
    ];
    const NAMES: [(LayerState, &'static str); 5] = [
        (LayerState::Lazy, "lazy"),
        (LayerState::Partial, "partial"),
        (LayerState::Extracted, "extracted"),
        (LayerState::Incomplete, "incomplete"),
        (LayerState::Poisoned, "poisoned"),
    ];

    /// The word for it, in the database and in output.
    pub fn name(self) -> &'static str {
        match self {
            LayerState::Lazy => "lazy",
            LayerState::Partial => "partial",
            LayerState::Extracted => "extracted",
            LayerState::Incomplete => "incomplete",
            LayerState::Poisoned => "poisoned",
        }
    }

    /// The state of that name.
    pub fn named(name: &str) -> Option<LayerState> {
        LayerState::NAMES.iter().find(|(_, known)| *known == name).map(|(state, _)| *state)
    }
}

impl ToSql for LayerState {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for LayerState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<LayerState> {
        LayerState::named(value.as_str()?).ok_or(FromSqlError::InvalidType)
    }
}

/// A layer of some image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Digest of the blob.
    pub digest: String,
    /// Media type of the blob.
    pub media_type: String,
    /// Length of the blob in bytes.
    pub size: u64,
    /// Digest of the uncompressed layer, if the configuration says it.
    pub diff_id: Option<String>,
    /// Digest of the table of contents, if the descriptor says it.
    pub toc_digest: Option<String>,
    /// What it is read as: `estargz`, `tar+gzip` …
    pub format: String,
    /// How much of it is here.
    pub state: LayerState,
    /// Number of chunks, of an indexed layer that was made lazily.
    pub chunk_count: Option<u64>,
    /// Length of the decoded space in bytes, once it is indexed.
    pub decoded_bytes: Option<u64>,
    /// When it was first seen.
    pub created_at: i64,
    /// When an image with it was last used.
    pub last_used: i64,
}

/// A mount that a process serves, or served until it was killed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRecord {
    /// Absolute path of the directory.
    pub mountpoint: PathBuf,
    /// The process that serves it.
    pub pid: u32,
    /// When that process began, in clock ticks since the machine did (`/proc/<pid>/stat`, field 22): tells it from a later
    /// one with the same number.
    pub pid_start_time: u64,
    /// Canonical text of the reference.
    pub reference: String,
    /// Digest of the image manifest.
    pub manifest_digest: String,
    /// Key of the merged tree.
    pub tree: String,
    /// When it was mounted.
    pub started_at: i64,
    /// Where the process answers questions about it.
    pub status_path: Option<PathBuf>,
}

impl Database {
    /// Records what a reference stands for, and the layers of its manifest, the lowest first. Of a layer that is known already,
    /// state, chunk count, decoded bytes and time of creation stay; a diff ID or TOC digest that was not known is added.
    pub fn remember_image(&self, image: &ImageRecord, layers: &[LayerRecord]) -> Result<(), StoreError> {
        self.write("record an image", |transaction| put_image(transaction, image, layers))
    }

    /// The image of that reference and platform.
    pub fn find_image(&self, reference: &str, platform: &str) -> Result<Option<ImageRecord>, StoreError> {
        self.read("find an image", |transaction| {
            transaction
                .prepare_cached("SELECT * FROM images WHERE reference = ?1 AND platform = ?2")?
                .query_row([reference, platform], image_from)
                .optional()
        })
    }

    /// All images, by reference and platform.
    pub fn images(&self) -> Result<Vec<ImageRecord>, StoreError> {
        self.read("list the images", |transaction| {
            transaction
                .prepare_cached("SELECT * FROM images ORDER BY reference, platform")?
                .query_map([], image_from)?
                .collect()
        })
    }

    /// Says that an image, and with it its layers, is used now. False if it is not known.
    pub fn use_image(&self, reference: &str, platform: &str, now: i64) -> Result<bool, StoreError> {
        self.write("record the use of an image", |transaction| {
            let changed = transaction
                .prepare_cached(
                    "UPDATE images SET last_used = max(last_used, ?3) WHERE reference = ?1 AND platform = ?2",
                )?
                .execute(params![reference, platform, now])?;
            transaction
                .prepare_cached(
                    "UPDATE layers SET last_used = max(last_used, ?3) WHERE digest IN (
                        SELECT layer_digest FROM image_layers JOIN images USING (manifest_digest)
                        WHERE reference = ?1 AND platform = ?2)",
                )?
                .execute(params![reference, platform, now])?;
            Ok(changed > 0)
        })
    }

    /// Forgets what a reference stands for; its layers stay recorded. False if it was not known.
    pub fn forget_image(&self, reference: &str, platform: &str) -> Result<bool, StoreError> {
        self.write("forget an image", |transaction| {
            let removed = transaction
                .prepare_cached("DELETE FROM images WHERE reference = ?1 AND platform = ?2")?
                .execute([reference, platform])?;
            forget_unnamed_manifests(transaction)?;
            Ok(removed > 0)
        })
    }

    /// The layers of an image manifest, the lowest first; a layer that is in it twice comes twice. Empty if it is not known.
    pub fn layers_of(&self, manifest_digest: &str) -> Result<Vec<LayerRecord>, StoreError> {
        self.read("list the layers of an image", |transaction| {
            transaction
                .prepare_cached(
                    "SELECT layers.* FROM image_layers JOIN layers ON digest = layer_digest
                     WHERE manifest_digest = ?1 ORDER BY position",
                )?
                .query_map([manifest_digest], layer_from)?
                .collect()
        })
    }

    /// Records a layer as it is given, whatever was known of it; only the time of creation stays.
    pub fn remember_layer(&self, layer: &LayerRecord) -> Result<(), StoreError> {
        self.write("record a layer", |transaction| {
            insert_layer(
                transaction,
                layer,
                "ON CONFLICT (digest) DO UPDATE SET
                    media_type = excluded.media_type, size = excluded.size, diff_id = excluded.diff_id,
                    toc_digest = excluded.toc_digest, format = excluded.format, state = excluded.state,
                    chunk_count = excluded.chunk_count, decoded_bytes = excluded.decoded_bytes,
                    last_used = excluded.last_used",
            )
        })
    }

    /// Changes a layer's state; false if the layer is not known.
    pub fn set_layer_state(&self, digest: &str, state: LayerState) -> Result<bool, StoreError> {
        self.write("record the state of a layer", |transaction| {
            let changed = transaction
                .prepare_cached("UPDATE layers SET state = ?2 WHERE digest = ?1")?
                .execute(params![digest, state])?;
            Ok(changed > 0)
        })
    }

    /// The layer of that digest.
    pub fn find_layer(&self, digest: &str) -> Result<Option<LayerRecord>, StoreError> {
        self.read("find a layer", |transaction| {
            transaction
                .prepare_cached("SELECT * FROM layers WHERE digest = ?1")?
                .query_row([digest], layer_from)
                .optional()
        })
    }

    /// All layers, by digest.
    pub fn layers(&self) -> Result<Vec<LayerRecord>, StoreError> {
        self.read("list the layers", |transaction| {
            transaction
                .prepare_cached("SELECT * FROM layers ORDER BY digest")?
                .query_map([], layer_from)?
                .collect()
        })
    }

    /// Records a mount; one that was recorded for the same directory is replaced.
    pub fn remember_mount(&self, mount: &MountRecord) -> Result<(), StoreError> {
        self.write("record a mount", |transaction| put_mount(transaction, mount))
    }

    /// The mount recorded for that directory.
    pub fn find_mount(&self, mountpoint: &Path) -> Result<Option<MountRecord>, StoreError> {
        self.read("find a mount", |transaction| {
            transaction
                .prepare_cached("SELECT * FROM mounts WHERE mountpoint = ?1")?
                .query_row([path_bytes(mountpoint)], mount_from)
                .optional()
        })
    }

    /// All recorded mounts, by directory. The processes of some may be gone.
    pub fn mounts(&self) -> Result<Vec<MountRecord>, StoreError> {
        self.read("list the mounts", |transaction| {
            transaction
                .prepare_cached("SELECT * FROM mounts ORDER BY mountpoint")?
                .query_map([], mount_from)?
                .collect()
        })
    }

    /// Says that a mount is that of another process from now on, if it was that of `from`.
    pub fn hand_mount_on(
        &self,
        mountpoint: &Path,
        from: u32,
        pid: u32,
        start_time: u64,
    ) -> Result<(), StoreError> {
        self.write("hand a mount on", |transaction| {
            let change = "UPDATE mounts SET pid = ?1, pid_start_time = ?2 WHERE mountpoint = ?3 AND pid = ?4";
            let values = params![pid, to_integer(start_time)?, path_bytes(mountpoint), from];
            transaction.prepare_cached(change)?.execute(values).map(drop)
        })
    }

    /// Forgets a mount, if it is still the one of that process: another may have mounted there since. False if it was not.
    pub fn forget_mount(&self, mountpoint: &Path, pid: u32) -> Result<bool, StoreError> {
        self.write("forget a mount", |transaction| remove_mount(transaction, mountpoint, pid))
    }
}

/// What [`Database::remember_image`] does, within a transaction.
pub(super) fn put_image(
    transaction: &Transaction<'_>,
    image: &ImageRecord,
    layers: &[LayerRecord],
) -> rusqlite::Result<()> {
    for layer in layers {
        insert_layer(
            transaction,
            layer,
            "ON CONFLICT (digest) DO UPDATE SET
                diff_id = coalesce(diff_id, excluded.diff_id),
                toc_digest = coalesce(toc_digest, excluded.toc_digest),
                last_used = max(last_used, excluded.last_used)",
        )?;
    }
    transaction
        .prepare_cached("INSERT OR REPLACE INTO images VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?
        .execute(params![
            image.reference,
            image.platform,
            image.manifest_digest,
            image.index_digest,
            image.config_digest,
            image.resolved_at,
            image.last_used
        ])?;
    transaction
        .prepare_cached("DELETE FROM image_layers WHERE manifest_digest = ?1")?
        .execute([&image.manifest_digest])?;
    let mut insert = transaction.prepare_cached("INSERT INTO image_layers VALUES (?1, ?2, ?3)")?;
    for (position, layer) in layers.iter().enumerate() {
        insert.execute(params![image.manifest_digest, to_integer(position as u64)?, layer.digest])?;
    }
    forget_unnamed_manifests(transaction)
}

/// What [`Database::remember_mount`] does, within a transaction.
pub(super) fn put_mount(transaction: &Transaction<'_>, mount: &MountRecord) -> rusqlite::Result<()> {
    transaction
        .prepare_cached("INSERT OR REPLACE INTO mounts VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?
        .execute(params![
            path_bytes(&mount.mountpoint),
            mount.pid,
            to_integer(mount.pid_start_time)?,
            mount.reference,
            mount.manifest_digest,
            mount.tree,
            mount.started_at,
            mount.status_path.as_deref().map(path_bytes)
        ])?;
    Ok(())
}

/// What [`Database::forget_mount`] does, within a transaction.
pub(super) fn remove_mount(
    transaction: &Transaction<'_>,
    mountpoint: &Path,
    pid: u32,
) -> rusqlite::Result<bool> {
    let removed = transaction
        .prepare_cached("DELETE FROM mounts WHERE mountpoint = ?1 AND pid = ?2")?
        .execute(params![path_bytes(mountpoint), pid])?;
    Ok(removed > 0)
}

fn insert_layer(
    transaction: &Transaction<'_>,
    layer: &LayerRecord,
    on_conflict: &str,
) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(&format!(
            "INSERT INTO layers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) {on_conflict}"
        ))?
        .execute(params![
            layer.digest,
            layer.media_type,
            to_integer(layer.size)?,
            layer.diff_id,
            layer.toc_digest,
            layer.format,
            layer.state,
            layer.chunk_count.map(to_integer).transpose()?,
            layer.decoded_bytes.map(to_integer).transpose()?,
            layer.created_at,
            layer.last_used
        ])?;
    Ok(())
}

/// The layers of a manifest are kept while some reference stands for it.
fn forget_unnamed_manifests(transaction: &Transaction<'_>) -> rusqlite::Result<()> {
    transaction
        .prepare_cached(
            "DELETE FROM image_layers WHERE manifest_digest NOT IN (SELECT manifest_digest FROM images)",
        )?
        .execute([])?;
    Ok(())
}

fn image_from(row: &Row<'_>) -> rusqlite::Result<ImageRecord> {
    Ok(ImageRecord {
        reference: row.get("reference")?,
        platform: row.get("platform")?,
        manifest_digest: row.get("manifest_digest")?,
        index_digest: row.get("index_digest")?,
        config_digest: row.get("config_digest")?,
        resolved_at: row.get("resolved_at")?,
        last_used: row.get("last_used")?,
    })
}

fn layer_from(row: &Row<'_>) -> rusqlite::Result<LayerRecord> {
    Ok(LayerRecord {
        digest: row.get("digest")?,
        media_type: row.get("media_type")?,
        size: row.get::<_, Unsigned>("size")?.0,
        diff_id: row.get("diff_id")?,
        toc_digest: row.get("toc_digest")?,
        format: row.get("format")?,
        state: row.get("state")?,
        chunk_count: row.get::<_, Option<Unsigned>>("chunk_count")?.map(|count| count.0),
        decoded_bytes: row.get::<_, Option<Unsigned>>("decoded_bytes")?.map(|bytes| bytes.0),
        created_at: row.get("created_at")?,
        last_used: row.get("last_used")?,
    })
}

fn mount_from(row: &Row<'_>) -> rusqlite::Result<MountRecord> {
    let path = |bytes: Vec<u8>| PathBuf::from(OsString::from_vec(bytes));
    Ok(MountRecord {
        mountpoint: path(row.get("mountpoint")?),
        pid: row.get("pid")?,
        pid_start_time: row.get::<_, Unsigned>("pid_start_time")?.0,
        reference: row.get("reference")?,
        manifest_digest: row.get("manifest_digest")?,
        tree: row.get("tree")?,
        started_at: row.get("started_at")?,
        status_path: row.get::<_, Option<Vec<u8>>>("status_path")?.map(path),
    })
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// SQLite's integers are signed. A size beyond them is refused rather than stored as something else.
pub(super) fn to_integer(value: u64) -> rusqlite::Result<i64> {
    i64::try_from(value).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

/// The other way.
pub(super) struct Unsigned(pub(super) u64);

impl FromSql for Unsigned {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Unsigned> {
        let value = value.as_i64()?;
        u64::try_from(value).map(Unsigned).map_err(|_| FromSqlError::OutOfRange(value))
    }
}
