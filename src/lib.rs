//! peelfs: mounts a container image the moment it is named, and fetches its bytes when they are read.

pub mod cache;
pub mod changes;
pub mod commit;
pub mod compose;
pub mod containerd;
pub mod convert;
pub mod cri;
pub mod daemon;
pub mod directory;
pub mod error;
pub mod fetch;
pub mod gc;
pub mod image;
pub mod layer;
pub mod meter;
pub mod mount;
pub mod push;
pub mod snapshotter;
pub mod store;
pub mod table;
pub mod tree;
