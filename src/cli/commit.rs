//! `peel commit DIR`

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use peelfs::cache::{Cache, CacheError, Key, Purpose};
use peelfs::commit::{self, Committed, Format, LayerRequest, Source};
use peelfs::layer::compression::Compression;
use peelfs::mount::writable::{open_cache, places_of, snapshot_at};
use peelfs::store::record_tables::RecordId;
use peelfs::store::{SnapshotName, Store};
use peelfs_registry::{ImageReference, Reference};
use serde::Serialize;

use super::failure::{NotFound, Usage};
use super::{environment, output, unmount};

/// Make an image of what was changed in a writable mount
///
/// The changes become a layer above those of the image that was mounted, which stay as they are and are not fetched. The mount may be in
/// use: a file that changes while it is read is read again. What is not mounted is not copied: its record becomes that of the layer, and
/// what is changed from then on lies above it.
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory of a writable mount; or the name of a snapshot, as `peel snapshot ls` lists them, or the id of its record
    #[arg(value_name = "DIR")]
    changed: PathBuf,
    /// The name of the new image; without a host, it is one of localhost/ [default: localhost/ and the snapshot's name]
    #[arg(short, long, value_name = "NAME")]
    tag: Option<String>,
    /// The format of the new layer
    #[arg(long, value_enum, default_value_t = FormatArgument::Gzip)]
    format: FormatArgument,
    /// What the image's history says of the layer
    #[arg(short, long)]
    message: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum FormatArgument {
    /// A tar.gz
    Gzip,
    /// A tar.zst
    Zstd,
    /// A tar.gz with a table of contents, which can be mounted lazily
    Estargz,
}

#[derive(Serialize)]
struct Report {
    reference: String,
    manifest_digest: String,
    config_digest: String,
    layer: LayerReport,
    /// Paths of sockets, which no layer can hold.
    left_out: Vec<String>,
}

#[derive(Serialize)]
struct LayerReport {
    digest: String,
    size: u64,
    diff_id: String,
    uncompressed_size: u64,
}

/// Runs the command.
pub fn run(arguments: Arguments, store: &Path, verbose: u8) -> anyhow::Result<ExitCode> {
    environment::log(verbose, std::io::stderr);
    let named = arguments.tag.as_deref().map(local_name).transpose()?;
    let created = created()?;
    let cache = open_cache(Arc::new(Store::open(store)?))?;
    let (source, snapshot) = source(&cache, &arguments.changed)?;
    let name = match named {
        Some(name) => name,
        None => local_name(&format!("localhost/{}", snapshot.as_str().to_ascii_lowercase()))?,
    };
    let request = LayerRequest {
        format: match arguments.format {
            FormatArgument::Gzip => Format::Plain(Compression::Gzip),
            FormatArgument::Zstd => Format::Plain(Compression::Zstd),
            FormatArgument::Estargz => Format::Estargz,
        },
        message: arguments.message,
        created,
        threads: std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN),
    };
    let committed =
        commit::commit(&cache, source, &name, &request).with_context(|| format!("{name} cannot be made"))?;
    let report = report(&name, &committed);
    for path in &report.left_out {
        tracing::warn!(path, "a socket is left out: no layer can hold one");
    }
    if let Some(reason) = committed.written.not_lazy {
        tracing::warn!(
            "the layer will be mounted, but not lazily: its table of contents cannot say {reason}"
        );
    }
    if arguments.json {
        output::json(&report)?;
    } else {
        let size = output::bytes(report.layer.size);
        output::print(&format!(
            "{} {}\nlayer {} ({size})\n",
            report.reference, report.manifest_digest, report.layer.digest
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The changes in what is mounted at a directory, or has that name or id; and the snapshot's name.
fn source(cache: &Cache, changed: &Path) -> anyhow::Result<(Source, SnapshotName)> {
    let store = cache.store();
    let missing = || {
        NotFound(format!(
            "{} is neither a writable mount of this store nor a snapshot in it; `peel mount --writable` makes one, `peel snapshot ls` lists them",
            changed.display()
        ))
    };
    let mountpoint = unmount::resolved(changed)?;
    let id = match snapshot_at(store, &mountpoint).ok().flatten() {
        Some(mounted) => mounted,
        None => meant(cache, changed)?.ok_or_else(missing)?,
    };
    let name = |id: &RecordId| anyhow::Ok(store.snapshots().note(id)?.ok_or_else(missing)?.origin.name);
    // Not even a process that was killed leaves a mount that nobody writes through.
    if !places_of(store, &id).is_empty() {
        return Ok((Source::Mounted(id.clone()), name(&id)?));
    }
    match cache.get_mutable(&id) {
        Ok(mutable) => {
            let name = name(mutable.id())?;
            Ok((Source::Mutable(mutable), name))
        }
        // In a mount that this process does not see.
        Err(CacheError::InUse { .. }) => Ok((Source::Mounted(id.clone()), name(&id)?)),
        Err(CacheError::Immutable { .. }) => {
            let committed = cache.get(&id, Purpose::Use)?;
            Ok((Source::Committed(committed), name(&id)?))
        }
        Err(error) => Err(error.into()),
    }
}

/// The record of that name or id.
fn meant(cache: &Cache, changed: &Path) -> anyhow::Result<Option<RecordId>> {
    let Some(text) = changed.to_str() else { return Ok(None) };
    if let Ok(name) = text.parse::<SnapshotName>()
        && let Some(found) = cache.named_snapshot(&name)?
    {
        return Ok(Some(found.record.id));
    }
    match cache.look_up(Key::Id(text)) {
        Ok(record) => Ok(Some(record.id)),
        Err(CacheError::Unknown { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The name of an image that is made here. What would be taken for one of Docker Hub's is one of localhost's, unless it says so.
pub(super) fn local_name(text: &str) -> anyhow::Result<Reference> {
    let refused = |reason: &str| Usage(format!("{text:?} cannot name an image that is made: {reason}"));
    let parsed: ImageReference = text.parse()?;
    let ImageReference::Registry(reference) = parsed else {
        return Err(refused("it must be a name and a tag, as of a registry").into());
    };
    if reference.digest().is_some() {
        return Err(refused("nobody knows its digest before").into());
    }
    let says_so = ["docker.io/", "index.docker.io/"].iter().any(|host| text.starts_with(host));
    if reference.host() == peelfs_registry::reference::DEFAULT_HOST && !says_so {
        return Ok(format!("localhost/{text}").parse()?);
    }
    Ok(reference)
}

/// When the image is made: now, or what `SOURCE_DATE_EPOCH` says (reproducible-builds.org), in seconds since 1970.
fn created() -> anyhow::Result<i64> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) if !text.is_empty() => Ok(text
            .parse()
            .map_err(|_| Usage(format!("SOURCE_DATE_EPOCH is no number of seconds: {text:?}")))?),
        _ => {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            Ok(now.map_or(0, |elapsed| elapsed.as_secs() as i64))
        }
    }
}

fn report(name: &Reference, committed: &Committed) -> Report {
    let shown = |path: &Vec<u8>| std::ffi::OsString::from_vec(path.clone()).to_string_lossy().into_owned();
    Report {
        reference: name.to_string(),
        manifest_digest: committed.manifest_digest.to_string(),
        config_digest: committed.config_digest.to_string(),
        layer: LayerReport {
            digest: committed.layer_digest.to_string(),
            size: committed.layer_size,
            diff_id: committed.written.diff_id.to_string(),
            uncompressed_size: committed.written.uncompressed_size,
        },
        left_out: committed.left_out.iter().map(shown).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::local_name;

    #[test]
    fn names_without_a_host_are_of_this_machine() {
        for (typed, meant) in [
            ("python", "localhost/python:latest"),
            ("python:3", "localhost/python:3"),
            ("org/name:t", "localhost/org/name:t"),
            ("localhost/name", "localhost/name:latest"),
            ("docker.io/org/name", "docker.io/org/name:latest"),
            ("host:5000/name:t", "host:5000/name:t"),
        ] {
            assert_eq!(local_name(typed).unwrap().to_string(), meant, "{typed}");
        }
        let digest = format!("name@sha256:{}", "1".repeat(64));
        for wrong in ["", "Name", "oci:dir:tag", "na me", &digest, "name:"] {
            assert!(local_name(wrong).is_err(), "{wrong}");
        }
    }
}
