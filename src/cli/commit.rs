//! `peel commit DIR`

use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context;
use peelfs::cache::Cache;
use peelfs::commit::{self, Committed, Format, Request};
use peelfs::layer::compression::Compression;
use peelfs::mount::writable::snapshot_at;
use peelfs::store::{Snapshot, SnapshotName, Store};
use peelfs_registry::{ImageReference, Reference};
use serde::Serialize;

use super::failure::{NotFound, Usage};
use super::{environment, output, unmount};

/// Make an image of what was changed in a writable mount
///
/// The changes become a layer above those of the image that was mounted, which stay as they are and are not fetched. The mount may be in
/// use: a file that changes while it is read is read again.
#[derive(clap::Args)]
pub struct Arguments {
    /// The directory of a writable mount; or the name of a snapshot, as `peel snapshot ls` lists them
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
    let store = Arc::new(Store::open(store)?);
    let snapshot = snapshot(&store, &arguments.changed)?;
    let name = match named {
        Some(name) => name,
        None => local_name(&format!("localhost/{}", snapshot.name.as_str().to_ascii_lowercase()))?,
    };
    let request = Request {
        snapshot,
        name,
        format: match arguments.format {
            FormatArgument::Gzip => Format::Plain(Compression::Gzip),
            FormatArgument::Zstd => Format::Plain(Compression::Zstd),
            FormatArgument::Estargz => Format::Estargz,
        },
        message: arguments.message,
        created,
        threads: std::thread::available_parallelism().unwrap_or(std::num::NonZeroUsize::MIN),
    };
    let committed = commit::commit(&Cache::open(store)?, &request)
        .with_context(|| format!("{} cannot be made", request.name))?;
    let report = report(&request.name, &committed);
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

/// The snapshot that is mounted at a directory, or that has that name.
fn snapshot(store: &Store, changed: &Path) -> anyhow::Result<Snapshot> {
    let mountpoint = unmount::resolved(changed)?;
    let mounted = snapshot_at(store, &mountpoint).ok().flatten();
    let name = mounted.or_else(|| changed.to_str()?.parse::<SnapshotName>().ok());
    let snapshot = name.map(|name| store.writable_snapshots().open(&name)).transpose()?.flatten();
    Ok(snapshot.ok_or_else(|| {
        NotFound(format!(
            "{} is neither a writable mount of this store nor a snapshot in it; `peel mount --writable` makes one, `peel snapshot ls` lists them",
            changed.display()
        ))
    })?)
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
