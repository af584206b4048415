//! What the fuzz targets share. Each target feeds one parser bytes from outside, and holds what it accepts against promises: the
//! bytes alone decide, nothing is given beyond its bound, and what was accepted holds together all the way to an inode table.

pub mod repair;
pub mod seeds;
pub mod soci;
pub mod table;
pub mod tar;
pub mod toc;

/// Layers described entry by entry, blobs of them, and the reference model: the same that the project's tests use.
#[allow(dead_code, clippy::new_without_default)]
#[path = "../../tests/support"]
pub mod support {
    pub mod archive;
    pub mod blob;
    pub mod cases;
    pub mod content;
    pub mod merged;
    pub mod model;
    pub mod tree;
}

use std::fs::File;
use std::io::Write;

use sha2::{Digest, Sha256};

/// The identity of every table that is made here.
pub const IDENTITY: [u8; 32] = [7; 32];

/// SHA-256 of these bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// `sha256:…` of these bytes.
pub fn digest_text(bytes: &[u8]) -> String {
    support::blob::sha256(bytes)
}

/// A file without a name that holds these bytes.
pub fn file_of(bytes: &[u8]) -> File {
    let memory =
        rustix::fs::memfd_create("input", rustix::fs::MemfdFlags::CLOEXEC).expect("a file in memory");
    let mut file = File::from(memory);
    file.write_all(bytes).expect("writing to memory");
    file
}

/// Takes the last byte off, which chooses among the ways of a target: at the end, where mutations of the rest seldom move it.
pub fn choice(bytes: &mut &[u8]) -> u8 {
    match bytes.split_last() {
        Some((last, rest)) => {
            *bytes = rest;
            *last
        }
        None => 0,
    }
}

/// Takes a number off the end, at most `limit`.
pub fn number(bytes: &mut &[u8], limit: usize) -> usize {
    let number = usize::from(choice(bytes)) << 8 | usize::from(choice(bytes));
    number.min(limit)
}

/// What one byte chooses among.
pub fn one_of<T: Copy>(choice: u8, all: &[T]) -> T {
    all[usize::from(choice) % all.len()]
}
