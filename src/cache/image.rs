//! From an image to records of its layers.
//!
//! An image *is* the record of its topmost layer, which keeps those below; or, if its layers do not lie on each other, the one that its
//! composition describes, a merge or a diff. A row says so, by the image's manifest. The names of images point at
//! manifests, so who gives an image a name, moves a tag or takes a name away does the same to the record, in the same transaction, and
//! a name keeps a record exactly as long as it is there. What is not recorded yet (of a store that knew images, but no records of
//! them) is recorded when it is asked for.

use peelfs_registry::Digest;

use super::blob::ensure_layer;
use super::refs::present;
use super::{Attempt, Cache, CacheError, ImmutableRef, LayerDescription, Purpose, or_refuse};
use crate::fetch::{names, possible_names};
use crate::image::{Image, Layer};
use crate::layer::lookup::Lookup;
use crate::store::record_tables::{ImageRow, RecordId, RecordKind, RecordTables};
use crate::store::{ImageRecord, LayerRecord, MountRecord, Step, Store, StoreError};

/// An image whose layers are here, or were made here.
#[derive(Clone, Copy, Debug)]
pub struct BroughtImage<'a> {
    /// What its documents say.
    pub image: &'a Image,
    /// These are its lowest layers alone: their records are made, but none of them is the image.
    pub is_part: bool,
    /// What it was asked for by, canonical.
    pub reference: &'a str,
    /// What each layer is kept by, the lowest first.
    pub layers: &'a [Digest],
    /// What the tree of these layers is kept by; empty if not all of them are here.
    pub tree: &'a str,
    /// What the reference means, if that is news.
    pub named: Option<(&'a ImageRecord, &'a [LayerRecord])>,
    /// The mount, if it is mounted.
    pub mount: Option<&'a MountRecord>,
}

impl LayerDescription {
    /// What the image of that canonical reference says of a layer, which is kept by that name.
    pub fn of(layer: &Layer, reference: &str, name: &Digest) -> LayerDescription {
        let descriptor = &layer.descriptor;
        // One that is placed where it cannot be is said when the layer is read.
        let lookup = Lookup::new(&descriptor.annotations, descriptor.size).ok().flatten();
        let toc = lookup.and_then(|lookup| lookup.toc_sha256()).map(|digest| {
            let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
            format!("sha256:{hex}")
        });
        LayerDescription {
            blob: descriptor.digest.clone(),
            media_type: descriptor.media_type.clone(),
            size: descriptor.size,
            diff_id: layer.diff_id.clone(),
            toc_digest: toc.and_then(|digest| digest.parse().ok()),
            layer: Some(name.to_string()),
            image: Some(reference.to_owned()),
            description: format!("layer of {reference}"),
        }
    }
}

/// What each layer of an image is kept by, the lowest first: where it lies, or else where it will if it is streamed.
pub fn layer_names(store: &Store, image: &Image) -> Result<Vec<Digest>, StoreError> {
    let name = |(layer, names): (&Layer, Vec<Digest>)| {
        for name in names {
            if store.layers().layer(name.as_str())?.is_there()? {
                return Ok(name);
            }
        }
        Ok(names::streamed(layer))
    };
    image.layers.iter().zip(possible_names(store, image)?).map(name).collect()
}

impl Cache {
    /// Records an image that was brought or made, what its name means and where it is mounted, all or nothing of it, and gives a ref that
    /// counts as a use; nothing if the image has no layers. Of an image that is known, and whose layers are the same as ever, little is
    /// written.
    pub fn record_brought(&self, brought: &BroughtImage<'_>) -> Result<Option<ImmutableRef>, CacheError> {
        let taken = self.write("record an image", |tables| {
            if let Some((image, layers)) = brought.named {
                tables.remember_image(image, layers)?;
            }
            if let Some(mount) = brought.mount {
                tables.remember_mount(mount)?;
            }
            let known = match brought.is_part {
                true => None,
                false => tables.record_of_image(brought.image.manifest_digest.as_str())?,
            };
            let top = match known {
                Some(known) if brought.named.is_none() && known.tree == brought.tree => Some(known.record),
                known => self.record_layers(tables, brought, known)?,
            };
            let Some(top) = top else { return Ok(None) };
            Ok(Some((self.take(tables, &top, Purpose::Use)?, top)))
        })?;
        Ok(taken.map(|(number, top)| self.immutable_ref(number, top)))
    }

    /// The images that have no record; those without layers are among them.
    pub fn images_without_record(&self) -> Result<Vec<ImageRecord>, CacheError> {
        let images = self.store().database().images()?;
        self.read("look for the records of images", |tables| {
            let mut without = Vec::new();
            for image in &images {
                if tables.record_of_image(&image.manifest_digest)?.is_none() {
                    without.push(image.clone());
                }
            }
            Ok(without)
        })
    }

    /// The record of an image's topmost layer, which keeps the others; made if there is none. Nothing if the image has no layers. None of
    /// them need be here.
    pub fn record_image(
        &self,
        image: &Image,
        reference: &str,
        purpose: Purpose,
    ) -> Result<Option<ImmutableRef>, CacheError> {
        let layers = layer_names(self.store(), image)?;
        let (named, mount) = (None, None);
        let brought =
            BroughtImage { image, is_part: false, reference, layers: &layers, tree: "", named, mount };
        let taken = self.write("record the layers of an image", |tables| {
            let top = match tables.record_of_image(image.manifest_digest.as_str())? {
                Some(known) => {
                    add_reference(tables, &known.record, reference)?;
                    Some(known.record)
                }
                None => self.record_layers(tables, &brought, None)?,
            };
            let Some(top) = top else { return Ok(None) };
            Ok(Some((self.take(tables, &top, purpose)?, top)))
        })?;
        Ok(taken.map(|(number, top)| self.immutable_ref(number, top)))
    }
}

impl Cache {
    /// The record that the image with that manifest is, if it is recorded.
    pub fn record_of_image(&self, manifest_digest: &str) -> Result<Option<RecordId>, CacheError> {
        self.read("look for the record of an image", |tables| {
            Ok(tables.record_of_image(manifest_digest)?.map(|known| known.record))
        })
    }

    /// Names of images and the records that they are, by name.
    pub fn image_names(&self) -> Result<Vec<(String, RecordId)>, CacheError> {
        self.read("list the images that records are", |tables| Ok(tables.image_names()?))
    }
}

impl Cache {
    /// Records an image's layers, and which record it is, in the place of what was known.
    fn record_layers(
        &self,
        tables: &RecordTables<'_>,
        brought: &BroughtImage<'_>,
        known: Option<ImageRow>,
    ) -> Attempt<Option<RecordId>> {
        if brought.is_part {
            return self.record_stack(tables, brought, 0..brought.image.layers.len());
        }
        let manifest_digest = brought.image.manifest_digest.as_str();
        let origins = or_refuse(self.store().origins().of(manifest_digest))?;
        let top = match origins.and_then(|origins| origins.composition) {
            Some(steps) => self.record_composition(tables, brought, &steps)?,
            None => self.record_stack(tables, brought, 0..brought.image.layers.len())?,
        };
        let Some(record) = &top else { return Ok(None) };
        if let Some(known) = known.filter(|known| known.tree.is_empty() && known.record != *record) {
            // It was recorded before its layers were here, and one of them has come by another name: what was to keep the image keeps it.
            tables.move_leases(&known.record, record)?;
            tables.move_names(&known.record, record)?;
        }
        tables.set_record_of_image(&ImageRow {
            manifest_digest: manifest_digest.to_owned(),
            tree: brought.tree.to_owned(),
            record: record.clone(),
        })?;
        Ok(top)
    }

    /// Records layers of an image, by their numbers, each on the one before. One that the image does not have is passed over: its tree
    /// cannot be made, which says so.
    fn record_stack(
        &self,
        tables: &RecordTables<'_>,
        brought: &BroughtImage<'_>,
        numbers: impl Iterator<Item = usize>,
    ) -> Attempt<Option<RecordId>> {
        let mut top = None;
        for number in numbers {
            let (Some(layer), Some(name)) = (brought.image.layers.get(number), brought.layers.get(number))
            else {
                continue;
            };
            let description = LayerDescription::of(layer, brought.reference, name);
            let below = top.as_ref().map(|below| present(tables, below)).transpose()?;
            let fresh = or_refuse(RecordId::random())?;
            let id = ensure_layer(tables, &description, below.as_ref(), &fresh, self.store())?;
            tables.add_image(&id, brought.reference)?;
            top = Some(id);
        }
        Ok(top)
    }

    /// Records what an image is composed of: layers that follow each other as a stack, and the differences between.
    fn record_composition(
        &self,
        tables: &RecordTables<'_>,
        brought: &BroughtImage<'_>,
        steps: &[Step],
    ) -> Attempt<Option<RecordId>> {
        let mut records = Vec::new();
        for run in steps.chunk_by(|one, other| matches!((one, other), (Step::Layer(_), Step::Layer(_)))) {
            records.extend(match run {
                [Step::Difference { lower, upper }] => {
                    let lower = self.record_composition(tables, brought, lower)?;
                    let upper = self.record_composition(tables, brought, upper)?;
                    let fresh = or_refuse(RecordId::random())?;
                    match (lower, upper) {
                        (None, upper) => upper,
                        (lower, upper) => {
                            Some(self.ensure_diff(tables, &fresh, lower.as_ref(), upper.as_ref())?)
                        }
                    }
                }
                layers => {
                    let numbers = layers.iter().filter_map(|step| match step {
                        Step::Layer(number) => Some(usize::from(*number)),
                        Step::Difference { .. } => None,
                    });
                    self.record_stack(tables, brought, numbers)?
                }
            });
        }
        match &records[..] {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            several => {
                let fresh = or_refuse(RecordId::random())?;
                self.ensure_merge(tables, &fresh, several.iter()).map(Some)
            }
        }
    }
}

/// Says of a layer and all below it that they came from an image of that reference, too.
fn add_reference(tables: &RecordTables<'_>, top: &RecordId, reference: &str) -> Attempt<()> {
    let mut here = top.clone();
    loop {
        tables.add_image(&here, reference)?;
        // Parents are older than their children, so this ends.
        match present(tables, &here)?.kind {
            RecordKind::Layer { parent } => here = parent,
            _ => return Ok(()),
        }
    }
}
