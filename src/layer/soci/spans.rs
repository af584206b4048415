//! The spans of a layer: which bytes of the blob become which of the archive.

use std::ops::Range;

use super::checkpoints::Checkpoints;
use super::fault::{SociError, SpanFault};
use super::ztoc::Ztoc;

/// A part of the blob that is fetched and verified as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Its bytes in the blob, at least one. Of a gzip layer, the first may be the last of the span before.
    pub compressed: Range<u64>,
    /// What they become in the archive. Empty for one that holds only the end of a gzip member, or what the zTOC's writer never saw.
    pub uncompressed: Range<u64>,
}

/// The spans of a layer of `compressed_size` and `uncompressed_size` bytes, in order and without a gap. Gzip: what is before the
/// first is the header. Neither size is trusted.
///
/// # Errors
/// If spans go back, are empty, or leave the blob; or if they are more than `maximum`.
pub fn spans(
    checkpoints: &Checkpoints<'_>,
    compressed_size: u64,
    uncompressed_size: u64,
    maximum: u64,
) -> Result<Vec<Span>, SpanFault> {
    match checkpoints {
        Checkpoints::Gzip { list, .. } => {
            check_count(list.len() as u64, maximum)?;
            let starts = list.iter().enumerate().map(|(number, checkpoint)| {
                let shared = u64::from(checkpoint.bits != 0);
                let start = checkpoint.compressed_offset.checked_sub(shared);
                start.ok_or(SpanFault::Blob {
                    number,
                    end: checkpoint.compressed_offset,
                    blob: compressed_size,
                })
            });
            let starts: Vec<u64> = starts.collect::<Result<_, _>>()?;
            if list[0].uncompressed_offset != 0 {
                return Err(SpanFault::First { offset: list[0].uncompressed_offset });
            }
            let mut spans = Vec::with_capacity(list.len());
            for (number, checkpoint) in list.iter().enumerate() {
                let next = list.get(number + 1);
                let end = next.map_or(compressed_size, |next| next.compressed_offset);
                let decoded = checkpoint.uncompressed_offset;
                let decoded_end =
                    next.map_or(uncompressed_size.max(decoded), |next| next.uncompressed_offset);
                if next.is_some_and(|next| next.compressed_offset <= checkpoint.compressed_offset)
                    || decoded_end < decoded
                    || (next.is_some() && decoded_end == decoded)
                {
                    return Err(SpanFault::Order { number: number + 1 });
                }
                if starts[number] >= end || end > compressed_size {
                    return Err(SpanFault::Blob { number, end, blob: compressed_size });
                }
                let clamp = |offset: u64| offset.min(uncompressed_size);
                spans.push(Span {
                    compressed: starts[number]..end,
                    uncompressed: clamp(decoded)..clamp(decoded_end),
                });
            }
            Ok(spans)
        }
        Checkpoints::Uncompressed { span_size, size } => {
            if *size != compressed_size {
                return Err(SpanFault::Size { stated: *size, blob: compressed_size });
            }
            let count = size.div_ceil(*span_size);
            check_count(count, maximum)?;
            let span = |number: u64| {
                // The last one ends where the layer does; what is before it cannot overflow.
                let start = number * span_size;
                let end = start.saturating_add(*span_size).min(*size);
                Span {
                    compressed: start..end,
                    uncompressed: start.min(uncompressed_size)..end.min(uncompressed_size),
                }
            };
            Ok((0..count).map(span).collect())
        }
    }
}

impl Ztoc {
    /// The spans of its layer, each with the digest of its bytes in the blob, which has `blob_size` bytes.
    ///
    /// # Errors
    /// If the zTOC is one of a blob of another size, or contradicts itself.
    pub fn spans(
        &self,
        checkpoints: &Checkpoints<'_>,
        blob_size: u64,
    ) -> Result<Vec<(Span, [u8; 32])>, SociError> {
        if self.compressed_size != blob_size {
            return Err(SociError::BlobSize { stated: self.compressed_size, blob: blob_size });
        }
        let digests = &self.compression.span_digests;
        let spans = spans(checkpoints, blob_size, self.uncompressed_size, digests.len() as u64)?;
        let stated = u64::from(self.compression.max_span_id) + 1;
        if spans.len() != digests.len() || spans.len() as u64 != stated {
            let (spans, digests) = (spans.len(), digests.len());
            return Err(SociError::SpanCount { spans, digests, stated });
        }
        Ok(spans.into_iter().zip(digests.iter().copied()).collect())
    }
}

fn check_count(count: u64, maximum: u64) -> Result<(), SpanFault> {
    if count > maximum { Err(SpanFault::Count { count, maximum }) } else { Ok(()) }
}
