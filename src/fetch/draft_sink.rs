//! Where a layer goes that is streamed: its entries to the tree, its bytes to their places in the data files.
//!
//! All of the archive is kept, headers and padding as well: so each chunk is here as its digest has it, and what is here can be checked,
//! and the archive put together again, without the network. That costs some four hundredths of the disk. Neighbours are written
//! together: small files, and what lies between them, are one stretch. What would make the store larger than it may be is left out; the
//! chunks that lack something of it are fetched when they are read.

use std::collections::BTreeMap;
use std::ops::Range;

use super::room::{Room, Urgency};
use crate::layer::builder::LayerBuilder;
use crate::layer::entry::Entry;
use crate::layer::lookup::is_bookkeeping;
use crate::layer::tar::{SinkError, TarSink};
use crate::meter::{self, Count};
use crate::store::{DataFile, LayerDraft, StoreError};
use crate::table::placement::pieces;

/// Bytes of the packed file that are written at once, unless more arrive at once.
const LONGEST_STRETCH: usize = 256 << 10;
/// Bytes that are dropped once there was no room: it is not asked for after each of them.
const DROPPED: u64 = 4 << 20;

/// Takes a layer's archive.
pub(super) struct DraftSink<'a> {
    builder: LayerBuilder,
    draft: &'a LayerDraft,
    annotations: BTreeMap<String, String>,
    stretch: Stretch,
    room: Option<&'a Room>,
    /// Parts of the decoded space for which there was no room, in ascending order.
    dropped: Vec<Range<u64>>,
    /// Bytes that are dropped before room is asked for again.
    to_drop: u64,
}

/// What is still to be written to the packed file, and where it begins.
#[derive(Default)]
struct Stretch {
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> DraftSink<'a> {
    /// Puts a layer whose descriptor has these annotations into `draft`, as far as there is room.
    pub fn new(
        draft: &'a LayerDraft,
        annotations: BTreeMap<String, String>,
        room: Option<&'a Room>,
    ) -> DraftSink<'a> {
        let (builder, stretch) = (LayerBuilder::new(), Stretch::default());
        DraftSink { builder, draft, annotations, stretch, room, dropped: Vec::new(), to_drop: 0 }
    }

    /// Writes what is left, and gives the tree and the parts of the decoded space that were not written.
    pub fn finish(mut self) -> Result<(LayerBuilder, Vec<Range<u64>>), StoreError> {
        self.stretch.write(self.draft)?;
        Ok((self.builder, self.dropped))
    }

    fn write(&mut self, decoded_offset: u64, mut bytes: &[u8]) -> Result<(), StoreError> {
        meter::count(Count::DecodedBytes, bytes.len() as u64);
        if !self.has_room(bytes.len() as u64) {
            self.drop(decoded_offset..decoded_offset + bytes.len() as u64);
            return Ok(());
        }
        for piece in pieces(self.builder.large_parts(), decoded_offset, bytes.len() as u64) {
            let (part, rest) = bytes.split_at(piece.length as usize);
            match piece.file {
                DataFile::Packed => self.stretch.append(piece.file_offset, part, self.draft)?,
                DataFile::Large(_) => self.draft.write(piece.file, piece.file_offset, part)?,
            }
            bytes = rest;
        }
        Ok(())
    }
}

impl DraftSink<'_> {
    fn has_room(&mut self, bytes: u64) -> bool {
        let Some(room) = self.room else { return true };
        if self.to_drop == 0 && room.admit(bytes, Urgency::Spare).is_none() {
            self.to_drop = DROPPED;
        }
        let is_dropped = self.to_drop > 0;
        self.to_drop = self.to_drop.saturating_sub(bytes);
        !is_dropped
    }

    fn drop(&mut self, part: Range<u64>) {
        match self.dropped.last_mut() {
            Some(last) if last.end == part.start => last.end = part.end,
            _ => self.dropped.push(part),
        }
    }
}

impl Stretch {
    fn append(&mut self, offset: u64, bytes: &[u8], draft: &LayerDraft) -> Result<(), StoreError> {
        let is_next = self.start + self.bytes.len() as u64 == offset;
        if !is_next || self.bytes.len() + bytes.len() > LONGEST_STRETCH {
            self.write(draft)?;
            self.start = offset;
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, draft: &LayerDraft) -> Result<(), StoreError> {
        draft.write(DataFile::Packed, self.start, &self.bytes)?;
        self.start += self.bytes.len() as u64;
        self.bytes.clear();
        Ok(())
    }
}

impl TarSink for DraftSink<'_> {
    fn entry(&mut self, entry: Entry) -> Result<(), SinkError> {
        if is_bookkeeping(&self.annotations, &entry.path) {
            return Ok(());
        }
        let known = self.builder.large_sizes().len();
        self.builder.add(entry)?;
        for (number, length) in self.builder.large_sizes().iter().enumerate().skip(known) {
            self.draft.large_file(number as u32, *length)?;
        }
        Ok(())
    }

    fn payload(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        Ok(self.write(decoded_offset, bytes)?)
    }

    fn framing(&mut self, decoded_offset: u64, bytes: &[u8]) -> Result<(), SinkError> {
        Ok(self.write(decoded_offset, bytes)?)
    }
}
