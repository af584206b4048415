//! `peel gc`, which is `peel prune`, too: the name by which those who know caches look for it. One command, as there is one collector.

use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::cache::Cache;
use peelfs::gc::{Collected, Policy, collect};
use peelfs::store::Store;
use serde::Serialize;

use super::filter::{Condition, condition, filter};
use super::output;
use super::quantity::{bytes, seconds};

/// Remove what no image, mount or cache record needs, and by the limits given what was unused for longest
///
/// A record is kept by its names, by leases, by whoever holds it, and by what was made of it. Over a limit, content that can be fetched
/// again goes first, then images, then what was made and is to be retained. What is mounted, or open in any process, stays. With filters,
/// nothing goes but records that they mean and nothing keeps, and the data that only these have.
#[derive(clap::Args)]
pub struct Arguments {
    /// Let the store take no more than SIZE, such as 500MB or 20GiB
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    keep_bytes: Option<u64>,
    /// Leave at least SIZE free on the store's file system
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    min_free: Option<u64>,
    /// Keep images and records used within AGE, such as 12h or 30d; without other limits, remove all older images
    #[arg(long, value_name = "AGE", value_parser = seconds)]
    keep_duration: Option<u64>,
    /// Remove only records that meet all conditions: type=TYPE, state=STATE, age=AGE, shared=BOOL, in-use=BOOL, mutable=BOOL, id=PREFIX,
    /// description=TEXT. Several types or states mean any of them
    #[arg(long, value_name = "KEY=VALUE", value_parser = condition)]
    filter: Vec<Condition>,
    /// Remove also records of the types internal and frontend
    #[arg(long)]
    all: bool,
    /// Only say what would go
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    images: Vec<ImageReport>,
    /// Layers whose content was discarded; it is fetched again when somebody reads it.
    evicted: Vec<Freed>,
    layers: Vec<Freed>,
    trees: Vec<Freed>,
    documents: Vec<Freed>,
    /// Cache records, and what they had beside layers.
    records: Vec<Freed>,
    /// What the store took on the disk.
    bytes_before: u64,
    /// What it takes now, or would.
    bytes_after: u64,
    dry_run: bool,
}

#[derive(Serialize)]
struct ImageReport {
    reference: String,
    platform: String,
}

#[derive(Serialize)]
struct Freed {
    name: String,
    bytes: u64,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    super::environment::log(verbose, std::io::stderr);
    // What others have left is looked for by the collector, whose business a full disk is.
    let cache = Cache::open_as_it_is(Arc::new(Store::open(store)?))?;
    let policy = Policy {
        keep_bytes: arguments.keep_bytes,
        minimum_free: arguments.min_free,
        keep_seconds: arguments.keep_duration,
        filter: (!arguments.filter.is_empty()).then(|| filter(&arguments.filter)),
        all: arguments.all,
    };
    let collected = collect(&cache, &policy, arguments.dry_run)?;
    let report = report(collected, arguments.dry_run);
    if arguments.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(collected: Collected, dry_run: bool) -> Report {
    let Collected { plan, bytes_before, bytes_after } = collected;
    let freed =
        |list: Vec<(String, u64)>| list.into_iter().map(|(name, bytes)| Freed { name, bytes }).collect();
    let images = plan.images.into_iter().map(|(reference, platform)| ImageReport { reference, platform });
    Report {
        images: images.collect(),
        evicted: freed(plan.evicted),
        layers: freed(plan.layers),
        trees: freed(plan.trees),
        documents: freed(plan.documents),
        records: freed(plan.records.into_iter().map(|(id, bytes)| (id.to_string(), bytes)).collect()),
        bytes_before,
        bytes_after,
        dry_run,
    }
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let (goes, takes) = if report.dry_run { ("would go", "would take") } else { ("removed", "takes") };
    for image in &report.images {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "image {} for {}: {goes}", image.reference, image.platform);
    }
    for (kind, list) in [
        ("content of layer", &report.evicted),
        ("layer", &report.layers),
        ("tree", &report.trees),
        ("document", &report.documents),
        ("record", &report.records),
    ] {
        for freed in list {
            let _ = writeln!(
                text,
                "{kind} {}: {} {goes}",
                output::short(&freed.name),
                output::bytes(freed.bytes)
            );
        }
    }
    let _ = writeln!(
        text,
        "the store took {} and {takes} {}",
        output::bytes(report.bytes_before),
        output::bytes(report.bytes_after)
    );
    text
}
