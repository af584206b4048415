//! `peel merge NAME REF…`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use peelfs::cache::Cache;
use peelfs::compose::{Composed, Operation, Request, compose};
use peelfs::fetch::NetworkThreads;
use peelfs::mount::Pull;
use peelfs::mount::pull::Pulled;
use peelfs::store::Store;
use serde::Serialize;

use super::commit::local_name;
use super::meant::MeantImage;
use super::pull::{Bringing, keep_house};
use super::{environment, output};

/// Lay images over each other, as an image of its own
///
/// It has all their layers, each from where it comes from; nothing of them is fetched. What is run, and in which environment, is what the last
/// one says. Images that are not in the store are pulled.
#[derive(clap::Args)]
pub struct Arguments {
    /// The name of the new image; without a host, it is one of localhost/
    #[arg(value_name = "NAME")]
    name: String,
    /// The images, the lowest first; those that are in the store also by the ids or digests of their records
    #[arg(value_name = "REF", value_parser = MeantImage::parse, required = true)]
    references: Vec<MeantImage>,
    #[command(flatten)]
    bringing: Bringing,
}

#[derive(Serialize)]
struct Report {
    reference: String,
    manifest_digest: String,
    /// Digests of the layers' blobs, the lowest first.
    layers: Vec<String>,
    /// How many differences were calculated, as no layer says the same.
    differences: usize,
    /// HTTP requests that were made.
    requests: u64,
    /// Bytes that they brought.
    fetched_bytes: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    let Arguments { name, references, bringing } = arguments;
    let references: Vec<Option<&MeantImage>> = references.iter().map(Some).collect();
    make(name, &references, bringing, store, verbose, |images| Operation::Merge(images))
}

/// Makes an image of others, which are brought in first; `operation` is told of those that there are.
pub(super) fn make(
    name: &str,
    references: &[Option<&MeantImage>],
    bringing: &Bringing,
    store: &Path,
    verbose: u8,
    operation: impl for<'a> FnOnce(&'a [Pulled]) -> Operation<'a>,
) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    let name = local_name(name)?;
    let store = Arc::new(Store::open(store)?);
    let threads = NetworkThreads::new(|| {});
    let pull = |image: &&MeantImage| {
        let reference = image.find(&store, &bringing.platform())?;
        bringing.pull(&reference, store.clone(), threads.starter(), Pull::Missing)
    };
    let images = references.iter().flatten().map(pull).collect::<Result<Vec<_>, _>>()?;
    let request =
        Request { name: name.clone(), platform: bringing.platform(), operation: operation(&images) };
    let composed =
        compose(&Cache::open(store.clone())?, &request).with_context(|| format!("{name} cannot be made"))?;
    keep_house(&store);
    let statistics = images.iter().map(Pulled::statistics);
    let (requests, fetched_bytes) = statistics
        .fold((0, 0), |(requests, bytes), one| (requests + one.requests, bytes + one.bytes_received));
    let Composed { manifest_digest, layers, differences } = composed;
    let report = Report {
        reference: name.to_string(),
        manifest_digest: manifest_digest.to_string(),
        layers: layers.iter().map(ToString::to_string).collect(),
        differences,
        requests,
        fetched_bytes,
    };
    if bringing.report.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let Report { reference, manifest_digest, layers, differences, requests, fetched_bytes } = report;
    let calculated = match differences {
        0 => String::new(),
        1 => ", and a difference that was calculated".to_owned(),
        several => format!(", and {several} differences that were calculated"),
    };
    format!(
        "{reference} {manifest_digest}\n{} layers{calculated}; fetched {} in {requests} requests\n",
        layers.len(),
        output::bytes(*fetched_bytes)
    )
}
