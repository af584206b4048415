//! The FUSE side through the real kernel: what a tree says is what a program sees, and a mount begins and
//! ends cleanly.

mod directories;
mod lifecycle;
mod reading;
mod rights;
mod toy_tree;
mod view;

use std::io;
use std::sync::Arc;

use peelfs_fuse::{MountOptions, ROOT_INODE, Session, UnmountError, User, mount};

use crate::support::mounts::Mountpoint;
use toy_tree::ToyTree;

/// A toy tree that is mounted, and its end.
struct Mounted {
    session: Session,
    tree: Arc<ToyTree>,
    // Dropped after the session.
    mountpoint: Mountpoint,
}

impl Mounted {
    fn new(tree: ToyTree) -> Mounted {
        Mounted::with(tree, |_| {})
    }

    fn with(tree: ToyTree, adjust: impl FnOnce(&mut MountOptions)) -> Mounted {
        let mountpoint = Mountpoint::new();
        let tree = Arc::new(tree);
        let mut options = MountOptions::new(mountpoint.path(), "toy, with a comma");
        adjust(&mut options);
        let session = mount(Arc::clone(&tree), &options).expect("mounted");
        Mounted { session, tree, mountpoint }
    }
}

fn tree_with_a_file() -> ToyTree {
    let mut tree = ToyTree::new();
    tree.file(ROOT_INODE, b"file", b"content");
    tree
}

fn errno<T>(result: io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

/// Unmounts what nobody uses, and not lazily. Another test of this process may be starting a program at this
/// moment, and the program holds our descriptors until it is itself: then it is tried again. What this
/// process itself holds, and what is mounted, is an error.
fn unmount_unused(unmount: impl Fn() -> Result<(), UnmountError>) -> Result<(), UnmountError> {
    let is_ours = |user: &User| match user {
        User::Process { pid, .. } => *pid == std::process::id(),
        User::Mount { .. } => true,
    };
    loop {
        match unmount() {
            Err(UnmountError::Busy { users, .. }) if !users.iter().any(is_ours) => std::thread::yield_now(),
            other => return other,
        }
    }
}

/// Leaves the test, if FUSE is missing here and may be.
macro_rules! require_fuse {
    () => {
        if !crate::support::mounts::fuse_is_here(module_path!()) {
            return;
        }
    };
}
pub(crate) use require_fuse;
