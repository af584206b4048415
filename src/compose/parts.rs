//! The layers that the inputs bring, and which of them a record stands for.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::ComposeError;
use super::documents::{self, DocumentError};
use crate::cache::{Application, CacheError};
use crate::fetch::LayerContent;
use crate::image::Layer;
use crate::mount::origin_of_manifest;
use crate::mount::pull::Pulled;
use crate::store::record_tables::RecordId;
use crate::store::{ImageOrigins, LayerOrigin, Step, Store};

/// An image that another is made of.
pub(super) struct Input<'a> {
    pub pulled: &'a Pulled,
    /// If it was made here, too.
    pub origins: Option<ImageOrigins>,
    pub config: Value,
    manifest: Value,
    /// Where its layers come from, unless its origins say so.
    reference: String,
}

impl<'a> Input<'a> {
    /// Reads what the store has of an image.
    pub fn read(store: &Store, pulled: &'a Pulled) -> Result<Input<'a>, ComposeError> {
        let image = pulled.image();
        let document = |digest: &str, kind| {
            let bytes = store.content().get(digest)?;
            let gone = || ComposeError::Gone { image: pulled.reference().to_string() };
            Ok::<_, ComposeError>(documents::parse(kind, &bytes.ok_or_else(gone)?)?)
        };
        let manifest_digest = image.manifest_digest.as_str();
        Ok(Input {
            pulled,
            origins: store.origins().of(manifest_digest)?,
            config: document(image.config.digest.as_str(), "config")?,
            manifest: document(manifest_digest, "manifest")?,
            reference: origin_of_manifest(store, pulled.reference(), manifest_digest)?.to_string(),
        })
    }

    /// Digests of its manifest, and of those that it was made of.
    pub fn lineage(&self) -> impl Iterator<Item = String> {
        let further = self.origins.iter().flat_map(|origins| origins.ancestors.clone());
        std::iter::once(self.pulled.image().manifest_digest.to_string()).chain(further)
    }

    /// The layer of that number, which its image has.
    fn part(&self, number: usize) -> Option<Part> {
        let layer = self.pulled.image().layers.get(number)?.clone();
        let said =
            self.origins.as_ref().and_then(|origins| origins.layers.get(layer.descriptor.digest.as_str()));
        let reference = || LayerOrigin::Image { reference: self.reference.clone() };
        Some(Part {
            content: self.pulled.layers().get(number)?.clone(),
            descriptor: self.manifest["layers"][number].clone(),
            history: documents::history_of(&self.config, number),
            origin: said.cloned().unwrap_or_else(reference),
            layer,
        })
    }
}

/// A layer that is there to be used.
pub(super) struct Part {
    pub layer: Layer,
    pub content: Arc<LayerContent>,
    /// As the manifest of its image has it.
    pub descriptor: Value,
    /// What its image's history says of it.
    pub history: Value,
    pub origin: LayerOrigin,
}

/// All layers of the inputs.
#[derive(Default)]
pub(super) struct Parts {
    parts: Vec<Part>,
    /// Which of them a record stands for.
    numbers: HashMap<RecordId, usize>,
}

impl Parts {
    /// Learns which layers of an image the records are that its own record stands for.
    pub fn learn(&mut self, input: &Input<'_>) -> Result<(), ComposeError> {
        let Some(record) = input.pulled.record() else { return Ok(()) };
        let layers = 0..input.pulled.image().layers.len();
        // A manifest lists no more than 1,024.
        let stack = || layers.map(|number| Step::Layer(number as u16)).collect();
        let composition = input.origins.as_ref().and_then(|origins| origins.composition.clone());
        self.learn_steps(input, &record.applications()?, &composition.unwrap_or_else(stack))
    }

    /// The records were made by these steps, so they are of one form.
    fn learn_steps(
        &mut self,
        input: &Input<'_>,
        applications: &[Application],
        steps: &[Step],
    ) -> Result<(), ComposeError> {
        let image = || input.pulled.reference().to_string();
        if applications.len() != steps.len() {
            return Err(DocumentError::Records { image: image() }.into());
        }
        for pair in applications.iter().zip(steps) {
            match pair {
                (Application::Layer(layer), Step::Layer(number)) => {
                    let part = input.part(usize::from(*number));
                    let part = part.ok_or_else(|| DocumentError::Records { image: image() })?;
                    let number = self.number_of(part);
                    self.numbers.entry(layer.record.clone()).or_insert(number);
                }
                (Application::Diff { lower, upper, .. }, Step::Difference { lower: below, upper: above }) => {
                    self.learn_steps(input, lower, below)?;
                    self.learn_steps(input, upper, above)?;
                }
                _ => return Err(DocumentError::Records { image: image() }.into()),
            }
        }
        Ok(())
    }

    /// The number of a layer: the same for all of which the same is said.
    fn number_of(&mut self, part: Part) -> usize {
        let is_it =
            |known: &Part| known.descriptor == part.descriptor && known.layer.diff_id == part.layer.diff_id;
        if let Some(known) = self.parts.iter().position(is_it) {
            return known;
        }
        self.parts.push(part);
        self.parts.len() - 1
    }

    /// The layers that these applications need, and how they are composed of them: nothing if they lie on each other in that order.
    pub fn arrange(
        &self,
        applications: &[Application],
    ) -> Result<(Vec<&Part>, Option<Vec<Step>>), ComposeError> {
        let mut numbers = Vec::new();
        if applications.iter().all(|application| matches!(application, Application::Layer(_))) {
            for application in applications {
                if let Application::Layer(layer) = application {
                    numbers.push(self.known(&layer.record)?);
                }
            }
            return Ok((numbers.into_iter().map(|number| &self.parts[number]).collect(), None));
        }
        let steps = self.steps(applications, &mut numbers)?;
        Ok((numbers.into_iter().map(|number| &self.parts[number]).collect(), Some(steps)))
    }

    fn known(&self, record: &RecordId) -> Result<usize, ComposeError> {
        let unknown = || CacheError::Unknown { key: "id among the layers", value: record.to_string() };
        Ok(*self.numbers.get(record).ok_or_else(unknown)?)
    }

    /// As many layers as a record stands for, and as deep, as the cache allows.
    fn steps(
        &self,
        applications: &[Application],
        numbers: &mut Vec<usize>,
    ) -> Result<Vec<Step>, ComposeError> {
        let step = |application: &Application| match application {
            Application::Layer(layer) => {
                let wanted = self.known(&layer.record)?;
                let known = numbers.iter().position(|number| *number == wanted);
                let place = known.unwrap_or_else(|| {
                    numbers.push(wanted);
                    numbers.len() - 1
                });
                // No more than 1,024.
                Ok(Step::Layer(place as u16))
            }
            Application::Diff { lower, upper, .. } => {
                let lower = self.steps(lower, numbers)?;
                Ok(Step::Difference { lower, upper: self.steps(upper, numbers)? })
            }
        };
        applications.iter().map(step).collect()
    }
}
