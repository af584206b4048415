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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::builder::LayerBuilder;
    use crate::layer::entry::{Content, Entry, EntryKind};

    fn table(paths: &[&str]) -> Table {
        let mut builder = LayerBuilder::new();
        for path in paths {
            let kind = match path.split_once('=') {
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
}
