//! A blob copied from one place to another: its original bytes, in the cheapest way that there is.
//!
//! ```text
//! there already ─▶ nothing is done
//! another repository of the same registry has it ─▶ it is mounted from there, and no byte moves
//! else ─▶ it is streamed through this machine, held against its digest, and never wholly in memory
//! ```

use std::io::Write as _;
use std::path::Path;

use futures_util::StreamExt as _;

use crate::client::{Blob, Place, Repository};
use crate::draft::blocking;
use crate::error::{Error, ErrorKind};
use crate::upload::{Mounting, Upload};

/// How a blob came to be where it was to be copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copied {
    /// It was there.
    Present,
    /// The registry had it in another repository.
    Mounted,
    /// All of it was sent.
    Sent,
}

impl Repository {
    /// Puts a copy of a blob here, unless it is here. If `lender` is another repository of the same registry it is asked for the
    /// blob first. `told` is told how many bytes have arrived.
    ///
    /// Bytes that are not those of the blob's digest are never kept. Fails with [`ErrorKind::DigestMismatch`] then, with what a
    /// network can do on either side ([`Error::is_of_writing`] tells which), and with [`ErrorKind::Local`] if a layout cannot be written.
    pub async fn copy_blob(
        &self,
        blob: &Blob,
        lender: Option<&Repository>,
        told: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Copied, Error> {
        if self.has_blob(blob.digest(), blob.size()).await? {
            return Ok(Copied::Present);
        }
        match &self.place {
            Place::Layout(_) => self.write_copy(blob, told).await?,
            Place::Registry { endpoint, client, .. } => {
                let endpoint = endpoint.written();
                let context = endpoint.context(format!("blob {}", blob.digest()));
                let upload = Upload {
                    transport: &client.transport,
                    endpoint: &endpoint,
                    context: &context,
                    digest: blob.digest(),
                    size: blob.size(),
                };
                let mut session = None;
                if let Some(from) = lender.and_then(|lender| self.neighbour(lender)) {
                    match upload.mount(from).await? {
                        Mounting::Mounted => return Ok(Copied::Mounted),
                        Mounting::Upload(begun) => session = Some(begun),
                    }
                }
                upload.send(session, || blob.stream(0), told).await?;
            }
        }
        Ok(Copied::Sent)
    }

    /// The name of a repository that is another one of the same registry.
    fn neighbour<'a>(&self, other: &'a Repository) -> Option<&'a str> {
        match (&self.place, &other.place) {
            (Place::Registry { endpoint, .. }, Place::Registry { endpoint: other, .. }) => {
                let is_neighbour = endpoint.origin == other.origin && endpoint.repository != other.repository;
                is_neighbour.then_some(other.repository.as_str())
            }
            _ => None,
        }
    }

    async fn write_copy(&self, blob: &Blob, told: &(dyn Fn(u64) + Send + Sync)) -> Result<(), Error> {
        let (place, digest) = (self.clone(), blob.digest().clone());
        // A layout's draft lies in the layout, so it needs no scratch.
        let mut draft = blocking(self, move || place.new_copy(&digest, Path::new("."))).await?;
        let mut pieces = std::pin::pin!(blob.stream(0));
        let mut written = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece?;
            written += piece.len() as u64;
            let (context, digest) = (self.context_of_blob(blob.digest()).written(), blob.digest().clone());
            draft = blocking(self, move || {
                draft.write_all(&piece).map_err(|error| {
                    let message = format!("{digest} cannot be written: {error}");
                    Error::new(ErrorKind::Local, &context, message).with_cause(error)
                })?;
                Ok(draft)
            })
            .await?;
            told(written);
        }
        draft.keep().await.map(drop)
    }
}
