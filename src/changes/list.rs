//! The table of a difference as names, in the words of `docker diff`: added, changed, deleted.

use crate::table::Table;
use crate::table::format::{EntryRecord, InodeRecord};

/// What happened to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It was not there.
    Added,
    /// It stands for something else, or something in it changed.
    Changed,
    /// It is not there any more.
    Deleted,
}

impl ChangeKind {
    /// `A`, `C` or `D`.
    pub fn letter(self) -> char {
        match self {
            ChangeKind::Added => 'A',
            ChangeKind::Changed => 'C',
            ChangeKind::Deleted => 'D',
        }
    }
}

/// A name that is different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// From the root, which is `/`.
    pub path: Vec<u8>,
    /// What happened.
    pub kind: ChangeKind,
    /// Type and permissions (`st_mode`) of what is there now; of what was removed, of what was there.
    pub mode: u32,
    /// Bytes of a regular file that is there now, or of a symbolic link's target.
    pub size: u64,
}

/// What a difference states, one name after the other, each directory before what is in it.
pub(super) enum Stated<'a> {
    /// The root, or a name, with its inode and that one's number.
    Inode { path: &'a [u8], number: u32, inode: &'a InodeRecord },
    /// A name that is gone.
    Whiteout { path: &'a [u8] },
}

/// Visits all that a difference states, in the order of the names of each directory; paths have no slash in front.
pub(super) fn visit<'a, E>(
    table: &'a Table,
    mut visit: impl FnMut(Stated<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Some(root) = table.inode(0) else { return Ok(()) };
    visit(Stated::Inode { path: b"", number: 0, inode: root })?;
    let mut path = Vec::new();
    let mut open: Vec<(std::slice::Iter<'a, EntryRecord>, usize)> = vec![(table.directory(root).iter(), 0)];
    while let Some((entries, length)) = open.last_mut() {
        path.truncate(*length);
        let Some(entry) = entries.next() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(table.name(entry));
        let number = entry.inode.get();
        match table.inode(number) {
            None => visit(Stated::Whiteout { path: &path })?,
            Some(inode) => {
                visit(Stated::Inode { path: &path, number, inode })?;
                open.push((table.directory(inode).iter(), path.len()));
            }
        }
    }
    Ok(())
}

/// What the lower tree has of that name.
fn before<'a>(table: &'a Table, path: &[u8]) -> Option<&'a InodeRecord> {
    let mut inode = table.inode(0)?;
    for name in path.split(|byte| *byte == b'/') {
        inode = table.inode(table.find(inode, name)?.inode.get())?;
    }
    Some(inode)
}

/// The names that are different, by their paths.
pub(super) fn list(lower: &Table, difference: &Table) -> Vec<Change> {
    let mut changes = Vec::new();
    let visited: Result<(), std::convert::Infallible> = visit(difference, |stated| {
        let (path, now) = match stated {
            Stated::Inode { path: b"", .. } => return Ok(()),
            Stated::Inode { path, inode, .. } => (path, Some(inode)),
            Stated::Whiteout { path } => (path, None),
        };
        let then = before(lower, path);
        let kind = match (now, then) {
            (None, _) => ChangeKind::Deleted,
            (Some(_), Some(_)) => ChangeKind::Changed,
            (Some(_), None) => ChangeKind::Added,
        };
        let has_size =
            |inode: &&InodeRecord| matches!(inode.mode.get() & libc::S_IFMT, libc::S_IFREG | libc::S_IFLNK);
        changes.push(Change {
            path: [b"/", path].concat(),
            kind,
            mode: now.or(then).map_or(0, |inode| inode.mode.get()),
            size: now.filter(has_size).map_or(0, |inode| inode.size.get()),
        });
        Ok(())
    });
    // Nothing in it fails.
    let Ok(()) = visited;
    changes.sort_by(|one, other| one.path.cmp(&other.path));
    changes
}

/// Bytes that the difference adds.
pub(super) fn size(difference: &Table) -> u64 {
    // The table of a layer has each inode once, whatever names it has.
    let sizes = difference.inodes().iter().map(|inode| match inode.mode.get() & libc::S_IFMT {
        libc::S_IFREG | libc::S_IFLNK => inode.size.get(),
        _ => 0,
    });
    sizes.fold(0, u64::saturating_add)
}
