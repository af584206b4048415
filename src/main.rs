//! The binary `peel`.

fn main() {}
