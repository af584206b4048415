//! What was changed in a writable mount, made a layer, and with it a new image of this store.
//!
//! ```text
//!  writable/NAME/fs ─▶ upper: names sorted, whiteouts ─▶ archive ─▶ writer of the format ─▶ content/   the layer's blob
//!                                                       spool file                     └─▶ documents: config, manifest
//!                                                                                              └─▶ origins ─▶ database: the name
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
use crate::cache::{BroughtImage, Cache, layer_names};
use crate::image::Image;
use crate::layer::compression::Compression;
use crate::layer::estargz::writer::{DEFAULT_CHUNK_SIZE, DEFAULT_LEVEL, EstargzOptions, write_estargz};
use crate::layer::spool::Spool;
use crate::layer::write::plain::write_plain;
use crate::layer::write::{WriteError, WrittenLayer};
use crate::store::{
    ImageOrigins, ImageRecord, LayerOrigin, LayerRecord, LayerState, RootAttributes, Snapshot, Step, Store,
    StoreError,
};

/// In which format the layer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// An archive as every tool reads it.
    Plain(Compression),
    /// A tar.gz with a table of contents.
    Estargz,
}

/// What is to be done.
pub struct Request {
    /// What was changed.
    pub snapshot: Snapshot,
    /// The name of the new image, which has a tag.
    pub name: Reference,
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

/// Makes a layer of what was changed, and an image that has it above those of the image below.
///
/// # Errors
/// [`CommitError`]; what the name stood for before it stands for then.
pub fn commit(cache: &Cache, request: &Request) -> Result<Committed, CommitError> {
    let store = cache.store().as_ref();
    let parent = Parent::find(store, &request.snapshot)?;
    let (spool, left_out) = archive_of(store, &request.snapshot)?;
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
    remember(cache, request, &image)?;
    Ok(Committed { manifest_digest, config_digest, layer_digest, layer_size, written, left_out })
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
    fn find(store: &Store, snapshot: &Snapshot) -> Result<Parent, CommitError> {
        let record = &snapshot.record;
        let gone = || CommitError::ParentGone {
            image: record.reference.clone(),
            digest: record.manifest_digest.clone(),
        };
        let digest: Digest = record.manifest_digest.parse().map_err(|_| gone())?;
        let manifest = store.content().get(digest.as_str())?.ok_or_else(gone)?;
        let (_, config) = Image::manifest(&digest, &manifest)?;
        let config = store.content().get(config.digest.as_str())?.ok_or_else(gone)?;
        let image = Image::parse(&digest, &manifest, &config)?;
        let origins = store.origins().of(digest.as_str())?;
        Ok(Parent { image, reference: record.reference.clone(), manifest, config, origins })
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
fn archive_of(store: &Store, snapshot: &Snapshot) -> Result<(Spool, Vec<Vec<u8>>), CommitError> {
    let mut archive = Archive::new(store.content().scratch()?);
    let root = upper::walk(&snapshot.changes(), snapshot.record.attributes, &mut archive)?;
    let is_root_changed = !is_same_root(&root, &snapshot.record.root);
    if archive.is_empty() && !is_root_changed {
        return Err(CommitError::NothingChanged { name: snapshot.name.to_string() });
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
    request: &Request,
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
fn remember(cache: &Cache, request: &Request, image: &Image) -> Result<(), CommitError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |elapsed| elapsed.as_secs() as i64);
    let record = ImageRecord {
        reference: request.name.to_string(),
        platform: request.snapshot.record.platform.clone(),
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
