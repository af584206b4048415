//! A merged tree: the stack of an image's layers as one tree, whiteouts resolved.
//!
//! [`merge`] composes inode tables in metadata alone; [`serve`] answers the kernel from the result.

mod inode_set;
pub mod merge;
pub mod paths;
pub mod serve;
pub mod touches;

#[cfg(test)]
mod merge_tests;
