//! The entries of a layer in the order in which they are written, those that belong to the format among them.

use std::borrow::Cow;
use std::io;
use std::ops::Range;

use super::WriteError;
use crate::layer::entry::{Content, Entry, EntryKind, Timestamp};
use crate::layer::spool::{Spool, SpooledEntry};
use crate::layer::stream::MAXIMUM_DECODED;
use crate::layer::tar::{END_OF_ARCHIVE, OwnerNames, entry_headers};

/// Bytes of a block of a tar.
pub const BLOCK: u64 = 512;

/// Longest end of an archive that is kept as it is.
const LONGEST_END: u64 = 1 << 20;

/// An entry as it is written.
pub struct Item<'a> {
    pub entry: Cow<'a, Entry>,
    pub headers: Headers,
    pub names: OwnerNames,
    /// Bytes of data, holes included; 0 for all but regular files.
    pub size: u64,
    /// What a file of the format holds; `None` for those of the image.
    content: Option<Vec<u8>>,
}

/// Where the headers of an entry come from.
pub enum Headers {
    Archive(Range<u64>),
    New(Vec<u8>),
}

impl<'a> Item<'a> {
    /// An entry of the image.
    ///
    /// # Errors
    /// If the spool cannot be read.
    pub fn of_image(spool: &Spool, spooled: &'a SpooledEntry) -> io::Result<Self> {
        let names = spool.owner_names(spooled)?;
        let entry = Cow::Borrowed(&spooled.entry);
        let size = match entry.kind {
            EntryKind::Regular { size, .. } => size,
            _ => 0,
        };
        let headers = Headers::Archive(spooled.headers.clone());
        let mut item = Item { entry, headers, names, size, content: None };
        // Its headers announce a map; here it gets its holes as zeros.
        if matches!(&item.entry.kind, EntryKind::Regular { content: Content::Sparse(_), .. }) {
            item.write_headers();
        }
        Ok(item)
    }

    /// A file that belongs to the format, as the reference writers make it: of nobody, at no time.
    pub fn of_format(name: &[u8], content: Vec<u8>) -> Self {
        let size = content.len() as u64;
        let entry = Cow::Owned(format_entry(name, size));
        let (headers, names) = (Headers::New(Vec::new()), OwnerNames::default());
        let mut item = Item { entry, headers, names, size, content: Some(content) };
        item.write_headers();
        item
    }

    /// Gives it headers of ours, which say the same as those that it had.
    pub fn write_headers(&mut self) {
        self.headers = Headers::New(entry_headers(&self.entry, &self.names, self.size));
    }

    /// Whether it is a file of the format.
    pub fn is_of_format(&self) -> bool {
        self.content.is_some()
    }

    /// Bytes of its headers.
    pub fn headers_length(&self) -> u64 {
        match &self.headers {
            Headers::Archive(place) => place.end - place.start,
            Headers::New(bytes) => bytes.len() as u64,
        }
    }

    /// Bytes behind its data, up to the next block.
    pub fn padding(&self) -> u64 {
        self.size.wrapping_neg() % BLOCK
    }

    /// Appends a part of its headers, which must be within them.
    ///
    /// # Errors
    /// If the spool cannot be read.
    pub fn append_headers(&self, spool: &Spool, part: &Range<u64>, to: &mut Vec<u8>) -> io::Result<()> {
        match &self.headers {
            Headers::Archive(place) => spool.append(place.start + part.start..place.start + part.end, to),
            Headers::New(bytes) => {
                // A part of a slice in memory.
                to.extend_from_slice(&bytes[part.start as usize..part.end as usize]);
                Ok(())
            }
        }
    }

    /// Appends `length` bytes of its data, from `offset` on, which must be within it.
    ///
    /// # Errors
    /// If the spool cannot be read.
    pub fn append_data(&self, spool: &Spool, offset: u64, length: u64, to: &mut Vec<u8>) -> io::Result<()> {
        match &self.content {
            None => spool.append_content(&self.entry, offset, length, to),
            Some(content) => {
                // A part of a slice in memory.
                to.extend_from_slice(&content[offset as usize..][..length as usize]);
                Ok(())
            }
        }
    }
}

fn format_entry(name: &[u8], size: u64) -> Entry {
    Entry {
        path: name.to_vec(),
        kind: EntryKind::Regular { size, content: Content::Contiguous(0) },
        mode: 0,
        uid: 0,
        gid: 0,
        modified: Timestamp::default(),
        xattrs: Vec::new(),
    }
}

/// The bytes of the archive that are a file of the format: headers, content and padding.
pub fn whole_format_file(name: &[u8], content: &[u8]) -> Vec<u8> {
    let size = content.len() as u64;
    let mut bytes = entry_headers(&format_entry(name, size), &OwnerNames::default(), size);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(BLOCK as usize), 0);
    bytes
}

/// Checks that all of these together are no larger than any layer may be: holes cost their author nothing.
///
/// # Errors
/// [`WriteError::TooLarge`].
pub fn check_length(items: &[Item<'_>]) -> Result<(), WriteError> {
    let length = |item: &Item<'_>| item.headers_length().saturating_add(item.size);
    let length = items.iter().map(length).fold(0, u64::saturating_add);
    if length > MAXIMUM_DECODED {
        return Err(WriteError::TooLarge { length, limit: MAXIMUM_DECODED });
    }
    Ok(())
}

/// What ends the archive of `items`: the source's own end, if all before it stays as it was, which is then true of the whole archive.
///
/// # Errors
/// If the spool cannot be read.
pub fn end_of_archive(spool: &Spool, items: &[Item<'_>]) -> io::Result<Vec<u8>> {
    let mut at = 0;
    for item in items {
        match &item.headers {
            Headers::Archive(place) if place.start == at => at = place.end + item.size + item.padding(),
            _ => return Ok(END_OF_ARCHIVE.to_vec()),
        }
    }
    let mut end = Vec::new();
    let length = spool.length()?;
    let has_shape = (END_OF_ARCHIVE.len() as u64..=LONGEST_END).contains(&length.saturating_sub(at));
    if has_shape && length.is_multiple_of(BLOCK) {
        spool.append(at..length, &mut end)?;
    }
    // Go reads on behind an end, and wants zeros there.
    if end.is_empty() || end.iter().any(|byte| *byte != 0) { Ok(END_OF_ARCHIVE.to_vec()) } else { Ok(end) }
}

#[cfg(test)]
pub mod testing {
    use super::*;

    /// A file of the image with as many bytes of headers, and of data.
    pub fn file(headers: u64, size: u64) -> Item<'static> {
        let headers = Headers::Archive(0..headers);
        Item { headers, size, content: None, ..Item::of_format(b"file", Vec::new()) }
    }
}
