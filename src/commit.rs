//! What was changed in a writable mount, made a layer, and with it a new image of this store.
//!
//! ```text
//!  snapshots/M/fs ─▶ upper: names sorted, whiteouts ─▶ archive ─▶ writer of the format ─▶ content/   the layer's blob
//!                                                     spool file                     └─▶ documents: config, manifest
//!                                                                                            └─▶ origins ─▶ database: the name
//!                                                                 before it: M becomes I, snapshots/M snapshots/I, and the layer I's
//! ```
//!
//! What is mounted goes on taking changes, and the layer's record is one of its own. What is not mounted is not copied: its mutable record M
//! becomes the immutable record I of the layer, which has the name from then on ([`crate::cache`], pairs), and the next mount of that name
//! lies on it. Each step of that is a transaction, and what is there between any two of them can be mounted, committed and removed:
//!
//! ```text
//!  M ──commit──▶ M and I, a pair ──finalize──▶ I, with the snapshot ──set_layer──▶ I, the layer ──▶ the image is I, and has its name
//! ```
//!
//! Rules
//! - The layer depends on the changes and the format alone: names in order, numeric owners, no trace of when or where.
//! - The mount may be in use meanwhile. What is guaranteed is each file by itself: one that changes while it is read is read again, and is
//!   an error if it does not come to rest. Nothing is said of two files that change together.
//! - What names the image comes last. What is cut off before leaves blobs that nobody names, and every image as it was.
//! - No registry is asked: the layers of the image below stay as lazy as they are.

mod archive;
mod documents;
mod error;
mod upper;

use std::collections::BTreeMap;
use std::io::Write;
use std::num::NonZeroUsize;
use std::time::SystemTime;

use peelfs_registry::{Digest, Reference};

use self::archive::Archive;
pub(crate) use self::documents::oci_layer_type;
pub use self::error::CommitError;
use crate::cache::{BroughtImage, Cache, CacheError, ImmutableRef, MutableRef, Purpose, layer_names};
use crate::fetch::image_of_manifest;
use crate::image::Image;
use crate::layer::compression::Compression;
use crate::layer::estargz::writer::{DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, EstargzOptions, write_estargz};
use crate::layer::spool::Spool;
use crate::layer::write::plain::write_plain;
use crate::layer::write::{WriteError, WrittenLayer};
use crate::store::record_tables::{LayerBlob, RecordId};
use crate::store::{
    ImageOrigins, ImageRecord, LayerOrigin, LayerRecord, LayerState, OpenSnapshot, RootAttributes, Step,
    Store, StoreError,
};

/// In which format the layer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An archive as every tool reads it.
    Plain(Compression),
    /// A tar.gz with a table of contents.
    Estargz,
}

/// Where the changes are.
#[derive(Debug)]
pub enum Source {
    /// In a mutable record that somebody has mounted: it stays what it is.
    Mounted(RecordId),
    /// In one that nobody else writes to: it becomes the layer's immutable record.
    Mutable(MutableRef),
    /// In what became of one.
    Committed(ImmutableRef),
}

/// How a layer is made.
#[derive(Clone, Debug)]
pub struct LayerRequest {
    /// How the layer is written.
    pub format: Format,
    /// What the config's history says of it.
    pub message: Option<String>,
    /// When the image was made, in seconds since 1970.
    pub created: i64,
    /// Threads that compress.
    pub threads: NonZeroUsize,
}

/// What was made.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Digest of the config.
    pub config_digest: Digest,
    /// Digest of the layer's blob.
    pub layer_digest: Digest,
    /// Its size in bytes.
    pub layer_size: u64,
    /// What is in it.
    pub written: WrittenLayer,
    /// Paths of sockets, which no layer can hold.
    pub left_out: Vec<Vec<u8>>,
}

/// Makes a layer of what was changed, and an image of that name that has it above those of the image below.
///
/// # Errors
/// [`CommitError`]; what the name stood for before it stands for then, and what was changed is where it was, or its record is immutable and has
/// the same name: then the same again goes on.
pub fn commit(
    cache: &Cache,
    source: Source,
    name: &Reference,
    request: &LayerRequest,
) -> Result<Committed, CommitError> {
    make(cache, source, Some(name), request)
}

/// The image that a committed record is, by its manifest; made, without a name, if there is none. Its layer need not be read from anywhere.
///
/// # Errors
/// As of [`commit`].
pub fn image_of(
    cache: &Cache,
    committed: &ImmutableRef,
    threads: NonZeroUsize,
) -> Result<Digest, CommitError> {
    let store = cache.store();
    for manifest in cache.manifests_of(committed.id())? {
        let Ok(digest) = manifest.parse::<Digest>() else { continue };
        let Some(image) = image_of_manifest(store, &digest)? else { continue };
        let Some(own) = image.layers.last() else { continue };
        let name = layer_names(store, &image)?.pop();
        let is_made = match name {
            Some(name) => store.layers().layer(name.as_str())?.is_there()?,
            None => false,
        };
        if is_made || store.content().has(own.descriptor.digest.as_str())? {
            return Ok(digest);
        }
    }
    let format = Format::Plain(Compression::Gzip);
    let request = LayerRequest { format, message: None, created: now(), threads };
    let made = make(cache, Source::Committed(committed.clone()), None, &request)?;
    Ok(made.manifest_digest)
}

fn make(
    cache: &Cache,
    source: Source,
    name: Option<&Reference>,
    request: &LayerRequest,
) -> Result<Committed, CommitError> {
    let store = cache.store().as_ref();
    let snapshot = open(store, &source)?;
    let parent = Parent::find(store, &snapshot)?;
    let (spool, left_out) = archive_of(store, &snapshot)?;
    let mut draft = store.content().draft()?;
    let written = write_layer(&spool, request, &mut draft)?;
    drop(spool);
    // Until it is named, a collector would take all of it for nobody's.
    let _lock = store.lock_for_bringing()?;
    let (layer_digest, layer_size) = draft.keep()?;
    let layer = documents::NewLayer { digest: &layer_digest, size: layer_size, written: &written };
    let config =
        documents::config(&parent.config, &written.diff_id, request.created, request.message.as_deref())?;
    let config_digest = Digest::sha256_of(&config);
    let manifest = documents::manifest(&parent.manifest, &config_digest, config.len() as u64, &layer)?;
    let manifest_digest = Digest::sha256_of(&manifest);
    // As whoever mounts it will read it.
    let image = Image::parse(&manifest_digest, &manifest, &config)?;
    store.content().put(config_digest.as_str(), &config)?;
    store.content().put(manifest_digest.as_str(), &manifest)?;
    store.origins().put(manifest_digest.as_str(), &parent.origins_with(&layer_digest))?;
    let note = snapshot.note.clone();
    // It is given another place.
    drop(snapshot);
    let record = settle(cache, source, &image)?;
    match name {
        Some(name) => remember(cache, name, &note.origin.platform, &image)?,
        None => drop(cache.record_image(&image, &note.origin.reference, Purpose::Look)?),
    }
    // What it keeps, the image keeps from now on, or the name.
    drop(record);
    Ok(Committed { manifest_digest, config_digest, layer_digest, layer_size, written, left_out })
}

fn open(store: &Store, source: &Source) -> Result<OpenSnapshot, CommitError> {
    let id = match source {
        Source::Mounted(id) => id.clone(),
        Source::Mutable(mutable) => mutable.id().clone(),
        Source::Committed(committed) => {
            committed.finalize()?;
            committed.id().clone()
        }
    };
    store.snapshots().open(&id)?.ok_or(CommitError::NotMounted { record: id })
}

/// Makes what nobody writes to the record of the layer that was made of it: the uppermost of that image.
fn settle(cache: &Cache, source: Source, image: &Image) -> Result<Option<ImmutableRef>, CommitError> {
    let committed = match source {
        Source::Mounted(_) => return Ok(None),
        Source::Mutable(mutable) => {
            mutable.commit().map_err(|not_committed| CommitError::Records(not_committed.cause))?
        }
        Source::Committed(committed) => committed,
    };
    committed.finalize()?;
    let name = layer_names(cache.store(), image)?.pop();
    if let (Some(layer), Some(name)) = (image.layers.last(), name) {
        let blob = LayerBlob {
            digest: layer.descriptor.digest.to_string(),
            media_type: layer.descriptor.media_type.clone(),
            size: layer.descriptor.size,
        };
        match committed.set_layer(&blob, &layer.diff_id, Some(name.as_str())) {
            // It was committed before, in a format that needs an archive of its own: what is made now is a record of its own.
            Err(CacheError::Immutable { .. }) => {}
            result => result?,
        }
    }
    Ok(Some(committed))
}

/// The image below.
struct Parent {
    image: Image,
    reference: String,
    manifest: Vec<u8>,
    config: Vec<u8>,
    /// If it was made here, too.
    origins: Option<ImageOrigins>,
}

impl Parent {
    fn find(store: &Store, snapshot: &OpenSnapshot) -> Result<Parent, CommitError> {
        let record = &snapshot.note;
        let gone = || CommitError::ParentGone {
            image: record.origin.reference.clone(),
            digest: record.origin.manifest_digest.clone(),
        };
        let digest: Digest = record.origin.manifest_digest.parse().map_err(|_| gone())?;
        let manifest = store.content().get(digest.as_str())?.ok_or_else(gone)?;
        let (_, config) = Image::manifest(&digest, &manifest)?;
        let config = store.content().get(config.digest.as_str())?.ok_or_else(gone)?;
        let image = Image::parse(&digest, &manifest, &config)?;
        let origins = store.origins().of(digest.as_str())?;
        Ok(Parent { image, reference: record.origin.reference.clone(), manifest, config, origins })
    }

    /// Where the layers of the new image come from.
    fn origins_with(&self, layer: &Digest) -> ImageOrigins {
        let known = self.origins.as_ref();
        let of = |digest: &Digest| {
            let said = known.and_then(|origins| origins.layers.get(digest.as_str()));
            let reference = || LayerOrigin::Image { reference: self.reference.clone() };
            (digest.to_string(), said.cloned().unwrap_or_else(reference))
        };
        let below = self.image.layers.iter().map(|layer| of(&layer.descriptor.digest));
        let own = (layer.to_string(), LayerOrigin::Content);
        let layers: BTreeMap<_, _> = below.chain([own]).collect();
        let nearest = self.image.manifest_digest.to_string();
        let further = known.map(|origins| origins.ancestors.clone()).unwrap_or_default();
        // Above all that the image below is composed of.
        let own = Step::Layer(u16::try_from(self.image.layers.len()).unwrap_or(u16::MAX));
        let below = known.and_then(|origins| origins.composition.clone());
        let composition = below.map(|below| below.into_iter().chain([own]).collect());
        ImageOrigins::new(std::iter::once(nearest).chain(further).collect(), layers).composed(composition)
    }
}

/// The uncompressed layer, in a file without a name, and what it could not hold.
fn archive_of(store: &Store, snapshot: &OpenSnapshot) -> Result<(Spool, Vec<Vec<u8>>), CommitError> {
    let mut archive = Archive::new(store.content().scratch()?);
    let root = upper::walk(&snapshot.changes(), snapshot.note.attributes, &mut archive)?;
    let is_root_changed = !is_same_root(&root, &snapshot.note.origin.root);
    if archive.is_empty() && !is_root_changed {
        return Err(CommitError::NothingChanged { name: snapshot.note.origin.name.to_string() });
    }
    archive.finish()
}

fn is_same_root(root: &upper::Attributes, before: &RootAttributes) -> bool {
    let mut xattrs = before.xattrs.clone();
    xattrs.sort();
    (root.mode, root.uid, root.gid) == (before.mode, before.uid, before.gid)
        && (root.modified.seconds, root.modified.nanoseconds)
            == (before.modified_seconds, before.modified_nanoseconds)
        && root.xattrs == xattrs
}

fn write_layer(
    spool: &Spool,
    request: &LayerRequest,
    output: &mut dyn Write,
) -> Result<WrittenLayer, CommitError> {
    let written = match request.format {
        Format::Plain(compression) => write_plain(spool, compression, request.threads, output, &|_| {}),
        Format::Estargz => {
            let (chunk_size, level) = (DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL);
            let threads = request.threads;
            let options =
                EstargzOptions { chunk_size, minimum_chunk: 0, level, threads, external_toc: false };
            write_estargz(spool, &[], &options, output, &|_| {})
        }
    };
    written.map_err(|error| match error {
        WriteError::Output(cause) => match cause.downcast::<std::io::Error>() {
            Ok(cause) => StoreError::from_io("write", "a blob", *cause).into(),
            Err(cause) => WriteError::Output(cause).into(),
        },
        error => error.into(),
    })
}

/// Gives the image its name, and its layers their records.
fn remember(cache: &Cache, name: &Reference, platform: &str, image: &Image) -> Result<(), CommitError> {
    let now = now();
    let record = ImageRecord {
        reference: name.to_string(),
        platform: platform.to_owned(),
        manifest_digest: image.manifest_digest.to_string(),
        index_digest: None,
        config_digest: image.config.digest.to_string(),
        resolved_at: now,
        last_used: now,
    };
    let layers = image.layers.iter().map(|layer| LayerRecord {
        digest: layer.descriptor.digest.to_string(),
        media_type: layer.descriptor.media_type.clone(),
        size: layer.descriptor.size,
        diff_id: Some(layer.diff_id.to_string()),
        toc_digest: None,
        format: layer.archive_format().to_owned(),
        state: LayerState::Lazy,
        chunk_count: None,
        decoded_bytes: None,
        created_at: now,
        last_used: now,
    });
    let layers: Vec<_> = layers.collect();
    cache.record_brought(&BroughtImage {
        is_part: false,
        image,
        reference: &record.reference,
        layers: &layer_names(cache.store(), image)?,
        tree: "",
        named: Some((&record, &layers)),
        mount: None,
    })?;
    Ok(cache.store().note_images()?)
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}
