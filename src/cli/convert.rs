//! `peel convert SRC DST`

use std::num::{NonZeroU64, NonZeroUsize};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use peelfs::convert::{self, Converted, Platforms, Request};
use peelfs::fetch::profile::format as profile_format;
use peelfs::layer::estargz::TOC_IMAGE_SUFFIX;
use peelfs::layer::estargz::writer::{
    self as estargz, EstargzOptions, MAXIMUM_CHUNK_SIZE, MAXIMUM_MINIMUM_CHUNK,
};
use peelfs::layer::zstd_chunked::writer::{self as zstd_chunked, ZstdChunkedOptions};
use peelfs::store::Store;
use peelfs_registry::{ImageReference, Platform};
use serde::Serialize;

use super::network::{self, NetworkArguments};
use super::output::ReportArguments;
use super::{environment, failure, output, progress};

/// Write an image anew in a format that can be mounted lazily
///
/// The same image and options give the same digests on any machine.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image to read: a registry reference, or oci:PATH[:TAG]
    #[arg(value_name = "SRC", value_parser = environment::reference)]
    source: ImageReference,
    /// Where to write it: a registry reference, or oci:PATH[:TAG]; a layout is made if it is not there
    #[arg(value_name = "DST", value_parser = environment::reference)]
    destination: ImageReference,
    /// The format of the layers
    #[arg(long, value_enum)]
    format: Format,
    /// The platform to choose from an image index, such as linux/arm64 [default: this machine's]
    #[arg(long, conflicts_with = "all_platforms")]
    platform: Option<Platform>,
    /// Convert the images of all platforms
    #[arg(long)]
    all_platforms: bool,
    /// Put the files listed in FILE first, one path a line, in that order; FILE may also be what `peel profile export` gave. In estargz a
    /// landmark follows them, and they are fetched before anything else; zstd-chunked has no landmark: there they lie together, and come
    /// in few requests when they are read
    #[arg(long, value_name = "FILE")]
    order: Option<PathBuf>,
    /// Put the files first that mounts of SRC on this machine read, in that order: see `peel profile`
    #[arg(long, conflicts_with = "order")]
    order_profile: bool,
    /// estargz: let small files share what is fetched together until it has BYTES, uncompressed: fewer requests, a smaller image
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(..=MAXIMUM_MINIMUM_CHUNK))]
    min_chunk: Option<u64>,
    /// estargz: put the tables of contents into an image of their own, named by the tag of DST and "-esgztoc": an image in which nothing
    /// has to change keeps its config, and so its ID
    #[arg(long)]
    external_toc: bool,
    /// Split files longer than BYTES into chunks of that length [default: 4194304 for estargz; where their content says so, into
    /// chunks of about 65536, for zstd-chunked]
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(4096..=MAXIMUM_CHUNK_SIZE))]
    chunk_size: Option<u64>,
    /// How hard to compress: 1 to 9 for estargz, to 19 for zstd-chunked [default: 7, 9]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u32).range(1..=i64::from(zstd_chunked::MAXIMUM_LEVEL)))]
    level: Option<u32>,
    /// Threads that compress [default: one for each core]
    #[arg(long, value_name = "COUNT")]
    threads: Option<NonZeroUsize>,
    #[command(flatten)]
    network: NetworkArguments,
    #[command(flatten)]
    report: ReportArguments,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    /// A tar.gz with a table of contents; every tool can still unpack it
    Estargz,
    /// A tar.zst with a table of contents, of podman's dialect: podman pulls the parts that it lacks, and the image keeps its ID
    ZstdChunked,
    /// The layers as they are, with a SOCI index beside them that the new image names
    Soci,
}

#[derive(Serialize)]
struct Report {
    destination: String,
    digest: String,
    media_type: String,
    /// The image with the tables of contents, if they are in one.
    toc_image: Option<TocImageReport>,
    images: Vec<ImageReport>,
    missed: Vec<String>,
    left_out: Vec<String>,
}

#[derive(Serialize)]
struct TocImageReport {
    reference: String,
    digest: String,
}

#[derive(Serialize)]
struct ImageReport {
    platform: String,
    source: String,
    digest: String,
    layers: Vec<LayerReport>,
}

#[derive(Serialize)]
struct LayerReport {
    source: String,
    source_size: u64,
    digest: String,
    size: u64,
    diff_id: String,
    uncompressed_size: u64,
    toc_digest: Option<String>,
    /// Why its table of contents, if it has one at all, is of no use, if so.
    not_lazy: Option<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    let Some(format) = format(arguments)? else {
        return super::index::convert(&super::index::Conversion {
            source: &arguments.source,
            destination: &arguments.destination,
            platform: arguments.platform.clone(),
            all_platforms: arguments.all_platforms,
            network: &arguments.network,
            report: &arguments.report,
        });
    };
    let request = request(arguments, store, format)?;
    let runtime = network::runtime()?;
    let converted = runtime.block_on(convert::convert(request))?;
    let report = report(&arguments.destination, &converted);
    warn(&report);
    if arguments.report.json {
        output::json(&report)?;
    } else {
        output::print(&table(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn request(arguments: &Arguments, store: &Path, format: convert::Format) -> anyhow::Result<Request> {
    let profiles = arguments.order_profile.then(|| Store::open(store)).transpose()?;
    Ok(Request {
        source: arguments.source.clone(),
        destination: arguments.destination.clone(),
        platforms: match arguments.all_platforms {
            true => Platforms::All,
            false => Platforms::One(environment::platform(arguments.platform.clone())),
        },
        format,
        wanted: arguments.order.as_deref().map(wanted).transpose()?.unwrap_or_default(),
        profiles: profiles.map(Arc::new),
        client: arguments.network.client(),
        scratch: environment::scratch(),
        progress: progress::of_conversion(arguments.report.quiet),
        known: Arc::new(|_| None),
    })
}

/// How the layers are written anew; nothing if they stay as they are.
fn format(arguments: &Arguments) -> anyhow::Result<Option<convert::Format>> {
    let threads = match arguments.threads {
        Some(threads) => threads,
        None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let chunk_size = arguments.chunk_size.and_then(NonZeroU64::new);
    let orders = arguments.order.is_some() || arguments.order_profile;
    let writes = arguments.level.is_some() || arguments.threads.is_some() || orders;
    let cuts = arguments.min_chunk.is_some() || arguments.chunk_size.is_some() || arguments.external_toc;
    Ok(Some(match arguments.format {
        Format::Soci if writes || cuts => {
            let reason = "soci leaves the layers as they are: it has no --order, --order-profile, --min-chunk, --external-toc, --chunk-size, --level, --threads";
            return Err(failure::Usage(reason.to_owned()).into());
        }
        Format::Soci => return Ok(None),
        Format::Estargz if arguments.level.is_some_and(|level| level > estargz::MAXIMUM_LEVEL) => {
            let reason = format!("estargz has no --level above {}", estargz::MAXIMUM_LEVEL);
            return Err(failure::Usage(reason).into());
        }
        Format::Estargz => convert::Format::Estargz(EstargzOptions {
            chunk_size: chunk_size.unwrap_or(estargz::DEFAULT_CHUNK_SIZE),
            minimum_chunk: arguments.min_chunk.unwrap_or(0),
            level: arguments.level.unwrap_or(estargz::DEFAULT_LEVEL),
            external_toc: arguments.external_toc,
            threads,
        }),
        Format::ZstdChunked if arguments.min_chunk.is_some() => {
            return Err(failure::Usage(
                "--min-chunk is for estargz: in zstd-chunked no two files share a chunk".to_owned(),
            )
            .into());
        }
        Format::ZstdChunked if arguments.external_toc => {
            return Err(failure::Usage(
                "--external-toc is for estargz: zstd-chunked leaves the archive as it was without it"
                    .to_owned(),
            )
            .into());
        }
        Format::ZstdChunked => convert::Format::ZstdChunked(ZstdChunkedOptions {
            chunk_size,
            level: arguments.level.unwrap_or(zstd_chunked::DEFAULT_LEVEL),
            threads,
        }),
    }))
}

/// The files of an exported profile in its order, or the lines of a list that are not empty, as paths.
fn wanted(path: &Path) -> anyhow::Result<Vec<Vec<u8>>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if profile_format::claims_to_be_a_profile(&text) {
        let profile =
            profile_format::read(&text).with_context(|| format!("cannot use {}", path.display()))?;
        return Ok(profile.typical().into_iter().map(|typical| typical.file.path).collect());
    }
    let lines = text.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    Ok(lines.filter(|line| !line.is_empty()).map(<[u8]>::to_vec).collect())
}

fn report(destination: &ImageReference, converted: &Converted) -> Report {
    let images = converted.images.iter().map(|image| ImageReport {
        platform: image.platform.clone(),
        source: image.source.to_string(),
        digest: image.digest.to_string(),
        layers: image
            .layers
            .iter()
            .map(|(source, layer)| LayerReport {
                source: source.descriptor.digest.to_string(),
                source_size: source.descriptor.size,
                digest: layer.digest.to_string(),
                size: layer.size,
                diff_id: layer.written.diff_id.to_string(),
                uncompressed_size: layer.written.uncompressed_size,
                toc_digest: layer.written.toc_digest.as_ref().map(ToString::to_string),
                not_lazy: layer.written.not_lazy.map(|reason| reason.to_string()),
            })
            .collect(),
    });
    let shown = |path: &Vec<u8>| std::ffi::OsString::from_vec(path.clone()).to_string_lossy().into_owned();
    Report {
        destination: destination.to_string(),
        digest: converted.digest.to_string(),
        media_type: converted.media_type.clone(),
        toc_image: converted.toc_image.as_ref().map(|digest| TocImageReport {
            // It has a tag, or there would be no such image.
            reference: format!("{destination}{TOC_IMAGE_SUFFIX}"),
            digest: digest.to_string(),
        }),
        images: images.collect(),
        missed: converted.missed.iter().map(shown).collect(),
        left_out: converted.left_out.clone(),
    }
}

fn warn(report: &Report) {
    for path in &report.missed {
        tracing::warn!(path, "no layer has this file, which was to come first");
    }
    for digest in &report.left_out {
        tracing::warn!(digest, "no image: it was said of images that are others now, and is left out");
    }
    for layer in report.images.iter().flat_map(|image| &image.layers) {
        if let Some(reason) = &layer.not_lazy {
            tracing::warn!(layer = layer.digest, "it will be mounted, but not lazily: {reason}");
        }
    }
}

fn table(report: &Report) -> String {
    use output::Align::{Left, Right};
    let columns = [("PLATFORM", Left), ("LAYER", Left), ("SIZE", Right), ("BECAME", Left), ("SIZE", Right)];
    let mut rows = Vec::new();
    for image in &report.images {
        for layer in &image.layers {
            rows.push(vec![
                image.platform.clone(),
                output::short(&layer.source),
                output::bytes(layer.source_size),
                output::short(&layer.digest),
                output::bytes(layer.size),
            ]);
        }
    }
    let toc_image = report.toc_image.as_ref();
    let toc_image = toc_image.map(|image| format!("{} {}\n", image.reference, image.digest));
    let toc_image = toc_image.unwrap_or_default();
    format!("{}{} {}\n{toc_image}", output::table(&columns, &rows), report.destination, report.digest)
}
