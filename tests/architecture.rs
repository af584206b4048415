//! The arrows between the rooms point one way, and what one room alone may name is named nowhere else.

use std::path::{Path, PathBuf};

/// The rooms of the library by floor: a file may name rooms of lower floors and its own, nothing else.
const FLOORS: &[&[&str]] = &[
    &["error", "meter"],
    &["table"],
    &["store", "layer", "image"],
    &["fetch"],
    &["tree"],
    &["cache"],
    &["mount", "convert", "commit"],
    &["push", "gc", "compose", "directory", "changes", "snapshotter"],
    &["containerd", "cri"],
    &["daemon"],
];

/// What may be named below one path only.
const NAMED_IN_ONE_PLACE: &[(&str, &[&str])] = &[
    ("fuser::", &["fuse/src"]),
    ("reqwest::", &["registry/src"]),
    ("tar_core::", &["src/layer/tar"]),
    ("rusqlite::", &["src/store"]),
    ("clap::", &["src/cli"]),
    ("anyhow::", &["src/cli"]),
    ("tonic::", &["src/daemon", "src/containerd", "src/cri"]),
    ("hyper::", &["src/daemon", "src/containerd", "src/cri"]),
    ("prost::", &["src/daemon", "src/containerd", "src/cri"]),
    ("std::env::var", &["src/cli"]),
];

/// Rooms that need no async runtime.
const WITHOUT_RUNTIME: &[&str] =
    &["src/table", "src/layer", "src/store", "src/tree", "src/cache", "src/snapshotter", "fuse/src"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below these folders, as paths from the project's root, with their text up to the unit tests.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let mut left: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(path.read_dir().unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") && !is_for_tests(&path) {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap_or_default().to_owned();
            files.push((path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned(), code));
        }
    }
    assert!(!files.is_empty());
    files
}

fn is_for_tests(path: &Path) -> bool {
    let inside = path.strip_prefix(root()).unwrap_or(path);
    inside.parent().is_some_and(|folder| folder.ends_with("tests"))
        || path
            .file_stem()
            .and_then(|stem| stem.to_str())
            .is_some_and(|stem| stem.ends_with("tests") || stem == "testing")
}

fn floor(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// The lines that are code, with their numbers.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.trim()))
        .filter(|(_, line)| !line.starts_with("//"))
}

/// The rooms that a line names as `crate::room`.
fn named_rooms(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(rest.len());
        &rest[..end]
    })
}

#[test]
fn no_arrow_between_the_rooms_runs_back() {
    let mut wrong = Vec::new();
    for (path, text) in sources(&["src"]) {
        let room = path.trim_start_matches("src/").split(['/', '.']).next().unwrap();
        if ["cli", "main", "lib"].contains(&room) {
            continue;
        }
        let own = floor(room).unwrap_or_else(|| panic!("{path}: the room {room} is on no floor"));
        for (number, line) in code_lines(&text) {
            for named in named_rooms(line).filter(|named| *named != room) {
                if floor(named).is_none_or(|other| other >= own) {
                    wrong.push(format!("{path}:{number}: {room} names {named}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_belongs_to_one_room_is_named_there_only() {
    let mut wrong = Vec::new();
    for (path, text) in sources(&["src", "fuse/src", "registry/src"]) {
        for (number, line) in code_lines(&text) {
            for (name, places) in NAMED_IN_ONE_PLACE {
                if line.contains(name) && !places.iter().any(|place| path.starts_with(place)) {
                    wrong.push(format!("{path}:{number}: {name} belongs to {}", places.join(", ")));
                }
            }
            if line.contains("tokio::") && WITHOUT_RUNTIME.iter().any(|room| path.starts_with(room)) {
                wrong.push(format!("{path}:{number}: this room needs no async runtime"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_two_libraries_beside_know_nothing_of_ours() {
    for (path, text) in sources(&["fuse/src", "registry/src"]) {
        let other = if path.starts_with("fuse") { "peelfs_registry" } else { "peelfs_fuse" };
        assert!(
            !text.contains("peelfs::") && !text.contains(other),
            "{path} names a room above it or beside it"
        );
    }
}
