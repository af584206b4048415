//! What a directory takes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What `disk_usage` says of each entry of a directory and of each entry of those, to be read by who asks what takes the room.
pub fn where_it_is(directory: &Path) -> String {
    let mut places: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .flat_map(|entry| {
            let below = fs::read_dir(entry.path()).into_iter().flatten().filter_map(Result::ok);
            below.map(|entry| entry.path()).chain([entry.path()]).collect::<Vec<_>>()
        })
        .map(|path| format!("{:>10} {}", disk_usage(&path), path.strip_prefix(directory).unwrap().display()))
        .collect();
    places.sort();
    places.join("\n")
}

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
