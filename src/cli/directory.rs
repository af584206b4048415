//! `peel directory create`, `peel directory ls`, `peel directory rm`

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use peelfs::cache::{Cache, Purpose};
use peelfs::directory::{Making, PlainDirectory, make};
use peelfs::fetch::NetworkThreads;
use peelfs::mount::Pull;
use peelfs::mount::records::find;
use peelfs::store::record_tables::RecordId;
use peelfs::store::{Removal, Store};
use peelfs_registry::Platform;
use serde::Serialize;

use super::environment;
use super::failure::{InUse, NotFound};
use super::output::{self, Align};
use super::pull::{PulledImage, keep_house};

/// Make plain directories of images, for tools that cannot do with a mount
#[derive(clap::Subcommand)]
pub enum Command {
    /// Put all of an image into a directory of the store, and print its path
    ///
    /// The image is extracted first. Files that directories of other images have of the same layers are not copied, but get one more name: what
    /// is written to one is written to all. So mount it read-only (`mount --bind -o ro`), or use it below an overlay; and copy it to change it.
    Create(Create),
    /// List the directories
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove the directory of an image; the image stays
    Rm {
        /// The image, or its record, as for `peel records`
        #[arg(value_name = "KEY")]
        key: String,
        /// The platform, if KEY is an image that was brought for another than this machine's
        #[arg(long)]
        platform: Option<Platform>,
    },
}

/// What `peel directory create` is told.
#[derive(clap::Args)]
pub struct Create {
    #[command(flatten)]
    image: PulledImage,
}

#[derive(Serialize)]
struct Report {
    record: String,
    /// The tree.
    path: String,
    /// Whether it was not there before.
    made: bool,
    /// The record from whose directory most was taken, as it has the longest base in common, and the layers of that base.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    base_layers: usize,
    /// Regular files that were made, those that other directories have too among them.
    files: u64,
    shared_files: u64,
    shared_bytes: u64,
    copied_bytes: u64,
}

#[derive(Serialize)]
struct Line {
    record: String,
    /// Names of the images that it is of.
    names: Vec<String>,
    path: String,
    /// Bytes on the disk, without those of files that a directory which was made before has, too.
    disk_bytes: u64,
    /// Bytes on the disk of all that is in it.
    whole_bytes: u64,
    /// Whether it is mounted, or something is mounted in it.
    mounted: bool,
}

/// Runs the command.
pub fn run(command: &Command, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    match command {
        Command::Create(create) => create.run(store, verbose),
        Command::Ls { json } => {
            let lines = lines(&Cache::open(Arc::new(Store::open(store)?))?)?;
            if *json {
                output::json(&lines)?;
            } else {
                output::print(&table(&lines))?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Rm { key, platform } => {
            let cache = Cache::open(Arc::new(Store::open(store)?))?;
            let found = find(&cache, key, &environment::platform(platform.clone()), Purpose::Look)?;
            match cache.store().directories().remove(found.id())? {
                Removal::Removed => Ok(ExitCode::SUCCESS),
                Removal::Absent => {
                    Err(NotFound(format!("there is no directory of {key}; `peel directory ls` lists them"))
                        .into())
                }
                Removal::Mounted => {
                    let path = cache.store().directories().fs(found.id());
                    let path = path.display();
                    Err(InUse(format!(
                        "{path} is mounted, or something is mounted in it; unmount that first"
                    ))
                    .into())
                }
            }
        }
    }
}

impl Create {
    fn run(&self, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
        environment::log(verbose, std::io::stderr);
        let store = Arc::new(Store::open(store)?);
        let threads = NetworkThreads::new(|| {});
        let pulled = self.image.pull(store.clone(), threads.starter(), Pull::Missing)?;
        let cache = Cache::open(store.clone())?;
        let is_there = match pulled.record() {
            Some(record) => store.directories().has(record.id())?,
            None => false,
        };
        if !is_there {
            self.image.extract(threads.starter(), &pulled, &[])?;
        }
        let made = make(&cache, &pulled)
            .with_context(|| format!("no directory of {} can be made", pulled.reference()))?;
        keep_house(&store);
        let report = report(&made);
        if self.image.prints_json() {
            output::json(&report)?;
        } else {
            output::print(&format!("{}\n", report.path))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn report(directory: &PlainDirectory) -> Report {
    let (making, counted) = (directory.made.as_ref(), directory.made.as_ref().map(|making| making.counted));
    let counted = counted.unwrap_or_default();
    Report {
        record: directory.record.to_string(),
        path: directory.path.display().to_string(),
        made: making.is_some(),
        base: making.and_then(|Making { base, .. }| base.as_ref().map(RecordId::to_string)),
        base_layers: making.map_or(0, |making| making.base_layers),
        files: counted.files,
        shared_files: counted.shared_files,
        shared_bytes: counted.shared_bytes,
        copied_bytes: counted.copied_bytes,
    }
}

fn lines(cache: &Cache) -> anyhow::Result<Vec<Line>> {
    let mut names: HashMap<RecordId, Vec<String>> = HashMap::new();
    for (name, record) in cache.image_names()?.into_iter().chain(cache.names()?) {
        names.entry(record).or_default().push(name);
    }
    let directories = cache.store().directories();
    let records = directories.list()?;
    let bytes = directories.disk_bytes(&records)?;
    let mut lines = Vec::with_capacity(records.len());
    for (record, disk_bytes) in records.into_iter().zip(bytes) {
        lines.push(Line {
            names: names.remove(&record).unwrap_or_default(),
            path: directories.fs(&record).display().to_string(),
            disk_bytes,
            whole_bytes: directories.disk_bytes([&record])?.into_iter().sum(),
            mounted: directories.is_mounted(&record)?,
            record: record.to_string(),
        });
    }
    Ok(lines)
}

fn table(lines: &[Line]) -> String {
    let columns = [
        ("RECORD", Align::Left),
        ("ON DISK", Align::Right),
        ("WITH SHARED", Align::Right),
        ("MOUNTED", Align::Left),
        ("IMAGES", Align::Left),
    ];
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                output::short_hex(&line.record).to_owned(),
                output::bytes(line.disk_bytes),
                output::bytes(line.whole_bytes),
                if line.mounted { "yes" } else { "-" }.to_owned(),
                line.names.join(", "),
            ]
        })
        .collect();
    output::table(&columns, &rows)
}
