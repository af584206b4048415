//! All that comes before the kernel is asked: the image is brought, and its layers are merged.

use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::bring::bring_lowest;
use super::counters::Counters;
use super::live::start_time;
use super::passthrough::records_path;
use super::{ImageMountError, Prefetching, Prepared, Request, needs};
use crate::error::chain;
use crate::fetch::index::{identity as layer_identity, open_local_of, open_local_when_made};
use crate::fetch::{LayerContent, ThreadStarter, read_together};
use crate::image::Image;
use crate::store::{PendingTree, Step, Store, StoreError};
use crate::table::Table;
use crate::tree::compose::compose;
use crate::tree::merge::merge;
use crate::tree::serve::MergedTree;

/// How the layers of an image make its tree.
pub(super) struct Composition {
    /// What the tree is known by.
    pub identity: [u8; 32],
    /// Nothing if they lie on each other.
    steps: Option<Vec<Step>>,
}

impl Composition {
    /// That of an image whose layers are open.
    pub fn of(
        store: &Store,
        image: &Image,
        contents: &[Arc<LayerContent>],
    ) -> Result<Composition, StoreError> {
        let origins = store.origins().of(image.manifest_digest.as_str())?;
        let steps = origins.and_then(|origins| origins.composition);
        Ok(Composition { identity: tree_identity(image, contents, steps.as_deref()), steps })
    }

    /// That of the lowest layers of an image, which lie on each other.
    pub fn of_part(image: &Image, contents: &[Arc<LayerContent>]) -> Composition {
        Composition { identity: tree_identity(image, contents, None), steps: None }
    }
}

/// What a merged tree is known by: its layers, and their order; what made those that are kept apart; and how they are composed.
fn tree_identity(image: &Image, contents: &[Arc<LayerContent>], steps: Option<&[Step]>) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for (layer, content) in image.layers.iter().zip(contents) {
        let digest = &layer.descriptor.digest;
        hasher.update(digest.as_str());
        let made_from = content.table().identity();
        if *made_from != layer_identity(digest) {
            hasher.update(made_from);
        }
        hasher.update("\n");
    }
    if let Some(steps) = steps {
        hasher.update(format!("composed of {steps:?}"));
    }
    hasher.finalize().into()
}

/// Makes everything ready that the mount of an image needs, from the store as far as it is there.
pub fn prepare(
    store: Arc<Store>,
    threads: &ThreadStarter,
    request: Request,
) -> Result<Prepared, ImageMountError> {
    prepare_lowest(store, threads, request, usize::MAX)
}

/// The same for the lowest so many layers of an image alone.
pub fn prepare_lowest(
    store: Arc<Store>,
    threads: &ThreadStarter,
    request: Request,
    layers: usize,
) -> Result<Prepared, ImageMountError> {
    let name = request.reference.to_string();
    let (pid, has_status_files, passthrough) = (request.known_by, request.status_files, request.passthrough);
    let counters = Arc::new(match request.takes_over {
        Some(_) => Counters::of_successor(store.clone(), pid),
        None => Counters::new(store.clone(), pid),
    });
    let written = counters.clone();
    let observer = move |statistics, prefetched| written.write(statistics, prefetched);
    let (prefetching, records_profile) = (request.prefetching, request.records_profile);
    let profile_from_registry = request.profile_from_registry;
    let brought = bring_lowest(store, threads, request, layers, observer)?;
    let composition = match brought.is_part {
        true => Composition::of_part(&brought.image, &brought.layers),
        false => Composition::of(&brought.store, &brought.image, &brought.layers)
            .map_err(|cause| ImageMountError::Store { image: name.clone(), cause: Box::new(cause) })?,
    };
    let (tree, pending_tree) = merged_tree(&brought.store, &name, &composition, brought.layers.clone())?;
    let tree = if records_profile { tree.noting_touches() } else { tree };
    // Signals are held back by the threads that there are while the mount is made; the one that makes the database was started before,
    // and would be ended by one, and the process with it.
    brought.wait_for_database();
    let (tree, pending_tree) = (Arc::new(tree), Mutex::new(pending_tree));
    let tree_key = hex(&composition.identity);
    let open_records = records_path(counters.path(), pid, start_time(pid).unwrap_or_default());
    read_together(tree.layers());
    let is_lazy = !tree.layers().iter().all(|layer| layer.is_complete());
    let needs = (prefetching == Prefetching::Auto && is_lazy).then(|| needs::begin(&tree, &brought.threads));
    Ok(Prepared {
        brought,
        counters,
        prefetching,
        profile_from_registry,
        tree,
        tree_key,
        pending_tree,
        pid,
        has_status_files,
        passthrough,
        open_records,
        needs,
    })
}

/// What the tree of an image is kept by in the store; nothing if not all of its layers are there.
pub fn tree_key(store: &Store, image: &Image) -> Result<Option<String>, StoreError> {
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let Some(content) = open_local_of(store, &image.manifest_digest, layer)? else { return Ok(None) };
        layers.push(content);
    }
    Ok(Some(hex(&Composition::of(store, image, &layers)?.identity)))
}

/// The tree of an image that is in the store, only to be looked at: nothing is fetched. Nothing if not all of its layers are
/// there.
pub fn local_tree(store: &Store, name: &str, image: &Image) -> Result<Option<MergedTree>, ImageMountError> {
    let in_store = |cause| ImageMountError::Store { image: name.to_owned(), cause: Box::new(cause) };
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let opened = open_local_when_made(store, &image.manifest_digest, layer).map_err(in_store)?;
        let Some(content) = opened else { return Ok(None) };
        layers.push(content);
    }
    tree_of(store, name, image, layers).map(Some)
}

/// The tree of an image whose layers are open. It is kept in the store, on disk when this returns.
///
/// # Errors
/// [`ImageMountError::Merge`], [`ImageMountError::Store`].
pub fn tree_of(
    store: &Store,
    name: &str,
    image: &Image,
    layers: Vec<Arc<LayerContent>>,
) -> Result<MergedTree, ImageMountError> {
    let in_store = |cause| ImageMountError::Store { image: name.to_owned(), cause: Box::new(cause) };
    let composition = Composition::of(store, image, &layers).map_err(in_store)?;
    let (tree, pending) = merged_tree(store, name, &composition, layers)?;
    pending.map_or(Ok(()), PendingTree::commit).map_err(in_store)?;
    Ok(tree)
}

/// The merged tree of these layers. Its table comes from the store, or is made, and kept there once what is pending is done.
pub(super) fn merged_tree(
    store: &Store,
    name: &str,
    composition: &Composition,
    layers: Vec<Arc<LayerContent>>,
) -> Result<(MergedTree, Option<PendingTree>), ImageMountError> {
    let in_store = |cause| ImageMountError::Store { image: name.to_owned(), cause: Box::new(cause) };
    let of_table = |cause| ImageMountError::Table { image: name.to_owned(), cause };
    let Composition { identity, steps } = composition;
    let key = hex(identity);
    if let Some(file) = store.trees().open(&key).map_err(in_store)? {
        match Table::open(&file, identity) {
            Ok(table) => {
                table.release();
                return Ok((MergedTree::new(name.to_owned(), table, layers), None));
            }
            Err(error) => {
                tracing::warn!(image = name, error = %chain(&error), "the merged tree is made again")
            }
        }
    }
    let tables: Vec<&Table> = layers.iter().map(|layer| layer.table()).collect();
    let bytes = match steps {
        None => merge(&tables, *identity),
        Some(steps) => compose(steps, &tables, *identity),
    };
    let bytes = bytes.map_err(|cause| ImageMountError::Merge { image: name.to_owned(), cause })?;
    let (file, pending) = store.trees().put_unsynced(&key, &bytes).map_err(in_store)?;
    let table = Table::open(&file, identity).map_err(of_table)?;
    table.release();
    Ok((MergedTree::new(name.to_owned(), table, layers), Some(pending)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
