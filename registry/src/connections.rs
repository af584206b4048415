//! Connection pools: one for all hosts without settings of their own, one for each host with them.
//!
//! A host's extra authorities and our certificate for it must not count for, or be shown to, any other host, so they live in
//! a pool of their own. Plain HTTP has a pool that never loads the system's root certificates: it works on a
//! machine that has none, and saves their parsing (some 140 files' worth).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use reqwest::{Certificate, Identity, NoProxy, Proxy, Url};

use crate::configuration::{
    ClientCertificate, ClientConfiguration, HostSettings, Proxies, without_credentials,
};
use crate::endpoint::Endpoint;
use crate::error::{Context, Error, ErrorKind};
use crate::local_file;
use crate::origin::Origin;
use crate::transport::Failure;

/// The certificates of all that the world trusts are a quarter of it.
const MAXIMUM_CERTIFICATE_FILE_SIZE: u64 = 1024 * 1024;

const USER_AGENT: &str = concat!("peelfs/", env!("CARGO_PKG_VERSION"));

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Pool {
    Plain {
        proxied: bool,
    },
    Secure {
        proxied: bool,
    },
    /// A host with settings: its `host[:port]`, if those of it are kept by name, and its origin, if a file of hosts names it.
    Host(Option<String>, Option<Origin>),
}

/// The pools made so far.
#[derive(Debug)]
pub(crate) struct Connections {
    proxies: Vec<Proxy>,
    made: Mutex<Made>,
}

#[derive(Debug, Default)]
struct Made {
    /// Those that are written to apart.
    pools: HashMap<(Pool, bool), reqwest::Client>,
    /// By endpoint, origin and whether it is written to, so that directories are looked into once and not for every request.
    chosen: HashMap<(String, Origin, bool), reqwest::Client>,
}

impl Connections {
    pub(crate) fn new(settings: &Proxies) -> Result<Connections, Error> {
        Ok(Connections { proxies: proxies(settings)?, made: Mutex::default() })
    }

    /// Whether `host[:port]` has TLS settings of its own.
    pub(crate) fn has_settings(configuration: &ClientConfiguration, host: &str) -> bool {
        configuration.hosts.contains_key(host)
            || configuration.certificate_directories.iter().any(|directory| directory.join(host).is_dir())
    }

    /// The client with which `url` may be spoken to, for a request that began at `endpoint`.
    pub(crate) fn client(
        &self,
        configuration: &ClientConfiguration,
        endpoint: &Endpoint,
        url: &Url,
    ) -> Result<reqwest::Client, Failure> {
        let origin = Origin::of(url);
        // While a body is sent nothing is received, for longer than an answer may take.
        let waits = endpoint.is_written();
        let key = (endpoint.host.clone(), origin.clone(), waits);
        // A panic elsewhere cannot leave these maps half changed.
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = made.chosen.get(&key) {
            return Ok(client.clone());
        }
        let proxied = !origin.is_loopback();
        let pool = if !origin.is_secure() {
            Pool::Plain { proxied }
        } else {
            match settings_key(configuration, endpoint, &origin, url) {
                Some(host) => Pool::Host(Some(host), None),
                None => Pool::Secure { proxied },
            }
        };
        let own = endpoint.settings.as_deref().filter(|_| origin == endpoint.origin);
        let pool = match (pool, own) {
            (Pool::Host(host, _), Some(_)) => Pool::Host(host, Some(origin.clone())),
            (_, Some(_)) => Pool::Host(None, Some(origin.clone())),
            (pool, None) => pool,
        };
        let pool = (pool, waits);
        let client = match made.pools.get(&pool) {
            Some(client) => client.clone(),
            None => {
                let proxies = if proxied { self.proxies.as_slice() } else { &[] };
                let client = built(configuration, &pool.0, own, waits, proxies)?;
                made.pools.insert(pool, client.clone());
                client
            }
        };
        made.chosen.insert(key, client.clone());
        Ok(client)
    }
}

/// The name under which the settings for an origin are kept, if there are any.
fn settings_key(
    configuration: &ClientConfiguration,
    endpoint: &Endpoint,
    origin: &Origin,
    url: &Url,
) -> Option<String> {
    let host = url.host_str()?;
    let mut names = Vec::new();
    // Docker Hub's settings are kept under the name that references use.
    if *origin == endpoint.origin {
        names.push(endpoint.host.clone());
    }
    match url.port() {
        Some(port) => names.push(format!("{host}:{port}")),
        None => names.extend([host.to_owned(), format!("{host}:443")]),
    }
    names.into_iter().find(|name| Connections::has_settings(configuration, name))
}

fn built(
    configuration: &ClientConfiguration,
    pool: &Pool,
    own: Option<&HostSettings>,
    waits: bool,
    proxies: &[Proxy],
) -> Result<reqwest::Client, Failure> {
    // Another part of the program may have chosen a provider already; any will do.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let connect_timeout = own.and_then(|own| own.connect_timeout).unwrap_or(configuration.timeouts.connect);
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(connect_timeout)
        .tcp_nodelay(true)
        .http2_adaptive_window(true)
        .no_proxy();
    if !waits {
        builder = builder.read_timeout(configuration.timeouts.idle);
    }
    match own.and_then(|own| own.proxy.as_deref()) {
        Some(proxy) => builder = builder.proxy(own_proxy(proxy)?),
        None => {
            for proxy in proxies {
                builder = builder.proxy(proxy.clone());
            }
        }
    }
    match pool {
        Pool::Plain { .. } => builder = builder.tls_certs_only([]),
        Pool::Secure { .. } => {}
        Pool::Host(host, _) => {
            let mut all = own.cloned().into_iter().collect::<Vec<HostSettings>>();
            if let Some(host) = host {
                all.extend(host_settings(configuration, host)?);
            }
            for settings in all {
                if settings.accepts_any_certificate {
                    builder = builder.tls_danger_accept_invalid_certs(true);
                }
                for path in &settings.certificate_authorities {
                    let pem = read(path)?;
                    let certificates =
                        Certificate::from_pem_bundle(&pem).map_err(|error| unusable(path, error))?;
                    builder = builder.tls_certs_merge(certificates);
                }
                if let Some(ClientCertificate { certificate, key }) = &settings.client_certificate {
                    let mut pem = read(certificate)?;
                    if key != certificate {
                        pem.push(b'\n');
                        pem.extend(read(key)?);
                    }
                    builder = builder
                        .identity(Identity::from_pem(&pem).map_err(|error| unusable(certificate, error))?);
                }
            }
        }
    }
    builder.build().map_err(|error| {
        Failure::permanent(ErrorKind::Local, "TLS cannot be set up; are root certificates installed?")
            .caused_by(error)
    })
}

/// The proxy of one host. The library's error would quote its address, with its password.
fn own_proxy(address: &str) -> Result<Proxy, Failure> {
    Proxy::all(address).map_err(|_| {
        let message = format!("the address of the proxy {} is malformed", without_credentials(address));
        Failure::permanent(ErrorKind::Local, message)
    })
}

fn proxies(settings: &Proxies) -> Result<Vec<Proxy>, Error> {
    type Make = fn(&str) -> reqwest::Result<Proxy>;
    let except = settings.except.as_deref().and_then(NoProxy::from_string);
    // The first that matches a URL is taken, so the one for everything comes last.
    let given: [(&Option<String>, Make); 3] = [
        (&settings.http, |url| Proxy::http(url)),
        (&settings.https, |url| Proxy::https(url)),
        (&settings.all, |url| Proxy::all(url)),
    ];
    given
        .into_iter()
        .filter_map(|(url, make)| url.as_deref().map(|url| (url, make)))
        .map(|(url, make)| match make(url) {
            Ok(proxy) => Ok(proxy.no_proxy(except.clone())),
            // The library's error would quote the URL, with its password.
            Err(_) => {
                let context = Context {
                    host: without_credentials(url),
                    repository: String::new(),
                    subject: "anything".to_owned(),
                    is_written: false,
                };
                Err(Error::new(ErrorKind::Local, &context, "the address of this proxy is malformed"))
            }
        })
        .collect()
}

/// All settings that count for a host: those given, then those found in directories.
fn host_settings(configuration: &ClientConfiguration, host: &str) -> Result<Vec<HostSettings>, Failure> {
    let mut settings: Vec<HostSettings> = configuration.hosts.get(host).cloned().into_iter().collect();
    for directory in &configuration.certificate_directories {
        settings.extend(settings_in(&directory.join(host))?);
    }
    Ok(settings)
}

/// The settings that the files of one directory are; nothing if there is no such directory.
pub(crate) fn settings_in(directory: &Path) -> Result<Option<HostSettings>, Failure> {
    let failed = |error| {
        let message = format!("cannot read the certificate directory {}", directory.display());
        Failure::permanent(ErrorKind::Local, message).caused_by(error)
    };
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            let paths: Result<Vec<PathBuf>, _> =
                entries.map(|entry| entry.map(|entry| entry.path())).collect();
            settings_of(paths.map_err(failed)?).map(Some)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// What the files of one `certs.d/HOST` directory mean, by Docker's convention.
fn settings_of(mut paths: Vec<PathBuf>) -> Result<HostSettings, Failure> {
    paths.sort();
    let with_extension = |wanted: &str| -> BTreeMap<PathBuf, PathBuf> {
        paths
            .iter()
            .filter(|path| path.extension().is_some_and(|extension| extension == wanted))
            .map(|path| (path.with_extension(""), path.clone()))
            .collect()
    };
    let mut keys = with_extension("key");
    let mut client_certificate = None;
    for (stem, certificate) in with_extension("cert") {
        let Some(key) = keys.remove(&stem) else {
            let message = format!("the key that belongs to {} is missing", certificate.display());
            return Err(Failure::permanent(ErrorKind::Local, message));
        };
        client_certificate.get_or_insert(ClientCertificate { certificate, key });
    }
    Ok(HostSettings {
        certificate_authorities: with_extension("crt").into_values().collect(),
        client_certificate,
        ..HostSettings::default()
    })
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    local_file::read_bounded(path, MAXIMUM_CERTIFICATE_FILE_SIZE).map_err(|error| {
        Failure::permanent(ErrorKind::Local, format!("cannot read {}", path.display())).caused_by(error)
    })
}

fn unusable(path: &Path, error: reqwest::Error) -> Failure {
    Failure::permanent(ErrorKind::Local, format!("{} holds no usable certificate", path.display()))
        .caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_directory_is_read_by_dockers_convention() {
        let paths = |names: &[&str]| names.iter().map(|name| Path::new("/d").join(name)).collect::<Vec<_>>();
        let settings =
            settings_of(paths(&["z.crt", "client.key", "ca.crt", "client.cert", "notes.txt"])).unwrap();
        assert_eq!(settings.certificate_authorities, paths(&["ca.crt", "z.crt"]));
        assert_eq!(
            settings.client_certificate,
            Some(ClientCertificate { certificate: "/d/client.cert".into(), key: "/d/client.key".into() })
        );
        assert!(settings_of(paths(&["client.cert", "other.key"])).is_err(), "a certificate without its key");
    }
}
