//! A merged tree: the stack of an image's layers as one tree, whiteouts resolved.
//!
//! [`merge`] composes inode tables in metadata alone; [`serve`] answers the kernel from the result.

pub mod merge;
mod proved;
pub mod serve;

#[cfg(test)]
mod merge_tests;
