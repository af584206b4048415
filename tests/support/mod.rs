//! What the tests share. Nothing here copies an expectation from our own output.

pub mod mounts;
pub mod docker_registry;
pub mod registry;
