//! `peel extract REF [PATH…]`

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::fetch::NetworkThreads;
use peelfs::mount::Pull;
use peelfs::store::Store;

use super::environment;
use super::pull::{PulledImage, keep_house};

/// Fetch all content of an image, and prove it
///
/// Afterwards the image is mounted and read without its registry. With PATHs, only what lies at and below them is fetched. The image is
/// brought into the store if it is not there.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    image: PulledImage,
    /// Files or directories in the image
    #[arg(value_name = "PATH")]
    paths: Vec<OsString>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    let store = Arc::new(Store::open(store)?);
    let threads = NetworkThreads::new(|| {});
    let paths: Vec<Vec<u8>> = arguments.paths.iter().map(|path| path.clone().into_vec()).collect();
    let pulled = arguments.image.pull(store.clone(), threads.starter(), Pull::Missing)?;
    arguments.image.extract(threads.starter(), &pulled, &paths)?;
    keep_house(&store);
    arguments.image.report(&pulled)
}
