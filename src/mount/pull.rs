//! An image brought into the store without being mounted, as a container engine pulls one: afterwards its mount asks the network for
//! nothing but content.
//!
//! Everything is on disk before the image is recorded, and the record comes last: what is killed before leaves layers and documents
//! that the next pull finds, and no image that is not whole.

use std::sync::Arc;

use peelfs_registry::{ImageReference, Platform, Statistics};

use super::bring::{Brought, bring};
use super::prepare::{Composition, hex, merged_tree};
use super::{ImageMountError, Request};
use crate::cache::ImmutableRef;
use crate::fetch::{LayerContent, ThreadStarter};
use crate::image::Image;
use crate::store::{PendingTree, Store};
use crate::tree::serve::MergedTree;

/// What becomes of an image whose config names another platform than the one that was asked for; an image index does not let it
/// come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherPlatform {
    /// It is pulled, and the log says so: nobody said which platform he wants.
    Warn,
    /// It is an error.
    Refuse,
}

/// An image that is in the store.
pub struct Pulled {
    pub(super) brought: Brought,
    pub(super) tree: MergedTree,
    /// Keeps the records of its layers; nothing if it has none.
    records: Option<ImmutableRef>,
}

/// Brings an image into the store.
///
/// # Errors
/// Those of mounting it, up to where the kernel is asked.
pub fn pull(
    store: Arc<Store>,
    threads: &ThreadStarter,
    request: Request,
    other_platform: OtherPlatform,
) -> Result<Pulled, ImageMountError> {
    let name = request.reference.to_string();
    let brought = bring(store, threads, request, |_, _| {})?;
    brought.wait_for_database();
    check_platform(&name, &brought, other_platform)?;
    let in_store = |cause| ImageMountError::Store { image: name.clone(), cause: Box::new(cause) };
    let composition = Composition::of(&brought.store, &brought.image, &brought.layers).map_err(in_store)?;
    let (tree, pending) = merged_tree(&brought.store, &name, &composition, brought.layers.clone())?;
    brought.keep_documents().map_err(in_store)?;
    brought.keep_layers().map_err(in_store)?;
    pending.map_or(Ok(()), PendingTree::commit).map_err(in_store)?;
    brought.checkpoint();
    let records = brought.record(&hex(&composition.identity), None);
    let records =
        records.map_err(|cause| ImageMountError::Records { image: name.clone(), cause: Box::new(cause) })?;
    brought.note().and_then(|()| brought.record_use()).map_err(in_store)?;
    brought.settled();
    Ok(Pulled { brought, tree, records })
}

fn check_platform(
    name: &str,
    brought: &Brought,
    other_platform: OtherPlatform,
) -> Result<(), ImageMountError> {
    let configuration = &brought.image.configuration;
    let found = format!("{}/{}", configuration.os(), configuration.architecture());
    let wanted = &brought.platform;
    let is_wanted = found
        .parse::<Platform>()
        .is_ok_and(|found| found.os() == wanted.os() && found.architecture() == wanted.architecture());
    match other_platform {
        _ if is_wanted => Ok(()),
        OtherPlatform::Warn => {
            tracing::warn!(image = name, %found, %wanted, "the image is for another platform");
            Ok(())
        }
        OtherPlatform::Refuse => {
            Err(ImageMountError::Platform { image: name.to_owned(), found, wanted: wanted.to_string() })
        }
    }
}

impl Pulled {
    /// The image.
    pub fn image(&self) -> &Image {
        &self.brought.image
    }

    /// What it was asked for by.
    pub fn reference(&self) -> &ImageReference {
        &self.brought.reference
    }

    /// The record that it is; nothing if it has no layers.
    pub fn record(&self) -> Option<&ImmutableRef> {
        self.records.as_ref()
    }

    /// Its layers, the lowest first.
    pub fn layers(&self) -> &[Arc<LayerContent>] {
        &self.brought.layers
    }

    /// Its tree.
    pub fn tree(&self) -> &MergedTree {
        &self.tree
    }

    /// What has crossed the network for it so far.
    pub fn statistics(&self) -> Statistics {
        self.brought.origin.statistics()
    }

    /// Makes what was fetched so far outlast a crash of the machine; what cannot be kept is told in the log.
    pub fn checkpoint(&self) {
        self.brought.checkpoint();
    }
}
