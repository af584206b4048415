//! A merged tree: the stack of an image's layers as one tree, whiteouts resolved.
//!
//! [`merge`] composes inode tables in metadata alone.

pub mod merge;
