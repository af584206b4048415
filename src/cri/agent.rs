//! How a process that serves a tree comes by credentials that were learnt: it asks the daemon, by a socket in the store.
//!
//! ```text
//! serving process ──▶ {"registry":"host:5000","host":"host:5000","repository":"name"}
//!                 ◀── {"credentials":[{"user":"…","password":"…"}]}            one question, one answer, a line each
//! ```
//!
//! It asks when a registry wants to see some, so that those of a later pull count at once; and remembers what it was told last, so that it
//! can do without the daemon. Only root and the daemon's own user may ask: the socket is theirs alone, and who calls is looked at.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use peelfs_registry::{Asked, Credential, CredentialSource};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use super::learned::{HINT, Learned};

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest question: a registry, a host, and a repository have some hundred bytes each.
const LONGEST_QUESTION: u64 = 16 * 1024;
/// Longest answer.
const LONGEST_ANSWER: u64 = 1024 * 1024;
/// Credentials in an answer: no more are tried.
const MOST_CREDENTIALS: usize = 4;
/// Questions at a time.
const MOST_QUESTIONS: usize = 64;

/// Where the socket of a store's daemon is.
pub fn socket_of(store: &Path) -> PathBuf {
    store.join("run").join("credentials")
}

#[derive(Deserialize, Serialize)]
struct Question {
    registry: String,
    host: String,
    repository: String,
}

#[derive(Deserialize, Serialize)]
struct Answer {
    credentials: Vec<Told>,
}

#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Told {
    Password { user: String, password: String },
    IdentityToken { identity_token: String },
    RegistryToken { registry_token: String },
}

impl From<Credential> for Told {
    fn from(credential: Credential) -> Told {
        match credential {
            Credential::Password { user, password } => Told::Password { user, password },
            Credential::IdentityToken(identity_token) => Told::IdentityToken { identity_token },
            Credential::RegistryToken(registry_token) => Told::RegistryToken { registry_token },
        }
    }
}

impl From<Told> for Credential {
    fn from(told: Told) -> Credential {
        match told {
            Told::Password { user, password } => Credential::Password { user, password },
            Told::IdentityToken { identity_token } => Credential::IdentityToken(identity_token),
            Told::RegistryToken { registry_token } => Credential::RegistryToken(registry_token),
        }
    }
}

/// Answers questions at that socket, for as long as it is polled.
pub async fn answer(listener: tokio::net::UnixListener, learned: Learned) {
    let places = Arc::new(Semaphore::new(MOST_QUESTIONS));
    loop {
        // It is never closed.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) if is_allowed(&stream) => {
                let learned = learned.clone();
                tokio::spawn(async move {
                    let answered = tokio::time::timeout(PATIENCE, answer_one(stream, &learned)).await;
                    if !matches!(answered, Ok(Ok(()))) {
                        tracing::debug!("a question for credentials was not answered");
                    }
                    drop(place);
                });
            }
            Ok(_) => tracing::warn!("a user who may not know credentials is turned away"),
            Err(error) => {
                tracing::warn!(%error, "a question for credentials did not arrive");
                // Out of descriptors, as a rule: others will be closed.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn is_allowed(stream: &tokio::net::UnixStream) -> bool {
    let user = rustix::process::geteuid().as_raw();
    stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == user)
}

async fn answer_one(mut stream: tokio::net::UnixStream, learned: &Learned) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut line = String::new();
    tokio::io::BufReader::new(read.take(LONGEST_QUESTION)).read_line(&mut line).await?;
    let Question { registry, host, repository } = serde_json::from_str(&line)?;
    let credentials = learned.credentials(&Asked { registry, host, repository });
    let credentials = credentials.unwrap_or_default().into_iter().take(MOST_CREDENTIALS);
    let mut answer = serde_json::to_vec(&Answer { credentials: credentials.map(Told::from).collect() })?;
    answer.push(b'\n');
    write.write_all(&answer).await
}

/// Who asks the daemon, and remembers.
pub struct Asking {
    socket: PathBuf,
    told: Mutex<HashMap<(String, String), Vec<Credential>>>,
}

impl std::fmt::Debug for Asking {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Asking({})", self.socket.display())
    }
}

impl Asking {
    /// Will ask at that socket.
    pub fn new(socket: PathBuf) -> Asking {
        Asking { socket, told: Mutex::default() }
    }

    fn ask(&self, asked: &Asked) -> io::Result<Vec<Credential>> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let Asked { registry, host, repository } = asked.clone();
        let mut question = serde_json::to_vec(&Question { registry, host, repository })?;
        question.push(b'\n');
        stream.write_all(&question)?;
        let mut line = String::new();
        BufReader::new(stream.take(LONGEST_ANSWER)).read_line(&mut line)?;
        // What the parser has to say could quote a secret.
        let answer: Answer = serde_json::from_str(&line).map_err(|_| io::ErrorKind::InvalidData)?;
        Ok(answer.credentials.into_iter().map(Credential::from).collect())
    }
}

impl CredentialSource for Asking {
    fn credentials(
        &self,
        asked: &Asked,
    ) -> Result<Vec<Credential>, Box<dyn std::error::Error + Send + Sync>> {
        let answered = self.ask(asked);
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (asked.host.clone(), asked.repository.clone());
        match answered {
            Ok(credentials) if !credentials.is_empty() => {
                told.insert(key, credentials.clone());
                Ok(credentials)
            }
            // It knows nothing, as it does after it was restarted.
            Ok(_) => Ok(told.get(&key).cloned().unwrap_or_default()),
            Err(error) => {
                tracing::debug!(%error, "the daemon cannot be asked for credentials");
                Ok(told.get(&key).cloned().unwrap_or_default())
            }
        }
    }

    fn hint(&self) -> &str {
        HINT
    }
}

#[cfg(test)]
mod tests {
    use super::super::messages::AuthConfig;
    use super::*;

    fn asked(repository: &str) -> Asked {
        let host = "host:5000".to_owned();
        Asked { registry: host.clone(), host, repository: repository.to_owned() }
    }

    fn auth(user: &str) -> AuthConfig {
        AuthConfig { username: user.to_owned(), password: "p".to_owned(), ..AuthConfig::default() }
    }

    async fn ask(asking: &Arc<Asking>, repository: &'static str) -> Vec<Credential> {
        let asking = asking.clone();
        tokio::task::spawn_blocking(move || asking.credentials(&asked(repository)).unwrap()).await.unwrap()
    }

    #[tokio::test]
    async fn who_serves_is_told_what_was_learnt_and_does_without_the_daemon_afterwards() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let asking = Arc::new(Asking::new(path.clone()));
        assert!(ask(&asking, "name").await.is_empty(), "nobody is there");
        let listen = || tokio::net::UnixListener::bind(&path).unwrap();
        let learned = Learned::default();
        let daemon = tokio::spawn(answer(listen(), learned.clone()));
        assert!(ask(&asking, "name").await.is_empty());
        let user =
            |user: &str| vec![Credential::Password { user: user.to_owned(), password: "p".to_owned() }];
        learned.begin("host:5000/name", Some(&auth("one"))).unwrap().succeeded("id");
        assert!(ask(&asking, "name").await == user("one"));
        assert!(ask(&asking, "other").await.is_empty());
        learned.begin("host:5000/name", Some(&auth("two"))).unwrap().succeeded("id");
        assert!(ask(&asking, "name").await == user("two"));
        daemon.abort();
        let _ = daemon.await;
        std::fs::remove_file(&path).unwrap();
        assert!(ask(&asking, "name").await == user("two"), "it is away");
        let daemon = tokio::spawn(answer(listen(), Learned::default()));
        assert!(ask(&asking, "name").await == user("two"), "it knows nothing any more");
        daemon.abort();
    }

    #[tokio::test]
    async fn who_talks_nonsense_or_hangs_keeps_nobody_from_being_answered() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let learned = Learned::default();
        learned.begin("host:5000/name", Some(&auth("one"))).unwrap().succeeded("id");
        let daemon = tokio::spawn(answer(tokio::net::UnixListener::bind(&path).unwrap(), learned));
        let _silent = UnixStream::connect(&path).unwrap();
        for nonsense in [&b"\n"[..], b"{}\n", b"\xff\xff\n", &[b'x'; 100_000]] {
            // It may have hung up already.
            let _ = UnixStream::connect(&path).unwrap().write_all(nonsense);
        }
        let asking = Arc::new(Asking::new(path));
        assert_eq!(ask(&asking, "name").await.len(), 1);
        daemon.abort();
    }
}
