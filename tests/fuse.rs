//! The FUSE side through the real kernel: what a tree says is what a program sees, and a mount begins and ends cleanly.

mod lifecycle;
mod toy_tree;
mod view;

use std::sync::Arc;

use peelfs_fuse::{MountOptions, Session, mount};

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

/// Leaves the test, if FUSE is missing here and may be.
macro_rules! require_fuse {
    () => {
        if !crate::support::mounts::fuse_is_here(module_path!()) {
            return;
        }
    };
}
pub(crate) use require_fuse;
