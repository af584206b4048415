//! Access profiles beside images, in their registries: a manifest that has the image as its subject, and the profile as its one blob.
//!
//! ```text
//! {"artifactType": ARTIFACT_TYPE, "config": {}, "layers": [the text of a profile], "subject": the image's manifest}
//! ```
//!
//! Nobody vouches for a profile: whoever may push to the repository may put one there. All that it can do is to say what is fetched first, of
//! this image and within the bounds of every prefetch; so it is used only where the user asks for it, and its text is parsed as any other. What
//! several of them say is merged by the rules for runs. None that can be used is none.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use peelfs_registry::{BlobDescriptor, Digest, Document, Error, NewReferrer, Repository, Target};
use serde_json::json;

use super::format::{self, ProfileError};
use super::{EARLIER, Profile, record};
use crate::error::chain;
use crate::fetch::index::blocking;
use crate::image::origin::Origin;

/// What kind of thing a profile is.
pub const ARTIFACT_TYPE: &str = "application/vnd.peelfs.access-profile.v1";
/// Media type of its text.
const TEXT: &str = "application/vnd.peelfs.access-profile.v1+jsonl";
/// A config that says nothing (OCI image specification 1.1, "Guidance for an Empty Descriptor").
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY: &[u8] = b"{}";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// Longest text that is pushed or got, in bytes: one of our own with all its bounds has as many, but others wait for this one.
pub const MAXIMUM_TEXT: u64 = 4 << 20;
/// Most referrers that are looked at.
const MOST_LOOKED_AT: usize = 8;

/// Why a profile is not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushProfileError {
    /// The registry or layout.
    #[error(transparent)]
    Registry(#[from] Error),
    /// It is longer than anybody would get.
    #[error(
        "the access profile has {bytes} bytes, more than the {MAXIMUM_TEXT} that are got; `peel profile rm` begins it anew"
    )]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// A temporary file.
    #[error("cannot write to {scratch}")]
    Scratch {
        /// The directory.
        scratch: String,
        /// Why not.
        #[source]
        cause: std::io::Error,
    },
}

/// Why one referrer is passed over.
#[derive(Debug, thiserror::Error)]
enum PassedOver {
    #[error(transparent)]
    Registry(#[from] Error),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error("it is not the manifest of an access profile: {0}")]
    Malformed(String),
    #[error("it refers to another manifest, {0}")]
    OtherSubject(String),
}

/// Puts a profile beside the image that it is of, which must be in that repository. Gives the digest of its manifest: the same for the same
/// profile.
///
/// # Errors
/// [`PushProfileError`].
pub async fn push(
    repository: &Repository,
    image: &Digest,
    profile: &Profile,
    scratch: &Path,
) -> Result<Digest, PushProfileError> {
    let text = format::write(profile);
    if text.len() as u64 > MAXIMUM_TEXT {
        return Err(PushProfileError::TooLong { bytes: text.len() });
    }
    let subject = repository.manifest(&Target::Digest(image.clone())).await?;
    let digest = Digest::sha256_of(&text);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ARTIFACT_TYPE,
        "config": {"mediaType": EMPTY_TYPE, "digest": Digest::sha256_of(EMPTY).as_str(), "size": EMPTY.len()},
        "layers": [{"mediaType": TEXT, "digest": digest.as_str(), "size": text.len()}],
        "subject": {"mediaType": subject.media_type, "digest": image.as_str(), "size": subject.bytes.len()},
    });
    put_blob(repository, EMPTY.to_vec(), scratch).await?;
    put_blob(repository, text, scratch).await?;
    let referrer = NewReferrer {
        media_type: MANIFEST,
        bytes: manifest.to_string().into(),
        subject: image,
        artifact_type: ARTIFACT_TYPE,
        annotations: BTreeMap::new(),
    };
    Ok(repository.put_referrer(&referrer).await?)
}

async fn put_blob(repository: &Repository, bytes: Vec<u8>, scratch: &Path) -> Result<(), PushProfileError> {
    let digest = Digest::sha256_of(&bytes);
    if repository.has_blob(&digest, bytes.len() as u64).await? {
        return Ok(());
    }
    let (destination, directory) = (repository.clone(), scratch.to_owned());
    let draft = blocking(move || {
        let mut draft = destination.new_copy(&digest, &directory)?;
        let written = draft.write_all(&bytes);
        written
            .map_err(|cause| PushProfileError::Scratch { scratch: directory.display().to_string(), cause })?;
        Ok::<_, PushProfileError>(draft)
    });
    draft.await?.keep().await?;
    Ok(())
}

/// What the profiles beside an image come to, known as that image's under `name`; nothing if there is none that can be used.
pub async fn find(origin: &Origin, image: &Digest, name: &str) -> Option<Profile> {
    let listed = async {
        let repository = origin.repository().await?;
        Ok::<_, Error>((repository, repository.referrers(image, ARTIFACT_TYPE).await?))
    };
    let (repository, found) = match listed.await {
        Ok(listed) => listed,
        Err(error) => {
            tracing::warn!(image = name, error = %chain(&error), "what refers to the image cannot be listed; its access profile is not used");
            return None;
        }
    };
    let mut text = None;
    for referrer in found.iter().take(MOST_LOOKED_AT) {
        match profile_in(repository, &referrer.digest, image).await {
            Ok(profile) => {
                tracing::info!(image = name, profile = %referrer.digest, "an access profile that refers to the image is used");
                text = merged(text, profile, image, name);
            }
            Err(error) => {
                tracing::warn!(image = name, profile = %referrer.digest, error = %chain(&error), "an access profile is passed over");
            }
        }
    }
    format::read(&text?).ok().filter(|profile| !profile.runs.is_empty())
}

/// The text of a profile with the runs of another one.
fn merged(text: Option<Vec<u8>>, profile: Profile, image: &Digest, name: &str) -> Option<Vec<u8>> {
    let is_first = text.is_none();
    // What earlier runs came to can only be the first of all.
    let runs = profile.runs.into_iter().filter(|run| is_first || run.name != EARLIER);
    runs.fold(text, |text, run| record(text.as_deref(), name, image.as_str(), &run).ok().or(text))
}

async fn profile_in(repository: &Repository, digest: &Digest, image: &Digest) -> Result<Profile, PassedOver> {
    let document = repository.manifest(&Target::Digest(digest.clone())).await?;
    let text = repository.small_blob(&text_of(&document.document, image)?, MAXIMUM_TEXT).await?;
    Ok(format::read(&text)?)
}

/// The blob that a manifest has, if it is that of a profile of this image.
fn text_of(document: &Document, image: &Digest) -> Result<BlobDescriptor, PassedOver> {
    let malformed = |reason: &str| PassedOver::Malformed(reason.to_owned());
    let Document::Manifest(manifest) = document else { return Err(malformed("it is an image index")) };
    let subject = manifest.subject().as_ref().map(|subject| subject.digest().to_string());
    if subject.as_deref() != Some(image.as_str()) {
        return Err(PassedOver::OtherSubject(subject.unwrap_or_else(|| "none".to_owned())));
    }
    if manifest.artifact_type().as_ref().is_none_or(|found| found.as_ref() != ARTIFACT_TYPE) {
        return Err(malformed("it is of another type"));
    }
    let [blob] = manifest.layers().as_slice() else { return Err(malformed("it has not one blob")) };
    if blob.media_type().as_ref() != TEXT {
        return Err(malformed("its blob is of another type"));
    }
    BlobDescriptor::try_from(blob).map_err(|error| PassedOver::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::super::{Run, TouchedFile};
    use super::*;

    fn profile(runs: &[(&str, &str)]) -> Profile {
        let file =
            |letter: char| TouchedFile { path: letter.to_string().into_bytes(), ..TouchedFile::default() };
        let run = |(name, files): &(&str, &str)| Run {
            name: (*name).to_owned(),
            files: files.chars().map(file).collect(),
        };
        Profile { runs: runs.iter().map(run).collect(), ..Profile::default() }
    }

    #[test]
    fn several_profiles_of_an_image_are_one_with_all_their_runs() {
        let image = Digest::sha256_of(b"image");
        let one = profile(&[("earlier", "ab"), ("1", "c")]);
        let other = profile(&[("earlier", "x"), ("1", "cd"), ("2", "e")]);
        let text = merged(merged(None, one, &image, "name"), other, &image, "name").unwrap();
        let found = format::read(&text).unwrap();
        assert_eq!((found.image.as_str(), found.manifest.as_str()), ("name", image.as_str()));
        assert_eq!(found.runs, profile(&[("earlier", "ab"), ("1", "cd"), ("2", "e")]).runs);
    }

    #[test]
    fn only_the_manifest_of_a_profile_of_this_very_image_is_taken() {
        let image = Digest::sha256_of(b"image");
        let descriptor =
            |media_type: &str| json!({"mediaType": media_type, "digest": image.as_str(), "size": 2});
        let good = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": ARTIFACT_TYPE, "config": descriptor(EMPTY_TYPE),
            "layers": [descriptor(TEXT)], "subject": descriptor(MANIFEST),
        });
        let is_taken = |manifest: &serde_json::Value| {
            let (document, _) = Document::parse(manifest.to_string().as_bytes(), None).unwrap();
            text_of(&document, &image).is_ok()
        };
        assert!(is_taken(&good));
        for (key, bad) in [
            ("artifactType", json!("application/vnd.amazon.soci.index.v1+json")),
            ("layers", json!([])),
            ("layers", json!([descriptor(TEXT), descriptor(TEXT)])),
            ("layers", json!([descriptor("text/plain")])),
            ("subject", json!(null)),
            (
                "subject",
                json!({"mediaType": MANIFEST, "digest": Digest::sha256_of(b"other").as_str(), "size": 2}),
            ),
        ] {
            let mut manifest = good.clone();
            manifest[key] = bad;
            assert!(!is_taken(&manifest), "{manifest}");
        }
    }
}
