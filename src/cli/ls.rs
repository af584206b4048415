//! `peel ls`

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use peelfs::fetch::index::open_local_of;
use peelfs::fetch::possible_names;
use peelfs::mount::recorded_image;
use peelfs::store::Store;
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
    /// Bytes on the disk of all its layers; those of a layer that several images have are counted with each.
    disk_bytes: u64,
    last_used: i64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Store::open(store)?;
    let mut lines = Vec::new();
    for image in store.database().images()? {
        let layers = store.database().layers_of(&image.manifest_digest)?;
        let (mut whole_layers, mut present_bytes, mut disk_bytes) = (0, 0, 0);
        // Where a layer is kept depends on what the image says of it. Of one whose documents are gone nothing is found.
        if let Some(image) = recorded_image(&store, &image)? {
            for layer in &image.layers {
                let size = layer.descriptor.size;
                let present = match open_local_of(&store, &image.manifest_digest, layer) {
                    Ok(Some(content)) => content.blob_bytes_present(size),
                    // Of an image that was made here, a layer can be here as a blob alone.
                    _ if store.content().has(layer.descriptor.digest.as_str())? => size,
                    _ => continue,
                };
                whole_layers += usize::from(present == size);
                present_bytes += present;
            }
            let names: BTreeSet<_> = possible_names(&store, &image)?.into_iter().flatten().collect();
            for name in names {
                disk_bytes += store.layers().layer(name.as_str())?.allocated()?;
            }
        }
        lines.push(ImageLine {
            reference: image.reference,
            platform: image.platform,
            manifest_digest: image.manifest_digest,
            layers: layers.len(),
            lazy_layers: layers.len().saturating_sub(whole_layers),
            blob_bytes: layers.iter().map(|layer| layer.size).sum(),
            present_bytes,
            disk_bytes,
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
        ("ON DISK", Align::Right),
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
                output::bytes(line.disk_bytes),
                output::time(line.last_used),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}
