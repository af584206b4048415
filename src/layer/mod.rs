//! Layer formats: blob → entries and chunks → inode table. One file per format; nothing above learns which one a layer had.
//!
//! ```text
//! a layer without TOC:  blob ─▶ gzip, zstd ─▶ tar ─▶ entries, payload    in one pass: stream
//! eStargz:              tail of the blob ─▶ footer, TOC ─▶ entries, chunks    estargz
//! zstd:chunked:         annotated place ─▶ TOC ─▶ entries, chunks    zstd_chunked; lookup tells which of the two it is
//! SOCI:                 zTOC beside the blob ─▶ entries, chunks    soci
//!                       blob range ─▶ chunk ─▶ verified bytes    chunk, whenever somebody reads
//! the other way:        entries ─▶ pieces ─▶ blob, annotations    write, and the writer in each format's folder
//! once all is here:     archive ─▶ is it what the table says?    proof; what of it is in no file    framing
//! ```

pub mod arrange;
pub mod builder;
pub mod chunk;
pub mod compression;
pub mod entry;
pub mod estargz;
pub mod framing;
pub mod gzip;
pub mod lookup;
pub mod ordered;
pub mod path;
pub mod proof;
pub mod rebuild;
pub mod soci;
pub mod spool;
pub mod stream;
pub mod tar;
pub mod toc;
pub mod walk;
pub mod write;
pub mod zstd;
pub mod zstd_chunked;

#[cfg(test)]
mod real_image_tests;
#[cfg(test)]
mod testing;
