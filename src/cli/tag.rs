//! `peel tag REF NAME`

use std::path::Path;
use std::process::ExitCode;

use peelfs::mount::give_name;
use peelfs::store::Store;
use peelfs_registry::ImageReference;

use super::environment;
use super::failure::{NotFound, Usage};

/// Give an image of the store another name, too
///
/// Its bytes go on coming from where they came from.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image, as it was pulled or mounted
    #[arg(value_name = "REF", value_parser = environment::reference)]
    reference: ImageReference,
    /// The other name; an image that has it loses it
    #[arg(value_name = "NAME", value_parser = environment::reference)]
    name: ImageReference,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let Arguments { reference, name } = arguments;
    if name.digest().is_some() {
        return Err(Usage(format!("{name} is named by what is in it, not by a tag")).into());
    }
    let store = Store::open(store)?;
    if give_name(&store, reference, name)? == 0 {
        return Err(NotFound(format!("{reference} is not in the store; `peel ls` lists what is")).into());
    }
    Ok(ExitCode::SUCCESS)
}
