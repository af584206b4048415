//! `peel ctr-pull REF`

use std::path::PathBuf;
use std::process::ExitCode;

use peelfs::containerd::pull::{Outcome, PullRequest, PulledImage, pull};
use peelfs_registry::{ImageReference, Platform};
use serde::Serialize;

use super::failure::Usage;
use super::network::{self, NetworkArguments};
use super::output::{self, Align, ReportArguments};
use super::{environment, progress};

/// Pull an image into containerd, lazily where its snapshotter can
///
/// Tells the snapshotter which image and layer each snapshot is of, as `ctr-remote images rpull` does, so that it can bring their
/// content when it is read. What cannot be lazy is fetched and unpacked by containerd.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image: a registry reference such as python:3.12 or host:5000/name@sha256:…
    #[arg(value_name = "REF", value_parser = environment::reference)]
    reference: ImageReference,
    /// containerd's socket
    #[arg(
        short,
        long,
        value_name = "PATH",
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    address: PathBuf,
    /// containerd's namespace; that of Kubernetes is k8s.io
    #[arg(short, long, value_name = "NAME", env = "CONTAINERD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// containerd's snapshotter
    #[arg(long, value_name = "NAME", env = "CONTAINERD_SNAPSHOTTER", default_value = "peel")]
    snapshotter: String,
    /// The platform to choose from an image index, such as linux/arm64 [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    #[command(flatten)]
    network: NetworkArguments,
    #[command(flatten)]
    report: ReportArguments,
}

#[derive(Serialize)]
struct Report {
    reference: String,
    /// What containerd's name of the image stands for.
    target_digest: String,
    manifest_digest: String,
    layers: Vec<LayerReport>,
    /// HTTP requests that were made, those of the snapshotter not included.
    requests: u64,
    /// Bytes that they brought.
    fetched_bytes: u64,
}

#[derive(Serialize)]
struct LayerReport {
    digest: String,
    diff_id: String,
    /// Bytes of the blob.
    size: u64,
    /// `known`, `lazy` or `unpacked`.
    state: &'static str,
}

/// Runs the command.
pub fn run(arguments: &Arguments, verbose: u8) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    let ImageReference::Registry(reference) = &arguments.reference else {
        let text = "only an image of a registry can be pulled into containerd; import a layout with `ctr images import`";
        return Err(Usage(text.to_owned()).into());
    };
    let request = PullRequest {
        reference: reference.clone(),
        platform: environment::platform(arguments.platform.clone()),
        client: arguments.network.client(),
        address: arguments.address.clone(),
        namespace: arguments.namespace.clone(),
        snapshotter: arguments.snapshotter.clone(),
        progress: progress::of_containerd(arguments.report.quiet),
    };
    let interrupted = async {
        // If signals cannot be had, the process ends by them.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending().await
        }
    };
    let pulled = network::runtime()?.block_on(pull(request, interrupted))?;
    let report = report(&reference.to_string(), &pulled);
    if arguments.report.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(reference: &str, pulled: &PulledImage) -> Report {
    let layers = pulled.image.layers.iter().zip(&pulled.outcomes);
    Report {
        reference: reference.to_owned(),
        target_digest: pulled.target.to_string(),
        manifest_digest: pulled.image.manifest_digest.to_string(),
        layers: layers
            .map(|(layer, outcome)| LayerReport {
                digest: layer.descriptor.digest.to_string(),
                diff_id: layer.diff_id.to_string(),
                size: layer.descriptor.size,
                state: match outcome {
                    Outcome::Known => "known",
                    Outcome::Lazy => "lazy",
                    Outcome::Unpacked => "unpacked",
                },
            })
            .collect(),
        requests: pulled.statistics.requests,
        fetched_bytes: pulled.statistics.bytes_received,
    }
}

fn text(report: &Report) -> String {
    let columns = [("LAYER", Align::Left), ("SIZE", Align::Right), ("STATE", Align::Left)];
    let rows = report
        .layers
        .iter()
        .map(|layer| vec![output::short(&layer.digest), output::bytes(layer.size), layer.state.to_owned()]);
    let mut text = output::table(&columns, &rows.collect::<Vec<_>>());
    let Report { reference, target_digest, requests, fetched_bytes, .. } = report;
    text.push_str(&format!(
        "{reference} is {target_digest}; {requests} requests, {}\n",
        output::bytes(*fetched_bytes)
    ));
    text
}
