//! The project's own merge, without a kernel: described layers through the layer builder and the merge, read back as a tree.
//! All that the tests know of these interfaces is in this file.

use super::archive::{Kind, TestEntry};
use super::blob::sha256;
use super::content::Content;
use super::tree::{Node, NodeKind, Source, Tree};
use peelfs::layer::builder::LayerBuilder;
use peelfs::layer::entry::{Chunk, Content as Place, Entry, EntryKind, Timestamp};
use peelfs::store::Step;
use peelfs::table::format::InodeRecord;
use peelfs::table::{Codec, Table};
use std::collections::BTreeMap;
use std::rc::Rc;

const IDENTITY: [u8; 32] = [7; 32];

/// The merged tree of these layers, lowest first, or why there is none.
pub fn merged_tree(layers: &[Vec<TestEntry>]) -> Result<Tree, String> {
    let (tables, contents) = layer_tables(layers)?;
    let stack: Vec<&Table> = tables.iter().collect();
    let merged = peelfs::tree::merge::merge(&stack, IDENTITY).map_err(|error| error.to_string())?;
    Ok(tree_of(merged, &contents))
}

/// The tree that these steps make of these layers, or why there is none.
pub fn composed_tree(layers: &[Vec<TestEntry>], steps: &[Step]) -> Result<Tree, String> {
    let (tables, contents) = layer_tables(layers)?;
    let tables: Vec<&Table> = tables.iter().collect();
    let composed =
        peelfs::tree::compose::compose(steps, &tables, IDENTITY).map_err(|error| error.to_string())?;
    Ok(tree_of(composed, &contents))
}

/// The tables of layers, and their decoded spaces. Each file is a chunk.
fn layer_tables(layers: &[Vec<TestEntry>]) -> Result<(Vec<Table>, Vec<Vec<u8>>), String> {
    let mut contents = Vec::new();
    let mut tables = Vec::new();
    for entries in layers {
        let (mut bytes, mut chunks) = (Vec::new(), Vec::new());
        let mut builder = LayerBuilder::new();
        for entry in entries {
            let start = bytes.len();
            builder.add(project_entry(entry, &mut bytes)).map_err(|error| error.to_string())?;
            if bytes.len() > start {
                chunks.push(chunk(start, &bytes[start..]));
            }
        }
        let table = builder.finish(IDENTITY, &chunks).map_err(|error| error.to_string())?;
        tables.push(Table::from_bytes(table).expect("a table just written is sound"));
        contents.push(bytes);
    }
    Ok((tables, contents))
}

fn chunk(offset: usize, bytes: &[u8]) -> Chunk {
    let hex = sha256(bytes);
    let hex = hex.strip_prefix("sha256:").expect("a digest");
    let digest: Vec<u8> =
        (0..32).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hexadecimal")).collect();
    let (offset, length) = (offset as u64, bytes.len() as u64);
    Chunk {
        blob_offset: offset,
        blob_length: length,
        decoded_offset: offset,
        decoded_length: length,
        skip: 0,
        codec: Codec::Raw,
        checkpoint: 0,
        digest: digest.try_into().expect("32 bytes"),
    }
}

fn tree_of(merged: Vec<u8>, contents: &[Vec<u8>]) -> Tree {
    let merged = Table::from_bytes(merged).expect("a table just written is sound");
    let mut tree = Tree { nodes: BTreeMap::new(), root: None };
    read_back(&merged, 0, Vec::new(), contents, &mut tree);
    tree
}

fn project_entry(entry: &TestEntry, decoded: &mut Vec<u8>) -> Entry {
    let kind = match &entry.kind {
        Kind::File(content) | Kind::SparseFile(content, _) => {
            let offset = decoded.len() as u64;
            decoded.extend_from_slice(&content.to_vec());
            EntryKind::Regular { size: content.length(), content: Place::Contiguous(offset) }
        }
        Kind::Directory => EntryKind::Directory,
        Kind::Symlink(target) => EntryKind::Symlink { target: target.clone() },
        Kind::Hardlink(target) => EntryKind::Hardlink { target: target.clone() },
        Kind::CharacterDevice(major, minor) => EntryKind::CharacterDevice { major: *major, minor: *minor },
        Kind::BlockDevice(major, minor) => EntryKind::BlockDevice { major: *major, minor: *minor },
        Kind::Fifo => EntryKind::Fifo,
    };
    Entry {
        path: entry.path.clone(),
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        modified: Timestamp { seconds: entry.modified.0, nanoseconds: entry.modified.1 },
        xattrs: entry.xattrs.clone(),
    }
}

fn read_back(table: &Table, number: u32, path: Vec<u8>, contents: &[Vec<u8>], tree: &mut Tree) {
    let inode = table.inode(number).expect("an entry's inode is in the table");
    for entry in table.directory(inode) {
        let name = table.name(entry);
        let below = if path.is_empty() { name.to_vec() } else { [&path, b"/".as_slice(), name].concat() };
        let child = table.inode(entry.inode.get()).expect("an entry's inode is in the table");
        assert_eq!(u32::from(entry.kind.get()), child.mode.get() >> 12, "the type beside the name");
        assert_eq!(table.find(inode, name).map(|entry| entry.inode.get()), Some(entry.inode.get()));
        read_back(table, entry.inode.get(), below, contents, tree);
    }
    tree.nodes.insert(path, node(table, inode, number, contents));
}

fn node(table: &Table, inode: &InodeRecord, number: u32, contents: &[Vec<u8>]) -> Node {
    let device = inode.content.get();
    let (major, minor) = ((device >> 32) as u32, device as u32);
    let kind = match inode.mode.get() & libc::S_IFMT {
        libc::S_IFREG => {
            let start = inode.content.get() as usize;
            let bytes = &contents[usize::from(inode.layer.get())][start..start + inode.size.get() as usize];
            NodeKind::File(Source::Described(Rc::new(Content::Bytes(bytes.into()))))
        }
        libc::S_IFDIR => NodeKind::Directory,
        libc::S_IFLNK => NodeKind::Symlink(table.target(inode).to_vec()),
        libc::S_IFCHR => NodeKind::CharacterDevice(major, minor),
        libc::S_IFBLK => NodeKind::BlockDevice(major, minor),
        libc::S_IFIFO => NodeKind::Fifo,
        other => panic!("no such type in a tree: {other:o}"),
    };
    let size = match &kind {
        NodeKind::File(_) => inode.size.get(),
        NodeKind::Symlink(target) => target.len() as u64,
        _ => 0,
    };
    Node {
        kind,
        mode: inode.mode.get() & 0o7777,
        uid: inode.uid.get(),
        gid: inode.gid.get(),
        size,
        modified: (inode.modified_seconds.get(), inode.modified_nanoseconds.get()),
        links: inode.link_count.get().into(),
        inode: number.into(),
        xattrs: table.xattrs(inode).map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
    }
}
