//! A blob that is written before anybody knows its digest.

use std::fs::File;
use std::io::{self, Write};

use peelfs_registry::digest::Algorithm;
use peelfs_registry::{Digest, Digester};

use super::content::{Content, publish_file};
use super::digest::DigestName;
use super::error::{Context, StoreError};
use super::temporary::Temporary;

/// Takes the bytes of a blob. One that is dropped leaves nothing behind.
#[derive(Debug)]
pub struct BlobDraft {
    content: Content,
    temporary: Temporary,
    digester: Digester,
    size: u64,
}

impl Content {
    /// Begins a blob.
    pub fn draft(&self) -> Result<BlobDraft, StoreError> {
        let temporary = self.temporaries.file()?;
        let digester = Digester::new(Algorithm::Sha256);
        Ok(BlobDraft { content: self.clone(), temporary, digester, size: 0 })
    }

    /// A file without a name on the store's disk, for what is needed for a moment.
    pub fn scratch(&self) -> Result<File, StoreError> {
        let directory = self.temporaries.path();
        tempfile::tempfile_in(directory).context("make a file in", directory)
    }
}

impl Write for BlobDraft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.temporary.file().write(bytes)?;
        self.digester.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl BlobDraft {
    /// Gives the blob its name, and tells digest and size. It is on disk when this returns.
    pub fn keep(self) -> Result<(Digest, u64), StoreError> {
        let digest = self.digester.finish();
        let path = self.content.blob_path(&DigestName::parse(digest.as_str())?);
        publish_file(self.temporary, &path)?;
        Ok((digest, self.size))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    #[test]
    fn a_draft_becomes_the_blob_that_it_is_or_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let mut draft = store.content().draft().unwrap();
        draft.write_all(b"by").unwrap();
        draft.write_all(b"tes").unwrap();
        let (digest, size) = draft.keep().unwrap();
        assert_eq!((&digest, size), (&Digest::sha256_of(b"bytes"), 5));
        assert_eq!(store.content().get(digest.as_str()).unwrap().as_deref(), Some(&b"bytes"[..]));
        let mut dropped = store.content().draft().unwrap();
        dropped.write_all(b"others").unwrap();
        drop(dropped);
        assert_eq!(std::fs::read_dir(directory.path().join("content/ingest")).unwrap().count(), 0);
    }
}
