//! A real registry: the `docker-registry` program, on a free loopback port, with its data in a temporary directory.
//!
//! ```text
//! let Some(registry) = DockerRegistry::start(Options::default()) else { return };   // not installed
//! registry.push_blob("name", &bytes); registry.push_manifest("name", "tag", media_type, &json);
//! ```
//!
//! It is what our own fake is measured against. The certificates beside this file are for tests only: an authority whose key
//! was thrown away, a server's for 127.0.0.1, and a client's, good for a hundred years.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use peelfs_registry::Digest;

/// How the registry is set up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Speaks TLS, with the test certificate, and wants the client's.
    pub tls: bool,
    /// Wants the user `peel` with the password `secret`.
    pub password: bool,
}

/// A running `docker-registry`. Dropping it stops it and removes its data.
pub struct DockerRegistry {
    process: Child,
    address: String,
    /// Removed when it is dropped.
    _data: tempfile::TempDir,
}

/// Where the test certificates are: `ca.crt`, `client.cert`, `client.key`, `server.cert`, `server.key`.
pub fn certificates() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/support/docker_registry")
}

impl DockerRegistry {
    /// Starts one, or says why not: `None` if the program is not installed.
    pub fn start(options: Options) -> Option<DockerRegistry> {
        let data = tempfile::tempdir().expect("a temporary directory");
        let directory = data.path().display();
        let mut configuration = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {directory}/data\n\
             http:\n  addr: 127.0.0.1:0\n"
        );
        if options.tls {
            let certificates = certificates();
            let certificates = certificates.display();
            configuration.push_str(&format!(
                "  tls:\n    certificate: {certificates}/server.cert\n    key: {certificates}/server.key\n    \
                 clientcas: [{certificates}/ca.crt]\n"
            ));
        }
        if options.password {
            // `secret`, hashed with bcrypt.
            let line = "peel:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
            std::fs::write(data.path().join("htpasswd"), line).expect("the password file");
            configuration
                .push_str(&format!("auth:\n  htpasswd:\n    realm: test\n    path: {directory}/htpasswd\n"));
        }
        let path = data.path().join("config.yml");
        std::fs::write(&path, configuration).expect("the configuration");
        let spawned = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut process = match spawned {
            Ok(process) => process,
            Err(error) => {
                eprintln!("skipped: docker-registry cannot be run: {error}");
                return None;
            }
        };
        let mut log = BufReader::new(process.stderr.take().expect("a piped stderr"));
        let address = listening_address(&mut log);
        // The pipe must be emptied for as long as the registry writes to it.
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(DockerRegistry { process, address, _data: data })
    }

    /// `127.0.0.1:PORT`.
    pub fn url_host(&self) -> &str {
        &self.address
    }

    /// Pushes a blob (plain HTTP without a password only).
    pub fn push_blob(&self, repository: &str, bytes: &[u8]) -> Digest {
        let digest = Digest::sha256_of(bytes);
        let head = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "text/plain", b"", 202);
        let location = head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("location")))
            .map(|(_, value)| value.trim().to_owned())
            .expect("an upload has a location");
        let target = location.split_once(&self.address).map_or(location.as_str(), |(_, target)| target);
        let target = format!("{target}&digest={digest}");
        self.request("PUT", &target, "application/octet-stream", bytes, 201);
        digest
    }

    /// Pushes a manifest or index (plain HTTP without a password only).
    pub fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> Digest {
        self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, bytes, 201);
        Digest::sha256_of(bytes)
    }

    fn request(&self, method: &str, target: &str, media_type: &str, body: &[u8], expected: u16) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("the registry listens");
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: {media_type}\r\n\
             content-length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).expect("the registry reads");
        stream.write_all(body).expect("the registry reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the registry answers");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{method} {target}: {answer}");
        answer
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Reads the log up to the line that says where it listens.
fn listening_address(log: &mut impl BufRead) -> String {
    let mut seen = String::new();
    loop {
        let mut line = String::new();
        if log.read_line(&mut line).expect("a readable log") == 0 {
            panic!("docker-registry ended: {seen}");
        }
        if let Some((_, rest)) = line.split_once("listening on ") {
            return rest.split([',', '"', ' ']).next().unwrap_or_default().to_owned();
        }
        seen.push_str(&line);
    }
}
