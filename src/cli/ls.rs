//! `peel ls`

use std::path::Path;
use std::process::ExitCode;

use peelfs::fetch::index::open_local_of;
use peelfs::store::Store;
use peelfs_registry::Digest;
use serde::Serialize;

use super::output::{self, Align};

/// List the images in the store
#[derive(clap::Args)]
pub struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct ImageLine {
    reference: String,
    platform: String,
    manifest_digest: String,
    layers: usize,
    lazy_layers: usize,
    /// Bytes of all layer blobs.
    blob_bytes: u64,
    /// Bytes of the blobs whose content is here.
    present_bytes: u64,
    last_used: i64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Store::open(store)?;
    let mut lines = Vec::new();
    for image in store.database().images()? {
        let layers = store.database().layers_of(&image.manifest_digest)?;
        let (mut lazy_layers, mut present_bytes) = (0, 0);
        for layer in &layers {
            let digests = (image.manifest_digest.parse::<Digest>().ok()).zip(layer.digest.parse().ok());
            let Some(content) =
                digests.and_then(|(image, layer)| open_local_of(&store, &image, &layer).ok()).flatten()
            else {
                // Of an image that was made here, a layer can be here as a blob alone.
                let is_here = store.content().has(&layer.digest)?;
                lazy_layers += usize::from(!is_here);
                present_bytes += if is_here { layer.size } else { 0 };
                continue;
            };
            let present = content.blob_bytes_present(layer.size);
            lazy_layers += usize::from(present < layer.size);
            present_bytes += present;
        }
        lines.push(ImageLine {
            reference: image.reference,
            platform: image.platform,
            manifest_digest: image.manifest_digest,
            layers: layers.len(),
            lazy_layers,
            blob_bytes: layers.iter().map(|layer| layer.size).sum(),
            present_bytes,
            last_used: image.last_used,
        });
    }
    if arguments.json {
        output::json(&lines)?;
    } else {
        output::print(&table(&lines))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(lines: &[ImageLine]) -> String {
    let columns = [
        ("IMAGE", Align::Left),
        ("PLATFORM", Align::Left),
        ("MANIFEST", Align::Left),
        ("LAYERS", Align::Right),
        ("LAZY", Align::Right),
        ("SIZE", Align::Right),
        ("HERE", Align::Right),
        ("LAST USED (UTC)", Align::Left),
    ];
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.reference.clone(),
                line.platform.clone(),
                output::short(&line.manifest_digest),
                line.layers.to_string(),
                line.lazy_layers.to_string(),
                output::bytes(line.blob_bytes),
                output::percent(line.present_bytes, line.blob_bytes),
                output::time(line.last_used),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}
