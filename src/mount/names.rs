//! Names of images in the store: another name for one that is there, and where the bytes of an image come from whose name does not say.
//!
//! A name is a row of the database, and says by itself where the blobs are: in the repository that it names. One that was given here
//! may name a repository that has none of them, or that does not exist; so it is noted, for that name and that manifest, where they are.
//! A name that is resolved anew has another manifest, or the repository has its blobs: then the note says nothing wrong.

use peelfs_registry::{ImageReference, LayoutReference, Platform};

use crate::error::chain;
use crate::store::{ImageRecord, NoteKind, Store, StoreError};

/// What the note is kept by that says where the blobs of an image come from.
pub fn origin_note(reference: &str, manifest: &str) -> String {
    format!("{reference} {manifest}")
}

/// Where the blobs of the image with that manifest come from, if it goes by that name.
///
/// # Errors
/// If the store cannot be read.
pub fn origin_of_manifest(
    store: &Store,
    reference: &ImageReference,
    manifest: &str,
) -> Result<ImageReference, StoreError> {
    let noted =
        store.notes().get::<String>(NoteKind::Origin, &origin_note(&reference.to_string(), manifest))?;
    Ok(noted.and_then(|noted| parsed(&noted)).unwrap_or_else(|| reference.clone()))
}

/// The same for all images that go by that name: they come from one place, as one command named them.
///
/// # Errors
/// If the store cannot be read.
pub fn origin_of(store: &Store, reference: &ImageReference) -> Result<ImageReference, StoreError> {
    match named(store, reference)?.first() {
        Some(image) => origin_of_manifest(store, reference, &image.manifest_digest),
        None => Ok(reference.clone()),
    }
}

/// Gives the images that go by one name another one too, whatever that meant before. Gives their number.
///
/// # Errors
/// If the store cannot be read or written.
pub fn give_name(
    store: &Store,
    reference: &ImageReference,
    name: &ImageReference,
) -> Result<usize, StoreError> {
    give_name_to(store, &named(store, reference)?, reference, name)
}

/// The same for one platform alone.
///
/// # Errors
/// If the store cannot be read or written.
pub fn give_name_on(
    store: &Store,
    reference: &ImageReference,
    platform: &Platform,
    name: &ImageReference,
) -> Result<usize, StoreError> {
    let image = store.database().find_image(&reference.to_string(), &platform.to_string())?;
    give_name_to(store, image.as_slice(), reference, name)
}

fn give_name_to(
    store: &Store,
    images: &[ImageRecord],
    reference: &ImageReference,
    name: &ImageReference,
) -> Result<usize, StoreError> {
    let _lock = store.lock_for_bringing()?;
    for image in images {
        let origin = origin_of_manifest(store, reference, &image.manifest_digest)?;
        let about = origin_note(&name.to_string(), &image.manifest_digest);
        // Before the name, which is of no use without it.
        store.notes().put(NoteKind::Origin, &about, &origin.to_string())?;
        let layers = store.database().layers_of(&image.manifest_digest)?;
        let image = ImageRecord { reference: name.to_string(), ..image.clone() };
        store.database().remember_image(&image, &layers)?;
    }
    note(store, images);
    Ok(images.len())
}

/// Takes a name away, on all platforms. What it named stays until garbage is collected. Gives the number of images that had it.
///
/// # Errors
/// If the store cannot be written.
pub fn take_name(store: &Store, reference: &ImageReference) -> Result<usize, StoreError> {
    let images = named(store, reference)?;
    for image in &images {
        store.database().forget_image(&image.reference, &image.platform)?;
    }
    note(store, &images);
    Ok(images.len())
}

/// Notes what names stand for. What cannot be noted, as on a full disk, is noted when garbage is next collected.
fn note(store: &Store, changed: &[ImageRecord]) {
    if !changed.is_empty()
        && let Err(error) = store.note_images()
    {
        tracing::warn!(error = %chain(&error), "if the records are lost, so is what names of images mean");
    }
}

fn named(store: &Store, reference: &ImageReference) -> Result<Vec<ImageRecord>, StoreError> {
    let reference = reference.to_string();
    let images = store.database().images()?;
    Ok(images.into_iter().filter(|image| image.reference == reference).collect())
}

/// A reference as it was noted: with all its defaults, and the path of a layout absolute.
fn parsed(text: &str) -> Option<ImageReference> {
    match text.parse().ok()? {
        ImageReference::Layout(LayoutReference { path, .. }) if path.is_relative() => None,
        reference => Some(reference),
    }
}
