//! All of an image brought and proved, or the files below some of its paths: [`fetch::extract`](crate::fetch::extract) does it for one
//! layer, this for an image. Several layers at once; the first that fails ends the others.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use futures_util::{StreamExt, TryStreamExt};
use peelfs_registry::Digest;

use super::pull::Pulled;
use crate::fetch::FetchError;
use crate::fetch::extract::{ExtractError, Progress};
use crate::fetch::proof::Standing;
use crate::table::format::InodeRecord;
use crate::tree::paths::find;

/// Layers that are extracted at the same time.
const LAYERS: usize = 4;

/// Why an image is not extracted. What was fetched stays.
#[derive(Debug, thiserror::Error)]
pub enum ImageExtractError {
    /// A layer.
    #[error("cannot extract layer {number} of {image} ({digest})")]
    Layer {
        /// The reference.
        image: String,
        /// Which layer, 1 is the lowest.
        number: usize,
        /// Its digest.
        digest: Digest,
        /// Why not.
        #[source]
        cause: Box<ExtractError>,
    },
    /// There is nothing of that name.
    #[error("{image} has no {path:?}")]
    NoSuchPath {
        /// The reference.
        image: String,
        /// As it was given.
        path: String,
    },
}

impl Pulled {
    /// Extracts all layers. Gives how each of them stands, the lowest first.
    ///
    /// # Errors
    /// [`ImageExtractError`].
    pub async fn extract(&self, progress: &Progress) -> Result<Vec<Standing>, ImageExtractError> {
        let work = self.brought.layers.iter().enumerate().map(|(number, layer)| async move {
            let standing = layer.extract(progress).await;
            standing.map(|standing| (number, standing)).map_err(|cause| self.of_layer(number, cause))
        });
        let work = futures_util::stream::iter(work).buffer_unordered(LAYERS);
        let standings: BTreeMap<usize, Standing> = work.try_collect().await?;
        Ok(standings.into_values().collect())
    }

    /// Brings the files at these paths, and all below them. Symbolic links are followed within the image.
    ///
    /// # Errors
    /// [`ImageExtractError`].
    pub async fn extract_paths(
        &self,
        paths: &[Vec<u8>],
        progress: &Progress,
    ) -> Result<(), ImageExtractError> {
        let mut wanted = vec![Vec::new(); self.brought.layers.len()];
        for path in paths {
            let table = self.tree.table();
            let found = find(table, path).and_then(|(number, _)| table.inode(number));
            let inode = found.ok_or_else(|| ImageExtractError::NoSuchPath {
                image: self.brought.reference.to_string(),
                path: String::from_utf8_lossy(path).into_owned(),
            })?;
            self.content_below(inode, &mut wanted)?;
        }
        let work = wanted.iter().enumerate().filter(|(_, parts)| !parts.is_empty());
        let work = work.map(|(number, parts)| async move {
            let layer = &self.brought.layers[number];
            layer.extract_parts(parts, progress).await.map_err(|cause| self.of_layer(number, cause))
        });
        futures_util::stream::iter(work).buffer_unordered(LAYERS).try_collect().await
    }

    fn of_layer(&self, number: usize, cause: ExtractError) -> ImageExtractError {
        ImageExtractError::Layer {
            image: self.brought.reference.to_string(),
            number: number + 1,
            digest: self.brought.image.layers[number].descriptor.digest.clone(),
            cause: Box::new(cause),
        }
    }

    /// Adds to `wanted`, layer by layer, where the content of all files at and below an inode lies.
    fn content_below(
        &self,
        inode: &InodeRecord,
        wanted: &mut [Vec<Range<u64>>],
    ) -> Result<(), ImageExtractError> {
        let table = self.tree.table();
        let mut left = vec![inode];
        // A file of many names once.
        let mut seen = BTreeSet::new();
        while let Some(inode) = left.pop() {
            for entry in table.directory(inode) {
                if seen.insert(entry.inode.get()) {
                    left.extend(table.inode(entry.inode.get()));
                }
            }
            if inode.mode.get() & libc::S_IFMT != libc::S_IFREG {
                continue;
            }
            let number = usize::from(inode.layer.get());
            let (Some(layer), Some(parts)) = (self.tree.layer(inode), wanted.get_mut(number)) else {
                continue;
            };
            let ranges = self.tree.decoded_ranges(inode);
            if layer.must_be_proved() && !ranges.is_empty() {
                let of_headers = |cause: FetchError| self.of_layer(number, ExtractError::from(cause));
                parts.extend(layer.headers_of(inode.content.get()).map_err(of_headers)?);
            }
            parts.extend(ranges);
        }
        Ok(())
    }
}
