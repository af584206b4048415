//! `peel upgrade DIR`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use peelfs::error::chain;
use peelfs::mount::live::{LiveMount, live_mounts};
use peelfs::store::Store;

use super::asking::{Answer, ask};
use super::failure::{self, NotFound};
use super::output;
use super::unmount::resolved;

/// Have what is mounted served by this program from now on, instead of the one that it was mounted with
///
/// To be called when a newer program was installed. Those who use the mounts notice nothing; if this program cannot serve one, it stays as it is.
#[derive(clap::Args)]
pub struct Arguments {
    /// The directories at which images are mounted
    #[arg(value_name = "DIR", required_unless_present = "all")]
    mountpoints: Vec<PathBuf>,
    /// All mounts of the store, those of containers too
    #[arg(long, conflicts_with = "mountpoints")]
    all: bool,
}

/// A mount stays with the program that serves it.
#[derive(Debug, thiserror::Error)]
#[error("{} is served as before", mountpoint.display())]
struct Stays {
    mountpoint: PathBuf,
    #[source]
    cause: super::asking::AskError,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let mut mounts = if store.exists() { live_mounts(&Store::open(store)?)? } else { Vec::new() };
    if !arguments.all {
        let chosen = arguments.mountpoints.iter().map(|mountpoint| chosen(mountpoint, &mounts));
        mounts = chosen.collect::<anyhow::Result<_>>()?;
    }
    let mut code = ExitCode::SUCCESS;
    for LiveMount { record, .. } in mounts {
        let mountpoint = record.mountpoint;
        match ask(record.pid, record.pid_start_time) {
            Ok(Answer::Moved) => {
                output::print(&format!("{}: served by this program now\n", mountpoint.display()))?
            }
            Ok(Answer::IsHere) => {
                output::print(&format!("{}: served by this program already\n", mountpoint.display()))?;
            }
            // The others may do better.
            Err(cause) => code = failure::report(&Stays { mountpoint, cause }.into()),
        }
    }
    Ok(code)
}

/// Does the same for the trees that containers use, one after the other. What becomes of them is in the log.
pub fn upgrade_trees(store: &Store) {
    let mounts = live_mounts(store).inspect_err(|error| {
        tracing::warn!(error = %chain(error), "trees that are mounted stay with the programs that serve them");
    });
    let is_tree = |mount: &LiveMount| mount.record.mountpoint.starts_with(store.path());
    for LiveMount { record, .. } in mounts.into_iter().flatten().filter(is_tree) {
        let (mountpoint, image) = (record.mountpoint.display(), record.reference);
        match ask(record.pid, record.pid_start_time) {
            Ok(Answer::Moved) => tracing::info!(%image, %mountpoint, "a tree is served by this program now"),
            Ok(Answer::IsHere) => {}
            Err(error) => {
                let error = chain(&error);
                tracing::warn!(%image, %mountpoint, %error, "a tree stays with the program that serves it");
            }
        }
    }
}

fn chosen(mountpoint: &Path, mounts: &[LiveMount]) -> anyhow::Result<LiveMount> {
    let path = resolved(mountpoint)?;
    let found = mounts.iter().find(|mount| mount.record.mountpoint == path).cloned();
    Ok(found.ok_or_else(|| NotFound(format!("{} is no mount of this store", path.display())))?)
}
