//! `peel serve-stack`, which `peel serve` starts for each tree that containers use: a mount of the lowest layers of an image.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use peelfs::cri::agent::{self, Asking};
use peelfs::fetch::NetworkThreads;
use peelfs::mount::{Prefetching, Pull, Request, memory, prepare_lowest};
use peelfs::snapshotter::RemoteStack;
use peelfs::store::Store;
use peelfs_fuse::MountOptions;
use peelfs_registry::{Asked, ClientConfiguration, CredentialSource, Digest, ImageReference, Platform};

use super::beginning::Beginning;
use super::complete::CompletionArgument;
use super::log_file::LogFile;
use super::mount::{go_on_with, serve_mounted};
use super::network::NetworkArguments;
use super::passthrough::PassthroughArgument;
use super::server::Server;
use super::signals;
use super::{background, environment};

/// The name of the command.
pub const NAME: &str = "serve-stack";

/// The option that has it show the status of its layers.
pub const STATUS_FILES: &str = "--status-files";

/// Mount the lowest layers of an image for containers; `peel serve` does this
#[derive(clap::Args)]
pub struct Arguments {
    /// By what the image was asked for
    reference: ImageReference,
    /// An empty directory
    mount_point: PathBuf,
    /// The image's manifest
    #[arg(long)]
    manifest: Digest,
    /// How many layers, from the lowest
    #[arg(long)]
    layers: u32,
    /// The image's platform
    #[arg(long)]
    platform: Platform,
    /// As for `peel mount`
    #[arg(long)]
    trust_referrers: bool,
    /// As for `peel mount`
    #[arg(long, default_value_t = 60)]
    read_timeout: u64,
    /// As for `peel mount`
    #[arg(long)]
    status_files: bool,
    /// As for `peel mount`
    #[arg(long)]
    profile_from_registry: bool,
    /// As for `peel mount`
    #[arg(long, value_enum, default_value_t = PassthroughArgument::Never)]
    passthrough: PassthroughArgument,
    #[command(flatten)]
    completion: CompletionArgument,
    #[command(flatten)]
    network: NetworkArguments,
}

/// The option that has it ask the registry for a profile.
pub const PROFILE_FROM_REGISTRY: &str = "--profile-from-registry";

/// What has the tree of a stack appear at a directory, behind the name of the program and what all commands have in common.
pub fn command_line(stack: &RemoteStack, mount_point: &Path) -> Vec<OsString> {
    let layers = stack.layers.to_string();
    let words =
        [NAME, "--manifest", &stack.manifest_digest, "--layers", &layers, "--platform", &stack.platform];
    let mut words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
    words.push(stack.reference.clone().into());
    words.push(mount_point.into());
    words
}

/// Runs the command. The process forks here, before it has a second thread.
pub fn run(
    arguments: &Arguments,
    store: &Path,
    verbose: u8,
    beginning: Beginning,
) -> anyhow::Result<ExitCode> {
    memory::spare();
    background::run(beginning, |server| serve(arguments, store, verbose, server))
}

fn serve(arguments: &Arguments, store: &Path, verbose: u8, server: &mut Server) -> anyhow::Result<()> {
    let store = Arc::new(Store::open(store)?);
    let log = store.path().join("log").join(format!("{}.log", std::process::id()));
    environment::log(verbose, Mutex::new(LogFile::new(log)));
    let threads = NetworkThreads::new(|| {
        signals::hold();
    });
    let asking = Arc::new(Asking::new(agent::socket_of(store.path())));
    let request = Request {
        reference: arguments.reference.clone(),
        platform: arguments.platform.clone(),
        pinned: Some(arguments.manifest.clone()),
        takes_over: None,
        pull: Pull::Missing,
        client: ClientConfiguration { credential_source: Some(asking.clone()), ..arguments.network.client() },
        read_deadline: Duration::from_secs(arguments.read_timeout),
        trust_referrers: arguments.trust_referrers,
        records_profile: true,
        prefetching: Prefetching::Auto,
        profile_from_registry: arguments.profile_from_registry,
        known_by: server.pid(),
        status_files: arguments.status_files,
        passthrough: arguments.passthrough.into(),
        progress: Arc::new(|_| {}),
    };
    // What a container may do is decided where the overlay above this is mounted; the store's directory is closed to others.
    let options = MountOptions {
        allow_other: rustix::process::geteuid().is_root(),
        nosuid: false,
        nodev: false,
        ..MountOptions::new(&arguments.mount_point, arguments.reference.to_string())
    };
    let layers = usize::try_from(arguments.layers)?;
    let predecessor = server.predecessor()?;
    let request = match &predecessor {
        None => request,
        Some(predecessor) => go_on_with(predecessor, request),
    };
    let prepared = prepare_lowest(store.clone(), threads.starter(), request, layers)?;
    let signals = server.hold_signals();
    let mounted = match predecessor {
        None => prepared.mount(&options)?,
        Some(predecessor) => {
            prepared.is_tree_of(&predecessor)?;
            if server.is_on_trial() {
                remember_credentials(&asking, &arguments.reference);
            }
            server.take_place()?;
            prepared.take_over(&options, predecessor)?
        }
    };
    serve_mounted(&store, &threads, mounted, server, signals, arguments.completion.wish())
}

/// Asks the daemon now: what the predecessor was told and remembers goes with it, and a daemon that is restarted next knows nothing.
fn remember_credentials(asking: &Asking, image: &ImageReference) {
    let ImageReference::Registry(reference) = image else { return };
    let registry = reference.host().to_owned();
    let asked = Asked { host: registry.clone(), registry, repository: reference.repository().to_owned() };
    if let Err(error) = asking.credentials(&asked) {
        tracing::debug!(%error, "no credentials are known");
    }
}
