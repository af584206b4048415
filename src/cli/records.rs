//! `peel records [KEY]`

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use peelfs::cache::{Cache, CacheError, Key, Purpose, Usage};
use peelfs::fetch::index::open_local;
use peelfs::mount::records::{find, record_all};
use peelfs::mount::writable::bring_over;
use peelfs::store::record_tables::{RecordId, Retention};
use peelfs::store::{LayerState, Store};
use peelfs_registry::Platform;
use serde::Serialize;

use super::environment;
use super::filter::{Condition, condition, filter};
use super::output::{self, Align};

/// List the cache records: layers of images, on each other, and what was made of them
///
/// With KEY, only the record that is meant. Where several are, they are told.
#[derive(clap::Args)]
pub struct Arguments {
    /// A record: the beginning of its id, its name or that of an image, or a digest: of its blob, its diff ID, its chain ID, or its table of
    /// contents
    #[arg(value_name = "KEY", conflicts_with = "filter")]
    key: Option<String>,
    /// What KEY is [default: whichever of these it fits]
    #[arg(long, value_enum, requires = "key")]
    by: Option<By>,
    /// The platform, if KEY is an image that was brought for another than this machine's
    #[arg(long)]
    platform: Option<Platform>,
    /// Only records that meet all conditions, as for `peel prune`
    #[arg(long, value_name = "KEY=VALUE", value_parser = condition)]
    filter: Vec<Condition>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum By {
    /// The beginning of its id
    Id,
    /// Its name, or that of an image as `peel ls` shows it
    Name,
    /// Digest of its blob
    Blob,
    /// Digest of its uncompressed layer
    DiffId,
    /// Names its stack of layers
    ChainId,
    /// Digest of its table of contents
    Toc,
}

impl By {
    fn key(self, text: &str) -> Key<'_> {
        match self {
            By::Id => Key::Id(text),
            By::Name => Key::Name(text),
            By::Blob => Key::Blob(text),
            By::DiffId => Key::DiffId(text),
            By::ChainId => Key::ChainId(text),
            By::Toc => Key::Toc(text),
        }
    }
}

#[derive(Serialize)]
struct Line {
    id: String,
    /// `base`, `layer`, `merge` or `diff`.
    kind: &'static str,
    /// `lazy`, `partial`, `extracted`, `incomplete` or `poisoned`; of a merge or a diff, of all that it stands for.
    state: &'static str,
    /// What it was made of; of a diff, lower and upper.
    parents: Vec<String>,
    description: String,
    r#type: &'static str,
    /// Names of it, and of images that it is.
    names: Vec<String>,
    /// References of the images that it came from.
    images: Vec<String>,
    leases: Vec<String>,
    created_at: i64,
    last_used: Option<i64>,
    use_count: u64,
    in_use: bool,
    /// Processes that hold it.
    held_by: Vec<u32>,
    /// Records made of it.
    children: u64,
    /// Whether other records, or images, have its data, too.
    shared: bool,
    mutable: bool,
    /// Whether it outlives its holder while it is mutable.
    retained: bool,
    volatile: bool,
    /// Bytes on the disk of its own data.
    disk_bytes: u64,
    /// Bytes of its layer's blob, and of those whose content is here.
    #[serde(skip_serializing_if = "Option::is_none")]
    blob_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    present_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blob: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    media_type: Option<String>,
    /// Digests of the same layer's other blobs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    variants: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    diff_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    chain_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    toc_digest: Option<String>,
    /// Where its data are: the name of a layer, or of a snapshot.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot: Option<String>,
}

/// Runs the command.
pub fn run(arguments: &Arguments, store: &Path) -> anyhow::Result<ExitCode> {
    let cache = Cache::open_as_it_is(Arc::new(Store::open(store)?))?;
    record_all(&cache)?;
    // What is not counted any more cannot be taken off the records of a full disk; all else is told as it is.
    if let Err(error) = cache.end_dead_sessions() {
        tracing::warn!(error = %peelfs::error::chain(&error), "processes that are gone may be counted still");
    }
    bring_over(&cache)?;
    if let Some(key) = &arguments.key {
        let id = meant(&cache, key, arguments)?;
        let line = lines(&cache, |usage| usage.record.id == id)?.pop();
        let line = line.ok_or(CacheError::Unknown { key: "id", value: id.to_string() })?;
        if arguments.json {
            output::json(&line)?;
        } else {
            output::print(&sheet(&line))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let filter = filter(&arguments.filter);
    let lines = lines(&cache, |usage| filter.matches(usage))?;
    if arguments.json {
        output::json(&lines)?;
    } else {
        output::print(&table(&lines))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The record that is meant; of a pair, the immutable one.
fn meant(cache: &Cache, key: &str, arguments: &Arguments) -> Result<RecordId, CacheError> {
    let found = match arguments.by {
        Some(by) => cache.look_up(by.key(key)),
        None => {
            let platform = environment::platform(arguments.platform.clone());
            match find(cache, key, &platform, Purpose::Look) {
                // It is looked at, not used.
                Err(CacheError::Mutable { record }) => cache.look_up(Key::Id(record.as_str())),
                found => found.and_then(|found| found.record()),
            }
        }
    };
    let found = found?;
    Ok(cache.immutable_of(&found.id)?.unwrap_or(found.id))
}

fn lines(cache: &Cache, is_meant: impl Fn(&Usage) -> bool) -> anyhow::Result<Vec<Line>> {
    let mut names: HashMap<RecordId, Vec<String>> = HashMap::new();
    for (name, record) in cache.image_names()?.into_iter().chain(cache.names()?) {
        names.entry(record).or_default().push(name);
    }
    let mut lines = Vec::new();
    for usage in cache.usage()?.into_iter().filter(is_meant) {
        let beside = cache.beside(&usage.record)?;
        let present = present_bytes(cache, &usage)?;
        let Usage { record, uses, state, sharing, parts } = usage;
        // Of a pair, the mutable one has the names until the other is finalized.
        let ids = std::iter::once(&record.id).chain(&record.equal_mutable);
        let names_of: Vec<String> = ids.flat_map(|id| names.remove(id).unwrap_or_default()).collect();
        lines.push(Line {
            kind: record.kind.name(),
            state: state.name(),
            parents: record.kind.parents().map(RecordId::to_string).collect(),
            r#type: record.record_type.name(),
            names: names_of,
            images: beside.images,
            leases: beside.leases,
            created_at: record.created_at,
            last_used: record.last_used,
            use_count: record.use_count,
            in_use: uses.refs > 0,
            held_by: beside.holders,
            children: uses.children,
            shared: sharing.records || sharing.images,
            mutable: record.is_mutable,
            retained: record.retention == Retention::Retain,
            volatile: record.is_volatile,
            disk_bytes: parts.iter().map(|part| part.bytes).sum(),
            blob_bytes: record.blob.as_ref().map(|blob| blob.size),
            present_bytes: present,
            media_type: record.blob.as_ref().map(|blob| blob.media_type.clone()),
            blob: record.blob.map(|blob| blob.digest),
            variants: beside.variants.into_iter().map(|blob| blob.digest).collect(),
            diff_id: record.diff_id,
            chain_id: record.chain_id,
            toc_digest: record.toc_digest,
            layer: record.layer,
            snapshot: record.snapshot.map(|snapshot| snapshot.to_string()),
            description: record.description,
            id: record.id.to_string(),
        });
    }
    Ok(lines)
}

/// Bytes of the layer's blob whose content is here.
fn present_bytes(cache: &Cache, usage: &Usage) -> anyhow::Result<Option<u64>> {
    let (Some(layer), Some(blob)) = (&usage.record.layer, &usage.record.blob) else { return Ok(None) };
    Ok(Some(match usage.state {
        LayerState::Extracted => blob.size,
        LayerState::Partial => {
            let content = open_local(cache.store(), &layer.parse()?)?;
            content.map_or(0, |content| content.blob_bytes_present(blob.size))
        }
        LayerState::Lazy | LayerState::Incomplete | LayerState::Poisoned => 0,
    }))
}

fn here(line: &Line) -> String {
    match (line.present_bytes, line.blob_bytes) {
        (Some(present), Some(all)) => output::percent(present, all),
        _ => "-".to_owned(),
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "-" }.to_owned()
}

fn table(lines: &[Line]) -> String {
    let columns = [
        ("RECORD", Align::Left),
        ("KIND", Align::Left),
        ("STATE", Align::Left),
        ("HERE", Align::Right),
        ("ON DISK", Align::Right),
        ("SHARED", Align::Left),
        ("IN USE", Align::Left),
        ("USES", Align::Right),
        ("LAST USED (UTC)", Align::Left),
        ("WHAT", Align::Left),
    ];
    let rows: Vec<_> = lines
        .iter()
        .map(|line| {
            vec![
                output::short_hex(&line.id).to_owned(),
                if line.mutable { format!("{}, mutable", line.kind) } else { line.kind.to_owned() },
                line.state.to_owned(),
                here(line),
                output::bytes(line.disk_bytes),
                yes(line.shared),
                yes(line.in_use),
                line.use_count.to_string(),
                line.last_used.map_or("-".to_owned(), output::time),
                if line.names.is_empty() { line.description.clone() } else { line.names.join(", ") },
            ]
        })
        .collect();
    output::table(&columns, &rows)
}

/// All that is known of one record, a line each.
fn sheet(line: &Line) -> String {
    let mut text = String::new();
    let mut say = |what: &str, value: String| {
        if !value.is_empty() {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{what:<14}{value}");
        }
    };
    say("id", line.id.clone());
    say("kind", line.kind.to_owned());
    say("state", line.state.to_owned());
    say("parents", line.parents.join(" "));
    say("description", line.description.clone());
    say("type", line.r#type.to_owned());
    say("names", line.names.join(" "));
    say("images", line.images.join(" "));
    say("leases", line.leases.join(" "));
    say("made (UTC)", output::time(line.created_at));
    say("used (UTC)", line.last_used.map(output::time).unwrap_or_default());
    say("uses", line.use_count.to_string());
    say("held by", line.held_by.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    say("children", line.children.to_string());
    say("shared", if line.shared { "yes" } else { "no" }.to_owned());
    let kinds = [(line.mutable, "mutable"), (line.retained, "retained"), (line.volatile, "volatile")];
    say(
        "kept as",
        kinds.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect::<Vec<_>>().join(", "),
    );
    say("on disk", output::bytes(line.disk_bytes));
    say("here", here(line));
    say("blob", line.blob.clone().unwrap_or_default());
    say("media type", line.media_type.clone().unwrap_or_default());
    say("variants", line.variants.join(" "));
    say("diff ID", line.diff_id.clone().unwrap_or_default());
    say("chain ID", line.chain_id.clone().unwrap_or_default());
    say("TOC", line.toc_digest.clone().unwrap_or_default());
    say("layer", line.layer.clone().unwrap_or_default());
    say("snapshot", line.snapshot.clone().unwrap_or_default());
    text
}
