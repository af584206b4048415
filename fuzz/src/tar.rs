//! A tar read in pieces, and what came of it.

use std::ops::Range;

use peelfs::layer::builder::LayerBuilder;
use peelfs::layer::entry::{Content, Entry, EntryKind};
use peelfs::layer::tar::{Limits, SinkError, TarReader, TarSink};
use peelfs::table::Table;

use crate::IDENTITY;

/// All that a reader told of an archive.
#[derive(Debug, Default, PartialEq)]
pub struct Told {
    /// The entries, and the headers and payload of each.
    pub entries: Vec<(Entry, Range<u64>, Vec<u8>)>,
    /// Why it stopped; nothing if the archive was read to its end.
    pub error: Option<String>,
    headers: Range<u64>,
    position: u64,
}

impl TarSink for Told {
    fn headers(&mut self, place: Range<u64>) -> Result<(), SinkError> {
        assert!(self.headers.end <= place.start && place.start < place.end, "headers out of order");
        assert!((place.end - place.start).is_multiple_of(512), "half a header");
        self.position = place.end;
        self.headers = place;
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        self.entries.push((entry, self.headers.clone(), Vec::new()));
        Ok(())
    }

    fn payload(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        let (entry, _, payload) = self.entries.last_mut().expect("payload of no entry");
        assert!(matches!(entry.kind, EntryKind::Regular { .. }), "payload of what has none");
        assert_eq!(decoded_offset, self.position, "payload with a gap");
        self.position += bytes.len() as u64;
        payload.extend_from_slice(bytes);
        Ok(())
    }
}

/// What a reader tells of an archive that arrives in pieces of `piece` bytes.
pub fn told(archive: &[u8], piece: usize) -> Told {
    let mut told = Told::default();
    let mut reader = TarReader::new(Limits::default());
    for piece in archive.chunks(piece.max(1)) {
        if let Err(error) = reader.push(piece, &mut told) {
            told.error = Some(error.to_string());
            return told;
        }
    }
    told.error = reader.finish().err().map(|error| error.to_string());
    told
}

/// Holds what a reader told against the archive.
pub fn check_told(told: &Told, archive: &[u8]) {
    for (entry, headers, payload) in &told.entries {
        assert!(headers.end <= archive.len() as u64);
        let start = headers.end as usize;
        assert!(archive[start..].starts_with(payload), "a payload that is not what follows the headers");
        let EntryKind::Regular { size, content } = &entry.kind else { continue };
        match content {
            Content::Contiguous(offset) => {
                assert!(*size == 0 || *offset == headers.end, "content that is not the payload");
                assert!(payload.len() as u64 <= *size);
            }
            Content::Sparse(extents) => {
                let mut decoded = headers.end;
                for extent in extents {
                    assert_eq!(extent.decoded_offset, decoded, "the pieces are not one after the other");
                    decoded += extent.length;
                }
                assert!(payload.len() as u64 <= decoded - headers.end);
            }
        }
    }
}

/// The table of a layer with these entries; nothing if one of them cannot be in a layer.
pub fn table_of<'a>(entries: impl IntoIterator<Item = &'a Entry>, decoded_length: u64) -> Option<Table> {
    let mut builder = LayerBuilder::new();
    for entry in entries {
        builder.add(entry.clone()).ok()?;
    }
    // The payloads of one archive do not overlap, so nothing can be wrong any more.
    let bytes = builder.finish(IDENTITY, &[]).expect("a layer whose entries were all taken");
    let table = Table::from_bytes(bytes).expect("a table that was just written");
    crate::table::check_written(&table, decoded_length);
    Some(table)
}
