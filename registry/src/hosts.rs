//! Which hosts are asked for what a registry has: containerd's directories of hosts.
//!
//! ```text
//! /etc/containerd/certs.d/host_5000_/hosts.toml      the first of these directories that exists counts for host:5000
//!                         host:5000/
//!                         _default/
//! ```
//!
//! A directory without `hosts.toml` holds certificates, as Docker's do. It is read when a repository is opened, so what changes counts
//! from the next image on. Unlike containerd, which then asks the registry itself, a file that cannot be understood is an error:
//! a mirror that somebody has set up is not passed by in silence.

mod file;

use std::fmt;
use std::path::{Path, PathBuf};

use reqwest::Url;

use crate::configuration::HostSettings;
use crate::connections::settings_in;
use crate::local_file;

/// Larger files say nothing about hosts.
const MAXIMUM_FILE_SIZE: u64 = 1024 * 1024;
/// What a directory's file is called.
const FILE: &str = "hosts.toml";
/// The directory of registries that have none.
const DEFAULT: &str = "_default";

/// A host that is asked in the place of a registry, or that registry.
#[derive(Clone, Debug)]
pub(crate) struct RegistryHost {
    /// Where its API begins, with a slash at the end; nothing if it is the registry itself.
    pub(crate) address: Option<Url>,
    pub(crate) capabilities: Capabilities,
    pub(crate) settings: HostSettings,
}

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// What has a digest.
    pub(crate) pull: bool,
    /// What a tag means, which nothing proves.
    pub(crate) resolve: bool,
    /// To take something.
    pub(crate) push: bool,
}

impl Capabilities {
    pub(crate) const ALL: Capabilities = Capabilities { pull: true, resolve: true, push: true };
    pub(crate) const NONE: Capabilities = Capabilities { pull: false, resolve: false, push: false };
}

/// Why it is not known which hosts to ask.
#[derive(Debug)]
pub(crate) struct HostsError {
    path: PathBuf,
    problem: String,
}

impl fmt::Display for HostsError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.path.display(), self.problem)
    }
}

impl std::error::Error for HostsError {}

/// The hosts to ask for what the registry `host` (with its port, if it has one) has, in order; nothing if no directory is about it.
pub(crate) fn of_registry(
    directories: &[PathBuf],
    host: &str,
) -> Result<Option<Vec<RegistryHost>>, HostsError> {
    for directory in directories {
        for name in names(host) {
            let directory = directory.join(name);
            match std::fs::metadata(&directory) {
                Ok(found) if found.is_dir() => return read(&directory).map(Some),
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(HostsError { path: directory, problem: error.to_string() }),
            }
        }
    }
    Ok(None)
}

/// What a registry's directory may be called, in the order in which it is looked for.
fn names(host: &str) -> impl Iterator<Item = String> {
    let with_port = host.rsplit_once(':').filter(|(name, port)| {
        !name.is_empty() && !port.is_empty() && port.bytes().all(|digit| digit.is_ascii_digit())
    });
    let with_port = with_port.map(|(name, port)| format!("{name}_{port}_"));
    with_port.into_iter().chain([host.to_owned(), DEFAULT.to_owned()])
}

fn is_missing(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
}

fn read(directory: &Path) -> Result<Vec<RegistryHost>, HostsError> {
    let path = directory.join(FILE);
    let failed = |problem: String| HostsError { path: path.clone(), problem };
    let bytes = match local_file::read_bounded(&path, MAXIMUM_FILE_SIZE) {
        Err(error) if is_missing(&error) => Vec::new(),
        read => read.map_err(|error| failed(format!("cannot be read: {error}")))?,
    };
    let text = String::from_utf8(bytes).map_err(|_| failed("is no UTF-8".to_owned()))?;
    if text.is_empty() {
        let settings = settings_in(directory)
            .map_err(|failure| HostsError { path: directory.to_owned(), problem: failure.message })?;
        let settings = settings.unwrap_or_default();
        return Ok(vec![RegistryHost { address: None, capabilities: Capabilities::ALL, settings }]);
    }
    file::parsed(&text, directory).map_err(|fault| match fault.key.as_str() {
        "" => failed(fault.problem),
        key => failed(format!("{key} {}", fault.problem)),
    })
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_registrys_directory_is_found_by_any_of_its_names() {
        let root = tempfile::tempdir().unwrap();
        let roots = [root.path().join("missing"), root.path().to_owned()];
        let server = |host: &str| {
            let hosts = of_registry(&roots, host).unwrap()?;
            Some(hosts.last().unwrap().address.as_ref()?.host_str().unwrap().to_owned())
        };
        let put = |name: &str, text: &str| {
            std::fs::create_dir_all(root.path().join(name)).unwrap();
            std::fs::write(root.path().join(name).join(FILE), text).unwrap();
        };
        assert!(of_registry(&roots, "host:5000").unwrap().is_none());
        put("_default", "server = 'c'");
        assert_eq!(server("host:5000").as_deref(), Some("c"));
        put("host:5000", "server = 'b'");
        assert_eq!(server("host:5000").as_deref(), Some("b"));
        put("host_5000_", "server = 'a'");
        assert_eq!(server("host:5000").as_deref(), Some("a"));
        assert_eq!(server("[::1]:5000").as_deref(), Some("c"));
        put("[::1]_5000_", "server = 'd'");
        assert_eq!(server("[::1]:5000").as_deref(), Some("d"));
        assert_eq!(server("other").as_deref(), Some("c"));
        // An empty one says: the registry itself.
        put("plain", "");
        assert_eq!(server("plain"), None);
        assert_eq!(of_registry(&roots, "plain").unwrap().unwrap().len(), 1);
    }

    #[test]
    fn a_directory_without_the_file_holds_certificates() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("host");
        std::fs::create_dir(&directory).unwrap();
        for name in ["a.crt", "c.cert", "c.key"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        let hosts = of_registry(&[root.path().to_owned()], "host").unwrap().unwrap();
        assert_eq!(hosts[0].settings.certificate_authorities, [directory.join("a.crt")]);
        assert!(hosts[0].settings.client_certificate.is_some());
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_named_with_its_key() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("host");
        std::fs::create_dir(&directory).unwrap();
        let told = |content: &[u8]| {
            std::fs::write(directory.join(FILE), content).unwrap();
            of_registry(&[root.path().to_owned()], "host").unwrap_err().to_string()
        };
        let path = directory.join(FILE).display().to_string();
        assert_eq!(told(b"ca = 5"), format!("{path}: ca is neither a file nor a list of files"));
        assert!(told(b"\xff").starts_with(&path));
        assert!(told(&vec![b' '; MAXIMUM_FILE_SIZE as usize + 1]).contains("larger than 1048576 bytes"));
        let syntax = told(b"a = 1\nb = \"secret-word");
        assert!(syntax.contains("line 2") && !syntax.contains("secret-word"), "{syntax}");
    }

    #[test]
    fn a_fifo_in_the_place_of_a_file_holds_nobody_up() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("host");
        std::fs::create_dir(&directory).unwrap();
        let path = directory.join(FILE);
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        let told = of_registry(&[root.path().to_owned()], "host").unwrap_err().to_string();
        assert_eq!(told, format!("{}: cannot be read: it is not a regular file", path.display()));
    }
}
