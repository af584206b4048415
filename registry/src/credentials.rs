//! Credentials from the files of Docker and podman, from credential helpers, and from whoever else knows some.
//!
//! ```text
//! { "auths":       { "host:5000": {"auth": "base64(user:password)"}, "quay.io/org": {"identitytoken": "…"} },
//!   "credHelpers": { "host": "NAME" },     runs docker-credential-NAME for this host
//!   "credsStore":  "NAME" }                for every host that has no entry of its own
//! ```
//!
//! The most specific key wins: podman's files may hold one for a repository or its parents. Docker's write Docker
//! Hub as `https://index.docker.io/v1/`. A secret never shows in `Debug` or in an error.

mod helper;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde::Deserialize;

use crate::reference::DEFAULT_HOST;

/// The key under which Docker keeps the credentials of Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Most credentials of one source that are tried.
const MAXIMUM_FROM_SOURCE: usize = 4;
/// Larger files are not credential files.
const MAXIMUM_FILE_SIZE: u64 = 4 * 1024 * 1024;

/// What proves who we are. It shows in no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// As one types it.
    Password {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
    /// A refresh token of OAuth 2, exchanged for access tokens.
    IdentityToken(String),
    /// A bearer token to be sent as it is.
    RegistryToken(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Credential::Password { .. } => "Password(…)",
            Credential::IdentityToken(_) => "IdentityToken(…)",
            Credential::RegistryToken(_) => "RegistryToken(…)",
        })
    }
}

/// Why credentials could not be read.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// A file exists but cannot be read.
    #[error("cannot read the credential file {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: std::io::Error,
    },
    /// A file that is not in the format of `config.json`.
    #[error("the credential file {} is malformed at line {line}, column {column}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped. (Its message could quote a secret.)
        line: usize,
        /// Column of it.
        column: usize,
    },
    /// An `auth` that is not base64 of `user:password`.
    #[error("the entry {key:?} of the credential file {} does not decode to user:password", path.display())]
    Undecodable {
        /// The file.
        path: PathBuf,
        /// The entry.
        key: String,
    },
    /// A source of the caller's.
    #[error("whoever knows the credentials of {host} cannot be asked: {cause}")]
    Source {
        /// Who asks for credentials.
        host: String,
        /// Why not.
        #[source]
        cause: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A helper that cannot be run, fails or answers nonsense.
    #[error("the credential helper {helper:?} {problem}")]
    Helper {
        /// Its name after `docker-credential-`.
        helper: String,
        /// What it did.
        problem: String,
    },
}

/// What credentials are wanted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The registry, as in a reference: `docker.io`, `host:5000`.
    pub registry: String,
    /// The host that wants them, in the same words: the registry, or one that is asked in its place.
    pub host: String,
    /// The repository.
    pub repository: String,
}

/// Somebody who knows credentials that stand in no file.
pub trait CredentialSource: fmt::Debug + Send + Sync {
    /// The credentials to try, in order; none if it knows none. May block.
    fn credentials(&self, asked: &Asked)
    -> Result<Vec<Credential>, Box<dyn std::error::Error + Send + Sync>>;

    /// What a person does who has given none.
    fn hint(&self) -> &str;
}

/// Where credentials come from.
#[derive(Clone, Debug)]
pub(crate) struct Sources {
    pub(crate) source: Option<Arc<dyn CredentialSource>>,
    pub(crate) files: Vec<PathBuf>,
    pub(crate) helper_directories: Vec<PathBuf>,
    pub(crate) helper_timeout: Duration,
}

/// Finds the credentials for a repository, in the order in which they are to be tried; reads files and may run a helper, so call it
/// where blocking is allowed.
pub(crate) fn find(sources: &Sources, asked: &Asked) -> Result<Vec<Credential>, CredentialError> {
    let mut found = match &sources.source {
        Some(source) => source
            .credentials(asked)
            .map_err(|cause| CredentialError::Source { host: asked.host.clone(), cause })?,
        None => Vec::new(),
    };
    found.truncate(MAXIMUM_FROM_SOURCE);
    found.extend(in_files(sources, &asked.host, &asked.repository)?);
    Ok(found)
}

fn in_files(sources: &Sources, host: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
    for path in &sources.files {
        let Some(file) = read(path)? else { continue };
        let server = if host == DEFAULT_HOST { DOCKER_HUB_KEY } else { host };
        let run = |name: &str| helper::get(&sources.helper_directories, name, server, sources.helper_timeout);
        if let Some(name) = file.helper_for(host)
            && let Some(credential) = run(name)?
        {
            return Ok(Some(credential));
        }
        if let Some((key, entry)) = file.entry_for(host, repository)
            && let Some(credential) = entry.credential().map_err(|Undecodable| {
                CredentialError::Undecodable { path: path.clone(), key: key.to_owned() }
            })?
        {
            return Ok(Some(credential));
        }
        if let Some(name) = file.creds_store.as_deref().filter(|name| !name.is_empty())
            && let Some(credential) = run(name)?
        {
            return Ok(Some(credential));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<File>, CredentialError> {
    let unreadable = |cause| CredentialError::Unreadable { path: path.to_owned(), cause };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAXIMUM_FILE_SIZE => {
            return Err(unreadable(std::io::Error::new(std::io::ErrorKind::FileTooLarge, "it is too large")));
        }
        Ok(_) => {}
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(cause) => return Err(unreadable(cause)),
    }
    let content = std::fs::read(path).map_err(unreadable)?;
    if content.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(&content).map(Some).map_err(|error| CredentialError::Malformed {
        path: path.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

struct Undecodable;

impl File {
    fn helper_for(&self, host: &str) -> Option<&str> {
        let aliases: &[&str] = if host == DEFAULT_HOST { &[DOCKER_HUB_KEY, "index.docker.io"] } else { &[] };
        [host]
            .iter()
            .chain(aliases)
            .find_map(|key| self.cred_helpers.get(*key))
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }

    fn entry_for(&self, host: &str, repository: &str) -> Option<(&str, &Entry)> {
        let mut namespace = format!("{host}/{repository}");
        loop {
            if let Some((key, entry)) = self.auths.get_key_value(&namespace) {
                return Some((key, entry));
            }
            match namespace.rfind('/') {
                Some(slash) => namespace.truncate(slash),
                None => break,
            }
        }
        self.auths
            .iter()
            .find(|(key, _)| host_of_key(key) == Some(host))
            .map(|(key, entry)| (key.as_str(), entry))
    }
}

/// The host that an old-style key means: `https://host/v1/` or one of Docker Hub's names.
fn host_of_key(key: &str) -> Option<&str> {
    let (had_scheme, rest) = match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(rest) => (true, rest),
        None => (false, key),
    };
    // Without a scheme, what follows a slash is podman's namespace, and no other repository's business.
    let host = match rest.split_once('/') {
        Some((host, "" | "v1" | "v1/" | "v2" | "v2/")) => host,
        Some((host, _)) if had_scheme => host,
        Some(_) => return None,
        None => rest,
    };
    Some(match host {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_HOST,
        other => other,
    })
}

impl Entry {
    fn credential(&self) -> Result<Option<Credential>, Undecodable> {
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credential::IdentityToken(token)));
        }
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credential::RegistryToken(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let (user, password) = decoded(&auth).ok_or(Undecodable)?;
            return Ok(Some(Credential::Password { user, password }));
        }
        Ok(given(&self.username)
            .zip(given(&self.password))
            .map(|(user, password)| Credential::Password { user, password }))
    }
}

fn decoded(auth: &str) -> Option<(String, String)> {
    let padding = base64::engine::DecodePaddingMode::Indifferent;
    let configuration = base64::engine::GeneralPurposeConfig::new().with_decode_padding_mode(padding);
    let engine = base64::engine::GeneralPurpose::new(&base64::alphabet::STANDARD, configuration);
    let text = String::from_utf8(engine.decode(auth.trim()).ok()?).ok()?;
    let (user, password) = text.split_once(':')?;
    // Old versions of Docker padded the text with NULs.
    Some((user.to_owned(), password.trim_end_matches('\0').to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.to_owned(), password: password.to_owned() })
    }

    fn sources(files: Vec<PathBuf>) -> Sources {
        let (source, helper_directories) = (None, Vec::new());
        Sources { source, files, helper_directories, helper_timeout: Duration::from_secs(10) }
    }

    fn found(files: &[&str], host: &str, repository: &str) -> Result<Option<Credential>, CredentialError> {
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<PathBuf> = files
            .iter()
            .enumerate()
            .map(|(number, content)| {
                let path = directory.path().join(number.to_string());
                std::fs::write(&path, content).unwrap();
                path
            })
            .collect();
        in_files(&sources(paths), host, repository)
    }

    /// `u:p`, `v:q` and `w:r:s` in base64, from the `base64` tool.
    const FILE: &str = r#"{"auths": {
        "host:5000": {"auth": "dTpw"},
        "quay.io": {"auth": "dTpw"},
        "quay.io/org": {"auth": "djpx"},
        "quay.io/org/name": {"auth": "dzpyOnM"},
        "https://index.docker.io/v1/": {"auth": "djpx"},
        "https://old.example/v1/": {"username": "u", "password": "p"},
        "token.example": {"identitytoken": "t", "auth": "dTpw"},
        "other.example/org": {"auth": "dTpw"},
        "empty.example": {},
        "bad.example": {"auth": "????"}
    }}"#;

    #[test]
    fn the_most_specific_entry_of_the_first_file_that_has_one_decides() {
        for (host, repository, expected) in [
            ("host:5000", "a", password("u", "p")),
            ("host", "a", None),
            ("quay.io", "other", password("u", "p")),
            ("quay.io", "org/other", password("v", "q")),
            ("quay.io", "org/name", password("w", "r:s")),
            ("quay.io", "organisation", password("u", "p")),
            ("docker.io", "library/python", password("v", "q")),
            ("old.example", "a", password("u", "p")),
            ("token.example", "a", Some(Credential::IdentityToken("t".to_owned()))),
            ("other.example", "org/a", password("u", "p")),
            ("other.example", "secret", None),
            ("empty.example", "a", None),
            ("unknown.example", "a", None),
        ] {
            assert_eq!(found(&[FILE], host, repository).unwrap(), expected, "{host}/{repository}");
            assert_eq!(found(&["{}", "", FILE], host, repository).unwrap(), expected, "{host}/{repository}");
        }
        let first = r#"{"auths": {"quay.io": {"auth": "djpx"}}}"#;
        assert_eq!(found(&[first, FILE], "quay.io", "org/name").unwrap(), password("v", "q"));
    }

    #[test]
    fn a_missing_file_is_no_error_and_a_malformed_one_is() {
        assert_eq!(in_files(&sources(vec!["/nonexistent/file".into()]), "h", "r").unwrap(), None);
        let malformed =
            found(&[r#"{"auths": {"h": {"auth": 5, "password": "secret"}}}"#], "h", "r").unwrap_err();
        assert!(matches!(malformed, CredentialError::Malformed { line: 1, .. }), "{malformed}");
        let undecodable = found(&[FILE], "bad.example", "r").unwrap_err();
        assert!(matches!(undecodable, CredentialError::Undecodable { .. }), "{undecodable}");
    }

    #[derive(Debug)]
    struct Knows(Vec<Credential>);

    impl CredentialSource for Knows {
        fn credentials(
            &self,
            asked: &Asked,
        ) -> Result<Vec<Credential>, Box<dyn std::error::Error + Send + Sync>> {
            if asked.registry == "broken" { Err("broken".into()) } else { Ok(self.0.clone()) }
        }

        fn hint(&self) -> &str {
            "ask again"
        }
    }

    #[test]
    fn who_knows_some_is_asked_before_the_files_and_believed_up_to_a_bound() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, FILE).unwrap();
        let found = |known: usize, registry: &str| {
            let known = (0..known).map(|number| Credential::RegistryToken(number.to_string()));
            let sources =
                Sources { source: Some(Arc::new(Knows(known.collect()))), ..sources(vec![path.clone()]) };
            let (host, repository) = ("quay.io".to_owned(), "name".to_owned());
            find(&sources, &Asked { registry: registry.to_owned(), host, repository })
        };
        let file = password("u", "p").unwrap();
        assert_eq!(found(0, "quay.io").unwrap(), std::slice::from_ref(&file));
        let one = Credential::RegistryToken("0".to_owned());
        assert_eq!(found(1, "quay.io").unwrap(), [one, file]);
        assert_eq!(found(9, "quay.io").unwrap().len(), MAXIMUM_FROM_SOURCE + 1);
        let error = found(1, "broken").unwrap_err();
        assert!(matches!(error, CredentialError::Source { .. }) && error.to_string().contains("quay.io"));
    }

    #[test]
    fn secrets_are_not_shown() {
        let shown = format!("{:?}", password("user", "secret"));
        assert!(!shown.contains("secret") && !shown.contains("user"), "{shown}");
    }
}
