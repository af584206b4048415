//! `peel unmount DIR`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use peelfs::mount::live;
use peelfs::store::Store;

/// Unmount an image, also one whose serving process was killed
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory at which it is mounted
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Take the directory away even while the image is in use; it is served until nobody uses it any more
    #[arg(short, long)]
    lazy: bool,
}

/// Runs the command.
pub fn run(arguments: Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    // Before unmounting: the path of a dead mount cannot be resolved by looking at it, but its parent can.
    let mountpoint = resolved(&arguments.mountpoint)?;
    peelfs_fuse::unmount(&mountpoint, arguments.lazy)?;
    if store.exists() {
        let store = Store::open(store)?;
        live::wait_for_end(&store, &mountpoint)?;
        live::forget_unmounted(&store, &mountpoint)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The path without symlinks, as the kernel lists it, found without touching the mount itself.
fn resolved(mountpoint: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(mountpoint)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if !absolute.is_symlink() => {
            Ok(parent.canonicalize().map_or(absolute.clone(), |parent| parent.join(name)))
        }
        _ => Ok(absolute.canonicalize()?),
    }
}
