//! `peel lease create`, `peel lease ls`, `peel lease rm`

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use peelfs::cache::{Cache, Purpose};
use peelfs::mount::known_image;
use peelfs::mount::records::find;
use peelfs::store::Store;
use peelfs::store::record_tables::RecordId;
use peelfs_registry::{ImageReference, Platform};
use serde::Serialize;

use super::environment;
use super::failure::NotFound;
use super::output::{self, Align};
use super::quantity::seconds;

/// Keep images and cache records from being removed, for a while
#[derive(clap::Subcommand)]
pub enum Command {
    /// Make a lease, or have one keep more; what it keeps is removed by nothing until it ends
    Create {
        /// Its name, as its owner chooses it
        #[arg(value_name = "NAME")]
        name: String,
        /// What it keeps: images, or records, as for `peel records`
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        /// How long it lasts from now on, such as 12h or 30d; 0 is for ever [default: of a new lease, for ever; else as long as it did]
        #[arg(long, value_name = "AGE", value_parser = seconds)]
        expires: Option<u64>,
        /// The platform of images, if it is another than this machine's
        #[arg(long)]
        platform: Option<Platform>,
    },
    /// List the leases
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// End a lease; what nothing else keeps goes with the next `peel gc`
    Rm {
        /// Its name
        #[arg(value_name = "NAME")]
        name: String,
    },
}

#[derive(Serialize)]
struct Line {
    name: String,
    created_at: i64,
    /// From then on it keeps nothing.
    expires_at: Option<i64>,
    expired: bool,
    records: Vec<String>,
    /// Digests of documents.
    content: Vec<String>,
}

/// Runs the command.
pub fn run(command: Command, store: &Path) -> anyhow::Result<ExitCode> {
    let cache = Cache::open(Arc::new(Store::open(store)?))?;
    match command {
        Command::Create { name, keys, expires, platform } => {
            create(&cache, &name, &keys, expires, &environment::platform(platform))?;
        }
        Command::Ls { json } => {
            let lines = lines(&cache)?;
            if json {
                output::json(&lines)?;
            } else {
                output::print(&table(&lines))?;
            }
        }
        Command::Rm { name } => {
            if !cache.remove_lease(&name)? {
                return Err(NotFound(format!("there is no lease {name}; `peel lease ls` lists them")).into());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn create(
    cache: &Cache,
    name: &str,
    keys: &[String],
    expires: Option<u64>,
    platform: &Platform,
) -> anyhow::Result<()> {
    // Before the lease is made: what is not found leaves nothing.
    let mut found = Vec::new();
    for key in keys {
        found.push((key, find(cache, key, platform, Purpose::Look)?));
    }
    let holds = |time: &i64| *time > now();
    let known = cache.leases()?.into_iter().find(|lease| lease.id == name);
    let expires_at = match expires {
        Some(0) => None,
        Some(seconds) => Some(now().saturating_add(i64::try_from(seconds).unwrap_or(i64::MAX))),
        None => known.and_then(|lease| lease.expires_at).filter(holds),
    };
    cache.set_lease(name, expires_at)?;
    for (key, record) in found {
        record.lease(name)?;
        // Of an image, what it is besides its layers.
        let reference = key.parse::<ImageReference>();
        if let Some(image) =
            reference.ok().map(|key| known_image(cache.store(), &key, platform)).transpose()?.flatten()
        {
            cache.lease_content(name, image.manifest_digest.as_str())?;
            cache.lease_content(name, image.config.digest.as_str())?;
        }
    }
    Ok(())
}

fn lines(cache: &Cache) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for lease in cache.leases()? {
        let (records, content) = cache.leased(&lease.id)?;
        lines.push(Line {
            name: lease.id,
            created_at: lease.created_at,
            expires_at: lease.expires_at,
            expired: lease.expires_at.is_some_and(|time| time <= now()),
            records: records.iter().map(RecordId::to_string).collect(),
            content,
        });
    }
    Ok(lines)
}

fn table(lines: &[Line]) -> String {
    let columns = [
        ("LEASE", Align::Left),
        ("MADE (UTC)", Align::Left),
        ("EXPIRES (UTC)", Align::Left),
        ("KEEPS", Align::Left),
    ];
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            let expires = match line.expires_at {
                None => "never".to_owned(),
                Some(time) if line.expired => format!("{}, expired", output::time(time)),
                Some(time) => output::time(time),
            };
            let records: Vec<_> = line.records.iter().map(|id| output::short_hex(id)).collect();
            vec![line.name.clone(), output::time(line.created_at), expires, records.join(" ")]
        })
        .collect();
    output::table(&columns, &rows)
}

/// Seconds since 1970.
fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs() as i64)
}
