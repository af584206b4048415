//! A layer of raw chunks in a store of its own, for tests of how they are fetched.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use peelfs_registry::Digest;
use sha2::{Digest as _, Sha256};

use super::index::{Draft, draft_of, identity};
use super::source::BlobSource;
use super::{Fetcher, LayerContent, NetworkThreads};
use crate::layer::entry::Chunk;
use crate::store::{Store, TableSource};
use crate::table::format::ChunkRecord;
use crate::table::{Codec, Table};

/// A blob of so many chunks, each of that length.
pub fn raw_blob(chunks: u64, length: u64) -> Bytes {
    (0..chunks * length).map(|place| (place / length + place % 251) as u8).collect::<Vec<u8>>().into()
}

/// A chunk that takes these bytes of the blob.
pub fn chunk(blob_offset: u64, blob_length: u64, codec: Codec) -> ChunkRecord {
    ChunkRecord {
        blob_offset: blob_offset.into(),
        blob_length: blob_length.into(),
        decoded_offset: 0.into(),
        decoded_length: 1.into(),
        skip: 0.into(),
        codec: codec as u8,
        reserved: [0; 3],
        checkpoint: 0.into(),
        digest: [0; 32],
    }
}

/// The lazy layer of such a blob, of which nothing is here.
pub struct RawLayer {
    pub content: Arc<LayerContent>,
    pub threads: NetworkThreads,
    length: u64,
    _directory: tempfile::TempDir,
}

impl RawLayer {
    /// Its table says of `blob` that it has chunks of that length; what is fetched comes from `source`.
    pub fn new(blob: &[u8], length: u64, source: Arc<dyn BlobSource>) -> RawLayer {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let chunk = |(number, bytes): (usize, &[u8])| Chunk {
            blob_offset: number as u64 * length,
            blob_length: length,
            decoded_offset: number as u64 * length,
            decoded_length: length,
            skip: 0,
            codec: Codec::Raw,
            checkpoint: 0,
            digest: Sha256::digest(bytes).into(),
        };
        let draft = Draft {
            entries: vec![],
            chunks: blob.chunks(length as usize).enumerate().map(chunk).collect(),
            decoded_length: blob.len() as u64,
            format: "test",
            source: TableSource::Toc,
            landmark: None,
        };
        let digest = Digest::sha256_of(blob);
        let (files, pending) = draft_of(&store, &digest, draft, |_| Ok(())).unwrap();
        pending.commit_replacing().unwrap();
        let table = Table::open(&files.table, &identity(&digest)).unwrap();
        let threads = NetworkThreads::new(|| {});
        let fetcher = Fetcher::new(threads.starter().clone(), Duration::from_secs(60), None, |_| {});
        let content = LayerContent::lazy_from(digest.as_str(), table, files, source, fetcher);
        RawLayer { content, threads, length, _directory: directory }
    }

    /// Asks for these chunks as a reader does; gives the receiver of the result.
    pub fn read(&self, chunks: Range<u64>) -> std::sync::mpsc::Receiver<bool> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let wanted = chunks.start * self.length..chunks.end * self.length;
        self.content.fetch(wanted, move |result| sender.send(result.is_ok()).unwrap());
        receiver
    }

    /// Which of its chunks are here.
    pub fn here(&self) -> Vec<usize> {
        (0..self.content.table().chunks().len()).filter(|number| self.content.has_chunk(*number)).collect()
    }
}
