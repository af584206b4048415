//! eStargz (stargz-snapshotter, `docs/estargz.md`): a tar.gz whose last entry lists all files and where their bytes are.
//!
//! ```text
//! blob    │ member │ member │ … │ member │ TOC: a tar with stargz.index.json │ footer │
//!           ▲        payload of a file, or of a chunk of it, begins here       │
//!           └──────────────────────────── toc_offset ──────────────────────────┘
//! ```
//!
//! The digest of the JSON bytes is in the layer's descriptor ([`TOC_DIGEST_ANNOTATION`]), and so vouched for by the manifest; the JSON
//! has the digest of each chunk. A layer without the annotation is an ordinary tar.gz.
//! What the JSON says is read by [`toc`].
//!
//! An *external* TOC is not in the blob, which so can be the archive that it was before: the tag of the image with
//! [`TOC_IMAGE_SUFFIX`] names another image, each layer of which is a tar.gz with the TOC of the layer that it is annotated with
//! ([`LAYER_DIGEST_ANNOTATION`]). It is trusted no more than the blob is: the digest of the JSON is where it always is.

mod fault;
mod footer;
pub mod writer;

#[cfg(test)]
mod tests;

use sha2::{Digest, Sha256};

pub use self::fault::EstargzError;
pub use self::footer::{Footer, MAXIMUM_FOOTER};
use super::compression::{Decode, Progress};
use super::entry::{Entry, EntryKind};
use super::gzip::GzipDecoder;
use super::tar::{Limits, SinkError, TarReader, TarSink};
use super::toc::{self, Ends, PayloadRules, TOC_NAME, TableOfContents};
use crate::table::Codec;

/// Annotation of a layer's descriptor: digest of the TOC's JSON bytes, as `sha256:…`.
pub const TOC_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Annotation of a layer of a TOC image: digest of the layer that it describes.
pub const LAYER_DIGEST_ANNOTATION: &str = "containerd.io/snapshot/stargz/layer.digest";

/// What the tag of a TOC image has after that of its image.
pub const TOC_IMAGE_SUFFIX: &str = "-esgztoc";

/// Longest TOC that is read, in bytes of JSON: 500,000 entries or more.
pub const MAXIMUM_TOC: u64 = 256 << 20;

/// Reads a TOC from the bytes of a blob from its `toc_offset` up to the footer, and proves it against its digest.
///
/// # Errors
/// If it is not the TOC with that digest, or does not make sense. Memory is bounded by [`MAXIMUM_TOC`] and what is built from it.
pub fn read_toc(
    toc_member: &[u8],
    expected: [u8; 32],
    blob_size: u64,
    toc_offset: u64,
) -> Result<TableOfContents, EstargzError> {
    if toc_offset.checked_add(toc_member.len() as u64).is_none_or(|end| end > blob_size) {
        return Err(EstargzError::Place { toc_offset, blob_size });
    }
    read_external_toc(toc_member, expected, toc_offset)
}

/// The same of a TOC that is a blob of its own; of the blob that it describes, `payload_end` bytes may be payload.
///
/// # Errors
/// As for [`read_toc`].
pub fn read_external_toc(
    toc_blob: &[u8],
    expected: [u8; 32],
    payload_end: u64,
) -> Result<TableOfContents, EstargzError> {
    let json = read_json(toc_blob)?;
    let actual: [u8; 32] = Sha256::digest(&json).into();
    if actual != expected {
        return Err(EstargzError::Digest { expected, actual });
    }
    let rules = PayloadRules { end: payload_end, codec: Codec::Gzip, ends: Some(Ends::Implied) };
    Ok(toc::parse(&json, rules)?.contents)
}

/// The JSON bytes of a TOC that is still compressed. What follows them is neither decoded nor looked at: the digest covers the JSON alone.
fn read_json(mut member: &[u8]) -> Result<Vec<u8>, EstargzError> {
    let mut decoder = GzipDecoder::new();
    let mut reader = TarReader::new(Limits::default());
    let mut sink = JsonSink::default();
    let mut buffer = vec![0; 128 << 10];
    loop {
        let Progress { consumed, produced } = decoder.decode(member, &mut buffer)?;
        member = &member[consumed..];
        let pushed = reader.push(&buffer[..produced], &mut sink);
        match sink.expected {
            Some(length) if length > MAXIMUM_TOC => {
                return Err(EstargzError::TooLarge { length, limit: MAXIMUM_TOC });
            }
            Some(length) if sink.json.len() as u64 == length => return Ok(sink.json),
            _ => pushed?,
        }
        if consumed == 0 && produced == 0 {
            return Err(EstargzError::Missing);
        }
    }
}

/// Room made for a TOC before it is decoded, at most: that of 15,000 entries.
const LIKELY_TOC: u64 = 16 << 20;

/// Keeps the payload of the first entry, if that is the TOC.
#[derive(Default)]
struct JsonSink {
    expected: Option<u64>,
    json: Vec<u8>,
}

impl TarSink for JsonSink {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        match entry.kind {
            EntryKind::Regular { size, .. } if entry.path == TOC_NAME && self.expected.is_none() => {
                self.expected = Some(size);
                // Growing step by step costs a tenth of reading the TOC of a usual layer; what a liar claims is not reserved.
                self.json.reserve(size.min(LIKELY_TOC) as usize);
                if size > MAXIMUM_TOC { Err("the table of contents is too long".into()) } else { Ok(()) }
            }
            // After a whole TOC, `read_json` has stopped to read; and before it there is nothing.
            _ if self.expected.is_some() => Ok(()),
            _ => Err(format!("stargz.index.json expected, found \"{}\"", entry.path.escape_ascii()).into()),
        }
    }

    fn payload(&mut self, _decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let room = self.expected.unwrap_or(0).saturating_sub(self.json.len() as u64);
        let taken = bytes.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        self.json.extend_from_slice(&bytes[..taken]);
        Ok(())
    }
}
