//! All that comes before the kernel is asked: the image is brought, and its layers are merged.

use std::sync::{Arc, Mutex};

use sha2::{Digest as _, Sha256};

use super::bring::bring_lowest;
use super::counters::Counters;
use super::{ImageMountError, Prepared, Request};
use crate::error::chain;
use crate::fetch::index::{identity as layer_identity, open_local_of, open_local_when_made};
use crate::fetch::{LayerContent, ThreadStarter};
use crate::image::Image;
use crate::store::{PendingTree, Store, StoreError};
use crate::table::Table;
use crate::tree::merge::merge;
use crate::tree::serve::MergedTree;

/// What a merged tree is known by: its layers, and their order; and what made those that are kept apart.
pub(super) fn tree_identity(image: &Image, contents: &[Arc<LayerContent>]) -> [u8; 32] {
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
    let counters = Arc::new(Counters::new(&store));
    let written = counters.clone();
    let observer = move |statistics, prefetched| written.write(statistics, prefetched);
    let (prefetching, records_profile) = (request.prefetching, request.records_profile);
    let brought = bring_lowest(store, threads, request, layers, observer)?;
    let identity = tree_identity(&brought.image, &brought.layers);
    let (tree, pending_tree) = merged_tree(&brought.store, &name, identity, brought.layers.clone())?;
    let tree = if records_profile { tree.noting_touches() } else { tree };
    // Signals are held back by the threads that there are while the mount is made; the one that makes the database was started before,
    // and would be ended by one, and the process with it.
    brought.wait_for_database();
    let (tree, pending_tree) = (Arc::new(tree), Mutex::new(pending_tree));
    Ok(Prepared { brought, counters, prefetching, tree, tree_key: hex(&identity), pending_tree })
}

/// What the tree of an image is kept by in the store; nothing if not all of its layers are there.
pub fn tree_key(store: &Store, image: &Image) -> Result<Option<String>, StoreError> {
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let Some(content) = open_local_of(store, &image.manifest_digest, layer)? else { return Ok(None) };
        layers.push(content);
    }
    Ok(Some(hex(&tree_identity(image, &layers))))
}

/// The tree of an image that is in the store, only to be looked at: nothing is fetched. Nothing if not all of its layers are
/// there.
pub fn local_tree(store: &Store, name: &str, image: &Image) -> Result<Option<MergedTree>, ImageMountError> {
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let opened = open_local_when_made(store, &image.manifest_digest, layer)
            .map_err(|cause| ImageMountError::Store { image: name.to_owned(), cause: Box::new(cause) })?;
        let Some(content) = opened else { return Ok(None) };
        layers.push(content);
    }
    let identity = tree_identity(image, &layers);
    let (tree, pending) = merged_tree(store, name, identity, layers)?;
    if let Some(pending) = pending {
        pending
            .commit()
            .map_err(|cause| ImageMountError::Store { image: name.to_owned(), cause: Box::new(cause) })?;
    }
    Ok(Some(tree))
}

/// The merged tree of these layers. Its table comes from the store, or is made, and kept there once what is pending is done.
pub(super) fn merged_tree(
    store: &Store,
    name: &str,
    identity: [u8; 32],
    layers: Vec<Arc<LayerContent>>,
) -> Result<(MergedTree, Option<PendingTree>), ImageMountError> {
    let in_store = |cause| ImageMountError::Store { image: name.to_owned(), cause: Box::new(cause) };
    let of_table = |cause| ImageMountError::Table { image: name.to_owned(), cause };
    let key = hex(&identity);
    if let Some(file) = store.trees().open(&key).map_err(in_store)? {
        match Table::open(&file, &identity) {
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
    let bytes =
        merge(&tables, identity).map_err(|cause| ImageMountError::Merge { image: name.to_owned(), cause })?;
    let (file, pending) = store.trees().put_unsynced(&key, &bytes).map_err(in_store)?;
    let table = Table::open(&file, &identity).map_err(of_table)?;
    table.release();
    Ok((MergedTree::new(name.to_owned(), table, layers), Some(pending)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
