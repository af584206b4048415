//! From an image to records of its layers.

use super::{Cache, CacheError, ImmutableRef, LayerDescription, Purpose};
use crate::image::{Image, Layer};
use crate::layer::lookup::Lookup;

impl LayerDescription {
    /// What the image of that canonical reference says of a layer.
    pub fn of(layer: &Layer, reference: &str) -> LayerDescription {
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
            layer: None,
            image: Some(reference.to_owned()),
            description: format!("layer of {reference}"),
        }
    }
}

impl Cache {
    /// Records the layers of an image, and gives the topmost, which keeps the others; nothing if the image has none. None of them need
    /// be here.
    pub fn record_image(
        &self,
        image: &Image,
        reference: &str,
        purpose: Purpose,
    ) -> Result<Option<ImmutableRef>, CacheError> {
        let mut top: Option<ImmutableRef> = None;
        for (number, layer) in image.layers.iter().enumerate() {
            let is_top = number + 1 == image.layers.len();
            let purpose = if is_top { purpose } else { Purpose::Look };
            top = Some(self.get_by_blob(&LayerDescription::of(layer, reference), top.as_ref(), purpose)?);
        }
        Ok(top)
    }
}
