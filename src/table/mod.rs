//! The inode table: inodes, names, extents and chunks of one layer or one merged tree, in one format whatever they came from.
//!
//! [`format`](mod@format) says what the bytes are, [`writer`] lays them out, [`reader`] maps them.

pub mod format;
pub mod placement;
pub mod reader;
pub mod writer;

pub use format::Codec;
pub use reader::{Table, TableError};
