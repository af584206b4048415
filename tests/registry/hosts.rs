//! Promise: containerd's `hosts.toml` says who is asked, in which order, for what, and how; whoever answers, only what has the right digest
//! counts.

use std::fs;
use std::path::{Path, PathBuf};

use peelfs_registry::{Blob, ClientConfiguration, Digest, ErrorKind, ImageReference, Repository, Target};
use serde_json::json;
use tempfile::TempDir;

use super::{chain, client_with, content, streamed};
use crate::support::docker_registry::{DockerRegistry, Options, certificates};
use crate::support::registry::{Authentication, FakeRegistry, Fault};

/// A registry that nobody can reach: whatever is had of it, somebody else gave.
const REGISTRY: &str = "registry.invalid";
const SIZE: usize = 100_000;

/// A directory of hosts.
struct Hosts(TempDir);

impl Hosts {
    fn new(registry: &str, file: &str) -> Hosts {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join(registry)).unwrap();
        fs::write(directory.path().join(registry).join("hosts.toml"), file).unwrap();
        Hosts(directory)
    }

    fn configuration(&self) -> ClientConfiguration {
        ClientConfiguration {
            hosts_directories: vec![self.0.path().to_owned()],
            ..ClientConfiguration::default()
        }
    }

    fn repository(&self, name: &str) -> Repository {
        client_with(self.configuration()).repository(&reference(name)).unwrap()
    }
}

fn reference(name: &str) -> ImageReference {
    format!("{REGISTRY}/{name}:tag").parse().unwrap()
}

fn tag() -> Target {
    Target::Tag("tag".to_owned())
}

/// A host with an image, and its one layer.
fn host() -> (FakeRegistry, Digest) {
    let registry = FakeRegistry::start();
    let layer = registry.put_blob(content(SIZE));
    registry.put_image("name", "tag", &[("application/vnd.oci.image.layer.v1.tar", layer.clone())]);
    (registry, layer)
}

/// Its section.
fn section(registry: &FakeRegistry, what: &str) -> String {
    format!("[host.'http://{}']\n{what}\n", registry.url_host())
}

async fn reads(blob: &Blob) {
    assert_eq!(blob.read(10..20).await.unwrap(), content(SIZE)[10..20]);
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_told_whose_they_are_the_place_of() {
    let ((first, layer), (second, _)) = (host(), host());
    let hosts = Hosts::new(REGISTRY, &(section(&first, "") + &section(&second, "")));
    let repository = hosts.repository("name");
    repository.manifest(&tag()).await.unwrap();
    let blob = repository.blob(layer, SIZE as u64);
    reads(&blob).await;
    assert_eq!((second.counters().manifests, second.counters().blobs), (0, 0));
    for request in first.requests() {
        assert!(request.target.ends_with(&format!("?ns={REGISTRY}")), "{}", request.target);
    }
    // One that lacks it, one that fails, and one that is away: the next is asked, and again whoever gave some.
    for (path, fault) in
        [("blobs/", Fault::Status(404)), ("blobs/", Fault::Status(500)), ("blobs/", Fault::Close)]
    {
        let repository = hosts.repository("name");
        let blob = repository.blob(blob.digest().clone(), SIZE as u64);
        first.set_fault(path, fault.clone());
        first.reset_counters();
        second.reset_counters();
        for _ in 0..5 {
            reads(&blob).await;
        }
        assert_eq!((first.requests().len(), second.counters().blobs), (1, 5), "{fault:?}");
        first.clear_faults();
    }
    let mut first = first;
    first.down();
    hosts.repository("name").manifest(&tag()).await.unwrap();
    // What breaks off in the middle goes on elsewhere.
    first.up();
    first.set_fault("blobs/", Fault::CutAfter(5_000));
    let blob = hosts.repository("name").blob(blob.digest().clone(), SIZE as u64);
    second.reset_counters();
    assert_eq!(streamed(&blob, 0).await.unwrap(), content(SIZE));
    assert_eq!(second.counters().blobs, 1);
}

#[tokio::test]
async fn a_host_is_asked_only_for_what_it_may_give() {
    let ((mirror, layer), (other, _)) = (host(), host());
    let pulls = Hosts::new(
        REGISTRY,
        &(section(&mirror, "capabilities = ['pull']")
            + &section(&other, "capabilities = ['pull', 'resolve']")),
    );
    let repository = pulls.repository("name");
    let found = repository.manifest(&tag()).await.unwrap();
    assert_eq!((mirror.counters().manifests, other.counters().manifests), (0, 1), "what a tag means");
    repository.manifest(&Target::Digest(found.digest)).await.unwrap();
    reads(&repository.blob(layer.clone(), SIZE as u64)).await;
    assert_eq!((mirror.counters().manifests, mirror.counters().blobs), (1, 1), "what has a digest");
    assert_eq!((other.counters().manifests, other.counters().blobs), (1, 0));

    // A server in the registry's place is the last that is asked, and that registry is not.
    let only = format!("server = 'http://{}'\ncapabilities = ['pull']", mirror.url_host());
    let repository = Hosts::new(REGISTRY, &only).repository("name");
    reads(&repository.blob(layer.clone(), SIZE as u64)).await;
    let error = repository.manifest(&tag()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    assert!(error.to_string().contains("\"resolve\" is missing"), "{error}");
    let error = repository.has_blob(&layer, SIZE as u64).await.unwrap_err();
    assert!(error.hint().is_some_and(|hint| hint.contains("\"push\"")), "{error:?}");
    let pushes = section(&mirror, "capabilities = ['pull']") + &section(&other, "capabilities = ['push']");
    other.reset_counters();
    other.take_pushes();
    assert!(Hosts::new(REGISTRY, &pushes).repository("name").has_blob(&layer, SIZE as u64).await.unwrap());
    assert_eq!(other.requests()[0].method, "HEAD");
}

#[tokio::test]
async fn a_mirror_that_lies_is_found_out() {
    let ((mirror, _), (other, _)) = (host(), host());
    let manifest = other.put_image("name", "other", &[]);
    let hosts = Hosts::new(REGISTRY, &(section(&mirror, "") + &section(&other, "")));
    let target = Target::Digest(manifest);
    // Another manifest than that of the digest: the next host has it.
    mirror.put_raw_manifest(
        "name",
        target.to_string().as_str(),
        "application/vnd.oci.image.manifest.v1+json",
        b"{}",
    );
    assert_eq!(Target::Digest(hosts.repository("name").manifest(&target).await.unwrap().digest), target);
    // Other bytes of a blob: only who knows digests of its parts can say so.
    let layer = Digest::sha256_of(&content(SIZE));
    mirror.set_fault("blobs/", Fault::WrongBytes);
    let blob = hosts.repository("name").blob(layer, SIZE as u64);
    assert_ne!(blob.read(10..20).await.unwrap(), content(SIZE)[10..20]);
    blob.doubt();
    reads(&blob).await;
}

#[tokio::test]
async fn paths_and_headers_are_as_the_file_says_and_headers_go_nowhere_else() {
    let (mut registry, layer) = host();
    registry.serve_at("/proxy/cache/");
    let address = format!("http://{}/proxy/cache", registry.url_host());
    let file = format!(
        "[host.'{address}']\noverride_path = true\n[host.'{address}'.header]\nx-key = 'secret-word'\nx-many = ['a', 'b']\n"
    );
    let hosts = Hosts::new(REGISTRY, &file);
    registry.redirect_blobs(None);
    let repository = hosts.repository("name");
    repository.manifest(&tag()).await.unwrap();
    reads(&repository.blob(layer, SIZE as u64)).await;
    let requests = registry.requests();
    assert_eq!(requests.len(), 3);
    for request in &requests {
        let is_storage = request.target.starts_with("/storage/");
        assert_eq!(request.header("x-key"), (!is_storage).then_some("secret-word"), "{}", request.target);
        assert_eq!(request.headers.iter().any(|(name, value)| name == "x-many" && value == "b"), !is_storage);
    }
    registry.down();
    let error = repository.manifest(&tag()).await.unwrap_err();
    let shown = format!("{error:?} {} {repository:?}", chain(&error));
    assert!(!shown.contains("secret-word"), "{shown}");
}

#[tokio::test]
async fn each_host_gets_the_credentials_that_are_its_own() {
    let ((mirror, layer), (other, _)) = (host(), host());
    mirror.require(Authentication::Basic("for:mirror".to_owned()));
    other.require(Authentication::Token {
        login: Some("for:other".to_owned()),
        identity_token: None,
        uses: 100,
        realm: None,
    });
    let hosts = Hosts::new(REGISTRY, &(section(&mirror, "") + &section(&other, "")));
    let directory = tempfile::tempdir().unwrap();
    let login = |user: &str, password: &str| json!({ "username": user, "password": password });
    for (logins, blobs) in [
        (
            json!({ mirror.url_host(): login("for", "mirror"), other.url_host(): login("for", "other") }),
            (2, 0),
        ),
        // Those of the registry are shown to nobody in its place.
        (json!({ REGISTRY: login("for", "mirror"), other.url_host(): login("for", "other") }), (1, 2)),
    ] {
        let file = directory.path().join("config.json");
        fs::write(&file, json!({ "auths": logins }).to_string()).unwrap();
        let configuration = ClientConfiguration { credential_files: vec![file], ..hosts.configuration() };
        let repository = client_with(configuration).repository(&reference("name")).unwrap();
        mirror.reset_counters();
        other.reset_counters();
        reads(&repository.blob(layer.clone(), SIZE as u64)).await;
        assert_eq!((mirror.counters().blobs, other.counters().blobs), blobs, "{logins}");
    }
}

#[tokio::test]
async fn when_nobody_answers_all_of_them_are_told() {
    let ((mut mirror, layer), (other, _)) = (host(), host());
    let server = format!("server = 'http://{}'\n", other.url_host());
    let hosts = Hosts::new(REGISTRY, &(server + &section(&mirror, "")));
    mirror.down();
    other.set_fault("blobs/", Fault::Status(404));
    let repository = hosts.repository("name");
    let error = repository.blob(layer, SIZE as u64).read(0..1).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error:?}");
    for part in [mirror.url_host().as_str(), "404", REGISTRY, "cannot be connected to"] {
        assert!(error.to_string().contains(part), "{part}: {error}");
    }
}

#[tokio::test]
async fn a_file_that_is_wrong_is_an_error_that_names_it() {
    let hosts = Hosts::new(REGISTRY, "[host.'https://mirror']\nca = { password = 'secret-word' }");
    let error = client_with(hosts.configuration()).repository(&reference("name")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Local);
    let path = hosts.0.path().join(REGISTRY).join("hosts.toml");
    let shown = chain(&error);
    assert!(
        shown.contains(&path.display().to_string()) && shown.contains("\"https://mirror\".ca"),
        "{shown}"
    );
    assert!(!shown.contains("secret-word"), "{shown}");
}

#[tokio::test]
async fn tls_is_spoken_as_the_file_says() {
    let Some(registry) = DockerRegistry::start(Options { tls: true, ..Options::default() }) else { return };
    let directory = certificates();
    let file = |name: &str| -> PathBuf { directory.join(name) };
    let both = tempfile::tempdir().unwrap();
    let pem = both.path().join("both.pem");
    let joined = [fs::read(file("client.cert")).unwrap(), fs::read(file("client.key")).unwrap()].concat();
    fs::write(&pem, joined).unwrap();
    let pair =
        format!("client = [['{}', '{}']]", file("client.cert").display(), file("client.key").display());
    let one = |path: &Path| format!("client = '{}'", path.display());
    let authority = format!("ca = '{}'", file("ca.crt").display());
    let address = format!("https://{}", registry.url_host());
    for (what, settings, expected) in [
        ("both", format!("{authority}\n{pair}"), Some(ErrorKind::NotFound)),
        ("both, in one file", format!("{authority}\n{}", one(&pem)), Some(ErrorKind::NotFound)),
        ("no authority", pair.clone(), Some(ErrorKind::Unreachable)),
        ("no authority, and none wanted", format!("{pair}\nskip_verify = true"), Some(ErrorKind::NotFound)),
        ("no certificate of ours", authority.clone(), None),
        ("a file that is not there", format!("ca = 'missing.crt'\n{pair}"), Some(ErrorKind::Local)),
    ] {
        for text in [
            format!("server = '{address}'\n{settings}"),
            format!("server = '{address}'\n[host.'{address}']\n{settings}"),
        ] {
            let repository = Hosts::new(REGISTRY, &text).repository("name");
            let error = repository.manifest(&tag()).await.unwrap_err();
            // With a host of its own, the server has no settings, and fails after it.
            let is_server = text.lines().count() == settings.lines().count() + 1;
            match expected {
                Some(expected) if is_server => assert_eq!(error.kind(), expected, "{what}: {error:?}"),
                // In TLS 1.3 the server refuses after the handshake; its alert may be lost with the connection.
                None => assert!(
                    [ErrorKind::Unreachable, ErrorKind::BadResponse].contains(&error.kind()),
                    "{what}: {error:?}"
                ),
                // A port may have these digits, too.
                Some(expected) => assert_eq!(
                    error.to_string().replace(registry.url_host(), "").contains("404"),
                    expected == ErrorKind::NotFound,
                    "{what}: {error:?}"
                ),
            }
        }
    }
}
