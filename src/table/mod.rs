//! The inode table: inodes, names, extents and chunks of one layer or one merged tree, in one format whatever they came from.
//!
//! [`format`](mod@format) says what the bytes are.

pub mod format;

pub use format::Codec;
