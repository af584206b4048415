//! Answering a host's challenge: Basic credentials, or a bearer token from its token service.
//!
//! Tokens are kept by host and scope until shortly before they expire; one task gets a new one while the others wait for it.
//! Nothing is ever sent before the host asked for it. A credential goes
//!
//! - to the registry it belongs to, as Basic, when that registry asks for it;
//! - to the token service that this registry names (the `realm`, often another host: Docker Hub names auth.docker.io), if that
//!   can be trusted as much as the registry: a registry reached by TLS may name any https address; one reached
//!   by plain HTTP, whose words anybody on the way can change, only an address on its own host. For any other address the
//!   credential is withheld, and that is said.
//!
//! References: Docker's "Token Authentication Specification" and "OAuth2 Token Authentication".

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use reqwest::Url;
use reqwest::header::{self, HeaderMap, HeaderValue};
use serde::Deserialize;

use crate::challenge::{Challenge, challenges};
use crate::credentials::{self, Asked, Credential, Sources};
use crate::endpoint::Endpoint;
use crate::error::ErrorKind;
use crate::origin::Origin;
use crate::transport::{Failure, Request, Transport};

/// Most bytes of a token service's answer.
const MAXIMUM_TOKEN_ANSWER: usize = 1024 * 1024;
/// Lifetime of a token whose answer names none (Docker's specification).
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);
/// A token is renewed this long before it expires, or after nine tenths of a short life.
const RENEWAL_MARGIN: Duration = Duration::from_secs(10);

/// What is known of each host and scope.
#[derive(Debug, Default)]
pub(crate) struct Authenticator {
    grants: Mutex<HashMap<(Origin, String), SharedGrant>>,
}

/// Held while a token is fetched, so that only one task fetches it.
type SharedGrant = Arc<tokio::sync::Mutex<Grant>>;

/// What one host wants to see for one scope.
#[derive(Debug, Default)]
struct Grant {
    /// The service that gives tokens, once the host named it.
    service: Option<TokenService>,
    authorization: Option<Authorization>,
}

/// A header that the host accepts, marked sensitive so that it does not show in logs.
#[derive(Clone, Debug)]
struct Authorization {
    header: HeaderValue,
    /// When to get another; never, for Basic.
    renew_at: Option<Instant>,
}

#[derive(Clone, Debug)]
struct TokenService {
    realm: Url,
    service: Option<String>,
    scope: String,
}

/// How far the answers to the challenges of one request have come: there may be several credentials.
#[derive(Debug, Default)]
pub(crate) struct Tried {
    /// Credentials that were tried.
    credentials: usize,
    /// What another task had just got was tried.
    was_lent: bool,
    is_all: bool,
}

impl Tried {
    /// Whether there is nothing left to answer with.
    pub(crate) fn is_all(&self) -> bool {
        self.is_all
    }
}

impl Authenticator {
    fn grant(&self, endpoint: &Endpoint) -> SharedGrant {
        let mut grants = self.grants.lock().unwrap_or_else(PoisonError::into_inner);
        grants.entry((endpoint.origin.clone(), endpoint.scope())).or_default().clone()
    }

    /// The header to send without being asked again, if the host has asked before.
    pub(crate) async fn known(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
    ) -> Result<Option<HeaderValue>, Failure> {
        let grant = self.grant(endpoint);
        let mut grant = grant.lock().await;
        match (&grant.authorization, grant.service.clone()) {
            (Some(authorization), _) if !authorization.is_stale() => Ok(Some(authorization.header.clone())),
            (_, Some(service)) => {
                let wanted = Wanted::Token(service);
                let authorization =
                    authorized(transport, endpoint, &wanted, None, &mut Tried::default()).await?;
                let header = authorization.header.clone();
                grant.authorization = Some(authorization);
                Ok(Some(header))
            }
            (_, None) => Ok(None),
        }
    }

    /// The header that answers a 401 with these `headers`, which came in spite of `rejected`.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        headers: &HeaderMap,
        rejected: Option<&HeaderValue>,
        tried: &mut Tried,
    ) -> Result<HeaderValue, Failure> {
        let grant = self.grant(endpoint);
        let mut grant = grant.lock().await;
        // Another task may have got a new one while this one was refused.
        if let Some(current) = &grant.authorization
            && Some(&current.header) != rejected
            && !current.is_stale()
            && !tried.was_lent
        {
            tried.was_lent = true;
            return Ok(current.header.clone());
        }
        grant.authorization = None;
        let wanted = wanted(headers, endpoint)?;
        let authorization = authorized(transport, endpoint, &wanted, rejected, tried).await?;
        if let Wanted::Token(service) = wanted {
            grant.service = Some(service);
        }
        let header = authorization.header.clone();
        grant.authorization = Some(authorization);
        Ok(header)
    }
}

impl Authorization {
    fn is_stale(&self) -> bool {
        self.renew_at.is_some_and(|renew_at| Instant::now() >= renew_at)
    }

    fn new(text: String, lifetime: Option<Duration>) -> Result<Authorization, Failure> {
        let mut header = HeaderValue::from_str(&text)
            .map_err(|_| refused("a credential or token holds characters that HTTP cannot carry"))?;
        header.set_sensitive(true);
        let renew_at = lifetime.map(|lifetime| {
            let margin = RENEWAL_MARGIN.min(lifetime / 10);
            let now = Instant::now();
            now.checked_add(lifetime - margin).unwrap_or(now)
        });
        Ok(Authorization { header, renew_at })
    }
}

enum Wanted {
    Token(TokenService),
    Basic,
}

/// The challenge to answer: a token if the host offers it, else Basic.
fn wanted(headers: &HeaderMap, endpoint: &Endpoint) -> Result<Wanted, Failure> {
    let offered: Vec<Challenge> = headers
        .get_all(header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenges)
        .collect();
    if let Some(bearer) = offered.iter().find(|challenge| challenge.scheme == "bearer") {
        let realm = bearer.parameter("realm").and_then(|realm| Url::parse(realm).ok());
        let realm = realm.filter(|realm| {
            matches!(realm.scheme(), "http" | "https")
                && realm.username().is_empty()
                && realm.password().is_none()
        });
        let Some(realm) = realm else {
            return Err(Failure::malformed("the host wants a token but names no usable address for it"));
        };
        return Ok(Wanted::Token(TokenService {
            realm,
            service: bearer.parameter("service").map(str::to_owned),
            scope: scope(bearer.parameter("scope"), endpoint),
        }));
    }
    if offered.iter().any(|challenge| challenge.scheme == "basic") {
        return Ok(Wanted::Basic);
    }
    Err(refused("the host refuses access and names no way to log in that we know (Bearer, Basic)"))
}

/// What to ask for: what the host says, unless that is less than what will be needed, as for a look whether a blob is there.
fn scope(offered: Option<&str>, endpoint: &Endpoint) -> String {
    let suffices =
        |offered: &&str| endpoint.lender().is_none() && (!endpoint.is_written() || offered.contains("push"));
    offered.filter(suffices).map_or_else(|| endpoint.scope(), str::to_owned)
}

/// What the next of our credentials gives that was not tried; without any, perhaps a token all the same.
async fn authorized(
    transport: &Transport,
    endpoint: &Endpoint,
    wanted: &Wanted,
    rejected: Option<&HeaderValue>,
    tried: &mut Tried,
) -> Result<Authorization, Failure> {
    let found = credentials(transport, endpoint).await?;
    let candidates = if found.is_empty() { vec![None] } else { found.into_iter().map(Some).collect() };
    let count = candidates.len();
    let mut refusal = refused(&format!("{} refused the credentials", endpoint.host));
    for credential in candidates.into_iter().skip(tried.credentials) {
        tried.credentials += 1;
        tried.is_all = tried.credentials >= count;
        let given = match wanted {
            Wanted::Token(service) => token(transport, endpoint, service, credential).await,
            Wanted::Basic => basic(transport, endpoint, credential),
        };
        match given {
            // The same Basic credentials, or the same fixed token, would be refused again.
            Ok(authorization) if Some(&authorization.header) == rejected => {}
            Err(failure) if failure.kind == ErrorKind::Unauthorized => refusal = failure,
            other => return other,
        }
    }
    tried.is_all = true;
    Err(refusal)
}

fn basic(
    transport: &Transport,
    endpoint: &Endpoint,
    credential: Option<Credential>,
) -> Result<Authorization, Failure> {
    match credential {
        Some(Credential::Password { user, password }) => {
            Authorization::new(basic_text(&user, &password), None)
        }
        Some(Credential::RegistryToken(token)) => Authorization::new(format!("Bearer {token}"), None),
        Some(Credential::IdentityToken(_)) => {
            Err(refused("the host wants a password, but the credential for it is an identity token"))
        }
        None => {
            let failure = refused(&format!("{} wants a password and none is configured", endpoint.host));
            Err(without_login(transport, failure))
        }
    }
}

/// The failure of somebody who has given no credentials. Whoever could have known some writes for a log, where nobody gives hints.
fn without_login(transport: &Transport, mut failure: Failure) -> Failure {
    match transport.configuration.credential_source.as_deref() {
        Some(source) => {
            failure.message = format!("{}; {}", failure.message, source.hint());
            failure
        }
        None => failure.hinted("log in first, with `podman login` or `docker login`"),
    }
}

/// Gets a token; without a credential too, as public repositories want it.
async fn token(
    transport: &Transport,
    endpoint: &Endpoint,
    service: &TokenService,
    credential: Option<Credential>,
) -> Result<Authorization, Failure> {
    let realm = Origin::of(&service.realm);
    if let Some(Credential::RegistryToken(token)) = credential {
        return Authorization::new(format!("Bearer {token}"), None);
    }
    if credential.is_some() && !may_have_credentials(&endpoint.origin, &realm) {
        return Err(refused(&format!(
            "{} sends us to {realm} for a token, and the credentials were withheld from it",
            endpoint.host
        ))
        .hinted(
            "a token service must be on https, or on the registry's own host if that speaks plain HTTP",
        ));
    }
    let response = match &credential {
        Some(Credential::IdentityToken(refresh)) => oauth(transport, endpoint, service, refresh).await?,
        Some(Credential::Password { user, password }) => {
            let authorization = Authorization::new(basic_text(user, password), None)?;
            plain(transport, endpoint, service, Some(&authorization.header)).await?
        }
        Some(Credential::RegistryToken(_)) | None => plain(transport, endpoint, service, None).await?,
    };
    let status = response.status().as_u16();
    let message = format!("the token service {realm} answered {}", response.status());
    match status {
        200 => {}
        400 | 401 | 403 => {
            let failure = refused(&message);
            return Err(match credential {
                Some(_) => failure.hinted("are the credentials right, and do they allow this repository?"),
                None => without_login(transport, failure),
            });
        }
        408 | 429 | 500..=599 => {
            let kind = if status == 429 { ErrorKind::RateLimited } else { ErrorKind::Server };
            let busy = crate::retry::Outcome::Busy { retry_after: None };
            return Err(Failure::new(kind, busy, message));
        }
        _ => return Err(refused(&message)),
    }
    let body = transport.body(response, MAXIMUM_TOKEN_ANSWER).await?;
    // A parser's message could quote the token.
    let answer: TokenAnswer = serde_json::from_slice(&body)
        .map_err(|_| Failure::malformed(format!("the token service {realm} gave a malformed answer")))?;
    let given = [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
    let Some(token) = given else {
        return Err(Failure::malformed(format!("the token service {realm} gave no token")));
    };
    let lifetime =
        answer.expires_in.filter(|seconds| *seconds > 0).map_or(DEFAULT_LIFETIME, Duration::from_secs);
    Authorization::new(format!("Bearer {token}"), Some(lifetime))
}

/// The rule in the header of this module.
fn may_have_credentials(registry: &Origin, realm: &Origin) -> bool {
    if registry.is_secure() { realm.is_secure() } else { registry.same_host(realm) }
}

async fn plain(
    transport: &Transport,
    endpoint: &Endpoint,
    service: &TokenService,
    authorization: Option<&HeaderValue>,
) -> Result<reqwest::Response, Failure> {
    let mut url = service.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &service.service {
            query.append_pair("service", service);
        }
        for scope in service.scope.split(' ') {
            query.append_pair("scope", scope);
        }
    }
    let request = Request { accept: Some("application/json"), range: None };
    Ok(transport.follow(endpoint, &url, request, authorization).await?.response)
}

/// Redirects are not followed here: the body is the credential.
async fn oauth(
    transport: &Transport,
    endpoint: &Endpoint,
    service: &TokenService,
    refresh_token: &str,
) -> Result<reqwest::Response, Failure> {
    // The URL library knows how to write a form; this URL is never used.
    let mut form = service.realm.clone();
    form.query_pairs_mut()
        .clear()
        .append_pair("grant_type", "refresh_token")
        .append_pair("client_id", "peelfs")
        .append_pair("service", service.service.as_deref().unwrap_or_default())
        .append_pair("scope", &service.scope)
        .append_pair("refresh_token", refresh_token);
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
    let body = form.query().map(|query| query.to_owned().into());
    transport.send(endpoint, reqwest::Method::POST, &service.realm, headers, body).await
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

/// Files are read and helpers run where blocking is allowed. They are asked each time, so that a new login counts at once.
async fn credentials(transport: &Transport, endpoint: &Endpoint) -> Result<Vec<Credential>, Failure> {
    let configuration = &transport.configuration;
    let sources = Sources {
        source: configuration.credential_source.clone(),
        files: configuration.credential_files.clone(),
        helper_directories: configuration.helper_directories.clone(),
        helper_timeout: configuration.timeouts.credential_helper,
    };
    let asked = Asked {
        registry: endpoint.registry.clone(),
        host: endpoint.host.clone(),
        repository: endpoint.repository.clone(),
    };
    tokio::task::spawn_blocking(move || credentials::find(&sources, &asked))
        .await
        .map_err(|error| {
            Failure::permanent(ErrorKind::Local, "credentials could not be looked up").caused_by(error)
        })?
        .map_err(|error| Failure::permanent(ErrorKind::Local, error.to_string()).caused_by(error))
}

fn basic_text(user: &str, password: &str) -> String {
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn refused(message: &str) -> Failure {
    Failure::permanent(ErrorKind::Unauthorized, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_reach_a_token_service_only_as_safely_as_the_registry() {
        let origin = |text: &str| Origin::of(&Url::parse(text).unwrap());
        for (registry, realm, allowed) in [
            ("https://registry.example", "https://registry.example/token", true),
            ("https://registry.example", "https://auth.example/token", true),
            ("https://registry.example", "http://registry.example/token", false),
            ("https://registry.example", "http://auth.example/token", false),
            ("http://registry.example:5000", "http://registry.example:5001/token", true),
            ("http://registry.example:5000", "https://registry.example/token", true),
            ("http://registry.example:5000", "https://auth.example/token", false),
            ("http://127.0.0.1:5000", "http://127.0.0.1:5001/token", true),
            ("http://127.0.0.1:5000", "http://10.0.0.1:5001/token", false),
        ] {
            assert_eq!(
                may_have_credentials(&origin(registry), &origin(realm)),
                allowed,
                "{registry} → {realm}"
            );
        }
    }

    #[test]
    fn a_token_is_renewed_before_it_expires_and_never_shown() {
        let authorization =
            Authorization::new("Bearer secret".to_owned(), Some(Duration::from_secs(5))).unwrap();
        assert!(!authorization.is_stale());
        assert!(!format!("{authorization:?}").contains("secret"));
        assert!(Authorization::new("x".to_owned(), Some(Duration::ZERO)).unwrap().is_stale());
        assert!(!Authorization::new("x".to_owned(), None).unwrap().is_stale());
        assert!(Authorization::new("Bearer a\r\nHost: b".to_owned(), None).is_err());
    }
}
