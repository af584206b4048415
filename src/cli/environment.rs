//! What the environment says.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

use anyhow::Context;
use peelfs_registry::{ImageReference, LayoutReference, Platform};
use tracing_subscriber::EnvFilter;

/// Where the store is when nobody says: `/var/lib/peel` for root, else below the user's data directory (XDG base directory
/// specification).
pub fn default_store() -> anyhow::Result<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/peel"));
    }
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = set("XDG_DATA_HOME").or_else(|| Some(set("HOME")?.join(".local/share")));
    Ok(data.context("neither XDG_DATA_HOME nor HOME is set; name the store with --store")?.join("peel"))
}

/// Where large files are kept for a while: `TMPDIR`, else `/var/tmp`, which is on disk where `/tmp` may be in memory.
pub fn scratch() -> PathBuf {
    let set = std::env::var_os("TMPDIR").filter(|value| !value.is_empty());
    set.map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from)
}

/// An image as somebody types it. A layout's path counts from the directory in which that is done: from another one, the same words
/// name another layout.
pub fn reference(text: &str) -> anyhow::Result<ImageReference> {
    Ok(match text.parse()? {
        ImageReference::Layout(layout) => {
            let path = std::path::absolute(&layout.path).context("no working directory")?;
            ImageReference::Layout(LayoutReference { path, ..layout })
        }
        reference => reference,
    })
}

/// The platform that was asked for, or this machine's.
pub fn platform(asked: Option<Platform>) -> Platform {
    asked.unwrap_or_else(Platform::host)
}

/// Tells whoever started this process as a service that it is ready (sd_notify(3)).
pub fn tell_readiness() {
    let Some(address) = std::env::var_os("NOTIFY_SOCKET") else { return };
    // A name in a directory, or behind an @ one that lies in none.
    let bytes = address.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&address),
    };
    let told = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address));
    if let Err(error) = told {
        tracing::warn!(%error, "nobody is told that this is ready");
    }
}

/// Sends the log to `to`. `PEEL_LOG` (a filter such as `peelfs=debug`) decides what is logged, else the number of `-v`.
pub fn log(verbose: u8, to: impl for<'a> tracing_subscriber::fmt::MakeWriter<'a> + Send + Sync + 'static) {
    let default = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_env("PEEL_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(to);
    // There is no other subscriber, as this is called once in a process.
    let _ = subscriber.try_init();
}
