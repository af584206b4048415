//! Writing an image layout.
//!
//! A blob is written beside the others under a temporary name, synced, and renamed to its digest. `index.json` comes last, the
//! same way, so a reader never sees an image whose blobs are not all there. Two writers of one layout take turns at
//! `index.json` by a lock on `oci-layout`; entries that we do not know stay as they are.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use super::{Layout, REFERENCE_NAME, read_bounded};
use crate::digest::Digest;
use crate::error::{Context, Error, ErrorKind};
use crate::manifest::MAXIMUM_DOCUMENT_SIZE;
use crate::reference::Target;

/// The beginning of the names of files that are not finished.
const UNFINISHED: &str = ".peel-";

impl Layout {
    /// A file that will be a blob. Makes the layout if it is not there. Blocks.
    pub(crate) fn new_blob(&self) -> Result<NamedTempFile, Error> {
        let context = self.context("a new blob".to_owned()).written();
        self.create().and_then(|()| self.unfinished()).map_err(|error| local(&context, error))
    }

    /// Gives a finished blob its name. Blocks.
    pub(crate) fn keep_blob(&self, file: NamedTempFile, digest: &Digest) -> Result<(), Error> {
        let context = self.context(format!("blob {digest}")).written();
        let path = self.blob_path(digest);
        // Named by another algorithm than SHA-256, it may be the first of its kind.
        let directory = path.parent().map_or(Ok(()), fs::create_dir_all);
        directory.and_then(|()| self.persist(file, &path)).map_err(|error| local(&context, error))
    }

    /// Whether a blob of that length is there. Blocks.
    pub(crate) fn has_blob(&self, digest: &Digest, size: u64) -> bool {
        fs::metadata(self.blob_path(digest)).is_ok_and(|found| found.is_file() && found.len() == size)
    }

    /// Writes a manifest or index and, if it is a tag that names it, its entry in `index.json`. Blocks.
    pub(crate) fn put_document(
        &self,
        target: &Target,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, Error> {
        let context = self.context(format!("manifest {target}")).written();
        let digest = self.put_bytes(bytes).map_err(|error| local(&context, error))?;
        let name = match target {
            Target::Digest(_) => return Ok(digest),
            Target::Tag(name) => Some(name.as_str()),
            Target::OnlyImage => None,
        };
        let mut entry =
            json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len() as u64});
        if let Some(name) = name {
            entry["annotations"] = json!({REFERENCE_NAME: name});
        }
        let is_replaced = |other: &Value| {
            other["annotations"][REFERENCE_NAME].as_str() == name
                && (name.is_some() || other["artifactType"].is_null())
        };
        self.enter_in_index(entry, is_replaced, &context)?;
        Ok(digest)
    }

    /// Writes a manifest that has a subject, and an entry in `index.json` by which it is found. Blocks.
    pub(crate) fn put_referrer(&self, entry: Value, bytes: &[u8]) -> Result<Digest, Error> {
        let digest = Digest::sha256_of(bytes);
        let context = self.context(format!("manifest {digest}")).written();
        self.put_bytes(bytes).map_err(|error| local(&context, error))?;
        self.enter_in_index(entry, |other| other["digest"] == digest.as_str(), &context)?;
        Ok(digest)
    }

    fn put_bytes(&self, bytes: &[u8]) -> io::Result<Digest> {
        let digest = Digest::sha256_of(bytes);
        self.create()?;
        if !self.has_blob(&digest, bytes.len() as u64) {
            let mut file = self.unfinished()?;
            file.write_all(bytes)?;
            self.persist(file, &self.blob_path(&digest))?;
        }
        Ok(digest)
    }

    /// Puts an entry into `index.json`, in the place of those that it replaces.
    fn enter_in_index(
        &self,
        entry: Value,
        is_replaced: impl Fn(&Value) -> bool,
        context: &Context,
    ) -> Result<(), Error> {
        let marker = File::open(self.path.join("oci-layout")).map_err(|error| local(context, error))?;
        // Held until the file is closed.
        flock(&marker, FlockOperation::LockExclusive).map_err(|error| local(context, error.into()))?;
        // That it is an image index was checked, if it was there.
        let path = self.path.join("index.json");
        let mut index: Value = if path.exists() {
            self.index(context)?;
            let bytes = read_bounded(&path, MAXIMUM_DOCUMENT_SIZE, context)?;
            serde_json::from_slice(&bytes).map_err(|error| local(context, error.into()))?
        } else {
            json!({"schemaVersion": 2, "manifests": []})
        };
        if let Some(manifests) = index["manifests"].as_array_mut() {
            manifests.retain(|other| !is_replaced(other));
            manifests.push(entry);
        }
        let written = serde_json::to_vec(&index).map_err(io::Error::other).and_then(|bytes| {
            let mut file = self.unfinished()?;
            file.write_all(&bytes)?;
            self.persist(file, &path)
        });
        written.map_err(|error| local(context, error))
    }

    /// The directories and `oci-layout`; what is there stays.
    fn create(&self) -> io::Result<()> {
        fs::create_dir_all(self.path.join("blobs/sha256"))?;
        let marker = self.path.join("oci-layout");
        if marker.exists() {
            return Ok(());
        }
        let mut file = self.unfinished()?;
        file.write_all(b"{\"imageLayoutVersion\":\"1.0.0\"}")?;
        self.persist(file, &marker)
    }

    fn unfinished(&self) -> io::Result<NamedTempFile> {
        use std::os::unix::fs::PermissionsExt as _;
        // As any other file of the user's; his umask applies.
        let readable = fs::Permissions::from_mode(0o666);
        tempfile::Builder::new().prefix(UNFINISHED).permissions(readable).tempfile_in(&self.path)
    }

    fn persist(&self, file: NamedTempFile, path: &Path) -> io::Result<()> {
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(path.parent().unwrap_or(&self.path))?.sync_all()
    }
}

fn local(context: &Context, error: io::Error) -> Error {
    Error::new(ErrorKind::Local, context, error.to_string()).with_cause(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(layout: &Layout) -> Vec<String> {
        let index: Value =
            serde_json::from_slice(&fs::read(layout.path.join("index.json")).unwrap()).unwrap();
        let name = |entry: &Value| entry["annotations"][REFERENCE_NAME].as_str().unwrap_or("-").to_owned();
        index["manifests"].as_array().unwrap().iter().map(name).collect()
    }

    #[test]
    fn what_is_written_is_read_and_other_images_stay() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().join("new/layout"));
        let media_type = "application/vnd.oci.image.index.v1+json";
        let one = format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[]}}"#);
        let two = format!("{one} ");
        let tag = |name: &str| Target::Tag(name.to_owned());
        layout.put_document(&tag("one"), media_type, one.as_bytes()).unwrap();
        layout.put_document(&tag("two"), media_type, one.as_bytes()).unwrap();
        layout.put_document(&Target::OnlyImage, media_type, one.as_bytes()).unwrap();
        let digest = layout.put_document(&tag("one"), media_type, two.as_bytes()).unwrap();
        layout.put_document(&Target::Digest(digest.clone()), media_type, two.as_bytes()).unwrap();
        assert_eq!(names(&layout), ["two", "-", "one"]);
        let stored = layout.document(&tag("one")).unwrap();
        assert_eq!((stored.bytes.as_ref(), &stored.digest), (two.as_bytes(), &digest));

        let mut blob = layout.new_blob().unwrap();
        blob.write_all(b"content").unwrap();
        let digest = Digest::sha256_of(b"content");
        assert!(!layout.has_blob(&digest, 7));
        layout.keep_blob(blob, &digest).unwrap();
        assert!(layout.has_blob(&digest, 7) && !layout.has_blob(&digest, 8));
        drop(layout.new_blob().unwrap());
        let files = fs::read_dir(&layout.path).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(files.into_iter().all(|name| !name.to_string_lossy().starts_with(UNFINISHED)));
    }

    #[test]
    fn an_index_that_is_none_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path().to_owned());
        layout.new_blob().unwrap();
        fs::write(directory.path().join("index.json"), b"{}").unwrap();
        let refused =
            layout.put_document(&Target::OnlyImage, "application/vnd.oci.image.index.v1+json", b"{}");
        assert!(refused.is_err());
        assert_eq!(fs::read(directory.path().join("index.json")).unwrap(), b"{}");
    }
}
