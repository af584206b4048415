//! A directory as the kernel reads it: the tree's entries, preceded by `.` and `..`.
//!
//! ```text
//!   position   0     1      2 …            a position says where to go on; the kernel keeps it for seekdir(3)
//!   entry      "."   ".."   the tree's
//!   tree                    0 …            the tree's cookie = position - 2
//! ```

use std::ops::ControlFlow;

use crate::errno::Errno;
use crate::tree::{DirectoryEntry, Tree};

const DOT_ENTRIES: u64 = 2;

/// Shows the entries from `position` on until `visit` breaks; `next` is the position after the entry.
///
/// A name that the kernel would refuse is left out: one such name would make it refuse the whole directory.
pub(crate) fn list(
    tree: &impl Tree,
    inode: u64,
    position: u64,
    visit: &mut dyn FnMut(DirectoryEntry<'_>) -> ControlFlow<()>,
) -> Result<(), Errno> {
    if position == 0 && visit(dot_entry(b".", inode, 1)).is_break() {
        return Ok(());
    }
    if position <= 1 && visit(dot_entry(b"..", tree.parent(inode)?, DOT_ENTRIES)).is_break() {
        return Ok(());
    }
    tree.read_directory(inode, position.saturating_sub(DOT_ENTRIES), &mut |entry| {
        if !is_showable(entry.name) {
            tracing::debug!(
                directory = inode,
                inode = entry.inode,
                "a name that no kernel accepts is not shown"
            );
            return ControlFlow::Continue(());
        }
        visit(DirectoryEntry { next: entry.next.saturating_add(DOT_ENTRIES), ..entry })
    })
}

fn dot_entry(name: &'static [u8], inode: u64, next: u64) -> DirectoryEntry<'static> {
    DirectoryEntry { name, inode, mode: libc::S_IFDIR, next }
}

/// Whether this can be one component of a path: `NAME_MAX` is 255 everywhere in Linux.
fn is_showable(name: &[u8]) -> bool {
    (1..=255).contains(&name.len())
        && !name.contains(&b'/')
        && !name.contains(&0)
        && name != b"."
        && name != b".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_can_be_a_component_of_a_path_are_shown() {
        for name in [&b"a"[..], b"...", b"\xff\xfe", b"new\nline", &[b'x'; 255]] {
            assert!(is_showable(name), "{name:?}");
        }
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'x'; 256]] {
            assert!(!is_showable(name), "{name:?}");
        }
    }
}
