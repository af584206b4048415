//! The hosts by which a repository is reached: the registry that its name has, and those that are asked in its place.

use std::sync::Arc;

use reqwest::Url;
use reqwest::header::HeaderMap;

use crate::configuration::{ClientConfiguration, HostSettings};
use crate::connections::Connections;
use crate::error::{Context, Error, ErrorKind};
use crate::hosts::{self, Capabilities, RegistryHost};
use crate::origin::{Origin, is_loopback_authority};
use crate::reference::Reference;
use crate::transport::Failure;

/// The API of one repository on one host.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// The registry as in the reference: what errors call the place.
    pub(crate) registry: String,
    /// Who is asked, in the same words: the key for credentials and certificates.
    pub(crate) host: String,
    pub(crate) repository: String,
    pub(crate) origin: Origin,
    /// `https://host/v2/repository/`.
    base: Url,
    pub(crate) capabilities: Capabilities,
    /// What a file of hosts says of this one.
    pub(crate) settings: Option<Arc<HostSettings>>,
    /// Whether it is written to, which takes another token and other patience.
    is_written: bool,
    /// Another repository of the host from which a blob is to be mounted.
    lender: Option<String>,
}

/// The hosts of one repository.
#[derive(Clone, Debug)]
pub(crate) struct Endpoints {
    /// Where it is written to; if nobody takes that, the last.
    pub(crate) written: Endpoint,
    /// All of them, in the order in which they are asked. At least one.
    pub(crate) all: Arc<[Endpoint]>,
}

impl Endpoints {
    /// The hosts that the configuration names for a registry, or that registry.
    pub(crate) fn new(
        reference: &Reference,
        configuration: &ClientConfiguration,
    ) -> Result<Endpoints, Error> {
        let failed = |message: String| {
            let context = Context {
                host: reference.host().to_owned(),
                repository: reference.repository().to_owned(),
                subject: "the registry's address".to_owned(),
                is_written: false,
            };
            Error::new(ErrorKind::Local, &context, message)
        };
        let named = hosts::of_registry(&configuration.hosts_directories, reference.host());
        let named = named.map_err(|error| failed(error.to_string()).with_cause(error))?;
        let mut all = Vec::new();
        match named {
            Some(hosts) => {
                for host in hosts {
                    all.push(Endpoint::of_host(reference, configuration, host));
                }
            }
            None => all.push(Endpoint::of_registry(reference, configuration, None)),
        }
        let all: Result<Vec<Endpoint>, _> = all.into_iter().collect();
        let all = all.map_err(|error| failed("the host is malformed".to_owned()).with_cause(error))?;
        let written = all.iter().find(|endpoint| endpoint.capabilities.push).or(all.last()).cloned();
        // A file of hosts has a server, or else the registry itself stands for it.
        let written = written.ok_or_else(|| failed("there is no host to ask".to_owned()))?;
        Ok(Endpoints { written, all: all.into() })
    }
}

impl Endpoint {
    /// The registry itself, with what a file of hosts says of it.
    fn of_registry(
        reference: &Reference,
        configuration: &ClientConfiguration,
        settings: Option<HostSettings>,
    ) -> Result<Endpoint, MalformedAddress> {
        let host = reference.host();
        let has_tls_settings = Connections::has_settings(configuration, host)
            || settings.as_ref().is_some_and(HostSettings::is_about_tls);
        let plain = configuration.plain_http || (is_loopback_authority(host) && !has_tls_settings);
        let scheme = if plain { "http" } else { "https" };
        let api = Url::parse(&format!("{scheme}://{}/v2/", reference.api_host()))?;
        Endpoint::at(reference, host.to_owned(), &api, Capabilities::ALL, settings)
    }

    fn of_host(
        reference: &Reference,
        configuration: &ClientConfiguration,
        host: RegistryHost,
    ) -> Result<Endpoint, MalformedAddress> {
        let Some(api) = host.address else {
            return Endpoint::of_registry(reference, configuration, Some(host.settings));
        };
        let authority = match (api.host_str().unwrap_or_default(), api.port()) {
            (name, Some(port)) => format!("{name}:{port}"),
            (name, None) => name.to_owned(),
        };
        // Docker Hub is known by the name that references use.
        let name = if authority == reference.api_host() { reference.host().to_owned() } else { authority };
        Endpoint::at(reference, name, &api, host.capabilities, Some(host.settings))
    }

    fn at(
        reference: &Reference,
        host: String,
        api: &Url,
        capabilities: Capabilities,
        settings: Option<HostSettings>,
    ) -> Result<Endpoint, MalformedAddress> {
        let base = Url::parse(&format!("{api}{}/", reference.repository()))?;
        Ok(Endpoint {
            registry: reference.host().to_owned(),
            host,
            repository: reference.repository().to_owned(),
            origin: Origin::of(&base),
            base,
            capabilities,
            settings: settings.map(Arc::new),
            is_written: false,
            lender: None,
        })
    }

    pub(crate) fn context(&self, subject: String) -> Context {
        Context {
            host: self.registry.clone(),
            repository: self.repository.clone(),
            subject,
            is_written: self.is_written,
        }
    }

    /// The same, to be written to.
    pub(crate) fn written(&self) -> Endpoint {
        Endpoint { is_written: true, ..self.clone() }
    }

    /// The same, to mount a blob of another repository.
    pub(crate) fn mounting_from(&self, lender: &str) -> Endpoint {
        Endpoint { is_written: true, lender: Some(lender.to_owned()), ..self.clone() }
    }

    /// The other repository that a token must allow to read.
    pub(crate) fn lender(&self) -> Option<&str> {
        self.lender.as_deref()
    }

    pub(crate) fn is_written(&self) -> bool {
        self.is_written
    }

    /// What a token must allow: scopes, with a space between them.
    pub(crate) fn scope(&self) -> String {
        let actions = if self.is_written { "pull,push" } else { "pull" };
        let own = format!("repository:{}:{actions}", self.repository);
        match &self.lender {
            Some(lender) => format!("{own} repository:{lender}:pull"),
            None => own,
        }
    }

    /// The URL of `manifests/3.12` or `blobs/sha256:…`. A host in a registry's place is told, as by containerd, which registry that is.
    pub(crate) fn url(&self, path: &str) -> Result<Url, Failure> {
        if self.is_written && !self.capabilities.push {
            let message = format!("no host that is named for {} takes what is put there", self.registry);
            return Err(Failure::permanent(ErrorKind::Local, message)
                .hinted("its hosts.toml says what each host may be asked for; \"push\" is missing"));
        }
        // `join` would read the colon of a digest as a scheme if nothing stood before it.
        let mut url = Url::parse(&format!("{}{path}", self.base)).map_err(|error| {
            Failure::permanent(ErrorKind::Local, "the address is malformed").caused_by(error)
        })?;
        if self.host != self.registry {
            url.query_pairs_mut().append_pair("ns", &self.registry);
        }
        Ok(url)
    }

    /// Headers that a request to this host is to have, and one to any other is not.
    pub(crate) fn headers(&self, url: &Url) -> HeaderMap {
        match &self.settings {
            Some(settings) if Origin::of(url) == self.origin => settings.headers.clone(),
            _ => HeaderMap::new(),
        }
    }
}

/// A host that is no part of an address.
type MalformedAddress = <Url as std::str::FromStr>::Err;
