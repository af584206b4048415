//! `peel check`

use std::path::Path;
use std::process::ExitCode;

use peelfs::mount::live::{Liveness, live_mounts};
use peelfs::store::{CheckReport, Finding, Store};
use serde::Serialize;

use super::output;

/// Look whether all that the store holds is what it should be
///
/// Blobs, tables, chunks, trees and records are held against their digests and checksums, without the network. It may run while images
/// are mounted. The exit code is 0 if all is well, or was repaired, and 6 if not.
#[derive(clap::Args)]
pub struct Arguments {
    /// Drop what is not: it is fetched or made again when it is needed
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

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let store = Store::open(store)?;
    let leftovers = if arguments.repair { store.sweep()? } else { 0 };
    let report = store.check(arguments.repair)?;
    let mounts = live_mounts(&store)?;
    let dead = mounts.iter().filter(|mount| matches!(mount.liveness, Liveness::Dead));
    let dead: Vec<String> = dead.map(|mount| mount.record.mountpoint.display().to_string()).collect();
    if arguments.json {
        output::json(&json(&report, leftovers, &dead))?;
    } else {
        output::print(&text(&report, leftovers, &dead, arguments.repair))?;
    }
    let is_well = report.findings.iter().all(|finding| finding.is_repaired);
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(6) })
}

fn json(report: &CheckReport, leftovers_removed: u64, dead_mounts: &[String]) -> Report {
    let line = |finding: &Finding| FindingLine {
        kind: finding.kind.name(),
        path: finding.path.display().to_string(),
        what: finding.what.clone(),
        repaired: finding.is_repaired,
    };
    Report {
        blobs: report.blobs,
        layers: report.layers,
        chunks: report.chunks,
        chunks_without_digest: report.chunks_without_digest,
        trees: report.trees,
        bytes: report.bytes,
        leftovers_removed,
        dead_mounts: dead_mounts.to_vec(),
        findings: report.findings.iter().map(line).collect(),
    }
}

fn text(report: &CheckReport, leftovers: u64, dead_mounts: &[String], repairs: bool) -> String {
    let mut text = format!(
        "looked at {} blobs, {} layers with {} chunks here, and {} merged trees: {}\n",
        report.blobs,
        report.layers,
        report.chunks,
        report.trees,
        output::bytes(report.bytes)
    );
    if report.chunks_without_digest > 0 {
        text += &format!(
            "{} of the chunks have no digest of what is kept of them, and were passed over\n",
            report.chunks_without_digest
        );
    }
    if leftovers > 0 {
        text += &format!("removed {leftovers} leftovers of processes that are gone\n");
    }
    for mountpoint in dead_mounts {
        text += &format!("{mountpoint}: its process is gone; `peel unmount {mountpoint}` cleans it\n");
    }
    for Finding { kind, path, what, is_repaired } in &report.findings {
        let remedy = match (is_repaired, repairs) {
            (true, _) => kind.remedy(),
            (false, true) => "could not be repaired: it is in use, or none of the store's",
            (false, false) => "`peel check --repair` takes care of it, if it can",
        };
        text += &format!("{}: {}: {what}\n  {remedy}\n", kind.name(), path.display());
    }
    if report.findings.is_empty() {
        text += "all is well\n";
    }
    text
}
