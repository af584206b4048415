//! Origins: who may be sent a credential, and who may be talked to without TLS.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

/// Scheme, host and port (RFC 6454). Credentials of one origin are never sent to another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Origin {
    scheme: String,
    host: String,
    port: Option<u16>,
}

impl Origin {
    pub(crate) fn of(url: &Url) -> Origin {
        Origin {
            scheme: url.scheme().to_owned(),
            host: url.host_str().unwrap_or_default().to_owned(),
            port: url.port_or_known_default(),
        }
    }

    pub(crate) fn is_secure(&self) -> bool {
        self.scheme == "https"
    }

    /// Whether both are on one machine name, whatever the port.
    pub(crate) fn same_host(&self, other: &Origin) -> bool {
        self.host == other.host
    }

    pub(crate) fn is_loopback(&self) -> bool {
        is_loopback(&self.host)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}://{}", self.scheme, self.host)?;
        match (self.scheme.as_str(), self.port) {
            ("https", Some(443)) | ("http", Some(80)) | (_, None) => Ok(()),
            (_, Some(port)) => write!(formatter, ":{port}"),
        }
    }
}

/// Whether a host name without its port is this machine: `localhost`, `127.0.0.0/8` or `[::1]`.
fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether `host[:port]`, as in a reference, is this machine.
pub(crate) fn is_loopback_authority(authority: &str) -> bool {
    let name = match authority.rfind(']') {
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    };
    is_loopback(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_told_by_name_and_address() {
        for (authority, expected) in [
            ("localhost", true),
            ("LOCALHOST:5000", true),
            ("127.0.0.1:5000", true),
            ("127.9.9.9", true),
            ("[::1]:5000", true),
            ("localhost.example.com", false),
            ("127.0.0.1.example.com", false),
            ("10.0.0.1:5000", false),
            ("[::2]:5000", false),
            ("docker.io", false),
        ] {
            assert_eq!(is_loopback_authority(authority), expected, "{authority}");
        }
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        let origin = |text: &str| Origin::of(&Url::parse(text).unwrap());
        assert_eq!(origin("https://h/a?b"), origin("https://h:443/c"));
        assert_ne!(origin("https://h/"), origin("http://h/"));
        assert_ne!(origin("https://h/"), origin("https://h:444/"));
        assert_ne!(origin("https://h/"), origin("https://i/"));
        assert!(origin("https://h/").same_host(&origin("http://h:8080/")));
        assert_eq!(origin("https://user:secret@h:444/x?y").to_string(), "https://h:444");
    }
}
