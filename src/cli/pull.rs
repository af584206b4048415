//! `peel pull REF`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use peelfs::fetch::{NetworkThreads, ThreadStarter};
use peelfs::mount::extract::ImageExtractError;
use peelfs::mount::passthrough::Passthrough;
use peelfs::mount::pull::{OtherPlatform, Pulled, pull};
use peelfs::mount::{Prefetching, Pull, Request};
use peelfs::store::Store;
use peelfs_registry::{ImageReference, Platform};
use serde::Serialize;

use super::meant::MeantImage;
use super::network::SourceArguments;
use super::output::{self, Align, ReportArguments};
use super::{environment, failure, progress};

/// Bring an image into the store without mounting it
///
/// The registry is asked what REF means; layers that are here already are not fetched again.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    image: PulledImage,
    /// Fetch of layers that can be read lazily no more than their tables of contents [default]
    #[arg(long, conflicts_with = "extract")]
    lazy: bool,
    /// Fetch all of all layers, and prove them, as `peel extract` does
    #[arg(long)]
    extract: bool,
}

/// How commands name an image that they bring into the store, and what they say of it.
#[derive(clap::Args)]
pub struct PulledImage {
    /// The image: a registry reference such as python:3.12 or host:5000/name@sha256:…, or oci:PATH[:TAG]; one that is in the store also by
    /// the id or a digest of its record
    #[arg(value_name = "REF", value_parser = MeantImage::parse)]
    image: MeantImage,
    #[command(flatten)]
    bringing: Bringing,
}

/// How images are brought into the store.
#[derive(clap::Args)]
pub struct Bringing {
    #[command(flatten)]
    source: SourceArguments,
    #[command(flatten)]
    pub report: ReportArguments,
}

/// Nobody reads the layers while they are pulled.
const READ_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Serialize)]
struct Report {
    reference: String,
    platform: String,
    manifest_digest: String,
    layers: Vec<LayerReport>,
    /// HTTP requests that were made.
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
    /// `lazy`, `partial` or `extracted`.
    state: &'static str,
    /// Bytes of the blob whose content is here.
    present_bytes: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    // `--lazy` is what is done unless something else is asked for.
    let Arguments { image, extract, lazy: _ } = arguments;
    environment::log(verbose, std::io::stderr);
    let store = Arc::new(Store::open(store)?);
    let threads = NetworkThreads::new(|| {});
    let pulled = image.pull(store.clone(), threads.starter(), Pull::Always)?;
    if *extract {
        image.extract(threads.starter(), &pulled, &[])?;
    }
    keep_house(&store);
    image.report(&pulled)
}

/// What can wait until the image is there.
pub fn keep_house(store: &Store) {
    if let Err(error) = store.database().shorten_log() {
        tracing::warn!(error = %peelfs::error::chain(&error), "the log of the records stays long");
    }
    if let Err(error) = store.sweep() {
        tracing::warn!(error = %peelfs::error::chain(&error), "leftovers in the store were not removed");
    }
}

impl Bringing {
    /// The platform that is meant.
    pub fn platform(&self) -> Platform {
        self.source.platform()
    }

    /// Brings an image into the store.
    pub fn pull(
        &self,
        reference: &ImageReference,
        store: Arc<Store>,
        threads: &ThreadStarter,
        when: Pull,
    ) -> anyhow::Result<Pulled> {
        let request = Request {
            pinned: None,
            takes_over: None,
            // Nobody reads.
            records_profile: false,
            prefetching: Prefetching::None,
            profile_from_registry: false,
            known_by: std::process::id(),
            status_files: false,
            passthrough: Passthrough::Never,
            reference: reference.clone(),
            platform: self.platform(),
            pull: when,
            client: self.source.client(),
            read_deadline: READ_DEADLINE,
            trust_referrers: self.source.trust_referrers,
            progress: progress::to_terminal(self.report.quiet),
        };
        let other = if self.source.names_platform() { OtherPlatform::Refuse } else { OtherPlatform::Warn };
        Ok(pull(store, threads, request, other)?)
    }
}

impl PulledImage {
    /// Brings the image into the store.
    pub fn pull(&self, store: Arc<Store>, threads: &ThreadStarter, when: Pull) -> anyhow::Result<Pulled> {
        let reference = self.image.find(&store, &self.bringing.platform())?;
        self.bringing.pull(&reference, store, threads, when)
    }

    /// Extracts the image, or what lies at these paths. SIGINT ends the process, and what was fetched stays.
    pub fn extract(&self, threads: &ThreadStarter, pulled: &Pulled, paths: &[Vec<u8>]) -> anyhow::Result<()> {
        let progress = progress::of_extraction(self.bringing.report.quiet);
        let work = async {
            if paths.is_empty() {
                pulled.extract(&progress).await?;
            } else {
                pulled.extract_paths(paths, &progress).await?;
            }
            Ok::<_, ImageExtractError>(())
        };
        let interrupted = threads.handle()?.block_on(async {
            tokio::select! {
                done = work => done.map(|()| false),
                _ = tokio::signal::ctrl_c() => Ok(true),
            }
        });
        if interrupted? {
            pulled.checkpoint();
            eprintln!("peel: interrupted; what was fetched is kept, and the same command goes on from there");
            // Threads that decode, or wait for another process, are not waited for.
            std::process::exit(i32::from(failure::INTERRUPTED));
        }
        Ok(())
    }

    /// Whether JSON is asked for.
    pub fn prints_json(&self) -> bool {
        self.bringing.report.json
    }

    /// Says what is in the store now.
    pub fn report(&self, pulled: &Pulled) -> anyhow::Result<ExitCode> {
        let statistics = pulled.statistics();
        let layers = pulled.image().layers.iter().zip(pulled.layers());
        let report = Report {
            reference: pulled.reference().to_string(),
            platform: self.bringing.platform().to_string(),
            manifest_digest: pulled.image().manifest_digest.to_string(),
            layers: layers
                .map(|(layer, content)| {
                    let presence = content.presence();
                    LayerReport {
                        digest: layer.descriptor.digest.to_string(),
                        diff_id: layer.diff_id.to_string(),
                        size: layer.descriptor.size,
                        state: match presence.chunks {
                            all if all == presence.all_chunks => "extracted",
                            0 => "lazy",
                            _ => "partial",
                        },
                        present_bytes: content.blob_bytes_present(layer.descriptor.size),
                    }
                })
                .collect(),
            requests: statistics.requests,
            fetched_bytes: statistics.bytes_received,
        };
        if self.bringing.report.json {
            output::json(&report)?;
        } else {
            output::print(&text(&report))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn text(report: &Report) -> String {
    let columns =
        [("LAYER", Align::Left), ("SIZE", Align::Right), ("STATE", Align::Left), ("HERE", Align::Right)];
    let rows: Vec<_> = report
        .layers
        .iter()
        .map(|layer| {
            vec![
                output::short(&layer.digest),
                output::bytes(layer.size),
                layer.state.to_owned(),
                output::percent(layer.present_bytes, layer.size),
            ]
        })
        .collect();
    let Report { reference, manifest_digest, fetched_bytes, requests, .. } = report;
    format!(
        "{}{reference} {manifest_digest}\nfetched {} in {requests} requests\n",
        output::table(&columns, &rows),
        output::bytes(*fetched_bytes)
    )
}
