//! The tree of an image as a plain directory in the store: for tools that need one, and that no process has to serve. A merge and a
//! difference are images, so this is how they become directories, too.
//!
//! ```text
//! image, extracted ─▶ merged table ─▶ planted in ingest/ ─▶ directories/<record>/fs
//!                                      ▲            ▲
//!        files that other directories have         all else, from the layers
//!        of the same layer: one more name of them
//! ```
//!
//! Rules
//! - What is in it is what the mount shows: the merged table says it, with whiteouts applied.
//! - Files are shared with the directory that has the longest base in common, then with the others that have some of the layers.
//!   A shared file is one inode, so what is written to it is written to all: such directories are for reading, or below an overlay.
//! - One file of the tree is one inode: two of them are never names of one that another directory has.
//! - A file that is not what its layer says any more is not shared on.

mod content;
mod error;
mod plant;
mod siblings;

use std::path::PathBuf;

pub use self::error::DirectoryError;
pub use self::plant::Counted;
use self::plant::Planter;
use self::siblings::Siblings;
use crate::cache::Cache;
use crate::fetch::Room;
use crate::fetch::proof::Standing;
use crate::mount::pull::Pulled;
use crate::store::record_tables::RecordId;
use crate::store::{MadeOf, Verdict};

/// A plain directory of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlainDirectory {
    /// The record that it belongs to.
    pub record: RecordId,
    /// The tree.
    pub path: PathBuf,
    /// How it was made, if it was not there.
    pub made: Option<Making>,
}

/// How a directory was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Making {
    /// The record from whose directory most was taken: the one with the longest base in common.
    pub base: Option<RecordId>,
    /// Layers of that base.
    pub base_layers: usize,
    /// What is in it.
    pub counted: Counted,
}

/// The plain directory of an image, all of whose layers were extracted; made if it is not there.
///
/// # Errors
/// [`DirectoryError`]; then nothing of it stays.
pub fn make(cache: &Cache, image: &Pulled) -> Result<PlainDirectory, DirectoryError> {
    let store = cache.store();
    let reference = || image.reference().to_string();
    // It is held by the image, and so is the record while this lasts.
    let record = image.record().ok_or_else(|| DirectoryError::WithoutLayers { image: reference() })?.id();
    let directories = store.directories();
    let found = |made| PlainDirectory { record: record.clone(), path: directories.fs(record), made };
    if directories.has(record)? {
        return Ok(found(None));
    }
    let _lock = directories.lock(record)?;
    // Another may have made it meanwhile.
    if directories.has(record)? {
        return Ok(found(None));
    }
    for (number, (layer, content)) in image.image().layers.iter().zip(image.layers()).enumerate() {
        match content.standing(layer)? {
            Standing::Streamed | Standing::Judged(Verdict::Proved { .. }) => {}
            _ => {
                let digest = layer.descriptor.digest.clone();
                return Err(DirectoryError::NotExtracted { image: reference(), number: number + 1, digest });
            }
        }
    }
    let tree = image.tree();
    let layers: Vec<[u8; 32]> = image.layers().iter().map(|layer| *layer.table().identity()).collect();
    let siblings = Siblings::of(store, record, &layers)?;
    let (base, base_layers) = siblings.base();
    let (new, room) = (directories.begin()?, Room::new(store.clone()));
    let counted = Planter::new(tree, &layers, &siblings, &room, new.fs())?.plant()?;
    let made_of = MadeOf {
        tree: hex(tree.table().identity()),
        layers: layers.iter().map(|layer| hex(layer)).collect(),
    };
    let table = store.trees().open(&made_of.tree)?;
    directories.publish(new, record, &made_of, table)?;
    Ok(found(Some(Making { base, base_layers, counted })))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}
