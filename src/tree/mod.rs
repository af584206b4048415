//! A merged tree: the stack of an image's layers as one tree, whiteouts resolved.
//!
//! [`merge`] lays inode tables over each other in metadata alone, [`difference`] compares two of the results, and [`compose`] does whatever of
//! both an image is made of; [`serve`] answers the kernel from the result, [`program`] reads what a program of it needs, and [`status_files`]
//! adds what is asked for.

pub mod compose;
pub mod difference;
mod inode_set;
pub mod merge;
pub mod paths;
pub mod program;
pub mod serve;
pub mod status_files;
pub mod touches;

#[cfg(test)]
mod difference_tests;
#[cfg(test)]
mod merge_tests;
