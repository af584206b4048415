//! `peel index push REF`

use std::process::ExitCode;

use anyhow::Context;
use peelfs::convert::Platforms;
use peelfs::convert::soci::{
    DEFAULT_MINIMUM_LAYER, DEFAULT_SPAN_SIZE, IndexRequest, IndexVersion, MAXIMUM_SPAN_SIZE,
    MINIMUM_SPAN_SIZE, Published, ZtocOptions, index,
};
use peelfs_registry::{ImageReference, LayoutReference, Platform};
use serde::Serialize;

use super::network::{self, NetworkArguments};
use super::output::ReportArguments;
use super::{environment, output, progress};

/// What says that it made an index.
const BUILD_TOOL: &str = concat!("peel ", env!("CARGO_PKG_VERSION"));

/// Indexes that make ordinary images lazy
#[derive(clap::Subcommand)]
pub enum Command {
    Push(Arguments),
}

/// Read an image once and publish what makes its ordinary layers lazy for all others
///
/// A SOCI index is put beside the image, and the tag names a new image index: of the image, whose layers stay as they are, and of its SOCI
/// index. The same image and options give the same digests on any machine.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image: a registry reference, or oci:PATH[:TAG]
    #[arg(value_name = "REF", value_parser = environment::reference)]
    reference: ImageReference,
    /// Name the result by this tag of the same repository [default: the tag of REF]
    #[arg(long)]
    tag: Option<String>,
    /// Leave image and tag as they are, and let the SOCI index refer to the image: found only by those who trust referrers
    #[arg(long, conflicts_with = "tag")]
    v1: bool,
    /// Index the image of one platform only, such as linux/arm64; the others stay as they are [default: all]
    #[arg(long)]
    platform: Option<Platform>,
    /// Cut layers into spans of about BYTES, uncompressed: what is fetched together
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SPAN_SIZE, value_parser = clap::value_parser!(u64).range(MINIMUM_SPAN_SIZE..=MAXIMUM_SPAN_SIZE))]
    span_size: u64,
    /// Leave out layers of less than BYTES, compressed: they are fetched whole
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MINIMUM_LAYER)]
    min_layer_size: u64,
    #[command(flatten)]
    network: NetworkArguments,
    #[command(flatten)]
    report: ReportArguments,
}

/// `peel convert SRC DST --format soci`
pub struct Conversion<'a> {
    /// The image.
    pub source: &'a ImageReference,
    /// Where it goes.
    pub destination: &'a ImageReference,
    /// The platform that was asked for.
    pub platform: Option<Platform>,
    /// Whether all were.
    pub all_platforms: bool,
    /// How registries are spoken to.
    pub network: &'a NetworkArguments,
    /// How it is told.
    pub report: &'a ReportArguments,
}

#[derive(Serialize)]
struct Report {
    destination: String,
    digest: Option<String>,
    images: Vec<ImageReport>,
    left_out: Vec<String>,
}

#[derive(Serialize)]
struct ImageReport {
    platform: String,
    source: String,
    digest: String,
    index: Option<String>,
    layers: Vec<LayerReport>,
}

#[derive(Serialize)]
struct LayerReport {
    digest: String,
    size: u64,
    ztoc: Option<String>,
    ztoc_size: Option<u64>,
    /// Why there is none.
    reason: Option<String>,
}

/// Runs the command.
pub fn run(command: &Command, verbose: u8) -> anyhow::Result<ExitCode> {
    let Command::Push(arguments) = command;
    environment::log(verbose, std::io::stderr);
    let destination = match &arguments.tag {
        Some(tag) => tagged(&arguments.reference, tag)?,
        None => arguments.reference.clone(),
    };
    let request = IndexRequest {
        source: arguments.reference.clone(),
        destination,
        platforms: arguments.platform.clone().map_or(Platforms::All, Platforms::One),
        version: if arguments.v1 { IndexVersion::V1 } else { IndexVersion::V2 },
        options: ZtocOptions { span_size: arguments.span_size, build_tool: BUILD_TOOL.to_owned() },
        minimum_layer: arguments.min_layer_size,
        client: arguments.network.client(),
        scratch: environment::scratch(),
        progress: progress::of_indexing(arguments.report.quiet),
    };
    publish(request, arguments.report.json)
}

/// Runs a conversion into this format.
pub fn convert(conversion: &Conversion<'_>) -> anyhow::Result<ExitCode> {
    let request = IndexRequest {
        source: conversion.source.clone(),
        destination: conversion.destination.clone(),
        platforms: match conversion.all_platforms {
            true => Platforms::All,
            false => Platforms::One(environment::platform(conversion.platform.clone())),
        },
        version: IndexVersion::V2,
        options: ZtocOptions { span_size: DEFAULT_SPAN_SIZE, build_tool: BUILD_TOOL.to_owned() },
        minimum_layer: DEFAULT_MINIMUM_LAYER,
        client: conversion.network.client(),
        scratch: environment::scratch(),
        progress: progress::of_indexing(conversion.report.quiet),
    };
    publish(request, conversion.report.json)
}

fn publish(request: IndexRequest, json: bool) -> anyhow::Result<ExitCode> {
    let destination = request.destination.to_string();
    let runtime = network::runtime()?;
    let report = report(destination, &runtime.block_on(index(request))?);
    for digest in &report.left_out {
        tracing::warn!(digest, "no image: it was said of images that are others now, and is left out");
    }
    if json {
        output::json(&report)?;
    } else {
        output::print(&table(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The same repository or layout, with that tag.
fn tagged(reference: &ImageReference, tag: &str) -> anyhow::Result<ImageReference> {
    let tagged = match reference {
        ImageReference::Registry(reference) => {
            format!("{}/{}:{tag}", reference.host(), reference.repository()).parse()
        }
        ImageReference::Layout(layout) => {
            let name = Some(tag.to_owned());
            Ok(ImageReference::Layout(LayoutReference { name, digest: None, ..layout.clone() }))
        }
    };
    tagged.with_context(|| format!("{tag:?} is not a tag"))
}

fn report(destination: String, published: &Published) -> Report {
    let images = published.images.iter().map(|image| ImageReport {
        platform: image.platform.clone(),
        source: image.source.to_string(),
        digest: image.digest.to_string(),
        index: image.index.as_ref().map(ToString::to_string),
        layers: image
            .layers
            .iter()
            .map(|(layer, index)| LayerReport {
                digest: layer.descriptor.digest.to_string(),
                size: layer.descriptor.size,
                ztoc: index.as_ref().ok().map(|ztoc| ztoc.digest.to_string()),
                ztoc_size: index.as_ref().ok().map(|ztoc| ztoc.size),
                reason: index.as_ref().err().map(ToString::to_string),
            })
            .collect(),
    });
    Report {
        destination,
        digest: published.digest.as_ref().map(ToString::to_string),
        images: images.collect(),
        left_out: published.left_out.clone(),
    }
}

fn table(report: &Report) -> String {
    use output::Align::{Left, Right};
    let columns = [("PLATFORM", Left), ("LAYER", Left), ("SIZE", Right), ("ZTOC", Left), ("SIZE", Right)];
    let mut rows = Vec::new();
    let mut ends = String::new();
    for image in &report.images {
        for layer in &image.layers {
            rows.push(vec![
                image.platform.clone(),
                output::short(&layer.digest),
                output::bytes(layer.size),
                match (&layer.ztoc, &layer.reason) {
                    (Some(ztoc), _) => output::short(ztoc),
                    (None, reason) => format!("none: {}", reason.as_deref().unwrap_or_default()),
                },
                layer.ztoc_size.map(output::bytes).unwrap_or_default(),
            ]);
        }
        if let (Some(index), None) = (&image.index, &report.digest) {
            ends.push_str(&format!("{index} refers to {}\n", image.digest));
        }
    }
    if let Some(digest) = &report.digest {
        ends.push_str(&format!("{} {digest}\n", report.destination));
    }
    output::table(&columns, &rows) + &ends
}
