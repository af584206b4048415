//! Garbage: what no image, no mount and no cache record needs goes, and by policy what nobody has used for long. There is one collector, and
//! [`plan`] is its one opinion of what is in use.
//!
//! ```text
//! look ─▶ plan ─▶ discard cold content ─▶ forget images ─▶ set layers aside, remove trees, documents and records ─▶ sweep
//!          pure        └──────────── with the collector's lock, alone ────────────────────┘                        without
//! ```
//!
//! Names go before what they name, and what is removed is marked first, by a rename: a collection that is killed anywhere leaves an
//! image whole or unnamed, and leftovers that any later command sweeps. What is mounted, or open in any process, stays.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use peelfs_registry::{Digest, Document};

pub use self::plan::{ImageUse, Inventory, LayerUse, Needs, Plan, Policy};
use crate::cache::{Cache, CacheError};
use crate::error::chain;
use crate::fetch::index::open_local;
use crate::fetch::{image_of_manifest, names_of_same_archives, possible_names, twins};
use crate::mount::live::{Liveness, live_mounts};
use crate::mount::tree_key;
use crate::mount::writable::bring_over;
use crate::store::record_tables::RecordId;
use crate::store::{ImageRecord, LayerState, NoteKind, Store, StoreError, Verdict};

/// What was done, or would be.
#[derive(Clone, Debug)]
pub struct Collected {
    /// What went.
    pub plan: Plan,
    /// What the store took before, in bytes.
    pub bytes_before: u64,
    /// What it takes now; in a dry run, what it would.
    pub bytes_after: u64,
}

/// Collects garbage; in a dry run only says what would go.
///
/// # Errors
/// If the store cannot be read or changed. What was removed until then is gone, and nothing else is the worse for it.
pub fn collect(cache: &Cache, policy: &Policy, is_dry_run: bool) -> Result<Collected, CacheError> {
    let store = cache.store();
    // Who only looks waits for nobody who brings an image: what is being brought is open.
    let lock = if is_dry_run { store.lock_for_bringing()? } else { store.lock_for_collecting()? };
    but_for_a_full_disk(cache.recover().map(drop).and_then(|()| bring_over(cache)))?;
    if !is_dry_run {
        but_for_a_full_disk(cache.tidy())?;
    }
    let inventory = look(cache)?;
    let plan = Plan::make(&inventory, policy, now());
    let bytes_before = inventory.store_bytes;
    if is_dry_run {
        let bytes_after = bytes_before.saturating_sub(plan.bytes());
        return Ok(Collected { plan, bytes_before, bytes_after });
    }
    if policy.filter.is_none() {
        // On a full disk not even a name can be taken away, and what nobody needs makes the room for that.
        mark_files(store, &Plan::unneeded(&inventory, policy, now()))?;
        store.sweep()?;
    }
    mark(cache, &plan)?;
    // Nothing that is marked is freed yet. They are forgotten another time.
    but_for_a_full_disk(forget_what_is_gone(store).map_err(CacheError::from))?;
    drop(lock);
    store.sweep()?;
    Ok(Collected { plan, bytes_before, bytes_after: store.allocated()? })
}

/// A full disk is what is to be cleared.
fn but_for_a_full_disk(done: Result<(), CacheError>) -> Result<(), CacheError> {
    match done {
        Err(error) if !error.is_full() => Err(error),
        _ => Ok(()),
    }
}

/// Takes from its place all that is to go.
fn mark(cache: &Cache, plan: &Plan) -> Result<(), CacheError> {
    let store = cache.store();
    for (layer, _) in &plan.evicted {
        evict(store, layer)?;
    }
    for (reference, platform) in &plan.images {
        store.database().forget_image(reference, platform)?;
    }
    mark_files(store, plan)?;
    let records: Vec<RecordId> = plan.records.iter().map(|(id, _)| id.clone()).collect();
    // One whose layer is gone is lazy, and goes another time.
    but_for_a_full_disk(cache.remove_all(&records).map(drop))
}

fn mark_files(store: &Store, plan: &Plan) -> Result<(), StoreError> {
    for (layer, _) in &plan.layers {
        store.layers().layer(layer)?.set_aside()?;
    }
    for (tree, _) in &plan.trees {
        store.trees().remove(tree)?;
    }
    for (document, _) in &plan.documents {
        store.content().remove(document)?;
    }
    Ok(())
}

/// Records and notes of what no image has.
fn forget_what_is_gone(store: &Store) -> Result<(), StoreError> {
    store.database().forget_unused_layers()?;
    let images = store.database().images()?;
    let named: Vec<String> = images.iter().map(origin_note).collect();
    store.notes().keep_only(NoteKind::Origin, &named)?;
    let layers: Vec<String> = store.database().layers()?.into_iter().map(|layer| layer.digest).collect();
    store.notes().keep_only(NoteKind::Variants, &layers)?;
    twins::forget_gone(store)?;
    // An image without its manifest cannot be had, and where its layers were is of no use.
    store.origins().keep_only(&store.content().list()?)?;
    store.note_images()?;
    store.database().shorten_log()
}

fn origin_note(image: &ImageRecord) -> String {
    crate::mount::origin_note(&image.reference, &image.manifest_digest)
}

/// Discards what can be fetched again of a layer.
fn evict(store: &Store, name: &str) -> Result<(), StoreError> {
    let Ok(digest) = name.parse::<Digest>() else { return Ok(()) };
    let Some(content) = open_local(store, &digest)? else { return Ok(()) };
    // Before: a record that promises too much is worse than one that promises too little, though not as bad as a disk that stays full.
    match store.database().set_layer_state(name, LayerState::Lazy) {
        Err(error) if !error.is_full() => return Err(error),
        _ => {}
    }
    content.evict(0..content.table().chunks().len())?;
    Ok(())
}

fn look(cache: &Cache) -> Result<Inventory, CacheError> {
    let store = cache.store();
    let (mut mounted, mut mounted_images) = (Needs::default(), BTreeSet::new());
    for mount in live_mounts(store)?.into_iter().filter(|mount| mount.liveness == Liveness::Live) {
        mounted.extend(&needs_of_mounted(store, &mount.record.manifest_digest)?);
        mounted.trees.insert(mount.record.tree);
        mounted_images.insert(mount.record.manifest_digest);
    }
    // What was changed in a writable mount is worth nothing without the image that it was changed in; nor, once it is committed, without
    // the image that it became, as long as it has its name.
    let mut images_below: BTreeSet<String> = BTreeSet::new();
    for named in cache.named_snapshots()? {
        images_below.insert(named.snapshot.note.origin.manifest_digest.clone());
        images_below.extend(cache.manifests_of(&named.record.id)?);
    }
    for name in store.earlier_snapshots().names()? {
        images_below.extend(store.earlier_snapshots().manifest_of(&name));
    }
    for manifest in images_below {
        mounted.extend(&needs_of(store, &manifest)?);
        mounted_images.insert(manifest);
    }
    for stack in store.database().remote_stacks()? {
        mounted.extend(&needs_of_mounted(store, &stack.manifest_digest)?);
        mounted.trees.insert(stack.tree);
        mounted_images.insert(stack.manifest_digest);
    }
    mounted.documents.extend(cache.leased_content()?);
    let mut mounted_records = BTreeSet::new();
    for manifest in &mounted_images {
        mounted_records.extend(cache.record_of_image(manifest)?);
    }
    let records = cache.usage()?;
    let used: BTreeSet<&RecordId> = (records.iter())
        .filter(|usage| usage.uses.refs + usage.uses.leases > 0)
        .map(|usage| &usage.record.id)
        .collect();
    let mut images = Vec::new();
    for image in store.database().images()? {
        let mut needs = needs_of(store, &image.manifest_digest)?;
        needs.documents.insert(image.config_digest.clone());
        if let Some(index) = &image.index_digest {
            add_index(store, index, &mut needs.documents)?;
        }
        let record = cache.record_of_image(&image.manifest_digest)?;
        let is_used = record.as_ref().is_some_and(|record| used.contains(record));
        images.push(ImageUse {
            is_in_use: is_used || mounted_images.contains(&image.manifest_digest),
            reference: image.reference,
            platform: image.platform,
            last_used: image.last_used,
            needs,
            record,
        });
    }
    let mut layers = BTreeMap::new();
    for name in store.layers().list()? {
        layers.insert(name.clone(), layer_use(store, &name)?);
    }
    let mut documents = BTreeMap::new();
    for digest in store.content().list()? {
        let bytes = store.content().allocated(&digest)?;
        documents.insert(digest, bytes);
    }
    Ok(Inventory {
        store_bytes: store.allocated()?,
        free_bytes: store.space()?.available,
        images,
        mounted,
        mounted_records,
        records,
        layers,
        trees: store.trees().list()?.into_iter().collect(),
        documents,
    })
}

fn layer_use(store: &Store, name: &str) -> Result<LayerUse, StoreError> {
    let place = store.layers().layer(name)?;
    let is_in_use = place.is_in_use()?;
    let bytes = place.allocated()?;
    let mut content_bytes = 0;
    // A layer that is damaged is not fetched again but made again; one that is false, never.
    if let Ok(Some(files)) = place.open()
        && files.chunk_map.is_some()
        && !matches!(files.verdict()?, Some(Verdict::Poisoned { .. }))
    {
        content_bytes = place.allocated_content()?;
    }
    Ok(LayerUse { bytes, content_bytes, is_in_use })
}

/// What a mount of the image with that manifest needs. While its server is being followed by another, nobody has open what it reads.
fn needs_of_mounted(store: &Store, manifest_digest: &str) -> Result<Needs, StoreError> {
    let mut needs = needs_of(store, manifest_digest)?;
    let image = manifest_digest.parse().map_or(Ok(None), |digest| image_of_manifest(store, &digest))?;
    let shared = image.map_or(Ok(Vec::new()), |image| names_of_same_archives(store, &image))?;
    needs.layers.extend(shared.iter().map(ToString::to_string));
    Ok(needs)
}

/// What the image with that manifest needs.
fn needs_of(store: &Store, manifest_digest: &str) -> Result<Needs, StoreError> {
    let mut needs = Needs::default();
    needs.documents.insert(manifest_digest.to_owned());
    let image = match manifest_digest.parse() {
        Ok(digest) => image_of_manifest(store, &digest)?,
        Err(_) => None,
    };
    let Some(image) = image else {
        // It is asked for again when it is mounted. Only layers that were streamed are found by the records alone.
        for layer in store.database().layers_of(manifest_digest)? {
            needs.layers.insert(layer.digest);
        }
        return Ok(needs);
    };
    needs.documents.insert(image.config.digest.to_string());
    needs.layers.extend(possible_names(store, &image)?.iter().flatten().map(ToString::to_string));
    // Of an image that was made here, a layer's blob may be here and nowhere else.
    needs.documents.extend(image.layers.iter().map(|layer| layer.descriptor.digest.to_string()));
    match tree_key(store, &image) {
        Ok(key) => needs.trees.extend(key),
        // It is merged again.
        Err(error) => {
            tracing::warn!(manifest = manifest_digest, error = %chain(&error), "its tree is not known")
        }
    }
    Ok(needs)
}

/// An index, and the documents below it that are here.
fn add_index(store: &Store, digest: &str, documents: &mut BTreeSet<String>) -> Result<(), StoreError> {
    if !documents.insert(digest.to_owned()) || !store.content().has(digest)? {
        return Ok(());
    }
    let Some(bytes) = store.content().get(digest)? else { return Ok(()) };
    if let Ok((Document::Index(index), _)) = Document::parse(&bytes, None) {
        for entry in index.manifests() {
            add_index(store, entry.digest().as_ref(), documents)?;
        }
    }
    Ok(())
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}
