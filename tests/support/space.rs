//! What a directory takes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes that a file, or all below a directory, takes on disk, as du(1) counts: what disappears meanwhile counts nothing.
pub fn disk_usage(path: &Path) -> u64 {
    let Ok(metadata) = fs::symlink_metadata(path) else { return 0 };
    let below: u64 = match metadata.is_dir() {
        true => fs::read_dir(path)
            .map(|entries| entries.filter_map(Result::ok).map(|entry| disk_usage(&entry.path())).sum())
            .unwrap_or(0),
        false => 0,
    };
    metadata.blocks() * 512 + below
}
