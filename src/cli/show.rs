//! `peel show REF`

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use peelfs::fetch::index::open_local_when_made;
use peelfs::image::Image;
use peelfs::store::Store;
use serde::Serialize;

use super::known::KnownImage;
use super::output::{self, Align};

/// Show what an image of the store is made of
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    image: KnownImage,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ImageSheet {
    reference: String,
    platform: String,
    manifest_digest: String,
    config_digest: String,
    entrypoint: Vec<String>,
    command: Vec<String>,
    working_directory: String,
    user: String,
    environment: Vec<String>,
    layers: Vec<LayerLine>,
}

#[derive(Serialize)]
struct LayerLine {
    digest: String,
    diff_id: String,
    media_type: String,
    /// Bytes of the blob.
    size: u64,
    /// `lazy`, `partial`, `extracted`; `blob` if it was made here and nobody has mounted it yet; `missing` if nothing of it is here.
    state: &'static str,
    /// Bytes of the blob whose content is here.
    present_bytes: u64,
    chunks: u64,
    present_chunks: u64,
    inodes: usize,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Store::open(store)?;
    let image = arguments.image.find(&store)?;
    let settings = image.configuration.config().clone().unwrap_or_default();
    let sheet = ImageSheet {
        reference: arguments.image.reference.to_string(),
        platform: arguments.image.platform().to_string(),
        manifest_digest: image.manifest_digest.to_string(),
        config_digest: image.config.digest.to_string(),
        entrypoint: settings.entrypoint().clone().unwrap_or_default(),
        command: settings.cmd().clone().unwrap_or_default(),
        working_directory: settings.working_dir().clone().unwrap_or_default(),
        user: settings.user().clone().unwrap_or_default(),
        environment: settings.env().clone().unwrap_or_default(),
        layers: layers(&store, &image)?,
    };
    if arguments.json {
        output::json(&sheet)?;
    } else {
        output::print(&text(&sheet))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn layers(store: &Store, image: &Image) -> anyhow::Result<Vec<LayerLine>> {
    let mut lines = Vec::new();
    for layer in &image.layers {
        let descriptor = &layer.descriptor;
        let mut line = LayerLine {
            digest: descriptor.digest.to_string(),
            diff_id: layer.diff_id.to_string(),
            media_type: descriptor.media_type.clone(),
            size: descriptor.size,
            state: "missing",
            present_bytes: 0,
            chunks: 0,
            present_chunks: 0,
            inodes: 0,
        };
        if let Some(content) = open_local_when_made(store, &image.manifest_digest, layer)? {
            let presence = content.presence();
            line.state = match presence.chunks {
                _ if presence.all_chunks == 0 => "extracted",
                0 => "lazy",
                all if all == presence.all_chunks => "extracted",
                _ => "partial",
            };
            line.present_bytes = content.blob_bytes_present(descriptor.size);
            (line.chunks, line.present_chunks) = (presence.all_chunks, presence.chunks);
            line.inodes = content.table().inodes().len();
        } else if store.content().has(descriptor.digest.as_str())? {
            (line.state, line.present_bytes) = ("blob", descriptor.size);
        }
        lines.push(line);
    }
    Ok(lines)
}

fn text(sheet: &ImageSheet) -> String {
    let mut text = String::new();
    let facts = [
        ("image", sheet.reference.clone()),
        ("platform", sheet.platform.clone()),
        ("manifest", sheet.manifest_digest.clone()),
        ("config", sheet.config_digest.clone()),
        ("entrypoint", sheet.entrypoint.join(" ")),
        ("command", sheet.command.join(" ")),
        ("directory", sheet.working_directory.clone()),
        ("user", sheet.user.clone()),
        ("environment", sheet.environment.join(" ")),
    ];
    for (name, value) in facts.iter().filter(|(_, value)| !value.is_empty()) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<12} {value}");
    }
    text.push('\n');
    let columns = [
        ("LAYER", Align::Left),
        ("SIZE", Align::Right),
        ("STATE", Align::Left),
        ("HERE", Align::Right),
        ("CHUNKS", Align::Right),
        ("INODES", Align::Right),
        ("MEDIA TYPE", Align::Left),
    ];
    let rows: Vec<_> = sheet
        .layers
        .iter()
        .map(|layer| {
            let chunks = match layer.chunks {
                0 => "-".to_owned(),
                chunks => format!("{} of {chunks}", layer.present_chunks),
            };
            vec![
                output::short(&layer.digest),
                output::bytes(layer.size),
                layer.state.to_owned(),
                output::percent(layer.present_bytes, layer.size),
                chunks,
                layer.inodes.to_string(),
                layer.media_type.clone(),
            ]
        })
        .collect();
    text + &output::table(&columns, &rows)
}
