//! Placeholder, replaced as the rooms are built.
fn main() {}
