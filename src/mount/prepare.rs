//! All that comes before the kernel is asked: the image's documents, its layers, and their merged tree.

use std::sync::{Arc, Mutex};

use peelfs_registry::{Digest, ImageReference, LayoutReference, Platform};
use sha2::{Digest as _, Sha256};

use super::counters::Counters;
use super::{Found, ImageMountError, Prepared, Pull, Request, Unsettled, now};
use crate::error::chain;
use crate::fetch::index::{IndexError, Indexer, identity as layer_identity, open_local_when_made};
use crate::fetch::{Fetcher, LayerContent, ThreadStarter, referrers, soci};
use crate::image::Image;
use crate::image::origin::{Elsewhere, Origin, ResolvedImage};
use crate::store::{LayerOrigin, PendingTree, Store, StoreError};
use crate::table::Table;
use crate::tree::merge::merge;
use crate::tree::serve::MergedTree;

/// What a merged tree is known by: its layers, and their order; and what made those that are kept apart.
fn tree_identity(image: &Image, contents: &[Arc<LayerContent>]) -> [u8; 32] {
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

/// The host that a reference names, or the directory of a layout.
fn host(reference: &ImageReference) -> String {
    match reference {
        ImageReference::Registry(reference) => reference.host().to_owned(),
        ImageReference::Layout(layout) => layout.path().display().to_string(),
    }
}

/// The image of that reference and platform as the store knows it; nothing if it is not wholly known.
pub fn known_image(
    store: &Store,
    reference: &ImageReference,
    platform: &Platform,
) -> Result<Option<Image>, StoreError> {
    let record = store.database().find_image(&reference.to_string(), &platform.to_string())?;
    let Some(record) = record else { return Ok(None) };
    let Ok(digest) = record.manifest_digest.parse() else { return Ok(None) };
    image_of_manifest(store, &digest)
}

/// The image of that manifest, if manifest and config are in the store.
pub fn image_of_manifest(store: &Store, digest: &Digest) -> Result<Option<Image>, StoreError> {
    let Some(manifest) = store.content().get(digest.as_str())? else { return Ok(None) };
    let Ok((_, config)) = Image::manifest(digest, &manifest) else { return Ok(None) };
    let Some(config) = store.content().get(config.digest.as_str())? else { return Ok(None) };
    Ok(Image::parse(digest, &manifest, &config).ok())
}

/// Where the layers of an image come from that was made here, and the manifests of the images that it was made of. Nothing comes from
/// elsewhere for one that was not.
pub(super) fn origins(store: &Store, image: &Digest) -> Result<(Elsewhere, Vec<Digest>), StoreError> {
    let Some(origins) = store.origins().of(image.as_str())? else { return Ok(Default::default()) };
    let here = LayoutReference { path: store.content().path().to_owned(), name: None, digest: None };
    let elsewhere = origins.layers.into_iter().filter_map(|(digest, origin)| {
        let reference = match origin {
            LayerOrigin::Content => ImageReference::Layout(here.clone()),
            LayerOrigin::Image { reference } => reference.parse().ok()?,
        };
        Some((digest.parse().ok()?, reference))
    });
    let ancestors = origins.ancestors.iter().filter_map(|digest| digest.parse().ok());
    Ok((elsewhere.collect(), ancestors.collect()))
}

/// Makes everything ready that the mount of an image needs, from the store as far as it is there.
pub fn prepare(
    store: Arc<Store>,
    threads: &ThreadStarter,
    request: Request,
) -> Result<Prepared, ImageMountError> {
    let name = request.reference.to_string();
    let in_store = |cause| ImageMountError::Store { image: name.clone(), cause: Box::new(cause) };
    let running =
        || threads.handle().map_err(|cause| ImageMountError::Threads { image: name.clone(), cause });
    let nothing_is_known = store.database().is_missing().map_err(in_store)?;
    // Beside the network rather than after it. If it fails, so will the record of the mount, which tells why.
    let database = nothing_is_known.then(|| {
        let store = store.clone();
        std::thread::spawn(move || store.database().make())
    });
    let known = match request.pull {
        _ if request.pinned.is_some() => {
            let pinned = request.pinned.as_ref().map(|manifest| image_of_manifest(&store, manifest));
            pinned.transpose().map_err(in_store)?.flatten()
        }
        Pull::Always => None,
        _ if nothing_is_known => None,
        Pull::Missing | Pull::Never => {
            known_image(&store, &request.reference, &request.platform).map_err(in_store)?
        }
    };
    if known.is_none() && request.pull == Pull::Never {
        return Err(ImageMountError::Unknown { image: name, platform: request.platform.to_string() });
    }
    let origin = Origin::new(request.reference, request.client);
    let counters = Arc::new(Counters::new(&store));
    let (observed, written) = (origin.clone(), counters.clone());
    let fetcher =
        Fetcher::new(threads.clone(), request.read_deadline, move || written.write(observed.statistics()));
    let indexer = Indexer::new(store.clone(), origin.clone(), fetcher, request.progress);
    let (image, resolved) = match known {
        Some(image) => (image, None),
        None => running()?
            .block_on(async {
                match &request.pinned {
                    Some(manifest) => origin.resolve_pinned(manifest, &request.platform).await,
                    None => origin.resolve(&request.platform).await,
                }
            })
            .map_err(|cause| ImageMountError::Resolve { image: name.clone(), cause })
            .and_then(|resolved| keep(&store, resolved).map_err(in_store))
            .map(|(image, found)| (image, Some(found)))?,
    };
    let of_layer = |(number, cause): (usize, IndexError)| ImageMountError::Layer {
        image: name.clone(),
        number: number + 1,
        digest: image.layers[number].descriptor.digest.clone(),
        host: host(origin.reference_of(&image.layers[number].descriptor.digest)),
        cause: Box::new(cause),
    };
    let (elsewhere, ancestors) = origins(&store, &image.manifest_digest).map_err(in_store)?;
    origin.layers_are_elsewhere(elsewhere);
    indexer.bring_for(&image.manifest_digest, ancestors, request.trust_referrers);
    let mut layers = known_layers(&indexer, &image).map_err(of_layer)?;
    if layers.iter().any(Option::is_none) {
        let bringing = bring_layers(&indexer, &image, request.trust_referrers, &mut layers);
        running()?.block_on(bringing).map_err(of_layer)?;
    }
    let layers: Vec<_> = layers.into_iter().flatten().collect();
    let identity = tree_identity(&image, &layers);
    let (tree, pending_tree) = merged_tree(&store, &name, identity, layers)?;
    let tree = Arc::new(tree);
    let unsettled = Mutex::new(Unsettled {
        documents: resolved.as_ref().map(|found| found.documents.clone()).unwrap_or_default(),
        tree: pending_tree,
    });
    let (threads, platform, tree_key) = (threads.clone(), request.platform, hex(&identity));
    // Signals are held back by the threads that there are while the mount is made; this one was started before, and would be ended by
    // one, and the process with it.
    if let Some(database) = database {
        let _ = database.join();
    }
    Ok(Prepared {
        store,
        origin,
        indexer,
        counters,
        threads,
        image,
        resolved,
        pinned: request.pinned.is_some(),
        platform,
        tree,
        tree_key,
        unsettled,
    })
}

/// The tree of an image that is in the store, only to be looked at: nothing is fetched. Nothing if not all of its layers are
/// there.
pub fn local_tree(store: &Store, name: &str, image: &Image) -> Result<Option<MergedTree>, ImageMountError> {
    let mut layers = Vec::with_capacity(image.layers.len());
    for layer in &image.layers {
        let opened = open_local_when_made(store, &image.manifest_digest, &layer.descriptor.digest)
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

/// Keeps the documents that the registry gave.
fn keep(store: &Store, resolved: ResolvedImage) -> Result<(Image, Found), StoreError> {
    let ResolvedImage { image, resolved, config } = resolved;
    let index = resolved.index().map(|document| document.digest.clone());
    let documents = resolved.documents.into_iter().map(|document| (document.digest, document.bytes));
    let mut kept = Vec::new();
    for (digest, bytes) in documents.chain([(image.config.digest.clone(), config)]) {
        store.content().put_unsynced(digest.as_str(), &bytes)?;
        kept.push(digest);
    }
    Ok((image, Found { index, at: now(), documents: kept }))
}

/// Opens the layers that are in the store; or tells which one failed.
fn known_layers(
    indexer: &Indexer,
    image: &Image,
) -> Result<Vec<Option<Arc<LayerContent>>>, (usize, IndexError)> {
    let layers = image.layers.iter().enumerate();
    layers.map(|(number, layer)| indexer.open_known(layer).map_err(|cause| (number, cause))).collect()
}

/// Brings the other layers, in parallel; or tells which one failed.
async fn bring_layers(
    indexer: &Arc<Indexer>,
    image: &Image,
    trusts_referrers: bool,
    layers: &mut [Option<Arc<LayerContent>>],
) -> Result<(), (usize, IndexError)> {
    let mut tasks = tokio::task::JoinSet::new();
    let first = layers.iter().position(Option::is_none).unwrap_or(0);
    let mut wanted = soci::with_index(indexer.origin(), image).await.map_err(|error| (first, error))?;
    if trusts_referrers && wanted.iter().all(|layer| layer.lazy_index.is_none()) {
        referrers::attach_referrer(indexer.origin(), image, &mut wanted).await;
    }
    for (number, layer) in wanted.into_iter().enumerate().filter(|(number, _)| layers[*number].is_none()) {
        let indexer = indexer.clone();
        tasks.spawn(async move { (number, indexer.open(layer).await) });
    }
    while let Some(opened) = tasks.join_next().await {
        match opened {
            Ok((number, Ok(content))) => layers[number] = Some(content),
            // The others are cancelled with the set.
            Ok((number, Err(error))) => return Err((number, error)),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    Ok(())
}

/// The merged tree of these layers. Its table comes from the store, or is made, and kept there once what is pending is done.
fn merged_tree(
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
