//! What is different between two cache records: the names, how much it is, and as an archive.
//!
//! ```text
//! lower ─▶ what it stands for ─▶ tables ─▶ tree ─┐
//!                                                ├─▶ difference ─┬─▶ names (list), bytes (size)
//! upper ─▶ what it stands for ─▶ tables ─▶ tree ─┘               └─▶ archive ── or, of a layer and what it lies on, that layer's own
//! ```
//!
//! Rules
//! - Names and sizes come of the layers' tables alone: nothing of their content is read, and nothing is fetched, ever.
//! - What is the same, [`crate::tree::difference`] says.
//! - The archive of a layer against what it lies on is the one that the layer came as, to the byte, and has its diff ID. Any other is put
//!   together as `peel commit` does it, and depends on the two records alone.
//! - An archive is of what is wholly here, or it is an error that says what is missing.

mod archive;
mod list;

use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;

use peelfs_registry::Digest;

pub use self::archive::{WriteError, Written};
pub use self::list::{Change, ChangeKind};
use crate::cache::{Application, AppliedLayer, Cache, CacheError, ImmutableRef, LayerSource, Purpose};
use crate::fetch::LayerContent;
use crate::fetch::archive::ArchiveError;
use crate::fetch::index::open_local;
use crate::store::record_tables::{RecordId, RecordKind};
use crate::store::{LayerState, Step, Store, StoreError};
use crate::table::{Table, TableError};
use crate::tree::compose::compose;
use crate::tree::difference::difference;
use crate::tree::merge::MergeError;
use crate::tree::serve::MergedTree;

/// Why two records cannot be compared, or what is different cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ChangesError {
    /// The records.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A layer of which not even the table is here.
    #[error("layer {layer} of record {record} is not here{}", pull(image))]
    Absent {
        /// The record whose layer it is.
        record: RecordId,
        /// The layer, as its image names it.
        layer: String,
        /// An image that has it.
        image: Option<String>,
    },
    /// A layer that is false.
    #[error(
        "layer {layer} of record {record} was found to be false, and nothing of it is read; `peel explain` says why"
    )]
    Poisoned {
        /// The record whose layer it is.
        record: RecordId,
        /// The layer's name.
        layer: String,
    },
    /// What was written here, and has no table.
    #[error(
        "record {record} has its changes in a directory of the store, which is not compared; `peel commit` makes a layer of changes"
    )]
    Directory {
        /// The record.
        record: RecordId,
    },
    /// The layers make no tree.
    #[error("the layers make no tree")]
    Merge(#[from] MergeError),
    /// A table that was just made.
    #[error("the tree that was just made cannot be used")]
    Table(#[from] TableError),
    /// What is recorded of a layer.
    #[error("what is recorded of layer {layer} cannot be used: {reason}")]
    Record {
        /// The layer's name.
        layer: String,
        /// What is wrong.
        reason: String,
    },
    /// A layer's own archive.
    #[error("the archive of record {record}, {layer}, cannot be written{}", remedy(cause, image))]
    Archive {
        /// The record.
        record: RecordId,
        /// Its layer, as its image names it.
        layer: String,
        /// An image that has it.
        image: Option<String>,
        /// Why not.
        #[source]
        cause: Box<ArchiveError>,
    },
    /// Content that the archive needs.
    #[error(
        "not all that is different is here: of {}{}",
        missing.iter().map(|(layer, bytes)| format!("layer {layer} {bytes} bytes are missing")).collect::<Vec<_>>().join(", of "),
        extract(image)
    )]
    Missing {
        /// Layers, as their images name them, and how many bytes are missing of each.
        missing: Vec<(String, u64)>,
        /// An image that has them.
        image: Option<String>,
    },
    /// The archive that is put together.
    #[error(transparent)]
    Write(#[from] WriteError),
}

fn pull(image: &Option<String>) -> String {
    // What was made here has no registry to be pulled from.
    image.as_ref().map_or_else(String::new, |image| match image.starts_with("localhost/") {
        true => format!("; `peel mount {image} DIR` brings it"),
        false => format!("; `peel pull {image}` brings it"),
    })
}

fn extract(image: &Option<String>) -> String {
    image.as_ref().map(|image| format!("; `peel extract {image}` brings all of it")).unwrap_or_default()
}

fn remedy(cause: &ArchiveError, image: &Option<String>) -> String {
    let Some(image) = image else { return String::new() };
    match cause {
        ArchiveError::Missing { .. } => format!("; `peel extract {image}` brings all of it"),
        ArchiveError::Unproved { .. } => format!("; `peel explain --prove {image}` does that"),
        ArchiveError::WithoutFraming { .. } | ArchiveError::Framing { .. } => {
            format!("; `peel rm --now {image}` and `peel extract {image}` bring it anew")
        }
        _ => String::new(),
    }
}

/// A side of a comparison; nothing is the empty tree.
pub type Side<'a> = Option<&'a ImmutableRef>;

/// Two records, compared.
pub struct Comparison {
    /// What is there before.
    pub lower: Option<RecordId>,
    /// What is there after.
    pub upper: Option<RecordId>,
    before: Table,
    /// What leads from one to the other, as a layer; over the layers of both.
    difference: MergedTree,
    /// These layers, as their images name them.
    layers: Vec<String>,
    own: Option<Own>,
    /// An image of which the upper is a part, for hints.
    image: Option<String>,
}

/// The layer that the upper is, on the lower.
struct Own {
    record: RecordId,
    layer: String,
    content: Arc<LayerContent>,
    diff_id: Digest,
}

/// What a record is compared with, if nobody says: a layer with what it lies on, a merge with the lowest of its parts, and of a diff its two
/// sides with each other. The second is the record itself, or what stands for it.
///
/// # Errors
/// [`CacheError::ParentGone`].
pub fn against_parent(
    record: &ImmutableRef,
) -> Result<(Option<ImmutableRef>, Option<ImmutableRef>), CacheError> {
    let get = |id: &RecordId| match record.cache().get(id, Purpose::Look) {
        Err(CacheError::Unknown { .. }) => {
            Err(CacheError::ParentGone { record: record.id().clone(), parent: id.clone() })
        }
        found => found,
    };
    Ok(match record.record()?.kind {
        RecordKind::Base => (None, Some(record.clone())),
        RecordKind::Layer { parent } => (Some(get(&parent)?), Some(record.clone())),
        RecordKind::Merge { parents } => (parents.first().map(get).transpose()?, Some(record.clone())),
        RecordKind::Diff { lower, upper } => {
            (lower.as_ref().map(get).transpose()?, upper.as_ref().map(get).transpose()?)
        }
    })
}

/// Compares two records.
///
/// # Errors
/// [`ChangesError`].
pub fn compare(cache: &Cache, lower: Side<'_>, upper: Side<'_>) -> Result<Comparison, ChangesError> {
    let mut layers = Layers { cache, names: HashMap::new(), contents: Vec::new(), shown: Vec::new() };
    let mut steps = |side: Side<'_>| match side {
        Some(record) => layers.steps(&record.applications()?, &hint(cache, record)?),
        None => Ok(Vec::new()),
    };
    let (before, after) = (steps(lower)?, steps(upper)?);
    let Layers { contents, shown, .. } = layers;
    let tables: Vec<&Table> = contents.iter().map(|content| content.table()).collect();
    // No tree that is kept, so it needs no identity.
    let tree = |steps: &[Step]| -> Result<Table, ChangesError> {
        Ok(Table::from_bytes(compose(steps, &tables, [0; 32])?)?)
    };
    let (before, after) = (tree(&before)?, tree(&after)?);
    let table = Table::from_bytes(difference(&before, &after, &tables, [0; 32])?)?;
    Ok(Comparison {
        lower: lower.map(|record| record.id().clone()),
        upper: upper.map(|record| record.id().clone()),
        before,
        layers: shown,
        own: own(cache, lower, upper)?,
        difference: MergedTree::new("a difference".to_owned(), table, contents),
        image: upper.or(lower).map(|record| hint(cache, record)).transpose()?.flatten(),
    })
}

/// The layer of `upper`, if it lies on `lower` and nothing is between.
fn own(cache: &Cache, lower: Side<'_>, upper: Side<'_>) -> Result<Option<Own>, ChangesError> {
    let Some(record) = upper.map(ImmutableRef::record).transpose()? else { return Ok(None) };
    let below = match &record.kind {
        RecordKind::Base => None,
        RecordKind::Layer { parent } => Some(parent),
        RecordKind::Merge { .. } | RecordKind::Diff { .. } => return Ok(None),
    };
    let (true, Some(layer), Some(diff_id)) =
        (below == lower.map(ImmutableRef::id), &record.layer, &record.diff_id)
    else {
        return Ok(None);
    };
    let content = open_local(cache.store(), &digest(layer, layer)?)?;
    let diff_id = digest(diff_id, layer)?;
    let layer = record.blob.map_or_else(|| layer.clone(), |blob| blob.digest);
    Ok(content.map(|content| Own { record: record.id, layer, content, diff_id }))
}

fn digest(text: &str, layer: &str) -> Result<Digest, ChangesError> {
    let unusable = |error: &dyn std::fmt::Display| ChangesError::Record {
        layer: layer.to_owned(),
        reason: format!("{text:?}: {error}"),
    };
    text.parse().map_err(|error| unusable(&error))
}

/// An image that brings what a record has.
fn hint(cache: &Cache, record: &ImmutableRef) -> Result<Option<String>, CacheError> {
    let of_images = cache.image_names()?.into_iter().find(|(_, named)| named == record.id());
    match of_images {
        Some((name, _)) => Ok(Some(name)),
        None => Ok(cache.beside(&record.record()?)?.images.into_iter().next()),
    }
}

/// The layers of both sides, each once.
struct Layers<'a> {
    cache: &'a Cache,
    names: HashMap<String, u16>,
    contents: Vec<Arc<LayerContent>>,
    /// As their images name them.
    shown: Vec<String>,
}

impl Layers<'_> {
    /// How a side is composed of them.
    fn steps(
        &mut self,
        applications: &[Application],
        image: &Option<String>,
    ) -> Result<Vec<Step>, ChangesError> {
        let step = |application: &Application| match application {
            Application::Layer(layer) => match &layer.source {
                LayerSource::Layer(name) if layer.state == LayerState::Poisoned => {
                    Err(ChangesError::Poisoned { record: layer.record.clone(), layer: name.clone() })
                }
                LayerSource::Layer(name) => Ok(Step::Layer(self.number(name, layer, image)?)),
                LayerSource::Snapshot(_) => Err(ChangesError::Directory { record: layer.record.clone() }),
            },
            Application::Diff { lower, upper, .. } => {
                let lower = self.steps(lower, image)?;
                Ok(Step::Difference { lower, upper: self.steps(upper, image)? })
            }
        };
        applications.iter().map(step).collect()
    }

    fn number(
        &mut self,
        name: &str,
        layer: &AppliedLayer,
        image: &Option<String>,
    ) -> Result<u16, ChangesError> {
        if let Some(number) = self.names.get(name) {
            return Ok(*number);
        }
        let store: &Store = self.cache.store();
        let shown = layer.blob.clone().unwrap_or_else(|| name.to_owned());
        let absent = || ChangesError::Absent {
            record: layer.record.clone(),
            layer: shown.clone(),
            image: image.clone(),
        };
        let content = open_local(store, &digest(name, name)?)?.ok_or_else(absent)?;
        // Neither side stands for more than 1,024.
        let number = self.contents.len() as u16;
        self.contents.push(content);
        self.shown.push(shown);
        self.names.insert(name.to_owned(), number);
        Ok(number)
    }
}

impl Comparison {
    /// What is different, in the order of the paths' bytes. Of what was removed, and of what came in the place of a directory, only the
    /// topmost name is told. A directory in which something changed has changed, the root aside.
    pub fn list(&self) -> Vec<Change> {
        list::list(&self.before, self.difference.table())
    }

    /// Bytes of all files and symbolic links that were added or changed, as their sizes say; one with several names once, and directories
    /// none.
    pub fn size(&self) -> u64 {
        list::size(self.difference.table())
    }

    /// Writes what is different as an archive.
    ///
    /// # Errors
    /// [`ChangesError`]; what was written is worth nothing then. Nothing was, if something is missing.
    pub fn write_tar(&self, output: &mut dyn Write) -> Result<Written, ChangesError> {
        if let Some(Own { record, layer, content, diff_id }) = &self.own {
            let written = content.write_archive(diff_id, output);
            let bytes = written.map_err(|cause| ChangesError::Archive {
                record: record.clone(),
                layer: layer.clone(),
                image: self.image.clone(),
                cause: Box::new(cause),
            })?;
            return Ok(Written { bytes, digest: diff_id.clone(), is_original: true });
        }
        let missing = archive::missing(&self.difference).into_iter().zip(&self.layers);
        let missing = missing.filter(|(bytes, _)| *bytes > 0).map(|(bytes, layer)| (layer.clone(), bytes));
        let missing: Vec<_> = missing.collect();
        if !missing.is_empty() {
            return Err(ChangesError::Missing { missing, image: self.image.clone() });
        }
        Ok(archive::write(&self.difference, output)?)
    }
}
