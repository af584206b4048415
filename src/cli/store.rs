//! `peel store`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::fetch::Room;
use peelfs::store::Store;
use serde::Serialize;

use super::output;
use super::quantity::bytes;

/// Tell what the store takes, and set what holds for all processes that use it
#[derive(clap::Args)]
pub struct Arguments {
    /// From now on, let no process make the store larger than SIZE, such as 500MB or 20GiB, by content that can be fetched again; `none`
    /// ends that
    #[arg(long, value_name = "SIZE", value_parser = budget)]
    budget: Option<Budget>,
    /// Use the layers of the store in DIR, too, where they are; it is never written, and may be on a read-only file system
    #[arg(long, value_name = "DIR")]
    add_lower: Vec<PathBuf>,
    /// Use the layers of the store in DIR no more
    #[arg(long, value_name = "DIR")]
    remove_lower: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How large a store may grow.
#[derive(Clone, Copy)]
enum Budget {
    Bytes(u64),
    None,
}

fn budget(text: &str) -> Result<Budget, String> {
    if text == "none" { Ok(Budget::None) } else { bytes(text).map(Budget::Bytes) }
}

#[derive(Serialize)]
struct Report {
    path: PathBuf,
    /// What it takes on the disk.
    bytes: u64,
    /// What no process makes it larger than.
    budget: Option<u64>,
    /// What may still be written on its file system.
    free_bytes: u64,
    /// Stores whose layers are used, too, the first to be asked first.
    lower: Vec<PathBuf>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    super::environment::log(verbose, std::io::stderr);
    let store = Arc::new(Store::open(store)?);
    for path in &arguments.remove_lower {
        store.remove_lower(path)?;
    }
    for path in &arguments.add_lower {
        store.add_lower(path)?;
    }
    match arguments.budget {
        Some(Budget::Bytes(bytes)) => {
            store.set_budget(Some(bytes))?;
            Room::new(store.clone()).keep()?;
        }
        Some(Budget::None) => store.set_budget(None)?,
        None => {}
    }
    let report = Report {
        path: store.path().to_owned(),
        bytes: store.allocated()?,
        budget: store.budget()?,
        free_bytes: store.space()?.available,
        lower: store.lower_paths()?,
    };
    if arguments.json {
        output::json(&report)?;
    } else {
        output::print(&text(&report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} takes {}", report.path.display(), output::bytes(report.bytes));
    let _ = match report.budget {
        Some(budget) => writeln!(text, "budget: {}", output::bytes(budget)),
        None => writeln!(text, "budget: none"),
    };
    let _ = writeln!(text, "free on its file system: {}", output::bytes(report.free_bytes));
    for lower in &report.lower {
        let _ = writeln!(text, "lower store: {}", lower.display());
    }
    text
}
