//! How commands reach registries: the options that they share, and the threads on which they wait.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use peelfs::meter;
use peelfs_registry::{ClientConfiguration, NetworkObserver, Platform, Timeouts};

use super::environment;

/// Options of every command that brings images here.
#[derive(clap::Args)]
pub struct SourceArguments {
    /// The platform to choose from an image index, such as linux/arm64 [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// Believe SOCI indexes that only refer to the image: whoever may push to its repository may have put them there, and they decide what
    /// its files are. Layers that come of them stay in the store
    #[arg(long)]
    pub trust_referrers: bool,
    #[command(flatten)]
    pub network: NetworkArguments,
}

impl SourceArguments {
    /// The platform that is meant.
    pub fn platform(&self) -> Platform {
        environment::platform(self.platform.clone())
    }

    /// Whether it was asked for by name, so that an image for another is not what is wanted.
    pub fn names_platform(&self) -> bool {
        self.platform.is_some()
    }

    /// What a client is told.
    pub fn client(&self) -> ClientConfiguration {
        self.network.client()
    }
}

/// Options of every command that asks registries.
#[derive(clap::Args)]
pub struct NetworkArguments {
    /// Speak plain HTTP to registries (loopback hosts are spoken to so anyway)
    #[arg(long)]
    plain_http: bool,
    /// Seconds after which a registry that sends nothing, or next to nothing, is given up
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3600))]
    network_timeout: u64,
    /// Fetch a layer that the registry lacks from where the manifest says it is (a foreign layer), without credentials
    #[arg(long)]
    foreign_urls: bool,
    /// Directory that says which hosts are asked for each registry (containerd's HOST/hosts.toml)
    #[arg(long, value_name = "DIR", default_value = "/etc/containerd/certs.d", value_parser = absolute)]
    hosts_dir: PathBuf,
}

/// A serving process leaves the directory in which it was started.
fn absolute(text: &str) -> std::io::Result<PathBuf> {
    std::path::absolute(text)
}

impl NetworkArguments {
    /// What a client is told: these options, and what the environment says.
    pub fn client(&self) -> ClientConfiguration {
        ClientConfiguration {
            plain_http: self.plain_http,
            follow_foreign_urls: self.foreign_urls,
            hosts_directories: vec![self.hosts_dir.clone()],
            timeouts: Timeouts::of_operations(Duration::from_secs(self.network_timeout)),
            observer: NetworkObserver::new(meter::network),
            ..ClientConfiguration::from_environment(|name| std::env::var_os(name))
        }
    }

    /// These options as somebody would type them.
    pub fn to_arguments(&self) -> Vec<OsString> {
        let mut words = vec!["--network-timeout".into(), self.network_timeout.to_string().into()];
        words.extend(["--hosts-dir".into(), self.hosts_dir.clone().into()]);
        words.extend(self.plain_http.then(|| "--plain-http".into()));
        words.extend(self.foreign_urls.then(|| "--foreign-urls".into()));
        words
    }
}

/// The threads on which all that waits for the network waits.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("peel-network")
        .enable_all()
        .build()
        .context("cannot start threads")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        network: NetworkArguments,
    }

    #[test]
    fn options_reach_the_client() {
        let client = |arguments: &[&str]| {
            let all = ["peel"].iter().chain(arguments);
            Command::try_parse_from(all).unwrap().network.client()
        };
        let ordinary = client(&[]);
        assert_eq!(ordinary.timeouts, Timeouts::default());
        assert!(!ordinary.follow_foreign_urls && !ordinary.plain_http);
        let changed = client(&["--network-timeout", "7", "--foreign-urls", "--plain-http"]);
        assert_eq!(changed.timeouts.operation, Duration::from_secs(7));
        // A host that says nothing is asked once more before that.
        assert!(changed.timeouts.idle < changed.timeouts.operation);
        assert!(changed.follow_foreign_urls && changed.plain_http);
        assert_eq!(ordinary.hosts_directories, [PathBuf::from("/etc/containerd/certs.d")]);
        assert_eq!(client(&["--hosts-dir", "/hosts"]).hosts_directories, [PathBuf::from("/hosts")]);
        assert!(client(&["--hosts-dir", "hosts"]).hosts_directories[0].is_absolute());
        for arguments in [
            &[][..],
            &["--network-timeout", "7"],
            &["--foreign-urls"],
            &["--plain-http"],
            &["--hosts-dir", "/hosts"],
        ] {
            let command = Command::try_parse_from(["peel"].iter().chain(arguments)).unwrap();
            let again = command.network.to_arguments();
            let again = Command::try_parse_from([OsString::from("peel")].into_iter().chain(again)).unwrap();
            let told = |command: Command| format!("{:?}", command.network.to_arguments());
            assert_eq!(told(again), told(command));
        }
        for wrong in ["0", "-1", "3601", "soon"] {
            assert!(Command::try_parse_from(["peel", "--network-timeout", wrong]).is_err(), "{wrong}");
        }
    }
}
