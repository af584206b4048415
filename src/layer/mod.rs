//! Layer formats: blob → entries and chunks → inode table. One file per format; nothing above learns which one a layer had.

pub mod builder;
pub mod entry;
pub mod path;
