//! Layer formats: blob → entries and chunks → inode table. One file per format; nothing above learns which one a layer had.
//!
//! ```text
//! a layer without TOC:  blob ─▶ gzip, zstd ─▶ tar ─▶ entries, payload    in one pass: stream
//! eStargz:              tail of the blob ─▶ footer, TOC ─▶ entries, chunks    estargz
//!                       blob range ─▶ chunk ─▶ verified bytes    chunk, whenever somebody reads
//! ```

pub mod arrange;
pub mod builder;
pub mod chunk;
pub mod compression;
pub mod entry;
pub mod estargz;
pub mod gzip;
pub mod ordered;
pub mod path;
pub mod spool;
pub mod stream;
pub mod tar;
pub mod zstd;

#[cfg(test)]
mod real_images;
#[cfg(test)]
mod testing;
