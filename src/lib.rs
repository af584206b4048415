//! peelfs: mounts a container image the moment it is named, and fetches its bytes when they are read.

pub mod layer;
pub mod table;
pub mod tree;
