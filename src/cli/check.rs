//! `peel check`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::cache::Cache;
use peelfs::gc::{Plan, Policy, collect};
use peelfs::mount::live::{Liveness, forget_unmounted, live_mounts};
use peelfs::store::{Finding, FindingKind, Store};
use serde::Serialize;

use super::output;

/// Look whether all that the store holds is what it should be
///
/// Blobs, tables, chunks, trees and records are held against their digests and checksums, and against each other, without the network. It
/// may run while images are mounted. The exit code is 0 if all is well, or was repaired, and 6 if not.
#[derive(clap::Args)]
pub struct Arguments {
    /// Drop what is not: it is fetched or made again when it is needed. Dead mounts are unmounted
    #[arg(long)]
    repair: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    blobs: u64,
    layers: u64,
    chunks: u64,
    chunks_without_digest: u64,
    trees: u64,
    bytes: u64,
    /// Leftovers of processes that are gone; removed with `--repair` only.
    leftovers_removed: u64,
    /// Cache records.
    records: u64,
    /// Leases that have expired; removed with `--repair` only.
    stale_leases: Vec<String>,
    /// Sessions of processes that are gone; likewise.
    stale_sessions: u64,
    /// What nobody needs, which is no fault: `peel gc` removes it.
    unneeded: Unneeded,
    /// Mounts whose serving processes are gone; unmounted with `--repair`.
    dead_mounts: Vec<String>,
    findings: Vec<FindingLine>,
}

#[derive(Serialize)]
struct FindingLine {
    kind: &'static str,
    path: String,
    what: String,
    repaired: bool,
}

#[derive(Serialize)]
struct Unneeded {
    layers: usize,
    records: usize,
    bytes: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Arc::new(Store::open(store)?);
    let leftovers = if arguments.repair { store.sweep()? } else { 0 };
    // A database that cannot be read at all is set aside by this, and begun anew.
    let cache = Cache::open_as_it_is(store.clone())?;
    let records = cache.check(arguments.repair)?;
    let mut found = store.check(arguments.repair)?;
    found.findings.splice(0..0, records.findings.iter().cloned());
    let dead = dead_mounts(&store, arguments.repair)?;
    if arguments.repair {
        store.note_images()?;
    }
    // Of records that name what is not there, no list can be had.
    let is_listed = !found.findings.iter().any(is_in_the_way);
    let plan = if is_listed { collect(&cache, &Policy::default(), true)?.plan } else { Plan::default() };
    let report = Report {
        blobs: found.blobs,
        layers: found.layers,
        chunks: found.chunks,
        chunks_without_digest: found.chunks_without_digest,
        trees: found.trees,
        bytes: found.bytes,
        leftovers_removed: leftovers,
        records: records.records,
        stale_leases: records.stale_leases,
        stale_sessions: records.stale_sessions,
        unneeded: Unneeded { layers: plan.layers.len(), records: plan.records.len(), bytes: plan.bytes() },
        dead_mounts: dead,
        findings: found.findings.iter().map(line).collect(),
    };
    if arguments.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report, &found.findings, arguments.repair))?;
    }
    let is_well = found.findings.iter().all(|finding| finding.is_repaired);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(6) })
}

fn is_in_the_way(finding: &Finding) -> bool {
    let is_of_the_database =
        [FindingKind::DanglingParent, FindingKind::DamagedRecords].contains(&finding.kind);
    is_of_the_database && !finding.is_repaired
}

/// Mounts whose processes are gone; with `repairs`, they are gone, too.
fn dead_mounts(store: &Store, repairs: bool) -> anyhow::Result<Vec<String>> {
    let mut dead = Vec::new();
    for mount in live_mounts(store)?.into_iter().filter(|mount| mount.liveness == Liveness::Dead) {
        let mountpoint = &mount.record.mountpoint;
        if repairs {
            // Whoever has files of it open has only errors from it.
            peelfs_fuse::unmount(mountpoint, true)?;
            forget_unmounted(store, mountpoint)?;
        }
        dead.push(mountpoint.display().to_string());
    }
    Ok(dead)
}

fn line(finding: &Finding) -> FindingLine {
    FindingLine {
        kind: finding.kind.name(),
        path: finding.path.display().to_string(),
        what: finding.what.clone(),
        repaired: finding.is_repaired,
    }
}

fn text(report: &Report, findings: &[Finding], repairs: bool) -> String {
    let mut text = format!(
        "looked at {} blobs, {} layers with {} chunks here, {} merged trees and {} records: {}\n",
        report.blobs,
        report.layers,
        report.chunks,
        report.trees,
        report.records,
        output::bytes(report.bytes)
    );
    if report.chunks_without_digest > 0 {
        text += &format!(
            "{} of the chunks have no digest of what is kept of them, and were passed over\n",
            report.chunks_without_digest
        );
    }
    if report.leftovers_removed > 0 {
        text += &format!("removed {} leftovers of processes that are gone\n", report.leftovers_removed);
    }
    for lease in &report.stale_leases {
        let what = if repairs { "was removed" } else { "goes with the next `peel gc`" };
        text += &format!("lease {lease} has expired, and {what}\n");
    }
    if report.stale_sessions > 0 {
        text += &format!("{} sessions of processes that are gone held records\n", report.stale_sessions);
    }
    let Unneeded { layers, records, bytes } = &report.unneeded;
    if layers + records > 0 {
        text += &format!(
            "nobody needs {layers} layers and {records} records; `peel gc` frees {}\n",
            output::bytes(*bytes)
        );
    }
    for mountpoint in &report.dead_mounts {
        let remedy = match repairs {
            true => "it was unmounted".to_owned(),
            false => format!("`peel unmount {mountpoint}` cleans it"),
        };
        text += &format!("{mountpoint}: its process is gone; {remedy}\n");
    }
    for Finding { kind, path, what, is_repaired } in findings {
        let remedy = match (is_repaired, repairs) {
            (true, _) => kind.remedy(),
            (false, true) => "could not be repaired: it is in use, or none of the store's",
            (false, false) => "`peel check --repair` takes care of it, if it can",
        };
        text += &format!("{}: {}: {what}\n  {remedy}\n", kind.name(), path.display());
    }
    if findings.is_empty() {
        text += "all is well\n";
    }
    text
}
