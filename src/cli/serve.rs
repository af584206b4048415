//! `peel serve`

use std::ffi::OsString;
use std::io::{Read, Seek, Write};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use peelfs::containerd::documents::Documents;
use peelfs::cri::agent;
use peelfs::cri::learned::Learned;
use peelfs::cri::proxy::ImageService;
use peelfs::daemon::metrics::Metrics;
use peelfs::daemon::metrics_server::{MetricsAddress, MetricsListener};
use peelfs::daemon::socket::Socket;
use peelfs::daemon::{self, Serving};
use peelfs::fetch::NetworkThreads;
use peelfs::mount::counters::Counters;
use peelfs::mount::live;
use peelfs::mount::parts::Bringing;
use peelfs::mount::passthrough::Passthrough;
use peelfs::mount::{Prefetching, Pull, Request, memory};
use peelfs::snapshotter::images::Images;
use peelfs::snapshotter::{BoxError, RemoteStack, Snapshotter, store_fault};
use peelfs::store::Store;
use peelfs_registry::ClientConfiguration;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::signal::unix::{SignalKind, signal};

use super::complete::CompletionArgument;
use super::environment;
use super::failure::Usage;
use super::network::SourceArguments;
use super::passthrough::PassthroughArgument;
use super::upgrade::upgrade_trees;
use super::{inherited, stack};

/// A tree is mounted from what the store has, so this is long; but a table may be damaged, and made again over the network.
const PATIENCE: Duration = Duration::from_secs(90);
/// Bytes of what a serving process says that containerd is told.
const LONGEST_ERROR: u64 = 4096;

/// Serve containerd as a remote snapshotter
///
/// Also serves CRI's image service, for a kubelet's --image-service-endpoint: passes its calls on to containerd, and remembers in memory by
/// which credentials each image was pulled.
///
/// Stays in the foreground until SIGINT or SIGTERM. Takes the socket that a service manager has made, if it did (sd_listen_fds). Trees that containers use stay mounted, each served by a process of its own, and are
/// taken over by the next `peel serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The socket to listen at
    #[arg(long, value_name = "PATH", default_value = "/run/peel/snapshotter.sock")]
    address: PathBuf,
    /// containerd's socket, at which it serves CRI, and has the documents of images that are pulled
    #[arg(
        long,
        value_name = "PATH",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    containerd_address: PathBuf,
    /// Stream layers that cannot be read lazily, instead of leaving them to containerd
    #[arg(long)]
    stream: bool,
    #[command(flatten)]
    source: SourceArguments,
    /// Seconds after which a read that waits for the registry fails with an I/O error
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    read_timeout: u64,
    /// Seconds after which a tree that no container uses is unmounted; it is mounted again when a container needs it
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    idle_timeout: u64,
    /// Serve the trees that are mounted by this program, too, if it is another than the one that they were mounted with
    #[arg(long)]
    upgrade: bool,
    /// Show in /.peel of each image, which no list has, how much of its layers is here: a file of JSON for each
    #[arg(long)]
    status_files: bool,
    /// Whether the kernel reads large files of images itself, as for `peel mount`: then a container's root can be no lower directory of an overlay
    /// that the container mounts
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = PassthroughArgument::Never)]
    passthrough: PassthroughArgument,
    /// Where nothing is known here of what mounts of the image read, ask its registry for a profile that was pushed beside it: a request for each image
    /// of which something is missing. Whoever may push there decides what is fetched first, and nothing else
    #[arg(long)]
    profile_from_registry: bool,
    #[command(flatten)]
    completion: CompletionArgument,
    /// Tell Prometheus numbers at http://ADDRESS/metrics: a loopback address with its port, or the path of a unix socket
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<MetricsAddress>,
    /// Print the section for containerd's configuration, and leave
    #[arg(long)]
    print_containerd_config: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    memory::spare();
    let store = std::path::absolute(store)?;
    if let Some(fault) = store_fault(&store) {
        return Err(Usage(format!("the store cannot be at {}: {fault}", store.display())).into());
    }
    if arguments.print_containerd_config {
        let address = std::path::absolute(&arguments.address)?;
        let platform = arguments.source.platform().to_string();
        std::io::stdout().write_all(containerd_configuration(&address, &store, &platform).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let containerd = std::path::absolute(&arguments.containerd_address)?;
    if containerd == std::path::absolute(&arguments.address)? {
        let text = format!("--containerd-address is its own address, {}", containerd.display());
        return Err(Usage(text).into());
    }
    environment::log(verbose.max(1), std::io::stderr);
    let inherited = inherited::listener()?;
    let opened = Arc::new(Store::open(&store)?);
    let threads = NetworkThreads::new(|| {});
    let learned = Learned::default();
    let documents = Documents::new(containerd.clone(), threads.starter().clone());
    let images = images(arguments, &opened, &threads, &learned)?
        .with_documents(Box::new(move |namespace, manifest| documents.of_image(namespace, manifest)));
    let idle_after = Duration::from_secs(arguments.idle_timeout);
    let Some(snapshotter) = Snapshotter::open(opened.clone(), Box::new(images), idle_after)? else {
        bail!(
            "another peel serve uses the store {}; stop it, or choose another with --store",
            store.display()
        );
    };
    let snapshotter = Arc::new(snapshotter);
    let (socket, listener) = match inherited {
        Some(listener) => (None, listener),
        None => {
            let (socket, listener) = Socket::listen(&arguments.address)?;
            (Some(socket), listener)
        }
    };
    let agent = credential_socket(&store);
    let image_service = ImageService::new(&containerd, learned.clone());
    forget_counters_of_the_dead(&opened);
    let counters = Arc::new(Counters::new(opened.clone(), std::process::id()));
    counters.begin();
    let metrics = Arc::new(Metrics::new(opened.clone(), counters.clone()));
    let runtime = threads.starter().handle().context("cannot start threads")?;
    counters.keep_fresh(&runtime, || {});
    runtime.block_on(async {
        let (mut interrupt, mut terminate) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let listener = tokio::net::UnixListener::from_std(listener)?;
        if let Some((_, questions)) = &agent {
            let questions = tokio::net::UnixListener::from_std(questions.try_clone()?)?;
            tokio::spawn(agent::answer(questions, learned));
        }
        let metrics_listener = arguments.metrics_address.as_ref().map(MetricsListener::listen).transpose()?;
        tracing::info!(address = ?listener.local_addr(), store = %store.display(), "serving");
        environment::tell_readiness();
        clean_up(&snapshotter);
        if arguments.upgrade {
            let store = opened.clone();
            tokio::task::spawn_blocking(move || upgrade_trees(&store));
        }
        let end = async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let look_every = (idle_after / 4).clamp(Duration::from_millis(500), Duration::from_secs(60));
        let serving = Serving { snapshotter, images: image_service, metrics, metrics_listener, look_every };
        daemon::serve(listener, serving, end).await;
        anyhow::Ok(())
    })?;
    drop(socket);
    Ok(ExitCode::SUCCESS)
}

/// What processes have counted that were killed goes on to count, but not in files of their own.
fn forget_counters_of_the_dead(store: &Store) {
    if let Err(error) = store.counters().retire_gone(|pid| live::start_time(pid).is_some()) {
        tracing::warn!(%error, "what processes have counted that were killed stays where it is");
    }
}

/// Where processes that serve trees ask for credentials. Without it all else goes on.
fn credential_socket(store: &Path) -> Option<(Socket, UnixListener)> {
    let listened = Socket::listen(&agent::socket_of(store));
    listened
        .inspect_err(|error| {
            tracing::warn!(%error, "the credentials of pulls by CRI will not be known where layers are read");
        })
        .ok()
}

/// What was left undone when the last one ended.
fn clean_up(snapshotter: &Arc<Snapshotter>) {
    let snapshotter = snapshotter.clone();
    tokio::task::spawn_blocking(move || {
        // What goes wrong is in the log.
        let _ = snapshotter.clean_up();
    });
}

fn images(
    arguments: &Arguments,
    store: &Arc<Store>,
    threads: &NetworkThreads,
    learned: &Learned,
) -> anyhow::Result<Images> {
    let platform = arguments.source.platform();
    let trust_referrers = arguments.source.trust_referrers;
    let client = ClientConfiguration {
        credential_source: Some(Arc::new(learned.clone())),
        ..arguments.source.client()
    };
    let read_deadline = Duration::from_secs(arguments.read_timeout);
    let request = move |reference| Request {
        reference,
        platform: platform.clone(),
        pinned: None,
        takes_over: None,
        pull: Pull::Missing,
        client: client.clone(),
        read_deadline,
        trust_referrers,
        records_profile: false,
        prefetching: Prefetching::None,
        profile_from_registry: false,
        known_by: std::process::id(),
        status_files: false,
        passthrough: Passthrough::Never,
        progress: Arc::new(|_| {}),
    };
    let bringing = if arguments.stream { Bringing::OrStreamed } else { Bringing::Lazily };
    // This very program, even if another was installed in its place since.
    let program = PathBuf::from("/proc/self/exe");
    let mut options = arguments.source.network.to_arguments();
    options.extend(["--read-timeout".into(), arguments.read_timeout.to_string().into()]);
    if trust_referrers {
        options.push("--trust-referrers".into());
    }
    if arguments.status_files {
        options.push(stack::STATUS_FILES.into());
    }
    if arguments.profile_from_registry {
        options.push(stack::PROFILE_FROM_REGISTRY.into());
    }
    if arguments.passthrough != PassthroughArgument::Never {
        options.extend(arguments.passthrough.to_argument());
    }
    options.extend(arguments.completion.to_argument());
    let path = store.path().to_owned();
    let mounter =
        move |stack: &RemoteStack, mount_point: &Path| mount(&program, &path, &options, stack, mount_point);
    Ok(Images::new(store.clone(), threads.starter().clone(), request, bringing, Box::new(mounter)))
}

/// Has a process of its own serve the tree of a stack: it outlives this one.
fn mount(
    program: &Path,
    store: &Path,
    options: &[OsString],
    stack: &RemoteStack,
    mount_point: &Path,
) -> Result<(), BoxError> {
    let mut command = Command::new(program);
    command.arg0("peel").env_remove("NOTIFY_SOCKET");
    command.arg("--store").arg(store).args(stack::command_line(stack, mount_point)).args(options);
    // No pipe, which a process that goes on in the background might hold open.
    let mut errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let status = wait(command.spawn()?)?;
    if status.success() {
        return Ok(());
    }
    let mut told = Vec::new();
    errors.rewind()?;
    errors.take(LONGEST_ERROR).read_to_end(&mut told)?;
    let told = String::from_utf8_lossy(&told);
    let told = told.trim().trim_start_matches("peel: ").replace("\n  because: ", ": ").replace('\n', "; ");
    Err(if told.is_empty() { format!("its serving process ended: {status}").into() } else { told.into() })
}

/// Waits until a serving process has said whether it serves, and no longer than anybody would.
fn wait(mut child: Child) -> Result<ExitStatus, BoxError> {
    let process = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let patience = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ended = retry_on_intr(|| poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience)))?;
    if ended == 0 {
        // The one in the background may still come to an end. Then its mount is found at the next try.
        child.kill()?;
        child.wait()?;
        return Err(format!("its serving process was not ready after {} s", PATIENCE.as_secs()).into());
    }
    Ok(child.wait()?)
}

/// What is to be added to containerd's configuration, of whichever version: what a version has no word for it passes over.
fn containerd_configuration(address: &Path, store: &Path, platform: &str) -> String {
    let (address, root) = (address.display(), store.display());
    // Whoever names one snapshotter takes the usual one away.
    let unpacked = ["overlayfs", "peel"].map(|snapshotter| {
        format!(
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
             \x20 platform = \"{platform}\"\n\
             \x20 snapshotter = \"{snapshotter}\"\n\
             \x20 differ = \"walking\"\n"
        )
    });
    let unpacked = unpacked.concat();
    format!(
        "# Lets containerd start containers before their images are here. Pull with `peel ctr-pull` and use it with\n\
         # `ctr run --snapshotter peel`, with `nerdctl --snapshotter peel`, or as below for Kubernetes.\n\
         [proxy_plugins.peel]\n\
         \x20 type = \"snapshot\"\n\
         \x20 address = \"{address}\"\n\
         \x20 capabilities = [\"remap-ids\"]\n\
         \x20 [proxy_plugins.peel.exports]\n\
         \x20   root = \"{root}\"\n\
         \x20   enable_remote_snapshot_annotations = \"true\"\n\
         \n\
         # containerd 2.x (version = 3): `ctr images pull --snapshotter` is for these; 1.x (version = 2) passes this over.\n\
         {unpacked}\
         \n\
         # Kubernetes, containerd 1.x:\n\
         # [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
         #   snapshotter = \"peel\"\n\
         #   disable_snapshot_annotations = false\n\
         # Kubernetes, containerd 2.x:\n\
         # [plugins.\"io.containerd.cri.v1.images\"]\n\
         #   snapshotter = \"peel\"\n\
         #   disable_snapshot_annotations = false\n\
         # and for the kubelet, so that the credentials of pods are known here:\n\
         # --image-service-endpoint=unix://{address}\n"
    )
}
