//! What the tests share. Nothing here copies an expectation from our own output.

pub mod archive;
pub mod blob;
pub mod cases;
pub mod clock;
pub mod containerd;
pub mod content;
pub mod cri;
pub mod docker_registry;
pub mod image;
pub mod mapped;
pub mod merged;
pub mod metrics;
pub mod model;
pub mod mounts;
pub mod peel;
pub mod random;
pub mod registry;
pub mod small_disk;
pub mod soci;
pub mod space;
pub mod tools;
pub mod tree;
