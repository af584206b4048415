//! `peel unmount DIR`

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::mount::live;
use peelfs::mount::writable::{open_cache, snapshot_at};
use peelfs::store::Store;
use peelfs::store::record_tables::RecordId;

use super::failure::NotFound;
use super::output;

/// Unmount an image, also one whose serving process was killed
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory at which it is mounted
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Take the directory away even while the image is in use; it is served until nobody uses it any more
    #[arg(short, long)]
    lazy: bool,
    /// Discard what was changed in a writable mount
    #[arg(long, conflicts_with = "lazy")]
    discard: bool,
}

/// Runs the command.
pub fn run(arguments: Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    // Before unmounting: the path of a dead mount cannot be resolved by looking at it, but its parent can.
    let mountpoint = resolved(&arguments.mountpoint)?;
    let store = if store.exists() { Some(Store::open(store)?) } else { None };
    // What is no mount is told below.
    let snapshot = store.as_ref().and_then(|store| snapshot_at(store, &mountpoint).ok()).flatten();
    if arguments.discard && snapshot.is_none() {
        let reason = format!(
            "{} is no writable mount of this store: there is nothing to discard",
            mountpoint.display()
        );
        return Err(NotFound(reason).into());
    }
    peelfs_fuse::unmount(&mountpoint, arguments.lazy)?;
    if let Some(store) = store {
        live::wait_for_end(&store, &mountpoint)?;
        live::forget_unmounted(&store, &mountpoint)?;
        if let Some(id) = snapshot {
            settle(store, &id, arguments.discard)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Discards what was changed, or says where it is.
fn settle(store: Store, id: &RecordId, is_discarded: bool) -> anyhow::Result<()> {
    let Some(snapshot) = store.snapshots().open(id)? else { return Ok(()) };
    let name = snapshot.note.origin.name.clone();
    if is_discarded {
        drop(snapshot);
        return super::snapshot::discard(&open_cache(Arc::new(store))?, &name);
    }
    let changed = output::bytes(snapshot.changed_bytes()?);
    let text = format!(
        "what was changed ({changed}) is kept as {name}: go on with `peel mount --snapshot {name} {} DIR`, \
         or discard it with `peel snapshot rm {name}`\n",
        snapshot.note.origin.reference
    );
    Ok(output::print(&text)?)
}

/// The path without symlinks, as the kernel lists it, found without touching the mount itself.
pub fn resolved(mountpoint: &Path) -> anyhow::Result<PathBuf> {
    let absolute = std::path::absolute(mountpoint)?;
    match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) if !absolute.is_symlink() => {
            Ok(parent.canonicalize().map_or(absolute.clone(), |parent| parent.join(name)))
        }
        _ => Ok(absolute.canonicalize()?),
    }
}
