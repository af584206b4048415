//! `peel snapshot ls`, `peel snapshot rm NAME`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::cache::{Cache, Unnamed};
use peelfs::mount::writable::{mounted_snapshots, open_cache, refuse_mounted};
use peelfs::store::{SnapshotName, Store};
use serde::Serialize;

use super::failure::NotFound;
use super::output::{self, Align};

/// What was changed in writable mounts
#[derive(clap::Subcommand)]
pub enum Command {
    /// List the snapshots, mounted or not
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Discard a snapshot that is not mounted; an image that was committed of it stays
    Rm {
        /// Its name
        #[arg(value_name = "NAME")]
        name: SnapshotName,
    },
}

#[derive(Serialize)]
struct SnapshotLine {
    name: String,
    /// Id of its cache record.
    record: String,
    /// Whether it became a layer; what is changed from now on lies above that.
    committed: bool,
    reference: String,
    platform: String,
    manifest_digest: String,
    created_at: i64,
    /// Bytes on the disk of what was changed.
    changed_bytes: u64,
    /// Where it is mounted.
    mountpoint: Option<String>,
}

/// Runs the command.
pub fn run(command: Command, store: &Path) -> anyhow::Result<ExitCode> {
    let cache = open_cache(Arc::new(Store::open(store)?))?;
    match command {
        Command::Ls { json } => {
            let lines = lines(&cache)?;
            if json {
                output::json(&lines)?;
            } else {
                output::print(&table(&lines))?;
            }
        }
        Command::Rm { name } => discard(&cache, &name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Discards a snapshot, which must be there and not mounted.
pub fn discard(cache: &Cache, name: &SnapshotName) -> anyhow::Result<()> {
    let missing = || NotFound(format!("there is no snapshot {name}; `peel snapshot ls` lists them"));
    let found = cache.named_snapshot(name)?.ok_or_else(missing)?;
    refuse_mounted(cache.store(), &found)?;
    // What is open is removed by a later sweep alone.
    drop(found);
    let unnamed = cache.remove_named(name)?.ok_or_else(missing)?;
    if let Unnamed::Kept { record, by } = unnamed {
        output::print(&format!(
            "{name} is no name any more; record {record} stays, for {}\n",
            by.join(", ")
        ))?;
    }
    Ok(())
}

fn lines(cache: &Cache) -> anyhow::Result<Vec<SnapshotLine>> {
    let mounted = mounted_snapshots(cache.store()).unwrap_or_default();
    let mut lines = Vec::new();
    for found in cache.named_snapshots()? {
        let place = mounted.iter().find(|(mounted, _)| *mounted == found.snapshot.id).map(|(_, place)| place);
        let changed_bytes = found.snapshot.changed_bytes()?;
        let note = &found.snapshot.note;
        lines.push(SnapshotLine {
            name: found.name.to_string(),
            record: found.record.id.to_string(),
            committed: !found.record.is_mutable,
            changed_bytes,
            mountpoint: place.map(|place| place.display().to_string()),
            reference: note.origin.reference.clone(),
            platform: note.origin.platform.clone(),
            manifest_digest: note.origin.manifest_digest.clone(),
            created_at: note.origin.created_at,
        });
    }
    Ok(lines)
}

fn table(lines: &[SnapshotLine]) -> String {
    let columns = [
        ("SNAPSHOT", Align::Left),
        ("IMAGE", Align::Left),
        ("PLATFORM", Align::Left),
        ("MADE (UTC)", Align::Left),
        ("CHANGED", Align::Right),
        ("RECORD", Align::Left),
        ("MOUNTED AT", Align::Left),
    ];
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                line.name.clone(),
                line.reference.clone(),
                line.platform.clone(),
                output::time(line.created_at),
                output::bytes(line.changed_bytes),
                format!(
                    "{}{}",
                    output::short_hex(&line.record),
                    if line.committed { ", committed" } else { "" }
                ),
                line.mountpoint.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}
