//! `peel mount REF DIR`

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use peelfs::cache::Cache;
use peelfs::commit::image_of;
use peelfs::fetch::{NetworkThreads, ThreadStarter};
use peelfs::mount::completion::Wish;
use peelfs::mount::handover::Predecessor;
use peelfs::mount::writable::{self, WritablePlan};
use peelfs::mount::{ImageMountError, Mounted, Prefetching, Pull, Request, memory, prepare};
use peelfs::store::{SnapshotName, Store};
use peelfs_fuse::{Label, LabelError, MountOptions, Unmounter};
use peelfs_registry::ImageReference;
use tokio::signal::unix::{SignalKind, signal};

use super::background;
use super::beginning::{Beginning, Role};
use super::complete::CompletionArgument;
use super::log_file::LogFile;
use super::network::SourceArguments;
use super::passthrough::PassthroughArgument;
use super::server::Server;
use super::signals::{self, Held};
use super::{environment, progress};

/// Mount an image as a directory
///
/// Returns when DIR is usable, and goes on serving it in the background until it is unmounted.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image: a registry reference such as python:3.12 or host:5000/name@sha256:…, or oci:PATH[:TAG]
    #[arg(value_name = "REF", value_parser = environment::reference)]
    reference: ImageReference,
    /// An empty directory
    #[arg(value_name = "DIR")]
    mountpoint: PathBuf,
    /// Show in DIR/.peel, which no list has, how much of each layer is here: a file of JSON for each. Not in a mount that can be written to
    #[arg(long, conflicts_with_all = ["writable", "snapshot"])]
    status_files: bool,
    /// Let DIR be written to: what is changed is kept in a snapshot of the store, which outlives the mount. Needs root
    #[arg(long)]
    writable: bool,
    /// Go on with the snapshot of that name, or begin it; implies --writable [default: a new name, which peel unmount tells]
    #[arg(long, value_name = "NAME")]
    snapshot: Option<SnapshotName>,
    /// Stay in the foreground; SIGINT and SIGTERM unmount
    #[arg(short, long)]
    foreground: bool,
    /// When to ask the registry what REF means
    #[arg(long, value_enum, default_value_t = PullArgument::Missing)]
    pull: PullArgument,
    #[command(flatten)]
    source: SourceArguments,
    /// Seconds after which a read that waits for the registry fails with an I/O error
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    read_timeout: u64,
    /// What is fetched before it is read
    #[arg(long, value_enum, default_value_t = PrefetchArgument::Auto)]
    prefetch: PrefetchArgument,
    /// Where nothing is known here of what mounts of the image read, ask its registry for a profile that was pushed beside it: a request for each image
    /// of which something is missing. Whoever may push there decides what is fetched first, and nothing else
    #[arg(long)]
    profile_from_registry: bool,
    #[command(flatten)]
    completion: CompletionArgument,
    /// Whether the kernel reads files of 1 MiB and more itself, where they are wholly here and proved: as fast as the store's disk is. Each open of
    /// any file asks the serving process then, and only one overlay can be laid over the mount. Needs root, Linux 6.9, and a store without a
    /// budget that is on no overlay; else files are read as ever
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = PassthroughArgument::Auto)]
    passthrough: PassthroughArgument,
    /// Do not record which files are read; `peel profile` shows what is recorded
    #[arg(long)]
    no_profile: bool,
    /// Let other users look in [default: when root mounts]
    #[arg(long)]
    allow_other: bool,
    /// Let setuid, setgid and file capabilities of the image have effect
    #[arg(long)]
    suid: bool,
    /// Let device nodes of the image be opened
    #[arg(long)]
    dev: bool,
    /// The SELinux label that all files show, such as system_u:object_r:container_file_t:s0, whatever the image says of them (mount(8),
    /// "context=")
    #[arg(long, value_name = "LABEL", visible_alias = "mount-label", value_parser = label)]
    label: Option<Label>,
    /// Write the log to FILE [default in the background: log/ in the store]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PullArgument {
    /// If the store does not know it
    Missing,
    /// Each time
    Always,
    /// Never
    Never,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum PrefetchArgument {
    /// The files of the profile; without one, what the image's author marked
    Auto,
    /// The files that earlier mounts of the image, or of another tag of its repository, read, in their order
    Profile,
    /// The part of each layer that the image's author marked as wanted first (eStargz landmarks)
    Landmark,
    /// Nothing
    None,
}

impl From<PrefetchArgument> for Prefetching {
    fn from(argument: PrefetchArgument) -> Prefetching {
        match argument {
            PrefetchArgument::Auto => Prefetching::Auto,
            PrefetchArgument::Profile => Prefetching::Profile,
            PrefetchArgument::Landmark => Prefetching::Landmark,
            PrefetchArgument::None => Prefetching::None,
        }
    }
}

/// A label, also as it is written where options are separated by commas: `context="…"`.
fn label(text: &str) -> Result<Label, LabelError> {
    let text = text.strip_prefix("context=").unwrap_or(text);
    let quoted = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    quoted.unwrap_or(text).parse()
}

/// Runs the command. The process forks here, before it has a second thread.
pub fn run(
    arguments: Arguments,
    store: &Path,
    verbose: u8,
    beginning: Beginning,
) -> anyhow::Result<ExitCode> {
    memory::spare();
    // The serving process leaves the current directory.
    let store = std::path::absolute(store)?;
    let is_typed = matches!(beginning.role, Role::Command);
    if is_typed && arguments.label.is_some() && !arguments.quiet && !Label::is_enforced_here() {
        let told =
            "SELinux is not enabled on this machine: files show the label, but nothing is forbidden by it";
        // If it cannot be said, the mount is as good.
        let _ = writeln!(anstream::stderr(), "peel: {told}");
    }
    if arguments.foreground {
        serve(&arguments, &store, verbose, &mut Server::alone())?;
        return Ok(ExitCode::SUCCESS);
    }
    background::run(beginning, |server| serve(&arguments, &store, verbose, server))
}

fn serve(arguments: &Arguments, store: &Path, verbose: u8, server: &mut Server) -> anyhow::Result<()> {
    let store = Arc::new(Store::open(store)?);
    start_log(arguments, &store, verbose)?;
    let threads = NetworkThreads::new(|| {
        signals::hold();
    });
    let request = request(arguments, server);
    let (mounted, signals) = match server.predecessor()? {
        None => mount(arguments, &store, &threads, request, server)?,
        Some(predecessor) => {
            let request = go_on_with(&predecessor, request);
            let prepared = prepare(store.clone(), threads.starter(), request)?;
            prepared.is_tree_of(&predecessor)?;
            server.take_place()?;
            (prepared.take_over(&options(arguments), predecessor)?, server.hold_signals())
        }
    };
    serve_mounted(&store, &threads, mounted, server, signals, arguments.completion.wish())
}

fn mount(
    arguments: &Arguments,
    store: &Arc<Store>,
    threads: &NetworkThreads,
    request: Request,
    server: &mut Server,
) -> anyhow::Result<(Mounted, Held)> {
    let writable = writable_plan(arguments, store, &request)?;
    let pinned = writable.as_ref().and_then(WritablePlan::pinned).cloned();
    let prepared = prepare(store.clone(), threads.starter(), Request { pinned, ..request })?;
    let signals = server.hold_signals();
    let mounted = match writable {
        None => prepared.mount(&options(arguments))?,
        Some(plan) => prepared.mount_writable(&options(arguments), plan)?,
    };
    Ok((mounted, signals))
}

/// The request for the very image that is mounted, whatever its name means by now. What was to be fetched first has been, or is read.
pub fn go_on_with(predecessor: &Predecessor, request: Request) -> Request {
    let (pinned, takes_over) = (Some(predecessor.manifest().clone()), Some(predecessor.layers().to_vec()));
    Request { pinned, prefetching: Prefetching::None, takes_over, ..request }
}

/// Serves what is mounted until it is unmounted.
pub fn serve_mounted(
    store: &Store,
    threads: &NetworkThreads,
    mounted: Mounted,
    server: &mut Server,
    signals: Held,
    completion: Option<Wish>,
) -> anyhow::Result<()> {
    server.hand_over(&mounted);
    server.usable()?;
    stop_on_signals(threads.starter(), mounted.session().unmounter())?;
    drop(signals);
    server.watch_holder(threads.starter(), mounted.keeper())?;
    tracing::info!(image = %mounted.reference(), mountpoint = %mounted.session().mountpoint().display(), "mounted");
    mounted.follow_profile();
    mounted.complete(completion);
    keep_house(store, &mounted);
    Ok(mounted.wait()?)
}

/// What takes the changes, if the mount is to be written to.
fn writable_plan(
    arguments: &Arguments,
    store: &Arc<Store>,
    request: &Request,
) -> anyhow::Result<Option<WritablePlan>> {
    let name = arguments.snapshot.as_ref();
    if name.is_none() && !arguments.writable {
        return Ok(None);
    }
    let cache = match name {
        Some(_) => writable::open_cache(store.clone())?,
        // What others have left is looked at once it is mounted.
        None => Cache::open_as_it_is(store.clone())?,
    };
    let plan = writable::plan(cache, name, &request.reference, &request.platform);
    let mut plan = plan.map_err(ImageMountError::from)?;
    if let Some(committed) = plan.committed() {
        let threads = std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN);
        let image = image_of(plan.cache(), committed, threads);
        plan.stand_on(image.context("what was committed cannot be mounted")?);
    }
    Ok(Some(plan))
}

fn request(arguments: &Arguments, server: &Server) -> Request {
    Request {
        reference: arguments.reference.clone(),
        platform: arguments.source.platform(),
        pinned: None,
        takes_over: None,
        pull: match arguments.pull {
            PullArgument::Missing => Pull::Missing,
            PullArgument::Always => Pull::Always,
            PullArgument::Never => Pull::Never,
        },
        client: arguments.source.client(),
        read_deadline: Duration::from_secs(arguments.read_timeout),
        trust_referrers: arguments.source.trust_referrers,
        records_profile: !arguments.no_profile,
        prefetching: arguments.prefetch.into(),
        profile_from_registry: arguments.profile_from_registry,
        known_by: server.pid(),
        status_files: arguments.status_files,
        passthrough: arguments.passthrough.into(),
        progress: progress::to_terminal(arguments.quiet),
    }
}

fn options(arguments: &Arguments) -> MountOptions {
    MountOptions {
        allow_other: arguments.allow_other || rustix::process::geteuid().is_root(),
        nosuid: !arguments.suid,
        nodev: !arguments.dev,
        label: arguments.label.clone(),
        ..MountOptions::new(&arguments.mountpoint, arguments.reference.to_string())
    }
}

/// In the foreground the log goes to standard error, in the background to a file of the store.
fn start_log(arguments: &Arguments, store: &Store, verbose: u8) -> anyhow::Result<()> {
    match (&arguments.log, arguments.foreground) {
        (Some(path), _) => {
            let file = std::fs::File::options().create(true).append(true).open(path);
            let file = file.with_context(|| format!("cannot write the log {}", path.display()))?;
            environment::log(verbose, Mutex::new(file));
        }
        (None, true) => environment::log(verbose, std::io::stderr),
        (None, false) => {
            let path = store.path().join("log").join(format!("{}.log", std::process::id()));
            environment::log(verbose, Mutex::new(LogFile::new(path)));
        }
    }
    Ok(())
}

/// SIGINT and SIGTERM unmount; a mount in use disappears from its directory and is served until nobody uses it any more.
fn stop_on_signals(threads: &ThreadStarter, unmounter: Unmounter) -> anyhow::Result<()> {
    let threads = threads.handle().context("cannot start threads")?;
    let _guard = threads.enter();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    threads.spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let unmounter = unmounter.clone();
            let unmounted = tokio::task::spawn_blocking(move || {
                unmounter.unmount(false).or_else(|_| unmounter.unmount(true))
            });
            if let Ok(Err(error)) = unmounted.await {
                tracing::error!(error = %peelfs::error::chain(&error), "cannot unmount");
            }
        }
    });
    Ok(())
}

/// What can wait until the directory is usable.
fn keep_house(store: &Store, mounted: &Mounted) {
    mounted.settle();
    memory::give_back();
    if let Err(error) = store.database().shorten_log() {
        tracing::warn!(error = %peelfs::error::chain(&error), "the log of the records stays long");
    }
    if let Err(error) = store.sweep() {
        tracing::warn!(error = %peelfs::error::chain(&error), "leftovers in the store were not removed");
    }
    mounted.recover_records();
    mounted.prove();
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn a_label_is_typed_as_it_is_or_as_a_mount_option() {
        let plain = "system_u:object_r:container_file_t:s0:c1,c2";
        for typed in [plain.to_owned(), format!("context={plain}"), format!("context=\"{plain}\"")] {
            assert_eq!(label(&typed).unwrap().to_string(), plain);
        }
        for wrong in ["", "context=", "container_file_t", "fscontext=u:r:t", "context=\"u:r:t"] {
            assert!(label(wrong).is_err(), "{wrong}");
        }
    }
}
