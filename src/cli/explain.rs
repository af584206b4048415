//! `peel explain REF`

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use peelfs::error::chain;
use peelfs::fetch::NetworkThreads;
use peelfs::fetch::proof::Standing;
use peelfs::image::Image;
use peelfs::image::origin::Origin;
use peelfs::mount::explain::{LayerAccount, Parts, announced_format, explain_layer, prove};
use peelfs::mount::known_image;
use peelfs::store::{Store, TableSource, Verdict};
use peelfs_registry::{ImageReference, Platform};
use serde::Serialize;

use super::environment;
use super::network::NetworkArguments;
use super::output;

/// Explain how each layer of an image is read, why so, and what has been proved of it
///
/// An image that is not in the store is asked for at its registry, and explained by its manifest alone.
#[derive(clap::Args)]
pub struct Arguments {
    /// The image
    #[arg(value_name = "REF", value_parser = environment::reference)]
    reference: ImageReference,
    /// The platform to choose from an image index, such as linux/arm64 [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// First prove the layers that are wholly here, by reading their blobs once more
    #[arg(long)]
    prove: bool,
    #[command(flatten)]
    network: NetworkArguments,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Sheet {
    reference: String,
    platform: String,
    manifest_digest: String,
    /// Whether the store knows the image.
    known: bool,
    layers: Vec<LayerSheet>,
}

#[derive(Serialize)]
struct LayerSheet {
    /// 1 is the lowest.
    number: usize,
    digest: String,
    diff_id: String,
    media_type: String,
    /// Bytes of the blob.
    size: u64,
    format: String,
    /// `toc`, `soci-named`, `soci-referrer`, `stream`, `unrecorded`, or `none` if the layer is not here.
    index: &'static str,
    /// Why no table of contents is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    streamed_because: Option<String>,
    /// `missing`, `lazy`, `partial` or `whole`.
    state: &'static str,
    /// Bytes of the blob whose content is here.
    present_bytes: u64,
    chunks: u64,
    present_chunks: u64,
    /// How its parts are got again.
    parts: String,
    /// `none`, `incomplete`, `unproved`, `streamed`, `proved` or `poisoned`.
    proof: &'static str,
    /// When it was proved or poisoned, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    proved_at: Option<i64>,
    /// Why it is poisoned, or could not be proved.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Arc::new(Store::open(store)?);
    let platform = environment::platform(arguments.platform.clone());
    let threads = NetworkThreads::new(|| {});
    let client = arguments.network.client();
    let known = known_image(&store, &arguments.reference, &platform)?;
    let is_known = known.is_some();
    let image = match known {
        Some(image) => image,
        None => {
            let origin = Origin::new(arguments.reference.clone(), client.clone());
            let running = threads.starter().handle().context("cannot start threads")?;
            let resolved = running.block_on(origin.resolve(&platform));
            resolved.with_context(|| format!("cannot resolve {}", arguments.reference))?.image
        }
    };
    let mut unprovable = Vec::new();
    if arguments.prove {
        unprovable = prove(&store, threads.starter(), &arguments.reference, client, &image)?;
    }
    let mut layers = layers(&store, &image)?;
    for (number, error) in unprovable {
        layers[number].reason = Some(chain(&error));
    }
    let sheet = Sheet {
        reference: arguments.reference.to_string(),
        platform: platform.to_string(),
        manifest_digest: image.manifest_digest.to_string(),
        known: is_known,
        layers,
    };
    if arguments.json {
        output::json(&sheet)?;
    } else {
        output::print(&text(&sheet))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn layers(store: &Store, image: &Image) -> anyhow::Result<Vec<LayerSheet>> {
    let mut sheets = Vec::new();
    for (number, layer) in image.layers.iter().enumerate() {
        let descriptor = &layer.descriptor;
        let mut sheet = LayerSheet {
            number: number + 1,
            digest: descriptor.digest.to_string(),
            diff_id: layer.diff_id.to_string(),
            media_type: descriptor.media_type.clone(),
            size: descriptor.size,
            format: announced_format(layer).to_owned(),
            index: "none",
            streamed_because: None,
            state: "missing",
            present_bytes: 0,
            chunks: 0,
            present_chunks: 0,
            parts: String::new(),
            proof: "none",
            proved_at: None,
            reason: None,
        };
        if let Some(account) = explain_layer(store, image, layer)? {
            fill(&mut sheet, account);
        }
        sheets.push(sheet);
    }
    Ok(sheets)
}

fn fill(sheet: &mut LayerSheet, account: LayerAccount) {
    let LayerAccount { provenance, presence, present_bytes, standing, parts } = account;
    sheet.index = "unrecorded";
    if let Some(provenance) = provenance {
        sheet.format = provenance.format;
        (sheet.index, sheet.streamed_because) = match provenance.index {
            TableSource::Toc => ("toc", None),
            TableSource::SociNamed => ("soci-named", None),
            TableSource::SociReferrer => ("soci-referrer", None),
            TableSource::Stream { because } => {
                sheet.proved_at = Some(provenance.made_at);
                ("stream", Some(because))
            }
        };
    }
    sheet.state = match presence.chunks {
        all if all == presence.all_chunks => "whole",
        0 => "lazy",
        _ => "partial",
    };
    (sheet.present_bytes, sheet.chunks, sheet.present_chunks) =
        (present_bytes, presence.all_chunks, presence.chunks);
    sheet.parts = match parts {
        Parts::None => "none: nothing of it is fetched".to_owned(),
        Parts::Ranges => "any range".to_owned(),
        Parts::GzipSpans(count) => format!("gzip, in spans: {count}"),
        Parts::ZstdFrames(count) => format!("zstd, in spans: {count}"),
        Parts::Whole => "one: decoded whole again if anything of it is missing".to_owned(),
    };
    sheet.proof = match standing {
        Standing::Streamed => "streamed",
        Standing::Incomplete => "incomplete",
        Standing::Unproved => "unproved",
        Standing::Judged(Verdict::Proved { at }) => {
            sheet.proved_at = Some(at);
            "proved"
        }
        Standing::Judged(Verdict::Poisoned { at, reason }) => {
            (sheet.proved_at, sheet.reason) = (Some(at), Some(reason));
            "poisoned"
        }
    };
}

fn text(sheet: &Sheet) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} for {}, manifest {}", sheet.reference, sheet.platform, sheet.manifest_digest);
    if !sheet.known {
        let _ =
            writeln!(text, "not in the store: this is what its manifest says; `peel mount` brings the rest");
    }
    for layer in &sheet.layers {
        let _ = writeln!(
            text,
            "\nlayer {}  {}  {}  {}",
            layer.number,
            output::short(&layer.digest),
            output::bytes(layer.size),
            layer.media_type
        );
        for (name, fact) in facts(layer) {
            let _ = writeln!(text, "  {name:<8} {fact}");
        }
    }
    text
}

/// What is said of a layer, line by line.
fn facts(layer: &LayerSheet) -> Vec<(&'static str, String)> {
    let mut facts = vec![("format", layer.format.clone())];
    if layer.state == "missing" {
        return facts;
    }
    facts.push((
        "index",
        match (layer.index, &layer.streamed_because) {
            ("toc", _) => "its table of contents, for which the manifest vouches".to_owned(),
            ("soci-named", _) => "a zTOC of the SOCI index that the manifest names".to_owned(),
            ("soci-referrer", _) => {
                "a zTOC of a SOCI index that refers to the image, which was trusted".to_owned()
            }
            ("stream", Some(because)) => {
                format!("made by streaming it, not by a table of contents: {because}")
            }
            _ => "not recorded: an earlier version made it".to_owned(),
        },
    ));
    let here = output::percent(layer.present_bytes, layer.size);
    facts.push((
        "here",
        match layer.chunks {
            0 => here,
            chunks => format!("{here}, chunks {} of {chunks}", layer.present_chunks),
        },
    ));
    facts.push(("parts", layer.parts.clone()));
    let when = layer.proved_at.map(output::time).unwrap_or_default();
    let mut proof = match layer.proof {
        "streamed" => format!("it was streamed whole and matched its diff ID {when}").trim_end().to_owned(),
        "proved" => format!("proved {when}: it has its diff ID, and its archive says what its table says"),
        "poisoned" => format!("POISONED {when}: nothing of it is read"),
        "incomplete" => "each chunk when it comes; the whole once all of it is here".to_owned(),
        _ => "each chunk; the whole is here, and still to be proved".to_owned(),
    };
    if let Some(reason) = &layer.reason {
        proof = format!("{proof}: {reason}");
    }
    facts.push(("proof", proof));
    facts
}
