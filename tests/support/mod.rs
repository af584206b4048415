//! What the tests share. Nothing here copies an expectation from our own output.

pub mod docker_registry;
pub mod mounts;
pub mod registry;
