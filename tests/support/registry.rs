//! A registry that is stricter than real ones, runs in this process, and misbehaves when told to.
//!
//! ```text
//! let registry = FakeRegistry::start();
//! let layer = registry.put_blob(bytes);                              // → Digest
//! registry.put_manifest("name", "tag", media_type, &json);           // → Digest
//! … registry.reference("name", "tag")                                // 127.0.0.1:PORT/name:tag
//! registry.set_fault("blobs/", Fault::CutAfter(1000));               // from now on, for paths that contain "blobs/"
//! registry.set_fault_times("blobs/", Fault::Status(503), 2);         // for the next two such requests
//! registry.clear_faults();
//! assert_eq!(registry.counters().blobs, 3);
//! ```
//!
//! It serves HTTP/1.1 on loopback with a thread for each connection, from memory or from files. A second origin (another
//! port) plays the object store to which [`FakeRegistry::redirect_blobs`] sends clients by signed URLs.
//!
//! What a client must never do is a *violation*: credentials that nobody asked for or that reach the object store, a
//! wrong `Host`, a compressed transfer asked for, a manifest asked for without accepting its type, a malformed `Range`. Each
//! is answered with an error and remembered, and dropping the registry fails the test, unless it is failing already. containerd is
//! no client of ours.
//!
//! Nothing here depends on time. Tokens and signatures expire when the test says so, or after a number of uses, and
//! [`Fault::Stall`] lasts until the test releases it. Counters are raised before the bytes are sent, so a client that has
//! them sees the counters right.

mod connection;
mod listener;
mod respond;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use listener::Listener;
use peelfs_registry::{Digest, ImageReference};
use sha2::Digest as _;

/// How the registry misbehaves towards a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers a ranged request with 200 and the whole blob.
    IgnoreRange,
    /// The same for a range that is the whole blob.
    IgnoreWholeRange,
    /// Answers a ranged request with this status and nothing else. 416, 501 and 400 are how registries refuse ranges.
    RefuseRange(u16),
    /// Answers a request of several ranges with 200 and the whole blob.
    IgnoreParts,
    /// Refuses it with this status.
    RefuseParts(u16),
    /// Answers it with something else than was asked for.
    WrongParts(WrongParts),
    /// Answers with this status and nothing else.
    Status(u16),
    /// Answers with this status and this `Retry-After`.
    RetryAfter(u16, String),
    /// Answers a ranged request with the bytes asked for, but says they begin one byte later.
    WrongContentRange,
    /// Answers with 206 and no `Content-Range`.
    NoContentRange,
    /// Flips a bit in the first byte of the body.
    WrongBytes,
    /// Closes the connection after so many bytes of the body.
    CutAfter(u64),
    /// Announces the right length and ends the (chunked) body after so many bytes, properly.
    ShortBody(u64),
    /// Sends so many bytes more than there are, in a chunked body.
    LongBody(usize),
    /// Announces a `Content-Length` that is so many bytes larger, and closes after the true ones.
    WrongLength(u64),
    /// Answers with `Content-Encoding: gzip`.
    ContentEncoding,
    /// Answers with `Content-Type` changed.
    ContentType(String),
    /// Claims another digest in `Docker-Content-Digest`.
    WrongDigestHeader,
    /// Redirects to this location.
    RedirectTo(String),
    /// Closes the connection without an answer.
    Close,
    /// Does not answer until [`FakeRegistry::release`].
    Stall,
    /// The same for requests of a whole blob; those of a range are answered.
    StallWhole,
    /// Sends the head and so many bytes of the body, and the rest after [`FakeRegistry::release`].
    StallAfter(u64),
    /// Of a piece of an upload takes so many bytes, and closes the connection without an answer.
    TakeOnly(usize),
    /// Adds this header to the answer.
    Header(&'static str, String),
}

/// What comes instead of several ranges.
#[derive(Clone, Copy, Debug)]
pub enum WrongParts {
    /// The last one first.
    Reversed,
    /// One from the first byte to the last.
    Joined,
    /// All but the last.
    WithoutLast,
    /// The first alone, as if nothing else were asked for.
    OnlyFirst,
}

/// How the registry lists what refers to a manifest. Until the test says so, it knows no such path, as registries of distribution 1.0.
#[derive(Clone, Copy, Debug)]
pub struct Referrers {
    /// Entries of a page, at least 1.
    pub page: usize,
    /// Whether a list holds what was asked for only, and says so.
    pub filters: bool,
}

/// How clients prove who they are. Until the test says so, anybody may pull and nobody may send credentials.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// `user:password` with every request.
    Basic(String),
    /// A token from `/token`, good for one repository.
    Token {
        /// `user:password` that the token service wants; `None` gives tokens to anybody without credentials.
        login: Option<String>,
        /// The refresh token that the token service takes by POST.
        identity_token: Option<String>,
        /// After so many requests a token has expired.
        uses: usize,
        /// The realm to name, if not our own `/token`.
        realm: Option<String>,
    },
}

/// A request that came, and what became of it.
#[derive(Clone, Debug)]
pub struct Request {
    /// `GET`.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    /// What it was for.
    pub kind: Kind,
    /// Status of the answer; 0 while there is none.
    pub status: u16,
    /// Bytes of the answer's body, raised before they are sent.
    pub bytes: u64,
}

impl Request {
    /// The first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A manifest or index.
    Manifest,
    /// A blob, at the registry.
    Blob,
    /// A blob, at the object store.
    Storage,
    /// The token service.
    Token,
    /// Anything else.
    Other,
}

/// Requests by kind, and bytes of bodies sent for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests for manifests.
    pub manifests: u64,
    /// Requests for blobs, redirected ones included.
    pub blobs: u64,
    /// Requests to the object store.
    pub storage: u64,
    /// Requests to the token service.
    pub tokens: u64,
    /// Bytes of manifests sent.
    pub manifest_bytes: u64,
    /// Bytes of blobs sent, from the registry and the object store.
    pub blob_bytes: u64,
}

/// A running registry. Dropping it stops it and checks for violations.
pub struct FakeRegistry {
    shared: Arc<Shared>,
    registry: Listener,
    storage: Listener,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    registry_address: SocketAddr,
    storage_address: SocketAddr,
}

#[derive(Default)]
struct State {
    blobs: HashMap<String, Content>,
    /// By `repository/reference`.
    manifests: HashMap<String, Manifest>,
    authentication: Option<Authentication>,
    /// What the paths of the API begin with, if not `/v2/`.
    root: Option<String>,
    /// Uses left of each token, with the repository it is good for.
    tokens: HashMap<String, (String, usize)>,
    next_token: usize,
    redirects: bool,
    /// Signatures of this number and later are valid.
    oldest_signature: usize,
    next_signature: usize,
    /// Uses left of each signature.
    signature_uses: Option<usize>,
    signatures_used: HashMap<usize, usize>,
    faults: Vec<Rule>,
    stalled: usize,
    released: usize,
    down: bool,
    requests: Vec<Request>,
    /// How many were forgotten before them.
    forgotten: usize,
    /// How many are being answered.
    answering: usize,
    violations: Vec<String>,
    /// Those that are open, by number.
    connections: HashMap<usize, TcpStream>,
    next_connection: usize,
    referrers: Option<Referrers>,
    takes_pushes: bool,
    next_upload: usize,
    /// What has come of each upload that is not finished.
    uploads: HashMap<usize, Vec<u8>>,
    /// Which repositories have a blob, if not all have all.
    owners: Option<HashMap<String, HashSet<String>>>,
}

impl State {
    fn has(&self, repository: &str, digest: &str) -> bool {
        let is_owner = |owners: &HashMap<String, HashSet<String>>| {
            owners.get(digest).is_some_and(|owners| owners.contains(repository))
        };
        self.blobs.contains_key(digest) && self.owners.as_ref().is_none_or(is_owner)
    }

    fn give(&mut self, repository: &str, digest: &str) {
        if let Some(owners) = &mut self.owners {
            owners.entry(digest.to_owned()).or_default().insert(repository.to_owned());
        }
    }
}

struct Rule {
    path: String,
    fault: Fault,
    times: Option<usize>,
}

#[derive(Clone)]
struct Manifest {
    content_type: String,
    digest: Digest,
    bytes: Arc<[u8]>,
}

#[derive(Clone)]
enum Content {
    Memory(Arc<[u8]>),
    File(PathBuf, u64),
}

impl Content {
    fn size(&self) -> u64 {
        match self {
            Content::Memory(bytes) => bytes.len() as u64,
            Content::File(_, size) => *size,
        }
    }

    fn read(&self, start: u64, length: usize) -> io::Result<Vec<u8>> {
        match self {
            Content::Memory(bytes) => Ok(bytes[start as usize..start as usize + length].to_vec()),
            Content::File(path, _) => {
                let mut bytes = vec![0; length];
                std::fs::File::open(path)?.read_exact_at(&mut bytes, start)?;
                Ok(bytes)
            }
        }
    }
}

impl FakeRegistry {
    /// Starts on two free loopback ports.
    pub fn start() -> FakeRegistry {
        let bind = || TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let (registry, storage) = (bind(), bind());
        let shared = Arc::new(Shared {
            state: Mutex::new(State { next_token: 1, next_signature: 1, ..State::default() }),
            changed: Condvar::new(),
            registry_address: registry.local_addr().expect("a bound listener has an address"),
            storage_address: storage.local_addr().expect("a bound listener has an address"),
        });
        let registry = Listener::serve(registry, shared.clone(), false);
        let storage = Listener::serve(storage, shared.clone(), true);
        FakeRegistry { shared, registry, storage }
    }

    /// `127.0.0.1:PORT`, as it stands in references.
    pub fn url_host(&self) -> String {
        self.shared.registry_address.to_string()
    }

    /// The reference of a tag, or of a digest, here.
    pub fn reference(&self, repository: &str, target: &str) -> ImageReference {
        let separator = if target.contains(':') { '@' } else { ':' };
        let text = format!("{}/{repository}{separator}{target}", self.url_host());
        text.parse().expect("a reference made of valid parts")
    }

    /// Stores a blob; every repository has it.
    pub fn put_blob(&self, bytes: impl Into<Vec<u8>>) -> Digest {
        let bytes: Arc<[u8]> = bytes.into().into();
        let digest = sha256(&bytes);
        self.state().blobs.insert(digest.to_string(), Content::Memory(bytes));
        digest
    }

    /// Serves a file as a blob; it is read when asked for, and must not change.
    pub fn put_blob_file(&self, path: &Path) -> Digest {
        let mut hasher = sha2::Sha256::new();
        let mut file = std::fs::File::open(path).expect("the blob's file");
        let size = io::copy(&mut file, &mut Hashing(&mut hasher)).expect("the blob's file");
        let digest = hex_digest(&hasher.finalize());
        self.state().blobs.insert(digest.to_string(), Content::File(path.to_owned(), size));
        digest
    }

    /// Stores `bytes` under a digest that may not be theirs.
    pub fn put_blob_as(&self, digest: &Digest, bytes: impl Into<Vec<u8>>) {
        self.state().blobs.insert(digest.to_string(), Content::Memory(bytes.into().into()));
    }

    /// Stores a manifest or index under its digest and a tag. It must be JSON of a media type that registries take.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        const KNOWN: [&str; 4] = [
            "application/vnd.oci.image.manifest.v1+json",
            "application/vnd.oci.image.index.v1+json",
            "application/vnd.docker.distribution.manifest.v2+json",
            "application/vnd.docker.distribution.manifest.list.v2+json",
        ];
        assert!(KNOWN.contains(&media_type), "no registry takes {media_type}");
        serde_json::from_slice::<serde_json::Value>(bytes).expect("a manifest is JSON");
        self.put_raw_manifest(repository, tag, media_type, bytes)
    }

    /// Stores anything as a manifest, unchecked.
    pub fn put_raw_manifest(&self, repository: &str, tag: &str, content_type: &str, bytes: &[u8]) -> Digest {
        let digest = sha256(bytes);
        let manifest = Manifest {
            content_type: content_type.to_owned(),
            digest: digest.clone(),
            bytes: bytes.to_vec().into(),
        };
        let mut state = self.state();
        state.manifests.insert(format!("{repository}/{digest}"), manifest.clone());
        state.manifests.insert(format!("{repository}/{tag}"), manifest);
        digest
    }

    /// Stores an image of one platform with these layers (media type and digest of blobs stored before).
    pub fn put_image(&self, repository: &str, tag: &str, layers: &[(&str, Digest)]) -> Digest {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config =
            self.descriptor("application/vnd.oci.image.config.v1+json", &self.put_blob(config.to_vec()));
        let layers: Vec<_> =
            layers.iter().map(|(media_type, digest)| self.descriptor(media_type, digest)).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers,
        });
        self.put_manifest(repository, tag, media_type, manifest.to_string().as_bytes())
    }

    /// The descriptor of a blob stored before.
    pub fn descriptor(&self, media_type: &str, digest: &Digest) -> serde_json::Value {
        let size = self.state().blobs.get(digest.as_str()).expect("the blob was put before").size();
        serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
    }

    /// From now on, what refers to a manifest is listed by the referrers API.
    pub fn list_referrers(&self, referrers: Referrers) {
        self.state().referrers = Some(referrers);
    }

    /// From now on, blobs and manifests may be pushed. A manifest that names what is not there is a violation.
    pub fn take_pushes(&self) {
        self.state().takes_pushes = true;
    }

    /// From now on a repository has the blobs that were pushed to it or mounted; those that are there belong to this one.
    pub fn keep_repositories_apart(&self, repository: &str) {
        let mut state = self.state();
        let owner = || HashSet::from([repository.to_owned()]);
        state.owners = Some(state.blobs.keys().map(|digest| (digest.clone(), owner())).collect());
    }

    /// Whether a blob is there, in any repository.
    pub fn has_blob(&self, digest: &str) -> bool {
        self.state().blobs.contains_key(digest)
    }

    /// Uploads that were begun, and neither finished nor given up.
    pub fn open_uploads(&self) -> usize {
        self.state().uploads.len()
    }

    /// The bytes of a manifest, if it is there.
    pub fn manifest(&self, repository: &str, target: &str) -> Option<Vec<u8>> {
        let state = self.state();
        state.manifests.get(&format!("{repository}/{target}")).map(|manifest| manifest.bytes.to_vec())
    }

    /// From now on, clients must prove who they are. Tokens given before are void.
    pub fn require(&self, authentication: Authentication) {
        let mut state = self.state();
        state.authentication = Some(authentication);
        state.tokens.clear();
    }

    /// From now on, the paths of the API begin with this, and slashes at both ends, instead of `/v2/`.
    pub fn serve_at(&self, root: &str) {
        self.state().root = Some(root.to_owned());
    }

    /// All tokens given so far expire now.
    pub fn revoke_tokens(&self) {
        self.state().tokens.clear();
    }

    /// From now on, blobs are redirected to signed URLs at the object store, each good for so many uses.
    pub fn redirect_blobs(&self, signature_uses: Option<usize>) {
        let mut state = self.state();
        state.redirects = true;
        state.signature_uses = signature_uses;
    }

    /// All signed URLs given so far expire now.
    pub fn expire_signatures(&self) {
        let mut state = self.state();
        state.oldest_signature = state.next_signature;
    }

    /// Misbehaves towards every request whose method and path, with a space between them, contain `path`, until [`clear_faults`](Self::clear_faults). The first fault
    /// that fits counts.
    pub fn set_fault(&self, path: &str, fault: Fault) {
        self.state().faults.push(Rule { path: path.to_owned(), fault, times: None });
    }

    /// As [`set_fault`](Self::set_fault), for so many requests.
    pub fn set_fault_times(&self, path: &str, fault: Fault, times: usize) {
        self.state().faults.push(Rule { path: path.to_owned(), fault, times: Some(times) });
    }

    /// Behaves again. Stalled requests stay stalled until [`release`](Self::release).
    pub fn clear_faults(&self) {
        self.state().faults.clear();
    }

    /// Waits until so many requests are stalled.
    pub fn wait_for_stalled(&self, count: usize) {
        let state = self.state();
        let _state = self.shared.changed.wait_while(state, |state| state.stalled < count).expect("no panic");
    }

    /// Lets all stalled requests go on.
    pub fn release(&self) {
        self.state().released += 1;
        self.shared.changed.notify_all();
    }

    /// Stops listening and breaks all connections, as a registry that crashed.
    pub fn down(&mut self) {
        self.state().down = true;
        self.registry.stop();
        self.storage.stop();
        let mut state = self.state();
        for (_, connection) in state.connections.drain() {
            let _ = connection.shutdown(std::net::Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        self.registry.join();
        self.storage.join();
    }

    /// Listens again, on the same ports.
    pub fn up(&mut self) {
        self.state().down = false;
        let bind = |address| TcpListener::bind(address).expect("the same port again");
        let (registry, storage) = (bind(self.shared.registry_address), bind(self.shared.storage_address));
        self.registry = Listener::serve(registry, self.shared.clone(), false);
        self.storage = Listener::serve(storage, self.shared.clone(), true);
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// Requests and bytes so far.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for request in &self.state().requests {
            match request.kind {
                Kind::Manifest => {
                    counters.manifests += 1;
                    counters.manifest_bytes += request.bytes;
                }
                Kind::Blob => {
                    counters.blobs += 1;
                    counters.blob_bytes += request.bytes;
                }
                Kind::Storage => {
                    counters.storage += 1;
                    counters.blob_bytes += request.bytes;
                }
                Kind::Token => counters.tokens += 1,
                Kind::Other => {}
            }
        }
        counters
    }

    /// Whether a request is not answered yet.
    pub fn is_answering(&self) -> bool {
        self.state().answering > 0
    }

    /// Forgets all requests, so that counters start at zero: what is sent from now on for one of them counts nowhere.
    pub fn reset_counters(&self) {
        let mut state = self.state();
        state.forgotten += state.requests.len();
        state.requests.clear();
    }

    /// Violations so far, which are then forgiven: for a test of the registry itself.
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut self.state().violations)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.lock()
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        let was_down = self.state().down;
        if !was_down {
            self.down();
        }
        let violations = self.take_violations();
        if !violations.is_empty() && !std::thread::panicking() {
            panic!("the client broke the rules: {violations:#?}");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread of the registry panics")
    }
}

struct Hashing<'a>(&'a mut sha2::Sha256);

impl io::Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn sha256(bytes: &[u8]) -> Digest {
    hex_digest(&sha2::Sha256::digest(bytes))
}

fn hex_digest(hash: &[u8]) -> Digest {
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}").parse().expect("64 hex digits")
}
