//! `peel rm REF`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::cache::Cache;
use peelfs::gc::{Policy, collect};
use peelfs::mount::take_name;
use peelfs::store::Store;
use peelfs_registry::ImageReference;

use super::environment;
use super::failure::NotFound;

/// Take an image's name away, on all platforms
///
/// Layers that no other image has stay until `peel gc`; what is mounted stays mounted.
#[derive(clap::Args)]
pub struct Arguments {
    /// The images, as they were pulled, mounted or tagged
    #[arg(value_name = "REF", value_parser = environment::reference, required = true)]
    references: Vec<ImageReference>,
    /// Remove at once what nobody needs any more, as `peel gc` does
    #[arg(long)]
    now: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Arc::new(Store::open(store)?);
    let mut unknown = Vec::new();
    for reference in &arguments.references {
        if take_name(&store, reference)? == 0 {
            unknown.push(reference.to_string());
        }
    }
    if arguments.now {
        collect(&Cache::open_as_it_is(store)?, &Policy::default(), false)?;
    }
    if !unknown.is_empty() {
        let reason = format!("{}: not in the store; `peel ls` lists what is", unknown.join(", "));
        return Err(NotFound(reason).into());
    }
    Ok(ExitCode::SUCCESS)
}
