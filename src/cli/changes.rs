//! `peel changes [LOWER] UPPER`

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use peelfs::cache::{Cache, ImmutableRef, Purpose};
use peelfs::changes::{Change, ChangeKind, Comparison, Written, against_parent, compare};
use peelfs::mount::records::find;
use peelfs::store::Store;
use peelfs::store::record_tables::RecordId;
use peelfs_registry::Platform;
use serde::Serialize;

use super::failure::Usage;
use super::{environment, output};

/// List what is different between two images, layers or other records
///
/// A line for each name: A is added, C is changed, D is deleted, as `docker diff` and `podman diff` have it. With UPPER alone, it is compared
/// with what it lies on: the topmost layer of an image, or any record as `peel records` lists them, with its parent. All is answered by
/// what is in the store, and nothing is fetched.
#[derive(clap::Args)]
pub struct Arguments {
    /// What is there before, and what is there after: images, or records as for `peel records`; "scratch" is nothing
    #[arg(value_name = "[LOWER] UPPER", num_args = 1..=2, required = true)]
    sides: Vec<String>,
    /// The platform of images, if it is another than this machine's
    #[arg(long)]
    platform: Option<Platform>,
    /// Tell how many bytes UPPER adds or changes, and no names
    #[arg(long, conflicts_with = "tar")]
    size: bool,
    /// Write an archive: of a layer that is compared with its parent the one that it came as, to the byte; of anything else one that is put
    /// together. All that it needs must be here (`peel extract`)
    #[arg(long)]
    tar: bool,
    /// The archive's file, which appears when it is whole [default: standard output]
    #[arg(short, long, value_name = "FILE", requires = "tar")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    /// Ids of the records; nothing is the empty tree.
    lower: Option<String>,
    upper: Option<String>,
    /// Bytes of all files and symbolic links that were added or changed.
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    changes: Option<Vec<Line>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tar: Option<TarReport>,
}

#[derive(Serialize)]
struct Line {
    /// `added`, `changed` or `deleted`.
    change: &'static str,
    path: String,
    /// Given if the path is not UTF-8, and `path` only resembles it: its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<Vec<u8>>,
    r#type: &'static str,
    size: u64,
}

#[derive(Serialize)]
struct TarReport {
    bytes: u64,
    digest: String,
    /// Whether it is a layer's own archive: then the digest is its diff ID.
    original: bool,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    if arguments.tar && arguments.output.is_none() {
        if std::io::stdout().is_terminal() {
            let refused =
                "an archive is nothing for a terminal; name a file (--output), or send it to a program";
            return Err(Usage(refused.to_owned()).into());
        }
        if arguments.json {
            let refused = "standard output has the archive; name a file for it (--output) to get JSON";
            return Err(Usage(refused.to_owned()).into());
        }
    }
    let cache = Cache::open_as_it_is(Arc::new(Store::open(store)?))?;
    let (lower, upper) = sides(&cache, arguments)?;
    let comparison = compare(&cache, lower.as_ref(), upper.as_ref())?;
    if arguments.tar {
        let written = write_tar(&comparison, arguments.output.as_deref())?;
        if arguments.json {
            output::json(&report(&comparison, None, Some(written)))?;
        } else if arguments.output.is_some() {
            output::print(&told(&written))?;
        }
    } else if arguments.json {
        let changes = (!arguments.size).then(|| comparison.list().iter().map(line).collect());
        output::json(&report(&comparison, changes, None))?;
    } else if arguments.size {
        output::print(&format!("{}\n", comparison.size()))?;
    } else {
        print(&comparison.list())?;
    }
    Ok(ExitCode::SUCCESS)
}

type Sides = (Option<ImmutableRef>, Option<ImmutableRef>);

fn sides(cache: &Cache, arguments: &Arguments) -> anyhow::Result<Sides> {
    let platform = environment::platform(arguments.platform.clone());
    // As for `peel diff`: no image of a registry can have that name.
    let side = |key: &String| match key.as_str() {
        "scratch" => Ok(None),
        key => find(cache, key, &platform, Purpose::Look).map(Some),
    };
    Ok(match arguments.sides.as_slice() {
        [lower, upper] => match (side(lower)?, side(upper)?) {
            (None, None) => {
                let refused = "nothing leads from scratch to scratch; name an image or a record";
                return Err(Usage(refused.to_owned()).into());
            }
            sides => sides,
        },
        sides => match sides.first().map(side).transpose()?.flatten() {
            Some(record) => against_parent(&record)?,
            None => {
                let refused = "scratch lies on nothing that it could be compared with";
                return Err(Usage(refused.to_owned()).into());
            }
        },
    })
}

/// A file has its name when all of it is written, and is what it should be.
fn write_tar(comparison: &Comparison, path: Option<&Path>) -> anyhow::Result<Written> {
    let Some(path) = path else {
        return Ok(comparison.write_tar(&mut BufWriter::with_capacity(1 << 20, std::io::stdout().lock()))?);
    };
    let failed = || format!("cannot write {}", path.display());
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut name = path.file_name().with_context(failed)?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = Part(directory.join(name));
    let file = File::options().write(true).create_new(true).open(&part.0).with_context(failed)?;
    let mut output = BufWriter::with_capacity(1 << 20, file);
    let written = comparison.write_tar(&mut output)?;
    output.flush().with_context(failed)?;
    std::fs::rename(&part.0, path).with_context(failed)?;
    Ok(written)
}

/// A file that is removed unless it gets another name.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // It is not there any more if all went well.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn report(comparison: &Comparison, changes: Option<Vec<Line>>, written: Option<Written>) -> Report {
    Report {
        lower: comparison.lower.as_ref().map(RecordId::to_string),
        upper: comparison.upper.as_ref().map(RecordId::to_string),
        size: comparison.size(),
        changes,
        tar: written.map(|written| TarReport {
            bytes: written.bytes,
            digest: written.digest.to_string(),
            original: written.is_original,
        }),
    }
}

fn told(written: &Written) -> String {
    let what = if written.is_original { "the layer's own archive" } else { "an archive put together" };
    format!("{} {}, {what}\n", written.digest, output::bytes(written.bytes))
}

fn line(change: &Change) -> Line {
    Line {
        change: match change.kind {
            ChangeKind::Added => "added",
            ChangeKind::Changed => "changed",
            ChangeKind::Deleted => "deleted",
        },
        path: String::from_utf8_lossy(&change.path).into_owned(),
        path_bytes: std::str::from_utf8(&change.path).is_err().then(|| change.path.clone()),
        r#type: output::kind(change.mode).1,
        size: change.size,
    }
}

fn print(changes: &[Change]) -> std::io::Result<()> {
    let mut out = BufWriter::new(std::io::stdout().lock());
    let mut write = || {
        for change in changes {
            let path = String::from_utf8_lossy(&change.path);
            let shown: String =
                path.chars().map(|letter| if letter.is_control() { '?' } else { letter }).collect();
            writeln!(out, "{} {shown}", change.kind.letter())?;
        }
        out.flush()
    };
    match write() {
        // `peel changes … | head`
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}
