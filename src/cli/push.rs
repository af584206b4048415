//! `peel push REF DST`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::convert::Converted;
use peelfs::mount::origin_of;
use peelfs::push::{
    Compressed, Platforms, Pushed, Recompressed, Recompression, Request, push, push_recompressed,
};
use peelfs::store::Store;
use peelfs_registry::{Copied, ImageReference, Platform};
use serde::Serialize;

use super::network::{self, NetworkArguments};
use super::output::{self, Align, ReportArguments};
use super::{environment, progress};

/// Put an image of the store elsewhere, as it is
///
/// Documents and layers keep their digests. Layers that DST has are not sent; those that another repository of the same registry has are
/// mounted from there; all others are streamed from where the image came from, and held against their digests on the way.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image, as it was pulled or mounted
    #[arg(value_name = "REF", value_parser = environment::reference)]
    reference: ImageReference,
    /// Where it goes: a registry reference, or oci:PATH[:TAG]; a layout is made if it is not there
    #[arg(value_name = "DST", value_parser = environment::reference)]
    destination: ImageReference,
    /// The platform, if it was pulled for another than this machine's
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// Push the image index, with the images of all platforms; all of them must be in the store
    #[arg(long)]
    all_platforms: bool,
    /// Compress layers anew that are not compressed so: the result is another image, with the same files; to gzip or zstd, what was an
    /// eStargz table of contents becomes a file of it, too
    #[arg(long, value_enum, value_name = "COMPRESSION")]
    compression: Option<Compression>,
    /// Compress all layers anew
    #[arg(long, requires = "compression")]
    force_compression: bool,
    #[command(flatten)]
    network: NetworkArguments,
    #[command(flatten)]
    report: ReportArguments,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Compression {
    /// tar.gz, with or without a table of contents
    Gzip,
    /// tar.zst, with or without a table of contents
    Zstd,
    /// tar.gz with a table of contents
    Estargz,
    /// tar.zst with a table of contents, of podman's dialect
    ZstdChunked,
}

#[derive(Serialize)]
struct Report {
    destination: String,
    digest: String,
    media_type: String,
    blobs: Vec<BlobReport>,
    /// Digests of layers that are distributed by others, and were not put anywhere.
    foreign: Vec<String>,
}

#[derive(Serialize)]
struct BlobReport {
    digest: String,
    media_type: String,
    size: u64,
    /// `present` if it was there, `mounted` from another repository, or `sent`; of layers that might be compressed anew: `kept` or
    /// `recompressed`.
    how: &'static str,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    let store = Arc::new(Store::open(store)?);
    let request = Request {
        reference: arguments.reference.clone(),
        origin: origin_of(&store, &arguments.reference)?,
        destination: arguments.destination.clone(),
        platforms: match arguments.all_platforms {
            true => Platforms::All,
            false => Platforms::One(environment::platform(arguments.platform.clone())),
        },
        client: arguments.network.client(),
        progress: progress::of_push(arguments.report.quiet),
    };
    let runtime = network::runtime()?;
    let report = match arguments.compression {
        None => report(arguments, runtime.block_on(push(&store, &request))?),
        Some(compression) => {
            let recompression = recompression(arguments, compression);
            match runtime.block_on(push_recompressed(&store, &request, recompression))? {
                Recompressed::AsItIs(pushed) => report(arguments, pushed),
                Recompressed::Anew(converted) => report_of_conversion(arguments, &converted),
            }
        }
    };
    if arguments.report.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn recompression(arguments: &Arguments, compression: Compression) -> Recompression {
    Recompression {
        compressed: match compression {
            Compression::Gzip => Compressed::Gzip,
            Compression::Zstd => Compressed::Zstd,
            Compression::Estargz => Compressed::Estargz,
            Compression::ZstdChunked => Compressed::ZstdChunked,
        },
        is_forced: arguments.force_compression,
        scratch: environment::scratch(),
        progress: progress::of_conversion(arguments.report.quiet),
    }
}

fn report_of_conversion(arguments: &Arguments, converted: &Converted) -> Report {
    let layers = converted.images.iter().flat_map(|image| &image.layers).map(|(layer, became)| BlobReport {
        digest: became.digest.to_string(),
        media_type: layer.descriptor.media_type.clone(),
        size: became.size,
        how: if became.digest == layer.descriptor.digest { "kept" } else { "recompressed" },
    });
    Report {
        destination: arguments.destination.to_string(),
        digest: converted.digest.to_string(),
        media_type: converted.media_type.clone(),
        blobs: layers.collect(),
        foreign: Vec::new(),
    }
}

fn report(arguments: &Arguments, pushed: Pushed) -> Report {
    let blobs = pushed.blobs.into_iter().map(|(descriptor, copied)| BlobReport {
        digest: descriptor.digest.to_string(),
        media_type: descriptor.media_type,
        size: descriptor.size,
        how: match copied {
            Copied::Present => "present",
            Copied::Mounted => "mounted",
            Copied::Sent => "sent",
        },
    });
    Report {
        destination: arguments.destination.to_string(),
        digest: pushed.digest.to_string(),
        media_type: pushed.media_type,
        blobs: blobs.collect(),
        foreign: pushed.foreign.iter().map(ToString::to_string).collect(),
    }
}

fn text(report: &Report) -> String {
    let columns = [("BLOB", Align::Left), ("SIZE", Align::Right), ("HOW", Align::Left)];
    let blobs = report
        .blobs
        .iter()
        .map(|blob| vec![output::short(&blob.digest), output::bytes(blob.size), blob.how.to_owned()]);
    let foreign = report
        .foreign
        .iter()
        .map(|digest| vec![output::short(digest), String::new(), "left where it is (foreign)".to_owned()]);
    let rows: Vec<_> = blobs.chain(foreign).collect();
    format!("{}{} {}\n", output::table(&columns, &rows), report.destination, report.digest)
}
