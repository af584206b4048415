//! Merging what no layer's writer makes: tables that passed their checksums all the same.

use super::merge::{MergeError, merge};
use crate::table::Table;
use crate::table::format::InodeRecord;
use crate::table::writer::{Child, Contents, Source, SourceInode, write};

/// Directories by number, and what they hold.
struct Directories(Vec<Vec<(&'static [u8], u32)>>);

impl Source for Directories {
    fn nodes(&self) -> usize {
        self.0.len()
    }

    fn inode(&self, _node: u32) -> SourceInode<'_> {
        let mut record = InodeRecord::default();
        record.mode.set(libc::S_IFDIR | 0o755);
        SourceInode { record, xattrs: &[], target: &[] }
    }

    fn children(&self, node: u32, visit: &mut dyn FnMut(&[u8], Child)) {
        self.0[node as usize].iter().for_each(|(name, child)| visit(name, Child::Node(*child)));
    }
}

fn table(directories: Directories) -> Table {
    let contents = Contents { identity: [7; 32], layers: 0, extents: &[], chunks: &[], large: &[] };
    Table::from_bytes(write(&directories, contents).unwrap()).unwrap()
}

#[test]
fn a_table_that_is_no_tree_is_refused() {
    let circle = || table(Directories(vec![vec![(b"a", 0)]]));
    let larger_circle = || table(Directories(vec![vec![(b"a", 1)], vec![(b"b", 2)], vec![(b"c", 1)]]));
    // Each directory has two names in the one above: as a tree it would have 2⁴⁰ directories.
    let diamonds = || {
        let mut directories: Vec<_> = (1..41).map(|below| vec![(&b"a"[..], below), (b"b", below)]).collect();
        directories.push(vec![]);
        table(Directories(directories))
    };
    let tree = table(Directories(vec![vec![(b"a", 1)], vec![(b"a", 2)], vec![]]));
    for damaged in [circle(), larger_circle(), diamonds()] {
        for layers in [&[&damaged][..], &[&tree, &damaged]] {
            let refused = merge(layers, [7; 32]).err();
            assert!(
                matches!(refused, Some(MergeError::NotATree { layer }) if layer == layers.len()),
                "{refused:?}"
            );
        }
    }
    assert!(merge(&[&tree, &tree], [7; 32]).is_ok());
}
