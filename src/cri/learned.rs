//! What was learnt of pulls: by which credentials each image was had.
//!
//! | pull | its credentials are tried | until |
//! | --- | --- | --- |
//! | runs | after those of pulls that succeeded | it ends; if it fails, they are forgotten |
//! | succeeded | first; of several, those of the latest | the same image is pulled once more, or removed |
//!
//! So who pulls somebody else's image with wrong credentials does no harm to those who have it, and new ones count as soon as a pull with them has
//! succeeded. As in containerd, they are also shown to the hosts that its configuration names for the image's registry, unless they say
//! themselves which host they are for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use peelfs_registry::{Asked, Credential, CredentialSource, ImageReference, Reference};

use super::messages::AuthConfig;

/// Most pulls that are remembered; the oldest is forgotten.
const MOST_PULLS: usize = 1024;
/// Longest credentials, in bytes: user and password, or a token.
const LONGEST: usize = 64 * 1024;

/// What is known. Clones share it.
#[derive(Clone, Default)]
pub struct Learned(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    next: u64,
    /// The oldest comes first.
    pulls: Vec<Pulled>,
}

struct Pulled {
    number: u64,
    reference: Reference,
    credential: Credential,
    /// The one host that it is for, if it says so.
    server: Option<String>,
    /// The image's ID, once it is pulled.
    image: Option<String>,
}

/// A pull that runs. If it is dropped, what was learnt of it is forgotten.
pub struct Running {
    learned: Learned,
    number: Option<u64>,
}

/// Somebody gave credentials that are none. It says what is wrong, and nothing of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthFault {
    /// `auth` is something else than it should be.
    #[error("\"auth\" does not decode to user:password")]
    Undecodable,
    /// Nobody has such credentials.
    #[error("they have more than {LONGEST} bytes")]
    TooLong,
}

impl std::fmt::Debug for Learned {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Learned(…)")
    }
}

impl Learned {
    /// Learns of a pull that begins. Nothing, if no credentials came with it, or the image is none of a registry.
    ///
    /// # Errors
    /// [`AuthFault`].
    pub(super) fn begin(&self, image: &str, auth: Option<&AuthConfig>) -> Result<Running, AuthFault> {
        let running = |number| Running { learned: self.clone(), number };
        let Some(auth) = auth else { return Ok(running(None)) };
        let Ok(ImageReference::Registry(reference)) = image.parse() else { return Ok(running(None)) };
        let Some(credential) = credential_of(auth)? else { return Ok(running(None)) };
        let server = Some(host_of(&auth.server_address).to_owned()).filter(|server| !server.is_empty());
        let mut state = self.lock();
        let number = state.next;
        state.next += 1;
        state.pulls.push(Pulled { number, reference, credential, server, image: None });
        if state.pulls.len() > MOST_PULLS {
            state.pulls.remove(0);
        }
        Ok(running(Some(number)))
    }

    /// Forgets what was learnt of an image: by its ID, or by any of its names.
    pub(super) fn forget(&self, names: &[String]) {
        self.lock().pulls.retain(|pull| {
            let Some(image) = &pull.image else { return true };
            !names.iter().any(|name| name == image || is_named(&pull.reference, name))
        });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// It has succeeded: what was learnt counts for that image from now on.
    pub(super) fn succeeded(mut self, image: &str) {
        let Some(number) = self.number.take() else { return };
        let mut state = self.learned.lock();
        let Some(place) = state.pulls.iter().position(|pull| pull.number == number) else { return };
        let mut pull = state.pulls.remove(place);
        state.pulls.retain(|other| other.image.is_none() || other.reference != pull.reference);
        pull.image = Some(image.to_owned());
        // The latest to succeed comes last.
        state.pulls.push(pull);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.learned.lock().pulls.retain(|pull| pull.number != number);
        }
    }
}

impl CredentialSource for Learned {
    fn credentials(
        &self,
        asked: &Asked,
    ) -> Result<Vec<Credential>, Box<dyn std::error::Error + Send + Sync>> {
        let state = self.lock();
        let fits = |pull: &&Pulled| {
            pull.reference.host() == asked.registry
                && pull.reference.repository() == asked.repository
                && pull.server.as_ref().is_none_or(|server| *server == asked.host)
        };
        let (settled, running): (Vec<&Pulled>, Vec<&Pulled>) =
            state.pulls.iter().rev().filter(fits).partition(|pull| pull.image.is_some());
        let mut credentials: Vec<Credential> = Vec::new();
        for pull in settled.into_iter().chain(running) {
            if !credentials.contains(&pull.credential) {
                credentials.push(pull.credential.clone());
            }
        }
        Ok(credentials)
    }

    fn hint(&self) -> &str {
        HINT
    }
}

/// What a person does where credentials are missing.
pub(super) const HINT: &str = "pull the image again by CRI, whose credentials are kept in memory only, or log in with `podman login` or `docker login`";

/// What CRI's message says, in the order in which containerd looks at it; and a token of the registry, which containerd has no use for.
fn credential_of(auth: &AuthConfig) -> Result<Option<Credential>, AuthFault> {
    let all = [&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token];
    if all.iter().map(|text| text.len()).sum::<usize>() > LONGEST {
        return Err(AuthFault::TooLong);
    }
    Ok(if !auth.username.is_empty() {
        Some(Credential::Password { user: auth.username.clone(), password: auth.password.clone() })
    } else if !auth.identity_token.is_empty() {
        Some(Credential::IdentityToken(auth.identity_token.clone()))
    } else if !auth.auth.is_empty() {
        let decoded = base64::engine::general_purpose::STANDARD.decode(auth.auth.trim());
        let text = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let text = text.ok_or(AuthFault::Undecodable)?;
        let (user, password) = text.split_once(':').ok_or(AuthFault::Undecodable)?;
        // Old versions of Docker padded the text with NULs.
        let password = password.trim_end_matches('\0').to_owned();
        Some(Credential::Password { user: user.to_owned(), password })
    } else if !auth.registry_token.is_empty() {
        Some(Credential::RegistryToken(auth.registry_token.clone()))
    } else {
        None
    })
}

/// The host of `https://host/v1/`, in the words of a reference.
fn host_of(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        host => host,
    }
}

/// Whether that is a name of the image that was pulled so.
fn is_named(reference: &Reference, name: &str) -> bool {
    matches!(name.parse(), Ok(ImageReference::Registry(named)) if named == *reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str) -> AuthConfig {
        AuthConfig { username: user.to_owned(), password: "word".to_owned(), ..AuthConfig::default() }
    }

    fn users(learned: &Learned, registry: &str, host: &str, repository: &str) -> Vec<String> {
        let (registry, host, repository) = (registry.to_owned(), host.to_owned(), repository.to_owned());
        let credentials = learned.credentials(&Asked { registry, host, repository }).unwrap();
        let user = |credential| match credential {
            Credential::Password { user, .. } => user,
            Credential::IdentityToken(token) | Credential::RegistryToken(token) => token,
        };
        credentials.into_iter().map(user).collect()
    }

    #[test]
    fn what_counts_is_what_a_pull_succeeded_with_and_only_for_that_repository() {
        let learned = Learned::default();
        let of = |repository: &str| users(&learned, "host:5000", "host:5000", repository);
        let first = learned.begin("host:5000/a:1", Some(&password("first"))).unwrap();
        assert_eq!(of("a"), ["first"], "it is needed while the pull runs");
        assert_eq!(of("b"), [""; 0]);
        first.succeeded("sha256:1");
        let second = learned.begin("host:5000/a:1", Some(&password("second"))).unwrap();
        assert_eq!(of("a"), ["first", "second"], "who has shown nothing yet comes last");
        drop(second);
        assert_eq!(of("a"), ["first"]);
        learned.begin("host:5000/a:1", Some(&password("third"))).unwrap().succeeded("sha256:1");
        assert_eq!(of("a"), ["third"]);
        learned.begin("host:5000/a:2", Some(&password("fourth"))).unwrap().succeeded("sha256:2");
        assert_eq!(of("a"), ["fourth", "third"]);
        // A pull without credentials says nothing about those that others have.
        learned.begin("host:5000/a:1", None).unwrap().succeeded("sha256:1");
        learned.begin("host:5000/a:1", Some(&AuthConfig::default())).unwrap().succeeded("sha256:1");
        assert_eq!(of("a"), ["fourth", "third"]);
        assert!(!format!("{learned:?}").contains("word"));
    }

    #[test]
    fn an_image_that_is_removed_is_forgotten_by_whatever_name() {
        for name in ["sha256:id", "docker.io/library/python:3.12", "python:3.12"] {
            let learned = Learned::default();
            let of = |repository: &str| users(&learned, "docker.io", "docker.io", repository);
            learned.begin("python:3.12", Some(&password("one"))).unwrap().succeeded("sha256:id");
            learned.begin("redis", Some(&password("two"))).unwrap().succeeded("sha256:other");
            let running = learned.begin("python:3.12", Some(&password("three"))).unwrap();
            learned.forget(&[name.to_owned()]);
            assert_eq!(of("library/python"), ["three"], "{name}: what runs goes on");
            drop(running);
            assert_eq!((of("library/python").len(), of("library/redis").len()), (0, 1), "{name}");
        }
    }

    #[test]
    fn every_kind_of_credentials_is_understood() {
        // `user:pass:word`, from the `base64` tool.
        let auth = AuthConfig { auth: "dXNlcjpwYXNzOndvcmQ=".to_owned(), ..AuthConfig::default() };
        let decoded = Credential::Password { user: "user".to_owned(), password: "pass:word".to_owned() };
        assert!(credential_of(&auth).unwrap() == Some(decoded));
        let identity = AuthConfig { identity_token: "t".to_owned(), ..auth.clone() };
        assert!(credential_of(&identity).unwrap() == Some(Credential::IdentityToken("t".to_owned())));
        let registry = AuthConfig { registry_token: "t".to_owned(), ..AuthConfig::default() };
        assert!(credential_of(&registry).unwrap() == Some(Credential::RegistryToken("t".to_owned())));
        for (auth, fault) in [
            (AuthConfig { auth: "????".to_owned(), ..AuthConfig::default() }, AuthFault::Undecodable),
            (AuthConfig { auth: "dXNlcg==".to_owned(), ..AuthConfig::default() }, AuthFault::Undecodable),
            (AuthConfig { password: "x".repeat(LONGEST + 1), ..password("u") }, AuthFault::TooLong),
        ] {
            assert_eq!(Learned::default().begin("a", Some(&auth)).err(), Some(fault));
        }
    }

    #[test]
    fn credentials_for_one_host_are_shown_to_no_other() {
        for (server, host, shown) in [
            ("", "registry", true),
            ("", "mirror:5000", true),
            ("https://registry", "registry", true),
            ("registry", "mirror:5000", false),
            ("https://mirror:5000/v2/", "mirror:5000", true),
            ("https://mirror:5000/v2/", "registry", false),
        ] {
            let learned = Learned::default();
            let auth = AuthConfig { server_address: server.to_owned(), ..password("u") };
            let _running = learned.begin("registry/name", Some(&auth)).unwrap();
            // A name without a dot or a port is a repository of Docker Hub.
            assert_eq!(users(&learned, "registry", host, "name"), [""; 0]);
            let _running = learned.begin(
                "registry.example/name",
                Some(&AuthConfig {
                    server_address: server.replace("registry", "registry.example"),
                    ..password("u")
                }),
            );
            let host = host.replace("registry", "registry.example");
            assert_eq!(
                !users(&learned, "registry.example", &host, "name").is_empty(),
                shown,
                "{server} {host}"
            );
        }
        assert_eq!(host_of("https://index.docker.io/v1/"), "docker.io");
    }

    #[test]
    fn no_more_than_so_many_pulls_are_remembered() {
        let learned = Learned::default();
        for number in 0..MOST_PULLS + 3 {
            let image = format!("registry.example/name:{number}");
            learned.begin(&image, Some(&password(&number.to_string()))).unwrap().succeeded("id");
        }
        let known = users(&learned, "registry.example", "registry.example", "name");
        assert_eq!((known.len(), known[0].as_str()), (MOST_PULLS, "1026"));
    }
}
