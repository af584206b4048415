//! `peel status`

use std::path::Path;
use std::process::ExitCode;

use peelfs::fetch::index::open_local_of;
use peelfs::meter::Count;
use peelfs::mount::live::{LiveMount, Liveness, live_mounts};
use peelfs::mount::recorded_image;
use peelfs::store::{ImageRecord, OpenSnapshot, Store};
use serde::Serialize;

use super::output::{self, Align};
use super::status_snapshots;

/// Show what is mounted, and what came over the network for it
#[derive(clap::Args)]
pub struct Arguments {
    /// Show containerd's snapshots instead, and whether the trees below them are mounted and used
    #[arg(long)]
    snapshots: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct MountLine {
    mountpoint: String,
    reference: String,
    manifest_digest: String,
    pid: u32,
    /// `live`, or `dead` if the serving process was killed.
    state: &'static str,
    started_at: i64,
    /// HTTP requests that this mount has made.
    requests: u64,
    /// Bytes that they brought.
    fetched_bytes: u64,
    /// Bytes of layer blobs, among them, that were fetched before they were read.
    prefetched_bytes: u64,
    /// Bytes of content that were copied from other layers of the store, instead of being fetched; as of a second ago.
    copied_bytes: u64,
    retries: u64,
    /// Bytes that the kernel was given; as of a second ago.
    read_bytes: u64,
    /// Reads that failed.
    failed_reads: u64,
    /// Bytes of the image's layer blobs whose content is here, whichever mount brought it.
    present_bytes: u64,
    /// Bytes of the image's layer blobs.
    blob_bytes: u64,
    /// How far the completion in the background is: `waiting`, `fetching`, `paused`, `retrying`, `failed` or `complete`; none if nobody wants it.
    completion: Option<&'static str>,
    /// Why nothing more comes, if it failed, or will be tried again.
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_error: Option<String>,
    /// Bytes per second that it may take at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_rate: Option<u64>,
    /// The snapshot that takes what is changed, if it is a writable mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
    /// Bytes on the disk of what was changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    changed_bytes: Option<u64>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Store::open(store)?;
    if arguments.snapshots {
        status_snapshots::run(&store, arguments.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let images = store.database().images()?;
    let mounts = live_mounts(&store)?;
    let lines =
        mounts.iter().map(|mount| line(&store, &images, mount)).collect::<anyhow::Result<Vec<_>>>()?;
    if arguments.json {
        output::json(&lines)?;
    } else {
        output::print(&table(&lines))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn line(store: &Store, images: &[ImageRecord], mount: &LiveMount) -> anyhow::Result<MountLine> {
    let (mut present_bytes, mut blob_bytes) = (0, 0);
    let recorded = images.iter().find(|image| image.manifest_digest == mount.record.manifest_digest);
    let image = recorded.map_or(Ok(None), |record| recorded_image(store, record))?;
    for (image, layer) in image.iter().flat_map(|image| image.layers.iter().map(move |layer| (image, layer)))
    {
        blob_bytes += layer.descriptor.size;
        if let Some(content) = open_local_of(store, &image.manifest_digest, layer)? {
            present_bytes += content.blob_bytes_present(layer.descriptor.size);
        }
    }
    let snapshot = mount.snapshot.as_ref().map(|id| store.snapshots().open(id)).transpose()?.flatten();
    let changed_bytes = snapshot.as_ref().map(OpenSnapshot::changed_bytes).transpose()?;
    let completing = mount.completing();
    Ok(MountLine {
        completion: completing.as_ref().map(|(_, progress)| progress.stage.name()),
        completion_rate: completing.as_ref().and_then(|(wish, _)| wish.rate),
        completion_error: completing.and_then(|(_, progress)| progress.because),
        snapshot: snapshot.map(|snapshot| snapshot.note.origin.name.to_string()),
        changed_bytes,
        mountpoint: mount.record.mountpoint.display().to_string(),
        reference: mount.record.reference.clone(),
        manifest_digest: mount.record.manifest_digest.clone(),
        pid: mount.record.pid,
        state: match mount.liveness {
            Liveness::Live => "live",
            Liveness::Dead => "dead",
        },
        started_at: mount.record.started_at,
        requests: mount.counts.get(Count::Requests),
        fetched_bytes: mount.counts.get(Count::ReceivedBytes),
        prefetched_bytes: mount.counts.get(Count::PrefetchedBytes),
        copied_bytes: mount.counts.get(Count::CopiedBytes),
        retries: mount.counts.get(Count::Retries),
        read_bytes: mount.counts.get(Count::ReadBytes),
        failed_reads: Count::ERRORS.iter().map(|(cause, _)| mount.counts.get(*cause)).sum(),
        present_bytes,
        blob_bytes,
    })
}

fn table(lines: &[MountLine]) -> String {
    let columns = [
        ("MOUNTED AT", Align::Left),
        ("IMAGE", Align::Left),
        ("STATE", Align::Left),
        ("PID", Align::Right),
        ("REQUESTS", Align::Right),
        ("FETCHED", Align::Right),
        ("AHEAD", Align::Right),
        ("OF", Align::Right),
        ("HERE", Align::Right),
        ("COMPLETION", Align::Left),
        ("CHANGED", Align::Right),
        ("SNAPSHOT", Align::Left),
    ];
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.mountpoint.clone(),
                line.reference.clone(),
                line.state.to_owned(),
                line.pid.to_string(),
                line.requests.to_string(),
                output::bytes(line.fetched_bytes),
                output::bytes(line.prefetched_bytes),
                output::bytes(line.blob_bytes),
                output::percent(line.present_bytes, line.blob_bytes),
                line.completion.unwrap_or("-").to_owned(),
                line.changed_bytes.map_or("-".to_owned(), output::bytes),
                line.snapshot.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    let mut text = output::table(&columns, &rows);
    for line in lines {
        if let Some((stage, because)) = line.completion.zip(line.completion_error.as_ref()) {
            text.push_str(&format!("{}: {stage}: {because}\n", line.mountpoint));
        }
    }
    text
}
