//! OCI image layouts on disk (OCI image specification, "Image Layout").
//!
//! ```text
//! oci-layout             {"imageLayoutVersion": "1.0.0"}
//! index.json             an image index; entries are told apart by org.opencontainers.image.ref.name
//! blobs/sha256/<hex>     content, named by digest
//! ```
//!
//! The directory is the user's own word, so links in it are followed as other tools do; but only regular files are opened,
//! a blob's path is always made of its validated digest, and its size must be the descriptor's.

mod write;

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use oci_spec::image::{Descriptor, ImageIndex};

use crate::digest::Digest;
use crate::error::{Context, Error, ErrorKind};
use crate::local_file;
use crate::manifest::{Document, DocumentError, MAXIMUM_DESCRIPTORS, MAXIMUM_DOCUMENT_SIZE};
use crate::platform::is_image;
use crate::reference::Target;
use crate::resolve::MAXIMUM_INDEX_DEPTH;

const REFERENCE_NAME: &str = "org.opencontainers.image.ref.name";

/// A layout, by its directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    path: PathBuf,
}

/// A manifest or index as it lies in the layout.
pub(crate) struct Stored {
    pub(crate) bytes: Bytes,
    pub(crate) media_type: Option<String>,
    pub(crate) digest: Digest,
}

impl Layout {
    pub(crate) fn new(path: PathBuf) -> Layout {
        Layout { path }
    }

    /// Whether both are one directory, as far as their names tell.
    pub(crate) fn is_same_as(&self, other: &Layout) -> bool {
        self.path == other.path
    }

    pub(crate) fn context(&self, subject: String) -> Context {
        Context {
            host: self.path.display().to_string(),
            repository: String::new(),
            subject,
            is_written: false,
        }
    }

    /// Reads the document that `target` names. Blocks.
    pub(crate) fn document(&self, target: &Target) -> Result<Stored, Error> {
        let context = self.context(format!("manifest {target}"));
        let (digest, media_type, size) = match target {
            Target::Digest(digest) => (digest.clone(), None, None),
            Target::Tag(_) | Target::OnlyImage => {
                let index = self.index(&context)?;
                let entry = chosen(&index, target, &context)?;
                let digest =
                    entry.digest().try_into().map_err(|error| bad(&context, DocumentError::Digest(error)))?;
                (digest, Some(entry.media_type().to_string()), Some(entry.size()))
            }
        };
        let bytes = read_bounded(&self.blob_path(&digest), MAXIMUM_DOCUMENT_SIZE, &context)?;
        if size.is_some_and(|size| size != bytes.len() as u64) || !digest.matches(&bytes) {
            let message = format!("the file for {digest} has other content");
            return Err(Error::new(ErrorKind::DigestMismatch, &context, message));
        }
        Ok(Stored { bytes, media_type, digest })
    }

    /// The entry of each manifest whose subject is that one, as far as `index.json` and the indexes in it name them. Those that
    /// cannot be read are passed over. Blocks.
    pub(crate) fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, Error> {
        let context = self.context(format!("referrers of {subject}"));
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut left = vec![(self.index(&context)?, 0)];
        while let Some((index, depth)) = left.pop() {
            for entry in index.manifests() {
                if seen.len() == MAXIMUM_DESCRIPTORS {
                    return Ok(found);
                }
                if !seen.insert(entry.digest().to_string()) {
                    continue;
                }
                let Ok(digest) = Digest::try_from(entry.digest()) else { continue };
                let Ok(stored) = self.document(&Target::Digest(digest)) else { continue };
                match Document::parse(&stored.bytes, None) {
                    Ok((Document::Manifest(manifest), _)) => {
                        let named = manifest.subject().as_ref().map(|named| named.digest().to_string());
                        if named.as_deref() == Some(subject.as_str()) {
                            let mut entry = entry.clone();
                            let artifact_type = manifest.artifact_type().as_ref();
                            entry.set_artifact_type(Some(
                                artifact_type.unwrap_or(manifest.config().media_type()).clone(),
                            ));
                            found.push(entry);
                        }
                    }
                    Ok((Document::Index(inner), _)) if depth < MAXIMUM_INDEX_DEPTH => {
                        left.push((*inner, depth + 1));
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    fn index(&self, context: &Context) -> Result<ImageIndex, Error> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            image_layout_version: String,
        }
        let version = read_bounded(&self.path.join("oci-layout"), MAXIMUM_DOCUMENT_SIZE, context)?;
        let version: Version =
            serde_json::from_slice(&version).map_err(|error| bad(context, DocumentError::NotJson(error)))?;
        if !version.image_layout_version.starts_with("1.") {
            let message = format!(
                "the layout has version {:?}, which is not supported",
                crate::error::printable(&version.image_layout_version)
            );
            return Err(Error::new(ErrorKind::BadDocument, context, message));
        }
        let bytes = read_bounded(&self.path.join("index.json"), MAXIMUM_DOCUMENT_SIZE, context)?;
        match Document::parse(&bytes, None).map_err(|error| bad(context, error))? {
            (Document::Index(index), _) => Ok(*index),
            (Document::Manifest(_), _) => {
                Err(Error::new(ErrorKind::BadDocument, context, "index.json is not an image index"))
            }
        }
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.path.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }
}

/// The entry of a layout's index that is asked for.
fn chosen<'a>(index: &'a ImageIndex, target: &Target, context: &Context) -> Result<&'a Descriptor, Error> {
    let name = |entry: &'a Descriptor| entry.annotations().as_ref()?.get(REFERENCE_NAME).map(String::as_str);
    let names = || {
        let mut names: Vec<&str> = index.manifests().iter().filter_map(name).take(20).collect();
        names.sort_unstable();
        match names.is_empty() {
            true => "its images have no names; use oci:PATH@sha256:…".to_owned(),
            false => format!("it holds {}", names.join(", ")),
        }
    };
    let entries: Vec<&Descriptor> = match target {
        Target::Tag(wanted) => index.manifests().iter().filter(|entry| name(entry) == Some(wanted)).collect(),
        _ => {
            // What refers to an image does not make it two.
            let images: Vec<&Descriptor> = index.manifests().iter().filter(|entry| is_image(entry)).collect();
            if images.is_empty() { index.manifests().iter().collect() } else { images }
        }
    };
    let first = entries.first().copied();
    match (first, target) {
        (Some(first), _) if entries.iter().all(|entry| entry.digest() == first.digest()) => Ok(first),
        (None, Target::Tag(wanted)) => {
            let message = format!("the layout holds no image named {wanted}; {}", names());
            Err(Error::new(ErrorKind::NotFound, context, message))
        }
        (None, _) => Err(Error::new(ErrorKind::NotFound, context, "the layout is empty")),
        (Some(_), Target::Tag(wanted)) => {
            let message = format!("the layout holds several images named {wanted}; use oci:PATH@sha256:…");
            Err(Error::new(ErrorKind::BadDocument, context, message))
        }
        (Some(_), _) => {
            let message = format!("the layout holds several images, so one must be named; {}", names());
            Err(Error::new(ErrorKind::NotFound, context, message))
        }
    }
}

fn bad(context: &Context, error: DocumentError) -> Error {
    Error::new(ErrorKind::BadDocument, context, error.to_string()).with_cause(error)
}

fn read_bounded(path: &Path, limit: u64, context: &Context) -> Result<Bytes, Error> {
    local_file::read_bounded(path, limit).map(Bytes::from).map_err(|error| unreadable(path, error, context))
}

fn unreadable(path: &Path, error: std::io::Error, context: &Context) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::NotFound => ErrorKind::NotFound,
        std::io::ErrorKind::FileTooLarge => ErrorKind::TooLarge,
        _ => ErrorKind::Local,
    };
    Error::new(kind, context, format!("cannot read {}: {error}", path.display())).with_cause(error)
}

/// One blob of a layout. Clones share the open file.
#[derive(Clone, Debug)]
pub(crate) struct LayoutBlob {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    context: Context,
    digest: Digest,
    size: u64,
    file: OnceLock<File>,
}

impl LayoutBlob {
    pub(crate) fn new(layout: &Layout, digest: Digest, size: u64) -> LayoutBlob {
        let path = layout.blob_path(&digest);
        let context = layout.context(format!("blob {digest}"));
        LayoutBlob { shared: Arc::new(Shared { path, context, digest, size, file: OnceLock::new() }) }
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.shared.digest
    }

    pub(crate) fn size(&self) -> u64 {
        self.shared.size
    }

    pub(crate) fn context(&self) -> &Context {
        &self.shared.context
    }

    /// Reads exactly `range`, which lies within the blob, on a thread that may block.
    pub(crate) async fn read(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let blob = self.clone();
        tokio::task::spawn_blocking(move || blob.read_blocking(range)).await.map_err(|error| {
            Error::new(ErrorKind::Local, &self.shared.context, "the reading thread failed").with_cause(error)
        })?
    }

    fn read_blocking(&self, range: Range<u64>) -> Result<Bytes, Error> {
        let Shared { path, context, size, file, .. } = &*self.shared;
        let file = match file.get() {
            Some(file) => file,
            None => {
                let opened = local_file::open_regular(path);
                let (opened, found) = opened.map_err(|error| unreadable(path, error, context))?;
                if found != *size {
                    let message =
                        format!("{} has {found} bytes where there should be {size}", path.display());
                    return Err(Error::new(ErrorKind::DigestMismatch, context, message));
                }
                file.get_or_init(|| opened)
            }
        };
        let length = usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| {
            Error::new(ErrorKind::InvalidRange, context, "the range is larger than this machine's memory")
        })?;
        let mut content = BytesMut::zeroed(length);
        file.read_exact_at(&mut content, range.start).map_err(|error| {
            Error::new(ErrorKind::Local, context, format!("cannot read {}: {error}", path.display()))
                .with_cause(error)
        })?;
        Ok(content.freeze())
    }
}
