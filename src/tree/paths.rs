//! From inodes of a table to their paths, and back. An inode does not know its names, so its path is found by a walk; what is
//! asked for seldom need not be kept for all.

use std::collections::{HashMap, HashSet};

use crate::table::Table;
use crate::table::format::InodeRecord;

/// Visits all names below the root in the order of their paths, each with its path from the root and its inode's number; `visit` may end the
/// walk. Memory is bounded by the depth.
///
/// # Errors
/// Those of `visit`.
pub fn walk<E>(
    table: &Table,
    mut visit: impl FnMut(&[u8], u32, &InodeRecord) -> Result<(), E>,
) -> Result<(), E> {
    let Some(root) = table.inode(0) else { return Ok(()) };
    let mut path = Vec::new();
    // Directories whose entries are still to be looked at, and the length of their path.
    let mut open = vec![(table.directory(root).iter(), 0)];
    while let Some((entries, length)) = open.last_mut() {
        path.truncate(*length);
        let Some(entry) = entries.next() else {
            open.pop();
            continue;
        };
        let number = entry.inode.get();
        let Some(inode) = table.inode(number) else { continue };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(table.name(entry));
        visit(&path, number, inode)?;
        open.push((table.directory(inode).iter(), path.len()));
    }
    Ok(())
}

/// A path for each of these inodes, by their number in the table: root-relative, and of several names the one that a walk in the
/// order of names finds first. Those without a name are left out.
pub fn paths_of(table: &Table, mut wanted: HashSet<u32>) -> HashMap<u32, Vec<u8>> {
    let mut paths = HashMap::with_capacity(wanted.len());
    if wanted.is_empty() {
        return paths;
    }
    // All were found, so that is no failure.
    let _ = walk(table, |path, number, _| {
        if wanted.remove(&number) {
            paths.insert(number, path.to_vec());
        }
        if wanted.is_empty() { Err(()) } else { Ok(()) }
    });
    paths
}

/// The regular file at a path from the root, which leads through no symlinks.
pub fn file_at<'a>(table: &'a Table, path: &[u8]) -> Option<&'a InodeRecord> {
    let mut inode = table.inode(0)?;
    for name in path.split(|byte| *byte == b'/') {
        inode = table.inode(table.find(inode, name)?.inode.get())?;
    }
    (inode.mode.get() & libc::S_IFMT == libc::S_IFREG).then_some(inode)
}

/// Most symbolic links that are followed on the way to a file (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// What a path names, links followed: the number of its inode, and its path from the root, through no links. `..` of the root is the root;
/// links lead nowhere outside.
pub fn find(table: &Table, path: &[u8]) -> Option<(u32, Vec<u8>)> {
    // What lies on the way, the root not among it.
    let mut way: Vec<(u32, Vec<u8>)> = Vec::new();
    let mut left: Vec<Vec<u8>> = components(path).rev().collect();
    let mut links = 0;
    while let Some(name) = left.pop() {
        let directory = table.inode(way.last().map_or(0, |(number, _)| *number))?;
        if directory.mode.get() & libc::S_IFMT != libc::S_IFDIR {
            return None;
        }
        if name == b".." {
            way.pop();
            continue;
        }
        let number = table.find(directory, &name)?.inode.get();
        let inode = table.inode(number)?;
        if inode.mode.get() & libc::S_IFMT == libc::S_IFLNK {
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            let target = table.target(inode);
            if target.starts_with(b"/") {
                way.clear();
            }
            left.extend(components(target).rev());
        } else {
            way.push((number, name));
        }
    }
    let number = way.last().map_or(0, |(number, _)| *number);
    let names: Vec<Vec<u8>> = way.into_iter().map(|(_, name)| name).collect();
    Some((number, names.join(&b'/')))
}

/// The names in a path; those that lead nowhere are left out.
fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = Vec<u8>> + '_ {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".");
    names.map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::builder::LayerBuilder;
    use crate::layer::entry::{Content, Entry, EntryKind};

    fn table(paths: &[&str]) -> Table {
        let mut builder = LayerBuilder::new();
        for path in paths {
            let kind = match path.split_once('=') {
                Some((_, target)) if target.starts_with('>') => {
                    EntryKind::Symlink { target: target[1..].into() }
                }
                Some((_, target)) => EntryKind::Hardlink { target: target.into() },
                None if path.ends_with('/') => EntryKind::Directory,
                None => EntryKind::Regular { size: 1, content: Content::Contiguous(0) },
            };
            let path = path.split('=').next().unwrap().as_bytes().to_vec();
            let entry =
                Entry { path, kind, mode: 0, uid: 0, gid: 0, modified: Default::default(), xattrs: vec![] };
            builder.add(entry).unwrap();
        }
        Table::from_bytes(builder.finish([0; 32], &[]).unwrap()).unwrap()
    }

    #[test]
    fn paths_lead_to_their_inodes_and_back() {
        let table =
            table(&["top", "usr/", "usr/bin/", "usr/bin/a", "usr/bin/b", "usr/z", "usr/linked=usr/bin/a"]);
        let number = |path: &str| {
            let record = file_at(&table, path.as_bytes()).unwrap();
            table.inodes().iter().position(|other| std::ptr::eq(other, record)).unwrap() as u32
        };
        let wanted = ["top", "usr/linked", "usr/z"].map(number);
        let mut paths: Vec<Vec<u8>> = paths_of(&table, wanted.into()).into_values().collect();
        paths.sort();
        // Of two names the first.
        assert_eq!(paths, [&b"top"[..], b"usr/bin/a", b"usr/z"]);
        assert!(paths_of(&table, [4_000_000_000].into()).is_empty());
        for nothing in ["", "usr", "usr/", "/top", "usr/bin/a/", "top/x", "usr//z", "nothing"] {
            assert!(file_at(&table, nothing.as_bytes()).is_none(), "{nothing:?}");
        }
    }

    #[test]
    fn links_are_followed_within_the_tree() {
        let table = table(&[
            "usr/",
            "usr/lib/",
            "usr/lib/libc.so.6",
            "lib=>usr/lib",
            "usr/lib/libm.so=>../../lib/./libc.so.6",
            "out=>../../../usr//lib/",
            "absolute=>/lib/libm.so",
            "circle=>circle",
            "dead=>nowhere",
        ]);
        let libc = Some("usr/lib/libc.so.6");
        for (path, expected) in [
            ("usr/lib/libc.so.6", libc),
            ("/lib/libc.so.6", libc),
            ("lib/libm.so", libc),
            ("absolute", libc),
            ("out/../lib/libc.so.6", libc),
            ("out", Some("usr/lib")),
            ("/..", Some("")),
            ("", Some("")),
            ("circle", None),
            ("dead", None),
            ("usr/lib/libc.so.6/", libc),
            ("usr/lib/libc.so.6/x", None),
            ("usr/lib/libc.so.6/..", None),
        ] {
            let found = find(&table, path.as_bytes());
            assert_eq!(
                found.as_ref().map(|(_, path)| path.as_slice()),
                expected.map(str::as_bytes),
                "{path:?}"
            );
            let of_path = found.and_then(|(number, _)| table.inode(number));
            if let (Some(record), Some(expected)) = (of_path, expected.filter(|path| path.contains('.'))) {
                assert!(std::ptr::eq(record, file_at(&table, expected.as_bytes()).unwrap()));
            }
        }
    }
}
