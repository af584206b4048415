//! `peel snapshot ls`, `peel snapshot rm NAME`

use std::path::Path;
use std::process::ExitCode;

use peelfs::mount::writable::{hold, mounted_snapshots};
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
    /// Discard a snapshot that is not mounted
    Rm {
        /// Its name
        #[arg(value_name = "NAME")]
        name: SnapshotName,
    },
}

#[derive(Serialize)]
struct SnapshotLine {
    name: String,
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
    let store = Store::open(store)?;
    match command {
        Command::Ls { json } => {
            let lines = lines(&store)?;
            if json {
                output::json(&lines)?;
            } else {
                output::print(&table(&lines))?;
            }
        }
        Command::Rm { name } => discard(&store, &name)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Discards a snapshot, which must be there and not mounted.
pub fn discard(store: &Store, name: &SnapshotName) -> anyhow::Result<()> {
    let missing = || NotFound(format!("there is no snapshot {name}; `peel snapshot ls` lists them"));
    let snapshot = store.writable_snapshots().open(name)?.ok_or_else(missing)?;
    let lock = hold(store, name, &snapshot.record.reference)?;
    drop(snapshot);
    if store.writable_snapshots().remove(name, &lock)? { Ok(()) } else { Err(missing().into()) }
}

fn lines(store: &Store) -> anyhow::Result<Vec<SnapshotLine>> {
    let mounted = mounted_snapshots(store).unwrap_or_default();
    let mut lines = Vec::new();
    for name in store.writable_snapshots().names()? {
        // It may have been discarded since it was listed.
        let Some(snapshot) = store.writable_snapshots().open(&name)? else { continue };
        let place = mounted.iter().find(|(mounted, _)| *mounted == name).map(|(_, place)| place);
        lines.push(SnapshotLine {
            name: name.to_string(),
            changed_bytes: snapshot.changed_bytes()?,
            mountpoint: place.map(|place| place.display().to_string()),
            reference: snapshot.record.reference,
            platform: snapshot.record.platform,
            manifest_digest: snapshot.record.manifest_digest,
            created_at: snapshot.record.created_at,
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
                line.mountpoint.clone().unwrap_or_else(|| "-".to_owned()),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}
