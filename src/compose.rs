//! Images made of images, in metadata: laid over each other, or what leads from one to another.
//!
//! ```text
//! images ─▶ cache records ─▶ merge, diff ─▶ what is applied ─┬─ an input, and nothing else ─▶ that image, by another name
//!                                                            ├─ layers alone ───────────────▶ an image of these layers, like any other
//!                                                            └─ differences, too ───────────▶ an image of their layers, and a composition
//! ```
//!
//! Rules
//! - No layer is fetched, copied or extracted: the new image has the layers of the others, each from where it came from.
//! - The difference of two trees that do not lie on each other is no layer, and none is made of it. Of such an image a composition is kept
//!   that says how its layers make the tree ([`crate::tree::compose`]): it can be mounted, but not pushed.
//! - The documents depend on the images alone: the same question has the same answer, by digest.
//! - The name comes last, when the tree is there.

mod documents;
mod parts;

use std::time::SystemTime;

use peelfs_registry::{Digest, ImageReference, Platform, Reference};

pub use self::documents::DocumentError;
use self::parts::{Input, Part, Parts};
use crate::cache::{BroughtImage, Cache, CacheError, ImmutableRef, Purpose, layer_names};
use crate::image::{Image, ImageError};
use crate::mount::pull::Pulled;
use crate::mount::{ImageMountError, give_name_on, layer_record, tree_key, tree_of};
use crate::store::{ImageOrigins, ImageRecord, Step, Store, StoreError};

/// What an image is made of.
#[derive(Clone, Copy)]
pub enum Operation<'a> {
    /// These, laid over each other, the lowest first. The last says what is run.
    Merge(&'a [Pulled]),
    /// What has to be done to one to get the other; an absent one is the empty tree.
    Diff {
        /// What is there before.
        lower: Option<&'a Pulled>,
        /// What is there after. If it is not absent, it says what is run.
        upper: Option<&'a Pulled>,
    },
}

/// What is to be made.
pub struct Request<'a> {
    /// The name of the new image, which has a tag.
    pub name: Reference,
    /// For which platform all of them are.
    pub platform: Platform,
    /// What it is made of.
    pub operation: Operation<'a>,
}

/// What was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Composed {
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// Digests of its layers, the lowest first; where there are differences, in the order in which they are first named.
    pub layers: Vec<Digest>,
    /// Differences that were calculated, those inside others not counted.
    pub differences: usize,
}

/// Why no image was made.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// The records of the layers.
    #[error("the records of the layers cannot be used")]
    Cache(#[from] CacheError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The new image's documents.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A document of one of the images.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The tree.
    #[error("its tree cannot be made")]
    Tree(#[from] Box<ImageMountError>),
    /// An image that was there a moment ago.
    #[error("{image} is no longer in the store; somebody removed it meanwhile")]
    Gone {
        /// The reference.
        image: String,
    },
}

/// Makes an image of others.
///
/// # Errors
/// [`ComposeError`]; what the name stood for before it stands for then.
pub fn compose(cache: &Cache, request: &Request<'_>) -> Result<Composed, ComposeError> {
    let store = cache.store().as_ref();
    let _lock = store.lock_for_bringing()?;
    let inputs: Vec<&Pulled> = match request.operation {
        Operation::Merge(images) => images.iter().collect(),
        Operation::Diff { lower, upper } => lower.into_iter().chain(upper).collect(),
    };
    let inputs = inputs.into_iter().map(|image| Input::read(store, image)).collect::<Result<Vec<_>, _>>()?;
    let mut parts = Parts::default();
    inputs.iter().try_for_each(|input| parts.learn(input))?;
    let made = made(cache, request.operation)?;
    let is_made = |input: &&Input<'_>| match (input.pulled.record(), &made) {
        (Some(record), Some(made)) => record.id() == made.id(),
        _ => false,
    };
    if let Some(input) = inputs.iter().find(is_made) {
        return name_input(store, request, input);
    }
    let applications = made.map_or(Ok(Vec::new()), |made| made.applications())?;
    let (parts, steps) = parts.arrange(&applications)?;
    // The image that says what is run.
    let settings = match request.operation {
        Operation::Diff { upper: None, .. } => inputs.first(),
        _ => inputs.last(),
    };
    let settings = settings.ok_or(CacheError::Nothing("merge"))?;
    let image = keep_documents(store, request, &inputs, settings, &parts, steps.clone())?;
    let contents = parts.iter().map(|part| part.content.clone()).collect();
    tree_of(store, &request.name.to_string(), &image, contents).map_err(Box::new)?;
    remember(cache, request, &image, &parts)?;
    let is_difference = |step: &&Step| matches!(step, Step::Difference { .. });
    Ok(Composed {
        manifest_digest: image.manifest_digest,
        layers: parts.iter().map(|part| part.layer.descriptor.digest.clone()).collect(),
        differences: steps.iter().flatten().filter(is_difference).count(),
    })
}

/// The record of what was asked for; nothing for an empty tree. An image without layers has no record, and is the empty tree as an absent
/// one is.
fn made(cache: &Cache, operation: Operation<'_>) -> Result<Option<ImmutableRef>, CacheError> {
    match operation {
        Operation::Merge(images) => {
            let records: Vec<ImmutableRef> = images.iter().filter_map(Pulled::record).cloned().collect();
            if records.is_empty() { Ok(None) } else { cache.merge(&records, Purpose::Use).map(Some) }
        }
        Operation::Diff { lower, upper } => {
            let (lower, upper) = (lower.and_then(Pulled::record), upper.and_then(Pulled::record));
            match (lower, upper) {
                (None, None) => Ok(None),
                _ => cache.diff(lower, upper, Purpose::Use).map(Some),
            }
        }
    }
}

fn name_input(store: &Store, request: &Request<'_>, input: &Input<'_>) -> Result<Composed, ComposeError> {
    let name = ImageReference::Registry(request.name.clone());
    let reference = input.pulled.reference();
    if give_name_on(store, reference, &request.platform, &name)? == 0 {
        return Err(ComposeError::Gone { image: reference.to_string() });
    }
    let image = input.pulled.image();
    let steps = input.origins.as_ref().and_then(|origins| origins.composition.as_deref());
    let is_difference = |step: &&Step| matches!(step, Step::Difference { .. });
    Ok(Composed {
        manifest_digest: image.manifest_digest.clone(),
        layers: image.layers.iter().map(|layer| layer.descriptor.digest.clone()).collect(),
        differences: steps.unwrap_or_default().iter().filter(is_difference).count(),
    })
}

fn keep_documents(
    store: &Store,
    request: &Request<'_>,
    inputs: &[Input<'_>],
    settings: &Input<'_>,
    parts: &[&Part],
    steps: Option<Vec<Step>>,
) -> Result<Image, ComposeError> {
    let references = |images: &[Input<'_>]| {
        images.iter().map(|input| input.pulled.reference().to_string()).collect::<Vec<_>>().join(" ")
    };
    let told = match request.operation {
        Operation::Merge(_) => format!("peel merge {}", references(inputs)),
        Operation::Diff { lower: None, .. } => format!("peel diff scratch {}", references(inputs)),
        Operation::Diff { upper: None, .. } => format!("peel diff {} scratch", references(inputs)),
        Operation::Diff { .. } => format!("peel diff {}", references(inputs)),
    };
    let config = documents::config(&settings.config, parts, &told)?;
    let config_digest = Digest::sha256_of(&config);
    let manifest = documents::manifest(&config_digest, config.len() as u64, parts, steps.as_deref())?;
    let manifest_digest = Digest::sha256_of(&manifest);
    // As whoever mounts it will read it.
    let image = Image::parse(&manifest_digest, &manifest, &config)?;
    store.content().put(config_digest.as_str(), &config)?;
    store.content().put(manifest_digest.as_str(), &manifest)?;
    let mut ancestors: Vec<String> = Vec::new();
    for ancestor in inputs.iter().flat_map(|input| input.lineage()) {
        if !ancestors.contains(&ancestor) {
            ancestors.push(ancestor);
        }
    }
    let origins = parts.iter().map(|part| (part.layer.descriptor.digest.to_string(), part.origin.clone()));
    let origins = ImageOrigins::new(ancestors, origins.collect()).composed(steps);
    store.origins().put(manifest_digest.as_str(), &origins)?;
    Ok(image)
}

/// Gives the image its name, and its layers their records.
fn remember(
    cache: &Cache,
    request: &Request<'_>,
    image: &Image,
    parts: &[&Part],
) -> Result<(), ComposeError> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |elapsed| elapsed.as_secs() as i64);
    let record = ImageRecord {
        reference: request.name.to_string(),
        platform: request.platform.to_string(),
        manifest_digest: image.manifest_digest.to_string(),
        index_digest: None,
        config_digest: image.config.digest.to_string(),
        resolved_at: now,
        last_used: now,
    };
    let layers: Vec<_> = parts.iter().map(|part| layer_record(&part.layer, &part.content)).collect();
    let store = cache.store();
    cache.record_brought(&BroughtImage {
        is_part: false,
        image,
        reference: &record.reference,
        layers: &layer_names(store, image)?,
        tree: &tree_key(store, image)?.unwrap_or_default(),
        named: Some((&record, &layers)),
        mount: None,
    })?;
    Ok(store.note_images()?)
}
