//! What leads from one tree to another as the entries of an archive, found name by name: simple, slow, and without a word of the project's.

use crate::support::archive::{Kind, TestEntry};
use crate::support::content::Content;
use crate::support::tree::{Node, NodeKind, Source, Tree};
use std::collections::{BTreeMap, BTreeSet};

type Path = Vec<u8>;

fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|byte| *byte == b'/').map_or(&[], |slash| &path[..slash]))
}

/// All directories above a name, the root among them.
fn above(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(parent(path), |path| parent(path))
}

/// All names of each file.
fn names(tree: &Tree) -> BTreeMap<u64, BTreeSet<&Path>> {
    let mut names: BTreeMap<u64, BTreeSet<&Path>> = BTreeMap::new();
    for (path, node) in tree.nodes.iter().filter(|(_, node)| !node.is_directory()) {
        names.entry(node.inode).or_default().insert(path);
    }
    names
}

fn content(node: &Node) -> Option<Vec<u8>> {
    match &node.kind {
        NodeKind::File(Source::Described(content)) => Some(content.to_vec()),
        _ => None,
    }
}

fn is_alike(one: &Node, other: &Node) -> bool {
    let kind = |node: &Node| match &node.kind {
        NodeKind::File(_) => "file".to_owned(),
        kind => format!("{kind:?}"),
    };
    let attributes = |node: &Node| (node.mode, node.uid, node.gid, node.modified, node.xattrs.clone());
    kind(one) == kind(other) && attributes(one) == attributes(other) && content(one) == content(other)
}

/// The layer that makes `upper` of `lower`: directories on the way to a change are stated; a file is all its names.
pub fn export(lower: &Tree, upper: &Tree) -> Vec<TestEntry> {
    let upper_names = names(upper);
    // Files of the upper tree that might be one of the lower: all names are names of that one.
    let mut candidates: BTreeMap<u64, BTreeSet<u64>> = BTreeMap::new();
    for (inode, names) in &upper_names {
        let befores: Option<Vec<&Node>> = names.iter().map(|name| lower.nodes.get(*name)).collect();
        let Some(befores) = befores else { continue };
        let before = befores[0];
        let node = &upper.nodes[*names.first().unwrap()];
        if befores.iter().all(|one| one.inode == before.inode)
            && !before.is_directory()
            && is_alike(before, node)
        {
            candidates.entry(before.inode).or_default().insert(*inode);
        }
    }
    let same: BTreeSet<u64> = candidates.into_values().filter(|files| files.len() == 1).flatten().collect();

    let is_directory = |tree: &Tree, path: &[u8]| tree.nodes.get(path).is_some_and(Node::is_directory);
    let mut stated: BTreeSet<&[u8]> = BTreeSet::new();
    let mut removed: BTreeSet<&[u8]> = BTreeSet::new();
    for (path, node) in &upper.nodes {
        let is_stated = match lower.nodes.get(path) {
            _ if !node.is_directory() => !same.contains(&node.inode),
            Some(before) => !before.is_directory() || !is_alike(before, node),
            None => true,
        };
        if is_stated {
            stated.insert(path);
        }
    }
    for path in lower.nodes.keys().filter(|path| !upper.nodes.contains_key(*path)) {
        if parent(path).is_some_and(|parent| is_directory(upper, parent)) {
            removed.insert(path);
        }
    }
    let changed: Vec<&[u8]> = stated.iter().chain(&removed).copied().collect();
    stated.extend(changed.into_iter().flat_map(above));

    let mut entries: Vec<TestEntry> = removed.into_iter().map(TestEntry::whiteout).collect();
    let mut first_names: BTreeMap<u64, &[u8]> = BTreeMap::new();
    for path in stated {
        let node = &upper.nodes[path];
        if node.is_directory() && lower.nodes.get(path).is_some_and(|before| !before.is_directory()) {
            entries.push(TestEntry::opaque(path));
        }
        let name = if path.is_empty() { b"./" } else { path };
        let first = (!node.is_directory()).then(|| *first_names.entry(node.inode).or_insert(path));
        entries.push(match first.filter(|first| *first != path) {
            Some(first) => TestEntry::hardlink(name, first),
            None => entry(name, node),
        });
    }
    entries
}

fn entry(name: &[u8], node: &Node) -> TestEntry {
    let mut entry = TestEntry::file(name, Content::empty());
    entry.kind = match &node.kind {
        NodeKind::File(Source::Described(content)) => Kind::File((**content).clone()),
        NodeKind::File(Source::OnDisk) | NodeKind::Socket => panic!("no tree of the model"),
        NodeKind::Directory => Kind::Directory,
        NodeKind::Symlink(target) => Kind::Symlink(target.clone()),
        NodeKind::CharacterDevice(major, minor) => Kind::CharacterDevice(*major, *minor),
        NodeKind::BlockDevice(major, minor) => Kind::BlockDevice(*major, *minor),
        NodeKind::Fifo => Kind::Fifo,
    };
    (entry.mode, entry.uid, entry.gid, entry.modified) = (node.mode, node.uid, node.gid, node.modified);
    entry.xattrs = node.xattrs.clone().into_iter().collect();
    entry
}

/// Whether a marker of these entries stands in a directory to which a link of that tree leads.
pub fn has_a_link_above_a_marker(tree: &Tree, entries: &[TestEntry]) -> bool {
    let is_link =
        |path: &[u8]| matches!(tree.nodes.get(path).map(|node| &node.kind), Some(NodeKind::Symlink(_)));
    let is_marker = |entry: &&TestEntry| {
        entry.path.split(|byte| *byte == b'/').next_back().is_some_and(|name| name.starts_with(b".wh."))
    };
    entries.iter().filter(is_marker).any(|entry| above(&entry.path).any(is_link))
}
