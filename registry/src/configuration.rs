//! What a client is told about hosts, files, proxies and patience.
//!
//! The library reads no environment by itself: [`ClientConfiguration::from_environment`] asks a closure for each variable,
//! so a program passes `std::env::var_os`, and a test what it likes. Files are read only when a host needs them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use crate::credentials::CredentialSource;

use crate::observer::NetworkObserver;

/// Everything a [`Client`](crate::Client) may be told. The default reads no files and uses no proxy.
#[derive(Clone, Debug, Default)]
pub struct ClientConfiguration {
    /// Speak plain HTTP to every registry. Loopback hosts without TLS settings of their own are spoken to so anyway.
    pub plain_http: bool,
    /// Fetch a blob that the registry lacks from the URLs of its descriptor.
    pub follow_foreign_urls: bool,
    /// Files in the format of Docker's `config.json` and podman's `auth.json`; the first that knows a host decides. A file
    /// that does not exist is skipped.
    pub credential_files: Vec<PathBuf>,
    /// Who else knows credentials; he is asked before the files.
    pub credential_source: Option<Arc<dyn CredentialSource>>,
    /// Where the programs `docker-credential-NAME` are looked for, in order; a shell's `PATH`.
    pub helper_directories: Vec<PathBuf>,
    /// Directories laid out as `/etc/docker/certs.d`: `HOST[:PORT]/` with `*.crt` (authorities), `*.cert` and `*.key`
    /// (client certificate). All that know a host count.
    pub certificate_directories: Vec<PathBuf>,
    /// Directories laid out as `/etc/containerd/certs.d` (containerd, `docs/hosts.md`): `HOST[:PORT]/hosts.toml` says which hosts are asked
    /// in which order for what that registry has, and how. The first that knows a registry counts.
    pub hosts_directories: Vec<PathBuf>,
    /// Settings by `host[:port]` as in a reference, in addition to the directories.
    pub hosts: BTreeMap<String, HostSettings>,
    /// Proxies; loopback hosts are always spoken to directly.
    pub proxies: Proxies,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// Who is told what crosses the network.
    pub observer: NetworkObserver,
}

/// What is particular about one host.
#[derive(Clone, Default)]
pub struct HostSettings {
    /// PEM files of authorities trusted for this host, besides the system's.
    pub certificate_authorities: Vec<PathBuf>,
    /// The certificate shown to this host, and no other.
    pub client_certificate: Option<ClientCertificate>,
    /// Take whatever certificate it shows, so that anybody may answer in its place.
    pub accepts_any_certificate: bool,
    /// Headers of requests to this host, and to no other that it leads to.
    pub headers: HeaderMap,
    /// How long to wait for a connection, TLS included, if not as for others.
    pub connect_timeout: Option<Duration>,
    /// The proxy by which it is reached, whatever else is configured.
    pub proxy: Option<String>,
}

impl HostSettings {
    /// Whether it is said how to speak TLS, and so that this is spoken.
    pub(crate) fn is_about_tls(&self) -> bool {
        !self.certificate_authorities.is_empty()
            || self.client_certificate.is_some()
            || self.accepts_any_certificate
    }
}

impl fmt::Debug for HostSettings {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers and proxies may carry a password.
        let headers: Vec<&str> = self.headers.keys().map(|name| name.as_str()).collect();
        formatter
            .debug_struct("HostSettings")
            .field("certificate_authorities", &self.certificate_authorities)
            .field("client_certificate", &self.client_certificate)
            .field("accepts_any_certificate", &self.accepts_any_certificate)
            .field("headers", &headers)
            .field("connect_timeout", &self.connect_timeout)
            .field("proxy", &self.proxy.as_deref().map(without_credentials))
            .finish()
    }
}

/// A certificate with its private key, both PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate, followed by its chain; the key may be in the same file.
    pub certificate: PathBuf,
    /// The private key: PKCS #8, PKCS #1 or SEC 1, not encrypted.
    pub key: PathBuf,
}

/// Proxies by scheme, as the customary environment variables give them.
#[derive(Clone, Default)]
pub struct Proxies {
    /// For `http` URLs.
    pub http: Option<String>,
    /// For `https` URLs.
    pub https: Option<String>,
    /// For whatever the other two leave.
    pub all: Option<String>,
    /// Hosts spoken to directly: names, `.domains`, addresses and networks, separated by commas.
    pub except: Option<String>,
}

impl fmt::Debug for Proxies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Proxy URLs may carry a password.
        let shown = |proxy: &Option<String>| proxy.as_deref().map(without_credentials);
        formatter
            .debug_struct("Proxies")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("all", &shown(&self.all))
            .field("except", &self.except)
            .finish()
    }
}

/// A proxy's URL, fit for an error or a log.
pub(crate) fn without_credentials(proxy: &str) -> String {
    match Url::parse(proxy) {
        Ok(url) if url.has_host() => crate::origin::Origin::of(&url).to_string(),
        _ if proxy.contains('@') => "(a proxy with credentials)".to_owned(),
        _ => proxy.to_owned(),
    }
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For the next bytes of an answer.
    pub idle: Duration,
    /// For an operation that makes no progress, all its attempts together.
    pub operation: Duration,
    /// For a credential helper.
    pub credential_helper: Duration,
}

impl Timeouts {
    /// An operation without progress is given up after so long, and never before it was tried twice.
    pub fn of_operations(operation: Duration) -> Timeouts {
        let half = operation / 2;
        Timeouts {
            connect: half.min(Duration::from_secs(10)),
            idle: half,
            operation,
            credential_helper: Duration::from_secs(30),
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts::of_operations(Duration::from_secs(60))
    }
}

impl ClientConfiguration {
    /// The places where docker, podman and the shell keep these settings.
    ///
    /// `lookup` gives the value of an environment variable. Read are `REGISTRY_AUTH_FILE` (which, if set, is the only
    /// credential file), `XDG_RUNTIME_DIR`, `XDG_CONFIG_HOME`, `DOCKER_CONFIG`, `HOME`, `PATH`, and `HTTP_PROXY`, `HTTPS_PROXY`,
    /// `ALL_PROXY`, `NO_PROXY` in either case (of `HTTP_PROXY` only the lower case, because a CGI server sets the
    /// other from a request header).
    pub fn from_environment(lookup: impl Fn(&str) -> Option<OsString>) -> ClientConfiguration {
        let path = |name: &str| lookup(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let text = |name: &str| {
            let value = lookup(name)?.into_string().ok()?;
            (!value.is_empty()).then_some(value)
        };
        let either_case = |name: &str| text(&name.to_ascii_lowercase()).or_else(|| text(name));
        let home = path("HOME");
        let configuration_home =
            path("XDG_CONFIG_HOME").or_else(|| home.as_ref().map(|home| home.join(".config")));

        let credential_files = match path("REGISTRY_AUTH_FILE") {
            Some(only) => vec![only],
            None => {
                let runtime = path("XDG_RUNTIME_DIR").map(|directory| directory.join("containers"));
                // Where podman looks when nobody logged in through a session.
                let run = PathBuf::from(format!("/run/containers/{}", rustix::process::getuid().as_raw()));
                let docker = path("DOCKER_CONFIG").or_else(|| home.as_ref().map(|home| home.join(".docker")));
                [
                    Some(runtime.unwrap_or(run).join("auth.json")),
                    configuration_home.as_ref().map(|directory| directory.join("containers/auth.json")),
                    docker.map(|directory| directory.join("config.json")),
                ]
                .into_iter()
                .flatten()
                .collect()
            }
        };
        let certificate_directories = configuration_home
            .map(|directory| directory.join("containers/certs.d"))
            .into_iter()
            .chain(["/etc/containers/certs.d".into(), "/etc/docker/certs.d".into()])
            .collect();
        ClientConfiguration {
            credential_files,
            helper_directories: lookup("PATH").iter().flat_map(std::env::split_paths).collect(),
            certificate_directories,
            proxies: Proxies {
                http: text("http_proxy"),
                https: either_case("HTTPS_PROXY"),
                all: either_case("ALL_PROXY"),
                except: either_case("NO_PROXY"),
            },
            ..ClientConfiguration::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(variables: &[(&str, &str)]) -> ClientConfiguration {
        ClientConfiguration::from_environment(|name| {
            variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn credential_files_are_looked_for_where_podman_and_docker_keep_them() {
        let files = |variables: &[(&str, &str)]| configured(variables).credential_files;
        let all =
            [("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r"), ("XDG_CONFIG_HOME", "/c"), ("DOCKER_CONFIG", "/d")];
        assert_eq!(
            files(&all),
            ["/r/containers/auth.json", "/c/containers/auth.json", "/d/config.json"].map(PathBuf::from)
        );
        assert_eq!(
            files(&all[..2]),
            ["/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
                .map(PathBuf::from)
        );
        let mut only = all.to_vec();
        only.push(("REGISTRY_AUTH_FILE", "/only"));
        assert_eq!(files(&only), [PathBuf::from("/only")]);
    }

    #[test]
    fn proxies_are_read_and_their_passwords_never_shown() {
        let proxies = configured(&[
            ("HTTP_PROXY", "http://set-by-a-request-header"),
            ("https_proxy", "http://user:secret@proxy:3128"),
            ("NO_PROXY", ".example.com"),
        ])
        .proxies;
        assert_eq!(proxies.http, None);
        assert_eq!(proxies.https.as_deref(), Some("http://user:secret@proxy:3128"));
        assert_eq!(proxies.except.as_deref(), Some(".example.com"));
        let shown = format!("{proxies:?}");
        assert!(shown.contains("http://proxy:3128") && !shown.contains("secret"), "{shown}");
    }
}
