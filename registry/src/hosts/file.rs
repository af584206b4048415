//! What `hosts.toml` says (containerd, `docs/hosts.md`).
//!
//! ```text
//! server = "https://registry.example"            asked last; without it, the registry that the reference names
//! capabilities, ca, client, … = …                what counts for the server
//!
//! [host."https://mirror.example/path"]           asked before it, in the order of the file
//!   capabilities = ["pull", "resolve", "push"]   all three, if it names none
//!   ca = "ca.crt" | ["a.crt", "b.crt"]           files, from the directory of this one
//!   client = "both.pem" | ["both.pem"] | [["client.cert", "client.key"], ["both.pem", ""]]
//!   skip_verify = false
//!   override_path = false                        true: no /v2 is put behind the path
//!   dial_timeout = "30s"
//!   proxy = "http://proxy:8080"
//!   [host."https://mirror.example/path".header]
//!     x-name = "value" | ["one", "two"]
//! ```
//!
//! A value is told in no error: it may be a header with a password. Keys that are not known are passed over, as containerd does.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml_edit::{Document, Item, TableLike, Value};

use super::{Capabilities, RegistryHost};
use crate::configuration::{ClientCertificate, HostSettings};

/// Most hosts of a file, and most headers or files that one of them names.
const MOST: usize = 64;
/// Longest time that a connection may take.
const LONGEST_DIAL: Duration = Duration::from_secs(3600);
/// What only the library that speaks HTTP may say.
const OWN_HEADERS: [&str; 7] =
    ["host", "connection", "content-length", "transfer-encoding", "range", "accept-encoding", "upgrade"];

/// What is wrong with a file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// The key, with those above it; empty if it is the file as a whole.
    pub(crate) key: String,
    pub(crate) problem: String,
}

/// The hosts to ask, in order. `directory` is that of the file.
pub(crate) fn parsed(text: &str, directory: &Path) -> Result<Vec<RegistryHost>, Fault> {
    let document = Document::parse(text).map_err(|error| {
        let line =
            error.span().map_or(1, |span| 1 + text[..span.start.min(text.len())].matches('\n').count());
        Fault { key: String::new(), problem: format!("line {line} is no TOML: {}", error.message()) }
    })?;
    let root = Section { key: String::new(), table: document.as_table(), directory };
    let mut hosts = Vec::new();
    if let Some(item) = root.table.get("host") {
        let tables = item.as_table_like().ok_or_else(|| root.fault("host", "is no table"))?;
        if tables.len() > MOST {
            return Err(root.fault("host", format!("names more than {MOST} hosts")));
        }
        let mut tables: Vec<(&str, &Item)> = tables.iter().collect();
        // What is said of a host may stand in several places: the first counts.
        tables.sort_by_key(|(_, item)| place(item));
        for (name, item) in tables {
            let key = format!("host.{name:?}");
            let table = item.as_table_like().ok_or_else(|| root.fault(&key, "is no table"))?;
            let section = Section { key, table, directory };
            hosts.push(section.host(Some(name))?);
        }
    }
    let server = root.text("server")?.filter(|server| !server.is_empty());
    hosts.push(root.host(server)?);
    Ok(hosts)
}

/// One table, and what is above it.
struct Section<'a> {
    key: String,
    table: &'a dyn TableLike,
    directory: &'a Path,
}

impl Section<'_> {
    fn fault(&self, key: &str, problem: impl Into<String>) -> Fault {
        let above = if self.key.is_empty() { String::new() } else { format!("{}.", self.key) };
        Fault { key: format!("{above}{key}"), problem: problem.into() }
    }

    /// The host of that address; of no address: the registry itself, which may be asked for all.
    fn host(&self, address: Option<&str>) -> Result<RegistryHost, Fault> {
        let overrides_path = self.flag("override_path")?.unwrap_or(false);
        let capabilities = self.capabilities()?;
        let address = match address {
            // The key of a host stands above what is said of it.
            Some(address) => {
                Some(api(address, overrides_path).map_err(|problem| match self.key.is_empty() {
                    true => self.fault("server", problem),
                    false => Fault { key: self.key.clone(), problem: problem.to_owned() },
                })?)
            }
            None => None,
        };
        Ok(RegistryHost {
            capabilities: if address.is_some() { capabilities } else { Capabilities::ALL },
            address,
            settings: HostSettings {
                certificate_authorities: self.authorities()?,
                client_certificate: self.client_certificate()?,
                accepts_any_certificate: self.flag("skip_verify")?.unwrap_or(false),
                headers: self.headers()?,
                connect_timeout: self.dial_timeout()?,
                proxy: self.proxy()?,
            },
        })
    }

    fn text(&self, key: &str) -> Result<Option<&str>, Fault> {
        let text = |item: &'_ Item| item.as_str().is_some();
        match self.table.get(key) {
            Some(item) if !text(item) => Err(self.fault(key, "is no text")),
            item => Ok(item.and_then(Item::as_str)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        match self.table.get(key) {
            None => Ok(None),
            Some(item) => {
                item.as_bool().map(Some).ok_or_else(|| self.fault(key, "is neither true nor false"))
            }
        }
    }

    fn capabilities(&self) -> Result<Capabilities, Fault> {
        const KEY: &str = "capabilities";
        let names = self.texts(KEY, self.table.get(KEY), "is no list of texts")?;
        let mut capabilities = Capabilities::NONE;
        for name in &names {
            match name.to_ascii_lowercase().as_str() {
                "pull" => capabilities.pull = true,
                "resolve" => capabilities.resolve = true,
                "push" => capabilities.push = true,
                _ => {
                    return Err(self.fault(KEY, "has something else than \"pull\", \"resolve\" and \"push\""));
                }
            }
        }
        Ok(if names.is_empty() { Capabilities::ALL } else { capabilities })
    }

    fn authorities(&self) -> Result<Vec<PathBuf>, Fault> {
        let item = self.table.get("ca");
        let one = item.and_then(Item::as_str).map(|one| vec![one.to_owned()]);
        let files = match one {
            Some(one) => one,
            None => self.texts("ca", item, "is neither a file nor a list of files")?,
        };
        files.iter().map(|file| self.file("ca", file)).collect()
    }

    /// The first pair: that is the one that we show.
    fn client_certificate(&self) -> Result<Option<ClientCertificate>, Fault> {
        const KEY: &str = "client";
        const NO_PAIRS: &str = "is neither a file nor a list of files or of pairs of files";
        let pair = |certificate: &str, key: &str| {
            let certificate = self.file(KEY, certificate)?;
            // Both in one file.
            let key = if key.is_empty() { certificate.clone() } else { self.file(KEY, key)? };
            Ok(ClientCertificate { certificate, key })
        };
        let Some(item) = self.table.get(KEY) else { return Ok(None) };
        if let Some(file) = item.as_str() {
            return pair(file, "").map(Some);
        }
        let array = item.as_array().ok_or_else(|| self.fault(KEY, NO_PAIRS))?;
        if array.len() > MOST {
            return Err(self.fault(KEY, format!("has more than {MOST} entries")));
        }
        let pairs: Result<Vec<ClientCertificate>, Fault> = array
            .iter()
            .map(|entry| match entry {
                Value::String(file) => pair(file.value(), ""),
                Value::Array(both) => match (both.len(), both.get(0), both.get(1)) {
                    (2, Some(Value::String(certificate)), Some(Value::String(key))) => {
                        pair(certificate.value(), key.value())
                    }
                    _ => Err(self.fault(KEY, "has a pair that is none of two files")),
                },
                _ => Err(self.fault(KEY, NO_PAIRS)),
            })
            .collect();
        Ok(pairs?.into_iter().next())
    }

    fn headers(&self) -> Result<HeaderMap, Fault> {
        let mut headers = HeaderMap::new();
        let Some(item) = self.table.get("header") else { return Ok(headers) };
        let table = item.as_table_like().ok_or_else(|| self.fault("header", "is no table"))?;
        if table.len() > MOST {
            return Err(self.fault("header", format!("has more than {MOST} entries")));
        }
        for (name, item) in table.iter() {
            let key = format!("header.{name:?}");
            let values = match item.as_str() {
                Some(one) => vec![one.to_owned()],
                None => self.texts(&key, Some(item), "is neither a text nor a list of texts")?,
            };
            let name = HeaderName::try_from(name).ok();
            let name = name.filter(|name| !OWN_HEADERS.contains(&name.as_str()));
            let name = name.ok_or_else(|| self.fault(&key, "is no header that may be added"))?;
            for value in values {
                let mut value = HeaderValue::try_from(value)
                    .map_err(|_| self.fault(&key, "has characters that HTTP cannot carry"))?;
                // It may well be a password.
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
        Ok(headers)
    }

    fn dial_timeout(&self) -> Result<Option<Duration>, Fault> {
        const KEY: &str = "dial_timeout";
        let Some(text) = self.text(KEY)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        let timeout = duration(text).ok_or_else(|| self.fault(KEY, "is no time such as \"1m30s\""))?;
        if timeout.is_zero() || timeout > LONGEST_DIAL {
            return Err(self.fault(KEY, "is not more than nothing and at most an hour"));
        }
        Ok(Some(timeout))
    }

    fn proxy(&self) -> Result<Option<String>, Fault> {
        const KEY: &str = "proxy";
        let Some(text) = self.text(KEY)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        let is_proxy = Url::parse(text)
            .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.host_str().is_some());
        is_proxy
            .then(|| Some(text.to_owned()))
            .ok_or_else(|| self.fault(KEY, "is no address of a proxy over HTTP"))
    }

    fn texts(&self, key: &str, item: Option<&Item>, problem: &str) -> Result<Vec<String>, Fault> {
        let Some(item) = item else { return Ok(Vec::new()) };
        let array = item.as_array().ok_or_else(|| self.fault(key, problem))?;
        if array.len() > MOST {
            return Err(self.fault(key, format!("has more than {MOST} entries")));
        }
        let texts = array.iter().map(|value| value.as_str().map(str::to_owned));
        texts.collect::<Option<_>>().ok_or_else(|| self.fault(key, problem))
    }

    fn file(&self, key: &str, file: &str) -> Result<PathBuf, Fault> {
        if file.is_empty() || file.contains('\0') {
            return Err(self.fault(key, "has a file without a name"));
        }
        Ok(self.directory.join(file))
    }
}

/// Where something begins to be said, in bytes. The parser bounds how deep tables are.
fn place(item: &Item) -> usize {
    let own = item.span().map(|span| span.start);
    let inner = item.as_table_like().into_iter().flat_map(|table| table.iter().map(|(_, item)| place(item)));
    inner.chain(own).min().unwrap_or(usize::MAX)
}

/// The address of an API, with a slash at its end.
fn api(address: &str, overrides_path: bool) -> Result<Url, &'static str> {
    const NONE: &str = "is no address such as https://host:port/path";
    let with_scheme = match address.contains("://") {
        true => address.to_owned(),
        false => format!("https://{address}"),
    };
    let mut url = Url::parse(&with_scheme).map_err(|_| NONE)?;
    if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
        return Err(NONE);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has credentials in it, which would be shown to whoever sees the address");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("has a query or a fragment, which the address of an API has not");
    }
    let segments: Vec<&str> = url.path().split('/').filter(|segment| !segment.is_empty()).collect();
    let is_versioned = overrides_path || segments.last() == Some(&"v2");
    let mut path = String::from("/");
    for segment in segments.into_iter().chain((!is_versioned).then_some("v2")) {
        path.push_str(segment);
        path.push('/');
    }
    url.set_path(&path);
    Ok(url)
}

/// A time as Go writes it: `1m30s`, `1.5h`, `300ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit_end =
            after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(unit_end);
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number.parse::<f64>().ok()? * unit;
        rest = next;
    }
    Duration::try_from_secs_f64(seconds).ok().filter(|_| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> Vec<RegistryHost> {
        parsed(text, Path::new("/certs.d/host")).unwrap_or_else(|fault| panic!("{text}: {fault:?}"))
    }

    fn addresses(text: &str) -> Vec<Option<String>> {
        hosts(text).into_iter().map(|host| host.address.map(|address| address.to_string())).collect()
    }

    fn some(address: &str) -> Option<String> {
        Some(address.to_owned())
    }

    #[test]
    fn hosts_come_in_the_order_of_the_file_and_the_server_last() {
        for (text, expected) in [
            ("", vec![None]),
            ("server = ''", vec![None]),
            ("server = 'https://docker.io'", vec![some("https://docker.io/v2/")]),
            (
                "[host.'b.example']\n[host.'http://a:5000']",
                vec![some("https://b.example/v2/"), some("http://a:5000/v2/"), None],
            ),
            (
                "server = 'z'\n[host.'https://y/'.header]\nx = 'a'\n[host.'https://a']\n[host.'https://y/']\nskip_verify = true",
                vec![some("https://y/v2/"), some("https://a/v2/"), some("https://z/v2/")],
            ),
            (
                "host = { 'https://b' = {}, 'https://a' = {} }",
                vec![some("https://b/v2/"), some("https://a/v2/"), None],
            ),
            ("[host.'https://h/a//b/../c/']", vec![some("https://h/a/c/v2/"), None]),
            ("[host.'https://h/a/v2']", vec![some("https://h/a/v2/"), None]),
            ("[host.'https://h/a']\noverride_path = true", vec![some("https://h/a/"), None]),
            ("[host.'https://h']\noverride_path = true", vec![some("https://h/"), None]),
        ] {
            assert_eq!(addresses(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_said_of_a_host_counts_for_it_alone() {
        let all = hosts(
            r#"
            server = "https://up"
            ca = "up.crt"
            unknown = [1, 2]
            [host."https://one"]
            capabilities = ["Pull"]
            ca = ["/abs/a.crt", "b.crt"]
            client = [["c.cert", "c.key"], ["d.pem", ""]]
            skip_verify = true
            dial_timeout = "1m1.5s"
            proxy = "http://user:word@proxy:8080"
            [host."https://one".header]
            x-one = "secret-word"
            X-Two = ["a", "b"]
            [host."https://two"]
            client = "both.pem"
            "#,
        );
        let [one, two, up] = &all[..] else { panic!("{all:?}") };
        assert_eq!(one.capabilities, Capabilities { pull: true, ..Capabilities::NONE });
        assert_eq!(
            one.settings.certificate_authorities,
            ["/abs/a.crt", "/certs.d/host/b.crt"].map(PathBuf::from)
        );
        let pair = |certificate: &str, key: &str| {
            Some(ClientCertificate { certificate: certificate.into(), key: key.into() })
        };
        assert_eq!(one.settings.client_certificate, pair("/certs.d/host/c.cert", "/certs.d/host/c.key"));
        assert!(one.settings.accepts_any_certificate);
        assert_eq!(one.settings.connect_timeout, Some(Duration::from_millis(61_500)));
        assert_eq!(one.settings.headers["x-one"], "secret-word");
        assert_eq!(one.settings.headers.get_all("x-two").iter().count(), 2);
        let shown = format!("{one:?}");
        assert!(!shown.contains("secret-word") && !shown.contains("user:word"), "{shown}");
        assert_eq!(two.capabilities, Capabilities::ALL);
        assert_eq!(two.settings.client_certificate, pair("/certs.d/host/both.pem", "/certs.d/host/both.pem"));
        assert_eq!(two.settings.certificate_authorities, Vec::<PathBuf>::new());
        assert_eq!(up.settings.certificate_authorities, [PathBuf::from("/certs.d/host/up.crt")]);
        assert!(!up.settings.accepts_any_certificate);
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key_and_never_by_its_value() {
        for (text, key) in [
            ("secret = secret-word", ""),
            ("server = 5", "server"),
            ("server = 'ftp://secret-word'", "server"),
            ("server = 'https://user:secret-word@h'", "server"),
            ("host = 'secret-word'", "host"),
            ("[host]\n'https://h' = 'secret-word'", "host.\"https://h\""),
            ("[host.'https://h/?a=b']", "host.\"https://h/?a=b\""),
            ("[host.'https://']", "host.\"https://\""),
            ("[host.h]\ncapabilities = ['pull', 'secret-word']", "host.\"h\".capabilities"),
            ("[host.h]\ncapabilities = 'pull'", "host.\"h\".capabilities"),
            ("[host.h]\nca = 5", "host.\"h\".ca"),
            ("[host.h]\nca = ['']", "host.\"h\".ca"),
            ("[host.h]\nclient = [['secret-word']]", "host.\"h\".client"),
            ("[host.h]\nclient = [5]", "host.\"h\".client"),
            ("[host.h]\nskip_verify = 'yes'", "host.\"h\".skip_verify"),
            ("override_path = 1", "override_path"),
            ("dial_timeout = 'soon'", "dial_timeout"),
            ("dial_timeout = '0s'", "dial_timeout"),
            ("dial_timeout = '2h'", "dial_timeout"),
            ("proxy = 'secret-word'", "proxy"),
            ("header = 5", "header"),
            ("[header]\nx = 5", "header.\"x\""),
            ("[header]\n'a b' = 'secret-word'", "header.\"a b\""),
            ("[header]\nContent-Length = '5'", "header.\"Content-Length\""),
            ("[header]\nx = \"secret-word\\n\"", "header.\"x\""),
        ] {
            let fault = parsed(text, Path::new("/d")).unwrap_err();
            assert_eq!(fault.key, key, "{text}: {}", fault.problem);
            assert!(!fault.problem.contains("secret-word"), "{text}: {}", fault.problem);
        }
        let many: String = (0..=MOST).map(|number| format!("[host.h{number}]\n")).collect();
        assert_eq!(parsed(&many, Path::new("/d")).unwrap_err().key, "host");
    }

    #[test]
    fn times_are_read_as_go_writes_them() {
        for (text, milliseconds) in [("1s", 1000), ("1.5h", 5_400_000), ("1m30s", 90_000), ("300ms", 300)] {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for wrong in ["", "5", "s", "1x", "1s2", "-1s", "1..5s", "1e9s", "99999999999999999999h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
