//! A blob that is being written, to a registry or to a layout: nobody knows its digest before its end.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::NamedTempFile;

use crate::client::{Place, Repository};
use crate::digest::{Algorithm, Digest, Digester};
use crate::error::{Error, ErrorKind};
use crate::push;
use crate::reference::Target;

/// Takes the bytes of a blob; [`keep`](Self::keep) gives it its name. One that is dropped leaves nothing behind.
#[derive(Debug)]
pub struct BlobDraft {
    repository: Repository,
    file: DraftFile,
    digester: Digester,
    size: u64,
    /// What it is a copy of.
    original: Option<Digest>,
}

#[derive(Debug)]
enum DraftFile {
    /// In the layout itself.
    Layout(NamedTempFile),
    /// Without a name; it is sent when it is whole.
    Registry(File),
}

impl Write for BlobDraft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match &mut self.file {
            DraftFile::Layout(file) => file.write(bytes)?,
            DraftFile::Registry(file) => file.write(bytes)?,
        };
        self.digester.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobDraft {
    /// Puts the blob where it belongs, unless one with its digest is there. Returns digest and size.
    ///
    /// Fails with what a network can do, with [`ErrorKind::Local`] if a layout cannot be written, and with
    /// [`ErrorKind::DigestMismatch`] if it should be a copy and is none.
    pub async fn keep(self) -> Result<(Digest, u64), Error> {
        let BlobDraft { repository, file, digester, size, original } = self;
        let digest = digester.finish();
        if let Some(original) = original
            && original != digest
        {
            let context = repository.context_of_blob(&original).written();
            let message = format!("what came to be copied is {digest}");
            return Err(Error::new(ErrorKind::DigestMismatch, &context, message));
        }
        match (&repository.place, file) {
            (Place::Layout(layout), DraftFile::Layout(file)) => {
                let (layout, name) = (layout.clone(), digest.clone());
                blocking(&repository, move || match layout.has_blob(&name, size) {
                    true => Ok(()),
                    false => layout.keep_blob(file, &name),
                })
                .await?;
            }
            (Place::Registry { endpoint, client, .. }, DraftFile::Registry(file)) => {
                push::put_blob(&client.transport, endpoint, &digest, Arc::new(file), size).await?;
            }
            // `new_blob` makes the file that goes with the place.
            (place, _) => unreachable!("a draft of another place than {place:?}"),
        }
        Ok((digest, size))
    }
}

impl Repository {
    /// Begins a blob. What goes to a registry waits in a nameless file in `scratch` until it is whole. Blocks.
    ///
    /// Fails with [`ErrorKind::Local`] if no file can be made.
    pub fn new_blob(&self, scratch: &Path) -> Result<BlobDraft, Error> {
        self.draft(scratch, Digester::new(Algorithm::Sha256), None)
    }

    /// Begins a copy of the blob of that digest: only that can be kept. Otherwise as [`new_blob`](Self::new_blob).
    pub fn new_copy(&self, digest: &Digest, scratch: &Path) -> Result<BlobDraft, Error> {
        self.draft(scratch, digest.digester(), Some(digest.clone()))
    }

    fn draft(
        &self,
        scratch: &Path,
        digester: Digester,
        original: Option<Digest>,
    ) -> Result<BlobDraft, Error> {
        let file = match &self.place {
            Place::Layout(layout) => DraftFile::Layout(layout.new_blob()?),
            Place::Registry { endpoint, .. } => {
                let file = tempfile::tempfile_in(scratch).map_err(|error| {
                    let context = endpoint.written().context("a new blob".to_owned());
                    let message = format!("cannot make a file in {}: {error}", scratch.display());
                    Error::new(ErrorKind::Local, &context, message).with_cause(error)
                })?;
                DraftFile::Registry(file)
            }
        };
        Ok(BlobDraft { repository: self.clone(), file, digester, size: 0, original })
    }

    /// Whether a blob is there that need not be put any more.
    ///
    /// Fails with what a network can do.
    pub async fn has_blob(&self, digest: &Digest, size: u64) -> Result<bool, Error> {
        match &self.place {
            Place::Registry { endpoint, client, .. } => {
                push::has_blob(&client.transport, endpoint, digest, size).await
            }
            Place::Layout(layout) => {
                let (layout, digest) = (layout.clone(), digest.clone());
                blocking(self, move || Ok(layout.has_blob(&digest, size))).await
            }
        }
    }

    /// Puts a manifest or index, and returns its digest. The blobs and documents that it names must be there.
    ///
    /// A tag points to it afterwards; [`Target::Digest`] gives it no name besides its own; [`Target::OnlyImage`] is the unnamed image
    /// of a layout.
    pub async fn put_document(
        &self,
        target: &Target,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<Digest, Error> {
        match &self.place {
            Place::Registry { endpoint, client, .. } => {
                let stored =
                    push::put_document(&client.transport, endpoint, target, media_type, bytes).await?;
                Ok(stored.digest)
            }
            Place::Layout(layout) => {
                let (layout, target, media_type) = (layout.clone(), target.clone(), media_type.to_owned());
                blocking(self, move || layout.put_document(&target, &media_type, &bytes)).await
            }
        }
    }
}

/// Runs what blocks beside the runtime's own threads.
pub(crate) async fn blocking<T: Send + 'static>(
    repository: &Repository,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        let context = repository.context(&Target::OnlyImage).written();
        Error::new(ErrorKind::Local, &context, "the writing thread failed").with_cause(error)
    })?
}
